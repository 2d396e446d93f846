import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxem import likelihoods
from jaxem.likelihoods.gaussian import Noise

RNG = np.random.default_rng(0)
OUT = RNG.normal(size=(6, 3))
SIGMOID = 1 / (1 + np.exp(-OUT))
CASES = {
    "bernoulli": (likelihoods.Bernoulli(), OUT, RNG.integers(0, 2, (6, 3))),
    "binomial": (likelihoods.Binomial(16), OUT, RNG.integers(0, 17, (6, 3))),
    "poisson": (likelihoods.Poisson(), OUT, RNG.poisson(3, (6, 3))),
    "categorical": (likelihoods.Categorical(4), RNG.normal(size=(6, 12)), RNG.integers(0, 4, (6, 3))),
    "fixed": (likelihoods.Gaussian(0.7), OUT, RNG.normal(size=(6, 3))),
    "columns": (likelihoods.Gaussian(jnp.array([0.5, 1.0, 2.0])), OUT, RNG.normal(size=(6, 3))),
    "shared": (likelihoods.Gaussian("shared"), OUT, RNG.normal(size=(6, 3))),
    "predicted": (likelihoods.Gaussian("predicted"), RNG.normal(size=(6, 6)), RNG.normal(size=(6, 3))),
}


def case(name):
    likelihood, outputs, x = CASES[name]
    x = jnp.asarray(x, float)
    likelihood.validate(x)
    return likelihood, likelihood.init(x, jnp.ones(6)), jnp.asarray(outputs), x


@pytest.mark.parametrize("name", CASES)
def test_against_distrax(name):
    likelihood, params, outputs, x = case(name)
    found = likelihood.log_prob(params, outputs, x)
    assert found.shape == (6,)
    assert found.dtype == x.dtype
    given = likelihood.distribution(params, outputs)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        value = x.astype(jnp.int32) if name == "categorical" else x
        np.testing.assert_allclose(found, given.log_prob(value), rtol=1e-9)
        if name != "categorical":
            np.testing.assert_allclose(likelihood.mean(params, outputs), given.mean(), rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_draws_have_the_mean_and_lie_in_the_support(name):
    likelihood, params, outputs, x = case(name)
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = jax.jit(jax.vmap(lambda key: likelihood.sample(key, params, outputs)))(keys)
    assert draws.shape == (2000, 6, 3)
    assert draws.dtype == x.dtype
    likelihood.validate(draws[0])
    mean = likelihood.mean(params, outputs)
    mean = mean @ jnp.arange(4.0) if name == "categorical" else mean
    error = 6 * draws.std(0) / np.sqrt(2000)
    assert (jnp.abs(draws.mean(0) - mean) < error).all()


def test_against_scipy():
    for name, expected in {
        "bernoulli": stats.bernoulli(SIGMOID),
        "binomial": stats.binom(16, SIGMOID),
        "poisson": stats.poisson(np.exp(OUT)),
    }.items():
        likelihood, params, outputs, x = case(name)
        np.testing.assert_allclose(likelihood.log_prob(params, outputs, x), expected.logpmf(x).sum(1), rtol=1e-10)
    likelihood, params, outputs, x = case("fixed")
    np.testing.assert_allclose(
        likelihood.log_prob(params, outputs, x), stats.norm(OUT, 0.7).logpdf(x).sum(1), rtol=1e-12
    )


def test_counts_keep_their_digits_in_float32():
    rate = np.float32(np.log(1e6))
    found = likelihoods.Poisson().log_prob((), jnp.full((1, 1), rate), jnp.full((1, 1), 1e6, jnp.float32))
    np.testing.assert_allclose(found, stats.poisson(np.exp(np.float64(rate))).logpmf(1_000_000), atol=2e-2)
    n, x = 5000, np.array([[0.0, 1, 2500, 5000]])  # beyond the table
    found = likelihoods.Binomial(n).log_prob((), jnp.zeros((1, 4)), jnp.asarray(x))
    np.testing.assert_allclose(found, stats.binom(n, 0.5).logpmf(x).sum(1), rtol=1e-12)


def test_boundary_counts_have_finite_gradients():
    for likelihood, x in ((likelihoods.Poisson(), 0.0), (likelihoods.Binomial(3), 0.0), (likelihoods.Binomial(3), 3.0)):
        value = lambda out, likelihood=likelihood, x=x: likelihood.log_prob((), out, jnp.full((1, 1), x)).sum()
        for out in (-40.0, 0.0, 20.0):
            assert jnp.isfinite(jax.grad(value)(jnp.full((1, 1), out))).all()


@pytest.mark.parametrize(
    ("likelihood", "x", "message"),
    [
        (likelihoods.Bernoulli(), [[0.0, 1.2]], "data: expected values from 0 to 1 for a Bernoulli.*1.2 in row 0, col"),
        (likelihoods.Bernoulli(), [[-0.1, 1.0]], "data: expected values from 0 to 1"),
        (likelihoods.Poisson(), [[1.0], [-1.0]], "data: expected counts 0, 1, 2.*found -1 in row 1, column 0"),
        (likelihoods.Poisson(), [[1.5]], "data: expected counts"),
        (likelihoods.Binomial(4), [[5.0]], "data: expected counts 0, 1, ..., 4"),
        (likelihoods.Binomial(0), [[0.0]], "num_trials: expected an integer >= 1; found 0"),
        (likelihoods.Categorical(3), [[3.0]], "data: expected codes 0, ..., 2 of 3 levels; found 3"),
        (likelihoods.Categorical(1), [[0.0]], "levels: expected an integer >= 2"),
        (likelihoods.Gaussian(0.0), [[0.0]], "scale: expected finite numbers > 0; found 0.0"),
        (likelihoods.Gaussian("shared", -1.0), [[0.0]], "floor: expected finite numbers >= 0; found -1.0"),
        (likelihoods.Gaussian(), [0.0], r"data: expected shape \(N, D\)"),
    ],
)
def test_what_a_likelihood_refuses(likelihood, x, message):
    with pytest.raises(ValueError, match=message):
        likelihood.validate(np.array(x))


def test_a_gaussian_knows_two_names():
    with pytest.raises(ValueError, match="scale: expected a number, 'shared' or 'predicted'; found 'free'"):
        likelihoods.Gaussian("free")


def test_noise_has_a_floor():
    shared, x = likelihoods.Gaussian("shared", floor=0.1), jnp.asarray(OUT)
    start = shared.init(x, jnp.ones(6))
    np.testing.assert_allclose(start.scale, np.sqrt(OUT.var(0).mean()))
    np.testing.assert_allclose(shared.influence(Noise(jnp.array(0.1))), 1)
    spec = shared.constraints().scale
    np.testing.assert_allclose(spec.constrain(jnp.array(-50.0), start.scale), 0.1)
    assert shared.init(jnp.ones((3, 2)), jnp.ones(3)).scale == 0.2  # constant data: above the floor
    predicted = likelihoods.Gaussian("predicted", floor=0.1)
    outputs = jnp.concatenate([jnp.zeros((1, 2)), jnp.full((1, 2), -1e3)], 1)
    expected = stats.norm(0, 0.1).logpdf([0.0, 0.3]).sum()
    np.testing.assert_allclose(predicted.log_prob((), outputs, jnp.array([[0.0, 0.3]])), [expected])


def test_a_distribution_of_the_decoder_is_summed_over_columns():
    distrax = pytest.importorskip("distrax")
    given, x = likelihoods.FromDecoder(), jnp.asarray(OUT)
    expected = stats.norm(0, 2).logpdf(OUT).sum(1)
    normal = distrax.Normal(jnp.zeros((6, 3)), jnp.full((6, 3), 2.0))
    for outputs in (normal, distrax.Independent(normal, 1)):
        np.testing.assert_allclose(given.log_prob((), outputs, x), expected)
        assert given.mean((), outputs).shape == given.sample(jax.random.key(0), (), outputs).shape == (6, 3)
    with pytest.raises(ValueError, match="decoder: expected a distribution whose log_prob"):
        given.log_prob((), distrax.Independent(normal, 2), x)
