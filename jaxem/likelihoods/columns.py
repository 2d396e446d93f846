"""Centre and scale of columns: the coordinates in which networks see data, whatever their units."""

import jax.numpy as jnp
from jax import Array

from jaxem.core.pytree import dataclass


@dataclass
class Columns:
    """Coordinates of columns: value = centre + scale * coordinate.

    Attributes:
      centre: (D,), or the shape of one row.
      scale: the same shape, positive.
    """

    centre: Array
    scale: Array

    def standardised(self, x: Array) -> Array:
        """Coordinates of values (n, D); the offset goes first, so that a large one costs no digits."""
        return (x - self.centre[None]) / self.scale[None]

    def values(self, coordinates: Array) -> Array:
        """Values at coordinates (n, D)."""
        return self.centre[None] + self.scale[None] * coordinates


def moments(x: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of every column, weighted; rows of weight 0 count for nothing.

    Squares are of deviations relative to the largest one, and sums are of deviations from the middle of the range: no
    overflow for any data whose range is finite, no cancellation for a large offset.

    Args:
      x: (N, ...).
      weights: (N,) >= 0, not all 0.

    Returns:
      (mean, standard deviation), each the shape of a row; the deviation is exactly 0 where all values are the same.
    """
    w = weights.reshape(-1, *(1,) * (x.ndim - 1))
    share, used = w / jnp.sum(weights), w > 0
    low = jnp.min(jnp.where(used, x, jnp.inf), 0)
    high = jnp.max(jnp.where(used, x, -jnp.inf), 0)
    middle = low / 2 + high / 2
    reach = jnp.maximum(high - middle, middle - low)
    away = jnp.where(used, x - middle[None], 0) / jnp.where(reach > 0, reach, 1)[None]
    mean = jnp.sum(share * away, 0)
    spread = jnp.sqrt(jnp.sum(share * (away - mean[None]) ** 2, 0))
    return jnp.where(reach > 0, middle + reach * mean, low), jnp.where(reach > 0, reach * spread, 0)


def standard(x: Array, weights: Array, common: bool, least: Array | float = 0.0) -> Columns:
    """Each column's mean and standard deviation as its coordinates.

    Args:
      x: (N, ...).
      weights: (N,).
      common: one scale for all columns, their root mean square deviation, instead of each its own.
      least: the scale is not below this; a scale that still is 0, of a constant column, becomes 1.

    Returns:
      `Columns`.
    """
    centre, spread = moments(x, weights)
    if common:
        top = jnp.max(spread)
        unit = jnp.where(top > 0, top, 1)
        spread = jnp.broadcast_to(unit * jnp.sqrt(jnp.mean((spread / unit) ** 2)), spread.shape)
    spread = jnp.maximum(spread, jnp.asarray(least, x.dtype))
    return Columns(centre, jnp.where(spread > 0, spread, 1))
