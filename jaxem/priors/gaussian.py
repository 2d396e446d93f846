"""Normal-Wishart priors on the means and precisions of Gaussian components, for the four shapes of covariance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core.checks import check_array, check_strength
from jaxem.core.numerics import is_concrete
from jaxem.core.pytree import dataclass
from jaxem.families import Gaussian, GaussianParams
from jaxem.families.covariance import Tied
from jaxem.families.gaussian_kernel import GaussianAt, PooledStats
from jaxem.priors.prior import PosteriorAt, Prior


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


@dataclass
class GaussianPosteriorAt(PosteriorAt):
    """Normal-Wishart posteriors beside the Gaussians at their plug-in params."""

    def _law(self, factor: Any, dof: Array) -> tuple[Array, Array]:
        """Log-normaliser and E log |precision| of precisions, for the factor of C / dof."""
        dim, rank = self.plug.num_columns, self.plug.scale.rank
        log_c = 2 * factor.log_det(dim) + rank * jnp.log(dof)  # log |C| = log |C / dof| + D log dof
        return factor.precision.log_normaliser(dof, log_c, dim, rank)

    def kl(self) -> Array:
        """That of the precisions, one if tied, and the expected one of the means given them."""
        here, prior, strength, dof = self.plug, self.prior, self.posterior.strength, self.posterior.dof
        dim, rank, root = here.num_columns, here.scale.rank, prior._root(here.family)
        log_c = 2 * root.log_det(dim).reshape(())
        own, expected = self._law(here.factor, dof)
        start, _ = root.precision.log_normaliser(prior.dof, log_c, dim, rank)
        trace = here.inverse.compose(root).trace(dim)
        precision = 0.5 * (trace - dof * rank + (dof - prior.dof) * expected) - own + start
        ratio = prior.strength / strength
        distance = jnp.sum(here.inverse.apply(prior.mean[None] - here.params.mean) ** 2, 1)
        mean = 0.5 * (rank * (ratio - 1 - jnp.log(ratio)) + prior.strength * distance)
        return jnp.sum(precision) + jnp.sum(mean)

    def log_predictive(self, x: Array) -> Array:
        """Student-t densities."""
        here, strength = self.plug, self.posterior.strength
        dof = jnp.broadcast_to(self.posterior.dof, strength.shape)
        log_det = jnp.broadcast_to(here.factor.log_det(here.num_columns), strength.shape)
        law, widen = here.factor.precision, (strength + 1) / strength
        return (law.log_predictive(here.residuals(x), dof, widen, here.scale.rank) - log_det[:, None]).T

    def draw(self, key: Array) -> tuple[GaussianParams, Array, Array]:
        """Means and covariances."""
        family, plug, strength = self.family, self.plug.params, self.posterior.strength
        num, dim = plug.mean.shape
        gamma_key, mean_key = jax.random.split(key)
        dof = jnp.broadcast_to(self.posterior.dof, (num,))
        factor = self.plug.factor
        factor = family.follow(factor.precision.draw(gamma_key, factor, dof, dim, self.plug.scale.dependent))
        noise = factor.apply(jax.random.normal(mean_key, plug.mean.shape, plug.mean.dtype))
        params = GaussianParams(plug.mean + noise / jnp.sqrt(strength)[:, None], factor.scale, family.covariance)
        there = family.at(params)
        return params, self._log_prob(self.posterior, there), self._log_prob(self.prior._copies(family, num), there)

    def _log_prob(self, posterior: GaussianPosterior, there: GaussianAt) -> Array:
        """(K,) log density of means and precisions: matrices, or one number for each column (diag) or all (spherical).

        A tied precision is one variable, of which each component has a K-th. In coordinates whitened by the params.
        """
        plug, strength, dof = posterior.plug, posterior.strength, posterior.dof
        (num, dim), rank = plug.mean.shape, there.scale.rank
        log_precision = -2 * there.factor.log_det(dim)  # log |precision|
        normaliser, _ = self._law(plug.factor, dof)
        trace = there.inverse.compose(plug.factor).trace(dim)
        precision = there.factor.precision.power(dof, dim, rank) * log_precision - 0.5 * dof * trace - normaliser
        if there.factor.shared:
            precision = precision / num
        distance = jnp.sum(there.inverse.apply(there.params.mean - plug.mean) ** 2, 1)
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
        dim, shape = x.shape[1], family._shape
        if shape.precision is None:
            raise TypeError(f"prior: expected a covariance with a conjugate prior; found {family.covariance!r}")
        low = shape.precision.least_dof(dim)
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
        allowed = ((), (dim,), (dim, dim))[: self._axes(family) + 1]
        if np.ndim(self.inverse_scale) < 2 or len(allowed) < 3:
            return check_array("prior.inverse_scale", self.inverse_scale, allowed[:2], positive=True)
        check_array("prior.inverse_scale", self.inverse_scale, allowed[2:])
        if is_concrete(self.inverse_scale):
            matrix = np.asarray(self.inverse_scale, np.float64)
            if not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix)[0] <= 0:
                raise ValueError(
                    "prior.inverse_scale: expected a symmetric positive definite matrix; found eigenvalues "
                    f"{np.linalg.eigvalsh(0.5 * (matrix + matrix.T)).tolist()}"
                )

    @staticmethod
    def _axes(family: Gaussian) -> int:
        """Axes of one covariance in its natural shape."""
        return len(family._shape.shape(1, 1)) - int(not family._shape.shared)

    def bind(self, family: Any, x: Array, weights: Array) -> "GaussianPrior":
        """Fills in the settings; `family` is bound to the same data."""
        if family.scale is None:
            raise ValueError("family: not bound to data; call bind(data, weights) first")
        dim, dtype, shape = x.shape[1], x.dtype, family._shape
        strength = jnp.asarray(1.0 if self.strength is None else self.strength, dtype)
        mean = family.scale.location if self.mean is None else jnp.asarray(self.mean, dtype)
        dof = jnp.asarray(shape.precision.default_dof(family.scale.rank) if self.dof is None else self.dof, dtype)
        bound = GaussianPrior(strength, mean, dof)
        if self.inverse_scale is None:
            root = Tied.start(1, family.scale.penalty.std, family.scale.span) if shape.correlated else None
            return dataclasses.replace(bound, factor=None if root is None else root.tril)
        scale = jnp.asarray(self.inverse_scale, dtype)
        if self._axes(family) > 0 and scale.ndim < 2:
            scale = jnp.broadcast_to(scale, (dim,))
        if shape.correlated:
            scale = scale if scale.ndim == 2 else jnp.diag(scale)
            return dataclasses.replace(bound, inverse_scale=scale, factor=family.factor(scale).tril)
        return dataclasses.replace(bound, inverse_scale=scale)

    def _root(self, family: Gaussian) -> Any:
        """A factor of C_0, as that of one component; not of its square where that is the data's own."""
        shape, scale = family._shape, family.scale
        if self.factor is not None:
            return shape.of_scale(self.factor if shape.shared else self.factor[None])
        if self.inverse_scale is not None:
            return shape.of(self.inverse_scale[None])
        return shape.start(1, scale.penalty.std, scale.span)  # type: ignore[union-attr]

    def _copies(self, family: Gaussian, num_components: int) -> GaussianPosterior:
        """K copies of the prior."""
        num, root = num_components, jax.tree.map(lambda leaf: leaf / jnp.sqrt(self.dof), self._root(family))
        if not root.shared:
            root = jax.tree.map(lambda leaf: jnp.repeat(leaf, num, 0), root)
        plug = GaussianParams(jnp.repeat(self.mean[None], num, 0), root.scale, family.covariance)
        return GaussianPosterior(
            plug, jnp.full(num, self.strength), self.dof if root.shared else jnp.full(num, self.dof)
        )

    def pseudo_statistics(self, here: GaussianAt) -> PooledStats:
        """The prior as statistics taken at the plug-in params: strength observations at the mean, and C_0."""
        seen = here.at_place(self.mean[None], self.strength)
        scatter = here.inverse.compose(self._root(here.family)).gram()
        return dataclasses.replace(seen, sum_yy=seen.sum_yy + scatter, dof=self.dof)

    def posterior(self, here: GaussianAt, stats: Any) -> GaussianPosterior:
        """The prior's pseudo-observations added to the whitened statistics; see the class."""
        pooled = here.pool(stats, self.pseudo_statistics(here))
        return GaussianPosterior(here.solve(pooled), pooled.count, pooled.dof)

    def at(self, family: Gaussian, posterior: GaussianPosterior | None = None) -> "GaussianPosteriorAt":
        """With the plug-in Gaussians, and (E log |precision| - log |E precision| - D / strength) / 2."""
        q = self._copies(family, 1) if posterior is None else posterior
        dim, rank = q.plug.mean.shape[1], family.scale.rank  # type: ignore[union-attr]
        _, expected = family._shape.precision.log_normaliser(q.dof, jnp.zeros_like(q.dof), dim, rank)
        gap = expected - rank * jnp.log(q.dof)  # log |C| cancels
        offset = 0.5 * (jnp.broadcast_to(gap, q.strength.shape) - rank / q.strength)
        return GaussianPosteriorAt(self, q, family.at(q.plug), offset)

    def hyperparameters(self, family: Gaussian) -> dict[str, tuple[Any, Any]]:
        """Strength and mean; of diag and spherical covariances dof and inverse_scale as well."""
        positive = constraints.Positive()
        found = {"strength": (positive, self.strength), "mean": (constraints.Real(), self.mean)}
        if not family._shape.correlated:
            own = self.inverse_scale is None and family.scale is not None
            scale = self._root(family).scale[0] ** 2 if own else self.inverse_scale
            found |= {"dof": (positive, self.dof), "inverse_scale": (positive, scale)}
        return found

    def constraints(self, family: Gaussian) -> GaussianPosterior:
        """Those of the plug-in Gaussians, positive strengths, and dof above its bound."""
        # Before `bind` the number of columns is not known.
        low = 0 if family.scale is None else family._shape.precision.least_dof(family.scale.rank)
        return GaussianPosterior(family.constraints(), constraints.Positive(), constraints.Above(low))  # type: ignore[arg-type]
