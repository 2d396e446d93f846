"""The guard of a refactoring: what must not change, recorded on the code before and compared on the code after.

Traces: small fits of everything the library climbs, in float64 (and a few in float32), with the fate of every restart.

    PYTHONPATH=OLD python examples/benchmarks/guard.py --record before.json
    python examples/benchmarks/guard.py --against before.json

Only public names of jaxem are used, so the same files run on both. Exit status 1 where something differs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import _guard_traces as traces
import _timing
import jax
import numpy as np

import jaxem

PARTS = ("traces",)


def record_traces(match: str) -> dict[str, Any]:
    """Records of all fits whose name contains `match`, by name; those in float32 have it behind their name."""
    found = {}
    with jax.enable_x64(True):
        for name in traces.FITS:
            if match in name:
                found[name] = traces.record_fit(name)
    with jax.enable_x64(False):
        for name in traces.SINGLE:
            if match in name:
                found[f"{name} float32"] = traces.record_fit(name, np.float32)
    return found


def deviation(before: Sequence[Any], after: Sequence[Any]) -> float:
    """Largest relative difference of two nested lists of numbers; inf where their shapes or what is finite differ."""
    if [len(row) for row in before] != [len(row) for row in after]:
        return np.inf
    a, b = (np.concatenate([np.asarray(row, float) for row in rows]) for rows in (before, after))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if not np.array_equal(np.isfinite(a), np.isfinite(b)) or np.any(~same & ~np.isfinite(a)):
        return np.inf
    return float(np.max(np.abs(a - b)[~same] / np.maximum(abs(a), abs(b))[~same], initial=0.0))


def compare_fit(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, float, float]:
    """What of a fit's fate differs ("" if nothing), and the relative deviations of its traces and of its ELBOs."""
    if "error" in before or "error" in after:
        said = [record.get("error", "") for record in (before, after)]
        return ("" if said[0] == said[1] else f"error: {said[0] or 'none'} -> {said[1] or 'none'}"), 0.0, 0.0
    words = []
    for field in ("statuses", "num_steps", "winner", "hits"):
        if before[field] != after[field]:
            words.append(f"{field} {before[field]} -> {after[field]}")
    return "; ".join(words), *(deviation(before[field], after[field]) for field in ("traces", "elbo"))


def compare_traces(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> bool:
    """Prints a table of the fits and says whether all agree; those in float32 are shown and never fail."""
    rows, agree = [], True
    for name in sorted(before.keys() & after.keys(), key=list(before).index):
        words, trace, elbo = compare_fit(before[name], after[name])
        failed = bool(words) or max(trace, elbo) > tolerance
        counts = not name.endswith("float32")
        agree &= not (failed and counts)
        verdict = "bit-identical" if not words and trace == elbo == 0 else "same" if not failed else words or "DIFFERS"
        rows.append([name, f"{trace:.1e}", f"{elbo:.1e}", verdict if counts else f"{verdict} (shown only)"])
    _timing.show(["", "trace", "ELBO", f"at {tolerance:g}"], rows)
    return agree


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Records, compares with what was recorded, and returns the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", metavar="FILE", help="write what is found there")
    parser.add_argument("--against", metavar="FILE", help="compare with what was written there; exit 1 if it differs")
    parser.add_argument("--only", choices=PARTS, help="a single part")
    parser.add_argument("--match", default="", help="only fits and models whose name contains this")
    parser.add_argument("--tolerance", type=float, default=1e-12, help="relative, of float64 traces (default 1e-12)")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"benchmark": "guard", **_timing.environment(), "agree": True}
    print(f"jaxem of {jaxem.__path__[0]}, {report['device']}, JAX {report['versions']['jax']}")
    report["traces"] = record_traces(args.match)
    failed = {name: record["error"] for name, record in report["traces"].items() if "error" in record}
    print(f"{len(report['traces'])} fits" + "".join(f"\n  FAILED  {name}: {error}" for name, error in failed.items()))
    if args.record:
        with open(args.record, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
    if args.against:
        with open(args.against) as file:
            before = json.load(file)
        report["agree"] &= compare_traces(before["traces"], report["traces"], args.tolerance)
        print("nothing differs" if report["agree"] else "THE CODE DIFFERS")
    return report


if __name__ == "__main__":
    sys.exit(not main()["agree"])
