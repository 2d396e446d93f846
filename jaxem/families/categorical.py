"""Categorical components for items with any numbers of levels: latent class analysis."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import xlogy

from jaxem.core import constraints
from jaxem.core.arguments import shown
from jaxem.core.checks import require_counts
from jaxem.core.numerics import is_concrete, safe_log
from jaxem.core.pytree import dataclass, static
from jaxem.core.seen import Rows, by_column
from jaxem.families import mean as _mean


@dataclass
class CategoricalParams:
    """K components of D independent categorical items.

    Attributes:
      probs: D arrays; probs[d] (K, L_d) holds the probabilities of the levels of item d and sums to 1 over them.
    """

    probs: tuple[Array, ...]


@dataclass
class Categorical(_mean.MeanFamily):
    """Items with L_d levels, independent given the component: x_nd | z_n = k ~ Categorical(probs[d][k]).

    Data are integer codes 0, ..., L_d - 1, one column for each item. `Mixture(Categorical(num_levels), K)` is the
    latent class model; with two levels everywhere it is `Bernoulli`. The likelihood is bounded, so maximum likelihood
    is the default; a level that no row has gets probability 0. Starts are partitions of the indicators of the levels,
    each standardised. Identifiable, up to the order of the classes and but for exceptional parameters, if the items can
    be put into three groups with min(K, m_1) + min(K, m_2) + min(K, m_3) >= 2 K + 2, where m_g is the product of the
    numbers of levels in group g (Allman, Matias and Rhodes 2009); one or two items identify no K > 1.

    MAP: `pseudo_observations` a > 0 adds to each component a rows whose levels have frequencies `pseudo_mean` m0,
    which is the prior probs[d][k] ~ Dirichlet(1 + a m0[d]); its log density up to a constant is ELBO.params. The mode
    is (count of the level + a m0) / (count + a).

    Cost of one E-step: a product (N, F) (F, K) with F = sum of L_d.

    Attributes:
      num_levels: (L_1, ..., L_D), each at least 2.
      pseudo_observations: a >= 0; 0 is exactly maximum likelihood.
      pseudo_mean: m0, a tuple of D distributions (L_d,); None for the data's weighted frequencies.
      scale: set by `bind`.

    References:
      Goodman (1974), Exploratory latent structure analysis using both identifiable and unidentifiable models,
      Biometrika 61.
      Allman, Matias and Rhodes (2009), Identifiability of parameters in latent structure models with many observed
      variables, Annals of Statistics 37.

    Examples:
      >>> import jax, jaxem, numpy as np
      >>> rng = np.random.default_rng(0)
      >>> x = np.concatenate([rng.choice(3, (200, 4), p=p) for p in ([0.8, 0.1, 0.1], [0.1, 0.1, 0.8])])
      >>> fit = jaxem.fit(jaxem.Mixture(Categorical((3, 3, 3, 3)), 2), x, key=jax.random.key(0), num_restarts=4)
      >>> [part.shape for part in fit.params.components.probs]
      [(2, 3), (2, 3), (2, 3), (2, 3)]
    """

    num_levels: tuple[int, ...] = static()
    pseudo_observations: float | Array = 0.0
    pseudo_mean: tuple[Array, ...] | None = None
    scale: _mean.MeanScale | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Categorical({self.num_levels})"

    def _indicators(self) -> tuple[np.ndarray, np.ndarray]:
        """(F,) the item, and (F,) the level, that each of the F = sum L_d indicators is of."""
        levels = [np.arange(num) for num in self.num_levels]
        return np.repeat(np.arange(len(levels)), self.num_levels), np.concatenate(levels)

    def _split(self, flat: Array) -> tuple[Array, ...]:
        """(K, F) cut into D arrays (K, L_d)."""
        ends = np.cumsum(self.num_levels).tolist()
        return tuple(flat[:, end - num : end] for end, num in zip(ends, self.num_levels, strict=True))

    def _transform(self, x: Array) -> Array:
        item, level = self._indicators()
        return (x[:, item] == level.astype(x.dtype)[None]).astype(x.dtype)

    def check(self, x: Any, params: CategoricalParams | None = None) -> None:
        """Checks the numbers of levels, and that data are one (N, D) array of codes below them."""
        num, what = self.num_levels, "a tuple of integers >= 2, one for each column"
        if not isinstance(num, tuple) or not all(isinstance(n, (int, np.integer)) for n in num):
            remedy = f"; write ({num},)" if isinstance(num, int) else ""
            raise TypeError(f"num_levels: expected {what}; found {shown(num)}{remedy}")
        if not num or min(num) < 2:
            raise ValueError(f"num_levels: expected {what}; found {shown(num)}")
        super().check(x, params)
        if x.shape[1] != len(num):
            raise ValueError(f"data: expected {len(num)} columns, as many as num_levels; found shape {x.shape}")

    def _num_columns(self, params: CategoricalParams) -> int:
        return len(params.probs)

    def _mean(self, params: CategoricalParams) -> Array:
        return jnp.concatenate(params.probs, 1)

    def _params(self, mean: Array) -> CategoricalParams:
        return CategoricalParams(self._split(mean))

    def _log_prior(self, params: CategoricalParams, count: Array, total: Array) -> Array:
        return jnp.sum(xlogy(total, self._mean(params)))

    def _features(self, t: Array, mean: Array) -> Array:
        return t

    def _interior(self, mean: Array, overall: Array) -> Array:
        return 0.9 * mean + 0.1 * overall

    def _check(self, x: Array) -> None:
        for d, num in enumerate(self.num_levels[: x.shape[1]]):
            require_counts(x, num - 1, f"levels 0, ..., {num - 1} (num_levels[{d}] = {num})", d)

    def _check_pseudo_mean(self, dim: int) -> None:
        _as_probs("pseudo_mean", self.pseudo_mean, [(num,) for num in self.num_levels])

    def log_prob(self, params: CategoricalParams, x: Array) -> Array:
        """(N, K) sum over items of log probs[d][k, x_nd], nats; -inf where a probability is 0.

        -inf also for rows with anything but codes of the levels.
        """
        t = self._transform(x)  # a value that is no code has no indicator
        out = _mean.product_log((t, safe_log(self._mean(params))))
        return _mean.where_possible(jnp.sum(t, 1) == x.shape[1], out)

    def constraints(self) -> CategoricalParams:
        """A simplex for each item."""
        return CategoricalParams((constraints.Simplex(),) * len(self.num_levels))  # type: ignore[arg-type]

    def num_parameters(self, params: CategoricalParams, num_components: int) -> int:
        """K sum (L_d - 1) free probabilities."""
        return num_components * sum(num - 1 for num in self.num_levels)

    def sample(self, key: Array, params: CategoricalParams, component: Array) -> Array:
        """(N, D) codes, in the dtype of the params, one row for each entry of component."""
        keys = jax.random.split(key, len(self.num_levels))
        draws = [jax.random.categorical(k, safe_log(p)[component]) for k, p in zip(keys, params.probs, strict=True)]
        return jnp.stack(draws, 1).astype(params.probs[0].dtype)

    def distribution(self, params: CategoricalParams) -> Any:
        """A batch of K: `distrax.Categorical`, independent over items; items with fewer levels are filled up by 0."""
        import distrax

        most = max(self.num_levels)
        padded = [jnp.pad(p, ((0, 0), (0, most - p.shape[1]))) for p in params.probs]
        return distrax.Independent(distrax.Categorical(probs=jnp.stack(padded, 1)), 1)

    def describe(self, params: CategoricalParams, rows: Rows) -> dict[str, np.ndarray]:
        """Probabilities of the levels, by column and code; see `Family.describe`."""
        found: dict[str, np.ndarray] = {}
        for label, probs in zip(rows.labels(len(params.probs)), params.probs, strict=True):
            found |= by_column("prob", probs, tuple(f"{label}={level}" for level in range(probs.shape[1])))
        return found

    def make_params(self, *, probs: Any) -> CategoricalParams:  # type: ignore[override]
        """Params from D arrays (K, L_d) whose rows are distributions; ValueError for others."""
        num = np.shape(probs[0])[0] if len(probs) and np.ndim(probs[0]) == 2 else None
        return CategoricalParams(_as_probs("probs", probs, [(num, levels) for levels in self.num_levels]))


def _as_probs(name: str, values: Any, shapes: list[tuple[int | None, ...]]) -> tuple[Array, ...]:
    """Values as float arrays of the shapes, distributions over the last axis to 1e-3; ValueError for others."""
    if len(values) != len(shapes):
        raise ValueError(f"{name}: expected {len(shapes)} arrays, as many as num_levels; found {len(values)}")
    arrays = []
    for d, (value, shape) in enumerate(zip(values, shapes, strict=True)):
        array = jnp.asarray(value)
        if not jnp.issubdtype(array.dtype, jnp.floating) or not hasattr(value, "dtype"):
            array = array.astype(jnp.result_type(float))
        if array.shape != shape:
            raise ValueError(f"{name}[{d}]: expected shape {shape}; found {array.shape}")
        if is_concrete(array):
            found = np.asarray(array, np.float64)
            if not (np.all(found >= 0) and np.all(np.abs(found.sum(-1) - 1) <= 1e-3)):
                raise ValueError(f"{name}[{d}]: expected probabilities >= 0 that sum to 1; found {found.tolist()}")
        arrays.append(array)
    return tuple(arrays)
