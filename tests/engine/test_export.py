"""Fits as dicts and data frames: names of columns, quantities of every family, what has no table."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import families
from jaxem.families import Binomial, Categorical, Gaussian, LinearRegression, Poisson, Product, StudentT
from jaxem.models.mean_field import MeanField

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2)) + 6.0 * (np.arange(60) % 2)[:, None]
COUNTS = RNG.poisson(3 + 5.0 * (np.arange(60) % 2)[:, None], (60, 2)).astype(float)
NAMES = ["height", "weight"]


def fitted(model, data, **options):
    return jaxem.fit(model, data, key=KEY, max_steps=2, **options)


def frame(values, names=NAMES):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(values, columns=names)


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_gaussians_have_means_and_deviations_by_column(covariance):
    fit = fitted(jaxem.GMM(2, covariance), frame(X))
    table, params = fit.to_frame(), fit.params.components
    assert list(table) == ["weight", "mean[height]", "mean[weight]", "std[height]", "std[weight]"]
    assert (table.index.name, len(table)) == ("component", 2)
    np.testing.assert_allclose(table.filter(like="mean["), params.mean)
    variances = np.diagonal(params.covariance, axis1=1, axis2=2)
    np.testing.assert_allclose(table.filter(like="std[") ** 2, variances, rtol=1e-12)
    assert fit.feature_names == ("height", "weight")
    assert "  columns   height, weight\n" in repr(fit) + "\n"


def test_other_families_say_what_they_have():
    first = fitted(jaxem.Mixture(StudentT("diag"), 2), frame(X)).to_frame()
    assert list(first)[1:] == [*(f"{q}[{n}]" for q in ("mean", "scale") for n in NAMES), "degrees_of_freedom"]
    codes = (COUNTS > 5) + 0.0
    levels = fitted(jaxem.Mixture(Categorical((2, 3)), 2), frame(codes)).to_frame()
    assert list(levels)[1:] == [f"prob[{n}={c}]" for n, num in zip(NAMES, (2, 3), strict=True) for c in range(num)]
    np.testing.assert_allclose(levels.filter(like="height").sum(axis=1), 1)
    fit = fitted(jaxem.Mixture(LinearRegression(), 2), (frame(X), X[:, 0]))
    assert list(fit.to_frame()) == ["weight", "coef[height]", "coef[weight]", "intercept", "std"]
    np.testing.assert_allclose(fit.to_frame()["intercept"], fit.params.components.intercept)
    assert list(fitted(jaxem.Mixture(Binomial(20), 2), COUNTS).to_frame()) == ["weight", "prob[0]", "prob[1]"]


def test_products_and_k_means_and_states():
    family = Product({"body": Gaussian("diag"), "visits": Poisson(), "t": StudentT("diag")})
    data = {"body": frame(X), "visits": COUNTS[:, :1], "t": X}
    fit = fitted(jaxem.Mixture(family, 2), data)
    assert fit.feature_names == ("height", "weight", "visits")  # those of t have no names
    expected = ["mean[body.height]", "mean[body.weight]", "std[body.height]", "std[body.weight]", "rate[visits]"]
    last = ["mean[t.0]", "mean[t.1]", "scale[t.0]", "scale[t.1]", "degrees_of_freedom[t]"]
    assert list(fit.to_frame()) == ["weight", *expected[:4], *last, expected[4]]  # by name, as JAX orders a dict
    table = frame(np.hstack([X[:, :1], COUNTS[:, :1]]), ["size", "visits"])
    taken_apart = fitted(jaxem.Mixture(Product({"visits": Poisson(), "size": Gaussian("diag")}), 2), table)
    assert set(taken_apart.feature_names) == {"size", "visits"}
    clusters = fitted(jaxem.KMeans(2), frame(X)).to_frame()
    assert (list(clusters), clusters.index.name) == (["centroid[height]", "centroid[weight]"], "cluster")
    fit = fitted(jaxem.HMM(Poisson(), 2), frame(COUNTS))
    assert list(fit.to_frame()) == ["initial", "to[0]", "to[1]", "rate[height]", "rate[weight]"]
    np.testing.assert_allclose(fit.to_frame()[["to[0]", "to[1]"]], fit.params.transition)
    assert fit.to_frame().index.name == "state"


def test_posteriors_are_shown_at_their_means_in_any_wrapper():
    model = jaxem.partly_labelled(jaxem.chunked(jaxem.BayesianMixture(Poisson(), 2), 40))
    fit = fitted(model, (frame(COUNTS), np.full(60, -1)))
    q = fit.params.components
    np.testing.assert_allclose(fit.to_frame().filter(like="rate["), q.shape / q.rate, rtol=1e-6)
    assert fit.feature_names == ("height", "weight")
    for family, data in ((families.Bernoulli(), (COUNTS > 4) + 0.0), (Categorical((2, 2)), (COUNTS > 4) + 0.0)):
        fit = fitted(jaxem.BayesianMixture(family, 2), data)
        a = np.asarray(fit.params.components.concentration).reshape(2, 2, 2)
        probs = fit.to_frame().filter(like="prob[").to_numpy()
        expected = (a / a.sum(-1, keepdims=True)).reshape(2, 4)
        np.testing.assert_allclose(probs, expected if probs.shape[1] == 4 else expected[:, 1::2], rtol=1e-6)


def test_what_has_no_components_has_no_frame():
    class Model(MeanField):
        pass

    fit = jaxem.fit(
        jaxem.VAE(jaxem.networks.mlp(2), jaxem.networks.mlp(2), latent_dim=1), COUNTS > 4, key=KEY, max_steps=0
    )
    with pytest.raises(TypeError, match="to_frame: expected a model of components; found VAE"):
        fit.to_frame()
    assert fit.to_dict()["params"]["encoder"][0]["w"].shape == (2, 2)


def test_a_dict_is_plain_and_becomes_json():
    fit = fitted(jaxem.GMM(2), frame(X), num_restarts=3)
    found = json.loads(json.dumps(fit.to_dict(), default=lambda array: array.tolist()))
    assert found["status"] == jaxem.Status(int(fit.status)).name
    assert found["elbo"]["total"] == float(fit.elbo.total)
    assert found["feature_names"] == NAMES
    assert found["params"]["mixing"] == fit.params.mixing.tolist()
    assert (found["num_rows"], found["total_weight"], len(found["trace"])) == (60, 60.0, 3)
    assert len(found["restarts"]["status"]) == len(found["restarts"]["elbo_total"]) == 3
    assert found["verdict"] == fit.verdict()
    assert fitted(jaxem.GMM(2), X).to_dict()["feature_names"] is None


def test_batches_tracers_and_missing_libraries_are_named(monkeypatch):
    fit = fitted(jaxem.GMM(2), X)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), fit)
    for ask in (two.to_frame, two.to_dict):
        with pytest.raises(ValueError, match=r"expected one fit; found a batch of shape \(2,\)"):
            ask()
    with pytest.raises(TypeError, match="to_dict: expected a fit of values; found tracers"):
        jax.jit(lambda fit: fit.to_dict())(fit)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"to_frame needs pandas: pip install 'jaxem\[frames\]'"):
        fit.to_frame()
