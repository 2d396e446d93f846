"""What a source may be, told apart without importing any library that makes it."""

import os
from pathlib import Path
from typing import Any

KINDS = "a .npy, .parquet, .arrow or .feather file, or a directory of .parquet files"
_REMEDIES = {
    ".csv": "give jaxem.stream(lambda: pandas.read_csv(path, chunksize=100_000))",
    ".npz": "save its arrays as .npy files, and give those, as a dict if there are several",
    ".h5": "open it, and give h5py.File(path)['name']",
    ".hdf5": "open it, and give h5py.File(path)['name']",
    ".zarr": "open it, and give zarr.open_array(path)",
}


def is_path(source: Any) -> bool:
    """Whether this is the path of a file."""
    return isinstance(source, (str, os.PathLike))


def is_paths(source: Any) -> bool:
    """Whether this is a list of paths; an empty one may be."""
    return isinstance(source, list) and all(map(is_path, source))


def slices(source: Any) -> bool:
    """Whether this is an array of any library."""
    return all(hasattr(source, name) for name in ("shape", "dtype", "__getitem__"))


def is_table(source: Any) -> bool:
    """Whether this is a table or a data set of pyarrow."""
    return hasattr(source, "schema") and (hasattr(source, "get_fragments") or hasattr(source, "itercolumns"))


def remedy(path: str | os.PathLike) -> str:
    """What to do with a file of a kind that is not read, or nothing."""
    found = _REMEDIES.get(Path(path).suffix.lower())
    return f"; {found}" if found else ""
