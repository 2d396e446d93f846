"""Expectation-maximisation."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.algorithm import Algorithm, EMState, Found, Rows, accept, at_candidate, prepared, rule_at, rule_of
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.model import LatentModel
from jaxem.rules import Rule


@dataclass
class EM(Algorithm):
    """Expectation-maximisation: one E-step, accept, one M-step.

        E: q = rule(log-joint at theta)       M: theta = arg max E_q[log p(x, z | theta)] + G(theta)

    The E-step scores the candidate, so each iteration costs one E-step and the compiled program holds one. A candidate
    with a non-finite objective, or, where the rule is monotone, a lower one, is not accepted and ends the restart.

    Attributes:
      rule: the E-step rule; None for the model's own (`Exact`; `Hard` for KMeans). `Tempered` anneals.

    References:
      Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm.
    """

    rule: Rule | None = None

    reads: ClassVar[str] = "sums"

    def prepare(self, model: Any, data: PyTree, key: Array, num_steps: int) -> "EM":
        """The algorithm with its rule's schedule as an array; checks that the model has an m_step, and the rule."""
        super().prepare(model, data, key, num_steps)
        return dataclasses.replace(self, rule=prepared(self.rule, model, key, num_steps))

    def settled(self, model: LatentModel, step: Array) -> Array:
        """Whether a stop rule may be trusted from `step` on."""
        return rule_of(self.rule, model).settled(step)

    def evaluate(self, model: LatentModel, state: EMState, data: PyTree, weights: Array) -> Found:
        """The E-step at the candidate."""
        rule = rule_at(self.rule, model, state)
        found = at_candidate(model, state).e_step(data, weights, rule)
        return Found(found.stats, found.elbo_data, jnp.sum(weights))

    def update(self, model: LatentModel, state: EMState, found: Found, rows: Rows | None = None) -> EMState:
        """Accepts the candidate or ends the restart, and proposes the M-step's params; needs no rows."""
        here = at_candidate(model, state)
        # The value at `step` was reached by the q of the step before: both must be monotone to promise a rise.
        promised = rule_of(self.rule, model).monotone(jnp.maximum(state.step - 1, 0))
        return accept(model, state, found, here.elbo_params(), here.m_step(found.stats), promised=promised)
