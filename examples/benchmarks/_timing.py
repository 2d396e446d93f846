"""What the benchmarks share: interleaved timings, the machine's description, tables, and the command line.

Calls are timed in turns, A B C A B C ..., so that a noisy neighbour on the machine slows all of them; medians of the
turns are compared. A call blocks until its result is there, and data lie on the device before the clock starts. The
first call of each is timed apart: first minus median is what compilation (or a thread pool's start) costs.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

# A turn lasts at least this long, by repeating short calls, and a call this slow is never repeated within a turn.
TURN, SLOW = 0.05, 5.0


@dataclasses.dataclass
class Timing:
    """Seconds of one contender: the first call, one call in each turn, and what the last call returned."""

    first: float
    turns: list[float]
    result: Any

    @property
    def median(self) -> float:
        """Median over the turns."""
        return statistics.median(self.turns)

    @property
    def compile(self) -> float:
        """What the first call costs beyond the median."""
        return max(0.0, self.first - self.median)


def _timed(call: Callable[[], Any], number: int = 1) -> tuple[float, Any]:
    began = time.perf_counter()
    for _ in range(number):
        result = jax.block_until_ready(call())
    return (time.perf_counter() - began) / number, result


def interleave(calls: dict[str, Callable[[], Any]], repeats: int, required: Sequence[str] = ()) -> dict[str, Timing]:
    """Times every call in turns.

    Args:
      calls: contenders by name; each call does the whole work and returns its result.
      repeats: number of turns.
      required: names whose errors are raised; another contender that fails is named on the screen and left out.

    Returns:
      A `Timing` for each contender that ran.
    """
    timings: dict[str, Timing] = {}
    number: dict[str, int] = {}
    for name, call in calls.items():
        try:
            first, result = _timed(call)
            again = first if first > SLOW else _timed(call)[0]
        except Exception as error:
            if name in required:
                raise
            print(f"  FAILED  {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            continue
        timings[name], number[name] = Timing(first, [], result), max(1, min(100, int(TURN / again)))
    for _ in range(repeats):
        for name, timing in timings.items():
            seconds, timing.result = _timed(calls[name], number[name])
            timing.turns.append(seconds)
    return timings


def installed(peers: dict[str, tuple[str, str]]) -> list[str]:
    """Names of the peers that can be imported; says which are skipped and how to get them.

    Args:
      peers: name -> (module, distribution on PyPI).
    """
    found = []
    for name, (module, distribution) in peers.items():
        if importlib.util.find_spec(module):
            found.append(name)
        else:
            print(f"SKIPPED {name}: not installed (pip install {distribution})")
    return found


def vectors() -> str:
    """The widest vectors of an x86 processor, on which ratios to other libraries depend; empty where unknown."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        flags = set(next((line for line in file if line.startswith("flags")), "").split())
        return next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    return ""


def environment() -> dict[str, Any]:
    """Device and versions."""
    device = jax.devices()[0]
    versions = {}
    for name in (
        "jax",
        "jaxlib",
        "numpy",
        "scikit-learn",
        "scikit-learn-intelex",
        "faiss-cpu",
        "ott-jax",
        "gmmx",
        "torch",
        "hmmlearn",
        "dynamax",
    ):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "device": f"{device.device_kind} ({device.platform})",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": " ".join([platform.machine(), vectors()]).strip(),
        "python": platform.python_version(),
        "versions": versions,
    }


def parser(description: str) -> argparse.ArgumentParser:
    """The shared command line. The size "toy" is for tests and not advertised."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--sizes", choices=("small", "full", "toy"), metavar="{small,full}", default="small")
    found.add_argument("--repeats", type=int, default=3, help="interleaved turns (default 3)")
    found.add_argument("--only", default="", help="run only cases whose name contains this")
    found.add_argument("--json", metavar="FILE", help="also write the report there")
    return found


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, checked."""
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    return args


def arguments(description: str, argv: Sequence[str] | None, **flags: str) -> argparse.Namespace:
    """Those of the shared command line; `flags` adds switches, name -> help."""
    line = parser(description)
    for name, text in flags.items():
        line.add_argument(f"--{name}", action="store_true", help=text)
    return parsed(line, argv)


@contextlib.contextmanager
def quiet_peers() -> Iterator[None]:
    """Relaxes what other libraries do not promise (warnings, strict promotion), within the block only."""
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        yield


def strict(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call under strict promotion, as jaxem is tested."""

    def run() -> Any:
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            return call()

    return run


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints an aligned table; floats with four significant digits."""
    cells = [list(columns)] + [[f"{c:.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        first, rest = row[0].ljust(widths[0]), [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join([first, *rest]))


def header(title: str, report: dict[str, Any]) -> None:
    """Prints the title, the device and the versions."""
    print(title)
    print(
        f"{report['device']}, {report['cpus']} CPUs, {report['machine']}, Python {report['python']}; "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    )
    print("Interleaved medians. Data are on the device before the clock starts; every call blocks until done.\n")


def finish(report: dict[str, Any], path: str | None) -> dict[str, Any]:
    """Says whether all results agree, writes the JSON if asked, and returns the report."""
    report["agree"] = all(case["agree"] for case in report["cases"])
    print(
        "all results agree" if report["agree"] else "RESULTS DISAGREE: the timings above do not compare like with like"
    )
    if path:
        with open(path, "w") as file:
            json.dump(report, file, indent=2)
            file.write("\n")
    return report


def close(a: float, b: float, tolerance: float) -> bool:
    """Whether two finite numbers agree to a relative tolerance."""
    return bool(np.isfinite(a) and np.isfinite(b) and abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-30))
