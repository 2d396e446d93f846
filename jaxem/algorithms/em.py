"""Expectation-maximisation."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.algorithm import Algorithm, EMState, accept, check_rule
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.elbo import ELBO
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

    def validate(self, model: Any, num_rows: int) -> None:
        """Checks that the model has an e_step and an m_step, and that the rule is one that suits it."""
        super().validate(model, num_rows)
        check_rule(self.rule, model)

    def tabulate(self, num_steps: int) -> "EM":
        """The algorithm with callables of the step replaced by arrays."""
        return self if self.rule is None else dataclasses.replace(self, rule=self.rule.tabulate(num_steps))

    def _rule(self, model: LatentModel) -> Rule:
        return model.default_rule() if self.rule is None else self.rule

    def settled(self, model: LatentModel, step: Array) -> Array:
        """Whether a stop rule may be trusted from `step` on."""
        return self._rule(model).settled(step)

    def step(self, model: LatentModel, state: EMState, data: PyTree, weights: Array) -> EMState:
        """Scores the candidate, accepts it or ends the restart, and proposes the next."""
        rule = self._rule(model)
        here = model.at(state.candidate)
        found = here.e_step(data, weights, rule.at(state.step))
        elbo = ELBO(found.elbo_data, here.elbo_params().astype(found.elbo_data.dtype))
        # The value at `step` was reached by the q of the step before: both must be monotone to promise a rise.
        promised = rule.monotone(jnp.maximum(state.step - 1, 0))
        return accept(model, state, elbo, here.m_step(found.stats), weights, promised)
