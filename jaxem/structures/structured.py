"""Models that are a structure, a law of mixing and K components: what all of their pairings share."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import check_choice, check_integer, expect
from jaxem.core.numerics import safe_divide, weigh
from jaxem.core.pytree import dataclass
from jaxem.core.stages import in_stages, stage
from jaxem.core.tree import BLOCK_ROWS, PyTree, map_rows, num_rows, ones_for, sum_rows
from jaxem.elbo import Decomposition
from jaxem.families import Family
from jaxem.model import DiscreteAt, DiscreteLatent, Health
from jaxem.rules import Rule
from jaxem.structures import seeding
from jaxem.structures.structure import INDEPENDENT


@dataclass
class MixtureStats:
    """Expected counts of the mixing (K,), and the family's statistics."""

    count: PyTree
    components: PyTree


@dataclass
class StructuredAt(DiscreteAt):
    """A structured model at params.

    Attributes:
      components: the family at the components' params.
      log_mixing: what the law of mixing expects of the log-probabilities of states.
    """

    components: Any
    log_mixing: PyTree

    def explain(self, data: PyTree) -> tuple[PyTree, Callable[[PyTree], MixtureStats]]:
        """The log-joint, and the function from q to statistics, sharing the family's work."""
        structure = self.model.structure
        log_prob, collect = self._rows(structure.rows(data))

        def statistics(q: PyTree) -> MixtureStats:
            count, resp = structure.split(q, data)
            return MixtureStats(count, collect(resp))

        return structure.join(self.log_mixing, log_prob, data), statistics

    def _rows(self, rows: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
        """log_prob (n, K) and resp -> statistics; of more rows than stay in cache, as sequences bring, in blocks."""
        if num_rows(rows) <= 2 * BLOCK_ROWS:
            return self.components.explain(rows)
        log_prob = map_rows(lambda x: self.components.explain(x)[0], rows, BLOCK_ROWS)

        def collect(resp: Array) -> PyTree:
            weighed = lambda block, w: self.components.explain(block[0])[1](weigh(w, block[1]))
            return sum_rows(weighed, (rows, resp), ones_for(resp), BLOCK_ROWS)

        return log_prob, collect

    def infer(self, log_joint: PyTree, rule: Rule) -> tuple[Array, PyTree]:
        """The structure's."""
        return self.model.structure.infer(log_joint, rule)

    def shown(self, q: PyTree) -> Array:
        """The posterior of each observation."""
        return self.model.structure.posterior(q)

    def best(self, log_joint: PyTree) -> Array:
        """The most probable states, of a unit together."""
        return self.model.structure.predict(log_joint)

    def rule_out(self, log_joint: PyTree, allowed: Array) -> PyTree:
        """The structure's."""
        return self.model.structure.rule_out(log_joint, allowed)

    def decompose(self, log_joint: PyTree, old: PyTree, rule: Rule) -> Decomposition:
        """The structure's."""
        return self.model.structure.decompose(log_joint, old, rule)

    def m_step(self, stats: MixtureStats) -> Any:
        """The law's update and the components'."""
        mixing = self.model.law.climb(stats.count, self.params.mixing)
        return self.model.params_type(mixing, self.components.m_step(stats.components))

    def rebase(self, stats: MixtureStats, new: Any) -> MixtureStats:
        """The components' statistics as if taken at the new ones."""
        return MixtureStats(stats.count, self.components.rebase(stats.components, new.components))

    def elbo_params(self) -> Array:
        """The law's log prior or -KL, and the components'."""
        return self.model.law.elbo(self.params.mixing) + self.components.elbo_params()


class Structured(DiscreteLatent):
    """A model = structure x mixing x components. A pairing names the three, and keeps their settings.

    Attributes:
      family: how a component explains rows.
      num_states: K.
      init_method: of the partition that starts come from; see `jaxem.structures.seeding`.
      init_size: most units that a start looks at.
      total_weight: sum of weights, None before `bind`.
    """

    structure: ClassVar[Any] = INDEPENDENT
    size_name: ClassVar[str] = "num_components"  # what the setting that says K is called
    block_rows: ClassVar[int | None] = BLOCK_ROWS
    params_type: ClassVar[Any]

    family: Family
    init_method: str
    init_size: int
    total_weight: Array | None

    @property
    @abstractmethod
    def law(self) -> Any:
        """The law of mixing, one of `jaxem.structures.mixing`."""

    @property
    @abstractmethod
    def components(self) -> Family:
        """The family for components at a point, `jaxem.structures.components.Posterior` for those in a posterior."""

    @property
    def climbed_by(self) -> str:  # type: ignore[override]
        """The family's."""
        return "m_step" if self.family.closed_form else "gradient"

    @property
    def row_keys(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """The family's."""
        return self.family.row_keys if isinstance(self.family, Family) else None

    def opened(self, data: Any, name: str) -> Any:
        """What the family makes of it."""
        return self.family.opened(data, name) if isinstance(self.family, Family) else data

    @property
    def least_rows(self) -> tuple[str, int]:
        """A row for each component."""
        return self.size_name, self.num_states

    def check(self, data: PyTree, params: Any = None) -> None:
        """Checks K, the start's name and the settings; the family's own rules; and that params are of K components."""
        expect("family", self.family, Family, "one of jaxem.families, as jaxem.families.Gaussian()")
        if params is None:
            check_integer(self.size_name, self.num_states, 1)
            check_choice("init_method", self.init_method, seeding.PARTITIONS)
            check_integer("init_size", self.init_size, 1)
            if self.init_size < self.num_states:
                least = f"at least {self.size_name} = {self.num_states} rows"
                raise ValueError(f"init_size: expected {least}; found {self.init_size}")
            self.law.check(self.num_states)
            self.check_settings(data)
        self.check_components(data, params)

    def check_settings(self, data: PyTree) -> None:
        """Raises for settings of the pairing's own; nothing by default."""

    def check_components(self, data: PyTree, params: Any) -> None:
        """The family's checks, against its params."""
        rows = self.structure.rows(data)
        self.family.check(rows, None if params is None else params.components)

    def at(self, params: Any) -> StructuredAt:
        """The model at params."""
        log_mixing = self.law.expected_log(params.mixing)
        return StructuredAt(self, params, self.components.at(params.components), log_mixing)

    def log_joint(self, params: Any, data: PyTree) -> PyTree:
        """(N, K) log p(x_n, z_n = k | theta), nats; -inf for a component of proportion 0."""
        return self.at(params).log_joint(data)

    def statistics(self, params: Any, data: PyTree, resp: PyTree) -> MixtureStats:
        """Counts and the family's statistics."""
        return self.at(params).statistics(data, resp)

    def m_step(self, params: Any, stats: MixtureStats) -> Any:
        """The law's update and the components'."""
        return self.at(params).m_step(stats)

    def elbo_params(self, params: Any) -> Array:
        """The log prior or -KL of the mixing, and the components'; nats."""
        return self.at(params).elbo_params()

    def rebase(self, stats: MixtureStats, old: Any, new: Any) -> MixtureStats:
        """The components' statistics as if taken at the new ones."""
        return self.at(old).rebase(stats, self.at(new))

    @in_stages
    def init(self, key: Array, data: PyTree, weights: Array) -> Any:
        """Params of a random partition; the model must be bound."""
        data, weights, key = seeding.subsample(key, data, weights, self.init_size)
        return first_step(self, data, self._partition(key, data, weights), weights)

    def _partition(self, key: Array, data: PyTree, weights: Array) -> Array:
        """(n, K) responsibilities of the rows of a start: the family's own, or a partition of its features."""
        resp, features, weights, active = _looked_at(self, key, data, weights)
        if resp is not None:
            return resp
        return seeding.partition(key, features, weights, self.num_states, self.init_method, active)

    @property
    def active(self) -> Array | None:
        """(K,) which components are used; None for all."""
        return None

    def from_partition(self, data: PyTree, resp: Array, weights: Array) -> Any:
        """The first M-step, of responsibilities (n, K) of rows; the model must be bound."""
        structure, weights = self.structure, self.structure.row_weights(weights, data)
        resp = resp * weights[:, None]
        components = self.components.from_partition(structure.rows(data), weights, resp)
        count, _ = structure.split(structure.spread(resp, data), data)
        return self.params_type(self.law.update(count), components)

    def canonical(self, params: Any, reorder: bool | Array = True) -> Any:
        """Components by mixing, largest first; in the order of their priors where the family gives each its own."""
        if reorder is False or not self.components.exchangeable:
            return dataclasses.replace(params, components=self.components.canonical(params.components))
        index = self.law.rank(params.mixing) if reorder is True else reorder
        return self.params_type(
            self.law.order(params.mixing, index), self.components.canonical(params.components, index)
        )

    def health(self, params: Any) -> Health:
        """Largest influence of the penalty on a component, and the smallest expected count that says something."""
        count = self.law.count(params.mixing, 1.0 if self.total_weight is None else self.total_weight)
        influence = jnp.max(self.components.influence(params.components, count))
        smallest = jnp.min(jnp.where(self.law.counted(count), count, jnp.inf))
        unknown = Health.unknown(count.dtype)
        return dataclasses.replace(unknown, influence=influence, min_count=smallest)

    def notes(self, params: Any = None) -> list[str]:
        """The family's notes; of params, its reasons why components are spikes."""
        if params is None:
            return self.family.notes()
        count = self.law.count(params.mixing, 1.0 if self.total_weight is None else self.total_weight)
        return self.components.notes(params.components, count)

    def constraints(self) -> Any:
        """Those of the mixing and of the components."""
        return self.params_type(self.law.constraints(), self.components.constraints())


@stage()
def _looked_at(
    model: Structured, key: Array, data: PyTree, weights: Array
) -> tuple[Array | None, Array | None, Array, Array | None]:
    """The family's own responsibilities, or else features; the weights of rows, and the components that are in use."""
    rows, weights, active = model.structure.rows(data), model.structure.row_weights(weights, data), model.active
    resp = model.family.init_resp(key, rows, weights, model.num_states, model.init_method)
    if resp is None:
        return None, model.family.features(rows), weights, active
    if active is not None:
        resp = jnp.where(active[None], resp, 0)
        resp = safe_divide(resp, jnp.sum(resp, 1, keepdims=True))
    return resp, None, weights, active


@stage()
def first_step(model: Structured, data: PyTree, resp: Array, weights: Array) -> Any:
    """`from_partition` as a program of its own."""
    return model.from_partition(data, resp, weights)
