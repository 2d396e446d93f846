"""Log-densities of counts without the cancellation of large terms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.pytree import dataclass
from jaxem.core.special import stirling_rest
from jaxem.families.mean import LOG_ZERO

# Below it log Poisson(x | x) is looked up, from it on Stirling's formula is as good.
SMALL = 16


@functools.cache
def _table() -> tuple[float, ...]:
    return (0.0, *(x * math.log(x) - x - math.lgamma(x + 1) for x in range(1, SMALL)))


def log_poisson_peak(x: Array) -> Array:
    """Log Poisson(x | x), the largest log-probability that a count x >= 0 can have; elementwise, nats.

    -log(2 pi x) / 2 minus the error of Stirling's formula, accurate at any size in either precision, where
    x log x - x - lgamma(x + 1) cancels. About -log(x) / 2 - 0.92. It is `special.log_peak(x)` - log x, with 0 at 0.

    References:
      Loader (2000), Fast and accurate computation of binomial probabilities.
    """
    large = jnp.maximum(x, SMALL)
    formula = -0.5 * jnp.log(2 * np.pi * large) - stirling_rest(large)
    index = jnp.clip(x, 0, SMALL - 1).astype(jnp.int32)
    small = jnp.asarray(np.array(_table()), x.dtype).at[index].get(mode="clip")
    return jnp.where(x < SMALL, small, formula)


def _log_ratio(t: Array, centre: Array) -> Array:
    """Log(t / centre) for t, centre > 0, to full relative precision also where they are close or far apart.

    Both branches are differentiable in t at t = centre.
    """
    above = t >= centre
    low = jnp.where(above, centre, t)
    gap = jnp.where(above, t - centre, centre - t) / low
    log = jnp.log1p(gap)
    return jnp.where(above, log, -log)


def is_count(x: Array) -> Array:
    """Whether x is one of 0, 1, 2, ..., elementwise; false for NaN and infinity."""
    return (x >= 0) & (x - jnp.floor(x) == 0)


def _own(x: Array, centre: Array) -> tuple[Array, Array]:
    """log_poisson_peak(x), -inf where x is no count, and log(x / centre), 0 where there is none; elementwise."""
    seen = x > 0
    log = jnp.where(seen, _log_ratio(jnp.where(seen, x, 1), centre), 0)
    return jnp.where(is_count(x), log_poisson_peak(x), -jnp.inf), log


def _log_rate(rate: Array, centre: Array) -> Array:
    possible = rate > 0
    return jnp.where(possible, _log_ratio(jnp.where(possible, rate, 1), centre), LOG_ZERO)


def _deviance(x: Array, gap: Array, log_x: Array, log_rate: Array) -> Array:
    """X log(x / rate) - (x - rate) >= 0 for rate = x + gap, elementwise; 1e30 and more where rate 0 forbids x.

    With t = gap / (x + rate) it is gap t - 2 x (t^3 / 3 + t^5 / 5 + ...): near the rate no large terms cancel, and the
    error is eps gap^2 / x, where that of the other form, for rates outside 2/3 to 3/2 of the count, is about eps x.
    Neither takes a logarithm of a pair.
    """
    both = 2 * x + gap
    t = gap / jnp.where(both > 0, both, 1)
    near = (jnp.abs(t) < 0.2) & (both > 0)
    t = jnp.where(near, t, 0)
    z = t * t
    terms = 6 if x.dtype == jnp.float32 else 12
    series = jnp.full_like(z, 1 / (2 * terms + 1))
    for i in range(terms - 1, 0, -1):
        series = series * z + 1 / (2 * i + 1)
    return jnp.where(near, t * (gap - 2 * x * z * series), x * (log_x - log_rate) + gap)


def _total(own: Array, deviance: Array) -> Array:
    """(n, K) from the rows' own terms (n,) and deviances (K, n); -inf for impossible rows, and where a rate forbids."""
    possible = (own > -jnp.inf)[None] & (deviance < -0.5 * LOG_ZERO)
    return jnp.where(possible, own[None] - deviance, -jnp.inf).T


def _centre(rate: Array) -> Array:
    """(D, 1) a size of the rates: any gives the same value, so it carries no derivative."""
    return _column(jax.lax.stop_gradient(jnp.mean(rate, 0)))


def _column(size: Array) -> Array:
    return jnp.where(size > 0, size, 1)[:, None]


@dataclass
class CountRows:
    """Counts with what is theirs alone, whatever the rates.

    Attributes:
      x: (N, D) counts.
      own: (N,) sum over columns of log Poisson(x | x); -inf for a row with anything but counts.
      log_x: (N, D) log of x over a size of its column; 0 where x is 0.
    """

    x: Array
    own: Array
    log_x: Array


def count_rows(x: Array, size: Array) -> CountRows:
    """Counts (N, D) with their own terms, columns being of sizes (D,) >= 0."""
    own, log_x = _own(x.T, _column(size))
    return CountRows(x, jnp.sum(own, 0), log_x.T)


def log_poisson(x: Array | CountRows, rate: Array, size: Array | None = None) -> Array:
    """Sum over columns of log Poisson(x_nd | rate_kd).

    As log p(x | x) minus the deviance x log(x / rate) - (x - rate), both without cancellation: the error of a column is
    about eps (x - rate)^2 / x, whatever the size of the count or of other components' rates. Two elementwise passes, of
    (N, D) with logarithms, which `count_rows` does for good, and of (N, K, D) without, columns first and rows last so
    that they run on full vectors.

    Args:
      x: (N, D) counts >= 0; -inf for a row with anything else. Or rows of `count_rows`.
      rate: (K, D) >= 0; a rate of 0 gives 0 where the count is 0, else -inf.
      size: (D,) that the rows were made with; not used for plain counts.

    Returns:
      (N, K), nats.
    """
    if isinstance(x, CountRows):
        known, centre = x, _column(size)  # type: ignore[arg-type]
    else:
        centre = _centre(rate)
        known = count_rows(x, centre[:, 0])
    x, log_x = known.x.T, known.log_x.T
    one = lambda r, log: jnp.sum(_deviance(x, r[:, None] - x, log_x, log[:, None]), 0)
    return _total(known.own, jax.vmap(one)(rate, _log_rate(rate, centre.T)))


def halves(v: Array) -> tuple[Array, Array]:
    """V as a number of half its digits, whose products with such numbers are exact, and the rest.

    Compilers may contract a product and a sum to one rounding, which makes exact products the only safe ones.
    """
    info = jnp.finfo(v.dtype)
    high = jax.lax.reduce_precision(v, info.nexp, info.nmant // 2)
    return high, v - high


def log_binomial(x: Array, num_trials: int, prob: Array) -> Array:
    """Sum over columns of log Binomial(x_nd | num_trials, prob_kd).

    A binomial is two Poisson counts given that they sum to n: successes of rate n p and failures of rate n (1 - p),
    whose gaps to their rates are opposite.

    Args:
      x: (N, D) counts from 0 to n; -inf for a row with anything else.
      num_trials: n.
      prob: (K, D) from 0 to 1; 0 and 1 give 0 for the only possible count, else -inf.

    Returns:
      (N, K), nats.
    """
    n, x = jnp.asarray(float(num_trials), x.dtype), x.T
    (n_high, n_low), (p_high, p_low) = halves(n), halves(prob)
    exact, rest = n_high * p_high, n_high * p_low + n_low * prob  # one rounding of n p would be felt in counts of 10^8
    success, failure = _centre(n * prob), _centre(n * (1 - prob))
    (own, log_x), (other, log_y) = _own(x, success), _own(n - x, failure)

    def one(r: Array, rest: Array, log_r: Array, log_f: Array) -> Array:
        gap = (r[:, None] - x) + rest[:, None]
        hits = _deviance(x, gap, log_x, log_r[:, None])
        return jnp.sum(hits + _deviance(n - x, -gap, log_y, log_f[:, None]), 0)

    logs = _log_rate(n * prob, success.T), _log_rate(n * (1 - prob), failure.T)
    return _total(jnp.sum(own + other, 0) - x.shape[0] * log_poisson_peak(n), jax.vmap(one)(exact, rest, *logs))


# From this variance on counts are drawn by a rounded, skew-corrected normal: JAX draws 32-bit integers, which end at
# 2.1e9, and accepts them by differences of terms of the size of the count.
SPREAD = 1e5


def _normal_count(key: Array, mean: Array, std: Array, skew: Array | float) -> Array:
    """Round(mean + std z + skew (z^2 - 1) / 6), the Cornish-Fisher expansion to its second term."""
    z = jax.random.normal(jax.random.fold_in(key, 1), mean.shape, mean.dtype)
    return jnp.maximum(jnp.round(mean + (std * z + skew * (z * z - 1) / 6)), 0)


def sample_poisson(key: Array, rate: Array) -> Array:
    """Poisson counts in the dtype of the rates, at any rate; exact up to 1e5, from there to order 1 / rate."""
    small = jax.random.poisson(key, jnp.minimum(rate, SPREAD)).astype(rate.dtype)
    return jnp.where(rate <= SPREAD, small, _normal_count(key, rate, jnp.sqrt(rate), 1.0))


def sample_binomial(key: Array, num_trials: int, prob: Array) -> Array:
    """Binomial counts in the dtype of prob, for any n; exact up to n = 4e5, and to variances of 1e5 up to n = 1.6e7.

    Beyond, a skew-corrected normal, right to order 1 / variance; for more trials than float32 can count and variances
    below 1e4 a Poisson count of the rarer outcome, whose probability is then below 6e-4.
    """
    n = jnp.asarray(float(num_trials), prob.dtype)
    draw = lambda prob: jax.random.binomial(key, jnp.full_like(prob, n), prob, dtype=prob.dtype)
    if num_trials < 4 * SPREAD:  # the variance is at most n / 4
        return draw(prob)
    many = num_trials > 1 << 24
    variance = n * prob * (1 - prob)
    wide = variance > (0.1 * SPREAD if many else SPREAD)
    if many:
        rarer = jnp.where(wide, 0, n * jnp.minimum(prob, 1 - prob))
        count = jax.random.poisson(key, rarer).astype(prob.dtype)
        small = jnp.where(prob > 0.5, n - count, count)
    else:
        small = draw(jnp.where(wide, 0, prob))
    large = jnp.minimum(_normal_count(key, n * prob, jnp.sqrt(variance), 1 - 2 * prob), n)
    return jnp.where(wide, large, small)
