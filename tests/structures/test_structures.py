"""The interface of a structure, kept by one that is not of the library: a hidden Markov chain over any family.

The spike's lesson: all that an M-step needs of a structure is its free energy and the gradient of it. A rule is a
smoothed maximum with a gradient of its own (`Exact`: log-sum-exp and responsibilities; `Hard`: the maximum and a
one-hot vector), which a recursion may apply along any axis: forward-backward is the derivative of the forward pass,
Viterbi that of the same pass under `Hard`, and neither is written down.
"""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled
from scipy import stats

import jaxem
from jaxem import Status, static
from jaxem.structures.components import Posterior
from jaxem.structures.mixing import Dirichlet, Proportions
from jaxem.structures.structure import Structure
from jaxem.structures.structured import Structured

KEY = jax.random.key(0)


def smoothed(rule, values, axis):
    """The rule along an axis, its derivative the responsibilities it gives."""
    value, resp = rule(jax.lax.stop_gradient(values), axis)
    return value + jnp.sum(resp * (values - jax.lax.stop_gradient(values)), axis)


@jaxem.dataclass
class Chain(Structure):
    """z_1 ~ initial, z_t | z_(t-1) ~ its row of the transitions, x_t | z_t ~ the family. Data (S, T, D)."""

    def rows(self, data):
        return data.reshape(-1, data.shape[-1])

    def row_weights(self, weights, data):
        return jnp.repeat(weights, data.shape[1])

    def join(self, log_mixing, log_prob, data):
        initial, transition = (jnp.broadcast_to(part, (data.shape[0], *part.shape)) for part in log_mixing)
        return initial, transition, log_prob.reshape(*data.shape[:2], -1)

    def infer(self, log_joint, rule):
        def forward(initial, transition, log_prob):
            step = lambda a, row: (row + smoothed(rule, a[:, None] + transition, 0), None)
            last, _ = jax.lax.scan(step, initial + log_prob[0], log_prob[1:])
            return smoothed(rule, last, 0)

        value, pull = jax.vjp(jax.vmap(forward), *log_joint)
        return value, pull(jnp.ones_like(value))

    def predict(self, log_joint):
        return jnp.argmax(self.infer(log_joint, jaxem.Hard())[1][2], -1)

    def posterior(self, q):
        return q[2]

    def split(self, q, data):
        return (jnp.sum(q[0], 0), jnp.sum(q[1], 0)), q[2].reshape(-1, q[2].shape[-1])

    def spread(self, resp, data):
        resp = resp.reshape(*data.shape[:2], -1)
        size = jnp.sum(resp, -1, keepdims=True)
        share = resp / jnp.where(size > 0, size, 1)
        return resp[:, 0], jnp.einsum("stj,stk->sjk", resp[:, :-1], share[:, 1:]), resp


@jaxem.dataclass
class ChainLaw:
    """A law for the first state, and the same for each row of the transitions."""

    law: Any
    num: int = static()

    def check(self, num):
        self.law.check(num)

    def update(self, count):
        return self.law.update(count[0]), jax.vmap(self.law.update)(count[1])

    def climb(self, count, old):
        return self.update(count)

    def expected_log(self, mixing):
        return self.law.expected_log(mixing[0]), jax.vmap(self.law.expected_log)(mixing[1])

    def elbo(self, mixing):
        return self.law.elbo(mixing[0]) + jnp.sum(jax.vmap(self.law.elbo)(mixing[1]))

    def count(self, mixing, total):
        return jnp.full(self.num, total / self.num)

    def counted(self, count):
        return count > 0

    def rank(self, mixing):
        first = jax.tree.leaves(mixing[1])[0]
        return jnp.argsort(-jnp.sum(first, 0))

    def order(self, mixing, index):
        move = lambda rows: self.law.order(rows, index)
        return move(mixing[0]), jax.vmap(move)(jax.tree.map(lambda leaf: leaf[index], mixing[1]))

    def constraints(self):
        return self.law.constraints(), self.law.constraints()


@jaxem.dataclass
class ChainParams:
    mixing: Any
    components: Any


@jaxem.dataclass
class HMM(Structured):
    """Chain x points, or x posteriors: the pairing is all there is to write."""

    family: Any
    num_states: int = static()
    prior: Any = None
    init_method: str = static(default="kmeans")
    init_size: int = static(default=1000)
    total_weight: Any = None

    structure: ClassVar[Any] = Chain()
    params_type: ClassVar[type] = ChainParams

    @property
    def law(self):
        return ChainLaw(Proportions() if self.prior is None else Dirichlet(jnp.ones(())), self.num_states)

    @property
    def components(self):
        return self.family if self.prior is None else Posterior(self.family, self.prior)

    def bind(self, data, weights):
        rows, weights = self.structure.rows(data), self.structure.row_weights(weights, data)
        family = self.family.bind(rows, weights)
        prior = None if self.prior is None else self.prior.bind(family, rows, weights)
        return dataclasses.replace(self, family=family, prior=prior, total_weight=jnp.sum(weights))


def draw(rng, num, length, emit):
    """Sequences of a sticky chain of two states, and the states."""
    z = np.zeros((num, length), int)
    z[:, 0] = rng.integers(0, 2, num)
    for t in range(1, length):
        z[:, t] = np.where(rng.random(num) < np.array([0.1, 0.2])[z[:, t - 1]], 1 - z[:, t - 1], z[:, t - 1])
    return emit(z), z


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    return draw(rng, 30, 12, lambda z: rng.poisson(np.where(z == 0, 2.0, 9.0))[..., None].astype(float))


@pytest.fixture(scope="module")
def fitted(counts):
    return jaxem.fit(HMM(jaxem.families.Poisson(), 2), counts[0], key=KEY, num_restarts=4, max_steps=300)


def paths(fit, x):
    """All states of a short sequence, and log p(x, path) of each, by enumeration in numpy."""
    initial, transition = (np.log(np.asarray(part)) for part in fit.params.mixing)
    log_prob = stats.poisson.logpmf(x, np.asarray(fit.params.components.rate)[:, 0])
    found = np.array(list(itertools.product(range(2), repeat=len(x))))
    steps = transition[found[:, :-1], found[:, 1:]].sum(1)
    return found, initial[found[:, 0]] + steps + log_prob[np.arange(len(x)), found].sum(1)


def test_a_chain_over_a_family_is_fitted(counts, fitted):
    x, z = counts
    assert fitted.status == Status.CONVERGED
    assert int(fitted.hits) == 4
    trace = np.asarray(fitted.trace)
    assert np.all(np.diff(trace[np.isfinite(trace)]) > -1e-9)
    labels = np.asarray(fitted.predict(x))
    right = (labels == z).mean()
    assert max(right, 1 - right) > 0.97
    rows = np.sort(np.diag(np.asarray(fitted.params.mixing[1])))
    np.testing.assert_allclose(rows, [0.8, 0.9], atol=0.06)


def test_evidence_posterior_and_most_probable_path_by_enumeration(counts, fitted):
    x = counts[0][:5, :8]
    model, params = dataclasses.replace(fitted.model, rows=None), fitted.params  # sequences of another length
    log_prob, resp, best = (np.asarray(ask(params, x)) for ask in (model.log_prob, model.posterior, model.predict))
    for s in range(5):
        found, log_joint = paths(fitted, x[s])
        total = np.logaddexp.reduce(log_joint)
        np.testing.assert_allclose(log_prob[s], total, rtol=1e-12)
        np.testing.assert_allclose(resp[s, :, 1], np.exp(log_joint - total) @ found, atol=1e-12)
        np.testing.assert_array_equal(best[s], found[log_joint.argmax()])


def test_an_m_step_is_baum_welch(counts, fitted):
    """Against expected transitions by enumeration of the paths."""
    x = counts[0][:6, :7]
    model = dataclasses.replace(fitted.model, rows=None)
    stats_ = compiled(model.e_step, fitted.params, x, np.ones(6)).stats
    initial, moves = np.zeros(2), np.zeros((2, 2))
    for s in range(6):
        found, log_joint = paths(fitted, x[s])
        share = np.exp(log_joint - np.logaddexp.reduce(log_joint))
        np.add.at(initial, found[:, 0], share)
        for t in range(6):
            np.add.at(moves, (found[:, t], found[:, t + 1]), share)
    np.testing.assert_allclose(stats_.count[0], initial, rtol=1e-10)
    np.testing.assert_allclose(stats_.count[1], moves, rtol=1e-10)
    new = compiled(model.m_step, fitted.params, stats_)
    np.testing.assert_allclose(new.mixing[1], moves / moves.sum(1, keepdims=True), rtol=1e-10)


def test_what_a_structure_gets_for_free(counts, fitted):
    """Weights, chunks, hard EM, another family, and the statistics' additivity."""
    x = counts[0]
    first = np.where(np.arange(30) < 12, 1.0, 0.0)
    whole, a, b = (compiled(fitted.model.e_step, fitted.params, x, w) for w in (np.ones(30), first, 1 - first))
    for one, two in zip(jax.tree.leaves(jax.tree.map(jnp.add, a, b)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-10)
    parts = compiled(jaxem.chunked(fitted.model, 7).e_step, fitted.params, x)
    np.testing.assert_allclose(parts.elbo_data, whole.elbo_data, rtol=1e-12)
    hard = jaxem.fit(HMM(jaxem.families.Poisson(), 2), x, key=KEY, algorithm=jaxem.EM(jaxem.Hard()))
    assert hard.status == Status.CONVERGED
    assert hard.elbo.total < fitted.elbo.total
    climbed = jaxem.fit(HMM(jaxem.families.Poisson(), 2), x, key=KEY, max_steps=15, algorithm=jaxem.GeneralizedEM())
    np.testing.assert_allclose(climbed.elbo.total, fitted.elbo.total, atol=0.01)
    gauss = jaxem.fit(HMM(jaxem.Gaussian(), 2), x, key=KEY, num_restarts=2, max_steps=300)
    assert gauss.status == Status.CONVERGED
    assert gauss.params.components.covariance.shape == (2, 1, 1)


def test_a_chain_under_priors_is_variational_bayes(counts, fitted):
    """Dirichlet rows x posteriors: the ELBO never falls and stays below the maximum of the likelihood."""
    model = HMM(jaxem.families.Poisson(), 2, jaxem.priors.GammaPrior())
    found = jaxem.fit(model, counts[0], key=KEY, num_restarts=2, max_steps=300)
    assert found.status == Status.CONVERGED
    trace = np.asarray(found.trace)
    assert np.all(np.diff(trace[np.isfinite(trace)]) > -1e-9)
    assert found.elbo.total < fitted.elbo.total
    posterior = found.params.components
    mean = np.sort(np.asarray(posterior.shape / posterior.rate)[:, 0])
    np.testing.assert_allclose(mean, np.sort(np.asarray(fitted.params.components.rate)[:, 0]), rtol=0.05)
