"""Information criteria for choosing among fitted models; lower is better, and a spike is never lowest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import rows as _rows
from jaxem.core.mesh import Layout, apart, mesh_of
from jaxem.core.numerics import is_concrete
from jaxem.core.sequences import Sequences, num_observations, total_weight
from jaxem.core.stream import Stream, added, keyed
from jaxem.core.tree import PyTree, float_dtype, num_rows
from jaxem.core.warn import FitWarning, warn
from jaxem.engine.result import Fit, check_fit
from jaxem.model import LatentModel
from jaxem.rules import Exact, Hard, Rule
from jaxem.stopping import Status


@partial(jax.jit, static_argnames="allow_degenerate")
def _evaluate(
    model: LatentModel,
    params: PyTree,
    status: Array,
    data: PyTree,
    weights: Array,
    rule: Rule,
    allow_degenerate: bool,
) -> tuple[Array, Array, Array, Array]:
    """-2 log-likelihood by the rule, in one pass; the observations that weights stand for, their log, and the rows."""
    value = model.e_step(params, data, weights, rule).elbo_data
    # Not even when asked: whether NaN is the lowest of a table depends on where it stands.
    out = jnp.isnan(value)
    if not allow_degenerate:
        out |= jnp.isinf(value) | (status == Status.DEGENERATE) | (status == Status.NONFINITE)
    total = total_weight(data, weights)
    return jnp.where(out, jnp.inf, -2 * value), total, jnp.log(total), num_observations(data, weights)


def _scores(
    fit: Fit, data: PyTree, weights: Array | None, rule: Rule, allow_degenerate: bool
) -> tuple[Array, Array, Array | int]:
    """-2 log-likelihood, +inf where the fit must not win; log of the sum of weights; the number of free parameters."""
    _check(fit, data)
    if isinstance(data, Stream):
        return _scores_of_stream(fit, data, weights, rule, allow_degenerate)
    data, counts = apart(data, weights)
    given, data = data, _rows.rows(fit.model, fit.params, data)
    counts = _rows.as_weights(counts, num_rows(data), float_dtype(data), like=given)
    num, mesh = fit.model.num_parameters(fit.params), mesh_of(data)
    if weights is None and mesh is None and is_concrete(fit, data):
        _check_same_weights(fit, data)
    model = fit.model if mesh is None else fit.model.over(Layout(mesh, ()))
    value, total, log, rows = _evaluate(model, fit.params, fit.status, data, counts, rule, bool(allow_degenerate))
    if weights is not None and is_concrete(total, num):
        _check_counts(float(total), int(rows), float(num))
    return value, log, num


def _scores_of_stream(
    fit: Fit, stream: Stream, weights: Any, rule: Rule, allow_degenerate: bool
) -> tuple[Array, Array, Array | int]:
    """`_scores` of rows that are read a batch at a time."""
    if weights is not None:
        raise ValueError("weights: expected None, as a stream has its own; give them to jaxem.stream(..., weights=)")

    def one(data: PyTree, counts: Any, _number: int) -> tuple[Array, Array, Array, Array]:
        data = _rows.rows(fit.model, fit.params, keyed(data, stream, fit.model.row_keys))
        counts = _rows.place(counts, float_dtype(data))
        return _evaluate(fit.model, fit.params, fit.status, data, counts, rule, bool(allow_degenerate))

    value, total, _, rows = added(stream, one)
    num = fit.model.num_parameters(fit.params)
    if stream.weighted and is_concrete(total, num):
        _check_counts(float(total), int(rows), float(num))
    return value, jnp.log(total), num


def _penalised(value: Array, num: Any, price: Any) -> Array:
    """Value + num * price, on the host where it can be: the same numbers, and no programs."""
    if not is_concrete(value, num, price):
        return value + num * price
    return jax.device_put(np.asarray(value) + np.asarray(num * np.asarray(price, value.dtype), value.dtype))


def _check(fit: Fit, data: PyTree) -> None:
    """Raises unless it is one fit of a model with a density."""
    check_fit(fit, data)
    if not hasattr(fit.model, "num_parameters"):
        raise TypeError(
            f"fit: {type(fit.model).__name__} has no density with num_parameters, so bic, aic and icl do not apply; "
            "compare elbo.total of Bayesian models, and give one of your own a method num_parameters(params)"
        )
    if jnp.ndim(fit.status):
        raise ValueError(
            f"fit: expected one fit; found a batch of shape {jnp.shape(fit.status)}; use jax.vmap(lambda f: bic(f, x))"
        )


def _check_same_weights(fit: Fit, data: PyTree) -> None:
    """Warns where the rows of a weighted fit are scored as ones."""
    total, rows = float(fit.total_weight), num_rows(data)
    if isinstance(data, Sequences):
        rows = int(np.sum(np.asarray(data.observed) > 0))
    if rows == int(fit.num_rows) and abs(total - rows) > 1e-3 * rows:
        warn(
            f"weights: the fit's sum to {total:.6g} over its {rows} rows, which are scored with a weight of 1 each; "
            "give weights= again for the criterion of that fit",
            FitWarning,
        )


def _check_counts(total: float, rows: int, num_parameters: float) -> None:
    """Warns of weights scaled down as a whole: fewer observations than rows, and than parameters."""
    if total < min(rows, num_parameters):
        warn(
            f"weights: they sum to {total:.6g} over {rows} rows, fewer than the {num_parameters:.0f} parameters; they "
            "are counts, their sum the n of the penalty: multiply them so that they sum to the number of observations",
            FitWarning,
        )


def bic(fit: Fit, data: PyTree, *, weights: Array | None = None, allow_degenerate: bool = False) -> Array:
    """Bayesian information criterion, -2 log p(data) + p log n; lower is better, as in scikit-learn.

    From the plain log-likelihood, without penalty, of the fit's params; n is the sum of the weights. Mixture theory
    does not quite cover it (regularity fails between K and K + 1), practice does.

    Args:
      fit: a fit of a model with a density.
      data: (N, ...) the data to score, usually those of the fit.
      weights: (N,) counts, or None for ones.
      allow_degenerate: the plain number for a fit that ended as DEGENERATE or NONFINITE too.

    Returns:
      A scalar, in units of twice the nat; +inf for a fit whose status is DEGENERATE or NONFINITE, unless allowed: its
      likelihood has no upper end, so that its criterion compares with nothing. Also under `jit` and `vmap`.

    Raises:
      TypeError: no `Fit`, or its model has no density (KMeans).
      ValueError: a batch of fits.

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (100, 1))
      >>> fit = jaxem.fit(jaxem.GMM(1), x, key=jax.random.key(1))
      >>> bool(bic(fit, x) == -2 * fit.elbo.data + 2 * jnp.log(100.0))
      True

    References:
      Schwarz (1978), Estimating the dimension of a model.
    """
    value, log, num = _scores(fit, data, weights, Exact(), allow_degenerate)
    return _penalised(value, num, log)


def aic(fit: Fit, data: PyTree, *, weights: Array | None = None, allow_degenerate: bool = False) -> Array:
    """Akaike's information criterion, -2 log p(data) + 2 p; lower is better.

    Args:
      fit: a fit of a model with a density.
      data: (N, ...) the data to score.
      weights: (N,) counts, or None for ones.
      allow_degenerate: the plain number for a fit that ended as DEGENERATE or NONFINITE too.

    Returns:
      A scalar, in units of twice the nat; +inf for a fit whose status is DEGENERATE or NONFINITE, unless allowed: its
      likelihood has no upper end, so that its criterion compares with nothing. Also under `jit` and `vmap`.

    Raises:
      TypeError: no `Fit`, or its model has no density (KMeans).
      ValueError: a batch of fits.

    References:
      Akaike (1974), A new look at the statistical model identification.
    """
    value, _, num = _scores(fit, data, weights, Exact(), allow_degenerate)
    return _penalised(value, num, 2)


def icl(fit: Fit, data: PyTree, *, weights: Array | None = None, allow_degenerate: bool = False) -> Array:
    """Integrated complete-data likelihood criterion, BIC-like; lower is better, at least the BIC.

        ICL = -2 sum_n w_n max_k log p(x_n, z_n = k) + p log n = BIC - 2 sum_n w_n log max_k p(z_n = k | x_n)

    The labels are the most probable ones, as in the source and in mclust (whose sign is the opposite), not the
    responsibilities.

    Args:
      fit: a fit of a model with a density.
      data: (N, ...) the data to score.
      weights: (N,) counts, or None for ones.
      allow_degenerate: the plain number for a fit that ended as DEGENERATE or NONFINITE too.

    Returns:
      A scalar, in units of twice the nat; +inf for a fit whose status is DEGENERATE or NONFINITE, unless allowed: its
      likelihood has no upper end, so that its criterion compares with nothing. Also under `jit` and `vmap`.

    Raises:
      TypeError: no `Fit`, or its model has no density (KMeans).
      ValueError: a batch of fits.

    References:
      Biernacki, Celeux and Govaert (2000), Assessing a mixture model for clustering with the integrated completed
      likelihood, section 2.
    """
    value, log, num = _scores(fit, data, weights, Hard(), allow_degenerate)
    return _penalised(value, num, log)
