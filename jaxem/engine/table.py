"""The table of restarts: what a fit needs, the state of all restarts, and the compiled loop that steps them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import mesh as _mesh
from jaxem.core import threefry
from jaxem.core import tree as _tree
from jaxem.core.memory import device_memory as _memory
from jaxem.core.mesh import Layout
from jaxem.core.numerics import is_concrete, namespace, slack
from jaxem.core.pytree import dataclass, static
from jaxem.core.sequences import total_weight
from jaxem.core.stages import stage
from jaxem.core.tree import Packed, PyTree
from jaxem.engine.plan import Plan
from jaxem.families.dependence import independent
from jaxem.stopping import Status, Step
from jaxem.wrappers import Wrapper

# More sweeps than a fit can take; an argument like any other, so that segments are steps of the very same program.
FOREVER = np.int32(2**31 - 1)
# Most bytes of the trace, of which three copies exist for a while: 300,000 restarts of 200 steps in float64.
TRACE_BYTES = 1 << 29
# Most bytes of a trace that is made wider than it need be, for programs that differ in max_steps alone to be one.
SHARED_BYTES = 1 << 24
# Most restarts whose starts are drawn one by one from the host, at a millisecond each; the program for more is quicker,
# but takes longer to compile and is shared with no other number.
FEW = 4


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
    """All that a fit needs, checked and cast; static fields decide the compiled program.

    `independent` says that the host has found the data's columns far from depending on each other. `last` is
    `max_steps` as a number in the program; the host knows both, the loop is given the problem as `in_loop`. `layout`
    is how rows, restarts or both lie over a mesh; None where all is on one device. `plan` is what was chosen to fit
    into memory, as lanes and in the model; no program is told.
    """

    model: Any
    data: PyTree
    weights: Array
    keys: Array
    params: PyTree
    algorithm: Any
    stop: Any
    screen: Screen | None = None
    max_steps: int = static(default=200)
    num_restarts: int = static(default=1)
    lanes: int = static(default=1)
    independent: bool = static(default=False)
    last: Array | np.int32 = np.int32(200)
    layout: Layout | None = static(default=None)
    plan: Plan | None = static(default=None)

    @property
    def in_loop(self) -> "Problem":
        """The problem as the loop's program sees it, the same for many numbers of steps."""
        return dataclasses.replace(self, max_steps=0, plan=None)

    @property
    def columns(self) -> int:
        """Of the trace while it is filled: a power of two that many numbers of steps share, unless it gets large."""
        exact = self.max_steps + 1
        shared = max(64, 1 << (exact - 1).bit_length())
        size = self.num_restarts * shared * _tree.float_dtype(self.data).itemsize
        return shared if size <= SHARED_BYTES else exact


@dataclass
class Table:
    """The state of all R restarts.

    Attributes:
      model: the model bound to the data.
      data: the data in the model's own layout.
      packed: the algorithm's states, a row for each restart; `states` is the readable view.
      trace: (R, columns) ELBO.total after t M-steps, NaN where not reached, and beyond max_steps.
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


def restart_keys(key: Array, num: int) -> Array:
    """fold_in(key, i) for each restart."""
    return threefry.fold_in_each(key, num)


def draw(problem: Problem) -> tuple[Any, PyTree, PyTree]:
    """The model bound to the data, the data in its layout, and the params of all starts."""
    alone = problem.layout is None or jax.process_count() == 1
    few = problem.params is None and problem.num_restarts <= FEW
    if few and alone and is_concrete(problem) and in_stages(problem.model):
        model, data = _bind(problem.model, problem.data, problem.weights, problem.independent, problem.layout)
        starts = [model.init(key, problem.data, problem.weights) for key in threefry.each(problem.keys)]
        return model, data, starts[0] if len(starts) == 1 else stack(starts)
    # Fits that differ only in what starts do not depend on draw them by one program.
    none: Any = dict.fromkeys(("algorithm", "stop", "screen", "plan"))
    return _draw(dataclasses.replace(problem, **none, max_steps=0, lanes=1, last=np.int32(0)))


def in_stages(model: Any) -> bool:
    """Whether a start is drawn by programs that are shared with other models."""
    marked = lambda model: getattr(type(model).init, "in_stages", False)
    while isinstance(model, Wrapper) and (type(model).init is Wrapper.init or marked(model)):
        model = model.model
    return marked(model)


def stack(trees: list[PyTree]) -> PyTree:
    """Trees as one, each leaf with a leading axis; in NumPy, at no compilation."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(trees))


@stage(3, 4)
def _bind(model: Any, data: PyTree, weights: Array, known: bool, layout: Layout | None) -> tuple[Any, PyTree]:
    with independent(known), _mesh.over(layout):
        model = model.bind(data, weights)
    return model, model.arrange(data)


@jax.jit
def _draw(problem: Problem) -> tuple[Any, PyTree, PyTree]:
    model, data = _bind(problem.model, problem.data, problem.weights, problem.independent, problem.layout)
    if problem.params is not None:
        return model, data, adopt(model, problem)
    # One at a time: half the compile time of a batch, and a start does not depend on the lane width.
    one = lambda key: model.init(key, problem.data, problem.weights)
    if problem.num_restarts > 1:
        params = jax.lax.map(one, problem.keys)
        _check_memory(problem.num_restarts, (params, params))  # what every state holds
        return model, data, params
    return model, data, one(problem.keys[0])


def adopt(model: Any, problem: Problem) -> PyTree:
    """The given params of all starts, as the bound model can use them."""
    adopt = lambda params: model.canonical(params, reorder=False)
    return adopt(problem.params) if problem.num_restarts == 1 else jax.vmap(adopt)(problem.params)


def check_trace(num_restarts: int, max_steps: int, dtype: Any) -> None:
    """Raises ValueError where R x (max_steps + 1) numbers are more than anyone can want."""
    size = num_restarts * (max_steps + 1) * jnp.dtype(dtype).itemsize
    if size > TRACE_BYTES:
        name, value = max(("max_steps", max_steps), ("num_restarts", num_restarts), key=lambda pair: pair[1])
        raise ValueError(
            f"{name}: expected a trace, num_restarts x (max_steps + 1) numbers, of at most {TRACE_BYTES >> 20} MiB; "
            f"found {value}, which makes it {size >> 20} MiB; lower it, and go on by another fit (from params= of "
            "the last, or with another key)"
        )


def _check_memory(num: int, states: PyTree) -> None:
    """Raises ValueError where the states of all restarts cannot fit; of tracers as well, which have a size."""
    memory = _memory()
    size = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(states))  # before and after a segment
    if size > memory:
        raise ValueError(
            f"num_restarts: expected restarts whose states fit twice into the {memory / 2**30:.1f} GiB of memory; "
            f"found {num}, which take {size / 2**30:.1f} GiB; lower it, and fit again with another key"
        )


def begin(problem: Problem, model: Any, data: PyTree, params: PyTree) -> Table:
    """The table before the first step, of what `draw` gives."""
    num, dtype, xp = problem.num_restarts, _tree.float_dtype(problem.data), namespace(params)
    params = jax.tree.map(lambda a: xp.asarray(a)[None] if num == 1 else xp.asarray(a), params)
    packed = _tree.pack(problem.algorithm.init(model, params, num, dtype))
    if num > 1:
        _check_memory(num, packed)
    trace = xp.full((num, problem.columns), xp.nan, dtype)
    return Table(model, data, packed, trace, xp.asarray(problem.screen is None))


def lanewise(f: Any, lanes: Any) -> Any:
    """Vmap over lanes; a single lane is not batched, so that its branches stay branches."""
    if jax.tree.leaves(lanes)[0].shape[0] > 1:
        return jax.vmap(f)(lanes)
    out = f(jax.tree.map(lambda a: a[0], lanes))
    return jax.tree.map(lambda a: jnp.asarray(a)[None], out)  # a step may give Python's numbers


def stepped(problem: Problem, table: Table, max_sweeps: Array | np.int32) -> Table:
    """The table when no restart runs any more, or after `max_sweeps` sweeps."""
    if _mesh.restart_shards(_mesh_of(problem)) > 1:
        packed, trace, done = _advance_dealt(problem.in_loop, table, max_sweeps)
    else:
        packed, trace, done = advance(problem.in_loop, table, max_sweeps)
    return dataclasses.replace(table, packed=packed, trace=trace, screened=done)


def _mesh_of(problem: Problem) -> Any:
    return None if problem.layout is None else problem.layout.mesh


def check_dealt(layout: Layout | None, num_restarts: int, screen: Screen | None) -> int:
    """Among how many parts of the mesh restarts are dealt out; raises ValueError where they do not suit it."""
    shards = 1 if layout is None else _mesh.restart_shards(layout.mesh)
    if num_restarts % shards:
        more = -(-num_restarts // shards) * shards
        raise ValueError(
            f'num_restarts: expected a multiple of the mesh\'s axis "restarts", {shards}; found {num_restarts}; '
            f"{more} take as long"
        )
    if shards > 1 and screen is not None:
        raise ValueError(
            'screen: expected None where the mesh has an axis "restarts", as restarts on other devices are no '
            "neighbours; found one; screen on a mesh of rows alone"
        )
    return shards


@jax.jit
def _advance_dealt(problem: Problem, table: Table, max_sweeps: Array | np.int32) -> tuple[Packed, Array, Array]:
    """`advance` of each part of the restarts by the devices of its own, which do not wait for one another."""
    assert problem.layout is not None
    mesh, axis = problem.layout.mesh, _mesh.RESTARTS
    shards = mesh.shape[axis]
    mine = dataclasses.replace(problem, num_restarts=problem.num_restarts // shards)

    def own(packed: Packed, trace: Array, rest: Any) -> tuple[Packed, Array]:
        problem, model, data, screened, max_sweeps = rest
        with _mesh.over(problem.layout):
            return _advance(problem, Table(model, data, packed, trace, screened), max_sweeps)[:2]

    dealt, copies = jax.sharding.PartitionSpec(axis), jax.sharding.PartitionSpec()
    rest = (mine, table.model, table.data, table.screened, max_sweeps)
    run = jax.shard_map(
        own, mesh=mesh, in_specs=(dealt, dealt, copies), out_specs=(dealt, dealt), axis_names={axis}, check_vma=False
    )
    packed, trace = run(table.packed, table.trace, rest)
    whole = jax.sharding.NamedSharding(mesh, copies)  # the host, of any process, looks at all restarts
    packed, trace = jax.lax.with_sharding_constraint((packed, trace), whole)
    return packed, trace, table.screened


@jax.jit
def advance(problem: Problem, table: Table, max_sweeps: Array | np.int32) -> tuple[Packed, Array, Array]:
    """What `stepped` changes in the table: a program copies all that it hands back, and the data are large."""
    with _mesh.over(problem.layout):
        return _advance(problem, table, max_sweeps)


def _advance(problem: Problem, table: Table, max_sweeps: Array | np.int32) -> tuple[Packed, Array, Array]:
    # Only what a sweep changes is carried: a loop copies what it carries.
    changing = lambda table: (table.packed, table.trace, table.screened)
    whole = lambda carry: dataclasses.replace(table, packed=carry[0], trace=carry[1], screened=carry[2])

    def running(state: tuple[Any, Array]) -> Array:
        return jnp.any(unfinished(problem, whole(state[0]).states)) & (state[1] < max_sweeps)

    def sweep(state: tuple[Any, Array]) -> tuple[Any, Array]:
        return changing(_sweep(problem, whole(state[0]))), state[1] + 1

    return jax.lax.while_loop(running, sweep, (changing(table), jnp.zeros((), jnp.int32)))[0]


def unfinished(problem: Problem, states: Any) -> Array:
    """(R,) which restarts still have a step to make."""
    return (states.status == Status.RUNNING) & (states.step <= problem.last)


def _sweep(problem: Problem, table: Table) -> Table:
    """One step of the first W restarts that run."""
    num, lanes = problem.num_restarts, problem.lanes
    table, eligible = screened(problem, table)
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
    after = lanewise(lambda lane: _step(problem, table, *lane), (before, traces))
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
    return concluded(problem, model, state, after, trace, (data, weights), total_weight(data, weights))


def concluded(
    problem: Problem, model: Any, state: Any, after: Any, trace: Array | None, rows: tuple[PyTree, PyTree], total: Array
) -> Any:
    """The state after a step, which the stop rule may end."""

    def small(before: Any, after: Any) -> Array:
        elbo = after.scored  # NaN where nothing was accepted, which is no small step
        return problem.stop(
            Step(
                previous=before.elbo.total,
                current=elbo,
                old_params=before.params,
                params=after.params,
                total_weight=total,
                rounding=slack(elbo, total, model.scales),
                model=model,
                data=rows[0],
                weights=rows[1],
                index=state.step,
                trace=trace,
            )
        )

    return problem.algorithm.conclude(model, state, after, small)


def screened(problem: Problem, table: Table) -> tuple[Table, Array]:
    """The restarts that may step now, after screening if its short runs are over."""
    states = table.states
    running = unfinished(problem, states)
    if problem.screen is None:
        return table, running
    short = running & (states.step <= problem.screen.num_steps)
    due = ~table.screened & ~jnp.any(short)
    elbo = jnp.where(running, states.elbo.total, -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-elbo))
    drop = due & running & (rank >= problem.screen.keep)
    status = jnp.where(drop, Status.SCREENED, states.status).astype(jnp.int32)
    packed = _tree.pack(dataclasses.replace(states, status=status))
    table = dataclasses.replace(table, packed=packed, screened=table.screened | due)
    return table, jnp.where(table.screened, running & ~drop, short)
