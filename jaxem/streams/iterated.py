"""Streams of what can only be iterated: batches that a loader or a function makes, anew in each pass."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxem.core import columns as _columns
from jaxem.core.arguments import shown
from jaxem.core.rows import warn_if_lossy
from jaxem.core.seen import listed
from jaxem.core.stream import Batch
from jaxem.core.tree import PyTree
from jaxem.streams.checks import check_batch_rows, cleaned, dtype_of
from jaxem.streams.files import digest
from jaxem.streams.piece import Leaf, Piece
from jaxem.streams.reader import rechunked
from jaxem.streams.seekable import Rows
from jaxem.streams.tables import chosen


class Iterated(Rows):
    """Batches of an iterator that `make` makes anew in each pass; the first is read once to see what they are.

    Args:
      make: returns an iterable of batches.
      batch_rows: most rows of a batch, larger ones are split; None for the rows of the first.
      columns: names of columns, of frames, or keys, of dicts.
      weights: whether items are pairs (data, weights); of frames the name of a column of weights.
      name: of the source, for messages.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        batch_rows: int | None,
        columns: Sequence[str] | None,
        weights: bool | str | None,
        name: str = "source",
    ):
        check_batch_rows(batch_rows)
        self.make, self.names, self.pairs, self.name = make, columns, weights, name
        self.passed: tuple[int, int] | None = None
        first = next(self._items(), None)
        if first is None:
            raise ValueError(f"{name}: expected at least one row; found no batches")
        arrays, self.leaves, self.structure = first
        if arrays[0].shape[0] == 0:
            raise ValueError(f"{name}, batch 0: expected at least one row; found none")
        self.dtype = dtype_of(self.leaves)
        self.digest = digest(arrays)
        self.batch_rows = batch_rows or arrays[0].shape[0]
        for array, leaf in zip(arrays, self.leaves, strict=True):
            warn_if_lossy(f"{name}, batch 0{leaf.label}", array, self.dtype, leaf.names)
        cleaned(Piece(arrays, f"{name}, batch 0"), self.leaves, self.dtype, 0)

    @property
    def num_rows(self) -> int | None:
        return None if self.passed is None else self.passed[1]

    def _items(self) -> Iterator[tuple[list[np.ndarray], tuple[Leaf, ...], Any]]:
        """Arrays of each batch, what they are, and their structure."""
        batches = self.make()
        if not hasattr(batches, "__iter__"):
            raise TypeError(f"{self.name}: expected a function that returns an iterator; it returned {shown(batches)}")
        iterator = iter(batches)
        try:
            for number, item in enumerate(iterator):
                yield opened(item, self.names, self.pairs, f"{self.name}, batch {number}")
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def _pieces(self, skip: int = 0) -> Iterator[Piece]:
        """Rows as they come, checked and cast but for the first `skip` batches, of which only the shapes are."""
        number = rows = 0
        for arrays, leaves, structure in self._items():
            place = f"{self.name}, batch {number}"
            self._check(arrays, leaves, structure, place)
            if number == 0 and digest(arrays) != self.digest:
                raise ValueError(
                    f"{place}: expected the rows that came first in the pass before; found others; give a function "
                    "that makes a new iterator each time, in the same order (shuffle=False: fit shuffles by itself)"
                )
            arrays = [np.array(array, order="C") for array in arrays]  # a loader may fill the same ones again
            num = arrays[0].shape[0]
            for start in range(0, num, self.batch_rows):
                piece = Piece(arrays, place).cut(start, start + self.batch_rows)
                if skip:
                    skip -= 1
                else:
                    piece.arrays = cleaned(piece, self.leaves, self.dtype, rows + start)
                yield piece
            number, rows = number + 1, rows + num
            if self.passed is not None and (number, rows) > self.passed:
                raise self._otherwise(number, rows, "or more")
        if self.passed is not None and (number, rows) != self.passed:
            raise self._otherwise(number, rows)
        if number == 0:
            raise ValueError(
                f"{self.name}: expected the batches of the pass before; found none; give a function that makes a new "
                "iterator each time it is called"
            )
        self.passed = number, rows

    def _otherwise(self, number: int, rows: int, more: str = "") -> ValueError:
        before, old = self.passed or (0, 0)
        found = f"{number} of {rows} rows" + (f" {more}" if more else "")
        return ValueError(
            f"{self.name}: expected {before} batches of {old} rows in all, as in the pass before; found {found}"
        )

    def _check(self, arrays: Sequence[np.ndarray], leaves: tuple[Leaf, ...], structure: Any, place: str) -> None:
        """Raises ValueError unless a batch is made as the first one."""
        if structure != self.structure:
            raise ValueError(f"{place}: expected data made as in batch 0, {self.structure}; found {structure}")
        for found, leaf in zip(leaves, self.leaves, strict=True):
            if found.names != leaf.names:
                expected, other = (listed(names or ()) or "none" for names in (leaf.names, found.names))
                raise ValueError(f"{place}: expected the columns of batch 0, {expected}; found {other}")
            if found != leaf:
                raise ValueError(f"{place}{leaf.label}: expected {leaf}, as in batch 0; found {found}")

    def read(self, first: int = 0) -> Iterator[Batch]:
        start = 0
        for number, piece in enumerate(self._pieces(first)):
            if number >= first and piece.num:
                yield self.batch(piece, start)
            start += piece.num

    def disordered(self, seed: int, skip: int) -> Iterator[Piece]:
        for piece in rechunked(self._pieces(), self.batch_rows):
            if skip < piece.num:
                yield piece.cut(skip, piece.num)
            skip = max(0, skip - piece.num)

    def identity(self) -> dict[str, Any]:
        return {"kind": "batches", **self.described(), "first": self.digest}


def opened(
    item: Any, names: Sequence[str] | None, weights: bool | str | None, place: str
) -> tuple[list[np.ndarray], tuple[Leaf, ...], Any]:
    """What an iterator yields as arrays (weights last), what each of them is, and the structure of the data.

    Raises:
      TypeError, ValueError: what is no numbers, has no rows' axis, or rows of other lengths.
    """
    weighing: Any = None
    if weights is True:
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise ValueError(f"{place}: expected a pair (data, weights); found {shown(item)}")
        item, weighing = item
    data, labels, found = _taken(item, names, weights, place)
    weighing = found if weighing is None else weighing
    paths, structure = jax.tree_util.tree_flatten_with_path(data)
    if not paths:
        raise ValueError(f"{place}: expected at least one array; found {shown(item)}")
    arrays, leaves = [], []
    for path, value in paths:
        arrays.append(_columns.as_numbers(place + jax.tree_util.keystr(path), value))
        leaves.append(Leaf(arrays[-1].shape[1:], arrays[-1].dtype, labels, jax.tree_util.keystr(path)))
    if weighing is not None:
        arrays.append(_columns.as_numbers(f"{place}, weights", weighing))
        leaves.append(Leaf(arrays[-1].shape[1:], arrays[-1].dtype, path="weights", weights=True))
        if leaves[-1].shape:
            raise ValueError(f"{place}: expected weights of shape (n,); found {arrays[-1].shape}")
    sizes = sorted({array.shape[:1] for array in arrays})
    if len(sizes) > 1 or not sizes[0]:
        raise ValueError(f"{place}: expected arrays with one shared leading axis; found {[a.shape for a in arrays]}")
    return arrays, tuple(leaves), structure


def _taken(
    item: Any, names: Sequence[str] | None, weights: bool | str | None, place: str
) -> tuple[PyTree, tuple[str, ...] | None, Any]:
    """Data of an item, names of columns if it is a frame, and its column of weights if it has one."""
    if isinstance(item, (str, bytes)):
        raise TypeError(f"{place}: expected an array or a pytree of arrays; found text, {shown(item)}")
    frame = _columns.frame_columns(place, item)
    if frame is None:
        return _picked(_as_tuple(item, place), names, place), None, None
    labels = [str(label) for label, _ in frame]
    weighing = weights if isinstance(weights, str) else None
    used = chosen(labels, names, weighing, place)
    parts = {label: part for label, (_, part) in zip(labels, frame, strict=True)}
    data = np.stack([_columns.as_numbers(f"{place}, column {label!r}", parts[label]) for label in used], 1)
    return data, tuple(used), None if weighing is None else parts[weighing]


def _as_tuple(item: Any, place: str) -> Any:
    """A list of arrays, as loaders collate them, as a tuple; one alone as that array."""
    if not isinstance(item, list):
        return item
    if not item or not all(hasattr(part, "shape") and hasattr(part, "dtype") for part in item):
        raise TypeError(f"{place}: expected an array or a pytree of arrays; found a list, {shown(item)}")
    return item[0] if len(item) == 1 else tuple(item)


def _picked(item: Any, names: Sequence[str] | None, place: str) -> Any:
    if names is None:
        return item
    if not isinstance(item, dict):
        raise TypeError(f"columns: expected None, as {place} has no names; found {list(names)}")
    missing = [name for name in names if name not in item]
    if missing:
        raise ValueError(f"columns: expected keys of {place}; found none called {missing[0]!r} among {list(item)}")
    return {name: item[name] for name in names}
