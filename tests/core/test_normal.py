import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxem import DiagonalNormal
from jaxem.core.normal import kl_divergence

RNG = np.random.default_rng(0)
LOC, LOG_SCALE = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3))
Q = DiagonalNormal(LOC, LOG_SCALE)


def test_densities_and_moments_are_scipys():
    value = RNG.normal(size=(5, 4, 3))
    expected = stats.norm(LOC, np.exp(LOG_SCALE))
    np.testing.assert_allclose(Q.log_prob(value), expected.logpdf(value).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(Q.entropy(), expected.entropy().sum(-1), rtol=1e-12)
    np.testing.assert_allclose(Q.mean(), LOC)
    np.testing.assert_allclose(Q.stddev(), expected.std(), rtol=1e-12)
    np.testing.assert_allclose(Q.variance(), expected.var(), rtol=1e-12)
    assert (Q.batch_shape, Q.event_shape) == ((4,), (3,))


def test_draws():
    z = np.asarray(Q.sample(seed=jax.random.key(0), sample_shape=(20_000,)))
    assert z.shape == (20_000, 4, 3)
    scaled = (z - LOC) / np.exp(LOG_SCALE)
    assert np.abs(scaled.mean(0)).max() < 5 / math.sqrt(20_000)
    assert np.abs((scaled**2).mean(0) - 1).max() < 5 * math.sqrt(2 / 20_000)
    assert Q.sample(seed=jax.random.key(0)).shape == (4, 3)
    assert Q.sample(seed=jax.random.key(0), sample_shape=2).shape == (2, 4, 3)
    slope = jax.jacobian(lambda q: q.sample(seed=jax.random.key(0)).sum())(Q)
    np.testing.assert_allclose(slope.loc, 1)
    np.testing.assert_allclose(slope.log_scale, Q.sample(seed=jax.random.key(0)) - LOC, rtol=1e-9)


def test_kl_is_the_mean_difference_of_log_densities():
    other = DiagonalNormal(jnp.array([0.5, -1.0, 0.0]), jnp.array([0.1, 0.6, -0.2]))
    z = Q.sample(seed=jax.random.key(1), sample_shape=(40_000,))
    gap = np.asarray(Q.log_prob(z) - other.log_prob(z))
    kl = np.asarray(Q.kl_divergence(other))
    assert (np.abs(gap.mean(0) - kl) < 5 * gap.std(0) / 200).all()
    np.testing.assert_allclose(Q.kl_per_dimension(other).sum(-1), kl, rtol=1e-12)
    assert (np.asarray(Q.kl_per_dimension(other)) > 0).all()
    np.testing.assert_array_equal(Q.kl_divergence(Q), 0)


def test_kl_with_distrax_normals():
    import distrax

    theirs = distrax.MultivariateNormalDiag(jnp.asarray(LOC), jnp.exp(LOG_SCALE))
    full = distrax.MultivariateNormalFullCovariance(jnp.zeros(3), jnp.eye(3))
    standard = DiagonalNormal.standard(3)
    expected = Q.kl_divergence(standard)
    for q, prior in ((theirs, standard), (Q, full), (theirs, full)):
        np.testing.assert_allclose(kl_divergence(q, prior), expected, rtol=1e-10)
    with pytest.raises(NotImplementedError):
        kl_divergence(Q, distrax.Independent(distrax.Laplace(jnp.zeros(3), jnp.ones(3)), 1))
    with pytest.raises(NotImplementedError, match="no closed KL divergence between object"):
        kl_divergence(object(), standard)


def test_shapes_broadcast_and_dtypes_stay():
    shared = DiagonalNormal(jnp.zeros((4, 3), jnp.float32), jnp.zeros(3, jnp.float32))
    assert shared.stddev().shape == shared.sample(seed=jax.random.key(0)).shape == (4, 3)
    assert shared.entropy().shape == (4,)
    for found in (shared.sample(seed=jax.random.key(0)), shared.log_prob(jnp.ones((4, 3), jnp.float32))):
        assert found.dtype == jnp.float32
    assert DiagonalNormal.standard(2, jnp.float32).loc.dtype == jnp.float32
    assert DiagonalNormal.standard(2).log_prob(jnp.zeros((5, 2))).shape == (5,)
    lanes = jax.vmap(lambda q: q.entropy())(Q)
    np.testing.assert_allclose(lanes, Q.entropy(), rtol=1e-14)
