"""Random streams of a fit: all come from its one key, and none meets another."""

from typing import Any

import jax
import numpy as np
from jax import Array

from jaxem.core.arguments import as_key

# `fit` draws the start of restart i from fold_in(key, i), i < 2^31; what an algorithm draws takes the other half.
DRAWS = np.uint32(1 << 31)  # of an E-step rule, and of restart i of a gradient ascent from here on
ORDER = np.uint32((1 << 31) + (1 << 30))  # of the rows, the same for all restarts
SCORE = np.uint32((1 << 32) - 1)


def own_or_fits(key: Any, fits: Array | None, stream: np.uint32) -> Array:
    """The key of a setting, or where that is None a stream of the fit's; TypeError for neither, or no random key."""
    return as_key(key) if key is not None or fits is None else jax.random.fold_in(fits, stream)
