"""Covariances without correlations: a variance for each column, or one for all columns."""

from typing import Self

import jax.numpy as jnp
from jax import Array

from jaxem.core import constraints
from jaxem.core.numerics import einsum, namespace, safe_divide
from jaxem.core.pytree import dataclass
from jaxem.families.covariance.covariance import Covariance, average
from jaxem.families.covariance.precision import Gammas, OneGamma
from jaxem.families.dependence import Span


def _settled(std: Array, scatter: Array, raw: Array, divisor: Array) -> Array:
    """The updated deviations, of variances that cancellation cannot make negative: at least 4 eps of the raw moment."""
    moment = jnp.maximum(average(scatter, divisor), 4 * jnp.finfo(raw.dtype).eps * safe_divide(raw, divisor))
    return std * jnp.sqrt(moment)


@dataclass
class Diag(Covariance):
    """A variance for each component and column.

    Attributes:
      std: (K, D) standard deviations.
    """

    constraint = constraints.Positive()
    precision = Gammas()

    std: Array

    @classmethod
    def of(cls, covariance: Array) -> Self:
        return cls(jnp.sqrt(covariance))

    @classmethod
    def start(cls, num: int, std: Array, span: Span | None) -> Self:
        return cls(jnp.broadcast_to(std[None], (num, std.shape[0])))

    @classmethod
    def shape(cls, num: int, num_columns: int) -> tuple[int, ...]:
        return (num, num_columns)

    @classmethod
    def num_parameters(cls, num: int, num_columns: int) -> int:
        return num * num_columns

    def inverse(self) -> Self:
        return type(self)(1 / self.std)

    def apply(self, vector: Array) -> Array:
        return self.std * vector

    def residuals(self, x: Array, mean: Array) -> Array:
        return (x.T[None] - mean[:, :, None]) * self.std[:, :, None]

    def compose(self, other: Self) -> Self:
        return type(self)(self.std * other.std)

    def stretch(self, std: Array) -> Self:
        return type(self)(self.std * std[None])

    def draw(self, noise: Array, component: Array) -> Array:
        return self.std[component] * noise

    def log_det(self, num_columns: int) -> Array:
        return jnp.sum(jnp.log(self.std), -1)

    def trace(self, num_columns: int) -> Array:
        return jnp.sum(self.std**2, -1)

    def top(self) -> Array:
        return jnp.max(self.std**2, -1)

    def deviations(self) -> Array:
        return self.std

    def dense_factor(self, num_columns: int) -> Array:
        return self.deviations()[:, :, None] * namespace(self.std).eye(num_columns, dtype=self.std.dtype)[None]

    def dense(self, num_columns: int) -> Array:
        return type(self)(self.std**2).dense_factor(num_columns)

    @classmethod
    def second(cls, resp: Array, y: Array) -> Array:
        return einsum("kn,kdn->kd", resp, y * y)

    @classmethod
    def pair(cls, a: Array, b: Array) -> Array:
        return a * b

    def gram(self) -> Array:
        return self.std**2

    def congruence(self, second: Array) -> Array:
        return self.std**2 * second

    def update(self, scatter: Array, raw: Array, divisor: Array, held: Array) -> Self:
        new = _settled(self.std, scatter, raw, divisor[:, None])
        return type(self)(jnp.where(held[None], self.std, new))


@dataclass
class Spherical(Diag):
    """A variance for each component, the same in all columns; a constant column counts as one more column.

    Second moments are means over columns.

    Attributes:
      std: (K,) standard deviations.
    """

    precision = OneGamma()

    @classmethod
    def common(cls, std: Array, constant: Array) -> tuple[Array, Array]:
        unit = jnp.maximum(jnp.max(std), jnp.finfo(std.dtype).tiny)
        root = unit * jnp.sqrt(jnp.mean((std / unit) ** 2))
        return jnp.broadcast_to(root, std.shape), jnp.broadcast_to(jnp.all(constant), constant.shape)

    @classmethod
    def start(cls, num: int, std: Array, span: Span | None) -> Self:
        return cls(jnp.broadcast_to(std[:1], (num,)))  # a spherical S0 is the same in all columns

    @classmethod
    def shape(cls, num: int, num_columns: int) -> tuple[int, ...]:
        return (num,)

    @classmethod
    def num_parameters(cls, num: int, num_columns: int) -> int:
        return num

    def apply(self, vector: Array) -> Array:
        return self.std[:, None] * vector

    def residuals(self, x: Array, mean: Array) -> Array:
        return (x.T[None] - mean[:, :, None]) * self.std[:, None, None]

    def stretch(self, std: Array) -> Self:
        return type(self)(self.std * std[0])

    def draw(self, noise: Array, component: Array) -> Array:
        return self.std[component][:, None] * noise

    def log_det(self, num_columns: int) -> Array:
        return num_columns * jnp.log(self.std)

    def trace(self, num_columns: int) -> Array:
        return num_columns * self.std**2

    def top(self) -> Array:
        return self.std**2

    def deviations(self) -> Array:
        return self.std[:, None]

    @classmethod
    def second(cls, resp: Array, y: Array) -> Array:
        return jnp.sum(resp * jnp.mean(y * y, 1), -1)

    @classmethod
    def pair(cls, a: Array, b: Array) -> Array:
        return jnp.mean(a * b, -1)

    def update(self, scatter: Array, raw: Array, divisor: Array, held: Array) -> Self:
        new = _settled(self.std, scatter, raw, divisor)
        return type(self)(jnp.where(jnp.all(held), self.std, new))
