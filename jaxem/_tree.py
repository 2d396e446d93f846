"""Arithmetic on pytrees, and sums and maps over the rows of data in blocks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any


def where(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    """Leaf by leaf `a` where the scalar `condition` holds, else `b`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def take(tree: PyTree, index: Array) -> PyTree:
    """Entry or entries `index` of the leading axis of every leaf; out of range is clipped."""
    return jax.tree.map(lambda a: a.at[index].get(mode="clip"), tree)


def put(tree: PyTree, index: Array, values: PyTree) -> PyTree:
    """Writes `values` at `index` of the leading axis of every leaf; out of range is dropped."""
    return jax.tree.map(lambda a, v: a.at[index].set(v, mode="drop"), tree, values)


def num_rows(data: PyTree) -> int:
    """Length of the leading axis that all leaves of `data` share."""
    return jax.tree.leaves(data)[0].shape[0]


def float_dtype(tree: PyTree) -> Any:
    """The floating dtype of the leaves of `tree`."""
    leaves = [leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*leaves) if leaves else jnp.result_type(float)


def as_floats(data: PyTree, dtype: Any) -> PyTree:
    """Data with every leaf an array of a floating dtype."""
    return jax.tree.map(lambda a: jnp.asarray(a).astype(dtype), data)


def _block(num: int, size: int) -> tuple[int, int]:
    """Number and length of equal blocks of at most `size` rows that cover `num` rows."""
    blocks = max(1, -(-num // size))
    return blocks, -(-num // blocks)


def _slice(tree: PyTree, start: Array, size: int) -> PyTree:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), tree)


def sum_rows(f: Callable[[PyTree, Array], PyTree], data: PyTree, weights: Array, size: int) -> PyTree:
    """Sum of `f(block, weights)` over blocks of at most `size` rows, without copying or padding the data.

    The last block is moved back to end at the last row; rows that it shares with the block before get weight 0 there.
    """
    num = num_rows(data)
    blocks, length = _block(num, size)
    if blocks == 1:
        return f(data, weights)

    def body(total: PyTree, block: Array) -> tuple[PyTree, None]:
        start = jnp.minimum(block * length, num - length)
        fresh = start + jnp.arange(length) >= block * length
        w = jnp.where(fresh, _slice(weights, start, length), 0)
        return jax.tree.map(jnp.add, total, f(_slice(data, start, length), w)), None

    shapes = jax.eval_shape(lambda d, w: f(_slice(d, 0, length), _slice(w, 0, length)), data, weights)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zero, jnp.arange(blocks))[0]


def map_rows(f: Callable[[PyTree], PyTree], data: PyTree, size: int) -> PyTree:
    """`f(data)` for an `f` that treats rows one by one, computed in blocks of at most `size` rows."""
    num = num_rows(data)
    blocks, length = _block(num, size)
    if blocks == 1:
        return f(data)

    def body(out: PyTree, block: Array) -> tuple[PyTree, None]:
        start = jnp.minimum(block * length, num - length)
        part = f(_slice(data, start, length))
        return jax.tree.map(lambda o, p: jax.lax.dynamic_update_slice_in_dim(o, p, start, 0), out, part), None

    shapes = jax.eval_shape(lambda d: f(_slice(d, 0, length)), data)
    empty = jax.tree.map(lambda s: jnp.zeros((num, *s.shape[1:]), s.dtype), shapes)
    return jax.lax.scan(body, empty, jnp.arange(blocks))[0]
