"""934 heights without a label: two normal distributions, and what can be learnt of women and men from them.

Run:      python examples/heights.py [--output DIR] [--toy]
Prints:   estimates beside those from the labels, the same with swapped components, and the likelihood of a spike.
Writes:   heights.png in DIR: the densities, and responsibilities beside the share of men at each height.

Names: mixing, means and variances are identifiable up to their order (Teicher 1963). Swapped components have the same
likelihood, so which of them is "men" is not in the data; `fit` returns the largest first, by convention.
Bounds: a density's likelihood need not be bounded. A component on one height gains without end as its variance falls to
0 (Kiefer and Wolfowitz 1956); restarts that end in such a spike are DEGENERATE and do not win.
Data: adult children, inches, Galton (1886), from his notebooks by Hanley (2004, The American Statistician 58); one row
for each height, with the number of women and of men.
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

import jaxem
import jaxem.plot.mixture

DATA = pathlib.Path(__file__).parent / "data" / "galton_heights.csv"


def draw(fit: jaxem.Fit, height: np.ndarray, people: np.ndarray, output: pathlib.Path) -> None:
    """Observed heights with the density above, responsibilities below."""
    (mixing, mean, std), grid, size = table(fit.params), np.linspace(55, 80, 300), people.sum(1)
    parts, resp = mixing * norm.pdf(grid[:, None], mean, std), fit.posterior(grid[:, None])
    figure, (top, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    top.hist(height, bins=np.arange(55.75, 80, 1), weights=size, density=True, color="lightgrey")
    top.plot(grid, parts.sum(1), color="black")
    below.scatter(height, people[:, 1] / size, s=size, color="grey", alpha=0.6, label="share of men (area: people)")
    for k, colour in enumerate(jaxem.plot.colours(2)):
        top.plot(grid, parts[:, k], color=colour, label=f"{mixing[k]:.3f} N({mean[k]:.2f}, {std[k]:.2f}²)")
        below.plot(grid, resp[:, k], color=colour, label=f"responsibility of component {k}")
    top.legend(frameon=False)
    below.legend(frameon=False, loc="center right")
    below.set_xlabel("height (inches)")
    figure.savefig(output / "heights.png", dpi=150)
    plt.close(figure)


def table(params) -> list[np.ndarray]:
    """Mixing, means and standard deviations, each (2,)."""
    return [np.ravel(v) for v in (params.mixing, params.components.mean, params.components.covariance**0.5)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="4 restarts instead of 64, for a quick look")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    height, women, men = np.loadtxt(DATA, delimiter=",", skiprows=1).T
    x, people, weights, key = height[:, None], np.stack([women, men], 1), women + men, jax.random.key(0)
    fit = jaxem.fit(jaxem.GMM(2), x, weights=weights, key=key, num_restarts=4 if args.toy else 64, max_steps=5000)
    model, log_likelihood = fit.model, jax.jit(lambda params: fit.model.log_prob(params, x) @ weights)
    mean = height @ people / people.sum(0)
    variance = (x - mean) ** 2 * people / people.sum(0)
    labels = model.make_params(people.sum(0) / 934, mean=mean[:, None], covariance=variance.sum(0)[:, None, None])
    swapped = jax.tree.map(lambda leaf: leaf[::-1], fit.params)
    print(f"{fit}\n\nestimates    mixing         means            std              log-likelihood   right")
    for name, params in ("no labels", fit.params), ("swapped", swapped), ("labels", labels):
        tall = np.asarray(model.predict(params, x)) == np.argmax(table(params)[1])  # a guess: the taller are the men
        numbers = "   ".join("{:.3f}, {:.3f}".format(*row) for row in table(params))
        print(f"{name:<11}  {numbers}   {log_likelihood(params):14.6f}   {(men @ tall + women @ ~tall) / 934:.1%}")
    for std in (1e-1, 1e-4, 1e-7, 1e-10):
        spike = model.make_params([0.9, 0.1], mean=[[66.76], [68.0]], covariance=[[[12.0]], [[std**2]]])
        print(f"a tenth on 68 inches, std {std:.0e}: log-likelihood {log_likelihood(spike):10.2f}")
    draw(fit, height, people, args.output)


if __name__ == "__main__":
    main()
