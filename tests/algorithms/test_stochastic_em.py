"""Stochastic EM: the average is near the maximum of the likelihood, the chain is not, labels do not mix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled

import jaxem
from jaxem.algorithms import EM, StochasticEM
from jaxem.algorithms.stochastic_em import _align
from jaxem.rules import Sampled
from jaxem.wrappers import Wrapper

KEY = jax.random.key(5)
START = jaxem.GMM(2).make_params([0.5, 0.5], mean=[[-1.0], [4.0]], covariance=[[[1.0]], [[1.0]]])


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(0, 1, 300), rng.normal(3, 0.7, 200)])[:, None]


@pytest.fixture(scope="module")
def best(x):
    return jaxem.fit(jaxem.GMM(2), x, key=KEY, params=START, stop=jaxem.Stop(atol=1e-13), max_steps=2000)


@pytest.fixture(scope="module")
def averaged(x):
    """Four chains from one start; burn_in and num_draws are leaves, so this is the only program of its kind here."""
    start = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (4, *a.shape)), START)

    def fit(seed=0, burn_in=50, num_draws=200, max_steps=5):
        algorithm = StochasticEM(jax.random.key(seed), burn_in, num_draws)
        return jaxem.fit(
            jaxem.GMM(2), x, key=KEY, params=start, algorithm=algorithm, num_restarts=4, max_steps=max_steps
        )

    return fit


def flat(params):
    return np.concatenate([params.mixing, params.components.mean[:, 0], params.components.scale[:, 0, 0]])


def test_the_average_is_near_the_maximum_and_the_chain_is_not(x, best, averaged):
    chain = jaxem.fit(jaxem.GMM(2), x, key=KEY, params=START, algorithm=EM(Sampled(KEY)), max_steps=200)
    values = np.asarray(chain.trace)[50:201]
    assert np.isfinite(values).all()
    assert values.std() > 0.1  # nats: the chain moves about
    gaps = [float(best.elbo.total - elbo) for elbo in averaged().restarts.elbo.total]
    # The mean of 200 correlated draws loses about an autocorrelation time over 200 of what one draw loses.
    assert max(gaps) < 0.1 * float(best.elbo.total - values.mean())
    assert min(gaps) >= 0
    runs = np.array([flat(averaged(seed).params) for seed in range(6)])
    assert np.abs(runs - flat(best.params)[None]).max() < 0.02
    assert np.abs(runs.mean(0) - flat(best.params)).max() < 0.015


def test_what_is_returned(x, averaged):
    fit = averaged()
    assert fit.restarts.counts() == {"MAX_STEPS": 4}
    assert int(fit.num_steps) == 1
    log_prob = float(jnp.sum(fit.model.log_prob(fit.params, x)))
    assert float(fit.elbo.data) == pytest.approx(log_prob, rel=1e-12)
    assert float(fit.elbo.params) == pytest.approx(float(fit.model.elbo_params(fit.params)), rel=1e-9)
    trace = np.asarray(fit.trace)
    assert np.isfinite(trace[:2]).all()
    assert np.isnan(trace[2:]).all()
    assert len(set(np.asarray(fit.restarts.elbo.total).tolist())) == 4  # equal starts, draws of their own


def test_reproducible_and_recompiled_for_no_key_or_count(averaged):
    from jaxem.engine.table import advance

    first = averaged(1)
    size = advance._cache_size()
    again, other, longer = averaged(1), averaged(2), averaged(1, 10, 30)
    assert advance._cache_size() == size
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(first.elbo.total) != float(other.elbo.total)
    assert float(first.elbo.total) != float(longer.elbo.total)


def test_one_draw_gives_whole_counts(x, averaged):
    """With one draw and no burn-in the average is the M-step of that draw: every row in one component."""
    count = np.asarray(averaged(3, 0, 1).params.mixing) * len(x)
    np.testing.assert_allclose(count, np.round(count), atol=1e-9)
    many = np.asarray(averaged(3, 0, 7).params.mixing) * len(x)
    assert np.abs(many - np.round(many)).max() > 1e-3
    np.testing.assert_allclose(7 * many, np.round(7 * many), atol=1e-8)


@jaxem.dataclass
class Around(Wrapper):
    """A wrapper that the library does not know."""


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: jaxem.chunked(m, 100), Around, lambda m: Around(Around(m))])
def test_labels_are_aligned(x, wrap):
    model = jaxem.GMM(3)
    params = model.make_params([0.5, 0.3, 0.2], mean=[[0.0], [3.0], [6.0]], covariance=[[[1.0]], [[2.0]], [[0.5]]])
    order = jnp.array([2, 0, 1])
    moved = dataclasses.replace(
        params,
        mixing=params.mixing[order],
        components=model.family.canonical(jax.tree.map(lambda a: a * 1.02, params.components), order),
    )
    align = jax.jit(lambda new: _align(wrap(model), new, params, jnp.asarray(x)))
    back = align(moved)
    np.testing.assert_array_equal(back.mixing, params.mixing)
    np.testing.assert_array_equal(back.components.mean, params.components.mean * 1.02)
    np.testing.assert_array_equal(align(params).mixing, params.mixing)


def test_labels_that_name_components_are_left_alone(x):
    """Under `partly_labelled` components mean what the labels say."""
    model = jaxem.partly_labelled(jaxem.GMM(2))
    known = np.where(np.arange(500) < 5, 1, -1)
    swapped = dataclasses.replace(
        START, mixing=START.mixing, components=jaxem.GMM(2).family.canonical(START.components, jnp.array([1, 0]))
    )
    back = jax.jit(lambda new: _align(model, new, START, (jnp.asarray(x), jnp.asarray(known))))(swapped)
    np.testing.assert_array_equal(back.components.mean, swapped.components.mean)


def test_a_step_is_the_update_of_what_is_found(x):
    data, weights = jnp.asarray(x), jnp.ones(len(x))
    algorithm = StochasticEM(burn_in=2, num_draws=4).prepare(jaxem.GMM(2), data, KEY, 1)
    model = compiled(jaxem.GMM(2).bind, data, weights)
    state = algorithm.init(model, jax.tree.map(lambda a: a[None], START), 1, data.dtype)

    @jax.jit
    def both(state):
        found = algorithm.evaluate(model, state, data, weights)
        return algorithm.update(model, state, found, (data, weights)), algorithm.step(model, state, data, weights)

    state = jax.tree.map(lambda a: jnp.asarray(a)[0], state)
    for status in (jaxem.Status.RUNNING, jaxem.Status.MAX_STEPS):
        updated, stepped = both(state)
        for a, b in zip(jax.tree.leaves(updated), jax.tree.leaves(stepped), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        assert int(stepped.status) == status
        state = stepped


def test_nonfinite_statistics_end_a_restart_with_its_start(x):
    wild = np.concatenate([x, [[1e300]]])  # its square overflows
    algorithm = StochasticEM(KEY, 1, 2)
    with pytest.raises(jaxem.FitError):
        jaxem.fit(jaxem.GMM(2), wild, key=KEY, params=START, algorithm=algorithm, max_steps=1)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((-1, 5), "burn_in: expected an integer >= 0; found -1"),
        ((2.5, 5), "burn_in: expected an integer >= 0; found 2.5"),
        ((0, 0), "num_draws: expected an integer >= 1; found 0"),
    ],
)
def test_bad_counts(x, counts, message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.GMM(2), x, key=KEY, algorithm=StochasticEM(KEY, *counts))
