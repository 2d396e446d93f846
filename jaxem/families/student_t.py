"""Student-t components: Gaussian scale mixtures with heavy tails."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core import special as _special
from jaxem.core.checks import check_array
from jaxem.core.foreign import named, named_fields
from jaxem.core.numerics import einsum, namespace, safe_divide
from jaxem.core.pytree import dataclass, static
from jaxem.core.seen import Rows, by_column
from jaxem.families.family import Derived, DerivedFamily
from jaxem.families.gaussian import Gaussian
from jaxem.families.gaussian_kernel import GaussianAt, GaussianParams, GaussianScale, GaussianStats

# Where estimated degrees of freedom may lie, and where they start. Below the lower end one row can carry a spike
# inside a broad component; at the upper end a component is a Gaussian for all that its data can tell.
LOWEST, HIGHEST, FIRST = 0.5, 1000.0, 10.0


@dataclass
class StudentTParams:
    """K Student-t components.

    Attributes:
      mean: (K, D) location; the mean where degrees_of_freedom > 1.
      scale: a factor of the scale matrices, in the shapes and units of `GaussianParams.scale`.
      degrees_of_freedom: (K,).
      covariance_type: "full", "tied", "diag" or "spherical".
    """

    mean: Array
    scale: Array
    degrees_of_freedom: Array
    covariance_type: str = static(default="full")

    @property
    def scale_matrix(self) -> Array:
        """(K, D, D) Sigma; the covariance is df / (df - 2) times it where df > 2."""
        return _normal_params(self).covariance


@dataclass
class StudentTStats:
    """Expected statistics of the rows and of their precisions u, given the params of the E-step.

    Attributes:
      count: (K,) sum of resp.
      sum_bend: (K,) sum of resp * (E u - 1 - E log u).
      moments: `GaussianStats` of whitened residuals y with weights resp * E u, their count being the sum of these.
    """

    count: Array
    sum_bend: Array
    moments: GaussianStats


@named_fields
@dataclass
class StudentT(DerivedFamily):
    """Multivariate Student-t components: Gaussians whose precision differs from row to row.

        x | u, z = k ~ N(mean_k, Sigma_k / u),    u | z = k ~ Gamma(df_k / 2, rate df_k / 2)

    so far rows have small u = (df + D) / (df + delta), delta the squared Mahalanobis distance, and little weight. With
    u as a second latent variable an M-step is closed but for df: mean = sum(r u x) / sum(r u),
    Sigma = (sum(r u (x - mean)(x - mean)') + nu S0) / (N_k + nu), and df solves
    log(df / 2) - digamma(df / 2) = mean(E u - 1 - E log u) by Newton. This is plain EM on (z, u), all params from one
    E-step, so the objective never falls; df converges slowly where it is large and the data say little about it.

    Estimated degrees of freedom stay within [0.5, 1000], the constrained maximiser of the M-step: at 1000 the component
    is Gaussian for all that its data tell, at 0.5 it wants heavier tails than are allowed. They start at 10.
    The penalty on Sigma is that of `Gaussian`, in ELBO.params, and so are the statistics' accuracy, the treatment of
    constant and dependent columns and of an empty component (which takes Sigma = S0 and keeps its mean and df), and
    the cost.

    Mixtures of Student-t's are identifiable up to order (Holzmann, Munk and Gneiting 2006). Outliers hardly move a
    component, but a start from a partition may give far ones a component of their own. They do widen S0, which is of
    all rows: where they lie beyond 10^4 standard deviations, lower `pseudo_observations`.

    Attributes:
      covariance: shape of Sigma: "full", "tied", "diag" or "spherical".
      degrees_of_freedom: df > 0, a number or (K,), held fixed; None to estimate one for each component.
      pseudo_observations: nu, strength of the penalty; 0 is plain maximum likelihood, unbounded. From 1 on they count
        as information and no component is called degenerate.
      scale: set by `bind`.

    Examples:
      >>> import jax, jaxem
      >>> from jaxem.families import StudentT
      >>> x = jax.random.normal(jax.random.key(0), (200, 2)).at[0].set(1000.0)
      >>> fit = jaxem.fit(jaxem.Mixture(StudentT(degrees_of_freedom=4.0), 1), x, key=jax.random.key(1))
      >>> bool((abs(x.mean(0)) > 4).all()), bool((abs(fit.params.components.mean) < 0.3).all())
      (True, True)

    References:
      Peel and McLachlan (2000), Robust mixture modelling using the t distribution, Statistics and Computing
      10; Liu and Rubin (1995), ML estimation of the t distribution using EM and its extensions.
    """

    covariance: str = static(default="full")
    degrees_of_freedom: float | Array | None = None
    pseudo_observations: float | Array = 1e-6
    scale: GaussianScale | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"StudentT({self.covariance!r})"

    @property
    def _normal(self) -> Gaussian:
        """The Gaussian family of the same shape and penalty."""
        return Gaussian(self.covariance, self.pseudo_observations, scale=self.scale)

    def check(self, x: Any, params: StudentTParams | None = None) -> None:
        """Checks what `Gaussian` checks, and the degrees of freedom."""
        self._normal.check(x, None if params is None else _normal_params(params))
        df = self.degrees_of_freedom
        if params is None and df is not None:
            check_array("degrees_of_freedom", df, ((), (None,)), positive=True)

    @property
    def finds_span(self) -> bool:
        """As `Gaussian`."""
        return self._normal.finds_span

    def bind(self, x: Array, weights: Array) -> "StudentT":
        """Takes location and variances from the data, as `Gaussian`."""
        return dataclasses.replace(self, scale=self._normal.bind(x, weights).scale)

    def start(self, num_components: int) -> StudentTParams:
        """K copies with the data's mean and variances."""
        like = self._normal.start(num_components)
        df = jnp.asarray(FIRST if self.degrees_of_freedom is None else self.degrees_of_freedom, like.mean.dtype)
        if df.ndim == 1 and df.shape[0] != num_components:
            raise ValueError(f"degrees_of_freedom: expected a number or ({num_components},); found shape {df.shape}")
        df = jnp.broadcast_to(df, (num_components,))
        return StudentTParams(like.mean, like.scale, df, self.covariance)

    def _start_at(self, num_components: int) -> "StudentTAt":
        """The family at `start(K)`."""
        return StudentTAt(self, self.start(num_components), self._normal._start_at(num_components))

    def at(self, params: StudentTParams) -> "StudentTAt":
        """With the Gaussian of the same location and scale matrices."""
        return StudentTAt(self, params, self._normal.at(_normal_params(params)))

    def features(self, x: Array) -> Array:
        """Standardised columns, as `Gaussian`."""
        return self._normal.features(x)

    def notes(self, params: StudentTParams | None = None, count: Array | None = None) -> list[str]:
        """Names constant and dependent columns; of params, why components are spikes, as `Gaussian`."""
        return self._normal.notes(None if params is None else _normal_params(params), count)

    def canonical(self, params: StudentTParams, index: Array | None = None) -> StudentTParams:
        """Params in which dependent columns follow the others, as `Gaussian`."""
        like, df = self._normal.canonical(_normal_params(params), index), params.degrees_of_freedom
        return StudentTParams(like.mean, like.scale, df if index is None else df[index], self.covariance)

    def coincident(self, params: StudentTParams) -> Array:
        """(K, K) pairs that agree to 1e-4 of their standard deviations, and in log df."""
        xp = namespace(params)
        log_df = xp.log(params.degrees_of_freedom)
        return self._normal.coincident(_normal_params(params)) & (xp.abs(log_df[:, None] - log_df[None]) < 1e-4)

    def constraints(self) -> StudentTParams:
        """Real means, factors, and degrees of freedom: positive, or fixed."""
        like = self._normal.constraints()
        df = constraints.Positive() if self.degrees_of_freedom is None else constraints.Fixed()
        return StudentTParams(like.mean, like.scale, df, self.covariance)  # type: ignore[arg-type]

    def num_parameters(self, params: StudentTParams, num_components: int) -> int:
        """Those of `Gaussian`, and K degrees of freedom where they are estimated."""
        free = num_components if self.degrees_of_freedom is None else 0
        return free + self._normal.num_parameters(_normal_params(params), num_components)

    def sample(self, key: Array, params: StudentTParams, component: Array) -> Array:
        """(N, D) one draw for each entry of component."""
        normal_key, gamma_key = jax.random.split(key)
        centred = dataclasses.replace(_normal_params(params), mean=jnp.zeros_like(params.mean))
        half = 0.5 * params.degrees_of_freedom[component]
        u = jax.random.gamma(gamma_key, half, dtype=half.dtype) / half
        return params.mean[component] + self._normal.sample(normal_key, centred, component) / jnp.sqrt(u)[:, None]

    def describe(self, params: StudentTParams, rows: Rows) -> dict[str, np.ndarray]:
        """Locations, scales (roots of the diagonal of Sigma) and degrees of freedom; see `Family.describe`."""
        labels, scale = rows.labels(params.mean.shape[1]), _normal_params(params).deviations
        found = by_column("mean", params.mean, labels) | by_column("scale", scale, labels)
        return found | by_column("degrees_of_freedom", params.degrees_of_freedom, labels)

    @named
    def make_params(self, *, mean: Any, scale_matrix: Any, degrees_of_freedom: Any) -> StudentTParams:  # type: ignore[override]
        """Params from means (K, D), scale matrices in their natural shape, and degrees of freedom, () or (K,)."""
        like = self._normal.make_params(mean=mean, covariance=scale_matrix)
        df = jnp.broadcast_to(jnp.asarray(degrees_of_freedom).astype(like.mean.dtype), like.mean.shape[:1])
        return StudentTParams(like.mean, like.scale, df, self.covariance)


@dataclass
class StudentTAt(Derived):
    """Student-t components at their params.

    Attributes:
      family: the family.
      params: its params.
      normal: the Gaussian family at the same location and scale matrices.
    """

    normal: GaussianAt

    def explain(self, x: Array) -> tuple[Array, Callable[[Array], StudentTStats]]:
        """log_prob, and the function from resp to statistics; both are of the same whitened residuals."""
        df, dim = self.params.degrees_of_freedom, self._rank
        y = self.normal.residuals(x)
        distance = jnp.sum(y * y, 1)  # (K, n)
        # u - 1, without the loss of digits of 1 - u for large df.
        d = (jnp.reshape(dim, (-1, 1)) - distance) / (df[:, None] + distance)

        def collect(resp: Array) -> StudentTStats:
            count = jnp.sum(resp, 0)
            weight = resp.T * (1 + d)
            # E log u = log E u - (log - digamma)((df + D) / 2).
            bent = einsum("kn,kn->k", resp.T, _special.bend(d)) + count * _special.log_minus_digamma((df + dim) / 2)
            return StudentTStats(count, bent, self.normal.moments(jnp.sum(weight, 1), weight, y))

        tail = 0.5 * (df + dim)[:, None] * jnp.log1p(distance / df[:, None])
        return (self._log_norm()[:, None] - tail).T, collect

    def _log_norm(self) -> Array:
        """(K,) log-density at the mean; the log-gammas in a form whose large terms have cancelled."""
        half, dim = 0.5 * self.params.degrees_of_freedom, self._rank
        upper = half + 0.5 * dim
        ratio = upper * jnp.log1p(0.5 * dim / half) - _special.log_peak(upper) + _special.log_peak(half)
        constant = 0.5 * dim * (1 + jnp.log(2 * jnp.pi)).astype(half.dtype)
        return ratio - constant - self.normal.factor.log_det(self.normal.num_columns)

    @property
    def _rank(self) -> Array:
        """Number of columns that are no combinations of others, (K,) or ()."""
        return jnp.asarray(self.normal.factor.rank(self.normal.num_columns), self.params.mean.dtype)

    def m_step(self, stats: StudentTStats) -> StudentTParams:
        """Means and scale matrices weighted by u, and the degrees of freedom within their bounds."""
        normal, pooled = self.normal, self.normal.pool(stats.moments, self.normal.pseudo_statistics())
        # Means weigh rows by u, and covariances count them: sum(r u y y') over sum(r).
        dof = normal.factor.pool(stats.count) + normal.scale.penalty.strength
        like = normal.solve(dataclasses.replace(pooled, dof=dof))
        return StudentTParams(like.mean, like.scale, self._degrees_of_freedom(stats), self.family.covariance)

    def _degrees_of_freedom(self, stats: StudentTStats) -> Array:
        old = self.params.degrees_of_freedom
        if self.family.degrees_of_freedom is not None:
            return old
        spread = jnp.where(stats.count > 0, safe_divide(stats.sum_bend, stats.count), 1)
        # The M-step's objective is concave in df: clipping is its constrained maximiser.
        df = jnp.clip(2 * _special.solve_shape(spread), LOWEST, HIGHEST)
        return jnp.where(stats.count > 0, df, old)

    def rebase(self, stats: StudentTStats, new: Any) -> StudentTStats:
        """The same expectations of u, with residuals whitened by `new`."""
        return StudentTStats(stats.count, stats.sum_bend, self.normal.rebase(stats.moments, new.normal))

    def elbo_params(self) -> Array:
        """The penalty on Sigma, nats; none on the degrees of freedom."""
        return self.normal.elbo_params()

    def influence(self, count: Array) -> Array:
        """(K,) the penalty's share of Sigma, as for `Gaussian`."""
        return self.normal.influence(count)


def _normal_params(params: StudentTParams) -> GaussianParams:
    return GaussianParams(params.mean, params.scale, params.covariance_type)
