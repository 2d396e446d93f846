"""Checks and casts of what a user hands to `fit` besides rows: on the host, before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core.arguments import shown
from jaxem.core.checks import check_proportions
from jaxem.core.numerics import is_concrete
from jaxem.core.rows import check_params, place, read
from jaxem.core.tree import PyTree, float_dtype, num_rows
from jaxem.core.treedefs import check_structure


def check_enough(model: Any, num: int, name: str = "data") -> None:
    """Raises ValueError where the rows are fewer than a random start of the model needs."""
    setting, least = model.least_rows
    if num < least:
        raise ValueError(f"{name}: expected at least {setting} = {least} rows; found {num}")


def as_many(model: Any, rows: PyTree) -> tuple[PyTree, Any]:
    """Shapes of rows and weights, as if they were as many as a random start of the model, and its `bind`, need."""
    num = max(num_rows(rows), model.least_rows[1], 2)
    shape = lambda leaf: jax.ShapeDtypeStruct((num, *leaf.shape[1:]), leaf.dtype)
    return jax.tree.map(shape, rows), jax.ShapeDtypeStruct((num,), float_dtype(rows))


def as_more(model: Any, more: Any, data: PyTree, name: str) -> PyTree:
    """Further observations as a pytree of the structure, the trailing shapes and the dtype of `data`.

    In any container that the model takes; held against `model.rows`, where these are what the data looked like.
    """
    more, seen = read(model.opened(more, name), name, model.row_keys)
    check_structure(name, more, data, "the data are")

    def check(path: Any, leaf: Array, own: Array) -> Array:
        if leaf.shape[1:] != own.shape[1:]:
            shape = ("n", *own.shape[1:])
            raise ValueError(
                f"{name + jax.tree_util.keystr(path)}: expected the data's shape {shape}; found {leaf.shape}"
            )
        return place(leaf, own.dtype)

    more = jax.tree_util.tree_map_with_path(check, more, data)
    if model.rows is not None:
        model.rows.check(seen, name)
    return more


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """Every float leaf of a configuration as a fresh array of the data's dtype; weak types would compile again."""

    def cast(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return place(leaf, dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        array = np.array(leaf)
        return array.astype(dtype) if array.dtype.kind in "fiu" and not isinstance(leaf, bool) else leaf

    return jax.tree.map(cast, tree)


def as_params(params: PyTree, shapes: PyTree, num_restarts: int, dtype: Any, model: Any) -> PyTree:
    """Given params in the data's dtype, with the structure and shapes that the model's own would have."""
    check_params(model, params)
    check_structure("params", params, shapes, f"{shown(model)} has")
    lead = (num_restarts,) if num_restarts > 1 else ()

    def check(path: Any, leaf: Any, shape: Any) -> Array:
        name = "params" + jax.tree_util.keystr(path)
        if np.shape(leaf) != lead + shape.shape:
            why = f", one start for each of num_restarts = {num_restarts}" if lead else ""
            raise ValueError(f"{name}: expected shape {lead + shape.shape}{why}; found {np.shape(leaf)}")
        if is_concrete(leaf) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(f"{name}: expected finite numbers; found NaN or infinite ones")
        kind = dtype if jnp.issubdtype(shape.dtype, jnp.floating) else shape.dtype
        return place(leaf, kind)

    placed = jax.tree_util.tree_map_with_path(check, params, shapes)
    _check_simplices(params, model)
    return placed


def _check_simplices(params: PyTree, model: Any) -> None:
    """Raises ValueError for given proportions that do not sum to 1, where the model says which params are some."""
    try:
        spec = constraints.mirror(model.constraints(), params)
    except TypeError:  # the model declares no constraints
        return

    def check(path: Any, leaf: Any, constraint: Any) -> None:
        if isinstance(constraint, constraints.Simplex):
            check_proportions("params" + jax.tree_util.keystr(path), leaf)

    jax.tree_util.tree_map_with_path(check, params, spec)
