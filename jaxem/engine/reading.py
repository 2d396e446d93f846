"""The batches of a stream on their way to the devices: read ahead by a thread, padded to one length, dealt out."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxem.core import mesh as _mesh
from jaxem.core.mesh import Layout
from jaxem.core.stream import Batch, Stream, keyed
from jaxem.core.tree import PyTree, num_rows

T = TypeVar("T")
# Batches that are ready before they are asked for.
AHEAD = 2


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A batch, padded by copies of its last row with weight 0; on the host until it is `placed`.

    Attributes:
      data: rows.
      weights: (n,).
      number: of the batch in the pass.
    """

    data: PyTree
    weights: Any
    number: int


class Reader:
    """Reads the batches of one fit; a host-side object.

    Args:
      stream: what is read.
      model: whose `opened` makes a pytree of a batch, and whose `check` looks at it.
      dtype: of all arrays.
      layout: how a batch lies over a mesh; None for one device. Of several processes each has a stream of its own.
    """

    def __init__(self, stream: Stream, model: Any, dtype: Any, layout: Layout | None):
        self.stream, self.model, self.dtype, self.layout = stream, model, dtype, layout
        self.shared = layout is not None and _mesh.processes_share(layout.mesh)
        own = 1 if layout is None else len(_mesh.own_shards(layout.mesh))
        apiece = -(-stream.batch_rows // own)
        if self.shared:  # all processes give parts of one length to a batch
            apiece = int(np.max(multihost_utils.process_allgather(np.int32(apiece))))
        self.size = apiece * own

    def host(self, check: bool = False, stream: Stream | None = None, first: int = 0) -> Iterator[Batch]:
        """Batches as arrays of NumPy, checked against the model in the first pass."""
        for batch in (self.stream if stream is None else stream).read(first):
            data = self.model.opened(keyed(batch.data, self.stream, self.model.row_keys), "data")
            data = jax.tree.map(lambda leaf: np.asarray(leaf, self.dtype), data)
            weights = None if batch.weights is None else np.asarray(batch.weights, self.dtype)
            if check:
                self._check(data, f"{batch.place}, rows from {batch.start} on")
            yield dataclasses.replace(batch, data=data, weights=weights)

    def _check(self, data: PyTree, place: str) -> None:
        try:
            self.model.check(data)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None

    def loaded(self, stream: Stream | None = None, first: int = 0, least: int = 0) -> Iterator[Loaded]:
        """Batches made ready by a thread, from number `first` on; `least` in all at least, the last of them empty."""

        def load() -> Iterator[Loaded]:
            number, last = first, None
            for batch in self.host(stream=stream, first=first):
                last = batch
                yield self._load(batch.data, batch.weights, number)
                number += 1
            while number < least:  # other processes have more
                last = next(self.host()) if last is None else last
                yield self._load(last.data, np.zeros(num_rows(last.data), self.dtype), number)
                number += 1

        return ahead(load())

    def padded(self, data: PyTree, weights: np.ndarray | None) -> tuple[PyTree, np.ndarray]:
        """Rows and weights of the one length that all batches have."""
        weights = np.ones(num_rows(data), self.dtype) if weights is None else weights
        return _mesh.padded(data, self.size), _mesh.padded(weights, self.size, zero=True)

    def _load(self, data: PyTree, weights: np.ndarray | None, number: int) -> Loaded:
        return Loaded(*self.padded(data, weights), number)

    def placed(self, batch: Loaded) -> Loaded:
        """A batch on the devices; not by the thread, which does not know of the caller's settings of JAX."""
        rows = batch.data, batch.weights
        x, w = jax.device_put(rows) if self.layout is None else _mesh.put_own_rows(rows, self.layout.mesh)
        return Loaded(x, w, batch.number)


def ahead(items: Iterator[T], depth: int = AHEAD) -> Iterator[T]:
    """Items made by a thread a little before they are asked for; its errors come where the item would have."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    over = threading.Event()

    def put(kind: str, what: Any) -> None:
        while not over.is_set():
            try:
                return made.put((kind, what), timeout=0.05)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put("item", item)
                if over.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)
        finally:
            _closed(items)

    thread = threading.Thread(target=run, name="jaxem-reader", daemon=True)
    thread.start()
    try:
        while True:
            kind, what = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise what
            yield what
    finally:
        over.set()
        thread.join()


def _closed(items: Any) -> None:
    close: Callable[[], Any] = getattr(items, "close", lambda: None)
    close()
