"""What people hold their numbers in, read as one array: frames, nullable columns, object arrays, any byte order."""

import decimal
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Names = tuple[Any, ...]
# The host, as DLPack numbers devices.
CPU = 1


def read(name: str, leaf: Any) -> tuple[Any, Names | None]:
    """One container of numbers as an array, and the names of its columns where it has any.

    Args:
      name: of the argument, for messages.
      leaf: an array of JAX, NumPy or anything with `__array__` or `__dlpack__`, nested lists, or a frame of pandas,
        polars or pyarrow.

    Returns:
      An array of a real dtype in native byte order, on the device where it was there, and the names or None.

    Raises:
      TypeError: what is found is no numbers, or hides some (a mask, categories, dates); with the place and the remedy.
    """
    if _elsewhere(leaf):
        leaf = _brought(name, leaf)
    if isinstance(leaf, jax.Array):
        _check_dtype(name, leaf.dtype)
        return leaf, None
    columns = frame_columns(name, leaf)
    if columns is None:
        return as_numbers(name, leaf), None
    if not columns:
        raise ValueError(f"{name}: expected at least one column; found a frame without any")
    parts = [as_numbers(f"{name}[{label!r}]", column) for label, column in columns]
    wide = [label for (label, _), part in zip(columns, parts, strict=True) if part.ndim != 1]
    if wide:
        raise TypeError(f"{name}[{wide[0]!r}]: expected one number in each row; found lists or arrays")
    return np.stack(parts, 1), tuple(label for label, _ in columns)


def frame_columns(name: str, leaf: Any) -> list[tuple[Any, Any]] | None:
    """(label, column) of a frame; None for anything else. By duck typing: no frame library is imported."""
    if hasattr(leaf, "iloc") and hasattr(leaf, "columns"):  # pandas
        return [(label, leaf.iloc[:, i]) for i, label in enumerate(leaf.columns)]
    if hasattr(leaf, "collect_schema") and hasattr(leaf, "collect"):  # a lazy frame of polars
        raise TypeError(f"{name}: expected rows; found a lazy frame; call .collect() first")
    if hasattr(leaf, "get_columns") and hasattr(leaf, "schema"):  # polars
        return [(column.name, column) for column in leaf.get_columns()]
    if hasattr(leaf, "column_names") and hasattr(leaf, "itercolumns"):  # pyarrow
        return list(zip(leaf.column_names, leaf.itercolumns(), strict=True))
    return None


def check_aligned(parts: dict[str, Any]) -> None:
    """Raises ValueError for parts of the same rows, by name, whose indexes (of pandas) put these in another order.

    What has no index is taken as it lies.
    """
    indexed = [(name, part.index) for name, part in parts.items() if hasattr(getattr(part, "index", None), "equals")]
    for name, index in indexed[1:]:
        first, other = indexed[0]
        if len(index) == len(other) and not index.equals(other):
            raise ValueError(
                f"{name}: expected the index of {first}; found another one, or another order; align it by "
                f".loc[index of {first}], or give its .to_numpy() if the rows do correspond as they lie"
            )


def column_names(leaf: Any) -> list[Any] | None:
    """The labels of a frame's columns; None for anything else."""
    columns = frame_columns("data", leaf)
    return None if columns is None else [label for label, _ in columns]


def as_numbers(name: str, values: Any) -> np.ndarray:
    """Values that are no frame as a NumPy array of a real dtype in native byte order; missing entries become NaN."""
    if hasattr(values, "toarray") and hasattr(values, "nnz"):
        found = f"a sparse matrix of shape {values.shape}"
        raise TypeError(f"{name}: expected a dense array; found {found}; .toarray() makes it one")
    dtype = getattr(values, "dtype", None)
    if hasattr(dtype, "categories") or type(dtype).__name__ in ("Categorical", "Enum"):
        raise TypeError(
            f"{name}: expected numbers; found categories; take their codes for a Categorical family, or one column of "
            "0 and 1 for each"
        )
    if isinstance(values, (str, bytes)):
        file = isinstance(values, str)
        remedy = f"read a file first, or give jaxem.stream({values!r})" if file else "read a file first"
        raise TypeError(f"{name}: expected an array of numbers; found {_said(values)}; {remedy}")
    if hasattr(values, "__next__"):
        found = f"a {type(values).__name__}, which can be read only once"
        raise TypeError(f"{name}: expected an array of numbers; found {found}; give jaxem.stream(lambda: ...) of it")
    _refuse_mask(name, values)
    try:
        array = np.from_dlpack(values) if _only_dlpack(values) else np.asarray(values)
    except (ValueError, TypeError, RuntimeError, BufferError) as error:
        raise TypeError(f"{name}: expected numbers; found {_ragged(values) or error}") from None
    if array.dtype == object:
        array = _from_objects(name, array)
    _check_dtype(name, array.dtype)
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _only_dlpack(values: Any) -> bool:
    """Whether an array is told of by DLPack alone, on the host: then it is not copied."""
    return hasattr(values, "__dlpack__") and not hasattr(values, "__array__")


def _elsewhere(leaf: Any) -> bool:
    """Whether this is an array of another library, on a device or of a dtype that NumPy has not, as bfloat16."""
    if isinstance(leaf, (jax.Array, np.ndarray)) or not hasattr(leaf, "__dlpack_device__"):
        return False
    on_host = int(leaf.__dlpack_device__()[0]) == CPU
    return not on_host or str(getattr(leaf, "dtype", "")).endswith("bfloat16")


def _brought(name: str, leaf: Any) -> jax.Array:
    """The array as one of JAX's, on its device."""
    try:
        return jnp.from_dlpack(leaf)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        remedy = "give it as a NumPy array, as by .cpu().numpy()"
        raise TypeError(f"{name}: expected an array that JAX can take; found {error}; {remedy}") from None


def _refuse_mask(name: str, values: Any) -> None:
    """Raises for a masked entry, in lists of masked arrays as well, whose masks NumPy would drop without a word."""
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        if mask.any():
            row = int(np.argmax(mask.reshape(mask.shape[0], -1).any(1))) if mask.ndim else 0
            raise TypeError(
                f"{name}: expected complete rows; found a masked array with {int(mask.sum())} masked entries, the "
                f"first in row {row}; missing values are not supported: drop those rows, or fill them in"
            )
    elif isinstance(values, (list, tuple)):
        for item in values:
            if isinstance(item, (list, tuple, np.ma.MaskedArray)):
                _refuse_mask(name, item)


def _ragged(values: Any) -> str | None:
    """What is wrong with the lengths of nested lists, if that is it."""
    if not isinstance(values, (list, tuple)):
        return None
    sizes = [len(row) if hasattr(row, "__len__") else None for row in values]
    other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if other is None:
        return "rows that differ in what they hold; a pair of arrays is a tuple, (x, y)"
    said = ["a single number" if s is None else f"{s} entries" for s in (sizes[0], sizes[other])]
    return f"{said[0]} in row 0 and {said[1]} in row {other}"


def _from_objects(name: str, array: np.ndarray) -> np.ndarray:
    """Numbers out of an object array: None and pandas.NA become NaN, text is never read as a number."""
    if array.ndim == 0:
        raise TypeError(f"{name}: expected an array of numbers; found {_said(array.item())}")
    real = (numbers.Real, np.bool_, decimal.Decimal)
    whole, out = True, np.empty(array.size)
    for i, value in enumerate(array.flat):
        if value is None or type(value).__name__ == "NAType":
            out[i], whole = np.nan, False
            continue
        if not isinstance(value, real) or type(value).__name__ == "timedelta64":
            place = np.unravel_index(i, array.shape)
            where = f"row {place[0]}" + "".join(f", column {p}" for p in place[1:])
            remedy = "; of tables with text jaxem.families.from_frame makes a family" if isinstance(value, str) else ""
            raise TypeError(f"{name}: expected numbers; found {_said(value)} in {where}{remedy}")
        whole = whole and isinstance(value, (numbers.Integral, np.bool_))
        try:
            out[i] = value
        except OverflowError:
            out[i] = np.inf
    if whole and array.size and np.all(np.abs(out) < 2.0**62):
        return array.astype(np.int64)
    return out.reshape(array.shape)


def _said(value: Any) -> str:
    text = repr(value)
    text = text if len(text) <= 40 else text[:37] + "..."
    return f"text, {text}" if isinstance(value, (str, bytes)) else f"a {type(value).__name__}, {text}"


_REMEDIES = {
    "c": "complex numbers; take .real, or real and imaginary parts as columns",
    "M": "dates; subtract an origin and divide by a unit, as (t - t.min()) / numpy.timedelta64(1, 's')",
    "m": "time differences; divide by a unit, as t / numpy.timedelta64(1, 's')",
    **dict.fromkeys("UST", "text; leave out that column, code it, or make numbers of it by .astype(float)"),
}


def _check_dtype(name: str, dtype: Any) -> None:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(f"{name}: expected numbers; found random keys")
    kind = getattr(dtype, "kind", "V")
    if kind in "biuf" or jnp.issubdtype(dtype, jnp.floating) or (jnp.issubdtype(dtype, jnp.integer) and kind != "m"):
        return
    if getattr(dtype, "names", None):
        raise TypeError(
            f"{name}: expected numbers; found a structured array with the fields {', '.join(dtype.names)}; stack them "
            "as columns, as numpy.lib.recfunctions.structured_to_unstructured does"
        )
    what = f": {_REMEDIES[kind]}" if kind in _REMEDIES else ""
    raise TypeError(f"{name}: expected real numbers; found dtype {dtype}{what}")
