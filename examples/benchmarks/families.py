"""Latent classes (Bernoulli) and Poisson mixtures: time of one EM iteration, against StepMix and a plain NumPy EM.

All start at the same parameters and take the same number of steps. One iteration is the difference between fits of two
lengths, divided by the steps between them, so that what a fit costs besides its steps is left out. "First result" is
the first call of the long fit, compilation included: what someone waits who fits once. float32 cases run with JAX's
x64 mode off, float64 cases with it on. StepMix knows binary items and no counts.

    python examples/benchmarks/families.py --sizes full
"""

import contextlib
import importlib.metadata
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import _timing
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

import jaxem

# A bound that no change is below, so that fits take exactly max_steps steps.
NEVER = jaxem.Stop(atol=-np.inf)


class Case(NamedTuple):
    """N rows, D columns, K components of a family, fits of `short` and `long` steps."""

    family: str
    rows: int
    columns: int
    components: int
    short: int
    long: int


SMALL = [
    Case("Bernoulli", 1000, 8, 3, 10, 210),
    Case("Bernoulli", 100_000, 10, 4, 2, 12),
    Case("Poisson", 1000, 4, 3, 10, 210),
    Case("Poisson", 100_000, 4, 4, 2, 12),
]
CASES = {
    "toy": [Case("Bernoulli", 300, 4, 2, 1, 21), Case("Poisson", 300, 2, 2, 1, 21)],
    "small": SMALL,
    "full": [*SMALL, Case("Bernoulli", 1_000_000, 20, 8, 1, 4), Case("Poisson", 1_000_000, 8, 8, 1, 4)],
}


class Start(NamedTuple):
    """Starting parameters: mixing (K,) and the components' means (K, D), probabilities or rates."""

    mixing: np.ndarray
    mean: np.ndarray


def make_data(case: Case, dtype: Any) -> tuple[np.ndarray, Start]:
    """A draw from overlapping components, and a start: equal mixing, means between the truth and the overall mean."""
    rng = np.random.default_rng(0)
    label = rng.integers(case.components, size=case.rows)
    shape = (case.components, case.columns)
    if case.family == "Bernoulli":
        truth = rng.uniform(0.1, 0.9, shape)
        x = rng.random((case.rows, case.columns)) < truth[label]
    else:
        truth = rng.uniform(1, 12, shape)
        x = rng.poisson(truth[label])
    mean = 0.5 * truth + 0.5 * x.mean(0)
    return x.astype(dtype), Start(np.full(case.components, 1 / case.components, dtype), mean.astype(dtype))


def use_jaxem(case: Case, x: np.ndarray, start: Start, steps: int) -> Callable[[], Any]:
    family, name = {
        "Bernoulli": (jaxem.families.Bernoulli(), "prob"),
        "Poisson": (jaxem.families.Poisson(), "rate"),
    }[case.family]
    model, data, key = jaxem.Mixture(family, case.components), jnp.asarray(x), jax.random.key(0)
    params = model.make_params(start.mixing, **{name: start.mean})
    return _timing.strict(lambda: jaxem.fit(model, data, key=key, params=params, stop=NEVER, max_steps=steps))


def log_prob(family: str, mean: np.ndarray, x: np.ndarray, log_factorial: np.ndarray | float) -> np.ndarray:
    """(N, K) log p(x_n | mean_k)."""
    if family == "Bernoulli":
        return x @ np.log(mean).T + (1 - x) @ np.log1p(-mean).T
    return x @ np.log(mean).T - mean.sum(1) - log_factorial


def numpy_em(family: str, x: np.ndarray, start: Start, steps: int) -> tuple[float, int]:
    """Mean log-likelihood after `steps` steps of the EM that one would write by hand, whole arrays at a time."""
    mixing, mean = start.mixing, start.mean
    log_factorial = gammaln(x + 1).sum(1, keepdims=True) if family == "Poisson" else 0.0
    for step in range(steps + 1):
        log_joint = np.log(mixing) + log_prob(family, mean, x, log_factorial)
        top = log_joint.max(1, keepdims=True)
        resp = np.exp(log_joint - top)
        total = resp.sum(1, keepdims=True)
        if step < steps:
            resp /= total
            count = resp.sum(0)
            mixing, mean = count / count.sum(), resp.T @ x / count[:, None]
    return float((top + np.log(total)).mean()), steps


def use_numpy(case: Case, x: np.ndarray, start: Start, steps: int) -> Callable[[], Any]:
    return lambda: numpy_em(case.family, x, start, steps)


def use_stepmix(case: Case, x: np.ndarray, start: Start, steps: int) -> Callable[[], Any]:
    """StepMix draws its starts itself: a subclass puts the given one in their place, at no cost."""
    from stepmix import StepMix

    class Started(StepMix):
        def _initialize_parameters(self, X: Any, random_state: Any) -> None:
            self.weights_ = np.array(start.mixing, float)
            self._initialize_parameters_measurement(X, random_state, init_emission=False)
            self._mm.set_parameters({"pis": np.array(start.mean, float)})

    options = {"measurement": "binary", "abs_tol": 0.0, "rel_tol": 0.0, "max_iter": steps, "progress_bar": 0}
    return lambda: Started(case.components, **options).fit(x)


USE = {"jaxem": use_jaxem, "NumPy": use_numpy, "StepMix": use_stepmix}


def outcome(name: str, result: Any, x: np.ndarray) -> tuple[float, int]:
    """Mean log-likelihood (nats per row) of the final parameters, and the steps behind them."""
    if name == "jaxem":
        return float(result.elbo.data) / x.shape[0], int(result.num_steps)
    return result if name == "NumPy" else (float(result.score(x)), int(result.n_iter_))


def run_case(case: Case, dtype: Any, names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Times one case at one dtype, prints a table and returns it."""
    x, start = make_data(case, dtype)
    lengths = (case.long, case.short)
    calls = {f"{name} {steps}": USE[name](case, x, start, steps) for name in names for steps in lengths}
    timings = _timing.interleave(calls, repeats, [call for call in calls if not call.startswith("StepMix")])
    contenders: dict[str, dict[str, Any]] = {}
    for name in names:
        if any(f"{name} {steps}" not in timings for steps in lengths):
            continue
        long, short = (timings[f"{name} {steps}"] for steps in lengths)
        each = [(b - a) / (case.long - case.short) for a, b in zip(short.turns, long.turns, strict=True)]
        score, steps = outcome(name, long.result, x)
        contenders[name] = {
            "iteration_ms": 1e3 * statistics.median(each),
            "fit_ms": 1e3 * long.median,
            "first_s": long.first,
            "compile_s": long.compile,
            "mean_log_prob": score,
            "steps": steps,
        }
    ours, rows = contenders["jaxem"], []
    agree = all(
        _timing.close(c["mean_log_prob"], ours["mean_log_prob"], 1e-5) and c["steps"] == case.long
        for c in contenders.values()
    )
    title = f"{case.family} {case.rows} x {case.columns}, K={case.components}, {np.dtype(dtype).name}"
    print(f"{title}, {case.long} steps")
    for name, c in contenders.items():
        c["ratio"] = c["iteration_ms"] / ours["iteration_ms"]
        compile_s = c["compile_s"] if name == "jaxem" else "-"
        rows.append(
            [name, c["iteration_ms"], c["ratio"], c["fit_ms"], c["first_s"], compile_s, f"{c['mean_log_prob']:.6f}"]
        )
    _timing.show(["", "ms/iteration", "ratio", "whole fit ms", "first result s", "compile s", "mean log p"], rows)
    print("" if agree else "  DISAGREE\n")
    return {"case": title, "agree": agree, "contenders": contenders}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report."""
    args = _timing.arguments(__doc__.splitlines()[0], argv)
    report: dict[str, Any] = {"benchmark": "families", **_timing.environment(), "cases": []}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        report["versions"]["stepmix"] = importlib.metadata.version("stepmix")
    _timing.header("Latent classes and Poisson mixtures: one EM iteration", report)
    peers = _timing.installed({"StepMix": ("stepmix", "stepmix")})
    for case in CASES[args.sizes]:
        for dtype in (np.float32, np.float64):
            if args.only not in f"{case.family} {case.rows}x{case.columns} {np.dtype(dtype).name}":
                continue
            names = ["jaxem", "NumPy", *(peers if case.family == "Bernoulli" else [])]
            with jax.enable_x64(dtype is np.float64), _timing.quiet_peers():
                report["cases"].append(run_case(case, dtype, names, args.repeats))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
