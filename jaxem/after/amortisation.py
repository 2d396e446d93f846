"""How much of a VAE's gap log p(x) - ELBO is the encoder's, and how much that of the family of q."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import as_key, check_integer, check_number, shown
from jaxem.core.normal import DiagonalNormal
from jaxem.core.numerics import is_concrete
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import rows
from jaxem.core.tree import PyTree, map_rows, num_rows
from jaxem.engine.result import Fit, check_fit
from jaxem.estimators import StickingTheLanding
from jaxem.models.vae import latents as _vae_latents
from jaxem.models.vae.autoencoder import VariationalAutoencoder

# Rows refined together, draws behind each gradient and behind each look for the best q, and looks in all.
ROWS, DRAWS, JUDGED, LOOKS = 512, 8, 64, 20


@dataclass
class AmortisationGap:
    """The gap of each datum, split; (N,) arrays, nats.

        log p(x) - elbo = (log p(x) - refined) + (refined - elbo) = approximation + amortisation

    Attributes:
      elbo: ELBO with the encoder's q.
      refined: ELBO with the best diagonal normal that the refinement found for this datum alone.
      log_prob: log p(x) by importance sampling from the refined q; below log p(x) in expectation.
      effective_size: of that sampling; where it is small, log_prob and the approximation gap are too small.
      num_samples: draws behind each of the three.
    """

    elbo: Array
    refined: Array
    log_prob: Array
    effective_size: Array
    num_samples: int = static()

    @property
    def approximation(self) -> Array:
        """(N,) log_prob - refined: what no diagonal normal would give; below 0 by the noise of the draws only."""
        return self.log_prob - self.refined

    @property
    def amortisation(self) -> Array:
        """(N,) refined - elbo: what the encoder gives away; below 0 by the noise of the draws only."""
        return self.refined - self.elbo

    def __repr__(self) -> str:
        if not is_concrete(self) or np.ndim(self.elbo) != 1:
            return f"AmortisationGap(batch of shape {np.shape(self.elbo)})"
        means = [float(np.mean(a)) for a in (self.log_prob, self.elbo, self.approximation, self.amortisation)]
        return (
            f"Gap of {len(self.elbo)} data, mean nats: log p(x) {means[0]:.3f} - ELBO {means[1]:.3f} = "
            f"approximation {means[2]:.3f} + amortisation {means[3]:.3f} "
            f"(effective size {float(np.mean(self.effective_size)):.0f} of {self.num_samples} draws)"
        )


def amortisation_gap(
    fit: Fit,
    data: PyTree,
    *,
    key: Array,
    num_steps: int = 400,
    learning_rate: float | Array = 0.05,
    num_samples: int = 1000,
) -> AmortisationGap:
    """Splits log p(x) - ELBO into what the family of q costs and what amortisation costs.

    The decoder held fixed, q of each datum climbs its own ELBO by Adam from the encoder's, with 8 draws a step and a
    rate that decays to 0 as a cosine. Of 20 points on the way and the start itself the best by 64 draws, the same for
    all, is kept; what is reported is estimated by fresh draws, which chose nothing.

    Args:
      fit: of a VAE whose q is a diagonal normal.
      data: N rows.
      key: random key.
      num_steps: updates of q, at least 1.
      learning_rate: of Adam on means and log standard deviations.
      num_samples: S, draws behind each reported value.

    Returns:
      `AmortisationGap`. Time of N (8 num_steps + 3 S) decoder passes or so, in blocks of 512 rows.

    Raises:
      TypeError: fit is no fit of a VAE, or its q no diagonal normal.
      ValueError: data outside the likelihood's support, or counts below 1.

    Examples:
      >>> import jaxem
      >>> from jaxem.networks import mlp
      >>> x = jax.random.bernoulli(jax.random.key(0), 0.3, (64, 5)).astype(float)
      >>> model = jaxem.VAE(mlp(8, 4), mlp(8, 5), latent_dim=2)
      >>> climb = jaxem.GradientAscent(batch_size=32)
      >>> fit = jaxem.fit(model, x, key=jax.random.key(1), algorithm=climb, max_steps=0)
      >>> gap = amortisation_gap(fit, x, key=jax.random.key(2))
      >>> bool(gap.amortisation.mean() > gap.approximation.mean() > 0)  # of a network that has learned nothing
      True

    References:
      Cremer, Li and Duvenaud (2018), Inference suboptimality in variational autoencoders.
    """
    check_fit(fit, data)
    if not isinstance(fit.model, VariationalAutoencoder):
        raise TypeError(f"fit: expected a fit of a jaxem.VAE; found one of {shown(fit.model)}")
    model, params = fit.model, fit.params
    check_integer("num_steps", num_steps, 1)
    check_integer("num_samples", num_samples, 1)
    check_number("learning_rate", learning_rate, 0)
    refine, report, encoder = jax.random.split(as_key(key), 3)
    data = rows(model, params, data)
    q = model.encode(params, data, key=encoder)
    if not isinstance(q, DiagonalNormal):
        raise TypeError(f"fit: expected an encoder of means and log-variances; found q of {type(q).__name__}")
    rate = jnp.asarray(learning_rate, q.loc.dtype)
    best = _refine(model, params, data, q, refine, rate, int(num_steps))
    first = _vae_latents.evidence(model, params, data, report, num_samples, q)
    last = _vae_latents.evidence(model, params, data, report, num_samples, best)
    return AmortisationGap(first.elbo, last.elbo, last.log_prob, last.effective_size, int(num_samples))


@partial(jax.jit, static_argnums=6)
def _refine(model: Any, params: PyTree, data: PyTree, q: Any, key: Array, rate: Array, num_steps: int) -> Any:
    """The best q of each datum, in blocks of rows."""

    def block(part: tuple[PyTree, Any, Array]) -> Any:
        x, q, index = part
        return _climb(model, params, x, q, jax.random.fold_in(key, index[0]), rate, num_steps)

    return map_rows(block, (data, q, jnp.arange(num_rows(data), dtype=jnp.int32)), ROWS)


def _climb(model: Any, params: PyTree, x: PyTree, q: Any, key: Array, rate: Array, num_steps: int) -> Any:
    """Adam on every q, and the best of several points on its way."""
    import optax

    noise, judge = jax.random.split(key)
    optimizer, looks = optax.scale_by_adam(), min(LOOKS, num_steps)
    length = -(-num_steps // looks)
    # Its noise falls as q nears the posterior.
    loss = lambda q, key: -jnp.sum(model._estimate(params, x, q, key, StickingTheLanding(DRAWS)))
    score = lambda q: model._estimate(params, x, q, judge, model.plain_estimator(JUDGED, q))

    def update(carry: tuple[Any, Any], step: Array) -> tuple[tuple[Any, Any], None]:
        q, state = carry
        gradient = jax.grad(loss)(q, jax.random.fold_in(noise, step))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            move, after = optimizer.update(gradient, state)
        share = jnp.minimum(step.astype(rate.dtype) / num_steps, 1)
        size = rate * (1 + jnp.cos(jnp.pi * share).astype(rate.dtype)) / 2
        q = jax.tree.map(lambda a, d: a - size * d, q, move)
        return (q, jax.tree.map(lambda new, old: new.astype(old.dtype), after, state)), None

    def look(carry: tuple[Any, ...], number: Array) -> tuple[tuple[Any, ...], None]:
        q, state, best, value = carry
        (q, state), _ = jax.lax.scan(update, (q, state), number * length + jnp.arange(length, dtype=jnp.int32))
        found = score(q)
        better = found > value
        best = jax.tree.map(lambda new, old: jnp.where(better[:, None], new, old), q, best)
        return (q, state, best, jnp.where(better, found, value)), None

    start = (q, jax.tree.map(jnp.array, optimizer.init(q)), q, score(q))
    return jax.lax.scan(look, start, jnp.arange(looks, dtype=jnp.int32))[0][2]
