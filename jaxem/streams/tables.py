"""Tables of Arrow, read column by column: which columns, and their numbers as one array."""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import numpy as np

from jaxem.core.arguments import nearest
from jaxem.core.seen import listed
from jaxem.streams.piece import Leaf, Piece
from jaxem.streams.reader import Reader

# Blocks of fewer than this part of a batch's rows are read together: 0.1 ms a row group in the place of 1.4, measured.
RUNS = 8


def arrow(what: str) -> ModuleType:
    """Pyarrow, or ImportError that says how to get it; `what` cannot be read without."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.dataset
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{what} is read by pyarrow: pip install 'jaxem[streams]'", name=error.name) from None
    return pyarrow


class Table(Reader):
    """A table of which chosen columns are read as one array (N, D).

    Attributes:
      place: of the table, for messages.
      names: of the columns of data.
      types: of all columns that are read, as Arrow calls them.
    """

    def __init__(self, schema: Any, columns: Sequence[str] | None, weights: str | None, place: str):
        self.place, self.names = place, chosen(schema.names, columns, weights, place)
        self.used = [*self.names, *(() if weights is None else (weights,))]
        self.types = {name: str(schema.field(name).type) for name in self.used}
        found = {name: _described(schema.field(name).type, name, place) for name in self.used}
        self.widths = {name: width for name, (_, width) in found.items()}
        labels = [label for name in self.names for label in _labels(name, self.widths[name])]
        dtype = np.result_type(*(found[name][0] for name in self.names))
        self.leaves: tuple[Leaf, ...] = (Leaf((len(labels),), dtype, tuple(labels)),)
        if weights is not None:
            if self.widths[weights] is not None:
                raise ValueError(f"weights: expected one number in each row; found lists in column {weights!r}")
            self.leaves += (Leaf((), found[weights][0], (weights,), weights=True),)

    def piece(self, batch: Any, start: int, place: str, find: Callable[[int], str] | None = None) -> Piece:
        """Chosen columns of a batch as (n, D), and the weights (n,) if there are any; `start` rows come before."""
        parts = []
        for name in self.used:
            column, width = batch.column(name), self.widths[name]
            row = _first_null(column)
            if row is None and width is not None:
                column = arrow(place).compute.list_flatten(column)
                row = _first_null(column, width)
            if row is not None:
                raise ValueError(
                    f"{place if find is None else find(row)}: expected finite numbers; found a null in row "
                    f"{start + row}, column {name!r}; drop such rows or fill them in"
                )
            parts.append(_as_numpy(column).reshape(batch.num_rows, width or 1))
        num = len(self.names)
        return Piece([np.concatenate(parts[:num], 1), *(part[:, 0] for part in parts[num:])], place, find)


class Blocks(Table):
    """A table of blocks, as row groups, that are read one at a time, or a run of small ones at once.

    Attributes:
      sizes: rows in each.
      starts: rows before each, and in all.
    """

    def sized(self, sizes: Sequence[int]) -> None:
        """Sets the numbers of rows of the blocks."""
        self.sizes = list(sizes)
        self.starts = np.cumsum([0, *self.sizes])
        self.num = int(self.starts[-1])
        self._runs: dict[int, list[int]] = {}

    @abstractmethod
    def opened(self) -> AbstractContextManager[Any]:
        """What blocks are read from, open for one pass."""

    @abstractmethod
    def block(self, source: Any, first: int, last: int, size: int, row: int) -> Iterator[Any]:
        """Record batches of blocks `first` to `last`, of at most `size` rows; `row` rows of the stream come before."""

    @abstractmethod
    def named(self, at: int) -> str:
        """A block, for messages."""

    def runs(self, size: int) -> list[int]:
        """First blocks of what is read at once: single blocks, or some that have up to `size / RUNS` rows together."""
        if size not in self._runs:
            firsts, rows = [], size
            for i, num in enumerate(self.sizes):
                if rows + num > size // RUNS:
                    firsts.append(i)
                    rows = 0
                rows += num
            self._runs[size] = firsts
        return self._runs[size]

    def blocks(self, size: int) -> list[int]:
        firsts = [int(self.starts[i]) for i in self.runs(size)]
        return [first for first, end in zip(firsts, [*firsts[1:], self.num], strict=True) if end > first]

    def raw(self, start: int, size: int, before: int) -> Iterator[Piece]:
        firsts = [*self.runs(size), len(self.sizes)]
        at = int(np.searchsorted(self.starts[firsts], start, "right")) - 1
        with self.opened() as source:
            for first, end in itertools.pairwise(firsts[at:]):
                yield from self._run(source, first, end, start, size, before)

    def _run(self, source: Any, first: int, end: int, start: int, size: int, before: int) -> Iterator[Piece]:
        """Pieces of some blocks from row `start` on."""
        row, stop = int(self.starts[first]), int(self.starts[end])
        place = self.named(first) if end == first + 1 else f"{self.named(first)} and the {end - 1 - first} after it"
        for batch in self.block(source, first, end - 1, size, before + row) if stop > row else ():
            gone = min(max(start - row, 0), batch.num_rows)
            if gone < batch.num_rows:
                yield self.piece(batch.slice(gone), before + row + gone, place, self._finder(row + gone))
            row += batch.num_rows
        if row != stop:
            raise ValueError(f"{place}: expected {stop - self.starts[first]} rows; found {row - self.starts[first]}")

    def _finder(self, start: int) -> Callable[[int], str]:
        """Where a row after row `start` comes from."""
        return lambda row: self.named(int(np.searchsorted(self.starts, start + row, "right")) - 1)


def chosen(names: Sequence[str], columns: Sequence[str] | None, weights: str | None, place: str) -> list[str]:
    """Names of the columns of data, of those that a table has.

    Raises:
      ValueError: a name that there is not, or twice.
    """
    twice = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
    if weights is not None and weights not in names:
        what = f"found none called {weights!r} among {listed(names)}{nearest(weights, names)}"
        raise ValueError(f"weights: expected a column of {place}; {what}")
    if columns is None:
        found = [name for name in names if name != weights]
        if not found:
            raise ValueError(f"{place}: expected at least one column of data; found {listed(names) or 'none'}")
    else:
        found = list(columns)
    for name in found:
        if name not in names:
            what = f"found none called {name!r} among {listed(names)}{nearest(name, names)}"
            raise ValueError(f"columns: expected columns of {place}; {what}")
        if name in twice:
            raise ValueError(f"{place}: expected columns of different names; found two called {name!r}")
    if weights in found:
        raise ValueError(f"columns: expected columns of data; found {weights!r}, which are the weights")
    return found


def _described(kind: Any, name: str, place: str) -> tuple[np.dtype, int | None]:
    """The dtype of NumPy for a type of Arrow, and the length of lists of equal length; None for single numbers."""
    types = arrow(place).types
    inner = kind.value_type if types.is_fixed_size_list(kind) else kind
    width = kind.list_size if inner is not kind else None
    if types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner):
        return np.dtype(inner.to_pandas_dtype()), width
    if types.is_decimal(inner):
        return np.dtype(np.float64), width
    raise ValueError(
        f"{place}: expected numbers in every column; found {kind} in column {name!r}; choose others by columns=[...]"
    )


def _labels(name: str, width: int | None) -> list[str]:
    return [name] if width is None else [f"{name}[{i}]" for i in range(width)]


def _first_null(column: Any, width: int = 1) -> int | None:
    """The first row with a null; a row is `width` entries."""
    return int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) // width if column.null_count else None


def _as_numpy(column: Any) -> np.ndarray:
    """A column without nulls."""
    import pyarrow

    if pyarrow.types.is_decimal(column.type):
        column = column.cast(pyarrow.float64())
    return column.to_numpy(zero_copy_only=False)


def check_columns(columns: Any) -> None:
    """Raises unless it is None or a sequence of different names."""
    if columns is None:
        return
    if isinstance(columns, str) or not hasattr(columns, "__iter__"):
        remedy = f"; write columns=[{columns!r}]" if isinstance(columns, str) else ""
        raise TypeError(f"columns: expected a list of names; found {columns!r}{remedy}")
    names = list(columns)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise TypeError(f"columns: expected a list of names; found {wrong[0]!r} in it")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"columns: expected different names, at least one; found {names}")
