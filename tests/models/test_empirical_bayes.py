import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem import families

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    rate = rng.gamma(3.0, 2.0, (4, 12))
    return rng.poisson(rate[rng.choice(4, 200, p=[0.4, 0.3, 0.2, 0.1])]).astype(float)


@pytest.fixture(scope="module")
def fits(counts):
    inside = jaxem.BayesianMixture(families.Poisson(), 4)
    model = jaxem.EmpiricalBayes(inside, ("concentration", "prior.rate"))
    options = {"key": KEY, "num_restarts": 4, "max_steps": 300, "stop": jaxem.Stop(atol=1e-12, rtol=0.0)}
    return jaxem.fit(model, counts, **options), jaxem.fit(inside, counts, **options)


def test_the_bound_rises_and_never_falls(fits):
    fit, plain = fits
    assert fit.restarts.counts() == {"CONVERGED": 4}
    assert float(fit.elbo.total) > float(plain.elbo.total) + 1
    trace = np.asarray(fit.trace)[: int(fit.num_steps) + 1]
    assert np.all(np.diff(trace) >= -1e-9)


def test_settings_are_stationary_and_those_of_scipy(fits):
    from scipy.optimize import minimize
    from scipy.special import digamma, gammaln

    fit, _ = fits
    model, posterior = fit.model.inside(fit.params)
    # Given the posterior, ELBO.params depends on a rate b through K a log b - b sum E lambda: b = K a / sum E lambda.
    gamma = posterior.components
    expected = 4 * model.prior.shape / jnp.sum(gamma.shape / gamma.rate, 0)
    np.testing.assert_allclose(model.prior.rate, expected, rtol=1e-4)
    c = np.asarray(posterior.mixing.concentration)
    log_mixing = digamma(c) - digamma(c.sum())
    loss = lambda t: -(gammaln(4 * np.exp(t[0])) - 4 * gammaln(np.exp(t[0])) + np.exp(t[0]) * log_mixing.sum())
    best = np.exp(minimize(loss, [0.0], tol=1e-12).x[0])
    assert float(model.concentration) == pytest.approx(best, rel=1e-3)


def test_the_model_inside_predicts(fits, counts):
    model, posterior = fits[0].model.inside(fits[0].params)
    assert model.log_prob(posterior, counts).shape == (200,)
    assert np.all(np.diff(model.expected_mixing(posterior)) <= 0)


def test_weights_and_chunks(counts):
    # One plain step, as L-BFGS takes most of the time to compile, of four programs, and sees no rows.
    model = jaxem.EmpiricalBayes(jaxem.BayesianMixture(families.Poisson(), 2), ("prior.rate",), optax.sgd(0.05), 1)
    start = jaxem.fit(model, counts, key=KEY, max_steps=0).params
    options = {"key": KEY, "params": start, "max_steps": 5, "stop": jaxem.Stop(atol=-np.inf)}
    twice = jaxem.fit(model, np.repeat(counts[:100], 2, 0), **options)
    double = np.repeat([2.0, 0.0], 100)  # as many rows as before, for the same program
    weighted = jaxem.fit(model, counts, weights=double, **options)
    chunks = jaxem.fit(jaxem.chunked(model, 70), counts, weights=double, **options)
    for other in (weighted, chunks):
        np.testing.assert_allclose(other.trace, twice.trace, rtol=1e-10)
        np.testing.assert_allclose(other.params.settings["prior.rate"], twice.params.settings["prior.rate"], rtol=1e-6)


def test_a_gaussian_prior(iris):
    model = jaxem.EmpiricalBayes(jaxem.BayesianGMM(2, "diag"), ("prior.strength", "prior.mean", "prior.dof"))
    fit = jaxem.fit(model, iris, key=KEY, max_steps=50)
    plain = jaxem.fit(model.model, iris, key=KEY, max_steps=50)
    assert float(fit.elbo.total) > float(plain.elbo.total) + 0.1
    inside, posterior = fit.model.inside(fit.params)
    # The best mean is that of the components' means, weighted by their expected precisions.
    precision = 1 / posterior.components.plug.scale**2
    weighted = jnp.sum(precision * posterior.components.mean, 0) / jnp.sum(precision, 0)
    np.testing.assert_allclose(inside.prior.mean, weighted, rtol=1e-3)


def test_what_it_does_not_answer_is_the_model_insides(fits):
    with pytest.raises(AttributeError, match="EmpiricalBayes has no log_prob; ask the model inside"):
        fits[0].model.log_prob(fits[0].params, 0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda m: jaxem.EmpiricalBayes(m, ("prior.scale",)),
            ValueError,
            "names: expected some of concentration, prior",
        ),
        (lambda m: jaxem.EmpiricalBayes(m, ()), TypeError, "names: expected a tuple of at least one name"),
        (
            lambda m: jaxem.EmpiricalBayes(jaxem.GMM(2), ("x",)),
            TypeError,
            r"model: expected one with hyperparameters\(\)",
        ),
        (
            lambda m: jaxem.EmpiricalBayes(m, ("concentration",), num_steps=0),
            ValueError,
            "num_steps: expected an integer",
        ),
    ],
)
def test_bad_input_is_named(counts, make, error, message):
    with pytest.raises(error, match=message):
        jaxem.fit(make(jaxem.BayesianMixture(families.Poisson(), 2)), counts, key=KEY)
