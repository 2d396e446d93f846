"""The rows of a stream in a random order, with the memory of a few batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxem.core.arguments import check_integer
from jaxem.core.stream import Batch
from jaxem.streams.piece import Piece
from jaxem.streams.seekable import BUFFER, Rows


class Shuffled(Rows):
    """The rows of a stream, each once, in an order that goes with a seed.

    Blocks come in a random order (row groups of Parquet and chunks of Zarr, two of them in turn; slices of one batch
    elsewhere), and the rows of every `buffer` batches after one another in that order are permuted. An iterator cannot
    be read in another order: of its batches only rows within `buffer` of them are. Memory is that of `buffer` batches,
    a few more, and what is open: two row groups' pages.

    A pass can begin in its middle: of files and arrays, nothing that comes before the `buffer` batches is read.

    Args:
      stream: what `jaxem.stream` made.
      seed: an integer >= 0; equal seeds give equal orders.
      buffer: batches, an integer >= 1.
    """

    def __init__(self, stream: Rows, seed: int, buffer: int = BUFFER):
        check_integer("seed", seed, 0)
        check_integer("buffer", buffer, 1)
        self.stream, self.seed, self.buffer = stream, int(seed), buffer
        self.leaves, self.structure, self.dtype = stream.leaves, stream.structure, stream.dtype
        self.batch_rows = stream.batch_rows

    @property
    def num_rows(self) -> int | None:
        return self.stream.num_rows

    def read(self, first: int = 0) -> Iterator[Batch]:
        pool, skip = divmod(first, self.buffer)
        rows = self.buffer * self.batch_rows
        start = pool * rows
        if self.stream.num_rows is not None:
            rows = min(rows, self.stream.num_rows)  # a pool that is never filled need not be there
        for piece in pools(self.disordered(self.seed, start), rows):
            order = np.random.default_rng([self.seed, pool]).permutation(piece.num)
            for at in range(0, piece.num, self.batch_rows):
                chosen = order[at : at + self.batch_rows]
                if skip:
                    skip -= 1
                else:
                    place = f"shuffled rows from {piece.place} on"
                    yield self.batch(Piece([array[chosen] for array in piece.arrays], place), start + at)
            start, pool = start + piece.num, pool + 1

    def disordered(self, seed: int, skip: int) -> Iterator[Piece]:
        return self.stream.disordered(seed, skip)

    def shuffled(self, seed: int, buffer: int | None = None) -> "Rows":
        return Shuffled(self.stream, seed, self.buffer if buffer is None else buffer)

    def identity(self) -> dict[str, Any]:
        return {"kind": "shuffled", "seed": self.seed, "buffer": self.buffer, "of": self.stream.identity()}


def pools(pieces: Iterator[Piece], rows: int) -> Iterator[Piece]:
    """The rows of pieces in pools of exactly `rows`, but for the last; each is overwritten by the next."""
    arrays: list[np.ndarray] = []
    held, places = 0, ""
    for piece in pieces:
        places = places or piece.place
        arrays = arrays or [np.empty((rows, *array.shape[1:]), array.dtype) for array in piece.arrays]
        start = 0
        while start < piece.num:
            stop = min(piece.num, start + rows - held)
            for pool, array in zip(arrays, piece.arrays, strict=True):
                pool[held : held + stop - start] = array[start:stop]
            held, start = held + stop - start, stop
            if held == rows:
                yield Piece(arrays, places)
                held, places = 0, piece.place
    if held:
        yield Piece([array[:held] for array in arrays], places)
