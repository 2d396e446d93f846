"""Tables of Arrow, read column by column: which columns, and their numbers as one array."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import numpy as np

from jaxem.core.arguments import nearest
from jaxem.core.seen import listed
from jaxem.streams.leaf import Leaf
from jaxem.streams.reader import Piece, Reader


def arrow(what: str) -> ModuleType:
    """Pyarrow, or ImportError that says how to get it; `what` cannot be read without."""
    try:
        import pyarrow
        import pyarrow.dataset
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{what} is read by pyarrow: pip install 'jaxem[streams]'", name=error.name) from None
    return pyarrow


class Table(Reader):
    """A table of which chosen columns are read as one array (N, D).

    Attributes:
      place: of the table, for messages.
      types: of all columns that are read, as Arrow calls them.
    """

    def __init__(self, schema: Any, columns: Sequence[str] | None, weights: str | None, place: str):
        self.place = place
        self.names, self.weights = chosen(schema.names, columns, weights, place)
        self.used = [*self.names, *(() if weights is None else (weights,))]
        self.types = {name: str(schema.field(name).type) for name in self.used}
        dtypes = [_dtype(schema.field(name).type, name, place) for name in self.used]
        leaves = [Leaf((len(self.names),), np.result_type(*dtypes[: len(self.names)]), tuple(self.names))]
        if weights is not None:
            leaves.append(Leaf((), dtypes[-1], (weights,), weights=True))
        self.leaves = tuple(leaves)

    def arrays(self, batch: Any, start: int, place: str) -> list[np.ndarray]:
        """Chosen columns of a batch as (n, D), and the weights (n,) if there are any."""
        parts = []
        for name in self.used:
            column = batch.column(name)
            if column.null_count:
                row = start + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                raise ValueError(
                    f"{place}: expected finite numbers; found a null in row {row}, column {name!r}; drop such rows or "
                    "fill them in"
                )
            parts.append(_as_numpy(column))
        num = len(self.names)
        return [np.stack(parts[:num], 1), *parts[num:]]


class Blocks(Table):
    """A table of blocks, as row groups, that are read one at a time.

    Attributes:
      sizes: rows in each.
    """

    def sized(self, sizes: Sequence[int]) -> None:
        """Sets the numbers of rows of the blocks."""
        self.sizes = list(sizes)
        self.starts = np.cumsum([0, *self.sizes])
        self.num = int(self.starts[-1])

    @abstractmethod
    def opened(self) -> AbstractContextManager[Any]:
        """What blocks are read from, open for one pass."""

    @abstractmethod
    def block(self, source: Any, at: int, size: int, row: int) -> Iterator[Any]:
        """Record batches of one block, of at most `size` rows; its first row is `row` in the stream."""

    def named(self, at: int) -> str:
        """A block, for messages."""
        return self.place

    def blocks(self, size: int) -> list[int]:
        return [int(s) for s, num in zip(self.starts, self.sizes, strict=False) if num]

    def raw(self, start: int, size: int, before: int) -> Iterator[Piece]:
        at = int(np.searchsorted(self.starts, start, "right")) - 1
        with self.opened() as source:
            for i in range(at, len(self.sizes)):
                row, place = int(self.starts[i]), self.named(i)
                for batch in self.block(source, i, size, before + row) if self.sizes[i] else ():
                    gone = min(max(start - row, 0), batch.num_rows)
                    if gone < batch.num_rows:
                        yield Piece(self.arrays(batch.slice(gone), before + row + gone, place), place)
                    row += batch.num_rows
                if row != self.starts[i + 1]:
                    raise ValueError(f"{place}: expected {self.sizes[i]} rows; found {row - int(self.starts[i])}")


def chosen(
    names: Sequence[str], columns: Sequence[str] | None, weights: str | None, place: str
) -> tuple[list[str], str | None]:
    """Names of the columns of data and of weights, of those that a table has.

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
    return found, weights


def _dtype(kind: Any, name: str, place: str) -> np.dtype:
    """The dtype of NumPy for a type of Arrow."""
    types = arrow(place).types
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return np.dtype(kind.to_pandas_dtype())
    if types.is_decimal(kind):
        return np.dtype(np.float64)
    raise ValueError(
        f"{place}: expected numbers in every column; found {kind} in column {name!r}; choose others by columns=[...]"
    )


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
