"""What is asked of every batch: finite numbers that the dtype to come can hold, weights that are none below zero."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxem.core.arguments import check_integer
from jaxem.core.rows import float_dtype_of
from jaxem.streams.piece import Leaf, Piece

# A batch of about this many bytes: long enough that no time goes into starting reads and programs, short enough that
# a handful of them are nothing beside the memory of any machine.
BATCH_BYTES = 1 << 23
LEAST_ROWS, MOST_ROWS = 1 << 10, 1 << 17


def dtype_of(leaves: Iterable[Leaf]) -> np.dtype:
    """The one dtype that all arrays of a batch are cast to."""
    found = [np.empty(0, leaf.dtype.newbyteorder("=")) for leaf in leaves if not leaf.weights]
    return np.result_type(*(np.dtype(float_dtype_of(array)) for array in found))


def rows_of(batch_rows: int | None, leaves: Iterable[Leaf], dtype: np.dtype, num: int) -> int:
    """Most rows of a batch of `num` rows in all: as asked, else of `BATCH_BYTES` and all about equal."""
    if batch_rows is not None:
        return min(batch_rows, num)
    row_bytes = sum(math.prod(leaf.shape) for leaf in leaves) * dtype.itemsize
    most = min(max(BATCH_BYTES // max(row_bytes, 1), LEAST_ROWS), MOST_ROWS) // 16 * 16
    batches = -(-num // most)
    return min(-(-num // (batches * 16)) * 16, num)


def check_batch_rows(batch_rows: Any) -> None:
    """Raises unless it is None or an integer >= 1."""
    if batch_rows is not None:
        check_integer("batch_rows", batch_rows, 1)


def cleaned(piece: Piece, leaves: Sequence[Leaf], dtype: np.dtype, start: int) -> list[np.ndarray]:
    """Arrays of rows, checked and cast to one dtype.

    Args:
      piece: rows as they were read.
      leaves: what each array is.
      dtype: of floats.
      start: number of the first row in the stream.

    Returns:
      Arrays in C order.

    Raises:
      ValueError: NaN, an infinity, a number too large for the dtype, a weight below 0: with place, row and column.
    """
    found = []
    for array, leaf in zip(piece.arrays, leaves, strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            kept = np.ascontiguousarray(array, dtype)
        good = np.isfinite(kept)
        if not good.all():
            row, *entry = (int(i) for i in np.unravel_index(int(np.argmin(good)), good.shape))
            what = _bad(array[(row, *entry)], leaf, dtype, good.size - np.count_nonzero(good))
            raise ValueError(f"{piece.named(row)}: {what.format(where=leaf.where(start + row, entry))}")
        if leaf.weights and kept.size and kept.min() < 0:
            row = int(np.argmax(kept < 0))
            where = leaf.where(start + row)
            raise ValueError(f"{piece.named(row)}: expected weights >= 0; found {kept[row]:g} in {where}")
        found.append(kept)
    return found


def _bad(value: Any, leaf: Leaf, dtype: np.dtype, num: int) -> str:
    """What is wrong with a value that is not finite in the dtype, with a slot for its place."""
    if np.isfinite(value):
        return (
            f"expected numbers that {dtype} can hold; found {float(value):g} in {{where}}; rescale the column, or call "
            "jax.config.update('jax_enable_x64', True)"
        )
    what = "finite weights" if leaf.weights else "finite numbers"
    more = "" if num == 1 else f", and {num - 1} more such entries soon after"
    return f"expected {what}; found {float(value):g} in {{where}}{more}; drop such rows or fill them in"


def check_bits(dtype: Any, place: str) -> None:
    """Raises TypeError for a dtype that holds no real numbers."""
    if np.dtype(dtype).kind not in "biuf" and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{place}: expected real numbers; found dtype {dtype}")
