"""Columns of categories: which are such, which categories there are, and their codes, the same for every frame."""

from typing import Any

import numpy as np

from jaxem.core.warn import warn

# A column with more categories than this, and than half the rows, looks like the names of the rows.
MANY = 50


def declared(column: Any) -> tuple[Any, ...] | None:
    """The categories that the type of a column names; () where it has some that it does not name; None for others."""
    dtype = getattr(column, "dtype", getattr(column, "type", None))
    categories = getattr(dtype, "categories", None)
    if categories is not None and hasattr(categories, "__iter__"):
        return tuple(map(_item, categories))
    coded = type(dtype).__name__ in ("Categorical", "Enum", "DictionaryType")
    return () if coded else None


def is_category(column: Any) -> bool:
    """Whether a column is one of categories: by its type, or because it holds text."""
    return declared(column) is not None or _is_text(column)


def _is_text(column: Any) -> bool:
    if getattr(getattr(column, "dtype", None), "kind", "O") in "biuf":
        return False
    return any(isinstance(value, str) for value in _listed(column)[:1000] if value is not None)


def _listed(column: Any) -> list[Any]:
    """The values of a column as Python's."""
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, method):
            return getattr(column, method)()
    return list(column)


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_missing(value: Any) -> bool:
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def levels_of(name: Any, column: Any) -> tuple[Any, ...]:
    """The categories of a column in the order of their codes: as its type declares them, else as found, sorted."""
    values = list(map(_item, _listed(column)))
    missing = next((row for row, value in enumerate(values) if _is_missing(value)), None)
    if missing is not None:
        raise ValueError(f"frame[{name!r}]: {_fill(missing)}")
    levels = declared(column) or tuple(sorted(set(values), key=lambda value: (type(value).__name__, value)))
    remedy = f"leave it out: families={{{name!r}: None}}"
    if len(levels) < 2:
        found = ", ".join(map(repr, levels)) or "none"
        raise ValueError(f"frame[{name!r}]: expected at least two categories; found {found} in all rows; {remedy}")
    if len(levels) > max(MANY, len(values) // 2):
        found = f"{len(levels)} categories in {len(values)} rows, which look like names of the rows"
        warn(f"frame[{name!r}]: {found}; {remedy}")
    return levels


def _fill(row: int) -> str:
    remedy = "fill it in, as by .fillna('missing'), or drop the row"
    return f"expected a category in each row; found none in row {row}; {remedy}"


def codes_of(place: str, column: Any, levels: tuple[Any, ...]) -> np.ndarray:
    """(N,) codes of a column by known categories; ValueError, with the place, for one that is not known or missing."""
    codes = {level: code for code, level in enumerate(levels)}
    out = np.empty(len(column), np.int64)
    for row, value in enumerate(map(_item, _listed(column))):
        if _is_missing(value):
            raise ValueError(f"{place}: {_fill(row)}")
        if value not in codes:
            known = ", ".join(map(repr, levels[:8])) + (f", ... ({len(levels)})" if len(levels) > 8 else "")
            raise ValueError(
                f"{place}: expected the categories of the family, {known}; found {value!r} in row {row}; drop such "
                "rows, or make the family of a frame that has it, as by a type that declares all categories"
            )
        out[row] = codes[value]
    return out
