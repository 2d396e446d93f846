"""Sixty sequences of 20 to 200 steps, with gaps and a few labels: one chain of three states behind them all.

Run:      python examples/many_sequences.py [--output DIR] [--toy]
Prints:   what was simulated and what is found of it with gaps, with labels and with weights; the score of sequences
          held out; and how many of its 8 states a Bayesian chain uses.
Writes:   many_sequences.png in DIR: one sequence by both models, and the transitions of both.

Sequences of different lengths are padded once; what lies beyond the end counts nothing. A weight counts a whole
sequence: weight 2 is the sequence twice, so that a cross-validation is weights of 0 and 1 in one compiled program.
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxem
import jaxem.plot.sequences

TRANSITION = np.array([[0.95, 0.04, 0.01], [0.05, 0.90, 0.05], [0.10, 0.10, 0.80]])
MEAN = np.array([[0.0, 0.0], [2.5, 0.0], [1.0, 3.0]])


def simulate(num: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Sequences, their states, and which steps are observed, nine of ten."""
    rng, model = np.random.default_rng(0), jaxem.HMM(jaxem.Gaussian(), 3)
    truth = model.make_params([0.6, 0.3, 0.1], TRANSITION, mean=MEAN, covariance=np.stack([np.eye(2)] * 3))
    x, states = model.sample(truth, num, key=jax.random.key(1), length=200)
    lengths = rng.integers(20, 201, num)
    observed = [rng.random(n) < 0.9 for n in lengths]
    cut = lambda whole: [np.asarray(row[:n]) for row, n in zip(whole, lengths, strict=True)]
    return (
        [np.where(seen[:, None], row, np.nan) for row, seen in zip(cut(x), observed, strict=True)],
        cut(states),
        observed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="12 sequences and 4 starts, for a quick look")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("Agg")
    num, restarts = (12, 4) if args.toy else (60, 32)
    x, states, observed = simulate(num)
    data = jaxem.sequences(x, observed=observed)
    print(data)
    settings = {"key": jax.random.key(0), "num_restarts": restarts, "max_steps": 500}
    model, test = jaxem.HMM(jaxem.Gaussian(), 3), np.arange(num) % 5 == 0
    # Labels of the first ten steps of every fourth sequence; -1 where the state is not known.
    known = [np.where((np.arange(len(z)) < 10) & (i % 4 == 0), z, -1) for i, z in enumerate(states)]
    fits = {
        "all": jaxem.fit(model, data, **settings),
        "labels": jaxem.fit(jaxem.partly_labelled(model), (data, known), **settings),
        "weights": jaxem.fit(model, data, weights=1.0 - test, **settings),
    }
    steps = np.concatenate(states)
    print("\nfit        largest error of a transition, of a mean   states right   hits")
    for name, fit in fits.items():
        path = np.concatenate([row[: len(z)] for row, z in zip(np.asarray(fit.predict(data)), states, strict=True)])
        rows, means = np.abs(fit.params.transition - TRANSITION).max(), np.abs(fit.params.components.mean - MEAN).max()
        print(f"{name:<10} {rows:27.3f} {means:12.3f} {np.mean(path == steps):16.1%} {fit.hits:4d}/{restarts}")
    score = np.asarray(fits["weights"].log_prob(data))
    seen = np.asarray(data.observed).sum(1)
    print(
        f"\nnats a step: {score[~test].sum() / seen[~test].sum():.4f} of the sequences fitted, "
        f"{score[test].sum() / seen[test].sum():.4f} of the {test.sum()} held out"
    )

    many = jaxem.fit(jaxem.BayesianHMM(jaxem.Gaussian(), 8, concentration=0.01), data, **settings)
    share = np.bincount(np.asarray(many.predict(data))[np.asarray(many.predict(data)) >= 0], minlength=8)
    print(f"\n{many}\nsteps on the path in each of 8 states: {share.tolist()}")
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), width_ratios=(2.2, 1), layout="constrained")
    for (left, right), fit in zip(axes, (fits["all"], many), strict=True):
        jaxem.plot.states(fit, data, sequence=1, ax=left).set_title(repr(fit.model))
        jaxem.plot.transitions(fit, ax=right)
    figure.savefig(args.output / "many_sequences.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
