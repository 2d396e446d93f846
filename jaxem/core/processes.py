"""Several processes that fit together: rows put where each has them, and what must be known to all."""

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxem.core import mesh as _mesh

PyTree = Any
Found = TypeVar("Found")

# Texts are told in arrays of multiples of so many bytes, which few programs serve.
PAGE = 256


def texts(text: str) -> list[str]:
    """What each process says, in all of them."""
    if jax.process_count() == 1:
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    most = int(np.max(multihost_utils.process_allgather(np.int32(raw.size))))
    page = np.zeros(-(-max(most, 1) // PAGE) * PAGE, np.uint8)
    page[: raw.size] = raw
    return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(multihost_utils.process_allgather(page))]


def together(work: Callable[[], Found], name: str) -> Found:
    """What `work()` gives, where it succeeds in each process; where it does not, an error in all, before any waits.

    Raises:
      ValueError: of an argument that is bad in another process; the error itself where it is.
    """
    if jax.process_count() == 1:
        return work()
    error: Exception | None = None
    try:
        found = work()
    except Exception as raised:
        error = raised
    said = texts("" if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    bad = [(i, text) for i, text in enumerate(said) if text]
    if bad:
        raise ValueError(f"{name}: expected what every process can take; found in process {bad[0][0]} {bad[0][1]}")
    return found


def check_same(found: dict[str, str], why: str) -> None:
    """Raises ValueError, naming what differs, unless texts by name are the same in all processes."""
    for name, text in found.items():
        said = texts(text)
        other = next((i for i, theirs in enumerate(said) if theirs != said[0]), None)
        if other is not None:
            raise ValueError(
                f"{name}: expected the same in all processes, {why}; found {said[0]} in process 0, "
                f"{said[other]} in process {other}"
            )


def check_cache() -> None:
    """Raises RuntimeError for several processes on CPUs with a persistent cache of compiled programs.

    XLA:CPU starts the sums of a program in one order everywhere; a program that it loads has lost this order, and
    processes that start another sum first wait for one another for ever (seen in jaxlib 0.10.2).
    """
    config = jax.config
    used = config.jax_compilation_cache_dir and config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if jax.process_count() > 1 and jax.default_backend() == "cpu" and used:
        raise RuntimeError(
            "jax_compilation_cache_dir: expected no cache of compiled programs for several processes on CPUs, where "
            f"programs that are loaded may wait for one another for ever; found {config.jax_compilation_cache_dir!r}; "  # type: ignore[attr-defined]
            "set JAX_ENABLE_COMPILATION_CACHE=false"
        )


def any_says(flag: bool) -> bool:
    """Whether any process says so."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def dealt(num: int, mesh: Mesh, digest: Callable[[], str]) -> tuple[tuple[int, ...], int]:
    """Of each part of the mesh how many rows come first that are no padding, and how many there are with it.

    Args:
      num: rows of this process.
      mesh: whose parts a process fills one after the other.
      digest: tells the rows of this process from others; asked where several processes hold the same parts.

    Raises:
      ValueError: a process without a device in the mesh; two that hold the same parts, but other rows.
    """
    shards = _mesh.row_shards(mesh)
    own = _mesh.own_shards(mesh)
    if jax.process_count() == 1:
        held, nums = [own], [num]
    else:
        mine = np.zeros(shards + 1, np.int32)
        mine[own], mine[shards] = 1, num
        table = np.asarray(multihost_utils.process_allgather(mine))
        held, nums = [np.flatnonzero(row[:shards]).tolist() for row in table], table[:, shards].tolist()
        _check_held(held, nums, digest)
    length = max(-(-n // len(parts)) for parts, n in zip(held, nums, strict=True))
    counts = [0] * shards
    for parts, n in zip(held, nums, strict=True):
        for i, part in enumerate(parts):
            counts[part] = min(max(n - i * length, 0), length)
    return tuple(counts), length


def _check_held(held: list[list[int]], nums: list[int], digest: Callable[[], str]) -> None:
    if [] in held:
        raise ValueError(
            f"mesh: expected devices of every process; found none of process {held.index([])}; jax.devices() are those "
            "of all"
        )
    first: dict[int, int] = {}
    for i, parts in enumerate(held):
        for part in parts:
            other = first.setdefault(part, i)
            if held[other] != parts:
                raise ValueError(
                    f"mesh: expected processes that hold the same parts of the rows, or none in common; found process "
                    f"{other} with the parts {held[other]}, process {i} with {parts}"
                )
    if len(first) == sum(map(len, held)):
        return
    said = [f"{n} rows, {text}" for n, text in zip(nums, texts(digest()), strict=True)]
    for i, parts in enumerate(held):
        other = first[parts[0]]
        if said[other] != said[i]:
            raise ValueError(
                f"data: expected the same rows from processes that hold the same parts of them, as of other restarts; "
                f"found {said[other]} in process {other}, {said[i]} in process {i}"
            )


def digest(tree: PyTree) -> str:
    """A short text that tells arrays from others."""
    hashed = hashlib.blake2b(digest_size=8)
    for leaf in jax.tree.leaves(tree):
        hashed.update(np.ascontiguousarray(leaf).tobytes())
    return hashed.hexdigest()


@contextmanager
def interrupts(shared: bool) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed in any process, asked by all at once where they step together; a second one counts.

    In one process alone Ctrl-C is what it always is.
    """
    if not shared or jax.process_count() == 1:
        yield lambda: False
        return
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def press(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    main = threading.current_thread() is threading.main_thread() and before is not None
    if main:
        signal.signal(signal.SIGINT, press)
    try:
        yield lambda: any_says(pressed)
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
