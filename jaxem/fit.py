"""fit: the one convergence loop, a table of restarts stepped a few lanes at a time."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import _inputs, _shapes, _tree
from jaxem._numerics import is_concrete, namespace
from jaxem._pytree import dataclass, static
from jaxem._tree import Packed, PyTree
from jaxem.algorithms import EM, Algorithm, CoordinateAscent, GeneralizedEM, GradientAscent
from jaxem.families._reasons import DEGENERATE
from jaxem.model import ELBOModel, Health, LatentModel
from jaxem.result import Fit, FitError, Restarts
from jaxem.stopping import Status, Step, StopRule

# More sweeps than a fit can take; an argument like any other, so that `run` steps the very same program.
FOREVER = np.int32(2**31 - 1)


@dataclass
class Screen:
    """Screening of restarts: run all for `num_steps` steps, then go on with the best `keep` of them alone.

    The others end as SCREENED, with the ELBO they had. Ranking is by ELBO.total among restarts with finite values,
    ties to the lowest index; restarts that converged within the short run keep their status and take no place. A
    restart's fate then depends on its neighbours, unlike without screening.

    Attributes:
      num_steps: M-steps of the short run.
      keep: how many go on.
    """

    num_steps: int = static(default=10)
    keep: int = static(default=8)


@dataclass
class Problem:
    """All that a fit needs, checked and cast; static fields decide the compiled program."""

    model: Any
    data: PyTree
    weights: Array
    keys: Array
    params: PyTree
    algorithm: Any
    stop: StopRule
    screen: Screen | None = None
    max_steps: int = static(default=200)
    num_restarts: int = static(default=1)
    lanes: int = static(default=1)


@dataclass
class Table:
    """The state of all R restarts.

    Attributes:
      model: the model bound to the data.
      data: the data in the model's own layout.
      packed: the algorithm's states, a row for each restart; `states` is the readable view.
      trace: (R, max_steps + 1) ELBO.total after t M-steps, NaN where not reached.
      screened: whether screening has taken place.
    """

    model: Any
    data: PyTree
    packed: Packed
    trace: Array
    screened: Array

    @property
    def states(self) -> Any:
        """The algorithm's states, each leaf with a leading axis R."""
        return self.packed.unpack()


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
) -> Fit:
    """Fits a model from one or many starts, in one compiled program, and reports the fate of each.

    Restart i starts from fold_in(key, i) alone. Finished restarts cost nothing: each sweep steps the first
    `restart_batch` that still run. Results are bit-identical for equal `restart_batch`, device kind and JAX version,
    whatever the number of restarts and their neighbours, under `run` and inside the caller's `jit`; across different
    widths, and under the caller's `vmap`, which widens the lanes, they agree to rounding, which in float32 may lead to
    another optimum.

    The winner is the best restart by ELBO.total among those that converged and are not DEGENERATE; if there is none,
    among the finite that are not DEGENERATE; if there is none, among all finite, and the status says so.

    Args:
      model: a model, such as `GMM(3)` or `KMeans(8)`.
      data: an array (N, D), or any pytree of arrays with a shared leading axis N. float32 and float64 stay what they
        are (float64 needs JAX's x64 mode); integers become the default float, half precision float32.
      key: a JAX random key, `jax.random.key(0)`.
      params: start from these instead of random starts; with R > 1 restarts every leaf has a leading axis R.
      weights: (N,) non-negative; None for ones. Weight 2 is a row twice, weight 0 an absent row.
      algorithm: `EM()` by default; `GeneralizedEM()` for a model without a closed M-step, `CoordinateAscent()` for a
        mean-field one, `GradientAscent()` for an `ELBOModel` without an E-step.
      stop: the stop rule, as `Stop`; None for the model's own.
      max_steps: most M-steps of a restart.
      num_restarts: R >= 1.
      restart_batch: number of lanes W stepped together, at most R; None chooses from the shapes.
      screen: optional `Screen`.

    Returns:
      A `Fit`. May be called under the caller's `jit` and `vmap`; then nothing raises and the codes tell.

    Raises:
      ValueError, TypeError: bad input, named, before anything is compiled (values only where they are no tracers).
      FitError: no restart has a finite objective; its `.fit` holds the codes.

    Time is O(steps * cost of an E-step); memory O(R (params + max_steps)).

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (100, 1))
      >>> result = jaxem.fit(jaxem.GMM(1), x, key=jax.random.key(1))
      >>> bool(result.status == jaxem.Status.CONVERGED), int(result.num_steps)
      (True, 1)
    """
    problem = prepare(
        model, data, key, params, weights, algorithm, stop, max_steps, num_restarts, restart_batch, screen
    )
    problem = _fence(problem)
    table = _fence(advance(problem, _fence(start(problem)), FOREVER))
    return checked(finish(problem, table))


def _fence(tree: PyTree) -> PyTree:
    """Keeps the stages of a fit apart inside a caller's program, where they would be fused to other roundings."""
    return tree if is_concrete(tree) else jax.lax.optimization_barrier(tree)


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
) -> Problem:
    """Checks every argument on the host and casts them to the data's dtype; see `fit` for the arguments."""
    _inputs.check_count("max_steps", max_steps, 0)
    _inputs.check_count("num_restarts", num_restarts, 1)
    if restart_batch is not None:
        _inputs.check_count("restart_batch", restart_batch, 1)
    if screen is not None:
        _inputs.check_count("screen.num_steps", screen.num_steps, 0)
        _inputs.check_count("screen.keep", screen.keep, 1)
    _inputs.check_model(model)
    key = _inputs.as_key(key)
    data = _inputs.as_data(data)
    dtype = _tree.float_dtype(data)
    weights = _inputs.as_weights(weights, _tree.num_rows(data), dtype)
    algorithm = choose_algorithm(model, algorithm, _tree.num_rows(data)).tabulate(max_steps)
    algorithm = algorithm.bind(model, data, key, int(max_steps))
    stop = model.default_stop() if stop is None else stop
    if not isinstance(stop, StopRule):
        raise TypeError(f"stop: expected a stop rule, as jaxem.Stop(); found {stop!r}")
    model.validate(data, None)
    model, algorithm, stop = (_inputs.cast_floats(part, dtype) for part in (model, algorithm, stop))
    if params is not None:
        params = _inputs.as_params(
            params, jax.eval_shape(_start_params, model, data, weights, key), num_restarts, dtype
        )
        model.validate(data, params)
    _shapes.check(model, data, weights, key)
    lanes = min(num_restarts, restart_batch or _lanes(model.step_cost(data)))
    keys = _restart_keys(key, int(num_restarts))
    return Problem(
        model, data, weights, keys, params, algorithm, stop, screen, int(max_steps), int(num_restarts), int(lanes)
    )


def choose_algorithm(model: ELBOModel, algorithm: Any, num_rows: int) -> Algorithm:
    """The algorithm, or the default for the model; raises where it is none, or does not suit the model or the data."""
    if algorithm is None:
        sequential, closed = getattr(model, "sequential", False), getattr(model, "closed_form", True)
        algorithm = CoordinateAscent() if sequential else EM() if closed else GeneralizedEM()
        algorithm = algorithm if isinstance(model, LatentModel) else GradientAscent()
    if not isinstance(algorithm, Algorithm):
        raise TypeError(f"algorithm: expected an algorithm, as jaxem.EM(); found {algorithm!r}")
    algorithm.validate(model, num_rows)
    return algorithm


@jax.jit
def _start_params(model: Any, data: PyTree, weights: Array, key: Array) -> PyTree:
    return model.bind(data, weights).init(key, data, weights)


def _lanes(cost: int) -> int:
    """Lane width W from the multiply-adds of a step: wide where it is all overhead, 1 where it fills the cores."""
    if jax.default_backend() == "cpu":
        return 4 if cost < 400_000 else 1
    return 32 if cost < 4_000_000 else 4


@partial(jax.jit, static_argnums=1)
def _restart_keys(key: Array, num: int) -> Array:
    """fold_in(key, i) for each restart; a program of its own when called from the host, shared by all fits."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num, dtype=jnp.int32))


@jax.jit
def _draw(problem: Problem) -> tuple[Any, PyTree, PyTree]:
    """The model bound to the data, the data in its layout, and the params of all starts."""
    model = problem.model.bind(problem.data, problem.weights)
    data = model.arrange(problem.data)
    if problem.params is not None:
        return model, data, _adopt(model, problem)
    # One at a time: half the compile time of a batch, and a start does not depend on the lane width.
    draw = lambda key: model.init(key, problem.data, problem.weights)
    if problem.num_restarts > 1:
        return model, data, jax.lax.map(draw, problem.keys)
    return model, data, draw(problem.keys[0])


def _adopt(model: Any, problem: Problem) -> PyTree:
    """The given params of all starts, as the bound model can use them."""
    adopt = model.adopt if problem.num_restarts == 1 else jax.vmap(model.adopt)
    return adopt(problem.params)


def start(problem: Problem) -> Table:
    """Binds the model and draws the starts."""
    model, data, params = _draw(problem)
    num, dtype, xp = problem.num_restarts, _tree.float_dtype(problem.data), namespace(params)
    params = jax.tree.map(lambda a: xp.asarray(a)[None] if num == 1 else xp.asarray(a), params)
    packed = _tree.pack(problem.algorithm.init(model, params, num, dtype))
    trace = xp.full((num, problem.max_steps + 1), xp.nan, dtype)
    return Table(model, data, packed, trace, xp.asarray(problem.screen is None))


def _lanewise(f: Any, lanes: Any) -> Any:
    """Vmap over lanes; a single lane is not batched, so that its branches stay branches."""
    if jax.tree.leaves(lanes)[0].shape[0] > 1:
        return jax.vmap(f)(lanes)
    out = f(jax.tree.map(lambda a: a[0], lanes))
    return jax.tree.map(lambda a: a[None], out)


@jax.jit
def advance(problem: Problem, table: Table, max_sweeps: Array | np.int32) -> Table:
    """Steps the table until no restart runs, or for at most `max_sweeps` sweeps."""
    # Only what a sweep changes is carried: a loop copies what it carries.
    changing = lambda table: (table.packed, table.trace, table.screened)
    whole = lambda carry: dataclasses.replace(table, packed=carry[0], trace=carry[1], screened=carry[2])

    def running(state: tuple[Any, Array]) -> Array:
        return jnp.any(_running(problem, whole(state[0]).states)) & (state[1] < max_sweeps)

    def sweep(state: tuple[Any, Array]) -> tuple[Any, Array]:
        return changing(_sweep(problem, whole(state[0]))), state[1] + 1

    return whole(jax.lax.while_loop(running, sweep, (changing(table), jnp.zeros((), jnp.int32)))[0])


def _running(problem: Problem, states: Any) -> Array:
    return (states.status == Status.RUNNING) & (states.step <= problem.max_steps)


def _sweep(problem: Problem, table: Table) -> Table:
    """One step of the first W restarts that run."""
    num, lanes = problem.num_restarts, problem.lanes
    table, eligible = _screen(problem, table)
    if lanes == num:  # every restart has its own lane: no gather, no scatter
        ids, packed = jnp.arange(num, dtype=jnp.int32), table.packed
    else:
        # The first W eligible ids, and R, which clips and drops, for lanes that are left over.
        order = jnp.where(eligible, num - jnp.arange(num, dtype=jnp.int32), 0)
        ids = num - jax.lax.top_k(order, lanes)[0]
        packed = _tree.take(table.packed, ids)
    before = packed.unpack()
    # Rows of the trace only where the stop rule looks at them: each operation costs compile time.
    traces = _tree.take(table.trace, ids) if problem.stop.uses_trace else None
    after = _lanewise(lambda lane: _step(problem, table, *lane), (before, traces))
    stepped = _tree.pack(after)
    if lanes == num:
        stepped = jax.tree.map(lambda new, old: jnp.where(eligible[:, None], new, old), stepped, packed)
        ids = jnp.where(eligible, ids, num)
    else:
        stepped = _tree.put(table.packed, ids, stepped)
    trace = table.trace.at[ids, before.step].set(after.scored, mode="drop")
    return dataclasses.replace(table, packed=stepped, trace=trace)


def _step(problem: Problem, table: Table, state: Any, trace: Array | None) -> Any:
    """One step of the algorithm and the stop rule."""
    model, data, weights = table.model, table.data, problem.weights
    after = problem.algorithm.step(model, state, data, weights)
    total, elbo = jnp.sum(weights), after.elbo.total
    small = problem.stop(
        Step(
            previous=state.elbo.total,
            current=elbo,
            old_params=state.params,
            params=after.params,
            total_weight=total,
            rounding=model.slack(elbo, total),
            model=model,
            data=data,
            weights=weights,
            index=state.step,
            trace=trace,
        )
    )
    # The step that led to this value is the one before: the rule must have settled by then.
    settled = (state.step > 0) & problem.algorithm.settled(model, jnp.maximum(state.step - 1, 0))
    converged = (after.status == Status.RUNNING) & small & settled
    return dataclasses.replace(after, status=jnp.where(converged, Status.CONVERGED, after.status).astype(jnp.int32))


def _screen(problem: Problem, table: Table) -> tuple[Table, Array]:
    """The restarts that may step now, after screening if its short runs are over."""
    states = table.states
    running = _running(problem, states)
    if problem.screen is None:
        return table, running
    short = running & (states.step <= problem.screen.num_steps)
    due = ~table.screened & ~jnp.any(short)
    elbo = jnp.where(running, states.elbo.total, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-elbo))
    drop = due & running & (rank >= problem.screen.keep)
    status = jnp.where(drop, Status.SCREENED, states.status).astype(jnp.int32)
    packed = _tree.pack(dataclasses.replace(states, status=status))
    screened = table.screened | due
    table = dataclasses.replace(table, packed=packed, screened=screened)
    return table, jnp.where(screened, running & ~drop, short)


@jax.jit
def _health(model: Any, packed: Packed) -> Health:
    return jax.vmap(model.health)(packed.unpack().params)


def finish(problem: Problem, table: Table) -> Fit:
    """The result of a table; numpy's warnings are off, since codes tell of what is not finite."""
    with np.errstate(all="ignore"):
        return _finish(problem, table)


def _finish(problem: Problem, table: Table) -> Fit:
    """Resolves the codes, picks the winner and describes it. Restarts that still run are INTERRUPTED."""
    model, health = table.model, _health(table.model, table.packed)
    xp = namespace((health, table.packed))
    packed, trace, health = jax.tree.map(xp.asarray, (table.packed, table.trace, health))
    states = packed.unpack()
    elbo, total = states.elbo, states.elbo.total
    finite, spike = xp.isfinite(total), xp.isfinite(total) & (health.influence > DEGENERATE)
    status = xp.where(_running(problem, states), int(Status.INTERRUPTED), states.status)
    status = xp.where(status == Status.RUNNING, int(Status.MAX_STEPS), status)
    status = xp.where(spike, int(Status.DEGENERATE), status).astype(xp.int32)
    num_steps = states.num_steps
    grade = xp.where(status == Status.CONVERGED, 3, xp.where(finite & ~spike, 2, xp.where(finite, 1, 0)))
    winner = xp.argmax(xp.where(finite & (grade == xp.max(grade)), total, -xp.inf))
    won, health_won = jax.tree.map(lambda a: a[winner], (states, health))
    hits = finite & ~(spike & ~spike[winner]) & model.same_optimum(total, won.elbo.total)
    result = Fit(
        model=model,
        params=model.canonical(won.params),
        elbo=won.elbo,
        status=status[winner],
        num_steps=num_steps[winner],
        hits=xp.sum(hits, dtype=xp.int32),
        trace=trace[winner],
        winner=winner.astype(xp.int32),
        health=health_won,
        coincident=model.coincident(won.params),
        restarts=Restarts(elbo, status, num_steps, trace, health.influence, health.min_count, states.skipped),
    )
    return jax.device_put(result) if xp is np else result


def checked(result: Fit) -> Fit:
    """The fit, once it is computed; raises FitError where values are known and no restart is finite."""
    if not is_concrete(result):
        return result
    jax.block_until_ready(result)
    codes = result.restarts.status
    if not np.isfinite(result.restarts.elbo.total).any() and not (np.asarray(codes) == Status.INTERRUPTED).any():
        raise FitError(result)
    return result
