"""EM in one picture: a bound that touches the log-likelihood (E-step) and is climbed to its top (M-step).

Run:      python examples/em_picture.py [--output DIR] [--toy]
Prints:   theta and log L at each step, and the two parts of its rise: the climb of the bound, and the KL that opens.
Writes:   em_picture.png in DIR: log L(theta) = L(q, theta) + KL(q || p(z | x, theta)) and the bounds L(q, theta).

The E-step takes the posterior for q: KL = 0, and the curves touch, with one slope. Elsewhere KL >= 0, so the top of the
bound lies no higher than log L there: no step lowers log L. If Q(theta', theta) is continuous in both and the set
{log L >= log L(start)} is compact, log L converges, and every limit point of theta is a stationary point (a saddle can
be one); theta itself converges if its steps vanish and stationary points of the limiting value are isolated (Wu 1983).
"""
# ruff: noqa: D102 - jaxem.DiscreteLatent says what the methods are

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxem

DATA = np.array([-1.6, -0.9, -0.4, -0.1, 0.3, 0.8, 1.2, 1.7, 2.2, 2.6, 2.9, 3.1, 3.7, 4.4])


@jaxem.dataclass
class OneMean(jaxem.DiscreteLatent):
    """Half of the data are N(0, 1), half N(theta, 1); which is which is hidden."""

    def init(self, key, data, weights):
        return 3 * jax.random.normal(key, (), data.dtype)

    def log_joint(self, theta, x):
        return jax.scipy.stats.norm.logpdf(x[:, None], jnp.stack([0 * theta, theta])[None]) - float(np.log(2))

    def statistics(self, theta, x, resp):
        return resp[:, 1].sum(), resp[:, 1] @ x

    def m_step(self, theta, stats):
        return stats[1] / stats[0]


@jax.jit
def curves(q: jax.Array, thetas: jax.Array, x: jax.Array) -> jaxem.Decomposition:
    """The terms of log L(theta) = L(q, theta) + KL at each of many thetas, summed over x."""
    terms = jax.vmap(lambda theta: jaxem.decompose(OneMean().log_joint(theta, x), q))(thetas)
    return jax.tree.map(lambda term: term.sum(-1), terms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="2 steps instead of 5, for a quick look")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    model, x, theta, grid = OneMean(), jnp.asarray(DATA), jnp.array(-2.0), jnp.linspace(-2.5, 4.5, 281)
    ax = plt.figure(figsize=(7, 4.5), layout="constrained").add_subplot(xlabel="theta", ylabel="nats")
    print("step   theta       log L        climb of the bound   KL that opens")
    for step in range(2 if args.toy else 5):
        new = model.m_step(theta, model.e_step(theta, x).stats)
        q = model.posterior(theta, x)
        here, bound = curves(q, jnp.stack([theta, new]), x), curves(q, grid, x)
        climb = here.elbo[1] - here.elbo[0]
        print(f"{step:4d}  {theta:8.5f}  {here.log_evidence[0]:11.6f}  {climb:12.6f}  {here.kl[1]:16.6f}")
        ax.plot(grid, bound.elbo, f"C{step}", linewidth=1, label=f"L(q, theta), q of step {step}")
        ax.plot([theta, new], here.elbo, f"oC{step}", markersize=4)
        ax.plot([new, new], [here.elbo[1], here.log_evidence[1]], f":C{step}")
        theta = new
    ax.plot(grid, bound.log_evidence, "k", linewidth=2, label="log L(theta)")
    ax.set_ylim(bound.log_evidence.min() - 15, bound.log_evidence.max() + 2)
    ax.legend(frameon=False)
    plt.savefig(args.output / "em_picture.png", dpi=150)
    plt.close()


if __name__ == "__main__":
    main()
