"""Normal-Wishart priors on the means and precisions of Gaussian components, for the four shapes of covariance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, gammaln

from jaxem.core import constraints
from jaxem.core.checks import check_array, check_strength
from jaxem.core.numerics import einsum, is_concrete
from jaxem.core.pytree import dataclass
from jaxem.expfam import formulas
from jaxem.expfam.matrix import bartlett
from jaxem.families import Gaussian, GaussianParams
from jaxem.families.covariance import SHAPES, Penalty, row_norms
from jaxem.priors.prior import PosteriorAt, Prior

LOG_2 = 0.6931471805599453


@dataclass
class GaussianPosterior:
    """Normal-Wishart posteriors of K components, as the plug-in Gaussians and two strengths.

    Attributes:
      plug: mean (K, D) and, as its covariances, C / dof: the inverse of the expected precision.
      strength: (K,) beta; mean_k | precision_k ~ Normal(plug mean, (beta precision_k)^-1).
      dof: (K,) nu, () for tied covariances.
    """

    plug: GaussianParams
    strength: Array
    dof: Array

    @property
    def mean(self) -> Array:
        """(K, D) expected means."""
        return self.plug.mean

    @property
    def covariance(self) -> Array:
        """(K, D, D) inverses of the expected precisions."""
        return self.plug.covariance

    @property
    def inverse_scale(self) -> Array:
        """(K, D, D) C, the inverse scale matrices, whatever the shape they are stored in; in squared units."""
        return jnp.broadcast_to(self.dof, self.strength.shape)[:, None, None] * self.plug.covariance


def _wishart(family: Gaussian, dof: Array, log_det: Array, dim: int) -> tuple[Array, Array]:
    """Log-normaliser of each component's precisions, summed over columns, and E log |precision|, for log |C|."""
    if family.covariance in ("full", "tied"):
        return formulas.wishart(dof, log_det, dim, family.rank(dim))
    if family.covariance == "diag":
        normaliser = 0.5 * dof * (dim * LOG_2 - log_det) + dim * gammaln(0.5 * dof)
        return normaliser, dim * (digamma(0.5 * dof) + LOG_2) - log_det
    n = dim * dof
    log_c = log_det / dim + jnp.log(jnp.asarray(dim, dof.dtype))
    return 0.5 * n * (LOG_2 - log_c) + gammaln(0.5 * n), dim * (digamma(0.5 * n) + LOG_2 - log_c)


def _log_det(family: Gaussian, scale: Array, dof: Array, dim: int) -> Array:
    """Log |C| = log |C / dof| + D log dof, of each component."""
    return 2 * family._shape.log_det(scale, dim) + family.rank(dim) * jnp.log(dof)


@dataclass
class GaussianPosteriorAt(PosteriorAt):
    """Normal-Wishart posteriors beside the Gaussians at their plug-in params."""

    def kl(self) -> Array:
        """That of the precisions, one if tied, and the expected one of the means given them."""
        family, start, plug = self.family, self.prior, self.plug.params
        strength, dof, dim = self.posterior.strength, self.posterior.dof, plug.mean.shape[1]
        prior_det = _log_det(family, start._copies(family, 1).plug.scale, start.dof, dim).reshape(())
        own, expected = _wishart(family, dof, _log_det(family, plug.scale, dof, dim), dim)
        prior, _ = _wishart(family, start.dof, prior_det, dim)
        whitened = start._whitened(family, self.plug.inverse)
        if family.covariance in ("full", "tied"):
            trace = jnp.trace(whitened, axis1=-2, axis2=-1)
        else:
            trace = jnp.sum(whitened, -1) if family.covariance == "diag" else whitened
        rank = family.rank(dim)
        precision = 0.5 * (trace - dof * rank + (dof - start.dof) * expected) - own + prior
        ratio = start.strength / strength
        distance = jnp.sum(start._prior_mean(self.plug) ** 2, 1)
        mean = 0.5 * (rank * (ratio - 1 - jnp.log(ratio)) + start.strength * distance)
        return jnp.sum(precision) + jnp.sum(mean)

    def log_predictive(self, x: Array) -> Array:
        """Student-t densities."""
        family, plug, strength = self.family, self.plug.params, self.posterior.strength
        dim, dof = plug.mean.shape[1], jnp.broadcast_to(self.posterior.dof, strength.shape)
        y = self.plug.residuals(x)  # (K, D, n)
        log_det = jnp.broadcast_to(family._shape.log_det(plug.scale, dim), strength.shape)
        widen = (strength + 1) / strength
        if family.covariance == "diag":
            terms = -0.5 * (dof + 1)[:, None] * jnp.sum(jnp.log1p(y**2 / (dof * widen)[:, None, None]), 1)
            constant = dim * (gammaln(0.5 * (dof + 1)) - gammaln(0.5 * dof) - 0.5 * jnp.log(dof * widen * jnp.pi))
        else:
            dim = family.rank(dim)
            free = dim * dof if family.covariance == "spherical" else dof + 1 - dim
            widen = widen if family.covariance == "spherical" else widen * dof / free
            terms = -0.5 * (free + dim)[:, None] * jnp.log1p(jnp.sum(y**2, 1) / (free * widen)[:, None])
            constant = gammaln(0.5 * (free + dim)) - gammaln(0.5 * free) - 0.5 * dim * jnp.log(free * widen * jnp.pi)
        return (terms + (constant - log_det)[:, None]).T

    def draw(self, key: Array) -> tuple[GaussianParams, Array, Array]:
        """Means and covariances."""
        params = self._draw(key)
        prior = self.prior._copies(self.family, params.mean.shape[0])
        return params, self._log_prob(self.posterior, params), self._log_prob(prior, params)

    def _draw(self, key: Array) -> GaussianParams:
        family, plug, strength = self.family, self.plug.params, self.posterior.strength
        (num, dim), dtype = plug.mean.shape, plug.mean.dtype
        dof = jnp.broadcast_to(self.posterior.dof, (num,))
        gamma_key, mean_key = jax.random.split(key)
        shared = 1 if family.covariance == "tied" else num
        if family.covariance in ("full", "tied"):
            # Precision = F^-T A A' F^-1 with C = F F', A as Bartlett's; so covariance = (F A^-T)(F A^-T)'.
            dependent = family._dependent(dim)
            free = (~dependent).astype(dtype)
            lower, _ = bartlett(gamma_key, dof[:shared], dim, jnp.where(dependent, 0, jnp.cumsum(free) - free))
            held = jnp.broadcast_to(dependent[:, None] | dependent[None], lower.shape)
            eye = jnp.broadcast_to(jnp.eye(dim, dtype=dtype), lower.shape)
            lower = jnp.where(held, eye, lower)
            root = jnp.sqrt(dof[:shared])[:, None, None] * plug.scale.reshape(shared, dim, dim)
            factor = jax.lax.linalg.triangular_solve(lower, root.swapaxes(1, 2), left_side=True, lower=True)
            factor = factor.swapaxes(1, 2)
            # In units of the standard deviations: squares of the data's may not be in the range of the dtype.
            std = row_norms(factor)[:, :, None]
            correlation = einsum("kde,kfe->kdf", factor / std, factor / std)
            scale = std * jnp.linalg.cholesky(jnp.where(held, eye, correlation))
            scale = scale if family.scale is None or family.scale.span is None else family._follow(scale)
            noise = einsum("kde,ke->kd", jnp.broadcast_to(scale, (num, dim, dim)), self._noise(mean_key, plug))
            scale = scale[0] if family.covariance == "tied" else scale
        else:
            spherical = family.covariance == "spherical"
            half = 0.5 * (dim * dof if spherical else jnp.broadcast_to(dof[:, None], (num, dim)))
            # precision / E precision ~ Gamma(half, half)
            scale = plug.scale / jnp.sqrt(jax.random.gamma(gamma_key, half, dtype=dtype) / half)
            noise = (scale[:, None] if spherical else scale) * self._noise(mean_key, plug)
        mean = plug.mean + noise / jnp.sqrt(strength)[:, None]
        return GaussianParams(mean, scale, family.covariance)

    def _noise(self, key: Array, plug: GaussianParams) -> Array:
        return jax.random.normal(key, plug.mean.shape, plug.mean.dtype)

    def _log_prob(self, posterior: GaussianPosterior, params: GaussianParams) -> Array:
        """(K,) log density of means and precisions: matrices, or one number for each column (diag) or all (spherical).

        A tied precision is one variable, of which each component has a K-th. In coordinates whitened by `params`.
        """
        family, plug, strength, dof = self.family, posterior.plug, posterior.strength, posterior.dof
        num, dim = plug.mean.shape
        shape, inverse = family._shape, family.at(params).inverse
        log_precision = -2 * shape.log_det(params.scale, dim)  # log |precision|
        normaliser, _ = _wishart(family, dof, _log_det(family, plug.scale, dof, dim), dim)
        rank = family.rank(dim)
        if family.covariance in ("full", "tied"):
            trace = jnp.sum(einsum("...de,...ef->...df", inverse, plug.scale) ** 2, (-2, -1))
            power = 0.5 * (dof - rank - 1)
        elif family.covariance == "diag":
            trace, power = jnp.sum((inverse * plug.scale) ** 2, 1), 0.5 * dof - 1
        else:
            # One precision whose log determinant is D times its logarithm.
            trace, power = dim * (inverse * plug.scale) ** 2, 0.5 * dof - 1 / dim
        precision = power * log_precision - 0.5 * dof * trace - normaliser
        if family.covariance == "tied":
            precision = precision / num
        distance = jnp.sum(shape.unwhiten(inverse, params.mean - plug.mean) ** 2, 1)
        mean = rank * jnp.log(strength / (2 * jnp.pi)) + log_precision - strength * distance
        return precision + 0.5 * mean


@dataclass
class GaussianPrior(Prior):
    """mean_k | precision_k ~ Normal(mean, (strength precision_k)^-1), and by the shape of the covariance

        full        precision_k ~ Wishart(dof, inverse scale C)                          E = dof C^-1
        tied        one precision ~ Wishart(dof, C), shared
        diag        precision_kd ~ Gamma(dof / 2, C_d / 2)
        spherical   precision_k ~ Gamma(D dof / 2, D c / 2),  c = mean of C's diagonal

    The update with responsibilities r, N_k = sum_n r_nk, xbar_k their means and S_k their scatters (diagonal or its
    mean for diag and spherical):

        strength_k = strength + N_k,   dof_k = dof + N_k,   mean_k = (strength mean + N_k xbar_k) / strength_k
        C_k = C + S_k + strength N_k / strength_k (xbar_k - mean)(xbar_k - mean)'

    (tied: dof + sum of N_k, C + the sum of the additions). Predictive densities are Student-t with dof_k + 1 - D
    degrees of freedom (full, tied), dof_k for each column (diag), D dof_k (spherical). E-steps and updates are taken of
    residuals whitened by the plug-in covariance, so that float32 keeps tight clusters and large offsets apart.

    Columns that are linear combinations of earlier ones (full, tied) add nothing: everywhere D is the number of the
    others, and C that of the others; see `jaxem.families.Gaussian`.

    Attributes:
      strength: beta_0 > 0; None for 1.
      mean: (D,); None for the data's.
      dof: nu_0 > D - 1 (full, tied) or > 0; None for D (full, tied) or 1.
      inverse_scale: C_0: (D, D) positive definite for full and tied, (D,) > 0 for diag, a number > 0 for spherical, in
        units of the data squared; a number or (D,) stands for a diagonal matrix. None for the data's variances (1 for a
        constant column): one observation's worth of spread as wide as the data.
      factor: set by `bind` (full, tied): a lower factor of C_0, in units of the data, which a square may have left.

    References:
      Bishop (2006), Pattern Recognition and Machine Learning, section 10.2.
    """

    strength: Any = None  # float | Array | None; arrays once bound
    mean: Any = None
    dof: Any = None
    inverse_scale: Any = None
    factor: Any = dataclasses.field(default=None, repr=False)

    families = (Gaussian,)

    def check(self, family: Any, x: Any) -> None:
        """As `Prior`: every setting has its shape, and the prior is proper."""
        super().check(family, x)
        dim = x.shape[1]
        joint = family.covariance in ("full", "tied")
        low = dim - 1 if joint else 0
        if self.strength is not None:
            check_array("prior.strength", self.strength, ((),), positive=True)
        if self.mean is not None:
            check_array("prior.mean", self.mean, ((dim,),))
        if self.dof is not None:
            check_strength("prior.dof", self.dof)
            if is_concrete(self.dof) and not self.dof > low:
                raise ValueError(f"prior.dof: expected a number > {low}, for a proper prior; found {self.dof!r}")
        if self.inverse_scale is None:
            return
        shapes: tuple[Any, ...] = ((),) if family.covariance == "spherical" else ((), (dim,))
        if joint and np.ndim(self.inverse_scale) == 2:
            check_array("prior.inverse_scale", self.inverse_scale, ((dim, dim),))
            if is_concrete(self.inverse_scale):
                matrix = np.asarray(self.inverse_scale, np.float64)
                if not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix)[0] <= 0:
                    raise ValueError(
                        "prior.inverse_scale: expected a symmetric positive definite matrix; found eigenvalues "
                        f"{np.linalg.eigvalsh(0.5 * (matrix + matrix.T)).tolist()}"
                    )
            return
        check_array("prior.inverse_scale", self.inverse_scale, shapes, positive=True)

    def bind(self, family: Any, x: Array, weights: Array) -> "GaussianPrior":
        """Fills in the settings; `family` is bound to the same data."""
        if family.scale is None:
            raise ValueError("family: not bound to data; call bind(data, weights) first")
        dim, dtype = x.shape[1], x.dtype
        joint = family.covariance in ("full", "tied")
        strength = jnp.asarray(1.0 if self.strength is None else self.strength, dtype)
        mean = family.scale.location if self.mean is None else jnp.asarray(self.mean, dtype)
        dof = jnp.asarray((family.rank(dim) if joint else 1) if self.dof is None else self.dof, dtype)
        if self.inverse_scale is None:
            factor = SHAPES["tied"].start(1, family.scale.penalty.std, family.scale.span) if joint else None
            return GaussianPrior(strength, mean, dof, None, factor)
        scale = jnp.asarray(self.inverse_scale, dtype)
        if family.covariance == "spherical":
            return GaussianPrior(strength, mean, dof, scale)
        scale = scale if scale.ndim == 2 else jnp.broadcast_to(scale, (dim,))
        if joint:
            scale = scale if scale.ndim == 2 else jnp.diag(scale)
            return GaussianPrior(strength, mean, dof, scale, family.factor(scale))
        return GaussianPrior(strength, mean, dof, scale)

    def _factor(self, family: Gaussian) -> Array:
        """A factor F of C_0 = F F', in the shape of one covariance; not of its square where that is the data's own."""
        if family.covariance in ("full", "tied"):
            return self.factor
        if self.inverse_scale is not None:
            return jnp.sqrt(self.inverse_scale)
        std = family.scale.penalty.std  # type: ignore[union-attr]
        return std[0] if family.covariance == "spherical" else std

    def _whitened(self, family: Gaussian, inverse: Array) -> Array:
        """C_0 in whitened coordinates, in the shape of second moments (for spherical summed over columns)."""
        factor = self._factor(family)
        if family.covariance in ("full", "tied"):
            relative = einsum("...de,ef->...df", inverse, factor)
            return einsum("...de,...fe->...df", relative, relative)
        if family.covariance == "diag":
            return (inverse * factor[None]) ** 2
        return self.mean.shape[0] * (inverse * factor) ** 2

    def _copies(self, family: Gaussian, num_components: int) -> GaussianPosterior:
        """K copies of the prior."""
        shape, num = family.covariance, num_components
        factor = self._factor(family) / jnp.sqrt(self.dof)
        mean = jnp.repeat(self.mean[None], num, 0)
        scale = factor if shape == "tied" else jnp.repeat(factor[None], num, 0)
        dof = self.dof if shape == "tied" else jnp.full(num, self.dof)
        return GaussianPosterior(GaussianParams(mean, scale, shape), jnp.full(num, self.strength), dof)

    def _prior_mean(self, here: Any) -> Array:
        """(K, D) the prior's mean in whitened coordinates."""
        return here.family._shape.unwhiten(here.inverse, self.mean[None] - here.params.mean)

    def posterior(self, here: Any, stats: Any) -> GaussianPosterior:
        """The prior's pseudo-observations added to the whitened statistics; see the class."""
        family, shape, inverse, plug = here.family, here.family._shape, here.inverse, here.params
        num, dim = plug.mean.shape
        y = self._prior_mean(here)
        resp = jnp.full((num, 1), self.strength)
        second = stats.sum_yy + shape.second(resp, y[:, :, None]) + self._whitened(family, inverse)
        strength = stats.count + self.strength
        shift = (stats.sum_y + self.strength * y) / strength[:, None]
        tied = family.covariance == "tied"
        dof = self.dof + (jnp.sum(stats.count) if tied else stats.count)
        # The family's update divides the scatter by the counts (here beta_k) and a penalty's: make that dof_k.
        rest = self.dof - (num if tied else 1) * self.strength
        # No constant 0: the compiler takes constants out of squares, and squares the inverse factors alone.
        nothing = 0 * family.scale.penalty.std
        none = Penalty(nothing, family._dependent(dim), rest)
        scale = shape.update(plug.scale, inverse, second, shift, strength, none)
        mean = plug.mean + shape.unwhiten(plug.scale, shift)
        return GaussianPosterior(GaussianParams(mean, scale, family.covariance), strength, dof)

    def at(self, family: Gaussian, posterior: GaussianPosterior | None = None) -> "GaussianPosteriorAt":
        """With the plug-in Gaussians, and (E log |precision| - log |E precision| - D / strength) / 2."""
        q = self._copies(family, 1) if posterior is None else posterior
        dim = q.plug.mean.shape[1]
        _, expected = _wishart(family, q.dof, jnp.zeros_like(q.dof), dim)
        rank = family.rank(dim)
        gap = expected - rank * jnp.log(q.dof)  # log |C| cancels
        offset = 0.5 * (jnp.broadcast_to(gap, q.strength.shape) - rank / q.strength)
        return GaussianPosteriorAt(self, q, family.at(q.plug), offset)

    def hyperparameters(self, family: Gaussian) -> dict[str, tuple[Any, Any]]:
        """Strength and mean; of diag and spherical covariances dof and inverse_scale as well."""
        positive = constraints.Positive()
        found = {"strength": (positive, self.strength), "mean": (constraints.Real(), self.mean)}
        if family.covariance in ("diag", "spherical"):
            own = self.inverse_scale is None and family.scale is not None
            scale = self._factor(family) ** 2 if own else self.inverse_scale
            found |= {"dof": (positive, self.dof), "inverse_scale": (positive, scale)}
        return found

    def constraints(self, family: Gaussian) -> GaussianPosterior:
        """Those of the plug-in Gaussians, positive strengths, and dof above its bound."""
        joint = self.mean is not None and family.covariance in ("full", "tied")
        low = family.rank(self.mean.shape[0]) - 1 if joint else 0  # before `bind` the number of columns is not known
        return GaussianPosterior(family.constraints(), constraints.Positive(), constraints.Above(low))  # type: ignore[arg-type]
