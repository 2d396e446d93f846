"""A Markov chain of states along sequences, and what is known of its first state and of its transitions."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import einsum, matmul, safe_divide
from jaxem.core.pytree import dataclass
from jaxem.core.sequences import Sequences
from jaxem.core.tree import PyTree
from jaxem.elbo import Decomposition
from jaxem.rules import Exact, Hard, Rule
from jaxem.structures.forward_backward import ChainJoint, passed
from jaxem.structures.structure import Structure


@dataclass
class ChainMixing:
    """What is known of a chain, or counted: probabilities, posteriors, expected logarithms or expected counts.

    Attributes:
      initial: of the first state, (K,).
      transition: of each row, from a state to the next, (K, K).
    """

    initial: Any
    transition: Any


@dataclass
class Chain(Structure):
    """z_1 ~ initial, z_t | z_(t-1) = j ~ transition_j, x_t | z_t = k ~ family(theta_k).

    A unit is a sequence. Time O(T K^2) and memory O(T K) for each; no array of T transitions exists.
    """

    def rows(self, data: Sequences) -> PyTree:
        """The observations of all steps, one after the other; beyond the end they are copies."""
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), data.values)

    def row_weights(self, weights: Array, data: Sequences) -> Array:
        """(S T,) the weight of its sequence for each observation, 0 where there is none."""
        return jnp.where(data.observed > 0, weights[:, None], 0).reshape(-1)

    def join(self, log_mixing: ChainMixing, log_prob: Array, data: Sequences) -> ChainJoint:
        """The parts, with nothing said by a step without observation."""
        log_prob = log_prob.reshape(*data.observed.shape, -1)
        said = jnp.where(data.observed[..., None] > 0, log_prob, 0)
        return ChainJoint(log_mixing.initial, log_mixing.transition, said, data.length)

    def infer(self, log_joint: ChainJoint, rule: Rule) -> tuple[Array, ChainJoint]:
        """(S,) the value, and expected counts of first states, transitions and states."""
        joint = dataclasses.replace(log_joint, log_prob=rule.disturb(log_joint.log_prob))
        value, q = _smoothed(joint, rule)
        scorer = rule.scorer()
        return value if scorer is rule else self.evidence(log_joint, scorer), q

    def evidence(self, log_joint: ChainJoint, rule: Rule) -> Array:
        """(S,) the free energy, by a forward pass."""
        return _evidence(log_joint, rule)

    def rule_out(self, log_joint: ChainJoint, allowed: Array) -> ChainJoint:
        """The log-joint without the states (S, T, K) that are not allowed."""
        return dataclasses.replace(log_joint, log_prob=jnp.where(allowed, log_joint.log_prob, -jnp.inf))

    def split(self, q: ChainJoint, data: Sequences) -> tuple[ChainMixing, Array]:
        """Expected counts of first states and of transitions, and resp (S T, K), 0 where nothing is observed."""
        count = ChainMixing(jnp.sum(q.initial, 0), jnp.sum(q.transition, 0))
        resp = jnp.where(data.observed[..., None] > 0, q.log_prob, 0)
        return count, resp.reshape(-1, resp.shape[-1])

    def spread(self, resp: Array, data: Sequences) -> ChainJoint:
        """Counts as if the states of neighbouring steps were independent given their responsibilities.

        One transition of each kind is added in all: what a partition lacks would have probability 0 for ever.
        """
        num, length = data.observed.shape
        resp = resp.reshape(num, length, -1)
        share = safe_divide(resp, jnp.sum(resp, -1, keepdims=True))
        moves = einsum("stj,stk->sjk", resp[:, :-1], share[:, 1:])
        return ChainJoint(resp[:, 0] + 1 / num, moves + 1 / num, resp, data.length)

    def posterior(self, q: ChainJoint) -> Array:
        """(S, T, K) the smoothed states; 0 beyond the end."""
        return q.log_prob

    def predict(self, log_joint: ChainJoint) -> Array:
        """(S, T) the most probable path; -1 beyond the end."""
        path = jnp.argmax(self.infer(log_joint, Hard())[1].log_prob, -1)
        return jnp.where(log_joint.alive, path, -1)

    def decompose(self, log_joint: ChainJoint, old: ChainJoint, rule: Rule) -> Decomposition:
        """The terms of log p(x) = ELBO + KL at q of the rule at `old`, (S,) each.

        H(q) is read off the free energy, F_T = E_q[old] + T H(q); of rules without a temperature, whose q is a path,
        it is 0.
        """
        old = dataclasses.replace(old, log_prob=rule.disturb(old.log_prob))
        (free, q), temperature = _smoothed(old, rule), rule.temperature_of()
        entropy = jnp.zeros_like(free)
        if temperature is not None:
            entropy = safe_divide(free - _expected(old, q), jnp.asarray(temperature, free.dtype))
        expected, evidence = _expected(log_joint, q), self.evidence(log_joint, Exact())
        cross = expected - evidence
        return Decomposition(expected, cross, entropy, expected + entropy, -entropy - cross, evidence)


@jax.custom_jvp
def _smoothed(joint: ChainJoint, rule: Rule) -> tuple[Array, ChainJoint]:
    """(S,) free energies and q. The derivative of the one is the other, which counts as a constant."""
    return passed(joint, rule, lambda found: (jnp.sum(found.gain, 1), found.backward()))


@_smoothed.defjvp
def _smoothed_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    value, q = _smoothed(*primals)
    return (value, q), (_expected(tangents[0], q), jax.tree.map(jnp.zeros_like, q))


@jax.custom_jvp
def _evidence(joint: ChainJoint, rule: Rule) -> Array:
    """(S,) free energies."""
    return passed(joint, rule, lambda found: jnp.sum(found.gain, 1))


@_evidence.defjvp
def _evidence_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    value, q = _smoothed(*primals)
    return value, _expected(tangents[0], q)


def _expected(joint: ChainJoint, q: ChainJoint) -> Array:
    """(S,) E_q of a log-joint."""
    used = lambda a, b: jnp.where(b > 0, b * a, 0).reshape(b.shape[0], -1).sum(1)
    parts = ((joint.initial[None], q.initial), (joint.transition[None], q.transition), (joint.log_prob, q.log_prob))
    return sum((used(a, b) for a, b in parts), jnp.zeros_like(q.length))


def occupancy(initial: Array, transition: Array, length: Array) -> Array:
    """(K,) the expected share of steps spent in each state over a number of steps, by doubling."""

    def double(carried: Any, _: Any) -> Any:
        total, power, done = carried  # the sum over `done` steps from each state, and the transitions over as many
        more = 2 * done <= length
        new = jnp.where(more, total + matmul(power, total), total), jnp.where(more, matmul(power, power), power)
        return (*new, jnp.where(more, 2 * done, done)), None

    eye = jnp.eye(initial.shape[0], dtype=initial.dtype)
    start = eye, transition, jnp.ones((), initial.dtype)
    (total, _, done), _ = jax.lax.scan(double, start, length=40)
    return matmul(initial[None], total)[0] / done
