"""Gamma components for positive data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core import special as _special
from jaxem.core.checks import check_array, check_matrix, check_strength, require
from jaxem.core.moments import moments
from jaxem.core.numerics import einsum, is_concrete, namespace, safe_divide
from jaxem.core.pytree import dataclass
from jaxem.core.tree import against_each
from jaxem.families._mean_prior import MeanPrior, PlacedFamily
from jaxem.families.family import Derived, DerivedFamily


@dataclass
class GammaParams:
    """K components of D independent columns.

    Attributes:
      shape: (K, D), 1 / the squared coefficient of variation; without units.
      rate: (K, D), in units of 1 / x.
    """

    shape: Array
    rate: Array

    @property
    def mean(self) -> Array:
        """(K, D) shape / rate."""
        return self.shape / self.rate


@dataclass
class GammaStats:
    """Responsibility-weighted statistics of d = x / mean - 1, the mean being that of the params of the E-step.

    Attributes:
      count: (K,) sum of resp.
      sum_d: (K, D) sum of resp * d.
      sum_bend: (K, D) sum of resp * (d - log(1 + d)).
    """

    count: Array
    sum_d: Array
    sum_bend: Array


@dataclass
class GammaScale:
    """What a fit takes from its data, all (D,).

    Attributes:
      mean: weighted means.
      spread: log of the mean - mean of the logs, of the pseudo-observations.
      log_mean: weighted means of log x.
      log_std: weighted standard deviations of log x, 1 for a constant column.
      constant: columns without variation.
      strength: a, a scalar.
    """

    mean: Array
    spread: Array
    log_mean: Array
    log_std: Array
    constant: Array
    strength: Array


@dataclass
class Gamma(DerivedFamily, PlacedFamily):
    """Gamma components, D independent columns each: x_nd | z_n = k ~ Gamma(shape_kd, rate_kd), x > 0.

        p(x) = rate^shape x^(shape - 1) exp(-rate x) / Gamma(shape)

    The M-step sets mean = weighted mean and solves log(shape) - digamma(shape) = log(mean x) - mean(log x) by Newton.
    The likelihood has no upper end (a component on equal values has an infinite shape), so the objective has a prior,
    a pseudo-observations for each component and column, with the component's own mean and the data's spread:

        G = -a sum_kd KL(Gamma(shape0_d, mean_kd) || Gamma(shape_kd, mean_kd)),    shape0 as in the data

    It is in ELBO.params, never moves a mean and does not depend on the units of the data. With `pseudo_mean` the
    pseudo-observations have that mean m0 instead, the conjugate prior: a log p(m0, shape0 | theta) in expectation,
    up to a constant, which pulls the means too. a = 0 is exactly maximum likelihood. A column whose values are all
    equal has its shape held at 1 and adds a constant.

    A mixture of gammas is identifiable up to the order of its components (Teicher 1963). An empty component keeps its
    mean and takes shape0. E-steps cost O(N K D).

    Attributes:
      pseudo_observations: a >= 0. From 1 on they count as information and no component is called degenerate.
      pseudo_shape: shape0, a number or (D,); None for the data's own.
      pseudo_mean: m0, (D,) or (K, D), in the units of x; None for each component's own mean. With one for each
        component, starts give rows to the nearest and components keep the order of their priors.
      scale: set by `bind`.

    Examples:
      >>> import jax, jaxem
      >>> from jaxem.families import Gamma
      >>> slow, fast = jax.random.split(jax.random.key(0))
      >>> x = jnp.concatenate([jax.random.gamma(slow, 9.0, (300, 1)), jax.random.gamma(fast, 9.0, (100, 1)) / 9])
      >>> fit = jaxem.fit(jaxem.Mixture(Gamma(), 2), x, key=jax.random.key(1), num_restarts=4)
      >>> fit.params.components.mean[:, 0].round(0).tolist()
      [9.0, 1.0]

    References:
      Minka (2002), Estimating a Gamma distribution; Teicher (1963), Identifiability of finite mixtures, Annals of
      Mathematical Statistics 34.
    """

    pseudo_observations: float | Array = 1e-6
    pseudo_shape: float | Array | None = None
    pseudo_mean: Array | None = None
    scale: GammaScale | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return "Gamma()"

    def check(self, x: Any, params: GammaParams | None = None) -> None:
        """Checks that data are one (N, D) array of positive numbers, as wide as params; and the prior."""
        check_matrix(x, None if params is None else params.shape.shape[-1])
        if is_concrete(x):
            require(x, lambda v, xp: v > 0, "positive numbers for Gamma")
        if params is not None:
            return
        check_strength("pseudo_observations", self.pseudo_observations)
        dim = x.shape[1]
        if self.pseudo_shape is not None:
            check_array("pseudo_shape", self.pseudo_shape, ((), (dim,)), positive=True)
        if self.pseudo_mean is not None:
            check_array("pseudo_mean", self.pseudo_mean, ((dim,), (None, dim)), positive=True)

    def bind(self, x: Array, weights: Array) -> "Gamma":
        """Takes means, spreads and the location of the logs from the data."""
        seen = moments(x, weights)
        mean, constant = seen.mean, seen.constant
        d = jnp.where((weights > 0)[:, None], (x - mean[None]) / mean[None], 0)
        unit = _special.log_minus_digamma(jnp.ones_like(mean))
        bent = moments(_special.bend(d), weights).mean
        spread = jnp.where(constant, unit, bent)
        log_std = jnp.where(constant, 1, moments(jnp.log1p(d), weights).std)
        if self.pseudo_shape is not None:
            given = _special.log_minus_digamma(jnp.asarray(self.pseudo_shape, x.dtype))
            spread = jnp.where(constant, unit, jnp.broadcast_to(given, mean.shape))
        strength = jnp.asarray(self.pseudo_observations, x.dtype)
        scale = GammaScale(mean, spread, jnp.log(mean) - bent, log_std, constant, strength)
        return dataclasses.replace(self, scale=scale)

    def _prior(self, mean: Array) -> tuple[Array, Array, Array]:
        """(a, sum of d, sum of bend) of the pseudo-observations about means (K, D)."""
        zero = jnp.zeros_like(mean)
        if self.scale is None:  # not bound to data: plain maximum likelihood
            return jnp.zeros((), mean.dtype), zero, zero
        a, d = self.scale.strength, zero
        if self.pseudo_mean is not None:
            d = (MeanPrior(jnp.asarray(self.pseudo_mean, mean.dtype), a).place - mean) / mean
        return a, a * d, a * (_special.bend(d) + self.scale.spread[None])

    def start(self, num_components: int) -> GammaParams:
        """K copies of the gamma with the data's mean and the pseudo-observations' shape."""
        if self.scale is None:
            raise ValueError("family: not bound to data; call bind(data, weights) first")
        self.check_places(num_components)
        shape = jnp.broadcast_to(
            _special.solve_shape(self.scale.spread)[None], (num_components, self.scale.mean.shape[0])
        )
        return GammaParams(shape, shape / self.scale.mean[None])

    def features(self, x: Array) -> Array:
        """Columns of log x, standardised by the data's; plain logs when not bound."""
        if self.scale is None:
            return jnp.log(x)
        return (jnp.log(x) - self.scale.log_mean[None]) / self.scale.log_std[None]

    def at(self, params: GammaParams) -> "GammaAt":
        """With the means of the components."""
        return GammaAt(self, params, params.mean)

    def notes(self, params: GammaParams | None = None, count: Array | None = None) -> list[str]:
        """Names the columns without variation."""
        if params is not None or self.scale is None or not np.any(self.scale.constant):
            return []
        columns = np.flatnonzero(np.asarray(self.scale.constant)).tolist()
        return [f"columns {columns} are constant: their shape is held at 1"]

    def coincident(self, params: GammaParams) -> Array:
        """(K, K) pairs whose means agree to 1e-4 of a standard deviation, and shapes to 1e-4 of themselves."""
        xp, mean = namespace(params), params.mean
        width = xp.max(xp.sqrt(params.shape), 0)[None]
        parts = xp.concatenate([xp.log(mean) * width, xp.log(params.shape)], 1)
        return against_each(lambda part: xp.max(xp.abs(parts - part[None]), -1) < 1e-4, parts)

    def constraints(self) -> GammaParams:
        """Positive shapes and rates."""
        return GammaParams(constraints.Positive(), constraints.Positive())  # type: ignore[arg-type]

    def num_parameters(self, params: GammaParams, num_components: int) -> int:
        """2 K D."""
        return 2 * num_components * params.shape.shape[1]

    def sample(self, key: Array, params: GammaParams, component: Array) -> Array:
        """(N, D) one draw for each entry of component."""
        return jax.random.gamma(key, params.shape[component]) / params.rate[component]

    def distribution(self, params: GammaParams) -> Any:
        """A batch of K `distrax.Independent` gammas."""
        import distrax

        return distrax.Independent(distrax.Gamma(params.shape, params.rate), 1)

    def make_params(self, *, shape: Any, rate: Any) -> GammaParams:  # type: ignore[override]
        """Params from positive shapes (K, D) and rates (K, D)."""
        shape = jnp.asarray(shape, jnp.result_type(float) if not hasattr(shape, "dtype") else None)
        rate = jnp.asarray(rate).astype(shape.dtype)
        if shape.ndim != 2 or shape.shape != rate.shape:
            raise ValueError(f"shape, rate: expected (K, D) each; found {shape.shape} and {rate.shape}")
        return GammaParams(shape, rate)


@dataclass
class GammaAt(Derived):
    """Gamma components at their params.

    Attributes:
      family: the family.
      params: its params.
      mean: (K, D) the components' means.
    """

    mean: Array

    def explain(self, x: Array) -> tuple[Array, Callable[[Array], GammaStats]]:
        """log_prob, and the function from resp to statistics; both are of x / mean - 1."""
        mean, shape = self.mean, self.params.shape
        d = (x.T[None] - mean[:, :, None]) / mean[:, :, None]  # (K, D, n)
        bent = _special.bend(d)
        # log p = -log x + [shape log(shape) - shape - log Gamma(shape)] - shape (d - log(1 + d)): no term is large.
        peak = jnp.sum(_special.log_peak(shape), 1)
        own = jnp.where(jnp.min(x, 1) > 0, jnp.sum(jnp.log(x), 1), jnp.inf)
        log_prob = peak[:, None] - einsum("kd,kdn->kn", shape, bent) - own[None]
        log_prob = jnp.where(own[None] < jnp.inf, log_prob, -jnp.inf)  # beyond the support

        def collect(resp: Array) -> GammaStats:
            r = resp.T
            return GammaStats(jnp.sum(resp, 0), einsum("kn,kdn->kd", r, d), einsum("kn,kdn->kd", r, bent))

        return log_prob.T, collect

    def m_step(self, stats: GammaStats) -> GammaParams:
        """Means of data and pseudo-observations, then the shape of their pooled spread."""
        a, prior_d, prior_bend = self.family._prior(self.mean)
        total = stats.count[:, None] + a
        d = safe_divide(stats.sum_d + prior_d, total)
        spread = safe_divide(stats.sum_bend + prior_bend, total) - _special.bend(d)
        # Below eps^2 a spread is rounding; and nothing at all to go by leaves the shape as it is.
        spread = jnp.maximum(spread, jnp.finfo(d.dtype).eps ** 2)
        shape = jnp.where(total > 0, _special.solve_shape(spread), self.params.shape)
        if self.family.scale is not None:
            shape = jnp.where(self.family.scale.constant[None], 1, shape)
        return GammaParams(shape, shape / (self.mean * (1 + d)))

    def rebase(self, stats: GammaStats, new: Any) -> GammaStats:
        """Statistics about these means, as if about those of `new`: 1 + d' = (1 + d) mean / new mean."""
        change = (self.mean - new.mean) / new.mean
        count = stats.count[:, None]
        bent = stats.sum_bend + change * stats.sum_d + count * _special.bend(change)
        return GammaStats(stats.count, stats.sum_d + change * (stats.sum_d + count), bent)

    def elbo_params(self) -> Array:
        """G of the class docstring, nats; with a `pseudo_mean` the conjugate log prior up to its constant."""
        scale, shape = self.family.scale, self.params.shape
        if scale is None:
            return jnp.zeros((), shape.dtype)
        a, _, prior_bend = self.family._prior(self.mean)
        spread = scale.spread
        shape0 = _special.solve_shape(spread)
        best = _special.log_peak(shape0) - shape0 * spread
        gain = a * (_special.log_peak(shape) - best[None]) - shape * prior_bend
        return jnp.sum(gain)

    def influence(self, count: Array) -> Array:
        """(K,) the pseudo-observations' share of log(mean x) - mean(log x), in the column where it is largest."""
        scale = self.family.scale
        if scale is None:
            return jnp.zeros_like(count)
        a, _, prior_bend = self.family._prior(self.mean)
        pooled = (count + a)[:, None] * _special.log_minus_digamma(self.params.shape)
        share = jnp.max(jnp.where(scale.constant[None], 0, prior_bend / pooled), 1)
        return jnp.where((count > a) & (a < 1), share, 0)
