"""Partial labels: hidden states known or restricted for some rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status
from jaxem.testing import CHECKS, check_model

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)


@pytest.fixture(scope="module")
def labelled(iris):
    from sklearn.datasets import load_iris

    known = np.where(RNG.random(150) < 0.2, load_iris().target, -1)
    return iris, known


def test_the_contract(labelled):
    x, known = labelled
    few = np.r_[0:20, 50:70, 100:120]
    model = jaxem.partly_labelled(jaxem.GMM(3, "diag"))
    assert check_model(model, (x[few], known[few]), key=KEY, num_starts=3) == list(CHECKS)


def test_labels_name_the_components(labelled):
    """Components keep the labels' order in every restart, whichever is largest."""
    x, known = labelled
    result = jaxem.fit(jaxem.partly_labelled(jaxem.GMM(3)), (x, known), key=KEY, num_restarts=4)
    assert result.status == Status.CONVERGED
    assert int(result.hits) == 4
    resp = np.asarray(result.model.posterior(result.params, (x, known)))
    np.testing.assert_array_equal(resp[known >= 0], np.eye(3)[known[known >= 0]])
    free = np.asarray(result.model.model.predict(result.params, x))
    from sklearn.datasets import load_iris

    assert (free == load_iris().target).mean() > 0.9
    assert np.asarray(result.params.mixing).argmax() != 0 or result.params.mixing[0] < 0.4


def test_all_labels_known_is_the_classical_estimate(iris):
    from sklearn.datasets import load_iris

    target = load_iris().target
    model = jaxem.partly_labelled(jaxem.GMM(3, pseudo_observations=0.0))
    result = jaxem.fit(model, (iris, target), key=KEY, max_steps=5)
    for k in range(3):
        rows = iris[target == k]
        np.testing.assert_allclose(result.params.components.mean[k], rows.mean(0), rtol=1e-9)
        np.testing.assert_allclose(
            result.params.components.covariance[k], np.cov(rows.T, ddof=0), rtol=1e-7, atol=1e-12
        )
    np.testing.assert_allclose(result.params.mixing, 1 / 3, rtol=1e-12)


def test_no_labels_is_the_model_itself(iris):
    free = jaxem.fit(jaxem.GMM(2), iris, key=KEY, num_restarts=4)
    none = jaxem.fit(jaxem.partly_labelled(jaxem.GMM(2)), (iris, np.full(150, -1)), key=KEY, num_restarts=4)
    assert float(none.elbo.total) == pytest.approx(float(free.elbo.total), abs=1e-4)


def test_a_mask_forbids(iris):
    """A forbidden component has responsibility 0, and labels are the mask with one state allowed."""
    mask = np.ones((150, 3))
    mask[:50, 2] = 0
    result = jaxem.fit(jaxem.partly_labelled(jaxem.GMM(3)), (iris, mask), key=KEY, num_restarts=4)
    resp = np.asarray(result.model.posterior(result.params, (iris, mask)))
    assert np.all(resp[:50, 2] == 0)
    np.testing.assert_allclose(resp.sum(1), 1, rtol=1e-12)
    labels = np.where(np.arange(150) % 3 == 0, np.arange(150) // 50, -1)
    as_mask = np.where(labels[:, None] < 0, 1, labels[:, None] == np.arange(3)).astype(float)
    model = jaxem.partly_labelled(jaxem.GMM(3))
    a, b = (jaxem.fit(model, (iris, known), key=KEY, num_restarts=4) for known in (labels, as_mask))
    assert float(a.elbo.total) == pytest.approx(float(b.elbo.total), rel=1e-12)


def test_kmeans_with_labels(iris):
    from sklearn.datasets import load_iris

    known = np.full(150, -1)
    known[[0, 60, 120]] = [2, 0, 1]
    result = jaxem.fit(
        jaxem.partly_labelled(jaxem.KMeans(3)), (iris, known), key=KEY, algorithm=jaxem.EM(), num_restarts=4
    )
    labels = np.asarray(result.model.predict(result.params, (iris, known)))
    assert labels[0] == 2
    assert (labels == np.array([2, 0, 1])[load_iris().target]).mean() > 0.85


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (np.full(150, 3), r"data\[1\]: expected labels from -1 \(unknown\) to 2; found 3"),
        (np.full(150, 0.5), r"data\[1\]: expected labels .* found 0.5"),
        (np.ones((150, 2)), r"data\[1\]: expected a mask of shape \(N, 3\); found \(150, 2\)"),
        (np.full((150, 3), 0.5), r"data\[1\]: expected a mask of 0 and 1; found 0.5"),
        (np.eye(150)[:, :3], r"data\[1\]: expected a state allowed in each row; found none in row 3"),
        (np.ones((150, 3, 1)), r"data\[1\]: expected labels \(N,\) or a mask"),
    ],
)
def test_bad_labels(iris, known, message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.partly_labelled(jaxem.GMM(3)), (iris, known), key=KEY)


def test_bad_models_and_data(iris):
    with pytest.raises(TypeError, match="expected a pair"):
        jaxem.fit(jaxem.partly_labelled(jaxem.GMM(3)), iris, key=KEY)


def test_jax_sees_labels_as_data(labelled):
    x, known = labelled
    model = jaxem.partly_labelled(jaxem.GMM(3))
    fit = lambda known: jaxem.fit(model, (jnp.asarray(x), known), key=KEY, max_steps=3).elbo.total
    fits = jax.jit(jax.vmap(fit))(np.stack([known.astype(float), np.full(150, -1.0)]))
    assert np.all(np.isfinite(fits))
    assert fits[0] != fits[1]
