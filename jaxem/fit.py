"""fit: the one convergence loop, a table of restarts stepped a few lanes at a time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import _inputs, _tree
from jaxem._numerics import is_concrete
from jaxem._pytree import dataclass, static
from jaxem._tree import PyTree
from jaxem.algorithms import EM
from jaxem.model import ELBOModel
from jaxem.result import Fit, FitError, Restarts
from jaxem.stopping import Status, Stop

# A component whose spread is more than this share the penalty's is a spike; honest optima are below 4e-5.
DEGENERATE = 0.1


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
    key: Array
    params: PyTree
    algorithm: Any
    stop: Stop
    screen: Screen | None = None
    max_steps: int = static(default=200)
    num_restarts: int = static(default=1)
    lanes: int = static(default=1)


@dataclass
class Table:
    """The state of all R restarts.

    Attributes:
      model: the model bound to the data.
      states: the algorithm's states, each leaf with a leading axis R.
      trace: (R, max_steps + 1) ELBO.total after t M-steps, NaN where not reached.
      screened: whether screening has taken place.
    """

    model: Any
    states: Any
    trace: Array
    screened: Array


def fit(
    model: ELBOModel,
    data: PyTree,
    *,
    key: Array,
    params: PyTree | None = None,
    weights: Array | None = None,
    algorithm: Any = None,
    stop: Stop | None = None,
    max_steps: int = 200,
    num_restarts: int = 1,
    restart_batch: int | None = None,
    screen: Screen | None = None,
) -> Fit:
    """Fits a model from one or many starts, in one compiled program, and reports the fate of each.

    Restart i starts from fold_in(key, i) alone. Finished restarts cost nothing: each sweep steps the first
    `restart_batch` that still run. Results are bit-identical for equal `restart_batch`, device kind and JAX version,
    whatever the number of restarts and their neighbours; across different widths they agree to rounding, which in
    float32 may lead to another optimum.

    The winner is the best restart by ELBO.total among those that converged and are not DEGENERATE; if there is none,
    among the finite that are not DEGENERATE; if there is none, among all finite, and the status says so.

    Args:
      model: a model, such as `GMM(3)` or `KMeans(8)`.
      data: an array (N, D), or any pytree of arrays with a shared leading axis N. float32 and float64 stay what they
        are (float64 needs JAX's x64 mode); integers become the default float, half precision float32.
      key: a JAX random key, `jax.random.key(0)`.
      params: start from these instead of random starts; with R > 1 restarts every leaf has a leading axis R.
      weights: (N,) non-negative; None for ones. Weight 2 is a row twice, weight 0 an absent row.
      algorithm: `EM()` by default.
      stop: the stop rule; None for the model's own.
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
      >>> result.status.name, int(result.num_steps)
      ('CONVERGED', 1)
    """
    problem = prepare(model, data, key, params, weights, algorithm, stop, max_steps, num_restarts, restart_batch, screen)
    table = advance(problem, start(problem), None)
    return checked(finish(problem, table))


def prepare(
    model: Any,
    data: PyTree,
    key: Array,
    params: PyTree | None,
    weights: Array | None,
    algorithm: Any,
    stop: Stop | None,
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
    algorithm = (EM() if algorithm is None else algorithm).tabulate(max_steps)
    stop = model.default_stop() if stop is None else stop
    model.validate(data, None)
    model, algorithm, stop = (_inputs.cast_floats(part, dtype) for part in (model, algorithm, stop))
    if params is not None:
        params = _inputs.as_params(params, _shapes(model, data, weights, key), num_restarts, dtype)
        model.validate(data, params)
    lanes = min(num_restarts, restart_batch or _lanes(model.step_cost(data)))
    return Problem(
        model, data, weights, key, params, algorithm, stop, screen, int(max_steps), int(num_restarts), int(lanes)
    )


def _shapes(model: Any, data: PyTree, weights: Array, key: Array) -> PyTree:
    return jax.eval_shape(lambda d, w, k: model.bind(d, w).init(k, d, w), data, weights, key)


def _lanes(cost: int) -> int:
    """Lane width W from the multiply-adds of one step: wide where a step is all overhead, 1 where it fills the cores."""
    if jax.default_backend() == "cpu":
        return 8 if cost < 20_000 else 4 if cost < 4_000_000 else 1
    return 32 if cost < 4_000_000 else 4


@jax.jit
def start(problem: Problem) -> Table:
    """Binds the model and draws the starts, W restarts at a time."""
    model = problem.model.bind(problem.data, problem.weights)
    dtype = _tree.float_dtype(problem.data)
    num, lanes = problem.num_restarts, problem.lanes

    def begin(index: Array) -> Any:
        params = model.init(jax.random.fold_in(problem.key, index), problem.data, problem.weights)
        return problem.algorithm.init(model, params, dtype)

    if problem.params is not None:
        params = problem.params if num > 1 else jax.tree.map(lambda a: a[None], problem.params)
        states = jax.vmap(lambda p: problem.algorithm.init(model, p, dtype))(params)
    else:
        batches = -(-num // lanes)
        ids = jnp.minimum(jnp.arange(batches * lanes), num - 1).reshape(batches, lanes)
        # One batch needs no loop, and every batch has the same width, so that no start depends on their number.
        if batches == 1:
            states = _lanewise(begin, ids[0])
        else:
            states = jax.lax.map(lambda i: _lanewise(begin, i), ids)
            states = jax.tree.map(lambda a: a.reshape(batches * lanes, *a.shape[2:])[:num], states)
    trace = jnp.full((num, problem.max_steps + 1), jnp.nan, dtype)
    return Table(model, states, trace, jnp.asarray(problem.screen is None))


def _lanewise(f: Any, lanes: Any) -> Any:
    """vmap over lanes; a single lane is not batched, so that its branches stay branches."""
    if jax.tree.leaves(lanes)[0].shape[0] > 1:
        return jax.vmap(f)(lanes)
    out = f(jax.tree.map(lambda a: a[0], lanes))
    return jax.tree.map(lambda a: a[None], out)


@jax.jit
def advance(problem: Problem, table: Table, max_sweeps: Array | None) -> Table:
    """Steps the table until no restart runs, or for at most `max_sweeps` sweeps."""

    def running(carry: tuple[Table, Array]) -> Array:
        table, sweeps = carry
        more = jnp.any(_running(problem, table.states))
        return more if max_sweeps is None else more & (sweeps < max_sweeps)

    def sweep(carry: tuple[Table, Array]) -> tuple[Table, Array]:
        table, sweeps = carry
        return _sweep(problem, table), sweeps + 1

    return jax.lax.while_loop(running, sweep, (table, jnp.zeros((), jnp.int32)))[0]


def _running(problem: Problem, states: Any) -> Array:
    return (states.status == Status.RUNNING) & (states.step <= problem.max_steps)


def _sweep(problem: Problem, table: Table) -> Table:
    """One step of the first W restarts that run."""
    table, eligible = _screen(problem, table)
    if problem.lanes == problem.num_restarts:  # every restart has its own lane: no gather, no scatter
        return _sweep_all(problem, table, eligible)
    ids = jnp.nonzero(eligible, size=problem.lanes, fill_value=problem.num_restarts)[0]
    before = _tree.take(table.states, ids)
    after = _lanewise(lambda state: _step(problem, table.model, state), before)
    trace = table.trace.at[ids, before.step].set(_reached(after), mode="drop")
    return dataclasses.replace(table, states=_tree.put(table.states, ids, after), trace=trace)


def _sweep_all(problem: Problem, table: Table, eligible: Array) -> Table:
    before = table.states
    after = _lanewise(lambda state: _step(problem, table.model, state), before)
    states = jax.vmap(_tree.where)(eligible, after, before)
    here = eligible[:, None] & (jnp.arange(table.trace.shape[1])[None] == before.step[:, None])
    trace = jnp.where(here, _reached(after)[:, None], table.trace)
    return dataclasses.replace(table, states=states, trace=trace)


def _reached(after: Any) -> Array:
    """The objective of the params just scored, NaN where they were not accepted."""
    accepted = (after.status != Status.NONFINITE) & (after.status != Status.DECREASED)
    return jnp.where(accepted, after.elbo.total, jnp.nan)


def _step(problem: Problem, model: Any, state: Any) -> Any:
    """One step of the algorithm and the stop rule."""
    after = problem.algorithm.step(model, state, problem.data, problem.weights)
    total = jnp.sum(problem.weights)
    small = problem.stop(state.elbo.total, after.elbo.total, total, model.slack(after.elbo.total, total))
    # The step that led to this value is the one before: the rule must have settled by then.
    settled = (state.step > 0) & problem.algorithm.settled(model, jnp.maximum(state.step - 1, 0))
    converged = (after.status == Status.RUNNING) & small & settled
    return dataclasses.replace(after, status=jnp.where(converged, Status.CONVERGED, after.status).astype(jnp.int32))


def _screen(problem: Problem, table: Table) -> tuple[Table, Array]:
    """The restarts that may step now, after screening if its short runs are over."""
    running = _running(problem, table.states)
    if problem.screen is None:
        return table, running
    short = running & (table.states.step <= problem.screen.num_steps)
    due = ~table.screened & ~jnp.any(short)
    elbo = jnp.where(running, table.states.elbo.total, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-elbo))
    drop = due & running & (rank >= problem.screen.keep)
    status = jnp.where(drop, Status.SCREENED, table.states.status).astype(jnp.int32)
    states = dataclasses.replace(table.states, status=status)
    screened = table.screened | due
    table = dataclasses.replace(table, states=states, screened=screened)
    return table, jnp.where(screened, running & ~drop, short)


@jax.jit
def finish(problem: Problem, table: Table) -> Fit:
    """Resolves the codes, picks the winner and describes it. Restarts that still run are INTERRUPTED."""
    model, states = table.model, table.states
    health = jax.vmap(model.health)(states.params)
    elbo = states.elbo
    finite = jnp.isfinite(elbo.total)
    status = jnp.where(_running(problem, states), Status.INTERRUPTED, states.status)
    status = jnp.where(status == Status.RUNNING, Status.MAX_STEPS, status)
    spike = finite & (health.influence > DEGENERATE)
    status = jnp.where(spike, Status.DEGENERATE, status).astype(jnp.int32)
    rejected = (states.status == Status.NONFINITE) | (states.status == Status.DECREASED)
    num_steps = jnp.maximum(states.step - 1 - rejected.astype(jnp.int32), 0)
    converged = status == Status.CONVERGED
    grade = jnp.where(converged, 3, jnp.where(finite & ~spike, 2, jnp.where(finite, 1, 0)))
    best = grade == jnp.max(grade)
    winner = jnp.argmax(jnp.where(best & finite, elbo.total, -jnp.inf))
    params = _tree.take(states.params, winner)
    restarts = Restarts(elbo, status, num_steps, table.trace, health.influence, health.min_count)
    same = jax.vmap(lambda e: model.same_optimum(e, elbo.total[winner]))(elbo.total)
    return Fit(
        model=model,
        params=model.canonical(params),
        elbo=_tree.take(elbo, winner),
        status=status[winner],
        num_steps=num_steps[winner],
        hits=jnp.sum(finite & ~(spike & ~spike[winner]) & same, dtype=jnp.int32),
        trace=table.trace[winner],
        winner=winner.astype(jnp.int32),
        health=_tree.take(health, winner),
        coincident=model.coincident(params),
        restarts=restarts,
    )


def checked(result: Fit) -> Fit:
    """The fit, with `Status` objects where values are known; raises FitError if no restart is finite."""
    if not is_concrete(result):
        return result
    jax.block_until_ready(result)
    codes = result.restarts.status
    failed = jnp.isneginf(result.restarts.elbo.total)
    if bool(failed.all()) and not bool((codes == Status.INTERRUPTED).any()):
        raise FitError(result)
    return result
