"""What all algorithms share: a step in two halves, acceptance, and one inside another."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled

import jaxem
from jaxem import expfam
from jaxem.algorithms import (
    EM,
    Algorithm,
    CoordinateAscent,
    EMState,
    GeneralizedEM,
    GradientAscent,
    OnlineEM,
    StochasticEM,
    Swap,
)
from jaxem.algorithms.algorithm import Found, accept
from jaxem.core.ascent import coordinates
from jaxem.core.tree import where
from jaxem.stopping import Status

KEY = jax.random.key(0)
WEIGHTS = np.random.default_rng(4).uniform(0.5, 2.0, 120)


@jaxem.dataclass
class Level(jaxem.MeanField):
    """A normal of unknown mean and precision."""

    def factors(self):
        return {"mu": jaxem.Factor(expfam.Normal()), "tau": jaxem.Factor(expfam.Gamma())}

    def expected_log_lik(self, means, x):
        mu, tau = means["mu"], means["tau"]
        return 0.5 * (tau.log - tau.x * (x**2 - 2 * x * mu.x + mu.xx))

    def expected_log_prior(self, means):
        mu, tau = expfam.Normal().natural(0.0, 0.01), expfam.Gamma().natural(0.01, 0.01)
        return expfam.Normal().expected_log_prob(mu, means["mu"]) + expfam.Gamma().expected_log_prob(tau, means["tau"])


def begun(model, algorithm, data, max_steps=20):
    """(the bound model, the algorithm ready for a fit, the state of one restart before its first step)."""
    algorithm = algorithm.prepare(model, data, KEY, max_steps)
    model = compiled(model.bind, data, jnp.asarray(WEIGHTS))
    params = jax.tree.map(lambda a: a[None], model.init(jax.random.key(7), data, jnp.asarray(WEIGHTS)))
    states = algorithm.init(model, params, 1, data.dtype)
    return model, algorithm, jax.tree.map(lambda a: jnp.asarray(a)[0], states)


CASES = {
    "EM": (jaxem.GMM(3), EM()),
    "tempered EM": (jaxem.GMM(3), EM(jaxem.Tempered(2.0))),
    "K-means": (jaxem.KMeans(3), EM()),
    "variational Bayes": (jaxem.BayesianGMM(3), EM()),
    "GeneralizedEM": (jaxem.GMM(3, "diag"), GeneralizedEM(num_steps=1)),
    "GradientAscent": (jaxem.GMM(3, "diag"), GradientAscent()),
    "OnlineEM": (jaxem.GMM(3, "diag"), OnlineEM(40, key=KEY)),
    "CoordinateAscent": (Level(), CoordinateAscent()),
    "Swap": (jaxem.GMM(3, "diag"), Swap()),
    "Swap, K-means": (jaxem.KMeans(3), Swap()),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_found_adds_up_over_data_and_a_step_is_its_update(case, blobs):
    model, algorithm = CASES[case]
    x, w = jnp.asarray(blobs if case != "CoordinateAscent" else blobs[:, 0]), jnp.asarray(WEIGHTS)
    model, algorithm, state = begun(model, algorithm, x)

    @jax.jit
    def both(state):
        halves = [algorithm.evaluate(model, state, x[i::2], w[i::2]) for i in (0, 1)]
        found = jax.tree.map(jnp.add, *halves)
        whole = algorithm.evaluate(model, state, x, w)
        return found, whole, algorithm.update(model, state, found, (x, w)), algorithm.step(model, state, x, w)

    found, whole, updated, stepped = both(state)
    for a, b in ((found, whole), (updated, stepped)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["EM", "K-means", "variational Bayes"])
def test_em_needs_no_rows_to_go_on(case, blobs):
    model, algorithm = CASES[case]
    x, w = jnp.asarray(blobs), jnp.asarray(WEIGHTS)
    model, algorithm, state = begun(model, algorithm, x)
    found = jax.jit(algorithm.evaluate)(model, state, x, w)
    after = jax.jit(algorithm.update)(model, state, found)
    assert int(after.step) == 1
    np.testing.assert_array_equal(after.elbo.data, found.elbo_data)


@jaxem.dataclass
class Marked(EMState):
    """A state with a field that no algorithm of the library knows."""

    mark: Any


def test_acceptance_keeps_the_fields_of_a_subclass():
    model, one = jaxem.GMM(2), jnp.ones(())
    before = Marked(jnp.ones(2), jnp.zeros(2), jaxem.ELBO(-one, one), jnp.int32(3), jnp.int32(0), mark=one * 7)
    for value, status, kept in ((0.5, 0, 1), (-3.0, Status.DECREASED, 0), (jnp.nan, Status.NONFINITE, 0)):
        after = accept(model, before, Found((), value * one, 10 * one), one, jnp.full(2, 2.0))
        assert isinstance(after, Marked)
        assert (int(after.status), float(after.mark), int(after.step)) == (status, 7, 4)
        np.testing.assert_array_equal(after.params, [kept, kept])
        np.testing.assert_array_equal(after.candidate, [2, 2])
    free = accept(model, before, Found((), -3 * one, one), one, one, promised=False, better=False)
    assert int(free.status) == Status.RUNNING
    np.testing.assert_array_equal(free.params, [0, 0])


@jaxem.dataclass
class LeapingState(EMState):
    """`plain` is what the inner algorithm proposed when the candidate was made of it."""

    plain: Any
    fell: Any

    @property
    def scored(self):
        return jnp.where(self.fell > 0, jnp.nan, self.elbo.total)


@jaxem.dataclass
class Leaping(Algorithm):
    """Steps longer than those of another algorithm, which come back to its own where they lower the objective."""

    inner: Algorithm
    factor: Any

    def prepare(self, model, data, key, num_steps):
        return dataclasses.replace(self, inner=self.inner.prepare(model, data, key, num_steps))

    def settled(self, model, step):
        return self.inner.settled(model, step)

    def init(self, model, params, num_restarts, dtype):
        state = self.inner.init(model, params, num_restarts, dtype)
        return LeapingState(**vars(state), plain=params, fell=state.step)

    def evaluate(self, model, state, data, weights):
        return self.inner.evaluate(model, state, data, weights)

    def update(self, model, state, found, rows=None):
        after = self.inner.update(model, state, found, rows)
        fell = after.status == Status.DECREASED
        old, rebuild = coordinates(model.constraints(), after.params)
        new, _ = coordinates(model.constraints(), after.candidate)
        leap = rebuild(jax.tree.map(lambda a, b: a + self.factor * (b - a), old, new))
        return dataclasses.replace(
            after,
            candidate=where(fell, state.plain, leap),
            plain=where(fell, state.plain, after.candidate),
            fell=fell.astype(jnp.int32),
            status=jnp.where(fell, state.status, after.status),
        )


def test_an_algorithm_holds_another_and_decides_on_what_it_rejects():
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(0, 1, 60), rng.normal(2.5, 0.7, 60)])[:, None]  # slow under EM

    def fit(algorithm):
        stop = jaxem.Stop(atol=1e-11)
        return jaxem.fit(jaxem.GMM(2), x, key=KEY, stop=stop, max_steps=2000, algorithm=algorithm)

    plain, fast, reckless = fit(EM()), fit(Leaping(EM(), 1.8)), fit(Leaping(EM(), 9.0))
    for leapt in (fast, reckless):
        assert int(leapt.status) == Status.CONVERGED
        assert float(leapt.elbo.total) == pytest.approx(float(plain.elbo.total), abs=1e-6)
    assert int(fast.num_steps) < 0.7 * int(plain.num_steps)
    # Where a leap fell nothing was scored, no restart ended, and the next value is that of the inner step: higher.
    trace = np.asarray(reckless.trace)[: int(reckless.num_steps) + 1]
    assert np.isnan(trace).any()
    assert np.diff(trace[np.isfinite(trace)]).min() >= -1e-9


DRAWN = {
    "Sampled": lambda key: EM(jaxem.Sampled(key)),
    "Tempered": lambda key: EM(jaxem.Tempered(2.0, KEY if key is None else key)),
    "StochasticEM": lambda key: StochasticEM(key, 2, 5),
    "OnlineEM": lambda key: OnlineEM(40, key=key, rule=jaxem.Sampled(key)),
    "GradientAscent": lambda key: GradientAscent(batch_size=40, learning_rate=0.05, key=key),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_come_from_the_key_of_the_fit_or_their_own(name, blobs):
    """The same bits whatever the number of restarts and whether under jit; equal starts draw apart."""
    model = jaxem.GMM(3, "diag")

    def fit(seed, own=None, num=2, params=None):
        options = {"params": params, "num_restarts": num, "restart_batch": 1, "max_steps": 3}
        return jaxem.fit(model, blobs, key=jax.random.key(seed), algorithm=DRAWN[name](own), **options)

    first = fit(0)
    for other in (fit(0, num=3), jax.jit(lambda: fit(0))()):
        np.testing.assert_array_equal(other.restarts.trace[:2], first.restarts.trace)
    start = jax.tree.map(lambda a: jnp.stack([a, a]), first.params)
    one, two = fit(1, params=start), fit(2, params=start)
    ends = np.asarray([one.restarts.elbo.total, two.restarts.elbo.total])
    apart = [one.restarts.elbo.total[0] != one.restarts.elbo.total[1], (ends[0] != ends[1]).any()]
    assert apart == [True, name != "Tempered"]  # which has a key of its own
    own = [np.asarray(fit(seed, jax.random.key(9), params=start).restarts.trace) for seed in (1, 2)]
    np.testing.assert_array_equal(*own)
