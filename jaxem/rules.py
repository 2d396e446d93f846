"""E-step rules: which q a matrix of log-joints gives."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem._pytree import dataclass
from jaxem.elbo import soften


class Rule(ABC):
    """An E-step rule: which q a matrix of log-joints gives. A small pytree; subclass it to make your own.

    The defaults describe a rule that is the same at every step and under which the reported ELBO never falls.
    """

    @abstractmethod
    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp): a lower bound of log p(x_n), and q, normalised along `axis`, the axis of the states."""

    def tabulate(self, num_steps: int) -> "Rule":
        """The rule with callables of the step replaced by arrays over steps 0..num_steps; called on the host."""
        return self

    def at(self, step: Array) -> "Rule":
        """The rule at one step."""
        return self

    def settled(self, step: Array) -> Array:
        """Whether the rule no longer changes after `step`; no fit stops before that."""
        return jnp.asarray(True)

    def monotone(self, step: Array) -> Array:
        """Whether the reported ELBO cannot fall from `step` on."""
        return jnp.asarray(True)


@dataclass
class Exact(Rule):
    """E-step rule: q is the posterior, the value is log p(x). The E-step of EM; monotone."""

    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp) along the axis of the states: log p(x) and the posterior."""
        value, resp, _ = soften(log_joint, jnp.ones((), log_joint.dtype), axis)
        return value, resp


@dataclass
class Tempered(Rule):
    """E-step rule: q proportional to p(z | x)^(1 / T), the maximiser of E_q[log p(x, z)] + T H(q).

    T > 1 softens, T < 1 hardens; an array over steps (or a callable of the step, such as an optax schedule, which
    `fit` tabulates) anneals, its last entry being kept. The entropy-weighted E-step min KL(q || p) + lambda H(q) with
    lambda < 1 is `Tempered(1 - lambda)`. The value reported is log p(x), the ELBO at T = 1, because the tempered value
    is no lower bound for T > 1: so it may fall while T changes, and no fit stops before T has settled.

    Attributes:
      temperature: T >= 0, a scalar, an array (num_steps,), or a callable step -> T.

    References:
      Ueda and Nakano (1998), Deterministic annealing EM algorithm, Neural Networks 11.
    """

    temperature: float | Array | np.ndarray | Callable[[int], Any] = 1.0

    def tabulate(self, num_steps: int) -> "Tempered":
        """The rule with a callable temperature replaced by its values at steps 0..num_steps."""
        if not callable(self.temperature):
            return self
        table = np.array([float(self.temperature(t)) for t in range(num_steps + 1)])
        return dataclasses.replace(self, temperature=table)

    def at(self, step: Array) -> "Tempered":
        """The rule with the temperature of a step."""
        table = jnp.asarray(self.temperature)
        if table.ndim == 0:
            return self
        return Tempered(table.at[step].get(mode="clip"))

    def settled(self, step: Array) -> Array:
        """Whether T keeps its last value after `step`."""
        table = jnp.asarray(self.temperature)
        if table.ndim == 0:
            return jnp.asarray(True)
        changes = jnp.concatenate([jnp.zeros(1, bool), table[1:] != table[:-1]])
        return step >= jnp.max(jnp.where(changes, jnp.arange(table.shape[0], dtype=jnp.int32), 0))

    def monotone(self, step: Array) -> Array:
        """True once T has settled at 1."""
        table = jnp.asarray(self.temperature)
        last = table if table.ndim == 0 else table[-1]
        return self.settled(step) & (last == 1)

    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp) along the axis of the states: log p(x) and the tempered posterior."""
        one = jnp.ones((), log_joint.dtype)
        _, resp, _ = soften(log_joint, jnp.asarray(self.temperature, log_joint.dtype), axis)
        return soften(log_joint, one, axis)[0], resp


@dataclass
class Hard(Rule):
    """E-step rule: q is one-hot at the most probable state, ties to the lowest index.

    The value is max_k log p(x, z = k), the ELBO of that q (its entropy is 0): classification EM, monotone in the
    classification likelihood, and K-means for equal spherical components.

    References:
      Celeux and Govaert (1992), A classification EM algorithm for clustering.
    """

    def __call__(self, log_joint: Array, axis: int = -1) -> tuple[Array, Array]:
        """(value, resp) along the axis of the states: the largest log-joint and a one-hot of its place."""
        top = jnp.max(log_joint, axis)
        index = jnp.argmax(log_joint, axis)
        resp = jax.nn.one_hot(index, log_joint.shape[axis], dtype=log_joint.dtype, axis=axis)
        return top, resp
