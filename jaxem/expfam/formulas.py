"""Distributions of parameters by their conventional ones: log-normalisers, means of logarithms, divergences and draws.

The one place where these formulas are written, for `jaxem.expfam`, for priors and for mixing proportions. They take
concentrations and shapes themselves: natural parameters are these less 1, which in float32 keeps nothing of 1e-9.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import betaln, digamma, gammaln

from jaxem.core.special import bend, log_minus_digamma, log_peak


class Whole:
    """The last axis of (..., F) concentrations as one simplex; a subclass has G groups of it, a simplex each."""

    def total(self, values: Array) -> Array:
        """(..., G) sums over the groups."""
        return jnp.sum(values, -1, keepdims=True)

    def spread(self, values: Array) -> Array:
        """(..., F), or what broadcasts to it: the group's value at each entry."""
        return values

    def log_total(self, logs: Array) -> Array:
        """(..., G) logarithms of sums of exponentials."""
        return jax.nn.logsumexp(logs, -1, keepdims=True)


class Items(Whole):
    """Items with several levels each, one after the other."""

    def __init__(self, levels: tuple[int, ...]):
        self.item = np.repeat(np.arange(len(levels)), levels)
        self.num = len(levels)

    def total(self, values: Array) -> Array:
        """(..., G) sums over the levels."""
        return jax.ops.segment_sum(values.T, self.item, self.num, indices_are_sorted=True).T

    def spread(self, values: Array) -> Array:
        """(..., F) the item's value at each of its levels."""
        return values[..., self.item]

    def log_total(self, logs: Array) -> Array:
        """(..., G) logarithms of sums of exponentials."""
        top = jax.ops.segment_max(logs.T, self.item, self.num, indices_are_sorted=True).T
        return top + jnp.log(self.total(jnp.exp(logs - self.spread(top))))


WHOLE = Whole()


def _at(concentration: Array, value: Array, otherwise: float) -> Array:
    """The value where an entry has a concentration; one of 0 is no part of its simplex."""
    return jnp.where(concentration > 0, value, otherwise)


def dirichlet_log_normaliser(concentration: Array, groups: Whole = WHOLE) -> Array:
    """(...,) sum log Gamma(c) - log Gamma(sum c), of (..., F) concentrations, groups added up."""
    each = _at(concentration, gammaln(_at(concentration, concentration, 1)), 0)
    return jnp.sum(each, -1) - jnp.sum(gammaln(groups.total(concentration)), -1)


def dirichlet_mean_log(concentration: Array, groups: Whole = WHOLE) -> Array:
    """(..., F) E log x; -inf where the concentration is 0, and x with it."""
    total = groups.spread(digamma(groups.total(concentration)))
    each = digamma(_at(concentration, concentration, 1)) - total
    return _at(concentration, each, -jnp.inf)


def dirichlet_kl(concentration: Array, other: Array, groups: Whole = WHOLE) -> Array:
    """(...,) KL from concentrations `other`, nats."""
    gap = jnp.sum(_at(concentration, (concentration - other) * dirichlet_mean_log(concentration, groups), 0), -1)
    return gap - dirichlet_log_normaliser(concentration, groups) + dirichlet_log_normaliser(other, groups)


def dirichlet_draw(key: Array, concentration: Array, groups: Whole = WHOLE) -> Array:
    """(..., F) log x of a draw; finite where small concentrations make x underflow."""
    logs = jax.random.loggamma(key, _at(concentration, concentration, 1), dtype=concentration.dtype)
    logs = _at(concentration, logs, -jnp.inf)
    return logs - groups.spread(groups.log_total(logs))


def dirichlet_log_prob(logs: Array, concentration: Array, groups: Whole = WHOLE) -> Array:
    """(...,) log density of x, given log x, nats."""
    return jnp.sum(_at(concentration, (concentration - 1) * logs, 0), -1) - dirichlet_log_normaliser(
        concentration, groups
    )


def beta_mean_log(a: Array, b: Array) -> tuple[Array, Array]:
    """E log x and E log(1 - x)."""
    total = digamma(a + b)
    return digamma(a) - total, digamma(b) - total


def beta_kl(a: Array, b: Array, other_a: Array, other_b: Array) -> Array:
    """KL from Beta(other_a, other_b), nats."""
    log, log1m = beta_mean_log(a, b)
    return betaln(other_a, other_b) - betaln(a, b) + (a - other_a) * log + (b - other_b) * log1m


def beta_draw(key: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Log x and log(1 - x) of a draw, exact near 0 and 1."""
    first, second = jax.random.split(key)
    logs = jax.random.loggamma(first, a, dtype=a.dtype) - jax.random.loggamma(second, b, dtype=b.dtype)
    return -jax.nn.softplus(-logs), -jax.nn.softplus(logs)


def beta_log_prob(logs: tuple[Array, Array], a: Array, b: Array) -> Array:
    """Log density of x, given log x and log(1 - x), nats."""
    return (a - 1) * logs[0] + (b - 1) * logs[1] - betaln(a, b)


def gamma_log_normaliser(shape: Array, rate: Array) -> Array:
    """Log Gamma(shape) - shape log rate."""
    return gammaln(shape) - shape * jnp.log(rate)


def gamma_kl(shape: Array, rate: Array, other_shape: Array, other_rate: Array) -> Array:
    """KL from Gamma(other_shape, other_rate), nats, in a form that keeps its digits for any shape."""
    ratio = (shape / rate) / (other_shape / other_rate)
    gap = log_peak(shape) - log_peak(other_shape) - (shape - other_shape) * log_minus_digamma(shape)
    return gap + other_shape * bend(ratio - 1)


def gamma_draw(key: Array, shape: Array, rate: Array) -> Array:
    """Log x of a draw; finite where a small shape makes x underflow."""
    return jax.random.loggamma(key, shape, dtype=shape.dtype) - jnp.log(rate)


def gamma_log_prob(log: Array, shape: Array, rate: Array) -> Array:
    """Log density of x, given log x, nats."""
    return (shape - 1) * log - rate * jnp.exp(log) - gamma_log_normaliser(shape, rate)


def wishart(dof: Array, log_det: Array, dim: int, rank: Array | int) -> tuple[Array, Array]:
    """(log-normaliser, E log |x|) of Wishart matrices, given log |inverse scale|.

    Args:
      dof: (...,) degrees of freedom > rank - 1.
      log_det: (...,).
      dim: D, or more than the rank.
      rank: number of rows of a matrix, which may be traced; the rest of the D count for nothing.

    Returns:
      (...,) each.
    """
    dof = jnp.asarray(dof)  # of a dtype that JAX has, also where x64 is off
    steps = jnp.arange(dim, dtype=dof.dtype)
    half = 0.5 * (dof[..., None] - jnp.broadcast_to(steps, (*dof.shape, dim)))
    counted = jnp.broadcast_to(steps < rank, half.shape)
    half = jnp.where(counted, half, 1)
    log_gamma = jnp.sum(jnp.where(counted, gammaln(half), 0), -1) + 0.25 * rank * (rank - 1) * math.log(math.pi)
    log_scale = rank * math.log(2) - log_det
    return 0.5 * dof * log_scale + log_gamma, jnp.sum(jnp.where(counted, digamma(half), 0), -1) + log_scale
