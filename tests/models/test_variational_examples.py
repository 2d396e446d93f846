"""The examples of mean-field models beside the updates of the textbooks, in plain NumPy."""

import functools
import math
import pathlib
import re
import runpy
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import digamma, gammaln

import jaxem
from jaxem.expfam import Delta, Gamma, MultivariateNormal

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
KEY, NORMAL, GAMMA = jax.random.key(0), MultivariateNormal(), Gamma()
LOG_2PI = math.log(2 * math.pi)


@functools.cache  # a class made anew compiles anew
def load(name):
    return runpy.run_path(str(EXAMPLES / name))


def exactly(model, data, num_steps):
    """A fit of so many sweeps, whatever they gain."""
    return jaxem.fit(model, data, key=KEY, stop=jaxem.Stop(-math.inf), max_steps=num_steps)


def gamma_bound(shape, rate, prior):
    """E[log Gamma(v | prior, prior)] + entropy, for v ~ Gamma(shape, rate), summed."""
    mean, log = shape / rate, digamma(shape) - np.log(rate)
    expected = prior * np.log(prior) - gammaln(prior) + (prior - 1) * log - prior * mean
    return np.sum(expected + shape - np.log(rate) + gammaln(shape) + (1 - shape) * digamma(shape))


def normal_entropy(cov):
    return 0.5 * (cov.shape[-1] * (1 + LOG_2PI) + np.sum(np.linalg.slogdet(cov)[1]))


def regression(x, y, num_steps, point):
    """ARD regression, Bishop (2006), sections 7.2 and 10.3: alpha, tau and w in turn; the ELBO after each sweep."""
    num, dim = x.shape
    mean, cov, trace = np.zeros(dim), np.eye(dim), []
    squares = lambda: np.sum((y - x @ mean) ** 2) + np.trace(x.T @ x @ cov)
    for _ in range(num_steps):
        second = np.diag(cov) + mean**2
        shape, rate = 1e-6 + 0.5, 1e-6 + 0.5 * second
        alpha, log_alpha = (1 / second, -np.log(second)) if point else (shape / rate, digamma(shape) - np.log(rate))
        a, b = 1e-6 + 0.5 * num, 1e-6 + 0.5 * squares()
        tau = a / b
        cov = np.linalg.inv(np.diag(alpha) + tau * x.T @ x)
        mean = tau * cov @ x.T @ y
        elbo = 0.5 * (num * (digamma(a) - np.log(b) - LOG_2PI) - tau * squares())
        elbo += 0.5 * np.sum(log_alpha - LOG_2PI - alpha * (np.diag(cov) + mean**2))
        elbo += normal_entropy(cov) + gamma_bound(a, b, 1e-6)
        trace.append(elbo if point else elbo + gamma_bound(shape, rate, 1e-6))
    return mean, cov, alpha, tau, np.array(trace)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 6))
    return x, x @ np.array([1.0, -0.5, 0.3, 0, 0, 0]) + 0.5 * rng.normal(size=60)


@pytest.mark.parametrize("point", [False, True])
def test_ard_is_the_textbook(table, point):
    """All sweeps, and where they end."""
    ARD = load("ard_regression.py")["ARD"]
    model = ARD(6, Delta(GAMMA) if point else GAMMA)
    fit = exactly(model, table, 60)
    mean, cov, alpha, tau, trace = regression(*table, 60, point)
    np.testing.assert_allclose(np.asarray(fit.trace)[1:], trace, rtol=0, atol=1e-6)
    means = fit.model.means(fit.params)
    np.testing.assert_allclose(means["w"].x, mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(means["w"].xx, cov + np.outer(mean, mean), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(means["alpha"].x, alpha, rtol=1e-6)
    assert float(means["tau"].x) == pytest.approx(tau, rel=1e-6)


def test_alpha_of_a_useless_column_has_no_end_as_a_point(table):
    """By equal amounts in equal numbers of sweeps, with a gain of the ELBO that vanishes; with a prior it stops."""
    ARD = load("ard_regression.py")["ARD"]
    largest = {}
    for family in (GAMMA, Delta(GAMMA)):
        fits = [exactly(ARD(6, family), table, steps) for steps in (2048, 4095)]  # a trace of 4096, both
        largest[family] = [float(fit.model.means(fit.params)["alpha"].x.max()) for fit in fits]
        assert all(np.isfinite(fit.elbo.total) and fit.status == jaxem.Status.MAX_STEPS for fit in fits)
        assert 0 <= float(fits[1].elbo.total - fits[0].elbo.total) < 1e-2
    assert largest[GAMMA][1] == pytest.approx(largest[GAMMA][0], rel=1e-4)
    assert largest[Delta(GAMMA)][1] == pytest.approx(2 * largest[Delta(GAMMA)][0], rel=0.05)


def test_the_point_estimates_elbo_is_below_the_evidence(table):
    """log p(y | alpha), the weights integrated exactly and tau by quadrature."""
    x, y = table
    fit = exactly(load("ard_regression.py")["ARD"](6, Delta(GAMMA)), table, 60)
    means = fit.model.means(fit.params)
    spectrum, vectors = np.linalg.eigh((x / np.asarray(means["alpha"].x)) @ x.T)
    rotated, elbo = (vectors.T @ y) ** 2, float(fit.elbo.total)

    def integrand(log_tau):  # d tau = tau d log tau
        var = spectrum + np.exp(-log_tau)
        log_lik = -0.5 * np.sum(LOG_2PI + np.log(var) + rotated / var)
        return np.exp(log_lik + 1e-6 * (math.log(1e-6) + log_tau - np.exp(log_tau)) - gammaln(1e-6) - elbo)

    centre = math.log(float(means["tau"].x))
    gap = math.log(quad(integrand, centre - 3, centre + 3, epsabs=1e-12)[0])
    assert 0 < gap < 0.1


def pca(x, loadings, num_steps):
    """Variational PCA, Bishop (1999), without a mean: alpha, tau and W in turn, each after new latents."""
    (num, dim), latents = x.shape, loadings.shape[1]
    mean, cov, tau, trace = loadings, 1e-3 * np.eye(latents), 1.0, []  # cov of each row

    def latent():
        """Means of z, their covariance, the sum of E[z z'], and the expected squared error."""
        outer = dim * cov + mean.T @ mean
        cov_z = np.linalg.inv(np.eye(latents) + tau * outer)
        z = tau * x @ mean @ cov_z
        total = num * cov_z + z.T @ z
        return z, cov_z, total, np.sum(x**2) - 2 * np.sum(x * (z @ mean.T)) + np.sum(total * outer)

    for _ in range(num_steps):
        shape, rate = 1e-3 + 0.5 * dim, 1e-3 + 0.5 * np.diag(dim * cov + mean.T @ mean)
        alpha, log_alpha = shape / rate, digamma(shape) - np.log(rate)
        a, b = 1e-3 + 0.5 * num * dim, 1e-3 + 0.5 * latent()[3]
        tau = a / b
        z, _, total, _ = latent()
        cov = np.linalg.inv(np.diag(alpha) + tau * total)
        mean = tau * x.T @ z @ cov
        z, cov_z, total, square = latent()
        elbo = 0.5 * (num * dim * (digamma(a) - np.log(b) - LOG_2PI) - tau * square)
        elbo += num * normal_entropy(cov_z) - 0.5 * (num * latents * LOG_2PI + np.trace(total))
        elbo += 0.5 * np.sum(dim * (log_alpha - LOG_2PI) - alpha * np.diag(dim * cov + mean.T @ mean))
        elbo += dim * normal_entropy(cov) + gamma_bound(shape, rate, 1e-3) + gamma_bound(a, b, 1e-3)
        trace.append(elbo)
    return mean, alpha, tau, np.array(trace)


def test_pca_is_the_textbook():
    module = load("probabilistic_pca.py")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)) @ rng.normal(size=(3, module["D"])) + 0.3 * rng.normal(size=(40, module["D"]))
    x -= x.mean(0)
    fit = exactly(module["ProbabilisticPCA"](), x, 40)
    start = fit.model.init(jax.random.fold_in(KEY, 0), x, None)["w"]
    mean, alpha, tau, trace = pca(x, np.asarray(NORMAL.means(start).x), 40)
    np.testing.assert_allclose(np.asarray(fit.trace)[1:], trace, rtol=0, atol=1e-6)
    means = fit.model.means(fit.params)
    np.testing.assert_allclose(means["w"].x, mean, atol=1e-6)
    np.testing.assert_allclose(means["alpha"].x, alpha, rtol=1e-6)
    assert float(means["tau"].x) == pytest.approx(tau, rel=1e-6)


def test_without_loadings_nothing_moves():
    """W = 0 is a saddle: a start there stays, and says that it has converged."""
    module = load("probabilistic_pca.py")
    model, x = module["ProbabilisticPCA"](), np.random.default_rng(1).normal(size=(40, module["D"]))
    start = model.init(KEY, x, None)
    still = {**start, "w": start["w"]._replace(x=0 * start["w"].x)}
    fit = jaxem.fit(model, x, key=KEY, params=still, max_steps=60)
    assert not np.any(fit.model.means(fit.params)["w"].x)


@pytest.fixture
def example(monkeypatch, tmp_path, capsys):
    """Runs an example at toy size; what it printed, and the folder it wrote to."""

    def run(name):
        monkeypatch.setattr(sys, "argv", [name, "--toy", "--output", str(tmp_path)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out, tmp_path

    yield run
    assert not plt.get_fignums(), "an example closes its figures"


def test_ard_regression(example):
    text, _ = example("ard_regression.py")
    posterior, point, more = re.split(r"^(?:point|goes on): ", text, flags=re.MULTILINE)
    kept = [re.findall(r"^(\w+) .* kept$", part, re.MULTILINE) for part in (posterior, point, more)]
    assert {"sex", "bmi", "bp", "s3", "s5"} <= set(kept[0])
    assert len([name for name in kept[0] if name.startswith("noise")]) <= 1
    assert kept[1] == kept[2]
    alphas = [max(float(a) for a in re.findall(r"alpha +([\d.]+)", part)) for part in (posterior, point, more)]
    assert 1e4 < alphas[0] < 1e5 < alphas[1] < alphas[2]
    assert "CONVERGED" in point
    assert "MAX_STEPS" in more
    scores = dict(re.findall(r"^(\w[\w ]*\w) +held-out R\^2 ([\d.]+)", text, re.MULTILINE))
    assert float(scores["posterior"]) == pytest.approx(float(scores["ARDRegression"]), abs=0.005)
    assert float(scores["posterior"]) > float(scores["BayesianRidge"])


def test_probabilistic_pca(example):
    text, output = example("probabilistic_pca.py")
    rows = re.findall(r"^latent \d: alpha +([\d.]+), \|w\|\^2 ([\d.]+), (kept|off)$", text, re.MULTILINE)
    assert [row[2] for row in rows] == ["kept"] * 7 + ["off"] * 3
    assert all(float(size) < 1e-4 for _, size, fate in rows if fate == "off")
    random, axes = (float(elbo) for elbo in re.findall(r"elbo +(-[\d.]+)", text))
    assert random < axes == pytest.approx(-2953.9215, abs=0.01)
    assert "CONVERGED" in text
    assert plt.imread(output / "probabilistic_pca.png").std() > 0.01
