"""Rows over many devices: a model whose E-step is computed where the rows lie, and the rows laid out so."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxem.core import mesh as _mesh
from jaxem.core import processes as _processes
from jaxem.core import rows as _rows
from jaxem.core.arguments import expect
from jaxem.core.mesh import Layout, ShardedRows
from jaxem.core.pytree import dataclass, static
from jaxem.core.seen import Rows
from jaxem.core.sequences import lengthened, most_steps
from jaxem.core.stages import in_stages
from jaxem.core.tree import PyTree, float_dtype, num_rows
from jaxem.model import ELBOModel, LatentModel
from jaxem.wrappers import InParts, PartsAt, Wrapper


@dataclass
class ShardedAt(PartsAt):
    """A sharded model at params."""

    def moved(self, *args: Any) -> PyTree:
        """As the model does, its sums over rows taken where they lie."""
        with _mesh.over(self.model.layout):
            return super().moved(*args)

    def exchanged(self, data: PyTree, weights: Array) -> PyTree | None:
        """As the model does."""
        with _mesh.over(self.model.layout):
            return self.inner.exchanged(data, weights)


@dataclass
class Sharded(InParts):
    """A model whose rows lie over the devices of a mesh; see `sharded`."""

    layout: Layout = static()

    def __repr__(self) -> str:
        return f"sharded({self.model!r}, {_mesh.row_shards(self.layout.mesh)})"

    def bind(self, data: PyTree, weights: Array) -> Any:
        """The wrapper of the bound model, whose sums over rows are taken where they lie."""
        with _mesh.over(self.layout):
            return dataclasses.replace(self, model=self.model.bind(data, weights))

    @in_stages
    def init(self, key: Array, data: PyTree, weights: Array) -> PyTree:
        """A start of the model's own, from copies of the rows that it draws."""
        with _mesh.over(self.layout):
            return self.model.init(key, data, weights)

    def inside(self, params: PyTree) -> tuple[Any, PyTree]:
        """What the model inside has inside: the mesh is no part of an answer."""
        return dataclasses.replace(self.model, rows=self.rows).inside(params)

    def over(self, layout: Any) -> Any:
        """The wrapper itself."""
        return self

    def rows_at_once(self, data: PyTree) -> int:
        """Of a block of the model inside."""
        return self.model.rows_at_once(data)

    def at(self, params: PyTree) -> ShardedAt:
        """The model at params."""
        return ShardedAt(self, params, self.model.at(params))

    def summed(self, f: Any, data: PyTree, weights: Array, *rest: PyTree) -> PyTree:
        """Over devices, by one all-reduce."""
        shards = _mesh.row_shards(self.layout.mesh)
        rows = _mesh.padded(data, shards), _mesh.padded(weights, shards, zero=True)
        return _mesh.where_rows_lie(f, self.layout.mesh, rows, True, *rest)

    def mapped(self, f: Any, data: PyTree) -> PyTree:
        """On the devices of the rows."""
        num, rows = num_rows(data), _mesh.padded(data, _mesh.row_shards(self.layout.mesh))
        out = _mesh.where_rows_lie(lambda _, x: f(x), self.layout.mesh, (rows,), False)
        return out if num_rows(rows) == num else jax.tree.map(lambda leaf: leaf[:num], out)


def _over(model: ELBOModel, layout: Layout) -> ELBOModel:
    """The model for rows that lie so; itself where it has no E-step."""
    return Sharded(model, layout=layout) if isinstance(model, LatentModel) else model  # type: ignore[abstract]


def sharded(model: ELBOModel, mesh: Mesh | int | None = None) -> Sharded:
    """The same model with its E-step computed on each device of a mesh, where the rows lie.

    An E-step is additive over data, so that of all rows is the sum of those of the devices: one all-reduce of
    statistics, whose size does not depend on N. `fit` makes this of any model when it is given rows over a mesh, as by
    `shard_data`; a fit's model is the one inside, which knows nothing of devices.

    Args:
      model: a model with an e_step. (Of others, as a VAE, the gradient is dealt out by JAX: give `fit` the rows alone.)
      mesh: see `shard_data`.

    Returns:
      A model. Results agree with those of one device to rounding, but for draws of an E-step rule (`Sampled`,
      `MonteCarlo`), which each device makes of its own.

    Raises:
      TypeError, ValueError: no model with an e_step, no mesh, or one of more devices than there are.

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> model = jaxem.sharded(jaxem.GMM(2), 1)
      >>> jaxem.fit(model, x, key=jax.random.key(1), max_steps=3).params.mixing.shape
      (2,)
    """
    expect("model", model, LatentModel, "a model with an e_step, as jaxem.GMM(3); for others give fit the sharded rows")
    mesh = _mesh.as_mesh(mesh)
    return Sharded(model, layout=Layout(mesh, ()))  # type: ignore[abstract]


def shard_data(data: PyTree, weights: Any = None, mesh: Mesh | int | None = None) -> ShardedRows:
    """Rows dealt out among the devices of a mesh, for `fit` and the questions of a fit.

    Each device gets an equal part, in order; the number of rows is made to suit by rows of weight 0 at the end, copies
    of the last. Under `jax.distributed` each process gives its own rows, in the order of the processes, which need not
    be equally many. Nothing is sent to other devices than those of the process. Processes that hold the same parts of
    the rows, as for different restarts, give the same rows.

    Args:
      data: rows in any container that `fit` takes, of this process; sequences as `jaxem.sequences` makes them.
      weights: (N,) their weights; None for ones.
      mesh: a `jax.sharding.Mesh`, whose axes hold rows, but for one called "restarts", among which a fit deals out its
        restarts; a number of devices; None for all devices, of all processes.

    Returns:
      `ShardedRows`. An answer for each row, as of `fit.predict`, lies over the mesh as well; `rows.own(answer)` are the
      entries for the rows of this process.

    Raises:
      TypeError, ValueError: bad rows or weights, no mesh, or one of more devices than there are; named.

    Examples:
      >>> import jax, jaxem
      >>> rows = jaxem.shard_data(jax.random.normal(jax.random.key(0), (1001, 2)), mesh=1)
      >>> rows
      ShardedRows(1001 rows over 1 devices)
      >>> jaxem.fit(jaxem.GMM(2), rows, key=jax.random.key(1), max_steps=3).params.mixing.shape
      (2,)
    """
    mesh = _mesh.as_mesh(mesh)
    data, weights, seen = _processes.together(lambda: _read(data, weights), "data")
    data = _agreed(data, seen)
    counts, length = _processes.dealt(num_rows(data), mesh, lambda: _processes.digest((data, weights)))
    own = len(_mesh.own_shards(mesh)) * length
    data, weights = _mesh.padded(data, own), _mesh.padded(weights, own, zero=True)
    data, weights = _mesh.put_own_rows((data, weights), mesh)
    return ShardedRows(data, weights, Layout(mesh, counts), seen)


def _read(data: PyTree, weights: Any) -> tuple[PyTree, np.ndarray, Rows]:
    """Rows and weights of this process, on the host."""
    given, (data, seen) = data, _rows.read(data)
    weights = _rows.as_weights(weights, num_rows(data), float_dtype(data), like=given)
    return *jax.tree.map(np.asarray, (data, weights)), seen


def _agreed(data: PyTree, seen: Rows) -> PyTree:
    """Rows that have the same form in all processes: sequences padded to the longest; else an error in all."""
    if jax.process_count() == 1:
        return data
    form = f"{seen.paths} {seen.shapes} {seen.names} {float_dtype(data)}"
    _processes.check_same({"data": form}, "but for the number of rows")
    steps = max(int(text) for text in _processes.texts(str(most_steps(data))))
    return lengthened(data, steps) if steps else data


def _taken_out(model: Any) -> tuple[Any, Mesh | None]:
    """The model without a `Sharded`, which is to be outermost (chunks are of the rows of a device), and its mesh."""
    if not isinstance(model, Wrapper):
        return model, None
    inner, mesh = _taken_out(model.model)
    if isinstance(model, Sharded):
        return inner, model.layout.mesh
    return (model if mesh is None else dataclasses.replace(model, model=inner)), mesh


def over_mesh(model: Any, data: Any, weights: Any) -> tuple[Any, Any, Any, Layout | None]:
    """Model, rows and weights for a fit as they lie over a mesh, and how; as they are, and None, where they do not.

    Rows of a `ShardedRows`, arrays whose leading axis is over devices, or any rows where the model is `sharded`.
    """
    plain, asked = _taken_out(model)
    if not isinstance(data, ShardedRows):
        mesh = _mesh.mesh_of(data)
        if mesh is None and asked is None:
            return model, data, weights, None
        if mesh is None:
            data = shard_data(plain.opened(data, "data"), weights, asked)
            weights = None
        else:
            num, shards = num_rows(data), _mesh.row_shards(mesh)
            rows = data, _rows.as_weights(weights, num, float_dtype(data), like=data)
            rows = _mesh.padded(rows[0], shards), _mesh.padded(rows[1], shards, zero=True)  # over fewer axes so far
            data, weights = _mesh.put_rows(rows, mesh)
            data = ShardedRows(data, weights, Layout(mesh, _mesh.counts(num, shards)))
            weights = None
    if weights is not None:
        raise ValueError("weights: expected None, as sharded rows have theirs; give them to shard_data(data, weights)")
    layout = data.layout
    if isinstance(plain, LatentModel) and _mesh.row_shards(layout.mesh) > 1:
        plain = Sharded(plain, layout=layout)  # type: ignore[abstract]
    return plain, data.data, data.weights, layout


# A wrapper goes inside, with its params: it does not forward this.
ELBOModel.over = Wrapper.over = _over  # type: ignore[method-assign, assignment]
