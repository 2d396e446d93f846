import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import constraints
from jaxem.core import numerics as _numerics
from jaxem.core import tree as _tree


@pytest.mark.parametrize("num", [1, 2, 7, 10, 11])
@pytest.mark.parametrize("size", [1, 3, 5, 100])
def test_sums_and_maps_over_blocks_equal_the_whole(num, size):
    x = jnp.asarray(np.random.default_rng(num).normal(size=(num, 2)))
    w = jnp.arange(1.0, num + 1)
    f = lambda d, w: {"s": w @ d, "n": w.sum()}
    found = _tree.sum_rows(f, x, w, size)
    np.testing.assert_allclose(found["s"], w @ x, atol=1e-12)
    assert found["n"] == w.sum()
    mapped = _tree.map_rows(lambda d: (d.sum(1), d > 0), x, size)
    np.testing.assert_allclose(mapped[0], x.sum(1))
    np.testing.assert_array_equal(mapped[1], x > 0)


def test_out_of_range_rows_are_clipped_and_dropped():
    tree = {"a": jnp.arange(3)}
    np.testing.assert_array_equal(_tree.take(tree, jnp.array([0, 5]))["a"], [0, 2])
    np.testing.assert_array_equal(_tree.put(tree, jnp.array([1, 3]), {"a": jnp.array([9, 9])})["a"], [0, 9, 2])


def test_weight_zero_wins_over_infinite_values():
    values = jnp.array([[jnp.inf, jnp.nan], [1.0, 2.0]])
    np.testing.assert_array_equal(_numerics.weigh(jnp.array([0.0, 2.0]), values), [[0, 0], [2, 4]])


def test_safe_log_and_divide_have_finite_derivatives():
    assert np.isneginf(_numerics.safe_log(jnp.zeros(())))
    assert jax.grad(_numerics.safe_log)(0.0) == 0
    assert _numerics.safe_divide(jnp.ones(()), jnp.zeros(())) == 0
    assert np.isfinite(jax.grad(lambda b: _numerics.safe_divide(jnp.ones(()), b))(0.0))


CASES = {
    "real": (constraints.Real(), np.array([[-1.5, 2.0]])),
    "positive": (constraints.Positive(), np.array([0.1, 30.0])),
    "above": (constraints.Above(2.0), np.array([2.1, 30.0])),
    "unit": (constraints.UnitInterval(), np.array([0.1, 0.99])),
    "simplex": (constraints.Simplex(), np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])),
    "cholesky": (constraints.Cholesky(), np.linalg.cholesky(np.array([[[2.0, 0.3], [0.3, 0.5]]]))),
    "definite": (constraints.PositiveDefinite(), np.array([[[2.0, 0.3], [0.3, 0.5]]])),
    "fixed": (constraints.Fixed(), np.array(3)),
}


@pytest.mark.parametrize("name", CASES)
def test_constraints_round_trip_and_stay_feasible(name):
    constraint, value = CASES[name]
    value = jnp.asarray(value)
    free = constraints.unconstrain({"a": constraint}, {"a": value})
    back = constraints.constrain({"a": constraint}, free, {"a": value})["a"]
    np.testing.assert_allclose(back, value, rtol=1e-12, atol=1e-15)
    moved = constraint.constrain(free["a"] + 7.0, value)
    if name == "positive":
        assert (moved > 0).all()
    if name in ("simplex", "unit"):
        assert ((moved > 0) & (moved < 1)).all()
    if name == "simplex":
        np.testing.assert_allclose(moved.sum(-1), 1)
    if name == "cholesky":
        assert (jnp.diagonal(moved, axis1=-2, axis2=-1) > 0).all()
        np.testing.assert_array_equal(jnp.triu(moved, 1), 0)


def test_classes_of_equal_fields_are_told_apart():
    """JAX's own dataclass nodes are not: `jit` may then run the program of another class."""

    def make(number):
        return jaxem.dataclass(type("Same", (), {"number": lambda self: number}))()

    trees = [make(i) for i in range(400)]
    assert len({jax.tree.structure(tree) for tree in trees}) == 400
    number = jax.jit(lambda tree: jnp.zeros(tree.number()))
    assert [number.trace(tree).out_info.shape for tree in trees] == [(i,) for i in range(400)]


def test_blocks_cover_all_rows_and_are_no_longer_than_asked():
    for num in (1, 5, 16, 33, 47, 100, 4001, 100_003):
        for size in (1, 3, 16, 20, 40, 2000):
            blocks, length = _tree._block(num, size)
            assert length <= min(size, num)
            assert (blocks - 1) * length < num <= blocks * length
    assert _tree._block(100_003, 2000) == (51, 1968)


@pytest.mark.parametrize("constraint", [constraints.Cholesky(), constraints.PositiveDefinite()])
def test_every_coordinate_of_a_triangle_moves_it(constraint):
    """D (D + 1) / 2 of them, none dead: the derivative has full rank."""
    value = jnp.linalg.cholesky(jnp.array([[2.0, 0.3, 0.1], [0.3, 0.5, -0.2], [0.1, -0.2, 1.0]]))
    free = constraint.unconstrain(value if isinstance(constraint, constraints.Cholesky) else value @ value.T)
    assert free.shape == (6,)
    jacobian = jax.jacobian(lambda free: constraint.constrain(free, value).reshape(-1))(free)
    assert np.linalg.matrix_rank(jacobian) == 6
    grid = jnp.broadcast_to(free[None, None], (2, 3, 6))
    assert constraint.constrain(grid, jnp.zeros((2, 3, 3, 3))).shape == (2, 3, 3, 3)
