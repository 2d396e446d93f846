"""Whether a variational posterior can be trusted: importance sampling from it, Pareto smoothing and k-hat."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import rows as _rows
from jaxem.core.arguments import as_key, check_integer
from jaxem.core.checks import check_kind
from jaxem.core.mesh import apart
from jaxem.core.numerics import is_concrete, weigh
from jaxem.core.pytree import dataclass
from jaxem.core.tree import BLOCK_ROWS, PyTree, float_dtype, map_rows, num_rows, sum_rows
from jaxem.engine.result import Fit, check_fit
from jaxem.expfam import Delta
from jaxem.models.bayesian_mixture import BayesianMixture
from jaxem.models.mean_field import MeanField
from jaxem.wrappers import unwrapped

MIN_DRAWS = 25  # a tail of five


@dataclass
class Importance:
    """What importance sampling says of a variational posterior q.

    Attributes:
      k_hat: shape of the tail of the ratios p / q. Below 0.5 their variance is finite and q is good; below 0.7 q is
        usable, as a proposal to be reweighted; above, q misses parts of the posterior, and neither its own moments nor
        `log_evidence` can be relied on. It is the shape of the tail, not its size: where nearly all ratios are equal
        (an error below 0.01) a few larger ones make a high k_hat, though the evidence of what draws reached is right.
        -inf where the largest ratios are equal to rounding, as where q is the posterior; +inf where too few draws have
        a positive density.
      log_evidence: estimate of log p(data), nats, by Pareto-smoothed importance sampling.
      log_evidence_error: its standard error, nats, from the spread of the ratios; too small where k_hat is not below
        0.7, and blind to modes that no draw came near.
      effective_size: number of equally weighted draws that are worth as much, 1 / sum of squared weights.
      elbo: ELBO.total of q on the data, nats; log_evidence - elbo estimates KL(q || posterior).
    """

    k_hat: Array
    log_evidence: Array
    log_evidence_error: Array
    effective_size: Array
    elbo: Array

    def __repr__(self) -> str:
        if not is_concrete(self) or np.ndim(self.k_hat) > 0:
            return f"Importance(batch of shape {np.shape(self.k_hat)})"
        evidence, error, elbo = float(self.log_evidence), float(self.log_evidence_error), float(self.elbo)
        lines = [
            f"Importance sampling from q: k-hat {float(self.k_hat):.2f}, {_verdict(float(self.k_hat), error)}",
            f"  log evidence    {evidence:.6f} +- {error:.2g} nats",
            f"  elbo            {elbo:.6f} nats; log evidence - elbo = {evidence - elbo:.3g}",
            f"  effective size  {float(self.effective_size):.1f} draws",
        ]
        return "\n".join(lines)


def _verdict(k_hat: float, error: float) -> str:
    if k_hat == -np.inf:
        return "the largest ratios are equal: q is the posterior, as far as its draws tell"
    if k_hat < 0.5:
        return "below 0.5: q is good"
    if k_hat < 0.7:
        return "below 0.7: q is usable when its draws are reweighted"
    if error < 0.01:
        return "not below 0.7, of a tail that is rare: log evidence is of what the draws reached"
    return "not below 0.7: q is unreliable, and so is this log evidence"


def _tail_length(num: int) -> int:
    return int(np.ceil(min(num / 5, 3 * np.sqrt(num))))


def _log1p_exp(slope: Array, log_x: Array) -> Array:
    """log(1 + slope exp(log_x)), for slope exp(log_x) > -1; no overflow."""
    positive = slope > 0
    up = jax.nn.softplus(jnp.log(jnp.where(positive, slope, 1)) + log_x)
    return jnp.where(positive, up, jnp.log1p(jnp.where(positive, 0, slope * jnp.exp(log_x))))


def _fit_pareto(log_x: Array) -> tuple[Array, Array]:
    """Shape k and log scale of a generalised Pareto distribution, from the logarithms of its draws in rising order.

    Zhang and Stephens (2009): the posterior mean of theta = -k / sigma, whose prior is an empirical one on a grid, with
    k = mean log(1 - theta x) for each. On logarithms, in units of the draws' first quartile, so that ratios of any size
    neither overflow nor vanish. Then k is shrunk to 0.5 as by ten draws (Vehtari et al., appendix).
    """
    num, dtype = log_x.shape[0], log_x.dtype
    # Draws that tie with the threshold have no logarithm: the unit is at least the smallest of the others.
    unit = jnp.maximum(log_x[int(num / 4 + 0.5) - 1], jnp.min(jnp.where(log_x > -jnp.inf, log_x, jnp.inf)))
    log_x = log_x - unit
    points = 30 + int(np.sqrt(num))
    slope = jnp.asarray(np.sqrt(points / (np.arange(points) + 0.5)) - 1, dtype) / 3 - jnp.exp(-log_x[-1])  # -theta
    slope = jnp.where(slope == 0, jnp.finfo(dtype).eps, slope)
    shapes = jnp.mean(_log1p_exp(slope[:, None], log_x[None]), 1)
    log_lik = num * (jnp.log(slope / shapes) - shapes - 1)
    chosen = jnp.sum(jax.nn.softmax(log_lik) * slope)
    shape = jnp.mean(_log1p_exp(chosen, log_x))
    return (num * shape + 10 * 0.5) / (num + 10), jnp.log(shape / chosen) + unit


def _log_quantiles(shape: Array, log_scale: Array, num: int) -> Array:
    """Logarithms of the quantiles of a generalised Pareto distribution at (j - 1/2) / num."""
    exponential = jnp.asarray(-np.log1p(-(np.arange(num) + 0.5) / num), log_scale.dtype)
    z = shape * exponential
    size = jnp.maximum(jnp.abs(z), jnp.finfo(z.dtype).tiny)
    # (exp(z) - 1) / shape = exponential * exp(max(z, 0)) (1 - exp(-|z|)) / |z|
    return log_scale + jnp.log(exponential) + jnp.maximum(z, 0) + jnp.log(-jnp.expm1(-size) / size)


@jax.jit
def _smooth(log_ratios: Array, tolerance: Array) -> tuple[Array, Array]:
    """`pareto_k`, where ratios whose tail spreads by at most `tolerance` nats count as equal."""
    tail = _tail_length(log_ratios.shape[0])
    order = jnp.argsort(log_ratios)
    top, cutoff = log_ratios[order[-tail:]], log_ratios[order[-tail - 1]]
    above = top > cutoff
    excess = jnp.where(above, top + jnp.log(-jnp.expm1(jnp.where(above, cutoff - top, -1))), -jnp.inf)
    shape, log_scale = _fit_pareto(excess)
    smoothed = jnp.minimum(jnp.logaddexp(cutoff, _log_quantiles(shape, log_scale, tail)), top[-1])
    equal, few = top[-1] - cutoff <= tolerance, cutoff == -jnp.inf
    k_hat = jnp.where(few, jnp.inf, jnp.where(equal, -jnp.inf, shape))
    smoothed = jnp.where(jnp.isfinite(k_hat), smoothed, top)
    return k_hat, log_ratios.at[order[-tail:]].set(smoothed)


def pareto_k(log_ratios: Array) -> tuple[Array, Array]:
    """Pareto-smoothed importance sampling: k-hat, and log ratios with their largest ones smoothed.

    The M = min(S / 5, 3 sqrt(S)) largest ratios r = p / q, less the next largest, are fitted by a generalised Pareto
    distribution, with density proportional to (1 + k r / sigma)^(-1 / k - 1): ratios then have moments of orders below
    1 / k. The largest ratios are replaced by that distribution's quantiles at (j - 1/2) / M, in their order, and none
    exceeds the largest.

    Args:
      log_ratios: (S,) log r of independent draws from q, up to a constant, nats; -inf is a ratio of 0. S >= 25.

    Returns:
      k-hat, a scalar, and the smoothed log ratios (S,), in the order and on the scale of those given. Where the largest
      ratios are equal to rounding, k-hat is -inf; where fewer than M + 1 are positive, +inf; neither are smoothed.
      O(S log S) time.

    Raises:
      ValueError: too few ratios, or one that is NaN or +inf, or none above 0.

    Examples:
      >>> exponential = jax.random.exponential(jax.random.key(0), (4000,))
      >>> k_hat, smoothed = pareto_k(0.6 * exponential)  # ratios with P(r > t) = t^(-1 / 0.6)
      >>> bool(0.4 < k_hat < 0.8), smoothed.shape
      (True, (4000,))

    References:
      Zhang and Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution,
      Technometrics 51; Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
    """
    if is_concrete(log_ratios):
        check_kind("log_ratios", log_ratios)
    log_ratios = jnp.asarray(log_ratios)
    if not jnp.issubdtype(log_ratios.dtype, jnp.floating):
        raise TypeError(f"log_ratios: expected floating point numbers; found dtype {log_ratios.dtype}")
    if log_ratios.ndim != 1 or log_ratios.shape[0] < MIN_DRAWS:
        raise ValueError(f"log_ratios: expected shape (S,) with S >= {MIN_DRAWS}; found {log_ratios.shape}")
    if is_concrete(log_ratios):
        _check_ratios("log_ratios", np.asarray(log_ratios))
    size = jnp.max(jnp.where(jnp.isfinite(log_ratios), jnp.abs(log_ratios), 0))
    return _smooth(log_ratios, 8 * jnp.finfo(log_ratios.dtype).eps * size)


def _check_ratios(name: str, values: np.ndarray) -> None:
    bad = int((np.isnan(values) | (values == np.inf)).sum())
    if bad:
        raise ValueError(f"{name}: expected numbers below infinity; found {bad} of {values.size} that are NaN or +inf")
    if not (values > -np.inf).any():
        raise ValueError(f"{name}: expected one above -inf at least; found none among {values.size}")


def importance(
    fit: Fit, data: PyTree, *, key: Array, num_draws: int = 1000, weights: Array | None = None
) -> Importance:
    """How good the variational posterior q of a fit is, and log p(data), by importance sampling from q.

        log r_s = log p(data, draw_s) - log q(draw_s),   draw_s ~ q
        log evidence = log mean_s r_s, Pareto-smoothed   >= ELBO = mean of log r, but for sampling error

    For `MeanField` a draw holds all factors, the local ones (optimal given q of the global ones) included: with many
    rows their ratios multiply up, and k-hat says that the joint q cannot be reweighted even where its marginals are
    good. Expectations that are linear in means are log densities where the means are the statistics t(x) of a point, so
    nothing more is asked of the model; where the user's expectation is a bound (of a logistic, say), so is the result.
    For `BayesianMixture` a draw is of proportions and components, and the labels are summed out, so that `log_evidence`
    is above the ELBO by what the mean-field labels lose. Of K! equal modes draws visit one: compare
    log_evidence + `label_correction`. With free sticks, p(data) means that no row lies beyond the K-th stick. Of well
    separated components q is nearly exact but for rare draws with a wide one, and k-hat above 1 is the rule.

    Not seen: modes of the posterior that are far from all of q, which no draw comes near.

    Args:
      fit: of a `MeanField` model whose factors are all conjugate and none a point estimate (`expfam.Delta`), or of a
        `BayesianMixture`; `chunked` or not.
      data: (N, ...) the data that q is the posterior of.
      key: random key.
      num_draws: S >= 25. The threshold of 0.7 is for 2200 draws or more; for fewer it is 1 - 1 / log10(S).
      weights: (N,) those of the fit, or None for ones: powers of each row's density. Rows with local factors, of which
        each copy of a row would have its own, can have weights 0 and 1 only.

    Returns:
      `Importance`. S evaluations of the density of the data, in time of about as many E-steps; draws are taken a few at
      a time, so that memory is O(N) for local factors and that of one block of rows otherwise.

    Raises:
      TypeError: the model is of another kind, or a factor is a point estimate or not conjugate.
      ValueError: bad data, weights or number of draws, or a density that is NaN.

    Examples:
      A single component's posterior is exact:

      >>> import jaxem
      >>> x = jax.random.normal(jax.random.key(0), (50, 2))
      >>> fit = jaxem.fit(jaxem.BayesianGMM(1), x, key=jax.random.key(1))
      >>> found = importance(fit, x, key=jax.random.key(2), num_draws=100)
      >>> float(found.k_hat), bool(abs(found.log_evidence - fit.elbo.total) < 0.01)
      (-inf, True)

    References:
      Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work?: evaluating variational inference, ICML; Vehtari,
      Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling, JMLR 25.
    """
    check_fit(fit, data)
    check_integer("num_draws", num_draws, MIN_DRAWS)
    dtype = float_dtype(fit.params)
    data, weights = apart(data, weights)
    given, data = data, _rows.rows(fit.model, fit.params, data)
    weights = _rows.as_weights(weights, num_rows(data), dtype, like=given)
    _check_model(fit.model, weights)
    together = max(1, min(num_draws, BLOCK_ROWS // num_rows(data)))
    rounds = -(-num_draws // together)
    keys = jax.random.split(as_key(key), rounds * together).reshape(rounds, together)
    elbo, gaps = _gaps(fit.model, fit.params, data, weights, keys)
    gaps = gaps.reshape(-1)[:num_draws]
    _check_ratios("log p(data, draw) - log q(draw)", np.asarray(gaps))
    return _summary(elbo, gaps, jnp.sum(weights))


def _check_model(model: Any, weights: Array) -> None:
    """Raises unless the model's posterior has a density that can be drawn from."""
    model = unwrapped(model)
    if isinstance(model, BayesianMixture):
        return
    if not isinstance(model, MeanField):
        raise TypeError(
            "fit: expected one of a MeanField or BayesianMixture model, which has a posterior to draw from; found "
            f"{type(model).__name__}"
        )
    for name, factor in model.factors().items():
        if isinstance(factor.family, Delta):
            raise TypeError(f"fit: factor {name!r} is a point estimate, {factor.family!r}, which has no density")
        if not factor.conjugate:
            raise TypeError(
                f"fit: factor {name!r} is not conjugate, so the model's expectations give no log density of its draws"
            )
        if factor.local and not np.isin(np.asarray(weights), (0, 1)).all():
            raise ValueError(
                f"weights: expected 0 and 1 only, because factor {name!r} is local; repeat rows instead of weighting"
            )


@jax.jit
def _gaps(model: Any, params: PyTree, data: PyTree, weights: Array, keys: Array) -> tuple[Array, Array]:
    """ELBO.total, and by how much log p(data, draw) - log q(draw) exceeds it, for each key.

    Differences from q's own expectations, row by row: what is large and common to all draws cancels before it is
    summed, so that float32 keeps the ratios' digits.
    """
    elbo = model.e_step(params, data, weights).elbo_data + model.elbo_params(params)
    inner = unwrapped(model)
    prepare = _mixture_gap if isinstance(inner, BayesianMixture) else _mean_field_gap
    return elbo, jax.lax.map(jax.vmap(prepare(inner, params, data, weights)), keys)


def _mean_field_gap(model: MeanField, params: PyTree, data: PyTree, weights: Array) -> Callable[[Array], Array]:
    """Log p - log q of a draw of all factors, less the ELBO: linear in t(draw) - E t, so normalisers cancel."""
    factors = model.factors()
    local = model.local(params, data)
    natural = {name: local[name] if factor.local else params[name] for name, factor in factors.items()}
    means = {name: factor.family.means(natural[name]) for name, factor in factors.items()}
    shared = lambda point: {name: point[name] for name, factor in factors.items() if not factor.local}
    prior, log_lik = model.expected_log_prior(shared(means)), model.expected_log_lik(means, data)

    def gap(key: Array) -> Array:
        keys = dict(zip(factors, jax.random.split(key, len(factors)), strict=True))
        point = {name: factor.family.draw(keys[name], natural[name]) for name, factor in factors.items()}
        total = model.expected_log_prior(shared(point)) - prior
        rows = model.expected_log_lik(point, data) - log_lik
        for name, factor in factors.items():
            change = jax.tree.map(jnp.subtract, point[name], means[name])
            log_q = factor.family.inner(natural[name], change)
            if factor.local:
                rows = rows - jnp.sum(log_q.reshape(rows.shape[0], -1), 1)
            else:
                total = total - jnp.sum(log_q)
        return total + jnp.sum(weigh(weights, rows))

    return gap


def _mixture_gap(model: BayesianMixture, params: Any, data: PyTree, weights: Array) -> Callable[[Array], Array]:
    """Log p - log q of a draw of proportions and components, labels summed out, less the ELBO."""
    at, law, size = model.at(params), model.law, model.rows_at_once(data)
    here, divergence = at.components.q, at.elbo_params()
    base = map_rows(lambda x: jax.nn.logsumexp(at.log_joint(x), 1), data, size)

    def gap(key: Array) -> Array:
        mixing_key, key = jax.random.split(key)
        log_mixing, log_q, log_p = law.draw(mixing_key, params.mixing)
        draw, each_q, each_p = here.draw(key)
        total = log_p - log_q - divergence + jnp.sum(each_p - each_q)
        drawn = model.family.at(draw)

        def block(rows: tuple[PyTree, Array], w: Array) -> Array:
            x, expected = rows
            log_joint = log_mixing[None] + drawn.log_prob(x)
            return jnp.sum(weigh(w, jax.nn.logsumexp(log_joint, 1) - expected))

        return total + sum_rows(block, (data, base), weights, size)

    return gap


@jax.jit
def _summary(elbo: Array, gaps: Array, total_weight: Array) -> Importance:
    """Pareto smoothing, and the estimates made of it."""
    num = gaps.shape[0]
    # What rounding alone may spread the ratios by; never so much that a visible spread would be taken for it.
    slack = 16 * jnp.finfo(gaps.dtype).eps * (jnp.abs(elbo) + total_weight)
    k_hat, logs = _smooth(gaps, jnp.minimum(slack, 0.01))
    total = jax.nn.logsumexp(logs)
    share = jnp.exp(logs - total)
    error = jnp.sqrt(jnp.sum((num * share - 1) ** 2) / (num * (num - 1)))
    return Importance(k_hat, elbo + (total - math.log(num)), error, 1 / jnp.sum(share**2), elbo)
