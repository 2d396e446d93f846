"""Whether a component's spread is the data's, or so small that nothing but a penalty bounds its likelihood."""

import jax.numpy as jnp
from jax import Array

# Pseudo-observations that the spread of a component is held against, whatever the strength of the penalty; and where it
# rests on few rows. At every published optimum that the tests replicate the share of the first is below 4e-5. A scatter
# of N rows in D columns has a smallest eigenvalue s with density s^((N - D) / 2 - 1) near 0, so with hardly more rows
# than columns it is small by chance, and the best of many restarts finds it: 40 x 6 normal rows have components of
# seven rows whose BIC is 9 below that of one component (share of 1e-6: 0.067), and of eight (0.005).
GAUGE = 1e-6
GAUGE_OF_FEW = 1e-4


def influence(spread: Array, count: Array, strength: Array, mean_weight: Array, enough: int) -> Array:
    """(K,) share of a component's spread, in its tightest direction, that `GAUGE` pseudo-observations would have.

        g / (g + SS / S0),    SS = sum of squares of the data in that direction, S0 = the data's variance there

    About 1 for a spike; the penalty's own nu S0 is taken off, so that a firm penalty neither hides one nor makes one.

    Args:
      spread: (K,) S0 / variance of the component, largest over directions; the variance (SS + nu S0) / (count + nu).
      count: (K,) sums of weights.
      strength: nu, of the penalty.
      mean_weight: of a row; heavy rows are as many as they are, and rounding grows with their weight.
      enough: rows above which a small spread is believed.

    Returns:
      (K,); 0 for a component that is empty, with no more observations than the pseudo-observations.
    """
    heavy = jnp.maximum(mean_weight, 1)
    gauge = heavy * jnp.where(count < enough * mean_weight, GAUGE_OF_FEW, GAUGE).astype(count.dtype)
    squares = jnp.maximum((count + strength) / spread - strength, 0)
    return jnp.where(count > jnp.maximum(strength, GAUGE * heavy), gauge / (gauge + squares), 0)
