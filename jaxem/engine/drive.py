"""The table of restarts stepped from the host: Ctrl-C, callbacks, a bar, a time limit and checkpoints."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxem.algorithms import EM
from jaxem.core import mesh as _mesh
from jaxem.core import processes as _processes
from jaxem.core import tree as _tree
from jaxem.engine import table as _table
from jaxem.engine.checkpoint import Saver, fingerprint, restored, saved
from jaxem.engine.result import Fit
from jaxem.engine.table import Problem, Table, unfinished
from jaxem.stopping import Status

# Seconds of compiled work between two looks from the host.
SEGMENT = 0.2
# Seconds that Ctrl-C waits for the segment under way, which is then not lost.
GRACE = 0.3
# Guesses for the first segment, on the slow side: seconds of a sweep whatever it computes, multiply-adds a second.
SWEEP, RATE = 1e-4, 1e8


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback is told after each segment.

    Attributes:
      num_restarts: R.
      finished: restarts that have ended.
      steps: M-steps taken by all restarts together.
      max_steps: most M-steps of a restart.
      best_elbo: highest ELBO.total so far, -inf before the first; a spike counts here, not in the final choice.
      statuses: how many restarts have which status, by name.
      seconds: since the fit began, compilation included.
      share: of the work, between 0 and 1: a restart that runs counts as step / max_steps, one that has ended as 1.
    """

    num_restarts: int
    finished: int
    steps: int
    max_steps: int
    best_elbo: float
    statuses: dict[str, int]
    seconds: float
    share: float


@dataclasses.dataclass(frozen=True)
class Watch:
    """The arguments of `fit` that need a host to return to; a host-side object, not a pytree."""

    callback: Callable[[Progress], Any] | None = None
    progress: bool = False
    time_limit: float | None = None
    checkpoint: str | Path | None = None

    def check(self) -> None:
        """Raises TypeError, ValueError or ImportError for what is none of these, before anything is compiled."""
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"callback: expected a function of a jaxem.Progress, or None; found {self.callback!r}")
        if not isinstance(self.progress, (bool, np.bool_)):
            raise TypeError(f"progress: expected True or False; found {self.progress!r}")
        limit = self.time_limit
        if limit is not None:
            if isinstance(limit, (bool, np.bool_)) or not isinstance(limit, (int, float, np.integer, np.floating)):
                raise TypeError(f"time_limit: expected a number of seconds >= 0, or None; found {limit!r}")
            if not limit >= 0:
                raise ValueError(f"time_limit: expected a number of seconds >= 0, or None; found {limit!r}")
        path = self.checkpoint
        if path is not None:
            if not isinstance(path, (str, os.PathLike)):
                raise TypeError(f"checkpoint: expected the path of a file, or None; found {path!r}")
            if Path(path).is_dir() or not Path(path).parent.is_dir():
                raise ValueError(f"checkpoint: expected a file in a directory that exists; found {str(path)!r}")
        if self.progress:
            _tqdm()

    @property
    def asked(self) -> list[str]:
        """Names of the arguments that are in use."""
        used = {"progress": bool(self.progress)}
        names = [field.name for field in dataclasses.fields(self)]
        return [name for name in names if used.get(name, getattr(self, name) is not None)]

    def refuse(self) -> None:
        """Raises TypeError where one is in use: inside the caller's program no host looks on."""
        if self.asked:
            name = self.asked[0]
            raise TypeError(
                f"{name}: expected {'False' if name == 'progress' else 'None'} inside jit or vmap, where a fit is part "
                f"of one program and no host looks on; found {getattr(self, name)!r}; leave it out, or call fit outside"
            )


def drive(problem: Problem, watch: Watch, began: float, finish: Callable[[Problem, Table], Fit]) -> Fit:
    """Steps the table to its end, or until time is up or someone says so, and returns what `finish` makes of it.

    Args:
      problem: all concrete.
      watch: checked.
      began: `time.perf_counter()` when the fit began.
      finish: makes the result of a table.
    """
    saver = _saver(problem, watch)
    shared = problem.layout is not None
    with Bar(problem, watch.progress) as bar, _processes.interrupts(shared) as pressed:
        table = _begin(problem, bar)
        found = None if saver is None else saver.read()
        table = table if found is None else restored(table, found[1])
        result, stepped = None, found is not None and bool(table.packed.peek("step").step.max() > 0)
        asked = agreed(watch, shared)
        first = 1 if asked else _first(problem, table)
        if not asked and first >= problem.num_restarts * (problem.max_steps + 1):
            # Every sweep steps at least one restart, so that this is all: nothing to look at, and nothing to wait for.
            return finish(problem, _table.stepped(problem, table, np.int32(first)))
        try:
            for after, took in _segments(problem, table, first, bar):
                table, result, stepped = after, None, True
                if saver is not None and saver.due():
                    saver.save(saved(table))
                if done(problem, table, watch, bar, began, asked) or pressed():
                    break
                # A device does one thing after the other: once a long sweep is under way, this would have to wait.
                result = finish(problem, table) if took > GRACE else None
        except KeyboardInterrupt:
            if not stepped:
                raise
        finally:
            if saver is not None and stepped:
                saver.save(saved(table))
        bar.say("compiling the summary")
        return finish(problem, table) if result is None else result


def agreed(watch: Watch, shared: bool) -> bool:
    """Whether anyone looks on, in any process: one of them alone may show how it goes."""
    if not shared:
        return bool(watch.asked)
    found = {"checkpoint": "none" if watch.checkpoint is None else "a path"}
    _processes.check_same(found, "of which the first writes it")
    return _processes.any_says(bool(watch.asked))


def _saver(problem: Problem, watch: Watch) -> Saver | None:
    if watch.checkpoint is None:
        return None
    return Saver(watch.checkpoint, fingerprint(problem), problem.max_steps, problem.layout is not None)


def wait(tree: Any) -> None:
    """Waits until arrays are computed, in short sleeps, as a wait inside JAX is deaf to Ctrl-C."""
    began = time.perf_counter()
    for leaf in jax.tree.leaves(tree):
        while not getattr(leaf, "is_ready", lambda: True)():  # NumPy's are
            time.sleep(min(max(0.05 * (time.perf_counter() - began), 2e-5), 0.02))
    jax.block_until_ready(tree)  # raises what went wrong, where NumPy would end the process


def _begin(problem: Problem, bar: "Bar") -> Table:
    bar.say("compiling the starts")
    drawn = _table.draw(problem)
    bar.say("drawing the starts")
    wait(drawn[2])
    return _table.begin(problem, *drawn)


def _first(problem: Problem, table: Table) -> int:
    """Sweeps of a first segment that nobody watches: many where a sweep is surely short, for one call to do it all.

    An E-step of EM meets each row with each number of the params, of which the states hold two copies and little else.
    Other algorithms take as long a step as they are told to.
    """
    if type(problem.algorithm) is not EM:
        return 1
    numbers = sum(column.shape[1] for column in table.packed.columns) / 2
    cost = SWEEP + problem.lanes * _tree.num_rows(problem.data) * numbers / RATE
    return max(1, int(SEGMENT / cost))


def _segments(problem: Problem, table: Table, sweeps: int, bar: "Bar") -> Iterator[tuple[Table, float]]:
    """The table after each segment of about `SEGMENT` seconds, or one sweep, and the seconds it took."""
    bar.say("compiling the loop")
    # Numpy's arrays and JAX's own are two entries in the cache of a jitted function.
    table = jax.device_put(table) if problem.layout is None else _on_mesh(table, problem.layout.mesh)
    while True:
        began = time.perf_counter()
        after = _table.stepped(problem, table, np.int32(sweeps))
        bar.say("")
        try:
            wait((after.packed, after.trace))
        except KeyboardInterrupt:
            if _ready_soon(after):
                yield after, 0.0
            raise
        jax.block_until_ready(after.trace)  # raises where another process is gone: the table before is then kept
        table, took = after, time.perf_counter() - began
        if problem.layout is not None:
            took = float(_mesh.told(np.float32(took)))  # processes must take the same number
        yield table, took
        sweeps = int(np.clip(sweeps * min(4.0, max(0.5, SEGMENT / max(took, 1e-6))), 1, 1 << 20))


def _on_mesh(table: Table, mesh: Any) -> Table:
    states = _mesh.put_copies((table.packed, table.trace, table.screened), mesh)
    return dataclasses.replace(table, **dict(zip(("packed", "trace", "screened"), states, strict=True)))


def _ready_soon(table: Table) -> bool:
    """Whether a segment ends within `GRACE` seconds."""
    trace: Any = table.trace
    end = time.perf_counter() + GRACE
    while not trace.is_ready() and time.perf_counter() < end:
        time.sleep(0.005)
    return trace.is_ready()


def done(problem: Problem, table: Table, watch: Watch, bar: "Bar", began: float, asked: bool) -> bool:
    """Tells whoever listens, and whether to stop: all restarts have ended, time is up, or a callback says so.

    Of several processes the first one decides; `asked` says whether anyone listens in any.
    """
    if not asked:
        return not unfinished(problem, table.packed.peek("status", "step")).any()
    seen = _progress(problem, table.packed.peek("status", "step", "elbo"), began)
    bar.show(seen)
    answer = None if watch.callback is None else watch.callback(seen)
    late = watch.time_limit is not None and seen.seconds >= watch.time_limit
    enough = late or (isinstance(answer, (bool, np.bool_)) and bool(answer))
    if problem.layout is not None:
        enough = bool(_mesh.told(np.bool_(enough)))
    return seen.finished == seen.num_restarts or enough


def _progress(problem: Problem, states: Any, began: float) -> Progress:
    running = unfinished(problem, states)
    codes = np.where((states.status == Status.RUNNING) & ~running, int(Status.MAX_STEPS), states.status)
    names, counts = np.unique(codes, return_counts=True)
    taken = np.maximum(states.step - 1, 0)
    return Progress(
        num_restarts=problem.num_restarts,
        finished=int((~running).sum()),
        steps=int(taken.sum()),
        max_steps=problem.max_steps,
        best_elbo=float(np.max(states.elbo.total)),
        statuses={Status(int(code)).name: int(n) for code, n in zip(names, counts, strict=True)},
        seconds=time.perf_counter() - began,
        share=float(np.where(running, taken / max(problem.max_steps, 1), 1.0).mean()),
    )


class Bar:
    """A tqdm bar over restarts, to which those that run add their share of steps, or over the steps of the only one.

    Without `shown` it does nothing.
    """

    def __init__(self, problem: Problem, shown: bool):
        self._num = problem.num_restarts
        total, unit = (problem.max_steps, "step") if self._num == 1 else (self._num, "restart")
        self._bar = _tqdm()(total=total, unit=unit) if shown else None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.set_description_str("", refresh=False)
            self._bar.close()

    def say(self, stage: str) -> None:
        """Shows what goes on besides steps."""
        if self._bar is not None:
            self._bar.set_description_str(stage)

    def show(self, seen: Progress) -> None:
        """Moves the bar; a fit that is done fills it, however few steps it took."""
        if self._bar is None:
            return
        done = seen.finished == seen.num_restarts
        now = seen.steps if self._num == 1 else self._num if done else round(seen.share * self._num, 2)
        self._bar.total = now if done else self._bar.total
        self._bar.n = now
        self._bar.set_postfix_str(f"best {seen.best_elbo:.4f}")


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress: needs the package tqdm; pip install tqdm, or progress=False") from error
    return tqdm
