"""When to stop, and the codes that say how a fit ended."""

import enum
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core.arguments import check_choice, check_constraints, check_number, check_tolerance, expect, shown
from jaxem.core.foreign import named_fields
from jaxem.core.numerics import is_concrete, safe_divide
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree


class Status(enum.IntEnum):
    """How one restart ended. Compiled code carries the integer; `message` says it in words."""

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NONFINITE = 3
    DECREASED = 4
    DEGENERATE = 5
    SCREENED = 6
    INTERRUPTED = 7
    UNDERFIT = 8

    @property
    def message(self) -> str:
        """One sentence for a person."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.RUNNING: "still running",
    Status.CONVERGED: "the stop rule was met",
    Status.MAX_STEPS: "stopped at max_steps before the stop rule was met",
    Status.NONFINITE: "a step gave a non-finite objective; the last finite parameters are kept",
    Status.DECREASED: "a step lowered the objective by more than rounding; the parameters before it are kept",
    Status.DEGENERATE: "its likelihood has no upper end: only the regulariser keeps it finite (a spike)",
    Status.SCREENED: "left behind by screening after a short run",
    Status.INTERRUPTED: "stopped from outside: time limit, Ctrl-C or callback",
    Status.UNDERFIT: "below what independent columns reach without any latent: train longer, or at a lower rate",
}


@dataclass
class Step:
    """One step of one restart, as a stop rule sees it: from params with ELBO.total `previous` to params with `current`.

    Attributes:
      previous: ELBO.total of `old_params`, nats; -inf at the first scoring.
      current: ELBO.total of `params`; NaN where the step was not accepted and `params` are still the old ones.
      old_params: params before the step.
      params: params after it.
      total_weight: sum of the weights.
      rounding: the model's slack, a change of the objective that rounding alone can make.
      model: the bound model.
      data: the data, in the model's own layout; None in the fit of a stream.
      weights: (N,); None in the fit of a stream.
      index: number of M-steps behind `params`.
      trace: ELBO.total after t M-steps for t < index, NaN beyond; None unless the rule's `uses_trace` is set.
    """

    previous: Array
    current: Array
    old_params: PyTree
    params: PyTree
    total_weight: Array
    rounding: Array
    model: Any
    data: PyTree
    weights: Array
    index: Array
    trace: Array | None = None

    @property
    def change(self) -> Array:
        """|current - previous|."""
        return jnp.abs(self.current - self.previous)

    @property
    def noise(self) -> Array:
        """A change of the objective below this is float noise: a sixteenth of `rounding`."""
        return self.rounding / 16


class StopRule(ABC):
    """When a restart has converged: a pure function of one `Step`. A small pytree; subclass it to make your own.

    Whatever the rule, no fit stops while its temperature still changes, nor at a non-finite objective.
    """

    uses_trace: ClassVar[bool] = False
    # Whether it looks at the rows, which a stream cannot give.
    uses_rows: ClassVar[bool] = False

    @property
    def never(self) -> bool:
        """Whether its settings (an atol of -inf) ask for exactly `max_steps` steps; False where they are traced."""
        atol = getattr(self, "atol", 0.0)
        return is_concrete(atol) and bool(np.all(np.isneginf(np.asarray(atol))))

    @abstractmethod
    def __call__(self, step: Step) -> Array:
        """Whether to stop; a scalar bool."""

    def validate(self, model: Any) -> None:
        """Raises TypeError or ValueError for settings out of range, or a model that it cannot look at; on the host."""


@named_fields
@dataclass
class Stop(StopRule):
    """Stops when one step changes the ELBO by little.

        |L_t - L_{t-1}|  <=  atol * sum(weights) + rtol * |L_t| + rounding / 16

    atol is per observation, so it does not depend on N, nor on the units of the data (rescaling the data shifts L by a
    constant); rtol suits objectives that scale with the data, as K-means. `rounding` is the model's slack, 64 eps
    (|L| + sum(weights)) for log-likelihoods: a change below a sixteenth of it is float noise.

    When it lies: a small step is not a small distance. With linear rate r the distance left is about r / (1 - r) steps,
    so a slow EM (overlapping components) stops early, and a plateau (coincident components) looks like an optimum.

    Attributes:
      atol: absolute tolerance per unit of weight, nats; -inf never stops, for a fixed number of steps.
      rtol: relative tolerance.

    Examples:
      >>> Stop(atol=1e-6)
      Stop(atol=1e-06, rtol=0.0)
    """

    atol: float | Array = 1e-8
    rtol: float | Array = 0.0

    def validate(self, model: Any) -> None:
        """Checks that tolerances are numbers >= 0, or -inf for never."""
        check_tolerance("atol", self.atol)
        check_number("rtol", self.rtol, 0)

    def __call__(self, step: Step) -> Array:
        """Whether the step is small enough to stop."""
        bound = self.atol * step.total_weight + self.rtol * jnp.abs(step.current) + step.noise
        return jnp.isfinite(step.current) & jnp.isfinite(step.previous) & (step.change <= bound)


@dataclass
class StopAitken(StopRule):
    """Stops when the objective is near the limit of a geometric series through its last three values.

        r = (L_t - L_{t-1}) / (L_{t-1} - L_{t-2}),   limit = L_t + (L_t - L_{t-1}) r / (1 - r)
        stop where |limit - L_t| <= atol * sum(weights), for 0 <= r < 1; or where the change is float noise

    A distance to the limit instead of the size of a step: for a slow EM it goes on where `Stop` would end.

    When it lies: early, while the rate still changes (leaving a plateau r exceeds 1, and then it does not stop;
    entering one, the limit is that of the plateau), and in float32, where r is a ratio of roundings.

    Attributes:
      atol: distance of the objective to its limit per unit of weight, nats.

    References:
      Boehning, Dietz, Schaub, Schlattmann and Lindsay (1994), The distribution of the likelihood ratio for mixtures of
      densities from the one-parameter exponential family; McLachlan and Peel (2000), Finite Mixture Models, chapter 2.
    """

    atol: float | Array = 1e-8

    uses_trace: ClassVar[bool] = True

    def validate(self, model: Any) -> None:
        """Checks that the tolerance is a number >= 0."""
        check_tolerance("atol", self.atol)

    def __call__(self, step: Step) -> Array:
        """Whether the extrapolated limit is near."""
        assert step.trace is not None
        before = step.trace.at[jnp.maximum(step.index - 2, 0)].get(mode="clip")
        last = step.current - step.previous
        rate = safe_divide(last, step.previous - before)
        ahead = jnp.abs(last) * jnp.abs(safe_divide(rate, 1 - rate))
        near = (rate >= 0) & (rate < 1) & (ahead <= self.atol * step.total_weight)
        known = jnp.isfinite(step.current) & jnp.isfinite(step.previous)
        return known & ((near & (step.index >= 2) & jnp.isfinite(before)) | (step.change <= step.noise))


@dataclass
class StopParams(StopRule):
    """Stops when the parameters move little in one step.

        |theta_t - theta_{t-1}|  <=  atol + (rtol + 8 eps) |theta_{t-1}|

    in the max norm or the 2-norm, for each of the floating leaves as the model stores them (for Gaussians means and
    factors of the covariances).

    When it lies: along a ridge, where params drift at no gain and it never stops; where offsets make |theta| large, so
    that rtol hides a real move (centre the data); and, as any small step, in a slow EM. With labels that switch it
    compares different components.

    Attributes:
      rtol: relative tolerance.
      atol: absolute tolerance, in the units of the params.
      norm: "max" or "2".
    """

    rtol: float | Array = 1e-6
    atol: float | Array = 0.0
    norm: str = static(default="max")

    def validate(self, model: Any) -> None:
        """Checks that tolerances are numbers >= 0, and the name of the norm."""
        check_number("rtol", self.rtol, 0)
        check_tolerance("atol", self.atol)
        check_choice("norm", self.norm, ("max", "2"))

    def __call__(self, step: Step) -> Array:
        """Whether every leaf moved little."""
        size = jnp.max if self.norm == "max" else _length
        moved = jnp.isfinite(step.current) & jnp.isfinite(step.previous)
        for new, old in zip(jax.tree.leaves(step.params), jax.tree.leaves(step.old_params), strict=True):
            if jnp.issubdtype(new.dtype, jnp.floating):
                floor = 8 * jnp.finfo(new.dtype).eps
                bound = self.atol + (self.rtol + floor) * size(jnp.abs(old))
                moved = moved & (size(jnp.abs(new - old)) <= bound)
        return moved


def _length(a: Array) -> Array:
    """The 2-norm of numbers >= 0, whose squares may leave the range of the dtype."""
    largest = jnp.max(a)
    return largest * jnp.sqrt(jnp.sum((a / jnp.where(largest > 0, largest, 1)) ** 2))


@dataclass
class StopQ(StopRule):
    """Stops when the last M-step gained little of the expected log-joint it maximises.

        Q(theta_t, theta_{t-1}) - Q(theta_{t-1}, theta_{t-1}) <= atol * sum(weights) + rounding / 16

    with the priors' terms included. The gain of the log-likelihood is at least this (the cross term never rises), so it
    stops no later than `Stop` at the same tolerance. For models with `log_joint`; two more E-steps' time a step, with
    the model's own rule whatever the algorithm's.

    When it lies: as `Stop` does, and sooner.

    Attributes:
      atol: absolute tolerance per unit of weight, nats.
    """

    atol: float | Array = 1e-8

    uses_rows: ClassVar[bool] = True

    def validate(self, model: Any) -> None:
        """Checks that the tolerance is a number >= 0, and that the model has a log-joint of states."""
        check_tolerance("atol", self.atol)
        if not hasattr(model, "decompose") or not hasattr(model, "default_rule"):
            raise TypeError(
                f"stop: StopQ needs a model with a log_joint of states; found {shown(model)}; use jaxem.Stop()"
            )

    def __call__(self, step: Step) -> Array:
        """Whether the gain of Q was small."""
        rule = step.model.default_rule()
        new, old = (
            step.model.decompose(params, step.old_params, step.data, step.weights, rule).expected_log_joint
            + step.model.elbo_params(params)
            for params in (step.params, step.old_params)
        )
        known = jnp.isfinite(step.current) & jnp.isfinite(step.previous)
        return known & (new - old <= self.atol * step.total_weight + step.noise)


@dataclass
class StopGradient(StopRule):
    """Stops when the gradient of the objective per unit of weight is small: max norm, in unconstrained coordinates.

        max |d ELBO.total / d phi| <= atol * sum(weights),    theta = constrain(phi)

    The condition that defines a stationary point. Needs a model with `constraints()`; one more pass over the data and
    its backward pass a step.

    When it lies: at a saddle (equal components), on a flat ridge, where coordinates run off to infinity (a proportion
    that goes to 0, a spike) and the gradient vanishes on the way, and in float32, whose noise may keep it from ever
    falling below a small atol: then `max_steps` ends the fit.

    Attributes:
      atol: absolute tolerance per unit of weight, nats per unit of the coordinate.
    """

    atol: float | Array = 1e-6

    uses_rows: ClassVar[bool] = True

    def validate(self, model: Any) -> None:
        """Checks that the tolerance is a number >= 0, and that the model declares constraints."""
        check_tolerance("atol", self.atol)
        check_constraints(model.constraints())

    def __call__(self, step: Step) -> Array:
        """Whether the gradient is small."""
        spec = step.model.constraints()

        def objective(free: PyTree) -> Array:
            params = constraints.constrain(spec, free, step.params)
            return step.model.elbo_data(params, step.data, step.weights) + step.model.elbo_params(params)

        gradient = jax.grad(objective)(constraints.unconstrain(spec, step.params))
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(gradient) if g.size]))
        return jnp.isfinite(step.current) & (largest <= self.atol * step.total_weight)


@dataclass
class StopAny(StopRule):
    """Stops when any of the rules would. It lies when any of them does.

    Attributes:
      rules: a tuple of stop rules.
    """

    rules: tuple[StopRule, ...]

    @property
    def uses_trace(self) -> bool:  # type: ignore[override]
        """Whether one of the rules looks at the trace."""
        return any(rule.uses_trace for rule in self.rules)

    @property
    def uses_rows(self) -> bool:  # type: ignore[override]
        """Whether one of the rules looks at the rows."""
        return any(rule.uses_rows for rule in self.rules)

    @property
    def never(self) -> bool:
        """Whether all of the rules cannot stop."""
        return all(rule.never for rule in self.rules)

    def validate(self, model: Any) -> None:
        """Checks each of the rules."""
        _validate(self.rules, model)

    def __call__(self, step: Step) -> Array:
        """Whether one of the rules says so."""
        return jnp.any(_votes(self.rules, step))


@dataclass
class StopAll(StopRule):
    """Stops when all of the rules would at the same step; as cautious as the most cautious.

    Attributes:
      rules: a tuple of stop rules.

    Examples:
      >>> StopAll((Stop(atol=1e-6), StopParams(rtol=1e-4)))
      StopAll(rules=(Stop(atol=1e-06, rtol=0.0), StopParams(rtol=0.0001, atol=0.0, norm='max')))
    """

    rules: tuple[StopRule, ...]

    @property
    def uses_trace(self) -> bool:  # type: ignore[override]
        """Whether one of the rules looks at the trace."""
        return any(rule.uses_trace for rule in self.rules)

    @property
    def uses_rows(self) -> bool:  # type: ignore[override]
        """Whether one of the rules looks at the rows."""
        return any(rule.uses_rows for rule in self.rules)

    @property
    def never(self) -> bool:
        """Whether one of the rules cannot stop."""
        return any(rule.never for rule in self.rules)

    def validate(self, model: Any) -> None:
        """Checks each of the rules."""
        _validate(self.rules, model)

    def __call__(self, step: Step) -> Array:
        """Whether all of the rules say so."""
        return jnp.all(_votes(self.rules, step))


def _validate(rules: Any, model: Any) -> None:
    """Raises unless these are stop rules, at least one, each sound."""
    if not isinstance(rules, (tuple, list)):
        raise TypeError(f"rules: expected a tuple of stop rules, as (Stop(), StopParams()); found {shown(rules)}")
    if not rules:
        raise ValueError("rules: expected at least one stop rule; found none")
    for i, rule in enumerate(rules):
        expect(f"rules[{i}]", rule, StopRule, "a stop rule, as jaxem.Stop()")
        rule.validate(model)


def _votes(rules: tuple[StopRule, ...], step: Step) -> Array:
    """What each rule says."""
    return jnp.stack([rule(step) for rule in rules])
