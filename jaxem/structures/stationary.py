"""Chains that start in their stationary distribution: that distribution, and an M-step that takes it into account."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import einsum


def stationary(transition: Array) -> Array:
    """(K,) the distribution that the transitions (K, K) leave as it is; the chain must have one recurrent class."""
    num = transition.shape[0]
    flow = jnp.eye(num, dtype=transition.dtype) - transition + 1
    found = jnp.maximum(jnp.linalg.solve(flow.T, jnp.ones(num, transition.dtype)), 0)
    return found / jnp.sum(found)


def climb(first: Array, count: Array, old: Array) -> Array:
    """Transitions for which sum_k first_k log stationary_k + sum_jk count_jk log A_jk is no lower than at the old ones.

    The stationary distribution is a ratio of sums over trees, stationary_k = Z_k / sum_l Z_l, Z_k the sum over trees
    that lead to k of the product of their transitions (the matrix-tree theorem). In one row, the others given, each Z_k
    is linear. So sum_k first_k log Z_k has, by Jensen's inequality, the lower bound of expected counts of the row's
    transitions in such trees, and minus the log of the sum, convex in the row, that of its tangent; both touch at the
    old row. Their sum with the counts is maximised by A_jk = m_k / (lambda + c_k). Row after row, each maximisation
    climbs the whole.

    Args:
      first: (K,) expected counts of first states.
      count: (K, K) of transitions, a prior's included.
      old: (K, K) transitions.

    Returns:
      (K, K). Time O(K^5).
    """

    def row(j: Array, rows: Array) -> Array:
        slope, log_size = _trees(rows, j)
        weight = jax.nn.softmax(log_size)
        here = rows[j]
        told = count[j] + here * einsum("k,kl->l", first, slope)
        new = _fill(told, jnp.sum(first) * einsum("k,kl->l", weight, slope), here)
        return rows.at[j].set(new)

    return jax.lax.fori_loop(0, old.shape[0], lambda j, rows: row(j, rows), old)


def _trees(rows: Array, j: Array) -> tuple[Array, Array]:
    """(K, K) d log Z_k / d A_jl, and (K,) log Z_k."""
    num = rows.shape[0]
    eye = jnp.eye(num, dtype=rows.dtype)
    off = rows * (1 - eye)
    flow = jnp.diag(jnp.sum(off, 1)) - off

    def one(root: Array) -> tuple[Array, Array]:
        keep = (eye[root] == 0)[:, None] & (eye[root] == 0)[None]
        minor = jnp.where(keep, flow, eye)
        inverse, log_size = jnp.linalg.inv(minor), jnp.linalg.slogdet(minor)[1]
        slope = inverse[j, j] - inverse[:, j]
        none = (
            (jnp.arange(num) == j) | (root == j) | jnp.isneginf(log_size)
        )  # no tree leads to a state that is left for good
        return jnp.where(none, 0, slope), log_size

    return jax.vmap(one)(jnp.arange(num))


def _fill(told: Array, cost: Array, here: Array) -> Array:
    """(K,) the A that maximises sum_l told_l log A_l - cost_l A_l on the simplex; `here` where nothing is told.

    Newton's method on the sum of the A_l = told_l / (lambda + cost_l) less 1, convex and falling in lambda, from the
    left.
    """
    used = told > 0
    start = jnp.max(jnp.where(used, told - cost, -jnp.inf))

    def newton(_: int, level: Array) -> Array:
        each = jnp.where(used, told / jnp.where(used, level + cost, 1), 0)
        slope = jnp.sum(jnp.where(used, each**2 / jnp.where(used, told, 1), 0))
        return level + jnp.maximum(jnp.sum(each) - 1, 0) / jnp.where(slope > 0, slope, 1)

    level = jax.lax.fori_loop(0, 50, newton, start)
    new = jnp.where(used, told / jnp.where(used, level + cost, 1), 0)
    return jnp.where(jnp.any(used), new / jnp.sum(new), here)
