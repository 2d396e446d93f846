"""Regression that finds out which columns matter: automatic relevance determination (ARD) in 20 lines.

Run:      python examples/ard_regression.py [--toy]
Prints:   weights of 10 columns and of 10 of pure noise, with E[alpha] and what is kept; alpha as a point estimate, and
          where that goes; held-out scores beside scikit-learn's.

Kept: the data say more of the weight than the prior does, 1 - E[alpha] Var(w) > 1/2 (MacKay 1992).
Point estimate: Delta(Gamma) for Gamma is type-II maximum likelihood (empirical Bayes), alpha = 1 / E[w^2]. For a column
of no use it has no finite optimum: alpha grows in every sweep, the ELBO hardly does, and CONVERGED speaks of the ELBO.
Data: diabetes, Efron, Hastie, Johnstone and Tibshirani (2004); 331 rows to fit, 111 held out, all standardised.
"""

# ruff: noqa: D102 - the methods are those of the protocol
import argparse
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ARDRegression, BayesianRidge

import jaxem
from jaxem import expfam

NORMAL, GAMMA, FOREVER = expfam.MultivariateNormal(), expfam.Gamma(), jaxem.Stop(-math.inf)


@jaxem.dataclass
class ARD(jaxem.MeanField):
    """y ~ N(x'w, 1 / tau), w_d ~ N(0, 1 / alpha_d), vague priors on tau and, unless it is a point, on alpha."""

    dim: int = jaxem.static()
    relevance: expfam.ExponentialFamily = jaxem.static(default=GAMMA)

    def factors(self):
        alpha = jaxem.Factor(self.relevance, (self.dim,))
        return {"alpha": alpha, "tau": jaxem.Factor(GAMMA), "w": jaxem.Factor(NORMAL, dim=self.dim)}

    def expected_log_lik(self, means, data):
        (x, y), w, tau = data, means["w"], means["tau"]
        square = y**2 - 2 * y * (x @ w.x) + jnp.sum((x @ w.xx) * x, 1)
        return 0.5 * (tau.log - math.log(2 * math.pi) - tau.x * square)

    def expected_log_prior(self, means):
        alpha, vague = means["alpha"], GAMMA.natural(1e-6, 1e-6)
        log_w = 0.5 * (alpha.log - math.log(2 * math.pi) - alpha.x * jnp.diagonal(means["w"].xx))
        log_alpha = GAMMA.expected_log_prob(vague, alpha) if self.relevance == GAMMA else jnp.zeros(self.dim)
        return jnp.sum(log_w + log_alpha) + GAMMA.expected_log_prob(vague, means["tau"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="at most 2000 sweeps instead of 20000")
    steps, rng = 2000 if parser.parse_known_args()[0].toy else 20000, np.random.default_rng(0)
    jax.config.update("jax_enable_x64", True)
    table, new = load_diabetes(), rng.permutation(442) < 111
    z = np.column_stack([table.data, rng.normal(size=(442, 10)), table.target])
    z = (z - z[~new].mean(0)) / z[~new].std(0)
    x, y, key, scores = z[:, :-1], z[:, -1], jax.random.key(0), {}
    run = lambda family, **kw: jaxem.fit(ARD(20, family), (x[~new], y[~new]), key=key, max_steps=steps, **kw)
    full, point = run(GAMMA), run(expfam.Delta(GAMMA))  # the one word that changes
    for name, fit in ("posterior", full), ("point", point), ("goes on", run(point.model.relevance, stop=FOREVER)):
        m = jax.tree.map(np.asarray, fit.means())
        cov = m["w"].xx - np.outer(m["w"].x, m["w"].x)
        print(f"{name}: {fit}")
        for d, column in enumerate(table.feature_names + [f"noise{i}" for i in range(10)]):
            row = f"{column:7s} {m['w'].x[d]:8.4f} +- {cov[d, d] ** 0.5:.4f}   alpha {m['alpha'].x[d]:11.1f}"
            print(f"{row}   {'kept' if m['alpha'].x[d] * cov[d, d] < 0.5 else ''}".rstrip())
        scores[name] = x[new] @ m["w"].x, (1 / m["tau"].x + np.sum(x[new] @ cov * x[new], 1)) ** 0.5
    for other in ARDRegression(), BayesianRidge():
        scores[type(other).__name__] = other.fit(x[~new], y[~new]).predict(x[new], return_std=True)
    for name, (mean, std) in scores.items():
        r2 = 1 - np.mean((y[new] - mean) ** 2) / np.var(y[new])
        print(f"{name:13s}  held-out R^2 {r2:.4f}, log density a row {norm.logpdf(y[new], mean, std).mean():.4f} nats")


if __name__ == "__main__":
    main()
