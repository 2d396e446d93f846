"""Information criteria for choosing among fitted models; lower is better."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import _rows
from jaxem._pytree import dataclass
from jaxem._tree import PyTree, float_dtype, num_rows
from jaxem.result import Fit
from jaxem.rules import Exact, Hard


@dataclass
class _Scores:
    log_likelihood: Array
    classification: Array
    total_weight: Array


@jax.jit
def _evaluate(fit: Fit, data: PyTree, weights: Array) -> _Scores:
    soft = fit.model.e_step(fit.params, data, weights, Exact()).elbo_data
    hard = fit.model.e_step(fit.params, data, weights, Hard()).elbo_data
    return _Scores(soft, hard, jnp.sum(weights))


def _scores(fit: Fit, data: PyTree, weights: Array | None) -> tuple[_Scores, int]:
    if not hasattr(fit.model, "num_parameters"):
        raise TypeError(
            f"fit: {type(fit.model).__name__} has no density with num_parameters, so bic, aic and icl do not apply"
        )
    data = _rows.rows(fit.model, fit.params, data)
    weights = _rows.as_weights(weights, num_rows(data), float_dtype(data))
    return _evaluate(fit, data, weights), fit.model.num_parameters(fit.params)


def bic(fit: Fit, data: PyTree, weights: Array | None = None) -> Array:
    """Bayesian information criterion, -2 log p(data) + p log n; lower is better, as in scikit-learn.

    From the plain log-likelihood, without penalty, of the fit's params; n is the sum of the weights. Mixture theory
    does not quite cover it (regularity fails between K and K + 1), practice does.

    Args:
      fit: a fit of a model with a density.
      data: (N, ...) the data to score, usually those of the fit.
      weights: (N,) or None for ones.

    Returns:
      A scalar, in units of twice the nat.

    Raises:
      TypeError: the model has no density (KMeans).

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (100, 1))
      >>> fit = jaxem.fit(jaxem.GMM(1), x, key=jax.random.key(1))
      >>> bool(bic(fit, x) == -2 * fit.elbo.data + 2 * jnp.log(100.0))
      True

    References:
      Schwarz (1978), Estimating the dimension of a model.
    """
    scores, num = _scores(fit, data, weights)
    return -2 * scores.log_likelihood + num * jnp.log(scores.total_weight)


def aic(fit: Fit, data: PyTree, weights: Array | None = None) -> Array:
    """Akaike's information criterion, -2 log p(data) + 2 p; lower is better.

    Args:
      fit: a fit of a model with a density.
      data: (N, ...) the data to score.
      weights: (N,) or None for ones.

    Returns:
      A scalar, in units of twice the nat.

    Raises:
      TypeError: the model has no density (KMeans).

    References:
      Akaike (1974), A new look at the statistical model identification.
    """
    scores, num = _scores(fit, data, weights)
    return -2 * scores.log_likelihood + 2 * num


def icl(fit: Fit, data: PyTree, weights: Array | None = None) -> Array:
    """Integrated complete-data likelihood criterion, BIC-like; lower is better, at least the BIC.

        ICL = -2 sum_n w_n max_k log p(x_n, z_n = k) + p log n = BIC - 2 sum_n w_n log max_k p(z_n = k | x_n)

    The labels are the most probable ones, as in the source and in mclust (whose sign is the opposite), not the
    responsibilities.

    Args:
      fit: a fit of a model with a density.
      data: (N, ...) the data to score.
      weights: (N,) or None for ones.

    Returns:
      A scalar, in units of twice the nat.

    Raises:
      TypeError: the model has no density (KMeans).

    References:
      Biernacki, Celeux and Govaert (2000), Assessing a mixture model for clustering with the integrated completed
      likelihood, section 2.
    """
    scores, num = _scores(fit, data, weights)
    return -2 * scores.classification + num * jnp.log(scores.total_weight)
