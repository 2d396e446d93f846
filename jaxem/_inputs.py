"""Checks and casts of what a user hands to `fit`: done once, on the host, before anything is compiled."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem._numerics import is_concrete
from jaxem._tree import PyTree
from jaxem.model import ELBOModel


def check_count(name: str, value: Any, least: int) -> None:
    """Raises unless value is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer >= {least}; found {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}; found {value}")


def check_model(model: Any) -> None:
    """Raises unless model is an instance of one of the protocols."""
    if not isinstance(model, ELBOModel):
        hint = "; call it first, as in GMM(3)" if callable(model) else ""
        raise TypeError(f"model: expected a jaxem model; found {model!r}{hint}")


def as_key(key: Any) -> Array:
    """A random key, typed or of the older uint32 kind."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(f"key: expected one key; found an array of keys of shape {key.shape}")
        return key
    if hasattr(key, "dtype") and key.dtype == np.uint32 and np.ndim(key) == 1:
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise TypeError(f"key: expected a JAX random key, as jax.random.key(0); found {key!r}")


def _name(path: Any, argument: str) -> str:
    return argument + jax.tree_util.keystr(path)


def _as_leaf(path: Any, leaf: Any, argument: str) -> Array:
    """One array of observations in its working dtype, checked."""
    name = _name(path, argument)
    if not isinstance(leaf, jax.Array):
        try:
            leaf = np.asarray(leaf)
        except (ValueError, TypeError) as error:
            raise TypeError(f"{name}: expected numbers; found a {type(leaf).__name__}: {error}") from None
    if not (leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.integer) or jnp.issubdtype(leaf.dtype, jnp.floating)):
        raise TypeError(f"{name}: expected real numbers; found dtype {leaf.dtype}")
    if leaf.ndim == 0 or leaf.shape[0] == 0:
        raise ValueError(f"{name}: expected at least one row; found shape {leaf.shape}")
    if is_concrete(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
        bad = _num_nonfinite(leaf)
        if bad:
            raise ValueError(f"{name}: expected finite numbers; found {bad} that are NaN or infinite")
    return _as_float(name, leaf)


def _num_nonfinite(leaf: Any) -> int:
    """Counted where the array lies: data on an accelerator, or spread over many, are not copied to the host."""
    local = not isinstance(leaf, jax.Array) or (
        len(leaf.devices()) == 1 and next(iter(leaf.devices())).platform == "cpu"
    )
    xp: Any = np if local else jnp
    return int(leaf.size - xp.isfinite(np.asarray(leaf) if local else leaf).sum())


def _as_float(name: str, leaf: Any) -> Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        dtype = jnp.result_type(float)
    elif jnp.finfo(leaf.dtype).bits < 32:
        dtype = jnp.dtype(jnp.float32)
    else:
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        if dtype != leaf.dtype:
            _warn_if_lossy(name, leaf, dtype)
    return _place(leaf, dtype)


def _place(leaf: Any, dtype: Any) -> Array:
    """An array on the device by a plain transfer, where `jnp.asarray` would compile a program for each shape."""
    if isinstance(leaf, jax.Array):
        return leaf if leaf.dtype == dtype else leaf.astype(dtype)
    return jax.device_put(np.asarray(leaf, dtype))


def _warn_if_lossy(name: str, leaf: np.ndarray, dtype: Any) -> None:
    """Warns where a cast to float32 keeps fewer than about three digits of the spread of a column."""
    columns = leaf.reshape(leaf.shape[0], -1)
    low, high = columns.min(0, initial=np.inf), columns.max(0, initial=-np.inf)
    rounding = float(jnp.finfo(dtype).eps) * np.maximum(np.abs(low), np.abs(high))
    lost = np.flatnonzero((high > low) & (rounding > 1e-3 * (high - low)))
    if lost.size:
        warnings.warn(
            f"{name}: float64 becomes float32 because JAX's x64 mode is off, and column {lost[0]} "
            f"(range {low[lost[0]]:.9g} to {high[lost[0]]:.9g}) keeps fewer than three digits of its spread; "
            "subtract an offset first or call jax.config.update('jax_enable_x64', True)",
            UserWarning,
            stacklevel=2,
        )


def as_data(data: Any, name: str = "data") -> PyTree:
    """Observations as a pytree of float arrays that share their leading axis; nested lists become one array."""
    if isinstance(data, list):
        data = np.asarray(data) if all(np.shape(row) == np.shape(data[0]) for row in data) else np.asarray(None)
    if not jax.tree.leaves(data):
        raise ValueError(f"{name}: expected at least one array; found none")
    data = jax.tree_util.tree_map_with_path(lambda path, leaf: _as_leaf(path, leaf, name), data)
    sizes = sorted({leaf.shape[0] for leaf in jax.tree.leaves(data)})
    if len(sizes) > 1:
        raise ValueError(f"{name}: expected arrays with one shared leading axis; found lengths {sizes}")
    floats = {leaf.dtype for leaf in jax.tree.leaves(data)}
    dtype = jnp.result_type(*floats)
    return jax.tree.map(lambda leaf: _place(leaf, dtype), data)


def as_more(more: Any, data: PyTree, name: str) -> PyTree:
    """Further observations as a pytree of the structure, the trailing shapes and the dtype of `data`."""
    more = as_data(more, name)
    found: Any = jax.tree.structure(more)
    expected: Any = jax.tree.structure(data)
    if found != expected:
        raise ValueError(f"{name}: expected the structure of the data, {expected}; found {found}")

    def check(path: Any, leaf: Array, own: Array) -> Array:
        if leaf.shape[1:] != own.shape[1:]:
            shape = ("n", *own.shape[1:])
            raise ValueError(f"{_name(path, name)}: expected the data's shape {shape}; found {leaf.shape}")
        return _place(leaf, own.dtype)

    return jax.tree_util.tree_map_with_path(check, more, data)


def as_weights(weights: Any, num: int, dtype: Any, name: str = "weights") -> Array:
    """Weights (N,), non-negative, finite, not all zero; ones for None."""
    if weights is None:
        return _place(np.ones(num), dtype)
    if not isinstance(weights, jax.Array):
        weights = np.asarray(weights)
    if not (weights.dtype == bool or jnp.issubdtype(weights.dtype, np.number)) or np.iscomplexobj(weights):
        raise TypeError(f"{name}: expected real numbers; found dtype {weights.dtype}")
    if weights.shape != (num,):
        raise ValueError(f"{name}: expected shape ({num},), one for each row of data; found {weights.shape}")
    if is_concrete(weights):
        values = np.asarray(weights)
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite numbers; found NaN or infinite ones")
        if (values < 0).any():
            raise ValueError(f"{name}: expected numbers >= 0; found {values.min()}")
        if not (values > 0).any():
            raise ValueError(f"{name}: expected at least one positive; found only zeros")
    return _place(weights, dtype)


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """Every float leaf of a configuration as a fresh array of the data's dtype; weak types would compile again."""

    def cast(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return _place(leaf, dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        array = np.array(leaf)
        return array.astype(dtype) if array.dtype.kind in "fiu" and not isinstance(leaf, bool) else leaf

    return jax.tree.map(cast, tree)


def as_params(params: PyTree, shapes: PyTree, num_restarts: int, dtype: Any) -> PyTree:
    """Given params in the data's dtype, with the structure and shapes that the model's own would have."""
    found: Any = jax.tree.structure(params)
    expected: Any = jax.tree.structure(shapes)
    if found != expected:
        raise ValueError(f"params: expected the structure {expected}; found {found}")
    lead = (num_restarts,) if num_restarts > 1 else ()

    def check(path: Any, leaf: Any, shape: Any) -> Array:
        name = "params" + jax.tree_util.keystr(path)
        if np.shape(leaf) != lead + shape.shape:
            raise ValueError(f"{name}: expected shape {lead + shape.shape}; found {np.shape(leaf)}")
        if is_concrete(leaf) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"{name}: expected finite numbers; found NaN or infinite ones")
        kind = dtype if jnp.issubdtype(shape.dtype, jnp.floating) else shape.dtype
        return _place(leaf, kind)

    return jax.tree_util.tree_map_with_path(check, params, shapes)
