"""EM and VAE meet: a Gaussian mixture, fitted by EM to the codes of a VAE, becomes its prior and is climbed with it.

Run:      python examples/vae_mixture_prior.py [--output DIR] [--toy]
Prints:   held-out ELBO and NLL with N(0, I), with the mixture put in its place, and after climbing both; how well the
          components agree with the digits' labels, which no fit saw.
Writes:   vae_mixture_prior.png in DIR: the codes before and after, with the prior's components.

N(0, I) pulls all codes to one ball, a mixture lets them sit in clusters. Fitted by EM to the codes and put in place of
N(0, I) it raises the ELBO, with both networks as they are; the same ELBO then moves all three together.
Data: 1797 digits of 8 x 8 pixels with 17 grey levels (Alpaydin and Kaynak 1998); each fifth is held out.
"""

import argparse
import dataclasses
import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn import datasets, metrics

import jaxem
from jaxem import plot
from jaxem.networks import mlp


def report(name, model, params, test, labels, draws, key):
    elbo, found = model.elbo(params, test, key=key).mean(), model.evidence(params, test, key=key, num_samples=draws)
    agree = "-"
    if model.prior is not None:
        component = model.prior.predict(params["prior"], model.encode(params, test).mean())
        agree = f"{metrics.adjusted_rand_score(labels, component):.3f}"
    size = found.effective_size.mean()
    print(f"{name:<28}{elbo:>10.2f}{-found.log_prob.mean():>10.2f}{size:>10.0f} of {draws}{agree:>12}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="a few passes over a few rows")
    args, key = parser.parse_args(), jax.random.key(0)
    args.output.mkdir(parents=True, exist_ok=True)
    plt.switch_backend("Agg")
    x, labels = datasets.load_digits(return_X_y=True)
    x, labels = (x[:300], labels[:300]) if args.toy else (x, labels)
    held = np.arange(len(x)) % 5 == 0
    train, test = x[~held].astype(np.float32), x[held].astype(np.float32)
    steps, draws = (2, 50) if args.toy else (15, 2000)
    plain = jaxem.VAE(mlp(256, 4), mlp(256, 64), latent_dim=2, likelihood=jaxem.likelihoods.Binomial(16))
    algorithm = jaxem.GradientAscent(batch_size=64, learning_rate=1e-3, num_passes=10)
    more = {"key": key, "algorithm": algorithm, "max_steps": steps, "stop": jaxem.Stop(atol=-np.inf)}
    first = jaxem.fit(plain, train, **more)
    codes = first.model.encode(first.params, train).mean()
    prior = jaxem.fit(jaxem.GMM(10), codes, key=key, num_restarts=2 if args.toy else 64)
    print(f"EM on the codes: {prior}\n")
    mixed = dataclasses.replace(plain, prior=jaxem.GMM(10), estimator=jaxem.SGVBA())
    start = first.params | {"prior": prior.params}
    last = jaxem.fit(mixed, train, params=start, **more)
    longer = jaxem.fit(plain, train, params=first.params, **more)
    print(f"{'nats per image':<28}{'test ELBO':>10}{'test NLL':>10}{'effective size':>18}{'Rand index':>13}")
    show = lambda name, fit, params: report(name, fit.model, params, test, labels[held], draws, key)
    show("N(0, I)", first, first.params)
    show("N(0, I), twice the passes", longer, longer.params)
    show("mixture by EM in its place", last, start)
    show("all climbed together", last, last.params)
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for ax, fit, found in zip(axes, (first, last), (prior.params, last.params["prior"]), strict=True):
        plot.latent_space(fit, test, labels=labels[held], ax=ax)
        for mean, covariance in zip(found.components.mean, found.components.covariance, strict=True):
            ax.add_patch(plot.ellipse(mean, covariance, 1.5, facecolor="none", edgecolor=plot.INK))
        ax.set_title("held-out codes, " + ("N(0, I) and EM afterwards" if fit is first else "all climbed together"))
    figure.savefig(args.output / "vae_mixture_prior.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
