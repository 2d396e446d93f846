"""Dirichlet priors on probabilities: categorical items, and binary ones, where it is the beta distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, gammaln

from jaxem.core import constraints
from jaxem.core.checks import check_array
from jaxem.core.pytree import dataclass
from jaxem.families import Bernoulli, BernoulliParams, Categorical, CategoricalParams
from jaxem.families.mean import product_log
from jaxem.priors.prior import Prior


@dataclass
class DirichletPosterior:
    """Independent Dirichlet distributions of the items of K components.

    Attributes:
      concentration: (K, F) with F = sum of L_d: the levels of item 0, then those of item 1, ...; binary items have
        the levels 0 and 1.
    """

    concentration: Array


def _levels(family: Any, num_columns: int) -> tuple[int, ...]:
    """L_d, the number of levels of each item."""
    return (2,) * num_columns if isinstance(family, Bernoulli) else tuple(family.num_levels)


class _Items:
    """Sums over the levels of each item, for arrays (..., F)."""

    def __init__(self, levels: tuple[int, ...]):
        self.item = np.repeat(np.arange(len(levels)), levels)
        self.num = len(levels)

    def _by_item(self, reduce: Any, values: Array) -> Array:
        return reduce(values.T, self.item, self.num, indices_are_sorted=True).T

    def total(self, values: Array) -> Array:
        """(..., D) sums."""
        return self._by_item(jax.ops.segment_sum, values)

    def spread(self, values: Array) -> Array:
        """(..., F) the item's value at each of its levels."""
        return values[..., self.item]

    def log_total(self, logs: Array) -> Array:
        """(..., D) logarithms of sums of exponentials."""
        top = self._by_item(jax.ops.segment_max, logs)
        return top + jnp.log(self.total(jnp.exp(logs - self.spread(top))))


@dataclass
class DirichletPrior(Prior):
    """probs[d][k] ~ Dirichlet(concentration_d); for binary items, prob_kd ~ Beta(concentration_d1, concentration_d0).

    The posterior adds the counts of the levels. The predictive distribution is the mean probability.

    Attributes:
      concentration: > 0; a number for all levels (None for 1, the uniform prior), (F,) one for each, or (D, L) where
        all items have L levels: for binary items the concentrations of 0 and of 1.
    """

    concentration: Any = None  # float | Array | None; an array once bound

    @property
    def families(self) -> tuple[type, ...]:
        """Bernoulli and Categorical."""
        return (Bernoulli, Categorical)

    def validate(self, family: Any, x: Any) -> None:
        """Checks that concentrations are positive, one number or one for each level of each item."""
        if self.concentration is not None:
            levels = _levels(family, x.shape[1])
            table = ((len(levels), levels[0]),) if len(set(levels)) == 1 else ()
            check_array("prior.concentration", self.concentration, ((), (sum(levels),), *table), positive=True)

    def bind(self, family: Any, x: Array, weights: Array) -> "DirichletPrior":
        """Fills in the concentrations, (F,)."""
        num = sum(_levels(family, x.shape[1]))
        given = jnp.asarray(1.0 if self.concentration is None else self.concentration, x.dtype)
        return DirichletPrior(jnp.broadcast_to(given.reshape(-1), (num,)))

    def _items(self, family: Any) -> _Items:
        return _Items(_levels(family, self.concentration.shape[0] // 2))

    def posterior(self, family: Any, num_components: int) -> DirichletPosterior:
        """K copies of the prior."""
        return DirichletPosterior(jnp.repeat(self.concentration[None], num_components, 0))

    def update(self, family: Any, plug: Any, stats: Any) -> DirichletPosterior:
        """Counts of the levels added to the concentrations."""
        counts = stats.total
        if isinstance(family, Bernoulli):
            zeros = jnp.maximum(stats.count[:, None] - stats.total, 0)
            counts = jnp.stack([zeros, stats.total], 2).reshape(counts.shape[0], -1)
        return DirichletPosterior(self.concentration[None] + counts)

    def _expected_log(self, items: _Items, concentration: Array) -> Array:
        return digamma(concentration) - items.spread(digamma(items.total(concentration)))

    def _params(self, family: Any, probs: Array) -> Any:
        return (
            BernoulliParams(probs[:, 1::2])
            if isinstance(family, Bernoulli)
            else CategoricalParams(family._split(probs))
        )

    def plug_in(self, family: Any, posterior: DirichletPosterior) -> tuple[Any, Array]:
        """Normalised exp(E log prob), and the logarithms of what normalises it."""
        items = self._items(family)
        logs = self._expected_log(items, posterior.concentration)
        totals = items.log_total(logs)
        return self._params(family, jnp.exp(logs - items.spread(totals))), jnp.sum(totals, 1)

    def kl(self, family: Any, posterior: DirichletPosterior) -> Array:
        """That of K D pairs of Dirichlet distributions."""
        items, a, prior = self._items(family), posterior.concentration, self.concentration[None]
        log_normaliser = lambda c: jnp.sum(gammaln(c)) - jnp.sum(gammaln(items.total(c)))
        gap = jnp.sum((a - prior) * self._expected_log(items, a))
        return gap - log_normaliser(a) + a.shape[0] * log_normaliser(prior)

    def log_predictive(self, family: Any, posterior: DirichletPosterior, x: Array) -> Array:
        """Each item's mean probability of its level."""
        items, a = self._items(family), posterior.concentration
        x = jnp.stack([1 - x, x], 2).reshape(x.shape[0], -1) if isinstance(family, Bernoulli) else family._transform(x)
        return product_log(x, jnp.log(a) - items.spread(jnp.log(items.total(a))))

    def draw(self, key: Array, family: Any, posterior: DirichletPosterior) -> Any:
        """Probabilities."""
        items, a = self._items(family), posterior.concentration
        logs = jax.random.loggamma(key, a, dtype=a.dtype)
        return self._params(family, jnp.exp(logs - items.spread(items.log_total(logs))))

    def log_prob(self, family: Any, posterior: DirichletPosterior, params: Any) -> Array:
        """(K,) log density of the probabilities; one that has underflowed counts as the smallest normal number."""
        items, a = self._items(family), posterior.concentration
        if isinstance(family, Bernoulli):
            probs = jnp.stack([1 - params.prob, params.prob], 2).reshape(a.shape)
            # 1 - prob is known to half the spacing of floats below 1.
            floor = jnp.asarray([0.25 * jnp.finfo(a.dtype).eps, jnp.finfo(a.dtype).tiny], a.dtype)
            logs = jnp.log(jnp.maximum(probs, jnp.tile(floor, a.shape[1] // 2)[None]))
        else:
            logs = jnp.log(jnp.maximum(jnp.concatenate(params.probs, 1), jnp.finfo(a.dtype).tiny))
        return jnp.sum((a - 1) * logs - gammaln(a), 1) + jnp.sum(gammaln(items.total(a)), 1)

    def hyperparameters(self, family: Any) -> dict[str, Any]:
        """The concentrations."""
        return {"concentration": constraints.Positive()}

    def constraints(self, family: Any) -> DirichletPosterior:
        """Positive numbers."""
        return DirichletPosterior(constraints.Positive())  # type: ignore[arg-type]
