"""The numbers of the worked examples, against tests/reference/reference.json and independent computations."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm, poisson

import jaxem
from jaxem.testing import check_model

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
NEVER = jaxem.Stop(atol=-np.inf)


def load(name):
    return runpy.run_path(str(EXAMPLES / name))


@pytest.fixture(scope="module")
def missing():
    model = load("missing_value.py")["NormalMean"]()
    return model, {"value": jnp.array([1.0, 2.0, 0.0]), "observed": jnp.array([1.0, 1.0, 0.0])}


@pytest.fixture(scope="module")
def linkage():
    return load("linkage.py")


@pytest.fixture(scope="module")
def deaths():
    return load("deaths.py")


@pytest.fixture(scope="module")
def picture():
    return load("em_picture.py")


def test_missing_value_e_step_and_m_step_alone(missing):
    model, data = missing
    found = model.e_step({"mu": jnp.array(0.7)}, data)
    assert model.impute({"mu": jnp.array(0.7)}, data)[2] == 0.7
    np.testing.assert_allclose(found.elbo_data, norm.logpdf([1, 2], 0.7).sum(), rtol=1e-14)
    complete = {"value": jnp.array([1.0, 2.0, 6.0]), "observed": jnp.ones(3)}
    for mu in (0.0, -5.0):  # nothing is hidden: one M-step is the estimate, wherever the E-step was
        params = {"mu": jnp.array(mu)}
        assert model.m_step(params, model.e_step(params, complete).stats)["mu"] == 3


def test_missing_value_iterates_by_hand_and_by_fit(missing, reference):
    model, data = missing
    published = reference["missing_value_normal"]["mu"]
    assert len(published) == 10
    params = {"mu": jnp.array(0.0)}
    for step, expected in enumerate(published, 1):
        params = model.m_step(params, model.e_step(params, data).stats)
        np.testing.assert_allclose(params["mu"], expected, rtol=1e-12)
        if step in (1, 2, 5, 10):
            options = {"key": jax.random.key(0), "params": {"mu": jnp.array(0.0)}, "stop": NEVER}
            fit = jaxem.fit(model, data, max_steps=step, **options)
            assert int(fit.num_steps) == step
            np.testing.assert_allclose(fit.params["mu"], expected, rtol=1e-12)
            np.testing.assert_allclose(fit.elbo.data, norm.logpdf([1, 2], expected).sum(), rtol=1e-13)
    fit = jaxem.fit(model, data, key=jax.random.key(0), max_steps=60, stop=NEVER)
    np.testing.assert_allclose(model.impute(fit.params, data)[2], 1.5, rtol=1e-14)


def test_linkage_iterates_and_maximum(linkage, reference):
    published = reference["linkage"]
    assert linkage["COUNTS"].tolist() == published["counts"]
    t = jnp.array(published["start"])
    for expected in published["iterates"]:
        t = linkage["em_map"](t)
        assert abs(float(t) - expected) < 1e-9
    for _ in range(30):
        t = linkage["em_map"](t)
    assert abs(float(t) - published["mle"]) < 1e-14
    x = linkage["CELLS"]
    options = {"key": jax.random.key(0), "weights": linkage["COUNTS"], "num_restarts": 4}
    fit = jaxem.fit(linkage["Linkage"](), x, stop=NEVER, max_steps=40, **options)
    assert abs(float(fit.params["t"]) - published["mle"]) < 1e-14
    a, b, c, d = published["counts"]
    top = minimize_scalar(lambda t: -(a * np.log(2 + t) + (b + c) * np.log(1 - t) + d * np.log(t)), (0.1, 0.5, 0.9))
    np.testing.assert_allclose(fit.elbo.data, -top.fun - sum(published["counts"]) * np.log(4), rtol=1e-12)


def test_linkage_rate_is_the_derivative_of_the_em_step(linkage, reference):
    mle = jnp.array(reference["linkage"]["mle"])
    a, b, c, d = reference["linkage"]["counts"]
    # The share of the information that is hidden: of the first cell's split between 1/2 and t/4.
    hidden = a * 2 / (mle * (2 + mle) ** 2)
    complete = (a * mle / (2 + mle) + d) / mle**2 + (b + c) / (1 - mle) ** 2
    np.testing.assert_allclose(jax.grad(linkage["em_map"])(mle), hidden / complete, rtol=1e-10)


def test_deaths_after_1500_steps_and_at_the_optimum(deaths, reference):
    published = reference["poisson_mixture_deaths"]
    assert deaths["DEATHS"][:, 0].tolist() == published["deaths"]
    assert deaths["DAYS"].tolist() == published["days"]
    model = jaxem.Mixture(jaxem.families.Poisson(), 2)
    start = model.make_params([0.5, 0.5], rate=np.array(published["start"]["rates"])[:, None])
    expected = {1500: ((0.3600250922, 1.2563379007, 2.6635749577), 1989.94586014)}
    optimum = (published["mle"]["mixing"], *published["mle"]["rates"])
    expected[20_000] = optimum, published["negative_log_likelihood"]
    for steps, (state, objective) in expected.items():
        options = {"key": jax.random.key(0), "weights": deaths["DAYS"], "params": start}
        fit = jaxem.fit(model, deaths["DEATHS"], stop=NEVER, max_steps=steps, **options)
        assert int(fit.num_steps) == steps
        rate = np.asarray(fit.params.components.rate[:, 0])
        low = rate.argmin()
        found = float(fit.params.mixing[low]), rate[low], rate[1 - low]
        np.testing.assert_allclose(found, state, rtol=0, atol=1e-8 if steps == 1500 else 6e-8)
        assert abs(objective + float(fit.elbo.data)) < (6e-9 if steps == 1500 else 1e-9)


def test_deaths_optimum_is_that_of_a_numerical_optimiser(deaths):
    x, days = deaths["DEATHS"][:, 0], deaths["DAYS"]

    def objective(free):
        mixing = 1 / (1 + np.exp(-free[0]))
        density = mixing * poisson.pmf(x, np.exp(free[1])) + (1 - mixing) * poisson.pmf(x, np.exp(free[2]))
        return -days @ np.log(density)

    best = minimize(objective, [0.0, 0.0, 1.0], method="BFGS", options={"gtol": 1e-7})
    model = jaxem.Mixture(jaxem.families.Poisson(), 2, init_method="random_resp")
    options = {"key": jax.random.key(0), "weights": days, "num_restarts": 4, "max_steps": 5000}
    fit = jaxem.fit(model, deaths["DEATHS"], stop=jaxem.Stop(atol=0.0), **options)
    assert fit.restarts.counts() == {"CONVERGED": 4}
    np.testing.assert_allclose(-fit.elbo.data, best.fun, rtol=1e-11)
    np.testing.assert_allclose(sorted(fit.params.components.rate[:, 0]), np.exp(best.x[1:]), rtol=1e-4)


def test_bounds_touch_and_never_exceed(picture):
    model, x, theta = picture["OneMean"](), jnp.asarray(picture["DATA"]), jnp.array(-2.0)
    grid = jnp.linspace(-4.0, 6.0, 201)
    log_l = np.logaddexp(*(norm.logpdf(picture["DATA"][None], m) for m in (0, np.asarray(grid)[:, None])))
    log_l = (log_l - np.log(2)).sum(1)
    for _ in range(4):
        q = model.posterior(theta, x)
        bound = picture["curves"](q, grid, x)
        np.testing.assert_allclose(bound.log_evidence, log_l, rtol=1e-12)
        assert np.all(np.asarray(bound.elbo) <= log_l + 1e-10)
        new = model.m_step(theta, model.e_step(theta, x).stats)
        here = picture["curves"](q, jnp.stack([theta, new]), x)
        np.testing.assert_allclose(here.elbo[0], here.log_evidence[0], rtol=1e-13)
        np.testing.assert_allclose(here.elbo + here.kl, here.log_evidence, rtol=1e-13)
        slopes = jax.jacobian(lambda t, q=q: picture["curves"](q, t[None], x))(theta)
        np.testing.assert_allclose(slopes.elbo, slopes.log_evidence, rtol=1e-10, atol=1e-10)
        assert np.all(np.asarray(bound.elbo) <= float(here.elbo[1]) + 1e-10)  # the M-step is the top of the bound
        assert here.log_evidence[1] >= here.elbo[1] >= here.elbo[0]
        theta = new


def test_heights_are_galtons_and_labels_can_be_switched():
    module = load("heights.py")
    height, women, men = np.loadtxt(module["DATA"], delimiter=",", skiprows=1).T
    assert (women.sum(), men.sum()) == (453, 481)
    np.testing.assert_allclose([women @ height / 453, men @ height / 481], [64.10, 69.23], atol=0.005)
    weights, x = women + men, height[:, None]
    fit = jaxem.fit(jaxem.GMM(2), x, weights=weights, key=jax.random.key(0), num_restarts=4, max_steps=1000)
    rows = [module["table"](params) for params in (fit.params, jax.tree.map(lambda leaf: leaf[::-1], fit.params))]
    values = [weights @ np.log((m * norm.pdf(x, mean, std)).sum(1)) for m, mean, std in rows]
    np.testing.assert_allclose(values, float(fit.elbo.data), rtol=1e-12)
    assert rows[0][0][0] > rows[0][0][1] == rows[1][0][0]


def test_a_model_with_a_continuous_hidden_variable_keeps_the_contract(missing):
    x = np.random.default_rng(0).normal(3.0, 1.0, 100)
    data = {"value": x, "observed": (np.arange(100) % 4 > 0).astype(float)}
    assert "stationary" in check_model(missing[0], data, key=jax.random.key(0), num_starts=2)
