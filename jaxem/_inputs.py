"""Checks and casts of what a user hands to `fit` besides rows: on the host, before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem._numerics import is_concrete
from jaxem._rows import as_data, place
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


def check_enough(model: ELBOModel, num_rows: int, name: str = "data") -> None:
    """Raises ValueError where the rows are fewer than a random start of the model needs."""
    setting, least = model.least_rows
    if num_rows < least:
        raise ValueError(f"{name}: expected at least {setting} = {least} rows; found {num_rows}")


def as_key(key: Any) -> Array:
    """A random key, typed or of the older uint32 kind."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(f"key: expected one key; found an array of keys of shape {key.shape}")
        return key
    if hasattr(key, "dtype") and key.dtype == np.uint32 and np.ndim(key) == 1:
        return jax.random.wrap_key_data(jnp.asarray(key))
    raise TypeError(f"key: expected a JAX random key, as jax.random.key(0); found {key!r}")


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
            raise ValueError(
                f"{name + jax.tree_util.keystr(path)}: expected the data's shape {shape}; found {leaf.shape}"
            )
        return place(leaf, own.dtype)

    return jax.tree_util.tree_map_with_path(check, more, data)


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """Every float leaf of a configuration as a fresh array of the data's dtype; weak types would compile again."""

    def cast(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return place(leaf, dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
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
        return place(leaf, kind)

    return jax.tree_util.tree_map_with_path(check, params, shapes)
