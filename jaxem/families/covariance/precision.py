"""Conjugate laws of the precisions of Gaussian components, one for each kind of covariance.

Each is that of a precision with `dof` degrees of freedom and inverse scale C, of which E precision = dof C^-1.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import digamma, gammaln

from jaxem.core.numerics import einsum
from jaxem.expfam import formulas
from jaxem.expfam.matrix import bartlett
from jaxem.families.covariance.covariance import row_norms

LOG_2 = 0.6931471805599453


class Wishart:
    """Precision ~ Wishart(dof, C), a matrix."""

    @staticmethod
    def least_dof(rank: Any) -> Any:
        """What dof must be above, for a proper law."""
        return rank - 1

    @staticmethod
    def default_dof(rank: Any) -> Any:
        """Dof of a prior that is left to itself."""
        return rank

    @staticmethod
    def log_normaliser(dof: Array, log_c: Array, num_columns: int, rank: Any) -> tuple[Array, Array]:
        """Log-normaliser of each component's precisions, summed over columns, and E log |precision|, for log |C|."""
        return formulas.wishart(dof, log_c, num_columns, rank)

    @staticmethod
    def power(dof: Array, num_columns: int, rank: Any) -> Array:
        """The power of |precision| in the density."""
        return 0.5 * (dof - rank - 1)

    @staticmethod
    def log_predictive(y: Array, dof: Array, widen: Array, rank: Any) -> Array:
        """(K, n) log of the densities of residuals y (K, D, n) in units of (C / dof)^(1/2), widened; nats."""
        free = dof + 1 - rank
        return _student(y, free, widen * dof / free, rank)

    @staticmethod
    def draw(key: Array, plug: Any, dof: Array, num_columns: int, dependent: Array) -> Any:
        """Factors of covariances, for the factor `plug` of C / dof.

        Precision = F^-T A A' F^-1 with C = F F', A as Bartlett's; so covariance = (F A^-T)(F A^-T)'.
        """
        dim, dtype = num_columns, plug.tril.dtype
        dof = dof[:1] if plug.shared else dof
        free = (~dependent).astype(dtype)
        lower, _ = bartlett(key, dof, dim, jnp.where(dependent, 0, jnp.cumsum(free) - free))
        held = jnp.broadcast_to(dependent[:, None] | dependent[None], lower.shape)
        eye = jnp.broadcast_to(jnp.eye(dim, dtype=dtype), lower.shape)
        lower = jnp.where(held, eye, lower)
        root = jnp.sqrt(dof)[:, None, None] * plug.tril.reshape(lower.shape)
        factor = jax.lax.linalg.triangular_solve(lower, root.swapaxes(1, 2), left_side=True, lower=True)
        factor = factor.swapaxes(1, 2)
        # In units of the standard deviations: squares of the data's may not be in the range of the dtype.
        std = row_norms(factor)[:, :, None]
        correlation = einsum("kde,kfe->kdf", factor / std, factor / std)
        tril = std * jnp.linalg.cholesky(jnp.where(held, eye, correlation))
        return type(plug)(tril.reshape(plug.tril.shape))


class Gammas:
    """Precision_d ~ Gamma(dof / 2, C_d / 2), one for each column."""

    @staticmethod
    def least_dof(rank: Any) -> Any:
        """What dof must be above, for a proper law."""
        return 0

    @staticmethod
    def default_dof(rank: Any) -> Any:
        """Dof of a prior that is left to itself."""
        return 1

    @staticmethod
    def log_normaliser(dof: Array, log_c: Array, num_columns: int, rank: Any) -> tuple[Array, Array]:
        """Log-normaliser of each component's precisions, summed over columns, and E log |precision|, for log |C|."""
        dim = num_columns
        normaliser = 0.5 * dof * (dim * LOG_2 - log_c) + dim * gammaln(0.5 * dof)
        return normaliser, dim * (digamma(0.5 * dof) + LOG_2) - log_c

    @staticmethod
    def power(dof: Array, num_columns: int, rank: Any) -> Array:
        """The power of the precisions in the density."""
        return 0.5 * dof - 1

    @staticmethod
    def log_predictive(y: Array, dof: Array, widen: Array, rank: Any) -> Array:
        """(K, n) log of the densities of residuals y (K, D, n) in units of (C / dof)^(1/2), widened; nats."""
        terms = -0.5 * (dof + 1)[:, None] * jnp.sum(jnp.log1p(y**2 / (dof * widen)[:, None, None]), 1)
        constant = gammaln(0.5 * (dof + 1)) - gammaln(0.5 * dof) - 0.5 * jnp.log(dof * widen * jnp.pi)
        return terms + (y.shape[1] * constant)[:, None]

    @staticmethod
    def draw(key: Array, plug: Any, dof: Array, num_columns: int, dependent: Array) -> Any:
        """Factors of covariances, for the factor `plug` of C / dof."""
        return _drawn(key, plug, jnp.broadcast_to(0.5 * dof[:, None], plug.std.shape))


class OneGamma(Gammas):
    """Precision ~ Gamma(D dof / 2, D c / 2), one for all columns; c = mean of C's diagonal."""

    @staticmethod
    def log_normaliser(dof: Array, log_c: Array, num_columns: int, rank: Any) -> tuple[Array, Array]:
        """Log-normaliser of each component's precision, and E log |precision|, for log |C|."""
        dim = num_columns
        n, log_c = dim * dof, log_c / dim + jnp.log(jnp.asarray(dim, dof.dtype))
        return 0.5 * n * (LOG_2 - log_c) + gammaln(0.5 * n), dim * (digamma(0.5 * n) + LOG_2 - log_c)

    @staticmethod
    def power(dof: Array, num_columns: int, rank: Any) -> Array:
        """The power of |precision|, which is the precision's D-th, in the density."""
        return 0.5 * dof - 1 / num_columns

    @staticmethod
    def log_predictive(y: Array, dof: Array, widen: Array, rank: Any) -> Array:
        """(K, n) log of the densities of residuals y (K, D, n) in units of (C / dof)^(1/2), widened; nats."""
        return _student(y, rank * dof, widen, rank)

    @staticmethod
    def draw(key: Array, plug: Any, dof: Array, num_columns: int, dependent: Array) -> Any:
        """Factors of covariances, for the factor `plug` of C / dof."""
        return _drawn(key, plug, 0.5 * (num_columns * dof))


def _drawn(key: Array, plug: Any, half: Array) -> Any:
    # precision / E precision ~ Gamma(half, half)
    return type(plug)(plug.std / jnp.sqrt(jax.random.gamma(key, half, dtype=plug.std.dtype) / half))


def _student(y: Array, free: Array, widen: Array, rank: Any) -> Array:
    """(K, n) log Student-t densities of whitened residuals with `free` degrees of freedom, nats."""
    terms = -0.5 * (free + rank)[:, None] * jnp.log1p(jnp.sum(y**2, 1) / (free * widen)[:, None])
    constant = gammaln(0.5 * (free + rank)) - gammaln(0.5 * free) - 0.5 * rank * jnp.log(free * widen * jnp.pi)
    return terms + constant[:, None]
