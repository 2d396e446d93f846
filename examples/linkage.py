"""Genetic linkage of 197 animals: the example that EM was introduced with (Dempster, Laird and Rubin 1977, section 1).

Run:      python examples/linkage.py [--output DIR] [--toy]
Prints:   the iterates from t = 0.5, the maximum, and the rate of convergence: measured, and the EM step's derivative.
Writes:   linkage.png in DIR: the distance to the maximum after each step.

Four kinds of animal, cells 0..3, have probabilities 1/2 + t/4, (1-t)/4, (1-t)/4, t/4; 125, 18, 20 and 34 were seen.
Hidden is which part of cell 0 an animal belongs to. The data have one row for each cell: counts are weights.
"""
# ruff: noqa: D102 - jaxem.DiscreteLatent says what the methods are

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxem

CELLS, COUNTS = np.arange(4), np.array([125, 18, 20, 34])


@jaxem.dataclass
class Linkage(jaxem.DiscreteLatent):
    """State 0: the part of probability 1/2, cell 0 only. State 1: the part that t decides."""

    def init(self, key, data, weights):
        return {"t": jax.random.uniform(key, (), data.dtype, minval=0.1, maxval=0.9)}

    def log_joint(self, params, cell):
        known = jnp.where(cell == 0, jnp.log(jnp.full_like(params["t"], 1 / 2)), -jnp.inf)
        unknown = jnp.where(cell % 3 == 0, jnp.log(params["t"] / 4), jnp.log((1 - params["t"]) / 4))
        return jnp.stack([known, unknown], 1)

    def statistics(self, params, cell, resp):
        return [jnp.where(with_t, resp[:, 1], 0).sum() for with_t in (cell % 3 == 0, cell % 3 != 0)]

    def m_step(self, params, stats):
        return {"t": stats[0] / (stats[0] + stats[1])}

    def constraints(self):
        return {"t": jaxem.constraints.UnitInterval()}


@jax.jit
def em_map(t: jax.Array) -> jax.Array:
    """One EM step, a function like any other for JAX to differentiate."""
    stats = Linkage().e_step({"t": t}, CELLS, jnp.asarray(COUNTS, t.dtype)).stats
    return Linkage().m_step({"t": t}, stats)["t"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="1 start instead of 16, for a quick look")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    fit = jaxem.fit(Linkage(), CELLS, weights=COUNTS, key=jax.random.key(0), num_restarts=1 if args.toy else 16)
    iterates = [jnp.array(0.5)]
    for _ in range(40):  # to the last digit, where `fit` stops as soon as the objective, flat at its top, is still
        iterates.append(em_map(iterates[-1]))
    mle, distance = iterates[-1], [float(iterates[-1] - t) for t in iterates[:9]]
    print("steps      t                distance to the maximum   share of it that the step left")
    for step, t in enumerate(iterates[:9]):
        left = f"{distance[step] / distance[step - 1]:.4f}" if step else ""
        print(f"{step:5d}      {t:.9f}      {distance[step]:.9f}               {left}")
    print(f"maximum    {mle:.15f}\nrate       {jax.grad(em_map)(mle):.6f}, the derivative of the EM step there")
    print(fit)
    plt.semilogy(distance, marker="o")
    plt.gca().set(xlabel="EM steps", ylabel="distance of t to the maximum")
    plt.savefig(args.output / "linkage.png", dpi=150)
    plt.close()


if __name__ == "__main__":
    main()
