"""What an algorithm is to `fit`: a state, a step, and the rule by which a step is accepted."""

from abc import ABC, abstractmethod
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.core import tree as _tree
from jaxem.core.arguments import expect, shown
from jaxem.core.numerics import namespace
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.elbo import ELBO
from jaxem.model import LatentModel
from jaxem.models.continuous import ContinuousLatent, MonteCarlo
from jaxem.rules import Rule
from jaxem.stopping import Status
from jaxem.wrappers import Wrapper


@dataclass
class EMState:
    """Where one restart stands. `elbo` belongs to `params`; `candidate` is not scored yet.

    Attributes:
      candidate: params to score next, after `step` M-steps.
      params: the last accepted params.
      elbo: their ELBO; -inf before the first step.
      step: number of M-steps behind `candidate`.
      status: a `Status` code.
    """

    candidate: PyTree
    params: PyTree
    elbo: ELBO
    step: Array
    status: Array

    @property
    def num_steps(self) -> Array:
        """M-steps behind `params`."""
        rejected = (self.status == Status.NONFINITE) | (self.status == Status.DECREASED)
        return namespace(self.step).maximum(self.step - 1 - rejected.astype(self.step.dtype), 0)

    @property
    def scored(self) -> Array:
        """ELBO.total of the params scored last, which the trace records; NaN where they were not accepted."""
        xp = namespace(self.status)
        rejected = (self.status == Status.NONFINITE) | (self.status == Status.DECREASED)
        return xp.where(rejected, xp.nan, self.elbo.total)

    @property
    def skipped(self) -> Array:
        """Updates that were left out because they were not finite."""
        return namespace(self.step).zeros_like(self.step)


class Algorithm(ABC):
    """A way of climbing the ELBO, a frozen `jaxem.dataclass`; `fit` owns the loop.

    A state is an `EMState`; an algorithm may add fields of its own.
    """

    @property
    def needs_m_step(self) -> bool:
        """Whether it uses the model's statistics and m_step."""
        return True

    def validate(self, model: Any, num_rows: int) -> None:
        """Raises TypeError or ValueError for a model or data that it cannot climb; called on the host by `fit`."""
        name = type(self).__name__
        if not isinstance(model, LatentModel):
            raise TypeError(f"algorithm: {name} needs a model with an e_step; found {shown(model)}")
        if model.climbed_by == "coordinates":
            raise TypeError(
                f"algorithm: {name} does not suit {type(model).__name__}, whose factors are updated in turn; use "
                "CoordinateAscent()"
            )
        if self.needs_m_step and model.climbed_by != "m_step":
            raise TypeError(
                f"algorithm: {name} needs statistics and m_step, which {type(model).__name__} does not have; use "
                "GeneralizedEM()"
            )

    def tabulate(self, num_steps: int) -> "Algorithm":
        """The algorithm with callables of the step replaced by arrays, its settings checked; called on the host."""
        return self

    def bind(self, model: Any, data: PyTree, key: Array, num_steps: int) -> "Algorithm":
        """The algorithm with what it takes from a fit (its key, the number of rows); itself by default.

        Called on the host with the model that the user gave, data already cast, the key and `max_steps` of the fit.
        """
        return self

    @property
    def open_ended(self) -> bool:
        """Whether `max_steps` is its normal end, as noisy steps seldom meet a stop rule; `fit` is silent about it."""
        return False

    def settled(self, model: Any, step: Array) -> Array:
        """Whether a stop rule may be trusted from `step` on; always by default."""
        return jnp.asarray(True)

    def init(self, model: Any, params: PyTree, num_restarts: int, dtype: Any) -> Any:
        """The states of all restarts before their first step; every leaf of params has a leading axis R."""
        xp = namespace(params)
        low = xp.full(num_restarts, -xp.inf, dtype)
        zero = xp.zeros(num_restarts, xp.int32)
        return EMState(params, params, ELBO(low, low), zero, zero + xp.int32(Status.RUNNING))

    @abstractmethod
    def step(self, model: Any, state: Any, data: PyTree, weights: Array) -> Any:
        """Scores the candidate, accepts it or ends the restart, and proposes the next."""


def check_rule(rule: Any, model: Any) -> None:
    """Raises TypeError unless this is a rule, or None where the model has one of its own, that suits the model."""
    if rule is None:
        rule = model.default_rule()  # raises where there is none
    expect("rule", rule, Rule, "a rule, as jaxem.Hard() or jaxem.Tempered(2.0), or None")
    while isinstance(model, Wrapper):
        model = model.model
    if isinstance(rule, MonteCarlo) and not isinstance(model, ContinuousLatent):
        raise TypeError(
            f"rule: MonteCarlo draws a continuous latent, of a ContinuousLatent model; found {shown(model)}; use "
            "jaxem.Exact() or jaxem.Sampled(key)"
        )
    if isinstance(model, ContinuousLatent) and not isinstance(rule, MonteCarlo):
        name = type(model).__name__
        raise TypeError(f"rule: {name} needs a jaxem.MonteCarlo(key, num_samples); found {shown(rule)}")


def accept(
    model: Any, state: EMState, elbo: ELBO, candidate: PyTree, weights: Array, promised: Array | bool = True
) -> EMState:
    """The state after a step: the candidate scored becomes the params, or the restart ends.

    Args:
      model: the model, for its slack.
      state: the state before.
      elbo: ELBO of `state.candidate`, nats.
      candidate: params to score next.
      weights: (N,).
      promised: whether the objective cannot fall; where it can, a lower value ends nothing.

    Returns:
      The state; NONFINITE or DECREASED, with the params before, where the candidate is not accepted.
    """
    finite = jnp.isfinite(elbo.total)
    fell = promised & (elbo.total < state.elbo.total - model.slack(elbo.total, jnp.sum(weights)))
    accepted = finite & ~fell
    ended = jnp.where(finite, Status.DECREASED, Status.NONFINITE)
    return EMState(
        candidate=candidate,
        params=_tree.where(accepted, state.candidate, state.params),
        elbo=_tree.where(accepted, elbo, state.elbo),
        step=state.step + 1,
        status=jnp.where(accepted, state.status, ended).astype(jnp.int32),
    )
