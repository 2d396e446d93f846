"""Bijections between constrained parameters and unconstrained real coordinates.

`Model.constraints()` mirrors the params with one of these at each leaf, or at a subtree for all its leaves;
`unconstrain` and `constrain` then map a whole params pytree, which is how gradients are checked and gradient algorithms
move.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.numerics import einsum
from jaxem.core.tree import PyTree


class Constraint(Protocol):
    """A set of arrays and a bijection from it to real coordinates."""

    def unconstrain(self, value: Array) -> Array:
        """Real coordinates of a feasible value."""
        ...

    def constrain(self, free: Array, like: Array) -> Array:
        """The feasible value at real coordinates; `like` is a value of its shape."""
        ...


class _ByValue:
    """Constraints are the same where class and numbers are: one from a file or a pickle compiles nothing anew."""

    def __eq__(self, other: object) -> bool:
        same = lambda a, b: a is b or (isinstance(a, (int, float)) and isinstance(b, (int, float)) and a == b)
        return type(self) is type(other) and all(same(v, vars(other)[name]) for name, v in vars(self).items())

    def __hash__(self) -> int:
        return hash(type(self))


class Real(_ByValue):
    """Any real array."""

    def unconstrain(self, value: Array) -> Array:
        """The value itself."""
        return value

    def constrain(self, free: Array, like: Array) -> Array:
        """The coordinates themselves."""
        return free


class Positive(_ByValue):
    """Positive arrays; the coordinate is the logarithm."""

    def unconstrain(self, value: Array) -> Array:
        """Log value."""
        return jnp.log(value)

    def constrain(self, free: Array, like: Array) -> Array:
        """Exp free."""
        return jnp.exp(free)


class Above(_ByValue):
    """Arrays above a number; the coordinate is the logarithm of the distance.

    Attributes:
      low: the number.
    """

    def __init__(self, low: float):
        self.low = low

    def unconstrain(self, value: Array) -> Array:
        """Log (value - low)."""
        return jnp.log(value - self.low)

    def constrain(self, free: Array, like: Array) -> Array:
        """Low + exp free."""
        return self.low + jnp.exp(free)


class UnitInterval(_ByValue):
    """Arrays in (0, 1); the coordinate is the log-odds."""

    def unconstrain(self, value: Array) -> Array:
        """Log value - log(1 - value)."""
        return jnp.log(value) - jnp.log1p(-value)

    def constrain(self, free: Array, like: Array) -> Array:
        """The logistic function."""
        return jax.nn.sigmoid(free)


class Simplex(_ByValue):
    """Distributions over the last axis; the K - 1 coordinates are log-ratios to the last entry."""

    def unconstrain(self, value: Array) -> Array:
        """Log p_k - log p_K, k < K."""
        return jnp.log(value[..., :-1]) - jnp.log(value[..., -1:])

    def constrain(self, free: Array, like: Array) -> Array:
        """Softmax of the coordinates and a 0."""
        return jax.nn.softmax(jnp.concatenate([free, jnp.zeros_like(like[..., :1])], -1), -1)


class Cholesky(_ByValue):
    """Lower-triangular (..., D, D) with positive diagonal; the coordinates are D (D + 1) / 2 numbers.

    They are the entries of the triangle row by row, with the logarithms of the diagonal's.
    """

    def unconstrain(self, value: Array) -> Array:
        """(..., D (D + 1) / 2) the entries, with log of those on the diagonal."""
        row, column = np.tril_indices(value.shape[-1])
        return _where(row == column, jnp.log, value[..., row, column])

    def constrain(self, free: Array, like: Array) -> Array:
        """The triangle, with exp of what is on the diagonal."""
        dim = like.shape[-1]
        row, column = np.tril_indices(dim)
        place = np.zeros((dim, dim), int)
        place[row, column] = np.arange(len(row))
        found = _where(row == column, jnp.exp, free)[..., place]  # a gather: every entry comes from one coordinate
        return jnp.where(np.broadcast_to(np.tri(dim, dtype=bool), found.shape), found, 0)


def _where(chosen: np.ndarray, function: Callable[[Array], Array], values: Array) -> Array:
    """Values with a function applied to some along the last axis; the others do not enter its derivative."""
    chosen = np.broadcast_to(chosen, values.shape)
    return jnp.where(chosen, function(jnp.where(chosen, values, 1)), values)


class PositiveDefinite(_ByValue):
    """Symmetric positive definite (..., D, D); the D (D + 1) / 2 coordinates are those of its Cholesky factor."""

    def unconstrain(self, value: Array) -> Array:
        """Coordinates of the lower Cholesky factor."""
        return Cholesky().unconstrain(jnp.linalg.cholesky(value))

    def constrain(self, free: Array, like: Array) -> Array:
        """Factor @ factor'."""
        factor = Cholesky().constrain(free, like)
        return einsum("...ij,...kj->...ik", factor, factor)


class Fixed(_ByValue):
    """A leaf that is carried along and never moved (a counter): it has no coordinates."""

    def unconstrain(self, value: Array) -> Array:
        """An empty array."""
        return jnp.zeros((0,))

    def constrain(self, free: Array, like: Array) -> Array:
        """The value as it was."""
        return like


def mirror(constraints: PyTree, params: PyTree) -> PyTree:
    """A constraint at each leaf of params, from a pytree that may hold one for a whole subtree."""
    return jax.tree.map(lambda c, part: jax.tree.map(lambda _: c, part), constraints, params)


def unconstrain(constraints: PyTree, params: PyTree) -> PyTree:
    """Real coordinates of params.

    Args:
      constraints: a pytree like `params`, with a constraint at each leaf, or at a subtree for all its leaves.
      params: feasible parameters. A value on the boundary (a mixing proportion of 0) gives an infinite coordinate.

    Returns:
      A pytree of real arrays.
    """
    return jax.tree.map(lambda c, p: c.unconstrain(p), mirror(constraints, params), params)


def constrain(constraints: PyTree, free: PyTree, like: PyTree) -> PyTree:
    """Params at real coordinates: the inverse of `unconstrain`.

    Args:
      constraints: a pytree like the params, with a constraint at each leaf, or at a subtree for all its leaves.
      free: coordinates from `unconstrain`.
      like: params of the wanted shapes.

    Returns:
      Params like `like`.
    """
    return jax.tree.map(lambda c, f, p: c.constrain(f, p), mirror(constraints, like), free, like)
