"""Major earthquakes a year, 1900 to 2006: Poisson counts whose rate follows a hidden chain of quiet and busy spells.

Run:      python examples/earthquakes.py [--output DIR] [--toy]
Prints:   log-likelihood, AIC, BIC and hits over K = 1..4 with a stationary and a free first state, rates and
          transitions of three states, and the distribution of the counts in the years to come.
Writes:   earthquakes.png in DIR: the years and their states, the transitions, and the forecast.

A Poisson distribution's variance is its mean; that of the counts is 2.7 times as large, and a high year follows a high
year. With a stationary chain the first year is one like any other. Where it is free, EM puts all its probability on one
state, and the likelihood rises a little for K - 1 parameters more.
Data (United States Geological Survey) and estimates: Zucchini and MacDonald (2009), HMMs for Time Series.
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxem
import jaxem.plot.sequences

DATA = pathlib.Path(__file__).parent / "data" / "earthquakes.csv"


def draw(fit: jaxem.Fit, years: np.ndarray, x: np.ndarray, chance: np.ndarray, output: pathlib.Path) -> None:
    """The series, the transitions and the forecast."""
    figure = plt.figure(figsize=(11, 7.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    jaxem.plot.states(fit, x, time=years, ax=top.add_subplot(xlabel="year", ylabel="major earthquakes in the year"))
    left, right = bottom.subplots(1, 2)
    jaxem.plot.transitions(fit, ax=left)
    for step, style in ((0, "-"), (4, "--"), (29, ":")):
        right.plot(chance[step], style, color=jaxem.plot.INK, drawstyle="steps-mid", label=years[-1] + 1 + step)
    right.set(xlabel="earthquakes in the year", ylabel="probability")
    right.legend(frameon=False)
    figure.savefig(output / "earthquakes.png", dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="3 states from 8 starts, for a quick look")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    years, counts = np.loadtxt(DATA, delimiter=",", skiprows=1, dtype=int).T
    x, restarts, fits = counts[:, None], 8 if args.toy else 64, {}
    settings = {"key": jax.random.key(0), "num_restarts": restarts, "max_steps": 5000, "stop": jaxem.Stop(atol=1e-10)}
    print(" K  first state   -log-likelihood     AIC     BIC     hits   rates")
    for K in (3,) if args.toy else (1, 2, 3, 4):
        for first in ("stationary",) if args.toy or K == 1 else ("stationary", "free"):
            # Of one column of counts k-means finds few partitions; those of k-means++ differ more from start to start.
            model = jaxem.HMM(jaxem.families.Poisson(), K, stationary=first == "stationary", init_method="kmeans++")
            fit = fits[K, first] = jaxem.fit(model, x, **settings)
            rates = ", ".join(f"{rate:.3f}" for rate in np.sort(fit.params.components.rate[:, 0]))
            scores = f"{-fit.elbo.data:16.4f}  {jaxem.aic(fit, x):7.1f} {jaxem.bic(fit, x):7.1f}"
            print(f"{K:2d}  {first:<10}  {scores}  {fit.hits:3d}/{restarts}   {rates}")

    fit = fits[3, "stationary"]
    print(f"\n{fit}\n\nfrom \\ to" + "".join(f"{k:8d}" for k in range(3)) + "    rate   years of a visit")
    rates, years_in = fit.params.components.rate[:, 0], fit.expected_durations()
    for k, row in enumerate(fit.params.transition):
        print(f"{k:9d}" + "".join(f"{p:8.4f}" for p in row) + f"{rates[k]:8.3f} {years_in[k]:18.1f}")
    values = np.arange(61.0)
    chance = np.exp(fit.log_forecast(x, values[:, None], num_steps=30))  # (30, 61)
    print("\nyear    mean   90% of the probability   p(more than 20)")
    for step, total in [(step, np.cumsum(chance[step])) for step in (0, 1, 4, 29)]:
        low, high = np.searchsorted(total, (0.05, 0.95))
        print(f"{years[-1] + 1 + step} {chance[step] @ values:7.2f} {low:13d} to {high} {1 - total[20]:22.3f}")
    draw(fit, years, x, chance, args.output)


if __name__ == "__main__":
    main()
