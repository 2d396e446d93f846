"""Weighted moments of columns, which add up over rows."""

import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import einsum, safe_divide
from jaxem.core.pytree import dataclass
from jaxem.core.whole import of_all


@dataclass
class Moments:
    """Weighted moments of the columns of rows: those of A and B together are moments(A) + moments(B).

    Accurate at any offset and in any unit whose numbers the dtype holds: squares are only taken of ratios.

    Attributes:
      total: sum of weights.
      rows: number of rows of positive weight.
      mean: (D,).
      std: (D,) root mean square about the mean.
      largest: (D,) largest size of a number in a row of positive weight.
    """

    total: Array
    rows: Array
    mean: Array
    std: Array
    largest: Array

    @property
    def constant(self) -> Array:
        """(D,) columns without spread, to rounding."""
        return self.std <= 2 * jnp.finfo(self.std.dtype).eps * self.largest

    @property
    def mean_weight(self) -> Array:
        """That of the rows that have one."""
        return self.total / self.rows

    def about(self, place: Array) -> "Moments":
        """The same with `std` about a place (D,) instead of the mean, and that as the mean."""
        std = _root_sum_square(self.std, self.mean - place)
        return Moments(self.total, self.rows, place, std, self.largest)

    def __add__(self, other: "Moments") -> "Moments":
        total, gap = self.total + other.total, other.mean - self.mean
        a, b = safe_divide(self.total, total), safe_divide(other.total, total)
        std = _root_sum_square(jnp.sqrt(a) * self.std, jnp.sqrt(b) * other.std, jnp.sqrt(a * b) * gap)
        largest = jnp.maximum(self.largest, other.largest)
        return Moments(total, self.rows + other.rows, self.mean + b * gap, std, largest)


def moments(x: Array, weights: Array) -> Moments:
    """The moments of all rows, x (N, D) of them at hand, some of positive weight; those of weight 0 are not looked at.

    Of a stream they are put together of those of its batches; see `jaxem.core.whole`.
    """
    return of_all(_moments, x, weights)


def _moments(x: Array, weights: Array) -> Moments:
    used, total = (weights > 0)[:, None], jnp.sum(weights)
    share, origin = weights / total, jnp.where(weights[0] > 0, x[0], 0)
    mean = origin + einsum("n,nd->d", share, x - origin[None])
    # Again about the mean: the first row may lie far away.
    mean = mean + einsum("n,nd->d", share, x - mean[None])
    gap = jnp.where(used, x - mean[None], 0)
    width = jnp.max(jnp.abs(gap), 0)
    unit = jnp.where(width > 0, width, 1)
    std = unit * jnp.sqrt(einsum("n,nd->d", share, (gap / unit[None]) ** 2))
    largest = jnp.max(jnp.where(used, jnp.abs(x), 0), 0)
    return Moments(total, jnp.sum(weights > 0, dtype=x.dtype), mean, std, largest)


def _root_sum_square(*parts: Array) -> Array:
    """Root of the sum of squares, none of which leaves the range of the dtype."""
    sizes = jnp.stack([jnp.abs(part) for part in parts])
    unit = jnp.max(sizes, 0)
    unit = jnp.where(unit > 0, unit, 1)
    return unit * jnp.sqrt(jnp.sum((sizes / unit[None]) ** 2, 0))
