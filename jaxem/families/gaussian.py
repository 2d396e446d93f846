"""Gaussian components with full, tied, diagonal or spherical covariance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core.arguments import check_choice
from jaxem.core.checks import check_array, check_covariance, check_matrix, check_strength
from jaxem.core.foreign import named, named_fields
from jaxem.core.moments import moments
from jaxem.core.numerics import einsum, is_concrete, namespace
from jaxem.core.pytree import dataclass, static
from jaxem.core.seen import Rows, by_column
from jaxem.core.whole import in_batches
from jaxem.families import _spikes
from jaxem.families._mean_prior import MeanPrior, PlacedFamily
from jaxem.families.covariance import SHAPES, Covariance
from jaxem.families.dependence import Span, find_span
from jaxem.families.family import DerivedFamily
from jaxem.families.gaussian_kernel import GaussianAt, GaussianParams, GaussianScale, Penalty
from jaxem.families.reasons import FEWEST_OBSERVATIONS, collapses, name_columns


@named_fields
@dataclass
class Gaussian(DerivedFamily, PlacedFamily):
    """Multivariate normal components, x | z = k ~ N(mean_k, Sigma_k).

    The maximised objective is penalised: with S0 the diagonal of the data's weighted variances,

        G = -nu sum_k KL(N(0, S0) || N(0, Sigma_k))            (one term if tied),

    so Sigma_k = (SS_k + nu S0) / (N_k + nu): nu pseudo-observations at the overall variance, a proper penalty that is
    in ELBO.params, so that the objective never falls and ELBO.data stays the plain log-likelihood. It is equivariant to
    shifts and column scales: in other units the fit is the same, and ELBO.data lower by N times the logarithm of the
    factor for each column. A column without variance has its variance held at 1 in each component (in its own units),
    so it adds -log(2 pi) / 2 per row and nothing else.

    **Dependent columns** (full, tied). A column that is a linear combination of earlier ones, to rounding, as the last
    of a full set of indicators, makes every covariance singular. It adds nothing: the density is that of the
    independent columns, earliest first, with their number of parameters, and a note names the others. Means,
    covariances and samples keep the relation. A new row is judged by its independent columns alone, whether it keeps
    the relation or not: the data say nothing of rows off their span, and whether a row is off is a question of
    rounding. Columns are not called dependent where there are no more rows than columns.

    **Normal-inverse-Wishart prior.** With `mean_pseudo_observations` kappa each component has, besides, kappa
    pseudo-observations at m0, for MAP estimates of means and covariances:

        log prior = G - kappa/2 sum_k [log|Sigma_k| - log|S0| + (mean_k - m0)' Sigma_k^-1 (mean_k - m0)]

        mean_k = (N_k xbar_k + kappa m0) / (N_k + kappa)
        Sigma_k = (SS_k + N_k kappa / (N_k + kappa) (xbar_k - m0)(xbar_k - m0)' + nu S0) / (N_k + kappa + nu)

    In the usual notation NIW(m0, kappa0, nu0, Psi): kappa0 = kappa, Psi = nu S0, nu0 = nu + kappa - D - 2 (one
    covariance each; the mode is the same where this nu0 is too small for a proper density). kappa = 0 and nu = 0 are
    exactly maximum likelihood. A large kappa beside a small nu asks for spikes at m0: the prior's own mode has
    Sigma = nu S0 / (kappa + nu), which an empty component takes. With one m0 for each component, starts give rows to
    the nearest (with noise of a fifth of a standard deviation of S0, from the key), and components keep the order of
    their priors.

    Accuracy: statistics are taken of residuals whitened by the current params, so float32 keeps tight clusters and
    large offsets apart where raw second moments cancel.

    Cost of one E-step: O(N K D^2) for full and tied, O(N K D) for diag and spherical; one block of rows at a time.

    Attributes:
      covariance: "full", "tied", "diag" or "spherical".
      pseudo_observations: nu; 0 is plain maximum likelihood, unbounded for all but tied. From 1 on they count as
        information, not as a mere bound, and no component is called degenerate.
      mean_pseudo_observations: kappa >= 0, a number; None for no prior on the means.
      pseudo_mean: m0, (D,) or (K, D); None for the data's mean.
      pseudo_covariance: (D,) the variances S0; None for the data's.
      scale: set by `bind`.
    """

    covariance: str = static(default="full")
    pseudo_observations: float | Array = 1e-6
    mean_pseudo_observations: float | Array | None = None
    pseudo_mean: Array | None = None
    pseudo_covariance: Array | None = None
    scale: GaussianScale | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Gaussian({self.covariance!r})"

    @property
    def _shape(self) -> type[Covariance]:
        check_choice("covariance", self.covariance, SHAPES)
        return SHAPES[self.covariance]

    def check(self, x: Any, params: GaussianParams | None = None) -> None:
        """Checks that data are one (N, D) array, as wide as params of this covariance; and the settings."""
        check_covariance(self, params)
        check_matrix(x, None if params is None else params.mean.shape[-1])
        if params is not None:
            return
        _ = self._shape
        check_strength("pseudo_observations", self.pseudo_observations)
        dim = x.shape[1]
        if self.mean_pseudo_observations is not None:
            check_strength("mean_pseudo_observations", self.mean_pseudo_observations)
        if self.pseudo_mean is not None:
            if self.mean_pseudo_observations is None:
                raise ValueError("pseudo_mean: expected mean_pseudo_observations, its strength, as well; found None")
            check_array("pseudo_mean", self.pseudo_mean, ((dim,), (None, dim)))
        if self.pseudo_covariance is not None:
            check_array("pseudo_covariance", self.pseudo_covariance, ((dim,),), positive=True)

    def bind(self, x: Array, weights: Array) -> "Gaussian":
        """Takes location, variances and total weight from the data, accurately at any offset."""
        seen = moments(x, weights)
        location, std, constant = seen.mean, seen.std, seen.constant
        span = self._span(x, weights, location, std, constant)
        if self.pseudo_covariance is not None:
            std = jnp.sqrt(jnp.asarray(self.pseudo_covariance, x.dtype))
        std, constant = self._shape.common(std, constant)
        nu = jnp.asarray(self.pseudo_observations, x.dtype)
        held = constant if span is None else constant | span.dependent
        penalty = Penalty(jnp.where(constant, 1, std), held, nu)
        scale = GaussianScale(location, seen.total, seen.mean_weight, penalty, span, self._mean_prior(location))
        return dataclasses.replace(self, scale=scale)

    @property
    def finds_span(self) -> bool:
        """Whether the covariance has off-diagonal entries."""
        return self._shape.correlated

    def _span(self, x: Array, weights: Array, location: Array, std: Array, constant: Array) -> Span | None:
        if not self.finds_span or x.shape[1] < 2 or (x.shape[0] < 2 and not in_batches()):
            return None
        return find_span(x, weights, location, jnp.where(constant, 1, std), constant)

    def _mean_prior(self, location: Array) -> MeanPrior | None:
        if self.mean_pseudo_observations is None:
            return None
        centre = location if self.pseudo_mean is None else jnp.asarray(self.pseudo_mean, location.dtype)
        return MeanPrior(centre, jnp.asarray(self.mean_pseudo_observations, location.dtype))

    def start(self, num_components: int) -> GaussianParams:
        """K copies of N(mean of the data, S0)."""
        if self.scale is None:
            raise ValueError("family: not bound to data; call bind(data, weights) first")
        self.check_places(num_components)
        mean = jnp.broadcast_to(self.scale.location[None], (num_components, self.scale.location.shape[0]))
        factor = self._shape.start(num_components, self.scale.penalty.std, self.scale.span)
        return GaussianParams(mean, factor.scale, self.covariance)

    def at(self, params: GaussianParams) -> "GaussianAt":
        """With the inverse factors."""
        return GaussianAt(self, params, params.factor.inverse())

    def _start_at(self, num_components: int) -> "GaussianAt":
        """The family at `start(K)`, whose inverse factors are known without a substitution."""
        params = self.start(num_components)
        std, span = self.scale.penalty.std, self.scale.span  # type: ignore[union-attr]
        upside = 1 / std if span is None else jnp.where(span.dependent, 0, 1 / std)
        return GaussianAt(self, params, self._shape.start(num_components, upside, None))

    def features(self, x: Array) -> Array:
        """Columns standardised by the data's mean and standard deviation, dependent ones 0; plain when not bound."""
        if self.scale is None:
            return x
        z = (x - self.scale.location[None]) / self.scale.penalty.std[None]
        return z if self.scale.span is None else jnp.where(self.scale.span.dependent[None], 0, z)

    def notes(self, params: GaussianParams | None = None, count: Array | None = None) -> list[str]:
        """Names the columns without variance and those that depend on others, and says where weights are tiny.

        Of params, why components are spikes: few rows, one value of a column repeated, or columns that depend on each
        other.
        """
        if self.scale is None:
            return []
        if params is not None:
            return self._reasons(params, count)
        penalty, total, nu = self.scale.penalty, float(self.scale.total_weight), float(self.scale.penalty.strength)
        follow = np.asarray(self.scale.dependent)
        constant, dependent = name_columns(np.asarray(penalty.held) & ~follow), name_columns(follow)
        said = [f"columns {constant} are constant: their variance is held at 1"] if constant else []
        if dependent:
            said.append(f"columns {dependent} are linear combinations of earlier ones: they add nothing to the density")
        if total < FEWEST_OBSERVATIONS and 0 < nu < 1:
            said.append(
                f"the weights sum to {total:.3g} observations, beside which the penalty of {nu:.3g} "
                "pseudo-observations counts: multiply the weights, or lower pseudo_observations"
            )
        return said

    def _reasons(self, params: GaussianParams, count: Any) -> list[str]:
        assert self.scale is not None  # as the caller has seen
        influence, std = (np.asarray(a) for a in _looked_at(self, params, count))
        rows = float(self.scale.mean_weight)
        gauge = max(float(self.scale.penalty.strength), _spikes.GAUGE * max(rows, 1))
        return collapses(
            influence,
            np.asarray(count) / rows,
            gauge / rows * (np.asarray(self.scale.penalty.std) / std) ** 2,
            np.asarray(self.scale.penalty.held),
            self._shape,
        )

    def canonical(self, params: GaussianParams, index: Array | None = None) -> GaussianParams:
        """Params in which dependent columns follow the others, as they do in the data; the others as they are."""
        params = self._adopt(params)
        if index is None:
            return params
        return GaussianParams(params.mean[index], params.factor.order(index).scale, self.covariance)

    def _adopt(self, params: GaussianParams) -> GaussianParams:
        if self.scale is None or self.scale.span is None:
            return params
        xp = namespace((params, self.scale))
        if xp is np:
            # No dependent columns, nothing to do; else by the program that a caller's jit would have, to the bit.
            return _adopted(self, params) if np.any(np.asarray(self.scale.span.dependent)) else params
        span, location, mean = jax.tree.map(xp.asarray, (self.scale.span, self.scale.location[None], params.mean))
        with jax.default_matmul_precision("highest"):
            follow = location + (((mean - location) / span.std[None]) @ span.matrix.T) * span.std[None]
        mean = xp.where(xp.broadcast_to(span.dependent[None], mean.shape), follow, mean)
        return GaussianParams(mean, self.follow(params.factor).scale, self.covariance)

    def follow(self, factor: Any) -> Any:
        """The factor in which the rows of dependent columns are made of the others'; as it is without such columns."""
        if self.scale is None or self.scale.span is None:
            return factor
        xp, shape = namespace((factor, self.scale)), factor.tril.shape
        span, tril = jax.tree.map(xp.asarray, (self.scale.span, factor.tril))
        dependent, std = span.dependent, xp.broadcast_to(span.std[:, None], shape)
        eye = xp.broadcast_to(xp.eye(shape[-1], dtype=bool), shape)
        row, column = (xp.broadcast_to(part, shape) for part in (dependent[:, None], dependent[None]))
        missing = eye & ~row & (tril == 0)  # dependent in other data than these
        tril = xp.where(column, 0, xp.where(missing, std, tril))
        with jax.default_matmul_precision("highest"):
            follow = std * (span.matrix @ (tril / std))
        return type(factor)(xp.where(row, follow, tril))

    def factor(self, covariance: Array) -> Covariance:
        """The factor of covariances in their natural shape, dependent columns taken from the others."""
        if self.scale is None or self.scale.span is None:
            return self._shape.of(covariance)
        dependent, shape = self.scale.span.dependent, covariance.shape
        held = jnp.broadcast_to(dependent[:, None] | dependent[None], shape)
        eye = jnp.broadcast_to(jnp.eye(shape[-1], dtype=covariance.dtype), shape)
        return self.follow(self._shape.of(jnp.where(held, eye, covariance)))

    def coincident(self, params: GaussianParams) -> Array:
        """(K, K) pairs of components that agree to 1e-4 of their standard deviations, and in correlations."""
        xp, num = namespace(params), params.mean.shape[0]
        std = xp.broadcast_to(params.factor.deviations(), params.mean.shape)
        least = xp.min(std, 0)[None]
        parts = xp.concatenate([(params.mean - xp.mean(params.mean, 0)[None]) / least, xp.log(std / least)], 1)
        near = xp.stack([xp.max(xp.abs(parts - part[None]), -1) < 1e-4 for part in parts])
        if not self.finds_span or self._shape.shared or (is_concrete(near) and near.sum() == num):
            return near
        # Correlations of the pairs that are left, one component against all: never (K, K, D, D).
        unit = params.scale / std[:, :, None]
        spread = einsum("kde,kfe->kdf", unit, unit) if xp is jnp else unit @ unit.swapaxes(1, 2)
        return near & xp.stack([xp.max(xp.abs(spread - one[None]), (1, 2)) < 1e-4 for one in spread])

    def constraints(self) -> GaussianParams:
        """Real means; Cholesky factors or positive standard deviations."""
        return GaussianParams(constraints.Real(), self._shape.constraint, self.covariance)  # type: ignore[arg-type]

    def _constant(self, dim: int) -> Array:
        """(D,) bool, the columns of the fit without spread, whose variance is held; none where not bound."""
        if self.scale is None:
            return np.zeros(dim, bool)  # type: ignore[return-value]
        xp, span = namespace(self.scale), self.scale.span
        held = xp.asarray(self.scale.penalty.held)
        return held if span is None else held & ~xp.asarray(span.dependent)

    def num_parameters(self, params: GaussianParams, num_components: int) -> int:
        """K D means and the covariances' free entries; constant and dependent columns do not count, once bound."""
        rank: Any = params.factor.rank(params.mean.shape[1])
        rank = int(np.max(rank)) if is_concrete(rank) else jnp.max(rank)
        constant = self._constant(params.mean.shape[1]).sum()
        rank = rank - (int(constant) if is_concrete(constant) else constant.astype(params.mean.dtype))
        return num_components * rank + self._shape.num_parameters(num_components, rank)

    def sample(self, key: Array, params: GaussianParams, component: Array) -> Array:
        """(N, D) one draw for each entry of component; memory O(N D), and O(K D^2) for full."""
        noise = jax.random.normal(key, (component.shape[0], params.mean.shape[1]), params.mean.dtype)
        noise = jnp.where(self._constant(noise.shape[1])[None], 0, noise)
        return params.mean[component] + params.factor.draw(noise, component)

    def distribution(self, params: GaussianParams) -> Any:
        """A batch of K `distrax.MultivariateNormalTri`; raises ValueError where dependent columns have no density."""
        import distrax

        num, dim = params.mean.shape
        if is_concrete(params) and np.any(params.factor.rank(dim) < dim):
            raise ValueError("params: expected covariances with a density; found dependent columns: leave them out")
        return distrax.MultivariateNormalTri(
            params.mean, jnp.broadcast_to(params.factor.dense_factor(dim), (num, dim, dim))
        )

    def describe(self, params: GaussianParams, rows: Rows) -> dict[str, np.ndarray]:
        """Means and standard deviations, by column; see `Family.describe`."""
        labels = rows.labels(params.mean.shape[1])
        return by_column("mean", params.mean, labels) | by_column("std", params.deviations, labels)

    @named
    def make_params(self, *, mean: Any, covariance: Any) -> GaussianParams:  # type: ignore[override]
        """Params from means (K, D) and covariances in their natural shape: (K, D, D), (D, D), (K, D) or (K,).

        Bound to data with dependent columns, a family takes these from the others.
        """
        mean = jnp.asarray(mean, jnp.result_type(float) if not hasattr(mean, "dtype") else None)
        covariance = jnp.asarray(covariance).astype(mean.dtype)
        expected = self._shape.shape(*mean.shape) if mean.ndim == 2 else None
        if expected is None or covariance.shape != expected:
            raise ValueError(
                f"mean, covariance: expected (K, D) and {expected} for {self.covariance!r}; "
                f"found {mean.shape} and {covariance.shape}"
            )
        if is_concrete(mean, covariance):
            _check_positive(np.asarray(mean, np.float64), np.asarray(covariance, np.float64), self.finds_span)
        factor = self.factor(covariance)
        if is_concrete(factor) and not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(factor)):
            raise ValueError("covariance: expected positive definite matrices; found others")
        return GaussianParams(mean, factor.scale, self.covariance)


_adopted = jax.jit(lambda family, params: family._adopt(params))


@jax.jit  # one program where the operations would be some forty
def _looked_at(family: Gaussian, params: GaussianParams, count: Array) -> tuple[Array, Array]:
    """Influence (K,), and the standard deviations of columns (K, D)."""
    return family.influence(params, count), params.deviations


def _check_positive(mean: np.ndarray, covariance: np.ndarray, matrices: bool) -> None:
    """Raises ValueError unless means are finite, variances positive, and matrices symmetric."""
    if not np.isfinite(mean).all():
        raise ValueError(f"mean: expected finite numbers; found {mean[~np.isfinite(mean)][0]}")
    variances = np.diagonal(covariance, axis1=-2, axis2=-1) if matrices else covariance
    if not (np.isfinite(covariance).all() and (variances > 0).all()):
        raise ValueError(f"covariance: expected finite numbers, variances > 0; found {variances.min()} among these")
    if matrices:
        std = np.sqrt(variances)
        unit = covariance / (std[..., :, None] * std[..., None, :])
        if np.abs(unit - unit.swapaxes(-1, -2)).max() > 1e-4:
            raise ValueError("covariance: expected symmetric matrices; found others")
