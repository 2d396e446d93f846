"""Stop rules: each stops where its formula says, and not before."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def path(iris):
    """200 steps of one restart, and the params on the way."""
    never = jaxem.fit(jaxem.GMM(3), iris, key=KEY, stop=jaxem.Stop(-np.inf), max_steps=120)
    start = jaxem.fit(jaxem.GMM(3), iris, key=KEY, max_steps=0)
    model, params, on_the_way = (
        start.model,
        start.model.init(jax.random.fold_in(KEY, 0), jnp.asarray(iris), jnp.ones(150)),
        [],
    )
    step = jax.jit(lambda p: model.m_step(p, model.e_step(p, jnp.asarray(iris)).stats))
    for _ in range(60):
        on_the_way.append(params)
        params = step(params)
    return model, np.asarray(never.trace), on_the_way


def fit(iris, stop):
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, stop=stop, max_steps=120)
    assert result.status == Status.CONVERGED
    return int(result.num_steps)


def test_elbo_change(iris, path):
    trace = path[1]
    change = np.abs(np.diff(trace))
    assert fit(iris, jaxem.Stop(1e-5)) == 1 + np.argmax(change <= 1e-5 * 150)
    assert fit(iris, jaxem.Stop(0.0, rtol=1e-5)) == 1 + np.argmax(change <= 1e-5 * np.abs(trace[1:]))


def test_aitken_extrapolates_to_the_limit(iris, path):
    trace = path[1]
    step = np.diff(trace)
    with np.errstate(all="ignore"):
        rate = step[1:] / step[:-1]
        ahead = step[1:] * rate / (1 - rate)
    expected = 2 + np.argmax((rate >= 0) & (rate < 1) & (np.abs(ahead) <= 1e-4 * 150))
    found = fit(iris, jaxem.StopAitken(1e-4))
    assert found == expected
    assert trace[-1] - trace[found] == pytest.approx(ahead[expected - 2], rel=0.5)  # the limit it saw is about there


@pytest.mark.parametrize("norm", ["max", "2"])
def test_parameter_change(iris, path, norm):
    found = fit(iris, jaxem.StopParams(1e-3, norm=norm))
    size = (lambda a: np.abs(a).max()) if norm == "max" else (lambda a: np.sqrt((np.asarray(a) ** 2).sum()))
    index = 0
    for old, new in itertools.pairwise(path[2]):
        index += 1
        moved = [size(b - a) <= 1e-3 * size(a) for a, b in zip(*map(jax.tree.leaves, (old, new)), strict=True)]
        if all(moved):
            break
    assert found == index


def test_change_of_q_stops_no_later_than_the_elbo(iris, path):
    model, _, params = path
    found = fit(iris, jaxem.StopQ(1e-5))
    assert found <= fit(iris, jaxem.Stop(1e-5))
    x = jnp.asarray(iris)
    q = jax.jit(lambda p, old: jnp.sum(model.posterior(old, x) * model.log_joint(p, x)) + model.elbo_params(p))
    gains = []
    for old, new in itertools.pairwise(params):
        gains.append(float(q(new, old) - q(old, old)))
        if gains[-1] <= 1e-5 * 150:
            break
    assert found == len(gains)


def test_gradient_norm(iris):
    loose, tight = (fit(iris, jaxem.StopGradient(atol)) for atol in (1e-3, 1e-5))
    assert loose < tight
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, stop=jaxem.StopGradient(1e-5), max_steps=120)
    model, x = result.model, jnp.asarray(iris)
    mean = lambda shift: model.elbo_data(
        jaxem.models.mixture.MixtureParams(
            result.params.mixing,
            jaxem.families.GaussianParams(result.params.components.mean + shift, result.params.components.scale),
        ),
        x,
    )
    assert np.abs(jax.jit(jax.grad(mean))(np.zeros((3, 4)))).max() <= 1.001e-5 * 150


def test_any_and_all(iris):
    a, b = jaxem.Stop(1e-4), jaxem.StopParams(1e-3)
    alone = fit(iris, a), fit(iris, b)
    assert alone[0] != alone[1]
    assert fit(iris, jaxem.StopAny((a, b))) == min(alone)
    assert fit(iris, jaxem.StopAll((a, b))) == max(alone)
    assert fit(iris, jaxem.StopAny((jaxem.StopAitken(1e-4), jaxem.Stop(-np.inf)))) == fit(iris, jaxem.StopAitken(1e-4))


def test_restarts_have_traces_of_their_own(iris):
    options = {"key": KEY, "num_restarts": 6, "restart_batch": 2, "max_steps": 120, "stop": jaxem.StopAitken(1e-6)}
    several = jaxem.fit(jaxem.GMM(3), iris, **options)
    fewer = jaxem.fit(jaxem.GMM(3), iris, **{**options, "num_restarts": 3})
    np.testing.assert_array_equal(several.restarts.num_steps[:3], fewer.restarts.num_steps)
    assert len(set(np.asarray(several.restarts.num_steps).tolist())) > 1


@pytest.mark.parametrize("stop", [jaxem.StopAitken(), jaxem.StopParams(), jaxem.StopQ(), jaxem.StopGradient(1e-3)])
def test_rules_end_a_float32_fit_and_a_one_component_fit(iris, stop):
    result = jaxem.fit(jaxem.GMM(1), iris.astype(np.float32), key=KEY, stop=stop, max_steps=50)
    assert result.status == Status.CONVERGED
    assert int(result.num_steps) <= 3


def test_kmeans_takes_every_rule(iris):
    for stop in (jaxem.StopAitken(), jaxem.StopParams(), jaxem.StopQ(), jaxem.StopGradient(1e-6)):
        result = jaxem.fit(jaxem.KMeans(3), iris, key=KEY, algorithm=jaxem.EM(), stop=stop)
        assert result.status == Status.CONVERGED


def test_no_rule_stops_while_the_temperature_changes(iris):
    rule = jaxem.Tempered(np.r_[np.linspace(3, 1, 20)])
    stop = jaxem.StopAny((jaxem.Stop(1e3), jaxem.StopParams(1e3)))
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, algorithm=jaxem.EM(rule), stop=stop)
    assert int(result.num_steps) >= 20


def test_a_rule_of_ones_own(iris):
    @jaxem.dataclass
    class After(jaxem.StopRule):
        steps: int = jaxem.static()

        def __call__(self, step):
            return step.index >= self.steps

    assert fit(iris, After(7)) == 7


def test_not_a_rule(iris):
    with pytest.raises(TypeError, match=r"stop: expected a stop rule, as jaxem.Stop\(\); found 0.1"):
        jaxem.fit(jaxem.GMM(2), iris, key=KEY, stop=0.1)


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (jaxem.StopParams(norm="l2"), "norm: expected one of max, 2; found 'l2'"),
        (jaxem.StopAny(()), "rules: expected at least one stop rule; found none"),
        (jaxem.StopAll(()), "rules: expected at least one stop rule; found none"),
    ],
)
def test_bad_rules(iris, stop, message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.GMM(2), iris, key=KEY, stop=stop)
