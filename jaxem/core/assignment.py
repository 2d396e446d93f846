"""Which parts of two descriptions are the same: an assignment."""

import jax
import jax.numpy as jnp
from jax import Array


def matching(overlap: Array) -> Array:
    """(K,) the column for each row, each once, with the largest sum of `overlap` (K, K); NaN counts as 0."""
    import optax  # half a second, not needed by most fits

    # A NaN would keep the search for an assignment from ending.
    cost = -jnp.nan_to_num(overlap).astype(jnp.result_type(float))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        row, column = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros_like(column).at[row].set(column)
