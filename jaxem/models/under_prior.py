"""What structured models whose components are known by a posterior have in common."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import expect
from jaxem.core.numerics import is_concrete
from jaxem.core.pytree import dataclass
from jaxem.core.rows import check_params
from jaxem.core.tree import PyTree
from jaxem.core.whole import total
from jaxem.priors import Prior, default_prior
from jaxem.structures.components import Posterior
from jaxem.structures.structured import Structured


@dataclass
class Pruning:
    """Which components of a Bayesian model hold data.

    Attributes:
      count: (K,) expected number of observations of each component, weights included.
      kept: (K,) whether it is more than the threshold.
      dropped: expected number of observations in the components that are not kept.
    """

    count: Array
    kept: Array
    dropped: Array

    def __repr__(self) -> str:
        if not is_concrete(self):
            return "Pruning(...)"
        counts = ", ".join(f"{n:.1f}{'' if k else ' (not used)'}" for n, k in zip(self.count, self.kept, strict=True))
        return f"{int(np.sum(self.kept))} of {self.kept.shape[0]} components used; expected counts {counts}"


class UnderPrior(Structured):
    """A structured model with a conjugate prior on its components' parameters, fitted by variational Bayes.

    Attributes:
      prior: a `jaxem.priors.Prior`; None for the family's own with its defaults.
    """

    climbed_by = "m_step"  # bound or not: a conjugate posterior has an update in closed form
    _asked: ClassVar[tuple[str, ...]] = ("pruning",)
    prior: Prior | None

    @property
    def components(self) -> Posterior:
        """The family under its prior."""
        return Posterior(self.family, self.bound.prior)

    @property
    def bound(self) -> Any:
        """The model, once it is bound to data; ValueError before."""
        if self.total_weight is None:
            raise ValueError("model: not bound to data; use fit.model, or bind(data, weights)")
        return self

    @property
    def any_prior(self) -> Prior:
        """The prior, or the family's own."""
        return default_prior(self.family) if self.prior is None else self.prior

    def check_prior(self, rows: PyTree) -> None:
        """Raises unless the prior is proper and suits the family and the rows."""
        prior = self.any_prior
        expect("prior", prior, Prior, "one of jaxem.priors, as jaxem.priors.GaussianPrior(), or None")
        if not self.family.exchangeable:
            raise ValueError("family: expected one prior for all components; found a pseudo_mean for each")
        if self.total_weight is None:  # not bound: settings are as the user gave them
            prior.check(self.family, rows)

    def check_components(self, data: PyTree, params: Any) -> None:
        """The family's checks, against the shapes of the plug-in params."""
        plug = None
        if params is not None and self.total_weight is not None:
            plug = jax.eval_shape(_plug, self, params.components)
            num = jax.tree.leaves(plug)[0].shape[0]
            if num != self.num_states:
                what = self.size_name.removeprefix("num_")
                raise ValueError(f"params: expected those of {self.num_states} {what}; found {num}")
        self.family.check(self.structure.rows(data), plug)

    def bound_prior(self, family: Any, rows: PyTree, weights: Array) -> dict[str, Any]:
        """What `bind` fills in: the family, bound to the rows, the prior and the number of observations."""
        prior = self.any_prior.bind(family, rows, weights)
        return {"family": family, "prior": prior, "total_weight": total(weights)}

    def pruning(self, params: Any, min_count: float = 1.0) -> Pruning:
        """Which components have an expected count above `min_count`."""
        check_params(self, params)
        count = self.law.count(params.mixing, self.total_weight)
        kept = count > min_count
        return Pruning(count, kept, jnp.sum(jnp.where(kept, 0, count)))

    def constraints(self) -> Any:
        """Those of the two posteriors."""
        return self.params_type(self.law.constraints(), self.any_prior.constraints(self.family))


@jax.jit  # for its cache: a second question does not trace again
def _plug(model: UnderPrior, components: Any) -> Any:
    return model.components.at(components).q.plug.params
