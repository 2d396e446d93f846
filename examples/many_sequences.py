"""Sixty sequences of 20 to 100 steps, with gaps and a few labels: one chain of three states behind them all.

Run:      python examples/many_sequences.py [--output DIR] [--toy]
Prints:   what is found of the simulated chain from all sequences, with some held out by weight 0, and with labels;
          the scores of those held out; and how many of its six states a Bayesian chain uses.
Writes:   many_sequences.png in DIR: a sequence by the chain of three states and by the Bayesian one, and transitions.

Sequences are padded to one length once; steps beyond the end and gaps count nothing. A weight counts a whole sequence.
With more states than needed most restarts end where one state is split in two, at a lower ELBO: take many.
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxem
import jaxem.plot.sequences

TRANSITION = np.array([[0.95, 0.04, 0.01], [0.05, 0.90, 0.05], [0.10, 0.10, 0.80]])
MEAN = np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 4.0]])


def simulate(num: int) -> tuple[jaxem.Sequences, list[np.ndarray]]:
    """Sequences of which nine steps in ten are observed, and their states."""
    rng, model = np.random.default_rng(0), jaxem.HMM(jaxem.Gaussian("spherical"), 3)
    truth = model.make_params([0.6, 0.3, 0.1], TRANSITION, mean=MEAN, covariance=np.ones(3))
    x, states = (np.asarray(a) for a in model.sample(truth, num, key=jax.random.key(1), length=100))
    lengths = rng.integers(20, 101, num)
    observed = [rng.random(n) < 0.9 for n in lengths]
    gapped = [np.where(seen[:, None], row[: len(seen)], np.nan) for seen, row in zip(observed, x, strict=True)]
    return jaxem.sequences(gapped, observed=observed), [row[:n] for row, n in zip(states, lengths, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="12 sequences, 8 starts and no labels, for a quick look")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("Agg")
    num, restarts = (12, 8) if args.toy else (60, 32)
    data, states = simulate(num)
    settings = {"key": jax.random.key(0), "num_restarts": restarts, "max_steps": 1000}
    model, test = jaxem.HMM(jaxem.Gaussian("spherical"), 3), np.arange(num) % 5 == 0
    # The first ten steps of every fourth sequence are labelled; -1 where the state is not known.
    known = [np.where((np.arange(len(z)) < 10) & (i % 4 == 0), z, -1) for i, z in enumerate(states)]
    fits = {
        "all": jaxem.fit(model, data, **settings),
        "held out": jaxem.fit(model, data, weights=1.0 - test, **settings),
    }
    if not args.toy:
        fits["labels"] = jaxem.fit(jaxem.partly_labelled(model), (data, known), **settings)
    print(f"{data}\n\nfit       largest error of a transition, of a mean   states right   hits")
    for name, fit in fits.items():
        path, mean = np.asarray(fit.predict(data)), fit.params.components.mean
        right = np.concatenate([row[: len(z)] == z for row, z in zip(path, states, strict=True)]).mean()
        errors = f"{np.abs(fit.params.transition - TRANSITION).max():27.3f} {np.abs(mean - MEAN).max():12.3f}"
        print(f"{name:<9} {errors} {right:16.1%} {fit.hits:4d}/{restarts}")
    score, seen = np.asarray(fits["held out"].log_prob(data)), np.asarray(data.observed).sum(1)
    for name, rows in (("fitted", ~test), ("held out", test)):
        print(f"{rows.sum()} sequences {name}: {score[rows].sum() / seen[rows].sum():.4f} nats a step")

    many = jaxem.BayesianHMM(jaxem.Gaussian("spherical"), 6, concentration=0.01, stickiness=5.0)
    many = jaxem.fit(many, data, **settings)
    path = np.asarray(many.predict(data))
    print(f"\n{many}\nsteps in each of its states: {np.bincount(path[path >= 0], minlength=6).tolist()}")
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), width_ratios=(2.2, 1), layout="constrained")
    for (left, right), fit in zip(axes, (fits["all"], many), strict=True):
        jaxem.plot.states(fit, data, sequence=1, ax=left).set_title(repr(fit.model))
        jaxem.plot.transitions(fit, ax=right)
    figure.savefig(args.output / "many_sequences.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
