"""Deaths of women over 80 in The Times on 1096 days: a mixture of two Poisson distributions, and a very slow EM.

Run:      python examples/deaths.py [--output DIR] [--toy]
Prints:   how slowly EM nears the optimum, the fates of restarts, and the observed against the expected days.
Writes:   deaths.png in DIR: the observed days and those that each component explains.

There is one row of data for each number of deaths; its weight is the number of days. The two rates lie so close that a
step takes EM less than 0.5% of the way that is left. So a small step is not a small distance: the default stop rule is
met long before the optimum. `jaxem.Stop(atol=-inf)` takes exactly `max_steps` steps.
Data: Hasselblad (1969), a benchmark of accelerated EM since Varadhan and Roland (2008).
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import poisson

import jaxem
import jaxem.plot.mixture

DEATHS = np.arange(10)[:, None]
DAYS = np.array([162, 267, 271, 185, 111, 61, 27, 8, 3, 1])


def show(name: str, fit: jaxem.Fit) -> None:
    """One line of a table, the component of the lower rate first."""
    rate, mixing = np.asarray(fit.params.components.rate[:, 0]), np.asarray(fit.params.mixing)
    low = rate.argmin()
    numbers = f"{mixing[low]:.10f}  {rate[low]:.10f}  {rate[1 - low]:.10f}  {-fit.elbo.data:.9f}"
    print(f"{name:<19}  {numbers}  {fit.num_steps:6d}  {jaxem.Status(int(fit.status)).name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="4 restarts instead of 64, for a quick look")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    model, key, restarts = jaxem.Mixture(jaxem.families.Poisson(), 2), jax.random.key(0), 4 if args.toy else 64
    start = model.make_params(mixing=[0.5, 0.5], rate=[[1.0], [3.0]])
    print("start and stop       mixing        rates                       -log-likelihood   steps  status")
    for name, steps, atol in (
        ("given, default rule", 10_000, 1e-8),
        ("given, 1500 steps", 1500, -np.inf),
        ("given, 10000 steps", 10_000, -np.inf),
    ):
        stop = jaxem.Stop(atol=atol)
        show(name, jaxem.fit(model, DEATHS, weights=DAYS, key=key, params=start, max_steps=steps, stop=stop))
    fit = jaxem.fit(
        model, DEATHS, weights=DAYS, key=key, num_restarts=restarts, max_steps=10_000, stop=jaxem.Stop(atol=0.0)
    )
    show(f"best of {restarts} restarts", fit)
    print(f"{fit}\n")

    rate, mixing = np.asarray(fit.params.components.rate[:, 0]), np.asarray(fit.params.mixing)
    days = DAYS.sum() * mixing * poisson.pmf(DEATHS, rate)
    one = DAYS.sum() * poisson.pmf(DEATHS[:, 0], DAYS @ DEATHS[:, 0] / DAYS.sum())
    print("deaths   days   one Poisson   two")
    for deaths, row in enumerate(zip(DAYS, one, days.sum(1), strict=True)):
        print("{:6d}   {:4d}   {:11.1f}   {:5.1f}".format(deaths, *row))
    ax = plt.figure(figsize=(7, 4.5), layout="constrained").add_subplot(xlabel="deaths on a day", ylabel="days")
    bottom = np.zeros(10)
    for k, colour in enumerate(jaxem.plot.colours(2)):
        ax.bar(DEATHS[:, 0], days[:, k], bottom=bottom, color=colour, label=f"Poisson({rate[k]:.3f}), {mixing[k]:.1%}")
        bottom += days[:, k]
    ax.plot(DEATHS[:, 0], DAYS, "o", color="black", label="observed")
    ax.legend(frameon=False)
    plt.savefig(args.output / "deaths.png", dpi=150)
    plt.close()


if __name__ == "__main__":
    main()
