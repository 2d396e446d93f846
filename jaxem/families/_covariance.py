"""The four shapes of a Gaussian covariance, as factors that whiten residuals and are updated from them.

Each shape stores a factor `scale` of its covariances and works in coordinates whitened by it, y = scale^-1 (x - mean).
There the covariance at the E-step is the identity, so second moments of y are near 1 whatever the units, the tightness
or the offset of the data, and float32 keeps its digits. The M-step maps the update back by the factor: with W the
penalised second moment of y about its mean, the new factor is scale @ cholesky(W).
"""

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import constraints
from jaxem._numerics import einsum, namespace, safe_divide
from jaxem._pytree import dataclass


@dataclass
class Penalty:
    """nu pseudo-observations at variance S0: G = -nu sum_k KL(N(0, S0) || N(0, Sigma_k)).

    Attributes:
      variance: (D,) S0, the weighted variance of each column; 1 for a constant column.
      constant: (D,) bool, columns without variance, whose variance is held at 1.
      strength: nu.
    """

    variance: Array
    constant: Array
    strength: Array


def _mean(total: Array, count: Array, empty: Array | float = 1.0) -> Array:
    """Total / count; `empty`, which leaves a factor as it is, where nothing counts (no data and no penalty)."""
    return jnp.where(count > 0, safe_divide(total, count), empty)


def _settle(moment: Array, raw: Array) -> Array:
    """A variance that cancellation cannot make negative: at least 4 eps of the moment before its mean was removed."""
    return jnp.maximum(moment, 4 * jnp.finfo(raw.dtype).eps * raw)


def _inverse(scale_tril: Array) -> Array:
    eye = jnp.broadcast_to(jnp.eye(scale_tril.shape[-1], dtype=scale_tril.dtype), scale_tril.shape)
    return jax.lax.linalg.triangular_solve(scale_tril, eye, left_side=True, lower=True)


def _diagonal(matrix: Array) -> Array:
    """(..., D) diagonals, as a masked sum: a gather takes five times as long to compile."""
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=bool), matrix.shape)
    return jnp.sum(jnp.where(eye, matrix, 0), -1)


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
    def start(self, num: int, variance: Array) -> Array:
        """The factor of K covariances diag(variance)."""

    @abstractmethod
    def invert(self, scale: Array) -> Array:
        """The inverse of the factor."""

    @abstractmethod
    def whiten(self, inverse: Array, x: Array, mean: Array) -> Array:
        """(K, D, n) scale_k^-1 (x_n - mean_k), for x (n, D) and mean (K, D) that share an origin."""

    @abstractmethod
    def log_det(self, scale: Array, num_columns: int) -> Array:
        """(K,) or () log det of the factor."""

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

    def start(self, num: int, variance: Array) -> Array:
        return jnp.broadcast_to(jnp.diag(jnp.sqrt(variance))[None], (num, variance.shape[0], variance.shape[0]))

    def invert(self, scale: Array) -> Array:
        return _inverse(scale)

    def whiten(self, inverse: Array, x: Array, mean: Array) -> Array:
        num, dim = mean.shape
        y = einsum("fd,nd->fn", inverse.reshape(num * dim, dim), x).reshape(num, dim, -1)
        return y - einsum("kde,ke->kd", inverse, mean)[:, :, None]

    def log_det(self, scale: Array, num_columns: int) -> Array:
        return jnp.sum(jnp.log(_diagonal(scale)), -1)

    def second(self, resp: Array, y: Array) -> Array:
        return einsum("kdn,ken->kde", resp[:, None] * y, y)

    def unwhiten(self, scale: Array, shift: Array) -> Array:
        return einsum("kde,ke->kd", scale, shift)

    def update(
        self, scale: Array, inverse: Array, second: Array, shift: Array, count: Array, penalty: Penalty
    ) -> Array:
        nu = penalty.strength
        prior = einsum("kde,e,kfe->kdf", inverse, penalty.variance, inverse)
        scatter = second - count[:, None, None] * shift[:, :, None] * shift[:, None, :]
        moment = _mean(
            scatter + nu * prior, (count + nu)[:, None, None], jnp.eye(shift.shape[1], dtype=shift.dtype)[None]
        )
        raw = safe_divide(_diagonal(second), count[:, None])
        return einsum("kde,kef->kdf", scale, _cholesky(moment, raw, penalty.constant))

    def rebase(self, stats: Any, scale: Array, inverse: Array, shift: Array) -> tuple[Array, Array]:
        change = einsum("kde,kef->kdf", inverse, scale)
        moved = einsum("kde,ke->kd", change, stats.sum_y)
        second = einsum("kde,kef,khf->kdh", change, stats.sum_yy, change)
        cross = moved[:, :, None] * shift[:, None, :]
        square = stats.count[:, None, None] * shift[:, :, None] * shift[:, None, :]
        return moved + stats.count[:, None] * shift, second + cross + cross.swapaxes(1, 2) + square

    def spread(self, inverse: Array, penalty: Penalty) -> Array:
        return _top_eigenvalue(einsum("...de,e,...fe->...df", inverse, penalty.variance, inverse))

    def trace(self, inverse: Array, penalty: Penalty) -> Array:
        return einsum("...de,e,...de->...", inverse, penalty.variance, inverse)

    def dense(self, scale: Array, num: int, num_columns: int) -> Array:
        return _square(scale)

    def factor(self, covariance: Array) -> Array:
        return jnp.linalg.cholesky(covariance)

    def shape(self, num: int, num_columns: int) -> tuple[int, ...]:
        return (num, num_columns, num_columns)

    def num_parameters(self, num: int, num_columns: int) -> int:
        return num * num_columns * (num_columns + 1) // 2


def _cholesky(moment: Array, raw: Array, constant: Array) -> Array:
    """Cholesky factor of W, its diagonal lifted by 4 eps of the raw moments, constant columns held at 1.

    The lift is below the rounding of the raw moments, so where they are far larger than W it stands for digits that
    are lost anyway, and near convergence (raw moments about 1) it is a relative 4 eps of the covariance.
    """
    eye = jnp.broadcast_to(jnp.eye(moment.shape[-1], dtype=moment.dtype), moment.shape)
    lifted = moment + 4 * jnp.finfo(raw.dtype).eps * raw[..., None] * eye
    free = jnp.broadcast_to(~(constant[:, None] | constant[None, :]), moment.shape)
    return jax.lax.linalg.cholesky(jnp.where(free, lifted, eye), symmetrize_input=False)


class Tied(Covariance):
    """(D, D) one lower Cholesky factor for all components."""

    constraint = constraints.Cholesky()

    def start(self, num: int, variance: Array) -> Array:
        return jnp.diag(jnp.sqrt(variance))

    def invert(self, scale: Array) -> Array:
        return _inverse(scale)

    def whiten(self, inverse: Array, x: Array, mean: Array) -> Array:
        return einsum("de,ne->dn", inverse, x)[None] - einsum("de,ke->kd", inverse, mean)[:, :, None]

    def log_det(self, scale: Array, num_columns: int) -> Array:
        return jnp.sum(jnp.log(_diagonal(scale)))

    def second(self, resp: Array, y: Array) -> Array:
        return jnp.sum(Full().second(resp, y), 0)

    def unwhiten(self, scale: Array, shift: Array) -> Array:
        return einsum("de,ke->kd", scale, shift)

    def update(
        self, scale: Array, inverse: Array, second: Array, shift: Array, count: Array, penalty: Penalty
    ) -> Array:
        nu, total = penalty.strength, jnp.sum(count)
        prior = einsum("de,e,fe->df", inverse, penalty.variance, inverse)
        moment = (second - einsum("k,kd,ke->de", count, shift, shift) + nu * prior) / (total + nu)
        return einsum("de,ef->df", scale, _cholesky(moment, _diagonal(second) / total, penalty.constant))

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

    def start(self, num: int, variance: Array) -> Array:
        return jnp.broadcast_to(jnp.sqrt(variance)[None], (num, variance.shape[0]))

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
        scatter = second - count[:, None] * shift**2 + nu * penalty.variance[None] * inverse**2
        moment = _settle(_mean(scatter, (count + nu)[:, None]), safe_divide(second, count[:, None]))
        return jnp.where(penalty.constant[None], scale, scale * jnp.sqrt(moment))

    def rebase(self, stats: Any, scale: Array, inverse: Array, shift: Array) -> tuple[Array, Array]:
        change = inverse * scale
        moved = change * stats.sum_y
        second = change**2 * stats.sum_yy + 2 * moved * shift + stats.count[:, None] * shift**2
        return moved + stats.count[:, None] * shift, second

    def spread(self, inverse: Array, penalty: Penalty) -> Array:
        return jnp.max(penalty.variance[None] * inverse**2, -1)

    def trace(self, inverse: Array, penalty: Penalty) -> Array:
        return jnp.sum(penalty.variance[None] * inverse**2, -1)

    def dense(self, scale: Array, num: int, num_columns: int) -> Array:
        return (scale**2)[:, :, None] * namespace(scale).eye(num_columns, dtype=scale.dtype)[None]

    def factor(self, covariance: Array) -> Array:
        return jnp.sqrt(covariance)

    def shape(self, num: int, num_columns: int) -> tuple[int, ...]:
        return (num, num_columns)

    def num_parameters(self, num: int, num_columns: int) -> int:
        return num * num_columns


class Spherical(Covariance):
    """(K,) one standard deviation for all columns of a component; a constant column counts as one more column."""

    constraint = constraints.Positive()

    def start(self, num: int, variance: Array) -> Array:
        return jnp.broadcast_to(jnp.sqrt(variance[:1]), (num,))  # a spherical S0 is the same in all columns

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
        scatter = second - count * jnp.sum(shift**2, -1) + nu * jnp.sum(penalty.variance) * inverse**2
        moment = _settle(_mean(scatter, dim * (count + nu)), safe_divide(second, dim * count))
        return jnp.where(jnp.all(penalty.constant), scale, scale * jnp.sqrt(moment))

    def rebase(self, stats: Any, scale: Array, inverse: Array, shift: Array) -> tuple[Array, Array]:
        change = inverse * scale
        moved = change[:, None] * stats.sum_y
        second = change**2 * stats.sum_yy + jnp.sum(2 * moved * shift + stats.count[:, None] * shift**2, -1)
        return moved + stats.count[:, None] * shift, second

    def spread(self, inverse: Array, penalty: Penalty) -> Array:
        return jnp.mean(penalty.variance) * inverse**2

    def trace(self, inverse: Array, penalty: Penalty) -> Array:
        return jnp.sum(penalty.variance) * inverse**2

    def dense(self, scale: Array, num: int, num_columns: int) -> Array:
        return (scale**2)[:, None, None] * namespace(scale).eye(num_columns, dtype=scale.dtype)[None]

    def factor(self, covariance: Array) -> Array:
        return jnp.sqrt(covariance)

    def shape(self, num: int, num_columns: int) -> tuple[int, ...]:
        return (num,)

    def num_parameters(self, num: int, num_columns: int) -> int:
        return num


SHAPES: dict[str, Covariance] = {"full": Full(), "tied": Tied(), "diag": Diag(), "spherical": Spherical()}
