"""The door for data: every method and function that takes rows reads, checks and casts them here, on the host.

Inside `jit`, where data are tracers, nothing is checked and nothing costs.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import columns as _columns
from jaxem.core import mesh as _mesh
from jaxem.core.arguments import as_key
from jaxem.core.memory import answered
from jaxem.core.mesh import ShardedRows
from jaxem.core.numerics import is_concrete
from jaxem.core.seen import Rows, listed, step_axes
from jaxem.core.sequences import Sequences, answer
from jaxem.core.stream import Answers, Stream, added, keyed
from jaxem.core.tree import PyTree, as_floats, float_dtype, num_rows
from jaxem.core.warn import warn

# Questions that are answered where rows over a mesh lie.
_BY_ROWS = frozenset({"posterior", "predict", "log_prob", "e_step", "elbo_data"})

Method = TypeVar("Method", bound=Callable[..., Any])


def as_data(data: Any, name: str = "data", keys: tuple[str, ...] | None = None) -> PyTree:
    """Observations as a pytree of float arrays that share their leading axis; see `read`."""
    return read(data, name, keys)[0]


def read(data: Any, name: str = "data", keys: tuple[str, ...] | None = None) -> tuple[PyTree, Rows]:
    """Observations of any container as arrays, checked and cast, and what they look like.

    Args:
      data: an array, nested lists, a frame, or a pytree (tuple, dict) of them with a shared leading axis N.
      name: of the argument, for messages.
      keys: names of columns that a model asks for as a dict; a frame is then taken apart by them.

    Returns:
      A pytree of arrays on the device, all of one float dtype, lists anywhere made arrays; and its `Rows`.

    Raises:
      TypeError, ValueError: no numbers, not finite, no rows, other lengths; with the place and the remedy.
    """
    names: dict[str, _columns.Names] = {}
    if isinstance(data, Sequences):
        names, data, keys = dict(data.names or ()), dataclasses.replace(data, names=None), None
    if keys is not None and not isinstance(data, dict):
        data = by_keys(data, keys, name)
    parts: dict[str, Any] = {}
    dtypes: set[Any] = set()

    def leaf(path: Any, value: Any) -> Any:
        place = jax.tree_util.keystr(path)
        array, found = _columns.read(name + place, value)
        parts[name + place] = value
        if found is not None:
            names[place] = found
        if keys is not None and len(path) == 1 and array.ndim == 1:  # a column of a table taken apart
            array = array[:, None]
        _check_rows(name + place, array, found)
        dtypes.add(float_dtype_of(array))
        return array

    whole = lambda node: isinstance(node, list) or hasattr(node, "__next__")
    if not jax.tree.leaves(data, is_leaf=whole):
        raise ValueError(f"{name}: expected at least one array; found {'none' if data is None else repr(data)[:40]}")
    arrays = jax.tree_util.tree_map_with_path(leaf, data, is_leaf=whole)
    _columns.check_aligned(parts)
    sizes = sorted({array.shape[0] for array in jax.tree.leaves(arrays)})
    if len(sizes) > 1:
        raise ValueError(f"{name}: expected arrays with one shared leading axis; found lengths {sizes}")
    dtype = jnp.result_type(*dtypes)
    seen = Rows.of(arrays, names)
    return _cast(arrays, dtype, name, seen), seen


def by_keys(data: Any, keys: tuple[str, ...], name: str) -> Any:
    """A frame as the dict of its columns (N, 1) that a model asks for; anything else as it is."""
    found = _columns.column_names(data)
    if found is None:
        return data
    missing = [key for key in keys if key not in found]
    extra = [label for label in found if label not in keys]
    if missing or extra:
        what = f"without {listed(missing)}" if missing else f"with {listed(extra)} as well; leave those out"
        raise ValueError(f"{name}: expected a frame of the columns {listed(sorted(keys))}; found one {what}")
    array, _ = _columns.read(name, data)
    return {label: array[:, i : i + 1] for i, label in enumerate(found)}


def _check_rows(name: str, array: Any, names: _columns.Names | None) -> None:
    """Raises unless there is a row, and every entry that can be looked at is finite."""
    if array.ndim == 0 or array.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one row; found shape {array.shape}")
    check_finite(name, array, names=names)


def check_finite(name: str, array: Any, used: Any = None, names: _columns.Names | None = None) -> None:
    """Raises ValueError unless every entry that can be looked at is finite, in the rows `used` (N,) if given."""
    if not is_concrete(array) or not jnp.issubdtype(array.dtype, jnp.floating) or not array.size:
        return
    xp, values = where_it_lies(array)
    bad = ~xp.isfinite(values)
    if used is not None:
        bad &= used.reshape(-1, *(1,) * (array.ndim - 1))
    num = int(bad.sum())
    if num:
        row, *place = (int(i) for i in np.unravel_index(int(xp.argmax(bad.reshape(-1))), array.shape))
        shown = [repr(names[place[0]])] if names else [str(i) for i in place]
        where = f"row {row}" + "".join(f", column {i}" for i in shown)
        rows = int(bad.reshape(array.shape[0], -1).any(1).sum())
        more = "" if num == 1 else f", {num} such entries in {rows} rows"
        raise ValueError(
            f"{name}: expected finite numbers; found {float(values[(row, *place)]):g} in {where}{more}; "
            + ("drop such rows or fill them in" if used is None else "mark such steps by jaxem.sequences(x, observed=)")
        )


def where_it_lies(array: Any) -> tuple[Any, Any]:
    """(numpy, values) on the host, (jax.numpy, array) elsewhere: nothing is copied from accelerators."""
    local = not isinstance(array, jax.Array) or (
        len(array.devices()) == 1 and next(iter(array.devices())).platform == "cpu"
    )
    return (np, np.asarray(array)) if local else (jnp, array)


def float_dtype_of(array: Any) -> Any:
    """The dtype to work in: float32 and float64 stay as far as JAX's x64 mode lets them, halves become float32."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.result_type(float)
    if jnp.finfo(array.dtype).bits < 32:
        return jnp.dtype(jnp.float32)
    return jax.dtypes.canonicalize_dtype(array.dtype)


def _cast(arrays: PyTree, dtype: Any, name: str, seen: Rows) -> PyTree:
    """Arrays on the device in a float dtype, with a warning where that loses a column's spread."""
    leaves, structure = jax.tree.flatten(arrays)
    steps = jax.tree.leaves(step_axes(arrays))
    for leaf, path, names, axes in zip(leaves, seen.paths, seen.names, steps, strict=True):
        if leaf.dtype != dtype and is_concrete(leaf):
            flat = leaf.reshape(-1, *leaf.shape[1 + axes :])
            _check_range(name + path, flat, dtype, names)
            warn_if_lossy(name + path, flat, dtype, names)
    return jax.tree.unflatten(structure, [place(leaf, dtype) for leaf in leaves])


def _check_range(name: str, leaf: Any, dtype: Any, names: _columns.Names | None) -> None:
    """Raises ValueError for a number that the dtype to come cannot hold; NumPy's cast makes it infinite."""
    if leaf.dtype.kind != "f" or leaf.dtype.itemsize <= np.dtype(dtype).itemsize:
        return
    (xp, values), most = where_it_lies(leaf), float(jnp.finfo(dtype).max)
    if values.size and float(max(values.max(), -values.min())) > most:
        place = int(xp.argmax((xp.abs(values) > most).reshape(-1)))
        row, *column = (int(i) for i in np.unravel_index(place, values.shape))
        where = f"row {row}" + "".join(f", column {names[i]!r}" if names else f", column {i}" for i in column)
        raise ValueError(
            f"{name}: expected numbers that {np.dtype(dtype)} can hold; found {float(values[(row, *column)]):g} in "
            f"{where}; rescale the column, or call jax.config.update('jax_enable_x64', True)"
        )


def place(leaf: Any, dtype: Any) -> Array:
    """An array on the device by a plain transfer, where `jnp.asarray` would compile a program for each shape."""
    if isinstance(leaf, jax.Array):
        return leaf if leaf.dtype == dtype else leaf.astype(dtype)
    return jax.device_put(np.asarray(leaf, dtype))


def warn_if_lossy(name: str, leaf: Any, dtype: Any, names: _columns.Names | None) -> None:
    """Warns where a cast keeps fewer than about three digits of the spread of a column, of floats or integers."""
    if leaf.dtype == bool or (leaf.dtype.kind == "f" and leaf.dtype.itemsize <= np.dtype(dtype).itemsize):
        return
    values = where_it_lies(leaf)[1].reshape(leaf.shape[0], -1)
    if not values.size:
        return
    low, high = np.asarray(values.min(0)), np.asarray(values.max(0))
    # Python's integers: differences of int64 and uint64 overflow their own dtype.
    spread = np.array([float(b.item() - a.item()) for a, b in zip(low, high, strict=True)])
    largest = np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64)))
    lost = np.flatnonzero((spread > 0) & (float(jnp.finfo(dtype).eps) * largest > 1e-3 * spread))
    if lost.size:
        d = int(lost[0])
        column = f"column {names[d]!r}" if names else f"column {d}"
        remedy = "" if dtype == np.float64 else " or call jax.config.update('jax_enable_x64', True)"
        why = "" if dtype == np.float64 else " because JAX's x64 mode is off"
        warn(
            f"{name}: {leaf.dtype} becomes {np.dtype(dtype)}{why}, and {column} (range {low[d].item():.17g} to "
            f"{high[d].item():.17g}) keeps fewer than three digits of its spread; subtract an offset first{remedy}"
        )


def rows(model: Any, params: PyTree, data: Any, name: str = "data") -> PyTree:
    """Rows for a model at its params: read, held against the fit, the params and the support, cast to their dtype.

    Args:
      model: with `params_type`, `check`, `row_keys` and `rows`, as every `ELBOModel`.
      params: its params, whose float dtype the rows take.
      data: rows in any container; tracers are cast and not checked.
      name: of the argument, for messages.

    Returns:
      A pytree of float arrays.

    Raises:
      TypeError, ValueError: naming what was found, where, and what was expected.
    """
    check_params(model, params)
    data = data.data if isinstance(data, ShardedRows) else data
    data = model.opened(data, name)
    if not is_concrete(data):
        return as_floats(data, float_dtype(params))
    data, seen = read(data, name, model.row_keys)
    if model.rows is not None:
        model.rows.check(seen, name)
    data = _cast(data, float_dtype(params), name, seen)
    model.check(data, params)
    return data


def check_params(model: Any, params: PyTree) -> None:
    """Raises TypeError for what is no params of the model, as data in their place; on the host."""
    expected = model.params_type
    if expected is not None and not isinstance(params, expected):
        swapped = "; params come first, then data" if hasattr(params, "shape") or isinstance(params, list) else ""
        hint = "; give its .params" if hasattr(params, "params") else swapped
        raise TypeError(
            f"params: expected {expected.__name__}, as in fit.params; found a {type(params).__name__}{hint}"
        )


def takes_rows(method: Method) -> Method:
    """Makes a method `f(self, params, data, ...)` of a model take its rows, and weights, through the door.

    Args:
      method: a method whose first two arguments are params and rows; one called `weights` is checked as well.

    Returns:
      The method with the same signature.
    """
    signature = inspect.signature(method)
    _, at, second, *_ = signature.parameters
    taken = "data" if "data" in signature.parameters else second  # decompose(params, old, data), local(params, x)
    by_step = "num_steps" not in signature.parameters  # what is said of later steps is by the horizon

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            call = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            name = method.__name__
            raise TypeError(
                f"{name}: {error}; a model is asked as model.{name}(params, data), a fit, whose params are known, as "
                f"fit.{name}(data)"
            ) from None
        given = call.arguments
        if isinstance(given[taken], Stream):
            return _of_stream(method, call, taken, "weights" in signature.parameters)
        if isinstance(given[taken], ShardedRows):
            given[taken], weights = given[taken]
            if "weights" in signature.parameters and given.get("weights") is None:
                given["weights"] = weights
        like = given[taken]
        mesh = _mesh.mesh_of(like)
        if mesh is not None and method.__name__ in _BY_ROWS:
            there = self.over(_mesh.Layout(mesh, ()))
            if there is not self:
                given["self"] = there
                return getattr(type(there), method.__name__)(*call.args, **call.kwargs)
        data = given[taken] = rows(self, given[at], like)
        if given.get("weights") is not None and is_concrete(given["weights"]):
            given["weights"] = as_weights(given["weights"], num_rows(data), float_dtype(data), like=like)
        ask = lambda: method(*call.args, **call.kwargs)
        return answer(answered(method.__name__, ask, data), like, data, by_step)

    return checked  # type: ignore[return-value]


def _of_stream(method: Callable[..., Any], call: inspect.BoundArguments, taken: str, adds: bool) -> Any:
    """A question about the rows of a stream: a sum over batches where it takes weights, else an answer for each row."""
    stream: Stream = call.arguments[taken]
    if call.arguments.get("weights") is not None:
        raise ValueError("weights: expected None, as a stream has its own; give them to jaxem.stream(..., weights=)")
    model = call.arguments["self"]
    ask = takes_rows(method)

    def one(data: PyTree, number: int, **weights: Any) -> Any:
        arguments = dict(call.arguments) | {taken: keyed(data, stream, model.row_keys)} | weights
        if arguments.get("key") is not None:  # draws of its own in each batch
            arguments["key"] = jax.random.fold_in(as_key(arguments["key"]), number)
        bound = inspect.BoundArguments(call.signature, arguments)
        return ask(*bound.args, **bound.kwargs)

    if adds:
        return added(stream, lambda data, weights, number: one(data, number, weights=weights))
    return Answers(stream, one, method.__name__)


def as_weights(weights: Any, num: int, dtype: Any, name: str = "weights", like: Any = None) -> Array:
    """Weights (N,), non-negative, finite, not all zero; ones for None.

    `like` are the rows as they were given: a Series in another order than their frame is refused.
    """
    if weights is None:
        mesh = _mesh.mesh_of(like)
        if mesh is None:
            return place(np.ones(num), dtype)
        put = _mesh.put_copies if num % _mesh.row_shards(mesh) else _mesh.put_rows  # rows over some axes alone
        return put(np.ones(num, dtype), mesh)
    if _mesh.is_spread(weights):
        return _spread_weights(weights, num, dtype, name)
    if isinstance(weights, jax.core.Tracer):
        if weights.shape != (num,):
            raise ValueError(f"{name}: expected shape ({num},), one for each row of data; found {weights.shape}")
        return place(weights, dtype)
    if not isinstance(weights, jax.Array):
        leaves = jax.tree.leaves(like, is_leaf=lambda node: isinstance(node, list))
        _columns.check_aligned({"data": leaves[0] if leaves else None, name: weights})
    weights, _ = _columns.read(name, weights)
    if weights.shape != (num,):
        raise ValueError(f"{name}: expected shape ({num},), one for each row of data; found {weights.shape}")
    values = np.asarray(weights)
    if not np.isfinite(values).all():
        row = int(np.argmax(~np.isfinite(values)))
        raise ValueError(f"{name}: expected finite numbers; found {values[row]:g} in row {row}")
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        raise ValueError(f"{name}: expected numbers >= 0; found {values[row]:g} in row {row}")
    if not (values > 0).any():
        raise ValueError(f"{name}: expected at least one positive; found only zeros")
    info, total = jnp.finfo(dtype), float(np.sum(values, dtype=np.float64))
    if total > float(info.max) or float(values.max()) < float(info.tiny):
        raise ValueError(
            f"{name}: expected counts whose sum {np.dtype(dtype)} can hold; found a sum of {total:g}; rescale them"
        )
    return place(weights, dtype)


def _spread_weights(weights: Array, num: int, dtype: Any, name: str) -> Array:
    """Weights over a mesh, checked there."""
    if weights.shape != (num,):
        raise ValueError(f"{name}: expected shape ({num},), one for each row of data; found {weights.shape}")
    good, least, total = (float(a) for a in _examined(weights))
    if not good or least < 0 or not 0 < total <= float(jnp.finfo(dtype).max):
        raise ValueError(
            f"{name}: expected finite numbers >= 0, some of them positive; found a least of {least:g} and a sum of "
            f"{total:g}"
        )
    return place(weights, dtype)


@jax.jit
def _examined(weights: Array) -> tuple[Array, Array, Array]:
    return jnp.all(jnp.isfinite(weights)), jnp.min(weights), jnp.sum(weights)
