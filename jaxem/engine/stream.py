"""The table of restarts stepped over a stream: each pass adds up what its batches say, and one update follows."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import mesh as _mesh
from jaxem.core import processes as _processes
from jaxem.core import tree as _tree
from jaxem.core.arguments import shown
from jaxem.core.inputs import as_many
from jaxem.core.pytree import dataclass
from jaxem.core.tree import Packed, PyTree
from jaxem.engine import table as _table
from jaxem.engine.checkpoint import Saver, digest, fingerprint, restored, saved
from jaxem.engine.drive import Bar, Watch, agreed, done, wait
from jaxem.engine.reading import Loaded, Reader
from jaxem.engine.result import Fit
from jaxem.engine.survey import Surveyed, Surveyor
from jaxem.engine.table import Problem, Table, unfinished
from jaxem.model import At, EStep, LatentModel
from jaxem.rules import Rule
from jaxem.sharding import Sharded
from jaxem.wrappers import InnerAt, Wrapper

# Batches that are under way on the device before the next one is sent.
IN_FLIGHT = 2


@dataclass
class _NumberedAt(InnerAt):
    def e_step(self, data: PyTree, weights: Array, rule: Rule) -> EStep:
        return self.inner.e_step(data, weights, rule.fold(self.model.number))


@dataclass
class _Numbered(Wrapper):
    """A model that is shown one batch of many: rules that draw have a stream of their own in each."""

    number: Array

    def at(self, params: PyTree) -> At:
        return _NumberedAt(self, params, self.model.at(params))


def check(problem: Problem) -> None:
    """Raises TypeError for an algorithm or a stop rule that a stream cannot serve."""
    if problem.algorithm.reads == "rows":
        name = type(problem.algorithm).__name__
        raise TypeError(
            f"algorithm: {name} looks at all rows again within a step, which a stream does not hold; use jaxem.EM() or "
            "jaxem.OnlineEM(batch_size), or give rows that fit in memory"
        )
    if problem.layout is not None and _mesh.restart_shards(problem.layout.mesh) > 1:
        raise ValueError(
            "mesh: expected axes of rows alone for a stream, whose batches are read once for all restarts; found "
            f"one called {_mesh.RESTARTS!r}"
        )
    if problem.stop.uses_rows:
        raise TypeError(
            f"stop: {shown(problem.stop)} looks at the rows, which a stream does not hold; use jaxem.Stop(), "
            "StopParams or StopAitken"
        )


@dataclass
class _Lanes:
    """The restarts that a pass is for: their numbers (R + padding,), R where there is none, and how many groups."""

    ids: Array
    groups: Array


def _by_groups(problem: Problem, lanes: _Lanes, f: Callable[[Array, PyTree], PyTree], carry: PyTree) -> PyTree:
    """`carry` after `f(ids, carry)` for each group of W restarts."""
    width = problem.lanes

    def body(group: Array, carry: PyTree) -> PyTree:
        return f(jax.lax.dynamic_slice(lanes.ids, (group * width,), (width,)), carry)

    return jax.lax.fori_loop(0, lanes.groups, body, carry)


def _evaluated(problem: Problem, model: Any, state: Any, batch: Any, number: Array) -> Any:
    """What one batch, rows and weights, says of a state."""
    model = _Numbered(model, number=number) if isinstance(model, LatentModel) else model  # type: ignore[abstract]
    return problem.algorithm.evaluate(model, state, *batch)


@jax.jit
def _zeros(problem: Problem, model: Any, packed: Packed, batch: Any) -> Packed:
    """Sums of no batches, for all restarts."""
    one = jax.eval_shape(lambda states: jax.tree.map(lambda leaf: leaf[0], states), packed.unpack())
    found = jax.eval_shape(lambda state: _evaluated(problem, model, state, batch, jnp.int32(0)), one)
    return _tree.pack(jax.tree.map(lambda s: jnp.zeros((problem.num_restarts, *s.shape), s.dtype), found))


@partial(jax.jit, static_argnums=0)
def _taken(
    second: bool,
    problem: Problem,
    model: Any,
    packed: Packed,
    so_far: Packed,
    lanes: _Lanes,
    batch: Any,
    number: Array,
) -> Packed:
    """What a pass has come to after a batch, of which one reading serves all restarts: sums, or what a second is at."""
    with _mesh.over(problem.layout):
        batch = (model.arrange(batch[0]), batch[1])

        def one(pair: Any) -> Any:
            if second:
                return problem.algorithm.in_pass(model, *pair, *batch, number)
            return jax.tree.map(jnp.add, pair[1], _evaluated(problem, model, pair[0], batch, number))

        def group(ids: Array, so_far: Packed) -> Packed:
            pairs = _tree.take(packed, ids).unpack(), _tree.take(so_far, ids).unpack()
            return _tree.put(so_far, ids, _tree.pack(_table.lanewise(one, pairs)))

        return _by_groups(problem, lanes, group, so_far)


@jax.jit
def _begin_pass(problem: Problem, model: Any, packed: Packed, sums: Packed) -> Packed:
    """What the second pass of a step begins with."""
    begin = lambda pair: problem.algorithm.begin_pass(model, *pair)
    return _tree.pack(_table.lanewise(begin, (packed.unpack(), sums.unpack())))


@jax.jit
def _update(
    problem: Problem, table: Table, sums: Packed, now: Packed | None, lanes: _Lanes, total: Array
) -> tuple[Packed, Array]:
    """States and trace after the step of each restart."""
    model = table.model

    def one(lane: Any) -> Any:
        before, found, trace, now = lane
        if now is None:
            after = problem.algorithm.update(model, before, found)
        else:
            after = problem.algorithm.end_pass(model, before, found, now)
        return _table.concluded(problem, model, before, after, trace, (None, None), total)

    def group(ids: Array, carry: tuple[Packed, Array]) -> tuple[Packed, Array]:
        packed, trace = carry
        before = _tree.take(packed, ids).unpack()
        rows = _tree.take(trace, ids) if problem.stop.uses_trace else None
        seconds = None if now is None else _tree.take(now, ids).unpack()
        after = _table.lanewise(one, (before, _tree.take(sums, ids).unpack(), rows, seconds))
        trace = trace.at[ids, before.step].set(after.scored, mode="drop")
        return _tree.put(packed, ids, _tree.pack(after)), trace

    return _by_groups(problem, lanes, group, (table.packed, table.trace))


_screened = jax.jit(_table.screened)


class Run:
    """A fit of a stream under way; a host-side object.

    Args:
      problem: checked, its data the first batch.
      reader: of the batches.
      watch: checked.
      began: `time.perf_counter()` when the fit began.
      finish: makes the result of a problem, a table, and the counts (observations, rows).
    """

    def __init__(self, problem: Problem, reader: Reader, watch: Watch, began: float, finish: Callable[..., Fit]):
        self.problem, self.reader, self.watch, self.began, self.finish = problem, reader, watch, began, finish
        self.loop = dataclasses.replace(problem.in_loop, data=None, weights=None, params=None)  # type: ignore[arg-type]
        self.saver = None if watch.checkpoint is None else self._saver()
        # The pass under way: sums so far, what a second pass is at (None in the first), and the batch that comes next.
        self.sums: Packed | None = None
        self.now: Packed | None = None
        self.first = 0
        self.stepped = False

    def fit(self) -> Fit:
        """All steps, until they are done, time is up or someone says so."""
        with Bar(self.problem, self.watch.progress) as bar, _processes.interrupts(self.reader.shared) as self.pressed:
            self.asked = agreed(self.watch, self.reader.shared)
            found = None if self.saver is None else self.saver.read()
            bar.say("a first pass over the stream")
            self._begin(found)
            try:
                while self._unfinished().any() and not self._step(bar):
                    pass
            except KeyboardInterrupt:
                if not self.stepped:
                    raise
            except Exception as error:  # of the source, or memory that ran out
                if self.stepped:
                    error.fit = self._result()  # type: ignore[attr-defined]
                    error.add_note("The fit so far is the .fit of this error; its restarts that ran are INTERRUPTED.")
                raise
            finally:
                if self.saver is not None:
                    self._save_what_there_is()
            bar.say("compiling the summary")
            return self._result()

    def _result(self) -> Fit:
        return self.finish(self.problem, self.table, (self.surveyed.observations, self.surveyed.num_observed))

    # Where it begins.

    def _saver(self) -> Saver:
        parts = fingerprint(dataclasses.replace(self.problem, data=None, weights=None))  # type: ignore[arg-type]
        own = digest(self.reader.stream.identity())
        parts |= {"data": digest(_processes.texts(own)) if self.reader.shared else own}
        return Saver(self.watch.checkpoint, parts, self.problem.max_steps, self.problem.layout is not None)  # type: ignore[arg-type]

    def _begin(self, found: Any) -> None:
        """The table before the first step, or as it was saved."""
        if found is None:
            self.surveyed = Surveyor(self.reader, self.problem).run()
        else:
            self.surveyed = self._surveyed(found)
        model = self.surveyed.model
        if self.problem.layout is not None:
            model = _mesh.put_copies(model, self.problem.layout.mesh)
            if isinstance(self.problem.model, Sharded):
                model = dataclasses.replace(self.problem.model, model=model)
        starts = self.surveyed.starts
        if starts is None:
            starts = _table.adopt(model, self.problem)
        starts = jax.tree.map(lambda leaf: leaf[0], starts) if self._alone(starts) else starts
        table = _table.begin(self.problem, model, None, starts)
        if found is not None:
            table = self._resumed(table, *found)
        self.table = jax.device_put(table) if self.problem.layout is None else self._on_mesh(table)

    def _alone(self, starts: PyTree) -> bool:
        return self.problem.num_restarts == 1 and self.surveyed.starts is not None

    def _on_mesh(self, table: Table) -> Table:
        assert self.problem.layout is not None
        states = _mesh.put_copies((table.packed, table.trace, table.screened), self.problem.layout.mesh)
        return dataclasses.replace(table, packed=states[0], trace=states[1], screened=states[2])

    def _surveyed(self, found: Any) -> Surveyed:
        """What the passes before the first step had found, as it was saved."""
        place, arrays = found
        problem = self.problem
        plain = problem.model.model if isinstance(problem.model, Sharded) else problem.model
        rows, counts = as_many(plain, problem.data), place["counts"]
        structure: Any = jax.tree.structure(jax.eval_shape(lambda m, x, w: m.bind(x, w), plain, *rows))
        leaves = [arrays[f"model{i}"] for i in range(structure.num_leaves)]
        start = jax.eval_shape(lambda m, k, x, w: m.bind(x, w).init(k, x, w), plain, problem.keys[0], *rows)
        many = lambda s: np.zeros((problem.num_restarts, *s.shape), s.dtype)
        starts = None if problem.params is not None else jax.tree.map(many, start)
        model = jax.tree.unflatten(structure, leaves)
        return Surveyed(counts[0], counts[1], place["observations"], counts[2], model, starts)

    def _resumed(self, table: Table, place: dict[str, Any], arrays: dict[str, Any]) -> Table:
        table = restored(table, arrays)
        self.first, self.stepped = place["batch"], place["stepped"]
        if "sums0" in arrays:
            self.sums = self._unpacked("sums", arrays, self._zeros(table))
        if "pass0" in arrays:
            like = jax.eval_shape(_begin_pass, self.loop, table.model, table.packed, self.sums)
            self.now = self._unpacked("pass", arrays, like)
        return table

    def _unpacked(self, name: str, arrays: dict[str, Any], like: Packed) -> Packed:
        columns = tuple(arrays[f"{name}{i}"] for i in range(len(like.columns)))
        return self._placed(dataclasses.replace(like, columns=columns))

    def _placed(self, tree: PyTree) -> PyTree:
        layout = self.problem.layout
        return jax.device_put(tree) if layout is None else _mesh.put_copies(tree, layout.mesh)

    def _save_what_there_is(self) -> None:
        """Saves; without the sums of the pass where these are lost, as where memory ran out while they were made."""
        try:
            self._save()
        except (jax.errors.JaxRuntimeError, MemoryError):
            self.sums, self.now, self.first = None, None, 0
            self._save()

    def _save(self) -> None:
        """Where the fit stands: states, sums of the pass under way, and the batch that comes next."""
        arrays = saved(self.table)
        model = self.table.model.model if isinstance(self.table.model, Sharded) else self.table.model
        arrays |= {f"model{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(model))}
        for name, packed in (("sums", self.sums), ("pass", self.now)):
            arrays |= {} if packed is None else {f"{name}{i}": column for i, column in enumerate(packed.columns)}
        found = self.surveyed
        counts = [found.num_rows, found.num_batches, found.num_observed]
        place = {"batch": self.first, "stepped": self.stepped, "counts": counts}
        self.saver.save(arrays, place | {"observations": found.observations})  # type: ignore[union-attr]

    # What a step is.

    def _unfinished(self) -> np.ndarray:
        return np.asarray(unfinished(self.problem, self.table.packed.peek("status", "step")))

    def _step(self, bar: Bar) -> bool:
        """One step of all restarts that run; whether the fit is to end."""
        self.table, running = self._screen()
        lanes = self._lanes(running)
        if self.sums is None:
            self.sums = self._zeros(self.table)
        step = int(self.table.packed.peek("step").step[int(np.argmax(running))])
        if self.now is None:
            if self._pass(bar, lanes, step):
                return True
            if self.problem.algorithm.reads == "pass":
                now = _begin_pass(self.loop, self.table.model, self.table.packed, self.sums)
                self.now, self.first = now, 0
        if self.now is not None and self._pass(bar, lanes, step):
            return True
        total = self._placed(np.asarray(self.surveyed.observations, self.reader.dtype))
        packed, trace = _update(self.loop, self.table, self.sums, self.now, lanes, total)
        wait((packed, trace))
        self.table = dataclasses.replace(self.table, packed=packed, trace=trace)
        self.sums, self.now, self.first, self.stepped = None, None, 0, True
        return done(self.problem, self.table, self.watch, bar, self.began, self.asked)

    def _screen(self) -> tuple[Table, np.ndarray]:
        if self.problem.screen is None:
            return self.table, self._unfinished()
        table, running = _screened(self.loop, self.table)
        return table, np.asarray(running)

    def _lanes(self, running: np.ndarray) -> _Lanes:
        num, width = self.problem.num_restarts, self.problem.lanes
        ids = np.full(-(-num // width) * width, num, np.int32)
        which = np.flatnonzero(running).astype(np.int32)
        ids[: len(which)] = which
        return self._placed(_Lanes(ids, np.int32(-(-len(which) // width))))  # type: ignore[arg-type]

    def _zeros(self, table: Table) -> Packed:
        return _zeros(self.loop, table.model, table.packed, (self.problem.data, self.problem.weights))

    def _pass(self, bar: Bar, lanes: _Lanes, step: int) -> bool:
        """One pass over the batches that are left of it, a second one in an order of its own; whether time is up."""
        stream = None if self.now is None else self.reader.stream.shuffled(self._seed(step))
        batches = self.reader.loaded(stream, self.first, self.surveyed.num_batches)
        flying: list[Packed] = []
        try:
            while (batch := self._next(batches)) is not None:
                flying.append(self._take(lanes, batch, step))
                if len(flying) > IN_FLIGHT:
                    wait(flying.pop(0))
                bar.say(f"batch {self.first} of {self.surveyed.num_batches}")
                if self.saver is not None and self.saver.due():
                    wait(flying[-1])
                    self._save()
                if self.reader.shared and self.pressed():
                    raise KeyboardInterrupt
                if self.stepped and self._late():
                    return True
        finally:
            batches.close()  # type: ignore[attr-defined]
        wait(flying)
        return False

    def _next(self, batches: Iterator[Loaded]) -> Loaded | None:
        """The next batch on the devices, or None after the last; an error of one process is one of all."""

        def read() -> Loaded | None:
            batch, num = next(batches, None), self.surveyed.num_batches
            if (batch is None and self.first < num) or (batch is not None and batch.number >= num):
                found = self.first if batch is None else f"{batch.number + 1} or more"
                raise ValueError(f"data: expected {num} batches in every pass, as in the first; found {found}")
            return batch

        batch = _processes.together(read, "data") if self.reader.shared else read()
        return None if batch is None else self.reader.placed(batch)

    def _take(self, lanes: _Lanes, batch: Loaded, step: int) -> Packed:
        """What the pass has come to after a batch. It changes together with its place: a save is of one moment."""
        second = self.now is not None
        so_far, number = (self.now if second else self.sums), batch.number
        if second:
            number += step * self.surveyed.num_batches
        rows = batch.data, batch.weights
        taken = _taken(second, self.loop, self.table.model, self.table.packed, so_far, lanes, rows, np.int32(number))
        if second:
            self.now, self.first = taken, batch.number + 1
        else:
            self.sums, self.first = taken, batch.number + 1
        return taken

    def _seed(self, step: int) -> int:
        """Of the order of a second pass: of the algorithm's key, and another in each step."""
        words = np.asarray(jax.random.key_data(self.problem.algorithm.key)).ravel()
        return int.from_bytes(words.tobytes(), "little") * 2**32 + step

    def _late(self) -> bool:
        limit = self.watch.time_limit
        late = limit is not None and time.perf_counter() - self.began >= limit
        return bool(_mesh.told(np.bool_(late))) if self.reader.shared else late
