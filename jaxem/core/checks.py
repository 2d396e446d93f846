"""Checks of data, priors and params that families and models share: on the host, with errors that name the argument."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import as_numbers, check_number, shown
from jaxem.core.numerics import is_concrete
from jaxem.core.rows import where_it_lies


def check_matrix(x: Any, columns: int | None = None) -> None:
    """Raises unless data are one array (N, D), D as given or any >= 1."""
    if len(jax.tree.leaves(x)) != 1 or not hasattr(x, "ndim"):
        raise TypeError(f"data: expected one array (N, D); found a {type(x).__name__}")
    if x.ndim != 2:
        remedy = "data.reshape(len(data), -1) makes columns of the rest"
        remedy = "one column is numpy.reshape(data, (-1, 1)), one row (1, -1)" if x.ndim < 2 else remedy
        raise ValueError(f"data: expected shape (N, D); found {x.shape}; {remedy}")
    if columns is not None and x.shape[1] != columns:
        raise ValueError(f"data: expected {columns} columns, as the params have; found shape {x.shape}")
    if x.shape[1] == 0:
        raise ValueError(f"data: expected at least one column; found shape {x.shape}")


def check_proportions(name: str, values: Any) -> None:
    """Raises ValueError unless proportions (..., K) that can be looked at are non-negative and sum to 1."""
    if is_concrete(values):
        found = np.asarray(values, np.float64)
        if not (np.all(found >= 0) and np.all(np.abs(found.sum(-1) - 1) <= 1e-3)):  # NaN is no proportion
            raise ValueError(f"{name}: expected proportions that sum to 1; found {shown(found)}")


def check_covariance(family: Any, params: Any) -> None:
    """Raises TypeError for params of another shape of covariance than the family's."""
    found = getattr(params, "covariance_type", family.covariance)
    if found != family.covariance:
        raise TypeError(f"params: expected those of covariance {family.covariance!r}, the model's; found {found!r}")


def check_strength(name: str, value: Any) -> None:
    """Raises unless a value that can be looked at is a finite number >= 0."""
    check_number(name, value, 0)


def check_array(name: str, value: Any, shapes: tuple[tuple[Any, ...], ...], positive: bool = False) -> None:
    """Raises unless value has one of the shapes, in which None stands for any length, and finite (positive) entries."""
    if isinstance(value, (list, tuple)):  # its entries would become leaves of the model one by one
        raise TypeError(f"{name}: expected an array; found a {type(value).__name__}; write jnp.array(...)")
    if is_concrete(value):
        check_kind(name, value)
    fits = lambda shape: (
        len(shape) == np.ndim(value) and all(s in (None, n) for s, n in zip(shape, np.shape(value), strict=True))
    )
    if not any(fits(shape) for shape in shapes):
        names = " or ".join(str(shape).replace("None", "K").replace("'", "") for shape in shapes)
        raise ValueError(f"{name}: expected shape {names}; found {np.shape(value)}")
    if is_concrete(value):
        array = np.asarray(value)
        bad = ~np.isfinite(array) | ((array <= 0) & positive)
        if bad.any():
            found = shown(value) if array.ndim == 0 else f"{array[bad].flat[0]}"
            raise ValueError(f"{name}: expected finite numbers{' > 0' if positive else ''}; found {found}")


def check_kind(name: str, value: Any) -> None:
    """Raises TypeError unless value is a real number or an array of them."""
    if as_numbers(value) is None:
        raise TypeError(f"{name}: expected a number or an array; found {shown(value)}")


def require(x: Any, ok: Any, expected: str, column: int | None = None) -> None:
    """Raises ValueError naming the first entry of x (N, D) where `ok(x, namespace)` does not hold; on the host."""
    xp, values = where_it_lies(x)
    values = values if column is None else values[:, column, None]
    bad = ~ok(values, xp)
    if bool(xp.any(bad)):
        row, found = divmod(int(xp.argmax(bad.reshape(-1))), values.shape[1])
        where = f"row {row}, column {found if column is None else column}"
        raise ValueError(f"data: expected {expected}; found {values[row, found]:g} in {where}")


def require_counts(x: Any, most: int | None = None, expected: str | None = None, column: int | None = None) -> None:
    """`require` that entries are counts 0, 1, 2, ..., up to `most` where it is given: by default, out of so many."""
    ending = "2, ..." if most is None else f"..., {most} out of num_trials = {most}"

    def ok(values: Any, xp: Any) -> Any:
        whole = (values >= 0) & (values == xp.round(values))
        return whole if most is None else whole & (values <= most)

    require(x, ok, f"counts 0, 1, {ending}" if expected is None else expected, column)


def check_vector(name: str, value: Any, size: int, low: float, high: float) -> None:
    """Raises ValueError unless value is a vector of `size` numbers from low to high."""
    check_kind(name, value)
    values = np.asarray(value)
    if values.shape != (size,) or not np.all((values >= low) & (values <= high)) or not np.all(np.isfinite(values)):
        raise ValueError(f"{name}: expected shape ({size},), numbers from {low:g} to {high:g}; found {shown(value)}")


def as_matrix(name: str, value: Any, low: float, high: float, expected: str) -> Array:
    """Value as a float array (K, D) of numbers from low to high; lists and integers take the default float dtype."""
    if is_concrete(value):
        check_kind(name, value)
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating) or not hasattr(value, "dtype"):
        array = array.astype(jnp.result_type(float))
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape (K, D); found {array.shape}")
    if is_concrete(array):
        values = np.asarray(array)
        bad = ~((values >= low) & (values <= high) & np.isfinite(values))
        if bad.any():
            raise ValueError(f"{name}: expected {expected}; found {values[bad][0]:g}")
    return array
