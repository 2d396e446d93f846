"""Gaussian likelihoods: fixed, shared or predicted noise, never below a floor."""

import inspect
import math
from abc import ABCMeta
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import constraints
from jaxem.core.arguments import check_number, nearest
from jaxem.core.checks import check_matrix
from jaxem.core.normal import standard_promotion
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.likelihoods.columns import Columns, moments, standard
from jaxem.likelihoods.likelihood import Likelihood

KINDS = ("shared", "predicted")


@dataclass
class Noise:
    """The params of a "shared" scale.

    Attributes:
      scale: the standard deviation of the noise, a scalar: a share of each column's own, or in the data's units where
        there are no columns.
      columns: `Columns`, or () for outputs in the data's own units.
    """

    scale: Array
    columns: PyTree = ()


class _ByScale(ABCMeta):
    """Calling `Gaussian` makes the one of its subclasses that the scale asks for; they are called as any class."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs) if cls is not Gaussian else _by_scale(*args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        own = inspect.signature(_by_scale if cls is Gaussian else vars(cls)["__init__"])
        return own.replace(parameters=[p for p in own.parameters.values() if p.name != "self"])


def _by_scale(scale: float | Array | str = "shared", floor: float | Array = 1e-3) -> "Gaussian":
    if not isinstance(scale, str):
        return FixedGaussian(floor, scale)
    if scale not in KINDS:
        remedy = nearest(scale, KINDS)
        raise ValueError(f"scale: expected a number, 'shared' or 'predicted'; found {scale!r}{remedy}")
    return SharedGaussian(floor) if scale == "shared" else PredictedGaussian(floor)


@dataclass
class Gaussian(Likelihood, metaclass=_ByScale):
    """Real columns: x_nd | z ~ N(mean_nd(z), scale_nd^2).

        log p(x | z) = sum_d { -(x_d - mean_d)^2 / (2 scale_d^2) - log scale_d - log(2 pi) / 2 }

    A density has no upper end: a decoder that reproduces its training data gains log(1 / scale) for every entry as the
    noise falls, so a learned scale has a floor. A fit whose shared scale is within about 3 times the floor ends as
    DEGENERATE; of a predicted one only a look at the scales, or at held-out data, tells.

    Learned noise and its floor are relative to the columns' own standard deviations where a `VAE` standardises: scale_d
    is a learned number times that of column d, so that units and offsets change nothing but the log-density, by the
    logarithms of the units. A constant column counts as one of deviation 1. With `VAE(..., standardise="table")` they
    are relative to one deviation for all columns, with None, and with params from `init`, in the data's own units.

    One of the three classes below, by the scale.

    Args:
      scale: a number > 0 or an array (D,): known noise, always in the data's own units; "shared": one learned scale;
        "predicted": the decoder's second half of outputs, by floor + log2(1 + exp(output)).
      floor: least standard deviation of learned noise, relative as the noise is.

    Raises:
      ValueError: a name that is neither "shared" nor "predicted".

    Examples:
      >>> Gaussian(1.0).log_prob((), jnp.zeros((1, 1)), jnp.zeros((1, 1))).round(4).tolist()
      [-0.9189]

    References:
      Mattei and Frellsen (2018), Leveraging the exact likelihood of deep latent variable models, section 2 (that the
      likelihood is unbounded).
    """

    floor: float | Array = 1e-3

    def _parts(self, params: PyTree, outputs: Array) -> tuple[Array, Array]:
        """(mean (n, D), scale that broadcasts against it), in the coordinates of the columns."""
        raise NotImplementedError

    def _columns(self, params: PyTree) -> PyTree:
        """`Columns`, or ()."""
        return params

    def constraints(self) -> PyTree:
        """Coordinates are fixed."""
        return constraints.Fixed()

    def validate(self, x: Any) -> None:
        """Raises unless x is (N, D) and the floor a number >= 0."""
        check_matrix(x)
        check_number("floor", self.floor, 0, dims=(0, 1), each="finite numbers >= 0")

    def standardise(self, x: Array, weights: Array, common: bool = False) -> PyTree:
        """Each column's mean and standard deviation, or one deviation for all."""
        return standard(x, weights, common)

    def log_prob(self, params: PyTree, outputs: Array, x: Array) -> Array:
        """(n,) log p(x_n | z_n), nats in the data's own units."""
        mean, scale = self._parts(params, outputs)
        columns = self._columns(params)
        moved = isinstance(columns, Columns)
        residual = ((columns.standardised(x) if moved else x) - mean) / scale
        found = jnp.sum(-0.5 * residual**2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi), 1)
        return found - jnp.sum(jnp.log(columns.scale)) if moved else found

    def _values(self, params: PyTree, outputs: Array) -> tuple[Array, Array]:
        """(mean, scale) in the data's own units."""
        mean, scale = self._parts(params, outputs)
        columns = self._columns(params)
        return (columns.values(mean), columns.scale[None] * scale) if isinstance(columns, Columns) else (mean, scale)

    def mean(self, params: PyTree, outputs: Array) -> Array:
        """(n, D) means."""
        return self._values(params, outputs)[0]

    def sample(self, key: Array, params: PyTree, outputs: Array) -> Array:
        """(n, D) draws."""
        mean, scale = self._values(params, outputs)
        return mean + scale * jax.random.normal(key, mean.shape, mean.dtype)

    def distribution(self, params: PyTree, outputs: Array) -> Any:
        """A batch of n, as a distrax distribution."""
        import distrax

        mean, scale = self._values(params, outputs)
        with standard_promotion():
            return distrax.Independent(distrax.Normal(mean, jnp.broadcast_to(scale, mean.shape)), 1)


@dataclass
class FixedGaussian(Gaussian):
    """Known noise; `Gaussian(number)`.

    Attributes:
      floor: not used.
      scale: the standard deviation, a number > 0 or (D,), in the data's own units.
    """

    scale: float | Array = 1.0

    def validate(self, x: Any) -> None:
        """Raises unless x is (N, D) and the scale positive."""
        check_matrix(x)
        check_number("scale", self.scale, 0, above=True, dims=(0, 1), each="finite numbers > 0")

    def _parts(self, params: PyTree, outputs: Array) -> tuple[Array, Array]:
        scale = jnp.broadcast_to(jnp.asarray(self.scale, outputs.dtype), outputs.shape[1:])
        return outputs, (scale / params.scale if isinstance(params, Columns) else scale)[None]


@dataclass
class SharedGaussian(Gaussian):
    """One learned scale for all rows and columns, relative to the columns' own; `Gaussian("shared")`.

    Attributes:
      floor: its least value.
    """

    def init(self, x: Array, weights: Array) -> Noise:
        """The data's own root mean square distance from the mean, or the least that the floor allows."""
        return Noise(self._above(jnp.sqrt(jnp.mean(moments(x, weights)[1] ** 2))))

    def standardise(self, x: Array, weights: Array, common: bool = False) -> Noise:
        """Noise as wide as the columns."""
        return Noise(self._above(jnp.ones((), x.dtype)), standard(x, weights, common))

    def _above(self, scale: Array) -> Array:
        floor = jnp.asarray(self.floor, scale.dtype)
        return jnp.maximum(scale, jnp.where(floor > 0, 2 * floor, 1e-3))

    def constraints(self) -> Noise:
        """Above the floor."""
        return Noise(constraints.Above(self.floor), constraints.Fixed())  # type: ignore[arg-type]

    def influence(self, params: Noise) -> Array:
        """The floor's share of the variance."""
        return (jnp.asarray(self.floor, params.scale.dtype) / params.scale) ** 2

    def _columns(self, params: Noise) -> PyTree:
        return params.columns

    def _parts(self, params: Noise, outputs: Array) -> tuple[Array, Array]:
        return outputs, params.scale.reshape(1, 1)


@dataclass
class PredictedGaussian(Gaussian):
    """The decoder says the noise of every entry; `Gaussian("predicted")`.

    Attributes:
      floor: least standard deviation, relative to the column's own.
    """

    def num_outputs(self, num_columns: int) -> int | None:
        """2 D: means, then what becomes the scales by floor + log2(1 + exp(output))."""
        return 2 * num_columns

    def _parts(self, params: PyTree, outputs: Array) -> tuple[Array, Array]:
        mean, raw = jnp.split(outputs, 2, 1)
        return mean, jnp.asarray(self.floor, outputs.dtype) + jax.nn.softplus(raw) / math.log(2)
