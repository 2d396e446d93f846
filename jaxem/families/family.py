"""The protocol of an observation family, vectorised over K components."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import namespace
from jaxem.core.tree import BLOCK_ROWS, PyTree, against_each, float_dtype, sum_rows


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

    def prepare(self, params: PyTree) -> PyTree:
        """The same params with derived quantities filled in, once per step; see `LatentModel.prepare`."""
        return params

    @abstractmethod
    def m_step(self, params: PyTree, stats: PyTree) -> PyTree:
        """Params that maximise the weighted log-likelihood plus elbo_params; a component of count 0 stays finite."""

    @abstractmethod
    def start(self, num_components: int) -> PyTree:
        """K equal components, the reference that the first statistics of a partition are taken at; needs `bind`."""

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

    def partition_statistics(self, x: PyTree, weights: Array, resp: Array) -> tuple[PyTree, PyTree]:
        """Params `start(K)` and the statistics of a start taken at them, in blocks of rows; see `from_partition`."""
        start = self.prepare(self.start(resp.shape[1]))

        def block(rows: tuple[PyTree, Array], w: Array) -> PyTree:
            return self.statistics(start, rows[0], jnp.where((w > 0)[:, None], rows[1], 0))

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
        return self.m_step(*self.partition_statistics(x, weights, resp))

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

    def validate(self, x: PyTree) -> None:
        """Raises ValueError for settings that are wrong or do not suit the data; on the host."""

    def check_rows(self, x: PyTree, params: PyTree | None = None) -> None:
        """Raises for rows that the family cannot have made, or that are not as wide as `params`; on the host."""

    def row_keys(self) -> tuple[str, ...] | None:
        """Names of the columns that the family takes as a dict; None by default."""
        return None

    def elbo_params(self, params: PyTree) -> Array:
        """Penalty or log prior, nats; 0 by default."""
        return jnp.zeros((), float_dtype(params))

    def influence(self, params: PyTree, count: Array) -> Array:
        """(K,) the regulariser's share of each component's spread, given counts (K,); 0 where none can collapse."""
        return jnp.zeros_like(count)

    def notes(self) -> list[str]:
        """Sentences about what `bind` did with the data, for a person."""
        return []

    def diagnose(self, params: PyTree, count: Array) -> list[str]:
        """Why components with counts (K,) are spikes, each with a remedy; on the host, none by default."""
        return []

    def adopt(self, params: PyTree) -> PyTree:
        """Given params as the bound family can use them, and the winner's as they are shown; the same by default."""
        return params

    def order(self, params: PyTree, index: Array) -> PyTree:
        """Params with the components in the order of index (K,); every leaf has a leading axis K by default."""
        return jax.tree.map(lambda leaf: leaf[index], params)

    def coincident(self, params: PyTree) -> Array:
        """(K, K) whether two components agree to 1e-4 of their size, in every leaf by default."""
        xp = namespace(params)
        leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(params)]

        def near(rows: list[Array]) -> Array:
            bounds = [1e-4 * (xp.abs(leaf) + xp.abs(row)[None]) for leaf, row in zip(leaves, rows, strict=True)]
            gaps = [xp.abs(leaf - row[None]) for leaf, row in zip(leaves, rows, strict=True)]
            return xp.all(xp.stack([xp.all(gap <= b, 1) for gap, b in zip(gaps, bounds, strict=True)]), 0)

        return against_each(near, leaves)

    def distribution(self, params: PyTree) -> Any:
        """The K components as one batched distrax distribution."""
        raise TypeError(f"{type(self).__name__} has no distrax distribution")

    def make_params(self, **values: Any) -> PyTree:
        """Params from plain arrays in their natural shapes."""
        raise TypeError(f"{type(self).__name__} has no make_params")
