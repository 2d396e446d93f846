"""Finite mixtures of any observation family, and the Gaussian mixture under the name people look for."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core.arguments import (
    as_key,
    check_choice,
    check_integer,
    check_number,
    check_whole,
    expect,
    shown,
)
from jaxem.core.checks import check_strength
from jaxem.core.foreign import named, named_fields
from jaxem.core.numerics import is_concrete, namespace, safe_divide, safe_log
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import BLOCK_ROWS, PyTree
from jaxem.families import Family, Gaussian
from jaxem.model import DiscreteLatent, Health
from jaxem.structures import seeding as _seeding


@dataclass
class MixtureParams:
    """Parameters of a mixture.

    Attributes:
      mixing: (K,) proportions, summing to 1.
      components: the family's params, vectorised over K.
    """

    mixing: Array
    components: Any


@dataclass
class MixtureStats:
    """Counts (K,) and the family's statistics."""

    count: Array
    components: PyTree


@named_fields
@dataclass
class Mixture(DiscreteLatent):
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

    block_rows: ClassVar[int | None] = BLOCK_ROWS
    params_type: ClassVar[type] = MixtureParams

    def __repr__(self) -> str:
        known = self.num_active is not None and is_concrete(self.num_active)
        used = f", num_active={self.num_active:g}" if known else ""
        return f"Mixture({self.family!r}, {self.num_components}{used})"

    @property
    def closed_form(self) -> bool:
        """Whether the family has an m_step."""
        return self.family.closed_form

    def validate(self, data: PyTree, params: MixtureParams | None) -> None:
        """Checks K, the start's name, the family's own rules, and that mixing is a distribution."""
        num = self.num_components
        check_components(num, self.init_method, self.init_size)
        self.family.validate(data)
        check_strength("mixing_pseudo_counts", self.mixing_pseudo_counts)
        if self.num_active is not None:
            check_whole("num_active", self.num_active, 1, num)
        if params is not None:
            _check_mixing("params.mixing", params.mixing)

    @property
    def least_rows(self) -> tuple[str, int]:
        """A row for each component in use."""
        known = self.num_active is not None and is_concrete(self.num_active)
        return "num_components", int(self.num_active) if known else self.num_components  # type: ignore[arg-type]

    def check_rows(self, data: PyTree, params: MixtureParams | None = None) -> None:
        """The family's checks, and that params are of K components."""
        check_family(self.family)
        if params is not None and params.mixing.shape[-1] != self.num_components:
            raise ValueError(
                f"params: expected those of {self.num_components} components; found {params.mixing.shape[-1]}"
            )
        self.family.check_rows(data, None if params is None else params.components)

    def row_keys(self) -> tuple[str, ...] | None:
        """The family's."""
        return self.family.row_keys() if isinstance(self.family, Family) else None

    def bind(self, data: PyTree, weights: Array) -> "Mixture":
        """Binds the family to the data and keeps the sum of the weights."""
        return dataclasses.replace(self, family=self.family.bind(data, weights), total_weight=jnp.sum(weights))

    def _active(self) -> Array:
        """(K,) which components are used."""
        index = jnp.arange(self.num_components)
        used = self.num_components if self.num_active is None else self.num_active
        return index < jnp.asarray(used).astype(index.dtype)  # `fit` casts every number of a model to floats

    def init(self, key: Array, data: PyTree, weights: Array) -> MixtureParams:
        """Params of a random partition; the model must be bound."""
        active = None if self.num_active is None else self._active()
        data, weights, resp = start(self, key, data, weights, active)
        mixing = self._proportions(jnp.sum(resp, 0))
        return MixtureParams(mixing, self.family.from_partition(data, weights, resp))

    def _proportions(self, count: Array) -> Array:
        """(K,) counts, with the prior's, over their sum."""
        pseudo = jnp.asarray(self.mixing_pseudo_counts, count.dtype)
        count = count + jnp.where(self._active(), pseudo, 0)
        return count / jnp.sum(count)

    def log_joint(self, params: MixtureParams, data: PyTree) -> Array:
        """(N, K) log mixing_k + log p(x_n | theta_k), nats; -inf for a component of proportion 0."""
        return safe_log(params.mixing)[None] + self.family.at(params.components).log_prob(data)

    def statistics(self, params: MixtureParams, data: PyTree, resp: Array) -> MixtureStats:
        """Counts and the family's statistics."""
        return MixtureStats(jnp.sum(resp, 0), self.family.at(params.components).statistics(data, resp))

    def explain(self, params: MixtureParams, data: PyTree) -> tuple[Array, Callable[[Array], MixtureStats]]:
        """log_joint, and the function from resp to statistics, sharing the family's work."""
        log_prob, collect = self.family.at(params.components).explain(data)
        log_joint = safe_log(params.mixing)[None] + log_prob
        return log_joint, lambda resp: MixtureStats(jnp.sum(resp, 0), collect(resp))

    def prepare(self, params: MixtureParams) -> MixtureParams:
        """The same mixing with the family at its params."""
        return dataclasses.replace(params, components=self.family.at(params.components))

    def m_step(self, params: MixtureParams, stats: MixtureStats) -> MixtureParams:
        """Mixing = counts (with the prior's) / total, and the family's M-step."""
        mixing = self._proportions(stats.count)
        return MixtureParams(mixing, self.family.at(params.components).m_step(stats.components))

    def elbo_params(self, params: MixtureParams) -> Array:
        """The family's penalty or log prior and that of the proportions, nats."""
        pseudo = jnp.asarray(self.mixing_pseudo_counts, params.mixing.dtype)
        counted = self._active() & (pseudo > 0)  # 0 log 0 is 0
        log_prior = jnp.sum(jnp.where(counted, pseudo * safe_log(params.mixing), 0))
        return log_prior + self.family.at(params.components).elbo_params()

    def rebase(self, stats: MixtureStats, old: MixtureParams, new: MixtureParams) -> MixtureStats:
        """The family's statistics as if taken at the new components."""
        there = self.family.at(new.components)
        return MixtureStats(stats.count, self.family.at(old.components).rebase(stats.components, there))

    def canonical(self, params: MixtureParams) -> MixtureParams:
        """Components by mixing, largest first; in the order of their priors where the family gives each its own."""
        params = self.adopt(params)
        if not self.family.exchangeable:
            return params
        index = namespace(params).argsort(-params.mixing, stable=True)
        return MixtureParams(params.mixing[index], self.family.order(params.components, index))

    def health(self, params: MixtureParams) -> Health:
        """Largest influence of the penalty on a component, and the smallest expected count."""
        total = jnp.ones((), params.mixing.dtype) if self.total_weight is None else self.total_weight
        count = params.mixing * total
        influence = jnp.max(self.family.at(params.components).influence(count))
        smallest = jnp.min(count if self.num_active is None else jnp.where(self._active(), count, total))
        return Health(influence, smallest, jnp.zeros((), jnp.int32))

    def notes(self) -> list[str]:
        """The family's notes."""
        return self.family.notes()

    def diagnose(self, params: MixtureParams) -> list[str]:
        """The family's reasons why components are spikes."""
        total = 1.0 if self.total_weight is None else self.total_weight
        return self.family.diagnose(params.components, params.mixing * total)

    def adopt(self, params: MixtureParams) -> MixtureParams:
        """The family's: columns that depend on others in the data do so in the params."""
        return dataclasses.replace(params, components=self.family.adopt(params.components))

    def coincident(self, params: MixtureParams) -> Array:
        """Whether two components of positive proportion are equal."""
        xp, alive = namespace(params), params.mixing > 0
        same = self.family.coincident(params.components) & ~xp.eye(self.num_components, dtype=bool)
        return xp.any(same & alive[:, None] & alive[None, :])

    def constraints(self) -> MixtureParams:
        """A simplex and the family's constraints."""
        return MixtureParams(constraints.Simplex(), self.family.constraints())  # type: ignore[arg-type]

    def step_cost(self, data: PyTree) -> int:
        """N K D, as a rough size."""
        return self.num_components * super().step_cost(data)

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
        self.check_params(params)
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
        _check_mixing("mixing", mixing)
        return MixtureParams(mixing, parts)


@partial(jax.jit, static_argnums=3)
def _sample(model: Mixture, params: MixtureParams, key: Array, num: int) -> tuple[PyTree, Array]:
    component_key, data_key = jax.random.split(key)
    component = jax.random.categorical(component_key, safe_log(params.mixing), shape=(num,))
    return model.family.sample(data_key, params.components, component), component


def check_family(family: Any) -> None:
    """Raises TypeError for what is no family of observations."""
    expect("family", family, Family, "one of jaxem.families, as jaxem.families.Gaussian()")


def start(
    model: Any, key: Array, data: PyTree, weights: Array, active: Array | None = None
) -> tuple[PyTree, Array, Array]:
    """The partition that a mixture starts from.

    Args:
      model: has family (bound), num_components, init_method and init_size.
      key: random key.
      data: all rows.
      weights: (N,).
      active: (K,) which components are used; None for all.

    Returns:
      At most `init_size` rows, their weights, and (n, K) responsibilities times weights.
    """
    data, weights, key = _seeding.subsample(key, data, weights, model.init_size)
    resp = model.family.init_resp(key, data, weights, model.num_components, model.init_method)
    if resp is None:
        features = model.family.features(data)
        resp = _seeding.partition(key, features, weights, model.num_components, model.init_method, active)
    elif active is not None:
        resp = jnp.where(active[None], resp, 0)
        resp = safe_divide(resp, jnp.sum(resp, 1, keepdims=True))
    return data, weights, resp * weights[:, None]


def check_components(num: Any, init_method: str, init_size: int) -> None:
    """Raises unless K is an integer >= 1, the start has a known name, and it may look at K rows."""
    check_integer("num_components", num, 1)
    check_choice("init_method", init_method, _seeding.PARTITIONS)
    check_integer("init_size", init_size, 1)
    if init_size < num:
        raise ValueError(f"init_size: expected at least num_components = {num} rows; found {init_size}")


def _check_mixing(name: str, mixing: Any) -> None:
    """Raises unless proportions (..., K) that can be looked at are non-negative and sum to 1."""
    if is_concrete(mixing):
        check_number(name, mixing, dims=(1, 2), what="an array of proportions")
        values = np.asarray(mixing, np.float64)
        if np.any(values < 0) or np.any(np.abs(values.sum(-1) - 1) > 1e-3):
            raise ValueError(f"{name}: expected proportions that sum to 1; found {shown(values)}")


@named
def GMM(  # noqa: N802 - it reads as a model's name
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
) -> Mixture:
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

    Returns:
      The model. Names and numbers are checked by `fit`, before anything is compiled.

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (200, 2)).at[:100].add(6.0)
      >>> fit = jaxem.fit(GMM(2), x, key=jax.random.key(1), num_restarts=8)
      >>> fit.params.mixing.round(2).tolist()
      [0.5, 0.5]
      >>> fit.model.posterior(fit.params, x).shape
      (200, 2)
    """
    family = Gaussian(covariance, pseudo_observations, mean_pseudo_observations, pseudo_mean, pseudo_covariance)
    return Mixture(
        family,
        num_components,
        init_method=init_method,
        init_size=init_size,
        mixing_pseudo_counts=mixing_pseudo_counts,
        num_active=num_active,
    )
