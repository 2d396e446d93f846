"""Rows over the devices of a mesh: JAX's own shardings, and what is summed or mapped where the rows lie."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxem.core.arguments import shown
from jaxem.core.pytree import dataclass, static

PyTree = Any

# The axis of a mesh over which restarts are dealt out; all others hold rows.
RESTARTS = "restarts"
# The axis of a mesh that is made here.
ROWS = "rows"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the rows of a fit lie over a mesh; part of its programs.

    Attributes:
      mesh: the mesh.
      counts: of each of equal parts, how many rows come first that are no padding; empty where there are no rows yet.
    """

    mesh: Mesh
    counts: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows that are no padding."""
        return sum(self.counts)


_over: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("over", default=None)


def as_mesh(mesh: Any, name: str = "mesh") -> Mesh:
    """A mesh whose axes are left to the compiler: as given, of that many devices, or for None of all.

    Raises:
      TypeError, ValueError: no mesh, or one of more devices than there are.
    """
    if mesh is None or (isinstance(mesh, (int, np.integer)) and not isinstance(mesh, bool)):
        devices = jax.devices()
        num = len(devices) if mesh is None else int(mesh)
        if not 1 <= num <= len(devices):
            raise ValueError(
                f"{name}: expected 1 to {len(devices)} devices, which is what JAX sees here; found {num}; on a CPU "
                f"jax.config.update('jax_num_cpu_devices', {max(num, 1)}) before the first use makes as many"
            )
        return Mesh(np.array(devices[:num]), (ROWS,), axis_types=(AxisType.Auto,))
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"{name}: expected a jax.sharding.Mesh, a number of devices or None for all; found {shown(mesh)}"
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def row_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes over which rows are dealt out."""
    return tuple(name for name in mesh.axis_names if name != RESTARTS)


def row_shards(mesh: Mesh) -> int:
    """Among how many parts the rows are dealt out."""
    return math.prod(mesh.shape[name] for name in row_axes(mesh))


def restart_shards(mesh: Mesh | None) -> int:
    """Among how many parts the restarts are dealt out."""
    return 1 if mesh is None else mesh.shape.get(RESTARTS, 1)


def by_rows(mesh: Mesh) -> NamedSharding:
    """Leading axes over the devices."""
    axes = row_axes(mesh)
    return NamedSharding(mesh, PartitionSpec(axes) if axes else PartitionSpec())


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh over which the rows of concrete arrays lie; None where they lie on one device, or are tracers."""
    for leaf in jax.tree.leaves(tree, is_leaf=lambda node: hasattr(node, "__next__")):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            continue
        sharding = leaf.sharding
        if isinstance(sharding, NamedSharding) and sharding.num_devices > 1 and leaf.ndim:
            spec = tuple(sharding.spec)
            if spec and spec[0] is not None:
                return as_mesh(sharding.mesh)
    return None


def is_spread(array: Any) -> bool:
    """Whether an array is on more than one device, and not as a copy on each."""
    concrete = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    return concrete and len(array.sharding.device_set) > 1 and not array.is_fully_replicated


def put_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays, the same in every process, with their rows over the mesh; their number must suit it."""
    return jax.tree.map(lambda leaf: _put(leaf, by_rows(mesh)), tree)


def put_copies(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays with a copy on every device of the mesh; random keys and what lies there already included."""
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
        return leaf
    if jax.process_count() == 1 or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _put(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)  # each process has all of it, and hands out what is its own, without a word to the others
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def processes_share(mesh: Mesh) -> bool:
    """Whether rows are dealt out among processes; else each has all of them."""
    return jax.process_count() > 1 and len(own_shards(mesh)) < row_shards(mesh)


def put_own_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays over the mesh, of those of each process: its parts of equal length, one after the other."""
    sharding, own = by_rows(mesh), own_shards(mesh)

    def put(leaf: np.ndarray) -> jax.Array:
        length = leaf.shape[0] // len(own)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            place = own.index((index[0].start or 0) // length)
            return leaf[place * length : (place + 1) * length].copy()  # which JAX on a CPU may take as it is

        return jax.make_array_from_callback((row_shards(mesh) * length, *leaf.shape[1:]), sharding, part)

    return jax.tree.map(put, tree)


def told(tree: PyTree) -> PyTree:
    """What process 0 of several has found (numbers, arrays), the same in all: for what must not differ among them."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def at_home(tree: PyTree) -> PyTree:
    """Arrays that are copies on many devices as arrays of this process alone."""

    def fetch(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer) or len(leaf.sharding.device_set) == 1:
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(fetch(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(leaf)) if leaf.is_fully_replicated else leaf

    return jax.tree.map(fetch, tree)


@dataclass
class ShardedRows:
    """Rows over the devices of a mesh, made by `jaxem.shard_data`; taken wherever data are.

    `data, weights = rows` takes them apart.

    Attributes:
      data: a pytree of arrays whose leading axis is over the devices.
      weights: (N + padding,) those of the rows, and 0 for each row of padding, of which there are some at the end of
        what each process gave; `own` leaves their answers out.
      layout: the mesh, and how many rows each part of it holds.
      seen: what the rows looked like as they were given.
    """

    data: PyTree
    weights: jax.Array
    layout: Layout = static()
    seen: Any = static(default=None)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.data, self.weights))

    @property
    def num_rows(self) -> int:
        """N, of all processes together."""
        return self.layout.num_rows

    @property
    def mesh(self) -> Mesh:
        """The mesh."""
        return self.layout.mesh

    def own(self, answer: Any) -> np.ndarray:
        """Of an answer with an entry for each row, as of `fit.predict`, those of the rows that this process gave.

        Args:
          answer: (N + padding, ...), over the same mesh or on one device.

        Returns:
          The entries, in the order in which the rows were given, without those of padding.
        """
        num = self.weights.shape[0]
        if not hasattr(answer, "shape") or tuple(answer.shape[:1]) != (num,):
            found = f"shape {answer.shape}" if hasattr(answer, "shape") else f"a {type(answer).__name__}"
            raise ValueError(
                f"answer: expected an array of {num} entries, one for each row and its padding; found {found}"
            )
        counts = self.layout.counts
        length = num // len(counts)
        return np.concatenate([_within(answer, part * length, counts[part]) for part in own_shards(self.mesh)])

    def __repr__(self) -> str:
        return f"ShardedRows({self.num_rows} rows over {row_shards(self.mesh)} devices)"


def _within(array: Any, start: int, num: int) -> np.ndarray:
    """Rows from `start` on, of an array of which this process has them."""
    for shard in array.addressable_shards if isinstance(array, jax.Array) else ():
        first = shard.index[0].start or 0
        if first <= start and start + num <= first + shard.data.shape[0]:
            return np.asarray(shard.data)[start - first : start - first + num]
    return np.asarray(array)[start : start + num]


def own_shards(mesh: Mesh) -> list[int]:
    """Which parts of the rows lie on devices of this process, in order."""
    axis = [i for i, name in enumerate(mesh.axis_names) if name != RESTARTS]
    shape = [mesh.devices.shape[i] for i in axis]
    found = {
        int(np.ravel_multi_index([place[i] for i in axis], shape)) if axis else 0
        for place, device in np.ndenumerate(mesh.devices)
        if device.process_index == jax.process_index()
    }
    return sorted(found)


def apart(data: Any, weights: Any) -> tuple[Any, Any]:
    """Rows and weights; those of `ShardedRows`, unless others are given."""
    return (
        (data.data, data.weights if weights is None else weights) if isinstance(data, ShardedRows) else (data, weights)
    )


@contextlib.contextmanager
def over(layout: Layout | None) -> Iterator[None]:
    """While a program is traced: its rows lie so over a mesh, and blocks of them are taken where they lie."""
    token = _over.set(layout if layout is not None and row_shards(layout.mesh) > 1 else None)
    try:
        yield
    finally:
        _over.reset(token)


def current() -> Mesh | None:
    """The mesh over which blocks of the program being traced are to be taken where they lie; None for none.

    None as well while restarts are dealt out among devices, within which JAX takes no function that holds values of the
    program around it: the compiler then divides such work, E-steps apart.
    """
    layout = _over.get()
    return None if layout is None or not jax.sharding.get_abstract_mesh().empty else layout.mesh


def layout() -> Layout:
    """How the rows of the program being traced lie over the mesh that `current` gives."""
    found = _over.get()
    assert found is not None
    return found


def real_rows(num: int) -> int:
    """How many of `num` rows of the program being traced are no padding."""
    layout = _over.get()
    return num if layout is None or not layout.counts else layout.num_rows


def where_rows_lie(
    f: Callable[..., PyTree], mesh: Mesh, rows: tuple[PyTree, ...], summed: bool, *rest: PyTree
) -> PyTree:
    """`f(shard, *rows, *rest)` on each device of its own rows, `shard` its number; summed over them, or row by row.

    One all-reduce where it is summed, and no communication where it is not, but what `f` itself does. The number of
    rows must suit the mesh. Where restarts are dealt out as well, `f` must hold nothing of the program around it.
    """
    axes, inside = row_axes(mesh), not jax.sharding.get_abstract_mesh().empty  # of a program that deals out restarts
    rows_spec, copies = PartitionSpec(axes), PartitionSpec()

    def local(rows: tuple[PyTree, ...], rest: tuple[PyTree, ...]) -> PyTree:
        with over(None):
            found = f(jax.lax.axis_index(axes), *rows, *rest)
        return jax.lax.psum(found, axes) if summed else found

    mapped = jax.shard_map(
        local,
        mesh=None if inside else mesh,
        in_specs=(rows_spec, copies),
        out_specs=copies if summed else rows_spec,
        axis_names=set(axes) if inside else set(mesh.axis_names),
        check_vma=False,
    )
    return mapped(rows, rest)


def padded(tree: PyTree, multiple: int, zero: bool = False) -> PyTree:
    """Rows up to a multiple of a number: copies of the last, or zeros."""
    num = jax.tree.leaves(tree)[0].shape[0]
    extra = -num % multiple
    if not extra:
        return tree

    def pad(leaf: Any) -> Any:
        xp = jnp if isinstance(leaf, jax.Array) else np
        last = xp.zeros_like(leaf[-1:]) if zero else leaf[-1:]
        return xp.concatenate([leaf, xp.repeat(last, extra, axis=0)])

    return jax.tree.map(pad, tree)


def counts(num: int, shards: int) -> tuple[int, ...]:
    """Of equal parts of rows, how many of `num` each holds where padding is at the end."""
    length = -(-num // shards)
    return tuple(min(max(num - part * length, 0), length) for part in range(shards))


def take_rows(tree: PyTree, index: jax.Array) -> PyTree:
    """Rows of the numbers `index` (B,), below `real_rows`; of rows over a mesh by one all-reduce of B rows.

    They are then dealt out among the devices where B suits their number; else each has a copy of all.
    """
    layout = _over.get()
    if layout is None:
        return jax.tree.map(lambda leaf: leaf[index], tree)
    tree = padded(tree, row_shards(layout.mesh))
    mesh, num = layout.mesh, jax.tree.leaves(tree)[0].shape[0]
    shards, axes = row_shards(mesh), row_axes(mesh)
    counts = np.array(layout.counts or (num,), np.int32)
    extra = np.concatenate([[0], np.cumsum(num // counts.size - counts)[:-1]]).astype(np.int32)
    if extra[counts > 0].any():  # past the padding of the parts before
        index = index + jnp.asarray(extra)[jnp.searchsorted(jnp.asarray(np.cumsum(counts)), index, side="right")]
    apiece, even = num // shards, index.shape[0] % shards == 0

    def own(shard: jax.Array, tree: PyTree, index: jax.Array) -> PyTree:
        place = index - shard * apiece
        mine = (place >= 0) & (place < apiece)

        def pick(leaf: jax.Array) -> jax.Array:
            rows = leaf[jnp.clip(place, 0, apiece - 1)]
            rows = jnp.where(mine.reshape(-1, *(1,) * (leaf.ndim - 1)), rows, jnp.zeros((), leaf.dtype))
            return jax.lax.psum_scatter(rows, axes, scatter_dimension=0, tiled=True) if even else rows

        return jax.tree.map(pick, tree)

    return where_rows_lie(own, mesh, (tree,), not even, index)


def first_rows(tree: PyTree, num: int) -> PyTree:
    """The first rows of concrete arrays, of this process alone; of rows over a mesh the same in all."""
    mesh = mesh_of(tree)
    if mesh is not None:
        return _first_rows(tree, num, mesh)
    near = lambda leaf: not isinstance(leaf, jax.Array) or next(iter(leaf.devices())).platform == "cpu"
    # On a CPU by NumPy: a slice of an array of JAX is a program.
    return jax.tree.map(lambda leaf: (np.asarray(leaf) if near(leaf) else leaf)[:num], tree)


def _first_rows(tree: PyTree, num: int, mesh: Mesh) -> PyTree:
    first = lambda tree: jax.tree.map(lambda leaf: leaf[:num], tree)
    return at_home(jax.jit(first, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree))


def all_rows(tree: PyTree) -> PyTree:
    """Each row; of rows over a mesh as copies on all devices, and without the padding, on which draws would depend."""
    found, tree = _over.get(), as_copies(tree)
    num = jax.tree.leaves(tree)[0].shape[0]
    if found is None or not found.counts or found.num_rows == num:
        return tree
    part = num // len(found.counts)
    index = np.concatenate([np.arange(n, dtype=np.int32) + part * i for i, n in enumerate(found.counts)])
    return jax.tree.map(lambda leaf: leaf[index], tree)


def as_copies(tree: PyTree) -> PyTree:
    """Arrays of a program whose rows lie over a mesh, as copies on all devices; as they are in any other."""
    mesh = current()
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, PartitionSpec())), tree)
