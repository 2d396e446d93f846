"""Finite mixtures of any observation family, and the Gaussian mixture under the name people look for."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import (
    as_key,
    check_integer,
    check_number,
)
from jaxem.core.checks import check_proportions
from jaxem.core.foreign import constructor, named_fields
from jaxem.core.numerics import is_concrete, namespace, safe_log
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import check_params
from jaxem.core.tree import PyTree
from jaxem.core.whole import total
from jaxem.families import Family, Gaussian
from jaxem.structures.mixing import Proportions
from jaxem.structures.structured import Structured


@dataclass
class MixtureParams:
    """Parameters of a mixture.

    Attributes:
      mixing: (K,) proportions, summing to 1.
      components: the family's params, vectorised over K.
    """

    mixing: Array
    components: Any


@named_fields
@dataclass
class Mixture(Structured):
    """Mixture of K components of one family.

        z_n ~ Categorical(mixing),   x_n | z_n = k ~ family(components_k)

    Starts from a partition of at most `init_size` rows (drawn in proportion to the weights) in the family's features,
    for Gaussians the standardised columns: "kmeans" (greedy k-means++ centres and 10 Lloyd steps), "kmeans++",
    "random_points" (cells of K random rows) or "random_resp". Partitions, unlike K single points, are no saddle of the
    likelihood; random responsibilities are near one (equal components), where a tied covariance may stop early.
    The returned components are ordered by mixing, largest first.

    E-steps work in blocks of 2000 rows; no (N, K) array exists unless `posterior` is asked for one.

    Attributes:
      family: a `jaxem.families.Family`.
      num_components: K >= 1.
      init_method: name of the start.
      init_size: most rows that a start looks at.
      mixing_pseudo_counts: a; the proportions have the prior Dirichlet(1 + a, ..., 1 + a), in ELBO.params as
        a sum_k log mixing_k up to its constant. 0 is maximum likelihood.
      num_active: how many of the components are used, all if None. A leaf: fits of one `num_components` and several
        `num_active` share one compiled program. Components that are not used have mixing 0.
      total_weight: sum of weights, set by `bind`.

    References:
      McLachlan and Peel (2000), Finite Mixture Models, chapters 2 and 3.
    """

    family: Family
    num_components: int = static()
    init_method: str = static(default="kmeans")
    init_size: int = static(default=10_000)
    mixing_pseudo_counts: float | Array = 0.0
    num_active: int | Array | None = None
    total_weight: Array | None = dataclasses.field(default=None, repr=False)

    params_type: ClassVar[type] = MixtureParams

    def __repr__(self) -> str:
        known = self.num_active is not None and is_concrete(self.num_active)
        used = f", num_active={self.num_active:g}" if known else ""
        return f"Mixture({self.family!r}, {self.num_components}{used})"

    @property
    def num_states(self) -> int:
        """K."""
        return self.num_components

    @property
    def law(self) -> Proportions:
        """A point on the simplex."""
        return Proportions(self.mixing_pseudo_counts, self.num_active)

    @property
    def components(self) -> Family:
        """Points: the family itself."""
        return self.family

    @property
    def active(self) -> Array | None:
        """(K,) which components are used; None for all."""
        return None if self.num_active is None else self.law.active(self.num_components)

    @property
    def least_rows(self) -> tuple[str, int]:
        """A row for each component in use."""
        known = self.num_active is not None and is_concrete(self.num_active)
        return "num_components", int(self.num_active) if known else self.num_components  # type: ignore[arg-type]

    def check_components(self, data: PyTree, params: MixtureParams | None) -> None:
        """The family's checks, and that params are of K components."""
        if params is not None and params.mixing.shape[-1] != self.num_components:
            found = params.mixing.shape[-1]
            raise ValueError(f"params: expected those of {self.num_components} components; found {found}")
        super().check_components(data, params)

    def bind(self, data: PyTree, weights: Array) -> "Mixture":
        """Binds the family to the data and keeps the sum of the weights."""
        return dataclasses.replace(self, family=self.family.bind(data, weights), total_weight=total(weights))

    def arrange(self, data: PyTree) -> PyTree:
        """Rows in the family's layout."""
        return self.family.arrange(data)

    def coincident(self, params: MixtureParams) -> Array:
        """Whether two components of positive proportion are equal."""
        xp, alive = namespace(params), params.mixing > 0
        same = self.family.coincident(params.components) & ~xp.eye(self.num_components, dtype=bool)
        return xp.any(same & alive[:, None] & alive[None, :])

    def num_parameters(self, params: MixtureParams) -> int:
        """Free parameters: K - 1 proportions and the family's, of the components in use; traced where they are."""
        num: Any = self.num_components if self.num_active is None else self.num_active
        num = int(num) if is_concrete(num) else num
        return num - 1 + self.family.num_parameters(params.components, num)

    def sample(self, params: MixtureParams, num_samples: int, *, key: Array) -> tuple[PyTree, Array]:
        """Draws from the mixture.

        Compiled for the next power of two of rows, of which the first are returned: one program serves many sizes.

        Args:
          params: parameters.
          num_samples: N >= 1.
          key: random key.

        Returns:
          data (N, ...) and the component (N,) that each row came from.

        Raises:
          TypeError, ValueError: no params of this model, no count, no key.
        """
        check_params(self, params)
        check_integer("num_samples", num_samples, 1)
        drawn = _sample(self, params, as_key(key), max(32, 1 << (int(num_samples) - 1).bit_length()))
        return jax.tree.map(lambda leaf: leaf[:num_samples], drawn)

    def distribution(self, params: MixtureParams) -> Any:
        """The mixture as a `distrax.Distribution` (imports distrax)."""
        import distrax

        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return distrax.MixtureSameFamily(
                distrax.Categorical(probs=params.mixing), self.family.distribution(params.components)
            )

    def make_params(self, mixing: Any, **components: Any) -> MixtureParams:
        """Params from plain arrays, to start a fit from or to evaluate.

        Args:
          mixing: (K,) proportions.
          **components: the family's own; for Gaussians mean (K, D) and covariance (K, D, D), (D, D), (K, D) or (K,).

        Returns:
          `MixtureParams`.

        Raises:
          ValueError: shapes do not fit together.
        """
        check_number("mixing", mixing, dims=(1,), what=f"an array ({self.num_components},) of proportions")
        parts = self.family.make_params(**components)
        mixing = jnp.asarray(mixing).astype(jax.tree.leaves(parts)[0].dtype)
        if mixing.shape != (self.num_components,):
            raise ValueError(f"mixing: expected shape ({self.num_components},); found {mixing.shape}")
        check_proportions("mixing", mixing)
        return MixtureParams(mixing, parts)


@partial(jax.jit, static_argnums=3)
def _sample(model: Mixture, params: MixtureParams, key: Array, num: int) -> tuple[PyTree, Array]:
    component_key, data_key = jax.random.split(key)
    component = jax.random.categorical(component_key, safe_log(params.mixing), shape=(num,))
    return model.family.sample(data_key, params.components, component), component


@dataclass
class GMM(Mixture):
    """Gaussian mixture: `Mixture(Gaussian(covariance), num_components)`.

        p(x) = sum_k mixing_k N(x; mean_k, Sigma_k)

    Args:
      num_components: K >= 1.
      covariance: "full" (a matrix each), "tied" (one matrix for all), "diag" or "spherical".
      init_method: "kmeans" on standardised columns, "kmeans++", "random_points" or "random_resp"; see `Mixture`.
      pseudo_observations: strength nu of the penalty that bounds the likelihood; see `jaxem.families.Gaussian`.
      mean_pseudo_observations: strength kappa of a prior on the means, with which the penalty is a
        normal-inverse-Wishart prior; None for none. See `jaxem.families.Gaussian`.
      pseudo_mean: m0, (D,) or (K, D), where that prior sits; None for the data's mean.
      pseudo_covariance: (D,) variances of the pseudo-observations; None for the data's.
      init_size: most rows that a start looks at.
      mixing_pseudo_counts: strength of a Dirichlet prior on the proportions; see `Mixture`.
      num_active: use only this many of the components, at no new compilation; for choosing K. See `Mixture`.

    Names and numbers are checked by `fit`, before anything is compiled.

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (200, 2)).at[:100].add(6.0)
      >>> fit = jaxem.fit(GMM(2), x, key=jax.random.key(1), num_restarts=8)
      >>> fit.params.mixing.round(2).tolist()
      [0.5, 0.5]
      >>> fit.model.posterior(fit.params, x).shape
      (200, 2)
    """

    __repr__ = Mixture.__repr__

    @constructor
    def __init__(
        self,
        num_components: int,
        covariance: str = "full",
        *,
        init_method: str = "kmeans",
        pseudo_observations: float | Array = 1e-6,
        mean_pseudo_observations: float | Array | None = None,
        pseudo_mean: Array | None = None,
        pseudo_covariance: Array | None = None,
        init_size: int = 10_000,
        mixing_pseudo_counts: float | Array = 0.0,
        num_active: int | None = None,
    ) -> None:
        family = Gaussian(covariance, pseudo_observations, mean_pseudo_observations, pseudo_mean, pseudo_covariance)
        super().__init__(
            family,
            num_components,
            init_method=init_method,
            init_size=init_size,
            mixing_pseudo_counts=mixing_pseudo_counts,
            num_active=num_active,
        )
