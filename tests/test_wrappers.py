import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def chunks(blobs):
    return jaxem.fit(jaxem.chunked(jaxem.GMM(3), 50), blobs, key=KEY, num_restarts=3)


def test_chunked_equals_whole(blobs, chunks):
    whole = jaxem.fit(jaxem.GMM(3), blobs, key=KEY, num_restarts=3)
    np.testing.assert_allclose(chunks.elbo.total, whole.elbo.total, rtol=1e-10)
    np.testing.assert_allclose(chunks.params.components.mean, whole.params.components.mean, rtol=1e-7)
    for name in ("posterior", "predict", "log_prob"):
        a, b = (getattr(fit.model, name)(chunks.params, blobs) for fit in (chunks, whole))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert float(jaxem.bic(chunks, blobs)) == pytest.approx(float(jaxem.bic(whole, blobs)))
    assert float(jaxem.icl(chunks, blobs)) == pytest.approx(float(jaxem.icl(whole, blobs)))


def test_what_is_not_chunked_is_the_models_own(blobs, chunks):
    assert chunks.model.num_parameters(chunks.params) == 2 + 6 + 9
    assert chunks.sample(5, key=KEY)[0].shape == (5, 2)
    with pytest.raises(AttributeError):
        _ = chunks.model.no_such_thing


def test_kmeans_in_chunks(blobs):
    chunks = jaxem.fit(jaxem.chunked(jaxem.KMeans(3), 50), blobs, key=KEY, algorithm=jaxem.EM(), num_restarts=3)
    whole = jaxem.fit(jaxem.KMeans(3), blobs, key=KEY, algorithm=jaxem.EM(), num_restarts=3)
    np.testing.assert_allclose(chunks.params.centroids, whole.params.centroids, rtol=1e-12)
    assert chunks.status == jaxem.Status.CONVERGED


def test_no_array_of_rows_by_components_exists():
    """The compiled E-step of a chunked model needs far less memory than N x K."""
    x, params = jnp.zeros((40_000, 1)), jaxem.models.kmeans.KMeansParams(jnp.linspace(0.0, 1.0, 64)[:, None])
    soft = jaxem.Tempered(1.0)

    def peak(model):
        step = jax.jit(lambda p, x: model.e_step(p, x, jnp.ones(x.shape[0]), soft))
        return step.lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert peak(jaxem.chunked(jaxem.KMeans(64), 500)) < 8 * 40_000 * 64 / 10
