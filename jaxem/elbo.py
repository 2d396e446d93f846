"""The objective: the ELBO record, the free energy of discrete latents, E-step rules, and the ELBO/KL identity."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem._pytree import dataclass


@dataclass
class ELBO:
    """The evidence lower bound L(q, theta) = data + params, in nats, summed over observations.

    Attributes:
      data: sum_n w_n { E_q[log p(x_n, z_n | theta)] + H(q_n) }; for an exact E-step the log-likelihood.
      params: the penalty, log prior or -KL of the parameters; 0 for plain maximum likelihood.
    """

    data: Array
    params: Array

    @property
    def total(self) -> Array:
        """The maximised objective, data + params."""
        return self.data + self.params


def _soften(log_joint: Array, temperature: Array, axis: int) -> tuple[Array, Array, Array]:
    """(F_T, q, H(q)) along `axis`; log-joints of -inf have q = 0 and take no part in derivatives."""
    tiny = jnp.finfo(log_joint.dtype).tiny
    temp = jnp.maximum(temperature, 1e3 * tiny)
    top = jnp.max(log_joint, axis, keepdims=True)
    none = jnp.isneginf(top)
    dead = jnp.isneginf(log_joint)
    gap = jnp.where(dead, 0, log_joint - jnp.where(none, 0, top)) / temp
    gap = jnp.maximum(gap, jnp.finfo(log_joint.dtype).min)
    mass = jnp.where(dead & ~none, 0, jnp.exp(gap))
    total = jnp.sum(mass, axis, keepdims=True)
    q = mass / total
    log_total = jnp.log(total)
    entropy = jnp.squeeze(log_total, axis) - jnp.sum(jnp.where(mass > 0, q * gap, 0), axis)
    free = jnp.where(none, -jnp.inf, top + temp * log_total)
    return jnp.squeeze(free, axis), q, entropy


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _free_energy(log_joint: Array, temperature: Array, axis: int) -> Array:
    return _soften(log_joint, temperature, axis)[0]


@_free_energy.defjvp
def _free_energy_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    log_joint, temperature = primals
    d_log_joint, d_temperature = tangents
    free, q, entropy = _soften(log_joint, temperature, axis)
    # q = 0 must silence an infinite or NaN tangent (log 0 beside finite entries).
    tangent = jnp.sum(q * jnp.where(q > 0, d_log_joint, 0), axis)
    return free, tangent + entropy * d_temperature


def free_energy(log_joint: Array, temperature: Array | float = 1.0, *, axis: int = -1) -> Array:
    """Free energy of a discrete latent: the ELBO maximised over q at a temperature.

        F_T(l) = max_q { sum_k q_k l_k + T H(q) } = T log sum_k exp(l_k / T)

    At T = 1 it is log p(x). Its derivatives are dF/dl = q, the responsibilities, and dF/dT = H(q); both are coded, so
    they stay finite where plain autodiff gives NaN. Cost O(N K).

    Args:
      log_joint: (..., K) log p(x_n, z_n = k), nats; -inf marks an impossible state.
      temperature: T >= 0; T -> 0 gives max_k l_k, shared equally among ties.
      axis: the axis of the K states.

    Returns:
      (...) nats. A row that is -inf everywhere gives -inf, and q uniform there; a NaN row gives NaN.

    Examples:
      >>> l = jnp.log(jnp.array([[0.1, 0.3], [0.0, 0.5]]))
      >>> [round(p, 3) for p in jnp.exp(free_energy(l)).tolist()]
      [0.4, 0.5]
      >>> jax.grad(lambda l: free_energy(l).sum())(l).round(3).tolist()
      [[0.25, 0.75], [0.0, 1.0]]

    References:
      Neal and Hinton (1998), A view of the EM algorithm, section 2; Ueda and Nakano (1998), Deterministic annealing EM.
    """
    log_joint = jnp.asarray(log_joint)
    return _free_energy(log_joint, jnp.asarray(temperature, log_joint.dtype), axis)


@dataclass
class Decomposition:
    """Each term of log p(x) = ELBO + KL, one entry per observation, nats. See `decompose`."""

    expected_log_joint: Array
    entropy: Array
    elbo: Array
    kl: Array
    log_evidence: Array


def decompose(log_joint: Array, q: Array) -> Decomposition:
    """Splits the log evidence of a finite latent at any distribution q.

        log p(x) = E_q[log p(x, z)] + H(q) + KL(q || p(z | x)) = ELBO + KL

    Args:
      log_joint: (..., K) log p(x_n, z_n = k), nats.
      q: (..., K) distributions over the states, broadcast against `log_joint`.

    Returns:
      `Decomposition` of arrays (...). Where q puts mass on an impossible state the ELBO is -inf and the KL inf. KL is
      computed from q and the posterior, not as a difference, so the identity is a check and not a definition.

    Examples:
      >>> d = decompose(jnp.log(jnp.array([0.1, 0.3])), jnp.array([0.5, 0.5]))
      >>> bool(jnp.allclose(d.log_evidence, d.elbo + d.kl))
      True

    References:
      Bishop (2006), Pattern Recognition and Machine Learning, eq. 9.70.
    """
    log_joint = jnp.asarray(log_joint)
    log_joint, q = jnp.broadcast_arrays(log_joint, jnp.asarray(q, log_joint.dtype))
    used = q > 0
    log_q = jnp.log(jnp.where(used, q, 1))
    log_evidence, _, _ = _soften(log_joint, jnp.ones((), log_joint.dtype), -1)
    log_posterior = log_joint - log_evidence[..., None]
    expected = jnp.sum(jnp.where(used, q * log_joint, 0), -1)
    entropy = -jnp.sum(q * log_q, -1)
    kl = jnp.sum(jnp.where(used, q * (log_q - log_posterior), 0), -1)
    return Decomposition(expected, entropy, expected + entropy, kl, log_evidence)


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
        value, resp, _ = _soften(log_joint, jnp.ones((), log_joint.dtype), axis)
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
        _, resp, _ = _soften(log_joint, jnp.asarray(self.temperature, log_joint.dtype), axis)
        return _soften(log_joint, one, axis)[0], resp


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
