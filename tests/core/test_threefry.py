"""The bits are those of `jax.random`, whoever asks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem.core import threefry

KEYS = [jax.random.fold_in(jax.random.key(seed), 77 * seed) for seed in range(4)]
same_keys = lambda a, b: np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(b))


@pytest.mark.parametrize("key", [*KEYS, jax.random.key(3, impl="rbg"), jax.random.key(2**31 - 1)])
def test_numbers_and_keys_are_jaxs_own(key):
    for shape in [(), (7,), (3, 4), (130, 3)]:
        np.testing.assert_array_equal(threefry.uniform(key, shape), jax.random.uniform(key, shape, jnp.float32))
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(9))
    same_keys(threefry.fold_in_each(key, 9), keys)
    for one, other in zip(threefry.each(keys), keys, strict=True):
        same_keys(one, other)
    for one, other in zip(threefry.split(key), jax.random.split(key), strict=True):
        same_keys(one, other)


def test_the_same_where_a_program_is_traced():
    inside = jax.jit(lambda key: (threefry.uniform(key, (5, 2)), threefry.fold_in_each(key, 3), threefry.split(key)))
    numbers, keys, parts = inside(KEYS[0])
    np.testing.assert_array_equal(numbers, threefry.uniform(KEYS[0], (5, 2)))
    same_keys(keys, threefry.fold_in_each(KEYS[0], 3))
    same_keys(jnp.stack(parts), jnp.stack(threefry.split(KEYS[0])))
    closed_over = jax.jit(lambda: threefry.uniform(KEYS[0], (5, 2)))()
    np.testing.assert_array_equal(closed_over, numbers)


def test_the_older_layout_of_jaxs_numbers_is_left_to_jax():
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(threefry.uniform(KEYS[1], (5,)), jax.random.uniform(KEYS[1], (5,), jnp.float32))
