"""Bad input: one row a mistake, and the message names the argument, what was found and what was expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.engine import table as _table

X = np.random.default_rng(0).normal(size=(10, 2))
KEY = jax.random.key(0)
GMM2 = jaxem.GMM(2)
GOOD = GMM2.make_params(mixing=[0.5, 0.5], mean=np.zeros((2, 2)), covariance=np.stack([np.eye(2)] * 2))


def nan_at(x, value=np.nan):
    x = x.copy()
    x[3, 1] = value
    return x


CASES = {
    "nan": (GMM2, nan_at(X), {}, ValueError, "data: expected finite numbers; found nan in row 3, column 1"),
    "inf": (GMM2, nan_at(X, np.inf), {}, ValueError, "data: expected finite"),
    "kmeans nan": (jaxem.KMeans(2), nan_at(X), {}, ValueError, "data: expected finite"),
    "one axis": (GMM2, X[:, 0], {}, ValueError, r"data: expected shape \(N, D\); found \(10,\)"),
    "kmeans one axis": (jaxem.KMeans(2), X[:, 0], {}, ValueError, r"data: expected shape \(N, D\)"),
    "no columns": (GMM2, X[:, :0], {}, ValueError, "data: expected at least one column"),
    "N < K": (jaxem.GMM(11), X, {}, ValueError, "data: expected at least num_components = 11 rows; found 10"),
    "kmeans N < K": (jaxem.KMeans(11), X, {}, ValueError, "data: expected at least num_clusters = 11 rows; found 10"),
    "K = 0": (jaxem.GMM(0), X, {}, ValueError, "num_components: expected an integer >= 1; found 0"),
    "K float": (jaxem.GMM(2.5), X, {}, TypeError, "num_components: expected an integer >= 1; found 2.5"),
    "kmeans K = 0": (jaxem.KMeans(0), X, {}, ValueError, "num_clusters: expected an integer >= 1; found 0"),
    "empty": (GMM2, X[:0], {}, ValueError, r"data: expected at least one row; found shape \(0, 2\)"),
    "none": (GMM2, None, {}, ValueError, "data: expected at least one array; found none"),
    "strings": (GMM2, np.array([["a", "b"]] * 3), {}, TypeError, "data: expected real numbers; found dtype <U1"),
    "complex": (GMM2, X + 1j, {}, TypeError, "data: expected real numbers; found dtype complex128"),
    "object": (GMM2, np.array([[1, {}]]), {}, TypeError, "data: expected numbers; found a dict.* in row 0, column 1"),
    "ragged": (
        GMM2,
        [[1.0, 2.0], [3.0]],
        {},
        TypeError,
        "found 2 entries in row 0 and 1 entries in row 1",
    ),
    "two lengths": (GMM2, (X, X[:5]), {}, ValueError, r"data: .*shared leading axis; found lengths \[5, 10\]"),
    "two arrays": (GMM2, (X, X), {}, TypeError, r"data: expected one array \(N, D\); found a tuple"),
    "negative weight": (GMM2, X, {"weights": -np.ones(10)}, ValueError, "weights: expected numbers >= 0; found -1"),
    "zero weights": (GMM2, X, {"weights": np.zeros(10)}, ValueError, "weights: expected at least one positive"),
    "nan weight": (GMM2, X, {"weights": np.full(10, np.nan)}, ValueError, "weights: expected finite numbers"),
    "short weights": (GMM2, X, {"weights": np.ones(9)}, ValueError, r"weights: expected shape \(10,\).*found \(9,\)"),
    "string weights": (GMM2, X, {"weights": np.array(["a"] * 10)}, TypeError, "weights: expected real numbers"),
    "covariance": (jaxem.GMM(2, "banana"), X, {}, ValueError, "covariance: expected one of full.*found 'banana'"),
    "init": (
        jaxem.GMM(2, init_method="magic"),
        X,
        {},
        ValueError,
        "init_method: expected one of kmeans.*found 'magic'",
    ),
    "kmeans init": (jaxem.KMeans(2, init_method="magic"), X, {}, ValueError, "init_method: expected .*found 'magic'"),
    "init_size": (jaxem.GMM(5, init_size=3), X, {}, ValueError, "init_size: expected at least num_components = 5"),
    "num_active": (
        jaxem.GMM(2, num_active=3),
        X,
        {},
        ValueError,
        "num_active: expected an integer from 1 to 2; found 3",
    ),
    "penalty": (jaxem.GMM(2, pseudo_observations=-1.0), X, {}, ValueError, "pseudo_observations: .*found -1.0"),
    "params structure": (
        GMM2,
        X,
        {"params": {"mean": X[:2]}},
        TypeError,
        "params: expected MixtureParams.*found a dict",
    ),
    "params shape": (jaxem.GMM(3), X, {"params": GOOD}, ValueError, r"params.mixing: expected shape \(3,\); found"),
    "params without R": (GMM2, X, {"params": GOOD, "num_restarts": 4}, ValueError, r"expected shape \(4, 2\)"),
    "params nan": (
        GMM2,
        X,
        {"params": jax.tree.map(lambda a: a * jnp.nan, GOOD)},
        ValueError,
        "params.mixing: expected finite",
    ),
    "params mixing": (
        GMM2,
        X,
        {"params": jaxem.models.mixture.MixtureParams(jnp.array([0.9, 0.9]), GOOD.components)},
        ValueError,
        "params.mixing: expected proportions that sum to 1",
    ),
    "old integer key": (GMM2, X, {"key": 0}, TypeError, "key: expected a JAX random key.*found 0"),
    "many keys": (GMM2, X, {"key": jax.random.split(KEY)}, ValueError, "key: expected one key; found an array of keys"),
    "num_restarts": (GMM2, X, {"num_restarts": 0}, ValueError, "num_restarts: expected an integer >= 1; found 0"),
    "num_restarts float": (GMM2, X, {"num_restarts": 2.0}, TypeError, "num_restarts: expected an integer"),
    "restart_batch": (GMM2, X, {"restart_batch": 0}, ValueError, "restart_batch: expected an integer >= 1; found 0"),
    "max_steps": (GMM2, X, {"max_steps": -1}, ValueError, "max_steps: expected an integer >= 0; found -1"),
    "screen": (GMM2, X, {"screen": jaxem.Screen(5, 0)}, ValueError, "screen.keep: expected an integer >= 1; found 0"),
    "model class": (jaxem.GMM, X, {}, TypeError, r"model: expected a jaxem model.*call it first, as in GMM\(3\)"),
    "chunk size": (jaxem.wrappers.Chunked(GMM2, 0), X, {}, ValueError, "size: expected an integer >= 1; found 0"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, monkeypatch):
    model, data, options, error, message = CASES[name]
    monkeypatch.setattr(_table, "draw", None)  # nothing may be compiled
    with pytest.raises(error, match=message):
        jaxem.fit(model, data, **{"key": KEY, **options})


def test_missing_key():
    with pytest.raises(TypeError, match="key"):
        jaxem.fit(GMM2, X)


def test_make_params_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"mean, covariance: expected \(K, D\) and \(2, 2, 2\) for 'full'"):
        GMM2.make_params(mixing=[0.5, 0.5], mean=np.zeros((2, 2)), covariance=np.eye(2))
    with pytest.raises(ValueError, match=r"mixing: expected shape \(2,\)"):
        GMM2.make_params(mixing=[1.0], mean=np.zeros((2, 2)), covariance=np.stack([np.eye(2)] * 2))


def test_criteria_do_not_apply_to_kmeans():
    result = jaxem.fit(jaxem.KMeans(2), X, key=KEY, algorithm=jaxem.EM())
    with pytest.raises(TypeError, match="bic, aic and icl do not apply"):
        jaxem.bic(result, X)
    with pytest.raises(TypeError, match="no density"):
        result.model.log_prob(result.params, X)


def test_lists_integers_half_precision_and_older_keys_are_welcome():
    from_list = jaxem.fit(GMM2, X.tolist(), key=jax.random.PRNGKey(0), max_steps=3)
    assert from_list.elbo.data == jaxem.fit(GMM2, X, key=KEY, max_steps=3).elbo.data
    assert jaxem.fit(GMM2, np.round(X * 9).astype(int), key=KEY, max_steps=3).elbo.data.dtype == jnp.float64
    assert jaxem.fit(GMM2, X.astype(np.float16), key=KEY, max_steps=3).params.mixing.dtype == jnp.float32


def test_a_lossy_cast_to_float32_is_said_aloud():
    with jax.enable_x64(False), pytest.warns(UserWarning, match="float64 becomes float32.*subtract an offset"):
        jaxem.fit(GMM2, X + 1e8, key=KEY, max_steps=1)


def test_nothing_handed_in_is_changed_or_kept_by_reference():
    x, w = X.copy(), np.ones(10)
    result = jaxem.fit(jaxem.KMeans(2), x, key=KEY, algorithm=jaxem.EM(), weights=w, max_steps=5)
    before = jax.tree.map(np.array, result)
    np.testing.assert_array_equal(x, X)
    x[:], w[:] = 77.0, 5.0
    jax.tree.map(np.testing.assert_array_equal, before, result)
