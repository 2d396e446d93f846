"""Data that are read a batch at a time, again in each pass: what a fit asks of them."""

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxem.core import mesh as _mesh
from jaxem.core.archive import replace_file
from jaxem.core.arguments import shown
from jaxem.core.memory import explained
from jaxem.core.tree import PyTree, num_rows

# What is to be done about a batch whose answer is too large.
SMALLER = "give fewer batch_rows to jaxem.stream"


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


def keyed(data: Any, stream: Stream, keys: tuple[str, ...] | None) -> Any:
    """A batch as the dict of columns (n, 1) that a model asks for; as it is for other models."""
    if keys is None or isinstance(data, dict):
        return data
    names = stream.columns
    if names is None or sorted(names) != sorted(keys):
        found = "columns without names" if names is None else ", ".join(names)
        raise ValueError(f"data: expected a stream of the columns {', '.join(sorted(keys))}; found {found}")
    return {name: data[:, i : i + 1] for i, name in enumerate(names)}


class Answers:
    """The answers to a question for each row of a stream, computed a batch at a time when they are asked for.

    Iterating gives a NumPy array (n, ...) for each batch, or a pytree of them; again, the same. `save(path)` writes
    them to one .npy file, batch by batch; `array()` puts them together in memory.
    """

    def __init__(self, stream: Stream, ask: Callable[[PyTree, int], PyTree], name: str):
        self._stream, self._ask, self._name = stream, ask, name

    def __repr__(self) -> str:
        return f"Answers({self._name} of {self._stream!r}): iterate over them, .save(path) or .array()"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(f"the answers of a stream have no {name!r}: iterate over them, or .array() of them has")

    def __iter__(self) -> Iterator[Any]:
        size = self._stream.batch_rows
        for number, batch in enumerate(self._stream.read()):
            num = num_rows(batch.data)
            try:
                with explained(f"{self._name}: expected the answer", f"for a batch of {size:,} rows", SMALLER):
                    answer = self._ask(_mesh.padded(batch.data, size), number)  # one length, one program
                    jax.block_until_ready(answer)  # without which NumPy ends the process where memory ran out
                    answer = jax.tree.map(lambda leaf, num=num: np.asarray(leaf)[:num], answer)
            except ValueError as error:
                raise ValueError(f"{batch.place}: {error}") from None
            yield answer

    def array(self) -> Any:
        """All answers at once, (N, ...)."""
        with explained(f"{self._name}: expected all answers together", "", "iterate over the batches, or .save(path)"):
            return jax.tree.map(lambda *parts: np.concatenate(parts), *self)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the answers to a .npy file, which is whole or not there; memory of one batch.

        Raises:
          TypeError: no path, or answers that are not one array.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path: expected the path of a file, as 'labels.npy'; found {shown(path)}")
        replace_file(path, self._write)

    def _write(self, file: Any) -> None:
        count, first = 0, None
        for part in self:
            if not isinstance(part, np.ndarray):
                raise TypeError(f"{self._name}: expected one array of answers for a file; found {shown(part)}")
            if first is None:
                first = part[:0]
                _header(file, first, self._stream.num_rows or 0)
            file.write(np.ascontiguousarray(part).tobytes())
            count += len(part)
        if first is not None:
            file.seek(0)
            _header(file, first, count)  # of the same length, as headers are padded
            file.seek(0, os.SEEK_END)


def _header(file: Any, like: np.ndarray, num: int) -> None:
    head = np.lib.format.header_data_from_array_1_0(like)
    np.lib.format.write_array_header_1_0(file, head | {"shape": (num, *like.shape[1:])})


def added(stream: Stream, ask: Callable[[PyTree, np.ndarray, int], PyTree]) -> Any:
    """What a question of data, weights and the number of their batch says of all rows of a stream, where it adds up."""
    total, size = None, stream.batch_rows
    for number, batch in enumerate(stream.read()):
        dtype = jax.tree.leaves(batch.data)[0].dtype
        weights = np.ones(num_rows(batch.data), dtype) if batch.weights is None else batch.weights
        if not np.any(weights):
            continue
        said = ask(_mesh.padded(batch.data, size), _mesh.padded(weights, size, zero=True), number)
        total = said if total is None else jax.tree.map(lambda a, b: a + b, total, said)
        jax.block_until_ready(total)  # rows on their way are not to pile up
    if total is None:
        raise ValueError("weights: expected at least one positive; found only zeros")
    return total
