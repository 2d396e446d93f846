"""The protocol of a conjugate prior on the parameters of K components."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import jax
from jax import Array

from jaxem.core import constraints as _constraints
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.families.family import Family

# The prior of each family, in the order in which they were defined.
_CONJUGATE: dict[type, "type[Prior]"] = {}


@dataclass
class PosteriorAt(ABC):
    """A prior's posterior q(theta) = prod_k q(theta_k) beside its family: what is asked of the two, derived once.

    Made by `prior.at(family, posterior)`. Its expected log-likelihood is that of plug-in params and a constant,

        E_q[log p(x | theta_k)] = log p(x | plug_k) + offset_k,

    so that variational E-steps run in the family's own kernels, and take statistics at `plug`.

    Attributes:
      prior: the bound prior.
      posterior: the hyperparameters of q, vectorised over K.
      plug: the family at the plug-in params.
      offset: (K,), nats.
    """

    prior: Any
    posterior: Any
    plug: Any
    offset: Array

    @property
    def family(self) -> Any:
        """The family, bound to data."""
        return self.plug.family

    @abstractmethod
    def kl(self) -> Array:
        """KL(q(theta) || p(theta)) summed over components, nats."""

    @abstractmethod
    def draw(self, key: Array) -> tuple[PyTree, Array, Array]:
        """Params of the family drawn from q(theta), and the log densities (K,) of the draw under q and the prior.

        Nats, with all constants. Densities are with respect to the variables that the prior's class names (precisions,
        not covariances), the same for both, so that their ratio is that of any other choice. What components share is
        shared out equally between them.
        """

    def expected(self) -> PyTree:
        """The family's params at the posterior means, to be shown; the plug-in ones by default."""
        return self.plug.params

    @abstractmethod
    def log_predictive(self, x: PyTree) -> Array:
        """(N, K) log of the integral of p(x_n | theta_k) over q(theta_k), nats."""


class Prior(ABC):
    """A conjugate prior p(theta_k) of an observation family, the same for all K components.

    A prior is so many observations of a kind: pseudo-statistics, to which those of the data are added. A posterior is
    of the prior's own form, a dataclass of hyperparameters that is vectorised over K; what components share has no
    leading axis, and a field `plug` holds params of the family. A prior is a frozen `jaxem.dataclass`; settings that
    are None are taken from the data by `bind`.

    Attributes:
      families: what it is conjugate to. It is the default prior of those that no earlier class names.
    """

    families: ClassVar[tuple[type, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for family in cls.families:
            _CONJUGATE.setdefault(family, cls)

    def check(self, family: Family, x: PyTree) -> None:
        """Raises for a family that this is not conjugate to, and for settings that make it improper or do not suit x.

        On the host. A subclass calls this one first.

        Raises:
          TypeError: another family.
          ValueError: a setting.
        """
        if not isinstance(family, self.families):
            names = " or ".join(f.__name__ for f in self.families)
            raise TypeError(f"prior: {type(self).__name__} is conjugate to {names}; found {family!r}")

    @abstractmethod
    def bind(self, family: Any, x: PyTree, weights: Array) -> "Prior":
        """The prior with every setting an array; `family` is bound to the same data."""

    @abstractmethod
    def posterior(self, here: Any, stats: PyTree) -> Any:
        """The posterior given statistics taken at `here`, the family at some params: the pseudo-statistics added."""

    @abstractmethod
    def at(self, family: Any, posterior: Any = None) -> Any:
        """The `PosteriorAt` of hyperparameters; None for those of the prior itself, of one component."""

    def constraints(self, family: Any) -> Any:
        """A constraint at each leaf of a posterior, or one for all of them; positive numbers by default."""
        return _constraints.Positive()

    def hyperparameters(self, family: Any) -> dict[str, tuple[Any, Any]]:
        """Settings that may be estimated, by name: the constraint, and the value once bound; by default all, positive.

        See `EmpiricalBayes`.
        """
        return {f.name: (_constraints.Positive(), getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


def canonical(family: Any, posterior: Any, index: Array | None = None) -> Any:
    """A posterior as the bound family can use it, in the order of index (K,); what components share stays."""

    def move(name: str, value: Any) -> Any:
        if name == "plug":
            return family.canonical(value, index)
        return value if index is None else jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, value)

    fields = dataclasses.fields(posterior)
    return dataclasses.replace(posterior, **{f.name: move(f.name, getattr(posterior, f.name)) for f in fields})


def default_prior(family: Any) -> Prior:
    """The conjugate prior of a family with all settings taken from the data.

    Args:
      family: an observation family.

    Returns:
      `GaussianPrior()`, `GammaPrior()`, `DirichletPrior()`, or that of a class of your own that names the family.

    Raises:
      TypeError: the family has no conjugate prior here.
    """
    for cls in type(family).__mro__:
        if cls in _CONJUGATE:
            return _CONJUGATE[cls]()
    names = ", ".join(cls.__name__ for cls in _CONJUGATE)
    raise TypeError(f"family: expected one with a conjugate prior ({names}); found {family!r}")
