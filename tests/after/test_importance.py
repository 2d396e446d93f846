"""Importance sampling of posteriors: k-hat of known tails, densities against scipy, evidence that is known exactly."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from scipy.special import betaln, gammaln, logsumexp
from test_bayesian_mixture import (
    PLANTED,
    SHAPES,
    bind,
    family_evidence,
    gaussian_evidence,
    gaussian_settings,
    posterior,
    prior_of,
)
from test_mean_field import LOG_2PI, NORMAL, TIGHT, Clusters, UnknownNormal

import jaxem
from jaxem import expfam, families, priors
from jaxem.after import importance as diagnostics
from jaxem.expfam import Delta
from jaxem.models.mean_field import Factor, MeanField
from jaxem.structures.mixing import Dirichlet, Sticks

KEY = jax.random.key(0)


def as_fit(model, params):
    """What `importance` reads of a fit."""
    return jaxem.Fit(model, params, *[None] * (len(dataclasses.fields(jaxem.Fit)) - 2))


def gaps(model, params, x, num=60, weights=None):
    """The ELBO, and by how much log p - log q of draws exceeds it."""
    x = jnp.asarray(x)
    weights = jnp.ones(x.shape[0], x.dtype) if weights is None else jnp.asarray(weights)
    keys = jax.random.split(KEY, num).reshape(num // 20, 20)
    return diagnostics._gaps(model, params, x, weights, keys)


# --- Pareto smoothing


def psis(log_ratios):
    """The same from the papers, in numpy: plain ratios, Zhang and Stephens' own theta, no logarithms."""
    num = len(log_ratios)
    tail = math.ceil(min(num / 5, 3 * math.sqrt(num)))
    order = np.argsort(log_ratios)
    ratios = np.exp(log_ratios[order] - log_ratios.max())
    threshold, x = ratios[-tail - 1], ratios[-tail:] - ratios[-tail - 1]
    points = 30 + int(math.sqrt(tail))
    j = np.arange(1, points + 1)
    theta = 1 / x[-1] + (1 - np.sqrt(points / (j - 0.5))) / (3 * x[int(tail / 4 + 0.5) - 1])
    k = np.array([-np.mean(np.log(1 - t * x)) for t in theta])  # their sign of k
    profile = tail * (np.log(theta / k) + k - 1)
    weight = np.array([1 / np.sum(np.exp(profile - value)) for value in profile])
    best = np.sum(theta * weight)
    shape = np.mean(np.log(1 - best * x))
    scale = -shape / best
    shape = (tail * shape + 5) / (tail + 10)
    quantiles = scipy.stats.genpareto(shape, scale=scale).ppf((np.arange(1, tail + 1) - 0.5) / tail)
    smoothed = log_ratios.copy()
    smoothed[order[-tail:]] = np.log(np.minimum(threshold + quantiles, 1)) + log_ratios.max()
    return shape, smoothed


def pareto_draws(k, num, seed):
    return np.log(scipy.stats.genpareto(k).rvs(num, random_state=seed))


@pytest.mark.parametrize("num", [25, 1000])
def test_smoothing_is_that_of_the_papers(num):
    rng = np.random.default_rng(0)
    cases = [*[pareto_draws(k, num, 1) for k in (-0.5, 0.1, 0.6, 1.3)], rng.normal(size=num), 4 * rng.normal(size=num)]
    for log_ratios in cases:
        k_hat, smoothed = jaxem.pareto_k(log_ratios + 500)
        expected, values = psis(log_ratios)
        assert float(k_hat) == pytest.approx(expected, rel=1e-8, abs=1e-8)
        np.testing.assert_allclose(smoothed, values + 500, rtol=0, atol=1e-8)
        assert float(smoothed.max()) <= log_ratios.max() + 500
        assert np.all(np.diff(np.asarray(smoothed)[np.argsort(log_ratios)]) >= 0)


def test_known_tails():
    """Draws of scipy's generalised Pareto distribution, whose tails above any threshold keep their shape k.

    The spread of one estimate at S = 20000 is (1 + k) / sqrt(424); 12 seeds.
    """
    for k in (0.3, 0.7, 1.0, 1.5):
        found = [float(jaxem.pareto_k(pareto_draws(k, 20_000, seed))[0]) for seed in range(12)]
        assert np.mean(found) == pytest.approx(k, abs=4 * (1 + k) / math.sqrt(424 * 12))


def test_ratios_of_any_size():
    """Ratios a thousand nats apart neither overflow nor vanish, in float32 too, and make an honest k-hat."""
    log_ratios = np.random.default_rng(0).normal(size=1000) * 1000
    for dtype in (np.float64, np.float32):
        k_hat, smoothed = jaxem.pareto_k(log_ratios.astype(dtype))
        assert smoothed.dtype == dtype
        assert 5 < float(k_hat) < np.inf
        assert np.all(np.isfinite(smoothed))
    wide = np.where(np.arange(1000) < 999, -1e4, 0.0) - np.linspace(0, 1, 1000)
    assert float(jaxem.pareto_k(wide)[0]) > 0.7


def test_edges_of_smoothing():
    k_hat, same = jaxem.pareto_k(np.full(100, -3.0))
    assert float(k_hat) == -np.inf
    np.testing.assert_array_equal(same, -3.0)
    noise = -1e5 + 1e-12 * np.arange(100.0)
    assert float(jaxem.pareto_k(noise)[0]) == -np.inf
    few = np.where(np.arange(100) < 10, 0.0, -np.inf)
    assert float(jaxem.pareto_k(few)[0]) == np.inf
    tied = np.where(np.arange(100) < 15, np.linspace(0, 1, 100), -1.0)  # 5 of the tail of 20 tie with the threshold
    k_hat, smoothed = jaxem.pareto_k(tied)
    assert np.isfinite(float(k_hat))
    assert np.all(np.isfinite(smoothed))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 200)))
    np.testing.assert_allclose(jax.vmap(jaxem.pareto_k)(x)[0], [jaxem.pareto_k(row)[0] for row in x], rtol=1e-9)


@pytest.mark.parametrize(
    ("log_ratios", "error", "message"),
    [
        (np.zeros(24), ValueError, r"log_ratios: expected shape \(S,\) with S >= 25; found \(24,\)"),
        (np.zeros((30, 2)), ValueError, r"found \(30, 2\)"),
        (np.arange(30), TypeError, "log_ratios: expected floating point numbers; found dtype int64"),
        (np.r_[np.zeros(30), np.nan, np.inf], ValueError, r"log_ratios: .* found 2 of 32 that are NaN or \+inf"),
        (np.full(30, -np.inf), ValueError, "log_ratios: expected one above -inf at least; found none among 30"),
    ],
)
def test_bad_ratios_are_named(log_ratios, error, message):
    with pytest.raises(error, match=message):
        jaxem.pareto_k(log_ratios)


# --- densities of what is drawn


def dirichlet_log_prob(item, concentration):
    return scipy.stats.dirichlet.logpdf(item / item.sum(), concentration)


def prior_case(name):
    """A bound prior, its family, a posterior of two components, and scipy's log density of component k of a draw."""
    if name in SHAPES:
        settings = gaussian_settings(name)
        model = jaxem.BayesianGMM(2, name, **settings)
        x = np.random.default_rng(3).normal(size=(30, 2)) * [1.0, 0.6] + 3 * (np.arange(30) < 12)[:, None]
    else:
        model, x = jaxem.BayesianMixture(PLANTED[name][0], 2, prior_of(name)), PLANTED[name][1][30:60]
    model, params = posterior(model, x, np.eye(2)[(np.arange(30) < 12).astype(int)])
    post = params.components

    def gaussian(draw, k):
        precision, dof = np.linalg.inv(draw.covariance[k]), float(np.broadcast_to(post.dof, 2)[k])
        location, c = np.asarray(post.plug.mean[k]), np.asarray(post.inverse_scale[k])
        value = scipy.stats.multivariate_normal.logpdf(
            draw.mean[k], location, np.linalg.inv(float(post.strength[k]) * precision)
        )
        if name in ("full", "tied"):
            wishart = scipy.stats.wishart.logpdf(precision, dof, np.linalg.inv(c))
            return value + wishart / (2 if name == "tied" else 1)
        if name == "diag":
            return value + scipy.stats.gamma.logpdf(np.diag(precision), dof / 2, scale=2 / np.diag(c)).sum()
        return value + scipy.stats.gamma.logpdf(precision[0, 0], dof, scale=1 / c[0, 0])  # D / 2 = 1

    def rates(draw, k):
        return scipy.stats.gamma.logpdf(draw.rate[k], post.shape[k], scale=1 / post.rate[k]).sum()

    def bernoulli(draw, k):
        a = np.asarray(post.concentration[k])
        return scipy.stats.beta.logpdf(draw.prob[k], a[1::2], a[::2]).sum()

    def categorical(draw, k):
        parts = np.split(np.asarray(post.concentration[k]), np.cumsum(model.family.num_levels)[:-1])
        return sum(dirichlet_log_prob(np.asarray(p[k]), a) for p, a in zip(draw.probs, parts, strict=True))

    peers = {"poisson": rates, "exponential": rates, "bernoulli": bernoulli, "categorical": categorical}
    return model.prior, model.family, post, peers.get(name, gaussian)


@pytest.mark.parametrize("name", [*SHAPES, *PLANTED])
def test_densities_of_drawn_components(name):
    """Against scipy, and the average of log q - log p is the divergence."""
    prior, family, post, peer = prior_case(name)
    here = prior.at(family, post)
    draws, log_q, log_p = jax.jit(jax.vmap(here.draw))(jax.random.split(KEY, 2000))
    for s in range(3):
        one = jax.tree.map(lambda leaf: leaf[s], draws)
        np.testing.assert_allclose(log_q[s], [peer(one, k) for k in (0, 1)], rtol=1e-8)
    ratio = np.asarray(jnp.sum(log_q - log_p, 1))
    assert ratio.mean() == pytest.approx(float(here.kl()), abs=5 * ratio.std() / math.sqrt(2000))


def test_probabilities_that_underflow_have_a_density():
    family = families.Bernoulli()
    prior = priors.DirichletPrior(jnp.full(4, 1e-3))
    post = priors.DirichletPosterior(jnp.array([[1e-3, 1e-3, 1e-3, 7.001]]))
    draws, *logs = jax.jit(jax.vmap(prior.at(family, post).draw))(jax.random.split(KEY, 50))
    assert draws.prob.min() == 0
    assert np.all(np.isfinite(logs))
    gamma = priors.GammaPrior(jnp.full(2, 1e-3), jnp.ones(2))
    rates, *logs = jax.jit(jax.vmap(gamma.at(families.Poisson()).draw))(jax.random.split(KEY, 50))
    assert rates.rate.min() == 0
    assert np.all(np.isfinite(logs))


def law_of(mixing, alpha, fixed):
    return Dirichlet(alpha) if mixing == "dirichlet" else Sticks(alpha, "fixed" if fixed else "free")


@pytest.mark.parametrize("mixing", ["dirichlet", "dirichlet_process"])
def test_densities_of_drawn_proportions(mixing):
    count, alpha = jnp.array([3.0, 0.0, 10.0, 5.0]), jnp.asarray(0.7)
    for fixed in (False, True):
        law = law_of(mixing, alpha, fixed)
        post = law.update(count)
        logs, log_q, log_p = jax.jit(jax.vmap(lambda key: law.draw(key, post)))(jax.random.split(KEY, 4000))
        shares = np.exp(logs)
        if mixing == "dirichlet":
            expected = dirichlet_log_prob(shares[0], np.asarray(count + alpha))
        else:
            # The sticks recovered from the proportions, in their order: 2, 3, 0, 1.
            left = 1 - np.r_[0, np.cumsum(shares[0][[2, 3, 0]])]
            v = (shares[0][[2, 3, 0, 1]] / left)[:3] if fixed else shares[0][[2, 3, 0, 1]] / left
            a, b = np.array([11.0, 6, 4, 1]), 0.7 + np.array([8.0, 3, 0, 0])
            expected = scipy.stats.beta.logpdf(v, a[: len(v)], b[: len(v)]).sum()
        assert float(log_q[0]) == pytest.approx(expected, rel=1e-5)  # by differences of proportions
        ratio = np.asarray(log_q - log_p)
        kl = -float(law.elbo(post))
        assert ratio.mean() == pytest.approx(kl, abs=5 * ratio.std() / math.sqrt(4000))
    law = law_of(mixing, jnp.asarray(1e-4), False)
    draws = jax.jit(jax.vmap(lambda key: law.draw(key, law.update(jnp.zeros(6)))))(jax.random.split(KEY, 20))
    assert all(np.all(np.isfinite(part)) for part in draws)


# --- mixtures


@pytest.mark.parametrize("shape", ["tied", "diag"])
def test_the_posterior_of_one_gaussian_component_is_exact(shape, blobs):
    """All ratios are equal, for one component: they are the evidence."""
    settings = gaussian_settings(shape)
    model, params = posterior(jaxem.BayesianGMM(1, shape, **settings), blobs, np.ones((120, 1)))
    total, found = gaps(model, params, blobs)
    assert float(total) == pytest.approx(gaussian_evidence(blobs, shape, *settings.values()), rel=1e-12)
    np.testing.assert_allclose(found, 0, atol=1e-10)


@pytest.mark.parametrize("name", ["poisson", "categorical"])
def test_the_posterior_of_one_component_of_other_families_is_exact(name):
    family, x = PLANTED[name]
    model, params = posterior(jaxem.BayesianMixture(family, 1, prior_of(name)), x, np.ones((100, 1)))
    total, found = gaps(model, params, x)
    assert float(total) == pytest.approx(family_evidence(name, x), rel=1e-12)
    np.testing.assert_allclose(found, 0, atol=1e-10)


def test_exact_posteriors_are_recognised(blobs):
    """In both precisions, with weights, one of them chunked: k-hat -inf, and the ELBO is the evidence."""
    weights = np.r_[np.zeros(20), np.ones(50), np.full(50, 2.5)]
    for dtype in (np.float64, np.float32):
        x = blobs.astype(dtype)
        bound = bind(jaxem.BayesianGMM(1), x, weights.astype(dtype))
        params = bound.from_responsibilities(x, np.ones((120, 1)), weights)
        form = jaxem.chunked(bound, 50) if dtype == np.float32 else bound
        found = jaxem.importance(as_fit(form, params), x, key=KEY, num_draws=100, weights=weights)
        assert float(found.k_hat) == -np.inf
        assert found.log_evidence.dtype == dtype
        assert float(found.log_evidence) == pytest.approx(float(found.elbo), rel=1e-6)
        assert float(found.log_evidence_error) < (1e-9 if dtype == np.float64 else 1e-3)
        assert float(found.effective_size) == pytest.approx(100, rel=1e-4)
    assert "the largest ratios are equal: q is the posterior" in repr(found)


SEPARATED = np.array([[0.0], [0.4], [-0.3], [0.1], [30.0], [30.5], [29.8]])
SETTINGS = {"strength": 0.1, "mean": np.array([15.0]), "dof": 1.0, "inverse_scale": np.array([[1.0]])}


def enumerated(x, log_labels, keep=lambda z: True):
    """log of the sum over labels of p(labels) p(x | labels), for two Gaussian components."""
    terms = []
    for z in itertools.product([0, 1], repeat=len(x)):
        z = np.array(z)
        if keep(z):
            parts = [gaussian_evidence(x[z == k], "full", *SETTINGS.values()) for k in (0, 1)]
            terms.append(sum(parts) + log_labels((z == 0).sum(), (z == 1).sum()))
    return logsumexp(terms)


@pytest.mark.parametrize("distance", [30.0, 6.0])
def test_the_evidence_of_two_components(distance):
    """A Dirichlet: with the correction for the two orders it is that of all labels, and nearer to it than the ELBO.

    Rare draws with a wide component have larger ratios than the rest, which are equal to many digits: a high k-hat.
    Of seven rows of two components that overlap q is bad, and is said to be.
    """
    x = np.where(SEPARATED > 10, SEPARATED - 30 + distance, SEPARATED)
    model, params = posterior(jaxem.BayesianGMM(2, concentration=1.0, **SETTINGS), x, np.eye(2)[[0] * 4 + [1] * 3])
    exact = enumerated(x, lambda a, b: betaln(1 + a, 1 + b))
    found = jaxem.importance(as_fit(model, params), x, key=KEY, num_draws=20_000)
    gap = exact - float(found.log_evidence + model.label_correction(params))
    assert found.k_hat > 0.7
    if distance < 10:
        assert "q is unreliable, and so is this log evidence" in repr(found)
        assert abs(gap) > 0.3
        return
    assert abs(gap) < 5 * float(found.log_evidence_error)
    assert abs(gap) < 0.5 * (exact - math.log(2) - float(found.elbo))
    assert float(found.log_evidence_error) < 0.01
    assert "a tail that is rare: log evidence is of what the draws reached" in repr(found)


@pytest.mark.parametrize("truncation", ["free", "fixed"])
def test_the_evidence_of_sticks(truncation):
    """The order that q has: the larger component first. Free sticks: no row lies beyond the second."""
    x, alpha = SEPARATED, 0.8
    settings = {"mixing": "dirichlet_process", "concentration": alpha, "truncation": truncation, **SETTINGS}
    model, params = posterior(jaxem.BayesianGMM(2, **settings), x, np.eye(2)[[0] * 4 + [1] * 3])

    def log_labels(a, b):
        first = betaln(1 + a, alpha + b) - betaln(1, alpha)
        return first + (betaln(1 + b, alpha) - betaln(1, alpha) if truncation == "free" else 0)

    exact = enumerated(x, log_labels, keep=lambda z: z[0] == 0)
    elbo, found = gaps(model, params, x, 4000)
    summary = diagnostics._summary(elbo, found.reshape(-1), jnp.asarray(7.0))
    assert float(summary.log_evidence_error) < 0.01
    assert float(summary.log_evidence) == pytest.approx(exact, abs=5 * float(summary.log_evidence_error))


def test_emptied_components_cost_nothing(blobs):
    """Tiny concentrations: proportions underflow, ratios do not. A fourth of the prior is for each component alone."""
    settings = gaussian_settings("full")
    model = jaxem.BayesianGMM(4, concentration=1e-4, **settings)
    model, params = posterior(model, blobs, np.eye(4)[np.zeros(120, int)])
    elbo, found = gaps(model, params, blobs)
    assert np.all(np.isfinite(found))
    one = gaussian_evidence(blobs, "full", *settings.values())
    assert float(elbo) == pytest.approx(one - math.log(4), abs=0.05)


# --- mean-field models


@jaxem.dataclass
class Location(MeanField):
    """x ~ N(mu, 1), mu ~ N(0, 10): one factor, whose posterior is exact."""

    def factors(self):
        return {"mu": Factor(NORMAL)}

    def expected_log_lik(self, means, x):
        mu = means["mu"]
        return -0.5 * (LOG_2PI + x**2 - 2 * x * mu.x + mu.xx)

    def expected_log_prior(self, means):
        return NORMAL.expected_log_prob(NORMAL.natural(0.0, 0.1), means["mu"])


def exact_location(x, weights=None):
    model = Location()
    start = model.init(KEY, jnp.asarray(x), None)
    return model, model.m_step(start, model.e_step(start, jnp.asarray(x), weights).stats)


def location_evidence(x):
    return scipy.stats.multivariate_normal.logpdf(x, np.zeros(len(x)), np.eye(len(x)) + 10)


def test_k_hat_of_a_narrow_q_is_what_theory_says():
    """A normal q of s^2 times the variance of a normal posterior: k = 1 - s^2 for s < 1; bounded, k = -2, for s > 1."""
    x = np.random.RandomState(1).normal(1, 1, size=10)
    model, params = exact_location(x)
    found = jaxem.importance(as_fit(model, params), x, key=KEY, num_draws=20_000)
    assert float(found.k_hat) == -np.inf
    assert float(found.log_evidence) == pytest.approx(location_evidence(x), rel=1e-12)
    exact = NORMAL.conventional(params["mu"])
    for factor, low, high in ((0.5, 0.3, 0.7), (0.1, 0.75, 1.1), (2.0, -2.5, -1.0)):
        q = {"mu": NORMAL.natural(exact["mean"], exact["precision"] / factor)}
        found = jaxem.importance(as_fit(model, q), x, key=KEY, num_draws=20_000)
        assert low < float(found.k_hat) < high
        assert float(found.elbo) < location_evidence(x)
        if factor > 0.1:
            error = 5 * float(found.log_evidence_error)
            assert float(found.log_evidence) == pytest.approx(location_evidence(x), abs=error)


def test_weights_are_copies_and_zeros_drop_rows():
    x = np.random.RandomState(1).normal(1, 1, size=10)
    weights = np.array([2.0, 1, 0, 3, 1, 1, 0, 2, 1, 1])
    rows = np.repeat(x, weights.astype(int))
    model, params = exact_location(rows)
    found = jaxem.importance(as_fit(model, params), x, key=KEY, num_draws=20_000, weights=weights)
    assert float(found.log_evidence) == pytest.approx(location_evidence(rows), rel=1e-12)


def test_the_evidence_of_a_normal_by_quadrature():
    """Unknown mean and precision, factorised: the integral over both, by a two-dimensional quadrature."""
    x = np.random.RandomState(1).normal(5, 10, size=10)
    result = jaxem.fit(UnknownNormal(0.02, 2.0, 100.0), x, key=KEY, stop=TIGHT)

    def joint(mu, tau):
        prior = scipy.stats.norm.pdf(mu, 0, 0.02**-0.5) * scipy.stats.gamma.pdf(tau, 2, scale=0.01)
        return prior * np.exp(scipy.stats.norm.logpdf(x, mu, tau**-0.5).sum())

    exact = np.log(scipy.integrate.dblquad(joint, 1e-5, 0.2, -40, 40)[0])
    found = jaxem.importance(result, x, key=KEY, num_draws=20_000)
    assert 0 < found.k_hat < 0.75
    assert float(found.log_evidence) == pytest.approx(exact, abs=5 * float(found.log_evidence_error))
    assert float(found.log_evidence_error) < 0.004
    assert float(found.elbo) == pytest.approx(float(result.elbo.total), rel=1e-12)
    assert float(found.elbo) < exact - 0.02
    assert 0.5 < float(found.effective_size) / 20_000 < 1
    text = repr(found)
    assert "nats" in text
    assert f"k-hat {float(found.k_hat):.2f}" in text


def test_local_factors_are_drawn_too():
    """Labels as local factors: the evidence of all labels, but for the other order of the components."""
    x = np.array([-2.0, -1.2, -2.3, 1.8, 2.2])
    result = jaxem.fit(Clusters(2), x, key=KEY, stop=TIGHT, num_restarts=6)
    total = []
    for labels in itertools.product((0, 1), repeat=5):
        z = np.array(labels)
        value = gammaln(1 + (z == 0).sum()) + gammaln(1 + (z == 1).sum()) - gammaln(7)
        for k in (0, 1):
            rows = x[z == k]
            precision = 0.01 + len(rows)
            value += 0.5 * (np.log(0.01 / precision) - len(rows) * LOG_2PI - (rows**2).sum())
            value += 0.5 * rows.sum() ** 2 / precision
        total.append(value)
    exact = logsumexp(total)
    found = jaxem.importance(result, x, key=KEY, num_draws=20_000)
    gap = exact - math.log(2) - float(found.log_evidence)
    assert abs(gap) < 5 * float(found.log_evidence_error) + 0.02
    assert abs(gap) < 0.3 * (exact - math.log(2) - float(found.elbo))
    # A row of weight 0 is as good as absent; other weights have no copies of their own to draw.
    padded, weights = np.r_[x, 50.0], np.r_[np.ones(5), 0.0]
    again = jaxem.importance(result, padded, key=KEY, num_draws=20_000, weights=weights)
    assert float(again.elbo) == pytest.approx(float(found.elbo), rel=1e-12)
    assert abs(float(again.log_evidence - found.log_evidence)) < 5 * float(found.log_evidence_error)
    with pytest.raises(ValueError, match="weights: expected 0 and 1 only, because factor 'z' is local"):
        jaxem.importance(result, x, key=KEY, weights=np.full(5, 2.0))


def test_a_bad_posterior_is_said_to_be_bad():
    x = np.random.RandomState(1).normal(1, 1, size=10)
    model, params = exact_location(x)
    exact = NORMAL.conventional(params["mu"])
    q = {"mu": NORMAL.natural(exact["mean"], exact["precision"] * 50)}
    found = jaxem.importance(as_fit(model, q), x, key=KEY, num_draws=20_000)
    assert found.k_hat >= 0.7
    assert "not below 0.7: q is unreliable, and so is this log evidence" in repr(found)
    assert repr(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), found)) == "Importance(batch of shape (2,))"


def test_wrong_use_is_named():
    x = np.random.RandomState(1).normal(1, 1, size=(10, 1))
    model, params = exact_location(x[:, 0])
    fit = as_fit(model, params)
    with pytest.raises(TypeError, match="fit: expected a Fit, .*found Location.*; give the fit itself"):
        jaxem.importance(model, x, key=KEY)
    with pytest.raises(TypeError, match="num_draws: expected an integer >= 25; found 30.0"):
        jaxem.importance(fit, x[:, 0], key=KEY, num_draws=30.0)
    with pytest.raises(ValueError, match="num_draws: expected an integer >= 25; found 24"):
        jaxem.importance(fit, x[:, 0], key=KEY, num_draws=24)
    with pytest.raises(ValueError, match=r"weights: expected shape \(10,\)"):
        jaxem.importance(fit, x[:, 0], key=KEY, weights=np.ones(3))
    with pytest.raises(TypeError, match="key: expected a JAX random key"):
        jaxem.importance(fit, x[:, 0], key=0)
    gmm = jaxem.GMM(1)
    point = gmm.make_params([1.0], mean=[[0.0]], covariance=[[[1.0]]])
    with pytest.raises(TypeError, match="expected one of a MeanField or BayesianMixture model, .* found GMM"):
        jaxem.importance(as_fit(gmm, point), x, key=KEY)
    outside = {"mu": NORMAL.natural(jnp.asarray(0.0), jnp.asarray(-1.0))}
    with pytest.raises(ValueError, match=r"params\['mu'\]: natural parameters outside the domain"):
        jaxem.importance(as_fit(model, outside), x[:, 0], key=KEY)

    class Point(Location):
        def factors(self):
            return {"mu": Factor(Delta(NORMAL))}

    class Free(Location):
        def factors(self):
            return {"mu": Factor(expfam.Normal(), conjugate=False)}

    with pytest.raises(TypeError, match="factor 'mu' is a point estimate, .*which has no density"):
        jaxem.importance(as_fit(jaxem.dataclass(Point)(), params), x[:, 0], key=KEY)
    with pytest.raises(TypeError, match="factor 'mu' is not conjugate"):
        jaxem.importance(as_fit(jaxem.dataclass(Free)(), params), x[:, 0], key=KEY)

    class Broken(Location):
        def expected_log_lik(self, means, x):
            return super().expected_log_lik(means, x) + jnp.log(means["mu"].x)

    bad = {"mu": NORMAL.natural(jnp.asarray(0.0), jnp.asarray(1.0))}
    with pytest.raises(ValueError, match=r"log p\(data, draw\) - log q\(draw\): .*that are NaN"):
        jaxem.importance(as_fit(jaxem.dataclass(Broken)(), bad), x[:, 0], key=KEY)
