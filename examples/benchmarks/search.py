"""Time to the best optimum known: restarts, screened restarts, swaps, annealing, and scikit-learn's n_init.

Every method is called with 20 keys (seeds), or as many as half a minute allows. A call succeeds where it ends within a
relative 1e-4 of the best objective that any call of any method reached; seconds of a call over the share of successes
is what a person waits for it on the average. Rows are those that E-steps look at, steps times N, up to the constant of
each method's own. Objectives are held against each other without penalties: the distortion, or the log-likelihood.

A likelihood has higher optima yet, where a component has next to no rows. They count for nobody: a call whose winner
has a component of fewer observations than it has free parameters, or a spike, has failed, and is no best.

    python examples/benchmarks/search.py --sizes full
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import _timing
import jax
import jax.numpy as jnp
import numpy as np

import jaxem

# Within how much of the best a call has found it; seconds that all calls of a method may take together.
NEAR, MAX_STEPS, LIMIT = 1e-4, 1000, 30.0


class Problem(NamedTuple):
    """A model "kmeans", a covariance of `GMM`, or a family, with K components, on data by name."""

    model: str
    data: str
    num: int

    def __str__(self) -> str:
        return f"{self.model} {self.data} K={self.num}"


SMALL = [
    Problem("kmeans", "iris", 10),
    Problem("kmeans", "wine", 6),
    Problem("kmeans", "planted", 50),
    Problem("full", "iris", 4),
    Problem("Poisson", "counts", 6),
]
PROBLEMS = {
    "toy": [Problem("kmeans", "iris", 4), Problem("spherical", "iris", 3)],
    "small": SMALL,
    "full": [
        *SMALL,
        Problem("kmeans", "wine", 10),
        Problem("kmeans", "digits", 10),
        Problem("kmeans", "cancer", 10),
        Problem("kmeans", "diabetes", 8),
        Problem("kmeans", "pixels", 32),
        Problem("kmeans", "unbalanced", 100),
        Problem("full", "faithful", 3),
        Problem("full", "wine", 3),
        Problem("diag", "iris", 5),
        Problem("diag", "diabetes", 4),
        Problem("diag", "planted", 50),
        Problem("Bernoulli", "items", 6),
    ],
}
SEEDS = {"toy": 2, "small": 10, "full": 20}


def make_data(name: str) -> np.ndarray:
    """(N, D) rows; columns of different units are standardised, planted ones drawn about known centres."""
    from sklearn import datasets

    rng = np.random.default_rng(0)
    if name in ("planted", "unbalanced"):
        num = 50 if name == "planted" else 100
        side = int(np.ceil(num**0.5))
        centre = 5.0 * np.argwhere(np.ones((side, side)))[:num] + rng.uniform(-1, 1, (num, 2))
        share = np.ones(num) if name == "planted" else 1.0 / np.arange(1, num + 1)
        label = rng.choice(num, 5000, p=share / share.sum())
        return centre[label] + rng.normal(0, 0.8, (5000, 2))
    if name == "counts":
        return rng.poisson(rng.gamma(2, 2, (6, 4))[rng.integers(6, size=1000)]).astype(float)
    if name == "items":
        return (rng.random((1000, 12)) < rng.uniform(0.1, 0.9, (6, 12))[rng.integers(6, size=1000)]).astype(float)
    if name == "faithful":
        from pathlib import Path

        path = Path(__file__).parents[1] / "data" / "old_faithful.csv"
        return np.loadtxt(path, delimiter=",", skiprows=1)[:, -2:]
    if name == "pixels":
        return datasets.load_sample_image("china.jpg").reshape(-1, 3)[::20] / 255.0
    if name == "iris":
        return datasets.load_iris().data
    load = {"wine": datasets.load_wine, "digits": datasets.load_digits, "cancer": datasets.load_breast_cancer}
    x = load.get(name, datasets.load_diabetes)().data
    return x if name == "digits" else (x - x.mean(0)) / x.std(0)


class Found(NamedTuple):
    """What a call found: its objective (higher is better), whether it is honest, and rows that E-steps looked at."""

    objective: float
    honest: bool
    rows: float


def make_model(problem: Problem) -> Any:
    if problem.model == "kmeans":
        return jaxem.KMeans(problem.num)
    if problem.model in ("Poisson", "Bernoulli"):
        return jaxem.Mixture(getattr(jaxem.families, problem.model)(), problem.num)
    return jaxem.GMM(problem.num, problem.model)


def judge(problem: Problem, fit: jaxem.Fit, x: np.ndarray, steps: float) -> Found:
    """The objective without penalties, held to the same rule as everyone's."""
    rows = x.shape[0] * steps
    if problem.model == "kmeans":
        return Found(-float(fit.inertia(x)), True, rows)
    least = fit.model.num_parameters(fit.params) / problem.num
    spike = fit.status == jaxem.Status.DEGENERATE or float(fit.health.min_count) < least
    return Found(float(jnp.sum(fit.log_prob(x))), not spike, rows)


def use_jaxem(problem: Problem, x: np.ndarray, **options: Any) -> Callable[[int], tuple[Any, Callable[[], Found]]]:
    model, data = make_model(problem), jnp.asarray(x)

    def call(seed: int) -> tuple[Any, Callable[[], Found]]:
        fit = jaxem.fit(model, data, key=jax.random.key(seed), max_steps=MAX_STEPS, **options)
        steps = np.asarray(fit.restarts.num_steps, float) + 1
        if isinstance(options["algorithm"], jaxem.Swap):  # a round is that many, and some to choose the swap by
            steps = (options["algorithm"].num_steps + 3) * (2 if problem.model == "kmeans" else 1) * steps
        return fit, lambda: judge(problem, fit, x, float(steps.sum()))

    return call


def use_sklearn(problem: Problem, x: np.ndarray, n_init: int) -> Callable[[int], tuple[Any, Callable[[], Found]]]:
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    def call(seed: int) -> tuple[Any, Callable[[], Found]]:
        if problem.model == "kmeans":
            run = KMeans(problem.num, n_init=n_init, tol=1e-7, max_iter=MAX_STEPS, random_state=seed).fit(x)
            return run, lambda: Found(-float(run.inertia_), True, float("nan"))
        run = GaussianMixture(
            problem.num, covariance_type=problem.model, n_init=n_init, tol=1e-8, max_iter=MAX_STEPS, random_state=seed
        ).fit(x)
        least = run._n_parameters() / problem.num
        shapes = run.covariances_
        spread = np.linalg.eigvalsh(shapes) if problem.model in ("full", "tied") else shapes
        honest = x.shape[0] * run.weights_.min() >= least and spread.min() > 10 * run.reg_covar
        return run, lambda: Found(float(run.score(x)) * x.shape[0], bool(honest), float("nan"))

    return call


def make_calls(problem: Problem, x: np.ndarray, toy: bool) -> dict[str, Callable[[int], Any]]:
    """The contenders; each does what its user would write."""
    few, many = (2, 4) if toy else (16, 64)
    swap = jaxem.Swap(num_swaps=10 if toy else 50, num_steps=5 if problem.model == "kmeans" else 10)
    temperatures = np.geomspace(3.0, 1.0, 20)
    if problem.model == "kmeans":  # from twice the largest variance, where all clusters are one, to none
        hot = 2 * float(np.linalg.eigvalsh(np.cov(x.T)).max())
        temperatures = np.append(np.geomspace(hot, 0.02 * hot, 40), 0.0)
    cool = jaxem.Tempered(temperatures)
    calls = {
        "restarts": use_jaxem(problem, x, algorithm=jaxem.EM(), num_restarts=few),
        "screened": use_jaxem(problem, x, algorithm=jaxem.EM(), num_restarts=many, screen=jaxem.Screen(10, few // 2)),
        "swaps": use_jaxem(problem, x, algorithm=swap, num_restarts=few // 2),
        "annealing": use_jaxem(problem, x, algorithm=jaxem.EM(cool), num_restarts=few),
    }
    if problem.model not in ("Poisson", "Bernoulli"):
        calls["scikit-learn"] = use_sklearn(problem, x, few)
    return calls


def run_problem(problem: Problem, seeds: int, toy: bool) -> dict[str, Any]:
    """Runs every method with every seed in turns, prints a table and returns it."""
    x = make_data(problem.data)
    print(f"{problem}, {x.shape[0]} x {x.shape[1]}")
    calls = make_calls(problem, x, toy)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    found: dict[str, list[Found]] = {name: [] for name in calls}
    with _timing.quiet_peers():
        for call in calls.values():
            jax.block_until_ready(jax.tree.leaves(call(10_000)[0]))
        for seed in range(seeds):
            for name, call in calls.items():
                if sum(seconds[name]) > LIMIT:
                    continue
                began = time.perf_counter()
                result, describe = call(seed)
                jax.block_until_ready(jax.tree.leaves(result))
                seconds[name].append(time.perf_counter() - began)
                found[name].append(describe())
    best = max(f.objective for runs in found.values() for f in runs if f.honest and np.isfinite(f.objective))
    contenders = {}
    for name, runs in found.items():
        share = float(np.mean([f.honest and f.objective >= best - NEAR * abs(best) for f in runs]))
        took = float(np.median(seconds[name]))
        contenders[name] = {
            "seconds": took,
            "rows": float(np.median([f.rows for f in runs])),
            "found": share,
            "calls": len(runs),
            "seconds_to_best": took / share if share else None,
            "best": max([f.objective for f in runs if f.honest], default=float("-inf")),
            "exactly": int(sum(f.honest and f.objective >= best - 1e-7 * abs(best) for f in runs)),
        }
    rows = []
    for name, c in contenders.items():
        waits = f"{c['seconds_to_best']:.3g}" if c["seconds_to_best"] else f"> {sum(seconds[name]):.2g}"
        rows.append(
            [
                name,
                c["seconds"],
                c["rows"],
                f"{c['found'] * c['calls']:.0f}/{c['calls']}",
                c["exactly"],
                waits,
                c["best"],
            ]
        )
    _timing.show(["method", "s a call", "rows", "found", "to 1e-7", "s to the best", "best"], rows)
    print()
    return {"name": str(problem), "best": best, "contenders": contenders, "agree": bool(np.isfinite(best))}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = _timing.arguments(__doc__.splitlines()[0], argv)
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        report: dict[str, Any] = {"benchmark": "search", **_timing.environment(), "cases": []}
        _timing.header("Search for the best optimum", report)
        for problem in PROBLEMS[args.sizes]:
            if args.only in str(problem):
                report["cases"].append(run_problem(problem, SEEDS[args.sizes], args.sizes == "toy"))
    finally:
        jax.config.update("jax_enable_x64", before)
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    main(sys.argv[1:])
