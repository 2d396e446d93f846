"""A model of your own in under 30 lines: zero-inflated counts, with everything of the engine for free.

Fish caught by 250 groups in a park (simulated): 40% did not fish, the others caught 2.5 an hour, Poisson.

Run:      python examples/your_own_model.py [--toy]
Prints:   the best of many restarts and their fates, fits annealed and weighted (empty-handed groups count half), the
          same model by the shorter route (log-joint only), which agrees, and the laws that the model keeps.
"""

# ruff: noqa: D102 - the methods are those of the protocol
import argparse

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem import constraints
from jaxem.testing import check_model


@jaxem.dataclass
class ZeroInflatedPoisson(jaxem.DiscreteLatent):
    """z = 0: did not fish, the count is 0 for sure; z = 1: fished, x ~ Poisson(rate * hours)."""

    def init(self, key, data, weights):
        count, hours = data
        idle, factor = jax.random.uniform(key, 2, count.dtype, 0.2, 0.8)
        return {"idle": idle, "rate": (1 + 2 * factor) * count.sum() / hours.sum()}

    def log_joint(self, params, data):
        count, hours = data
        log_idle = jnp.where(count == 0, jnp.log(params["idle"]), -jnp.inf)
        fished = jnp.log1p(-params["idle"]) + jax.scipy.stats.poisson.logpmf(count, params["rate"] * hours)
        return jnp.stack([log_idle, fished], 1)

    def statistics(self, params, data, resp):
        return {"groups": resp.sum(0), "count": resp[:, 1] @ data[0], "hours": resp[:, 1] @ data[1]}

    def m_step(self, params, stats):
        idle, _ = stats["groups"] / stats["groups"].sum()
        return {"idle": idle, "rate": stats["count"] / stats["hours"]}

    def constraints(self):
        return {"idle": constraints.UnitInterval(), "rate": constraints.Positive()}


@jaxem.dataclass
class LogJointOnly(jaxem.Enumerated):
    """The same model from the log-joint of one group and one state; the M-step is by gradients."""

    num_states = 2
    init, constraints = ZeroInflatedPoisson.init, ZeroInflatedPoisson.constraints

    def log_joint_one(self, params, x, z):
        log_idle = jnp.where(x[0] == 0, jnp.log(params["idle"]), -jnp.inf)
        fished = jnp.log1p(-params["idle"]) + jax.scipy.stats.poisson.logpmf(x[0], params["rate"] * x[1])
        return jnp.where(z == 0, log_idle, fished)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="4 restarts instead of 32")
    restarts = 4 if parser.parse_known_args()[0].toy else 32
    rng = np.random.default_rng(1)
    fishing, hours = rng.random(250) > 0.4, rng.uniform(0.5, 4.0, 250).round(1)
    data = (rng.poisson(2.5 * hours) * fishing, hours)
    model, key = ZeroInflatedPoisson(), jax.random.key(0)
    show = lambda what, fit: print(f"{what:9s} " + "  ".join(f"{k} {v:.4f}" for k, v in fit.params.items()))
    plain = jaxem.fit(model, data, key=key, num_restarts=restarts)
    print(plain, plain.restarts.counts(), sep="\nall restarts: ")
    show("plain", plain)
    show("annealed", jaxem.fit(model, data, key=key, algorithm=jaxem.EM(jaxem.Tempered(np.geomspace(4, 1, 10)))))
    show("weighted", jaxem.fit(model, data, key=key, weights=np.where(data[0] > 0, 1.0, 0.5)))
    show("shorter", jaxem.fit(LogJointOnly(), data, key=key, num_restarts=restarts, stop=jaxem.Stop(atol=1e-5)))
    print("kept:", ", ".join(check_model(model, data, key=key)))


if __name__ == "__main__":
    main()
