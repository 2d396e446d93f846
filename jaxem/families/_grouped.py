"""A matrix for each group of rows: products without a matrix for each row."""

import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import einsum
from jaxem.core.tree import BLOCK_ROWS, map_rows

# Up to so many columns the matrices of a block of rows fit in the cache: that compiles in a fifth of the time, and
# runs 6 to 30 times faster for 4 to 8 columns; at 200 columns it is 30 times slower than groups.
FEW_COLUMNS = 16
LEAST = 32  # rows in a block of sorted rows


def grouped_product(matrix: Array, x: Array, group: Array) -> Array:
    """matrix[group_n] @ x_n for each row.

    Few columns: a matrix for each row, in blocks of rows. More: rows are sorted by group and cut into blocks of at
    least D rows; the pairs of a block and a group that it holds rows of, at most N / D + K, are one batched product,
    from which each row takes its own.

    Args:
      matrix: (K, D, D).
      x: (N, D).
      group: (N,) integers below K.

    Returns:
      (N, D). O((N + K D) D^2) time, O(N D + K D^2) memory, where a matrix for each row would take N D^2.
    """
    if x.shape[0] == 0:
        return x
    if x.shape[1] <= FEW_COLUMNS:
        return map_rows(lambda part: einsum("nde,ne->nd", matrix[part[0]], part[1]), (group, x), BLOCK_ROWS)
    return _sorted_product(matrix, x, group)


def _sorted_product(matrix: Array, x: Array, group: Array) -> Array:
    (num, dim), groups = x.shape, matrix.shape[0]
    size = min(max(dim, LEAST), num)
    blocks = -(-num // size)
    index = lambda count: jnp.arange(count, dtype=jnp.int32)
    order = jnp.argsort(group)
    sorted_group = group[order].astype(jnp.int32)
    ends = jnp.searchsorted(sorted_group, index(groups), side="right").astype(jnp.int32)
    # Along the rows either the block or the group goes up by one, so the pair (b, k) has number b + k.
    passed = index(blocks + groups)[:, None] > (ends // size + index(groups))[None]
    of_group = jnp.minimum(jnp.sum(passed, 1, dtype=jnp.int32), groups - 1)
    of_block = jnp.clip(index(blocks + groups) - of_group, 0, blocks - 1)
    padded = jnp.pad(x[order], ((0, blocks * size - num), (0, 0))).reshape(blocks, size, dim)
    product = einsum("tne,tde->tnd", padded[of_block], matrix[of_group])
    row = index(num)
    own = product[row // size + sorted_group, row % size]
    return jnp.zeros_like(x).at[order].set(own)
