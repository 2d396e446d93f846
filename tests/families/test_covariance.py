"""Covariances as values: factors with an inverse and products, whatever their shape."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxem.families.covariance import SHAPES

NUM, DIM, N = 3, 4, 25


def factor(shape, seed):
    rng = np.random.default_rng(seed)
    cls, natural = SHAPES[shape], SHAPES[shape].shape(NUM, DIM)
    if not cls.correlated:
        return cls.of(jnp.asarray(rng.uniform(0.5, 2.0, natural)))
    root = rng.normal(size=natural)
    return cls.of(jnp.asarray(root @ root.swapaxes(-1, -2) + np.eye(DIM)))


def dense(value):
    return np.broadcast_to(value.dense_factor(DIM), (NUM, DIM, DIM))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_factor_is_a_matrix(shape):
    one, two = factor(shape, 0), factor(shape, 1)
    vectors = np.random.default_rng(2).normal(size=(NUM, DIM))
    close = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        dense(one) @ dense(one).swapaxes(1, 2), one.dense(DIM) * np.ones((NUM, 1, 1)), rtol=1e-12
    )
    close(dense(one.inverse()) @ dense(one), [np.eye(DIM)] * NUM)
    close(dense(one.compose(two)), dense(one) @ dense(two))
    np.testing.assert_allclose(
        one.apply(jnp.asarray(vectors)), np.einsum("kde,ke->kd", dense(one), vectors), rtol=1e-12
    )
    signs, logs = np.linalg.slogdet(dense(one))
    assert (signs > 0).all()
    close(one.log_det(DIM) * np.ones(NUM), logs)
    close(one.trace(DIM) * np.ones(NUM), (dense(one) ** 2).sum((1, 2)))
    std = np.sqrt(np.diagonal(one.dense(DIM) * np.ones((NUM, 1, 1)), axis1=1, axis2=2))
    close(one.deviations() * np.ones((NUM, DIM)), std)
    again = type(one).of_scale(one.scale)
    np.testing.assert_array_equal(dense(again), dense(one))


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_follow_the_factor(shape):
    value, rng = factor(shape, 0), np.random.default_rng(3)
    x, mean, resp = rng.normal(size=(N, DIM)), rng.normal(size=(NUM, DIM)), rng.uniform(size=(NUM, N))
    y = value.residuals(jnp.asarray(x), jnp.asarray(mean))
    np.testing.assert_allclose(y, np.einsum("kde,kne->kdn", dense(value), x[None] - mean[:, None]), rtol=1e-11)
    moved = jnp.einsum("kde,ken->kdn", dense(value), y)
    second = value.second(jnp.asarray(resp), y)
    np.testing.assert_allclose(value.congruence(second), value.second(jnp.asarray(resp), moved), rtol=1e-11)
    pairs = sum(value.pair(jnp.asarray(resp[:, n : n + 1]) * y[:, :, n], y[:, :, n]) for n in range(N))
    np.testing.assert_allclose(pairs, second, rtol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_divides_the_scatter_and_holds_columns(shape):
    value, rng = factor(shape, 0), np.random.default_rng(4)
    y, resp = rng.normal(size=(NUM, DIM, N)), jnp.asarray(rng.uniform(size=(NUM, N)))
    scatter, count = value.second(resp, jnp.asarray(y)), value.pool(jnp.sum(resp, 1))
    free = jnp.zeros(DIM, bool)
    new = value.update(scatter, scatter, count, free)
    # In coordinates whitened by the new factor the same residuals have moment 1.
    change = new.inverse().compose(value)
    identity = type(value).start(NUM, jnp.ones(DIM), None).gram()
    expected = jnp.broadcast_to(identity, scatter.shape)
    divisor = jnp.reshape(count, count.shape + (1,) * (scatter.ndim - count.ndim))
    np.testing.assert_allclose(change.congruence(scatter) / divisor, expected, atol=1e-12)
    held = value.update(scatter, scatter, count, ~free)
    np.testing.assert_allclose(dense(held), dense(value), rtol=1e-12)
    empty = value.update(0 * scatter, 0 * scatter, 0 * count, free)
    np.testing.assert_allclose(dense(empty), dense(value), rtol=1e-12)
