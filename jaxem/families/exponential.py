"""Exponential components for waiting times."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core.checks import as_matrix, check_vector, require
from jaxem.core.numerics import einsum
from jaxem.core.pytree import dataclass
from jaxem.families import mean as _mean

# A component whose mean is below this share of the pseudo-observations' is a candidate for a spike at 0.
SPIKE = 1e-3
TINY = float(np.finfo(np.float32).tiny)


@dataclass
class ExponentialParams:
    """K components of D independent exponential columns.

    Attributes:
      rate: (K, D) reciprocal means, > 0.
    """

    rate: Array


@dataclass
class Exponential(_mean.MeanFamily):
    """Waiting times >= 0, independent in each column: x_nd | z_n = k ~ Exponential(rate_kd), mean 1 / rate_kd.

    The likelihood has no upper end where data hold exact zeros: a component on x = 0 has rate -> inf. So a = 1e-6
    pseudo-observations with the data's mean m0 bound it: a penalty in ELBO.params that is invisible elsewhere. A
    component that collapsed onto zeros has a mean that is the pseudo-observations' alone, `influence` near 1, and its
    restart ends as DEGENERATE. Starts are partitions of log(x + mean / 100), standardised. A finite mixture of
    exponential distributions is identifiable up to the order of its components (Teicher 1961).

    MAP: a larger `pseudo_observations` a is the prior rate_kd ~ Gamma(shape 1 + a, rate a m0_d), whose log density
    up to a constant, a sum_kd (log rate_kd - m0_d rate_kd), is ELBO.params. The mode is
    rate = (count + a) / (sum x + a m0).

    Cost of one E-step: a product (N, D) (D, K).

    Attributes:
      pseudo_observations: a >= 0; 0 is exactly maximum likelihood, for data without zeros.
      pseudo_mean: m0 (D,) > 0; None for the data's weighted mean (1 for a column of zeros).
      scale: set by `bind`.

    References:
      Teicher (1961), Identifiability of mixtures, Annals of Mathematical Statistics 32.

    Examples:
      >>> import jax, jaxem, numpy as np
      >>> x = np.random.default_rng(0).exponential(np.repeat([[1.0], [50.0]], 500, 0))
      >>> fit = jaxem.fit(jaxem.Mixture(Exponential(), 2), x, key=jax.random.key(0), num_restarts=4)
      >>> means = 1 / fit.params.components.rate[:, 0]
      >>> bool(means.min() < 1.2), bool(means.max() > 45)
      (True, True)
    """

    pseudo_observations: float | Array = 1e-6
    pseudo_mean: Array | None = None
    scale: _mean.MeanScale | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return "Exponential()"

    def _default_pseudo_mean(self, mean: Array) -> Array:
        return jnp.where(mean > 0, mean, 1)

    def _mean(self, params: ExponentialParams) -> Array:
        return 1 / params.rate

    def _params(self, mean: Array) -> ExponentialParams:
        return ExponentialParams(1 / mean)

    def _log_prior(self, params: ExponentialParams, count: Array, total: Array) -> Array:
        return jnp.sum(count * jnp.log(params.rate) - total * params.rate)

    def _features(self, t: Array, mean: Array) -> Array:
        return jnp.log(t + 0.01 * jnp.where(mean > 0, mean, 1)[None])

    def _interior(self, mean: Array, overall: Array) -> Array:
        return jnp.maximum(mean, 0.01 * overall)

    def _check(self, x: Array) -> None:
        require(x, lambda v, xp: v >= 0, "numbers >= 0")

    def _check_pseudo_mean(self, dim: int) -> None:
        check_vector("pseudo_mean", self.pseudo_mean, dim, TINY, np.inf)

    def log_prob(self, params: ExponentialParams, x: Array) -> Array:
        """(N, K) sum over columns of log rate_kd - rate_kd x_nd, nats; -inf for rows with a negative number."""
        out = jnp.sum(jnp.log(params.rate), 1)[None] - einsum("nd,kd->nk", x, params.rate)
        return _mean.where_possible(jnp.min(x, 1) >= 0, out)

    def influence(self, params: ExponentialParams, count: Array) -> Array:
        """(K,) the pseudo-observations' share of the mean of a component that has collapsed towards 0, else 0.

        A prior that is meant to weigh (a of about 1 and more) keeps means away from 0 and is not taken for a spike.
        """
        pseudo = self.pseudo_statistics(count.dtype)
        a, total = pseudo.count, pseudo.total
        mean = 1 / params.rate
        share = total / (mean * (count + a)[:, None])
        return jnp.max(jnp.where((a > 0) & (a * mean < SPIKE * total), share, 0), 1)

    def notes(self, params: Any = None, count: Array | None = None) -> list[str]:
        """Names the columns of zeros."""
        if params is not None or self.scale is None or np.all(np.asarray(self.scale.mean) > 0):
            return []
        columns = np.flatnonzero(np.asarray(self.scale.mean) == 0).tolist()
        return [f"columns {columns} are all zero: their rates have no maximum-likelihood estimate"]

    def constraints(self) -> ExponentialParams:
        """Positive rates."""
        return ExponentialParams(constraints.Positive())  # type: ignore[arg-type]

    def sample(self, key: Array, params: ExponentialParams, component: Array) -> Array:
        """(N, D) times, one row for each entry of component."""
        rate = params.rate[component]
        return jax.random.exponential(key, rate.shape, rate.dtype) / rate

    def distribution(self, params: ExponentialParams) -> Any:
        """A batch of K: TFP's Exponential, independent over columns, as a distrax distribution."""
        return _mean.independent("Exponential", rate=params.rate)

    def make_params(self, *, rate: Any) -> ExponentialParams:  # type: ignore[override]
        """Params from rates (K, D) > 0; ValueError for others."""
        return ExponentialParams(as_matrix("rate", rate, TINY, np.inf, "finite numbers > 0"))
