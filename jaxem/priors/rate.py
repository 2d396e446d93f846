"""Gamma priors on rates: Poisson counts and exponential times."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from jaxem.core import constraints
from jaxem.core.checks import check_array
from jaxem.core.numerics import einsum
from jaxem.core.pytree import dataclass
from jaxem.core.special import bend, log_minus_digamma, log_peak
from jaxem.expfam import Gamma
from jaxem.expfam.scalar import GammaStatistics
from jaxem.families import Exponential, ExponentialParams, Poisson, PoissonParams
from jaxem.priors.prior import Prior


@dataclass
class GammaPosterior:
    """Independent gamma distributions of the rates of K components.

    Attributes:
      shape: (K, D) > 0.
      rate: (K, D) > 0; the mean is shape / rate.
    """

    shape: Array
    rate: Array


@dataclass
class GammaPrior(Prior):
    """rate_kd ~ Gamma(shape_d, rate_d), with density rate^shape t^(shape - 1) exp(-rate t) / Gamma(shape).

    Poisson counts:    shape + sum_n r_nk x_nd,   rate + N_k;              predictive negative binomial
    Exponential times: shape + N_k,               rate + sum_n r_nk x_nd;  predictive Lomax

    Attributes:
      shape: > 0, a number or (D,); None for 1.
      rate: > 0, a number or (D,); None for the value that puts the prior mean of the rates at the data's: shape / m
        for counts, shape * m for times, with m the column's mean (1 for a column of zeros).
    """

    shape: Any = None  # float | Array | None; arrays once bound
    rate: Any = None

    @property
    def families(self) -> tuple[type, ...]:
        """Poisson and Exponential."""
        return (Poisson, Exponential)

    def validate(self, family: Any, x: Any) -> None:
        """Checks that shape and rate are positive, one number or one for each column."""
        for name, value in (("prior.shape", self.shape), ("prior.rate", self.rate)):
            if value is not None:
                check_array(name, value, ((), (x.shape[1],)), positive=True)

    def bind(self, family: Any, x: Array, weights: Array) -> "GammaPrior":
        """Fills in shape and rate, (D,) each."""
        mean = einsum("n,nd->d", weights, x) / jnp.sum(weights)
        mean = jnp.where(mean > 0, mean, 1)
        shape = jnp.broadcast_to(jnp.asarray(1.0 if self.shape is None else self.shape, x.dtype), mean.shape)
        default = shape / mean if isinstance(family, Poisson) else shape * mean
        rate = default if self.rate is None else jnp.broadcast_to(jnp.asarray(self.rate, x.dtype), mean.shape)
        return GammaPrior(shape, rate)

    def posterior(self, family: Any, num_components: int) -> GammaPosterior:
        """K copies of the prior."""
        rows = lambda a: jnp.repeat(a[None], num_components, 0)
        return GammaPosterior(rows(self.shape), rows(self.rate))

    def update(self, family: Any, plug: Any, stats: Any) -> GammaPosterior:
        """Counts and sums added to shape and rate."""
        prior, count = self.posterior(family, stats.count.shape[0]), stats.count[:, None]
        if isinstance(family, Poisson):
            return GammaPosterior(prior.shape + stats.total, prior.rate + count)
        return GammaPosterior(prior.shape + count, prior.rate + stats.total)

    def plug_in(self, family: Any, posterior: GammaPosterior) -> tuple[Any, Array]:
        """Rates exp(E log rate) for counts, E rate for times; and what is missing."""
        mean, gap = posterior.shape / posterior.rate, log_minus_digamma(posterior.shape)  # log E rate - E log rate
        if isinstance(family, Poisson):
            return PoissonParams(mean * jnp.exp(-gap)), jnp.sum(mean * jnp.expm1(-gap), 1)
        return ExponentialParams(mean), -jnp.sum(gap, 1)

    def kl(self, family: Any, posterior: GammaPosterior) -> Array:
        """That of K D pairs of gamma distributions, in a form that keeps its digits for any shape."""
        a, a0 = posterior.shape, self.shape[None]
        ratio = (a / posterior.rate) / (a0 / self.rate[None])
        return jnp.sum(log_peak(a) - log_peak(a0) - (a - a0) * log_minus_digamma(a) + a0 * bend(ratio - 1))

    def log_predictive(self, family: Any, posterior: GammaPosterior, x: Array) -> Array:
        """Negative binomial or Lomax, in O(N K D) memory of the rows given."""
        x, shape, rate = x[:, None], posterior.shape[None], posterior.rate[None]
        if not isinstance(family, Poisson):
            return jnp.sum(jnp.log(shape / rate) - (shape + 1) * jnp.log1p(x / rate), -1)
        # log Gamma(x + a) / (Gamma(a) x!) + a log(b / (b + 1)) - x log(b + 1), with Gamma by its peak
        peaks = log_peak(shape) - log_peak(x + shape) - gammaln(x + 1) - x
        rest = shape * (jnp.log1p(x / shape) - jnp.log1p(1 / rate)) + x * jnp.log((x + shape) / (1 + rate))
        return jnp.sum(peaks + rest, -1)

    def draw(self, key: Array, family: Any, posterior: GammaPosterior) -> Any:
        """Rates."""
        rate = jax.random.gamma(key, posterior.shape, dtype=posterior.shape.dtype) / posterior.rate
        return PoissonParams(rate) if isinstance(family, Poisson) else ExponentialParams(rate)

    def log_prob(self, family: Any, posterior: GammaPosterior, params: Any) -> Array:
        """(K,) log density of the rates; a rate that has underflowed counts as the smallest normal number."""
        rate = jnp.maximum(params.rate, jnp.finfo(params.rate.dtype).tiny)
        natural = Gamma().natural(posterior.shape, posterior.rate)
        return jnp.sum(Gamma().expected_log_prob(natural, GammaStatistics(rate, jnp.log(rate))), 1)

    def hyperparameters(self, family: Any) -> dict[str, Any]:
        """Shape and rate."""
        return {"shape": constraints.Positive(), "rate": constraints.Positive()}

    def constraints(self, family: Any) -> GammaPosterior:
        """Positive numbers."""
        return GammaPosterior(constraints.Positive(), constraints.Positive())  # type: ignore[arg-type]
