"""Variational mixtures: one iteration and many restarts against scikit-learn, and stochastic variational inference.

Iteration: full covariances, a Dirichlet on the proportions, both from the same responsibilities and priors; the
difference between fits of two lengths, divided by the steps between them, as in gmm.py.

Restarts: iris, K = 5, 64 restarts from k-means, both stopping at a change of the ELBO below 1e-3 nats.

Stochastic: a Poisson mixture, batches of 1000, rates (t + 2)^-0.6, the same shuffles and the same start (k-means of
10,000 rows) for jaxem and for a NumPy loop written for this. After every pass both score the ELBO on all rows. NumPyro,
where installed, climbs with the same q, start and batches by gradients (Adam, labels summed out); its seconds are those
of the passes alone, without the scores that the others' include. The shortfall is
(ELBO of the batch optimum - ELBO) / (ELBO of the batch optimum - ELBO of one component).

    python examples/benchmarks/bayesian.py --sizes full
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import _timing
import gmm
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import digamma, gammaln, logsumexp

import jaxem
from jaxem.algorithms import OnlineEM
from jaxem.families import Poisson

NEVER = jaxem.Stop(atol=-np.inf)
CASES = {
    "toy": [gmm.Case(300, 2, 2, 1, 21)],
    "small": [gmm.Case(10_000, 2, 4, 10, 60), gmm.Case(20_000, 8, 4, 5, 25)],
    "full": [gmm.Case(10_000, 2, 4, 10, 60), gmm.Case(20_000, 8, 4, 5, 25), gmm.Case(100_000, 16, 16, 1, 5)],
}
RESTARTS = {"toy": 2, "small": 16, "full": 64}
# Rows, columns, components, passes.
STOCHASTIC = {"toy": (5_000, 4, 4, 3), "small": (100_000, 4, 4, 5), "full": (1_000_000, 4, 4, 5)}
BATCH = 1000


def sklearn_class() -> Any:
    """BayesianGaussianMixture that starts from responsibilities."""
    from sklearn.mixture import BayesianGaussianMixture

    class FromResponsibilities(BayesianGaussianMixture):
        resp: np.ndarray

        def _initialize_parameters(self, X: Any, random_state: Any, **kwargs: Any) -> None:
            self._initialize(X, self.resp)

    return FromResponsibilities


def iteration_case(case: gmm.Case, dtype: Any, repeats: int) -> dict[str, Any]:
    """Milliseconds of one iteration."""
    x, start = gmm.make_data(case, dtype)
    num = case.components
    resp = np.eye(num, dtype=dtype)[((x[:, None] - start.mean) ** 2).sum(-1).argmin(1)]
    scale = np.cov(x.T).astype(dtype)
    model, data, key = jaxem.BayesianGMM(num, inverse_scale=scale), jnp.asarray(x), jax.random.key(0)
    params = model.from_responsibilities(data, jnp.asarray(resp))
    theirs = sklearn_class()

    def sk(steps: int) -> Callable[[], Any]:
        settings = {"weight_concentration_prior_type": "dirichlet_distribution", "tol": 0, "reg_covar": 0.0}
        found = theirs(n_components=num, max_iter=steps, **settings)
        found.resp = resp
        return lambda: found.fit(x)

    def ours(steps: int) -> Callable[[], Any]:
        return _timing.strict(lambda: jaxem.fit(model, data, key=key, params=params, stop=NEVER, max_steps=steps))

    lengths = (case.short, case.long)
    calls = {f"jaxem {n}": ours(n) for n in lengths} | {f"scikit-learn {n}": sk(n) for n in lengths}
    timings, contenders = _timing.interleave(calls, repeats, list(calls)), {}
    for name in ("jaxem", "scikit-learn"):
        short, long = (timings[f"{name} {n}"] for n in lengths)
        each = [(b - a) / (case.long - case.short) for a, b in zip(short.turns, long.turns, strict=True)]
        contenders[name] = {"iteration_ms": 1e3 * statistics.median(each), "compile_s": long.compile}
    fit, sk_fit = timings[f"jaxem {case.long}"].result, timings[f"scikit-learn {case.long}"].result
    # scikit-learn's last E-step gives responsibilities, not an update: both have made `long` updates.
    found = np.asarray(fit.params.components.plug.mean)
    order = np.argsort(-sk_fit.weight_concentration_, kind="stable")
    agree = bool(np.allclose(found, sk_fit.means_[order], atol=0.02 if dtype is np.float32 else 1e-6))
    title = f"{case.rows} x {case.columns}, K={num}, full, {np.dtype(dtype).name}, {case.long} steps"
    print(title)
    table = []
    for name, c in contenders.items():
        c["ratio"] = c["iteration_ms"] / contenders["jaxem"]["iteration_ms"]
        table.append([name, c["iteration_ms"], c["ratio"], c["compile_s"] if name == "jaxem" else "-"])
    _timing.show(["", "ms/iteration", "ratio", "compile s"], table)
    print("" if agree else "  DISAGREE\n")
    return {"case": title, "agree": agree, "contenders": contenders}


def restarts_case(size: str, repeats: int) -> dict[str, Any]:
    """Seconds of many restarts on iris."""
    from sklearn.datasets import load_iris
    from sklearn.mixture import BayesianGaussianMixture

    x, num = load_iris().data, RESTARTS[size]
    model = jaxem.BayesianGMM(5, inverse_scale=np.cov(x.T))
    options = {"key": jax.random.key(0), "num_restarts": num, "stop": jaxem.Stop(atol=1e-3 / 150, rtol=0.0)}
    data = jnp.asarray(x)
    settings = {"weight_concentration_prior_type": "dirichlet_distribution", "tol": 1e-3, "random_state": 0}
    calls = {
        "jaxem": _timing.strict(lambda: jaxem.fit(model, data, max_steps=1000, **options)),
        "scikit-learn": lambda: BayesianGaussianMixture(
            n_components=5, n_init=num, max_iter=1000, reg_covar=0.0, **settings
        ).fit(x),
    }
    timings = _timing.interleave(calls, repeats, list(calls))
    fit, theirs = timings["jaxem"].result, timings["scikit-learn"].result
    resp = theirs.predict_proba(x)
    start = model.from_responsibilities(data, jnp.asarray(resp))
    at = {"jaxem": float(fit.elbo.total)}
    at["scikit-learn"] = float(jaxem.fit(model, data, key=options["key"], params=start, max_steps=0).elbo.total)
    contenders = {
        name: {"seconds": t.median, "ratio": t.median / timings["jaxem"].median, "elbo": at[name]}
        for name, t in timings.items()
    }
    title = f"iris, K=5, full, float64, {num} restarts"
    print(f"{title}: {fit.restarts.counts()}, compile {timings['jaxem'].compile:.1f} s")
    _timing.show(
        ["", "seconds", "ratio", "ELBO"],
        [[n, c["seconds"], c["ratio"], f"{c['elbo']:.4f}"] for n, c in contenders.items()],
    )
    agree = at["jaxem"] >= at["scikit-learn"] - 0.01 and set(fit.restarts.counts()) == {"CONVERGED"}
    print("" if agree else "  DISAGREE\n")
    return {"case": title, "agree": agree, "contenders": contenders}


class NumpyPoisson:
    """Variational Poisson mixture with numpy, as one would write it: Gamma(a0, b0) rates, Dirichlet(c0) proportions."""

    def __init__(self, x: np.ndarray, num: int):
        self.x, self.num = x, num
        self.a0, self.b0, self.c0 = 1.0, 1 / x.mean(0), 1 / num
        self.constant = gammaln(x + 1).sum(1)

    def _update(self, count: np.ndarray, total: np.ndarray) -> None:
        self.c, self.a, self.b = self.c0 + count, self.a0 + total, self.b0 + count[:, None]

    def _e_step(self, rows: Any) -> tuple[np.ndarray, np.ndarray, float]:
        x = self.x[rows]
        log_rate, rate = digamma(self.a) - np.log(self.b), self.a / self.b
        log_joint = (
            x @ log_rate.T - rate.sum(1) + digamma(self.c) - digamma(self.c.sum()) - self.constant[rows][:, None]
        )
        value = logsumexp(log_joint, 1, keepdims=True)
        resp = np.exp(log_joint - value)
        return resp.sum(0), resp.T @ x, float(value.sum())

    def _elbo(self) -> float:
        data = sum(self._e_step(slice(i, i + 10_000))[2] for i in range(0, len(self.x), 10_000))
        a, b, c = self.a, self.b, self.c
        log_rate, rate, log_mixing = digamma(a) - np.log(b), a / b, digamma(c) - digamma(c.sum())
        gamma = (a - self.a0) * log_rate - (b - self.b0) * rate + a * np.log(b) - gammaln(a)
        gamma = gamma - self.a0 * np.log(self.b0) + gammaln(self.a0)
        dirichlet = np.sum((c - self.c0) * log_mixing) + gammaln(c.sum()) - gammaln(c).sum()
        dirichlet = dirichlet - gammaln(self.num * self.c0) + self.num * gammaln(self.c0)
        return float(data - gamma.sum() - dirichlet)

    def score(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
        """ELBO of q, nats."""
        self.a, self.b, self.c = a, b, c
        return self._elbo()

    def numpyro(self, count: np.ndarray, total: np.ndarray, passes: int) -> tuple[list[float], float]:
        """(ELBO before and after each pass of NumPyro's SVI, seconds of its passes)."""
        import _numpyro

        self._update(count, total)
        prior, start = (self.a0, self.b0, self.c0), (self.a, self.b + 0 * self.a, self.c)
        return _numpyro.poisson_svi(self.x, prior, start, BATCH, passes, self.score)

    def run(self, count: np.ndarray, total: np.ndarray, passes: int) -> list[float]:
        """ELBO before and after each pass."""
        self._update(count, total)
        rng, trace, t = np.random.default_rng(0), [self._elbo()], 0
        share = len(self.x) / BATCH
        for _ in range(passes):
            for rows in rng.permutation(len(self.x)).reshape(-1, BATCH):
                rate = (t + 2) ** -0.6
                n, s, _ = self._e_step(rows)
                count, total, t = count + rate * (share * n - count), total + rate * (share * s - total), t + 1
                self._update(count, total)
            trace.append(self._elbo())
        return trace


def stochastic_case(size: str, repeats: int) -> dict[str, Any]:
    """Shortfall and seconds of stochastic variational inference."""
    rows, dim, num, passes = STOCHASTIC[size]
    rng = np.random.default_rng(0)
    rate = rng.gamma(2.0, 4.0, (num, dim))
    x = rng.poisson(rate[rng.choice(num, rows, p=np.array([0.4, 0.3, 0.2, 0.1]))]).astype(float)
    model, data, key = jaxem.BayesianMixture(Poisson(), num), jnp.asarray(x), jax.random.key(0)
    clusters = jaxem.fit(jaxem.KMeans(num), jnp.sqrt(data[:10_000]), key=key, num_restarts=8)
    resp = np.eye(num)[np.asarray(clusters.predict(jnp.sqrt(data)))]
    start = model.from_responsibilities(data, jnp.asarray(resp))
    algorithm = OnlineEM(BATCH, key=jax.random.key(1))
    options = {"key": key, "params": start}
    batch = jaxem.fit(model, data, stop=jaxem.Stop(atol=1e-10), max_steps=2000, **options)
    one = jaxem.fit(jaxem.BayesianMixture(Poisson(), 1), data, key=key)
    best, gain = float(batch.elbo.total), float(batch.elbo.total - one.elbo.total)
    use = lambda a: _timing.strict(lambda: jaxem.fit(model, data, algorithm=a, stop=NEVER, max_steps=passes, **options))
    peer = NumpyPoisson(x, num)
    calls = {
        "coordinate ascent": use(jaxem.EM()),
        "jaxem": use(algorithm),
        "NumPy": lambda: peer.run(resp.sum(0), resp.T @ x, passes),
    }
    timings, contenders = _timing.interleave(calls, repeats, list(calls)), {}
    for name, timing in timings.items():
        trace = timing.result if name == "NumPy" else np.asarray(timing.result.trace)
        short = 100 * (best - np.asarray(trace)) / gain
        contenders[name] = {"seconds": timing.median, "shortfall_percent": short.tolist()}
    for _ in _timing.installed({"NumPyro": ("numpyro", "numpyro")}):
        trace, seconds = peer.numpyro(resp.sum(0), resp.T @ x, passes)
        short = 100 * (best - np.asarray(trace)) / gain
        contenders["NumPyro"] = {
            "seconds": seconds,
            "shortfall_percent": short.tolist(),
        }
    for found in contenders.values():
        found["ratio"] = found["seconds"] / contenders["jaxem"]["seconds"]
    title = f"Poisson mixture {rows} x {dim}, K={num}, float64, batches of {BATCH}, {passes} passes"
    print(f"{title}\n  {gain / rows:.4f} nats per row above one component; shortfall in % of that after passes")
    _timing.show(
        ["", "seconds", "ratio", *map(str, range(passes + 1))],
        [[n, c["seconds"], c["ratio"], *(f"{v:.4f}" for v in c["shortfall_percent"])] for n, c in contenders.items()],
    )
    ends = [contenders[name]["shortfall_percent"][-1] for name in ("jaxem", "NumPy")]
    starts = [found["shortfall_percent"][0] for name, found in contenders.items()]
    agree = max(ends) < 1 and max(starts) - min(starts) < 1e-6
    print("" if agree else "  DISAGREE\n")
    return {"case": title, "agree": agree, "contenders": contenders}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report."""
    args = _timing.arguments(__doc__.splitlines()[0], argv)
    report: dict[str, Any] = {"benchmark": "bayesian", **_timing.environment(), "cases": []}
    _timing.header("Variational mixtures", report)
    for case in CASES[args.sizes]:
        for dtype in (np.float32, np.float64):
            if args.only in f"{case.rows}x{case.columns} {np.dtype(dtype).name}":
                with jax.enable_x64(dtype is np.float64), _timing.quiet_peers():
                    report["cases"].append(iteration_case(case, dtype, args.repeats))
    for name, run in (("restarts", restarts_case), ("stochastic", stochastic_case)):
        if args.only in name:
            with jax.enable_x64(True), _timing.quiet_peers():
                report["cases"].append(run(args.sizes, args.repeats))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
