"""The recursions of a Markov chain against enumeration of all paths, in blocks and not, and where sums underflow."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem import Exact, Hard, ReverseKL, Sampled, Tempered
from jaxem.structures import forward_backward
from jaxem.structures.chain import Chain, occupancy
from jaxem.structures.forward_backward import ChainJoint, by_logs, scaled
from jaxem.structures.stationary import climb, stationary

KEY = jax.random.key(0)
LENGTHS = np.array([8, 5, 1])


def enumerate_paths(initial, transition, log_prob, temperature=1.0):
    """(log p(x), posterior (T, K), expected transitions, best path, its log-joint) by all K^T paths, in numpy."""
    length, num = log_prob.shape
    found = np.array(list(itertools.product(range(num), repeat=length)))
    log_joint = initial[found[:, 0]] + transition[found[:, :-1], found[:, 1:]].sum(1)
    log_joint = log_joint + log_prob[np.arange(length), found].sum(1)
    tempered = log_joint / temperature
    q = np.exp(tempered - np.logaddexp.reduce(tempered))
    posterior = np.stack([np.bincount(found[:, t], q, num) for t in range(length)])
    moves = np.zeros((num, num))
    for t in range(length - 1):
        np.add.at(moves, (found[:, t], found[:, t + 1]), q)
    return np.logaddexp.reduce(log_joint), posterior, moves, found[log_joint.argmax()], log_joint.max()


@pytest.fixture(scope="module")
def joint():
    """Three sequences of a chain of three states, some of whose transitions are impossible."""
    rng = np.random.default_rng(0)
    transition = np.log(rng.dirichlet(np.ones(3), 3))
    transition[2, 0] = transition[1, 0] = -np.inf
    log_prob = 3 * rng.normal(size=(3, 8, 3))
    return ChainJoint(*map(jnp.asarray, (np.log(rng.dirichlet(np.ones(3))), transition, log_prob, LENGTHS * 1.0)))


CUT = {"into": None}  # the number of blocks that a test asks for


@functools.cache
def program(blocks):
    """One for each number of blocks, which JAX knows nothing of."""
    return jax.jit(lambda joint, rule: Chain().infer(joint, rule))


def infer(joint, rule):
    return program(CUT["into"])(joint, rule)


@pytest.fixture(params=[1, 3], ids=["whole", "blocks"])
def blocks(request, monkeypatch):
    """Blocks that the steps are cut into, as on an accelerator; 8 - 1 steps in 3 leave some over."""
    asked = []
    monkeypatch.setattr(forward_backward, "num_blocks", lambda *_: asked.append(1) or request.param)
    monkeypatch.setitem(CUT, "into", request.param)
    yield request.param
    assert asked, "a program of another number of blocks has answered"


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_forward_backward_by_enumeration(joint, blocks, temperature):
    value, q = infer(joint, Exact() if temperature == 1 else Tempered(temperature))
    for s, length in enumerate(LENGTHS):
        parts = (np.asarray(joint.initial), np.asarray(joint.transition), np.asarray(joint.log_prob)[s, :length])
        evidence, posterior, moves, *_ = enumerate_paths(*parts, temperature)
        np.testing.assert_allclose(value[s], evidence, rtol=1e-13)
        np.testing.assert_allclose(q.log_prob[s, :length], posterior, atol=1e-13)
        np.testing.assert_allclose(q.transition[s], moves, atol=1e-13)
        np.testing.assert_allclose(q.initial[s], posterior[0], atol=1e-13)
        assert not np.any(q.log_prob[s, length:])


def test_viterbi_by_enumeration(joint, blocks):
    value, _ = infer(joint, Hard())
    paths = np.asarray(jax.jit(lambda joint: Chain().predict(joint))(joint))
    for s, length in enumerate(LENGTHS):
        parts = (np.asarray(joint.initial), np.asarray(joint.transition), np.asarray(joint.log_prob)[s, :length])
        *_, best, top = enumerate_paths(*parts)
        np.testing.assert_array_equal(paths[s, :length], best)
        np.testing.assert_allclose(value[s], top, rtol=1e-13)
        assert np.all(paths[s, length:] == -1)


def test_sampled_paths_are_of_the_posterior(joint, blocks):
    draws = 4000
    value, q = jax.jit(jax.vmap(lambda key: Chain().infer(joint, Sampled(key))))(jax.random.split(KEY, draws))
    states, moves = np.asarray(q.log_prob), np.asarray(q.transition)
    assert set(np.unique(states)) == {0.0, 1.0}
    paths = states[:, 0].argmax(-1)  # transitions are those of the path
    counted = sum((paths[:, t, None] == 1) & (paths[:, t + 1, None] == 2) for t in range(7))[:, 0]
    np.testing.assert_array_equal(moves[:, 0, 1, 2], counted)
    for s, length in enumerate(LENGTHS):
        parts = (np.asarray(joint.initial), np.asarray(joint.transition), np.asarray(joint.log_prob)[s, :length])
        evidence, posterior, expected, *_ = enumerate_paths(*parts)
        np.testing.assert_allclose(np.asarray(value)[0, s], evidence, rtol=1e-13)
        np.testing.assert_allclose(states[:, s, :length].mean(0), posterior, atol=5 * 0.5 / np.sqrt(draws))
        np.testing.assert_allclose(moves[:, s].mean(0), expected, atol=5 * moves[:, s].std(0).max() / np.sqrt(draws))


def test_the_derivative_of_the_evidence_is_the_posterior(joint):
    slope = jax.jit(
        jax.grad(lambda log_prob: Chain().evidence(dataclasses.replace(joint, log_prob=log_prob), Exact()).sum())
    )
    found = slope(joint.log_prob)
    np.testing.assert_allclose(found, infer(joint, Exact())[1].log_prob, atol=1e-13)
    value = lambda log_prob: infer(dataclasses.replace(joint, log_prob=log_prob), Exact())[0].sum()
    step = 1e-5 * np.random.default_rng(1).normal(size=found.shape)
    ahead, behind = value(joint.log_prob + step), value(joint.log_prob - step)
    np.testing.assert_allclose((ahead - behind) / 2, np.sum(np.asarray(found) * step), rtol=1e-6)


def test_terms_of_the_evidence_add_up(joint):
    for rule, entropy in ((Exact(), None), (Tempered(2.0), None), (Tempered(2.0, KEY, 1.0), None), (Hard(), 0.0)):
        terms = jax.jit(Chain().decompose)(joint, joint, rule)
        np.testing.assert_allclose(terms.elbo + terms.kl, terms.log_evidence, rtol=1e-12)
        assert np.all(np.asarray(terms.kl) >= -1e-12)
        if entropy is not None:
            np.testing.assert_array_equal(terms.entropy, entropy)
    parts = np.asarray(joint.initial), np.asarray(joint.transition), np.asarray(joint.log_prob)[0]
    _, _, moves, *_ = enumerate_paths(*parts, 2.0)
    terms = jax.jit(Chain().decompose)(joint, joint, Tempered(2.0))
    _, q = infer(joint, Tempered(2.0))
    finite = np.where(np.isfinite(parts[1]), parts[1], 0)
    expected = np.sum(finite * moves) + np.sum(parts[0] * q.initial[0]) + np.sum(parts[2] * q.log_prob[0])
    np.testing.assert_allclose(terms.expected_log_joint[0], expected, rtol=1e-12)


def test_a_rule_that_takes_rows_one_by_one_is_refused(joint):
    with pytest.raises(TypeError, match=r"ReverseKL takes rows one by one.*Tempered"):
        Chain().infer(joint, ReverseKL(0.5))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_outlier_does_not_drive_a_left_right_chain_onward(dtype):
    """Sums of probabilities lose the path that stays, whose evidence returns at the next step."""
    size = 200.0 if dtype == np.float32 else 2000.0
    log_prob = np.zeros((1, 6, 2))
    log_prob[0, 2] = [-size, 0]
    log_prob[0, 3:] = [0, -size]
    transition = np.log(np.array([[0.5, 0.5], [1e-300, 1.0]]))
    transition[1, 0] = -np.inf
    parts = np.log([1.0, 1e-300]), transition, log_prob[0]
    joint = ChainJoint(
        *(jnp.asarray(a, dtype) for a in (np.array([0, -np.inf]), transition, log_prob, np.array([6.0])))
    )
    evidence, posterior, *_ = enumerate_paths(
        np.array([0, -1e9]), np.where(np.isinf(transition), -1e9, transition), parts[2]
    )
    value, q = infer(joint, Exact())
    assert value.dtype == dtype
    np.testing.assert_allclose(value[0], evidence, rtol=1e-6)
    np.testing.assert_allclose(q.log_prob[0], posterior, atol=1e-6)
    assert bool(jax.jit(lambda j: scaled(j, 1.0).lost)(joint))  # the test is of what it says
    lanes = jax.jit(jax.vmap(lambda j: Chain().infer(j, Exact())[0]))(
        jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), joint)
    )
    np.testing.assert_allclose(lanes[0], value, rtol=1e-6)


def test_states_that_cannot_be_reached_are_not_lost(joint):
    transition = jnp.where(jnp.triu(jnp.ones((3, 3))) > 0, joint.transition, -jnp.inf)
    first = dataclasses.replace(joint, transition=transition, initial=jnp.asarray([0.0, -jnp.inf, -jnp.inf]))
    assert not bool(jax.jit(lambda j: scaled(j, 1.0).lost)(first))


def test_what_is_impossible_has_no_probability(joint):
    impossible = dataclasses.replace(joint, log_prob=joint.log_prob.at[0, 3].set(-jnp.inf))
    value, q = infer(impossible, Exact())
    assert np.isneginf(value[0])
    assert np.all(np.isfinite(value[1:]))
    assert not np.any(np.isnan(q.log_prob))


def test_a_hundred_thousand_steps_in_single_precision():
    rng = np.random.default_rng(0)
    log_prob = 4 * rng.normal(size=(1, 100_000, 3)) - 5
    parts = np.log([0.5, 0.3, 0.2]), np.log(np.full((3, 3), 0.05) + 0.85 * np.eye(3)), log_prob, np.array([100_000.0])
    wide, narrow = (
        infer(ChainJoint(*(jnp.asarray(a, dtype) for a in parts)), Exact()) for dtype in (np.float64, np.float32)
    )
    np.testing.assert_allclose(narrow[0], wide[0], rtol=1e-6)
    np.testing.assert_allclose(narrow[1].log_prob, wide[1].log_prob, atol=2e-5)
    np.testing.assert_allclose(narrow[1].transition, wide[1].transition, rtol=1e-5)
    logs = jax.jit(lambda joint: by_logs(joint, Exact()).backward())(ChainJoint(*map(jnp.asarray, parts)))
    np.testing.assert_allclose(wide[1].log_prob, logs.log_prob, atol=1e-10)


def test_occupancy_is_the_mean_of_the_states_over_the_steps():
    transition, initial = np.array([[0.9, 0.1, 0], [0, 0.5, 0.5], [0.2, 0, 0.8]]), np.array([1.0, 0, 0])
    powers = [initial @ np.linalg.matrix_power(transition, t) for t in range(16)]
    found = occupancy(jnp.asarray(initial), jnp.asarray(transition), jnp.asarray(16.0))
    np.testing.assert_allclose(found, np.mean(powers, 0), rtol=1e-13)


def test_a_climb_with_a_stationary_start_ends_where_no_row_can_be_better():
    """Against a grid over the free entries of two rows; and it never falls."""
    first, count, rows = np.array([3.0, 1.0]), np.array([[4.0, 2.0], [1.0, 5.0]]), np.full((2, 2), 0.5)

    def objective(a, b):  # of the probabilities of leaving
        log_first = first[0] * np.log(b / (a + b)) + first[1] * np.log(a / (a + b))
        return log_first + count[0] @ np.log([1 - a, a]) + count[1] @ np.log([b, 1 - b])

    values = [objective(rows[0, 1], rows[1, 0])]
    for _ in range(60):
        rows = np.asarray(jax.jit(climb)(first, count, rows))
        values.append(objective(rows[0, 1], rows[1, 0]))
    assert np.all(np.diff(values) >= -1e-12)
    a, b = np.meshgrid(*[np.linspace(0.01, 0.99, 981)] * 2, indexing="ij")
    grid = first[0] * np.log(b / (a + b)) + first[1] * np.log(a / (a + b))
    grid += (
        count[0, 0] * np.log(1 - a) + count[0, 1] * np.log(a) + count[1, 0] * np.log(b) + count[1, 1] * np.log(1 - b)
    )
    assert values[-1] >= grid.max()
    np.testing.assert_allclose(values[-1], grid.max(), atol=1e-4)
    np.testing.assert_allclose(stationary(jnp.asarray(rows)) @ rows, stationary(jnp.asarray(rows)), rtol=1e-12)
