"""K-means: whole Lloyd runs from given centroids, against scikit-learn, scikit-learn-intelex, faiss and ott-jax.

float32. All start at the same centroids. Cases of one start take the same fixed number of steps, and once more jaxem
and scikit-learn run on to scikit-learn's own tolerance, a total squared shift of the centroids of 1e-4 of the mean
variance of a column, or 300 steps: the seconds of a whole fit, and the inertia that it ends at. Cases of many
restarts run to convergence or 100 steps, and the best inertia is compared; jaxem's strictest rule is an objective that
changes by less than four ulp, the others' is that no label changes, so the ratio per step is shown too. Runs end with
one more assignment than there are updates, in jaxem, scikit-learn and ott-jax alike; faiss leaves it out. Inertia is
computed for all by one function, in float64, from the centroids that each returned.

    python examples/benchmarks/kmeans.py --sizes full
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import _timing
import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem.models.kmeans import KMeansParams

# No change is below the first bound; under the second, none but rounding is.
NEVER, STRICT = jaxem.Stop(atol=-np.inf), jaxem.Stop(atol=0.0, rtol=0.0)
CAP = 100
# scikit-learn's defaults.
TOLERANCE, LONGEST = 1e-4, 300


@jaxem.dataclass
class CentreShift(jaxem.StopRule):
    """scikit-learn's rule: the squared shifts of all centroids sum to at most `total`."""

    total: float

    def __call__(self, step: Any) -> jax.Array:
        """Whether the last update moved them by no more."""
        return jnp.sum((step.params.centroids - step.old_params.centroids) ** 2) <= self.total


class Case(NamedTuple):
    """Data by name, rows and columns (0: those of the file), K clusters, R restarts, steps if fixed (else 0)."""

    data: str
    rows: int
    columns: int
    clusters: int
    restarts: int
    steps: int

    def title(self, x: np.ndarray) -> str:
        """One line for people."""
        length = f"{self.steps} steps" if self.steps else f"{self.restarts} restarts to convergence"
        return f"{self.data} {x.shape[0]} x {x.shape[1]}, K={self.clusters}, {length}"


SMALL = [
    Case("iris", 0, 0, 3, 64, 0),
    Case("blobs", 10_000, 16, 10, 32, 0),
    Case("clustered", 10_000, 16, 10, 32, 0),
    Case("clustered", 100_000, 2, 8, 1, 20),
]
CASES = {
    "toy": [Case("iris", 0, 0, 3, 4, 0), Case("clustered", 500, 2, 3, 1, 5)],
    "small": SMALL,
    "full": [
        *SMALL,
        Case("pixels", 0, 0, 64, 1, 20),
        Case("clustered", 100_000, 16, 32, 1, 20),
        Case("clustered", 200_000, 64, 128, 1, 20),
        Case("clustered", 50_000, 128, 256, 1, 20),
    ],
}


def make_data(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, D), and starting centroids (R, K, D): different rows drawn at random.

    "blobs" are well separated; "clustered" are clusters of different sizes and widths that overlap, so that 20 steps
    are not enough to converge; "pixels" are those of a photograph that comes with scikit-learn.
    """
    from sklearn import datasets

    rng = np.random.default_rng(0)
    if case.data == "iris":
        x = datasets.load_iris().data
    elif case.data == "pixels":
        x = datasets.load_sample_image("china.jpg").reshape(-1, 3) / 255.0
    else:
        num = case.clusters if case.data == "blobs" else 3 * case.clusters
        spread, width = (5.0, np.ones(num)) if case.data == "blobs" else (1.0, rng.uniform(0.3, 1.5, num))
        label = rng.choice(num, case.rows, p=rng.dirichlet(np.full(num, 5.0)))
        centre = spread * rng.standard_normal((num, case.columns))
        x = centre[label] + width[label, None] * rng.standard_normal((case.rows, case.columns))
    x = np.ascontiguousarray(x, np.float32)
    some = np.unique(x[rng.choice(x.shape[0], min(x.shape[0], 20 * case.clusters), replace=False)], axis=0)
    starts = [some[rng.choice(some.shape[0], case.clusters, replace=False)] for _ in range(case.restarts)]
    return x, np.stack(starts)


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of squared distances to the nearest centroid, in float64."""
    centroids, total = centroids.astype(np.float64), 0.0
    for block in np.array_split(x, max(1, x.shape[0] * centroids.shape[0] // 2_000_000)):
        block = block.astype(np.float64)
        label = np.argmin((centroids**2).sum(1) - 2 * block @ centroids.T, 1)
        total += float(((block - centroids[label]) ** 2).sum())
    return total


def use_jaxem(case: Case, x: np.ndarray, starts: np.ndarray, to_tolerance: bool = False) -> Callable[[], jaxem.Fit]:
    data, key = jnp.asarray(x), jax.random.key(0)
    lead = (case.restarts,) if case.restarts > 1 else ()
    centroids = jnp.asarray(starts).reshape(*lead, *starts.shape[1:])
    params = KMeansParams(centroids, jnp.zeros(lead, jnp.int32))
    stop: Any = NEVER if case.steps else STRICT
    if to_tolerance:
        stop = CentreShift(TOLERANCE * float(np.mean(np.var(x, axis=0))))
    return _timing.strict(
        lambda: jaxem.fit(
            jaxem.KMeans(case.clusters),
            data,
            key=key,
            params=params,
            num_restarts=case.restarts,
            stop=stop,
            max_steps=LONGEST if to_tolerance else case.steps or CAP,
        )
    )


def _loop(estimator: Any, case: Case, x: np.ndarray, starts: np.ndarray) -> Callable[[], list[Any]]:
    def one(start: np.ndarray) -> Any:
        steps = case.steps or CAP
        return estimator(case.clusters, init=start, n_init=1, max_iter=steps, tol=0, algorithm="lloyd").fit(x)

    return lambda: [one(start) for start in starts]


def use_sklearn(case: Case, x: np.ndarray, starts: np.ndarray) -> Callable[[], list[Any]]:
    from sklearn.cluster import KMeans

    return _loop(KMeans, case, x, starts)


def sklearn_to_tolerance(case: Case, x: np.ndarray, starts: np.ndarray) -> Callable[[], list[Any]]:
    from sklearn.cluster import KMeans

    options = {"n_init": 1, "max_iter": LONGEST, "tol": TOLERANCE, "algorithm": "lloyd"}
    return lambda: [KMeans(case.clusters, init=starts[0], **options).fit(x)]


def use_intelex(case: Case, x: np.ndarray, starts: np.ndarray) -> Callable[[], list[Any]]:
    from sklearnex.cluster import KMeans

    return _loop(KMeans, case, x, starts)


def use_faiss(case: Case, x: np.ndarray, starts: np.ndarray) -> Callable[[], Any] | None:
    import faiss

    if not case.steps:
        return None

    def call() -> Any:
        run = faiss.Kmeans(
            x.shape[1],
            case.clusters,
            niter=case.steps,
            min_points_per_centroid=1,
            max_points_per_centroid=x.shape[0],
        )
        run.train(x, init_centroids=starts[0])
        return run

    return call


def use_ott(case: Case, x: np.ndarray, starts: np.ndarray) -> Callable[[], Any]:
    from ott.tools.k_means import k_means

    @jax.jit
    def runs(x: jax.Array, starts: jax.Array) -> Any:
        def one(start: jax.Array) -> Any:
            steps = case.steps or CAP
            init = lambda geom, num, rng: start
            return k_means(x, case.clusters, init=init, n_init=1, tol=0.0, max_iterations=steps)

        return jax.vmap(one)(starts)

    data, starts = jnp.asarray(x), jnp.asarray(starts)
    return lambda: runs(data, starts)


USE = {
    "jaxem": use_jaxem,
    "scikit-learn": use_sklearn,
    "scikit-learn-intelex": use_intelex,
    "faiss": use_faiss,
    "ott-jax": use_ott,
}
PEERS = {
    "scikit-learn-intelex": ("sklearnex", "scikit-learn-intelex"),
    "faiss": ("faiss", "faiss-cpu"),
    "ott-jax": ("ott", "ott-jax"),
}


def outcome(name: str, result: Any, x: np.ndarray) -> tuple[float, float]:
    """Best inertia, and the mean number of steps of the runs."""
    if name == "jaxem":
        return inertia(x, np.asarray(result.params.centroids)), float(np.mean(np.asarray(result.restarts.num_steps)))
    if name == "faiss":
        return inertia(x, result.centroids), float(len(result.obj))
    if name == "ott-jax":
        best = int(np.argmin(np.asarray(result.error)))
        return inertia(x, np.asarray(result.centroids[best])), float(np.mean(np.asarray(result.iteration)))
    best = min(result, key=lambda run: run.inertia_)
    return inertia(x, best.cluster_centers_), float(np.mean([run.n_iter_ for run in result]))


def run_to_tolerance(case: Case, x: np.ndarray, starts: np.ndarray, repeats: int) -> dict[str, dict[str, float]]:
    """Times whole fits to scikit-learn's tolerance, prints a table and returns it."""
    calls = {"jaxem": use_jaxem(case, x, starts, True), "scikit-learn": sklearn_to_tolerance(case, x, starts)}
    timings = _timing.interleave(calls, repeats, list(calls))
    found, rows = {}, []
    for name, timing in timings.items():
        value, steps = outcome(name, timing.result, x)
        ratio = timing.median / timings["jaxem"].median
        found[name] = {"seconds": timing.median, "ratio": ratio, "inertia": value, "steps": steps}
        rows.append([name, timing.median, ratio, f"{value:.8g}", steps])
    _timing.show(["to tolerance", "seconds", "ratio", "inertia", "steps"], rows)
    return found


def run_case(case: Case, names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Times one case, prints a table and returns it."""
    x, starts = make_data(case)
    title = case.title(x)
    print(title)
    calls = {name: USE[name](case, x, starts) for name in names}
    for name in [name for name in calls if calls[name] is None]:
        print(f"  SKIPPED {name}: it has no stop rule")
        del calls[name]
    timings = _timing.interleave(calls, repeats, ["jaxem", "scikit-learn"])
    contenders: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        value, steps = outcome(name, timing.result, x)
        contenders[name] = {
            "seconds": timing.median,
            "ratio": timing.median / timings["jaxem"].median,
            "compile_s": timing.compile,
            "inertia": value,
            "mean_steps": steps,
        }
    per_step = {name: c["seconds"] / c["mean_steps"] for name, c in contenders.items()}
    ours, theirs = contenders["jaxem"], contenders["scikit-learn"]
    ours["statuses"] = timings["jaxem"].result.restarts.counts()
    agree = all(_timing.close(c["inertia"], theirs["inertia"], 1e-3) for c in contenders.values())
    if case.steps:
        agree &= all(c["mean_steps"] == case.steps for c in contenders.values())
    rows = []
    for name, c in contenders.items():
        c["ratio_per_step"] = per_step[name] / per_step["jaxem"]
        compile_s = c["compile_s"] if name in ("jaxem", "ott-jax") else "-"
        inertia_text = f"{c['inertia']:.8g}"
        rows.append(
            [name, 1e3 * c["seconds"], c["ratio"], c["ratio_per_step"], compile_s, inertia_text, c["mean_steps"]]
        )
    _timing.show(["", "ms", "ratio", "ratio per step", "compile s", "inertia", "mean steps"], rows)
    whole = run_to_tolerance(case, x, starts, repeats) if case.restarts == 1 else None
    print(f"  jaxem: {ours['statuses']}" + ("\n" if agree else "  DISAGREE\n"))
    return {"case": title, "agree": agree, "contenders": contenders, "to_tolerance": whole}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report."""
    args = _timing.arguments(__doc__.splitlines()[0], argv)
    report: dict[str, Any] = {"benchmark": "kmeans", **_timing.environment(), "cases": []}
    _timing.header("K-means: whole Lloyd runs from the same centroids, float32", report)
    names = ["jaxem", "scikit-learn", *_timing.installed(PEERS)]
    for case in CASES[args.sizes]:
        if case.data == "pixels" and not importlib.util.find_spec("PIL"):
            print("SKIPPED pixels: reading the photograph needs pillow (pip install pillow)\n")
        elif args.only in f"{case.data} {case.rows}x{case.columns}":
            with jax.enable_x64(False), _timing.quiet_peers():
                report["cases"].append(run_case(case, names, args.repeats))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
