"""Sequences of different lengths as arrays of one, and answers about them in the form that they came in."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.numerics import is_concrete
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree


@dataclass
class Sequences:
    """S sequences of at most T steps; made by `jaxem.sequences`.

    Attributes:
      values: the observations (S, T, ...), any pytree; beyond the end and where nothing was observed, copies of others.
      length: (S,) steps of each sequence.
      observed: (S, T) 1 where there is an observation; 0 for a step without one, and beyond the end.
      names: of the columns of each array, by its path; None once they are read.
    """

    values: PyTree
    length: Array
    observed: Array
    names: Any = static(default=None)

    def __repr__(self) -> str:
        num, steps = self.observed.shape
        if not is_concrete(self):
            return f"Sequences({num} of at most {steps} steps)"
        missing = int(self.length.sum() - self.observed.sum())
        gaps = f", {missing} without an observation" if missing else ""
        return f"Sequences({num} of {int(self.length.min())} to {int(self.length.max())} steps{gaps})"


def is_listed(data: Any) -> bool:
    """Whether data are a list of sequences, not of numbers."""
    return isinstance(data, list) and not (data and isinstance(data[0], (int, float)))


def most_axes(data: PyTree) -> int:
    """The largest number of axes among arrays."""
    return max((getattr(leaf, "ndim", 0) for leaf in jax.tree.leaves(data)), default=0)


def total_weight(data: PyTree, weights: Array) -> Array:
    """The number of observations that weights (N,) stand for: their sum, or of sequences that of their observations."""
    found = sequences_in(data)
    return jnp.sum(weights) if found is None else jnp.sum(weights[:, None] * found.observed)


def num_observations(data: PyTree, weights: Array) -> Array:
    """The number of observations of positive weight, int32."""
    found, used = sequences_in(data), weights > 0
    return jnp.sum(used if found is None else used[:, None] & (found.observed > 0), dtype=jnp.int32)


def most_steps(data: PyTree) -> int:
    """T of sequences; 0 of anything else."""
    found = sequences_in(data)
    return 0 if found is None else found.observed.shape[1]


def lengthened(data: PyTree, steps: int) -> PyTree:
    """Sequences on the host, and what is known of each step, padded to at least so many steps."""
    more = max(0, steps - most_steps(data))
    pad = lambda leaf, mode: np.pad(leaf, [(0, more if axis == 1 else 0) for axis in range(leaf.ndim)], mode)
    whole = lambda part: jax.tree.map(lambda leaf: pad(leaf, "edge") if leaf.ndim > 1 else leaf, part)
    found, *known = data if isinstance(data, tuple) else (data,)
    marks = pad(found.observed, "constant")
    found = dataclasses.replace(found, values=whole(found.values), observed=marks)
    return (found, *map(whole, known)) if known else found


def sequences_in(data: PyTree) -> Sequences | None:
    """The sequences that data are, with or without labels; None for rows."""
    if isinstance(data, tuple) and len(data) == 2:
        data = data[0]  # with labels
    return data if isinstance(data, Sequences) else None


def answer(out: Any, given: Any, data: PyTree, by_step: bool = True) -> Any:
    """What was computed of sequences, one entry for each, in the form they were given in; anything else as it is.

    Args:
      out: an answer; an array (S, ...) or (S, T, ...) is one for each sequence or step.
      given: the data as they were given.
      data: the same as `Sequences`, or rows.
      by_step: whether an axis as long as the steps is one of steps.

    Returns:
      Of a single sequence its entry; of a list a list for (S, T, ...), each as long as its sequence; else `out`.
    """
    found = sequences_in(data)
    if found is None or not isinstance(out, jax.Array) or out.ndim == 0 or out.shape[0] != found.observed.shape[0]:
        return out
    given = given[0] if isinstance(data, tuple) else given
    if isinstance(given, Sequences) or (isinstance(given, tuple) and most_axes(given[0]) > 2):
        return out
    by_step = by_step and out.ndim > 1 and out.shape[1] == found.observed.shape[1]
    if is_listed(given):
        return [row[: int(n)] for row, n in zip(out, found.length, strict=True)] if by_step else out
    return out if most_axes(given) > 2 else out[0]
