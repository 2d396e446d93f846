"""First fits and later ones in fresh processes: what compiles, CPU seconds, and seconds of a run.

Absolute times mean little on a machine that others use: those of two trees are taken in turns, A B B A A B ..., a
process each, and compared as ratios of minima and of medians. CPU seconds suffer less from neighbours than seconds.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any, NamedTuple

import _guard_programs as programs
import jax
import jax.numpy as jnp

import jaxem

SCRIPT = pathlib.Path(__file__).with_name("guard.py")
COMPILED = "backend_compile"


class Case(NamedTuple):
    """A model by name, rows, columns, K, restarts, and steps if their number is fixed (else 0)."""

    model: str
    rows: int
    columns: int
    num: int
    restarts: int
    steps: int


SMALL = {name: Case(name, 1000, 8, 5, 1, 0) for name in programs.MODELS}
HEADLINES = {
    **{f"{name} 100k": Case(name, 100_000, 8, 10, 1, 10) for name in programs.MODELS},
    "GMM full 64 restarts": Case("GMM full", 150, 4, 3, 64, 0),
    "KMeans 64 restarts": Case("KMeans", 150, 4, 3, 64, 0),
}
CASES = {**SMALL, **HEADLINES}


def probe(name: str, repeats: int) -> dict[str, float]:
    """In this process, which must be fresh: what a first fit compiles and takes, and the least time of later ones.

    Returns:
      `programs` compiled and `compile` seconds of XLA in the first fit, `first` its CPU seconds, then `seconds` and
      `cpu` seconds of the fastest of `repeats` more fits.
    """
    case, seen = CASES[name], []
    x, model = jnp.asarray(programs.make_data(case.rows, case.columns, case.num)), programs.MODELS[case.model](case.num)
    options = {
        "num_restarts": case.restarts,
        **({"stop": programs.NEVER, "max_steps": case.steps} if case.steps else {}),
    }
    jax.block_until_ready(x)

    def call() -> tuple[float, float]:
        began = time.perf_counter(), time.process_time()
        jax.block_until_ready(jaxem.fit(model, x, key=jax.random.key(0), **options).params)
        return time.perf_counter() - began[0], time.process_time() - began[1]

    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: seen.append(seconds) if COMPILED in event else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = call()[1]
        found = {"programs": len(seen), "compile": sum(seen), "first": first}
        later = [call() for _ in range(repeats)]
    return found | ({"seconds": min(t for t, _ in later), "cpu": min(t for _, t in later)} if later else {})


def spawn(name: str, repeats: int, root: pathlib.Path) -> dict[str, float]:
    """The probe in a process of its own, of the jaxem that lies in the folder `root`, without a cache of programs."""
    environment = {key: value for key, value in os.environ.items() if "COMPILATION_CACHE" not in key}
    environment["PYTHONPATH"] = str(root)
    command = [sys.executable, str(SCRIPT), "--probe", name, "--repeats", str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name} of {root}: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not pathlib.Path(found.pop("package")).is_relative_to(root):
        raise RuntimeError(f"{root}: expected a folder with jaxem in it, which Python then imports")
    return found


def record_first(match: str, root: pathlib.Path) -> dict[str, Any]:
    """What the first fit of each small case compiles, whose name contains `match`."""
    return {name: spawn(name, 0, root) for name in SMALL if match in name}


def race(before: pathlib.Path, after: pathlib.Path, rounds: int, repeats: int, match: str) -> dict[str, Any]:
    """Times both trees in turns.

    Args:
      before: the folder with the jaxem to compare with.
      after: the folder with this one.
      rounds: processes of each tree and case.
      repeats: fits in each process after the first.
      match: only cases whose name contains this.

    Returns:
      Case -> measure -> {"before": (rounds,), "after": (rounds,), "minima": ratio, "medians": ratio}.
    """
    report: dict[str, Any] = {}
    for name in (name for name in HEADLINES if match in name):
        turns: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
        for turn in range(rounds):
            sides = [("before", before), ("after", after)]
            for side, root in sides if turn % 2 == 0 else sides[::-1]:
                turns[side].append(spawn(name, repeats, root))
        report[name] = {}
        for measure in ("seconds", "cpu", "first", "compile", "programs"):
            pair = {side: [found[measure] for found in taken] for side, taken in turns.items()}
            ratio = lambda pick, pair=pair: pick(pair["after"]) / pick(pair["before"])
            report[name][measure] = {**pair, "minima": ratio(min), "medians": ratio(statistics.median)}
    return report


def rows_of(report: dict[str, Any], slack: float) -> list[list[Any]]:
    """A row for each case: times before and ratios after / before, minima then medians; "SLOWER" where both say so."""
    rows = []
    for name, found in report.items():
        cells: list[Any] = [name]
        slower = []
        for measure in ("seconds", "cpu", "first", "compile"):
            value = found[measure]
            cells += [min(value["before"]), f"{value['minima']:.3f}", f"{value['medians']:.3f}"]
            if min(value["minima"], value["medians"]) > 1 + slack:
                slower.append(measure)
        rows.append([*cells, f"SLOWER: {', '.join(slower)}" if slower else ""])
    return rows
