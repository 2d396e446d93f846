"""What a VAE says of latents: posteriors from outputs, mixture priors, ELBOs and importance sampling in chunks."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import as_key, check_integer
from jaxem.core.normal import DiagonalNormal, standard_promotion
from jaxem.core.numerics import is_concrete
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree, map_rows, num_rows
from jaxem.model import At
from jaxem.rules import Exact

# Rows times draws that pass the decoder at once, and most rows of a block.
CHUNK, ROWS = 8192, 512
# Log-variance from which variances grow no longer exponentially: one 55 times the prior's is no posterior.
WIDE = 4.0


def observed(data: PyTree) -> Any:
    """What the likelihood is of: the data, or the first of a tuple, the rest of which is for the encoder."""
    return data[0] if isinstance(data, tuple) else data


def as_posterior(outputs: Any, latent_dim: int, dtype: Any) -> Any:
    """Q(z | x) of an encoder's outputs: 2 Q columns of means and log-variances, a pair of those, or a distribution."""
    if hasattr(outputs, "sample") and hasattr(outputs, "log_prob"):
        return _joined(outputs)
    if isinstance(outputs, (tuple, list)) and len(outputs) == 2:
        mean, log_variance = outputs
    else:
        mean, log_variance = outputs[:, :latent_dim], outputs[:, latent_dim:]
    return DiagonalNormal(mean.astype(dtype), _tamed(log_variance.astype(dtype)) / 2)


def _tamed(log_variance: Array) -> Array:
    """The log-variance as it is up to 4, above it of a variance that goes on as the tangent of exp.

    An encoder that has not learned yet may say 40, whose exp would be all that the first passes see.
    """
    above = jnp.maximum(log_variance - WIDE, 0)
    return jnp.minimum(log_variance, WIDE) + jnp.log1p(above)


def _joined(q: Any) -> Any:
    """A distribution whose event is (Q,): a batch (n, Q) of scalars is made one, by distrax."""
    if tuple(q.event_shape) or len(q.batch_shape) < 2:
        return q
    import distrax

    with standard_promotion():
        return distrax.Independent(q, 1)


@dataclass
class MixturePrior:
    """A mixture at its params, as the distribution of z that estimators ask for; it has no closed KL."""

    here: At

    def log_prob(self, z: Array) -> Array:
        """(n,) log density of z (n, Q), nats."""
        return Exact()(self.here.log_joint(z))[0]

    def sample(self, *, seed: Array, sample_shape: tuple[int, ...]) -> Array:
        """(n, Q) draws for sample_shape (n,)."""
        return self.here.model.sample(self.here.params, sample_shape[0], key=seed)[0]


@dataclass
class Evidence:
    """Log p(x) of each datum by importance sampling from q(z | x).

    Attributes:
      log_prob: (N,) log mean w, nats, with w_s = p(x, z_s) / q(z_s | x): below log p(x) in expectation, and far below
        where `effective_size` is small.
      effective_size: (N,) (sum w)^2 / sum w^2, the number of equally weighted draws that are worth as much, 1 to S.
      elbo: (N,) mean log w, nats: the ELBO by the same draws.
      num_samples: S.
    """

    log_prob: Array
    effective_size: Array
    elbo: Array
    num_samples: int = static()

    def __repr__(self) -> str:
        if not is_concrete(self) or np.ndim(self.log_prob) != 1:
            return f"Evidence(batch of shape {np.shape(self.log_prob)})"
        mean, elbo, size = (float(np.mean(a)) for a in (self.log_prob, self.elbo, self.effective_size))
        low = float(np.quantile(self.effective_size, 0.05))
        return (
            f"log p(x) of {len(self.log_prob)} data by {self.num_samples} draws each: mean {mean:.4f} nats, "
            f"ELBO {elbo:.4f}; effective size {size:.0f} (5% below {low:.0f})"
        )


def _chunks(num: int, num_samples: int) -> tuple[int, int, int]:
    """(rows in a block, draws in a chunk, number of chunks)."""
    rows = min(num, ROWS)
    draws = max(1, min(num_samples, CHUNK // rows))
    return rows, draws, -(-num_samples // draws)


def evidence(model: Any, params: PyTree, data: PyTree, key: Array, num_samples: int, q: Any = None) -> Evidence:
    """`Evidence` by draws from the model's q, or from a given one whose leaves have a leading axis N."""
    check_integer("num_samples", num_samples, 1)
    log_prob, size, elbo = _evidence(model, params, data, q, as_key(key), int(num_samples))
    return Evidence(log_prob, size, elbo, int(num_samples))


@partial(jax.jit, static_argnums=5)
def _evidence(model: Any, params: PyTree, data: PyTree, q: Any, key: Array, num_samples: int) -> tuple[Array, ...]:
    rows, draws, chunks = _chunks(num_rows(data), num_samples)
    prior = model.latent_prior(params)

    def block(part: tuple[PyTree, Any, Array]) -> tuple[Array, ...]:
        x, q, index = part
        noise, refine = jax.random.split(jax.random.fold_in(key, index[0]))
        q = model._posterior(params, x, refine) if q is None else q
        log_lik = model.log_lik(params, x)

        def log_weight(z: Array) -> Array:
            with standard_promotion():
                log_q, log_prior = q.log_prob(z), prior.log_prob(z)
            return log_lik(z) + (log_prior - log_q)

        def chunk(carry: Any, number: Array) -> tuple[Any, None]:
            with standard_promotion():
                z = q.sample(seed=jax.random.fold_in(noise, number), sample_shape=(draws,))
            used = number * draws + jnp.arange(draws, dtype=jnp.int32) < num_samples
            return _add(carry, jax.vmap(log_weight)(z), used[:, None]), None

        low = jnp.full(index.shape, -jnp.inf, jnp.result_type(*jax.tree.leaves(observed(x))))
        zero = jnp.zeros_like(low)
        (top, one, two, total), _ = jax.lax.scan(chunk, (low, zero, zero, zero), jnp.arange(chunks, dtype=jnp.int32))
        return top + jnp.log(one) - math.log(num_samples), one**2 / two, total / num_samples

    index = jnp.arange(num_rows(data), dtype=jnp.int32)
    return map_rows(block, (data, q, index), rows)


def _add(carry: tuple[Array, ...], log_weight: Array, used: Array) -> tuple[Array, ...]:
    """Largest log-weight m, sum exp(l - m), sum exp(2 (l - m)) and sum l, after more log-weights (S, n)."""
    top, one, two, total = carry
    total = total + jnp.sum(jnp.where(used, log_weight, 0), 0)
    log_weight = jnp.where(used, log_weight, -jnp.inf)
    new = jnp.maximum(top, jnp.max(log_weight, 0))
    shift = jnp.where(jnp.isneginf(new), 0, new)
    kept, mass = jnp.exp(top - shift), jnp.exp(log_weight - shift[None])
    return new, one * kept + jnp.sum(mass, 0), two * kept**2 + jnp.sum(mass**2, 0), total


def elbo(model: Any, params: PyTree, data: PyTree, key: Array, num_samples: int) -> Array:
    """(N,) the ELBO of each datum by `num_samples` draws, in blocks of rows."""
    check_integer("num_samples", num_samples, 1)
    return _elbo(model, params, data, as_key(key), int(num_samples))


@partial(jax.jit, static_argnums=4)
def _elbo(model: Any, params: PyTree, data: PyTree, key: Array, num_samples: int) -> Array:

    def block(part: tuple[PyTree, Array]) -> Array:
        x, index = part
        noise, refine = jax.random.split(jax.random.fold_in(key, index[0]))
        q = model._posterior(params, x, refine)
        return model._estimate(params, x, q, noise, model.plain_estimator(num_samples, q))

    index = jnp.arange(num_rows(data), dtype=jnp.int32)
    return map_rows(block, (data, index), max(1, min(ROWS, CHUNK // num_samples)))
