"""How many kinds of eruption has the Old Faithful geyser? 24 Gaussian mixtures from 64 starts each, compared by BIC.

Run:      python examples/old_faithful.py [--output DIR] [--toy]
Prints:   BIC over K = 1..6 and four covariances (inf: a spike), the winner, the fate of every restart, seconds.
Writes:   bic.png, components.png, responsibilities.png and traces.png in DIR.
"""

import argparse
import collections
import pathlib
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import jaxem
import jaxem.plot.mixture

# 272 eruptions: minutes it lasted, minutes until the next (Haerdle 1991; Azzalini and Bowman 1990).
DATA = pathlib.Path(__file__).parent / "data" / "old_faithful.csv"


def timed_fit(model: jaxem.Mixture, x: np.ndarray, restarts: int, seed: int) -> tuple[jaxem.Fit, float]:
    """A fit and its seconds."""
    start = time.perf_counter()
    fit = jax.block_until_ready(jaxem.fit(model, x, key=jax.random.key(seed), num_restarts=restarts, max_steps=1000))
    return fit, time.perf_counter() - start


def draw(fit: jaxem.Fit, x: np.ndarray, table: dict[str, dict[int, float]], output: pathlib.Path) -> None:
    """Four pictures of the winner and of the choice."""
    output.mkdir(parents=True, exist_ok=True)
    names = "bic", "traces", "components", "responsibilities"
    figures = {name: plt.figure(figsize=(6, 4.5), layout="constrained") for name in names}
    jaxem.plot.criteria(table, ax=figures["bic"].add_subplot()).set_ylabel("BIC above the lowest")
    jaxem.plot.traces(fit, ax=figures["traces"].add_subplot())
    axes = {"xlabel": "eruption (minutes)", "ylabel": "waiting time to the next (minutes)"}
    jaxem.plot.components(fit, x, ax=figures["components"].add_subplot(**axes))
    jaxem.plot.responsibilities(fit, x, ax=figures["responsibilities"].add_subplot(**axes))
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=150)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="two fits from 4 starts, for a quick look")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    x = np.loadtxt(DATA, delimiter=",", skiprows=1)
    sizes, restarts = (range(1, 3), 4) if args.toy else (range(1, 7), 64)
    covariances = ("tied",) if args.toy else ("full", "tied", "diag", "spherical")
    fits, table, compiling, running = {}, {c: {} for c in covariances}, 0.0, 0.0
    for covariance, K in tqdm([(c, K) for c in covariances for K in sizes], unit="fit"):
        model = jaxem.GMM(max(sizes), covariance, num_active=K)  # one program: only the first K compiles
        if min(sizes) == K:
            compiling += timed_fit(model, x, restarts, seed=1)[1]
        fits[covariance, K], seconds = timed_fit(model, x, restarts, seed=0)
        running, table[covariance][K] = running + seconds, float(jaxem.bic(fits[covariance, K], x))

    print("BIC       " + "".join(f"{f'K = {K}':>10}" for K in sizes))
    for covariance, row in table.items():
        print(f"{covariance:<10}" + "".join(f"{value:10.2f}" for value in row.values()))
    covariance, K = min(fits, key=lambda name: table[name[0]][name[1]])
    winner, mixture = fits[covariance, K], fits[covariance, K].params
    print(f"\nlowest BIC: {covariance}, K = {K}, log-likelihood {winner.elbo.data:.4f}\n{winner}")
    for k, (mixing, mean) in enumerate(zip(mixture.mixing[:K], mixture.components.mean, strict=False)):
        print(f"  component {k}: mixing {mixing:.4f}, eruption {mean[0]:.3f} min, waiting {mean[1]:.2f} min")
    print(f"  covariance {np.round(mixture.components.covariance[0], 4).tolist()}")
    fates = sum((collections.Counter(fit.restarts.counts()) for fit in fits.values()), collections.Counter())
    print(f"all restarts: {dict(fates)}\ncompiling {compiling:.1f} s, running {running:.1f} s")
    draw(winner, x, table, args.output)


if __name__ == "__main__":
    main()
