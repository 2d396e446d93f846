"""The contract, on every shipped model and one written as a user would; and it fails models that break it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import constraints
from jaxem.testing import CHECKS, _Case, check_model

KEY = jax.random.key(0)


@jaxem.dataclass
class ZeroInflatedPoisson(jaxem.DiscreteLatent):
    """Counts that are 0 for sure with probability zero, else Poisson(rate)."""

    def init(self, key, data, weights):
        zero, rate = jax.random.uniform(key, (2,), data.dtype, minval=0.2, maxval=0.8)
        return {"zero": zero, "rate": (1 + 2 * rate) * data.mean()}

    def log_joint(self, params, data):
        structural = jnp.where(data == 0, jnp.log(params["zero"]), -jnp.inf)
        counted = jnp.log1p(-params["zero"]) + jax.scipy.stats.poisson.logpmf(data, params["rate"])
        return jnp.stack([structural, counted], 1)

    def statistics(self, params, data, resp):
        return {"count": resp.sum(0), "total": resp[:, 1] @ data}

    def m_step(self, params, stats):
        structural, counted = stats["count"]
        return {"zero": structural / (structural + counted), "rate": stats["total"] / counted}

    def constraints(self):
        return {"zero": constraints.UnitInterval(), "rate": constraints.Positive()}


COUNTS = np.where(np.random.default_rng(0).random(90) < 0.4, 0, np.random.default_rng(1).poisson(3.0, 90)).astype(float)


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_gmm(blobs, covariance):
    assert check_model(jaxem.GMM(3, covariance), blobs, key=KEY) == list(CHECKS)


def test_kmeans(blobs):
    assert check_model(jaxem.KMeans(3), blobs, key=KEY) == list(CHECKS)


def test_a_users_model():
    assert check_model(ZeroInflatedPoisson(), COUNTS, key=KEY) == list(CHECKS)


def test_a_users_model_finds_the_maximum_likelihood():
    result = jaxem.fit(ZeroInflatedPoisson(), COUNTS, key=KEY, num_restarts=4, stop=jaxem.Stop(1e-13), max_steps=500)
    rate, mean, positive = float(result.params["rate"]), COUNTS.mean(), (COUNTS > 0).mean()
    assert rate / -np.expm1(-rate) == pytest.approx(mean / positive, rel=1e-6)  # the score equation of the model
    assert float(result.params["zero"]) == pytest.approx(1 - mean / rate, rel=1e-5)


class Mutants:
    """One broken law each."""

    class Mean(ZeroInflatedPoisson):
        def statistics(self, params, data, resp):
            return jax.tree.map(lambda s: s / data.shape[0], super().statistics(params, data, resp))

    class Order(ZeroInflatedPoisson):
        def statistics(self, params, data, resp):
            return {"count": resp.sum(0), "total": (resp[:, 1] * data) @ (1 + 1e-3 * jnp.arange(1.0 * data.shape[0]))}

    class Overshoot(ZeroInflatedPoisson):
        def m_step(self, params, stats):
            new = super().m_step(params, stats)
            return {"zero": new["zero"], "rate": new["rate"] * 1.7}

    class Biased(ZeroInflatedPoisson):
        def m_step(self, params, stats):
            new = super().m_step(params, stats)
            return {"zero": new["zero"], "rate": new["rate"] * 1.01}

    class Wide(ZeroInflatedPoisson):
        def statistics(self, params, data, resp):
            return jax.tree.map(lambda s: s.astype(jnp.float64), super().statistics(params, data, resp))

    class Squared(ZeroInflatedPoisson):
        def statistics(self, params, data, resp):
            return super().statistics(params, data, resp**2)

    class Rough(ZeroInflatedPoisson):
        def log_joint(self, params, data):
            return super().log_joint(params, data) + 1e-3 * jnp.sin(1e6 * data.sum())


@pytest.mark.parametrize(
    ("mutant", "law", "message"),
    [
        (Mutants.Mean, "additive", "e_step"),
        (Mutants.Mean, "weights", "duplicated"),
        (Mutants.Squared, "linear", "statistics: linear in resp"),
        (Mutants.Order, "permutation", "order of the rows"),
        (Mutants.Overshoot, "monotone", "monotone: restarts ended as"),
        (Mutants.Biased, "m_step", "perturbation .* gains"),
        (Mutants.Rough, "transformed", "chunked"),
        (Mutants.Wide, "single_precision", "dtypes: float32 data gave float64"),
    ],
)
def test_broken_models_fail(mutant, law, message):
    model = jaxem.dataclass(type("Broken", (mutant,), {}))()
    case = _Case(model, COUNTS, KEY, 3)
    with pytest.raises(AssertionError, match=message):
        CHECKS[law](case)


def test_a_wrong_gradient_is_no_fixed_point():
    @jaxem.dataclass
    class Stubborn(ZeroInflatedPoisson):
        def m_step(self, params, stats):
            new = super().m_step(params, stats)
            return {"zero": params["zero"], "rate": new["rate"]}

    with pytest.raises(AssertionError, match="fixed point: gradient"):
        CHECKS["stationary"](_Case(Stubborn(), COUNTS, KEY, 3))


def test_undeclared_constraints_are_named():
    @jaxem.dataclass
    class Bare(ZeroInflatedPoisson):
        def constraints(self):
            return jaxem.DiscreteLatent.constraints(self)

    with pytest.raises(TypeError, match=r"Bare declares no constraints\(\)"):
        check_model(Bare(), COUNTS, key=KEY)


def test_models_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        jaxem.GMM(2).num_components = 3
