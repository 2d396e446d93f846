"""The protocol of a conjugate prior on the parameters of K components."""

from abc import ABC, abstractmethod
from typing import Any

import jax
from jax import Array

from jaxem.core.tree import PyTree
from jaxem.families.family import Family


class Prior(ABC):
    """A conjugate prior p(theta_k) of an observation family, the same for all K components, and its posteriors.

    A posterior q(theta) = prod_k q(theta_k) is of the prior's own form, a dataclass of hyperparameters that is
    vectorised over K. Its expected log-likelihood is that of plug-in params and a constant,

        E_q[log p(x | theta_k)] = log p(x | plug_k) + offset_k,

    so that variational E-steps run in the family's own kernels. A prior is a frozen `jaxem.dataclass`; settings that
    are None are taken from the data by `bind`.
    """

    @property
    @abstractmethod
    def families(self) -> tuple[type, ...]:
        """The families that this prior is conjugate to."""

    @abstractmethod
    def validate(self, family: Family, x: PyTree) -> None:
        """Raises ValueError for settings that make it improper or do not suit the data; on the host."""

    @abstractmethod
    def bind(self, family: Family, x: PyTree, weights: Array) -> "Prior":
        """The prior with every setting an array."""

    @abstractmethod
    def update(self, family: Any, plug: PyTree, stats: PyTree) -> Any:
        """The posterior given the family's statistics, taken at the plug-in params `plug`."""

    def prepare(self, family: Any, posterior: Any) -> Any:
        """The same posterior with what plug_in and kl derive from it filled in, once per step; itself by default."""
        return posterior

    @abstractmethod
    def plug_in(self, family: Any, posterior: Any) -> tuple[PyTree, Array]:
        """Plug-in params of the family and the offsets (K,)."""

    @abstractmethod
    def kl(self, family: Any, posterior: Any) -> Array:
        """KL(q(theta) || p(theta)) summed over components, nats."""

    @abstractmethod
    def log_predictive(self, family: Any, posterior: Any, x: PyTree) -> Array:
        """(N, K) log of the integral of p(x_n | theta_k) over q(theta_k), nats."""

    @abstractmethod
    def posterior(self, family: Any, num_components: int) -> Any:
        """The prior itself as the posterior of K components without data."""

    @abstractmethod
    def draw(self, key: Array, family: Any, posterior: Any) -> PyTree:
        """Params of the family drawn from q(theta)."""

    @abstractmethod
    def log_prob(self, family: Any, posterior: Any, params: PyTree) -> Array:
        """(K,) log density of `params`, as `draw` returns them, under a posterior of this prior's form, nats.

        Of the prior itself with `posterior(family, K)`. All constants are in; the density is with respect to the
        variables that the class names (precisions, not covariances), the same for prior and posterior, so that their
        ratio is that of any other choice. What components share is shared out equally between them.
        """

    @abstractmethod
    def constraints(self, family: Any) -> Any:
        """A constraint at each leaf of a posterior."""

    def hyperparameters(self, family: Any) -> dict[str, Any]:
        """Settings that may be estimated, by name, each with its constraint; see `EmpiricalBayes`."""
        return {}

    def setting(self, family: Any, name: str) -> Any:
        """The value of a setting of a bound prior."""
        return getattr(self, name)

    def adopt(self, family: Any, posterior: Any) -> Any:
        """A posterior as the bound family can use it; see `Family.adopt`."""
        return posterior

    def order(self, family: Any, posterior: Any, index: Array) -> Any:
        """The posterior with the components in another order; every leaf has a leading axis K by default."""
        return jax.tree.map(lambda leaf: leaf[index], posterior)

    def check_family(self, family: Any) -> None:
        """Raises TypeError for a family that this prior is not conjugate to."""
        if not isinstance(family, self.families):
            names = " or ".join(f.__name__ for f in self.families)
            raise TypeError(f"prior: {type(self).__name__} is conjugate to {names}; found {family!r}")


def default_prior(family: Any) -> Prior:
    """The conjugate prior of a family with all settings taken from the data.

    Args:
      family: an observation family.

    Returns:
      `GaussianPrior()`, `GammaPrior()` or `DirichletPrior()`.

    Raises:
      TypeError: the family has no conjugate prior here.
    """
    from jaxem.priors.gaussian import GaussianPrior
    from jaxem.priors.probability import DirichletPrior
    from jaxem.priors.rate import GammaPrior

    for prior in (GaussianPrior(), GammaPrior(), DirichletPrior()):
        if isinstance(family, prior.families):
            return prior
    raise TypeError(
        f"family: expected one with a conjugate prior (Gaussian, Poisson, Exponential, Bernoulli, Categorical); found "
        f"{family!r}"
    )
