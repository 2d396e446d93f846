"""A stream of rows that can be read from any one on."""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxem.core.stream import Batch, Stream
from jaxem.streams.checks import check_batch_rows, dtype_of, rows_of
from jaxem.streams.piece import Leaf, Piece
from jaxem.streams.reader import Reader, rechunked

# Blocks that are read in turn where rows are shuffled. Each is open, with some pages of every column: 110 MB for row
# groups of 1,000,000 rows of 32 columns, measured.
LANES = 2
# Batches whose rows are mixed.
BUFFER = 8


class Rows(Stream):
    """Streams that this library makes: they say what they are, and can be shuffled.

    Attributes:
      leaves: of the data, and of the weights if there are any.
      structure: of the data, a pytree.
      dtype: of all arrays in a batch.
      buffer: batches whose rows are mixed by `shuffled`.
    """

    leaves: tuple[Leaf, ...]
    structure: Any
    dtype: np.dtype
    buffer = BUFFER

    @property
    def weighted(self) -> bool:
        return any(leaf.weights for leaf in self.leaves)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the columns of data that are one array; None where they have none."""
        return self.leaves[0].names

    def shuffled(self, seed: int, buffer: int | None = None) -> "Rows":
        """See `jaxem.streams.shuffled.Shuffled`."""
        from jaxem.streams.shuffled import Shuffled  # which is a stream itself

        return Shuffled(self, seed, self.buffer if buffer is None else buffer)

    @abstractmethod
    def disordered(self, seed: int, skip: int) -> Iterator[Piece]:
        """All rows in pieces, in an order of blocks that goes with the seed, from the row after `skip` others on."""

    def batch(self, piece: Piece, start: int) -> Batch:
        """Some rows as a batch."""
        num = self.structure.num_leaves
        weights = piece.arrays[num] if self.weighted else None
        return Batch(jax.tree.unflatten(self.structure, piece.arrays[:num]), weights, start, piece.place)

    def described(self) -> dict[str, Any]:
        """What `identity` says of every stream."""
        return {
            "dtype": self.dtype.name,
            "batch_rows": self.batch_rows,
            "buffer": self.buffer,
            "arrays": [
                {"path": leaf.path, "shape": list(leaf.shape), "columns": leaf.names and list(leaf.names)}
                for leaf in self.leaves
            ],
        }

    def __repr__(self) -> str:
        shapes = ", ".join(str(leaf.shape) for leaf in self.leaves if not leaf.weights)
        num = "some number of" if self.num_rows is None else self.num_rows
        with_weights = ", with weights" if self.weighted else ""
        return f"Stream({num} rows of shape {shapes}, {self.dtype}{with_weights}, in batches of {self.batch_rows})"


class Seekable(Rows):
    """Rows of a `Reader` in equal batches, the last of which may be shorter."""

    def __init__(self, reader: Reader, structure: Any, batch_rows: int | None):
        check_batch_rows(batch_rows)
        if reader.num == 0:
            raise ValueError(f"{reader.place}: expected at least one row; found none")
        self.reader, self.leaves, self.structure = reader, reader.leaves, structure
        self.dtype = dtype_of(self.leaves)
        self.batch_rows = rows_of(batch_rows, self.leaves, self.dtype, reader.num)

    @property
    def num_rows(self) -> int:
        return self.reader.num

    def read(self, first: int = 0) -> Iterator[Batch]:
        start = first * self.batch_rows
        if start >= self.reader.num:
            return
        for piece in rechunked(self.reader.pieces(start, self.batch_rows, self.dtype), self.batch_rows):
            yield self.batch(piece, start)
            start += piece.num

    def disordered(self, seed: int, skip: int) -> Iterator[Piece]:
        cursors: dict[int, _Cursor] = {}
        for block, start, stop, ends in self._plan(seed):
            if skip >= stop - start:
                skip -= stop - start
                continue
            start, skip = start + skip, 0
            if block not in cursors:
                cursors[block] = _Cursor(self.reader.pieces(start, self.batch_rows, self.dtype))
            yield from cursors[block].take(stop - start)
            if ends:
                cursors.pop(block).close()

    def _plan(self, seed: int) -> Iterator[tuple[int, int, int, bool]]:
        """(block, first row, row after the last, whether the block ends): `LANES` random blocks in turn."""
        starts = self.reader.blocks(self.batch_rows)
        stops = [*starts[1:], self.reader.num]
        order = np.random.default_rng(seed).permutation(len(starts)).tolist()
        lanes: deque[tuple[int, int]] = deque()
        while order or lanes:
            while order and len(lanes) < LANES:
                block = order.pop()
                lanes.append((block, starts[block]))
            block, start = lanes.popleft()
            stop = min(start + self.batch_rows, stops[block])
            yield block, start, stop, stop == stops[block]
            if stop < stops[block]:
                lanes.append((block, stop))

    def identity(self) -> dict[str, Any]:
        return {"kind": "rows", "rows": self.reader.num, **self.described(), "from": self.reader.identity()}


class _Cursor:
    """Pieces from which any number of rows can be taken next."""

    def __init__(self, pieces: Iterator[Piece]):
        self.pieces = pieces
        self.left: Piece | None = None

    def take(self, num: int) -> Iterator[Piece]:
        """The next `num` rows."""
        while num:
            piece = self.left or next(self.pieces)
            self.left = piece.cut(num, piece.num) if piece.num > num else None
            piece = piece.cut(0, num)
            num -= piece.num
            yield piece

    def close(self) -> None:
        """Lets go of what is open."""
        self.pieces.close()  # type: ignore[attr-defined]
