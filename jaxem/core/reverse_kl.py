"""The reverse, entropy-weighted projection argmin_q KL(p || q) + lam H(q), row by row, to rounding."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.pytree import dataclass

# Cells of the grid that separates minima: of 55 000 random rows, most of them near the ties where minima are close, all
# have the objective that 2000 cells give.
GRID = 64
# No q_k is below this share of p_k: lam u_k <= 1.6 (1 - log p_k) and log p_k > -750, so the grid ends here.
LOWEST = 1 / 1200
# Safeguarded Newton steps in a cell, and Newton steps for one u_k: both reach rounding with some to spare.
REFINEMENTS = 20
NEWTON = 5


@dataclass
class _Rows:
    """What the conditions of stationarity need of p; arrays (1, ..., K) or (1, ..., 1), beside candidates (2, ..., K).

    Attributes:
      p: distributions.
      gap: log(p_top / p_k) >= 0; 0 where p_k = 0, whose q_k is 0 anyway.
      top: one-hot, bool, of an argmax of p, the lowest index among ties.
      p_top: the largest p.
      rest: the sum of the others.
      lam: the weight of the entropy, positive.
    """

    p: Array
    gap: Array
    top: Array
    p_top: Array
    rest: Array
    lam: Array


def _rows(p: Array, lam: Array) -> _Rows:
    p = p[None]
    top = jax.nn.one_hot(jnp.argmax(p, -1), p.shape[-1], dtype=bool)
    p_top = jnp.max(p, -1, keepdims=True)
    gap = jnp.where(p > 0, jnp.log(p_top) - jnp.log(jnp.where(p > 0, p, 1)), 0)
    rest = jnp.sum(jnp.where(top, 0, p), -1, keepdims=True)
    return _Rows(p, gap, top, p_top, rest, lam)


def _excess(c: Array) -> Array:
    """The w >= 0 with w - log(1 + w) = c >= 0: the larger solution u = 1 + w of u - log u = 1 + c."""
    positive = c > 0
    c = jnp.where(positive, c, 1)
    # An upper bound (Chatzigeorgiou 2013, theorem 1); Newton falls from there to the solution of a convex equation.
    w = jnp.sqrt(2 * c) + c
    for _ in range(NEWTON):
        w = w - (w - jnp.log1p(w) - c) * (1 + w) / w
    return jnp.where(positive, jnp.maximum(w, 0), 0)


def _others(rows: _Rows, share: Array) -> tuple[Array, Array, Array]:
    """At t = p_top + rest (1 - share): q of all but the top one, their excess over rest * share, and its slope in t.

    The condition of the top coordinate gives nu, and nu gives the others, on the branch u >= 1.
    """
    t = rows.p_top + rows.rest * (1 - share)
    z = (rows.p_top - rows.lam * t) / (rows.lam * t)  # u_top - 1, of either sign
    w = _excess(z - jnp.log1p(z) + rows.gap)
    q = jnp.where(rows.top, 0, rows.p / (rows.lam * (1 + w)))
    slope = 1 + jnp.sum(jnp.where(w > 0, q * z / jnp.where(w > 0, w, 1), 0), -1, keepdims=True) / t
    return q, jnp.sum(q, -1, keepdims=True) - rows.rest * share, slope


def _brackets(rows: _Rows) -> Array:
    """(2, ..., 1) numbers of the first and the last cell of the grid in which the excess turns positive as t grows.

    Such a crossing is a local minimum of the objective in t, the others being optimal given t; there is at least one,
    since the excess is <= 0 at t = p_top and > 0 beyond the end of the grid.
    """

    def look(cell: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        below, first, last = state
        above = (_others(rows, _share(cell + 1, rows.p.dtype))[1] > 0) | (cell == GRID - 1)
        crossing = below & above
        return ~above, jnp.where(crossing & (first < 0), cell, first), jnp.where(crossing, cell, last)

    none = jnp.full(rows.rest.shape, -1, jnp.int32)
    _, first, last = jax.lax.fori_loop(0, GRID, look, (none < 0, none, none))
    return jnp.concatenate([first, last])


def _share(cell: Array, dtype: Any) -> Array:
    """The left end in t of a cell: 1 at cell 0, where minima lie closest, and LOWEST at cell GRID."""
    return jnp.exp((cell.astype(dtype) / GRID) ** 2 * math.log(LOWEST))


def _refine(rows: _Rows, cells: Array) -> Array:
    """The share at the crossing in each cell: Newton in t, and bisection where that would leave the bracket."""
    dtype = rows.p.dtype
    low, high = _share(cells + 1, dtype), _share(cells, dtype)

    def step(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, share = state
        _q, excess, slope = _others(rows, share)
        low, high = jnp.where(excess > 0, share, low), jnp.where(excess > 0, high, share)
        move = excess / (slope * jnp.where(rows.rest > 0, rows.rest, 1))
        newton = share + move
        inside = (newton >= low) & (newton <= high)
        return low, high, jnp.where(inside, newton, (low + high) / 2)

    return jax.lax.fori_loop(0, REFINEMENTS, step, (low, high, (low + high) / 2))[2]


def objective(p: Array, q: Array, lam: Array | float) -> Array:
    """KL(p || q) + lam H(q), nats, over the last axis; inf where q_k = 0 < p_k."""
    log_q = jnp.log(jnp.where(q > 0, q, 1))
    log_p = jnp.log(jnp.where(p > 0, p, 1))
    kl = jnp.sum(jnp.where(p > 0, p * (log_p - jnp.where(q > 0, log_q, -jnp.inf)), 0), -1)
    return kl - lam * jnp.sum(q * log_q, -1)


@jax.jit
def _solve(p: Array, lam: Array) -> Array:
    rows = _rows(p, jnp.maximum(lam, jnp.finfo(p.dtype).eps))
    share = _refine(rows, _brackets(rows))
    q = jnp.where(rows.top, rows.p_top + rows.rest * (1 - share), _others(rows, share)[0])
    q = q / jnp.sum(q, -1, keepdims=True)
    value = objective(p[None], q, lam)
    return jnp.where(lam == 0, p, jnp.where((value[0] <= value[1])[..., None], q[0], q[1]))


@jax.custom_jvp
def reverse_kl(p: Array, lam: Array) -> Array:
    """The minimiser over the simplex of KL(p || q) + lam H(q), for each row of p.

    A minimum satisfies p_k = q_k (nu - lam log q_k) with nu = 1 - lam H(q), that is q_k = p_k / (lam u_k) with
    u_k - log u_k = nu / lam + log(lam / p_k). All u_k >= 1 but at most one, that of an argmax of p, which may be
    smaller. With that coordinate t = q_top as the unknown, nu = p_top / t + lam log t gives all others, and what is
    left is sum q = 1, smooth in t wherever u_top lies. A grid over t separates its solutions; of the first and the last
    local minimum the one with the lower objective is taken.

    Args:
      p: (..., K) distributions; p_k = 0 gives q_k = 0.
      lam: 0 <= lam <= 1, a scalar of the dtype of p; 0 gives p itself.

    Returns:
      (..., K) distributions. The minimum is unique but near ties of p, where it jumps (uniform p, K = 5: at lam =
      0.864); then the lowest index is the one that q concentrates on. Forward and reverse derivatives are implicit, and
      undefined at a jump. Memory O(N K), time that of some 500 softmaxes.

    References:
      Chatzigeorgiou (2013), Bounds on the Lambert function, IEEE Communications Letters 17, for the start of Newton.
    """
    return _solve(p, lam)


@reverse_kl.defjvp
def _reverse_kl_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """Differentiates the condition -p_k / q_k - lam log q_k = const, sum q = 1."""
    (p, lam), (dp, dlam) = primals, tangents
    q = reverse_kl(p, lam)
    alive = q > 0
    inverse = jnp.where(alive, q * q / jnp.where(alive, p - lam * q, 1), 0)
    pull = jnp.where(alive, dp / jnp.where(alive, q, 1) + dlam * jnp.log(jnp.where(alive, q, 1)), 0)
    mean = jnp.sum(inverse * pull, -1, keepdims=True) / jnp.sum(inverse, -1, keepdims=True)
    return q, inverse * (pull - mean)
