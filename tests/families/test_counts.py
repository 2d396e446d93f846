"""Counts of any size in float32, values outside the support, and draws at large rates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled

import jaxem
from jaxem import families, likelihoods

KEY = jax.random.key(0)
SIZES = (1, 10, 1e3, 1e5, 1e8, 1e10, 1e12)


def log_peak(x):
    """Log Poisson(x | x) in extended precision: Stirling's series, and exact sums below 30."""
    x = np.asarray(x, np.longdouble)
    y = 1 / np.maximum(x, 1)
    series = -np.log(2 * np.pi / y) / 2 - (y / 12 - y**3 / 360 + y**5 / 1260 - y**7 / 1680)
    exact = np.array([k * math.log(k or 1) - k - math.lgamma(k + 1) for k in np.minimum(x, 30).astype(float).ravel()])
    return np.where(x < 30, exact.reshape(x.shape), series)


def log_poisson(x, rate):
    x, rate = np.asarray(x, np.longdouble), np.asarray(rate, np.longdouble)
    return log_peak(x) - x * np.log(np.where(x > 0, x, 1) / np.where(x > 0, rate, 1)) + (x - rate)


def log_binomial(x, n, prob):
    x, prob = np.asarray(x, np.longdouble), np.asarray(prob, np.longdouble)
    return log_poisson(x, n * prob) + log_poisson(n - x, n * (1 - prob)) - log_peak(n)


def around(mean, spread):
    return np.float32(np.random.default_rng(0).normal(mean, np.sqrt(spread)).round())


@pytest.fixture(scope="module")
def share():
    """Factors of 0.9 to 1.1 (400, 2), for rates about each size."""
    return np.random.default_rng(1).uniform(0.9, 1.1, (400, 2))


def test_float32_log_probabilities_of_any_count(share):
    for size in SIZES:
        x = np.maximum(around(size * share, size), 0)
        # The other components are far away, one of them where an outlier would be.
        rate = np.float32(size * np.array([[1.0, 1.05], [1.5, 0.5], [1e7, 1e3]]))
        params = families.Poisson().make_params(rate=rate)
        found = np.asarray(compiled(families.Poisson().log_prob, params, x.astype(np.float32)))
        right = log_poisson(x[:, None], rate[None]).sum(2)
        assert found.dtype == np.float32
        bound = 2e-5 + 4e-6 * ((x - rate[0]) ** 2 / size).sum(1)
        assert (np.abs(found - right)[:, 0] <= bound).all()
        np.testing.assert_allclose(found, right.astype(float), rtol=4e-6, atol=2e-5)
        n = int(np.float32(4 * size))
        family, prob = families.Binomial(n), np.float32([[0.25, 0.25], [0.1, 0.7]])
        counts = np.minimum(x, n).astype(np.float32)
        found = np.asarray(compiled(family.log_prob, family.make_params(prob=prob), counts))
        right = log_binomial(np.minimum(x, n)[:, None], n, prob[None]).sum(2)
        np.testing.assert_allclose(found, right.astype(float), rtol=4e-6, atol=5e-5)


def test_float32_likelihoods_of_any_count(share):
    poisson = jax.jit(likelihoods.Poisson().log_prob)
    for size in SIZES:
        outputs = np.log(size * share).astype("f4")
        rate = np.exp(outputs.astype(np.longdouble))
        x = np.maximum(around(rate.astype(float), size), 0)
        right = log_poisson(x, rate).sum(1).astype(float)
        np.testing.assert_allclose(poisson((), outputs, jnp.asarray(x)), right, rtol=2e-6, atol=1e-3)
    for n in (16, 4000, 10**8, 10**12):
        n = int(np.float32(n))
        outputs = np.float32(3 * (share - 1) * 10)
        prob = 1 / (1 + np.exp(-outputs.astype(np.longdouble)))
        x = np.clip(around((n * prob).astype(float), (n * prob * (1 - prob)).astype(float)), 0, n)
        x[:2, 0], outputs[:2, 0] = (0, n), (-40, 40)
        prob = 1 / (1 + np.exp(-outputs.astype(np.longdouble)))
        found = jax.jit(likelihoods.Binomial(n).log_prob)((), outputs, jnp.asarray(x))
        right = log_binomial(x[2:], n, prob[2:]).sum(1).astype(float)
        np.testing.assert_allclose(found[2:], right, rtol=2e-6, atol=2e-3)
        assert np.isfinite(found).all()


@pytest.mark.parametrize("outlier", [1e3, 1e5, 1e7, 1e9, 1e12])
def test_one_huge_count(outlier):
    small = [3, 5, 4, 6, 2, 3, 4, 5, 7, 3, 2, 4, 1, 5, 6, 4, 3, 2, 5, 4]
    x = np.float32([*small, outlier])[:, None]
    fit = jaxem.fit(jaxem.Mixture(families.Poisson(), 2), x, key=KEY, num_restarts=4)
    parts = [np.log(20 / 21) + log_poisson(small, np.mean(small)), np.log(1 / 21) + log_peak([x[-1, 0]])]
    right = float(sum(part.sum() for part in parts))
    assert fit.elbo.data.dtype == jnp.float32
    assert float(fit.elbo.data) == pytest.approx(right, abs=1e-3)
    np.testing.assert_allclose(fit.params.components.rate[:, 0], [np.mean(small), x[-1, 0]], rtol=1e-6)
    assert float(jaxem.bic(fit, x)) == pytest.approx(-2 * right + 3 * np.log(21), abs=2e-3)


def test_derivatives_of_log_probabilities():
    """D log p / d rate = x / rate - 1, also next to the count, at a count of 0 and where another rate is 0."""
    rate, x = jnp.array([[2.0], [3.0], [9.0], [0.0]]), jnp.array([[0.0], [3.0]])
    value = lambda rate: jnp.where(
        rate[:, 0] > 0, families.Poisson().log_prob(families.poisson.PoissonParams(rate), x), 0
    )
    gradient = jax.jit(jax.grad(lambda rate: value(rate)[:, :3].sum()))(rate)
    np.testing.assert_allclose(gradient[:3, 0], 3 / rate[:3, 0] - 2, atol=1e-12)
    assert np.isfinite(gradient).all()
    for n in (16, 5000):
        x = jnp.array([[0.0, 3.0, 8.0, n]])
        outputs = jnp.array([[1.0, -1.0, 0.01, 3.0]])
        gradient = jax.jit(jax.grad(lambda o, n=n, x=x: likelihoods.Binomial(n).log_prob((), o, x).sum()))(outputs)
        np.testing.assert_allclose(gradient, x - n * jax.nn.sigmoid(outputs), rtol=1e-9, atol=1e-9)
    x, outputs = jnp.array([[0.0, 3.0, 1e6]]), jnp.array([[1.0, 1.0, 13.8]])
    gradient = jax.jit(jax.grad(lambda o: likelihoods.Poisson().log_prob((), o, x).sum()))(outputs)
    np.testing.assert_allclose(gradient, x - jnp.exp(outputs), rtol=1e-9)


IMPOSSIBLE = [
    (families.Poisson(), {"rate": [[2.0], [0.0]]}, [-1, 0.5, -3e9, np.inf]),
    (families.Binomial(3), {"prob": [[0.5], [1.0]]}, [-1, 0.5, 4]),
    (families.Bernoulli(), {"prob": [[0.5], [1.0]]}, [-1, 0.5, 2]),
    (families.Categorical((3,)), {"probs": [np.full((2, 3), 1 / 3)]}, [-1, 0.5, 3]),
    (families.Exponential(), {"rate": [[2.0], [3.0]]}, [-1, -1e-9]),
    (families.Gamma(), {"shape": [[2.0], [0.5]], "rate": [[1.0], [1.0]]}, [-1, 0]),
]
UNLIKELY = [
    (likelihoods.Poisson(), 1, [-1, 0.5]),
    (likelihoods.Binomial(3), 1, [-1, 0.5, 4]),
    (likelihoods.Binomial(3000), 1, [-1, 0.5, 3001]),
    (likelihoods.Bernoulli(), 1, [-0.1, 1.1]),
    (likelihoods.Categorical(3), 3, [-1, 0.5, 3]),
]


@pytest.mark.parametrize(("family", "values", "bad"), IMPOSSIBLE, ids=lambda v: getattr(type(v), "__name__", None))
def test_families_give_impossible_values_no_probability(family, values, bad):
    params = family.make_params(**{k: v if k == "probs" else np.asarray(v) for k, v in values.items()})
    rows = np.append(np.asarray(bad, float), 1.0)[:, None]
    found = np.asarray(compiled(family.log_prob, params, rows))
    np.testing.assert_array_equal(found[:-1], -np.inf)
    assert np.isfinite(found[-1, 0])


@pytest.mark.parametrize(("likelihood", "width", "bad"), UNLIKELY, ids=lambda v: getattr(type(v), "__name__", None))
def test_likelihoods_give_impossible_values_no_probability(likelihood, width, bad):
    rows = np.append(np.asarray(bad, float), 1.0)[:, None]
    found = np.asarray(compiled(likelihood.log_prob, (), np.zeros((len(rows), width)), rows))
    np.testing.assert_array_equal(found[:-1], -np.inf)
    assert np.isfinite(found[-1])


def test_draws_have_the_mean_and_variance_of_any_rate():
    num, family = 40_000, families.Poisson()
    rates = np.float32([0.5, 50, 1e5, 1.01e5, 3e9, 1e12])
    x = np.asarray(compiled(family.sample, KEY, family.make_params(rate=rates[None]), np.zeros(num, int)), np.float64)
    np.testing.assert_allclose((x.mean(0) - rates) / np.sqrt(rates / num), 0, atol=4)
    assert (np.abs(x.var(0) / rates - 1) < 4 * np.sqrt((2 + 1 / rates) / num)).all()
    outputs = jnp.broadcast_to(jnp.log(rates)[None], (num, 6))
    y = np.asarray(compiled(likelihoods.Poisson().sample, KEY, (), outputs), np.float64)
    np.testing.assert_allclose(y.mean(0) / rates, 1, atol=0.03)
    for n in (20, 10**6, 10**12):
        family, prob = families.Binomial(n), np.float32([1e-8, 0.001, 0.3, 0.5, 1])
        params = family.make_params(prob=prob[None])
        x = np.asarray(compiled(family.sample, KEY, params, np.zeros(num, int)), np.float64)
        p = prob.astype(float)
        spread = n * p * (1 - p)
        assert (np.abs(x.mean(0) - n * p) <= 4 * np.sqrt(spread / num) + 1e-7 * n * p).all()
        np.testing.assert_allclose(x.var(0)[2:4] / spread[2:4], 1, atol=0.03)
        assert (x[:, 4] == np.float32(n)).all()
        assert ((x >= 0) & (x <= np.float32(n))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_counts_arranged_for_a_fit_say_the_same(dtype):
    """An E-step takes counts as they are, or with their logarithms taken; an empty column has no size."""
    x = np.random.default_rng(0).poisson([3.0, 4000.0, 0.0], (200, 3)).astype(dtype)
    rate = np.array([[3.0, 4000.0, 0.0], [30.0, 10.0, 2.0]], dtype)
    for family, data in (
        (families.Poisson(), jnp.asarray(x)),
        (families.Product({"a": families.Poisson()}), {"a": jnp.asarray(x)}),
    ):
        model = jaxem.Mixture(family, 2)
        params = families.Poisson().make_params(rate=rate)
        components = {"a": params} if isinstance(data, dict) else params
        params = type(model).params_type(jnp.asarray([0.5, 0.5], dtype), components)
        assert model.arrange(data) is data or isinstance(data, dict)  # not bound: nothing to be relative to
        model = compiled(model.bind, data, jnp.ones(200, dtype))
        rows = model.arrange(data)
        assert all(leaf.shape[0] == 200 for leaf in jax.tree.leaves(rows))
        plain, arranged = (compiled(model.log_joint, params, d) for d in (data, rows))
        np.testing.assert_allclose(arranged, plain, rtol=1e-12 if dtype == np.float64 else 2e-6)
        e_step = jax.jit(lambda m, p, d: m.at(p).e_step(d, jnp.ones(200, dtype), jaxem.Exact()))
        plain, arranged = (e_step(model, params, d) for d in (data, rows))
        for a, b in zip(*map(jax.tree.leaves, (arranged, plain)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12 if dtype == np.float64 else 2e-6)


def test_no_counts_among_arranged_rows():
    """Within a caller's program nothing was looked at: -inf, as for rows as they are."""
    x = jnp.array([[1.0, 2.0], [-1.0, 2.0], [0.5, 2.0], [jnp.nan, 2.0], [0.0, 0.0]])
    family = compiled(families.Poisson().bind, jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.ones(2))
    params = family.make_params(rate=np.array([[1.0, 2.0], [0.0, 2.0]]))
    found = np.asarray(family.log_prob(params, family.arrange(x)))
    np.testing.assert_allclose(found, family.log_prob(params, x), rtol=1e-12)
    assert np.isneginf(found[1:4]).all()
    assert np.isneginf(found[0, 1])


@pytest.mark.parametrize("algorithm", [jaxem.OnlineEM(50), jaxem.GradientAscent()], ids=["online", "gradient"])
def test_other_algorithms_take_arranged_counts(algorithm):
    x = np.random.default_rng(0).poisson(np.repeat([[2.0, 9.0], [8.0, 3.0]], 100, 0)).astype(float)
    model = jaxem.Mixture(families.Poisson(), 2)
    fit = jaxem.fit(model, x, key=KEY, algorithm=algorithm, max_steps=20, num_restarts=2)
    assert float(fit.elbo.data) == pytest.approx(float(fit.model.elbo_data(fit.params, x)), rel=1e-12)
