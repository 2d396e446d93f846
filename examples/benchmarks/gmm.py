"""Gaussian mixtures with full covariance: time of one EM iteration, against scikit-learn and gmmx.

All start at the same parameters and take the same number of steps. One iteration is the difference between fits of two
lengths, divided by the steps between them, so that what a fit costs besides its steps (checks, binding, the last
E-step) is left out; whole fits are in the JSON. float32 cases run with JAX's x64 mode off, float64 cases with it on.

    python examples/benchmarks/gmm.py --sizes full
    python examples/benchmarks/gmm.py --memory          # 2,000,000 x 16, K = 64, diagonal: peak resident memory
"""

import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import _timing
import jax
import jax.numpy as jnp
import numpy as np

import jaxem

# A bound that no change is below, so that fits take exactly max_steps steps.
NEVER = jaxem.Stop(atol=-np.inf)


class Case(NamedTuple):
    """N rows, D columns, K components, fits of `short` and `long` steps."""

    rows: int
    columns: int
    components: int
    short: int
    long: int


CASES = {
    "toy": [Case(300, 2, 2, 1, 41)],
    "small": [Case(10_000, 2, 4, 10, 110), Case(20_000, 8, 4, 5, 25), Case(100_000, 4, 8, 2, 10)],
    "full": [
        Case(10_000, 2, 4, 10, 110),
        Case(20_000, 8, 4, 5, 25),
        Case(100_000, 4, 8, 2, 10),
        Case(100_000, 16, 16, 1, 5),
    ],
}


class Start(NamedTuple):
    """Starting parameters: mixing (K,), mean (K, D), covariance (K, D, D)."""

    mixing: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


def make_data(case: Case, dtype: Any) -> tuple[np.ndarray, Start]:
    """Overlapping clusters of different shapes, and a start: K rows, equal mixing, the data's variances."""
    rng = np.random.default_rng(0)
    dim, num = case.columns, case.components
    label = rng.integers(num, size=case.rows)
    factor = np.eye(dim) + 0.5 * rng.standard_normal((num, dim, dim)) / np.sqrt(dim)
    centre = 2.0 * rng.standard_normal((num, dim))
    x = rng.standard_normal((case.rows, dim))
    for k in range(num):
        x[label == k] = x[label == k] @ factor[k].T + centre[k]
    x = x.astype(dtype)
    mean = x[rng.choice(case.rows, num, replace=False)]
    covariance = np.broadcast_to(np.diag(x.var(0)), (num, dim, dim)).astype(dtype)
    return x, Start(np.full(num, 1 / num, dtype), mean, covariance)


def use_jaxem(x: np.ndarray, start: Start, steps: int) -> Callable[[], jaxem.Fit]:
    model, data, key = jaxem.GMM(start.mixing.size), jnp.asarray(x), jax.random.key(0)
    params = model.make_params(start.mixing, mean=jnp.asarray(start.mean), covariance=jnp.asarray(start.covariance))
    return _timing.strict(lambda: jaxem.fit(model, data, key=key, params=params, stop=NEVER, max_steps=steps))


def use_sklearn(x: np.ndarray, start: Start, steps: int) -> Callable[[], Any]:
    from sklearn.mixture import GaussianMixture

    precision = np.linalg.inv(start.covariance)
    return lambda: GaussianMixture(
        start.mixing.size,
        tol=0,
        reg_covar=1e-6,
        max_iter=steps,
        weights_init=start.mixing,
        means_init=start.mean,
        precisions_init=precision,
    ).fit(x)


def use_gmmx(x: np.ndarray, start: Start, steps: int) -> Callable[[], Any]:
    """For float32 only: gmmx takes nothing else."""
    from gmmx import EMFitter, GaussianMixtureModelJax

    model = GaussianMixtureModelJax.from_squeezed(
        jnp.asarray(start.mean), jnp.asarray(start.covariance), jnp.asarray(start.mixing)
    )
    data, fitter = jnp.asarray(x), EMFitter(max_iter=steps, tol=-1.0, reg_covar=1e-6)
    return lambda: fitter.fit(data, model)


USE = {"jaxem": use_jaxem, "scikit-learn": use_sklearn, "gmmx": use_gmmx}


def outcome(name: str, result: Any, x: np.ndarray) -> tuple[float, int, str]:
    """Mean log-likelihood (nats per row) of the final parameters, steps behind them, and how the fit ended."""
    if name == "jaxem":
        status = jaxem.Status(int(result.status)).name
        return float(result.elbo.data) / x.shape[0], int(result.num_steps), status
    if name == "scikit-learn":
        return float(result.score(x)), int(result.n_iter_), "-"
    return float(jnp.mean(result.gmm.score_samples(jnp.asarray(x)))), int(result.n_iter), "-"


def run_case(case: Case, dtype: Any, names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Times one case at one dtype, prints a table and returns it."""
    x, start = make_data(case, dtype)
    lengths = (case.short, case.long)
    calls = {f"{name} {steps}": USE[name](x, start, steps) for name in names for steps in lengths}
    required = [call for call in calls if not call.startswith("gmmx")]
    timings = _timing.interleave(calls, repeats, required)
    contenders: dict[str, dict[str, Any]] = {}
    for name in names:
        if any(f"{name} {steps}" not in timings for steps in lengths):
            continue
        short, long = (timings[f"{name} {steps}"] for steps in lengths)
        each = [(b - a) / (case.long - case.short) for a, b in zip(short.turns, long.turns, strict=True)]
        score, steps, status = outcome(name, long.result, x)
        contenders[name] = {
            "iteration_ms": 1e3 * statistics.median(each),
            "fit_ms": 1e3 * long.median,
            "compile_s": long.compile,
            "mean_log_prob": score,
            "steps": steps,
            "status": status,
        }
    ours = contenders["jaxem"]
    agree = all(
        _timing.close(c["mean_log_prob"], ours["mean_log_prob"], 1e-4) and c["steps"] == case.long
        for c in contenders.values()
    )
    title = f"{case.rows} x {case.columns}, K={case.components}, full, {np.dtype(dtype).name}, {case.long} steps"
    print(title)
    rows = []
    for name, c in contenders.items():
        c["ratio"] = c["iteration_ms"] / ours["iteration_ms"]
        compile_s = "-" if name == "scikit-learn" else c["compile_s"]
        rows.append(
            [name, c["iteration_ms"], c["ratio"], c["fit_ms"], compile_s, f"{c['mean_log_prob']:.6f}", c["status"]]
        )
    _timing.show(["", "ms/iteration", "ratio", "whole fit ms", "compile s", "mean log p", "status"], rows)
    print("" if agree and ours["status"] == "MAX_STEPS" else "  DISAGREE\n")
    return {"case": title, "agree": agree and ours["status"] == "MAX_STEPS", "contenders": contenders}


def resident_mb() -> float:
    """Largest resident set of this process so far, in MB; the host's memory, whatever the backend."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def memory_case(sizes: str) -> dict[str, Any]:
    """Fits a large diagonal mixture in chunks and reports the peak resident memory."""
    rows, dim, num = (20_000, 4, 8) if sizes == "toy" else (2_000_000, 16, 64)
    before = resident_mb()
    rng = np.random.default_rng(0)
    centre = 3 * rng.standard_normal((num, dim), np.float32)
    host = np.empty((rows, dim), np.float32)
    for piece in np.array_split(host, max(1, rows // 50_000)):  # views: filled in place, no second copy
        rng.standard_normal(out=piece, dtype=np.float32)
        piece += centre[rng.integers(num, size=piece.shape[0])]
    data = jnp.asarray(host)
    del host
    held = resident_mb()
    model = jaxem.chunked(jaxem.GMM(num, "diag"), 50_000)
    call = _timing.strict(lambda: jaxem.fit(model, data, key=jax.random.key(0), stop=NEVER, max_steps=3))
    seconds, result = _timing._timed(call)
    peak = resident_mb()
    title = f"memory: {rows} x {dim}, K={num}, diag, float32, 3 steps, chunks of 50,000 rows"
    print(title)
    print(
        f"  data {data.nbytes / 1e6:.0f} MB, responsibilities would be {4e-6 * rows * num:.0f} MB; "
        f"first fit {seconds:.1f} s"
    )
    print(f"  peak resident: {before:.0f} MB before the data, {held:.0f} MB with them, {peak:.0f} MB after the fit")
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        print(f"  peak on the device: {stats['peak_bytes_in_use'] / 1e6:.0f} MB")
    agree = result.restarts.counts() == {"MAX_STEPS": 1} and int(result.num_steps) == 3
    return {
        "case": title,
        "agree": agree,
        "seconds": seconds,
        "resident_mb": {"before": before, "with_data": held, "after_fit": peak},
        "device_peak_bytes": stats.get("peak_bytes_in_use"),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report."""
    args = _timing.arguments(__doc__.splitlines()[0], argv, memory="measure peak memory instead of time")
    report: dict[str, Any] = {"benchmark": "gmm", **_timing.environment(), "cases": []}
    _timing.header("Gaussian mixtures, full covariance: one EM iteration", report)
    if args.memory:
        with jax.enable_x64(False):
            report["cases"].append(memory_case(args.sizes))
        return _timing.finish(report, args.json)
    names = ["jaxem", "scikit-learn", *_timing.installed({"gmmx": ("gmmx", "gmmx")})]
    if "gmmx" in names:
        print("SKIPPED gmmx in float64: it takes float32 only")
    for case in CASES[args.sizes]:
        for dtype in (np.float32, np.float64):
            if args.only not in f"{case.rows}x{case.columns} {np.dtype(dtype).name}":
                continue
            able = [name for name in names if name != "gmmx" or dtype is np.float32]
            with jax.enable_x64(dtype is np.float64), _timing.quiet_peers():
                report["cases"].append(run_case(case, dtype, able, args.repeats))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
