"""The guard of a refactoring: what must not change, recorded on the code before and compared on the code after.

* traces: small fits of all that the library climbs, in float64 (a few in float32 too), with the fate of every restart;
* programs: kernels, LAPACK calls, loops and bytes of compiled steps, and what a first fit compiles in a fresh process;
* times: run times and compilation of the headline fits, of two trees in turns.

    PYTHONPATH=BEFORE python examples/benchmarks/guard.py --record before.json
    python examples/benchmarks/guard.py --against before.json
    python examples/benchmarks/guard.py --only times --times-against BEFORE

Only public names of jaxem are used, so the same files run on both. The exit status is 1 where a trace differs or a
program holds more than before; times are shown only.
"""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import _guard_programs as programs
import _guard_times as times
import _guard_traces as traces
import _timing
import jax
import numpy as np

import jaxem

PARTS = ("traces", "programs", "times")
ROOT = pathlib.Path(jaxem.__path__[0]).parent
# How much more of flops, bytes and scratch counts as more; kernels, calls, loops and programs are counted exactly.
SLACK = 0.05


def record_traces(match: str, tested: bool = False) -> dict[str, Any]:
    """Records of all fits whose name contains `match`, by name; those in float32 have it behind their name."""
    with jax.enable_x64(True):
        found = {name: traces.record_fit(name) for name in (traces.TESTED if tested else traces.FITS) if match in name}
    with jax.enable_x64(False):
        for name in () if tested else traces.SINGLE:
            if match in name:
                found[f"{name} float32"] = traces.record_fit(name, np.float32)
    return found


def text_of(report: dict[str, Any]) -> str:
    """JSON with a line for each list of numbers."""
    flat = lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]"
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", flat, json.dumps(report, indent=1)) + "\n"


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
    fields = [field for field in ("statuses", "num_steps", "hits") if before[field] != after[field]]
    words = "; ".join(f"{field} {before[field]} -> {after[field]}" for field in fields)
    return words, deviation(before["traces"], after["traces"]), deviation(before["elbo"], after["elbo"])


def compare_traces(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> bool:
    """Prints a table of the fits and says whether all agree; float32 and noisy ones are shown, and never fail."""
    rows, agree = [], True
    for name in (name for name in before if name in after):
        words, trace, elbo = compare_fit(before[name], after[name])
        same = not words and max(trace, elbo) <= tolerance
        verdict = "bit-identical" if same and trace == elbo == 0 else "same" if same else words or "DIFFERS"
        shown_only = name.endswith("float32") or name in traces.NOISY
        agree &= same or shown_only
        rows.append([name, f"{trace:.1e}", f"{elbo:.1e}", verdict + (" (shown only)" if shown_only else "")])
    _timing.show(["", "trace", "ELBO", f"at {tolerance:g}"], rows)
    return agree


def record_programs(match: str) -> dict[str, Any]:
    """Counts of the compiled step and loop and of the first fit, for models whose name contains `match`."""
    first = times.record_first(match, ROOT)
    with jax.enable_x64(False):
        return {name: {**programs.record_model(name), "first": first[name]} for name in first}


def compare_programs(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Prints before -> after for every model and says whether nothing grew; CPU and compile seconds are shown only."""
    shown = ("compile", "first")
    fields = ("kernels", "fusions", "loops", "custom_calls", "flops", "bytes", "scratch", "programs", *shown)
    rows, agree = [], True
    for name, part in ((key, part) for key in before if key in after for part in before[key]):
        old, new = before[name][part], after[name][part]
        if "error" in new:
            agree &= "error" in old or part == "step"  # the names of the step's methods may change: the loop has them
            rows.append([f"{name} {part}", new["error"][:60], *[""] * (len(fields) - 1), ""])
            continue
        more = [field for field in fields if field in old and field not in shown and grew(old[field], new[field])]
        agree &= not more
        rows.append([f"{name} {part}", *(change(old.get(f), new.get(f)) for f in fields), ", ".join(more)])
    _timing.show(["", *fields, "MORE"], rows)
    return agree


def total(value: Any) -> float:
    """A count; of custom calls, of all targets together."""
    return sum(value.values()) if isinstance(value, dict) else value


def grew(old: Any, new: Any) -> bool:
    """Whether there is more than before: at all of what is counted, by more than `SLACK` of what is measured."""
    exact = not isinstance(old, float)
    return total(new) > total(old) * (1 if exact else 1 + SLACK)


def change(old: Any, new: Any) -> str:
    """Text of before -> after, or of the one number that both are."""
    texts = ["-" if value is None else f"{total(value):.4g}" for value in (old, new)]
    return texts[0] if texts[0] == texts[1] else " -> ".join(texts)


def compare_times(before: str, rounds: int, repeats: int, match: str) -> dict[str, Any]:
    """Races this tree against that in the folder `before` and prints ratios after / before."""
    report = times.race(pathlib.Path(before).resolve(), ROOT.resolve(), rounds, repeats, match)
    columns = [
        f"{text} {unit}" for text, unit in (("run", "s"), ("run", "CPU s"), ("first fit", "CPU s"), ("XLA", "s"))
    ]
    heads = [head for column in columns for head in (column, "min", "median")]
    print(f"best before, and ratios after / before of minima and of medians, over {rounds} rounds:")
    _timing.show(["", *heads, f"both > {SLACK:.0%}"], times.rows_of(report, SLACK))
    return report


def run_probe(name: str, repeats: int) -> dict[str, Any]:
    """What one process of the times measures, printed as its last line."""
    found = {**times.probe(name, repeats), "package": str(ROOT.resolve())}
    print(json.dumps(found))
    return {**found, "agree": True}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", metavar="FILE", help="write what is found there")
    parser.add_argument("--against", metavar="FILE", help="compare with what was written there; exit 1 if it differs")
    parser.add_argument("--only", choices=PARTS, help="a single part; without it traces, programs and --times-against")
    parser.add_argument("--match", default="", help="only fits and models whose name contains this")
    parser.add_argument("--tested", action="store_true", help="only the traces in tests/reference/guard.json")
    parser.add_argument("--tolerance", type=float, default=1e-12, help="relative, of float64 traces (default 1e-12)")
    parser.add_argument("--times-against", metavar="FOLDER", help="a tree with another jaxem to race against")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each tree and headline (default 5)")
    parser.add_argument("--repeats", type=int, default=3, help="fits in each after the first (default 3)")
    parser.add_argument("--probe", choices=times.CASES, metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.only == "times" and not args.times_against:
        parser.error("--only times: expected --times-against FOLDER, a tree with another jaxem")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Records, compares with what was recorded, and returns the report."""
    args = parse(argv)
    if args.probe:
        return run_probe(args.probe, args.repeats)
    report: dict[str, Any] = {"benchmark": "guard", **_timing.environment(), "agree": True}
    print(f"jaxem of {ROOT}, {report['device']}, JAX {report['versions']['jax']}")
    if args.only in (None, "traces"):
        report["traces"] = record_traces(args.match, args.tested)
        print(f"traces: {len(report['traces'])} fits")
    if args.only in (None, "programs"):
        report["programs"] = record_programs(args.match)
        print(f"programs: {len(report['programs'])} models")
    for name, found in report.get("traces", {}).items():
        if "error" in found:
            print(f"  FAILED  {name}: {found['error']}")
    if args.against:
        before = json.loads(pathlib.Path(args.against).read_text())
        if "traces" in before and "traces" in report:
            report["agree"] &= compare_traces(before["traces"], report["traces"], args.tolerance)
        if "programs" in before and "programs" in report:
            report["agree"] &= compare_programs(before["programs"], report["programs"])
        print("nothing differs" if report["agree"] else "THE CODE DIFFERS")
    if args.times_against and args.only in (None, "times"):
        report["times"] = compare_times(args.times_against, args.rounds, args.repeats, args.match)
    if args.record:
        pathlib.Path(args.record).write_text(text_of(report))
    return report


if __name__ == "__main__":
    sys.exit(not main()["agree"])
