"""The protocol of an observation family, vectorised over K components."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.numerics import namespace
from jaxem.core.pytree import dataclass
from jaxem.core.seen import Rows, by_column
from jaxem.core.tree import BLOCK_ROWS, PyTree, against_each, float_dtype, sum_rows


@dataclass
class At:
    """A family at params of K components: what is asked of the two together, with what they share computed once.

    Made by `family.at(params)`; this class asks the family's own methods. Statistics taken `here` are those that
    `here.m_step` expects.

    Attributes:
      family: the family.
      params: its params, plain.
    """

    family: Any
    params: Any

    def explain(self, x: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
        """log_prob (N, K), and the function from resp (N, K) to statistics."""
        return self.family.explain(self.params, x)

    def log_prob(self, x: PyTree) -> Array:
        """(N, K) log p(x_n | theta_k), nats."""
        return self.family.log_prob(self.params, x)

    def statistics(self, x: PyTree, resp: Array) -> PyTree:
        """Statistics weighted by resp (N, K), summed over n."""
        return self.family.statistics(self.params, x, resp)

    def m_step(self, stats: PyTree) -> PyTree:
        """The params that follow from statistics taken here."""
        return self.family.m_step(self.params, stats)

    def rebase(self, stats: PyTree, new: Any) -> PyTree:
        """Statistics taken here, as if taken at `new`."""
        return self.family.rebase(stats, self.params, new.params)

    def elbo_params(self) -> Array:
        """Penalty or log prior, nats."""
        return self.family.elbo_params(self.params)

    def influence(self, count: Array) -> Array:
        """(K,) the regulariser's share of each component's spread; see `Family.influence`."""
        return self.family.influence(self.params, count)


class Family(ABC):
    """How K components explain observations. A frozen `jaxem.dataclass`; any latent structure works with any family.

    Statistics are linear in resp and summed over rows, so E-steps add up over data. A family may take its statistics
    relative to the params they were computed at (residuals); m_step is given those params.
    """

    @abstractmethod
    def log_prob(self, params: PyTree, x: PyTree) -> Array:
        """(N, K) log p(x_n | theta_k), nats."""

    @abstractmethod
    def statistics(self, params: PyTree, x: PyTree, resp: Array) -> PyTree:
        """Statistics weighted by resp (N, K), summed over n."""

    def explain(self, params: PyTree, x: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
        """log_prob (N, K), and the function resp -> statistics; overridden to share work between the two."""
        return self.log_prob(params, x), lambda resp: self.statistics(params, x, resp)

    def at(self, params: PyTree) -> At:
        """The family at these params; a family with quantities derived from them is a `DerivedFamily`."""
        return At(self, params)

    @abstractmethod
    def m_step(self, params: PyTree, stats: PyTree) -> PyTree:
        """Params that maximise the weighted log-likelihood plus elbo_params; a component of count 0 stays finite."""

    @abstractmethod
    def start(self, num_components: int) -> PyTree:
        """K equal components, the reference that the first statistics of a partition are taken at; needs `bind`."""

    def _start_at(self, num_components: int) -> At:
        """The family at `start(K)`; overridden where what is derived from those params is known."""
        return self.at(self.start(num_components))

    @abstractmethod
    def features(self, x: PyTree) -> Array:
        """(N, F) columns on comparable scales, in which a k-means partition makes sense."""

    def init_resp(self, key: Array, x: PyTree, weights: Array, num_components: int, method: str) -> Array | None:
        """(N, K) responsibilities of a start of the family's own; None for a partition of `features` by the method."""
        return None

    @property
    def exchangeable(self) -> bool:
        """Whether all components have the same prior, so that their order means nothing; True by default."""
        return True

    @property
    def finds_span(self) -> bool:
        """Whether `bind` looks for columns that depend on each other."""
        return False

    @property
    def closed_form(self) -> bool:
        """Whether there are statistics and an m_step; where not, `GeneralizedEM` climbs by gradients."""
        return True

    def partition_statistics(self, x: PyTree, weights: Array, resp: Array) -> tuple[At, PyTree]:
        """The family at `start(K)`, and statistics of a start taken there, in blocks of rows; see `from_partition`."""
        start = self._start_at(resp.shape[1])

        def block(rows: tuple[PyTree, Array], w: Array) -> PyTree:
            return start.statistics(rows[0], jnp.where((w > 0)[:, None], rows[1], 0))

        return start, sum_rows(block, (x, resp), weights, BLOCK_ROWS)

    def from_partition(self, x: PyTree, weights: Array, resp: Array) -> PyTree:
        """Params of the K components of a start: the first M-step.

        Args:
          x: rows.
          weights: (N,).
          resp: (N, K) responsibilities times weights.

        Returns:
          Params.
        """
        start, stats = self.partition_statistics(x, weights, resp)
        return start.m_step(stats)

    def rebase(self, stats: PyTree, old: PyTree, new: PyTree) -> PyTree:
        """Statistics taken at params `old` as if taken at `new`; the same where statistics do not depend on params."""
        return stats

    @abstractmethod
    def constraints(self) -> PyTree:
        """A constraint at each leaf of the params."""

    @abstractmethod
    def num_parameters(self, params: PyTree, num_components: int) -> int:
        """Free parameters of that many components together; params give the other sizes."""

    @abstractmethod
    def sample(self, key: Array, params: PyTree, component: Array) -> PyTree:
        """One observation from each entry of component (N,)."""

    def bind(self, x: PyTree, weights: Array) -> "Family":
        """The family with the scales it takes from the data; itself by default."""
        return self

    def arrange(self, x: PyTree) -> PyTree:
        """Rows in the layout that a bound family's log_prob and statistics read fastest; as they are by default.

        Rows stay rows: every leaf keeps the leading axis. Both take either layout.
        """
        return x

    def opened(self, x: Any, name: str) -> Any:
        """What a user holds as the pytree that the family takes, on the host; as it is by default."""
        return x

    def check(self, x: PyTree, params: PyTree | None = None) -> None:
        """Raises for rows that the family cannot have made, or that are not as wide as `params`; on the host.

        Without params also for settings that are wrong or do not suit the data.
        """

    @property
    def row_keys(self) -> tuple[str, ...] | None:
        """Names of the columns that the family takes as a dict; None by default."""
        return None

    def elbo_params(self, params: PyTree) -> Array:
        """Penalty or log prior, nats; 0 by default."""
        return jnp.zeros((), float_dtype(params))

    def influence(self, params: PyTree, count: Array) -> Array:
        """(K,) the regulariser's share of each component's spread, given counts (K,); 0 where none can collapse."""
        return jnp.zeros_like(count)

    def notes(self, params: PyTree | None = None, count: Array | None = None) -> list[str]:
        """Sentences for a person, about what `bind` did with the data; on the host, none by default.

        Of params and counts (K,), why components are spikes, each reason with a remedy.
        """
        return []

    def canonical(self, params: PyTree, index: Array | None = None) -> PyTree:
        """Params as the bound family can use and show them, with the components in the order of index (K,).

        As they are by default, every leaf with a leading axis K; None for the order that they have.
        """
        return params if index is None else jax.tree.map(lambda leaf: leaf[index], params)

    def coincident(self, params: PyTree) -> Array:
        """(K, K) whether two components agree to 1e-4 of their size, in every leaf by default."""
        xp = namespace(params)
        leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(params)]

        def near(rows: list[Array]) -> Array:
            bounds = [1e-4 * (xp.abs(leaf) + xp.abs(row)[None]) for leaf, row in zip(leaves, rows, strict=True)]
            gaps = [xp.abs(leaf - row[None]) for leaf, row in zip(leaves, rows, strict=True)]
            return xp.all(xp.stack([xp.all(gap <= b, 1) for gap, b in zip(gaps, bounds, strict=True)]), 0)

        return against_each(near, leaves)

    def describe(self, params: PyTree, rows: Rows) -> dict[str, np.ndarray]:
        """The K components as columns of a table, on the host: name -> (K,), as "rate[visits]".

        By default every leaf of the params with a leading axis K, under its own name.

        Args:
          params: of the components.
          rows: what the rows of the family's data look like, with the names of their columns.
        """
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        num = max((np.shape(leaf)[0] for _, leaf in leaves if np.ndim(leaf)), default=0)
        found: dict[str, np.ndarray] = {}
        for path, leaf in leaves:
            if np.ndim(leaf) and np.shape(leaf)[0] == num:
                name = jax.tree_util.keystr(path, simple=True, separator=".") or "param"
                found |= by_column(name, leaf, rows.labels(math.prod(np.shape(leaf)[1:])))
        return found

    def distribution(self, params: PyTree) -> Any:
        """The K components as one batched distrax distribution."""
        raise TypeError(f"{type(self).__name__} has no distrax distribution")

    def make_params(self, **values: Any) -> PyTree:
        """Params from plain arrays in their natural shapes."""
        raise TypeError(f"{type(self).__name__} has no make_params")


class Derived(At, ABC):
    """A family at params, with what is derived from them; base of the values that a `DerivedFamily` is asked by."""

    @abstractmethod
    def explain(self, x: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
        """log_prob (N, K), and the function from resp (N, K) to statistics, sharing work."""

    def log_prob(self, x: PyTree) -> Array:
        """(N, K) log p(x_n | theta_k), nats."""
        return self.explain(x)[0]

    def statistics(self, x: PyTree, resp: Array) -> PyTree:
        """Statistics weighted by resp (N, K), summed over n."""
        return self.explain(x)[1](resp)


class DerivedFamily(Family):
    """A family whose computations are methods of a value of its own, `at(params)`; the others go through it."""

    @abstractmethod
    def at(self, params: PyTree) -> Any:
        """The family at these params, a `Derived`."""

    def explain(self, params: PyTree, x: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
        """log_prob (N, K), and the function resp -> statistics, sharing work."""
        return self.at(params).explain(x)

    def log_prob(self, params: PyTree, x: PyTree) -> Array:
        """(N, K) log p(x_n | theta_k), nats."""
        return self.at(params).log_prob(x)

    def statistics(self, params: PyTree, x: PyTree, resp: Array) -> PyTree:
        """Statistics weighted by resp (N, K), summed over n."""
        return self.at(params).statistics(x, resp)

    def m_step(self, params: PyTree, stats: PyTree) -> PyTree:
        """Params that maximise the objective given statistics taken at `params`."""
        return self.at(params).m_step(stats)

    def rebase(self, stats: PyTree, old: PyTree, new: PyTree) -> PyTree:
        """Statistics taken at params `old` as if taken at `new`."""
        return self.at(old).rebase(stats, self.at(new))

    def elbo_params(self, params: PyTree) -> Array:
        """Penalty or log prior, nats."""
        return self.at(params).elbo_params()

    def influence(self, params: PyTree, count: Array) -> Array:
        """(K,) the regulariser's share of each component's spread, given counts (K,)."""
        return self.at(params).influence(count)
