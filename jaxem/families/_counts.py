"""Log-densities of counts without the cancellation of large terms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.families._mean import LOG_ZERO, product_log

# Below it log Poisson(x | x) is looked up; from it on six terms of Stirling's series are good to 1e-16.
SMALL = 16


@functools.cache
def _table() -> tuple[float, ...]:
    return (0.0, *(x * math.log(x) - x - math.lgamma(x + 1) for x in range(1, SMALL)))


def log_peak(x: Array) -> Array:
    """Log Poisson(x | x), the largest log-probability that a count x >= 0 can have; elementwise, nats.

    -log(2 pi x) / 2 minus the error of Stirling's formula, accurate at any size in either precision, where
    x log x - x - lgamma(x + 1) cancels. About -log(x) / 2 - 0.92.

    References:
      Loader (2000), Fast and accurate computation of binomial probabilities.
    """
    large = jnp.maximum(x, SMALL)
    y = 1 / large
    z = y * y
    series = y * (1 / 12 - z * (1 / 360 - z * (1 / 1260 - z * (1 / 1680 - z * (1 / 1188 - z * (691 / 360360))))))
    formula = -0.5 * jnp.log(2 * np.pi * large) - series
    small = jnp.asarray(np.array(_table()), x.dtype).at[x.astype(jnp.int32)].get(mode="clip")
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


def _parts(x: Array, rate: Array) -> tuple[Array, Array, Array]:
    """Centre c (1, F), log Poisson(x_nf | c_f) + c_f - x_nf (N, F), and sum_f x_nf log(rate_kf / c_f) (N, K)."""
    centre = jax.lax.stop_gradient(jnp.mean(rate, 0))  # any centre gives the same value: it carries no derivative
    centre = jnp.where(centre > 0, centre, 1)[None]
    seen, possible = x > 0, rate > 0
    own = jnp.where(seen, x * _log_ratio(jnp.where(seen, x, 1), centre), 0)
    log = jnp.where(possible, _log_ratio(jnp.where(possible, rate, 1), centre), LOG_ZERO)
    return centre, log_peak(x) - own, product_log(x, log)


def log_poisson(x: Array, rate: Array) -> Array:
    """Sum over columns of log Poisson(x_nd | rate_kd).

    Taken relative to the mean rate c of the components, log p(x | r_k) = log p(x | c) + x log(r_k / c) - (r_k - c): the
    first is one elementwise pass over (N, D), the second a matrix product, and large terms that would cancel never
    appear. The error is about eps |x - rate| for each column; less where the components' rates are close.

    Args:
      x: (N, D) counts >= 0.
      rate: (K, D) >= 0; a rate of 0 gives 0 where the count is 0, else -inf.

    Returns:
      (N, K), nats.
    """
    centre, own, shared = _parts(x, rate)
    return jnp.sum(own + (x - centre), 1)[:, None] + shared - jnp.sum(rate - centre, 1)[None]


def log_binomial(x: Array, num_trials: int, prob: Array) -> Array:
    """Sum over columns of log Binomial(x_nd | num_trials, prob_kd).

    A binomial is two Poisson counts given that they sum to n: successes of rate n p and failures of rate n (1 - p).

    Args:
      x: (N, D) counts from 0 to n.
      num_trials: n.
      prob: (K, D) from 0 to 1; 0 and 1 give 0 for the only possible count, else -inf.

    Returns:
      (N, K), nats.
    """
    counts = jnp.concatenate([x, num_trials - x], 1)
    _, own, shared = _parts(counts, num_trials * jnp.concatenate([prob, 1 - prob], 1))
    peak = x.shape[1] * log_peak(jnp.full((), num_trials, x.dtype))
    return (jnp.sum(own, 1) - peak)[:, None] + shared
