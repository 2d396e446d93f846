"""Data that are read a batch at a time, again in each pass: what a fit asks of them."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxem.core.tree import PyTree


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some rows, on the host.

    Attributes:
      data: a pytree of NumPy arrays that share their leading axis, 1 to `Stream.batch_rows` rows.
      weights: (n,) weights of the rows, None for ones.
      start: number of rows before these in the stream.
      place: where they come from, for messages: "rows.parquet, row group 7".
    """

    data: PyTree
    weights: np.ndarray | None
    start: int
    place: str


class Stream(ABC):
    """Rows in batches, the same in every pass, made by `jaxem.stream`; `fit` takes it in the place of data.

    A host-side object, not a pytree. It holds no rows itself, and may be read by several passes at once.
    """

    # Most rows in a batch: each is padded to this many by rows of weight 0, so that one program serves all.
    batch_rows: int

    @abstractmethod
    def read(self, first: int = 0) -> Iterator[Batch]:
        """One pass over the batches from number `first` on.

        Raises:
          ValueError: rows that cannot be read, or are not those of the pass before: named with file and place.
        """

    @property
    @abstractmethod
    def num_rows(self) -> int | None:
        """N, or None where only a pass can tell."""

    @property
    @abstractmethod
    def weighted(self) -> bool:
        """Whether batches have weights."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the columns of data that are one array; None where they have none."""
        return None

    @abstractmethod
    def shuffled(self, seed: int) -> "Stream":
        """The same rows, each once, in another order, the same for equal seeds."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells these rows from others without reading them all, as JSON: paths, sizes, times, columns."""
