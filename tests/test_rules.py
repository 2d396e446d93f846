"""E-step rules beyond those of test_elbo.py: draws, reverse KL, and annealing that leaves symmetric points."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled

import jaxem
from jaxem.core.reverse_kl import reverse_kl
from jaxem.rules import Exact, Hard, ReverseKL, Sampled, Tempered

KEY = jax.random.key(3)


def log_joints(seed, shape=(400, 3)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def objective(p, q, lam):
    """KL(q || p) + lam H(q) in numpy."""
    log_q = np.log(np.where(q > 0, q, 1))
    return np.sum(q * (log_q - np.log(p)), -1) - lam * np.sum(q * log_q, -1)


@pytest.mark.parametrize(("lam", "rule"), [(0.3, Tempered(0.7)), (1.0, Hard()), (1.5, Hard())])
def test_the_entropy_weighted_e_step_is_tempered_and_hard_at_one(lam, rule):
    l = log_joints(0, (5, 4))
    p, q = np.asarray(jax.nn.softmax(l, -1)), np.asarray(rule(l)[1])
    others = np.concatenate([np.random.default_rng(1).dirichlet(np.full(4, a), (300, 5)) for a in (0.1, 1.0)])
    assert (objective(p, q, lam)[None] <= objective(p[None], others, lam) + 1e-12).all()


def test_draws_follow_the_posterior():
    p = np.array([0.2, 0.5, 0.3])
    l = jnp.broadcast_to(jnp.log(p)[None] + 2.0, (20_000, 3))
    value, resp = Sampled(KEY)(l)
    np.testing.assert_allclose(value, 2, rtol=1e-12)  # log p(x), not that of the draw
    assert set(np.unique(resp)) == {0, 1}
    np.testing.assert_array_equal(resp.sum(1), 1)
    assert np.abs(np.asarray(resp).mean(0) - p).max() < 4 * np.sqrt(0.25 / 20_000)
    never = Sampled(KEY)(l.at[:, 0].set(-jnp.inf))[1]
    assert (np.asarray(never[:, 0]) == 0).all()


@pytest.mark.parametrize("rule", [Sampled(KEY), Tempered(3.0, KEY)], ids=lambda r: type(r).__name__)
def test_draws_differ_between_restarts_steps_blocks_and_keys_and_repeat(rule):
    l = log_joints(2)
    draw = lambda rule, l=l: np.asarray(rule(l)[1])
    base = rule.fold(1).at(jnp.int32(4))
    first = draw(base.fold(0))
    np.testing.assert_array_equal(first, draw(rule.fold(1).at(jnp.int32(4)).fold(0)))
    other_key = dataclasses.replace(rule, key=jax.random.key(9)).fold(1).at(jnp.int32(4))
    for other in (rule.fold(2).at(jnp.int32(4)), rule.fold(1).at(jnp.int32(5)), base.fold(1), other_key):
        assert (draw(other.fold(0)) != first).any()
    # Of nothing else: nearly the same log-joints, as of params a rounding apart, give nearly the same q.
    assert np.abs(draw(base.fold(0), l + 1e-12) - first).max() < 1e-9
    lanes = jax.jit(jax.vmap(lambda number: base.fold(number)(l)[1]))(np.arange(2))
    np.testing.assert_allclose(lanes[0], first, rtol=1e-12)


def test_a_rule_that_draws_needs_a_key_outside_a_fit(blobs):
    model = compiled(jaxem.GMM(3).bind, jnp.asarray(blobs), jnp.ones(120))
    params = model.init(KEY, jnp.asarray(blobs), jnp.ones(120))
    with pytest.raises(TypeError, match=r"rule: Sampled draws, and outside a fit needs a random key: Sampled\(jax"):
        model.e_step(params, blobs, rule=Sampled())
    with pytest.raises(TypeError, match="rule: Sampled draws, and outside a fit"):
        Sampled()(log_joints(2))
    assert np.isfinite(float(compiled(model.e_step, params, blobs, np.ones(120), Sampled(KEY)).elbo_data))


@pytest.mark.parametrize("rule", [ReverseKL(0.5), Sampled(KEY), Tempered(3.0, KEY)], ids=lambda r: type(r).__name__)
def test_rules_work_along_any_axis_and_in_single_precision(rule):
    l = log_joints(4, (30, 4))
    for axis, array in ((-1, l), (0, l.T), (-1, l.astype(jnp.float32))):
        value, resp = rule(array, axis)
        assert value.dtype == resp.dtype == array.dtype
        assert resp.shape == array.shape
        np.testing.assert_allclose(resp.sum(axis), 1, rtol=1e-6)
        np.testing.assert_allclose(value, Exact()(array, axis)[0], rtol=1e-12)
    if isinstance(rule, ReverseKL):
        np.testing.assert_allclose(rule(l)[1], rule(l.T, 0)[1].T, rtol=1e-14)
        np.testing.assert_allclose(rule(l)[1], reverse_kl(jax.nn.softmax(l, -1), jnp.asarray(0.5)), rtol=1e-9)


def test_what_the_rules_promise():
    step = jnp.int32(5)
    promises = lambda rule: (bool(rule.settled(step)), bool(rule.monotone(step)))
    assert promises(Sampled(KEY)) == (False, False)
    assert promises(ReverseKL(0.5)) == (True, False)
    assert promises(ReverseKL(0.0)) == (True, True)
    assert promises(Tempered(2.0)) == (True, False)
    assert promises(Tempered(2.0, KEY)) == (False, False)  # still disturbed
    assert promises(Tempered(1.0, KEY)) == (True, True)
    assert promises(Tempered(jnp.array([3.0, 2.0, 1.0]), KEY)) == (True, True)
    assert promises(Tempered(jnp.array([3.0, 2.0, 2.0]), KEY)) == (False, False)


@pytest.mark.parametrize("lam", [-0.1, 1.1, np.nan, np.array([0.1, 0.2])])
def test_lam_is_checked_by_fit(lam, blobs):
    with pytest.raises(ValueError, match="lam: expected a number from 0 to 1; found"):
        jaxem.fit(jaxem.GMM(2), blobs, key=KEY, algorithm=jaxem.EM(ReverseKL(lam)))


def test_noise_ends_at_temperature_one_and_needs_a_key():
    l = log_joints(5)
    np.testing.assert_array_equal(Tempered(1.0, KEY)(l)[1], Tempered(1.0)(l)[1])
    np.testing.assert_array_equal(Tempered(0.5, KEY)(l)[1], Tempered(0.5)(l)[1])
    np.testing.assert_array_equal(Tempered(2.0, None, 0.7)(l)[1], Tempered(2.0)(l)[1])
    ratio = np.asarray(jnp.log(Tempered(2.0, KEY, 0.01)(l)[1]) - jnp.log(Tempered(2.0)(l)[1]))
    assert np.std(ratio - ratio.mean(1, keepdims=True)) == pytest.approx(0.01 * np.sqrt(2 / 3), rel=0.1)


@pytest.fixture(scope="module")
def best(blobs):
    return jaxem.fit(jaxem.GMM(3, "diag"), blobs, key=KEY, num_restarts=4, max_steps=60)


def test_annealing_leaves_the_symmetric_point_only_with_noise(blobs, best):
    schedule = np.concatenate([np.full(60, 10.0), np.geomspace(10, 1, 40), np.ones(100)])
    options = {"num_restarts": 4, "max_steps": 260, "key": KEY}
    model = jaxem.GMM(3, "diag", init_method="random_resp")
    stuck = jaxem.fit(model, blobs, algorithm=jaxem.EM(Tempered(schedule)), **options)
    left = jaxem.fit(model, blobs, algorithm=jaxem.EM(Tempered(schedule, KEY)), **options)
    assert bool(stuck.coincident)
    assert float(stuck.restarts.elbo.total.max()) < float(best.elbo.total) - 50
    assert not bool(left.coincident)
    assert left.restarts.counts() == {"CONVERGED": 4}
    assert float(left.elbo.total) == pytest.approx(float(best.elbo.total), abs=1e-3)


def test_fits_with_each_rule(blobs, best):
    options = {"key": KEY, "num_restarts": 2, "max_steps": 60}
    fit = lambda rule: jaxem.fit(jaxem.GMM(3, "diag"), blobs, algorithm=jaxem.EM(rule), **options)
    reverse, sampled = fit(ReverseKL(0.5)), fit(Sampled(KEY))
    assert set(reverse.restarts.counts()) == {"CONVERGED"}
    assert float(best.elbo.total) - 5 < float(reverse.elbo.total) < float(best.elbo.total)
    assert sampled.restarts.counts() == {"MAX_STEPS": 2}
    assert float(sampled.elbo.total) > float(best.elbo.total) - 20
    log_prob = float(jnp.sum(sampled.model.log_prob(sampled.params, blobs)))
    assert float(sampled.elbo.data) == pytest.approx(log_prob, rel=1e-12)
