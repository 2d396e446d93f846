"""Priors of a mixture's proportions and their posteriors: a Dirichlet, and a truncated Dirichlet process.

Written out, not through `jaxem.expfam`: its natural parameters, concentration - 1, lose a small concentration's digits.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betaln, digamma, gammaln

from jaxem.core import constraints
from jaxem.core.numerics import namespace, safe_log
from jaxem.core.pytree import dataclass, static


@dataclass
class Proportions:
    """A point on the simplex under the prior Dirichlet(1 + a, ..., 1 + a); its params are the (K,) proportions.

    Attributes:
      pseudo_counts: a >= 0; 0 is maximum likelihood.
      active: (K,) which components are used; None for all. The others have proportion 0.
    """

    pseudo_counts: Any = 0.0
    active: Array | None = None

    def _where_active(self, values: Array, other: Any = 0) -> Array:
        return values if self.active is None else jnp.where(self.active, values, other)

    def update(self, count: Array) -> Array:
        """Counts (K,), with the prior's, over their sum."""
        pseudo = jnp.broadcast_to(jnp.asarray(self.pseudo_counts, count.dtype), count.shape)
        count = count + self._where_active(pseudo)
        return count / jnp.sum(count)

    def expected_log(self, mixing: Array) -> Array:
        """(K,) log mixing, -inf for a component of proportion 0."""
        return safe_log(mixing)

    def elbo(self, mixing: Array) -> Array:
        """The log prior up to its constant, a sum_k log mixing_k, nats."""
        pseudo = jnp.asarray(self.pseudo_counts, mixing.dtype)
        term = jnp.where(pseudo > 0, pseudo * safe_log(mixing), 0)  # 0 log 0 is 0
        return jnp.sum(self._where_active(term))

    def count(self, mixing: Array, total: Any) -> Array:
        """(K,) expected counts, of that many observations in all."""
        return mixing * total

    def counted(self, count: Array) -> Array:
        """(K,) which counts are news: those of all components in use."""
        return jnp.ones(count.shape, bool) if self.active is None else self.active

    def rank(self, mixing: Array) -> Array:
        """(K,) the order in which components are shown: largest first."""
        return namespace(mixing).argsort(-mixing, stable=True)

    def order(self, mixing: Array, index: Array) -> Array:
        """Components in another order."""
        return mixing[index]

    def constraints(self) -> constraints.Constraint:
        """The simplex."""
        return constraints.Simplex()


@dataclass
class _Posterior:
    """What the two laws below share: their params hold all but the prior's concentration.

    Attributes:
      concentration: > 0, of the prior.
    """

    concentration: Any

    def expected_log(self, mixing: Any) -> Array:
        """(K,) E log mixing."""
        return mixing.expected_log()

    def elbo(self, mixing: Any) -> Array:
        """-KL(q || prior), nats."""
        return -mixing.kl(self.concentration)

    def count(self, mixing: Any, total: Any) -> Array:
        """(K,) expected counts behind the posterior."""
        return mixing.count(self.concentration)

    def counted(self, count: Array) -> Array:
        """(K,) which counts are news: emptied components are no sign of ill health."""
        return count > 1

    def rank(self, mixing: Any) -> Array:
        """(K,) the order in which components are shown."""
        return mixing.rank()

    def order(self, mixing: Any, index: Array) -> Any:
        """Components in another order."""
        return mixing.order(index)


@dataclass
class Dirichlet(_Posterior):
    """mixing ~ Dirichlet(concentration, ..., concentration)."""

    def update(self, count: Array) -> "DirichletMixing":
        """The posterior given expected counts (K,)."""
        return DirichletMixing.update(count, self.concentration)

    def constraints(self) -> "DirichletMixing":
        """Positive numbers."""
        return DirichletMixing.constraints()


@dataclass
class Sticks(_Posterior):
    """mixing of the j-th stick = v_j prod_{i < j} (1 - v_i), v_j ~ Beta(1, concentration).

    Attributes:
      concentration: > 0.
      truncation: "free", or "fixed": the last stick takes all that is left.
    """

    truncation: str = static(default="free")

    def update(self, count: Array) -> "StickMixing":
        """The posterior given expected counts (K,)."""
        return StickMixing.update(count, self.concentration, self.truncation == "fixed")

    def constraints(self) -> "StickMixing":
        """Positive numbers; positions are not moved."""
        return StickMixing.constraints(self.truncation == "fixed")


@dataclass
class DirichletMixing:
    """mixing ~ Dirichlet(concentration).

    Attributes:
      concentration: (K,) the prior's a0 plus the expected counts.
    """

    concentration: Array

    @staticmethod
    def update(count: Array, concentration: Array) -> "DirichletMixing":
        """The posterior given expected counts (K,)."""
        return DirichletMixing(concentration + count)

    def expected_log(self) -> Array:
        """(K,) E log mixing."""
        return digamma(self.concentration) - digamma(jnp.sum(self.concentration))

    def mean(self) -> tuple[Array, Array]:
        """E mixing (K,), and the mass left to components beyond K: 0."""
        return self.concentration / jnp.sum(self.concentration), jnp.zeros((), self.concentration.dtype)

    def kl(self, prior: Array) -> Array:
        """KL from Dirichlet(prior, ..., prior), nats."""
        a, b = self.concentration, jnp.full_like(self.concentration, prior)
        return jnp.sum((a - b) * self.expected_log()) - self._log_normaliser(a) + self._log_normaliser(b)

    def _log_normaliser(self, concentration: Array) -> Array:
        return jnp.sum(gammaln(concentration)) - gammaln(jnp.sum(concentration))

    def count(self, prior: Array) -> Array:
        """(K,) expected counts behind the posterior."""
        return self.concentration - prior

    def prior(self, concentration: Array) -> "DirichletMixing":
        """The prior itself, in the form of a posterior."""
        return DirichletMixing(jnp.full_like(self.concentration, concentration))

    def draw_logs(self, key: Array) -> Any:
        """What is drawn, in logarithms that do not underflow: log proportions (K,)."""
        return jax.nn.log_softmax(jax.random.loggamma(key, self.concentration, dtype=self.concentration.dtype))

    def log_mixing(self, logs: Any) -> Array:
        """(K,) log proportions of what `draw_logs` returns."""
        return logs

    def log_prob(self, logs: Any) -> Array:
        """Log density of the proportions that `draw_logs` returns, nats."""
        return jnp.sum((self.concentration - 1) * logs) - self._log_normaliser(self.concentration)

    def draw(self, key: Array) -> Array:
        """(K,) proportions."""
        return jnp.exp(self.log_mixing(self.draw_logs(key)))

    def rank(self) -> Array:
        """(K,) the order in which components are shown: by expected mixing, largest first."""
        return (-self.concentration).argsort(stable=True)

    def order(self, index: Array) -> "DirichletMixing":
        """Components in another order."""
        return DirichletMixing(self.concentration[index])

    @staticmethod
    def constraints() -> "DirichletMixing":
        """Positive numbers."""
        return DirichletMixing(constraints.Positive())  # type: ignore[arg-type]


def _sum_before(values: Array) -> Array:
    """(K,) sums of the entries before each."""
    return jnp.cumsum(jnp.concatenate([jnp.zeros_like(values[:1]), values[:-1]]))


@dataclass
class StickMixing:
    """mixing of the j-th component = v_j prod_{i < j} (1 - v_i), v_j ~ Beta(1, concentration): stick-breaking.

    q(v_j) = Beta(taken, left). Which component has which stick is free, and larger ones come first: for given expected
    counts no other assignment has a higher ELBO, so that assigning anew in every M-step never lowers it.

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

    @staticmethod
    def update(count: Array, concentration: Array, fixed: bool) -> "StickMixing":
        """The posterior given expected counts (K,)."""
        index = jnp.argsort(-count, stable=True)
        ordered = count[index]
        after = jnp.flip(_sum_before(jnp.flip(ordered)))
        position = jnp.argsort(index, stable=True).astype(jnp.int32)
        return StickMixing(1 + count, (concentration + after)[position], position, fixed)

    def _before(self, values: Array) -> Array:
        """(K,) sums of `values` over the sticks before that of each component."""
        index = jnp.argsort(self.position, stable=True)
        return _sum_before(values[index])[self.position]

    def _taken_whole(self) -> Array:
        """(K,) whether the stick is the last of a fixed truncation, which takes all that is left."""
        return (self.position == self.position.shape[0] - 1) & self.fixed

    def expected_log(self) -> Array:
        """(K,) E log mixing; with a fixed truncation the last stick takes all that is left."""
        total = digamma(self.taken + self.left)
        taken, left = digamma(self.taken) - total, digamma(self.left) - total
        return jnp.where(self._taken_whole(), 0, taken) + self._before(left)

    def mean(self) -> tuple[Array, Array]:
        """E mixing (K,), and the mass left to components beyond K: 0 with a fixed truncation."""
        total = self.taken + self.left
        taken, left = self.taken / total, jnp.log(self.left / total)
        rest = jnp.zeros((), total.dtype) if self.fixed else jnp.exp(jnp.sum(left))
        return jnp.where(self._taken_whole(), 1, taken) * jnp.exp(self._before(left)), rest

    def kl(self, prior: Array) -> Array:
        """KL from Beta(1, prior) of every stick, nats; a last stick that is fixed has none."""
        total = digamma(self.taken + self.left)
        taken, left = digamma(self.taken) - total, digamma(self.left) - total
        one = jnp.ones_like(prior)
        each = (
            betaln(one, prior) - betaln(self.taken, self.left) + (self.taken - 1) * taken + (self.left - prior) * left
        )
        return jnp.sum(jnp.where(self._taken_whole(), 0, each))

    def count(self, prior: Array) -> Array:
        """(K,) expected counts behind the posterior."""
        return self.taken - 1

    def prior(self, concentration: Array) -> "StickMixing":
        """The prior itself in the form of a posterior, with the same sticks for the components."""
        return StickMixing(
            jnp.ones_like(self.taken), jnp.full_like(self.left, concentration), self.position, self.fixed
        )

    def draw_logs(self, key: Array) -> Any:
        """What is drawn, in logarithms that do not underflow: log v and log(1 - v) of each component's stick, (K,).

        The sticks, not the proportions: those of late sticks are differences of numbers near 1.
        """
        keys = jax.random.split(key)
        taken, left = (
            jax.random.loggamma(k, a, dtype=a.dtype) for k, a in zip(keys, (self.taken, self.left), strict=True)
        )
        return -jax.nn.softplus(left - taken), -jax.nn.softplus(taken - left)

    def log_mixing(self, logs: Any) -> Array:
        """(K,) log proportions of what `draw_logs` returns."""
        return jnp.where(self._taken_whole(), 0, logs[0]) + self._before(logs[1])

    def log_prob(self, logs: Any) -> Array:
        """Log density of the sticks that `draw_logs` returns, nats; a last stick that is fixed has none."""
        each = (self.taken - 1) * logs[0] + (self.left - 1) * logs[1] - betaln(self.taken, self.left)
        return jnp.sum(jnp.where(self._taken_whole(), 0, each))

    def draw(self, key: Array) -> Array:
        """(K,) proportions; they sum to less than 1 where a mass is left."""
        return jnp.exp(self.log_mixing(self.draw_logs(key)))

    def rank(self) -> Array:
        """(K,) the order in which components are shown: that of their sticks."""
        return self.position.argsort(stable=True)

    def order(self, index: Array) -> "StickMixing":
        """Components in another order, each with its stick."""
        return StickMixing(self.taken[index], self.left[index], self.position[index], self.fixed)

    @staticmethod
    def constraints(fixed: bool) -> "StickMixing":
        """Positive numbers; positions are not moved."""
        positive: Any = constraints.Positive()
        return StickMixing(positive, positive, constraints.Fixed(), fixed)  # type: ignore[arg-type]
