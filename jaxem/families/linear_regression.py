"""Linear regressions of a response on covariates: mixtures of regressions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core.arguments import check_flag
from jaxem.core.checks import check_strength
from jaxem.core.moments import moments
from jaxem.core.numerics import einsum, is_concrete, namespace, safe_divide
from jaxem.core.pytree import dataclass, static
from jaxem.core.seen import Rows, by_column
from jaxem.core.tree import PyTree
from jaxem.core.whole import in_batches
from jaxem.families.dependence import find_span
from jaxem.families.family import Derived, DerivedFamily
from jaxem.families.reasons import DEGENERATE, FEWEST_OBSERVATIONS, least_strength, name_columns

INIT_STEPS = 10  # of K regressions with hard assignment, the counterpart of a start's Lloyd steps


@dataclass
class LinearRegressionParams:
    """K regressions, y = level + (x - centre)' coef + std * noise.

    Attributes:
      coef: (K, P) slopes.
      level: (K,) the response at x = centre, which keeps its digits where x is far from 0.
      std: (K,) standard deviations of the noise.
      centre: (P,) shared by all; carried along.
    """

    coef: Array
    level: Array
    std: Array
    centre: Array

    @property
    def intercept(self) -> Array:
        """(K,) the response at x = 0."""
        return self.level - einsum("kp,p->k", self.coef, self.centre)

    @property
    def variance(self) -> Array:
        """(K,) variances of the noise."""
        return self.std**2


@dataclass
class LinearRegressionStats:
    """Statistics of residuals e = (y - mean_k(x)) / std_k at the params of the E-step, and of design rows z.

    Attributes:
      count: (K,) sum of resp.
      sum_zz: (K, F, F) sum of resp * z z'.
      sum_ze: (K, F) sum of resp * z e.
      sum_ee: (K,) sum of resp * e^2.
    """

    count: Array
    sum_zz: Array
    sum_ze: Array
    sum_ee: Array


@dataclass
class RegressionScale:
    """What a fit takes from its data.

    Attributes:
      centre: (P,) weighted means of the covariates; 0 without intercept.
      width: (P,) their root mean squares about the centre, 1 for a constant column.
      constant: (P,) columns that are constant, and tell nothing beside an intercept.
      dependent: (P,) columns that are linear combinations of earlier ones.
      location: weighted mean of y.
      spread: standard deviation of y, 1 where y is constant.
      flat: whether y is constant.
      strength: a.
      gauge: the strength that collapse is judged by: at least 1e-6, times the mean weight where that is above 1.
      total_weight: sum of weights.
    """

    centre: Array
    width: Array
    constant: Array
    dependent: Array
    location: Array
    spread: Array
    flat: Array
    strength: Array
    gauge: Array
    total_weight: Array

    @property
    def used(self) -> Array:
        """(P,) bool, covariates with a coefficient."""
        return ~(self.constant | self.dependent)


def _split(data: Any) -> tuple[Array, Array]:
    return (data["x"], data["y"]) if isinstance(data, dict) else (data[0], data[1])


@dataclass
class LinearRegression(DerivedFamily):
    """Linear regression components for pairs (x, y); a mixture of them is a mixture of regressions.

        y_n | x_n, z_n = k ~ N(intercept_k + x_n' coef_k, variance_k),    the covariates x are given, not modelled

    Data are a tuple (x, y) or a dict {"x": x, "y": y} of arrays (N, P) and (N,). The M-step is weighted least squares
    from statistics of residuals about the current params and of the centred and scaled design z, so offsets of x and
    y cost no digits. The likelihood has no upper end (a line through as many rows as it has coefficients), so the
    objective has a prior: a pseudo-observations for each component at covariates like the data's (uncorrelated), with
    responses about the component's own level whose variance v0 is that of all y:

        G = -a/2 sum_k [log(variance_k / v0) + (v0 + sum_p (width_p coef_kp)^2) / variance_k - 1]

    a ridge and a bound on the variance in one, in ELBO.params; a = 0 is exactly maximum likelihood. A constant
    covariate beside an intercept has coefficient 0, and so has one that is a linear combination of earlier ones: the
    earliest explain what there is, notes name the others, and predictions for new covariates look at the earliest
    alone. A constant response has variance 1. The fit is the same in other units of x and y. An empty component keeps
    its level and takes slopes 0 and variance v0. A component with no more rows than coefficients is a spike and ends
    DEGENERATE; so does an honest one whose noise is below about sqrt(10 a / N_k) of the spread of y: lower a for it.

    Starts fit K lines to random sets of P + 1 rows (one more than slopes) and run 10 steps of K regressions with hard
    assignment: a partition of (x, y) is poor where lines cross. The method "random_resp" is left as it is; "kmeans++"
    and "random_points" assign rows once.

    Identifiable up to the order of components where each has enough distinct covariate values: x must not be covered
    by K of the (P - 1)-dimensional hyperplanes (Hennig 2000); with a single binary covariate, for example, the lines
    of two components can exchange their ends.

    Cost of an E-step: O(N K P^2).

    Attributes:
      fit_intercept: whether lines have an intercept; without one they pass through the origin.
      pseudo_observations: a >= 0. From 1 on they count as information and no component is called degenerate.
      scale: set by `bind`.

    Examples:
      >>> import jax, jaxem
      >>> from jaxem.families import LinearRegression
      >>> x = jnp.linspace(-1.0, 1.0, 100)[:, None]
      >>> noise = 0.1 * jax.random.normal(jax.random.key(0), (100,))
      >>> y = jnp.where(jnp.arange(100) % 3 == 0, 2.0, -2.0) * x[:, 0] + noise
      >>> fit = jaxem.fit(jaxem.Mixture(LinearRegression(), 2), (x, y), key=jax.random.key(1), num_restarts=8)
      >>> fit.params.components.coef[:, 0].round(0).tolist()
      [-2.0, 2.0]

    References:
      DeSarbo and Cron (1988), A maximum likelihood methodology for clusterwise linear regression, Journal of
      Classification 5; Hennig (2000), Identifiability of models for clusterwise linear regression, Journal of
      Classification 17; Spaeth (1979), Clusterwise linear regression, Computing 22 (the hard assignment).
    """

    fit_intercept: bool = static(default=True)
    pseudo_observations: float | Array = 1e-6
    scale: RegressionScale | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return "LinearRegression()" if self.fit_intercept else "LinearRegression(fit_intercept=False)"

    def check(self, x: PyTree, params: LinearRegressionParams | None = None) -> None:
        """Checks that data are (x, y) of shapes (N, P) and (N,), with P as params have it; and the prior."""
        named = isinstance(x, dict) and set(x) == {"x", "y"}
        if not named and not (isinstance(x, tuple) and len(x) == 2):
            raise TypeError(f'data: expected (x, y) or {{"x": x, "y": y}}; found a {type(x).__name__}')
        design, y = _split(x)
        if not hasattr(design, "ndim") or not hasattr(y, "ndim"):
            raise TypeError("data: expected two arrays, x and y; found nested ones")
        if design.ndim != 2 or design.shape[1] == 0:
            raise ValueError(f"data: expected covariates x of shape (N, P), P >= 1; found {design.shape}")
        if y.shape != design.shape[:1]:
            remedy = "; y[:, 0] makes one" if y.ndim == 2 and y.shape[1] == 1 else ""
            raise ValueError(f"data: expected responses y of shape {design.shape[:1]}; found {y.shape}{remedy}")
        if params is None:
            check_flag("fit_intercept", self.fit_intercept)
            check_strength("pseudo_observations", self.pseudo_observations)
        elif design.shape[1] != params.coef.shape[-1]:
            raise ValueError(
                f"data: expected {params.coef.shape[-1]} covariates, as the params have; found {design.shape[1]}"
            )

    @property
    def finds_span(self) -> bool:
        """Of the covariates."""
        return True

    def bind(self, x: PyTree, weights: Array) -> "LinearRegression":
        """Takes centres and spreads of covariates and response from the data."""
        design, y = _split(x)
        table = jnp.concatenate([design, y[:, None]], 1)
        seen = moments(table, weights)
        mean = seen.mean
        if not self.fit_intercept:
            seen = seen.about(mean.at[:-1].set(0))
        about, constant = seen.mean, seen.constant
        std = jnp.where(constant, 1, seen.std)
        dependent = jnp.zeros(design.shape[1:], bool)
        if design.shape[1] > 1 and (design.shape[0] > 1 or in_batches()):
            found = find_span(design, weights, about[:-1], std[:-1], constant[:-1], centred=self.fit_intercept)
            dependent = found.dependent
        strength = jnp.asarray(self.pseudo_observations, y.dtype)
        gauge = jnp.maximum(strength, least_strength(seen.mean_weight))
        scale = RegressionScale(
            *(about[:-1], std[:-1], constant[:-1], dependent),
            *(mean[-1], std[-1], constant[-1], strength, gauge, seen.total),
        )
        return dataclasses.replace(self, scale=scale)

    def _bound(self, params: LinearRegressionParams) -> RegressionScale:
        if self.scale is not None:
            return self.scale
        centre, zero = params.centre, jnp.zeros((), params.level.dtype)  # not bound to data: maximum likelihood
        none = jnp.zeros(centre.shape, bool)
        flat = jnp.asarray(False)
        return RegressionScale(centre, jnp.ones_like(centre), none, none, zero, zero + 1, flat, zero, zero, zero)

    def start(self, num_components: int) -> LinearRegressionParams:
        """K copies of a flat line at the mean of y, or at 0 without intercept."""
        if self.scale is None:
            raise ValueError("family: not bound to data; call bind(data, weights) first")
        wide = lambda value: jnp.broadcast_to(value, (num_components, *value.shape))
        level = self.scale.location if self.fit_intercept else jnp.zeros_like(self.scale.location)
        coef = jnp.zeros_like(self.scale.centre)
        return LinearRegressionParams(wide(coef), wide(level), wide(self.scale.spread), self.scale.centre)

    def features(self, x: PyTree) -> Array:
        """(N, P + 1) standardised covariates and response."""
        design, y = _split(x)
        if self.scale is None:
            return jnp.concatenate([design, y[:, None]], 1)
        z = self._design(self.scale, design)
        return jnp.concatenate([z, ((y - self.scale.location) / self.scale.spread)[:, None]], 1)

    @staticmethod
    def _design(scale: RegressionScale, x: Array) -> Array:
        """(N, P) covariates about their centres, in units of their widths; 0 where they have no coefficient."""
        return jnp.where(scale.used[None], (x - scale.centre[None]) / scale.width[None], 0)

    def init_resp(self, key: Array, x: PyTree, weights: Array, num_components: int, method: str) -> Array | None:
        """(N, K) one-hot rows of the line with the least residual, after hard K regressions from random lines."""
        if method == "random_resp":
            return None
        design, y = _split(x)
        size = min(design.shape[1] + 1, y.shape[0])
        gumbel = jax.random.gumbel(key, (num_components, y.shape[0]), jnp.float32).astype(y.dtype)
        score = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1)), -jnp.inf)[None] + gumbel
        chosen = (score >= jax.lax.top_k(score, size)[0][:, -1:]) & (weights > 0)[None]
        start = self.start(num_components)

        def refit(_: int, resp: Array) -> Array:
            lines = self.m_step(start, self.statistics(start, x, resp))
            label = jnp.argmin(jnp.abs(y[:, None] - self.mean(lines, design)), 1)
            return jax.nn.one_hot(label, num_components, dtype=y.dtype) * weights[:, None]

        steps = INIT_STEPS if method == "kmeans" else 0
        resp = jax.lax.fori_loop(0, steps + 1, refit, chosen.T.astype(y.dtype))
        # Rows of weight 0 belong nowhere, and count nowhere.
        return safe_divide(resp, weights[:, None])

    def mean(self, params: LinearRegressionParams, x: Array) -> Array:
        """(N, K) expected response of each component at covariates x (N, P)."""
        return params.level[None] + einsum("np,kp->nk", x - params.centre[None], params.coef)

    def at(self, params: LinearRegressionParams) -> "LinearRegressionAt":
        """With what was taken from the data, and the lines in the coordinates of the design."""
        return LinearRegressionAt(self, params)

    def _reasons(self, params: LinearRegressionParams, count: Any) -> list[str]:
        spikes = np.asarray(self.influence(params, count)) > DEGENERATE
        if self.scale is None or not spikes.any():
            return []
        num = int(np.sum(self.scale.used)) + int(self.fit_intercept)
        few = spikes & (np.asarray(count) <= num + 1e-3)
        said = []
        for which, why in (
            (few, f"no more observations than the {num} coefficients of a line: fewer components, or more rows,"),
            (spikes & ~few, "a line with hardly any noise: if it is honest, lower pseudo_observations;"),
        ):
            if which.any():
                said.append(f"components {np.flatnonzero(which).tolist()}: {why} or take pseudo_observations=1")
        return said

    def notes(self, params: LinearRegressionParams | None = None, count: Array | None = None) -> list[str]:
        """Names covariates and a response without variation.

        Of params, why components are spikes: as few rows as coefficients, or a line without noise.
        """
        if self.scale is None:
            return []
        if params is not None:
            return self._reasons(params, count)
        constant, dependent = name_columns(self.scale.constant), name_columns(self.scale.dependent)
        said = [f"covariates {constant} are constant: their coefficients are held at 0"] if constant else []
        if dependent:
            said.append(f"covariates {dependent} are linear combinations of earlier ones: their coefficients are 0")
        return said + (["the response is constant: its variance is held at 1"] if np.any(self.scale.flat) else [])

    def coincident(self, params: LinearRegressionParams) -> Array:
        """(K, K) pairs of lines that agree to 1e-4 of the smallest standard deviation over the spread of x."""
        xp = namespace(params)
        width = xp.ones_like(params.centre) if self.scale is None else xp.asarray(self.scale.width)
        lines = xp.concatenate([params.level[:, None], params.coef * width[None]], 1) / xp.min(params.std)
        parts = xp.concatenate([lines, xp.log(params.std)[:, None]], 1)
        return xp.stack([xp.max(xp.abs(parts - part[None]), -1) < 1e-4 for part in parts])

    def constraints(self) -> LinearRegressionParams:
        """Real slopes and levels, positive standard deviations, and a centre that stays."""
        level = constraints.Real() if self.fit_intercept else constraints.Fixed()
        parts: Any = (constraints.Real(), level, constraints.Positive(), constraints.Fixed())
        return LinearRegressionParams(*parts)

    def num_parameters(self, params: LinearRegressionParams, num_components: int) -> int:
        """K (P + 2), or K (P + 1) without intercept; covariates that depend on others do not count."""
        dependent: Any = np.zeros(1) if self.scale is None else self.scale.dependent
        free: Any = params.coef.shape[1] - (int(np.sum(dependent)) if is_concrete(dependent) else jnp.sum(dependent))
        return num_components * (free + 1 + int(self.fit_intercept))

    def canonical(self, params: LinearRegressionParams, index: Array | None = None) -> LinearRegressionParams:
        """Covariates that depend on others have coefficient 0; as they are where none does."""
        coef, level, std = params.coef, params.level, params.std
        if index is not None:
            coef, level, std = coef[index], level[index], std[index]
        if self.scale is not None:
            xp = namespace((params, self.scale))
            dependent = xp.broadcast_to(xp.asarray(self.scale.dependent)[None], coef.shape)
            coef = xp.where(dependent, 0, coef)
        return LinearRegressionParams(coef, level, std, params.centre)

    def sample(self, key: Array, params: LinearRegressionParams, component: Array) -> PyTree:
        """Raises: the covariates have no distribution to draw from."""
        raise TypeError("LinearRegression models y given x and has no rows to draw; mean(params, x) gives E[y | x, z]")

    def describe(self, params: LinearRegressionParams, rows: Rows) -> dict[str, np.ndarray]:
        """Slopes by covariate, intercepts, and standard deviations of the noise; see `Family.describe`."""
        x = next((part for place in ("[0]", "['x']") if (part := rows.part(place)).paths), rows)
        coef = by_column("coef", params.coef, x.labels(params.coef.shape[1]))
        return {**coef, **by_column("intercept", params.intercept, ()), **by_column("std", params.std, ())}

    def make_params(self, *, coef: Any, intercept: Any, variance: Any) -> LinearRegressionParams:  # type: ignore[override]
        """Params from slopes (K, P), intercepts (K,), 0 where there are none, and noise variances (K,)."""
        coef = jnp.asarray(coef, jnp.result_type(float) if not hasattr(coef, "dtype") else None)
        intercept, variance = (jnp.asarray(value).astype(coef.dtype) for value in (intercept, variance))
        if coef.ndim != 2 or not intercept.shape == variance.shape == coef.shape[:1]:
            raise ValueError(
                "coef, intercept, variance: expected (K, P), (K,) and (K,); "
                f"found {coef.shape}, {intercept.shape} and {variance.shape}"
            )
        return LinearRegressionParams(coef, intercept, jnp.sqrt(variance), jnp.zeros(coef.shape[1], coef.dtype))


@dataclass
class LinearRegressionAt(Derived):
    """Regressions at their params."""

    def explain(self, x: PyTree) -> tuple[Array, Callable[[Array], LinearRegressionStats]]:
        """log_prob, and the function from resp to statistics; both are of the same residuals."""
        family, params = self.family, self.params
        design, y = _split(x)
        e = (y[:, None] - family.mean(params, design)) / params.std[None]
        log_prob = -0.5 * e**2 - (jnp.log(params.std) + 0.5 * jnp.log(2 * jnp.pi).astype(y.dtype))[None]

        def collect(resp: Array) -> LinearRegressionStats:
            z = family._design(family._bound(params), design)
            if family.fit_intercept:
                z = jnp.concatenate([jnp.ones_like(z[:, :1]), z], 1)
            return LinearRegressionStats(
                jnp.sum(resp, 0),
                einsum("nkf,ng->kfg", resp[:, :, None] * z[:, None], z),
                einsum("nk,nf->kf", resp * e, z),
                jnp.sum(resp * e**2, 0),
            )

        return log_prob, collect

    @property
    def _scale(self) -> RegressionScale:
        return self.family._bound(self.params)

    def _coordinates(self) -> Array:
        """(K, F) the lines in the coordinates of z, in units of y."""
        scale, params = self._scale, self.params
        slopes = params.coef * scale.width[None]
        if not self.family.fit_intercept:
            return slopes
        level = params.level + einsum("kp,p->k", params.coef, scale.centre - params.centre)
        return jnp.concatenate([level[:, None], slopes], 1)

    def _ridge(self, scale: RegressionScale) -> Array:
        """(F,) weight of the pseudo-observations on each coordinate: a on slopes, 0 on the level."""
        slopes = jnp.broadcast_to(scale.strength, scale.centre.shape)
        return jnp.concatenate([jnp.zeros_like(slopes[:1]), slopes]) if self.family.fit_intercept else slopes

    def m_step(self, stats: LinearRegressionStats) -> LinearRegressionParams:
        """Ridge-penalised weighted least squares, as a change of the lines that the statistics were taken at."""
        scale, params = self._scale, self.params
        ridge, old = self._ridge(scale)[None], self._coordinates() / params.std[:, None]
        gradient = stats.sum_ze - ridge * old
        change, gain = _solve(stats.sum_zz, ridge, gradient)
        a, square = scale.strength, jnp.sum(ridge * old**2, 1)
        raw = stats.sum_ee + square
        left = jnp.maximum(raw - gain, 4 * jnp.finfo(raw.dtype).eps * raw) + a * (scale.spread / params.std) ** 2
        total = stats.count + a
        factor = jnp.sqrt(jnp.where(total > 0, safe_divide(left, total), 1))
        std = jnp.where(scale.flat, jnp.ones_like(factor), params.std * factor)
        new = (old + change) * params.std[:, None]
        slopes = new[:, 1:] if self.family.fit_intercept else new
        level = new[:, 0] if self.family.fit_intercept else params.level
        return LinearRegressionParams(slopes / scale.width[None], level, std, scale.centre)

    def rebase(self, stats: LinearRegressionStats, new: Any) -> LinearRegressionStats:
        """Statistics of residuals about these lines, as if about `new`: e' = (std e + z' (old - new)) / std_new."""
        ratio = self.params.std / new.params.std
        gap = (self._coordinates() - new._coordinates()) / new.params.std[:, None]
        moved = einsum("kfg,kg->kf", stats.sum_zz, gap)
        ze = ratio[:, None] * stats.sum_ze
        ee = ratio**2 * stats.sum_ee + jnp.sum(gap * (2 * ze + moved), 1)
        return LinearRegressionStats(stats.count, stats.sum_zz, ze + moved, ee)

    def _pseudo_square(self) -> Array:
        """(K,) mean square of the pseudo-observations about each line, over the variance of the noise."""
        scale, params = self._scale, self.params
        slopes = params.coef * scale.width[None] / params.std[:, None]
        return (scale.spread / params.std) ** 2 + jnp.sum(slopes**2, 1)

    def elbo_params(self) -> Array:
        """G of the class docstring of the family, nats."""
        scale = self._scale
        ratio = 2 * jnp.log(self.params.std / scale.spread)
        return -0.5 * scale.strength * jnp.sum(ratio + self._pseudo_square() - 1)

    def influence(self, count: Array) -> Array:
        """(K,) the pseudo-observations' share of the residual sum of squares: about 1 for a spike.

        Of at least 1e-6 pseudo-observations, whatever the prior; see `Gaussian.influence`.
        """
        scale = self._scale
        share = scale.gauge * self._pseudo_square() / (count + scale.gauge)
        judged = (count > scale.gauge) & (scale.strength < 1) & (scale.total_weight > FEWEST_OBSERVATIONS)
        return jnp.where(judged & ~scale.flat, share, 0)


def _solve(matrix: Array, ridge: Array, gradient: Array) -> tuple[Array, Array]:
    """(change, gain): nearly (A + R)^-1 g, and exactly by how much that change lowers the sum of squares.

    The diagonal is lifted by a few eps of itself (1 where it is 0), which keeps the factor finite where columns are
    collinear. A lifted step is a shorter step uphill: what it leaves is done by the next, and nothing falls.
    """
    num = matrix.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(num, dtype=bool), matrix.shape)
    diagonal = jnp.sum(jnp.where(eye, matrix, 0), -1) + ridge
    lift = jnp.where(diagonal > 0, 4 * num * jnp.finfo(matrix.dtype).eps * diagonal, 1)
    lifted = matrix + jnp.where(eye, (ridge + lift)[:, :, None], 0)
    factor = jax.lax.linalg.cholesky(lifted, symmetrize_input=False)
    half = jax.lax.linalg.triangular_solve(factor, gradient[:, :, None], left_side=True, lower=True)
    change = jax.lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)[:, :, 0]
    # With (A + R + L) d = g: 2 d'g - d'(A + R) d = d'g + d'L d.
    return change, jnp.sum(change * gradient + lift * change**2, 1)
