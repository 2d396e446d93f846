"""Dirichlet priors on probabilities: categorical items, and binary ones, where it is the beta distribution."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.core.checks import check_array
from jaxem.core.pytree import dataclass
from jaxem.expfam import formulas
from jaxem.families import Bernoulli, BernoulliParams, Categorical, CategoricalParams
from jaxem.families.mean import MeanStats, product_log
from jaxem.priors.prior import PosteriorAt, Prior


@dataclass
class DirichletPosterior:
    """Independent Dirichlet distributions of the items of K components.

    Attributes:
      concentration: (K, F) with F = sum of L_d: the levels of item 0, then those of item 1, ...; binary items have
        the levels 0 and 1.
    """

    concentration: Array


class _Binary:
    """Binary items as items of the levels 0 and 1."""

    def __init__(self, family: Bernoulli, num_columns: int):
        self.levels = (2,) * num_columns

    def counts(self, stats: MeanStats) -> Array:
        """(K, F) how often each level was seen."""
        zeros = jnp.maximum(stats.count[:, None] - stats.total, 0)
        return self.table(zeros, stats.total)

    def table(self, zeros: Array, ones: Array) -> Array:
        """(n, F) of what belongs to 0 and to 1, (n, D) each."""
        return jnp.stack([zeros, ones], 2).reshape(zeros.shape[0], -1)

    def indicators(self, x: Array) -> Array:
        """(N, F) which level each item has."""
        return self.table(1 - x, x)

    def params(self, probs: Array) -> BernoulliParams:
        """The family's params of (K, F) probabilities."""
        return BernoulliParams(probs[:, 1::2])


class _Levels:
    """Categorical items."""

    def __init__(self, family: Categorical, num_columns: int):
        self.family, self.levels = family, tuple(family.num_levels)

    def counts(self, stats: MeanStats) -> Array:
        """(K, F) how often each level was seen."""
        return stats.total

    def indicators(self, x: Array) -> Array:
        """(N, F) which level each item has."""
        return self.family._transform(x)

    def params(self, probs: Array) -> CategoricalParams:
        """The family's params of (K, F) probabilities."""
        return CategoricalParams(self.family._split(probs))


def _items(family: Any, num_columns: int) -> Any:
    return (_Binary if isinstance(family, Bernoulli) else _Levels)(family, num_columns)


@dataclass
class _ItemsAt(PosteriorAt):
    """Posteriors of the probabilities of items."""

    @property
    def _items(self) -> Any:
        return self.prior._items(self.family)

    @property
    def _groups(self) -> formulas.Items:
        return formulas.Items(self._items.levels)

    def kl(self) -> Array:
        """That of K D pairs of Dirichlet distributions."""
        a, prior = self.posterior.concentration, self.prior.concentration[None]
        return jnp.sum(formulas.dirichlet_kl(a, prior, self._groups))

    def expected(self) -> Any:
        """Mean probabilities."""
        a = self.posterior.concentration
        return self._items.params(a / self._groups.spread(self._groups.total(a)))

    def log_predictive(self, x: Array) -> Array:
        """Each item's mean probability of its level."""
        a, groups = self.posterior.concentration, self._groups
        return product_log((self._items.indicators(x), jnp.log(a) - groups.spread(jnp.log(groups.total(a)))))

    def draw(self, key: Array) -> tuple[Any, Array, Array]:
        """Probabilities; the densities are right where they underflow."""
        a, prior, groups = self.posterior.concentration, self.prior.concentration[None], self._groups
        logs = formulas.dirichlet_draw(key, a, groups)
        log_q, log_p = (formulas.dirichlet_log_prob(logs, c, groups) for c in (a, prior))
        return self._items.params(jnp.exp(logs)), log_q, log_p


@dataclass
class DirichletPrior(Prior):
    """probs[d][k] ~ Dirichlet(concentration_d); for binary items, prob_kd ~ Beta(concentration_d1, concentration_d0).

    The posterior adds the counts of the levels. The predictive distribution is the mean probability.

    Attributes:
      concentration: > 0; a number for all levels (None for 1, the uniform prior), (F,) one for each, or (D, L) where
        all items have L levels: for binary items the concentrations of 0 and of 1.
    """

    concentration: Any = None  # float | Array | None; an array once bound

    families = (Bernoulli, Categorical)

    def check(self, family: Any, x: Any) -> None:
        """As `Prior`: concentrations are positive, one number or one for each level of each item."""
        super().check(family, x)
        if self.concentration is not None:
            levels = _items(family, x.shape[1]).levels
            table = ((len(levels), levels[0]),) if len(set(levels)) == 1 else ()
            check_array("prior.concentration", self.concentration, ((), (sum(levels),), *table), positive=True)

    def bind(self, family: Any, x: Array, weights: Array) -> "DirichletPrior":
        """Fills in the concentrations, (F,)."""
        num = sum(_items(family, x.shape[1]).levels)
        given = jnp.asarray(1.0 if self.concentration is None else self.concentration, x.dtype)
        return DirichletPrior(jnp.broadcast_to(given.reshape(-1), (num,)))

    def _items(self, family: Any) -> Any:
        return _items(family, self.concentration.shape[0] // 2)

    def posterior(self, here: Any, stats: MeanStats) -> DirichletPosterior:
        """Counts of the levels added to the concentrations."""
        return DirichletPosterior(self.concentration[None] + self._items(here.family).counts(stats))

    def at(self, family: Any, posterior: DirichletPosterior | None = None) -> _ItemsAt:
        """With normalised exp(E log prob) as plug-in probabilities, and the logarithms of what normalises it."""
        q = DirichletPosterior(self.concentration[None]) if posterior is None else posterior
        items = self._items(family)
        groups = formulas.Items(items.levels)
        logs = formulas.dirichlet_mean_log(q.concentration, groups)
        totals = groups.log_total(logs)
        plug = items.params(jnp.exp(logs - groups.spread(totals)))
        return _ItemsAt(self, q, family.at(plug), jnp.sum(totals, 1))
