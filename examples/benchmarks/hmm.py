"""Gaussian hidden Markov models: time of one EM iteration of all restarts, against hmmlearn and dynamax.

All start at the same parameters and take the same number of steps. One iteration is the difference between fits of two
lengths, divided by the steps between them, so that what a fit costs besides its steps is left out. hmmlearn has no
restarts: it loops over them, of many over the first two, whose time is multiplied. It is run in both of its ways, by
logarithms, the default, and by rescaled probabilities. dynamax is vmapped over the restarts; its EM maximises a
posterior, so that its optimum is a little off. float64 for all.

    python examples/benchmarks/hmm.py
    python examples/benchmarks/hmm.py --long      # one sequence of 1,000,000 steps: time of an iteration, memory
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import _timing
import jax
import jax.numpy as jnp
import numpy as np
from gmm import resident_mb

import jaxem

# A bound that no change is below, so that fits take exactly max_steps steps.
NEVER = jaxem.Stop(atol=-np.inf)
# Restarts that hmmlearn is timed on.
LOOPED = 2


class Case(NamedTuple):
    """S sequences of T steps in D columns, K states, R restarts, fits of `short` and `long` steps."""

    sequences: int
    steps: int
    columns: int
    states: int
    covariance: str
    restarts: int
    short: int
    long: int

    @property
    def title(self) -> str:
        """For tables."""
        size = f"{self.sequences} x {self.steps} x {self.columns}, K={self.states}, {self.covariance}"
        return f"{size}, {self.restarts} restart{'s' if self.restarts > 1 else ''}"


SMALL = [
    Case(1, 10_000, 4, 5, "full", 1, 2, 22),
    Case(1, 10_000, 4, 5, "diag", 1, 2, 22),
    Case(300, 200, 4, 5, "diag", 64, 1, 3),
]
CASES = {
    "toy": [Case(3, 20, 2, 2, "diag", 2, 1, 4)],
    "small": SMALL,
    "full": [*SMALL, Case(300, 200, 4, 5, "full", 64, 1, 3), Case(1, 100_000, 8, 10, "diag", 1, 1, 4)],
}


class Starts(NamedTuple):
    """Starting parameters of R restarts: (R, K), (R, K, K), (R, K, D), and variances (D,) for all states."""

    initial: np.ndarray
    transition: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


def make_data(case: Case) -> tuple[np.ndarray, Starts]:
    """Draws (S, T, D) from a chain that mostly stays where it is, and starts at random rows."""
    rng = np.random.default_rng(0)
    num, dim = case.states, case.columns
    mean = 2 * rng.normal(size=(num, dim))
    state = rng.integers(num, size=(case.sequences, case.steps))
    for t in range(1, case.steps):
        stays = rng.random(case.sequences) < 0.9
        state[:, t] = np.where(stays, state[:, t - 1], state[:, t])
    x = mean[state] + rng.normal(size=(*state.shape, dim))
    rows = x.reshape(-1, dim)
    starts = np.stack([rows[rng.choice(len(rows), num, replace=False)] for _ in range(case.restarts)])
    transition = np.full((num, num), 0.2 / num) + 0.8 * np.eye(num)
    each = lambda a: np.broadcast_to(a, (case.restarts, *a.shape))
    return x, Starts(each(np.full(num, 1 / num)), each(transition), starts, rows.var(0))


def covariances(case: Case, starts: Starts) -> np.ndarray:
    """(K, D, D) or (K, D)."""
    one = np.diag(starts.variance) if case.covariance == "full" else starts.variance
    return np.broadcast_to(one, (case.states, *one.shape)).copy()


def use_jaxem(case: Case, x: np.ndarray, starts: Starts, steps: int) -> Callable[[], Any]:
    model = jaxem.HMM(jaxem.Gaussian(case.covariance, pseudo_observations=1e-12), case.states)
    covariance = covariances(case, starts)
    each = [model.make_params(*start, mean=m, covariance=covariance) for *start, m in zip(*starts[:3], strict=True)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) if len(each) > 1 else each[0]
    data, key, num = jnp.asarray(x), jax.random.key(0), case.restarts
    fit = lambda: jaxem.fit(model, data, key=key, params=params, stop=NEVER, max_steps=steps, num_restarts=num)
    return _timing.strict(lambda: fit().restarts.elbo.data)


def use_hmmlearn(implementation: str, case: Case, x: np.ndarray, starts: Starts, steps: int) -> Callable[[], Any]:
    from hmmlearn.hmm import GaussianHMM

    rows, lengths = x.reshape(-1, case.columns), [case.steps] * case.sequences

    def one(r: int) -> float:
        model = GaussianHMM(
            case.states,
            case.covariance,
            n_iter=steps,
            tol=-np.inf,
            init_params="",
            covars_prior=0,
            implementation=implementation,
        )
        model.startprob_, model.transmat_, model.means_ = (np.array(a[r]) for a in starts[:3])
        model.covars_ = covariances(case, starts)
        return model.fit(rows, lengths).monitor_.history[-1]  # of the params before the last step

    return lambda: [one(r) for r in range(min(LOOPED, case.restarts))]


def use_dynamax(case: Case, x: np.ndarray, starts: Starts, steps: int) -> Callable[[], Any]:
    from dynamax.hidden_markov_model import DiagonalGaussianHMM, GaussianHMM

    full = case.covariance == "full"
    model = (GaussianHMM if full else DiagonalGaussianHMM)(case.states, case.columns)
    variance = covariances(case, starts)
    spread = {"emission_covariances": variance} if full else {"emission_scale_diags": np.sqrt(variance)}
    given = ("initial_probs", "transition_matrix", "emission_means")
    each = [
        model.initialize(
            jax.random.key(0), **{n: jnp.asarray(a[r]) for n, a in zip(given, starts, strict=False)}, **spread
        )
        for r in range(case.restarts)
    ]
    props, data = each[0][1], jnp.asarray(x)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[params for params, _ in each])

    @jax.jit
    def fit(params: Any) -> Any:
        def step(carried: Any, _: Any) -> Any:
            params, state = carried
            stats, values = jax.vmap(partial(model.e_step, params))(data)
            return model.m_step(params, props, stats, state), values.sum()

        run = lambda p: jax.lax.scan(step, (p, model.initialize_m_step_state(p, props)), length=steps + 1)[1][-1]
        return jax.vmap(run)(params)

    return lambda: fit(params)


USE: dict[str, Any] = {
    "jaxem": use_jaxem,
    "hmmlearn": partial(use_hmmlearn, "log"),
    "hmmlearn, scaling": partial(use_hmmlearn, "scaling"),
    "dynamax": use_dynamax,
}


def agree(case: Case, name: str, ours: np.ndarray, before: np.ndarray, theirs: Any) -> bool:
    """Whether the log-likelihoods are those of jaxem; hmmlearn's are of the step before."""
    expected = before[: len(theirs)] if name.startswith("hmmlearn") else ours
    tolerance = 1e-2 if name == "dynamax" else 1e-7  # a posterior's mode is another place
    return all(_timing.close(float(a), float(b), tolerance) for a, b in zip(theirs, expected, strict=True))


def run_case(case: Case, names: Sequence[str], repeats: int) -> dict[str, Any]:
    """Times one case, prints a table and returns it."""
    x, starts = make_data(case)
    lengths = (case.long, case.short)
    calls = {f"{name} {steps}": USE[name](case, x, starts, steps) for name in names for steps in lengths}
    timings = _timing.interleave(calls, repeats, [call for call in calls if call.startswith("jaxem")])
    before = np.asarray(USE["jaxem"](case, x, starts, case.long - 1)())
    ours, contenders, rows, same = np.asarray(timings[f"jaxem {case.long}"].result), {}, [], True
    for name in names:
        if any(f"{name} {steps}" not in timings for steps in lengths):
            continue
        long, short = (timings[f"{name} {steps}"] for steps in lengths)
        looped = case.restarts / min(LOOPED, case.restarts) if name.startswith("hmmlearn") else 1
        each = [(b - a) / (case.long - case.short) * looped for a, b in zip(short.turns, long.turns, strict=True)]
        contenders[name] = {"iteration_ms": 1e3 * statistics.median(each), "first_s": long.first}
        same &= name == "jaxem" or agree(case, name, ours, before, long.result)
    for name, c in contenders.items():
        c["ratio"] = c["iteration_ms"] / contenders["jaxem"]["iteration_ms"]
        rows.append([name, c["iteration_ms"], c["ratio"], c["first_s"]])
    print(case.title)
    _timing.show(["", "ms/iteration", "ratio", "first result s"], rows)
    print("" if same else "  DISAGREE\n")
    return {"case": case.title, "agree": same, "contenders": contenders}


def long_case(sizes: str) -> dict[str, Any]:
    """One iteration over a sequence of a million steps, and the memory it takes."""
    case = Case(1, 20_000 if sizes == "toy" else 1_000_000, 4, 5, "diag", 1, 1, 3)
    x, starts = make_data(case)
    held, seconds = resident_mb(), {}
    for steps in (case.long, case.short):
        call = use_jaxem(case, x, starts, steps)
        call()
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds[steps] = time.perf_counter() - began
    each, peak = (seconds[case.long] - seconds[case.short]) / (case.long - case.short), resident_mb()
    print(f"{case.title}: {each:.2f} s an iteration; peak resident {held:.0f} MB with the data, {peak:.0f} MB after\n")
    return {
        "case": case.title,
        "agree": True,
        "iteration_s": each,
        "resident_mb": {"with_data": held, "after_fit": peak},
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report."""
    args = _timing.arguments(__doc__.splitlines()[0], argv, long="one sequence of a million steps instead")
    report: dict[str, Any] = {"benchmark": "hmm", **_timing.environment(), "cases": []}
    _timing.header("Gaussian hidden Markov models: one EM iteration of all restarts", report)
    with jax.enable_x64(True), _timing.quiet_peers():
        if args.long:
            report["cases"].append(long_case(args.sizes))
            return _timing.finish(report, args.json)
        peers = _timing.installed({"hmmlearn": ("hmmlearn", "hmmlearn"), "dynamax": ("dynamax", "dynamax")})
        names = [name for name in USE if name == "jaxem" or name.split(",")[0] in peers]
        for case in CASES[args.sizes]:
            if args.only in case.title:
                report["cases"].append(run_case(case, names, args.repeats))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
