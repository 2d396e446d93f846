"""Numerical primitives: matrix products at full precision, safe divisions, the slack of a sum of log-densities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PRECISION = jax.lax.Precision.HIGHEST


def einsum(spec: str, *operands: Array) -> Array:
    """`jnp.einsum` at full precision: the TF32 and bfloat16 defaults of accelerators are too coarse for statistics."""
    return jnp.einsum(spec, *operands, precision=PRECISION)


def matmul(a: Array, b: Array) -> Array:
    """`jnp.matmul` at full precision; see `einsum`."""
    return jnp.matmul(a, b, precision=PRECISION)


def safe_divide(a: Array, b: Array) -> Array:
    """A / b, and 0 where b is 0; differentiable there."""
    zero = b == 0
    return jnp.where(zero, 0, a / jnp.where(zero, 1, b))


def safe_log(x: Array) -> Array:
    """Log x, with log 0 = -inf whose derivative is 0 instead of NaN."""
    zero = x <= 0
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1, x)))


def weigh(weights: Array, values: Array) -> Array:
    """Weights * values over the leading axis, where weight 0 wins over an infinite or NaN value."""
    w = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
    return jnp.where(w > 0, w * values, 0)


def scrambled(x: Array, key: Array) -> Array:
    """Scrambled bits of x and a key (uint32): the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16) ^ key) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def slack(elbo: Array, total_weight: Array, scales: bool = False) -> Array:
    """How far a sum of log-densities can fall by rounding alone; a fall beyond it ends a restart as DECREASED.

    64 eps (|elbo| + W): rows of both signs cancel in the sum, so the number of rows counts beside the sum itself. In an
    objective that scales with the data, a distortion, rows do not count.
    """
    size = abs(elbo) if scales else abs(elbo) + total_weight
    return 64 * jnp.finfo(elbo.dtype).eps * size


def namespace(tree: Any) -> Any:
    """Numpy for concrete arrays, jax.numpy for tracers.

    Bookkeeping on a few numbers is done in numpy where it can be: every small operation of a compiled program costs
    tens of milliseconds of compilation.
    """
    return np if is_concrete(tree) else jnp


def is_concrete(*trees: Any) -> bool:
    """Whether no leaf is a JAX tracer, so that values can be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))
