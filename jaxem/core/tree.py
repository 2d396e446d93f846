"""Arithmetic on pytrees, and sums and maps over the rows of data in blocks."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import mesh as _mesh
from jaxem.core.numerics import namespace
from jaxem.core.pytree import dataclass, static

PyTree = Any

# Rows in one block of an E-step: the working set of a block stays in cache. Measured on mixtures of Gaussians, where
# 1000 to 4000 rows are within a third of each other and no blocks at all are 2-5 times slower.
BLOCK_ROWS = 2000
# Packed columns up to this size are copied from a device whole, for one of their leaves.
PEEK_BYTES = 1 << 20


def where(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    """Leaf by leaf `a` where the scalar `condition` holds, else `b`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def take(tree: PyTree, index: Array) -> PyTree:
    """Entry or entries `index` of the leading axis of every leaf; out of range is clipped."""
    return jax.tree.map(lambda a: a.at[index].get(mode="clip"), tree)


def put(tree: PyTree, index: Array, values: PyTree) -> PyTree:
    """Writes `values` at `index` of the leading axis of every leaf; out of range is dropped."""
    return jax.tree.map(lambda a, v: a.at[index].set(v, mode="drop"), tree, values)


@dataclass
class Packed:
    """R pytrees of one structure as one matrix for each dtype, a row for each tree.

    Gathers and scatters of lanes then are one operation a dtype instead of one a leaf: with ten leaves a third of the
    compile time of a fit.

    Attributes:
      columns: (R, F) arrays, one for each dtype among the leaves.
      layout: the tree structure, and (column array, first column, shape) of every leaf.
    """

    columns: tuple[Array, ...]
    layout: Any = static()

    def unpack(self) -> PyTree:
        """The tree, each leaf with a leading axis R."""
        structure, places = self.layout
        leaves = []
        for which, first, shape in places:
            column = self.columns[which]
            leaf = column[:, first : first + math.prod(shape)]
            leaves.append(leaf.reshape(column.shape[0], *shape))
        return jax.tree.unflatten(structure, leaves)

    def peek(self, *names: str) -> SimpleNamespace:
        """Attributes of the tree as numpy arrays with a leading axis R; its other leaves stay on their device."""
        structure, places = self.layout
        tree = jax.tree.unflatten(structure, places)

        def read(place: tuple[int, int, tuple[int, ...]]) -> np.ndarray:
            which, first, shape = place
            # A slice of a device's array is a program of its own: worth it for long columns only.
            column = self.columns[which] if self.columns[which].nbytes > PEEK_BYTES else np.asarray(self.columns[which])
            return np.asarray(column[:, first : first + math.prod(shape)]).reshape(column.shape[0], *shape)

        is_place = lambda value: isinstance(value, tuple)
        return SimpleNamespace(**{name: jax.tree.map(read, getattr(tree, name), is_leaf=is_place) for name in names})


def pack(tree: PyTree) -> Packed:
    """Packs a tree whose leaves have a leading axis R."""
    leaves, structure = jax.tree.flatten(tree)
    dtypes = sorted({leaf.dtype.name for leaf in leaves})
    parts: list[list[Array]] = [[] for _ in dtypes]
    places, widths = [], [0] * len(dtypes)
    for leaf in leaves:
        which, shape = dtypes.index(leaf.dtype.name), leaf.shape[1:]
        places.append((which, widths[which], shape))
        widths[which] += math.prod(shape)
        parts[which].append(leaf.reshape(leaf.shape[0], math.prod(shape)))
    xp = namespace(leaves)
    columns = tuple(xp.concatenate(part, 1) for part in parts)
    return Packed(columns, (structure, tuple(places)))


def against_each(f: Callable[[PyTree], Array], tree: PyTree) -> Array:
    """(K, K) `f(entry)` (K,) for each of the K entries of the tree's leading axis, one at a time.

    For comparisons of all pairs of components: memory of one entry against all, and K^2 for the result.
    """
    if namespace(tree) is jnp:
        return jax.lax.map(f, tree)
    rows = [f(jax.tree.map(lambda a, k=k: np.asarray(a)[k], tree)) for k in range(num_rows(tree))]
    return np.stack(rows)  # type: ignore[return-value]


def num_rows(data: PyTree) -> int:
    """Length of the leading axis that all leaves of `data` share."""
    return jax.tree.leaves(data)[0].shape[0]


def float_dtype(tree: PyTree) -> Any:
    """The floating dtype of the leaves of `tree`; plain numbers give way to arrays."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return jnp.result_type(*floats) if floats else jnp.result_type(float)


def ones_for(data: PyTree) -> Array:
    """(N,) weights of 1 in the dtype of the data."""
    return jnp.ones(num_rows(data), float_dtype(data))


def as_floats(data: PyTree, dtype: Any) -> PyTree:
    """Data with every leaf an array of a floating dtype; nested lists become one array."""
    data = np.asarray(data) if isinstance(data, list) else data
    return jax.tree.map(lambda a: jnp.asarray(a).astype(dtype), data)


def _block(num: int, size: int) -> tuple[int, int]:
    """Number and length of equal blocks of at most `size` rows that cover `num` rows.

    A length that is no multiple of 16 rows keeps some loops from full vectors: up to 1.6 times slower.
    """
    blocks = max(1, -(-num // size))
    length = -(-num // blocks)
    rounded = -(-length // 16) * 16
    if blocks == 1 or rounded > size:
        return blocks, length
    return -(-num // rounded), rounded


def _slice(tree: PyTree, start: Array | int, size: int) -> PyTree:
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), tree)


def sum_rows(f: Callable[[PyTree, Array], PyTree], data: PyTree, weights: Array, size: int) -> PyTree:
    """`sum_blocks` of a function that does not ask for the number of the block."""
    return sum_blocks(lambda x, w, _: f(x, w), data, weights, size)


def sum_blocks(f: Callable[[PyTree, Array, Any], PyTree], data: PyTree, weights: Array, size: int) -> PyTree:
    """Sum of `f(block, weights, number)` over blocks of at most `size` rows, without copying or padding the data.

    The last block is moved back to end at the last row; rows that it shares with the block before get weight 0 there.

    Args:
      f: rows, their weights (n,) and the number of the block to a pytree of sums over the rows; rows of weight 0 must
        add 0. Functions that draw use the number, for streams of their own.
      data: a pytree whose leaves have a leading axis N.
      weights: (N,).
      size: most rows in a block.

    Returns:
      The pytree that `f(data, weights, 0)` would give, to rounding; f itself is called once where one block is enough.
      Rows over a mesh are summed where they lie, in blocks of their own.
    """
    num, mesh = num_rows(data), _mesh.current()
    if mesh is not None and num > size:
        shards = _mesh.row_shards(mesh)
        apiece = _block(-(-num // shards), size)[0]
        own = lambda shard, x, w: _sum_blocks(lambda x, w, i: f(x, w, shard * apiece + i), x, w, size)
        rows = (_mesh.padded(data, shards), _mesh.padded(weights, shards, zero=True))
        return _mesh.where_rows_lie(own, mesh, rows, True)
    return _sum_blocks(f, data, weights, size)


def _sum_blocks(f: Callable[[PyTree, Array, Any], PyTree], data: PyTree, weights: Array, size: int) -> PyTree:
    num = num_rows(data)
    blocks, length = _block(num, size)
    if blocks == 1:
        return f(data, weights, 0)

    def body(total: PyTree, block: Array) -> tuple[PyTree, None]:
        start = jnp.minimum(block * length, num - length)
        fresh = start + jnp.arange(length) >= block * length
        w = jnp.where(fresh, _slice(weights, start, length), 0)
        return jax.tree.map(jnp.add, total, f(_slice(data, start, length), w, block)), None

    shapes = jax.eval_shape(lambda d, w: f(_slice(d, 0, length), _slice(w, 0, length), 0), data, weights)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zero, jnp.arange(blocks))[0]


def map_rows(f: Callable[[PyTree], PyTree], data: PyTree, size: int) -> PyTree:
    """`f(data)` for an `f` that treats rows one by one, computed in blocks of at most `size` rows.

    Args:
      f: rows to a pytree whose leaves have the rows' leading axis.
      data: a pytree whose leaves have a leading axis N.
      size: most rows in a block.

    Returns:
      The pytree `f(data)`; only one block's intermediate values exist at a time. Rows over a mesh are mapped where
      they lie.
    """
    num, mesh = num_rows(data), _mesh.current()
    if mesh is not None and num > size:
        rows = _mesh.padded(data, _mesh.row_shards(mesh))
        out = _mesh.where_rows_lie(lambda _, x: _map_rows(f, x, size), mesh, (rows,), False)
        return out if num_rows(rows) == num else jax.tree.map(lambda leaf: leaf[:num], out)
    return _map_rows(f, data, size)


def _map_rows(f: Callable[[PyTree], PyTree], data: PyTree, size: int) -> PyTree:
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
