"""The plan of a fit's memory: how many restarts step together, and in chunks of how many rows, so that it fits."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import memory as _memory
from jaxem.core import mesh as _mesh
from jaxem.core import processes as _processes
from jaxem.core import tree as _tree
from jaxem.core import whole as _whole
from jaxem.core.memory import peak, shown_size, size_of
from jaxem.core.mesh import Layout
from jaxem.core.sequences import most_steps
from jaxem.core.stream import Stream
from jaxem.core.tree import PyTree
from jaxem.model import LatentModel
from jaxem.sharding import Sharded
from jaxem.wrappers import Chunked, Wrapper

# Share of what the data leave of a device's memory that the steps of all lanes may take. The other half is for the data
# in the model's own layout, for the states of the restarts, and for what an estimate does not see.
SHARE = 0.5
# Where the data leave next to nothing, at least this share of the memory.
LEAST = 1 / 16
# Steps are only looked at where so many numbers for each row (or step of a sequence) of each lane would not fit: many
# more than any that is written with care holds, so that ordinary fits are not even traced for it.
NUMBERS = 1 << 14
# Chunks of fewer rows than this are slower (see `BLOCK_ROWS`): there, fewer restarts step together instead.
FEW_ROWS = 2000


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a fit chose to fit into memory; see `Fit.plan`.

    Attributes:
      lanes: restarts that step together.
      chunk: rows of a chunk of the E-step, of each device; None where the model works as it would by itself.
      batch: rows of a batch of a stream; None for rows in memory.
      held: bytes that the steps and batches take of a device, about; without data in memory and states.
      memory: bytes of the device, infinite where it does not tell.
    """

    lanes: int
    chunk: int | None = None
    batch: int | None = None
    held: int = 0
    memory: float = math.inf

    def __str__(self) -> str:
        parts = [] if self.batch is None else [f"batches of {self.batch:,} rows"]
        parts += [] if self.chunk is None else [f"chunks of {self.chunk:,} row{'s' if self.chunk > 1 else ''}"]
        parts += [f"{self.lanes:,} restart{'s' if self.lanes > 1 else ''} at once"]
        room = "" if math.isinf(self.memory) else f" of {shown_size(self.memory)}"
        return f"{', '.join(parts)}: about {shown_size(self.held)}{room}"


def choose(
    model: Any,
    data: PyTree,
    weights: Array,
    key: Array,
    algorithm: Any,
    num: int,
    lanes: int,
    fixed: bool,
    layout: Layout | None,
) -> tuple[Any, int, Plan | None]:
    """The model, its E-step in chunks where all rows at once do not fit, the number of lanes, and the plan.

    The estimate is that of `jaxem.core.memory.peak` for the step as it is traced, without compiling: of mixtures within
    1.5 of what XLA allocates on a CPU, of sums over inner axes that XLA fuses up to a hundred times too large. Chunks
    are chosen before lanes, as they cost next to nothing.

    Args:
      model: checked.
      data: rows, as all devices hold them together.
      weights: (N,).
      key: any.
      algorithm: prepared.
      num: restarts that the device steps, R.
      lanes: as many of them at once as suit the device's speed.
      fixed: whether they were asked for.
      layout: how rows lie over a mesh.

    Returns:
      The model, lanes, and what was chosen; None where that is what shapes alone would have it be.
    """
    memory, rows = _room(layout), _own_rows((data, weights), layout)
    plain = model.model if isinstance(model, Sharded) else model
    budget = max(SHARE * (memory - size_of(rows)), LEAST * memory)
    lanes = min(lanes, num)
    if _surely_fits(plain, rows, lanes, budget):
        return model, lanes, None
    size, asked, need = None, lanes, _step_bytes(plain, algorithm, rows, key)
    at_once = _at_once(plain, rows[0])
    if lanes * need > budget and at_once > 1 and _may_chunk(plain):
        room = lambda lanes: _round(budget * at_once / (lanes * need))
        while not fixed and lanes > 1 and room(lanes) < min(FEW_ROWS, at_once):
            lanes //= 2
        chunks = Chunked(plain, size=min(room(lanes), at_once))  # type: ignore[abstract]
        less = _step_bytes(chunks, algorithm, rows, key)
        if less < need:  # gradients of all chunks are kept for the way back
            plain, size, need = chunks, chunks.size, less
            model = dataclasses.replace(model, model=plain) if isinstance(model, Sharded) else plain
    if not fixed:
        lanes = max(1, min(lanes if size else asked, int(budget // max(need, 1))))
    chosen = size is not None or lanes != asked
    return model, lanes, Plan(lanes, size, None, lanes * need, memory) if chosen else None


def _may_chunk(model: Any) -> bool:
    """Whether a model has an E-step, and nobody has said already in which chunks."""
    has_step = isinstance(model, LatentModel)
    while isinstance(model, Wrapper) and not isinstance(model, Chunked):
        model = model.model
    return has_step and not isinstance(model, Chunked)


def without_chunks(model: Any, plan: Plan | None) -> Any:
    """The model without what `choose` has put around it."""
    return model if plan is None or plan.chunk is None else model.model


def of_stream(plan: Plan | None, lanes: int, rows: tuple[PyTree, PyTree], batches: int, layout: Layout | None) -> Plan:
    """The plan of a fit of a stream, of which so many batches are held at once; `rows` are one of them."""
    plan = Plan(lanes, memory=_room(layout)) if plan is None else plan
    one = size_of(_own_rows(rows, layout))
    num = _tree.num_rows(rows[0])
    return dataclasses.replace(plan, batch=num, held=plan.held + batches * one)


@contextmanager
def within_memory(model: Any, data: Any) -> Iterator[list[Any]]:
    """A fit: where memory runs out, the error says what there was besides, and what to set.

    Yields:
      A list, which the fit puts its `Problem` into when it is known.
    """
    known: list[Any] = []
    try:
        yield known
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not _memory.ran_out(error):
            raise
        raise _memory.no_memory(error, "fit: expected all that it holds at once", *_told(model, data, known)) from error


def _told(model: Any, data: Any, known: list[Any]) -> tuple[str, str]:
    """What a fit held that ran out of memory, and what it may be given instead."""
    streamed = isinstance(data, Stream)
    beside, remedies = "", []
    if known:
        problem = known[0]
        lanes, num, size = problem.lanes, problem.num_restarts, size_of((problem.data, problem.weights))
        chunk = None if problem.plan is None else problem.plan.chunk
        chunks = "" if chunk is None else f", in chunks of {chunk:,} rows"
        what = f"a batch of {data.batch_rows:,} rows" if streamed else f"{shown_size(size)} of data"
        beside = f"beside {what}, for {lanes:,} of {num:,} restarts at once{chunks}"
        remedies += [f"restart_batch={max(1, lanes // 4)}"] if lanes > 1 else []
        remedies += ["fewer num_restarts"] if num > 1 else []
        remedies += ["a smaller batch_size of the algorithm"] if hasattr(problem.algorithm, "batch_size") else []
        inner, model = problem.data, problem.model.model if isinstance(problem.model, Sharded) else problem.model
        if isinstance(model, LatentModel):
            rows = max(1, _round(_at_once(model, _own_rows(inner, problem.layout)) / 8))
            remedies.append(f"jaxem.chunked(model, {rows})")
    remedies.append("fewer batch_rows in jaxem.stream" if streamed else "rows in batches, by jaxem.stream(...)")
    return beside, f"set {', or '.join([', '.join(remedies[:-1]), remedies[-1]] if remedies[1:] else remedies)}"


def _room(layout: Layout | None) -> float:
    """Bytes of memory for a device: of the mesh, the same in all of its processes; of a CPU's devices, their share."""
    memory = _memory.device_memory()
    if layout is None:
        return memory
    own = [device for device in layout.mesh.devices.flat if device.process_index == jax.process_index()]
    if own and own[0].platform == "cpu":
        memory /= len(own)
    if jax.process_count() > 1:
        memory = min(float(text) for text in _processes.texts(repr(float(memory))))
    return memory


def _own_rows(rows: PyTree, layout: Layout | None) -> PyTree:
    """Shapes of the rows of one device."""
    shards = 1 if layout is None else _mesh.row_shards(layout.mesh)
    own = lambda leaf: jax.ShapeDtypeStruct((-(-leaf.shape[0] // shards), *leaf.shape[1:]), leaf.dtype)
    return jax.tree.map(own, rows)


def _at_once(model: Any, data: PyTree) -> int:
    """Rows that an E-step works on at once."""
    num = _tree.num_rows(data)
    return min(num, model.rows_at_once(data)) if hasattr(model, "rows_at_once") else num


def _surely_fits(model: Any, rows: tuple[PyTree, PyTree], lanes: int, budget: float) -> bool:
    """Whether steps fit by a bound from shapes alone: of the rows at once, and of square arrays for each state."""
    data, weights = rows
    itemsize = weights.dtype.itemsize
    row = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(data))
    steps, states = max(1, most_steps(data)), model.num_states or 1
    numbers = _at_once(model, data) * steps * max(NUMBERS, 8 * states, 8 * row // steps)
    return lanes * itemsize * (numbers + 16 * states * (row // steps) ** 2) <= budget


def _step_bytes(model: Any, algorithm: Any, rows: tuple[PyTree, PyTree], key: Array) -> int:
    """Bytes that a step of one restart holds at once."""

    def step(model: Any, data: PyTree, state: Any, algorithm: Any, weights: Array) -> Any:
        take = algorithm.evaluate if _whole.is_part() else algorithm.step
        return take(model, state, data, weights)

    with _mesh.over(None):
        start = jax.eval_shape(_started, model, algorithm, *rows, key)
        algorithm = jax.eval_shape(lambda same: same, algorithm)
        return peak(jax.make_jaxpr(step)(*start, algorithm, rows[1]).jaxpr)


def _started(model: Any, algorithm: Any, data: PyTree, weights: Array, key: Array) -> tuple[Any, PyTree, Any]:
    model = model.bind(data, weights)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], model.init(key, data, weights))
    states = algorithm.init(model, params, 1, weights.dtype)
    return model, model.arrange(data), jax.tree.map(lambda leaf: leaf[0], states)


def _round(rows: float) -> int:
    """A number of rows, down to two digits; at least 1."""
    whole = max(1, int(min(rows, np.iinfo(np.int32).max)))
    unit = 10 ** max(0, len(str(whole)) - 2)
    return whole // unit * unit
