import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxem
from jaxem.rules import Exact, Hard, Tempered


def log_joints(seed, shape=(7, 4)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 3)


def test_free_energy_is_logsumexp_at_one():
    l = log_joints(0)
    np.testing.assert_allclose(jaxem.free_energy(l), jax.nn.logsumexp(l, -1), rtol=1e-14)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.3, 1.0, 2.5, 40.0]))
def test_free_energy_is_the_maximum_over_q(seed, temperature):
    rng = np.random.default_rng(seed)
    l = rng.normal(size=5) * 4
    free = float(jaxem.free_energy(l, temperature))
    q = np.asarray(Tempered(temperature)(jnp.asarray(l))[1])
    entropy = lambda q: -np.sum(q * np.log(np.where(q > 0, q, 1)))
    assert free == pytest.approx(q @ l + temperature * entropy(q), rel=1e-10, abs=1e-10)
    for other in rng.dirichlet(np.ones(5), size=20):
        assert other @ l + temperature * entropy(other) <= free + 1e-9


def test_derivatives_are_posterior_and_entropy():
    l = log_joints(1)
    resp = jax.nn.softmax(l / 1.7, -1)
    dl, dt = jax.jit(jax.grad(lambda l, t: jaxem.free_energy(l, t).sum(), (0, 1)))(l, 1.7)
    np.testing.assert_allclose(dl, resp, atol=1e-14)
    np.testing.assert_allclose(dt, -(resp * jnp.log(resp)).sum(), rtol=1e-12)
    second = jax.jit(jax.hessian(lambda l: jaxem.free_energy(l, 1.7)))(l[0])
    expected = (np.diag(resp[0]) - np.outer(resp[0], resp[0])) / 1.7
    np.testing.assert_allclose(second, expected, atol=1e-13)


@pytest.mark.parametrize("temperature", [1e-30, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("row", [[-np.inf] * 3, [-np.inf, 0.5, 0.2], [700.0, -700.0, 700.0], [-np.inf, -np.inf, 2.0]])
def test_edges_stay_defined(row, temperature):
    l = jnp.array(row)
    value = jaxem.free_energy(l, temperature)
    dl, dt = jax.jit(jax.grad(jaxem.free_energy, (0, 1)))(l, temperature)
    assert not np.isnan(value)
    assert np.isfinite(dl).all()
    assert np.isfinite(dt)
    assert dl.sum() == pytest.approx(1)
    if np.isneginf(row).all():
        assert np.isneginf(value)
        np.testing.assert_allclose(dl, 1 / 3)
    if temperature == 0:
        assert value == np.max(row)


def test_gradient_through_log_of_zero_is_finite():
    gradient = jax.grad(lambda m: jaxem.free_energy(jnp.log(m)[None] + log_joints(2, (3, 3))).sum())
    assert np.isfinite(gradient(jnp.array([0.5, 0.5, 0.0]))[:2]).all()


def test_nan_is_not_hidden():
    assert np.isnan(jaxem.free_energy(jnp.array([0.0, jnp.nan])))


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(0, 10**6))
def test_decomposition_identity_for_any_q(seed):
    rng = np.random.default_rng(seed)
    l, q = rng.normal(size=(6, 3)) * 5, rng.dirichlet(np.full(3, 0.3), 6)
    d = jaxem.decompose(jnp.asarray(l), jnp.asarray(q))
    np.testing.assert_allclose(d.log_evidence, np.log(np.exp(l).sum(1)), rtol=1e-12)
    np.testing.assert_allclose(d.elbo + d.kl, d.log_evidence, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(d.expected_log_joint, (q * l).sum(1), rtol=1e-12)
    assert (np.asarray(d.kl) >= -1e-12).all()


def test_decomposition_at_the_posterior_and_on_impossible_states():
    l = jnp.log(jnp.array([[0.2, 0.3, 0.0]]))
    at_posterior = jaxem.decompose(l, jnp.array([[0.4, 0.6, 0.0]]))
    np.testing.assert_allclose(at_posterior.kl, 0, atol=1e-15)
    impossible = jaxem.decompose(l, jnp.array([[0.4, 0.5, 0.1]]))
    assert np.isneginf(impossible.elbo[0])
    assert np.isposinf(impossible.kl[0])


def test_rules():
    l = log_joints(3)
    value, resp = Exact()(l)
    np.testing.assert_allclose(resp, jax.nn.softmax(l, -1), atol=1e-15)
    tempered_value, tempered = Tempered(2.0)(l)
    np.testing.assert_allclose(tempered_value, value)  # reported at T = 1
    np.testing.assert_allclose(tempered, jax.nn.softmax(l / 2, -1), atol=1e-15)
    hard_value, hard = Hard()(jnp.array([[1.0, 3.0, 3.0]]))
    np.testing.assert_array_equal(hard, [[0, 1, 0]])
    assert hard_value[0] == 3


def test_rules_work_along_any_axis():
    l = log_joints(4)
    for rule in (Exact(), Tempered(0.5), Hard()):
        for a, b in zip(rule(l), rule(l.T, axis=0), strict=True):
            np.testing.assert_allclose(a.T, b, atol=1e-14)


def test_a_schedule_settles_when_it_stops_changing():
    rule = Tempered(jnp.array([4.0, 2.0, 1.0, 1.0]))
    assert [bool(rule.settled(jnp.int32(t))) for t in range(4)] == [False, False, True, True]
    assert [bool(rule.monotone(jnp.int32(t))) for t in range(4)] == [False, False, True, True]
    assert float(rule.at(jnp.int32(9)).temperature) == 1
    assert not bool(Tempered(3.0).monotone(jnp.int32(0)))


def test_an_optax_schedule_is_tabulated():
    rule = Tempered(optax.linear_schedule(5.0, 1.0, 4)).prepare(None, 6)
    np.testing.assert_allclose(rule.temperature, [5, 4, 3, 2, 1, 1, 1])
