"""The Gaussian family against scipy, and its numbers in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled
from scipy.stats import multivariate_normal

import jaxem
from jaxem.families import Gaussian
from jaxem.families.covariance import SHAPES

NATURAL = {
    "full": lambda c: c,
    "tied": lambda c: c.mean(0),
    "diag": lambda c: np.diagonal(c, axis1=1, axis2=2),
    "spherical": lambda c: np.trace(c, axis1=1, axis2=2) / c.shape[1],
}


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(3, 4, 4))
    return rng.normal(size=(3, 4)), a @ a.transpose(0, 2, 1) + 0.5 * np.eye(4), rng.normal(size=(50, 4)) * 2


@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_equals_scipy(shape, parts):
    mean, covariance, x = parts
    params = Gaussian(shape).make_params(mean=mean, covariance=NATURAL[shape](covariance))
    expected = [multivariate_normal(m, c).logpdf(x) for m, c in zip(mean, np.asarray(params.covariance), strict=True)]
    np.testing.assert_allclose(compiled(Gaussian(shape).log_prob, params, x), np.stack(expected, 1), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_m_step_is_the_textbook_update(shape, parts):
    """Against raw weighted moments and the penalised formulas, at a large offset too."""
    mean, covariance, x = parts
    resp = np.random.default_rng(4).dirichlet(np.ones(3), 50)
    for offset in (0.0, 1e6):
        family = compiled(Gaussian(shape, 0.3).bind, jnp.asarray(x + offset), jnp.ones(50))
        start = family.make_params(mean=mean + offset, covariance=NATURAL[shape](covariance))
        new = compiled(family.m_step, start, compiled(family.statistics, start, x + offset, resp))
        count, s0, nu = resp.sum(0), x.var(0), 0.3
        centre = (resp.T @ x) / count[:, None]
        gap = x[:, None] - centre[None]
        scatter = np.einsum("nk,nkd,nke->kde", resp, gap, gap)
        expected = {
            "full": lambda: (scatter + nu * np.diag(s0)) / (count + nu)[:, None, None],
            "tied": lambda: np.stack([(scatter.sum(0) + nu * np.diag(s0)) / (count.sum() + nu)] * 3),
            "diag": lambda: (
                (np.einsum("kdd->kd", scatter)[:, :, None] * np.eye(4) + nu * np.diag(s0)) / (count + nu)[:, None, None]
            ),
            "spherical": lambda: (
                (np.einsum("kdd->k", scatter) + nu * s0.sum())[:, None, None]
                / (4 * (count + nu))[:, None, None]
                * np.eye(4)
            ),
        }[shape]()
        np.testing.assert_allclose(new.mean - offset, centre, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(new.covariance, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_penalty_is_minus_nu_kl(shape, parts):
    mean, covariance, x = parts
    family = compiled(Gaussian(shape, 0.7).bind, jnp.asarray(x), jnp.ones(50))
    params = family.make_params(mean=mean, covariance=NATURAL[shape](covariance))
    s0 = np.diag(x.var(0)) if shape != "spherical" else np.eye(4) * x.var(0).mean()
    kl = lambda c: 0.5 * (np.trace(np.linalg.solve(c, s0)) - 4 + np.linalg.slogdet(c)[1] - np.linalg.slogdet(s0)[1])
    terms = [kl(c) for c in np.asarray(params.covariance)]
    expected = -0.7 * (terms[0] if shape == "tied" else sum(terms))
    assert float(family.elbo_params(params)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_empty_component_keeps_its_mean_and_takes_the_overall_variance(shape, parts):
    mean, covariance, x = parts
    family = compiled(Gaussian(shape).bind, jnp.asarray(x), jnp.ones(50))
    start = family.make_params(mean=mean, covariance=NATURAL[shape](covariance))
    resp = np.eye(3)[np.zeros(50, int)]
    new = compiled(family.m_step, start, compiled(family.statistics, start, x, resp))
    np.testing.assert_allclose(new.mean[1:], mean[1:])
    if shape != "tied":
        s0 = x.var(0) if shape != "spherical" else np.full(4, x.var(0).mean())
        np.testing.assert_allclose(new.covariance[1], np.diag(s0), rtol=1e-10, atol=1e-12)
    assert np.isfinite(new.scale).all()


@pytest.mark.parametrize("nu", [0.0, 1e-6, 0.4])
def test_influence_is_the_share_of_a_millionth_of_a_row_whatever_the_penalty(parts, nu):
    mean, covariance, x = parts
    s0, count = np.diag(x.var(0)), np.array([50.0, 50.0, 50.0, 9.0, 1e-9])
    squares = (
        np.array([*covariance * 50, covariance[0] * 9, covariance[0]]) / np.array([1, 1e6, 1e12, 1, 1])[:, None, None]
    )
    covariances = (squares + nu * s0) / (count + nu)[:, None, None]
    family = compiled(Gaussian("full", nu).bind, jnp.asarray(x), jnp.ones(50))
    params = family.make_params(mean=mean[[0, 1, 2, 0, 0]], covariance=covariances)
    found = np.asarray(compiled(family.influence, params, count))
    gauge = np.array([1e-6, 1e-6, 1e-6, 1e-4, 0])  # nine rows are fewer than 2 (D + 1) = 10; the last one is empty
    expected = gauge / (gauge + [np.linalg.eigvals(np.linalg.solve(s0, ss)).real.min() for ss in squares])
    assert expected[0] < 1e-6
    assert expected[2] > 0.99
    if nu < 1e-3:  # the largest eigenvalue of the spread is taken up to a factor of D^(1 / 16)
        assert (found >= expected * (1 - 1e-6)).all()
        assert (found <= expected * 4 ** (1 / 16)).all()
    np.testing.assert_array_equal(found > 0.1, expected > 0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_shifts_and_scales_of_columns_do_not_matter(shape, blobs):
    base = jaxem.fit(jaxem.GMM(3, shape), blobs, key=jax.random.key(0), max_steps=30)
    scale = np.array([4.0, 4.0]) if shape == "spherical" else np.array([2.0**20, 2.0**-12])
    moved = jaxem.fit(jaxem.GMM(3, shape), blobs * scale, key=jax.random.key(0), max_steps=30)
    np.testing.assert_allclose(moved.elbo.total + 120 * np.log(scale).sum(), base.elbo.total, rtol=1e-9)
    np.testing.assert_allclose(
        np.asarray(moved.params.components.mean) / scale, base.params.components.mean, rtol=1e-8, atol=1e-8
    )
    shifted = jaxem.fit(jaxem.GMM(3, shape), blobs + 1e8, key=jax.random.key(0), max_steps=30)
    rounded = (blobs + 1e8) - 1e8
    centred = jaxem.fit(jaxem.GMM(3, shape), rounded, key=jax.random.key(0), max_steps=30)
    np.testing.assert_allclose(shifted.elbo.total, centred.elbo.total, rtol=1e-7)
    np.testing.assert_allclose(
        shifted.params.components.covariance, centred.params.components.covariance, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_two_points_far_from_the_origin(shape):
    x = np.array([[9999.0], [0.0]], np.float32)
    result = jaxem.fit(jaxem.GMM(1, shape), x, key=jax.random.key(0))
    wide = jaxem.fit(jaxem.GMM(1, shape), x.astype(np.float64) - 4999.5, key=jax.random.key(0))
    assert result.elbo.data.dtype == jnp.float32
    np.testing.assert_allclose(result.params.components.mean, [[4999.5]], rtol=1e-7)
    np.testing.assert_allclose(result.params.components.covariance, wide.params.components.covariance, rtol=1e-5)
    np.testing.assert_allclose(result.elbo.data, wide.elbo.data, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_float32_tight_clusters(shape, offset):
    """Clusters of std 1e-3 at distance 1: a centred float64 fit of the same rounded data is the reference."""
    rng = np.random.default_rng(7)
    std = 1e-3 if offset == 0 else 0.05
    centres = np.eye(4)[rng.integers(0, 4, 800)]
    x = (centres + std * rng.normal(size=(800, 4)) + offset).astype(np.float32)
    reference = jaxem.fit(jaxem.GMM(4, shape), x.astype(np.float64) - offset, key=jax.random.key(1), num_restarts=4)
    result = jaxem.fit(jaxem.GMM(4, shape), x, key=jax.random.key(1), num_restarts=4)
    assert result.elbo.data.dtype == jnp.float32
    np.testing.assert_allclose(result.elbo.data, reference.elbo.data, rtol=1e-4)
    order = lambda fit, shift: np.argsort(np.argmax(np.asarray(fit.params.components.mean) - shift, 1))
    a, b = order(result, offset), order(reference, 0)
    covariance = np.asarray(result.params.components.covariance)[a]
    np.testing.assert_allclose(
        covariance, np.asarray(reference.params.components.covariance)[b], rtol=2e-3, atol=2e-3 * std**2
    )
    np.testing.assert_allclose(
        result.params.components.mean[a] - offset, reference.params.components.mean[b], atol=1e-3 * std + 1e-7 * offset
    )


def test_a_constant_column_is_held_and_said(blobs):
    x = np.column_stack([blobs, np.full(120, 3e7)])
    plain = jaxem.fit(jaxem.GMM(3), blobs, key=jax.random.key(0), num_restarts=4)
    result = jaxem.fit(jaxem.GMM(3), x, key=jax.random.key(0), num_restarts=4)
    assert result.status == jaxem.Status.CONVERGED
    np.testing.assert_allclose(result.elbo.data, plain.elbo.data - 60 * np.log(2 * np.pi), rtol=1e-9)
    np.testing.assert_allclose(result.params.components.covariance[:, 2, 2], 1)
    assert any("columns [2] are constant" in note for note in result.warnings())


def test_collinear_columns_stay_finite(blobs):
    for dtype in (np.float32, np.float64):
        x = np.column_stack([blobs, blobs @ [1.0, 2.0]]).astype(dtype)
        result = jaxem.fit(jaxem.GMM(3), x, key=jax.random.key(0), num_restarts=8)
        leaves = jax.tree.leaves((result.params, result.elbo))
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert "NONFINITE" not in result.restarts.counts()


def test_constant_columns_change_no_choice_and_are_drawn_as_they_are(blobs):
    x = np.column_stack([blobs, np.full((120, 2), 3.0)])
    for covariance in ("full", "diag", "spherical"):
        fits = [jaxem.fit(jaxem.GMM(2, covariance), rows, key=jax.random.key(0)) for rows in (blobs, x)]
        if covariance != "spherical":  # one variance for all columns, these too
            counts = [fit.num_parameters() for fit in fits]
            assert counts[0] == counts[1]
            np.testing.assert_array_equal(fits[1].sample(20, key=jax.random.key(1))[0][:, 2:], 3.0)


@pytest.mark.parametrize(
    ("covariance", "values", "message"),
    [
        ("full", [[[1.0, 2.0], [2.0, 1.0]]] * 2, "positive definite"),
        ("full", [[[1.0, 0.5], [0.0, 1.0]]] * 2, "symmetric"),
        ("tied", [[1.0, 2.0], [2.0, 1.0]], "positive definite"),
        ("diag", [[1.0, -1.0], [1.0, 1.0]], "variances > 0; found -1.0"),
        ("spherical", [1.0, np.nan], "finite numbers"),
    ],
)
def test_given_covariances_must_be_some(covariance, values, message):
    with pytest.raises(ValueError, match=f"covariance: expected .*{message}"):
        jaxem.GMM(2, covariance).make_params([0.5, 0.5], mean=np.zeros((2, 2)), covariance=values)
    with pytest.raises(ValueError, match="mean: expected finite"):
        jaxem.GMM(2, "tied").make_params([0.5, 0.5], mean=np.full((2, 2), np.inf), covariance=np.eye(2))
