"""What says which component comes: a point on the simplex, a Dirichlet over it, or a truncated Dirichlet process.

A `Mixing` law holds settings, and its params say where it stands: for the point they are the proportions themselves,
for the others the posterior. One law serves the proportions of a mixture, and under `vmap` every row of a transition
matrix.
"""

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import constraints
from jaxem.core.arguments import check_choice, check_whole
from jaxem.core.checks import check_array, check_strength
from jaxem.core.numerics import namespace, safe_log
from jaxem.core.pytree import dataclass, static
from jaxem.expfam import formulas

TRUNCATIONS = ("free", "fixed")


@dataclass
class DirichletMixing:
    """Posterior of proportions, mixing ~ Dirichlet(concentration).

    Attributes:
      concentration: (K,) the prior's a0 plus the expected counts.
    """

    concentration: Array


@dataclass
class StickMixing:
    """Posterior of sticks, v_j ~ Beta(taken, left); mixing of the j-th component = v_j prod_{i < j} (1 - v_i).

    Attributes:
      taken: (K,) 1 + expected count, by component.
      left: (K,) concentration + the expected counts of the sticks after it, by component.
      position: (K,) int32, the stick of each component.
      fixed: whether the last stick takes all that is left.
    """

    taken: Array
    left: Array
    position: Array
    fixed: bool = static(default=False)


class Mixing(ABC):
    """A law of proportions (K,) and its params; a frozen `jaxem.dataclass`."""

    @abstractmethod
    def check(self, num: int) -> None:
        """Raises ValueError or TypeError for settings that do not suit K = num; on the host."""

    def bind(self, num: int, dtype: Any) -> Any:
        """The law with every setting that has a default an array; the same where none has."""
        return self

    @abstractmethod
    def update(self, count: Array) -> Any:
        """Params that maximise sum_k count_k E log mixing_k + elbo, given expected counts (K,)."""

    def climb(self, count: Any, old: Any) -> Any:
        """Params at least as good as `old`, given expected counts; `update` where that is a maximum."""
        return self.update(count)

    @abstractmethod
    def expected_log(self, params: Any) -> Array:
        """(K,) E log mixing, nats."""

    @abstractmethod
    def elbo(self, params: Any) -> Array:
        """Its part of ELBO.params, nats: the log prior of a point up to a constant, or minus a divergence."""

    @abstractmethod
    def mean(self, params: Any) -> tuple[Array, Array]:
        """E mixing (K,), and the mass left to components beyond K."""

    @abstractmethod
    def count(self, params: Any, total: Any) -> Array:
        """(K,) expected counts behind params, of observations whose weights sum to `total`."""

    def counted(self, count: Array) -> Array:
        """(K,) which expected counts are news where they are small: those of an emptied posterior are not."""
        return count > 1

    @abstractmethod
    def draw(self, key: Array, params: Any) -> tuple[Array, Array, Array]:
        """(K,) log proportions drawn, which do not underflow, and the log density of the draw under q and the prior."""

    @abstractmethod
    def rank(self, params: Any) -> Array:
        """(K,) the order in which components are shown."""

    def order(self, params: Any, index: Array) -> Any:
        """Params with the components in another order."""
        return jax.tree.map(lambda leaf: leaf[index], params)

    @abstractmethod
    def constraints(self) -> Any:
        """A constraint at each leaf of params."""


@dataclass
class Proportions(Mixing):
    """A point, with the prior Dirichlet(1 + a, ..., 1 + a); its params are the proportions (K,).

    Attributes:
      pseudo_counts: a >= 0; 0 is maximum likelihood.
      num_active: how many of the components are used, all if None; the others have proportion 0.
    """

    pseudo_counts: float | Array = 0.0
    num_active: int | Array | None = None

    def check(self, num: int) -> None:
        """Checks both settings."""
        check_strength("mixing_pseudo_counts", self.pseudo_counts)
        if self.num_active is not None:
            check_whole("num_active", self.num_active, 1, num)

    def active(self, num: int) -> Array:
        """(K,) which components are used."""
        index = jnp.arange(num)
        used = num if self.num_active is None else self.num_active
        return index < jnp.asarray(used).astype(index.dtype)  # `fit` casts every number of a model to floats

    def update(self, count: Array) -> Array:
        """Counts, with the prior's, over their sum."""
        pseudo = jnp.asarray(self.pseudo_counts, count.dtype)
        count = count + jnp.where(self.active(count.shape[0]), pseudo, 0)
        return count / jnp.sum(count)

    def expected_log(self, params: Array) -> Array:
        """(K,) log mixing; -inf for a proportion of 0."""
        return safe_log(params)

    def elbo(self, params: Array) -> Array:
        """A sum_k log mixing_k."""
        pseudo = jnp.asarray(self.pseudo_counts, params.dtype)
        counted = self.active(params.shape[0]) & (pseudo > 0)  # 0 log 0 is 0
        return jnp.sum(jnp.where(counted, pseudo * safe_log(params), 0))

    def mean(self, params: Array) -> tuple[Array, Array]:
        """The proportions, and 0."""
        return params, jnp.zeros_like(params, shape=())  # quiet where params are NumPy's and x64 is off

    def count(self, params: Array, total: Any) -> Array:
        """Shares of the total."""
        return params * total

    def counted(self, count: Array) -> Array:
        """(K,) those of all components in use."""
        return self.active(count.shape[0])

    def draw(self, key: Array, params: Array) -> tuple[Array, Array, Array]:
        """The point itself, whose density counts for nothing."""
        zero = jnp.zeros((), params.dtype)
        return safe_log(params), zero, zero

    def rank(self, params: Array) -> Array:
        """(K,) largest first."""
        return namespace(params).argsort(-params, stable=True)

    def constraints(self) -> Any:
        """A simplex."""
        return constraints.Simplex()


@dataclass
class Dirichlet(Mixing):
    """mixing ~ Dirichlet(concentration, ..., concentration); its params are a `DirichletMixing`.

    Attributes:
      concentration: > 0, of each component; None for 1 / K. Bound, also (K,), with 0 for components that never come.
    """

    concentration: Any = None  # float | Array | None; an array once bound

    def check(self, num: int) -> None:
        """Checks the concentration."""
        _check_concentration(self.concentration)

    def bind(self, num: int, dtype: Any) -> "Dirichlet":
        """Fills in the concentration."""
        return Dirichlet(jnp.asarray(1 / num if self.concentration is None else self.concentration, dtype))

    def update(self, count: Array) -> DirichletMixing:
        """Counts added to the concentration."""
        return DirichletMixing(self.concentration + count)

    def _prior(self, params: DirichletMixing) -> Array:
        return jnp.broadcast_to(jnp.asarray(self.concentration, params.concentration.dtype), params.concentration.shape)

    def expected_log(self, params: DirichletMixing) -> Array:
        """(K,) E log mixing."""
        return formulas.dirichlet_mean_log(params.concentration)

    def elbo(self, params: DirichletMixing) -> Array:
        """Minus the divergence from the prior."""
        return -formulas.dirichlet_kl(params.concentration, self._prior(params))

    def mean(self, params: DirichletMixing) -> tuple[Array, Array]:
        """E mixing (K,), and 0."""
        return params.concentration / jnp.sum(params.concentration), jnp.zeros_like(params.concentration, shape=())

    def count(self, params: DirichletMixing, total: Any) -> Array:
        """What was added to the prior's concentration."""
        return params.concentration - self.concentration

    def draw(self, key: Array, params: DirichletMixing) -> tuple[Array, Array, Array]:
        """Log proportions, and the densities of the proportions."""
        logs = formulas.dirichlet_draw(key, params.concentration)
        log_q, log_p = (formulas.dirichlet_log_prob(logs, c) for c in (params.concentration, self._prior(params)))
        return logs, log_q, log_p

    def rank(self, params: DirichletMixing) -> Array:
        """(K,) by expected mixing, largest first."""
        return (-params.concentration).argsort(stable=True)

    def constraints(self) -> Any:
        """Positive numbers."""
        return constraints.Positive()


def _check_concentration(concentration: Any) -> None:
    if concentration is not None:
        check_array("concentration", concentration, ((),), positive=True)


def _sum_before(values: Array) -> Array:
    """(K,) sums of the entries before each."""
    return jnp.cumsum(jnp.concatenate([jnp.zeros_like(values[:1]), values[:-1]]))


def _before(params: StickMixing, values: Array) -> Array:
    """(K,) sums of `values` over the sticks before that of each component."""
    index = jnp.argsort(params.position, stable=True)
    return _sum_before(values[index])[params.position]


def _taken_whole(params: StickMixing) -> Array:
    """(K,) whether the stick is the last of a fixed truncation, which takes all that is left."""
    return (params.position == params.position.shape[0] - 1) & params.fixed


@dataclass
class Sticks(Mixing):
    """mixing of the j-th component = v_j prod_{i < j} (1 - v_i), v_j ~ Beta(1, concentration): stick-breaking.

    Its params are a `StickMixing`. Which component has which stick is free, and larger ones come first: for given
    expected counts no other assignment has a higher ELBO, so that assigning anew in every M-step never lowers it.

    Attributes:
      concentration: > 0, of the process; None for 1.
      truncation: "free": a mass is left for components beyond K; "fixed": the last stick takes all that is left.
    """

    concentration: Any = None  # float | Array | None; an array once bound
    truncation: str = static(default="free")

    def check(self, num: int) -> None:
        """Checks both settings."""
        check_choice("truncation", self.truncation, TRUNCATIONS)
        _check_concentration(self.concentration)

    def bind(self, num: int, dtype: Any) -> "Sticks":
        """Fills in the concentration."""
        return Sticks(jnp.asarray(1.0 if self.concentration is None else self.concentration, dtype), self.truncation)

    @property
    def fixed(self) -> bool:
        """Whether the last stick takes all that is left."""
        return self.truncation == "fixed"

    def update(self, count: Array) -> StickMixing:
        """The components by count on the sticks, and the counts added."""
        index = jnp.argsort(-count, stable=True)
        after = jnp.flip(_sum_before(jnp.flip(count[index])))
        position = jnp.argsort(index, stable=True).astype(jnp.int32)
        return StickMixing(1 + count, (self.concentration + after)[position], position, self.fixed)

    def _prior(self, params: StickMixing) -> tuple[Array, Array]:
        return jnp.ones_like(params.taken), jnp.full_like(params.left, self.concentration)

    def expected_log(self, params: StickMixing) -> Array:
        """(K,) E log mixing; with a fixed truncation the last stick takes all that is left."""
        taken, left = formulas.beta_mean_log(params.taken, params.left)
        return jnp.where(_taken_whole(params), 0, taken) + _before(params, left)

    def elbo(self, params: StickMixing) -> Array:
        """Minus the divergence of every stick from the prior; a last stick that is fixed has none."""
        each = formulas.beta_kl(params.taken, params.left, *self._prior(params))
        return -jnp.sum(jnp.where(_taken_whole(params), 0, each))

    def mean(self, params: StickMixing) -> tuple[Array, Array]:
        """E mixing (K,), and the mass left to components beyond K: 0 with a fixed truncation."""
        total = params.taken + params.left
        taken, left = params.taken / total, jnp.log(params.left / total)
        rest = jnp.zeros((), total.dtype) if self.fixed else jnp.exp(jnp.sum(left))
        return jnp.where(_taken_whole(params), 1, taken) * jnp.exp(_before(params, left)), rest

    def count(self, params: StickMixing, total: Any) -> Array:
        """What was added to what is taken."""
        return params.taken - 1

    def draw(self, key: Array, params: StickMixing) -> tuple[Array, Array, Array]:
        """Log proportions, and the densities of the sticks, of which a last one that is fixed has none.

        The sticks, not the proportions: those of late sticks are differences of numbers near 1.
        """
        whole, logs = _taken_whole(params), formulas.beta_draw(key, params.taken, params.left)
        log_mixing = jnp.where(whole, 0, logs[0]) + _before(params, logs[1])
        ends = (params.taken, params.left), self._prior(params)
        log_q, log_p = (jnp.sum(jnp.where(whole, 0, formulas.beta_log_prob(logs, *end))) for end in ends)
        return log_mixing, log_q, log_p

    def rank(self, params: StickMixing) -> Array:
        """(K,) the order of the sticks."""
        return params.position.argsort(stable=True)

    def constraints(self) -> StickMixing:
        """Positive numbers; positions are not moved."""
        positive: Any = constraints.Positive()
        return StickMixing(positive, positive, constraints.Fixed(), self.fixed)  # type: ignore[arg-type]
