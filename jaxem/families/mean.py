"""What families defined by the mean of a statistic share: statistics, M-step, prior, features and checks."""

import dataclasses
from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.checks import check_matrix, check_strength
from jaxem.core.moments import moments
from jaxem.core.normal import standard_promotion
from jaxem.core.numerics import einsum, is_concrete
from jaxem.core.pytree import dataclass
from jaxem.families.family import Family

# Stands for log 0 in a product: times any count it is far below every log-density, and times 0 it is 0.
LOG_ZERO = -1e30


@dataclass
class MeanStats:
    """Responsibility-weighted statistics.

    Attributes:
      count: (K,) sum of resp.
      total: (K, F) sum of resp * T(x).
    """

    count: Array
    total: Array


@dataclass
class MeanScale:
    """What a fit takes from its data.

    Attributes:
      mean: (F,) weighted mean of T(x).
      pseudo_mean: (F,) mean of the pseudo-observations.
      centre: (F,) weighted mean of the features.
      spread: (F,) their standard deviation, 1 where it is 0.
    """

    mean: Array
    pseudo_mean: Array
    centre: Array
    spread: Array


class MeanFamily(Family):
    """Components whose maximum-likelihood estimate is the weighted mean of a statistic T(x) (N, F).

    With sums S_k = sum_n r_nk T(x_n) and counts N_k the M-step is mean_k = (S_k + a m0) / (N_k + a): a
    pseudo-observations with mean m0 beside the data of each component. The log prior in ELBO.params is what they add to
    the log-likelihood, a E[log p(. | theta_k)] summed over components; with a = 0 it is exactly maximum likelihood, and
    then a component of count 0 keeps its params.

    A probability or a rate of 0 is a fixed point of EM: no row of the other kind can ever join. A partition that
    follows one column gives such values, so the params of a start, and only these, are moved a little inside.

    A subclass is a dataclass with the fields `pseudo_observations` (a), `pseudo_mean` (m0; None: the data's own mean)
    and `scale` (set by `bind`), and defines the methods below that are abstract.
    """

    pseudo_observations: float | Array
    pseudo_mean: Any
    scale: MeanScale | None

    def _transform(self, x: Array) -> Array:
        """(N, F) T(x), the data themselves by default."""
        return x

    @abstractmethod
    def _mean(self, params: Any) -> Array:
        """(K, F) E[T(x)] of each component."""

    @abstractmethod
    def _params(self, mean: Array) -> Any:
        """The params whose mean is (K, F)."""

    @abstractmethod
    def _log_prior(self, params: Any, count: Array, total: Array) -> Array:
        """Log-likelihood of `count` () pseudo-observations with sums total (1, F), summed over components; nats."""

    @abstractmethod
    def _features(self, t: Array, mean: Array) -> Array:
        """(N, F) T(x) on a scale where its variance hardly depends on its mean (F,) in the data; not standardised."""

    @abstractmethod
    def _interior(self, mean: Array, overall: Array) -> Array:
        """The means (K, F) of a start, off the boundary wherever the data's own mean (1, F) is."""

    @abstractmethod
    def _check(self, x: Array) -> None:
        """Raises ValueError for values of data (N, D) that the family cannot have made."""

    @abstractmethod
    def _check_pseudo_mean(self, dim: int) -> None:
        """Raises ValueError unless the pseudo-mean that was given suits D columns."""

    def _num_columns(self, params: Any) -> int:
        """D of params."""
        return jax.tree.leaves(params)[0].shape[-1]

    def check(self, x: Any, params: Any = None) -> None:
        """Checks that data are one (N, D) array of possible values, as wide as params; without these the prior, too."""
        check_matrix(x, None if params is None else self._num_columns(params))
        if is_concrete(x):
            self._check(x)
        if params is None:
            check_strength("pseudo_observations", self.pseudo_observations)
            if self.pseudo_mean is not None and is_concrete(self.pseudo_mean):
                self._check_pseudo_mean(x.shape[1])

    def _default_pseudo_mean(self, mean: Array) -> Array:
        """(F,) the pseudo-mean where none is given, from the data's mean."""
        return mean

    def _given_mean(self, dtype: Any) -> Array:
        """(F,) the pseudo-mean that was given; parts of a tuple or list one after the other."""
        return jnp.concatenate([jnp.asarray(part, dtype).reshape(-1) for part in jax.tree.leaves(self.pseudo_mean)])

    def bind(self, x: Array, weights: Array) -> "MeanFamily":
        """Takes the mean of T(x) and the scales of the features from the data."""
        t = self._transform(x)
        mean = moments(t, weights).mean
        features = moments(self._features(t, mean), weights)
        spread = jnp.where(features.constant, 1, features.std)
        pseudo = self._default_pseudo_mean(mean) if self.pseudo_mean is None else self._given_mean(x.dtype)
        return dataclasses.replace(self, scale=MeanScale(mean, pseudo, features.mean, spread))  # type: ignore[type-var]

    def pseudo_statistics(self, dtype: Any) -> MeanStats:
        """Count () and sums (1, F) of the pseudo-observations of a component; none where there is no mean for them."""
        if self.scale is None and self.pseudo_mean is None:  # not bound to data: plain maximum likelihood
            return MeanStats(jnp.zeros((), dtype), jnp.zeros((1, 1), dtype))
        mean = self._given_mean(dtype) if self.scale is None else self.scale.pseudo_mean
        a = jnp.asarray(self.pseudo_observations, dtype)
        return MeanStats(a, (a * mean)[None])

    def start(self, num_components: int) -> Any:
        """K copies of the data's own mean."""
        if self.scale is None:
            raise ValueError("family: not bound to data; call bind(data, weights) first")
        return self._params(jnp.repeat(self.scale.mean[None], num_components, 0))

    def features(self, x: Array) -> Array:
        """(N, F) features standardised by the data's mean and standard deviation; plain when not bound."""
        t = self._transform(x)
        if self.scale is None:
            return self._features(t, jnp.mean(t, 0))
        features = self._features(t, self.scale.mean)
        return (features - self.scale.centre[None]) / self.scale.spread[None]

    def statistics(self, params: Any, x: Array, resp: Array) -> MeanStats:
        """Counts and sums of T(x); they do not depend on params."""
        return MeanStats(jnp.sum(resp, 0), einsum("nk,nf->kf", resp, self._transform(x)))

    def _means(self, params: Any, stats: MeanStats) -> Array:
        pooled = jax.tree.map(jnp.add, stats, self.pseudo_statistics(stats.count.dtype))
        count = pooled.count[:, None]
        empty = count <= 0
        return jnp.where(empty, self._mean(params), pooled.total / jnp.where(empty, 1, count))

    def m_step(self, params: Any, stats: MeanStats) -> Any:
        """Means with the pseudo-observations'; a component of count 0 takes theirs, or keeps its params without any."""
        return self._params(self._means(params, stats))

    def from_partition(self, x: Array, weights: Array, resp: Array) -> Any:
        """The first M-step, kept off the boundary."""
        start, stats = self.partition_statistics(x, weights, resp)
        return self._params(self._interior(self._means(start.params, stats), self._mean(start.params)[:1]))

    def elbo_params(self, params: Any) -> Array:
        """Log prior up to a constant, nats: what the pseudo-observations add to the log-likelihood; 0 without any."""
        pseudo = self.pseudo_statistics(jax.tree.leaves(params)[0].dtype)
        return self._log_prior(params, pseudo.count, pseudo.total)

    def num_parameters(self, params: Any, num_components: int) -> int:
        """K D means."""
        return num_components * self._mean(params).shape[1]


def independent(name: str, **values: Any) -> Any:
    """TFP's distribution of that name with values (K, D), independent over columns, as a distrax distribution."""
    import distrax
    from tensorflow_probability.substrates.jax import distributions as tfd

    with standard_promotion():
        return distrax.Independent(getattr(tfd, name)(**values), 1)


def product_log(*terms: tuple[Array, Array]) -> Array:
    """(N, K) sum over terms of t (N, F) @ log (K, F)^T, t >= 0, where log 0 = -inf counts only where t > 0.

    Components first, rows last: what follows, sums and maxima over components, then runs on full vectors. A term each
    instead of one product of joined columns: joining them was most of the time.
    """
    out = sum(einsum("kf,nf->kn", jnp.maximum(log, LOG_ZERO), t) for t, log in terms)
    return jnp.where(out < 0.5 * LOG_ZERO, -jnp.inf, out).T


def where_possible(possible: Array, log_prob: Array) -> Array:
    """(N, K) log-probabilities, -inf in the rows that are not possible (N,).

    Models look at rows on the host before they compute; inside a caller's program this is the only guard.
    """
    return jnp.where(possible[:, None], log_prob, -jnp.inf)
