"""Exponential families of vectors and precision matrices: multivariate normal, Wishart, normal-Wishart."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import constraints
from jaxem.core.numerics import einsum
from jaxem.expfam import formulas
from jaxem.expfam.family import LOG_2PI, ExponentialFamily, as_floats


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.swapaxes(-1, -2))


def _log_det(matrix: Array) -> Array:
    """Log determinant of positive definite matrices; NaN where they are not."""
    factor = jnp.linalg.cholesky(matrix)
    return 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), -1)


def _positive_definite(matrix: Array) -> Array:
    return jnp.all(jnp.isfinite(jnp.linalg.cholesky(matrix)), (-2, -1))


class MultivariateNormalStatistics(NamedTuple):
    """Statistics x (..., D) and x x' (..., D, D)."""

    x: Array
    xx: Array


class MultivariateNormal(ExponentialFamily):
    """Multivariate normal with mean (..., D) and precision matrix (..., D, D)."""

    Statistics, ranks = MultivariateNormalStatistics, (1, 2)
    domains: ClassVar[dict[str, Any]] = {"mean": constraints.Real(), "precision": constraints.PositiveDefinite()}

    def natural(self, mean: Any, precision: Any) -> MultivariateNormalStatistics:
        """Natural parameters from mean and precision matrix."""
        mean, precision = as_floats((1, 2), mean, precision)
        return MultivariateNormalStatistics(einsum("...de,...e->...d", precision, mean), -0.5 * precision)

    def conventional(self, natural: MultivariateNormalStatistics) -> dict[str, Array]:
        """Mean and precision matrix."""
        return {"mean": self.means(natural).x, "precision": -2 * _symmetric(natural.xx)}

    def log_normaliser(self, natural: MultivariateNormalStatistics) -> Array:
        """A = mean' precision mean / 2 - log |precision| / 2."""
        inverse, half_log_det = self._factor(natural)
        return 0.5 * jnp.sum(einsum("...de,...e->...d", inverse, natural.x) ** 2, -1) - half_log_det

    def _factor(self, natural: MultivariateNormalStatistics) -> tuple[Array, Array]:
        """Inverse L^-1 of the precision's Cholesky factor, and log det L: one chain of small decompositions for all.

        Independent batches of them may wait for each other without end on jaxlib 0.10's CPU threads.
        """
        factor = jnp.linalg.cholesky(-2 * _symmetric(natural.xx))
        eye = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=factor.dtype), factor.shape)
        inverse = jax.lax.linalg.triangular_solve(factor, eye, left_side=True, lower=True)
        return inverse, jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), -1)

    def means(self, natural: MultivariateNormalStatistics) -> MultivariateNormalStatistics:
        """Mean, and covariance + mean mean'."""
        inverse, _ = self._factor(natural)
        covariance = einsum("...ed,...ef->...df", inverse, inverse)
        mean = einsum("...de,...e->...d", covariance, natural.x)
        return MultivariateNormalStatistics(mean, covariance + mean[..., :, None] * mean[..., None, :])

    def entropy(self, natural: MultivariateNormalStatistics) -> Array:
        """D (1 + log(2 pi)) / 2 - log |precision| / 2, nats."""
        return 0.5 * natural.x.shape[-1] * (1 + LOG_2PI) - self._factor(natural)[1]

    def valid(self, natural: MultivariateNormalStatistics) -> Array:
        """Whether the precision is positive definite."""
        return jnp.all(jnp.isfinite(natural.x), -1) & _positive_definite(-2 * _symmetric(natural.xx))

    def log_base(self, natural: MultivariateNormalStatistics) -> float:
        """Log h = -D log(2 pi) / 2."""
        return -0.5 * LOG_2PI * natural.x.shape[-1]

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Mean 0, precision the identity."""
        eye = jnp.broadcast_to(jnp.eye(dim, dtype=dtype), (*plate, dim, dim))
        return self.natural(jnp.zeros((*plate, dim), dtype), eye)

    def at_mode(self, natural: Any) -> Any:
        """Statistics of the mean."""
        mean = self.conventional(natural)["mean"]
        return MultivariateNormalStatistics(mean, mean[..., :, None] * mean[..., None, :])

    def draw(self, key: Array, natural: MultivariateNormalStatistics) -> MultivariateNormalStatistics:
        """Statistics of a draw."""
        inverse, _ = self._factor(natural)
        standardised = einsum("...de,...e->...d", inverse, natural.x)  # L' mean
        standardised = standardised + jax.random.normal(key, natural.x.shape, natural.x.dtype)
        x = einsum("...ed,...e->...d", inverse, standardised)
        return MultivariateNormalStatistics(x, x[..., :, None] * x[..., None, :])

    def distribution(self, natural: MultivariateNormalStatistics) -> Any:
        """A `distrax.MultivariateNormalFullCovariance`."""
        import distrax

        params = self.conventional(natural)
        return distrax.MultivariateNormalFullCovariance(params["mean"], jnp.linalg.inv(params["precision"]))


class WishartStatistics(NamedTuple):
    """Statistics of a precision matrix: the matrix (..., D, D) and its log determinant."""

    x: Array
    log_det: Array


def _wishart_log_normaliser(inverse_scale: Array, dof: Array) -> Array:
    dim = inverse_scale.shape[-1]
    return formulas.wishart(dof, _log_det(inverse_scale), dim, dim)[0]


def bartlett(key: Array, dof: Array, dim: int, steps: Array | None = None) -> tuple[Array, Array]:
    """Bartlett's A of a standard Wishart draw A A', and the logarithms of its squared diagonal.

    A is lower triangular, A_ij normal and A_ii^2 chi-squared with dof - steps_i degrees of freedom.

    Args:
      key: random key.
      dof: (...,) degrees of freedom > dim - 1.
      dim: D.
      steps: (D,); None for 0, 1, ..., D - 1.

    Returns:
      A (..., D, D) and log A_ii^2 (..., D).
    """
    diagonal_key, below_key = jax.random.split(key)
    steps = jnp.arange(dim, dtype=dof.dtype) if steps is None else steps
    steps = steps.reshape((1,) * dof.ndim + (dim,))
    half = 0.5 * (dof[..., None] - steps)
    log_square = jnp.log(2.0).astype(dof.dtype) + jax.random.loggamma(diagonal_key, half, dtype=dof.dtype)
    below = jnp.tril(jax.random.normal(below_key, (*dof.shape, dim, dim), dof.dtype), -1)
    eye = jnp.broadcast_to(jnp.eye(dim, dtype=bool), below.shape)
    return jnp.where(eye, jnp.exp(0.5 * log_square)[..., None], below), log_square


def _wishart_root(key: Array, inverse_scale: Array, dof: Array) -> tuple[Array, Array]:
    """B with B B' a draw of the precision matrix, and its log determinant: Bartlett's decomposition.

    With inverse_scale = F F', B = F^-T A.
    """
    lower, log_square = bartlett(key, dof, inverse_scale.shape[-1])
    factor = jnp.linalg.cholesky(inverse_scale)
    log_det = jnp.sum(log_square - 2 * jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), -1)
    return _solve_transposed(factor, lower), log_det


def _solve_transposed(factor: Array, right: Array) -> Array:
    """Factor^-T right, for lower triangular factors."""
    return jax.lax.linalg.triangular_solve(factor, right, left_side=True, lower=True, transpose_a=True)


class Wishart(ExponentialFamily):
    """Wishart distribution with mean dof * inverse_scale^-1, inverse_scale (..., D, D), dof > D - 1."""

    Statistics, ranks = WishartStatistics, (2, 0)

    def natural(self, inverse_scale: Any, dof: Any) -> WishartStatistics:
        """Natural parameters from the inverse scale matrix and the degrees of freedom."""
        inverse_scale, dof = as_floats((2, 0), inverse_scale, dof)
        return WishartStatistics(-0.5 * inverse_scale, 0.5 * (dof - inverse_scale.shape[-1] - 1))

    def conventional(self, natural: WishartStatistics) -> dict[str, Array]:
        """Inverse scale matrix and degrees of freedom."""
        return {"inverse_scale": -2 * _symmetric(natural.x), "dof": 2 * natural.log_det + natural.x.shape[-1] + 1}

    def constraints(self, dim: int = 1) -> dict[str, Any]:
        """The domains of the conventional parameters."""
        return {"inverse_scale": constraints.PositiveDefinite(), "dof": constraints.Above(dim - 1)}

    def log_normaliser(self, natural: WishartStatistics) -> Array:
        """A = dof (D log 2 - log |inverse_scale|) / 2 + log Gamma_D(dof / 2)."""
        return _wishart_log_normaliser(**self.conventional(natural))

    def valid(self, natural: WishartStatistics) -> Array:
        """Whether the scale is positive definite and dof > D - 1."""
        params = self.conventional(natural)
        return _positive_definite(params["inverse_scale"]) & (params["dof"] > natural.x.shape[-1] - 1)

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Mean the identity, dof D + 2: with a mode."""
        eye = jnp.broadcast_to(jnp.eye(dim, dtype=dtype), (*plate, dim, dim))
        return self.natural((dim + 2) * eye, jnp.full(plate, dim + 2, dtype))

    def at_mode(self, natural: Any) -> Any:
        """Statistics of the mode (dof - D - 1) inverse_scale^-1, for dof > D + 1."""
        mode = natural.log_det[..., None, None] * jnp.linalg.inv(-_symmetric(natural.x))
        return WishartStatistics(mode, _log_det(mode))

    def draw(self, key: Array, natural: WishartStatistics) -> WishartStatistics:
        """Statistics of a draw, by Bartlett's decomposition."""
        root, log_det = _wishart_root(key, **self.conventional(natural))
        return WishartStatistics(einsum("...de,...fe->...df", root, root), log_det)

    def distribution(self, natural: WishartStatistics) -> Any:
        """A TensorFlow Probability `WishartTriL`."""
        from tensorflow_probability.substrates.jax import distributions

        params = self.conventional(natural)
        scale = jnp.linalg.inv(params["inverse_scale"])
        return distributions.WishartTriL(params["dof"], scale_tril=jnp.linalg.cholesky(scale))


class NormalWishartStatistics(NamedTuple):
    """Statistics of (mean, precision matrix): precision, log determinant, precision @ mean, mean' precision mean."""

    precision: Array
    log_det: Array
    weighted_mean: Array
    weighted_square: Array


class NormalWishart(ExponentialFamily):
    """Precision ~ Wishart(inverse_scale, dof), mean | precision ~ Normal(location, (strength precision)^-1)."""

    Statistics, ranks = NormalWishartStatistics, (2, 0, 1, 0)

    def natural(self, location: Any, strength: Any, inverse_scale: Any, dof: Any) -> NormalWishartStatistics:
        """Natural parameters from location (..., D), strength, inverse scale (..., D, D) and degrees of freedom."""
        location, strength, inverse_scale, dof = as_floats((1, 0, 2, 0), location, strength, inverse_scale, dof)
        weighted = strength[..., None] * location
        return NormalWishartStatistics(
            -0.5 * (inverse_scale + weighted[..., :, None] * location[..., None, :]),
            0.5 * (dof - location.shape[-1]),
            weighted,
            -0.5 * strength,
        )

    def conventional(self, natural: NormalWishartStatistics) -> dict[str, Array]:
        """Location, strength, inverse scale and degrees of freedom."""
        strength = -2 * natural.weighted_square
        location = natural.weighted_mean / strength[..., None]
        outer = natural.weighted_mean[..., :, None] * location[..., None, :]
        inverse_scale = -2 * _symmetric(natural.precision) - outer
        dof = 2 * natural.log_det + location.shape[-1]
        return {"location": location, "strength": strength, "inverse_scale": inverse_scale, "dof": dof}

    def constraints(self, dim: int = 1) -> dict[str, Any]:
        """The domains of the conventional parameters."""
        return {
            "location": constraints.Real(),
            "strength": constraints.Positive(),
            "inverse_scale": constraints.PositiveDefinite(),
            "dof": constraints.Above(dim - 1),
        }

    def log_normaliser(self, natural: NormalWishartStatistics) -> Array:
        """A = that of the Wishart - D log(strength) / 2."""
        params = self.conventional(natural)
        wishart = _wishart_log_normaliser(params["inverse_scale"], params["dof"])
        return wishart - 0.5 * natural.weighted_mean.shape[-1] * jnp.log(params["strength"])

    def valid(self, natural: NormalWishartStatistics) -> Array:
        """Whether strength is positive, the scale positive definite and dof > D - 1."""
        params = self.conventional(natural)
        dof = params["dof"] > natural.weighted_mean.shape[-1] - 1
        return (params["strength"] > 0) & _positive_definite(params["inverse_scale"]) & dof

    def log_base(self, natural: NormalWishartStatistics) -> float:
        """Log h = -D log(2 pi) / 2."""
        return -0.5 * LOG_2PI * natural.weighted_mean.shape[-1]

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Location 0, strength 1, mean precision the identity, dof D + 2: with a mode."""
        eye = jnp.broadcast_to(jnp.eye(dim, dtype=dtype), (*plate, dim, dim))
        one = jnp.ones(plate, dtype)
        return self.natural(jnp.zeros((*plate, dim), dtype), one, (dim + 2) * eye, (dim + 2) * one)

    def at_mode(self, natural: Any) -> Any:
        """Statistics of the joint mode of mean and precision: location, (dof - D) inverse_scale^-1; for dof > D."""
        params = self.conventional(natural)
        precision, mean = (
            2 * natural.log_det[..., None, None] * jnp.linalg.inv(params["inverse_scale"]),
            params["location"],
        )
        weighted = einsum("...de,...e->...d", precision, mean)
        return NormalWishartStatistics(precision, _log_det(precision), weighted, jnp.sum(weighted * mean, -1))

    def draw(self, key: Array, natural: NormalWishartStatistics) -> NormalWishartStatistics:
        """Statistics of a draw of (mean, precision matrix)."""
        params = self.conventional(natural)
        wishart_key, key = jax.random.split(key)
        root, log_det = _wishart_root(wishart_key, params["inverse_scale"], params["dof"])
        noise = jax.random.normal(key, natural.weighted_mean.shape, natural.weighted_mean.dtype)
        # With precision = B B': B' mean, of which both statistics of the mean are made.
        standardised = einsum("...de,...d->...e", root, params["location"])
        standardised = standardised + noise / jnp.sqrt(params["strength"])[..., None]
        weighted = einsum("...de,...e->...d", root, standardised)
        precision = einsum("...de,...fe->...df", root, root)
        return NormalWishartStatistics(precision, log_det, weighted, jnp.sum(standardised**2, -1))
