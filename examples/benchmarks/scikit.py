"""`jaxem.sklearn` against scikit-learn itself: the same estimator, arguments and data, from 50 starts.

Each library draws its own starts. Objectives are the mean log-likelihood (higher is better) and the inertia (lower);
"first s" is the first call in this process, compilation included, "later s" the median of later ones. A process that
finds its programs in a cache (`jaxem.cache()`) does not wait so long for the first.

    python examples/benchmarks/scikit.py --sizes full
"""

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import _timing
import numpy as np
import sklearn.cluster
import sklearn.datasets
import sklearn.mixture

import jaxem.sklearn


class Case(NamedTuple):
    """A table, K, and the number of starts."""

    data: str
    components: int
    starts: int = 50


SMALL = [Case("iris", 3), Case("iris", 6), Case("wine", 3), Case("wine", 6), Case("digits", 10)]
CASES = {"toy": [Case("iris", 3, 2)], "small": SMALL, "full": [*SMALL, Case("blobs", 10)]}


def table(name: str) -> np.ndarray:
    """float64 rows; wine standardised."""
    if name == "blobs":
        centers = np.random.default_rng(0).normal(size=(10, 16)) * 2
        return centers[np.random.default_rng(1).integers(10, size=100_000)] + np.random.default_rng(2).normal(
            size=(100_000, 16)
        )
    x = getattr(sklearn.datasets, f"load_{name}")().data
    return (x - x.mean(0)) / x.std(0) if name == "wine" else x


def estimators(case: Case) -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    """Ours and theirs, and arguments, of the mixture and of K-means. Digits have constant columns: diagonal there."""
    kind = "diag" if case.data == "digits" else "full"
    shared = {"n_init": case.starts, "random_state": 0}
    mixture = {"n_components": case.components, "covariance_type": kind, "max_iter": 500, **shared}
    return {
        f"GaussianMixture {kind}": (jaxem.sklearn.GaussianMixture, sklearn.mixture.GaussianMixture, mixture),
        "KMeans": (jaxem.sklearn.KMeans, sklearn.cluster.KMeans, {"n_clusters": case.components, **shared}),
    }


def run_case(case: Case, name: str, ours: Any, theirs: Any, settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Fits both, prints a table and returns it."""
    x = table(case.data)
    calls = {
        "jaxem": lambda: ours(**settings).fit(x),
        "scikit-learn": lambda: theirs(**settings).fit(x),
    }
    timings = _timing.interleave(calls, repeats, list(calls))
    contenders: dict[str, dict[str, Any]] = {}
    for who, timing in timings.items():
        fitted = timing.result
        objective = fitted.inertia_ if name == "KMeans" else fitted.score(x)
        contenders[who] = {"objective": float(objective), "first_s": timing.first, "later_s": timing.median}
        contenders[who]["smallest"] = int(np.bincount(fitted.predict(x), minlength=case.components).min())
    fates = ", ".join(f"{num} {status}" for status, num in timings["jaxem"].result.statuses_.items())
    title = f"{name}, {case.data} {x.shape[0]} x {x.shape[1]}, K={case.components}, {case.starts} starts ({fates})"
    print(title)
    rows = []
    for who, c in contenders.items():
        c["ratio"] = c["later_s"] / contenders["jaxem"]["later_s"]
        rows.append([who, f"{c['objective']:.6g}", c["smallest"], c["first_s"], c["later_s"], c["ratio"]])
    _timing.show(["", "objective", "smallest cluster", "first s", "later s", "ratio"], rows)
    found = [c["objective"] for c in contenders.values()]
    better = found[1] - found[0] if name == "KMeans" else found[0] - found[1]
    # A covariance of no more rows than columns is a spike: its likelihood is no measure of anything.
    spike = name != "KMeans" and contenders["scikit-learn"]["smallest"] <= x.shape[1]
    return {"case": title, "agree": spike or bool(better > -1e-2 * abs(found[1])), "contenders": contenders}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report."""
    args = _timing.arguments(__doc__.splitlines()[0], argv)
    report: dict[str, Any] = {"benchmark": "scikit", **_timing.environment(), "cases": []}
    _timing.header("The same estimators from the same number of starts", report)
    for case in CASES[args.sizes]:
        for name, (ours, theirs, settings) in estimators(case).items():
            if args.only in f"{name} {case.data}":
                with _timing.quiet_peers():
                    report["cases"].append(run_case(case, name, ours, theirs, settings, args.repeats))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
