"""What a likelihood is to a decoder: how outputs become p(x | z)."""

from abc import ABC, abstractmethod
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.core.normal import standard_promotion
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.likelihoods.columns import Columns, standard


class Likelihood(ABC):
    """p(x | z) of D columns from the outputs of a decoder, columns independent given z; a frozen `jaxem.dataclass`.

    `params` are what a likelihood learns besides the network, such as a noise scale, and where `standardise` made them
    the coordinates of the outputs, which nothing moves. With params from `init` outputs are in the data's own units.
    """

    def num_outputs(self, num_columns: int) -> int | None:
        """Outputs that a decoder must have for D columns; None where it is not for the likelihood to say."""
        return num_columns

    def validate(self, x: Any) -> None:
        """Raises ValueError or TypeError, naming the argument, for data outside the support; on the host."""

    def init(self, x: Array, weights: Array) -> PyTree:
        """Starting params for data x (N, D) with weights (N,), outputs in the data's own units."""
        return ()

    def standardise(self, x: Array, weights: Array, common: bool = False) -> PyTree | None:
        """Starting params with which outputs of 0 say that columns are independent, each with its own mean and spread.

        A unit of an output is about a standard deviation of its column; with `common` one scale serves all columns of
        a density. None, the default, where a likelihood has no such coordinates.
        """
        return None

    def features(self, x: Array) -> Array:
        """The data on the scale whose mean and deviation the encoder's inputs are standardised by, elementwise."""
        return x

    def inputs(self, x: Array, weights: Array, common: bool = False) -> Columns | tuple[()]:
        """Coordinates of the encoder's inputs, of `features(x)`; () where it sees the data as they are."""
        return standard(self.features(x), weights, common)

    def constraints(self) -> PyTree:
        """A `jaxem.constraints` object for each leaf of the params."""
        return ()

    def influence(self, params: PyTree) -> Array | None:
        """Share of the noise variance that is the floor's, about 1 for a spike; None where that cannot happen."""
        return None

    @abstractmethod
    def log_prob(self, params: PyTree, outputs: Any, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats, summed over columns."""

    @abstractmethod
    def mean(self, params: PyTree, outputs: Any) -> Array:
        """E[x | z]: (n, D), or (n, D, levels) probabilities."""

    @abstractmethod
    def sample(self, key: Array, params: PyTree, outputs: Any) -> Array:
        """(n, D) draws of x given z."""

    @abstractmethod
    def distribution(self, params: PyTree, outputs: Any) -> Any:
        """A batch of n distrax distributions of x (D,) (imports distrax)."""


@dataclass
class FromDecoder(Likelihood):
    """The distribution itself is the decoder's output: a distrax one, or anything with log_prob, sample and mean."""

    def num_outputs(self, num_columns: int) -> int | None:
        """None: outputs are a distribution."""
        return None

    def log_prob(self, params: PyTree, outputs: Any, x: Array) -> Array:
        """(n,) log-density, summed over whatever follows the rows."""
        with standard_promotion():
            found = outputs.log_prob(x)
        if jnp.ndim(found) == 0 or found.shape[0] != x.shape[0]:
            raise ValueError(
                f"decoder: expected a distribution whose log_prob of {x.shape} has shape ({x.shape[0]},) or "
                f"{x.shape}; found {jnp.shape(found)}"
            )
        return jnp.sum(found.reshape(x.shape[0], -1), 1).astype(x.dtype)

    def mean(self, params: PyTree, outputs: Any) -> Array:
        """The distribution's mean."""
        with standard_promotion():
            return outputs.mean()

    def sample(self, key: Array, params: PyTree, outputs: Any) -> Array:
        """A draw for each row."""
        with standard_promotion():
            return outputs.sample(seed=key)

    def distribution(self, params: PyTree, outputs: Any) -> Any:
        """The distribution, as it is."""
        return outputs
