"""The objective: the ELBO record, the free energy of discrete latents, and the ELBO/KL identity."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import as_numbers, check_number, shown
from jaxem.core.numerics import is_concrete
from jaxem.core.pytree import dataclass


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


def soften(log_joint: Array, temperature: Array, axis: int) -> tuple[Array, Array, Array]:
    """The free energy of a discrete latent with its maximiser; see `free_energy` for the formula.

    Args:
      log_joint: log p(x_n, z_n = k), nats; entries of -inf have q = 0 and take no part in derivatives.
      temperature: T >= 0, a scalar.
      axis: the axis of the K states.

    Returns:
      (F_T in nats, without the axis; q, like log_joint; the entropy H(q) in nats, without the axis).
    """
    tiny = jnp.finfo(log_joint.dtype).tiny
    temp = jnp.maximum(temperature, 1e3 * tiny)
    # Any shift gives the same value, so it carries no derivative; that of a maximum is 0 / 0 where a compiler computes
    # the log-joint twice with different roundings.
    top = jax.lax.stop_gradient(jnp.max(log_joint, axis, keepdims=True))
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
    return soften(log_joint, temperature, axis)[0]


@_free_energy.defjvp
def _free_energy_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    log_joint, temperature = primals
    d_log_joint, d_temperature = tangents
    free, q, entropy = soften(log_joint, temperature, axis)
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
    if as_numbers(log_joint) is None and is_concrete(log_joint):
        raise TypeError(f"log_joint: expected an array of numbers; found {shown(log_joint)}")
    check_number("temperature", temperature, 0, finite=False)
    log_joint = jnp.asarray(log_joint)
    return _free_energy(log_joint, jnp.asarray(temperature, log_joint.dtype), axis)


@dataclass
class Decomposition:
    """Each term of log p(x) = ELBO + KL, nats; one entry per observation from `decompose`, sums from a model's.

    Attributes:
      expected_log_joint: E_q[log p(x, z | theta)]; with q the posterior at theta_old it is Q(theta, theta_old).
      expected_log_posterior: E_q[log p(z | x, theta)], the cross term; never above -entropy, equal where q is the
        posterior at theta.
      entropy: H(q), a property of q alone.
      elbo: expected_log_joint + entropy.
      kl: KL(q || p(z | x, theta)) = -entropy - expected_log_posterior >= 0, the gap of Jensen's inequality.
      log_evidence: log p(x | theta) = expected_log_joint - expected_log_posterior.
    """

    expected_log_joint: Array
    expected_log_posterior: Array
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
    log_evidence, _, _ = soften(log_joint, jnp.ones((), log_joint.dtype), -1)
    log_posterior = log_joint - log_evidence[..., None]
    expected = jnp.sum(jnp.where(used, q * log_joint, 0), -1)
    entropy = -jnp.sum(q * log_q, -1)
    cross = jnp.sum(jnp.where(used, q * log_posterior, 0), -1)
    kl = jnp.sum(jnp.where(used, q * (log_q - log_posterior), 0), -1)
    return Decomposition(expected, cross, entropy, expected + entropy, kl, log_evidence)
