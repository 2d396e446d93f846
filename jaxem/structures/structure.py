"""Structures: which latent state goes with which observation."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.elbo import Decomposition, decompose
from jaxem.rules import Rule


@dataclass
class Structure:
    """How states and observations hang together; it owns z, and knows nothing of families, priors and fits.

    Data come in units that are independent of each other: rows, or sequences. A unit's log-joint is whatever pytree of
    the structure's own, its leaves with a leading axis of units, from which `infer` makes the free energy

        F(log_joint) = log sum over z of exp(log p(x, z)),      q = dF / d log_joint,

    and q, of the same tree, holds the posterior: its entries are the expected numbers of times that each entry of the
    log-joint was used. By Fisher's identity that is all that an M-step needs.

    As it stands each row has a state of its own, log p(x_n, z_n = k) = log mixing_k + log p(x_n | theta_k): a mixture.
    Others are subclasses, as `jaxem.structures.chain.Chain`.
    """

    def rows(self, data: PyTree) -> PyTree:
        """The observations as the rows (n, ...) that a family explains."""
        return data

    def row_weights(self, weights: Array, data: PyTree) -> Array:
        """(n,) weights of rows, of those of units."""
        return weights

    def join(self, log_mixing: PyTree, log_prob: Array, data: PyTree) -> PyTree:
        """The log-joint, of the log-probabilities of states and those (n, K) of rows."""
        return log_mixing[None] + log_prob

    def infer(self, log_joint: PyTree, rule: Rule) -> tuple[Array, PyTree]:
        """(units,) the value of the rule's E-step, nats, and q."""
        return rule(log_joint)

    def rule_out(self, log_joint: PyTree, allowed: Array) -> PyTree:
        """The log-joint without the states that are not allowed, (units, ..., K)."""
        return jnp.where(allowed, log_joint, -jnp.inf)

    def split(self, q: PyTree, data: PyTree) -> tuple[PyTree, Array]:
        """Sums over units of the expected counts, of the tree of `log_mixing`, and resp (n, K) of the rows."""
        return jnp.sum(q, 0), q

    def spread(self, resp: Array, data: PyTree) -> PyTree:
        """A q of responsibilities (n, K) of rows alone, for starts."""
        return resp

    def posterior(self, q: PyTree) -> Array:
        """(units, ..., K) what a user is told of q: the posterior of each observation's state."""
        return q

    def predict(self, log_joint: PyTree) -> Array:
        """(units, ...) the most probable states, of a unit together; ties to the lowest index."""
        return jnp.argmax(log_joint, -1)

    def decompose(self, log_joint: PyTree, old: PyTree, rule: Rule) -> Decomposition:
        """(units,) the terms of log p(x) = ELBO + KL, at q of the rule at another log-joint."""
        return decompose(log_joint, rule(old)[1])


INDEPENDENT: Any = Structure()
