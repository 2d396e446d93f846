"""Where a pytree differs from the one expected, in words: two printed tree structures tell a person nothing."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxem.core.arguments import shown
from jaxem.core.tree import PyTree


def check_structure(name: str, found: PyTree, expected: PyTree, owner: str) -> None:
    """Raises ValueError at the first place where a pytree is not built as the one expected.

    Args:
      name: of the argument.
      found: what was given.
      expected: a pytree of arrays or of their shapes.
      owner: what expects it, for the message: "GMM(3) has".
    """
    one: Any = jax.tree.structure(found)
    other: Any = jax.tree.structure(expected)
    if one == other:
        return
    place = difference(found, expected, name)
    path, wanted, got = (name, f"the structure {other}", f"{one}") if place is None else place
    raise ValueError(f"{path}: expected {wanted}, as {owner}; found {got}")


def difference(found: Any, expected: Any, name: str) -> tuple[str, str, str] | None:
    """(path, expected, found) of the first difference of structure, in words; None where there is none."""
    here = name, _kind(expected), _kind(found)
    if _is_leaf(expected) or expected is None:
        same = found is None if expected is None else _is_leaf(found)
        return None if same else here
    if type(found) is not type(expected):
        return here
    if dataclasses.is_dataclass(expected):
        return _fields(found, expected, name)
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return name, f"the keys {_listed(expected)}", _listed(found)
        return _first((found[key], expected[key], f"{name}[{key!r}]") for key in expected)
    if isinstance(expected, (tuple, list)):
        if len(found) != len(expected):
            return name, f"{len(expected)} entries", f"{len(found)}"
        fields = getattr(expected, "_fields", None)
        places = [f".{field}" for field in fields] if fields else [f"[{i}]" for i in range(len(expected))]
        return _first((a, b, name + place) for a, b, place in zip(found, expected, places, strict=True))
    return None


def _first(parts: Any) -> tuple[str, str, str] | None:
    return next((place for part in parts if (place := difference(*part)) is not None), None)


def _fields(found: Any, expected: Any, name: str) -> tuple[str, str, str] | None:
    """The first difference in the fields of a dataclass; static ones are compared by value."""
    for field in dataclasses.fields(expected):
        a, b, place = getattr(found, field.name), getattr(expected, field.name), f"{name}.{field.name}"
        if field.metadata.get("static", False):
            if a != b:
                return place, shown(b), shown(a)
        elif (inside := difference(a, b, place)) is not None:
            return inside
    return None


def _is_leaf(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct, int, float))


def _kind(value: Any) -> str:
    """What a part of a pytree is, for a person."""
    if value is None:
        return "None"
    if hasattr(value, "shape"):
        return f"an array of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {_listed(value)}"
    return f"a number, {value}" if isinstance(value, (int, float)) else f"a {type(value).__name__}"


def _listed(keys: Any) -> str:
    return ", ".join(repr(key) for key in sorted(keys, key=str)) or "nothing"
