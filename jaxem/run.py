"""run: the table of restarts stepped from the host, with progress, checkpoints, a time limit and Ctrl-C."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from jaxem import _checkpoint, _table
from jaxem._numerics import is_concrete
from jaxem._table import Problem, Screen, Table
from jaxem._tree import PyTree
from jaxem.fit import checked, finish, prepare
from jaxem.model import ELBOModel
from jaxem.result import Fit
from jaxem.stopping import Status, StopRule

# Seconds of compiled work between two looks from the host.
SEGMENT = 0.2


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
      seconds: since the start of the run, compilation included.
    """

    num_restarts: int
    finished: int
    steps: int
    max_steps: int
    best_elbo: float
    statuses: dict[str, int]
    seconds: float


def run(
    model: ELBOModel,
    data: PyTree,
    *,
    key: Array,
    params: PyTree | None = None,
    weights: Array | None = None,
    algorithm: Any = None,
    stop: StopRule | None = None,
    max_steps: int = 200,
    num_restarts: int = 1,
    restart_batch: int | None = None,
    screen: Screen | None = None,
    callback: Callable[[Progress], Any] | None = None,
    progress: bool = False,
    time_limit: float | None = None,
    checkpoint: str | Path | None = None,
) -> Fit:
    """`fit`, watched: the same compiled table in segments, bit-identical for the same arguments if it runs to the end.

    Ctrl-C, a callback that returns True, and the time limit end the run between segments (about 0.2 s each): restarts
    that still ran end as INTERRUPTED, with their params so far, and the best is returned. Compilation and a single
    sweep are not cut short. An exception raised by the callback passes through.

    With a `checkpoint` the state of all restarts, optimisers and random streams included, is written to that file every
    few seconds and at the end. If the file is there, the run goes on from it: one that was killed, or ended by Ctrl-C,
    a callback or the time limit, then ends bit-identical to one that never was, on the same device kind and JAX
    version. A file that belongs to another model, data, key or setting is refused, never overwritten; what functions
    compute cannot be compared, only their names and the values they hold.

    Args:
      model: as in `fit`.
      data: as in `fit`.
      key: as in `fit`.
      params: as in `fit`.
      weights: as in `fit`.
      algorithm: as in `fit`.
      stop: as in `fit`.
      max_steps: as in `fit`.
      num_restarts: as in `fit`.
      restart_batch: as in `fit`.
      screen: as in `fit`.
      callback: called with a `Progress` after each segment; returning True ends the run.
      progress: whether to show a tqdm bar (needs tqdm): over restarts, or over the steps of a single one.
      time_limit: seconds, compilation included; None for no limit.
      checkpoint: path of a .npz file to write and to resume from; None for none. Of the size of the params and the
        algorithm's state for all restarts.

    Returns:
      A `Fit`.

    Raises:
      ValueError, TypeError, FitError: as `fit`; ValueError for a checkpoint of another run; TypeError under `jit` or
        `vmap`, where there is no host to return to.

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (50, 1))
      >>> show = lambda progress: print(progress.statuses)
      >>> fit = jaxem.run(jaxem.GMM(1), x, key=jax.random.key(1), callback=show)
      {'RUNNING': 1}
      {'CONVERGED': 1}
    """
    if not is_concrete(data, key, weights, params):
        raise TypeError("run: expected arrays; found tracers (inside jit or vmap call fit)")
    if time_limit is not None and not time_limit >= 0:
        raise ValueError(f"time_limit: expected seconds >= 0 or None; found {time_limit!r}")
    began = time.perf_counter()
    problem, seen = prepare(
        model, data, key, params, weights, algorithm, stop, max_steps, num_restarts, restart_batch, screen
    )
    saver = None if checkpoint is None else _checkpoint.Saver(checkpoint, problem)
    table = _table.start(problem)
    if saver is not None:
        table = saver.resume(table)
    listeners = [callback] if callback is not None else []
    bar = _Bar(num_restarts, max_steps) if progress else None
    if bar is not None:
        listeners.append(bar)
    try:
        table = _drive(problem, table, listeners, began, time_limit, saver)
    finally:
        if bar is not None:
            bar.close()
    if saver is not None:
        saver.save(table)
    return checked(finish(problem, table), seen)


def _drive(
    problem: Problem,
    table: Table,
    listeners: list,
    began: float,
    time_limit: float | None,
    saver: _checkpoint.Saver | None,
) -> Table:
    """Advances in segments of about `SEGMENT` seconds until done, out of time, or told to stop."""
    sweeps = 1
    try:
        while True:
            segment = time.perf_counter()
            table = _table.advance(problem, table, np.int32(sweeps))
            seen = _progress(problem, table, began)
            took = time.perf_counter() - segment
            if saver is not None:
                saver.save_sometimes(table)
            told = [listener(seen) for listener in listeners]
            late = time_limit is not None and seen.seconds >= time_limit
            if seen.finished == seen.num_restarts or late or any(answer is True for answer in told):
                return table
            sweeps = int(np.clip(sweeps * min(4.0, max(0.5, SEGMENT / max(took, 1e-6))), 1, 1 << 20))
    except KeyboardInterrupt:
        return table


def _progress(problem: Problem, table: Table, began: float) -> Progress:
    codes, step = np.asarray(table.states.status), np.asarray(table.states.step)
    codes = np.where((codes == Status.RUNNING) & (step > problem.max_steps), int(Status.MAX_STEPS), codes)
    names, counts = np.unique(codes, return_counts=True)
    statuses = {Status(int(code)).name: int(n) for code, n in zip(names, counts, strict=True)}
    finished = int((codes != Status.RUNNING).sum())
    best = float(np.max(np.asarray(table.states.elbo.total)))
    steps = int(np.maximum(step - 1, 0).sum())
    seconds = time.perf_counter() - began
    return Progress(problem.num_restarts, finished, steps, problem.max_steps, best, statuses, seconds)


class _Bar:
    """A tqdm bar over finished restarts, or over the steps of the only one."""

    def __init__(self, num_restarts: int, max_steps: int):
        from tqdm.auto import tqdm

        self._alone = num_restarts == 1
        self._bar = tqdm(total=max_steps if self._alone else num_restarts, unit="step" if self._alone else "restart")

    def __call__(self, seen: Progress) -> None:
        self._bar.update((seen.steps if self._alone else seen.finished) - self._bar.n)
        self._bar.set_postfix_str(f"best {seen.best_elbo:.4f}")

    def close(self) -> None:
        self._bar.close()
