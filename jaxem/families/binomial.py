"""Binomial components for counts out of a known number of trials."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import xlog1py, xlogy

from jaxem.core import constraints
from jaxem.core.arguments import check_integer
from jaxem.core.checks import as_matrix, check_vector, require_counts
from jaxem.core.pytree import dataclass, static
from jaxem.families import mean as _mean
from jaxem.families.counts import log_binomial, sample_binomial


@dataclass
class BinomialParams:
    """K components of D independent binomial columns.

    Attributes:
      prob: (K, D) probabilities of success.
    """

    prob: Array


@dataclass
class Binomial(_mean.MeanFamily):
    """Successes out of n trials, independent in each column: x_nd | z_n = k ~ Binomial(n, prob_kd).

    The likelihood is bounded, so maximum likelihood is the default. Starts are partitions of arcsin sqrt(x / n),
    standardised. With one column, K components are identifiable, up to their order, if and only if n >= 2 K - 1
    (Teicher 1961, Blischke 1964); several columns identify more.

    MAP: `pseudo_observations` a > 0 adds to each component a rows with mean `pseudo_mean` m0, which is the prior
    prob_kd ~ Beta(1 + a m0_d, 1 + a (n - m0_d)); its log density up to a constant is ELBO.params. The mode is
    prob = (sum x + a m0) / (n (count + a)).

    Log-probabilities keep their digits at any n, as those of `Poisson`. Rows with anything but counts from 0 to n have
    -inf. Cost of one E-step: elementwise passes over (N, D) and (N, K, D), and the product for the statistics.

    Attributes:
      num_trials: n >= 1, the same for every row and column.
      pseudo_observations: a >= 0; 0 is exactly maximum likelihood.
      pseudo_mean: m0 (D,), successes out of n, from 0 to n; None for the data's weighted mean.
      scale: set by `bind`.

    References:
      Blischke (1964), Estimating the parameters of mixtures of binomial distributions, JASA 59.
      Teicher (1961), Identifiability of mixtures, Annals of Mathematical Statistics 32.

    Examples:
      >>> import jax, jaxem, numpy as np
      >>> x = np.random.default_rng(0).binomial(20, np.repeat([[0.2], [0.7]], 200, 0))
      >>> fit = jaxem.fit(jaxem.Mixture(Binomial(20), 2), x, key=jax.random.key(0), num_restarts=4)
      >>> [round(p, 1) for p in sorted(fit.params.components.prob[:, 0].tolist())]
      [0.2, 0.7]
    """

    num_trials: int = static()
    pseudo_observations: float | Array = 0.0
    pseudo_mean: Array | None = None
    scale: _mean.MeanScale | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Binomial({self.num_trials})"

    def check(self, x: Any, params: BinomialParams | None = None) -> None:
        """Checks the number of trials, and that data are one (N, D) array of counts up to it."""
        check_integer("num_trials", self.num_trials, 1)
        super().check(x, params)

    def _mean(self, params: BinomialParams) -> Array:
        return self.num_trials * params.prob

    def _params(self, mean: Array) -> BinomialParams:
        return BinomialParams(jnp.minimum(mean / self.num_trials, 1))  # rounding may give 1 + eps

    def _log_prior(self, params: BinomialParams, count: Array, total: Array) -> Array:
        failures = jnp.maximum(count * self.num_trials - total, 0)
        return jnp.sum(xlogy(total, params.prob) + xlog1py(failures, -params.prob))

    def _features(self, t: Array, mean: Array) -> Array:
        return jnp.arcsin(jnp.sqrt(jnp.minimum(t / self.num_trials, 1)))

    def _interior(self, mean: Array, overall: Array) -> Array:
        return 0.9 * mean + 0.1 * overall

    def _check(self, x: Array) -> None:
        require_counts(x, self.num_trials)

    def _check_pseudo_mean(self, dim: int) -> None:
        check_vector("pseudo_mean", self.pseudo_mean, dim, 0, self.num_trials)

    def log_prob(self, params: BinomialParams, x: Array) -> Array:
        """(N, K) sum over columns of log Binomial(x_nd | n, prob_kd), nats; -inf where prob 0 or 1 forbids x,
        and where x is no count from 0 to n.
        """
        return log_binomial(x, self.num_trials, params.prob)

    def constraints(self) -> BinomialParams:
        """Probabilities."""
        return BinomialParams(constraints.UnitInterval())  # type: ignore[arg-type]

    def sample(self, key: Array, params: BinomialParams, component: Array) -> Array:
        """(N, D) counts, in the dtype of the params, one row for each entry of component."""
        return sample_binomial(key, self.num_trials, params.prob[component])

    def distribution(self, params: BinomialParams) -> Any:
        """A batch of K: TFP's Binomial, independent over columns, as a distrax distribution."""
        return _mean.independent("Binomial", total_count=float(self.num_trials), probs=params.prob)

    def make_params(self, *, prob: Any) -> BinomialParams:  # type: ignore[override]
        """Params from probabilities (K, D); ValueError for numbers outside [0, 1]."""
        return BinomialParams(as_matrix("prob", prob, 0, 1, "probabilities from 0 to 1"))
