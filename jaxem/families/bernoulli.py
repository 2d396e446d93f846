"""Bernoulli components for binary items: latent class analysis."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import xlog1py, xlogy

from jaxem.core import constraints
from jaxem.core.checks import as_matrix, check_vector, require
from jaxem.core.numerics import safe_log
from jaxem.core.pytree import dataclass
from jaxem.families import mean as _mean


@dataclass
class BernoulliParams:
    """K components of D independent binary columns.

    Attributes:
      prob: (K, D) probabilities of 1.
    """

    prob: Array


@dataclass
class Bernoulli(_mean.MeanFamily):
    """Binary items, independent given the component: x_nd | z_n = k ~ Bernoulli(prob_kd).

    `Mixture(Bernoulli(), K)` is the latent class model of D binary items. The likelihood is bounded, so maximum
    likelihood is the default. Starts are partitions of the standardised columns. K classes are identifiable, up to
    their order and but for exceptional parameters, if D >= 2 ceil(log2 K) + 1 (Allman, Matias and Rhodes 2009): three
    items for two classes; one item identifies none.

    MAP: `pseudo_observations` a > 0 adds to each component a rows with mean `pseudo_mean` m0, which is the prior
    prob_kd ~ Beta(1 + a m0_d, 1 + a (1 - m0_d)); its log density up to a constant is ELBO.params. The mode is
    prob = (sum x + a m0) / (count + a), inside (0, 1) wherever m0 is.

    Cost of one E-step: three products of N D K multiplications, two for the log-probabilities.

    Attributes:
      pseudo_observations: a >= 0; 0 is exactly maximum likelihood.
      pseudo_mean: m0 (D,), from 0 to 1; None for the data's weighted mean.
      scale: set by `bind`.

    References:
      Lazarsfeld and Henry (1968), Latent Structure Analysis.
      Allman, Matias and Rhodes (2009), Identifiability of parameters in latent structure models with many observed
      variables, Annals of Statistics 37.

    Examples:
      >>> import jax, jaxem, numpy as np
      >>> prob = np.repeat([[0.9, 0.8, 0.9, 0.2], [0.1, 0.2, 0.1, 0.9]], 300, 0)
      >>> x = np.random.default_rng(0).random(prob.shape) < prob
      >>> fit = jaxem.fit(jaxem.Mixture(Bernoulli(), 2), x, key=jax.random.key(0), num_restarts=4)
      >>> fit.model.predict(fit.params, x[:300]).mean().round() != fit.model.predict(fit.params, x[300:]).mean().round()
      Array(True, dtype=bool)
    """

    pseudo_observations: float | Array = 0.0
    pseudo_mean: Array | None = None
    scale: _mean.MeanScale | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return "Bernoulli()"

    def _mean(self, params: BernoulliParams) -> Array:
        return params.prob

    def _params(self, mean: Array) -> BernoulliParams:
        return BernoulliParams(jnp.minimum(mean, 1))  # rounding may give 1 + eps

    def _log_prior(self, params: BernoulliParams, count: Array, total: Array) -> Array:
        zeros = jnp.maximum(count - total, 0)
        return jnp.sum(xlogy(total, params.prob) + xlog1py(zeros, -params.prob))

    def _features(self, t: Array, mean: Array) -> Array:
        return t

    def _interior(self, mean: Array, overall: Array) -> Array:
        return 0.9 * mean + 0.1 * overall

    def _check(self, x: Array) -> None:
        require(x, lambda v, xp: (v == 0) | (v == 1), "0 or 1")

    def _check_pseudo_mean(self, dim: int) -> None:
        check_vector("pseudo_mean", self.pseudo_mean, dim, 0, 1)

    def log_prob(self, params: BernoulliParams, x: Array) -> Array:
        """(N, K) sum over columns of log Bernoulli(x_nd | prob_kd), nats; -inf where prob 0 or 1 forbids x.

        -inf also for rows with anything but 0 and 1.
        """
        # Ones and zeros apart: through log-odds a probability of 0 or 1 would be inf - inf.
        out = _mean.product_log((x, safe_log(params.prob)), (1 - x, safe_log(1 - params.prob)))
        return _mean.where_possible(jnp.all((x == 0) | (x == 1), 1), out)

    def constraints(self) -> BernoulliParams:
        """Probabilities."""
        return BernoulliParams(constraints.UnitInterval())  # type: ignore[arg-type]

    def sample(self, key: Array, params: BernoulliParams, component: Array) -> Array:
        """(N, D) zeros and ones, in the dtype of the params, one row for each entry of component."""
        return jax.random.bernoulli(key, params.prob[component]).astype(params.prob.dtype)

    def distribution(self, params: BernoulliParams) -> Any:
        """A batch of K: `distrax.Bernoulli`, independent over columns."""
        import distrax

        return distrax.Independent(distrax.Bernoulli(probs=params.prob), 1)

    def make_params(self, *, prob: Any) -> BernoulliParams:  # type: ignore[override]
        """Params from probabilities (K, D); ValueError for numbers outside [0, 1]."""
        return BernoulliParams(as_matrix("prob", prob, 0, 1, "probabilities from 0 to 1"))
