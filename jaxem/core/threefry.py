"""The bits of `jax.random` in NumPy, where nothing is traced: a draw in a program takes a fifth of a second to compile.

Threefry is arithmetic of integers, so both give the same numbers; keys of other kinds, and tracers, go to `jax.random`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.numerics import is_concrete

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def fold_in_each(key: Array, num: int) -> Array:
    """`jax.random.fold_in(key, i)` for i < num, an array of keys (num,)."""
    words = _words(key)
    if words is None:
        return _fold_in_each(key, num)
    data = np.stack(_hash(words, np.arange(num, dtype=np.uint32)), 1)
    return jax.random.wrap_key_data(jax.device_put(data), impl=jax.random.key_impl(key))


def split(key: Array) -> tuple[Array, Array]:
    """`jax.random.split(key)`."""
    words = _words(key)
    if words is None:
        one, two = jax.random.split(key)
        return one, two
    one, two = fold_in_each(key, 2)  # with this layout of its numbers the same
    return one, two


def each(keys: Array) -> list[Array]:
    """The keys of an array (R,) of concrete keys, one by one."""
    impl = jax.random.key_impl(keys)
    return [jax.random.wrap_key_data(words, impl=impl) for words in np.asarray(jax.random.key_data(keys))]


def uniform(key: Array, shape: tuple[int, ...]) -> Any:
    """`jax.random.uniform(key, shape, jnp.float32)`; a NumPy array where nothing is traced."""
    words = _words(key)
    if words is None:
        return jax.random.uniform(key, shape, jnp.float32)
    high, low = _hash(words, np.arange(np.prod(shape, dtype=int), dtype=np.uint32))
    floats = ((high ^ low) >> np.uint32(9)) | np.float32(1).view(np.uint32)  # the mantissa of a number in [1, 2)
    return (floats.view(np.float32) - np.float32(1)).reshape(shape)


@partial(jax.jit, static_argnums=1)
def _fold_in_each(key: Array, num: int) -> Array:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num, dtype=jnp.int32))


def _words(key: Array) -> np.ndarray | None:
    """The two words of a key whose numbers are those of `_hash`; None for others, and while a program is traced."""
    if str(jax.random.key_impl(key)) != "threefry2x32" or not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        return None
    data = jax.random.key_data(key)
    return np.asarray(data) if is_concrete(data) and data.ndim == 1 else None


def _hash(key: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32, 20 rounds, of counts below 2^32.

    References:
      Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3, section 3.3.
    """
    words = [*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)]
    with np.errstate(over="ignore"):  # sums are modulo 2^32
        x, y = np.zeros_like(counts) + words[0], counts + words[1]
        for group in range(5):
            for turn in _ROTATIONS[group % 2]:
                x = x + y
                y = ((y << np.uint32(turn)) | (y >> np.uint32(32 - turn))) ^ x
            x, y = x + words[(group + 1) % 3], y + words[(group + 2) % 3] + np.uint32(group + 1)
    return x, y
