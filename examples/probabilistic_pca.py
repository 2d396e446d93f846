"""Probabilistic PCA that finds its own dimension: relevance determination on the columns of the loading matrix.

Run:      python examples/probabilistic_pca.py [--output DIR] [--toy]
Prints:   fits from a random start and from the principal axes, ten latents and which are kept, noise beside PCA's.
Writes:   probabilistic_pca.png in DIR: the loadings E[W].

Model: x_n ~ N(W z_n, 1 / tau), z_n ~ N(0, 1), W_dq ~ N(0, 1 / alpha_q), columns centred, so no mean (Bishop 1999).
Start: W = 0 is a saddle; a random W takes thousands of sweeps to turn into the principal axes, which take a few.
Data: 178 wines, 13 chemical measurements, standardised (Forina et al. 1988).
"""

# ruff: noqa: D102 - the methods are those of the protocol
import argparse
import math
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn import datasets, decomposition

import jaxem

NORMAL, GAMMA, D, Q = jaxem.expfam.MultivariateNormal(), jaxem.expfam.Gamma(), 13, 10


@jaxem.dataclass
class ProbabilisticPCA(jaxem.MeanField):
    """q(z) q(W) q(alpha) q(tau); rows of W independent. q(W) starts narrow: wider, it would switch latents off."""

    def factors(self):
        w, z = jaxem.Factor(NORMAL, (D,), Q), jaxem.Factor(NORMAL, dim=Q, local=True)
        return {"alpha": jaxem.Factor(GAMMA, (Q,)), "tau": jaxem.Factor(GAMMA), "w": w, "z": z}

    def expected_log_lik(self, means, x):
        z, w, tau = means["z"], means["w"], means["tau"]
        log_z = NORMAL.expected_log_prob(NORMAL.standard(Q, x.shape[:1], x.dtype), z)
        square = jnp.sum(x**2 - 2 * x * (z.x @ w.x.T), 1) + jnp.einsum("dij,nij->n", w.xx, z.xx)
        return log_z + 0.5 * (D * (tau.log - math.log(2 * math.pi)) - tau.x * square)

    def expected_log_prior(self, means):
        alpha, tau, w, vague = means["alpha"], means["tau"], means["w"], GAMMA.natural(1e-3, 1e-3)
        log_w = D * (alpha.log - math.log(2 * math.pi)) - alpha.x * jnp.diagonal(w.xx.sum(0))
        return jnp.sum(0.5 * log_w + GAMMA.expected_log_prob(vague, alpha)) + GAMMA.expected_log_prob(vague, tau)

    def init(self, key, data, weights):
        w = NORMAL.natural(jax.random.normal(key, (D, Q), data.dtype), 1e3 * jnp.eye(Q))
        return super().init(key, data, weights) | {"w": w}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="a coarse stop rule")
    args, wine, key = parser.parse_args(), datasets.load_wine(), jax.random.key(0)
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    x, model = (wine.data - wine.data.mean(0)) / wine.data.std(0), ProbabilisticPCA()
    more = {"key": key, "max_steps": 4000, "stop": jaxem.Stop(1e-5 if args.toy else 1e-8)}
    pca, mle = decomposition.PCA().fit(x), decomposition.PCA("mle").fit(x).n_components_
    axes = NORMAL.natural((pca.components_.T * pca.explained_variance_**0.5)[:, :Q], 1e3 * np.eye(Q))
    fit = jaxem.fit(model, x, **more, params=model.init(key, x, None) | {"w": axes})
    print(f"random start: {jaxem.fit(model, x, **more)}\nprincipal axes: {fit}\n")
    alpha, tau, w = fit.means().values()
    kept = np.asarray(alpha.x * (np.diagonal(w.xx.sum(0)) - np.sum(w.x**2, 0)) / D < 0.5)  # data outweigh the prior
    for q in range(Q):
        print(f"latent {q}: alpha {alpha.x[q]:8.3f}, |w|^2 {w.x[:, q] @ w.x[:, q]:.4f}, {'kept' if kept[q] else 'off'}")
    rest = pca.explained_variance_[sum(kept) :].mean()
    print(f"{sum(kept)} kept, noise variance {1 / tau.x:.4f}; as many axes leave {rest:.4f}, PCA('mle') keeps {mle}")
    figure, ax = plt.subplots(layout="constrained")
    figure.colorbar(ax.imshow(w.x, cmap="RdBu", vmin=-1, vmax=1))
    ax.set(xlabel="latent", xticks=range(Q), yticks=range(D), yticklabels=wine.feature_names, title="E[W]")
    figure.savefig(args.output / "probabilistic_pca.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
