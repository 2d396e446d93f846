"""What is known of a chain's first state and of each row of its transitions: the laws of proportions, K + 1 times."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import constraints
from jaxem.core.checks import check_strength
from jaxem.core.numerics import safe_log
from jaxem.core.pytree import dataclass
from jaxem.structures.chain import ChainMixing, occupancy
from jaxem.structures.mixing import Dirichlet, Mixing, Proportions
from jaxem.structures.stationary import climb, stationary


@dataclass
class ChainLaw:
    """A law for the first state and one for each row; its params are a `ChainMixing` of theirs.

    Attributes:
      initial: the law of the first state; an array (K,) where it is given, None where it is the stationary one.
      rows: the law of a row.
      stickiness: what is added to the prior count of staying in a state.
      allowed: (K, K) which transitions there are; None for all.
      length: mean number of steps of a sequence, for expected counts.
    """

    initial: Any
    rows: Mixing
    stickiness: Any = 0.0
    allowed: Any = None
    length: Any = 1.0

    def check(self, num: int) -> None:
        """Checks the stickiness; models check what they call the laws' settings."""
        check_strength("stickiness", self.stickiness)

    def _laws(self, leaf: Array) -> Any:
        """The law of each row, its prior with a leading axis K; `leaf` (K, K) says the shape and the dtype."""
        name = "pseudo_counts" if isinstance(self.rows, Proportions) else "concentration"
        prior, more = (jnp.asarray(value, leaf.dtype) for value in (getattr(self.rows, name), self.stickiness))
        matrix = jnp.full(leaf.shape, prior, leaf.dtype) + more * jnp.eye(leaf.shape[0], dtype=leaf.dtype)
        law: Any = self.rows
        return dataclasses.replace(law, **{name: matrix * self._some(leaf)})

    def _some(self, leaf: Array) -> Array:
        return jnp.ones_like(leaf) if self.allowed is None else jnp.asarray(self.allowed).astype(leaf.dtype)

    def _each(self, ask: Any, rows: Any, *more: Any) -> Any:
        """What is asked of each row's law and its params, counts or key."""
        return jax.vmap(ask)(self._laws(jax.tree.leaves(rows)[0]), rows, *more)

    def update(self, count: ChainMixing) -> ChainMixing:
        """Params that maximise the expected log-probabilities plus `elbo`, given expected counts.

        A row of which nothing is told, neither by counts nor by a prior, is uniform. Where the first state is
        stationary, of the rows alone.
        """
        some = self._some(count.transition)
        rows = count.transition * some
        if isinstance(self.rows, Proportions):
            told = rows + self._laws(rows).pseudo_counts
            rows = jnp.where(jnp.sum(told, 1, keepdims=True) > 0, rows, some)
        rows = self._each(lambda law, row: law.update(row), rows)
        return ChainMixing(self._begin(count.initial, rows), rows)

    def _begin(self, count: Array, rows: Any) -> Any:
        return self.initial.update(count) if isinstance(self.initial, Mixing) else self.first(rows)

    def first(self, rows: Array) -> Array:
        """(K,) the first state's probabilities where the data do not say them: stationary, or given."""
        return stationary(rows) if self.initial is None else jnp.asarray(self.initial, rows.dtype)

    def climb(self, count: ChainMixing, old: ChainMixing) -> ChainMixing:
        """The same; where the first state is stationary, rows at least as good for the two together as the old ones."""
        if self.initial is not None:
            return self.update(count)
        pseudo = self._laws(count.transition).pseudo_counts
        rows = climb(count.initial, count.transition + pseudo, old.transition)
        return ChainMixing(stationary(rows), rows)

    def expected_log(self, params: ChainMixing) -> ChainMixing:
        """(K,) and (K, K) expected log-probabilities, nats."""
        rows = self._each(lambda law, row: law.expected_log(row), params.transition)
        if isinstance(self.initial, Mixing):
            return ChainMixing(self.initial.expected_log(params.initial), rows)
        return ChainMixing(safe_log(self.first(params.transition)), rows)

    def elbo(self, params: ChainMixing) -> Array:
        """The laws' parts of ELBO.params, nats."""
        rows = jnp.sum(self._each(lambda law, row: law.elbo(row), params.transition))
        return rows + self.initial.elbo(params.initial) if isinstance(self.initial, Mixing) else rows

    def mean(self, params: ChainMixing) -> ChainMixing:
        """Expected probabilities (K,) and (K, K)."""
        rows = self._each(lambda law, row: law.mean(row)[0], params.transition)
        if isinstance(self.initial, Mixing):
            return ChainMixing(self.initial.mean(params.initial)[0], rows)
        return ChainMixing(self.first(params.transition), rows)

    def draw(self, key: Array, params: ChainMixing) -> ChainMixing:
        """Probabilities drawn."""
        first_key, key = jax.random.split(key)
        keys = jax.random.split(key, params.transition.concentration.shape[0])
        rows = self._each(lambda law, row, k: law.draw(k, row)[0], params.transition, keys)
        return ChainMixing(jnp.exp(self.initial.draw(first_key, params.initial)[0]), jnp.exp(rows))

    def count(self, params: ChainMixing, total: Any) -> Array:
        """(K,) expected counts of the states, of observations whose weights sum to `total`.

        Of posteriors what the data added to the priors: the steps that arrive in a state, and the first ones.
        """
        if isinstance(self.rows, Dirichlet):
            rows = params.transition.concentration
            added = jnp.sum(rows - self._laws(rows).concentration, 0)
            return added + params.initial.concentration - self.initial.concentration
        mean = self.mean(params)
        return total * occupancy(mean.initial, mean.transition, jnp.asarray(self.length, mean.initial.dtype))

    def counted(self, count: Array) -> Array:
        """(K,) which counts say something where they are small."""
        return self.rows.counted(count)

    def rank(self, params: ChainMixing) -> Array:
        """(K,) by the expected share of steps, largest first."""
        return jnp.argsort(-self.count(params, 1.0), stable=True)

    def order(self, params: ChainMixing, index: Array) -> ChainMixing:
        """Params with the states in another order."""
        move = lambda leaf: leaf[..., index]
        first = jax.tree.map(move, params.initial)
        return ChainMixing(first, jax.tree.map(lambda leaf: leaf[index][:, index], params.transition))

    def constraints(self) -> ChainMixing:
        """Those of the laws; a first state that is given or follows is not moved."""
        first = self.initial.constraints() if isinstance(self.initial, Mixing) else constraints.Fixed()
        return ChainMixing(first, self.rows.constraints())
