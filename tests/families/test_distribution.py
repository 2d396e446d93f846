"""Components given as distributions: closed form where known, gradients otherwise, checked against scipy."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from programs import compiled

import jaxem
from jaxem import constraints, families
from jaxem.algorithms import GeneralizedEM
from jaxem.families import Distribution, from_distribution

KEY = jax.random.key(0)
GUMBEL = distrax.Gumbel(0.0, 1.0)


@pytest.fixture(scope="module")
def extremes():
    """Two groups of Gumbel numbers far from the origin."""
    rng = np.random.default_rng(0)
    parts = [
        scipy.stats.gumbel_r.rvs(loc, scale, (n, 1), random_state=rng) for loc, scale, n in ((300, 2, 70), (320, 3, 30))
    ]
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def gumbels(extremes):
    model = jaxem.Mixture(from_distribution(GUMBEL), 2)
    return jaxem.fit(model, extremes, key=KEY, num_restarts=2, stop=jaxem.Stop(1e-13))


def test_maximum_likelihood_is_that_of_a_numerical_optimiser(extremes, gumbels):
    def loss(free):
        share = 1 / (1 + np.exp(-free[0]))
        log_prob = scipy.stats.gumbel_r.logpdf(extremes, free[1:3], np.exp(free[3:]))
        return -np.sum(np.logaddexp(np.log(share) + log_prob[:, 0], np.log1p(-share) + log_prob[:, 1]))

    start = np.array([0.0, 301.0, 318.0, 0.5, 0.5])
    best = scipy.optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-9})
    assert gumbels.restarts.counts() == {"CONVERGED": 2}
    assert float(gumbels.elbo.total) == pytest.approx(-best.fun, abs=1e-8)
    found = gumbels.params.components
    np.testing.assert_allclose(found["loc"][:, 0], best.x[1:3], rtol=1e-5)
    np.testing.assert_allclose(found["scale"][:, 0], np.exp(best.x[3:]), rtol=1e-5)
    assert float(gumbels.params.mixing[0]) == pytest.approx(1 / (1 + np.exp(-best.x[0])), rel=1e-5)


def test_what_a_fitted_mixture_offers(extremes, gumbels):
    model, params = gumbels.model, gumbels.params
    log_prob = model.log_prob(params, extremes)
    np.testing.assert_allclose(model.distribution(params).components_distribution.batch_shape, (2,))
    draws, component = model.sample(params, 4000, key=KEY)
    assert draws.shape == (4000, 1)
    for k in range(2):
        loc, scale = (float(params.components[name][k, 0]) for name in ("loc", "scale"))
        assert scipy.stats.kstest(np.asarray(draws)[component == k, 0], "gumbel_r", (loc, scale)).pvalue > 1e-3
    again = model.make_params(params.mixing, **params.components)
    np.testing.assert_allclose(model.log_prob(again, extremes), log_prob)
    assert jaxem.bic(gumbels, extremes) == pytest.approx(5 * np.log(100) - 2 * float(gumbels.elbo.data))
    with pytest.raises(ValueError, match="make_params: expected loc, scale; found loc"):
        model.family.make_params(loc=np.zeros((2, 1)))


CASES = {
    "columns": (distrax.Laplace(0.5, 2.0), lambda x: scipy.stats.laplace.logpdf(x, 0.5, 2.0).sum(1)),
    "batch": (
        distrax.Laplace(jnp.array([0.5, -1.0]), 2.0),
        lambda x: scipy.stats.laplace.logpdf(x, [0.5, -1.0], 2.0).sum(1),
    ),
    "beta": (distrax.Beta(2.0, 3.0), lambda x: scipy.stats.beta.logpdf(x, 2.0, 3.0).sum(1)),
    "vector": (
        distrax.MultivariateNormalDiag(jnp.array([0.1, 0.2]), jnp.array([1.0, 2.0])),
        lambda x: scipy.stats.norm.logpdf(x, [0.1, 0.2], [1.0, 2.0]).sum(1),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_log_densities_agree_with_scipy(name, dtype):
    distribution, reference = CASES[name]
    rows = np.random.default_rng(0).uniform(0.1, 0.9, (7, 2)).astype(dtype)
    spec = {"loc": constraints.Real()} if "loc" in dir(distribution) else {"alpha": constraints.Positive()}
    family = compiled(from_distribution(distribution, constraints=spec).bind, rows, jnp.ones(7, dtype))
    params = family.start(3)
    assert {leaf.shape for leaf in params.values()} == {(3, 2)}
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(dtype)}
    found = family.log_prob(params, jnp.asarray(rows))
    assert (found.shape, found.dtype) == ((7, 3), dtype)
    near = 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(found, np.repeat(reference(rows)[:, None], 3, 1), rtol=near, atol=near)


def test_known_families_have_closed_form():
    for distribution, covariance in (
        (distrax.Normal(0.0, 1.0), "diag"),
        (distrax.MultivariateNormalDiag(jnp.zeros(2)), "diag"),
        (distrax.MultivariateNormalTri(jnp.zeros(2)), "full"),
    ):
        family = from_distribution(distribution)
        assert isinstance(family, jaxem.Gaussian)
        assert family.covariance == covariance
    for distribution in (distrax.Gamma(1.0, 1.0), distrax.Bernoulli(0.0)):
        assert isinstance(from_distribution(distribution), getattr(families, distribution.name))
    held = from_distribution(distrax.Gamma(1.0, 1.0), constraints={"concentration": constraints.Fixed()})
    assert isinstance(held, Distribution)
    assert jaxem.Mixture(held, 2).climbed_by == "gradient"
    assert jaxem.Mixture(jaxem.Gaussian(), 2).climbed_by == "m_step"


def test_a_function_and_a_parameter_that_is_held(blobs):
    """Normal components of known scale: the optimum of EM with its scale fixed, by an independent loop."""

    def normal(loc, scale):
        return distrax.Normal(loc, scale)

    spec = {"loc": constraints.Real(), "scale": constraints.Fixed()}
    family = from_distribution(normal, params={"loc": 1.0, "scale": 1.5}, constraints=spec)
    found = jaxem.fit(jaxem.Mixture(family, 3), blobs, key=KEY, stop=jaxem.Stop(1e-12))
    mean, mixing = np.asarray(found.params.components["loc"]), np.asarray(found.params.mixing)
    np.testing.assert_allclose(found.params.components["scale"], 1.5)
    for _ in range(3):  # a fixed point of textbook EM
        log_joint = np.log(mixing) + scipy.stats.norm.logpdf(blobs[:, None], mean, 1.5).sum(2)
        resp = np.exp(log_joint - scipy.special.logsumexp(log_joint, 1, keepdims=True))
        mean, mixing = resp.T @ blobs / resp.sum(0)[:, None], resp.mean(0)
    np.testing.assert_allclose(found.params.components["loc"], mean, atol=1e-5)
    np.testing.assert_allclose(found.params.mixing, mixing, atol=1e-6)
    assert found.model.num_parameters(found.params) == 2 + 6


def test_a_triangle_counts_its_entries_once():
    """Of a 3 x 3 factor 6 are free, and BIC charges for these; the closed form has the same number."""
    spec = {"loc": constraints.Real(), "scale_tri": constraints.Cholesky()}
    values = {"loc": jnp.zeros(3), "scale_tri": jnp.eye(3)}
    family = from_distribution(distrax.MultivariateNormalTri, params=values, constraints=spec)
    params = {name: jnp.stack([value, value]) for name, value in values.items()}
    normal = jaxem.Gaussian().make_params(mean=np.zeros((2, 3)), covariance=np.stack([np.eye(3)] * 2))
    assert family.num_parameters(params, 2) == jaxem.Gaussian().num_parameters(normal, 2) == 2 * (3 + 6)


def test_components_that_are_not_used_stay_out(extremes):
    model = jaxem.Mixture(from_distribution(GUMBEL), 3, num_active=2)
    found = jaxem.fit(model, extremes, key=KEY, max_steps=3)
    assert found.params.mixing[2] == 0
    assert np.isfinite(found.elbo.total)


def test_em_is_refused(extremes):
    with pytest.raises(TypeError, match="algorithm: EM needs statistics and m_step"):
        jaxem.fit(jaxem.Mixture(from_distribution(GUMBEL), 2), extremes, key=KEY, algorithm=jaxem.EM())
    with pytest.raises(TypeError, match=r"Distribution\(Gumbel\) has no m_step"):
        from_distribution(GUMBEL).m_step({}, ())
    assert GeneralizedEM.climbs_by == "gradient"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: from_distribution(3),
            TypeError,
            "distribution: expected a distrax distribution or a function; found 3",
        ),
        (lambda: from_distribution(distrax.Gumbel), ValueError, "params: expected the values"),
        (
            lambda: from_distribution(GUMBEL, constraints={"width": constraints.Positive()}),
            ValueError,
            "Gumbel has no parameter 'width'; it has loc, scale",
        ),
        (
            lambda: from_distribution(lambda a: distrax.Normal(a, 1.0), params={"a": 0.0}),
            ValueError,
            "none is known for parameter 'a'",
        ),
        (
            lambda: from_distribution(distrax.Uniform(0.0, 1.0)),
            ValueError,
            "none is known for parameter 'high' of Uniform",
        ),
    ],
)
def test_what_cannot_be_a_family_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("distribution", "data", "message"),
    [
        (GUMBEL, np.zeros(5), r"expected one array \(N, D\); found shape \(5,\)"),
        (distrax.Laplace(jnp.zeros(3), 1.0), np.zeros((5, 2)), r"expected rows of shape \(3,\).*found \(2,\)"),
        (distrax.Beta(1.5, 2.0), np.array([[0.5], [1.5]] * 3), "a density under Distribution.Beta.; found row 1"),
    ],
)
def test_data_that_do_not_suit_are_named(distribution, data, message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.Mixture(from_distribution(distribution), 2), data, key=KEY)
