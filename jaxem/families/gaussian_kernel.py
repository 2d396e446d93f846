"""Gaussian components at their params: densities, statistics and updates, for every family that is made of them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import einsum, namespace, safe_divide
from jaxem.core.pytree import dataclass, static
from jaxem.families import _spikes
from jaxem.families._mean_prior import MeanPrior
from jaxem.families.covariance import SHAPES, Covariance
from jaxem.families.dependence import Span
from jaxem.families.family import Derived
from jaxem.families.reasons import FEWEST_OBSERVATIONS


@dataclass
class GaussianParams:
    """K Gaussian components.

    Attributes:
      mean: (K, D).
      scale: a factor of the covariances: lower Cholesky factors (K, D, D) for full, (D, D) for tied; standard
        deviations (K, D) for diag, (K,) for spherical. In the units of the data. A column that is a linear combination
        of earlier ones has 0 on the diagonal.
      covariance_type: which of the four.
    """

    mean: Array
    scale: Array
    covariance_type: str = static(default="full")

    @property
    def factor(self) -> Covariance:
        """The scale as a value, one of `jaxem.families.covariance`."""
        return SHAPES[self.covariance_type].of_scale(self.scale)

    @property
    def deviations(self) -> Array:
        """(K, D) standard deviations of the columns, from the factor: no squares of the data's units."""
        return jnp.broadcast_to(self.factor.deviations(), self.mean.shape)

    @property
    def covariance(self) -> Array:
        """(K, D, D) covariance matrices, whatever the shape they are stored in.

        Squares of the data's units: of float32 data beyond 1e-19 and 1e19 they under- or overflow; `scale` does not.
        """
        num, dim = self.mean.shape
        return namespace(self).broadcast_to(self.factor.dense(dim), (num, dim, dim))


@dataclass
class GaussianStats:
    """Responsibility-weighted statistics of residuals whitened by the params of the E-step, y = scale^-1 (x - mean).

    Attributes:
      count: (K,) sum of resp.
      sum_y: (K, D) sum of resp * y.
      sum_yy: second moments of y, in the covariance's form (summed over components for tied).
    """

    count: Array
    sum_y: Array
    sum_yy: Array


@dataclass
class PooledStats:
    """The same of a conjugate prior's pseudo-observations, or of these and the data together.

    Attributes:
      count: (K,) observations of the mean.
      sum_y: (K, D) their sum.
      sum_yy: second moments, in the covariance's form, with what a prior adds to the scatter.
      dof: what the scatter counts for, (K,), or () for tied.
    """

    count: Array
    sum_y: Array
    sum_yy: Array
    dof: Array


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


@dataclass
class GaussianScale:
    """What a fit takes from its data.

    Attributes:
      location: (D,) weighted mean.
      total_weight: sum of weights.
      mean_weight: of the rows that have one.
      penalty: that on the covariances.
      span: the independent columns (full, tied).
      mean_prior: that on the means; None where there is none, so that programs without it do not change.
    """

    location: Array
    total_weight: Array
    mean_weight: Array
    penalty: Penalty
    span: Span | None = None
    mean_prior: MeanPrior | None = None

    @property
    def dependent(self) -> Array:
        """(D,) bool, the columns that are combinations of others."""
        return jnp.zeros(self.location.shape, bool) if self.span is None else self.span.dependent

    @property
    def rank(self) -> Any:
        """Number of columns that count: D, or a scalar array of those that are no combinations of others."""
        return self.location.shape[0] if self.span is None else jnp.sum((~self.dependent).astype(self.location.dtype))

    @staticmethod
    def unbound(dim: int, dtype: Any) -> "GaussianScale":
        """That of a family which is not bound to data: plain maximum likelihood."""
        zero = jnp.zeros((), dtype)
        penalty = Penalty(jnp.ones(dim, dtype), jnp.zeros(dim, bool), zero)
        return GaussianScale(jnp.zeros(dim, dtype), zero, zero, penalty)


@dataclass
class GaussianAt(Derived):
    """Gaussian components at their params.

    Attributes:
      family: the family.
      params: its params.
      inverse: the inverse of the factor.
    """

    inverse: Covariance

    @property
    def factor(self) -> Covariance:
        """The factor of the covariances."""
        return self.params.factor

    @property
    def scale(self) -> GaussianScale:
        """What the family took from the data."""
        mean, found = self.params.mean, self.family.scale
        return GaussianScale.unbound(mean.shape[1], mean.dtype) if found is None else found

    @property
    def num_columns(self) -> int:
        """D."""
        return self.params.mean.shape[1]

    def residuals(self, x: Array) -> Array:
        """(K, D, n) whitened residuals of rows x (n, D)."""
        # The origin keeps offsets of the data out of the products: x - origin is exact where x is near the means.
        mean = self.params.mean
        origin = jnp.mean(mean, 0)
        return self.inverse.residuals(x - origin[None], mean - origin[None])

    def moments(self, count: Array, resp: Array, y: Array) -> GaussianStats:
        """Statistics of whitened residuals y (K, D, n) with weights resp (K, n), whose sums are count (K,)."""
        return GaussianStats(count, einsum("kn,kdn->kd", resp, y), self.factor.second(resp, y))

    def explain(self, x: Array) -> tuple[Array, Callable[[Array], GaussianStats]]:
        """log_prob, and the function from resp to statistics; both are of the same whitened residuals."""
        y = self.residuals(x)
        rank = self.factor.rank(self.num_columns)
        log_norm = self.factor.log_det(self.num_columns) + 0.5 * rank * jnp.log(2 * jnp.pi).astype(y.dtype)
        log_prob = -(0.5 * jnp.sum(y * y, 1) + jnp.broadcast_to(log_norm, y.shape[:1])[:, None]).T
        return log_prob, lambda resp: self.moments(jnp.sum(resp, 0), resp.T, y)

    def at_place(self, place: Array, strength: Array) -> PooledStats:
        """Statistics of `strength` () observations of each component at a place, (1 or K, D)."""
        y = self.inverse.apply(place - self.params.mean)
        count = jnp.broadcast_to(strength, y.shape[:1])
        return PooledStats(count, strength * y, self.factor.pair(strength * y, y), self.factor.pool(count))

    def pseudo_statistics(self) -> PooledStats:
        """The family's penalty and its prior of the means, as statistics taken here."""
        scale, mean = self.scale, self.params.mean
        penalty, prior = scale.penalty, scale.mean_prior
        scatter = penalty.strength * self.inverse.stretch(penalty.std).gram()
        if prior is None:
            return PooledStats(jnp.zeros_like(mean[:, 0]), jnp.zeros_like(mean), scatter, penalty.strength)
        seen = self.at_place(prior.place, prior.strength)
        return PooledStats(seen.count, seen.sum_y, seen.sum_yy + scatter, seen.dof + penalty.strength)

    def pool(self, stats: GaussianStats, pseudo: PooledStats) -> PooledStats:
        """Statistics of the data and of a prior together."""
        dof = self.factor.pool(stats.count) + pseudo.dof
        return PooledStats(stats.count + pseudo.count, stats.sum_y + pseudo.sum_y, stats.sum_yy + pseudo.sum_yy, dof)

    def solve(self, pooled: PooledStats) -> GaussianParams:
        """Means, and scatters about them over `dof`; a component of count 0 keeps its mean."""
        shift = safe_divide(pooled.sum_y, pooled.count[:, None])
        scatter = pooled.sum_yy - self.factor.pair(pooled.count[:, None] * shift, shift)
        factor = self.factor.update(scatter, pooled.sum_yy, pooled.dof, self.scale.penalty.held)
        return GaussianParams(self.params.mean + self.factor.apply(shift), factor.scale, self.params.covariance_type)

    def m_step(self, stats: GaussianStats) -> GaussianParams:
        """Weighted means and penalised covariances; an empty component keeps its mean and takes Sigma = S0.

        Under a prior on the means its pseudo-observations count like any others, so that it goes to the prior's mode.
        """
        return self.solve(self.pool(stats, self.pseudo_statistics()))

    def rebase(self, stats: GaussianStats, new: Any) -> GaussianStats:
        """Statistics of residuals whitened here, as if whitened by `new`: y' = B y + d, with B = new^-1 old."""
        change, count = new.inverse.compose(self.factor), stats.count[:, None]
        shift = new.inverse.apply(self.params.mean - new.params.mean)
        moved, pair = change.apply(stats.sum_y), self.factor.pair
        cross = pair(moved, shift) + pair(shift, moved) + pair(count * shift, shift)
        return GaussianStats(stats.count, moved + count * shift, change.congruence(stats.sum_yy) + cross)

    def elbo_params(self) -> Array:
        """G of the family's docstring and the log prior of the means, nats; finite for positive definite ones."""
        scale, dim = self.scale, self.num_columns
        penalty, prior = scale.penalty, scale.mean_prior
        log_std = jnp.where(scale.dependent, 0, jnp.log(penalty.std))
        log_det = 2 * (self.factor.log_det(dim) - jnp.sum(log_std))
        trace = self.inverse.stretch(penalty.std).trace(dim)
        value = -0.5 * penalty.strength * jnp.sum(trace - scale.rank + log_det)
        if prior is None:
            return value
        distance = jnp.sum(self.inverse.apply(prior.place - self.params.mean) ** 2, 1)
        return value - 0.5 * prior.strength * jnp.sum(distance + jnp.broadcast_to(log_det, distance.shape))

    def influence(self, count: Array) -> Array:
        """(K,) about 1 for a spike, near 0 for an honest component, whatever the penalty; see `_spikes.influence`.

        A small variance is held against more where it rests on fewer than 2 (D + 1) rows (4 for diag and spherical).
        0 under a prior of at least one pseudo-observation, where the spread is not the data's alone but was asked for;
        where all weights together are less than a hundredth of an observation; and where the family is not bound.
        """
        scale = self.family.scale
        if scale is None:
            return jnp.zeros_like(count)
        penalty = scale.penalty
        if scale.mean_prior is not None:
            count = count + scale.mean_prior.strength
        total = jnp.broadcast_to(self.factor.pool(count), count.shape)
        spread = jnp.broadcast_to(self.inverse.stretch(penalty.std).top(), count.shape)
        enough = self.factor.enough_rows(self.num_columns)
        share = _spikes.influence(spread, total, penalty.strength, scale.mean_weight, enough)
        known = (penalty.strength < 1) & (scale.total_weight > FEWEST_OBSERVATIONS)
        return jnp.where(known, share, 0)
