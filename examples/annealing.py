"""Annealing or many restarts? Both from the same starts, on one problem with many local optima, for equal E-steps.

Run:      python examples/annealing.py [--toy]
Prints:   the share of runs that reach the best optimum known, with counts, and E-steps for each run that does.

The data are 10 clusters on a ring, the model 10 normal components of unit covariance and equal proportions (soft
K-means): a run that puts two components on one cluster and one over two others is stuck. Annealing lets the
temperature fall to 1 from above the data's largest variance, where all components are equal; log q is disturbed a
little while T > 1 (`Tempered(schedule, key)`), since equal components would stay equal. (With free covariances
annealing is no help: equal components of the data's own covariance stay stable until T = 1.)
"""

import argparse

import jax
import numpy as np

import jaxem


def ring(clusters: int, rows: int) -> np.ndarray:
    """Clusters of unequal spread, evenly on a circle."""
    rng = np.random.default_rng(0)
    angle = 2 * np.pi * np.arange(clusters) / clusters
    centre = 10 * np.stack([np.cos(angle), np.sin(angle)], 1)
    spread = rng.uniform(0.5, 1.1, (clusters, 1))
    label = rng.integers(0, clusters, rows)
    return centre[label] + spread[label] * rng.normal(size=(rows, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="4 clusters and 8 runs, for a quick look")
    parser.add_argument("--output", help="not used: nothing is written")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    clusters, rows, runs, budget = (4, 200, 8, 60) if args.toy else (10, 300, 32, 120)
    x = ring(clusters, rows)

    # Three quarters of the budget on the way down from T = 100, the rest at T = 1.
    schedule = np.geomspace(100, 1, 3 * budget // 4)
    ways = {
        "plain EM, random points": (jaxem.Tempered(1.0), "random"),
        "plain EM, k-means++": (jaxem.Tempered(1.0), "kmeans++"),
        "annealed": (jaxem.Tempered(schedule), "random"),
        "annealed and disturbed": (jaxem.Tempered(schedule, jax.random.key(7)), "random"),
    }
    found = {}
    for name, (rule, start) in ways.items():
        model = jaxem.KMeans(clusters, init_method=start)
        algorithm = jaxem.EM(rule)
        found[name] = jaxem.fit(
            model, x, key=jax.random.key(0), algorithm=algorithm, num_restarts=runs, max_steps=budget
        )

    best = max(float(fit.elbo.total) for fit in found.values())
    print(f"{clusters} clusters, {rows} rows; {runs} runs each of at most {budget + 1} E-steps")
    print(f"best {best:.3f} nats, without the constants of the normal density")
    print(f"{'':26}{'reached':>9}{'share':>8}{'median short of it':>20}{'E-steps a hit':>15}")
    for name, fit in found.items():
        elbo = np.asarray(fit.restarts.elbo.total)
        hits = int(np.sum(elbo > best - 0.1))
        steps = int(np.sum(np.asarray(fit.restarts.num_steps) + 1))
        price = f"{steps / hits:.0f}" if hits else "none"
        print(f"{name:26}{f'{hits}/{runs}':>9}{hits / runs:8.0%}{best - np.median(elbo):20.2f}{price:>15}")
    print(
        "An E-step is the unit of cost: a method with fewer E-steps a hit finds the optimum sooner when its runs are"
        "\nrepeated until one does. Runs of plain EM end when they converge, annealed ones not before T = 1."
    )


if __name__ == "__main__":
    main()
