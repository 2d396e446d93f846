"""Checkpoints of a fit: the table of restarts in one .npz file, with a fingerprint of the problem it belongs to."""

import dataclasses
import hashlib
import json
import re
import time
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxem.core.archive import replace_file
from jaxem.engine.table import Problem, Table

# Seconds between two writes while a fit goes on.
INTERVAL = 5.0
# What a checkpoint's own entries are called; columns of the packed states are column0, column1, ...
FINGERPRINT, TRACE, SCREENED = "fingerprint", "trace", "screened"


class Saver:
    """Writes the table of one fit, and reads it back.

    A host-side object; not a pytree.
    """

    def __init__(self, path: str | Path, problem: Problem):
        self._path = Path(path)
        self._fingerprint = fingerprint(problem)
        self._written = time.perf_counter()

    def resume(self, table: Table) -> Table:
        """The table as it was saved, or as given where there is no file; ValueError for a file of another fit."""
        if not self._path.exists():
            return table
        try:
            with open(self._path, "rb") as raw, np.load(raw) as file:
                saved = {name: file[name] for name in file.files}
            found = json.loads(str(saved[FINGERPRINT]))
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"checkpoint: expected a file written by jaxem.fit; found {self._path} ({error})"
            ) from None
        expected = self._fingerprint
        different = [name for name in expected if found.get(name) != expected[name]]
        if different:
            raise ValueError(
                f"checkpoint: expected a file of this fit; found {self._path}, of one with another "
                f"{', '.join(different)}; give another path, or delete the file to start afresh"
            )
        old = (*table.packed.columns, table.trace, table.screened)
        columns = [saved[f"column{i}"] for i in range(len(table.packed.columns))]
        new = (*columns, saved[TRACE], saved[SCREENED])
        for a, b in zip(new, old, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(f"checkpoint: expected an array {b.dtype}{b.shape}; found {a.dtype}{a.shape}")
        packed = dataclasses.replace(table.packed, columns=tuple(columns))
        return dataclasses.replace(table, packed=packed, trace=new[-2], screened=new[-1])

    def save_sometimes(self, table: Table) -> None:
        """Saves the table unless that was done in the last few seconds."""
        if time.perf_counter() - self._written >= INTERVAL:
            self.save(table)

    def save(self, table: Table) -> None:
        """Writes the table, in a file of its own that then takes the place of the last: one is whole or not there."""
        columns: dict[str, Any] = {f"column{i}": np.asarray(column) for i, column in enumerate(table.packed.columns)}
        rest: dict[str, Any] = {TRACE: np.asarray(table.trace), SCREENED: np.asarray(table.screened)}
        rest[FINGERPRINT] = np.asarray(json.dumps(self._fingerprint))
        replace_file(self._path, lambda file: np.savez(file, **columns, **rest))
        self._written = time.perf_counter()


def fingerprint(problem: Problem) -> dict[str, str]:
    """A digest of each part of a problem: its arrays bit by bit, its settings, and the names of its functions."""
    names = [field.name for field in dataclasses.fields(problem) if field.name != "last"]  # which is max_steps
    return {name: digest(getattr(problem, name)) for name in names}


def digest(value: Any) -> str:
    """A short text that tells a value from others, the same in every process."""
    hashed = hashlib.blake2b(digest_size=16)
    _absorb(hashed, value, ())
    return hashed.hexdigest()


def _absorb(hashed: Any, value: Any, above: tuple[Any, ...]) -> None:
    """Feeds a hash with all that `digest` tells values apart by; `above` holds what contains the value."""
    tell = lambda text: hashed.update(text.encode() + b"\0")
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        tell(str(value.dtype))
        value = jax.random.key_data(value)
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        array = np.asarray(value)
        tell(f"{array.dtype}{array.shape}")
        hashed.update(np.ascontiguousarray(array).tobytes() if array.dtype != object else b"")
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        tell(f"{type(value).__name__} {value!r}")
    elif any(value is outer for outer in above):
        tell("itself")
    else:
        tell(f"{type(value).__module__}.{type(value).__qualname__}")
        for part in _parts(value):
            _absorb(hashed, part, (*above, value))


def _parts(value: Any) -> list[Any]:
    """What a compound value is made of; of a function its name and what it holds, of anything else its repr."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return sorted(value.items(), key=lambda item: str(item[0]))
    if isinstance(value, (tuple, list)):
        return list(value)
    if callable(value):
        inner = getattr(value, "__wrapped__", None) or getattr(value, "func", None)
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        held = [getattr(cell, "cell_contents", None) for cell in getattr(value, "__closure__", None) or ()]
        own = [
            getattr(value, part, None) for part in ("args", "keywords", "__defaults__", "__kwdefaults__", "__self__")
        ]
        return [name, inner, held, own]
    return [re.sub(r" at 0x[0-9a-f]+", "", repr(value))]
