"""The smallest EM there is: the mean of N(mu, 1) from [1, 2, missing].

Run:      python examples/missing_value.py [--output DIR] [--toy]
Prints:   the E-step alone (mu is known), the M-step alone (nothing is missing), then ten iterates of both from mu = 0,
          from the two steps called by hand and from `jaxem.fit`, the limit, and the value imputed there.
Writes:   missing_value.png in DIR: the distance to the limit. Each step leaves a third of it, as one value in three is
          missing: the rate of EM is the share of the information that is hidden.

`fit` refuses NaN, so that no accident passes for a missing value: what is observed is a leaf of the data.
"""
# ruff: noqa: D102 - jaxem.LatentModel says what the methods are

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import jaxem


@jaxem.dataclass
class NormalMean(jaxem.LatentModel):
    """x_n ~ N(mu, 1); x_n is hidden where data["observed"] is 0, and data["value"] does not matter there."""

    def init(self, key, data, weights):
        return {"mu": jax.random.normal(key, (), data["value"].dtype)}

    def impute(self, params, data):
        """(N,) the observed values, and E[x_n | mu] = mu for the hidden ones."""
        return jnp.where(data["observed"] > 0, data["value"], params["mu"])

    def e_step(self, params, data, weights=None, rule=None):
        x = self.impute(params, data)
        weights = jnp.ones_like(x) if weights is None else weights
        # A hidden value adds E[log p(x)] + H = 0: the ELBO is the log-likelihood of the observed ones.
        log_prob = jnp.where(data["observed"] > 0, jax.scipy.stats.norm.logpdf(x, params["mu"]), 0)
        return jaxem.EStep({"count": weights.sum(), "total": weights @ x}, weights @ log_prob)

    def m_step(self, params, stats):
        return {"mu": stats["total"] / stats["count"]}

    def constraints(self):
        return {"mu": jaxem.constraints.Real()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="fits of 1 and 10 steps only, for a quick look")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_enable_x64", True)
    plt.switch_backend("Agg")
    model, start = NormalMean(), {"mu": jnp.zeros(())}
    complete = {"value": jnp.array([1.0, 2.0, 6.0]), "observed": jnp.ones(3)}
    missing = {"value": jnp.array([1.0, 2.0, 0.0]), "observed": jnp.array([1.0, 1.0, 0.0])}
    print(f"E-step alone, mu = 0.7 known:        [1, 2, {model.impute({'mu': jnp.array(0.7)}, missing)[2]}]")
    print(f"M-step alone, [1, 2, 6] complete:    mu = {model.m_step(start, model.e_step(start, complete).stats)['mu']}")
    print("EM, [1, 2, missing], from mu = 0:    E and M by hand       jaxem.fit             log-likelihood")
    params, iterates = start, []
    for step in range(1, 11):
        params = model.m_step(params, model.e_step(params, missing).stats)
        iterates.append(float(params["mu"]))
        if step in (1, 10) or not args.toy:
            never = jaxem.Stop(atol=-jnp.inf)  # no change is small enough: exactly `step` steps
            fit = jaxem.fit(model, missing, key=jax.random.key(0), params=start, max_steps=step, stop=never)
            found = f"{fit.params['mu']!s:<20}  {fit.elbo.data:.12f}"
        print(f"  mu after {step:2d} steps                  {iterates[-1]!s:<20}  {found}")
    fit = jaxem.fit(model, missing, key=jax.random.key(0), stop=jaxem.Stop(atol=0.0))
    print(f"limit {fit.params['mu']:.7f}, imputed value {model.impute(fit.params, missing)[2]:.7f}\n{fit}")
    plt.semilogy([1.5 - mu for mu in [0.0, *iterates]], marker="o")
    plt.gca().set(xlabel="EM steps", ylabel="distance of mu to the limit 1.5")
    plt.savefig(args.output / "missing_value.png", dpi=150)
    plt.close()


if __name__ == "__main__":
    main()
