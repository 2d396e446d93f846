"""When to stop, and the codes that say how a fit ended."""

import enum

import jax.numpy as jnp
from jax import Array

from jaxem._pytree import dataclass


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
    Status.DEGENERATE: "a component collapsed onto a few points: its likelihood has no upper end (a spike)",
    Status.SCREENED: "left behind by screening after a short run",
    Status.INTERRUPTED: "stopped from outside: time limit, Ctrl-C or callback",
}


@dataclass
class Stop:
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

    def __call__(self, previous: Array, current: Array, total_weight: Array, rounding: Array) -> Array:
        """Whether a step from objective `previous` to `current` (nats) is small enough to stop."""
        change = jnp.abs(current - previous)
        bound = self.atol * total_weight + self.rtol * jnp.abs(current) + rounding / 16
        return jnp.isfinite(current) & jnp.isfinite(previous) & (change <= bound)
