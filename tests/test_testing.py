"""The contract on models written as a user would; and it fails those that break it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_mean_field import UnknownNormal

import jaxem
from jaxem import constraints
from jaxem.testing import CHECKS, check_model

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


def test_a_users_model():
    assert check_model(ZeroInflatedPoisson(), COUNTS, key=KEY) == list(CHECKS)


def test_a_users_model_finds_the_maximum_likelihood():
    result = jaxem.fit(ZeroInflatedPoisson(), COUNTS, key=KEY, num_restarts=4, stop=jaxem.Stop(1e-13), max_steps=500)
    rate, mean, positive = float(result.params["rate"]), COUNTS.mean(), (COUNTS > 0).mean()
    assert rate / -np.expm1(-rate) == pytest.approx(mean / positive, rel=1e-6)  # the score equation of the model
    assert float(result.params["zero"]) == pytest.approx(1 - mean / rate, rel=1e-5)


def check_only(law, model, data, algorithm=None):
    """check_model of one law."""
    skip = {name: "another test's" for name in CHECKS if name != law}
    return check_model(model, data, key=KEY, num_starts=3, algorithm=algorithm, skip=skip)


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
    with pytest.raises(AssertionError, match=message):
        check_only(law, model, COUNTS)


def test_a_wrong_gradient_is_no_fixed_point():
    @jaxem.dataclass
    class Stubborn(ZeroInflatedPoisson):
        def m_step(self, params, stats):
            new = super().m_step(params, stats)
            return {"zero": params["zero"], "rate": new["rate"]}

    with pytest.raises(AssertionError, match="fixed point: gradient"):
        check_only("stationary", Stubborn(), COUNTS)


@jaxem.dataclass
class Estimated(jaxem.ELBOModel):
    """x ~ N(z, 1), z ~ N(0, spread^2): a variational autoencoder at its smallest, whose ELBO takes one draw a row."""

    def init(self, key, data, weights):
        return {"gain": jax.random.uniform(key, (), data.dtype), "spread": jnp.ones((), data.dtype)}

    def constraints(self):
        return {"gain": constraints.Real(), "spread": constraints.Positive()}

    def values(self, params, data, key):
        norm, mean, scale = jax.scipy.stats.norm, params["gain"] * data, 0.8
        z = mean + scale * jax.random.normal(key, data.shape, data.dtype)
        zero = jnp.zeros((), data.dtype)
        return norm.logpdf(data, z) + norm.logpdf(z, zero, params["spread"]) - norm.logpdf(z, mean, scale)

    def elbo_data(self, params, data, weights=None, key=None):
        return jnp.sum(weights * self.values(params, data, key))


class Estimates:
    """One broken law each."""

    class Mean(Estimated):
        def elbo_data(self, params, data, weights=None, key=None):
            return super().elbo_data(params, data, weights, key) / data.shape[0]

    class Unweighted(Estimated):
        def elbo_data(self, params, data, weights=None, key=None):
            return jnp.sum(self.values(params, data, key))

    class Ordered(Estimated):
        def values(self, params, data, key):
            return super().values(params, data, key) * jnp.linspace(0.0, 2.0, data.shape[0], dtype=data.dtype)

    class Wide(Estimated):
        def elbo_data(self, params, data, weights=None, key=None):
            return super().elbo_data(params, data, weights, key).astype(jnp.float64)


NORMAL = np.sort(np.random.default_rng(0).normal(0.0, 2.0, 90))


def test_a_users_estimate():
    found = check_model(Estimated(), NORMAL, key=KEY, num_starts=2)
    assert [law.split(" ", 1)[1] for law in found if law.startswith(("additive", "transformed"))] == [
        "(of the mean of 64 draws)",
        "(but for chunks: Estimated has no e_step)",
    ]


@pytest.mark.parametrize(
    ("mutant", "law", "message"),
    [
        (Estimates.Mean, "additive", "e_step"),
        (Estimates.Unweighted, "weights", "duplicated"),
        (Estimates.Ordered, "permutation", "order of the rows"),
        (Estimates.Wide, "single_precision", "dtypes: float32 data gave float64"),
    ],
)
def test_broken_estimates_fail(mutant, law, message):
    model = jaxem.dataclass(type("Broken", (mutant,), {}))()
    with pytest.raises(AssertionError, match=message):
        check_only(law, model, NORMAL)


def test_an_optimiser_made_anew_compiles_anew():
    @jaxem.dataclass
    class Restless(jaxem.GradientAscent):
        def prepare(self, model, data, key, num_steps):
            ready = super().prepare(model, data, key, num_steps)
            return dataclasses.replace(ready, optimizer=optax.sgd(0.1))

    with pytest.raises(AssertionError, match=r"traces: \[1, 1, 1, 1, 1\] for a fit, a new key"):
        check_only("traces", Estimated(), NORMAL, algorithm=Restless())


@pytest.mark.parametrize(
    ("law", "message"),
    [("m_step", "m_step: factor 'mu': perturbation .* gains"), ("stationary", "fixed point: gradient")],
)
def test_a_mean_field_model_that_reports_another_objective_fails(law, message):
    """Its updates are right, and the entropies of its factors counted twice."""

    @jaxem.dataclass
    class Twice(UnknownNormal):
        def elbo_params(self, params):
            factors = self.factors().items()
            return super().elbo_params(params) + sum(f.family.entropy(params[name]) for name, f in factors)

    with pytest.raises(AssertionError, match=message):
        check_only(law, Twice(0.02, 2.0, 8.0), NORMAL)


def test_a_law_is_left_out_for_a_reason():
    found = check_only("linear", ZeroInflatedPoisson(), COUNTS)
    assert found == [name if name == "linear" else f"{name} (not checked: another test's)" for name in CHECKS]


@pytest.mark.parametrize(
    ("skip", "error", "message"),
    [
        ({"mstep": "why"}, ValueError, "skip: expected some of additive, .*; found 'mstep'; did you mean 'm_step'"),
        ({"m_step": " "}, ValueError, r"skip\['m_step'\]: expected a reason in words; found ' '"),
        ({"m_step": None}, ValueError, r"skip\['m_step'\]: expected a reason in words; found None"),
        (["m_step"], TypeError, "skip: expected a reason for each law"),
    ],
)
def test_a_reason_is_asked_for(skip, error, message):
    with pytest.raises(error, match=message):
        check_model(ZeroInflatedPoisson(), COUNTS, key=KEY, skip=skip)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="data: expected at least 2 rows; found 1"):
        check_model(ZeroInflatedPoisson(), COUNTS[:1], key=KEY)


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
