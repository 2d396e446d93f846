"""fit: every argument checked, the table of restarts stepped to its end, and the winner described."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxem.algorithms import EM, Algorithm, CoordinateAscent, GeneralizedEM, GradientAscent, Swap
from jaxem.algorithms.swap import has_places
from jaxem.core import mesh as _mesh
from jaxem.core import numerics
from jaxem.core import processes as _processes
from jaxem.core import rows as _rows
from jaxem.core import tree as _tree
from jaxem.core import whole as _whole
from jaxem.core.arguments import as_key, as_numbers, check_integer, check_leaves, expect, shown
from jaxem.core.foreign import named
from jaxem.core.inputs import as_many, as_params, cast_floats, check_enough
from jaxem.core.mesh import Layout
from jaxem.core.numerics import is_concrete, namespace
from jaxem.core.seen import Rows
from jaxem.core.sequences import num_observations, total_weight
from jaxem.core.stages import fence
from jaxem.core.stream import Batch, Stream, keyed
from jaxem.core.tree import Packed, PyTree
from jaxem.engine import plan as _plan
from jaxem.engine import shapes as _shapes
from jaxem.engine import stream as _stream
from jaxem.engine import table as _table
from jaxem.engine import verdict as _verdict
from jaxem.engine.checkpoint import digest
from jaxem.engine.drive import Progress, Watch, drive
from jaxem.engine.reading import AHEAD, Reader
from jaxem.engine.result import Fit, Restarts
from jaxem.engine.table import Problem, Screen, Table, unfinished
from jaxem.families import Family
from jaxem.families.dependence import LOOKED_AT, surely_independent
from jaxem.families.reasons import DEGENERATE
from jaxem.model import ELBOModel, Health, LatentModel
from jaxem.rules import Rule
from jaxem.sharding import Sharded, over_mesh
from jaxem.stopping import Status, Stop, StopRule
from jaxem.wrappers import check_model

# Most multiply-adds of a step of K-means that is searched by swaps unless told: 100 of them take about 0.1 s.
SEARCH = 200_000


@named
def fit(
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
    """Fits a model from one or many starts, in one compiled program, and reports the fate of each.

    Restart i starts from fold_in(key, i) alone. Finished restarts cost nothing: each sweep steps the first
    `restart_batch` that still run. Results are bit-identical for equal `restart_batch`, device kind and JAX version,
    whatever the number of restarts and their neighbours, watched or not, resumed or not, and inside the caller's `jit`;
    across different widths, and under the caller's `vmap`, which widens the lanes, they agree to rounding, which in
    float32 may lead to another optimum.

    The winner is the best restart by ELBO.total of the best grade that there is: CONVERGED; MAX_STEPS, INTERRUPTED or
    SCREENED; DECREASED or NONFINITE, with the params before that step; DEGENERATE. Its status says which, and where it
    is not CONVERGED a `FitWarning` does, with the remedy; not for INTERRUPTED, nor for a MAX_STEPS that was asked for:
    `max_steps=0`, a stop rule that cannot fire (`Stop(atol=-inf)`), or an algorithm whose normal end it is
    (`GradientAscent`, `OnlineEM`, `StochasticEM`, sampled E-steps).

    Where an E-step of all rows at once, for all lanes, would not fit into half of the memory that the data leave, it is
    done in chunks, as by `jaxem.chunked`, and fewer restarts step together; `Fit.plan` and `print(fit)` say so. Sums of
    chunks agree with the sum of all rows to rounding, draws of a `Sampled` or `MonteCarlo` rule are other ones, and
    machines with more memory choose other chunks: for equal bits choose both yourself. Memory that runs out all the
    same is a MemoryError that says what to set; a checkpoint has what was computed before.

    Ctrl-C, a callback that returns True and the time limit end a fit early: restarts that still ran end as INTERRUPTED
    with their params so far, and the best is returned. The host steps the program in segments of about 0.2 s, or of one
    sweep where that takes longer; Ctrl-C waits 0.3 s for the one under way, then leaves it to the device and returns
    what there was before, though the next use of the device waits for it. Ctrl-C before any step has finished, as while
    the starts are drawn, raises KeyboardInterrupt: there is nothing to return. So it does while JAX compiles, at once
    or when that is done, as the version of JAX has it.

    With a `checkpoint` the state of all restarts, optimisers and random streams included, is written to that file every
    few seconds and at the end, whatever ends it. If the file is there, the fit goes on from it: one that was killed, or
    ended by an error, Ctrl-C, a callback or the time limit, then ends bit-identical to one that never was, on the same
    device kind and JAX version. A file that belongs to another model, data, key or setting is refused, never
    overwritten; what functions compute cannot be compared, only their names and the values they hold. It may go on for
    more `max_steps` than before, where the algorithm's settings do not depend on them (a schedule, a gradient ascent).

    Of a stream a step is a pass, in which each batch is read once for all restarts, by a thread ahead of the device;
    one pass or a few before the first step bind the model and draw the starts. A checkpoint then has the place in the
    pass and its sums so far. An error of the source ends the fit; the error's `.fit` is what there was. For `EM` and
    `OnlineEM`, whose second passes are shuffled.

    Args:
      model: a model, such as `GMM(3)` or `KMeans(8)`.
      data: an array (N, D), or any pytree of arrays with a shared leading axis N. float32 and float64 stay what they
        are (float64 needs JAX's x64 mode); integers become the default float, half precision float32. Or rows over
        devices, as `shard_data` gives, or those of a `stream`, which are read in every step.
      key: a JAX random key, `jax.random.key(0)`.
      params: start from these instead of random starts; with R > 1 restarts every leaf has a leading axis R.
        Interchangeable parts, as components, then keep the order they have here; after random starts the largest come
        first.
      weights: (N,) non-negative; None for ones, and for sharded rows and streams, which have their own. Weight 2 is a
        row twice, weight 0 an absent row.
      algorithm: `EM()` by default; `GeneralizedEM()` for a model without a closed M-step, `CoordinateAscent()` for a
        mean-field one, `GradientAscent()` for an `ELBOModel` without an E-step. `KMeans` from random starts, without a
        `screen`, goes on by `Swap(num_swaps=15 K, num_steps=5)`, at most 100 swaps and max_steps / 2, while N D K is at
        most 200,000.
      stop: the stop rule, as `Stop`; None for the model's own.
      max_steps: most M-steps of a restart; the trace, R (max_steps + 1) numbers, may take 512 MiB.
      num_restarts: R >= 1.
      restart_batch: number of lanes W stepped together, at most R; None chooses from the shapes and the memory.
      screen: optional `Screen`.
      callback: called with a `Progress` after each segment; returning True ends the fit. Its exceptions pass through.
      progress: whether to show a tqdm bar (needs tqdm): over restarts, or over the steps of a single one.
      time_limit: seconds, compilation included; None for no limit. At least one sweep is done.
      checkpoint: path of a .npz file to write and to resume from; None for none. Of the size of the params and the
        algorithm's state for all restarts.

    Returns:
      A `Fit`. May be called under the caller's `jit` and `vmap`: then it is part of that program, nothing warns or
      raises and the codes tell, and there is no host for `callback`, `progress`, `time_limit` and `checkpoint`, which
      are refused.

    Raises:
      ValueError, TypeError: bad input, named, before anything is compiled (values only where they are no tracers; of a
        stream when they are read); a checkpoint of another fit; a stream with what looks at all rows within a step.
      FitError: no restart has a finite objective; its `.fit` holds the codes.
      KeyboardInterrupt: Ctrl-C before any step has finished.
      MemoryError: there is no memory left.

    Time is O(steps * cost of an E-step); memory O(R (params + max_steps)).

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (100, 1))
      >>> result = jaxem.fit(jaxem.GMM(1), x, key=jax.random.key(1))
      >>> bool(result.status == jaxem.Status.CONVERGED), int(result.num_steps)
      (True, 1)
      >>> show = lambda progress: print(progress.statuses)
      >>> result = jaxem.fit(jaxem.GMM(1), x, key=jax.random.key(1), callback=show)
      {'RUNNING': 1}
      {'CONVERGED': 1}
    """
    began = time.perf_counter()
    watch = Watch(callback, progress, time_limit, checkpoint)
    watch.check()
    settings = (max_steps, num_restarts, restart_batch, screen)
    with _plan.within_memory(model, data) as known:
        if isinstance(data, Stream):
            return _fit_stream(model, data, key, params, weights, algorithm, stop, settings, watch, began, known)
        problem, seen = prepare(model, data, key, params, weights, algorithm, stop, *settings)
        known.append(problem)
        if is_concrete(problem):
            return checked(problem, drive(problem, watch, began, finish), seen)
    watch.refuse()
    problem = fence(problem)
    table = fence(_table.begin(problem, *_table.draw(problem)))
    return checked(problem, finish(problem, fence(_table.stepped(problem, table, _table.FOREVER))), seen)


def _first(stream: Stream) -> Batch:
    """The first batch; ValueError where there is none."""
    batch = next(stream.read(), None)
    if batch is None:
        raise ValueError("data: expected at least one row; found a stream without any")
    return batch


def _fit_stream(
    model: Any,
    stream: Stream,
    key: Array,
    params: PyTree | None,
    weights: Any,
    algorithm: Any,
    stop: StopRule | None,
    settings: tuple[int, int, int | None, Screen | None],
    watch: Watch,
    began: float,
    known: list[Problem],
) -> Fit:
    """`fit` of a stream, whose first batch stands for the others where arguments are checked."""
    if weights is not None:
        raise ValueError("weights: expected None, as a stream has its own; give them to jaxem.stream(..., weights=)")
    check_model(model, stream)
    if not is_concrete(model, key, params):
        raise TypeError("data: expected rows in memory inside jit or vmap, where no host reads; found a stream")
    plain = model.model if isinstance(model, Sharded) else model
    first = _processes.together(lambda: _first(stream), "data") if isinstance(model, Sharded) else _first(stream)
    data = plain.opened(keyed(first.data, stream, plain.row_keys), "data")
    dtype = _rows.float_dtype_of(jax.tree.leaves(data)[0])
    reader = Reader(stream, plain, dtype, Layout(model.layout.mesh, ()) if isinstance(model, Sharded) else None)
    given = [] if stream.columns is None else [("", stream.columns)]
    if algorithm is None:
        algorithm = choose_algorithm(plain, None)
    data, ones = reader.padded(data, None)
    with _whole.of_many(stream.num_rows or np.iinfo(np.int32).max):  # where it is not known, the first pass tells
        problem, seen = prepare(model, data, key, params, np.maximum(ones, 1), algorithm, stop, *settings)
    seen = dataclasses.replace(seen, names=Rows.of(data, dict(given)).names)
    _stream.check(problem)
    rows = problem.data, problem.weights
    plan = _plan.of_stream(problem.plan, problem.lanes, rows, AHEAD + _stream.IN_FLIGHT + 2, problem.layout)
    problem = dataclasses.replace(problem, plan=plan)
    known.append(problem)
    return checked(problem, _stream.Run(problem, reader, watch, began, finish).fit(), seen)


def prepare(
    model: Any,
    data: PyTree,
    key: Array,
    params: PyTree | None,
    weights: Array | None,
    algorithm: Any,
    stop: StopRule | None,
    max_steps: int,
    num_restarts: int,
    restart_batch: int | None,
    screen: Screen | None,
) -> tuple[Problem, Rows]:
    """Checks every argument on the host and casts them to the data's dtype, and says what rows look like; see `fit`."""
    check_integer("max_steps", max_steps, 0)
    check_integer("num_restarts", num_restarts, 1)
    if restart_batch is not None:
        check_integer("restart_batch", restart_batch, 1)
    if screen is not None:
        expect("screen", screen, Screen, "jaxem.Screen(num_steps=10, keep=8), or None")
        check_integer("screen.num_steps", screen.num_steps, 0)
        check_integer("screen.keep", screen.keep, 1)
    check_model(model, data)
    key = as_key(key)
    model = dataclasses.replace(model, rows=None)  # that of an earlier fit
    model, data, weights, layout = over_mesh(model, data, weights)
    settings = int(max_steps), int(num_restarts), restart_batch, screen
    with _mesh.over(layout):
        return _prepared(model, data, key, params, weights, algorithm, stop, settings, layout)


def _prepared(
    model: Any,
    data: PyTree,
    key: Array,
    params: PyTree | None,
    weights: Array | None,
    algorithm: Any,
    stop: StopRule | None,
    settings: tuple[int, int, int | None, Screen | None],
    layout: Layout | None,
) -> tuple[Problem, Rows]:
    """`prepare` of rows that lie where they lie."""
    max_steps, num_restarts, restart_batch, screen = settings
    given, (data, seen) = data, _rows.read(model.opened(data, "data"), keys=model.row_keys)
    dtype = _tree.float_dtype(data)
    _table.check_trace(num_restarts, max_steps, dtype)
    weights = _rows.as_weights(weights, _tree.num_rows(data), dtype, like=given)
    model.check(data)
    check_enough(model, _whole.num_all(_tree.num_rows(data)))
    if algorithm is None and params is None and screen is None:
        algorithm = search(model, data, max_steps)
    looked_at = dataclasses.replace(model, rows=seen)  # further rows are held against these
    algorithm = choose_algorithm(model, algorithm).prepare(looked_at, data, key, max_steps)
    stop = choose_stop(model, stop)
    for name, part in (("model", model), ("algorithm", algorithm), ("stop", stop)):
        check_leaves(name, part)
    model, algorithm, stop = (cast_floats(part, dtype) for part in (model, algorithm, stop))
    if params is not None:
        shapes = jax.eval_shape(_start_params, model, *as_many(model, data), key)
        params = as_params(params, shapes, num_restarts, dtype, model)
        model.check(data, params)
    _shapes.check(model, data, key)
    if screen is not None:  # int32 in the program
        screen = Screen(min(screen.num_steps, max_steps), min(screen.keep, num_restarts))
    dealt = _table.check_dealt(layout, num_restarts, screen)
    wanted, mine = restart_batch or _lanes(_step_cost(model, data)), num_restarts // dealt
    model, lanes, plan = _plan.choose(
        model, data, weights, key, algorithm, mine, wanted, restart_batch is not None, layout
    )
    keys = _table.restart_keys(key, num_restarts)
    sizes = max_steps, num_restarts, int(lanes)
    known = _independent(model, data, weights)
    if layout is not None:  # all that a program is given is to be on its devices
        copies = (model, keys, params, algorithm, stop)
        _check_alike(copies, (*sizes, screen))
        model, keys, params, algorithm, stop = _mesh.put_copies(copies, layout.mesh)
    return Problem(
        model, data, weights, keys, params, algorithm, stop, screen, *sizes, known, np.int32(max_steps), layout, plan
    ), seen


def _check_alike(parts: tuple[Any, ...], sizes: tuple[Any, ...]) -> None:
    """Raises ValueError, in all of several processes, unless they were told the same."""
    if jax.process_count() > 1:
        _processes.check_cache()
        names = ("model", "key", "params", "algorithm", "stop", "max_steps, num_restarts, restart_batch or screen")
        found = {name: digest(part) for name, part in zip(names, (*parts, sizes), strict=True)}
        _processes.check_same(found, "which fit together")


def _independent(model: ELBOModel, data: PyTree, weights: Array) -> bool:
    """Whether the host can tell, for a family that would search for them, that no columns depend on each other."""
    families = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, Family))
    if not any(isinstance(family, Family) and family.finds_span for family in families):
        return False
    if not is_concrete(data, weights):
        return False
    if _mesh.current() is not None:
        data, weights = _some_rows((data, weights), _mesh.layout())
    if any(_rows.where_it_lies(leaf)[0] is not np for leaf in jax.tree.leaves(data)):
        return False  # nothing is copied from accelerators
    return surely_independent(*jax.tree.map(np.asarray, (data, weights)))


@partial(jax.jit, static_argnums=1)
def _every(tree: PyTree, layout: Layout) -> PyTree:
    with _mesh.over(layout):
        return _whole.every(tree, max(1, layout.num_rows // LOOKED_AT))


def _some_rows(tree: PyTree, layout: Layout) -> PyTree:
    """Some rows of those over a mesh, on this host."""
    return jax.tree.map(np.asarray, _every(tree, layout))


def search(model: ELBOModel, data: PyTree, max_steps: int) -> Swap | None:
    """Swaps from random starts where no spike raises the objective without bound, K-means, and steps are short.

    By shapes alone, whatever the number of restarts: the fate of a restart depends on its key.
    """
    suits = model.scales and model.climbed_by == "m_step" and has_places(model)
    if not suits or _step_cost(model, data) > SEARCH:
        return None
    num = min(15 * (model.num_states or 7), 100, max_steps // 2)
    return Swap(num_swaps=num, num_steps=5) if num > 0 and model.num_states != 1 else None


def choose_algorithm(model: ELBOModel, algorithm: Any) -> Algorithm:
    """The algorithm, or the default for the model; raises TypeError where it is none."""
    if algorithm is None:
        by_gradient = GeneralizedEM() if isinstance(model, LatentModel) else GradientAscent()
        algorithm = {"m_step": EM(), "coordinates": CoordinateAscent(), "gradient": by_gradient}[model.climbed_by]
    if isinstance(algorithm, Rule):
        raise TypeError(f"algorithm: expected an algorithm; found a rule; it goes into one, as jaxem.EM({algorithm!r})")
    expect("algorithm", algorithm, Algorithm, "an algorithm, as jaxem.EM() or jaxem.GradientAscent(optimizer)")
    return algorithm


def choose_stop(model: ELBOModel, stop: Any) -> StopRule:
    """The stop rule, or the model's own; raises where it is none, or does not suit the model."""
    if stop is None:  # per unit of weight, or relative where the objective scales with the data
        stop = Stop(atol=0.0, rtol=1e-7) if model.scales else Stop()
    if as_numbers(stop) is not None:
        found = f"{shown(stop)}; write jaxem.Stop(atol={shown(stop)})"
        raise TypeError(f"stop: expected a stop rule, as jaxem.Stop(); found {found}")
    expect("stop", stop, StopRule, "a stop rule, as jaxem.Stop()")
    stop.validate(model)
    return stop


@jax.jit
def _start_params(model: Any, data: PyTree, weights: Array, key: Array) -> PyTree:
    return model.bind(data, weights).init(key, data, weights)


def _step_cost(model: ELBOModel, data: PyTree) -> int:
    """Rough number of multiply-adds of one step, from shapes alone."""
    return (model.num_states or 1) * sum(leaf.size for leaf in jax.tree.leaves(data))


def _lanes(cost: int) -> int:
    """Lane width W from the multiply-adds of a step: wide where it is all overhead, 1 where it fills the cores."""
    if jax.default_backend() == "cpu":
        return 4 if cost < 400_000 else 1
    return 32 if cost < 4_000_000 else 4


@jax.jit
def _examine(model: Any, packed: Packed, data: PyTree, weights: Array) -> tuple[Health, Array, Array, Array]:
    """Health and slack of all restarts, the observations that weights stand for, and the rows that have one."""
    return _examined(model, packed, total_weight(data, weights), num_observations(data, weights))


def _examined(model: Any, packed: Packed, total: Array, rows: Array) -> tuple[Health, Array, Array, Array]:
    states = packed.unpack()
    slack = numerics.slack(states.elbo.total, total, model.scales)
    return jax.vmap(model.health)(states.params), slack, total, rows


_examined_stream = jax.jit(_examined)


def _same_optimum(model: Any, elbo: Array, best: Array, observations: Array, slack: Array) -> Array:
    """Whether restarts' objectives count as one optimum: within 0.01 nats + 1e-6 for each unit of weight.

    A stop rule per unit of weight leaves a distance that grows with the weight: the default one, 1e-8 a step, about
    1e-6 at a rate of 0.99. Of an objective that scales with the data: within a relative 1e-4. Rounding counts besides.
    """
    near = 1e-4 * abs(best) if model.scales else 0.01 + 1e-6 * observations
    return (abs(elbo - best) <= near) | (abs(elbo - best) <= slack)


def finish(problem: Problem, table: Table, counts: tuple[float, int] | None = None) -> Fit:
    """The result of a table; numpy's warnings are off, since codes tell of what is not finite.

    Of a stream the `counts` of observations, by their weights and those of positive weight, are known.
    """
    with np.errstate(all="ignore"):
        return _finish(problem, table, counts)


def _finish(problem: Problem, table: Table, counts: tuple[float, int] | None) -> Fit:
    """Resolves the codes, picks the winner and describes it. Restarts that still run are INTERRUPTED."""
    model = table.model
    if counts is None:
        examined = _examine(model, table.packed, problem.data, problem.weights)
    else:
        most = np.iinfo(np.int32).max  # beyond, there are "at least" so many
        total, rows = np.asarray(counts[0], problem.weights.dtype), np.int32(min(counts[1], most))
        examined = _examined_stream(model, table.packed, total, rows)
    xp = namespace((examined, table.packed))
    jax.block_until_ready((examined, table.packed, table.trace))  # of no memory NumPy would end the process
    packed, trace, examined = jax.tree.map(xp.asarray, (table.packed, table.trace, examined))
    health, slack, observations, num_rows = examined
    trace = trace[:, : problem.max_steps + 1]
    states = packed.unpack()
    elbo, total = states.elbo, states.elbo.total
    finite, spike = xp.isfinite(total), xp.isfinite(total) & (health.influence > DEGENERATE)
    status = xp.where(unfinished(problem, states), int(Status.INTERRUPTED), states.status)
    status = xp.where(status == Status.RUNNING, int(Status.MAX_STEPS), status)
    # What has learned nothing is neither converged nor merely short of steps.
    ended = (status == Status.CONVERGED) | (status == Status.MAX_STEPS)
    status = xp.where(ended & (elbo.data < health.least_elbo), int(Status.UNDERFIT), status)
    status = xp.where(spike, int(Status.DEGENERATE), status).astype(xp.int32)
    num_steps = states.num_steps
    failed = (status == Status.NONFINITE) | (status == Status.DECREASED)
    grade = xp.where(status == Status.CONVERGED, 4, xp.where(failed, 2, 3))
    grade = xp.where(finite, xp.where(spike, 1, grade), 0)
    winner = xp.argmax(xp.where(finite & (grade == xp.max(grade)), total, -xp.inf))
    won, health_won = jax.tree.map(lambda a: a[winner], (states, health))
    hits = finite & ~(spike & ~spike[winner]) & _same_optimum(model, total, won.elbo.total, observations, slack[winner])
    if problem.layout is not None:  # an answer is of this process alone, and its model of any rows
        model, won = _mesh.at_home((model.model if isinstance(model, Sharded) else model, won))
    model = _plan.without_chunks(model, problem.plan)
    result = Fit(
        model=model,
        params=model.canonical(won.params, reorder=problem.params is None),
        elbo=won.elbo,
        status=status[winner],
        num_steps=num_steps[winner],
        hits=xp.sum(hits, dtype=xp.int32),
        trace=trace[winner],
        winner=winner.astype(xp.int32),
        health=health_won,
        coincident=model.coincident(won.params),
        restarts=Restarts(elbo, status, num_steps, trace, health.influence, health.min_count, states.skipped),
        total_weight=observations,
        num_rows=num_rows,
        plan=problem.plan,
    )
    return jax.device_put(result) if xp is np else result


def checked(problem: Problem, result: Fit, seen: Rows) -> Fit:
    """The fit, its model told what rows look like, once it is computed; warns and raises where values are known."""
    result = dataclasses.replace(result, model=dataclasses.replace(result.model, rows=seen))
    if is_concrete(result):
        jax.block_until_ready(result)
        _verdict.announce(problem, result)
    return result
