"""What families share about priors on the place of components: checks, and the start that they suggest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem._numerics import is_concrete
from jaxem._pytree import dataclass


@dataclass
class MeanPrior:
    """Pseudo-observations at a known place.

    Attributes:
      centre: m0, (D,) or (K, D).
      strength: kappa, a scalar.
    """

    centre: Array
    strength: Array

    def gap(self, mean: Array) -> Array:
        """(K, D) m0 - mean."""
        return (self.centre if self.centre.ndim == 2 else self.centre[None]) - mean


def check_strength(name: str, value: Any) -> None:
    """Raises unless a value that can be looked at is a finite number >= 0."""
    if is_concrete(value) and not (np.ndim(value) == 0 and 0 <= value < np.inf):
        raise ValueError(f"{name}: expected a finite number >= 0; found {value!r}")


def check_array(name: str, value: Any, shapes: tuple[tuple[Any, ...], ...], positive: bool = False) -> None:
    """Raises unless value has one of the shapes, in which None stands for any length, and finite (positive) entries."""
    if isinstance(value, (list, tuple)):  # its entries would become leaves of the model one by one
        raise TypeError(f"{name}: expected an array; found a {type(value).__name__}")
    fits = lambda shape: (
        len(shape) == np.ndim(value) and all(s in (None, n) for s, n in zip(shape, np.shape(value), strict=True))
    )
    if not any(fits(shape) for shape in shapes):
        names = " or ".join(str(shape).replace("None", "K").replace("'", "") for shape in shapes)
        raise ValueError(f"{name}: expected shape {names}; found {np.shape(value)}")
    if is_concrete(value):
        array = np.asarray(value)
        if not np.isfinite(array).all() or (positive and (array <= 0).any()):
            raise ValueError(f"{name}: expected finite numbers{' > 0' if positive else ''}; found {value!r}")


def differs(centre: Any) -> bool:
    """Whether a place, (D,), (K, D) or None, is given for each component on its own."""
    return centre is not None and np.ndim(centre) == 2


def check_rows(name: str, centre: Any, num_components: int) -> None:
    """Raises unless a place given for each component has K rows."""
    if differs(centre) and np.shape(centre)[0] != num_components:
        raise ValueError(f"{name}: expected {num_components} rows, one for each component; found {np.shape(centre)}")


def nearest(key: Array, features: Array, centres: Array) -> Array:
    """(N, K) one-hot rows of the nearest of K centres, each moved by a normal draw of a fifth of the features' unit."""
    centres = centres + 0.2 * jax.random.normal(key, centres.shape, centres.dtype)
    gap = features[:, None] - centres[None]
    return jax.nn.one_hot(jnp.argmin(jnp.sum(gap**2, -1), 1), centres.shape[0], dtype=features.dtype)
