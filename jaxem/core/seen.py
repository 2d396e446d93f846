"""What the rows of a fit looked like: shapes and names of columns, which later rows are held against."""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np

from jaxem.core.columns import Names
from jaxem.core.sequences import Sequences
from jaxem.core.tree import PyTree

# The place of an array in a dict.
_KEY = re.compile(r"\['([^']*)'\]")


@dataclasses.dataclass(frozen=True)
class Rows:
    """What the rows of a fit looked like, so that later ones can be held against them.

    Attributes:
      paths: where each array stands in the data, "" for data that are one array.
      shapes: shape of one row in each array, () for a number.
      names: of the columns of each array; None where it had none.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[Names | None, ...]

    @staticmethod
    def of(data: PyTree, names: dict[str, Names] | None = None) -> "Rows":
        """The description of data, a pytree of arrays with names of columns by path."""
        leaves = jax.tree_util.tree_flatten_with_path(data)[0]
        paths = tuple(jax.tree_util.keystr(path) for path, _ in leaves)
        steps = tuple(jax.tree.leaves(step_axes(data)))
        shapes = tuple(leaf.shape[1 + axes :] for (_, leaf), axes in zip(leaves, steps, strict=True))
        return Rows(paths, shapes, tuple((names or {}).get(p) for p in paths))

    def labels(self, num: int) -> tuple[str, ...]:
        """What `num` columns of the first array are called: by their names, or by numbers from 0."""
        names = self.names[0] if self.names else None
        return tuple(str(name) for name in (range(num) if names is None or len(names) != num else names))

    def renamed(self, prefix: str) -> "Rows":
        """The same rows, their columns called "prefix.name"; a single column without a name by the prefix alone."""

        def rename(shape: tuple[int, ...], names: Names | None) -> Names:
            num = math.prod(shape)
            labels = [str(name) for name in (range(num) if names is None else names)]
            return (prefix,) if num == 1 and names is None else tuple(f"{prefix}.{label}" for label in labels)

        return dataclasses.replace(self, names=tuple(rename(shape, names) for _, shape, names in self._each()))

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of all columns, array by array, a column alone in a dict by its key; None where none has any."""
        found: list[str] = []
        for path, shape, names in self._each():
            key = _KEY.fullmatch(path)
            alone = key is not None and math.prod(shape) == 1
            found += [key[1]] if key is not None and alone and names is None else [str(name) for name in names or ()]
        return tuple(found) or None

    def part(self, path: str) -> "Rows":
        """The description of the part of the data at a path, as "[0]"."""
        found = [(p.removeprefix(path), *rest) for p, *rest in self._each() if p.startswith(path)]
        return Rows(*(tuple(column) for column in zip(*found, strict=True))) if found else Rows((), (), ())

    def _each(self) -> list[tuple[str, tuple[int, ...], Names | None]]:
        return list(zip(self.paths, self.shapes, self.names, strict=True))

    def check(self, found: "Rows", name: str) -> None:
        """Raises ValueError unless rows found look like these: same arrays, columns and order of columns."""
        if found.paths != self.paths:
            expected, got = (", ".join(name + p for p in rows.paths) for rows in (self, found))
            raise ValueError(f"{name}: expected the arrays that the model was fitted to, {expected}; found {got}")
        for (path, shape, names), (_, new, new_names) in zip(self._each(), found._each(), strict=True):
            path = path.replace(".values", "", 1)  # of sequences, which the user need not know of
            if names is not None and new_names is not None and _differ(names, new_names):
                raise ValueError(f"{name}{path}: {_other_names(names, new_names)}")
            if shape != new:
                one = "; one row is numpy.reshape(row, (1, -1))" if shape and not new else ""
                raise ValueError(
                    f"{name}{path}: expected rows of shape {shape}, as the model was fitted to; found {new}{one}"
                )


def step_axes(data: PyTree) -> PyTree:
    """At each leaf the number of axes beside the leading one that are no part of what is observed: 1 in sequences."""
    parts = data if isinstance(data, tuple) else (data,)
    stepwise = any(isinstance(part, Sequences) for part in parts)  # and what is known of each step
    return jax.tree.map(lambda leaf: min(1, leaf.ndim - 1) if stepwise else 0, data)


def _differ(names: Names, found: Names) -> bool:
    """Whether columns have other names; 0, 1, ... in order beside text is only a frame that was given none."""
    plain = tuple(range(len(names)))
    text = lambda labels: all(isinstance(label, str) for label in labels)
    given = not (names == plain and text(found)) and not (found == plain and text(names))
    return names != found and given


def _other_names(expected: Names, found: Names) -> str:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if not missing and not extra:
        return f"expected the columns in the order of the fit, {listed(expected)}; found {listed(found)}; reorder them"
    parts = [f"{what} {listed(names)}" for what, names in (("without", missing), ("with", extra)) if names]
    return f"expected the columns of the fit, {listed(expected)}, and no others; found a frame {' and '.join(parts)}"


def listed(names: Any) -> str:
    """Names in a message; the number of them where there are many."""
    shown = [repr(name) for name in names[:8]]
    return ", ".join(shown) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")


def by_column(name: str, values: Any, labels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """(K, D) values as columns called name[label]; (K,) ones under the name, other shapes with numbers as labels."""
    values = np.asarray(values)
    if values.ndim == 1:
        return {name: values}
    if values.ndim == 2 and len(labels) == values.shape[1]:
        return {f"{name}[{label}]": values[:, d] for d, label in enumerate(labels)}
    places = list(np.ndindex(values.shape[1:]))
    return {f"{name}[{', '.join(map(str, place))}]": values[(slice(None), *place)] for place in places}
