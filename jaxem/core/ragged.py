"""The door for sequences: a series, a list of them, or padded arrays, read and checked on the host, padded once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core import columns as _columns
from jaxem.core.numerics import is_concrete
from jaxem.core.rows import by_keys, check_finite, float_dtype_of
from jaxem.core.sequences import Sequences, is_listed, most_axes
from jaxem.core.tree import PyTree, num_rows


def sequences(values: Any, lengths: Any = None, observed: Any = None) -> Sequences:
    """Sequences for a hidden Markov model, padded to one length.

    A model takes plain data too: an array (T, D) or a frame is one sequence, a list holds one in each entry, an array
    (S, T, D) is S of equal length. This function is for what these do not say.

    Args:
      values: one sequence (T, ...), a list of them, S padded ones (S, T, ...), or with `lengths` all of them one after
        the other (sum of lengths, ...). Where a family takes several arrays, a pytree of such.
      lengths: (S,) number of steps of each.
      observed: True for steps with an observation, in the form of `values`: (T,), a list of (T_i,), or (S, T).
        Elsewhere values are not looked at, and may be NaN. None for all.

    Returns:
      `Sequences`.

    Raises:
      TypeError, ValueError: what is no numbers, not finite, empty, or does not fit together.

    Examples:
      >>> import jaxem, numpy as np
      >>> x = np.array([[1.0], [np.nan], [3.0]])
      >>> jaxem.sequences(x, observed=~np.isnan(x[:, 0]))
      Sequences(1 of 3 to 3 steps, 1 without an observation)
      >>> jaxem.sequences(np.zeros((5, 2)), lengths=[2, 3])
      Sequences(2 of 2 to 3 steps)
    """
    return read_sequences(values, "values", lengths, observed)


def read_sequences(
    data: Any, name: str, lengths: Any = None, observed: Any = None, keys: tuple[str, ...] | None = None
) -> Sequences:
    """See `sequences`; `name` is the argument's, for messages, `keys` those of `jaxem.core.rows.read`.

    Tracers are not looked at.
    """
    if isinstance(data, Sequences):
        if lengths is not None or observed is not None:
            raise TypeError(f"{name}: expected arrays, with lengths or observed; found Sequences, which have their own")
        return data
    if isinstance(data, tuple) and len(data) == 2 and lengths is None and _is_padded(*data):
        data, lengths = data
    if not is_concrete(data):
        return _traced(data, lengths)
    parts, marks = _parts(data, name, lengths, observed)
    return _pad(parts, marks, name, keys)


def _is_padded(values: Any, lengths: Any) -> bool:
    """Whether a pair is (S, T, ...) and integer lengths (S,), not the two arrays of one observation."""
    if np.ndim(lengths) != 1 or most_axes(values) < 3 or num_rows(values) != len(lengths):
        return False
    return jnp.issubdtype(jnp.result_type(lengths if hasattr(lengths, "dtype") else np.asarray(lengths)), jnp.integer)


def _traced(data: PyTree, lengths: Any) -> Sequences:
    """A series, or S padded ones, within a caller's program."""
    if isinstance(data, list):
        raise TypeError("data: a list of sequences is padded on the host; within jit give jaxem.sequences(...) of it")
    values = data if most_axes(data) > 2 else jax.tree.map(lambda leaf: leaf[None], data)
    first = jax.tree.leaves(values)[0]
    dtype = first.dtype if jnp.issubdtype(first.dtype, jnp.floating) else jnp.result_type(float)
    num, steps = first.shape[:2]
    length = jnp.full(num, steps, dtype) if lengths is None else jnp.asarray(lengths).astype(dtype)
    observed = jnp.arange(steps).astype(dtype)[None] < length[:, None]
    return Sequences(values, length, observed.astype(dtype))


def _parts(data: Any, name: str, lengths: Any, observed: Any) -> tuple[list[Any], list[Any]]:
    """The sequences one by one, and the marks of their observed steps, None for all."""
    if is_listed(data):
        if lengths is not None:
            raise TypeError(f"lengths: expected None for a list, whose entries have their own; found {lengths!r}")
        if not data:
            raise ValueError(f"{name}: expected at least one sequence; found an empty list")
        marks = [None] * len(data) if observed is None else list(observed)
        if len(marks) != len(data):
            raise ValueError(f"observed: expected a list of {len(data)}, one for each sequence; found {len(marks)}")
        return data, marks
    whole = _whole(data, name)
    if lengths is None:
        if most_axes(whole) < 3:
            return [whole], [observed]
        lengths = np.full(num_rows(whole), jax.tree.leaves(whole)[0].shape[1])
    lengths = _lengths(lengths)
    num = num_rows(whole)
    if num == lengths.sum() and not (most_axes(whole) > 2 and num == len(lengths)):
        edges = np.cumsum(lengths)[:-1]
        pieces = jax.tree.map(lambda leaf: np.split(np.asarray(leaf), edges), whole)
        split = [jax.tree.map(lambda _, p, i=i: p[i], whole, pieces) for i in range(len(lengths))]
        return split, [None] * len(lengths) if observed is None else np.split(np.asarray(observed), edges)
    steps = jax.tree.leaves(whole)[0].shape[1] if most_axes(whole) > 1 else 0
    if num != len(lengths) or lengths.max() > steps:
        raise ValueError(
            f"lengths: expected {num} numbers up to {steps}, or numbers that add up to {num}; found {len(lengths)} "
            f"that add up to {lengths.sum()}, the largest {lengths.max()}"
        )
    marks = [None] * num
    if observed is not None:
        marks = [row[:n] for row, n in zip(np.asarray(observed), lengths, strict=True)]
    return [jax.tree.map(lambda leaf, i=i, n=n: leaf[i, :n], whole) for i, n in enumerate(lengths)], marks


def _whole(data: Any, name: str) -> PyTree:
    """Arrays of NumPy where the data are arrays; frames as they are."""
    as_array = lambda leaf: leaf if _columns.column_names(leaf) is not None else np.asarray(leaf)
    if _columns.column_names(data) is not None:
        return data
    whole = jax.tree.map(as_array, data, is_leaf=lambda node: isinstance(node, list))
    if not jax.tree.leaves(whole):
        raise ValueError(f"{name}: expected at least one sequence; found {'none' if data is None else repr(data)[:40]}")
    return whole


def _lengths(lengths: Any) -> np.ndarray:
    found = np.asarray(lengths)
    if found.ndim != 1 or not found.size or found.dtype.kind not in "iuf" or (found != np.round(found)).any():
        raise ValueError(f"lengths: expected whole numbers, one for each sequence; found {repr(lengths)[:60]}")
    if (found < 1).any():
        raise ValueError(f"lengths: expected at least one step in each sequence; found {found.min()}")
    return found.astype(np.int64)


def _pad(parts: list[Any], marks: list[Any], name: str, keys: tuple[str, ...] | None) -> Sequences:
    """Sequences read, checked and padded with copies of an observed row."""
    names: dict[str, _columns.Names] = {}
    read, seen = [], []
    for i, (part, mark) in enumerate(zip(parts, marks, strict=True)):
        label = name if len(parts) == 1 else f"{name}[{i}]"
        if keys is not None and not isinstance(part, dict):
            part = by_keys(part, keys, label)
        arrays = _read_one(part, label, names)
        if keys is not None and isinstance(arrays, dict):
            arrays = {key: leaf[:, None] if leaf.ndim == 1 else leaf for key, leaf in arrays.items()}
        num = num_rows(arrays)
        mark = np.ones(num, bool) if mark is None else _marks(mark, num, i if len(parts) > 1 else None)
        for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
            check_finite(label + jax.tree_util.keystr(path), leaf, mark)
        read.append(arrays)
        seen.append(mark)
    for i, arrays in enumerate(read):
        expected, found = _shapes(read[0]), _shapes(arrays)
        if found != expected:
            raise ValueError(f"{name}[{i}]: expected steps of shapes {expected}, as in {name}[0]; found {found}")
    which = next((i for i, mark in enumerate(seen) if mark.any()), None)
    if which is None:
        raise ValueError("observed: expected at least one observation; found none")
    row = int(np.argmax(seen[which]))
    length = np.array([len(mark) for mark in seen])
    steps = int(length.max())

    def pad(*leaves: np.ndarray) -> np.ndarray:
        dtype = np.result_type(*(leaf.dtype for leaf in leaves))
        padded = np.empty((len(leaves), steps, *leaves[0].shape[1:]), dtype)
        padded[:] = leaves[which][row]
        for into, leaf, mark in zip(padded, leaves, seen, strict=True):
            into[: len(leaf)][mark] = leaf[mark]
        return padded

    values = jax.tree.map(pad, *read)
    dtype = jnp.result_type(*(float_dtype_of(leaf) for leaf in jax.tree.leaves(values)))
    observed = np.zeros((len(seen), steps), dtype)
    for into, mark in zip(observed, seen, strict=True):
        into[: len(mark)] = mark
    labels = tuple(sorted((f".values{path}", found) for path, found in names.items()))
    return Sequences(values, length.astype(dtype), observed, labels)  # type: ignore[arg-type]


def _read_one(part: Any, label: str, names: dict[str, _columns.Names]) -> PyTree:
    """One sequence as arrays of NumPy that share their leading axis."""

    def leaf(path: Any, value: Any) -> Any:
        place = jax.tree_util.keystr(path)
        array, found = _columns.read(label + place, value)
        if array.ndim == 0 or array.shape[0] == 0:
            raise ValueError(f"{label}{place}: expected at least one step (T, ...); found shape {array.shape}")
        if found is not None and names.setdefault(place, found) != found:
            raise ValueError(f"{label}{place}: expected the columns {names[place]} of the first; found {found}")
        return np.asarray(array)

    whole = lambda node: isinstance(node, list)
    arrays = jax.tree_util.tree_map_with_path(leaf, part, is_leaf=whole)
    sizes = sorted({array.shape[0] for array in jax.tree.leaves(arrays)})
    if len(sizes) != 1:
        raise ValueError(f"{label}: expected arrays with one shared number of steps; found {sizes}")
    return arrays


def _shapes(arrays: PyTree) -> dict[str, Any]:
    """Shapes of a step in each array, by its path."""
    leaves = jax.tree_util.tree_flatten_with_path(arrays)[0]
    return {jax.tree_util.keystr(path): leaf.shape[1:] for path, leaf in leaves}


def _marks(mark: Any, num: int, which: int | None) -> np.ndarray:
    """(T,) the observed steps as booleans."""
    label = "observed" if which is None else f"observed[{which}]"
    found = np.asarray(mark)
    if found.shape != (num,) or not np.isin(found, (0, 1)).all():
        raise ValueError(f"{label}: expected {num} booleans, one for each step; found {repr(mark)[:60]}")
    return found.astype(bool)


def labels_of(known: Any, data: Sequences, name: str) -> Any:
    """What is known of each step, labels or a mask, padded as the sequences are: nothing beyond the end."""
    if not is_listed(known):
        if not is_concrete(known):
            return known if known.shape[:1] == data.observed.shape[:1] and known.ndim > 1 else known[None]
        known, (num, steps) = np.asarray(known), data.observed.shape
        if known.shape[:2] == (num, steps):
            return known
        if num > 1 or known.shape[:1] != (steps,):
            expected = f"({steps},)" if num == 1 else f"({num}, {steps}), or a list with an entry for each sequence"
            raise ValueError(f"{name}: expected what is known of each step, {expected}; found shape {known.shape}")
        return known[None]
    parts = [np.asarray(part) for part in known]
    lengths = np.asarray(data.length).astype(int)
    if [len(part) for part in parts] != lengths.tolist():
        raise ValueError(f"{name}: expected one entry for each step of each sequence; found other lengths")
    free = -1.0 if parts[0].ndim == 1 else 1.0
    padded = np.full((*data.observed.shape, *parts[0].shape[1:]), free)
    for into, part in zip(padded, parts, strict=True):
        into[: len(part)] = part
    return padded
