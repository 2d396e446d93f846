"""The four shapes of a Gaussian covariance, as factors that whiten residuals and are updated from them.

Each shape stores a factor `scale` of its covariances and works in coordinates whitened by it, y = scale^-1 (x - mean).
There the covariance at the E-step is the identity, so second moments of y are near 1 whatever the units, the tightness
or the offset of the data, and float32 keeps its digits. The M-step maps the update back by the factor: with W the
penalised second moment of y about its mean, the new factor is scale @ cholesky(W).

Factors have the units of the data. Their squares, which leave the range of float32 beyond 1e-19 and 1e19, are formed
only where someone asks for covariances.

A column that is a linear combination of earlier ones has a row in a Cholesky factor like any other and 0 on its
diagonal: it follows from the others. The inverse then has zeros in its row and column, so that whitened residuals of
it are 0, and it adds nothing to a density or a moment.
"""

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import constraints
from jaxem.core.numerics import einsum, namespace, safe_divide
from jaxem.core.pytree import dataclass
from jaxem.families._grouped import grouped_product
from jaxem.families.dependence import Span


@dataclass
class Penalty:
    """nu pseudo-observations at variance S0: G = -nu sum_k KL(N(0, S0) || N(0, Sigma_k)).

    Attributes:
      std: (D,) root of S0, the weighted standard deviation of each column; 1 for a constant column.
      held: (D,) bool, columns that take no part in updates: constant ones, whose variance is held at 1, and (full,
        tied) those that are linear combinations of others.
      strength: nu.
    """

    std: Array
    held: Array
    strength: Array


def _mean(total: Array, count: Array, empty: Array | float = 1.0) -> Array:
    """Total / count; `empty`, which leaves a factor as it is, where nothing counts (no data and no penalty)."""
    return jnp.where(count > 0, safe_divide(total, count), empty)


def _settle(moment: Array, raw: Array) -> Array:
    """A variance that cancellation cannot make negative: at least 4 eps of the moment before its mean was removed."""
    return jnp.maximum(moment, 4 * jnp.finfo(raw.dtype).eps * raw)


def _inverse(scale_tril: Array) -> Array:
    """The inverse of lower triangular factors; rows and columns of 0 where the diagonal is 0.

    Rows over their diagonals first: in the units of the data a substitution multiplies columns by one another.
    """
    diagonal = _diagonal(scale_tril)[..., None]
    free = diagonal != 0  # NaN is no dependent column: it stays NaN
    eye = jnp.broadcast_to(jnp.eye(scale_tril.shape[-1], dtype=bool), scale_tril.shape)
    safe = jnp.where(free, diagonal, 1)
    unit = jnp.where(free, scale_tril / safe, 0)
    right = jnp.where(eye & free, 1 / safe, 0)
    return jax.lax.linalg.triangular_solve(unit, right, left_side=True, lower=True, unit_diagonal=True)


def _diagonal(matrix: Array) -> Array:
    """(..., D) diagonals, as a masked sum: a gather takes five times as long to compile."""
    xp = namespace(matrix)
    eye = xp.broadcast_to(xp.eye(matrix.shape[-1], dtype=bool), matrix.shape)
    return xp.sum(xp.where(eye, matrix, 0), -1)


def _log(factor: Array) -> Array:
    """Logarithms, and 0 of the zeros that stand for dependent columns."""
    return jnp.log(jnp.where(factor > 0, factor, 1))


def _square(factor: Array) -> Array:
    """(..., D, D) factor @ factor', of numpy or JAX arrays, at full precision on any device."""
    with jax.default_matmul_precision("highest"):
        return factor @ factor.swapaxes(-1, -2)


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


class Covariance(ABC):
    """One shape of covariance. K components, D columns, n rows; residuals are (K, D, n)."""

    constraint: constraints.Constraint

    @abstractmethod
    def start(self, num: int, std: Array, span: Span | None) -> Array:
        """The factor of K covariances diag(std^2), in which dependent columns follow the others."""

    @abstractmethod
    def invert(self, scale: Array) -> Array:
        """The inverse of the factor."""

    @abstractmethod
    def whiten(self, inverse: Array, x: Array, mean: Array) -> Array:
        """(K, D, n) scale_k^-1 (x_n - mean_k), for x (n, D) and mean (K, D) that share an origin."""

    @abstractmethod
    def log_det(self, scale: Array, num_columns: int) -> Array:
        """(K,) or () log det of the factor."""

    def rank(self, scale: Array, num_columns: int) -> Any:
        """Columns that count in a density: all, or (K,) or () as many as are not dependent."""
        return num_columns

    @abstractmethod
    def second(self, resp: Array, y: Array) -> Array:
        """Second moments of whitened residuals, sum over n of resp (K, n)."""

    @abstractmethod
    def unwhiten(self, scale: Array, shift: Array) -> Array:
        """(K, D) scale_k @ shift_k."""

    @abstractmethod
    def update(
        self, scale: Array, inverse: Array, second: Array, shift: Array, count: Array, penalty: Penalty
    ) -> Array:
        """The factor that maximises the penalised likelihood; shift (K, D) is the mean of y."""

    @abstractmethod
    def rebase(self, stats: Any, scale: Array, inverse: Array, shift: Array) -> tuple[Array, Array]:
        """(sum_y, sum_yy) of inverse @ scale @ y + shift."""

    @abstractmethod
    def spread(self, inverse: Array, penalty: Penalty) -> Array:
        """(K,) or () largest eigenvalue of S0 Sigma^-1."""

    @abstractmethod
    def trace(self, inverse: Array, penalty: Penalty) -> Array:
        """(K,) or () tr(Sigma^-1 S0)."""

    @abstractmethod
    def deviations(self, scale: Array, num: int, num_columns: int) -> Array:
        """(K, D) standard deviations of the columns."""

    @abstractmethod
    def draw(self, scale: Array, noise: Array, component: Array) -> Array:
        """(N, D) scale_k @ noise_n for the component k of each row; no matrix for each row."""

    @abstractmethod
    def dense_factor(self, scale: Array, num: int, num_columns: int) -> Array:
        """(K, D, D) lower factors of the covariances."""

    @abstractmethod
    def dense(self, scale: Array, num: int, num_columns: int) -> Array:
        """(K, D, D) the covariances."""

    @abstractmethod
    def factor(self, covariance: Array) -> Array:
        """The factor of covariances in their natural shape."""

    @abstractmethod
    def shape(self, num: int, num_columns: int) -> tuple[int, ...]:
        """Natural shape of the covariances, and of the factor."""

    @abstractmethod
    def num_parameters(self, num: int, num_columns: int) -> int:
        """Free parameters of K covariances."""

    def order(self, scale: Array, index: Array) -> Array:
        """The factors in another order."""
        return scale[index]


class Full(Covariance):
    """(K, D, D) lower Cholesky factors."""

    constraint = constraints.Cholesky()

    def start(self, num: int, std: Array, span: Span | None) -> Array:
        factor = _start(std, span)
        return jnp.broadcast_to(factor[None], (num, *factor.shape))

    def invert(self, scale: Array) -> Array:
        return _inverse(scale)

    def whiten(self, inverse: Array, x: Array, mean: Array) -> Array:
        num, dim = mean.shape
        y = einsum("fd,nd->fn", inverse.reshape(num * dim, dim), x).reshape(num, dim, -1)
        return y - einsum("kde,ke->kd", inverse, mean)[:, :, None]

    def log_det(self, scale: Array, num_columns: int) -> Array:
        return jnp.sum(_log(_diagonal(scale)), -1)

    def rank(self, scale: Array, num_columns: int) -> Any:
        return namespace(scale).sum(_diagonal(scale) > 0, -1).astype(scale.dtype)

    def second(self, resp: Array, y: Array) -> Array:
        return einsum("kdn,ken->kde", resp[:, None] * y, y)

    def unwhiten(self, scale: Array, shift: Array) -> Array:
        return einsum("kde,ke->kd", scale, shift)

    def update(
        self, scale: Array, inverse: Array, second: Array, shift: Array, count: Array, penalty: Penalty
    ) -> Array:
        nu = penalty.strength
        relative = inverse * penalty.std[None, None]
        prior = einsum("kde,kfe->kdf", relative, relative)
        scatter = second - count[:, None, None] * shift[:, :, None] * shift[:, None, :]
        moment = _mean(
            scatter + nu * prior, (count + nu)[:, None, None], jnp.eye(shift.shape[1], dtype=shift.dtype)[None]
        )
        raw = safe_divide(_diagonal(second), count[:, None])
        return einsum("kde,kef->kdf", scale, _cholesky(moment, raw, penalty.held))

    def rebase(self, stats: Any, scale: Array, inverse: Array, shift: Array) -> tuple[Array, Array]:
        change = einsum("kde,kef->kdf", inverse, scale)
        moved = einsum("kde,ke->kd", change, stats.sum_y)
        second = einsum("kde,kef,khf->kdh", change, stats.sum_yy, change)
        cross = moved[:, :, None] * shift[:, None, :]
        square = stats.count[:, None, None] * shift[:, :, None] * shift[:, None, :]
        return moved + stats.count[:, None] * shift, second + cross + cross.swapaxes(1, 2) + square

    def spread(self, inverse: Array, penalty: Penalty) -> Array:
        relative = inverse * jnp.broadcast_to(penalty.std, inverse.shape)
        return _top_eigenvalue(einsum("...de,...fe->...df", relative, relative))

    def trace(self, inverse: Array, penalty: Penalty) -> Array:
        return jnp.sum((inverse * jnp.broadcast_to(penalty.std, inverse.shape)) ** 2, (-2, -1))

    def deviations(self, scale: Array, num: int, num_columns: int) -> Array:
        return row_norms(scale)

    def draw(self, scale: Array, noise: Array, component: Array) -> Array:
        return grouped_product(scale, noise, component)

    def dense_factor(self, scale: Array, num: int, num_columns: int) -> Array:
        return scale

    def dense(self, scale: Array, num: int, num_columns: int) -> Array:
        return _square(scale)

    def factor(self, covariance: Array) -> Array:
        return jnp.linalg.cholesky(covariance)

    def shape(self, num: int, num_columns: int) -> tuple[int, ...]:
        return (num, num_columns, num_columns)

    def num_parameters(self, num: int, num_columns: int) -> int:
        return num * num_columns * (num_columns + 1) // 2


def _start(std: Array, span: Span | None) -> Array:
    return jnp.diag(std) if span is None else span.std[:, None] * span.matrix * (std / span.std)[None]


def row_norms(factor: Array) -> Array:
    """(..., D) standard deviations that factors (..., D, D) stand for; no square leaves the range of the dtype."""
    xp = namespace(factor)
    largest = xp.max(xp.abs(factor), -1)
    safe = xp.where(largest > 0, largest, 1)
    return largest * xp.sqrt(xp.sum((factor / safe[..., None]) ** 2, -1))


def _cholesky(moment: Array, raw: Array, held: Array) -> Array:
    """Cholesky factor of W, its diagonal lifted by 4 eps of the raw moments, and 1 for columns that are held.

    The lift is below the rounding of the raw moments, so where they are far larger than W it stands for digits that
    are lost anyway, and near convergence (raw moments about 1) it is a relative 4 eps of the covariance.
    """
    eye = jnp.broadcast_to(jnp.eye(moment.shape[-1], dtype=moment.dtype), moment.shape)
    lifted = moment + 4 * jnp.finfo(raw.dtype).eps * raw[..., None] * eye
    free = jnp.broadcast_to(~(held[:, None] | held[None, :]), moment.shape)
    return jax.lax.linalg.cholesky(jnp.where(free, lifted, eye), symmetrize_input=False)


class Tied(Covariance):
    """(D, D) one lower Cholesky factor for all components."""

    constraint = constraints.Cholesky()

    def start(self, num: int, std: Array, span: Span | None) -> Array:
        return _start(std, span)

    def invert(self, scale: Array) -> Array:
        return _inverse(scale)

    def whiten(self, inverse: Array, x: Array, mean: Array) -> Array:
        return einsum("de,ne->dn", inverse, x)[None] - einsum("de,ke->kd", inverse, mean)[:, :, None]

    def log_det(self, scale: Array, num_columns: int) -> Array:
        return jnp.sum(_log(_diagonal(scale)))

    def rank(self, scale: Array, num_columns: int) -> Any:
        return Full().rank(scale, num_columns)

    def second(self, resp: Array, y: Array) -> Array:
        return jnp.sum(Full().second(resp, y), 0)

    def unwhiten(self, scale: Array, shift: Array) -> Array:
        return einsum("de,ke->kd", scale, shift)

    def update(
        self, scale: Array, inverse: Array, second: Array, shift: Array, count: Array, penalty: Penalty
    ) -> Array:
        nu, total = penalty.strength, jnp.sum(count)
        relative = inverse * penalty.std[None]
        prior = einsum("de,fe->df", relative, relative)
        moment = (second - einsum("k,kd,ke->de", count, shift, shift) + nu * prior) / (total + nu)
        return einsum("de,ef->df", scale, _cholesky(moment, _diagonal(second) / total, penalty.held))

    def rebase(self, stats: Any, scale: Array, inverse: Array, shift: Array) -> tuple[Array, Array]:
        change = einsum("de,ef->df", inverse, scale)
        moved = einsum("de,ke->kd", change, stats.sum_y)
        second = einsum("de,ef,hf->dh", change, stats.sum_yy, change)
        cross = einsum("kd,ke->de", moved, shift)
        square = einsum("k,kd,ke->de", stats.count, shift, shift)
        return moved + stats.count[:, None] * shift, second + cross + cross.T + square

    def spread(self, inverse: Array, penalty: Penalty) -> Array:
        return Full().spread(inverse, penalty)

    def trace(self, inverse: Array, penalty: Penalty) -> Array:
        return Full().trace(inverse, penalty)

    def deviations(self, scale: Array, num: int, num_columns: int) -> Array:
        return namespace(scale).broadcast_to(row_norms(scale)[None], (num, num_columns))

    def draw(self, scale: Array, noise: Array, component: Array) -> Array:
        return einsum("de,ne->nd", scale, noise)

    def dense_factor(self, scale: Array, num: int, num_columns: int) -> Array:
        return jnp.broadcast_to(scale[None], (num, num_columns, num_columns))

    def dense(self, scale: Array, num: int, num_columns: int) -> Array:
        return namespace(scale).broadcast_to(_square(scale)[None], (num, num_columns, num_columns))

    def factor(self, covariance: Array) -> Array:
        return jnp.linalg.cholesky(covariance)

    def shape(self, num: int, num_columns: int) -> tuple[int, ...]:
        return (num_columns, num_columns)

    def num_parameters(self, num: int, num_columns: int) -> int:
        return num_columns * (num_columns + 1) // 2

    def order(self, scale: Array, index: Array) -> Array:
        return scale


class Diag(Covariance):
    """(K, D) standard deviations."""

    constraint = constraints.Positive()

    def start(self, num: int, std: Array, span: Span | None) -> Array:
        return jnp.broadcast_to(std[None], (num, std.shape[0]))

    def invert(self, scale: Array) -> Array:
        return 1 / scale

    def whiten(self, inverse: Array, x: Array, mean: Array) -> Array:
        return (x.T[None] - mean[:, :, None]) * inverse[:, :, None]

    def log_det(self, scale: Array, num_columns: int) -> Array:
        return jnp.sum(jnp.log(scale), -1)

    def second(self, resp: Array, y: Array) -> Array:
        return einsum("kn,kdn->kd", resp, y * y)

    def unwhiten(self, scale: Array, shift: Array) -> Array:
        return scale * shift

    def update(
        self, scale: Array, inverse: Array, second: Array, shift: Array, count: Array, penalty: Penalty
    ) -> Array:
        nu = penalty.strength
        scatter = second - count[:, None] * shift**2 + nu * (inverse * penalty.std[None]) ** 2
        moment = _settle(_mean(scatter, (count + nu)[:, None]), safe_divide(second, count[:, None]))
        return jnp.where(penalty.held[None], scale, scale * jnp.sqrt(moment))

    def rebase(self, stats: Any, scale: Array, inverse: Array, shift: Array) -> tuple[Array, Array]:
        change = inverse * scale
        moved = change * stats.sum_y
        second = change**2 * stats.sum_yy + 2 * moved * shift + stats.count[:, None] * shift**2
        return moved + stats.count[:, None] * shift, second

    def spread(self, inverse: Array, penalty: Penalty) -> Array:
        return jnp.max((inverse * penalty.std[None]) ** 2, -1)

    def trace(self, inverse: Array, penalty: Penalty) -> Array:
        return jnp.sum((inverse * penalty.std[None]) ** 2, -1)

    def deviations(self, scale: Array, num: int, num_columns: int) -> Array:
        return scale

    def draw(self, scale: Array, noise: Array, component: Array) -> Array:
        return scale[component] * noise

    def dense_factor(self, scale: Array, num: int, num_columns: int) -> Array:
        return scale[:, :, None] * namespace(scale).eye(num_columns, dtype=scale.dtype)[None]

    def dense(self, scale: Array, num: int, num_columns: int) -> Array:
        return self.dense_factor(scale**2, num, num_columns)

    def factor(self, covariance: Array) -> Array:
        return jnp.sqrt(covariance)

    def shape(self, num: int, num_columns: int) -> tuple[int, ...]:
        return (num, num_columns)

    def num_parameters(self, num: int, num_columns: int) -> int:
        return num * num_columns


class Spherical(Covariance):
    """(K,) one standard deviation for all columns of a component; a constant column counts as one more column."""

    constraint = constraints.Positive()

    def start(self, num: int, std: Array, span: Span | None) -> Array:
        return jnp.broadcast_to(std[:1], (num,))  # a spherical S0 is the same in all columns

    def invert(self, scale: Array) -> Array:
        return 1 / scale

    def whiten(self, inverse: Array, x: Array, mean: Array) -> Array:
        return (x.T[None] - mean[:, :, None]) * inverse[:, None, None]

    def log_det(self, scale: Array, num_columns: int) -> Array:
        return num_columns * jnp.log(scale)

    def second(self, resp: Array, y: Array) -> Array:
        return jnp.sum(resp * jnp.sum(y * y, 1), -1)

    def unwhiten(self, scale: Array, shift: Array) -> Array:
        return scale[:, None] * shift

    def update(
        self, scale: Array, inverse: Array, second: Array, shift: Array, count: Array, penalty: Penalty
    ) -> Array:
        nu, dim = penalty.strength, shift.shape[1]
        scatter = second - count * jnp.sum(shift**2, -1) + nu * dim * (inverse * penalty.std[0]) ** 2
        moment = _settle(_mean(scatter, dim * (count + nu)), safe_divide(second, dim * count))
        return jnp.where(jnp.all(penalty.held), scale, scale * jnp.sqrt(moment))

    def rebase(self, stats: Any, scale: Array, inverse: Array, shift: Array) -> tuple[Array, Array]:
        change = inverse * scale
        moved = change[:, None] * stats.sum_y
        second = change**2 * stats.sum_yy + jnp.sum(2 * moved * shift + stats.count[:, None] * shift**2, -1)
        return moved + stats.count[:, None] * shift, second

    def spread(self, inverse: Array, penalty: Penalty) -> Array:
        return (inverse * penalty.std[0]) ** 2

    def trace(self, inverse: Array, penalty: Penalty) -> Array:
        return penalty.std.shape[0] * (inverse * penalty.std[0]) ** 2

    def deviations(self, scale: Array, num: int, num_columns: int) -> Array:
        return namespace(scale).broadcast_to(scale[:, None], (num, num_columns))

    def draw(self, scale: Array, noise: Array, component: Array) -> Array:
        return scale[component][:, None] * noise

    def dense_factor(self, scale: Array, num: int, num_columns: int) -> Array:
        return scale[:, None, None] * namespace(scale).eye(num_columns, dtype=scale.dtype)[None]

    def dense(self, scale: Array, num: int, num_columns: int) -> Array:
        return self.dense_factor(scale**2, num, num_columns)

    def factor(self, covariance: Array) -> Array:
        return jnp.sqrt(covariance)

    def shape(self, num: int, num_columns: int) -> tuple[int, ...]:
        return (num,)

    def num_parameters(self, num: int, num_columns: int) -> int:
        return num


SHAPES: dict[str, Covariance] = {"full": Full(), "tied": Tied(), "diag": Diag(), "spherical": Spherical()}
