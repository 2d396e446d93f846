"""Many restarts of one Gaussian mixture: the table of `jaxem.fit` against scikit-learn, vmap and lax.map.

GMM, full covariance, K=3, on iris, float64. jaxem, vmap and lax.map run the same starts, restart i from
fold_in(key, i), under the same rule: a step changes the objective by at most 1e-8 nats per row, at most 500 steps.
scikit-learn starts from its own k-means runs or random rows (n_init) and stops by the nearest rule it has: the mean
log-likelihood changes by less than tol = 1e-8; its restarts are counted in a second, untimed, loop of single fits.
k-means starts need about the same number of steps each, cells of random points very different numbers, which is where a
table of lanes differs from vmap.

    python examples/benchmarks/restarts.py --sizes full
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np

import jaxem

# The best optimum without a spike, nats (tests/reference holds it).
OPTIMUM = -180.1855
MAX_STEPS, ATOL, BATCH = 500, 1e-8, 16
SIZES = {
    "toy": [(3, "kmeans")],
    "small": [(64, "kmeans"), (64, "random_points")],
    "full": [(64, "kmeans"), (256, "kmeans"), (256, "random_points")],
}


def one_fit(x: jax.Array, init: str, key: jax.Array) -> jaxem.Fit:
    """One fit from the start that restart i of a table draws from key = fold_in(key, i)."""
    model = jaxem.GMM(3, init_method=init)
    weights = jnp.ones(x.shape[0], x.dtype)
    params = model.bind(x, weights).init(key, x, weights)
    return jaxem.fit(model, x, key=key, params=params, stop=jaxem.Stop(atol=ATOL), max_steps=MAX_STEPS)


@partial(jax.jit, static_argnums=(2, 3))
def naive_vmap(x: jax.Array, key: jax.Array, num: int, init: str) -> jaxem.Fit:
    """All restarts side by side until the slowest ends."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num))
    return jax.vmap(partial(one_fit, x, init))(keys)


@partial(jax.jit, static_argnums=(2, 3))
def lax_map(x: jax.Array, key: jax.Array, num: int, init: str) -> jaxem.Fit:
    """Batches of 16 side by side, each until its slowest ends."""
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num))
    return jax.lax.map(partial(one_fit, x, init), keys, batch_size=min(BATCH, num))


def sklearn_mixture(num: int, init: str, seed: int) -> Any:
    from sklearn.mixture import GaussianMixture

    starts = "kmeans" if init == "kmeans" else "random_from_data"
    return GaussianMixture(3, n_init=num, tol=ATOL, max_iter=MAX_STEPS, init_params=starts, random_state=seed)


def make_calls(x: np.ndarray, num: int, init: str) -> dict[str, Callable[[], Any]]:
    """The contenders."""
    data, key, model = jnp.asarray(x), jax.random.key(0), jaxem.GMM(3, init_method=init)
    stop = jaxem.Stop(atol=ATOL)
    return {
        "jaxem": _timing.strict(
            lambda: jaxem.fit(model, data, key=key, stop=stop, max_steps=MAX_STEPS, num_restarts=num)
        ),
        "vmap": _timing.strict(lambda: naive_vmap(data, key, num, init)),
        "lax.map": _timing.strict(lambda: lax_map(data, key, num, init)),
        "scikit-learn": lambda: sklearn_mixture(num, init, 0).fit(x),
    }


def fates(name: str, result: Any, x: np.ndarray, num: int, init: str) -> tuple[np.ndarray, dict[str, int], np.ndarray]:
    """Log-likelihood (nats), number by status, and number of steps of every restart."""
    if name == "scikit-learn":
        runs = [sklearn_mixture(1, init, seed).fit(x) for seed in range(num)]
        ended = Counter("CONVERGED" if run.converged_ else "MAX_STEPS" for run in runs)
        return np.array([run.score(x) for run in runs]) * x.shape[0], dict(ended), np.array([r.n_iter_ for r in runs])
    if name == "jaxem":
        result = result.restarts
    counts = Counter(jaxem.Status(code).name for code in np.asarray(result.status).tolist())
    return np.asarray(result.elbo.data), dict(counts), np.asarray(result.num_steps)


def run_case(x: np.ndarray, num: int, init: str, repeats: int) -> dict[str, Any]:
    """Times one number of restarts, prints a table and returns it."""
    title = f"iris 150 x 4, K=3, full, float64, {num} restarts from {init}"
    print(title)
    calls = make_calls(x, num, init)
    timings = _timing.interleave(calls, repeats, list(calls))
    contenders: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        log_prob, statuses, steps = fates(name, timing.result, x, num, init)
        honest = log_prob[log_prob < OPTIMUM + 0.01]
        contenders[name] = {
            "seconds": timing.median,
            "ratio": timing.median / timings["jaxem"].median,
            "compile_s": timing.compile,
            "best_below_spikes": float(honest.max(initial=-np.inf)),
            "at_optimum": int((np.abs(log_prob - OPTIMUM) < 0.01).sum()),
            "above_optimum": int((log_prob >= OPTIMUM + 0.01).sum()),
            "mean_steps": float(steps.mean()),
            "most_steps": int(steps.max()),
            "statuses": statuses,
        }
    rows = []
    for name, c in contenders.items():
        compile_s = "-" if name == "scikit-learn" else c["compile_s"]
        at = f"{c['at_optimum']}/{num}"
        steps = f"{c['mean_steps']:.0f}/{c['most_steps']}"
        fate = ", ".join(f"{n} {status}" for status, n in sorted(c["statuses"].items()))
        rows.append(
            [
                name,
                c["seconds"],
                c["ratio"],
                compile_s,
                f"{c['best_below_spikes']:.4f}",
                at,
                c["above_optimum"],
                steps,
                fate,
            ]
        )
    _timing.show(
        ["", "seconds", "ratio", "compile s", "best", f"at {OPTIMUM}", "above", "mean/most steps", "ended"], rows
    )
    # The same starts under the same rule: the three ways through jaxem must tell the same story.
    ours = [contenders[name] for name in ("jaxem", "vmap", "lax.map")]
    agree = len({(c["at_optimum"], c["above_optimum"], tuple(sorted(c["statuses"].items()))) for c in ours}) == 1
    winner = float(timings["jaxem"].result.elbo.data)
    agree &= _timing.close(winner, ours[1]["best_below_spikes"], 1e-6)
    print("" if agree else "  DISAGREE\n")
    return {"case": title, "agree": agree, "winner": winner, "contenders": contenders}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report."""
    from sklearn.datasets import load_iris

    args = _timing.arguments(__doc__.splitlines()[0], argv)
    report: dict[str, Any] = {"benchmark": "restarts", **_timing.environment(), "cases": []}
    _timing.header("Restarts of a Gaussian mixture to convergence", report)
    for num, init in SIZES[args.sizes]:
        if args.only in f"{num} {init}":
            with jax.enable_x64(True), _timing.quiet_peers():
                report["cases"].append(run_case(load_iris().data, num, init, args.repeats))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
