"""Memory: how much a device has, how much a program holds at once, and what is said when there is none left."""

import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jaxem.core.numerics import is_concrete
from jaxem.core.tree import PyTree, num_rows

# Answers for fewer rows are not waited for: they hardly run out of memory, and a caller may have other things to do.
WAITED = 10_000
# How JAX ("Out of memory allocating 8 bytes", "trying to allocate 8.00GiB") and NumPy ("Unable to allocate 7.11 PiB for
# an array") say what there was no room for.
_ASKED = re.compile(r"allocat\w*\s+([\d.]+)\s?([KMGTPE]?)(?:iB|B|bytes)")
_UNITS = "KMGTPE"
# "INTERNAL: Error dispatching computation: Out of memory allocating 8 bytes" is what a CPU says of programs under way.
_NONE_LEFT = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")
# What a question that was too large may be instead.
FEWER = (
    "ask for fewer rows at a time, or of jaxem.stream(data), which is answered batch by batch, or a fit of "
    "jaxem.chunked(model, size)"
)


def device_memory() -> float:
    """Bytes of memory of a device of this process, or of this machine for it; infinite where neither tells."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return _machine()


@functools.cache
def _machine(root: Path = Path("/")) -> float:
    """Bytes of this machine, or of the part of it that a container or a batch system leaves to this process."""
    try:
        physical: float = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system has it
        physical = math.inf
    return min([physical, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Limits of the control groups of this process, of both versions: its own and those of the groups around it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, kinds, own = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if kinds else "")
        group = top / own.lstrip("/")
        for folder in (group, *group.parents):
            file = folder / ("memory.limit_in_bytes" if kinds else "memory.max")
            text = file.read_text().strip() if file.is_file() else ""  # a container does not see the groups around it
            if text.isdecimal():  # else "max"
                yield int(text)
            if folder == top:
                break


def size_of(tree: PyTree) -> int:
    """Bytes of the arrays of a tree, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def peak(jaxpr: Any) -> int:
    """Bytes of the values of a program that are there at once, without its arguments and constants.

    Each value lives from where it is made to its last use, in the order in which the program is written. A compiler
    that fuses operations stores fewer: for sums over small inner axes by far. Broadcasts, which are always fused, count
    nothing.

    Args:
      jaxpr: a `jax.extend.core.Jaxpr`.
    """
    last: dict[Any, int] = {}
    for place, eqn in enumerate(jaxpr.eqns):
        last.update((var, place) for var in eqn.invars if not hasattr(var, "val"))
    last.update((var, len(jaxpr.eqns)) for var in jaxpr.outvars if not hasattr(var, "val"))
    there: dict[Any, int] = {}
    live = most = 0
    for place, eqn in enumerate(jaxpr.eqns):
        inner = max(map(peak, _inside(eqn)), default=0)
        made = {var: 0 if eqn.primitive.name in ("broadcast_in_dim", "iota") else _bytes(var) for var in eqn.outvars}
        # The results of a call are those of the program inside, of a loop over slices what these are put into.
        most = max(most, live + (inner + sum(made.values()) if eqn.primitive.name == "scan" else 0))
        most = max(most, live + max(inner, sum(made.values())))
        there.update(made)
        live += sum(made.values())
        for var in {*made, *(v for v in eqn.invars if not hasattr(v, "val"))}:
            if last.get(var, place) == place:
                live -= there.pop(var, 0)
    return most


def _inside(eqn: Any) -> Iterator[Any]:
    """The programs that an operation runs."""
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def _bytes(var: Any) -> int:
    aval = var.aval
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 8) if hasattr(aval, "shape") else 0


def shown_size(num: float) -> str:
    """Bytes as a person reads them, in MiB or more."""
    power = min(max(int(math.log2(max(num, 1)) // 10), 2), len(_UNITS))
    return f"{num / 1024**power:,.1f} {_UNITS[power - 1]}iB"


def ran_out(error: BaseException | None) -> bool:
    """Whether this says that there is no memory left, and is not what `no_memory` has made of such an error."""
    if isinstance(error, MemoryError):
        return not ran_out(error.__cause__)
    return isinstance(error, jax.errors.JaxRuntimeError) and bool(_NONE_LEFT.search(str(error)))


def no_memory(error: BaseException, what: str, beside: str, remedy: str) -> MemoryError:
    """What is raised from an error that `ran_out`.

    Args:
      error: it.
      what: was to fit: "fit: expected all that it holds at once".
      beside: for what, or beside what: "for 3 rows".
      remedy: what to set.
    """
    found = _ASKED.search(str(error))
    asked = "more being allocated"
    if found:
        power = _UNITS.index(found[2]) + 1 if found[2] else 0
        asked = f"{shown_size(float(found[1]) * 1024**power)} more being allocated"
    have = device_memory()
    room = "memory" if math.isinf(have) else f"the {shown_size(have)} of memory of {jax.local_devices()[0]}"
    return MemoryError(f"{what} to fit into {room}; found {asked}{beside and ', '}{beside}; {remedy}")


@contextmanager
def explained(what: str, beside: str, remedy: str) -> Iterator[None]:
    """Where memory runs out inside, the error says so, and what to do; see `no_memory`."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not ran_out(error):
            raise
        raise no_memory(error, what, beside, remedy) from error


def answered(name: str, ask: Callable[[], Any], data: PyTree) -> Any:
    """The answer to a question about rows; of many rows it is waited for, as a device tells only then."""
    if not is_concrete(data):
        return ask()
    num = num_rows(data)
    with explained(f"{name}: expected the answer", f"for {num:,} rows", FEWER):
        return ask() if num < WAITED else jax.block_until_ready(ask())
