"""Covariances with correlations: one for each component, or one for all."""

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import constraints
from jaxem.core.numerics import einsum, namespace, safe_divide
from jaxem.core.pytree import dataclass
from jaxem.families._grouped import grouped_product
from jaxem.families.covariance.covariance import Covariance, average, row_norms
from jaxem.families.covariance.precision import Wishart
from jaxem.families.dependence import Span


@dataclass
class Full(Covariance):
    """A matrix for each component.

    Attributes:
      tril: (K, D, D) lower Cholesky factors.
    """

    constraint = constraints.Cholesky()
    correlated = True
    precision = Wishart()

    tril: Array

    @classmethod
    def of(cls, covariance: Array) -> Self:
        return cls(jnp.linalg.cholesky(covariance))

    @classmethod
    def start(cls, num: int, std: Array, span: Span | None) -> Self:
        factor = _start(std, span)
        return cls(jnp.broadcast_to(factor[None], (num, *factor.shape)))

    @classmethod
    def shape(cls, num: int, num_columns: int) -> tuple[int, ...]:
        return (num, num_columns, num_columns)

    @classmethod
    def num_parameters(cls, num: int, num_columns: int) -> int:
        return num * num_columns * (num_columns + 1) // 2

    @classmethod
    def enough_rows(cls, num_columns: int) -> int:
        return 0 if cls.shared else 2 * (num_columns + 1)

    def inverse(self) -> Self:
        return type(self)(_inverse(self.tril))

    def apply(self, vector: Array) -> Array:
        return einsum("kde,ke->kd", self.tril, vector)

    def residuals(self, x: Array, mean: Array) -> Array:
        num, dim = mean.shape
        y = einsum("fd,nd->fn", self.tril.reshape(num * dim, dim), x).reshape(num, dim, -1)
        return y - self.apply(mean)[:, :, None]

    def compose(self, other: Self) -> Self:
        return type(self)(einsum("...de,...ef->...df", self.tril, other.tril))

    def stretch(self, std: Array) -> Self:
        return type(self)(self.tril * jnp.broadcast_to(std, self.tril.shape))

    def draw(self, noise: Array, component: Array) -> Array:
        return grouped_product(self.tril, noise, component)

    def log_det(self, num_columns: int) -> Array:
        diagonal = _diagonal(self.tril)
        return jnp.sum(jnp.log(jnp.where(diagonal > 0, diagonal, 1)), -1)  # 0 stands for a dependent column

    def rank(self, num_columns: int) -> Any:
        return namespace(self.tril).sum(_diagonal(self.tril) > 0, -1).astype(self.tril.dtype)

    def trace(self, num_columns: int) -> Array:
        return jnp.sum(self.tril**2, (-2, -1))

    def top(self) -> Array:
        return _top_eigenvalue(self.gram())

    def deviations(self) -> Array:
        return row_norms(self.tril)

    def dense_factor(self, num_columns: int) -> Array:
        return self.tril

    def dense(self, num_columns: int) -> Array:
        factor = self.dense_factor(num_columns)
        with jax.default_matmul_precision("highest"):  # of numpy or JAX arrays
            return factor @ factor.swapaxes(-1, -2)

    @classmethod
    def second(cls, resp: Array, y: Array) -> Array:
        return einsum("kdn,ken->kde", resp[:, None] * y, y)

    @classmethod
    def pair(cls, a: Array, b: Array) -> Array:
        return a[:, :, None] * b[:, None, :]

    def gram(self) -> Array:
        return einsum("...de,...fe->...df", self.tril, self.tril)

    def congruence(self, second: Array) -> Array:
        return einsum("...de,...ef,...hf->...dh", self.tril, second, self.tril)

    def update(self, scatter: Array, raw: Array, divisor: Array, held: Array) -> Self:
        divisor = divisor[..., None, None]
        moment = average(scatter, divisor, jnp.eye(held.shape[0], dtype=scatter.dtype))
        raw = safe_divide(raw, divisor)
        return self.compose(type(self)(_cholesky(moment, raw, held)))


@dataclass
class Tied(Full):
    """One matrix for all components.

    Attributes:
      tril: (D, D) its lower Cholesky factor.
    """

    shared = True

    @classmethod
    def start(cls, num: int, std: Array, span: Span | None) -> Self:
        return cls(_start(std, span))

    @classmethod
    def shape(cls, num: int, num_columns: int) -> tuple[int, ...]:
        return (num_columns, num_columns)

    @classmethod
    def num_parameters(cls, num: int, num_columns: int) -> int:
        return num_columns * (num_columns + 1) // 2

    def apply(self, vector: Array) -> Array:
        return einsum("de,ke->kd", self.tril, vector)

    def residuals(self, x: Array, mean: Array) -> Array:
        return einsum("de,ne->dn", self.tril, x)[None] - self.apply(mean)[:, :, None]

    def draw(self, noise: Array, component: Array) -> Array:
        return einsum("de,ne->nd", self.tril, noise)

    def deviations(self) -> Array:
        return row_norms(self.tril)[None]

    def dense_factor(self, num_columns: int) -> Array:
        return self.tril[None]

    @classmethod
    def second(cls, resp: Array, y: Array) -> Array:
        return jnp.sum(Full.second(resp, y), 0)

    @classmethod
    def pair(cls, a: Array, b: Array) -> Array:
        return einsum("kd,ke->de", a, b)


def _start(std: Array, span: Span | None) -> Array:
    return jnp.diag(std) if span is None else span.std[:, None] * span.matrix * (std / span.std)[None]


def _diagonal(matrix: Array) -> Array:
    """(..., D) diagonals, as a masked sum: a gather takes five times as long to compile."""
    xp = namespace(matrix)
    eye = xp.broadcast_to(xp.eye(matrix.shape[-1], dtype=bool), matrix.shape)
    return xp.sum(xp.where(eye, matrix, 0), -1)


def _inverse(tril: Array) -> Array:
    """The inverse of lower triangular factors; rows and columns of 0 where the diagonal is 0.

    Rows over their diagonals first: in the units of the data a substitution multiplies columns by one another.
    """
    diagonal = _diagonal(tril)[..., None]
    free = diagonal != 0  # NaN is no dependent column: it stays NaN
    eye = jnp.broadcast_to(jnp.eye(tril.shape[-1], dtype=bool), tril.shape)
    safe = jnp.where(free, diagonal, 1)
    unit = jnp.where(free, tril / safe, 0)
    right = jnp.where(eye & free, 1 / safe, 0)
    return jax.lax.linalg.triangular_solve(unit, right, left_side=True, lower=True, unit_diagonal=True)


def _top_eigenvalue(matrix: Array) -> Array:
    """Largest eigenvalue of symmetric non-negative (..., D, D), at most D^(1/16) too large.

    From the Frobenius norm of the eighth power: three products, where an eigensolver would cost O(R K D^3) with a
    large constant. Exact where one direction dominates, as in a collapsed component.
    """
    trace = jnp.sum(_diagonal(matrix), -1)
    power = safe_divide(matrix, trace[..., None, None])
    for _ in range(3):
        power = einsum("...ij,...jk->...ik", power, power)
    return trace * jnp.sum(power**2, (-2, -1)) ** (1 / 16)


def _cholesky(moment: Array, raw: Array, held: Array) -> Array:
    """Cholesky factor of W, its diagonal lifted by 4 eps of the raw moments, and 1 for columns that are held.

    The lift is below the rounding of the raw moments, so where they are far larger than W it stands for digits that
    are lost anyway, and near convergence (raw moments about 1) it is a relative 4 eps of the covariance.
    """
    eye = jnp.broadcast_to(jnp.eye(moment.shape[-1], dtype=moment.dtype), moment.shape)
    lifted = moment + 4 * jnp.finfo(raw.dtype).eps * raw * eye
    free = jnp.broadcast_to(~(held[:, None] | held[None, :]), moment.shape)
    return jax.lax.linalg.cholesky(jnp.where(free, lifted, eye), symmetrize_input=False)
