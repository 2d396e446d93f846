"""What a person waits for: first calls in a fresh process, with and without the cache of compiled programs.

Each case is a process of its own, that fits a model and then asks the fit; nothing has been compiled before, and what
is counted begins after imports and JAX's own start. Processes take turns, so that neighbours on the machine slow all
alike; the least of the turns is shown. CPU seconds suffer less from neighbours than seconds.

    python examples/benchmarks/first_call.py
    python examples/benchmarks/first_call.py --against FOLDER     # beside the jaxem that lies there
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np

import jaxem

ROOT = pathlib.Path(jaxem.__path__[0]).parent
COMPILED, LOADED = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
KEY = jax.random.key(0)
CASES: dict[str, dict[str, Callable[..., Any]]] = {}


@functools.cache
def iris() -> np.ndarray:
    """(150, 4) float32."""
    from sklearn.datasets import load_iris

    return load_iris().data.astype(np.float32)


@functools.cache
def counts() -> np.ndarray:
    """(150, 2) counts of two groups, float32."""
    rate = np.repeat([[2.0, 5.0], [9.0, 1.0]], 75, 0)
    return np.random.default_rng(0).poisson(rate).astype(np.float32)


def _asked(data: Callable[[], Any], *names: str) -> dict[str, Callable[..., Any]]:
    """Calls of a fit by name: questions about its rows, draws, and criteria."""
    drawn = {"sample": lambda fit: fit.sample(100, key=KEY), "draw": lambda fit: fit.draw(key=KEY)}
    chosen = {"bic": lambda fit: jaxem.bic(fit, data())}
    about = lambda name: lambda fit: getattr(fit, name)(data())
    return {name: {**drawn, **chosen}.get(name) or about(name) for name in names}


def _case(name: str, model: Callable[[], Any], data: Callable[[], Any], *asked: str, **options: Any) -> None:
    fit = lambda _: jaxem.fit(model(), data(), key=KEY, **options)
    CASES[name] = {"fit": fit, **_asked(data, *asked)}


def _small_vae() -> Any:
    mlp, likelihood = jaxem.networks.mlp, jaxem.likelihoods.Gaussian()
    return jaxem.VAE(mlp(16, 4), mlp(16, 4), latent_dim=2, likelihood=likelihood)


_case("GMM(3)", lambda: jaxem.GMM(3), iris, "predict", "posterior", "log_prob", "sample", "bic")
_case("GMM(3), 16 restarts", lambda: jaxem.GMM(3), iris, num_restarts=16)
_case("KMeans(3), 16 restarts", lambda: jaxem.KMeans(3), iris, "predict", num_restarts=16)
_case("BayesianGMM(6)", lambda: jaxem.BayesianGMM(6), iris, "predict", "draw", "sample")
_case("Mixture(Poisson(), 3)", lambda: jaxem.Mixture(jaxem.families.Poisson(), 3), counts, "predict", "bic")
_case("VAE", _small_vae, iris, "encode", "sample", max_steps=3)
# Another covariance after the first: what programs they share.
CASES["GMM(3), then diag"] = {
    "full": CASES["GMM(3)"]["fit"],
    "diag": lambda _: jaxem.fit(jaxem.GMM(3, "diag"), iris(), key=KEY),
    "num_restarts=4": lambda _: jaxem.fit(jaxem.GMM(3, "diag"), iris(), key=KEY, num_restarts=4),
    "max_steps=50": lambda _: jaxem.fit(jaxem.GMM(3, "diag"), iris(), key=KEY, max_steps=50),
}
SIZES = {"toy": ["KMeans(3), 16 restarts"], "small": list(CASES), "full": list(CASES)}


def probe(name: str) -> list[dict[str, Any]]:
    """In this process, which must be fresh: CPU seconds, seconds and programs of each call of a case."""
    seen: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **more: seen.append(event))
    jax.monitoring.register_event_listener(lambda event, **more: seen.append(event))
    jnp.zeros(()).block_until_ready()
    iris(), counts()
    found, fit = [], None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call, function in CASES[name].items():
            seen.clear()
            cpu, began = time.process_time(), time.perf_counter()
            out = jax.block_until_ready(function(fit))
            took = {"cpu": time.process_time() - cpu, "seconds": time.perf_counter() - began}
            found.append({"call": call, **took, "programs": seen.count(COMPILED), "loaded": seen.count(LOADED)})
            fit = out if isinstance(out, jaxem.Fit) else fit
    return found


def spawn(name: str, root: pathlib.Path, cache: str = "") -> list[dict[str, Any]]:
    """The probe in a process of its own, of the jaxem that lies in the folder `root`."""
    environment = {key: value for key, value in os.environ.items() if "CACHE" not in key}
    environment["PYTHONPATH"] = str(root)
    command = [sys.executable, __file__, "--probe", name, "--cache", cache]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name} of {root}: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not pathlib.Path(found["package"]).is_relative_to(root):
        raise RuntimeError(f"{root}: expected a folder with jaxem in it, which Python then imports")
    return found["calls"]


def run_case(name: str, repeats: int, before: pathlib.Path | None) -> dict[str, Any]:
    """Runs one case in turns, prints its table and returns it."""
    sides = {"now": (ROOT, "")} | ({} if before is None else {"before": (before, "")})
    turns: dict[str, list[list[dict[str, Any]]]] = {side: [] for side in (*sides, "cached")}
    with tempfile.TemporaryDirectory() as folder:
        spawn(name, ROOT, folder)
        for turn in range(repeats):
            order = [*sides.items(), ("cached", (ROOT, folder))]
            for side, (root, cache) in order if turn % 2 == 0 else order[::-1]:
                turns[side].append(spawn(name, root, cache))
    calls: dict[str, Any] = {}
    for place, call in enumerate(CASES[name]):
        least = lambda side, what, place=place: min(turn[place][what] for turn in turns[side])
        calls[call] = {side: {w: least(side, w) for w in ("cpu", "seconds", "programs", "loaded")} for side in turns}
    print(name)
    columns = [f"{what} {side}" for side in turns for what in ("CPU s", "s", "programs")]
    rows = []
    for call, found in calls.items():
        ratio = f"{found['now']['cpu'] / found['before']['cpu']:.2f}" if before else "-"
        row: list[Any] = [call]
        for f in found.values():
            row += [f"{f['cpu']:.2f}", f"{f['seconds']:.2f}", f["programs"] - f["loaded"]]
        rows.append([*row, ratio, f"{found['cached']['cpu'] / found['now']['cpu']:.2f}"])
    _timing.show(["", *columns, "now / before", "cached / now"], rows)
    print()
    cached = [found["cached"] for found in calls.values()]
    return {"case": name, "agree": all(f["programs"] == f["loaded"] for f in cached), "calls": calls}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report; a case agrees where a second process compiles nothing."""
    parser = _timing.parser(__doc__.splitlines()[0])
    parser.add_argument("--against", type=pathlib.Path, metavar="FOLDER", help="a folder with another jaxem in it")
    parser.add_argument("--probe", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="", help=argparse.SUPPRESS)
    args = _timing.parsed(parser, argv)
    report: dict[str, Any] = {"benchmark": "first_call", **_timing.environment(), "cases": []}
    if args.probe:
        if args.cache:
            jaxem.cache(args.cache)
        print(json.dumps({"package": str(pathlib.Path(jaxem.__file__)), "calls": probe(args.probe)}))
        return report | {"agree": True}
    print("First calls in a fresh process, beyond imports: CPU seconds, seconds, and programs compiled")
    print(f"{report['device']}, {report['cpus']} CPUs, Python {report['python']}, jax {report['versions']['jax']}\n")
    for name in SIZES[args.sizes]:
        if args.only in name:
            before = None if args.against is None else args.against.absolute()
            report["cases"].append(run_case(name, args.repeats, before))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
