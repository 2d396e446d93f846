"""What a fit of a stream needs before its first step: what `bind` asks of all rows, and rows for starts to look at."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils

from jaxem.core import processes as _processes
from jaxem.core import threefry
from jaxem.core import whole as _whole
from jaxem.core.inputs import check_enough
from jaxem.core.numerics import is_concrete
from jaxem.core.sequences import Sequences, num_observations, total_weight
from jaxem.core.tree import PyTree, num_rows
from jaxem.core.whole import KEPT, Survey, Wanted
from jaxem.engine import table as _table
from jaxem.engine.reading import Reader
from jaxem.families import Family
from jaxem.families.dependence import independent, surely_independent
from jaxem.sharding import Sharded
from jaxem.structures import seeding

# Rows that a start looks at, of a model that does not say how many.
INIT_ROWS = 10_000
# Most bytes of the rows that all starts look at.
SAMPLE_BYTES = 1 << 29


@dataclasses.dataclass
class Surveyed:
    """What the passes before the first step have found.

    Attributes:
      num_rows: N, of all processes.
      num_batches: in a pass, the most of any process.
      observations: what weights stand for: their sum, or of sequences that of their observations.
      num_observed: observations of positive weight.
      model: bound.
      starts: params of all starts, each leaf with a leading axis R; None where they were given.
    """

    num_rows: int
    num_batches: int
    observations: float
    num_observed: int
    model: Any
    starts: PyTree


def _asked(num: int | None, free: bool, model: Any, known: PyTree, x: PyTree, w: Array) -> tuple[Any, PyTree]:
    """The bound model, or None, and what a batch says where `bind` cannot go on."""
    parts, kept, total = known
    try:
        with independent(free), _whole.surveying(Survey(list(parts), kept, num, w, total)):
            return model.bind(x, w), None
    except Wanted as wanted:
        return None, wanted.part


@partial(jax.jit, static_argnums=(0, 1))
def _part(num: int | None, free: bool, model: Any, known: PyTree, x: PyTree, w: Array) -> PyTree:
    """What a batch says for the next thing that `bind` asks of all rows; None where it asks what is not known yet."""
    return _asked(num, free, model, known, x, w)[1]


@partial(jax.jit, static_argnums=(0, 1))
def _bound(num: int | None, free: bool, model: Any, known: PyTree, x: PyTree, w: Array) -> Any:
    return _asked(num, free, model, known, x, w)[0]


# Of models that a user has written.
_own_bind = jax.jit(lambda model, x, w: model.bind(x, w))
_own_start = jax.jit(lambda model, key, x, w: model.init(key, x, w))


@jax.jit
def _added(a: PyTree, b: PyTree) -> PyTree:
    return a + b


# By a program, as it rounds where rows in memory are drawn; NumPy rounds a place in four otherwise.
_places = jax.jit(seeding.places)
_counted = jax.jit(lambda x, w: (total_weight(x, w), num_observations(x, w)))


class Surveyor:
    """Goes over the rows until `bind` knows all that it asks, and all starts have their rows; a host-side object.

    Where the number of rows is known and they have no weights, one pass is enough for most models.

    Args:
      reader: of the batches.
      problem: what is fitted, its data a first batch.
    """

    def __init__(self, reader: Reader, problem: Any):
        self.reader, self.problem = reader, problem
        self.model = problem.model.model if isinstance(problem.model, Sharded) else problem.model
        self.own = _foreign_binds(self.model)
        self.known: list[PyTree] = []
        self.kept: PyTree = None
        self.free = False
        alone = not reader.shared and not reader.stream.weighted
        self.num: int | None = reader.stream.num_rows if alone else None
        self.total: float | None = None if self.num is None else float(self.num)
        self.first, self.before = 0, 0.0  # rows and weight of the processes before this one
        self.batches, self.observations, self.observed = 0, 0.0, 0
        self.samples: list[Any] | None = None

    def run(self) -> Surveyed:
        """The passes, and what follows from them."""
        while (wanted := self._wanted())[0] != "done":
            self._pass(*wanted)
        bound = self._bind()
        starts = None if self.problem.params is not None else self._starts(bound)
        num = self.num
        assert num is not None
        return Surveyed(num, self.batches, self.observations, self.observed, bound, starts)

    # What is next.

    def _facts(self) -> PyTree:
        """What is known of all rows."""
        total = None if self.total is None else np.asarray(self.total, self.reader.dtype)
        return self.known, self.kept, total

    def _wanted(self) -> tuple[str, Any]:
        """What the next pass is for, by `_state`; but for the first, rows that are kept come before: they tell more."""
        here = self.kept is not None and (self.problem.params is not None or self.samples is not None)
        if here or not self.known:
            state = self._state()
            return state if here or state[0] == "part" else ("count", None)
        return "count", None

    def _state(self) -> tuple[str, Any]:
        """What `bind` needs next: ("done", None), ("count", None) or ("part", its shapes)."""
        if self.own:
            return ("done" if self.kept is not None else "count"), None
        rows = _local(self.problem.data), _local(self.problem.weights)
        model, part = jax.eval_shape(partial(_asked, self.num, self.free), self.model, self._facts(), *rows)
        return ("done" if model is not None else "count" if part is None else "part"), part

    def _pass(self, state: str, shapes: PyTree) -> None:
        """One pass over all rows, for all that can be had of it."""
        first = self.batches == 0
        gather = _Gather(self) if self.num is not None and self.kept is None else None
        read = lambda: self._read(first, state, gather)
        # An error of one process is one of all: the others would wait for what it says.
        part, count, weight = _processes.together(read, "data") if self.reader.shared else read()
        if first:
            self._counted_all(count, weight)
        if state == "part":
            self.known.append(self._merged(part, shapes))
        if gather is not None:
            self.kept, self.samples = gather.all()
            self._look()

    def _read(self, first: bool, state: str, gather: Any) -> tuple[PyTree, int, float]:
        """The rows of this process: what they say of what is asked, their number, and their weight."""
        part, count, weight = None, 0, 0.0
        for batch in self.reader.host(check=first):
            w = np.ones(num_rows(batch.data), self.reader.dtype) if batch.weights is None else batch.weights
            if gather is not None:
                gather.take(batch.data, w, self.first + count, weight)
            if first or state == "part":
                x, padded = self.reader.padded(batch.data, batch.weights)
            if first:
                total, observed = _counted(x, padded)
                self.batches += 1
                self.observations += float(total)
                self.observed += int(observed)
            if state == "part" and padded.any():
                said = _part(self.num, self.free, self.model, self._facts(), x, padded)
                part = said if part is None else _added(part, said)
            count, weight = count + len(w), weight + float(np.sum(w, dtype=np.float64))
        if count == 0:
            raise ValueError("data: expected at least one row; found a stream without any")
        return part, count, weight

    # What one pass knows.

    def _counted_all(self, count: int, weight: float) -> None:
        """Sets the counts, those of all processes together."""
        if self.reader.shared:
            own = np.array([count, weight, self.observations, self.observed, self.batches])
            every = _gathered(own)
            here = jax.process_index()
            self.first, self.before = int(every[:here, 0].sum()), float(every[:here, 1].sum())
            count, weight = int(every[:, 0].sum()), float(every[:, 1].sum())
            self.observations, self.observed = float(every[:, 2].sum()), int(every[:, 3].sum())
            self.batches = int(every[:, 4].max())
        if not weight > 0:
            raise ValueError("weights: expected at least one positive; found only zeros")
        self.num, self.total = count, weight
        check_enough(self.model, count)

    def _merged(self, part: PyTree, shapes: PyTree) -> PyTree:
        """A sum over all processes, but for those whose rows have no weight."""
        if not self.reader.shared:
            return part
        has = np.ravel(multihost_utils.process_allgather(np.bool_(part is not None)))
        if part is None:
            part = jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
        every = multihost_utils.process_allgather(part)
        parts = [jax.tree.map(lambda leaf, i=i: jnp.asarray(leaf[i]), every) for i in np.flatnonzero(has)]
        merged = parts[0]
        for other in parts[1:]:
            merged = _added(merged, other)
        return merged

    def _look(self) -> None:
        """Whether the rows that are kept show that no column depends on others."""
        families = jax.tree.leaves(self.model, is_leaf=lambda node: isinstance(node, Family))
        if any(isinstance(family, Family) and family.finds_span for family in families):
            self.free = surely_independent(*jax.tree.map(np.asarray, self.kept))

    # What follows.

    def _bind(self) -> Any:
        x, w = _local(self.problem.data), _local(self.problem.weights)
        if self.own:
            kept, weights = self.kept
            scale = float(self.total or 0) / np.sum(weights, dtype=np.float64)
            return _own_bind(self.model, kept, np.asarray(weights * scale, w.dtype))
        return _bound(self.num, self.free, self.model, self._facts(), x, w)

    def _starts(self, model: Any) -> PyTree:
        assert self.samples is not None
        init = model.init if _table.in_stages(model) else partial(_own_start, model)
        return _table.stack([init(key, x, w) for key, x, w in self.samples])


class _Gather:
    """Collects rows in one pass: every so many for `whole.every`, and those that each start looks at."""

    def __init__(self, surveyor: Surveyor):
        self.surveyor, self.step = surveyor, max(1, -(-surveyor.num // KEPT))  # type: ignore[operator]
        self.kept: list[PyTree] = []
        self.kept_weights: list[np.ndarray] = []
        self.rows: list[PyTree] = []
        self.weights: list[np.ndarray] = []
        self.wanted: list[tuple[Array, np.ndarray]] = []
        self.drawn: list[list[PyTree]] = []
        problem, model = surveyor.problem, surveyor.model
        if problem.params is None:
            self._plan(problem, model)

    def _plan(self, problem: Any, model: Any) -> None:
        """The places of the rows of each start, as `seeding.subsample` would draw them from all."""
        num, dtype, total = self.surveyor.num, self.surveyor.reader.dtype, self.surveyor.total
        size = getattr(model, "init_size", INIT_ROWS)
        if isinstance(problem.data, Sequences):
            size = max(model.least_rows[1], size // problem.data.observed.shape[1])
        keys = threefry.each(problem.keys)
        assert num is not None
        assert total is not None
        if num <= size:
            self.wanted = [(key, np.zeros(0)) for key in keys]
            return
        row = sum(leaf.nbytes for leaf in jax.tree.leaves(problem.data)) / num_rows(problem.data)
        if len(keys) * size * row > SAMPLE_BYTES:
            raise ValueError(
                f"num_restarts: expected starts that look at {SAMPLE_BYTES >> 20} MiB of rows in all; found "
                f"{len(keys)} of {size} rows each; lower the model's init_size, or fit again with another key"
            )
        for key in keys:
            rest, draw = threefry.split(key)
            points = _places(threefry.uniform(draw, (size,)), dtype.type(total))
            self.wanted.append((rest, np.asarray(points, np.float64)))
        self.drawn = [[] for _ in keys]

    def take(self, data: PyTree, weights: np.ndarray, start: int, before: float) -> None:
        """Looks at one batch, whose first row is number `start`, with the weight `before` in this process before it."""
        num, base = len(weights), self.surveyor.before + before
        chosen = slice((-start) % self.step, num, self.step)
        copies = lambda tree, index: jax.tree.map(lambda leaf: leaf[index].copy(), tree)
        self.kept.append(copies(data, chosen))
        self.kept_weights.append(weights[chosen].copy())
        if self.wanted and not self.drawn:
            self.rows.append(copies(data, slice(None)))
            self.weights.append(weights.copy())
            return
        cumulative = base + np.cumsum(weights, dtype=np.float64)
        last = start + num >= self.surveyor.num  # type: ignore[operator]
        for (_, points), drawn in zip(self.wanted, self.drawn, strict=True):
            low = int(np.searchsorted(points, base, side="left")) if base > 0 else 0
            high = len(points) if last else int(np.searchsorted(points, cumulative[-1], side="left"))
            index = np.minimum(np.searchsorted(cumulative, points[low:high], side="right"), num - 1)
            drawn.append(copies(data, index))

    def all(self) -> tuple[PyTree, list[Any] | None]:
        """The rows kept, with their weights, and (key, rows, weights) of each start."""
        kept = self._joined(self.kept), self._joined(self.kept_weights)
        if not self.wanted:
            return jax.device_put(kept), None
        dtype, total = self.surveyor.reader.dtype, self.surveyor.total
        if not self.drawn:
            rows = self._joined(self.rows), self._joined(self.weights)
            return jax.device_put(kept), [(key, *jax.device_put(rows)) for key, _ in self.wanted]
        samples = []
        for (key, points), drawn in zip(self.wanted, self.drawn, strict=True):
            weights = np.full(len(points), dtype.type(total) / dtype.type(len(points)), dtype)
            samples.append((key, *jax.device_put((self._joined(drawn), weights))))
        return jax.device_put(kept), samples

    def _joined(self, parts: list[PyTree]) -> PyTree:
        """Rows in order, those of all processes."""
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return joined if not self.surveyor.reader.shared else jax.tree.map(_concatenated, joined)


def _gathered(values: np.ndarray) -> np.ndarray:
    """A row of float64 of each process, whether x64 is on or not."""
    bits = multihost_utils.process_allgather(np.frombuffer(values.astype(np.float64).tobytes(), np.uint32))
    return np.frombuffer(np.ascontiguousarray(bits, np.uint32).tobytes(), np.float64).reshape(-1, len(values))


def _concatenated(array: np.ndarray) -> np.ndarray:
    """The rows of all processes, in their order; each has another number."""
    counts = multihost_utils.process_allgather(np.int32(array.shape[0])).ravel()
    room = np.zeros((int(counts.max()), *array.shape[1:]), array.dtype)
    room[: array.shape[0]] = array
    every = np.asarray(multihost_utils.process_allgather(room))
    return np.concatenate([part[:n] for part, n in zip(every, counts, strict=True)])


def _local(tree: PyTree) -> PyTree:
    """The shapes of the part of a batch that one process has."""
    elsewhere = any(not getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(tree))
    shards = jax.process_count() if elsewhere else 1
    return jax.tree.map(lambda a: jnp.zeros((a.shape[0] // shards, *a.shape[1:]), a.dtype), tree)


def _foreign_binds(value: Any) -> bool:
    """Whether the model, or a part of it, has a `bind` that was not written for batches: a user's own."""
    nodes, seen = [value], []
    while nodes:
        node = nodes.pop()
        if dataclasses.is_dataclass(node) and not isinstance(node, type) and is_concrete(node):
            bind = getattr(type(node), "bind", None)
            seen.append(getattr(bind, "__module__", "jaxem") or "jaxem")
            nodes += [getattr(node, field.name, None) for field in dataclasses.fields(node)]
        elif isinstance(node, (tuple, list)):
            nodes += list(node)
        elif isinstance(node, dict):
            nodes += list(node.values())
    return any(module.split(".")[0] != "jaxem" for module in seen)
