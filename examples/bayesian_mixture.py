"""How many kinds of eruption? A Bayesian mixture of six that empties four; and how narrow mean-field posteriors are.

Run:      python examples/bayesian_mixture.py [--output DIR] [--toy]
Prints:   the fit, which components are used, K = 1..6 by ELBO with the correction for the order of labels, and the
          standard deviation that q gives a mean beside the one that estimates have.
Writes:   bayesian_mixture.png in DIR: six components at the start and at the end.

Variances: q(z) q(theta) ignores that an uncertain label moves the means, so that where components overlap its standard
deviations are too small (Wang and Titterington 2005, Inadequacy of interval estimates); samples say by how much.
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxem
import jaxem.plot.mixture

DATA = pathlib.Path(__file__).parent / "data" / "old_faithful.csv"


def draw(model: jaxem.BayesianMixture, fit: jaxem.Fit, x: np.ndarray, output: pathlib.Path) -> None:
    """The components that hold data, at the start and at the end."""
    start = jaxem.fit(model, x, key=jax.random.key(0), max_steps=0)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), sharex=True, sharey=True, layout="constrained")
    for ax, shown, title in zip(axes, (start, fit), ("one start", "the winner"), strict=True):
        used = int(shown.model.pruning(shown.params).kept.sum())
        ax.set(title=f"{title}: {used} of 6 components", xlabel="eruption (minutes)", ylabel="waiting time (minutes)")
        jaxem.plot.components(shown, x, ax=ax)
    figure.savefig(output / "bayesian_mixture.png", dpi=150)
    plt.close(figure)


def spread(distance: float, samples: int, rows: int) -> tuple[float, float]:
    """Standard deviation of the larger mean: over samples of N(+-distance / 2, 1), and on average according to q."""
    model, rng = jaxem.BayesianGMM(2, concentration=1.0), np.random.default_rng(0)
    sign = rng.choice([-0.5, 0.5], (samples, rows, 1))
    data = jax.numpy.asarray(distance * sign + rng.normal(size=(samples, rows, 1)))

    def one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        parts = jaxem.fit(model, x, key=jax.random.key(0), max_steps=1000).params.components
        larger = jax.numpy.argmax(parts.mean[:, 0])
        # mean_k | precision ~ N(m, 1 / (beta precision)): marginally Student-t with dof degrees of freedom.
        variance = parts.covariance[:, 0, 0] / parts.strength * (parts.dof / (parts.dof - 2))
        return parts.mean[larger, 0], variance[larger]

    mean, variance = jax.jit(jax.vmap(one))(data)  # all samples are fitted by one program
    return float(mean.std()), float(variance.mean() ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="4 restarts instead of 64 and few samples, for a quick look")
    args, x, key = parser.parse_args(), np.loadtxt(DATA, delimiter=",", skiprows=1), jax.random.key(0)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    restarts, samples = (4, 20) if args.toy else (64, 300)
    prior = {"strength": 1.0, "dof": 2.0, "inverse_scale": np.cov(x.T)}
    model = jaxem.BayesianGMM(6, concentration=1e-3, **prior)
    fit = jaxem.fit(model, x, key=key, num_restarts=restarts, max_steps=2000)
    draw(model, fit, x, args.output)
    print(f"{fit}\n\n{fit.pruning()}\n\n K   ELBO       + log of equivalent orders   used")
    for num in (1, 2, 3) if args.toy else range(1, 7):
        other = jaxem.BayesianGMM(num, concentration=1.0, **prior)
        found = jaxem.fit(other, x, key=key, num_restarts=restarts, max_steps=2000)
        total, used = float(found.elbo.total), int(found.model.pruning(found.params).kept.sum())
        print(f"{num:2d} {total:10.3f} {total + float(found.model.label_correction(found.params)):12.3f} {used:22d}")
    print(f"\ndistance of two means   sd of the larger over {samples} samples   sd in q   ratio")
    for distance in (6.0, 3.0):
        real, claimed = spread(distance, samples, 400)
        print(f"{distance:8.1f} {real:30.4f} {claimed:15.4f} {claimed / real:8.2f}")


if __name__ == "__main__":
    main()
