"""What an exponential family is: natural and mean parameters, entropies and divergences from its log-normaliser."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.tree import float_dtype

LOG_2PI = 1.8378770664093453


class ExponentialFamily(ABC):
    """One family of distributions, vectorised over leading plate axes. Instances hold nothing and compare by type.

    `Statistics` is the named tuple that natural parameters and means share; `ranks` are the numbers of trailing axes
    that one variable's entries have; `domains` are those of the conventional parameters.
    """

    Statistics: ClassVar[Any]
    ranks: ClassVar[tuple[int, ...]]
    domains: ClassVar[dict[str, Any]] = {}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def natural(self, *args: Any, **kwargs: Any) -> Any:
        """Natural parameters from the conventional ones."""

    @abstractmethod
    def conventional(self, natural: Any) -> dict[str, Array]:
        """Conventional parameters, by the names that `natural` takes."""

    def constraints(self, dim: int = 1) -> dict[str, Any]:
        """The domains of the conventional parameters, as `jaxem.constraints` objects; `dim` is D."""
        return dict(self.domains)

    @abstractmethod
    def log_normaliser(self, natural: Any) -> Array:
        """A(eta), one for each plate element."""

    @abstractmethod
    def valid(self, natural: Any) -> Array:
        """Whether eta lies in the natural domain, one bool for each plate element."""

    def log_base(self, natural: Any) -> float:
        """Log h, a constant."""
        return 0.0

    @abstractmethod
    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """Natural parameters of a standard member, to start from; `dim` is D or K and is ignored by scalars."""

    @abstractmethod
    def at_mode(self, natural: Any) -> Any:
        """t(x) at the mode of the density of x; NaN or infinite where there is none."""

    @abstractmethod
    def draw(self, key: Array, natural: Any) -> Any:
        """t(x) of one draw for each plate element, in the dtype of `natural`."""

    def distribution(self, natural: Any) -> Any:
        """The distrax distribution, where there is one; imports distrax."""
        raise TypeError(f"{self!r} has no distrax distribution; conventional(natural) gives its parameters")

    def means(self, natural: Any) -> Any:
        """E[t(x)], from the derivative of A."""
        return jax.grad(lambda eta: jnp.sum(self.log_normaliser(eta)))(natural)

    def inner(self, a: Any, b: Any) -> Array:
        """<a, b> for each plate element; entries that are infinite in `a` and 0 in `b` count for 0."""
        parts = []
        for rank, x, y in zip(self.ranks, a, b, strict=True):
            product = jnp.where(y == 0, 0, x * y)
            parts.append(jnp.sum(product, tuple(range(-rank, 0))) if rank else product)
        return sum(parts[1:], parts[0])

    def entropy(self, natural: Any) -> Array:
        """Entropy -E[log p(x)], nats."""
        return self.log_normaliser(natural) - self.inner(natural, self.means(natural)) - self.log_base(natural)

    def kl(self, natural: Any, other: Any) -> Array:
        """KL(p(. | natural) || p(. | other)), nats."""
        gap = jax.tree.map(jnp.subtract, natural, other)
        difference = self.log_normaliser(other) - self.log_normaliser(natural)
        return difference + self.inner(gap, self.means(natural))

    def expected_log_prob(self, natural: Any, means: Any) -> Array:
        """E[log p(x | natural)] under any distribution with these means of t(x), nats; at t(x), log p(x | natural)."""
        return self.inner(natural, means) - self.log_normaliser(natural) + self.log_base(natural)


def as_floats(ranks: tuple[int, ...], *values: Any) -> tuple[Array, ...]:
    """Arrays of one float dtype, their plates (all but the last `ranks` axes) made equal.

    Args:
      ranks: number of trailing axes of one variable, for each value.
      *values: numbers or arrays. Plain numbers take the dtype of the arrays among them; without any they stay weakly
        typed, so that priors written as numbers follow the dtype of the data.

    Returns:
      The arrays, plate + event shape each.
    """
    arrays = [v for v in values if hasattr(v, "dtype") or isinstance(v, (list, tuple))]
    dtype = float_dtype([jnp.asarray(v) for v in arrays]) if arrays else None
    found = [jnp.asarray(v, dtype) if arrays else jnp.asarray(float(v)) for v in values]
    plate = jnp.broadcast_shapes(*(a.shape[: a.ndim - rank] for a, rank in zip(found, ranks, strict=True)))
    return tuple(jnp.broadcast_to(a, plate + a.shape[a.ndim - rank :]) for a, rank in zip(found, ranks, strict=True))


class Delta(ExponentialFamily):
    """A point mass at the mode of another family, whose natural parameters it keeps; entropy 0 by convention.

    The mode is that of the density of x as the other family names it (a Gamma's x, not its logarithm), so it depends on
    that choice. An ELBO with a delta in it is a penalised likelihood and not comparable with a fully Bayesian one.

    Attributes:
      family: the other family.
    """

    def __init__(self, family: ExponentialFamily):
        self.family = family
        self.Statistics, self.ranks = family.Statistics, family.ranks  # type: ignore[misc]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delta) and self.family == other.family

    def __hash__(self) -> int:
        return hash((Delta, self.family))

    def __repr__(self) -> str:
        return f"Delta({self.family!r})"

    def natural(self, *args: Any, **kwargs: Any) -> Any:
        """Those of the other family."""
        return self.family.natural(*args, **kwargs)

    def conventional(self, natural: Any) -> dict[str, Array]:
        """Those of the other family."""
        return self.family.conventional(natural)

    def constraints(self, dim: int = 1) -> dict[str, Any]:
        """Those of the other family."""
        return self.family.constraints(dim)

    def log_normaliser(self, natural: Any) -> Array:
        """That of the other family."""
        return self.family.log_normaliser(natural)

    def valid(self, natural: Any) -> Array:
        """Whether the mode exists: its statistics are finite."""
        finite = [jnp.isfinite(leaf) for leaf in self.at_mode(natural)]
        parts = [
            jnp.all(leaf, tuple(range(-rank, 0))) if rank else leaf
            for rank, leaf in zip(self.ranks, finite, strict=True)
        ]
        return jnp.all(jnp.stack(parts), 0)

    def standard(self, dim: int, plate: tuple[int, ...], dtype: Any) -> Any:
        """That of the other family."""
        return self.family.standard(dim, plate, dtype)

    def at_mode(self, natural: Any) -> Any:
        """That of the other family."""
        return self.family.at_mode(natural)

    def draw(self, key: Array, natural: Any) -> Any:
        """t(x) at the mode, whatever the key."""
        return self.family.at_mode(natural)

    def means(self, natural: Any) -> Any:
        """t(x) at the mode."""
        return self.family.at_mode(natural)

    def entropy(self, natural: Any) -> Array:
        """0."""
        return jnp.zeros_like(self.family.log_normaliser(natural))

    def distribution(self, natural: Any) -> Any:
        """Raises TypeError: a point mass has no density."""
        raise TypeError("Delta has no density; at_mode(natural) gives its point")
