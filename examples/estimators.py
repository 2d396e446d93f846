"""How noisy is each gradient of the ELBO? Variances on one model, at three places of q, over the number of samples L.

Run:      python examples/estimators.py [--output DIR] [--toy]
Prints:   the variance of the gradient in (mean, log standard deviation) of q, summed over the two, for a datum far from
          the prior; how far the means are from the exact gradient, in standard errors; A and B for a datum near it.
Writes:   estimators.png in DIR: the variances over L.
Model: z ~ N(0, 1), x ~ N(w z, I), w = (0.5, 0.4); q = N(m, s^2) at the prior, half-way, and at the posterior.
B, whose KL is exact, is said to have less variance than A. So it is at the prior; at the posterior the noise of
log p(z) and log p(x | z) cancels in A, the quieter for a mean above 2.1. IWAE and DReG climb another bound.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxem

WEIGHT, FAR, NEAR, PRECISION = np.array([0.5, 0.4]), np.array([6.0, 4.0]), np.array([0.6, 0.2]), 1.41
ESTIMATORS = {
    "score function": lambda num: jaxem.ScoreFunction(num, 0.0),
    "leave-one-out": jaxem.ScoreFunction,
    "A": jaxem.SGVBA,
    "B": jaxem.SGVBB,
    "sticking the landing": jaxem.StickingTheLanding,
    "IWAE": jaxem.IWAE,
    "DReG": lambda num: jaxem.IWAE(num, doubly_reparameterised=True),
}


@jax.jit
def gradients(estimator: jaxem.Estimator, q: jaxem.DiagonalNormal, x: jax.Array) -> jax.Array:
    """(n, 2) independent draws of an estimator: n equal data, a q for each, and the gradient of the sum."""
    log_lik = lambda z: -0.5 * jnp.sum((x[None] - z * WEIGHT[None]) ** 2, -1) - jnp.log(2 * jnp.pi)
    prior = jaxem.DiagonalNormal.standard(1)
    found = jax.grad(lambda q: jnp.sum(estimator(jax.random.key(1), q, log_lik, prior)))(q)
    return jnp.concatenate([found.loc, found.log_scale], 1)


def measure(estimator: jaxem.Estimator, x: np.ndarray, share: float, draws: int) -> tuple[float, float]:
    """(variance summed over the two parameters, distance of the mean from the exact gradient in standard errors)."""
    target, log_scale = WEIGHT @ x / PRECISION, -0.5 * share * np.log(PRECISION)
    q = jaxem.DiagonalNormal(*(jnp.full((draws, 1), value) for value in (share * target, log_scale)))
    found = np.asarray(gradients(estimator, q, x))
    exact = np.array([PRECISION * (1 - share) * target, 1 - PRECISION * np.exp(2 * log_scale)])
    return found.var(0).sum(), np.max(np.abs(found.mean(0) - exact) / (found.std(0) + 1e-12)) * draws**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="fewer draws and samples")
    args, places = parser.parse_args(), {"prior": 0.0, "half-way": 0.5, "posterior": 1.0}
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    samples, draws = ([2, 4], 4000) if args.toy else ([2, 4, 8, 16, 32], 40_000)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", sharey=True)
    print(f"{'point':10}{'estimator':22}" + "".join(f"{f'L={num}':>10}" for num in samples) + "   std. errors")
    for ax, (point, share) in zip(axes, places.items(), strict=True):
        for name, make in ESTIMATORS.items():
            values, errors = zip(*(measure(make(num), FAR, share, draws) for num in samples), strict=True)
            worst = "other bound" if name in ("IWAE", "DReG") else f"{max(errors):.1f}"
            print(f"{point:10}{name:22}" + "".join(f"{value:10.3g}" for value in values) + f"   {worst}")
            style = "o--" if name in ("sticking the landing", "IWAE") else "o-"  # in places on top of B and A
            ax.loglog(samples, [value if value > 1e-9 else np.nan for value in values], style, label=name)
        ax.set(title=f"q = {point}", xlabel="samples L", xticks=samples, xticklabels=samples)
        ax.minorticks_off()
    a, b = (measure(ESTIMATORS[name](2), NEAR, 1.0, draws)[0] for name in "AB")
    print(f"a datum near the prior, q = posterior, L = 2: A {a:.3g}, B {b:.3g}")
    axes[0].set(ylabel="variance of the gradient")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", title="where it is not 0")
    figure.savefig(args.output / "estimators.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
