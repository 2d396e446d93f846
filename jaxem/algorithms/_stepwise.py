"""One update of online EM, and the checks of its settings."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import arguments as _arguments
from jaxem.core import tree as _tree
from jaxem.core.inputs import as_many
from jaxem.core.numerics import safe_divide, scrambled
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.model import LatentModel
from jaxem.rules import Rule

# A callable rate is tabulated for this many updates in a fit, whose number of rows is not known by then.
TABLE = 1 << 16
# Averages weigh update t by about t^ETA, so that the start is forgotten without a number of steps to choose.
ETA = 3
# Double rounds of `shuffled`.
ROUNDS = 4


@dataclass
class OnlineState:
    """Where a stream stands: a pytree of arrays, to be saved and resumed as any other.

    Attributes:
      params: the current params.
      stats: the moving average of statistics, relative to `params`, at the scale of a total weight of `num_rows`.
      average: the average of `stats` over updates, relative to `params`; None without averaging.
      step: number of batches seen.
      skipped: how many of them were left out, their statistics being not finite.
      num_rows: the total weight of what the batches stand for: N where all weights are 1.
    """

    params: PyTree
    stats: PyTree
    average: PyTree
    step: Array
    skipped: Array
    num_rows: Array


def shuffled(key: Array, index: Array, num: int) -> Array:
    """Places of `index` (int32) in a random order of 0..num-1, computed place by place, without the order in memory.

    A Feistel network on a grid of about sqrt(num) x sqrt(num), applied again to the few that leave the range. Sorting
    random numbers instead takes longer on a CPU than all else in a pass, and memory for N integers.
    """
    width = max(1, math.isqrt(num - 1) + 1)
    height = -(-num // width)
    keys = jax.random.bits(key, (ROUNDS, 2), jnp.uint32)

    def scramble(x: Array) -> Array:
        row, column = x // jnp.uint32(width), x % jnp.uint32(width)
        for one, two in keys:
            row = (row + scrambled(column, one) % jnp.uint32(height)) % jnp.uint32(height)
            column = (column + scrambled(row, two) % jnp.uint32(width)) % jnp.uint32(width)
        return row * jnp.uint32(width) + column

    outside = lambda x: jnp.any(x >= num)
    again = lambda x: jnp.where(x >= num, scramble(x), x)
    return jax.lax.while_loop(outside, again, scramble(index.astype(jnp.uint32))).astype(jnp.int32)


def tabulate(name: str, schedule: Any, num: int) -> np.ndarray:
    """Values of a schedule; optax's are evaluated together, what looks at the number of the update one by one."""
    try:
        if getattr(jax.eval_shape(schedule, jax.ShapeDtypeStruct((), np.int32)), "shape", None) != ():
            raise TypeError("no number")
        return np.asarray(jax.jit(jax.vmap(schedule))(np.arange(num)), np.float64) * np.ones(num)
    except (jax.errors.JAXTypeError, TypeError, ValueError):
        return _arguments.tabulated(name, schedule, num)


def tabulated(rate: Any) -> np.ndarray:
    """Values of a schedule of rates in (0, 1]."""
    table = tabulate("rate", rate, TABLE)
    check_rates(table, decays=True)
    return table


def check_rates(rate: Any, decays: bool = False) -> None:
    """Raises unless the rates are in (0, 1]; the values of a schedule may decay to 0."""
    what, each = "a number, an array over updates or a callable of the update", "numbers in (0, 1]"
    _arguments.check_number("rate", rate, 0, 1, above=not decays, dims=(0, 1), what=what, each=each)


def unless_nan(new: PyTree, old: PyTree) -> PyTree:
    """The new params, or the old if there is a NaN in the new."""
    floats = [leaf for leaf in jax.tree.leaves(new) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return _tree.where(jnp.any(jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in floats])), old, new)


def _mix(old: PyTree, new: PyTree, rate: Array, scale: Array) -> PyTree:
    return jax.tree.map(lambda a, b: (1 - rate) * a + rate * (scale * b), old, new)


def absorb(
    model: LatentModel, state: OnlineState, batch: PyTree, weights: Array, rate: Array, rule: Rule
) -> OnlineState:
    """One batch: E-step, moving average, M-step, and the statistics carried to the new params.

    Statistics are scaled by weights, not by numbers of rows: a batch padded with rows of weight 0, or with one row of
    weight 2 in place of two, is the same batch. One without any weight tells nothing and changes no statistics.
    """
    here = model.at(state.params)
    found = here.e_step(batch, weights, rule).stats
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(found)]))
    weight = jnp.sum(weights)
    scale = safe_divide(state.num_rows, weight)
    stats = _tree.where(finite & (weight > 0), _mix(state.stats, found, rate, scale), state.stats)
    average = state.average
    if average is not None:
        share = (ETA + 1) / (state.step.astype(scale.dtype) + (ETA + 1))
        average = _mix(average, stats, share, jnp.ones_like(scale))
    new = unless_nan(here.m_step(stats), state.params)
    there = model.at(new)
    return OnlineState(
        params=new,
        stats=here.rebase(stats, there),
        average=None if average is None else here.rebase(average, there),
        step=state.step + 1,
        skipped=state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32),
        num_rows=state.num_rows,
    )


def start_shapes(model: LatentModel, sample: PyTree) -> PyTree:
    """Shapes of a start of the model's own, as if the sample had the rows that a random start needs."""
    rows, weights = as_many(model, sample)
    start = lambda model, data, weights: model.bind(data, weights).init(jax.random.key(0), data, weights)
    return jax.eval_shape(start, model, rows, weights)
