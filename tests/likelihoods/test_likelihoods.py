import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled
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


def case(name, standardise=False):
    likelihood, outputs, x = CASES[name]
    x = jnp.asarray(x, float)
    likelihood.validate(x)
    start = likelihood.standardise if standardise else likelihood.init
    return likelihood, compiled(start, x, np.ones(6)), jnp.asarray(outputs), x


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_against_distrax(name, standardise):
    likelihood, params, outputs, x = case(name, standardise)
    found = compiled(likelihood.log_prob, params, outputs, x)
    assert found.shape == (6,)
    assert found.dtype == x.dtype
    given = likelihood.distribution(params, outputs)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        value = x.astype(jnp.int32) if name == "categorical" else x
        np.testing.assert_allclose(found, given.log_prob(value), rtol=1e-9)
        if name != "categorical":
            np.testing.assert_allclose(likelihood.mean(params, outputs), given.mean(), rtol=1e-12)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_draws_have_the_mean_and_lie_in_the_support(name, standardise):
    likelihood, params, outputs, x = case(name, standardise)
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
        np.testing.assert_allclose(
            compiled(likelihood.log_prob, params, outputs, x), expected.logpmf(x).sum(1), rtol=1e-10
        )
    likelihood, params, outputs, x = case("fixed")
    np.testing.assert_allclose(
        compiled(likelihood.log_prob, params, outputs, x), stats.norm(OUT, 0.7).logpdf(x).sum(1), rtol=1e-12
    )


WEIGHTS = np.array([1.0, 0, 2, 1, 0.5, 3])


def independent(name, x):
    """(N,) log-likelihood of independent columns, at the weighted closed-form estimates of each."""
    mean, n = np.average(x, 0, WEIGHTS), 16
    spread = np.sqrt(np.average((x - mean) ** 2, 0, WEIGHTS))
    if name == "categorical":
        share = np.array([[WEIGHTS @ (column == code) / WEIGHTS.sum() for code in range(4)] for column in x.T])
        return np.log(np.array([[max(share[d, int(v)], 1e-9) for d, v in enumerate(row)] for row in x])).sum(1)
    scale = {"fixed": 0.7, "columns": np.array([0.5, 1.0, 2.0]), "shared": spread, "predicted": 1.001 * spread}
    laws = {"bernoulli": stats.bernoulli, "poisson": stats.poisson, "binomial": lambda mean: stats.binom(n, mean / n)}
    return stats.norm(mean, scale[name]).logpdf(x).sum(1) if name in scale else laws[name](mean).logpmf(x).sum(1)


@pytest.mark.parametrize("name", CASES)
def test_an_output_of_zero_says_that_columns_are_independent(name):
    likelihood, _, outputs, x = case(name)
    params = compiled(likelihood.standardise, x, WEIGHTS)
    found = compiled(likelihood.log_prob, params, jnp.zeros_like(outputs), x)
    gap = (independent(name, np.asarray(x)) - found)[WEIGHTS > 0]
    unseen = 3 * np.log1p(0.5 / 8.5) if name == "categorical" else 0  # half an observation for levels of no row
    assert (gap > -1e-8).all()
    assert (gap < unseen + 1e-8).all()


@pytest.mark.parametrize("name", ["bernoulli", "binomial", "poisson", "categorical"])
def test_columns_of_one_value_have_finite_coordinates(name):
    likelihood, _, outputs, _ = case(name)
    for value in {"bernoulli": (0.0, 1.0), "binomial": (0.0, 16.0)}.get(name, (0.0,)):
        x = jnp.full((6, 3), value)
        params = compiled(likelihood.standardise, x, np.ones(6))
        found = compiled(likelihood.log_prob, params, jnp.zeros_like(outputs), x)
        assert ((found > -0.6) & (found <= 0)).all()  # half an observation of another value
        inputs = likelihood.inputs(x, jnp.ones(6))
        assert inputs == () or (inputs.scale == 0.5).all()


def test_a_unit_of_a_count_s_output_is_about_a_deviation():
    rng = np.random.default_rng(0)
    wide, narrow = rng.poisson(1e4 * rng.lognormal(0, 0.5, 5000)), rng.poisson(1e4, 5000)
    x = jnp.asarray(np.stack([wide, narrow], 1), float)
    likelihood = likelihoods.Poisson()
    params = likelihood.standardise(x, jnp.ones(5000))
    moved = likelihood.mean(params, jnp.array([[-0.5, -0.5], [0.5, 0.5]]))
    np.testing.assert_allclose(moved[1] - moved[0], x.std(0), rtol=0.05)


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_moments_of_any_units_and_offset(factor):
    from jaxem.likelihoods.columns import moments, standard

    x = RNG.normal(size=(50, 4)) * [1, 1e-3, 1e3, 1]
    x[:, 3] = -7.3
    weights = RNG.integers(0, 3, 50).astype(float)
    data = jnp.asarray(x * factor, jnp.float32)
    data = data.at[jnp.flatnonzero(weights == 0)].set(jnp.finfo(jnp.float32).max)  # rows of weight 0 count for nothing
    mean, spread = jax.jit(moments)(data, jnp.asarray(weights, jnp.float32))
    expected = np.average(x, 0, weights)
    deviation = np.sqrt(np.average((x - expected) ** 2, 0, weights))
    np.testing.assert_allclose(np.float64(mean) / factor, expected, rtol=1e-5, atol=1e-6 * deviation.max())
    np.testing.assert_allclose(np.float64(spread[:3]) / factor, deviation[:3], rtol=1e-5)
    assert spread[3] == 0
    assert mean[3] == np.float32(-7.3 * factor)
    assert standard(data, jnp.asarray(weights, jnp.float32), common=False).scale[3] == 1
    shared = standard(data, jnp.asarray(weights, jnp.float32), common=True).scale
    np.testing.assert_allclose(np.float64(shared) / factor, np.sqrt(np.mean(deviation**2)), rtol=1e-5)
    near = jnp.asarray(1e4 + RNG.normal(size=(1000, 1)), jnp.float32)
    found = np.array(moments(near, jnp.ones(1000, jnp.float32)))[:, 0]
    np.testing.assert_allclose(found[1], np.float64(near).std(), rtol=1e-5)


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


def test_gaussian_is_the_class_of_its_three_kinds():
    kinds = [likelihoods.Gaussian(scale) for scale in (1.0, "shared", "predicted")]
    assert all(isinstance(kind, likelihoods.Gaussian) for kind in kinds)
    assert [type(kind).__name__ for kind in kinds] == ["FixedGaussian", "SharedGaussian", "PredictedGaussian"]
    assert type(jax.tree.map(lambda leaf: leaf, kinds[1])) is likelihoods.SharedGaussian
    assert list(inspect.signature(likelihoods.Gaussian).parameters) == ["scale", "floor"]
    assert list(inspect.signature(likelihoods.SharedGaussian).parameters) == ["floor"]


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
