"""A model from its log-joint alone, and what is said to a model whose methods disagree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_testing import COUNTS
from test_testing import ZeroInflatedPoisson as Closed

import jaxem
from jaxem import constraints
from jaxem.algorithms import GeneralizedEM
from jaxem.models.enumerated import Enumerated
from jaxem.testing import CHECKS, check_model

KEY = jax.random.key(0)
TIGHT = jaxem.Stop(1e-13)
WEIGHTS = np.random.default_rng(2).uniform(0.5, 2, 90)


@jaxem.dataclass
class Open(Enumerated):
    """The same, from one datum and one state."""

    num_states = 2
    init, constraints = Closed.init, Closed.constraints

    def log_joint_one(self, params, x, z):
        structural = jnp.where(x == 0, jnp.log(params["zero"]), -jnp.inf)
        counted = jnp.log1p(-params["zero"]) + jax.scipy.stats.poisson.logpmf(x, params["rate"])
        return jnp.where(z == 0, structural, counted)


@pytest.fixture(scope="module")
def closed():
    return jaxem.fit(Closed(), COUNTS, key=KEY, weights=WEIGHTS, num_restarts=3, stop=TIGHT, max_steps=500)


@pytest.fixture(scope="module")
def opened():
    return jaxem.fit(Open(), COUNTS, key=KEY, weights=WEIGHTS, num_restarts=3, stop=TIGHT, max_steps=500)


def test_agrees_with_the_closed_form(closed, opened):
    assert opened.restarts.counts() == {"CONVERGED": 3}
    assert float(opened.elbo.total) == pytest.approx(float(closed.elbo.total), abs=1e-9)
    for name in ("zero", "rate"):
        assert float(opened.params[name]) == pytest.approx(float(closed.params[name]), rel=1e-6)


def test_posterior_predict_and_log_prob(closed, opened):
    params = closed.params
    for name in ("posterior", "log_prob", "predict"):
        expected = getattr(Closed(), name)(params, COUNTS)
        np.testing.assert_allclose(getattr(Open(), name)(params, COUNTS), expected, rtol=1e-12)
        np.testing.assert_allclose(getattr(jaxem.chunked(Open(), 40), name)(params, COUNTS), expected, rtol=1e-12)


def test_rows_may_be_pytrees_and_params_indexed_by_the_state():
    @jaxem.dataclass
    class Regimes(Enumerated):
        num_states: int = jaxem.static(default=3)

        def init(self, key, data, weights):
            return {"mixing": jnp.full(self.num_states, 1 / self.num_states), "slope": jax.random.normal(key, (3,))}

        def constraints(self):
            return {"mixing": constraints.Simplex(), "slope": constraints.Real()}

        def log_joint_one(self, params, x, z):
            u, y = x
            return jnp.log(params["mixing"][z]) - 0.5 * (y - params["slope"][z] * u) ** 2

    rng = np.random.default_rng(0)
    data = (rng.normal(size=20), rng.normal(size=20))
    params = {"mixing": np.array([0.2, 0.3, 0.5]), "slope": np.array([-1.0, 0.0, 2.0])}
    found = Regimes().log_joint(jax.tree.map(jnp.asarray, params), data)
    expected = np.log(params["mixing"]) - 0.5 * (data[1][:, None] - params["slope"] * data[0][:, None]) ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_keeps_the_contract():
    names = check_model(Open(), COUNTS, key=KEY, num_starts=1)
    assert [name.split(" ")[0] for name in names] == list(CHECKS)
    assert [name for name in names if " " in name] == [
        "linear (not checked: GeneralizedEM uses no statistics)",
        "m_step (not checked: GeneralizedEM raises the objective and need not maximise it)",
    ]


def test_em_is_refused():
    for model in (Open(), jaxem.chunked(Open(), 20)):
        with pytest.raises(TypeError, match="algorithm: EM needs statistics and m_step"):
            jaxem.fit(model, COUNTS, key=KEY, algorithm=jaxem.EM())
    with pytest.raises(TypeError, match="Open has no m_step"):
        Open().m_step({}, ())
    with pytest.raises(TypeError, match="Open has no statistics"):
        Open().statistics({}, COUNTS, COUNTS)


def test_a_model_with_an_m_step_may_be_climbed_all_the_same(closed):
    found = jaxem.fit(Closed(), COUNTS, key=KEY, weights=WEIGHTS, algorithm=GeneralizedEM(), stop=TIGHT, max_steps=500)
    assert float(found.params["rate"]) == pytest.approx(float(closed.params["rate"]), rel=1e-6)


def broken(**methods):
    return jaxem.dataclass(type("Broken", (methods.pop("base", Closed),), methods))()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (broken(base=Open, num_states=0), "Broken.num_states: expected an integer >= 1; found 0"),
        (broken(base=Open, num_states=None), "num_states: expected .* found None"),
        (
            broken(base=Open, log_joint_one=lambda self, params, x, z: jnp.zeros(3)),
            r"Broken.log_joint_one: expected a scalar for one row and one state; found shape \(3,\)",
        ),
        (
            broken(log_joint=lambda self, params, data: Closed.log_joint(self, params, data).T),
            r"Broken.log_joint: expected shape \(90, K\).*; found \(2, 90\)",
        ),
        (
            broken(log_joint=lambda self, params, data: Closed.log_joint(self, params, data)[:, 0]),
            r"Broken.log_joint: expected shape \(90, K\).*; found \(90,\)",
        ),
        (
            broken(log_joint=lambda self, params, data: Closed.log_joint(self, params, data) > 0),
            r"Broken.log_joint: expected .* of float64; found \(90, 2\) of bool",
        ),
        (
            broken(m_step=lambda self, params, stats: {"zero": stats["total"]}),
            "Broken.m_step: expected the keys 'rate', 'zero', as init gives; found 'zero'",
        ),
        (
            broken(m_step=lambda self, params, stats: {"zero": stats["total"], "rate": stats["count"]}),
            r"Broken.m_step: expected params\['rate'\] of shape \(\) and float64, as init gives; found \(2,\)",
        ),
        (
            broken(m_step=lambda self, params, stats: {"zero": stats["total"], "rate": jnp.float32(1)}),
            r"Broken.m_step: expected params\['rate'\] of shape \(\) and float64.*; found \(\) and float32",
        ),
        (
            broken(elbo_params=lambda self, params: jnp.zeros(2)),
            r"Broken.elbo_params: expected a scalar; found shape \(2,\)",
        ),
    ],
)
def test_fit_and_check_model_name_the_method_and_the_shape(model, message):
    for call in (lambda: jaxem.fit(model, COUNTS, key=KEY), lambda: check_model(model, COUNTS, key=KEY)):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
