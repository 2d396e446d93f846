"""Gamma priors on rates: Poisson counts and exponential times."""

from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln

from jaxem.core.checks import check_array
from jaxem.core.moments import moments
from jaxem.core.pytree import dataclass
from jaxem.core.special import log_minus_digamma, log_peak
from jaxem.expfam import formulas
from jaxem.families import Exponential, ExponentialParams, Poisson, PoissonParams
from jaxem.families.mean import MeanStats
from jaxem.priors.prior import PosteriorAt, Prior


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
class _RatesAt(PosteriorAt):
    """Posteriors of the rates of any of the families."""

    def kl(self) -> Array:
        """That of K D pairs of gamma distributions."""
        q, prior = self.posterior, self.prior
        return jnp.sum(formulas.gamma_kl(q.shape, q.rate, prior.shape[None], prior.rate[None]))

    def expected(self) -> Any:
        """Mean rates."""
        return type(self.plug.params)(self.posterior.shape / self.posterior.rate)

    def draw(self, key: Array) -> tuple[Any, Array, Array]:
        """Rates; the densities are right where they underflow."""
        q, prior = self.posterior, self.prior
        logs = formulas.gamma_draw(key, q.shape, q.rate)
        ends = (q.shape, q.rate), (prior.shape[None], prior.rate[None])
        log_q, log_p = (jnp.sum(formulas.gamma_log_prob(logs, *end), 1) for end in ends)
        return type(self.plug.params)(jnp.exp(logs)), log_q, log_p


@dataclass
class _CountsAt(_RatesAt):
    """Those of Poisson counts."""

    @staticmethod
    def swap(count: Array, total: Array) -> tuple[Array, Array]:
        """(shape, rate) that a count and a sum of observations stand for; its own inverse."""
        return total, count

    @staticmethod
    def plug_in(mean: Array, gap: Array) -> tuple[Any, Array]:
        """Rates exp(E log rate), and what is missing in E rate; gap is log E rate - E log rate."""
        return PoissonParams(mean * jnp.exp(-gap)), jnp.sum(mean * jnp.expm1(-gap), 1)

    def log_predictive(self, x: Array) -> Array:
        """Negative binomial, in O(N K D) memory of the rows given."""
        x, shape, rate = x[:, None], self.posterior.shape[None], self.posterior.rate[None]
        # log Gamma(x + a) / (Gamma(a) x!) + a log(b / (b + 1)) - x log(b + 1), with Gamma by its peak
        peaks = log_peak(shape) - log_peak(x + shape) - gammaln(x + 1) - x
        rest = shape * (jnp.log1p(x / shape) - jnp.log1p(1 / rate)) + x * jnp.log((x + shape) / (1 + rate))
        return jnp.sum(peaks + rest, -1)


@dataclass
class _TimesAt(_RatesAt):
    """Those of exponential times."""

    @staticmethod
    def swap(count: Array, total: Array) -> tuple[Array, Array]:
        """(shape, rate) that a count and a sum of observations stand for; its own inverse."""
        return count, total

    @staticmethod
    def plug_in(mean: Array, gap: Array) -> tuple[Any, Array]:
        """Rates E rate, and what is missing in E log rate."""
        return ExponentialParams(mean), -jnp.sum(gap, 1)

    def log_predictive(self, x: Array) -> Array:
        """Lomax, in O(N K D) memory of the rows given."""
        x, shape, rate = x[:, None], self.posterior.shape[None], self.posterior.rate[None]
        return jnp.sum(jnp.log(shape / rate) - (shape + 1) * jnp.log1p(x / rate), -1)


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

    families = (Poisson, Exponential)

    def check(self, family: Any, x: Any) -> None:
        """As `Prior`: shape and rate are positive, one number or one for each column."""
        super().check(family, x)
        for name, value in (("prior.shape", self.shape), ("prior.rate", self.rate)):
            if value is not None:
                check_array(name, value, ((), (x.shape[1],)), positive=True)

    def _at(self, family: Any) -> Any:
        return _CountsAt if isinstance(family, Poisson) else _TimesAt

    def bind(self, family: Any, x: Array, weights: Array) -> "GammaPrior":
        """Fills in shape and rate, (D,) each."""
        mean = moments(x, weights).mean
        mean = jnp.where(mean > 0, mean, 1)
        shape = jnp.broadcast_to(jnp.asarray(1.0 if self.shape is None else self.shape, x.dtype), mean.shape)
        one, ratio = self._at(family).swap(jnp.ones_like(mean), mean)
        rate = shape / one * ratio if self.rate is None else jnp.asarray(self.rate, x.dtype)
        return GammaPrior(shape, jnp.broadcast_to(rate, mean.shape))

    def pseudo_statistics(self, here: Any) -> MeanStats:
        """The prior as statistics: the count and the sum (1, D) of observations that it stands for."""
        return MeanStats(*self._at(here.family).swap(self.shape[None], self.rate[None]))

    def posterior(self, here: Any, stats: MeanStats) -> GammaPosterior:
        """Counts and sums added to those of the prior."""
        pseudo = self.pseudo_statistics(here)
        count, total = pseudo.count + stats.count[:, None], pseudo.total + stats.total
        return GammaPosterior(*self._at(here.family).swap(count, total))

    def at(self, family: Any, posterior: GammaPosterior | None = None) -> Any:
        """With the plug-in rates of `_CountsAt` or `_TimesAt`."""
        q = GammaPosterior(self.shape[None], self.rate[None]) if posterior is None else posterior
        cls = self._at(family)
        plug, offset = cls.plug_in(q.shape / q.rate, log_minus_digamma(q.shape))
        return cls(self, q, family.at(plug), offset)
