"""What every shape of covariance is: the value of a factor that whitens residuals and is updated from them.

A shape stores a factor L of the covariances, Sigma_k = L_k L_k', and works in coordinates whitened by it,
y = L^-1 (x - mean). There the covariance at the E-step is the identity, so second moments of y are near 1 whatever the
units, the tightness or the offset of the data, and float32 keeps its digits. The M-step maps the update back by the
factor: with W the penalised second moment of y about its mean, the new factor is L @ cholesky(W).

Factors have the units of the data. Their squares, which leave the range of float32 beyond 1e-19 and 1e19, are formed
only where someone asks for covariances.

A column that is a linear combination of earlier ones has a row in a Cholesky factor like any other and 0 on its
diagonal: it follows from the others. The inverse then has zeros in its row and column, so that whitened residuals of
it are 0, and it adds nothing to a density or a moment.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import constraints
from jaxem.core.numerics import namespace, safe_divide
from jaxem.families.dependence import Span


def average(total: Array, count: Array, empty: Array | float = 1.0) -> Array:
    """Total / count; `empty`, which leaves a factor as it is, where nothing counts (no data and no penalty)."""
    return jnp.where(count > 0, safe_divide(total, count), empty)


def row_norms(factor: Array) -> Array:
    """(..., D) standard deviations that factors (..., D, D) stand for; no square leaves the range of the dtype."""
    xp = namespace(factor)
    largest = xp.max(xp.abs(factor), -1)
    safe = xp.where(largest > 0, largest, 1)
    return largest * xp.sqrt(xp.sum((factor / safe[..., None]) ** 2, -1))


class Covariance(ABC):
    """A factor L of K covariances of D columns, one shape of it a subclass: a `jaxem.dataclass` of arrays.

    As a map of vectors a factor has an inverse and products of the same shape, so the factor of the params whitens by
    its inverse. Second moments of whitened residuals are kept in the shape's own form, as little as an update needs.

    Attributes:
      constraint: of the arrays.
      correlated: whether covariances have off-diagonal entries.
      shared: whether all components have one covariance, whose moments are sums over components.
      precision: the conjugate law of the inverse covariances; None where there is none.
    """

    constraint: ClassVar[constraints.Constraint]
    correlated: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    precision: ClassVar[Any] = None

    @property
    def scale(self) -> Any:
        """The array of the factor; a tuple where there are several."""
        leaves = jax.tree.leaves(self)
        return leaves[0] if len(leaves) == 1 else tuple(leaves)

    @classmethod
    def of_scale(cls, scale: Any) -> Self:
        """The value with these arrays, as `scale` gives them."""
        return cls(*scale) if isinstance(scale, tuple) else cls(scale)  # type: ignore[call-arg]

    @classmethod
    @abstractmethod
    def of(cls, covariance: Array) -> Self:
        """The factor of covariances in their natural shape."""

    @classmethod
    @abstractmethod
    def start(cls, num: int, std: Array, span: Span | None) -> Self:
        """The factor of K covariances diag(std^2), in which dependent columns follow the others."""

    @classmethod
    @abstractmethod
    def shape(cls, num: int, num_columns: int) -> tuple[int, ...]:
        """Natural shape of the covariances, and of the factor."""

    @classmethod
    @abstractmethod
    def num_parameters(cls, num: int, num_columns: int) -> int:
        """Free parameters of K covariances."""

    @classmethod
    def common(cls, std: Array, constant: Array) -> tuple[Array, Array]:
        """Deviations of the data's columns (D,) and which are constant, as far as the shape tells columns apart."""
        return std, constant

    @classmethod
    def pool(cls, count: Array) -> Array:
        """Counts (K,) as each covariance counts them: their sum where there is one for all."""
        return jnp.sum(count) if cls.shared else count

    @classmethod
    def enough_rows(cls, num_columns: int) -> int:
        """Rows above which a small spread of a component is believed."""
        return 0 if cls.shared else 4

    # As a map of vectors.

    @abstractmethod
    def inverse(self) -> Self:
        """The inverse of the factor."""

    @abstractmethod
    def apply(self, vector: Array) -> Array:
        """(K, D) L_k @ vector_k."""

    @abstractmethod
    def residuals(self, x: Array, mean: Array) -> Array:
        """(K, D, n) L_k (x_n - mean_k), for x (n, D) and mean (K, D) that share an origin."""

    @abstractmethod
    def compose(self, other: Self) -> Self:
        """The factors L_k @ other_k, either of K components or of one."""

    @abstractmethod
    def stretch(self, std: Array) -> Self:
        """The factors L_k @ diag(std), as far as the shape can have them."""

    def order(self, index: Array) -> Self:
        """The factors in another order."""
        return self if self.shared else jax.tree.map(lambda leaf: leaf[index], self)

    @abstractmethod
    def draw(self, noise: Array, component: Array) -> Array:
        """(N, D) L_k @ noise_n for the component k of each row; no matrix for each row."""

    # Numbers of L L'.

    @abstractmethod
    def log_det(self, num_columns: int) -> Array:
        """(K,) or () log det of the factor."""

    def rank(self, num_columns: int) -> Any:
        """Columns that count in a density: all, or (K,) or () as many as are not dependent."""
        return num_columns

    @abstractmethod
    def trace(self, num_columns: int) -> Array:
        """(K,) or () tr(L L')."""

    @abstractmethod
    def top(self) -> Array:
        """(K,) or () largest eigenvalue of L L'."""

    @abstractmethod
    def deviations(self) -> Array:
        """Standard deviations of the columns, of a shape that broadcasts to (K, D)."""

    @abstractmethod
    def dense_factor(self, num_columns: int) -> Array:
        """(K, D, D) or (1, D, D) lower factors of the covariances."""

    @abstractmethod
    def dense(self, num_columns: int) -> Array:
        """(K, D, D) or (1, D, D) the covariances."""

    # Second moments of whitened residuals.

    @classmethod
    @abstractmethod
    def second(cls, resp: Array, y: Array) -> Array:
        """Second moments of residuals y (K, D, n), sum over n of resp (K, n)."""

    @classmethod
    @abstractmethod
    def pair(cls, a: Array, b: Array) -> Array:
        """The part of a second moment that is a_k b_k', of vectors (K, D)."""

    @abstractmethod
    def gram(self) -> Array:
        """L L' as a second moment."""

    @abstractmethod
    def congruence(self, second: Array) -> Array:
        """The second moments of L @ y, of those of y."""

    @abstractmethod
    def update(self, scatter: Array, raw: Array, divisor: Array, held: Array) -> Self:
        """The factor whose covariance is L (scatter / divisor) L'.

        Args:
          scatter: second moments of whitened residuals about their mean, a prior's included; summed, not divided.
          raw: the same before the mean was taken out, which tells how many digits are left.
          divisor: (K,), or () where covariances are shared; where it is 0 the factor stays.
          held: (D,) columns that take no part and stay as they are.
        """
