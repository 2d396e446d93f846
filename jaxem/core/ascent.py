"""A few steps of an optax optimiser uphill in unconstrained coordinates, with a safeguard: never downhill."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import arguments as _arguments
from jaxem.core import constraints
from jaxem.core.tree import PyTree, float_dtype

# Times that a step which does not raise the objective is halved before the old params are kept.
MAX_HALVINGS = 16


def check_optimizer(optimizer: Any, num_steps: Any) -> None:
    """Raises TypeError or ValueError unless these are an optax optimiser, or None, and a number of updates >= 1."""
    _arguments.check_optimizer(optimizer)
    _arguments.check_integer("num_steps", num_steps, 1)


def ascend(
    objective: Callable[[PyTree], Array],
    params: PyTree,
    spec: PyTree,
    optimizer: Any,
    num_steps: int,
    scale: Array,
) -> PyTree:
    """Params at which an objective is at least as large as where it started.

    The optimiser sees one vector of real coordinates and minimises -objective / scale. A result that is not finite or
    lower is halved back towards the start, up to 16 times; then the start itself is returned.

    Args:
      objective: params -> scalar, to be raised.
      params: where to start. Entries on the boundary of their constraint (a proportion of 0) are held there.
      spec: a pytree like params, with a `jaxem.constraints` object at each leaf.
      optimizer: an optax `GradientTransformation`; None for `optax.lbfgs()`.
      num_steps: updates of the optimiser.
      scale: positive scalar that the objective is divided by, as the sum of weights.

    Returns:
      Params like `params`. O(num_steps) values and gradients, a few more in line searches.
    """
    import optax  # half a second, not needed by the closed-form algorithms

    optimizer = optax.with_extra_args_support(optax.lbfgs() if optimizer is None else optimizer)
    start, rebuild = vector(spec, params)
    if start.size == 0 or num_steps == 0:
        return params
    # optax is written for the standard promotion rules.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        loss = lambda free: (-objective(rebuild(free)) / scale).astype(start.dtype)
        first, end, last = _descend(optimizer, loss, start, num_steps)
        end = jnp.where(jnp.all(jnp.isfinite(end)), end, start)
        free, kept = _backtrack(loss, start, first, end, last)
        raised = rebuild(free)
    return jax.tree.map(lambda new, old: jnp.where(kept, new, old), raised, params)


def _descend(optimizer: Any, loss: Any, start: Array, num_steps: int) -> tuple[Array, Array, Array]:
    """(loss at the start, the vector after `num_steps` updates, the loss there)."""
    import optax

    both = jax.value_and_grad(loss)

    def update(carry: Any, _: None) -> tuple[Any, None]:
        free, state, value, gradient = carry
        move, after = optimizer.update(gradient, state, free, value=value, grad=gradient, value_fn=loss)
        moved = (free + move).astype(free.dtype)
        # A line search has just evaluated the loss there.
        known = optax.tree.get(after, "value"), optax.tree.get(after, "grad")
        value, gradient = both(moved) if any(part is None for part in known) else known
        return (moved, like(after, state), value.astype(free.dtype), gradient.astype(free.dtype)), None

    first, gradient = both(start)
    state = jax.tree.map(jnp.array, optimizer.init(start))
    state = like(state, state)
    (end, _, last, _), _ = jax.lax.scan(update, (start, state, first, gradient), None, num_steps)
    return first, end, last


def like(new: PyTree, old: PyTree) -> PyTree:
    """The leaves of `new` in the strong dtypes of `old`, as the carry of a loop needs."""
    return jax.tree.map(lambda a, b: jax.lax.convert_element_type(a, b.dtype), new, old)


def _backtrack(loss: Any, start: Array, first: Array, end: Array, last: Array) -> tuple[Array, Array]:
    """(vector between start and end whose loss is finite and not above the first, whether there is one)."""
    good = lambda value: jnp.isfinite(value) & (value <= first)

    def halve(carry: Any) -> Any:
        free, _, count = carry
        free = start + (free - start) / 2
        return free, loss(free), count + 1

    short = lambda carry: ~good(carry[1]) & (carry[2] < MAX_HALVINGS)
    free, value, _ = jax.lax.while_loop(short, halve, (end, last, jnp.zeros((), jnp.int32)))
    return free, good(value)


def coordinates(spec: PyTree, params: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """(the finite real coordinates of params as a pytree like them, the map back to params).

    An entry on the boundary of its constraint, whose coordinate would be infinite, has a stand-in just inside, and the
    map back restores it. A leaf without coordinates (fixed, or integer) is empty. Leaves under `Real()` pass through
    untouched, at no cost.
    """
    spec = jax.tree.map(_or_fixed, constraints.mirror(spec, params), params)
    inside = jax.tree.map(_inside, spec, params)
    dtype = float_dtype(params)
    free = jax.tree.map(lambda a: a if a.size else a.astype(dtype), constraints.unconstrain(spec, inside))

    def restore(constraint: Any, new: Array, stand_in: Array, old: Array) -> Array:
        return new if isinstance(constraint, constraints.Real) else jnp.where(stand_in == old, new, old)

    def rebuild(free: PyTree) -> PyTree:
        moved = constraints.constrain(spec, free, inside)
        return jax.tree.map(restore, spec, moved, inside, params)

    return free, rebuild


def vector(spec: PyTree, params: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """`coordinates` as one vector instead of a pytree, which keeps an optimiser's program small."""
    free, rebuild = coordinates(spec, params)
    leaves, structure = jax.tree.flatten(free)
    dtype = float_dtype(params)
    moving = [leaf for leaf in leaves if leaf.size]
    joined = jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in moving]) if moving else jnp.zeros(0, dtype)

    def split(joined: Array) -> PyTree:
        parts, first = [], 0
        for leaf in leaves:
            size = math.prod(leaf.shape)
            parts.append(joined[first : first + size].reshape(leaf.shape).astype(leaf.dtype))
            first += size
        return rebuild(jax.tree.unflatten(structure, parts))

    return joined, split


def _or_fixed(constraint: Any, value: Array) -> Any:
    """The constraint, or `Fixed` for a leaf that no gradient moves."""
    return constraint if jnp.issubdtype(value.dtype, jnp.floating) else constraints.Fixed()


def _inside(constraint: Any, value: Array) -> Array:
    """A feasible value whose coordinates are finite: the value itself, but for entries on the boundary."""
    if isinstance(constraint, (constraints.Simplex, constraints.Positive)):
        return jnp.maximum(value, jnp.finfo(value.dtype).tiny)
    if isinstance(constraint, constraints.UnitInterval):
        return jnp.clip(value, jnp.finfo(value.dtype).tiny, 1 - jnp.finfo(value.dtype).epsneg)
    return value
