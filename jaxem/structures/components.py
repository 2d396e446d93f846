"""K components that are known by a posterior, as a family of their own; as a point they are the family itself."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.families.family import Derived, DerivedFamily, Family
from jaxem.priors import Prior, canonical


@dataclass
class PosteriorAt(Derived):
    """Components at a posterior: `q` is the prior's own view of it, with plug-in params in the family's kernels."""

    q: Any

    def explain(self, x: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
        """(N, K) E_q[log p(x_n | theta_k)], and the function from resp to the family's statistics at the plug-in."""
        log_prob, collect = self.q.plug.explain(x)
        return self.q.offset[None] + log_prob, collect

    def m_step(self, stats: PyTree) -> Any:
        """The posterior given the statistics."""
        return self.family.prior.posterior(self.q.plug, stats)

    def rebase(self, stats: PyTree, new: Any) -> PyTree:
        """Statistics as if taken at the plug-in params of `new`."""
        return self.q.plug.rebase(stats, new.q.plug)

    def elbo_params(self) -> Array:
        """-KL(q || prior), summed over components, nats."""
        return -self.q.kl()

    def influence(self, count: Array) -> Array:
        """0: a proper prior leaves no spikes."""
        return jnp.zeros_like(count)


@dataclass
class Posterior(DerivedFamily):
    """A family under a conjugate prior, whose params are the posterior q(theta) = prod_k q(theta_k).

    Its log-densities are E_q[log p(x | theta_k)], its M-step is the posterior given statistics, and its `elbo_params`
    is -KL(q || prior): so every structure over a family is, over this, its variational Bayesian counterpart.

    Attributes:
      family: the family, bound to data.
      prior: the prior, bound to data.
    """

    family: Family
    prior: Prior

    def at(self, params: Any) -> PosteriorAt:
        """The components at a posterior."""
        return PosteriorAt(self, params, self.prior.at(self.family, params))

    def start(self, num_components: int) -> PyTree:
        """The family's."""
        return self.family.start(num_components)

    def features(self, x: PyTree) -> Array:
        """The family's."""
        return self.family.features(x)

    def init_resp(self, key: Array, x: PyTree, weights: Array, num_components: int, method: str) -> Array | None:
        """The family's."""
        return self.family.init_resp(key, x, weights, num_components, method)

    def from_partition(self, x: PyTree, weights: Array, resp: Array) -> Any:
        """The posterior given a partition."""
        return self.prior.posterior(*self.family.partition_statistics(x, weights, resp))

    def canonical(self, params: Any, index: Array | None = None) -> Any:
        """Plug-in params as the family's."""
        return canonical(self.family, params, index)

    def constraints(self) -> Any:
        """The prior's."""
        return self.prior.constraints(self.family)

    def num_parameters(self, params: Any, num_components: int) -> int:
        """Raises TypeError: a posterior has no free parameters to count."""
        raise TypeError("components: a posterior has no free parameters; compare ELBOs, or fit a Mixture for bic")

    def sample(self, key: Array, params: Any, component: Array) -> PyTree:
        """One observation of each component, at one draw of the parameters."""
        return self.family.sample(key, self.prior.at(self.family, params).draw(key)[0], component)
