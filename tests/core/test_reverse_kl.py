"""The solver of min KL(p || q) + lam H(q), against scipy and against what is known of the minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxem.core.reverse_kl import objective, reverse_kl

SOLVE = jax.jit(reverse_kl)
LAMBDAS = [0.1, 0.3, 0.5, 0.7, 0.9]


def solve(p, lam):
    """Rows of different K share a program: those of fewer states end in states of p = 0."""
    p = np.atleast_2d(np.asarray(p, float))
    padded = np.zeros((12, 20))
    padded[: len(p), : p.shape[1]] = p
    padded[len(p) :, 0] = 1
    return np.asarray(SOLVE(jnp.asarray(padded), jnp.asarray(lam)))[: len(p), : p.shape[1]]


def plain(p, q, lam):
    """KL(p || q) + lam H(q) in numpy, by its definition."""
    return float(np.sum(p * np.log(p / q)) - lam * np.sum(q * np.log(q)))


def best_of_slsqp(p, lam, rng):
    """The lowest objective that scipy finds from several starts: p, vertices, random points."""

    def f(q):
        q = np.maximum(q, 1e-300)
        return plain(p, q, lam), -p / q - lam * (np.log(q) + 1)

    top = np.eye(len(p))[p.argmax()]
    starts = [p, 0.2 * p + 0.8 * top, 0.05 * p + 0.95 * top, *rng.dirichlet(np.ones(len(p)), 2)]
    total = {"type": "eq", "fun": lambda q: q.sum() - 1, "jac": lambda q: np.ones_like(q)}
    options = {"ftol": 1e-15, "maxiter": 1000}
    bounds = [(1e-12, 1)] * len(p)
    found = [minimize(f, q, jac=True, bounds=bounds, constraints=total, options=options).x for q in starts]
    return min(plain(p, q / q.sum(), lam) for q in (np.maximum(q, 1e-12) for q in found))


@pytest.mark.parametrize("num", [2, 3, 5, 10, 20])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_objective_is_as_low_as_scipy_finds(num):
    rng = np.random.default_rng(num)
    rows = np.concatenate([rng.dirichlet(np.full(num, a), 2 if num < 10 else 1) for a in (0.5, 2.0, 500.0)])
    rows = np.maximum(rows, 1e-10)
    rows /= rows.sum(1, keepdims=True)
    for lam in LAMBDAS if num < 10 else LAMBDAS[::2]:
        for p, q in zip(rows, solve(rows, lam), strict=True):
            assert q.sum() == pytest.approx(1, abs=1e-14)
            assert plain(p, q, lam) <= best_of_slsqp(p, lam, rng) + 1e-8


def test_condition_of_stationarity_and_the_lower_branch():
    rng = np.random.default_rng(0)
    folded = []
    for lam in (0.1, 0.9):
        p = rng.dirichlet(np.ones(6), 12)
        q = solve(p, lam)
        nu = 1 + lam * np.sum(q * np.log(q), 1, keepdims=True)
        np.testing.assert_allclose(q * (nu - lam * np.log(q)), p, rtol=1e-9)
        below = p < lam * q  # u < 1
        assert (below.sum(1) <= 1).all()
        assert (q.argmax(1) == p.argmax(1)).all()
        folded.append(below.sum())
    assert folded[0] == 0
    assert folded[1] >= 10


@pytest.mark.parametrize(("num", "jump"), [(3, 0.962), (5, 0.864), (10, 0.7205)])
def test_uniform_rows_jump(num, jump):
    p = np.full(num, 1 / num)
    np.testing.assert_allclose(solve(p, jump - 1.5e-3)[0], p, atol=1e-6)
    beyond = solve(p, jump + 1.5e-3)[0]
    assert beyond[0] > 0.4  # of equal states the first
    assert plain(p, beyond, jump + 1.5e-3) < plain(p, p, jump + 1.5e-3)
    np.testing.assert_allclose(beyond[1:], beyond[1], rtol=1e-12)


def test_limits():
    p = np.random.default_rng(1).dirichlet(np.ones(4), 3)
    np.testing.assert_array_equal(solve(p, 0.0), p)
    np.testing.assert_allclose(solve(p, 1e-9), p, rtol=1e-7)
    tops = np.array([solve(p, lam).max(1) for lam in np.linspace(0, 1, 11)])
    assert (np.diff(tops, axis=0) > 0).all()  # q sharpens as lam grows
    entropy = np.array([-np.sum(q * np.log(q), 1) for q in (solve(p, lam) for lam in np.linspace(0, 1, 11))])
    assert (np.diff(entropy, axis=0) < 0).all()


def test_zeros_vertices_and_tiny_probabilities():
    p = np.array([[0.5, 0.0, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0], [1 - 2e-300, 1e-300, 1e-300, 0.0]])
    q = solve(p, 0.6)
    assert (q[p == 0] == 0).all()
    np.testing.assert_array_equal(q[1], p[1])
    np.testing.assert_array_equal(q[0][[0, 2, 3]], solve(p[0][[0, 2, 3]], 0.6)[0])
    assert 0 < q[2, 1] < 1e-300
    assert q[2, 0] == 1


def test_permutation_equivariant():
    rng = np.random.default_rng(2)
    p, order = rng.dirichlet(np.ones(7), 5), rng.permutation(7)
    np.testing.assert_allclose(solve(p[:, order], 0.8), solve(p, 0.8)[:, order], rtol=1e-12)


def test_single_precision():
    p = np.random.default_rng(3).dirichlet(np.ones(20), 12)
    for lam in (0.2, 0.9):
        q = SOLVE(jnp.asarray(p, jnp.float32), jnp.float32(lam))
        assert q.dtype == jnp.float32
        gained = objective(jnp.asarray(p), jnp.asarray(q, jnp.float64), lam) - objective(
            jnp.asarray(p), solve(p, lam), lam
        )
        assert np.abs(gained).max() < 1e-6


def test_derivatives_are_those_of_differences():
    p = np.random.default_rng(4).dirichlet(np.ones(4))
    direction = np.array([0.3, -0.1, 0.2, -0.4]) * p.min()
    step = 1e-5
    for lam in (0.0, 0.4, 0.9):
        _, along = jax.jvp(reverse_kl, (jnp.asarray(p), jnp.asarray(lam)), (jnp.asarray(direction), jnp.asarray(0.0)))
        ahead, behind = (solve(p + s * direction, lam)[0] for s in (step, -step))
        np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-9)
    _, along = jax.jvp(reverse_kl, (jnp.asarray(p), jnp.asarray(0.5)), (jnp.zeros(4), jnp.asarray(1.0)))
    ahead, behind = (solve(p, 0.5 + s)[0] for s in (step, -step))
    np.testing.assert_allclose(along, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-9)
