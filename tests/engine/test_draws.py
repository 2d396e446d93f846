"""Draws for ArviZ: values, names of axes, both generations of its API."""

import sys
import types

import jax
import numpy as np
import pytest
from test_export import COUNTS, KEY, X, frame
from test_mean_field import UnknownNormal

import jaxem
from jaxem.families import Categorical, Poisson

OLD, NEW = "before 1.0", "from 1.0 on"


@pytest.fixture(params=[OLD, NEW])
def recorded(monkeypatch, request):
    """A stand-in for ArviZ that keeps what it is given, in the words of either generation."""
    fake = types.ModuleType("arviz")

    def old(posterior=None, *, coords=None, dims=None, attrs=None, **kwargs):
        return posterior, coords, dims

    def new(data, *, name=None, coords=None, dims=None, attrs=None):
        return data["posterior"], coords, dims

    fake.from_dict = old if request.param == OLD else new
    monkeypatch.setitem(sys.modules, "arviz", fake)


@pytest.mark.usefixtures("recorded")
def test_draws_of_mixtures_are_those_of_the_posterior():
    fit = jaxem.fit(jaxem.chunked(jaxem.BayesianGMM(2), 30), frame(X), key=KEY, num_restarts=2)
    values, coords, dims = fit.to_arviz(4000, key=KEY)
    assert coords == {"component": [0, 1], "column": ["height", "weight"], "other column": ["height", "weight"]}
    assert dims["covariance"] == ["component", "column", "other column"]
    assert {name: value.shape for name, value in values.items()} == {
        "weight": (1, 4000, 2),
        "mean": (1, 4000, 2, 2),
        "covariance": (1, 4000, 2, 2, 2),
    }
    q, mean = fit.params.components, values["mean"][0]
    np.testing.assert_allclose(mean.mean(0), q.mean, atol=5 * mean.std(0).max() / np.sqrt(4000))
    np.testing.assert_allclose(values["weight"].sum(-1), 1, rtol=1e-9)
    a = np.asarray(fit.params.mixing.concentration)
    np.testing.assert_allclose(values["weight"][0].mean(0), a / a.sum(), atol=0.01)


@pytest.mark.usefixtures("recorded")
def test_draws_of_other_posteriors():
    fit = jaxem.fit(jaxem.BayesianMixture(Categorical((2, 3)), 2), (COUNTS > 5) + 0.0, key=KEY, max_steps=2)
    values, coords, dims = fit.to_arviz(10, key=KEY)
    assert values["probs[1]"].shape == (1, 10, 2, 3)
    assert dims["probs[1]"] == ["component", "level of 1"]
    assert coords["level of 1"] == [0, 1, 2]
    chain = jaxem.fit(jaxem.BayesianHMM(Poisson(), 2), frame(COUNTS), key=KEY, max_steps=2)
    values, coords, dims = chain.to_arviz(10, key=KEY)
    assert dims == {"initial": ["state"], "transition": ["state", "next"], "rate": ["state", "column"]}
    assert coords["next"] == [0, 1]
    np.testing.assert_allclose(values["transition"].sum(-1), 1, rtol=1e-9)
    y = np.random.default_rng(0).normal(5.0, 1.0, 50)
    field = jaxem.fit(UnknownNormal(0.02, 2.0, 8.0), y, key=KEY)
    values, *_ = field.to_arviz(4000, key=KEY)
    means = field.model.means(field.params)
    np.testing.assert_allclose(values["mu"].mean(), means["mu"].x, atol=0.02)
    np.testing.assert_allclose(values["tau"].mean(), means["tau"].x, rtol=0.03)


@pytest.mark.usefixtures("recorded")
def test_models_without_a_posterior_and_bad_arguments_are_named():
    fit = jaxem.fit(jaxem.GMM(1), X, key=KEY, max_steps=1)
    with pytest.raises(
        TypeError, match="to_arviz: expected a model with a posterior of its parameters.*; found Mixture"
    ):
        fit.to_arviz(key=KEY)
    with pytest.raises(ValueError, match="num_draws: expected an integer >= 1; found 0"):
        fit.to_arviz(0, key=KEY)
    with pytest.raises(TypeError, match="key: expected a JAX random key"):
        fit.to_arviz(key=3)


def test_without_arviz_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    fit = jaxem.fit(jaxem.BayesianGMM(1), X, key=KEY, max_steps=1)
    with pytest.raises(ModuleNotFoundError, match=r"to_arviz needs arviz: pip install 'jaxem\[arviz\]'"):
        fit.to_arviz(2, key=KEY)


@pytest.mark.filterwarnings("ignore")
def test_arviz_summarises_them():
    arviz = pytest.importorskip("arviz")
    fit = jaxem.fit(jaxem.BayesianGMM(2), frame(X), key=KEY, max_steps=5)
    table = arviz.summary(fit.to_arviz(200, key=KEY), kind="stats")
    assert {"mean[0, height]", "weight[1]"} <= set(table.index)
    expected = np.asarray(fit.params.components.mean)[0, 0]
    assert abs(float(table.loc["mean[0, height]", "mean"]) - expected) < 1
    assert jax.tree.leaves(fit)
