"""Poisson, Binomial, Bernoulli, Categorical and Exponential mixtures against scipy, and their priors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from programs import compiled

import jaxem
from jaxem.families import Bernoulli, Binomial, Categorical, Exponential, Poisson
from jaxem.families import counts as _counts

# One program each instead of dozens of single operations.
log_poisson = jax.jit(_counts.log_poisson)
log_binomial = jax.jit(_counts.log_binomial, static_argnums=1)

KEY = jax.random.key(0)
NUM, STRENGTH = 90, 2.5
RNG = np.random.default_rng(0)
GROUP = RNG.integers(0, 2, NUM)
WEIGHTS = RNG.uniform(0.5, 2.0, NUM)


@dataclasses.dataclass
class Case:
    """A family with data, planted values, and the same model in scipy's words."""

    family: object
    values: dict  # for make_params
    data: np.ndarray
    log_prob: object  # (values, x) -> (N, K)
    log_prior: object  # (values, a, m0) -> its conventional log density
    free: object  # values -> flat unconstrained coordinates
    values_of: object  # the inverse
    mode: object  # (mean, count, a, m0) -> values of one component: the textbook mode


def columns(dist):
    return lambda p, x: dist(x[:, None], p[None]).sum(-1)


def beta_prior(n):
    return lambda v, a, m0: scipy.stats.beta.logpdf(v["prob"], 1 + a * m0, 1 + a * (n - m0)).sum()


def beta_mode(n):
    def mode(mean, count, a, m0):
        alpha, beta = 1 + a * m0 + count * mean, 1 + a * (n - m0) + count * (n - mean)
        return {"prob": ((alpha - 1) / (alpha + beta - 2))[None]}

    return mode


def positive(name):
    shape = (2, -1)
    return {"free": lambda v: np.log(v[name]).ravel(), "values_of": lambda t: {name: np.exp(t).reshape(shape)}}


def probability():
    return {
        "free": lambda v: scipy.special.logit(v["prob"]).ravel(),
        "values_of": lambda t: {"prob": scipy.special.expit(t).reshape(2, -1)},
    }


LEVELS = (2, 3, 4)
PROBS = [np.array([[0.8, *[0.2 / (n - 1)] * (n - 1)], [*[0.25 / (n - 1)] * (n - 1), 0.75]]) for n in LEVELS]


def categorical_log_prob(v, x):
    return sum(np.log(p)[:, x[:, d].astype(int)].T for d, p in enumerate(v["probs"]))


def dirichlet(v, a, m0):
    parts = zip(v["probs"], np.split(m0, np.cumsum(LEVELS)[:-1]), strict=True)
    return sum(scipy.stats.dirichlet.logpdf(row / row.sum(), 1 + a * m) for p, m in parts for row in p)


def simplex_values(t):
    parts = np.split(t, np.cumsum([2 * (n - 1) for n in LEVELS])[:-1])
    logits = [np.concatenate([part.reshape(2, -1), np.zeros((2, 1))], 1) for part in parts]
    return {"probs": [scipy.special.softmax(logit, 1) for logit in logits]}


def simplex_free(v):
    return np.concatenate([(np.log(p[:, :-1]) - np.log(p[:, -1:])).ravel() for p in v["probs"]])


def categorical_mode(mean, count, a, m0):
    flat = (count * mean + a * m0) / (count + a)
    return {"probs": [part[None] for part in np.split(flat, np.cumsum(LEVELS)[:-1])]}


RATE = np.array([[2.0, 9.0], [7.0, 4.0]])
PROB = np.array([[0.2, 0.5], [0.7, 0.3]])
ITEMS = np.array([[0.8, 0.9, 0.7, 0.85], [0.25, 0.2, 0.3, 0.35]])
CASES = {
    "poisson": Case(
        Poisson(),
        {"rate": RATE},
        RNG.poisson(RATE[GROUP]),
        lambda v, x: columns(scipy.stats.poisson.logpmf)(v["rate"], x),
        lambda v, a, m0: scipy.stats.gamma.logpdf(v["rate"], 1 + a * m0, scale=1 / a).sum(),
        **positive("rate"),
        mode=lambda mean, count, a, m0: {"rate": ((a * m0 + count * mean) / (count + a))[None]},
    ),
    "binomial": Case(
        Binomial(12),
        {"prob": PROB},
        RNG.binomial(12, PROB[GROUP]),
        lambda v, x: columns(lambda x, p: scipy.stats.binom.logpmf(x, 12, p))(v["prob"], x),
        beta_prior(12),
        **probability(),
        mode=beta_mode(12),
    ),
    "bernoulli": Case(
        Bernoulli(),
        {"prob": ITEMS},
        (RNG.random((NUM, 4)) < ITEMS[GROUP]).astype(float),
        lambda v, x: columns(scipy.stats.bernoulli.logpmf)(v["prob"], x),
        beta_prior(1),
        **probability(),
        mode=beta_mode(1),
    ),
    "categorical": Case(
        Categorical(LEVELS),
        {"probs": PROBS},
        np.stack([(RNG.random(NUM)[:, None] > p[GROUP].cumsum(1)).sum(1) for p in PROBS], 1),
        categorical_log_prob,
        dirichlet,
        free=simplex_free,
        values_of=simplex_values,
        mode=categorical_mode,
    ),
    "exponential": Case(
        Exponential(),
        {"rate": np.array([[1.0, 0.05], [0.1, 1.0]])},
        RNG.exponential(np.array([[1.0, 20.0], [10.0, 1.0]])[GROUP]),
        lambda v, x: columns(lambda x, r: scipy.stats.expon.logpdf(x, scale=1 / r))(v["rate"], x),
        lambda v, a, m0: scipy.stats.gamma.logpdf(v["rate"], 1 + a, scale=1 / (a * m0)).sum(),
        **positive("rate"),
        mode=lambda mean, count, a, m0: {"rate": ((count + a) / (count * mean + a * m0))[None]},
    ),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def plain(params):
    """Values of `make_params` out of params."""
    values = vars(params).items()
    return {name: [np.asarray(p) for p in v] if isinstance(v, tuple) else np.asarray(v) for name, v in values}


def with_prior(case, a, pseudo_mean=None):
    return dataclasses.replace(case.family, pseudo_observations=a, pseudo_mean=pseudo_mean)


def data_mean(case):
    """Weighted mean of what the family takes means of, by numpy."""
    x = np.asarray(case.data, float)
    if isinstance(case.family, Categorical):
        x = np.concatenate([np.eye(n)[x[:, d].astype(int)] for d, n in enumerate(LEVELS)], 1)
    return WEIGHTS @ x / WEIGHTS.sum()


@every
def test_log_densities_agree_with_scipy_and_distrax(case):
    model = jaxem.Mixture(case.family, 2)
    params = model.make_params(mixing=np.array([0.3, 0.7]), **case.values)
    x = jnp.asarray(case.data, float)
    expected = case.log_prob(case.values, np.asarray(case.data))
    found = jax.jit(case.family.log_prob)(params.components, x)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows = x.astype(int) if isinstance(case.family, Categorical) else x
        whole = jax.jit(model.distribution(params).log_prob)(rows)
    np.testing.assert_allclose(model.log_prob(params, x), whole, rtol=1e-10)


@pytest.fixture(scope="module")
def fits():
    """Each case fitted without and with a prior by the same compiled program."""
    found = {}

    def fit(name, a):
        if (name, a) not in found:
            model = jaxem.Mixture(with_prior(CASES[name], a), 2)
            options = {"weights": WEIGHTS, "stop": jaxem.Stop(atol=1e-14), "max_steps": 4000, "num_restarts": 4}
            found[name, a] = jaxem.fit(model, CASES[name].data, key=KEY, **options)
        return found[name, a]

    return fit


def scipy_optimum(case, a):
    """(objective, values) of a quasi-Newton ascent from the planted values, by scipy alone."""
    m0 = data_mean(case)

    def split(t):
        return np.array([scipy.special.expit(t[0]), scipy.special.expit(-t[0])]), case.values_of(t[1:])

    def objective(t):
        mixing, values = split(t)
        log_prob = scipy.special.logsumexp(np.log(mixing)[None] + case.log_prob(values, case.data), axis=1)
        return -(WEIGHTS @ log_prob) - (case.log_prior(values, a, m0) if a else 0)

    start = np.concatenate([[0.0], case.free(case.values)])
    best = scipy.optimize.minimize(objective, start, jac="3-point", options={"gtol": 1e-7})
    return -best.fun, split(best.x)


@every
@pytest.mark.parametrize("a", [0.0, STRENGTH])
def test_optimum_agrees_with_scipy(case, a, fits):
    name = next(n for n, c in CASES.items() if c is case)
    fit = fits(name, a)
    assert set(fit.restarts.counts()) == {"CONVERGED"}  # no step DECREASED the penalised objective
    objective, (mixing, values) = scipy_optimum(case, a)
    order = np.argsort(-mixing)
    np.testing.assert_allclose(fit.params.mixing, mixing[order], atol=1e-5)
    for found, expected in zip(*map(jax.tree.leaves, (plain(fit.params.components), values)), strict=True):
        np.testing.assert_allclose(found, expected[order], atol=1e-5, rtol=1e-5)
    constant = 0.0
    if a:  # ELBO.params is the log prior up to a constant, the same at any params
        family = compiled(with_prior(case, a).bind, jnp.asarray(case.data, float), jnp.asarray(WEIGHTS))
        planted = family.make_params(**case.values)
        constant = case.log_prior(case.values, a, data_mean(case)) - float(family.elbo_params(planted))
    assert float(fit.elbo.total) + constant == pytest.approx(objective, abs=1e-8)


@every
def test_mode_of_one_component(case):
    a, x = STRENGTH, jnp.asarray(case.data, float)
    shift = case.values_of(case.free(case.values) + 0.3)
    first = {k: [p[:1] for p in v] if isinstance(v, list) else v[:1] for k, v in shift.items()}
    probe = case.family.make_params(**first)
    m0 = np.asarray(case.family._mean(probe))[0]
    given = tuple(p[0] for p in probe.probs) if isinstance(case.family, Categorical) else m0
    family = compiled(with_prior(case, a, given).bind, x, jnp.asarray(WEIGHTS))
    stats = compiled(family.statistics, probe, x, WEIGHTS[:, None])
    found = plain(compiled(family.m_step, probe, stats))
    expected = case.mode(data_mean(case), WEIGHTS.sum(), a, m0)
    for f, e in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12)


@every
def test_zero_strength_is_maximum_likelihood_bitwise_and_nobody_keeps_params(case):
    x, resp = jnp.asarray(case.data, float), np.random.default_rng(1).dirichlet(np.ones(2), NUM)
    resp[:, 1] = 0
    params = case.family.make_params(**case.values)
    stats = case.family.statistics(params, x, jnp.asarray(resp))
    given = tuple(p[0] for p in PROBS) if isinstance(case.family, Categorical) else np.full(x.shape[1], 0.3)
    none = case.family.m_step(params, stats)  # not bound: no prior at all
    zero = compiled(with_prior(case, 0.0, given).bind, x, jnp.asarray(WEIGHTS))
    for found, expected, old in zip(*map(jax.tree.leaves, (zero.m_step(params, stats), none, params)), strict=True):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(found[1], old[1], rtol=1e-15)
    assert float(zero.elbo_params(params)) == 0.0
    some = compiled(with_prior(case, STRENGTH, given).bind, x, jnp.asarray(WEIGHTS))
    pseudo = np.concatenate([np.ravel(p) for p in given]) if isinstance(given, tuple) else given
    np.testing.assert_allclose(some._mean(some.m_step(params, stats))[1], pseudo, rtol=1e-12)


@every
def test_planted_parameters_are_recovered(case):
    model = jaxem.Mixture(case.family, 2)
    params = model.make_params(mixing=np.array([0.6, 0.4]), **case.values)
    x, _ = model.sample(params, 2000, key=jax.random.key(3))
    fit = jaxem.fit(model, x, key=KEY, num_restarts=4)
    assert not fit.coincident
    assert float(fit.params.mixing[0]) == pytest.approx(0.6, abs=0.05)
    for found, expected in zip(*map(jax.tree.leaves, (fit.params.components, params.components)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.15, atol=0.05)


def test_impossible_observations_have_probability_zero_and_never_nan():
    x = jnp.array([[0.0, 3.0], [1.0, 3.0]])
    rates = jnp.array([[0.0, 3.0], [0.0, 0.0], [2.0, 3.0]])
    expected = scipy.stats.poisson.logpmf(np.asarray(x)[:, None], np.asarray(rates)[None]).sum(-1)
    np.testing.assert_allclose(log_poisson(x, rates), expected, rtol=1e-12)
    np.testing.assert_array_equal(log_poisson(jnp.zeros((1, 2)), jnp.zeros((2, 2))), np.zeros((1, 2)))
    probs = jnp.array([[0.0, 1.0], [1.0, 0.5], [0.5, 1.0]])
    expected = scipy.stats.binom.logpmf(np.asarray(x)[:, None], 3, np.asarray(probs)[None]).sum(-1)
    np.testing.assert_allclose(log_binomial(x, 3, probs), expected, rtol=1e-12, atol=1e-14)
    items = jnp.array([[0.0, 1.0], [1.0, 1.0]])
    family = Bernoulli()
    expected = scipy.stats.bernoulli.logpmf(np.asarray(items)[:, None], np.asarray(probs)[None]).sum(-1)
    np.testing.assert_allclose(family.log_prob(family.make_params(prob=probs), items), expected, rtol=1e-12)
    family = Categorical((2, 3))
    params = family.make_params(probs=[jnp.array([[1.0, 0.0]]), jnp.array([[0.2, 0.0, 0.8]])])
    rows = jnp.array([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(family.log_prob(params, rows)[:, 0], [np.log(0.8), -np.inf, -np.inf], rtol=1e-12)


def test_large_counts_in_both_precisions():
    rng = np.random.default_rng(0)
    rate = 1000.0 * np.array([[1.0, 3.0], [2.0, 1.0], [1.5, 1.1]])
    x = rng.poisson(rate[rng.integers(0, 3, 500)]).astype(float)
    expected = scipy.stats.poisson.logpmf(x[:, None], rate[None]).sum(-1)
    np.testing.assert_allclose(log_poisson(jnp.asarray(x), jnp.asarray(rate)), expected, rtol=1e-11)
    narrow = log_poisson(jnp.asarray(x, jnp.float32), jnp.asarray(rate, jnp.float32))
    assert narrow.dtype == jnp.float32
    own = expected.argmax(1)
    assert np.abs(np.asarray(narrow) - expected)[np.arange(500), own].max() < 2e-3
    trials = jnp.full((), 5000.0, jnp.float32)
    binomial = log_binomial(jnp.asarray(x, jnp.float32), 5000, jnp.asarray(rate, jnp.float32) / trials)
    expected = scipy.stats.binom.logpmf(x[:, None], 5000, rate[None] / 5000).sum(-1)
    assert np.abs(np.asarray(binomial) - expected)[np.arange(500), own].max() < 2e-3


def test_a_spike_of_zeros_is_degenerate_and_a_strong_prior_is_not():
    x = np.concatenate([np.zeros(40), np.random.default_rng(0).exponential(3.0, 60)])[:, None]
    fit = jaxem.fit(jaxem.Mixture(Exponential(), 2), x, key=KEY, num_restarts=2)
    assert set(fit.restarts.counts()) == {"DEGENERATE"}
    assert np.all(np.isfinite(fit.params.components.rate))
    one = jaxem.fit(jaxem.Mixture(Exponential(), 1), x, key=KEY)
    assert one.status == jaxem.Status.CONVERGED
    assert float(one.params.components.rate[0, 0]) == pytest.approx(1 / x.mean(), rel=1e-5)
    strong = jaxem.fit(jaxem.Mixture(Exponential(5.0), 2), x, key=KEY, num_restarts=2)
    assert set(strong.restarts.counts()) == {"CONVERGED"}


def test_a_column_of_zeros_is_named():
    x = np.stack([np.zeros(NUM), CASES["exponential"].data[:, 0]], 1)
    fit = jaxem.fit(jaxem.Mixture(Exponential(), 2), x, key=KEY, max_steps=5)
    assert fit.status == jaxem.Status.DEGENERATE
    assert fit.model.notes() == ["columns [0] are all zero: their rates have no maximum-likelihood estimate"]


BAD = [
    (Poisson(), [[1.0], [-1.0]], "data: expected counts 0, 1, 2, ...; found -1 in row 1, column 0"),
    (Poisson(), [[1.0, 2.5], [1.0, 1.0]], "found 2.5 in row 0, column 1"),
    (Poisson(), [1.0, 2.0], r"expected shape \(N, D\); found \(2,\); one column is numpy.reshape"),
    (Poisson(-1.0), [[1.0], [1.0]], "pseudo_observations: expected a finite number >= 0"),
    (Poisson(1.0, np.ones(3)), [[1.0], [1.0]], r"pseudo_mean: expected shape \(1,\), numbers from 0 to inf"),
    (Poisson(1.0, -np.ones(1)), [[1.0], [1.0]], r"pseudo_mean: expected shape \(1,\), numbers from 0 to inf"),
    (Binomial(5), [[1.0], [6.0]], r"expected counts 0, 1, ..., 5 out of num_trials = 5; found 6 in row 1, column 0"),
    (Binomial(0), [[1.0], [1.0]], "num_trials: expected an integer >= 1; found 0"),
    (Bernoulli(), [[1.0], [2.0]], "data: expected 0 or 1; found 2 in row 1, column 0"),
    (Bernoulli(1.0, np.array([1.5])), [[1.0], [0.0]], "pseudo_mean: expected .* from 0 to 1"),
    (Categorical((2, 3)), [[1, 1], [1, 3]], r"levels 0, ..., 2 \(num_levels\[1\] = 3\); found 3 in row 1, column 1"),
    (Categorical((2, 3)), [[0.5, 1], [1, 1]], r"levels 0, ..., 1 \(num_levels\[0\] = 2\); found 0.5 in row 0"),
    (Categorical((2, 3)), [[0, 0, 0], [1, 1, 1]], "expected 2 columns, as many as num_levels; found shape"),
    (Categorical((2, 1)), [[0, 0], [1, 0]], "num_levels: expected a tuple of integers >= 2"),
    (Categorical((2,), 1.0, (np.array([0.7, 0.7]),)), [[0], [1]], r"pseudo_mean\[0\]: expected probabilities"),
    (Exponential(), [[1.0], [-0.5]], "data: expected numbers >= 0; found -0.5 in row 1, column 0"),
    (Exponential(1.0, np.zeros(1)), [[1.0], [0.5]], "pseudo_mean: expected"),
]


@pytest.mark.parametrize(("family", "data", "message"), BAD)
def test_bad_input_is_named(family, data, message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.Mixture(family, 2), np.asarray(data, float), key=KEY)


def test_bad_params_are_named():
    with pytest.raises(ValueError, match="rate: expected finite numbers >= 0; found -1"):
        Poisson().make_params(rate=[[-1.0]])
    with pytest.raises(ValueError, match=r"rate: expected shape \(K, D\); found \(1,\)"):
        Exponential().make_params(rate=[1.0])
    with pytest.raises(ValueError, match="rate: expected finite numbers > 0; found 0"):
        Exponential().make_params(rate=[[0.0]])
    for family in (Binomial(3), Bernoulli()):
        with pytest.raises(ValueError, match="prob: expected probabilities from 0 to 1; found 1.5"):
            family.make_params(prob=[[0.5, 1.5]])
    with pytest.raises(ValueError, match=r"probs\[1\]: expected probabilities >= 0 that sum to 1"):
        Categorical((2, 2)).make_params(probs=[[[0.5, 0.5]], [[0.5, 0.6]]])
    with pytest.raises(ValueError, match=r"probs\[1\]: expected shape \(1, 3\); found \(1, 2\)"):
        Categorical((2, 3)).make_params(probs=[[[0.5, 0.5]], [[0.5, 0.5]]])
    with pytest.raises(ValueError, match="probs: expected 2 arrays, as many as num_levels; found 1"):
        Categorical((2, 3)).make_params(probs=[[[0.5, 0.5]]])


@every
def test_free_parameters_are_counted(case):
    model = jaxem.Mixture(case.family, 2)
    params = model.make_params(mixing=np.array([0.5, 0.5]), **case.values)
    assert model.num_parameters(params) == 1 + len(case.free(case.values))


def test_a_start_is_off_the_boundary_where_the_data_are():
    """A partition that follows one item exactly would fix its probability at 0 for good."""
    item = np.arange(40) % 2
    x = jnp.asarray(np.stack([item, item, item, np.arange(40) % 3 == 0], 1), float)
    for family in (Bernoulli(), Categorical((2, 2, 2, 2)), Binomial(1), Poisson()):
        model = compiled(jaxem.Mixture(family, 2).bind, x, jnp.ones(40))
        params = jax.jit(model.init)(KEY, x, jnp.ones(40))
        assert all(np.all(np.asarray(leaf) > 0.01) for leaf in jax.tree.leaves(params.components))
        step = jax.jit(lambda model, params: model.m_step(params, model.e_step(params, x).stats))
        stepped = step(model, params)  # while the M-step proper has no such bound
        assert min(float(leaf.min()) for leaf in jax.tree.leaves(stepped.components)) < 0.01
