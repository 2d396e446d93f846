"""What a collapsed component collapsed on, in sentences with a remedy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

# A component whose spread is more than this share the penalty's is a spike; honest optima are below 4e-5.
DEGENERATE = 0.1
# Collapse is judged as under a penalty of at least so many pseudo-observations, or a spike without one goes unseen.
LEAST_STRENGTH = 1e-6
# Weights are counts. Below so many observations in all nothing can be said about collapse: the penalty outweighs them.
FEWEST_OBSERVATIONS = 1e-2


def least_strength(mean_weight: Array) -> Array:
    """The strength that collapse is judged by at least; with the mean weight where rows stand for many."""
    return LEAST_STRENGTH * jnp.maximum(mean_weight, 1)


def collapses(influence: np.ndarray, count: np.ndarray, column: np.ndarray, held: np.ndarray, shape: Any) -> list[str]:
    """One sentence for each kind of collapse among components.

    Args:
      influence: (K,) the penalty's share of each component's spread.
      count: (K,) expected observations.
      column: (K, D) the penalty's variance over that of each column alone.
      held: (D,) columns that cannot collapse.
      shape: the class of the covariances, of `jaxem.families.covariance`.

    Returns:
      Sentences; none where no component is a spike.
    """
    spikes = np.flatnonzero(influence > DEGENERATE).tolist()
    if not spikes:
        return []
    joint, shared = shape.correlated, shape.shared
    rank = int(np.sum(~held))
    total = np.full_like(count, count.sum()) if shared else count
    least = rank + 1 if joint else 2
    single = (column / np.maximum(total, 1e-30)[:, None] > DEGENERATE) & ~held[None]
    few = [k for k in spikes if total[k] <= least + 1e-3]
    rest = [k for k in spikes if k not in few]
    flat = [k for k in rest if single[k].any()]
    # Near-spikes, which hardly more rows than columns have by chance.
    few += [k for k in rest if k not in flat and total[k] < (2 * least if joint else 4)]
    rest = [k for k in rest if k not in few]
    said = []
    if few:
        counts = ", ".join(f"{total[k]:.3g}" for k in few)
        said.append(
            f"{_names(few, shared)}: {counts} observations for {rank} columns are too few for a covariance: fewer "
            f"components, more rows, {'covariance diag, ' if joint else ''}or pseudo_observations=1"
        )
    if flat:
        columns = name_columns(single[flat].any(0))
        said.append(
            f"{_names(flat, shared)}: columns {columns} have one value there (a detection limit, or rounding): add "
            "noise of the size of the rounding, model such rows apart, or take pseudo_observations=1"
        )
    if len(flat) < len(rest):
        names = _names([k for k in rest if k not in flat], shared)
        said.append(
            f"{names}: columns depend on each other there, though none is constant: leave one out, or take covariance "
            "diag or pseudo_observations=1"
        )
    return said


def name_columns(which: Any) -> str:
    """The columns of a mask (D,) in words, the first ten of many; empty if there are none."""
    found = np.flatnonzero(np.asarray(which)).tolist()
    if len(found) <= 12:
        return str(found) if found else ""
    return f"{str(found[:10])[:-1]}, ...] ({len(found)} in all)"


def _names(index: list[int], shared: bool) -> str:
    if shared:
        return "the covariance of all components collapsed"
    return f"components {[int(k) for k in index]} collapsed"
