"""A light diagonal normal with the methods of a distrax distribution, and KL divergences in closed form."""

import math
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.pytree import dataclass

LOG_2PI = math.log(2 * math.pi)


def standard_promotion() -> AbstractContextManager:
    """JAX's standard promotion rules, which distrax is written for, whatever the caller's are."""
    stack = ExitStack()
    stack.enter_context(jax.numpy_dtype_promotion("standard"))
    stack.enter_context(jax.numpy_rank_promotion("allow"))
    return stack


@dataclass
class DiagonalNormal:
    """A normal distribution with independent coordinates: a posterior q(z | x), or a prior of z.

        z ~ N(loc, diag(exp(log_scale))^2)

    A pytree of its two arrays with the methods of a distrax distribution, which may be used wherever it may; importing
    distrax takes over a second. Both parameters are free real numbers, so a `DiagonalNormal` may itself be the thing
    that an optimiser moves. The last axis is the event (Q,), those before it the batch: (N, Q) is a q for each of N
    data, (Q,) one distribution. Nothing is checked; a NaN parameter gives NaN, a log_scale of -inf a point mass whose
    log-density is NaN or infinite. Time and memory O(batch x Q).

    Attributes:
      loc: (..., Q) mean.
      log_scale: (..., Q) log standard deviation, broadcast against `loc`.

    Examples:
      >>> q = DiagonalNormal(jnp.array([[0.0, 1.0]]), jnp.zeros((1, 2)))
      >>> q.sample(seed=jax.random.key(0), sample_shape=(3,)).shape
      (3, 1, 2)
      >>> q.kl_divergence(DiagonalNormal.standard(2)).tolist()
      [0.5]
    """

    loc: Array
    log_scale: Array

    @classmethod
    def standard(cls, num: int, dtype: Any = None) -> "DiagonalNormal":
        """N(0, I) in `num` dimensions; of the default float where no dtype is given."""
        zero = jnp.zeros(num, jnp.result_type(float) if dtype is None else dtype)
        return cls(zero, zero)

    @property
    def _shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.log_scale))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of the batch of distributions."""
        return self._shape[:-1]

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(Q,)."""
        return self._shape[-1:]

    def _broadcast(self, *others: Any) -> list[Array]:
        """Loc, log_scale and the others in one shape; JAX's rank promotion may be switched off."""
        return jnp.broadcast_arrays(*(jnp.asarray(a) for a in (self.loc, self.log_scale, *others)))

    def mean(self) -> Array:
        """(..., Q) E[z]."""
        return self._broadcast()[0]

    def stddev(self) -> Array:
        """(..., Q) standard deviations."""
        return jnp.exp(self._broadcast()[1])

    def variance(self) -> Array:
        """(..., Q) variances."""
        return jnp.exp(2 * self._broadcast()[1])

    def sample(self, *, seed: Array, sample_shape: int | tuple[int, ...] = ()) -> Array:
        """(*sample_shape, ..., Q) draws loc + exp(log_scale) * noise, differentiable in both parameters."""
        lead = (sample_shape,) if isinstance(sample_shape, int) else tuple(sample_shape)
        noise = jax.random.normal(seed, lead + self._shape, jnp.result_type(self.loc))
        loc, log_scale, noise = self._broadcast(noise)
        return loc + jnp.exp(log_scale) * noise

    def log_prob(self, value: Array) -> Array:
        """(...) log density of values (..., Q), nats."""
        loc, log_scale, value = self._broadcast(value)
        residual = (value - loc) * jnp.exp(-log_scale)
        return -jnp.sum(residual**2 / 2 + log_scale + LOG_2PI / 2, -1)

    def entropy(self) -> Array:
        """(...) differential entropy, nats."""
        return jnp.sum(self._broadcast()[1] + (1 + LOG_2PI) / 2, -1)

    def kl_per_dimension(self, other: "DiagonalNormal") -> Array:
        """(..., Q) KL(self || other) of each coordinate, nats; they sum to `kl_divergence`."""
        loc, log_scale, other_loc, other_log_scale = self._broadcast(other.loc, other.log_scale)
        ratio = log_scale - other_log_scale
        shift = (loc - other_loc) * jnp.exp(-other_log_scale)
        return (jnp.expm1(2 * ratio) + shift**2) / 2 - ratio

    def kl_divergence(self, other: Any) -> Array:
        """(...) KL(self || other), nats, for another `DiagonalNormal` or a distrax normal; see `kl_divergence`."""
        return kl_divergence(self, other)


def kl_divergence(q: Any, prior: Any) -> Array:
    """KL(q || prior) in closed form, nats, one for each entry of the batch.

    Args:
      q: a `DiagonalNormal` or a distrax distribution.
      prior: the same; its batch is broadcast against q's.

    Returns:
      (...) nats.

    Raises:
      NotImplementedError: there is no closed form for this pair.
    """
    if isinstance(q, DiagonalNormal) and isinstance(prior, DiagonalNormal):
        return jnp.sum(q.kl_per_dimension(prior), -1)
    q, prior = (_as_distrax(d) if isinstance(d, DiagonalNormal) else d for d in (q, prior))
    if not hasattr(q, "kl_divergence"):
        raise NotImplementedError(f"no closed KL divergence between {type(q).__name__} and {type(prior).__name__}")
    with standard_promotion():
        return q.kl_divergence(prior)


def _as_distrax(normal: DiagonalNormal) -> Any:
    import distrax  # over a second, and not needed between two DiagonalNormals

    with standard_promotion():
        return distrax.MultivariateNormalDiag(normal.mean(), normal.stddev())
