"""Arrays of any library that slice: NumPy's, h5py's, Zarr's."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxem.core import columns as _columns
from jaxem.streams.checks import check_bits
from jaxem.streams.files import digest
from jaxem.streams.piece import Leaf, Piece
from jaxem.streams.reader import Reader

# Rows at either end of an array that tell it from others.
ENDS = 64
# A chunk of a compressed array is decoded once for all batches within it, unless it is larger than this.
MOST_CHUNK_BYTES = 1 << 28


class Slices(Reader):
    """An array (N, ...) that is read by slicing its first axis."""

    def __init__(self, array: Any, name: str):
        shape = tuple(int(size) for size in array.shape)
        if not shape:
            raise ValueError(f"{name}: expected an array with a leading axis of rows; found a single number")
        self.array, self.place, self.num = array, name, shape[0]
        try:
            dtype = np.dtype(array.dtype)
        except TypeError:  # of another library, as torch.float32
            dtype = _columns.as_numbers(name, array[: min(1, self.num)]).dtype
        check_bits(dtype, name)
        self.leaves = (Leaf(shape[1:], dtype),)

    def _unit(self, size: int) -> int:
        """Rows that are sliced at once: whole chunks where the array has chunks."""
        chunk = next(iter(getattr(self.array, "chunks", None) or (1,)))
        if not isinstance(chunk, int) or chunk <= 1:
            return size
        row_bytes = int(np.prod(self.leaves[0].shape)) * self.leaves[0].dtype.itemsize
        return max(size // chunk, 1) * chunk if chunk * row_bytes <= MOST_CHUNK_BYTES else size

    def raw(self, start: int, size: int, before: int) -> Iterator[Piece]:
        unit = self._unit(size)
        while start < self.num:
            stop = min(start + size if unit == size else (start // unit + 1) * unit, self.num)
            rows = self._rows(start, stop)
            for first in range(start, stop, size):
                last = min(first + size, stop)
                yield Piece([rows[first - start : last - start]], self.place)
            start = stop

    def _rows(self, start: int, stop: int) -> np.ndarray:
        place = f"{self.place}, rows {start} to {stop - 1}"
        try:
            found = self.array[start:stop]
        except (
            OSError,
            RuntimeError,
            ValueError,
            EOFError,
        ) as error:  # what h5py and Zarr say of files that are damaged
            raise ValueError(f"{place}: expected rows that can be read; found {error}") from error
        rows = _columns.as_numbers(place, found)
        expected = (stop - start, *self.leaves[0].shape)
        if rows.shape != expected:
            raise ValueError(f"{place}: expected a slice of shape {expected}; found {rows.shape}")
        return rows

    def identity(self) -> Any:
        leaf, whole = self.leaves[0], isinstance(self.array, np.ndarray) and not isinstance(self.array, np.memmap)
        num = self.num if whole else min(ENDS, self.num)
        ends = [self._rows(0, num), self._rows(self.num - num, self.num)]
        return {"shape": [self.num, *leaf.shape], "dtype": leaf.dtype.str, "ends": digest(ends)}
