"""Generalised EM: the optimum of EM by gradients, never downhill, whatever the optimiser does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import compiled

import jaxem
from jaxem import constraints
from jaxem.algorithms import GeneralizedEM
from jaxem.algorithms.generalized_em import _expected
from jaxem.core.ascent import ascend, vector
from jaxem.models.mixture import MixtureParams

KEY = jax.random.key(0)
TIGHT = jaxem.Stop(1e-12)
WEIGHTS = np.random.default_rng(5).uniform(0.5, 2.0, 120)
DIAG = jaxem.GMM(3, "diag")


@pytest.fixture(scope="module")
def optimum(blobs):
    return jaxem.fit(DIAG, blobs, key=KEY, weights=WEIGHTS, num_restarts=3, stop=TIGHT)


def test_reaches_the_optimum_of_em(blobs, optimum):
    found = jaxem.fit(
        DIAG, blobs, key=KEY, weights=WEIGHTS, num_restarts=3, stop=TIGHT, algorithm=GeneralizedEM(), restart_batch=3
    )
    assert found.restarts.counts() == {"CONVERGED": 3}
    assert float(found.elbo.total) == pytest.approx(float(optimum.elbo.total), abs=1e-8)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(optimum.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for trace in np.asarray(found.restarts.trace):
        assert np.diff(trace[~np.isnan(trace)]).min() > -1e-10


def test_full_covariances_in_chunks_and_single_precision(blobs):
    x = blobs.astype(np.float32)
    plain = jaxem.fit(jaxem.GMM(3), x, key=KEY)
    found = jaxem.fit(jaxem.chunked(jaxem.GMM(3), 50), x, key=KEY, algorithm=GeneralizedEM())
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype(jnp.float32)}
    assert int(found.status) == jaxem.Status.CONVERGED
    assert float(found.elbo.total) == pytest.approx(float(plain.elbo.total), abs=1e-3)


def test_a_first_order_optimiser(blobs, optimum):
    algorithm = GeneralizedEM(optax.sgd(0.5), num_steps=10)
    found = jaxem.fit(DIAG, blobs, key=KEY, weights=WEIGHTS, algorithm=algorithm, stop=jaxem.Stop(1e-10))
    assert float(found.elbo.total) == pytest.approx(float(optimum.elbo.total), abs=1e-4)


def test_never_downhill_with_a_reckless_optimiser(blobs):
    found = jaxem.fit(DIAG, blobs, key=KEY, algorithm=GeneralizedEM(optax.sgd(20.0), 3), max_steps=30)
    trace = np.asarray(found.trace)
    trace = trace[~np.isnan(trace)]
    assert np.diff(trace).min() >= 0
    assert trace[-1] > trace[0]
    assert int(found.status) in (jaxem.Status.CONVERGED, jaxem.Status.MAX_STEPS)


def test_annealing_is_not_stopped_before_it_settles(blobs, optimum):
    algorithm = GeneralizedEM(rule=jaxem.Tempered(lambda step: max(1.0, 3.0 - 0.25 * step)))
    found = jaxem.fit(DIAG, blobs, key=KEY, weights=WEIGHTS, algorithm=algorithm, stop=TIGHT)
    assert int(found.num_steps) > 8
    assert float(found.elbo.total) == pytest.approx(float(optimum.elbo.total), abs=1e-6)


def test_a_proportion_of_zero_stays_zero(blobs, optimum):
    parts = optimum.params.components
    start = MixtureParams(jnp.array([0.6, 0.0, 0.4]), parts)
    found = jaxem.fit(DIAG, blobs, key=KEY, params=start, stop=TIGHT, algorithm=GeneralizedEM())
    expected = jaxem.fit(DIAG, blobs, key=KEY, params=start, stop=TIGHT)
    assert found.params.mixing[1] == 0
    assert int(found.status) in (jaxem.Status.CONVERGED, jaxem.Status.MAX_STEPS)  # the rule asks for rounding alone
    np.testing.assert_allclose(found.params.mixing, expected.params.mixing, atol=1e-6)
    np.testing.assert_allclose(found.params.components.mean[::2], expected.params.components.mean[::2], atol=1e-5)


def test_the_objective_is_q_and_blocks_change_neither_value_nor_gradient(blobs, optimum):
    old, model = optimum.params, optimum.model
    new = MixtureParams(old.mixing[::-1], jax.tree.map(lambda a: 1.1 * a, old.components))
    rule = jaxem.Exact()
    whole = _expected(model, model.at(old), blobs, jnp.asarray(WEIGHTS), rule)
    log_joint = np.asarray(compiled(model.log_joint, new, blobs))
    resp = np.exp(np.asarray(compiled(model.log_joint, old, blobs)))
    resp /= resp.sum(1, keepdims=True)
    direct = np.sum(WEIGHTS[:, None] * resp * log_joint) + float(model.elbo_params(new))
    expected = jax.jit(jax.value_and_grad(whole))(new)
    assert float(expected[0]) == pytest.approx(direct, rel=1e-12)
    pieces = _expected(jaxem.chunked(model, 50), jaxem.chunked(model, 50).at(old), blobs, jnp.asarray(WEIGHTS), rule)
    found = jax.jit(jax.value_and_grad(pieces))(new)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_row_of_weight_zero_may_be_impossible():
    @jaxem.dataclass
    class Half(jaxem.DiscreteLatent):
        def init(self, key, data, weights):
            return {"rate": jnp.ones((), data.dtype)}

        def constraints(self):
            return {"rate": constraints.Positive()}

        def log_joint(self, params, data):
            return jnp.where(data < 0, -jnp.inf, jnp.log(params["rate"]) - params["rate"] * data)[:, None]

        def statistics(self, params, data, resp):
            raise AssertionError("not used")

        def m_step(self, params, stats):
            raise AssertionError("not used")

        climbed_by = "gradient"

    data, weights = jnp.array([1.0, 2.0, 6.0, -1.0]), jnp.array([1.0, 1.0, 1.0, 0.0])
    found = jaxem.fit(Half(), data, key=KEY, weights=weights, stop=TIGHT)
    assert float(found.params["rate"]) == pytest.approx(1 / 3, rel=1e-6)
    assert int(found.status) == jaxem.Status.CONVERGED


SPEC = {"a": constraints.Positive(), "b": constraints.Fixed(), "n": constraints.Fixed(), "p": constraints.Simplex()}
POINT = {"a": jnp.array([1.0, 0.0]), "b": jnp.array(2.0), "n": jnp.array(3), "p": jnp.array([0.0, 0.3, 0.7])}


def test_coordinates_leave_fixed_and_boundary_values_alone():
    free, rebuild = vector(SPEC, POINT)
    assert free.shape == (4,)
    assert np.isfinite(free).all()
    for a, b in zip(jax.tree.leaves(rebuild(free)), jax.tree.leaves(POINT), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-14)
    moved = rebuild(free + 0.5)
    assert (moved["a"][1], moved["b"], moved["n"], moved["p"][0]) == (0, 2, 3, 0)
    assert float(moved["a"][0]) == pytest.approx(np.exp(0.5))


@pytest.mark.parametrize(
    ("optimizer", "num_steps"), [(None, 20), (optax.adam(optax.exponential_decay(0.3, 30, 0.5)), 300)]
)
def test_ascend_climbs(optimizer, num_steps):
    goal = jnp.array([0.0, 0.6, 0.4])

    def objective(p):
        return jnp.sum(jnp.where(goal > 0, goal * jnp.log(p["p"]), 0)) - (p["a"][0] - p["b"]) ** 2

    found = jax.jit(lambda point: ascend(objective, point, SPEC, optimizer, num_steps, jnp.ones(())))(POINT)
    np.testing.assert_allclose(found["p"], goal, atol=1e-3)
    assert float(found["a"][0]) == pytest.approx(2.0, abs=1e-3)


def test_ascend_keeps_the_start_where_nothing_is_better():
    def objective(p):  # a gradient that points to where there is no value
        return jnp.where(p["a"] > 1, jnp.nan, p["a"])

    climb = lambda point: ascend(objective, point, {"a": constraints.Real()}, optax.sgd(1.0), 2, jnp.ones(()))
    found = jax.jit(climb)({"a": jnp.ones(())})
    assert found["a"] == 1


@pytest.mark.parametrize(
    ("algorithm", "error", "message"),
    [
        (GeneralizedEM(optimizer=3), TypeError, "optimizer: expected an optax GradientTransformation; found 3"),
        (GeneralizedEM(num_steps=0), ValueError, "num_steps: expected an integer >= 1; found 0"),
    ],
)
def test_settings_are_checked(blobs, algorithm, error, message):
    with pytest.raises(error, match=message):
        jaxem.fit(DIAG, blobs, key=KEY, algorithm=algorithm)


def test_a_model_without_constraints_is_named(blobs):
    @jaxem.dataclass
    class Bare(jaxem.Mixture):
        def constraints(self):
            return jaxem.DiscreteLatent.constraints(self)

    with pytest.raises(TypeError, match=r"Bare declares no constraints\(\)"):
        jaxem.fit(Bare(jaxem.Gaussian("diag"), 2), blobs, key=KEY, algorithm=GeneralizedEM())
