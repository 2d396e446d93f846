"""Priors on the place of components, and the start that they suggest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.pytree import dataclass
from jaxem.families.family import Family


@dataclass
class MeanPrior:
    """Pseudo-observations at a known place.

    Attributes:
      centre: m0, (D,) or (K, D).
      strength: kappa, a scalar.
    """

    centre: Array
    strength: Array

    @property
    def place(self) -> Array:
        """(1 or K, D) m0."""
        return self.centre if self.centre.ndim == 2 else self.centre[None]


class PlacedFamily(Family):
    """A family whose prior may have a place m0 for each component: `pseudo_mean` (K, D), beside (D,) or None.

    Components are then not interchangeable: they keep the order of their priors, and starts give each row to the
    nearest m0 in `features`, with noise of a fifth of a feature's standard deviation from the key.
    """

    pseudo_mean: Any

    @property
    def exchangeable(self) -> bool:
        """Whether the prior is the same for all components, so that their order means nothing."""
        return self.pseudo_mean is None or np.ndim(self.pseudo_mean) != 2

    def init_resp(self, key: Array, x: Array, weights: Array, num_components: int, method: str) -> Array | None:
        """(N, K) rows to the nearest `pseudo_mean`, jittered by the key; None where components have no mean each."""
        if self.exchangeable:
            return None
        centres = self.features(jnp.asarray(self.pseudo_mean, x.dtype))
        centres = centres + 0.2 * jax.random.normal(key, centres.shape, jnp.float32).astype(centres.dtype)
        gap = self.features(x)[:, None] - centres[None]
        return jax.nn.one_hot(jnp.argmin(jnp.sum(gap**2, -1), 1), num_components, dtype=x.dtype)

    def check_places(self, num_components: int) -> None:
        """Raises unless a place given for each component has K rows."""
        if not self.exchangeable and np.shape(self.pseudo_mean)[0] != num_components:
            found = np.shape(self.pseudo_mean)
            raise ValueError(f"pseudo_mean: expected {num_components} rows, one for each component; found {found}")
