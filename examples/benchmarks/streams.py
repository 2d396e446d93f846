"""Fits of a stream on disk, against others that hold all rows in memory, and against partial_fit over the same stream.

float32 rows of 8 overlapping clusters in a .npy file, and one start for all. Mixture: diagonal covariances, a fixed
number of EM steps, against scikit-learn's `GaussianMixture` of the rows in float64; K-means: as many Lloyd steps,
against scikit-learn's `KMeans` and faiss. Time to the same objective: jaxem and what takes the same steps run them all;
`MiniBatchKMeans` takes batches of the stream by `partial_fit` until its inertia on all rows is within 1 % of that, or
for as many passes. Its time is that of the passes alone. First calls, with what compiles, are told apart from the
median of later ones.

Objectives are computed for all by one function, in float64, from the params that each returned. With --sizes full a
process of its own fits 8,000,000 x 32 rows (1 GB) and tells how far its peak of resident memory is above the import.

    python examples/benchmarks/streams.py --sizes full
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import kmeans
import numpy as np

import jaxem
from jaxem.models.kmeans import KMeansParams

NEVER = jaxem.Stop(atol=-np.inf)
# Rows, columns, components, steps.
CASES = {"toy": (2_000, 4, 3, 3), "small": (200_000, 16, 8, 10), "full": (1_000_000, 16, 8, 10)}
# Of the process whose memory is measured.
LARGE = (8_000_000, 32, 8, 3)


def write_rows(path: pathlib.Path, rows: int, columns: int) -> None:
    """A .npy file of rows, written in parts."""
    rng = np.random.default_rng(0)
    centre = np.float32(2 * rng.standard_normal((8, columns)))
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, columns))
    for i in range(0, rows, 500_000):
        part = out[i : i + 500_000]
        part[:] = centre[rng.integers(8, size=len(part))] + rng.standard_normal(part.shape, np.float32)
    out.flush()


def mean_log_prob(x: np.ndarray, mixing: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> float:
    """Nats a row under a mixture of diagonal Gaussians, in float64."""
    mixing, mean, variance = (np.asarray(a, np.float64) for a in (mixing, mean, variance))
    total = 0.0
    for block in np.array_split(x, max(1, len(x) // 100_000)):
        block, precision = block.astype(np.float64), 1 / variance
        square = block**2 @ precision.T - 2 * block @ (mean * precision).T + (mean**2 * precision).sum(1)
        log_joint = np.log(mixing) - 0.5 * (square + np.log(2 * np.pi * variance).sum(1))
        total += float(np.logaddexp.reduce(log_joint, 1).sum())
    return total / len(x)


def mixture_case(path: pathlib.Path, num: int, steps: int, repeats: int) -> dict[str, Any]:
    """The same EM steps of a stream, of rows in memory, and by scikit-learn."""
    from sklearn.mixture import GaussianMixture

    x = np.load(path)
    mean = x[np.random.default_rng(1).choice(len(x), num, replace=False)]
    wide = np.broadcast_to(x.var(0), mean.shape)
    model, share = jaxem.GMM(num, "diag"), np.full(num, 1 / num, np.float32)
    params = model.make_params(jnp.asarray(share), mean=jnp.asarray(mean), covariance=jnp.asarray(wide))
    options = {"key": jax.random.key(0), "params": params, "stop": NEVER, "max_steps": steps}
    held = jnp.asarray(x)
    # In float64: of a million rows of float32 its sums, one row after the other, lose 0.02 nats a row in ten steps.
    wide_x, wide_mean = x.astype(np.float64), mean.astype(np.float64)
    settings = {"covariance_type": "diag", "tol": 0, "max_iter": steps, "means_init": wide_mean}
    settings |= {"weights_init": np.full(num, 1 / num), "precisions_init": 1 / wide.astype(np.float64)}
    calls = {
        "jaxem, stream": lambda: jaxem.fit(model, jaxem.stream(path), **options),
        "jaxem, memory": lambda: jaxem.fit(model, held, **options),
        "scikit-learn, memory": lambda: GaussianMixture(num, **settings).fit(wide_x),
    }
    found = {}
    for name, timing in _timing.interleave(calls, repeats, list(calls)).items():
        fit = timing.result
        if name.startswith("jaxem"):
            components = fit.params.components
            got = fit.params.mixing, components.mean, np.diagonal(components.covariance, axis1=1, axis2=2)
        else:
            got = fit.weights_, fit.means_, fit.covariances_
        found[name] = {"first": timing.first, "seconds": timing.median, "objective": mean_log_prob(x, *got)}
    return told(f"mixture, {len(x)} x {x.shape[1]}, K = {num}, {steps} steps: nats a row", found, 1e-4)


def kmeans_case(path: pathlib.Path, num: int, steps: int, repeats: int) -> dict[str, Any]:
    """The same Lloyd steps of a stream, of rows in memory, by scikit-learn and faiss; and partial_fit."""
    from sklearn.cluster import KMeans

    x = np.load(path)
    start = x[np.random.default_rng(1).choice(len(x), num, replace=False)]
    params = KMeansParams(jnp.asarray(start), jnp.zeros((), jnp.int32))
    options = {"key": jax.random.key(0), "params": params, "stop": NEVER, "max_steps": steps, "algorithm": jaxem.EM()}
    held, one = jnp.asarray(x), {"n_init": 1, "tol": 0.0, "init": start}
    calls: dict[str, Callable[[], Any]] = {
        "jaxem, stream": lambda: jaxem.fit(jaxem.KMeans(num), jaxem.stream(path), **options).params.centroids,
        "jaxem, memory": lambda: jaxem.fit(jaxem.KMeans(num), held, **options).params.centroids,
        "scikit-learn, memory": lambda: KMeans(num, max_iter=steps, **one).fit(x).cluster_centers_,
    }
    if _timing.installed({"faiss": ("faiss", "faiss-cpu")}):
        calls["faiss, memory"] = kmeans.use_faiss(kmeans.Case("", *x.shape, num, 1, steps), x, start[None])  # type: ignore[assignment]
    found = {}
    for name, timing in _timing.interleave(calls, repeats, list(calls)).items():
        centroids = timing.result.centroids if name.startswith("faiss") else timing.result
        found[name] = {
            "first": timing.first,
            "seconds": timing.median,
            "objective": kmeans.inertia(x, np.asarray(centroids)) / len(x),
        }
    case = told(f"K-means, {len(x)} x {x.shape[1]}, K = {num}, {steps} steps: inertia a row", found, 1e-3)
    return case | {"partial_fit": partial_fit(path, x, start, found["jaxem, stream"]["objective"], steps)}


def partial_fit(path: pathlib.Path, x: np.ndarray, start: np.ndarray, target: float, passes: int) -> dict[str, Any]:
    """Passes of scikit-learn over the stream until it is within 1 % of an inertia a row."""
    from sklearn.cluster import MiniBatchKMeans

    model, seconds, trace = MiniBatchKMeans(len(start), init=start, n_init=1, random_state=0), 0.0, []
    while len(trace) < passes and (not trace or trace[-1] > 1.01 * target):
        began = time.perf_counter()
        for batch in jaxem.stream(path).read():
            model.partial_fit(batch.data)
        seconds += time.perf_counter() - began
        trace.append(kmeans.inertia(x, model.cluster_centers_) / len(x))
    ended = "within" if trace[-1] <= 1.01 * target else "not within"
    print(
        f"  MiniBatchKMeans.partial_fit of the stream: {ended} 1 % after {len(trace)} passes, {seconds:.3g} s, at "
        f"{100 * (trace[-1] / target - 1):+.2f} %\n"
    )
    return {"seconds": seconds, "inertia": trace}


def told(title: str, found: dict[str, dict[str, float]], tolerance: float) -> dict[str, Any]:
    """Prints a case; contenders agree where their objectives do."""
    ours = found["jaxem, stream"]
    print(title)
    _timing.show(
        ["", "first s", "later s", "ratio", "objective"],
        [
            [n, f["first"], f["seconds"], f["seconds"] / ours["seconds"], f"{f['objective']:.8g}"]
            for n, f in found.items()
        ],
    )
    print()
    agree = all(_timing.close(f["objective"], ours["objective"], tolerance) for f in found.values())
    return {"case": title, "agree": agree, "contenders": found}


def most_resident() -> float:
    """Peak of resident memory of this process, MB; of Linux, as others count that of the process that started it."""
    status = pathlib.Path("/proc/self/status").read_text()
    return next(float(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def memory(told: str) -> None:
    """What the process does whose memory is measured: imports, then fits."""
    path, num, steps = json.loads(told)
    jnp.zeros(1).block_until_ready()
    before, options = most_resident(), {"stop": NEVER, "max_steps": steps, "num_restarts": 2}
    fit = jaxem.fit(jaxem.GMM(num, "diag"), jaxem.stream(path), key=jax.random.key(0), **options)
    print(json.dumps({"before": before, "peak": most_resident(), "elbo": float(fit.elbo.total), "fit": repr(fit)}))


def memory_case(folder: pathlib.Path) -> dict[str, Any]:
    """Peak resident memory of a streamed fit of 1 GB, in MB above the import."""
    rows, columns, num, steps = LARGE
    path = folder / "large.npy"
    write_rows(path, rows, columns)
    command = [sys.executable, str(pathlib.Path(__file__).resolve()), "--memory", json.dumps([str(path), num, steps])]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    above = found["peak"] - found["before"]
    print(f"memory, {rows} x {columns} float32: {above:.0f} MB above {found['before']:.0f} MB of the import")
    print(f"{found['fit']}\n")
    return {"case": "memory", "agree": bool(np.isfinite(found["elbo"])), "above_mb": above, **found}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report."""
    args = _timing.arguments(__doc__.splitlines()[0], argv)
    report: dict[str, Any] = {"benchmark": "streams", **_timing.environment(), "cases": []}
    _timing.header("Streams", report)
    rows, columns, num, steps = CASES[args.sizes]
    with tempfile.TemporaryDirectory() as name, jax.enable_x64(False), _timing.quiet_peers():
        path = pathlib.Path(name) / "rows.npy"
        write_rows(path, rows, columns)
        for case in (mixture_case, kmeans_case):
            if args.only in case.__name__:
                report["cases"].append(case(path, num, steps, args.repeats))
        if args.sizes == "full" and args.only in "memory":
            report["cases"].append(memory_case(pathlib.Path(name)))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        memory(sys.argv[2])
        sys.exit()
    sys.exit(not main()["agree"])
