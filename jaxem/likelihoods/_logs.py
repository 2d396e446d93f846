"""Log-probabilities of counts from logarithms of rates and odds, with logarithms of counts in two parts."""

import math

import jax.numpy as jnp
from jax import Array

from jaxem.core.special import bend
from jaxem.families.counts import halves, log_poisson_peak

# Log 2 in two parts, of which the first has 16 bits: times an exponent it is exact.
LN2_HIGH = 45426 / 65536
LN2_LOW = math.log(2) - LN2_HIGH


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """A + b rounded, and what rounding left off (Knuth)."""
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


def log_pair(x: Array) -> tuple[Array, Array]:
    """Log x for x > 0 as an unevaluated sum, in float32 to about 1e-9: a rate's logarithm needs more than its 24 bits.

    x = m 2^e with m about 1, and log m = 2 artanh(s), s = (m - 1) / (m + 1), whose rounding is followed up.
    """
    m, e = jnp.frexp(x)
    low = m < math.sqrt(0.5)
    m = jnp.where(low, 2 * m, m)
    e = (e - low.astype(e.dtype)).astype(x.dtype)
    s = (m - 1) / (m + 1)
    (s_high, _), (m_high, m_low) = halves(s), halves(m)
    # What s_high leaves of m - 1 - s (m + 1). The sum m + 1 is not formed again: 1 taken from it would be folded to m.
    rest = (((m - 1 - s_high) - s_high * m_high) - s_high * m_low) / (m + 1)
    z = s * s
    series = jnp.full_like(z, 1 / 21)
    for k in range(19, 1, -2):
        series = series * z + 1 / k
    high, left = two_sum(e * LN2_HIGH, 2 * s_high)
    return high, left + (e * LN2_LOW + 2 * (rest + s * z * series))


def exp_bend(g: Array) -> Array:
    """Exp(g) - 1 - g >= 0, accurate to a few eps of itself; about g^2 / 2 near 0."""
    near = jnp.abs(g) < 0.5
    h = jnp.where(near, g, 0)
    series = jnp.ones_like(h)
    for k in range(18, 2, -1):
        series = 1 + series * h / k
    return jnp.where(near, 0.5 * h * h * series, jnp.expm1(g) - g)


def log_poisson_log_rate(x: Array, log_rate: Array) -> Array:
    """Log Poisson(x | exp(log_rate)), elementwise, nats."""
    seen = x > 0
    high, low = log_pair(jnp.where(seen, x, 1))
    gap = (log_rate - high) - low
    return log_poisson_peak(x) - jnp.where(seen, x * exp_bend(gap), jnp.exp(log_rate))


def log_binomial_logits(x: Array, num_trials: int, logits: Array) -> Array:
    """Log Binomial(x | n, sigmoid(logits)), elementwise, nats.

    log Binomial(x | n, x / n) - n KL. With d the logits less those of x / n, and the rarer outcome counted, of share p
    up to 1/2, KL = log(1 + p (exp(d) - 1)) - p d = p (exp(d) - 1 - d) - {u - log(1 + u)}, u = p (exp(d) - 1).
    """
    n = jnp.asarray(float(num_trials), x.dtype)
    y, y_rest = two_sum(-x, n)
    inner = (x > 0) & (y > 0)
    (x_high, x_low), (y_high, y_low) = log_pair(jnp.where(inner, x, 1)), log_pair(jnp.where(inner, y, 1))
    y_low = y_low + y_rest / jnp.where(inner, y, 1)
    ratio, rest = two_sum(x_high, -y_high)
    d = (logits - ratio) - (rest + (x_low - y_low))
    rare = x <= y
    d, p = jnp.where(rare, d, -d), jnp.where(rare, x, y) / n
    near = jnp.abs(d) < 1
    close = jnp.where(near, d, 0)
    small = p * exp_bend(close) - bend(p * jnp.expm1(close))
    # Far from it, and where one outcome never came, the terms do not cancel.
    share = jnp.where(inner, p, 0.5)
    far = jnp.logaddexp(jnp.log1p(-share), jnp.log(share) + d) - share * d
    softplus = jnp.logaddexp(jnp.zeros_like(logits), jnp.where(x > 0, -logits, logits))
    divergence = jnp.where(inner, jnp.where(near, small, far), softplus)
    return log_poisson_peak(x) + log_poisson_peak(y) - log_poisson_peak(n) - n * divergence
