"""The quantities of the theory of EM, as identities along a real fit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled

import jaxem
from jaxem import Exact, Hard, Tempered

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def steps(iris):
    """A model, weights and six params along EM."""
    x, weights = jnp.asarray(iris), jnp.asarray(RNG.uniform(0.5, 2, 150))
    model = compiled(jaxem.GMM(3).bind, x, weights)
    params = [model.init(KEY, x, weights)]
    for _ in range(5):
        params.append(compiled(model.m_step, params[-1], compiled(model.e_step, params[-1], x, weights).stats))
    return model, x, weights, params


def test_the_gain_splits_into_q_and_the_cross_term(steps):
    """Delta log-likelihood = Delta Q - Delta cross term, and the latter is never positive."""
    model, x, weights, params = steps
    for old, new in itertools.pairwise(params):
        before = compiled(model.decompose, old, old, x, weights)
        after = compiled(model.decompose, new, old, x, weights)
        gain = float(after.log_evidence - before.log_evidence)
        delta_q = float(after.expected_log_joint - before.expected_log_joint)
        delta_cross = float(after.expected_log_posterior - before.expected_log_posterior)
        assert gain == pytest.approx(delta_q - delta_cross, abs=1e-9)
        assert delta_cross <= 1e-9
        assert gain > 0
        likelihoods = [float(jnp.sum(weights * model.log_prob(p, x))) for p in (old, new)]
        assert likelihoods[1] - likelihoods[0] == pytest.approx(gain, abs=1e-9)


def test_the_cross_term_never_exceeds_minus_the_entropy(steps):
    """Gibbs' inequality at any params, with equality where q is their posterior: two things, two names."""
    model, x, weights, params = steps
    own = compiled(model.decompose, params[2], params[2], x, weights)
    assert float(own.expected_log_posterior) == pytest.approx(-float(own.entropy), abs=1e-9)
    assert float(own.kl) == pytest.approx(0, abs=1e-9)
    for other in (params[0], params[5]):
        terms = compiled(model.decompose, other, params[2], x, weights)
        assert float(terms.entropy) == pytest.approx(float(own.entropy), rel=1e-12)
        assert float(terms.expected_log_posterior) < -float(own.entropy) - 1e-3


def test_jensens_gap_is_the_kl(steps):
    model, x, weights, params = steps
    for rule in (Exact(), Tempered(3.0), Hard()):
        terms = compiled(model.decompose, params[4], params[1], x, weights, rule)
        assert float(terms.log_evidence - terms.elbo) == pytest.approx(float(terms.kl), rel=1e-9)
        assert float(terms.elbo) == pytest.approx(float(terms.expected_log_joint + terms.entropy), rel=1e-12)
        difference = terms.expected_log_joint - terms.expected_log_posterior
        assert float(difference) == pytest.approx(float(terms.log_evidence), rel=1e-9)


def test_the_f_function_is_maximised_in_q_by_the_posterior(steps):
    """No other q of many has a higher F(q, theta), and its gradient on the simplex vanishes at the posterior alone."""
    model, x, _, params = steps
    log_joint = model.log_joint(params[3], x)
    resp = model.posterior(params[3], x)
    best = jaxem.decompose(log_joint, resp).elbo
    for size in (1e-3, 0.1, 1.0):
        other = jax.nn.softmax(jnp.log(resp + 1e-12) + size * jnp.asarray(RNG.normal(size=resp.shape)), 1)
        assert np.all(np.asarray(jaxem.decompose(log_joint, other).elbo) <= np.asarray(best) + 1e-12)
    np.testing.assert_allclose(best, model.log_prob(params[3], x), rtol=1e-12)


def test_q_is_what_the_m_step_maximises(steps):
    model, x, weights, params = steps
    q = lambda p: compiled(model.decompose, p, params[0], x, weights).expected_log_joint + model.elbo_params(p)
    at = [float(q(p)) for p in params]
    assert np.argmax(at) == 1


def test_sums_are_weighted_and_in_blocks(steps):
    """The sums equal those of the plain formula, rows of weight 0 count for nothing, and 5000 rows go by blocks."""
    model, x, _, params = steps
    many = jnp.tile(x, (34, 1))
    weights = jnp.asarray(RNG.integers(0, 3, many.shape[0]).astype(float))
    terms = compiled(model.decompose, params[1], params[0], many, weights)
    q, log_joint = (np.asarray(f(p, many)) for f, p in ((model.posterior, params[0]), (model.log_joint, params[1])))
    assert float(terms.expected_log_joint) == pytest.approx(
        np.sum(np.asarray(weights)[:, None] * q * log_joint), rel=1e-10
    )
