"""Online EM: how far below the batch optimum after each pass, and minibatch K-means against scikit-learn.

Mixture: Gaussian components with full covariance, float64, from K random rows. The shortfall is

    (L_batch_optimum - L(theta)) / (L_batch_optimum - L_one_component),

the batch optimum being where EM ends from the same start, so a run that finds a better one shows a negative number. A
step of `OnlineEM` scores the params on all rows and then takes one pass over them; its time is that of both. For
constant rates the mean shortfall over the later half of the passes, in nats, stands beside the bound rho N p / (4 B).
If nothing is hidden the two are equal; the measured one is lower the more the components overlap.

K-means: from the same centroids, whole runs of 1, 2, ... passes; inertia on all rows in float64 (as kmeans.py), as the
excess over the lowest found by Lloyd's algorithm from that start. At equal time: for each run of scikit-learn's
`MiniBatchKMeans`, the best of jaxem's runs that took no longer.

    python examples/benchmarks/online.py --sizes full       # 1,000,000 rows
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import _timing
import gmm
import jax
import jax.numpy as jnp
import kmeans
import numpy as np

import jaxem
from jaxem.algorithms import OnlineEM
from jaxem.models.kmeans import KMeansParams

NEVER = jaxem.Stop(atol=-np.inf)
# Rows, columns, components, batch size, passes, most EM steps to the optimum.
MIXTURES = {
    "toy": (2_000, 2, 3, 100, 4, 300),
    "small": (100_000, 4, 4, 500, 10, 1000),
    "full": (1_000_000, 4, 4, 1000, 10, 1000),
}
# Rows, columns, clusters, batch size, lengths of the runs in passes.
KMEANS = {
    "toy": (1_000, 4, 5, 100, (2,)),
    "small": (100_000, 16, 16, 1000, (1, 2, 4)),
    "full": (1_000_000, 16, 16, 1000, (1, 2)),
}


def algorithms(batch: int) -> dict[str, tuple[Any, float | None]]:
    """The contenders by name, each with its rate if that is constant."""
    key = jax.random.key(1)
    online: dict[str, tuple[Any, float | None]] = {"EM": (jaxem.EM(), None)}
    online["kappa 0.6"] = OnlineEM(batch, key=key), None
    online["kappa 0.6, averaged"] = OnlineEM(batch, average=True, key=key), None
    for rate in (0.1, 0.03, 0.01):
        online[f"rate {rate:g}"] = OnlineEM(batch, rate, key=key), rate
    return online


def mixture_case(size: str, repeats: int) -> dict[str, Any]:
    """Shortfall after each pass and seconds a step, for batch and online EM."""
    rows, dim, num, batch, passes, most = MIXTURES[size]
    host, start = gmm.make_data(gmm.Case(rows, dim, num, 0, 0), np.float64)
    x, model, key = jnp.asarray(host), jaxem.GMM(num), jax.random.key(0)
    params = model.make_params(start.mixing, mean=jnp.asarray(start.mean), covariance=jnp.asarray(start.covariance))

    def use(algorithm: Any) -> Callable[[], jaxem.Fit]:
        options = {"key": key, "params": params, "algorithm": algorithm, "stop": NEVER, "max_steps": passes}
        return _timing.strict(lambda: jaxem.fit(model, x, **options))

    optimum = _timing.strict(
        lambda: jaxem.fit(model, x, key=key, params=params, stop=jaxem.Stop(atol=1e-9), max_steps=most)
    )()
    one = _timing.strict(lambda: jaxem.fit(jaxem.GMM(1), x, key=key))()
    best, gain = float(optimum.elbo.total), float(optimum.elbo.total - one.elbo.total)
    title = f"mixture {rows} x {dim}, K={num}, full, float64, batches of {batch}"
    print(
        f"{title}\n  EM from the start: {jaxem.Status(int(optimum.status)).name} after {int(optimum.num_steps)} steps,"
    )
    print(f"  {gain / rows:.4f} nats per row above one component; shortfall in % of that, after passes:")
    contenders: dict[str, dict[str, Any]] = {}
    chosen = algorithms(batch)
    timings = _timing.interleave({name: use(a) for name, (a, _) in chosen.items()}, repeats, list(chosen))
    count = model.num_parameters(params)
    for name, (_, rate) in chosen.items():
        short = best - np.asarray(timings[name].result.trace, np.float64)
        contenders[name] = {
            "seconds_per_step": timings[name].median / (passes + 1),
            "shortfall_percent": (100 * short / gain).tolist(),
            "status": jaxem.Status(int(timings[name].result.status)).name,
        }
        if rate is not None:
            contenders[name]["late_shortfall_nats"] = float(short[passes // 2 + 1 :].mean())
            contenders[name]["bound_nats"] = rate * rows * count / (4 * batch)
    at = sorted({1, 2, 3, 5, passes} & set(range(passes + 1)))
    table = []
    for name, c in contenders.items():
        nats = [c.get("late_shortfall_nats", "-"), c.get("bound_nats", "-")]
        table.append([name, c["seconds_per_step"], *(f"{c['shortfall_percent'][t]:.4f}" for t in at), *nats])
    _timing.show(["", "s/step", *map(str, at), "nats, late", "bound"], table)
    agree = all(c["status"] == "MAX_STEPS" for c in contenders.values())
    # Online runs must be at the optimum but for noise, or nearer to it than EM after as many steps.
    last = {name: c["shortfall_percent"][-1] for name, c in contenders.items()}
    agree &= all(value <= max(5.0, last["EM"]) for value in last.values())
    print("" if agree else "  DISAGREE\n")
    return {"case": title, "agree": agree, "num_parameters": count, "gain": gain, "contenders": contenders}


def kmeans_case(size: str, repeats: int) -> dict[str, Any]:
    """Inertia and seconds of whole runs of several lengths."""
    from sklearn.cluster import MiniBatchKMeans

    rows, dim, num, batch, lengths = KMEANS[size]
    x, starts = kmeans.make_data(kmeans.Case("clustered", rows, dim, num, 1, 0))
    data, key = jnp.asarray(x), jax.random.key(0)
    params = KMeansParams(jnp.asarray(starts[0]), jnp.zeros((), jnp.int32))
    algorithm = OnlineEM(batch, key=jax.random.key(1))

    def ours(passes: int) -> Callable[[], jaxem.Fit]:
        options = {"key": key, "params": params, "algorithm": algorithm, "stop": NEVER, "max_steps": passes}
        return _timing.strict(lambda: jaxem.fit(jaxem.KMeans(num), data, **options))

    def theirs(passes: int) -> Callable[[], Any]:
        # Nothing but passes: no early stop, and no labels at the end, which jaxem does not compute either.
        options = {"max_no_improvement": None, "tol": 0.0, "compute_labels": False, "random_state": 0}
        settings = {"init": starts[0], "n_init": 1, "batch_size": batch, "max_iter": passes, **options}
        return lambda: MiniBatchKMeans(num, **settings).fit(x)

    calls = {f"jaxem {p}": ours(p) for p in lengths} | {f"scikit-learn {p}": theirs(p) for p in lengths}
    lloyd = jaxem.fit(jaxem.KMeans(num), data, key=key, params=params, max_steps=300)
    least = kmeans.inertia(x, np.asarray(lloyd.params.centroids))
    title = f"minibatch K-means {rows} x {dim}, K={num}, float32, batches of {batch}"
    print(f"{title}\n  Lloyd from the start: inertia {least:.8g} after {int(lloyd.num_steps)} steps")
    timings, runs = _timing.interleave(calls, repeats, list(calls)), {}
    for name, timing in timings.items():
        ended = timing.result
        centroids = ended.params.centroids if name.startswith("jaxem") else ended.cluster_centers_
        value = kmeans.inertia(x, np.asarray(centroids))
        runs[name] = {"seconds": timing.median, "inertia": value, "excess_percent": 100 * (value / least - 1)}
    table = [[name, r["seconds"], f"{r['inertia']:.8g}", f"{r['excess_percent']:+.3f}"] for name, r in runs.items()]
    _timing.show(["passes", "seconds", "inertia", "excess %"], table)
    equal = {}
    for p in lengths:
        theirs_run = runs[f"scikit-learn {p}"]
        within = [r for n, r in runs.items() if n.startswith("jaxem") and r["seconds"] <= theirs_run["seconds"]]
        found = min((r["excess_percent"] for r in within), default=None)
        equal[p] = {"seconds": theirs_run["seconds"], "jaxem": found, "scikit-learn": theirs_run["excess_percent"]}
        shown = "no run that short" if found is None else f"{found:+.3f} %"
        seconds, other = theirs_run["seconds"], theirs_run["excess_percent"]
        print(f"  within {seconds:.3g} s: jaxem {shown}, scikit-learn {other:+.3f} %")
    agree = all(np.isfinite(r["inertia"]) and r["excess_percent"] < 50 for r in runs.values())
    print("" if agree else "  DISAGREE\n")
    return {"case": title, "agree": agree, "least_inertia": least, "contenders": runs, "equal_time": equal}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs both cases, prints tables and returns the report."""
    args = _timing.arguments(__doc__.splitlines()[0], argv)
    report: dict[str, Any] = {"benchmark": "online", **_timing.environment(), "cases": []}
    _timing.header("Online EM and minibatch K-means", report)
    for name, case, wide in (("mixture", mixture_case, True), ("kmeans", kmeans_case, False)):
        if args.only in name:
            with jax.enable_x64(wide), _timing.quiet_peers():
                report["cases"].append(case(args.sizes, args.repeats))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
