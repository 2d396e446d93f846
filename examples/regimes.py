"""The flow of the Nile at Aswan, 1871 to 1970: a river that changed once, and what a mixture cannot know of it.

Run:      python examples/regimes.py [--output DIR] [--toy]
Prints:   log-likelihood, BIC and hits of Gaussian mixtures and chains, with the score of each year given the years
          before it; the year of the change by the most probable path, and its posterior.
Writes:   regimes.png in DIR: the flow with its path of states, and the transitions.

A mixture does not know that years follow one another: it finds two kinds of year, and is as unsure of 1971 as of any
other. A chain finds the same two kinds and that they last. One that is not allowed to go back, a left-right chain from
state 0, is a model of one change: of its chain one probability is free, in place of three.
Data: 10^8 cubic metres a year, as published by Cobb (1978), The problem of the Nile, Biometrika 65, and in Durbin and
Koopman (2001), Time Series Analysis by State Space Methods. The drop is dated to 1898 or 1899.
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxem
import jaxem.plot.sequences

DATA = pathlib.Path(__file__).parent / "data" / "nile.csv"
LATE = 1941  # models of the years before are scored on the years from here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="two models from 8 starts, for a quick look")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    years, flow = np.loadtxt(DATA, delimiter=",", skiprows=1).T
    x, late, restarts, family = flow[:, None], years >= LATE, 8 if args.toy else 64, jaxem.families.Gaussian("tied")
    models = {
        "one Gaussian": jaxem.Mixture(family, 1),
        "mixture of 2": jaxem.Mixture(family, 2),
        "chain of 2": jaxem.HMM(family, 2),
        "chain of 3": jaxem.HMM(family, 3),
        "one change": jaxem.HMM(family, 2, initial=np.array([1.0, 0.0]), allowed=np.triu(np.ones((2, 2)))),
    }
    print(f"                log-likelihood      BIC    hits   nats a year from {LATE}, fitted before")
    fits, settings = {}, {"key": jax.random.key(0), "num_restarts": restarts, "max_steps": 2000}
    for name in ("mixture of 2", "one change") if args.toy else models:
        model = models[name]
        fit = fits[name] = jaxem.fit(model, x, **settings)
        # The years to be scored are not observed, or count nothing: shapes stay, and so does the compiled program.
        if isinstance(model, jaxem.HMM):
            ahead = jaxem.fit(model, jaxem.sequences(x, observed=~late), **settings).log_predictive(x)
        else:
            ahead = jaxem.fit(model, x, weights=1.0 - late, **settings).log_prob(x)
        score = f"{fit.elbo.data:14.3f} {jaxem.bic(fit, x):8.2f}  {fit.hits:3d}/{restarts}"
        print(f"{name:<15} {score}   {ahead[late].mean():8.3f}")

    print("\n                flow of each kind   runs of the path   years of which it is not 95% sure")
    for name in ("mixture of 2", "one change"):
        means, path = fits[name].params.components.mean[:, 0], np.asarray(fits[name].predict(x))
        runs, unsure = 1 + np.sum(path[1:] != path[:-1]), np.sum(fits[name].posterior(x).max(1) < 0.95)
        print(f"{name:<15} {means[0]:8.1f}, {means[1]:.1f} {runs:18d} {unsure:20d}")
    fit = fits["one change"]
    first = np.diff(fit.posterior(x)[:, 1], prepend=0)  # no way back, so that p(change in year t) is what is added
    odds = ", ".join(f"{years[t]:.0f}: {first[t]:.3f}" for t in np.argsort(-first)[:3])
    print(f"\n{fit}\nfirst year of less flow: {years[fit.predict(x).argmax()]:.0f} on the path; probabilities {odds}")
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), width_ratios=(2.4, 1), layout="constrained")
    axes[0].set(xlabel="year", ylabel="flow at Aswan (10$^8$ cubic metres)")
    jaxem.plot.states(fit, x, time=years, ax=axes[0])
    jaxem.plot.transitions(fit, ax=axes[1])
    figure.savefig(args.output / "regimes.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
