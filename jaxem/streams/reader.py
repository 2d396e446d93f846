"""Rows that can be read from any one of them on: files, arrays, several of them in turn or side by side."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxem.core.rows import warn_if_lossy
from jaxem.streams.checks import cleaned
from jaxem.streams.piece import Leaf, Piece


class Reader(ABC):
    """Rows with a known number, read from any place on; it holds none of them, and may be read by several at once."""

    num: int
    leaves: tuple[Leaf, ...]
    place: str
    warned = False

    @abstractmethod
    def raw(self, start: int, size: int, before: int) -> Iterator[Piece]:
        """Pieces of at most `size` rows from row `start` on, in order; `before` rows of others stand before them."""

    @abstractmethod
    def identity(self) -> Any:
        """What tells these rows from others, as JSON."""

    def pieces(self, start: int, size: int, dtype: np.dtype, before: int = 0) -> Iterator[Piece]:
        """`raw`, checked and cast."""
        at = before + start
        for piece in self.raw(start, size, before):
            if at == 0 and not self.warned:
                self.warned = True
                for array, leaf in zip(piece.arrays, self.leaves, strict=True):
                    warn_if_lossy(piece.place, array, dtype, leaf.names)
            yield Piece(cleaned(piece, self.leaves, dtype, at), piece.place)
            at += piece.num

    def blocks(self, size: int) -> list[int]:
        """First rows of what is best read in one go, of about `size` rows or more."""
        return list(range(0, self.num, size))

    def renamed(self, path: str, weights: bool) -> "Reader":
        """The same rows as the leaf at `path` of some data, or as their weights."""
        self.leaves = tuple(dataclasses.replace(leaf, path=path, weights=weights) for leaf in self.leaves)
        return self


class Joined(Reader):
    """Readers one after the other: the files of a list."""

    def __init__(self, readers: Sequence[Reader]):
        self.readers, self.place = readers, readers[0].place
        self.leaves = readers[0].leaves
        self.starts = np.cumsum([0, *(reader.num for reader in readers)])
        self.num = int(self.starts[-1])

    def raw(self, start: int, size: int, before: int) -> Iterator[Piece]:
        for reader, first, offset in self._from(start):
            yield from reader.raw(first, size, before + offset)

    def pieces(self, start: int, size: int, dtype: np.dtype, before: int = 0) -> Iterator[Piece]:
        for reader, first, offset in self._from(start):
            yield from reader.pieces(first, size, dtype, before + offset)

    def _from(self, start: int) -> Iterator[tuple[Reader, int, int]]:
        """Readers from the one with row `start` on, its first row there, and the rows before each."""
        at = int(np.searchsorted(self.starts, start, "right")) - 1
        for reader, offset in list(zip(self.readers, self.starts, strict=False))[at:]:
            yield reader, max(0, start - int(offset)), int(offset)

    def blocks(self, size: int) -> list[int]:
        return [int(o) + b for reader, o in zip(self.readers, self.starts, strict=False) for b in reader.blocks(size)]

    def identity(self) -> Any:
        return [reader.identity() for reader in self.readers]

    def renamed(self, path: str, weights: bool) -> "Reader":
        for reader in self.readers:
            reader.renamed(path, weights)
        return super().renamed(path, weights)


class Beside(Reader):
    """Readers side by side: arrays that share their leading axis."""

    def __init__(self, readers: Sequence[Reader]):
        self.readers, self.place = readers, readers[0].place
        self.leaves = tuple(leaf for reader in readers for leaf in reader.leaves)
        self.num = readers[0].num

    def raw(self, start: int, size: int, before: int) -> Iterator[Piece]:
        yield from self._zipped([rechunked(reader.raw(start, size, before), size) for reader in self.readers])

    def pieces(self, start: int, size: int, dtype: np.dtype, before: int = 0) -> Iterator[Piece]:
        yield from self._zipped([rechunked(reader.pieces(start, size, dtype, before), size) for reader in self.readers])

    @staticmethod
    def _zipped(parts: Sequence[Iterator[Piece]]) -> Iterator[Piece]:
        for pieces in zip(*parts, strict=True):
            yield Piece([array for piece in pieces for array in piece.arrays], pieces[0].place)

    def blocks(self, size: int) -> list[int]:
        return self.readers[0].blocks(size)

    def identity(self) -> Any:
        return [reader.identity() for reader in self.readers]


def rechunked(pieces: Iterable[Piece], size: int) -> Iterator[Piece]:
    """The same rows in pieces of exactly `size` rows, but for the last."""
    held: list[Piece] = []
    count = 0
    for piece in pieces:
        start = 0
        while start < piece.num:
            stop = min(piece.num, start + size - count)
            held.append(piece.cut(start, stop))
            count, start = count + stop - start, stop
            if count == size:
                yield join(held)
                held, count = [], 0
    if held:
        yield join(held)


def join(pieces: Sequence[Piece]) -> Piece:
    """Pieces as one; one alone is not copied."""
    if len(pieces) == 1:
        return pieces[0]
    first, last = pieces[0].place, pieces[-1].place
    file = first.partition(", ")[0]
    place = first if first == last else f"{first} to {last.removeprefix(file + ', ')}"
    return Piece([np.concatenate(parts) for parts in zip(*(piece.arrays for piece in pieces), strict=True)], place)
