"""Gaussian likelihoods: fixed, shared or predicted noise, never below a floor."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import constraints
from jaxem._arguments import check_number, nearest
from jaxem._normal import standard_promotion
from jaxem._pytree import dataclass
from jaxem._tree import PyTree
from jaxem.families._checks import check_matrix
from jaxem.likelihoods.likelihood import Likelihood

KINDS = ("shared", "predicted")


@dataclass
class Noise:
    """What a "shared" scale adds to the params.

    Attributes:
      scale: the standard deviation of the noise, a scalar.
    """

    scale: Array


@dataclass
class _Gaussian(Likelihood):
    """Base of the three; see `Gaussian`."""

    floor: float | Array = 1e-3

    def _parts(self, params: PyTree, outputs: Array) -> tuple[Array, Array]:
        """(mean (n, D), scale that broadcasts against it)."""
        raise NotImplementedError

    def validate(self, x: Any) -> None:
        """Raises unless x is (N, D) and the floor a number >= 0."""
        check_matrix(x)
        check_number("floor", self.floor, 0, dims=(0, 1), each="finite numbers >= 0")

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats."""
        mean, scale = self._parts(params, outputs)
        residual = (x - mean) / scale
        return jnp.sum(-0.5 * residual**2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi), 1)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D) means."""
        return self._parts(params, outputs)[0]

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) draws."""
        mean, scale = self._parts(params, outputs)
        return mean + scale * jax.random.normal(key, mean.shape, mean.dtype)

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        import distrax

        mean, scale = self._parts(params, outputs)
        with standard_promotion():
            return distrax.Independent(distrax.Normal(mean, jnp.broadcast_to(scale, mean.shape)), 1)


@dataclass
class FixedGaussian(_Gaussian):
    """Known noise; `Gaussian(number)`.

    Attributes:
      floor: not used.
      scale: the standard deviation, a number > 0 or (D,).
    """

    scale: float | Array = 1.0

    def validate(self, x: Any) -> None:
        """Raises unless x is (N, D) and the scale positive."""
        check_matrix(x)
        check_number("scale", self.scale, 0, above=True, dims=(0, 1), each="finite numbers > 0")

    def _parts(self, params: PyTree, outputs: Array) -> tuple[Array, Array]:
        scale = jnp.asarray(self.scale, outputs.dtype)
        return outputs, jnp.broadcast_to(scale, outputs.shape[1:])[None]


@dataclass
class SharedGaussian(_Gaussian):
    """One learned scale for all rows and columns; `Gaussian("shared")`.

    Attributes:
      floor: least standard deviation.
    """

    def init(self, x: Array, weights: Array) -> Noise:
        """The data's own root mean square distance from the mean, or the least that the floor allows."""
        share = (weights / jnp.sum(weights))[:, None]
        spread = jnp.sqrt(jnp.mean(jnp.sum(share * (x - jnp.sum(share * x, 0)[None]) ** 2, 0)))
        floor = jnp.asarray(self.floor, x.dtype)
        return Noise(jnp.maximum(spread, jnp.where(floor > 0, 2 * floor, 1e-3)))

    def constraints(self) -> Noise:
        """Above the floor."""
        return Noise(constraints.Above(self.floor))  # type: ignore[arg-type]

    def influence(self, params: Noise) -> Array:
        """The floor's share of the variance."""
        return (jnp.asarray(self.floor, params.scale.dtype) / params.scale) ** 2

    def _parts(self, params: Noise, outputs: Array) -> tuple[Array, Array]:
        return outputs, params.scale.reshape(1, 1)


@dataclass
class PredictedGaussian(_Gaussian):
    """The decoder says the noise of every entry; `Gaussian("predicted")`.

    Attributes:
      floor: least standard deviation.
    """

    def num_outputs(self, num_columns: int) -> int | None:
        """2 D: means, then what becomes the scales by floor + log(1 + exp(output))."""
        return 2 * num_columns

    def _parts(self, params: PyTree, outputs: Array) -> tuple[Array, Array]:
        mean, raw = jnp.split(outputs, 2, 1)
        return mean, jnp.asarray(self.floor, outputs.dtype) + jax.nn.softplus(raw)


def Gaussian(  # noqa: N802 - it reads as a class beside the others
    scale: float | Array | str = "shared", floor: float | Array = 1e-3
) -> FixedGaussian | SharedGaussian | PredictedGaussian:
    """Real columns: x_nd | z ~ N(mean_nd(z), scale_nd^2).

        log p(x | z) = sum_d { -(x_d - mean_d)^2 / (2 scale_d^2) - log scale_d - log(2 pi) / 2 }

    A density has no upper end: a decoder that reproduces its training data gains log(1 / scale) for every entry as the
    noise falls, so a learned scale has a floor. A fit whose shared scale is within about 3 times the floor ends as
    DEGENERATE; of a predicted one only a look at the scales, or at held-out data, tells.

    Args:
      scale: a number > 0 or an array (D,): known noise; "shared": one learned scale; "predicted": the decoder's second
        half of outputs, by floor + log(1 + exp(output)).
      floor: least standard deviation of learned noise, in the units of the data.

    Returns:
      The likelihood.

    Raises:
      ValueError: a name that is neither "shared" nor "predicted".

    Examples:
      >>> Gaussian(1.0).log_prob((), jnp.zeros((1, 1)), jnp.zeros((1, 1))).round(4).tolist()
      [-0.9189]

    References:
      Mattei and Frellsen (2018), Leveraging the exact likelihood of deep latent variable models, section 2 (that the
      likelihood is unbounded).
    """
    if isinstance(scale, str):
        if scale not in KINDS:
            remedy = nearest(scale, KINDS)
            raise ValueError(f"scale: expected a number, 'shared' or 'predicted'; found {scale!r}{remedy}")
        return SharedGaussian(floor) if scale == "shared" else PredictedGaussian(floor)
    return FixedGaussian(floor, scale)
