"""What an algorithm is to `fit`: a state, a step, and the rule by which a step is accepted."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from jaxem.core import tree as _tree
from jaxem.core.arguments import expect, shown
from jaxem.core.numerics import namespace, slack
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.elbo import ELBO
from jaxem.model import At, EStep, LatentModel
from jaxem.models.continuous import ContinuousLatent, MonteCarlo
from jaxem.rules import Rule
from jaxem.stopping import Status
from jaxem.wrappers import unwrapped

# Data and their weights (N,).
Rows = tuple[PyTree, Array]


@dataclass
class EMState:
    """Where one restart stands. `elbo` belongs to `params`; `candidate` is not scored yet.

    Attributes:
      candidate: params to score next, after `step` M-steps.
      params: the last accepted params.
      elbo: their ELBO; -inf before the first step.
      step: number of M-steps behind `candidate`.
      status: a `Status` code.
      restart: number of the restart, which its draws depend on.
      here: `model.at(candidate)` while a step lasts, whose halves share it; else None.
    """

    candidate: PyTree
    params: PyTree
    elbo: ELBO
    step: Array
    status: Array
    restart: Any = dataclasses.field(default=0, kw_only=True)
    here: Any = dataclasses.field(default=None, kw_only=True)

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


@dataclass
class Found(EStep):
    """What an evaluation found, additive over data: found(A ++ B) = found(A) + found(B).

    Attributes:
      stats: expected sufficient statistics; empty where the algorithm uses none.
      elbo_data: ELBO.data of the candidate, nats.
      weight: sum of the weights.
    """

    weight: Array


class Algorithm(ABC):
    """A way of climbing the ELBO, a frozen `jaxem.dataclass`; `fit` owns the loop.

    A step is two: `evaluate` looks at the data and adds up over them, `update` accepts or rejects and proposes. So the
    first may be summed over blocks, devices or batches, and an algorithm may hold another one, whose two halves it
    calls as it likes: what it does with a candidate that the inner one rejects is its own affair.

    A state is an `EMState`; an algorithm may add fields of its own, which `accept` leaves as they are.
    """

    # What it needs of a model: "m_step", "gradient" (constraints, and an ELBO or log-joint) or "coordinates" (factors).
    climbs_by: ClassVar[str] = "m_step"
    # What a step needs of a stream, which shows a batch at a time: "sums" where `update` asks for no rows, "pass" where
    # it takes a pass of its own (`begin_pass`, `in_pass`, `end_pass`), "rows" where it looks at all of them again.
    reads: ClassVar[str] = "rows"
    # Whether `max_steps` is its normal end, as noisy steps seldom meet a stop rule; `fit` is silent about it.
    open_ended: ClassVar[bool] = False

    def prepare(self, model: Any, data: PyTree, key: Array, num_steps: int) -> "Algorithm":
        """The algorithm ready for one fit: its settings checked, callables of the step as arrays, its key taken.

        Called once, on the host, with the model that the user gave, data already cast, the key and `max_steps` of the
        fit. An algorithm that holds another prepares that one.

        Raises:
          TypeError, ValueError: settings out of range, or a model or data that it cannot climb.
        """
        check_climbs(self, model)
        return self

    def settled(self, model: Any, step: Array) -> Array:
        """Whether a stop rule may be trusted from `step` on; always by default."""
        return jnp.asarray(True)

    def init(self, model: Any, params: PyTree, num_restarts: int, dtype: Any) -> Any:
        """The states of all restarts before their first step; every leaf of params has a leading axis R."""
        xp = namespace(params)
        low = xp.full(num_restarts, -xp.inf, dtype)
        zero = xp.zeros(num_restarts, xp.int32)
        restart = xp.arange(num_restarts, dtype=xp.int32)
        return EMState(params, params, ELBO(low, low), zero, zero + xp.int32(Status.RUNNING), restart=restart)

    @abstractmethod
    def evaluate(self, model: Any, state: Any, data: PyTree, weights: Array) -> Found:
        """What the data say of the state's candidate; additive over data."""

    @abstractmethod
    def update(self, model: Any, state: Any, found: Found, rows: Rows | None = None) -> Any:
        """The state after a step: the candidate accepted, or the restart ended, and the next one proposed.

        Args:
          model: the bound model.
          state: the state that was evaluated.
          found: what `evaluate` gave, summed over all data.
          rows: all data and their weights, for algorithms that look at them again; see each.
        """

    def begin_pass(self, model: Any, state: Any, found: Found) -> Any:
        """What a pass over batches begins with, after the evaluation of the state; for algorithms that take one."""
        raise NotImplementedError

    def in_pass(self, model: Any, state: Any, now: Any, data: PyTree, weights: Array, number: Array) -> Any:
        """What the pass has come to after a batch; `number` counts those of all passes."""
        raise NotImplementedError

    def end_pass(self, model: Any, state: Any, found: Found, now: Any) -> Any:
        """The state after the step whose pass it was."""
        raise NotImplementedError

    def conclude(self, model: Any, before: Any, after: Any, small: Callable[[Any, Any], Array]) -> Any:
        """The state after a step, which has converged if the step was small.

        The step that led to its value is the one before, by which time the algorithm must have settled.

        Args:
          model: the bound model.
          before: the state before the step.
          after: the state after it.
          small: the fit's stop rule, of two states.
        """
        settled = (before.step > 0) & self.settled(model, jnp.maximum(before.step - 1, 0))
        converged = (after.status == Status.RUNNING) & small(before, after) & settled
        return dataclasses.replace(after, status=jnp.where(converged, Status.CONVERGED, after.status).astype(jnp.int32))

    def step(self, model: Any, state: Any, data: PyTree, weights: Array) -> Any:
        """`update` of what `evaluate` finds on all data."""
        if isinstance(model, LatentModel):  # XLA would not see that both halves derive the same
            state = dataclasses.replace(state, here=model.at(state.candidate))
        return self.update(model, state, self.evaluate(model, state, data, weights), (data, weights))


def check_climbs(algorithm: Algorithm, model: Any) -> None:
    """Raises TypeError for a model without what the algorithm climbs by."""
    name, other, by = type(algorithm).__name__, type(model).__name__, getattr(model, "climbed_by", None)
    if algorithm.climbs_by == "coordinates" != by:
        raise TypeError(f"algorithm: {name} does not suit {other}; it is for mean-field models")
    if not isinstance(model, LatentModel):
        raise TypeError(f"algorithm: {name} needs a model with an e_step; found {shown(model)}")
    if by == "coordinates" != algorithm.climbs_by:
        raise TypeError(
            f"algorithm: {name} does not suit {other}, whose factors are updated in turn; use CoordinateAscent()"
        )
    if algorithm.climbs_by == "m_step" != by:
        raise TypeError(
            f"algorithm: {name} needs statistics and m_step, which {other} does not have; use GeneralizedEM()"
        )


def at_candidate(model: Any, state: Any) -> At:
    """The model at the state's candidate."""
    return model.at(state.candidate) if state.here is None else state.here


def rule_of(rule: Rule | None, model: Any) -> Rule:
    """The rule, or the model's own."""
    return model.default_rule() if rule is None else rule


def rule_at(rule: Rule | None, model: Any, state: EMState) -> Rule:
    """The rule of one restart at one step."""
    return rule_of(rule, model).fold(state.restart).at(state.step)


def prepared(rule: Rule | None, model: Any, key: Array, num_steps: int) -> Rule | None:
    """The rule ready for a fit; raises TypeError for none that suits the model."""
    check_rule(rule, model)
    return None if rule is None else rule.prepare(key, num_steps)


def check_rule(rule: Any, model: Any) -> None:
    """Raises TypeError unless this is a rule, or None where the model has one of its own, that suits the model."""
    rule = rule_of(rule, model)  # raises where there is none
    expect("rule", rule, Rule, "a rule, as jaxem.Hard() or jaxem.Tempered(2.0), or None")
    model = unwrapped(model)
    if isinstance(rule, MonteCarlo) and not isinstance(model, ContinuousLatent):
        raise TypeError(
            f"rule: MonteCarlo draws a continuous latent, of a ContinuousLatent model; found {shown(model)}; use "
            "jaxem.Exact() or jaxem.Sampled(key)"
        )
    if isinstance(model, ContinuousLatent) and not isinstance(rule, MonteCarlo):
        name = type(model).__name__
        raise TypeError(f"rule: {name} needs a jaxem.MonteCarlo(key, num_samples); found {shown(rule)}")


def accept(
    model: Any,
    state: Any,
    found: Found,
    log_prior: Array,
    candidate: PyTree,
    *,
    promised: Array | bool = True,
    sound: Array | bool = True,
    better: Array | bool = True,
) -> Any:
    """The state after a step: the candidate scored becomes the params, or the restart ends.

    Args:
      model: the model, for its slack.
      state: the state before, an `EMState` or of a subclass, whose further fields stay.
      found: what the data say of `state.candidate`.
      log_prior: its ELBO.params, nats.
      candidate: params to score next.
      promised: whether the objective cannot fall; where it can, a lower value ends nothing.
      sound: False ends the restart as a non-finite value does.
      better: whether the params are to be replaced at all; where not, the restart goes on with those it has.

    Returns:
      The state; NONFINITE or DECREASED, with the params before, where the candidate is not accepted.
    """
    elbo = ELBO(found.elbo_data, log_prior.astype(found.elbo_data.dtype))
    finite = jnp.isfinite(elbo.total) & sound
    fell = promised & (elbo.total < state.elbo.total - slack(elbo.total, found.weight, model.scales))
    accepted = finite & ~fell
    ended = jnp.where(finite, Status.DECREASED, Status.NONFINITE)
    kept = accepted & better
    return dataclasses.replace(
        state,
        candidate=candidate,
        params=_tree.where(kept, state.candidate, state.params),
        elbo=_tree.where(kept, elbo, state.elbo),
        step=state.step + 1,
        status=jnp.where(accepted, state.status, ended).astype(jnp.int32),
        here=None,
    )
