"""Some rows of a stream, and what its arrays are, for checks and messages."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a stream.

    Attributes:
      shape: of one row.
      dtype: as it is read.
      names: of its columns, None where they have none.
      path: where it stands in the data, "['x']"; "" for data that are one array.
      weights: whether these are the rows' weights.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    names: tuple[str, ...] | None = None
    path: str = ""
    weights: bool = False

    def where(self, row: int, entry: Sequence[int] = ()) -> str:
        """A row, and the place in it, for messages."""
        if self.names and entry:
            columns = [repr(self.names[entry[0]]), *map(str, entry[1:])]
        elif self.names and len(self.names) == 1:
            columns = [repr(self.names[0])]
        else:
            columns = [str(i) for i in entry]
        of = f" of {self.path}" if self.path and not self.weights else ""
        return f"row {row}{of}" + "".join(f", column {column}" for column in columns)

    @property
    def label(self) -> str:
        """The array, after the name of the data."""
        return " weights" if self.weights else self.path

    def __str__(self) -> str:
        return f"rows of shape {self.shape} and {self.dtype}"


@dataclasses.dataclass
class Piece:
    """Consecutive rows.

    Attributes:
      arrays: one (n, ...) for each leaf.
      place: where they come from, for messages.
      find: the place of one of the rows, by its number here; None where it is `place` for all.
    """

    arrays: Sequence[np.ndarray]
    place: str
    find: Callable[[int], str] | None = None

    @property
    def num(self) -> int:
        """Number of rows."""
        return self.arrays[0].shape[0]

    def cut(self, start: int, stop: int) -> "Piece":
        """Some of the rows, without a copy."""
        if start == 0 and stop >= self.num:
            return self
        return Piece([array[start:stop] for array in self.arrays], self.place)

    def named(self, row: int) -> str:
        """The place of a row."""
        return self.place if self.find is None else self.find(row)
