"""Readers for files, arrays and tables, and for several of them side by side or in turn."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxem.core.arguments import shown
from jaxem.core.seen import listed
from jaxem.streams.arrow import Dataset, Feather, InMemory, Parquet
from jaxem.streams.files import File
from jaxem.streams.kinds import KINDS, is_path, is_paths, is_table, remedy, slices
from jaxem.streams.npy import MAGIC, mapped, npy
from jaxem.streams.reader import Beside, Joined, Reader
from jaxem.streams.seekable import Seekable
from jaxem.streams.sliced import Slices
from jaxem.streams.tables import Table, chosen


def seekable(source: Any, batch_rows: int | None, columns: list[str] | None, weights: Any) -> Seekable:
    """The stream of files, arrays or a table; see `jaxem.stream` for the arguments."""
    if isinstance(source, (dict, tuple)):
        readers, structure = _parts(source, columns)
    else:
        by_name = weights if isinstance(weights, str) else None
        readers, structure = [_whole(source, columns, by_name)], jax.tree.structure(0)
    if weights is not None and not readers[-1].leaves[-1].weights:
        readers.append(_weights(weights, readers[0].num))
    return Seekable(readers[0] if len(readers) == 1 else Beside(readers), structure, batch_rows)


def _whole(source: Any, columns: list[str] | None, weights: str | None) -> Reader:
    """The reader of data that are one array."""
    if is_table(source):
        make = Dataset if hasattr(source, "get_fragments") else InMemory
        return make(source, columns, weights, "source")
    reader = _array(source, "source", columns, weights)
    if columns is not None and reader.leaves[0].names is None:
        raise TypeError(f"columns: expected None, as the arrays of source have no names; found {columns}")
    return reader


def _parts(source: Any, columns: list[str] | None) -> tuple[list[Reader], Any]:
    """Readers of the arrays of a dict or a tuple, and its structure."""
    if columns is not None:
        if not isinstance(source, dict):
            raise TypeError(f"columns: expected None, as the arrays of source have no names; found {columns}")
        chosen(list(source), columns, None, "source")
        source = {key: source[key] for key in columns}
    parts, structure = jax.tree_util.tree_flatten_with_path(source, is_leaf=lambda node: isinstance(node, list))
    readers = []
    for path, part in parts:
        place = jax.tree_util.keystr(path)
        if not (is_path(part) or is_paths(part) or slices(part)):
            raise TypeError(f"source{place}: expected an array that slices, or a path; found {shown(part)}")
        readers.append(_array(part, "source" + place).renamed(place, False))
    if not readers:
        raise ValueError("source: expected at least one array; found none")
    sizes = sorted({reader.num for reader in readers})
    if len(sizes) > 1:
        raise ValueError(f"source: expected arrays with one shared leading axis; found lengths {sizes}")
    return readers, structure


def _weights(weights: Any, num: int) -> Reader:
    """The reader of weights that are no column of a table."""
    if isinstance(weights, list) and not is_paths(weights):
        weights = np.asarray(weights)
    if not (is_path(weights) or is_paths(weights) or slices(weights)):
        what = "an array (N,), the path of a .npy file, or the name of a table's column"
        raise TypeError(f"weights: expected {what}; found {shown(weights)}")
    reader = _array(weights, "weights")
    shape = (reader.num, *reader.leaves[0].shape)
    if shape != (num,):
        raise ValueError(f"weights: expected shape ({num},), one for each row; found {shape}")
    return reader.renamed("weights", True)


def _array(source: Any, name: str, columns: Sequence[str] | None = None, weights: str | None = None) -> Reader:
    """A reader of files, or of an array that slices."""
    if is_path(source) or is_paths(source):
        return _files(_listed(source, name), name, columns, weights)
    if isinstance(source, np.memmap):
        binary = mapped(source, name)
        if binary is not None:
            return binary
    return Slices(np.asarray(source) if isinstance(source, jax.Array) else source, name)


def _listed(source: Any, name: str) -> list[str]:
    """Paths of files, those below a directory in the order of their names."""
    if isinstance(source, list):
        return [path for part in source for path in _listed(part, name)]
    if not os.path.isdir(source):
        return [os.fspath(source)]
    found = [path.relative_to(source) for path in Path(source).rglob("*.parquet")]
    paths = sorted(path for path in found if not any(part.startswith(("_", ".")) for part in path.parts))
    if not paths:
        raise ValueError(f"{name}: expected .parquet files in {os.fspath(source)!r}; found none{remedy(source)}")
    return [os.path.join(source, path) for path in paths]


def _files(paths: Sequence[str], name: str, columns: Sequence[str] | None, weights: str | None) -> Reader:
    """A reader of files one after the other.

    Raises:
      ValueError: their rows are not made alike.
    """
    if not paths:
        raise ValueError(f"{name}: expected at least one row; found an empty list of paths")
    readers: list[Reader] = []
    for path in paths:
        reader = _file(path, name, columns, weights)
        first = readers[0] if readers else reader
        _check_alike(first, reader)
        if isinstance(first, Table) and isinstance(reader, Table) and first.names != reader.names:
            reader = _file(path, name, first.names, weights)  # the same columns in another order
        readers.append(reader)
    return readers[0] if len(readers) == 1 else Joined(readers)


def _check_alike(first: Reader, other: Reader) -> None:
    if isinstance(first, Table) and isinstance(other, Table):
        missing = [name for name in first.used if name not in other.types]
        extra = [name for name in other.used if name not in first.types]
        if missing or extra:
            what = f"without {listed(missing)}" if missing else f"with {listed(extra)} as well"
            raise ValueError(f"{other.place}: expected the columns of {first.place}; found a table {what}")
        for column, kind in first.types.items():
            if other.types[column] != kind:
                found = f"{other.types[column]} in column {column!r}"
                raise ValueError(f"{other.place}: expected {kind}, as in {first.place}; found {found}")
    elif first.leaves != other.leaves:
        expected, found = (", ".join(map(str, reader.leaves)) for reader in (first, other))
        raise ValueError(f"{other.place}: expected {expected}, as in {first.place}; found {found}")


def _file(path: str, name: str, columns: Sequence[str] | None, weights: str | None) -> Reader:
    """A reader of one file, by what its first bytes, or else its name, say that it is."""
    file, suffix = File.of(path, name), Path(path).suffix.lower()
    with open(path, "rb") as opened:
        begin = opened.read(8)
    if not begin:
        raise ValueError(f"{path}: expected at least one row; found an empty file")
    if begin.startswith(MAGIC):
        return npy(file)
    if begin.startswith(b"PAR1") or suffix == ".parquet":
        return Parquet(file, columns, weights)
    if begin.startswith(b"ARROW1") or suffix in (".arrow", ".feather", ".ipc"):
        return Feather(file, columns, weights)
    if suffix == ".npy":
        raise ValueError(f"{path}: expected a .npy file; found one that begins with {begin!r}")
    raise ValueError(f"{name}: expected {KINDS}; found {path!r}{remedy(path)}")
