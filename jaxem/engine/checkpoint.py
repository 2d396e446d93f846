"""Checkpoints of a fit: its arrays in one .npz file without pickles, with a fingerprint of what it belongs to."""

import dataclasses
import glob
import hashlib
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.core import archive
from jaxem.core import mesh as _mesh
from jaxem.core.mesh import Layout
from jaxem.core.numerics import scrambled
from jaxem.engine.table import Problem, Table

# Seconds between two writes while a fit goes on.
INTERVAL = 5.0
# What the file says that it is, and the version of how it is laid out.
FORMAT, LAYOUT = "jaxem.checkpoint", 1


class Saver:
    """Writes the arrays of one fit, and reads them back; of several processes the first alone does.

    A host-side object; not a pytree.
    """

    def __init__(self, path: str | Path, expected: dict[str, str], max_steps: int, shared: bool = False):
        self._path, self._expected, self._max_steps = Path(path), expected, max_steps
        self._shared = shared and jax.process_count() > 1
        self._written = time.perf_counter()

    def read(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The place and the arrays that were saved; None where there is no file.

        Raises:
          ValueError: a file of something else, damaged, of a newer version, or of another fit.
        """
        raw = _content(self._path, self._shared)
        if raw is None:
            return None
        try:
            head, arrays = archive.parsed(raw, self._check)
        except ValueError as error:
            raise ValueError(f"checkpoint: expected a file written by jaxem.fit; found {self._path}, {error}") from None
        found = head["fingerprint"]
        different = [name for name in self._expected if found.get(name) != self._expected[name]]
        if different:
            raise ValueError(
                f"checkpoint: expected a file of this fit; found {self._path}, of one with another "
                f"{', '.join(different)}; give another path, or delete the file to start afresh"
            )
        if head["max_steps"] > self._max_steps:
            raise ValueError(
                f"max_steps: expected at least that of the checkpoint, {head['max_steps']}; found {self._max_steps}; "
                "a fit goes on for more steps, not for fewer"
            )
        return head["place"], arrays

    def _check(self, head: dict[str, Any]) -> None:
        if head.get("format") != FORMAT:
            raise ValueError(f"an archive of something else, by its format {head.get('format')!r}")
        layout = head.get("layout")
        if type(layout) is not int or layout > LAYOUT:
            raise ValueError(
                f"a checkpoint of layout {layout}; this jaxem reads layouts up to {LAYOUT}; install a newer one"
            )

    def due(self) -> bool:
        """Whether the last save is some seconds ago, for all processes alike."""
        late = time.perf_counter() - self._written >= INTERVAL
        return bool(_mesh.told(np.bool_(late))) if self._shared else late

    def save(self, arrays: dict[str, Any], place: dict[str, Any] | None = None) -> None:
        """Writes arrays by name, in a file that then takes the place of the last: one is whole or not there."""
        if not self._shared or jax.process_index() == 0:
            head = {"format": FORMAT, "layout": LAYOUT, "fingerprint": self._expected, "max_steps": self._max_steps}
            archive.write(self._path, head | {"place": place or {}}, jax.tree.map(np.asarray, arrays))
            for left in self._path.parent.glob(f"{glob.escape(self._path.name)}.*.part"):  # of a run that was killed
                left.unlink(missing_ok=True)
        self._written = time.perf_counter()


def _content(path: Path, shared: bool) -> bytes | None:
    """What a file holds; of several processes the first reads it, for all. None where there is none."""
    raw = path.read_bytes() if path.exists() and (not shared or jax.process_index() == 0) else None
    if not shared:
        return raw
    size = int(_mesh.told(np.int32(-1 if raw is None else len(raw))))
    if size < 0:
        return None
    return np.asarray(_mesh.told(np.frombuffer(raw or bytes(size), np.uint8))).tobytes()


def saved(table: Table) -> dict[str, Any]:
    """The arrays of a table, by name."""
    columns = {f"column{i}": column for i, column in enumerate(table.packed.columns)}
    return {**columns, "trace": table.trace, "screened": table.screened}


def restored(table: Table, arrays: dict[str, Any]) -> Table:
    """A table with the arrays that `saved` gave, of no more steps than it has room for."""
    room, trace = table.trace.shape[1], arrays["trace"]
    wide = np.full((trace.shape[0], max(0, room - trace.shape[1])), np.nan, trace.dtype)
    arrays = arrays | {"trace": np.concatenate([trace[:, :room], wide], 1)}
    for name, old in saved(table).items():
        new = arrays[name]
        if new.shape != old.shape or new.dtype != old.dtype:
            raise ValueError(f"checkpoint: expected an array {old.dtype}{old.shape}; found {new.dtype}{new.shape}")
    columns = tuple(arrays[f"column{i}"] for i in range(len(table.packed.columns)))
    packed = dataclasses.replace(table.packed, columns=columns)
    return dataclasses.replace(table, packed=packed, trace=arrays["trace"], screened=arrays["screened"])


def fingerprint(problem: Problem) -> dict[str, str]:
    """A digest of each part of a problem: its arrays bit by bit, its settings, and the names of its functions.

    Not of the number of steps, which may grow, nor of the devices that it is computed on.
    """
    left_out = ("last", "max_steps", "layout", "plan")
    names = [field.name for field in dataclasses.fields(problem) if field.name not in left_out]
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
    if _mesh.is_spread(value):
        tell(f"{value.dtype}{value.shape} {np.asarray(_checksum(value)).tolist()}")
    elif isinstance(value, Layout):
        tell("layout")
    elif isinstance(value, (jax.Array, np.ndarray, np.generic)):
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


@jax.jit
def _checksum(array: Any) -> Any:
    """(2,) sums of scrambled bits, by wrapping integers: the same however the array is dealt out among devices."""
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32).reshape(-1)
    place = jax.lax.iota(jnp.uint32, bits.shape[0])
    keys = (jnp.uint32(0x9E3779B9), jnp.uint32(0x7F4A7C15))
    return jnp.stack([jnp.sum(scrambled(bits ^ scrambled(place, key), key), dtype=jnp.uint32) for key in keys])


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
