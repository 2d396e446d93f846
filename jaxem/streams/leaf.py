"""What one array of a stream is, for checks and messages."""

import dataclasses
from collections.abc import Sequence

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
