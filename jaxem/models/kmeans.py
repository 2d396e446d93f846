"""K-means: the hard limit of a mixture of equal spherical Gaussians, with an assignment kernel of its own."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints
from jaxem.core import whole as _whole
from jaxem.core.arguments import check_choice, check_integer
from jaxem.core.checks import check_matrix
from jaxem.core.foreign import named_fields
from jaxem.core.numerics import einsum, namespace, safe_divide
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import takes_rows
from jaxem.core.stages import in_stages
from jaxem.core.tree import PyTree, float_dtype, map_rows, num_rows, sum_rows
from jaxem.model import DiscreteAt, DiscreteLatent, EStep, Health
from jaxem.rules import Hard, Rule
from jaxem.structures import lloyd as _lloyd
from jaxem.structures import seeding as _seeding

# Rows kept aside for moving empty clusters: exact up to this many rows, and cheap beyond.
RESERVE = _whole.KEPT


@dataclass
class KMeansParams:
    """Centroids (K, D), and how many times an empty one was moved on the way there."""

    centroids: Array
    num_relocated: Any = 0


@dataclass
class KMeansStats:
    """Weighted counts (K,) and sums (K, D) of x - origin."""

    count: Array
    sum_x: Array


@dataclass
class KMeansRows:
    """Rows in the layout that a step reads fastest: about the origin, with their squared lengths (N,)."""

    x: Array
    square: Array


@dataclass
class Units:
    """Powers of two that data are multiplied by, so that squares stay within the dtype; both 1 for ordinary data.

    Attributes:
      inside: in all arithmetic.
      shown: in the objective that is reported: that of `inside` where in the data's own units it would under- or
        overflow, else 1.
    """

    inside: Array
    shown: Array


@dataclass
class Extent:
    """How far rows reach; adds up over rows.

    Attributes:
      total: sum of weights.
      mean: (D,) the weighted mean.
      low: (D,) the least numbers, of rows with weight.
      high: (D,) the largest.
    """

    total: Array
    mean: Array
    low: Array
    high: Array

    @property
    def size(self) -> Array:
        """The widest range of a column."""
        return jnp.max(self.high - self.low)

    def __add__(self, other: "Extent") -> "Extent":
        total = self.total + other.total
        low, high = jnp.minimum(self.low, other.low), jnp.maximum(self.high, other.high)
        inside = _lloyd.unit(jnp.max(high - low))
        mean = self.mean + (other.mean - self.mean) * inside * safe_divide(other.total, total) / inside
        return Extent(total, mean, low, high)


def _extent(data: Array, weights: Array) -> Extent:
    used, total = (weights > 0)[:, None], jnp.sum(weights)
    low, high = (f(jnp.where(used, data, -far), 0) for f, far in ((jnp.min, -jnp.inf), (jnp.max, jnp.inf)))
    origin = jnp.where(used[0], data[0], low)
    inside = _lloyd.unit(jnp.max(high - low))
    mean = origin + einsum("n,nd->d", weights, jnp.where(used, data - origin[None], 0) * inside) / total / inside
    return Extent(total, mean, low, high)


@named_fields
@dataclass
class KMeans(DiscreteLatent):
    """K-means by Lloyd's algorithm, as hard EM on the one objective.

        log-joint = -|x_n - centroid_k|^2 / 2,    distortion J = sum_n w_n min_k |x_n - centroid_k|^2 = -2 ELBO.data

    without constants and with equal, fixed proportions: so it has an ELBO, but no density, and `log_prob` and `bic` do
    not apply. Columns are used as they are: scale them first where their units differ.

    Starts: "kmeans++" (greedy, on at most `init_size` rows) or "random" rows. An empty cluster moves to the farthest of
    at most 4096 rows kept by `bind`, which lowers J; `params.num_relocated` counts such moves. With fewer distinct rows
    than clusters some centroids coincide, and the fit says so. Stops when a step changes J by a factor below 1e-7.
    Random starts on small data go on by `Swap`, as `fit` says; `algorithm=EM()` is Lloyd's algorithm alone.

    Units do not matter: data of any size that the dtype holds give the same labels from the same key. Where J itself
    cannot be held (in float32 for data of about 1e-16 and below, or 1e17 and above), the objective, its trace and
    `inertia` are those of the data times a power of two, `units.shown` of the fitted model, and a note says so.

    Cost of a step O(N K D); memory beyond the data O(K D) and one block of scores.

    Attributes:
      num_clusters: K >= 1.
      init_method: "kmeans++" or "random".
      init_size: most rows that a start looks at.
      origin: (D,) mean of the data, about which sums are taken; set by `bind`, as the next two.
      reserve: rows (n, D) and weights (n,) that an empty cluster can move to.
      units: powers of two that data are multiplied by.

    Examples:
      >>> import jax, jaxem
      >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
      >>> fit = jaxem.fit(KMeans(2), x, key=jax.random.key(0), num_restarts=4)
      >>> sorted(fit.params.centroids[:, 0].tolist()), float(fit.model.inertia(fit.params, x))
      ([0.5, 10.5], 1.0)

    References:
      Lloyd (1982), Least squares quantization in PCM.
    """

    num_clusters: int = static()
    init_method: str = static(default="kmeans++", kw_only=True)
    init_size: int = static(default=20_000, kw_only=True)
    origin: Array | None = dataclasses.field(default=None, repr=False, kw_only=True)
    reserve: tuple[Array, Array] | None = dataclasses.field(default=None, repr=False, kw_only=True)
    units: Units | None = dataclasses.field(default=None, repr=False, kw_only=True)

    params_type: ClassVar[type] = KMeansParams

    def __repr__(self) -> str:
        return f"KMeans({self.num_clusters})"

    scales: ClassVar[bool] = True

    def _check_settings(self) -> None:
        num = self.num_clusters
        check_integer("num_clusters", num, 1)
        check_choice("init_method", self.init_method, ("kmeans++", "random"))
        check_integer("init_size", self.init_size, 1)
        if self.init_size < num:
            raise ValueError(f"init_size: expected at least num_clusters = {num} rows; found {self.init_size}")

    @property
    def least_rows(self) -> tuple[str, int]:
        """A row for each cluster."""
        return "num_clusters", self.num_clusters

    @property
    def num_states(self) -> int:
        """K."""
        return self.num_clusters

    def check(self, data: PyTree, params: KMeansParams | None = None) -> None:
        """Checks K, the start's name, and that data are one (N, D) array, as wide as the centroids."""
        if params is None:
            self._check_settings()
        elif np.shape(params.centroids)[-2] != self.num_clusters:
            shape = np.shape(params.centroids)
            raise ValueError(f"params: expected {self.num_clusters} centroids; found shape {shape}")
        check_matrix(data, None if params is None else params.centroids.shape[-1])

    def bind(self, data: Array, weights: Array) -> "KMeans":
        """Keeps the mean, the units, and at most 4096 evenly spaced rows, the places an empty cluster can move to."""
        # Copies: all rows would be the caller's own buffer, which he may write to after the fit.
        seen = _whole.of_all(_extent, data, weights)
        kept = _whole.every((data, weights), _whole.stride(data.shape[0], RESERVE))
        inside = _lloyd.unit(seen.size)
        shown = jnp.where(_lloyd.representable(seen.size, seen.total, data.shape[1]), 1, inside)
        reserve = jax.tree.map(jnp.copy, kept)
        return dataclasses.replace(self, origin=seen.mean, reserve=reserve, units=Units(inside, shown))

    def arrange(self, data: Array) -> PyTree:
        """Rows about the mean with their squared lengths, for more than 8 columns; else as they are."""
        if self.origin is None or _lloyd.unrolled((self.num_clusters, data.shape[1])):
            return data
        return self._rows_about(*self._frame(None), data)

    def _rows_about(self, origin: Array, unit: Array, data: PyTree) -> KMeansRows:
        if isinstance(data, KMeansRows):
            return data
        x = (data - origin[None]) * unit
        return KMeansRows(x, jnp.sum(x * x, 1))

    def _frame(self, params: KMeansParams | None) -> tuple[Array, Array]:
        """Origin (D,) and unit in which arithmetic is done: the model's where it is bound, else those of the params."""
        if self.origin is not None and self.units is not None:
            return self.origin, self.units.inside
        return _lloyd.frame(params.centroids)  # type: ignore[union-attr]

    @in_stages
    def init(self, key: Array, data: Array, weights: Array) -> KMeansParams:
        """Random centroids."""
        unit = _lloyd.frame(data)[1] if self.units is None else self.units.inside
        data, weights, key = _seeding.subsample(key, data, weights, self.init_size)
        if self.init_method == "kmeans++":
            centroids = _seeding.plus_plus(key, data, weights, self.num_clusters, unit)
        else:
            centroids = _seeding.random_rows(key, data, weights, self.num_clusters)
        return KMeansParams(centroids, jnp.zeros((), jnp.int32))

    def default_rule(self) -> Rule:
        """Hard assignment; `Tempered` makes soft K-means of it."""
        return Hard()

    def log_joint(self, params: KMeansParams, data: Array) -> Array:
        """(N, K) -|x_n - centroid_k|^2 / 2, from differences; in the units of the objective."""
        inside = jnp.ones((), float_dtype(data)) if self.units is None else self.units.inside
        shown = jnp.ones((), float_dtype(data)) if self.units is None else self.units.shown
        x, centroids = data, params.centroids
        if isinstance(data, KMeansRows):
            origin, inside = self._frame(params)
            x, centroids, shown = data.x, (centroids - origin[None]) * inside, shown / inside
        return -0.5 * _lloyd.distances(centroids, x, shown).T

    def statistics(self, params: KMeansParams, data: Array, resp: Array) -> KMeansStats:
        """Counts and sums about the origin."""
        rows = self._rows_about(*self._frame(params), data)
        return KMeansStats(jnp.sum(resp, 0), einsum("nk,nd->kd", resp, rows.x))

    def rows_at_once(self, data: PyTree) -> int:
        """Rows of a block."""
        columns = (data.x if isinstance(data, KMeansRows) else data).shape[1]
        return _lloyd.block_rows(num_rows(data), (self.num_clusters, columns))

    def at(self, params: KMeansParams) -> "KMeansAt":
        """The model at params."""
        return KMeansAt(self, params)

    def m_step(self, params: KMeansParams, stats: KMeansStats) -> KMeansParams:
        """Means of the clusters; empty ones move to the farthest rows of the reserve, which leave their old cluster."""
        origin, unit = self._frame(params)
        empty = stats.count <= 0
        mean = origin[None] + safe_divide(stats.sum_x, stats.count[:, None]) / unit
        centroids = jnp.where(empty[:, None], params.centroids, mean)
        relocated = jnp.asarray(params.num_relocated, jnp.int32)
        if self.reserve is None:
            return KMeansParams(centroids, relocated)
        centroids, moved = _relocate(
            centroids, empty, params.centroids, stats.count, stats.sum_x, *self.reserve, origin, unit
        )
        return KMeansParams(centroids, relocated + moved)

    def rebase(self, stats: KMeansStats, old: KMeansParams, new: KMeansParams) -> KMeansStats:
        """Sums about the origin of `old`, as if about that of `new`; a bound model has one origin for all."""
        if self.origin is not None:
            return stats
        (old_origin, old_unit), (origin, unit) = self._frame(old), self._frame(new)
        shift = stats.count[:, None] * ((old_origin - origin) * unit)[None]
        return KMeansStats(stats.count, stats.sum_x * (unit / old_unit) + shift)

    def coincident(self, params: KMeansParams) -> Array:
        """Whether two centroids are equal; in O(K D) memory, by sorting them."""
        c = params.centroids
        xp = namespace(c)
        c = xp.asarray(c)
        c = c[xp.lexsort(c.T)]
        return xp.any(xp.all(c[1:] == c[:-1], -1))

    def notes(self, params: KMeansParams | None = None) -> list[str]:
        """Says in which units the objective is where it cannot be in the data's own."""
        if params is not None or self.units is None or float(self.units.shown) == 1:
            return []
        power = round(math.log2(float(self.units.shown)))
        return [
            f"the distortion of these data is not representable in {self.units.shown.dtype}: the objective, its trace "
            f"and inertia are those of the data times 2**{power}"
        ]

    def health(self, params: KMeansParams) -> Health:
        """The number of moves of empty clusters."""
        unknown = Health.unknown(params.centroids.dtype)
        return dataclasses.replace(unknown, relocated=jnp.asarray(params.num_relocated, jnp.int32))

    def constraints(self) -> KMeansParams:
        """Real centroids."""
        return KMeansParams(constraints.Real(), constraints.Fixed())  # type: ignore[arg-type]

    @takes_rows
    def inertia(self, params: KMeansParams, data: PyTree, weights: Array | None = None) -> Array:
        """The distortion J = sum_n w_n |x_n - nearest centroid|^2 = -2 ELBO.data, from differences.

        In the units of the objective of the fit that the model comes from, which are the data's own unless a note of
        the fit says otherwise; from a model that was not fitted always in the data's own.
        """
        return _inertia(self, params, data, weights)

    @takes_rows
    def predict(self, params: KMeansParams, data: PyTree) -> Array:
        """(N,) nearest centroid, ties to the lowest index."""
        return _labels(self, params, data)

    @takes_rows
    def posterior(self, params: KMeansParams, data: PyTree) -> Array:
        """(N, K) one-hot assignments."""
        dtype = jnp.asarray(params.centroids).dtype  # one that JAX has, also where x64 is off
        return jax.nn.one_hot(_labels(self, params, data), self.num_clusters, dtype=dtype)

    @takes_rows
    def transform(self, params: KMeansParams, data: PyTree) -> Array:
        """(N, K) distances to the centroids, from differences: exactly 0 from a point to itself."""
        return _distances(self, params, data)


@dataclass
class KMeansAt(DiscreteAt):
    """K-means at centroids."""

    def e_step(self, data: PyTree, weights: Array, rule: Rule) -> EStep:
        """Labels, counts and sums, never an (N, K) array of responsibilities; soft rules use the general E-step."""
        if not isinstance(rule, Hard):
            return super().e_step(data, weights, rule)
        model, params = self.model, self.params
        origin, unit = model._frame(params)
        centroids = (params.centroids - origin[None]) * unit
        shown = (jnp.ones((), unit.dtype) if model.units is None else model.units.shown) / unit

        # Of all rows at once the weighted ones are the same in every step, and made once.
        size = model.rows_at_once(data)
        look = size < num_rows(data) and not _lloyd.unrolled(centroids.shape)

        def block(data: PyTree, w: Array) -> EStep:
            rows = model._rows_about(origin, unit, data)
            label, distance = _lloyd.nearest(centroids, rows.x, rows.square)
            j = _lloyd.distortion(centroids, rows.x, w, label, distance, rows.square)
            stats = KMeansStats(*_lloyd.cluster_sums(rows.x, w, label, model.num_clusters, look))
            return EStep(stats, -0.5 * j * shown * shown)

        return sum_rows(block, data, weights, size)

    def moved(self, gone: Array, owner: Array, row: PyTree, share: Array, data: PyTree, weights: Array) -> KMeansParams:
        """Centroids with that of `gone` at the row."""
        return dataclasses.replace(self.params, centroids=self.params.centroids.at[gone].set(self._point(row)))

    def beside(self, row: PyTree, data: PyTree) -> Array:
        """(n,) the log-joint of a centroid at the row."""
        alone = dataclasses.replace(self.params, centroids=self._point(row)[None])
        return self.model.log_joint(alone, data)[:, 0]

    def _point(self, row: PyTree) -> Array:
        """(D,) one row as it was before `arrange`."""
        if not isinstance(row, KMeansRows):
            return row[0]
        origin, unit = self.model._frame(self.params)
        return origin + row.x[0] / unit

    def exchanged(self, data: PyTree, weights: Array) -> KMeansParams:
        """Centroids after one row of each cluster, that which gains most, has gone where the distortion is least.

        With n_k the weight of a cluster, row n of weight w is better off in j than in its own where, the two centroids
        moving along,

            n_j / (n_j + w) |x_n - c_j|^2 < n_own / (n_own - w) |x_n - c_own|^2,

        which can be where its own is the nearest. Centroids are taken for the means that they are in an optimum, and
        rows that go at once may raise the distortion together.
        """
        model, params, num = self.model, self.params, self.model.num_clusters
        (origin, unit), size = model._frame(params), model.rows_at_once(data)
        centroids = (params.centroids - origin[None]) * unit

        def look(rows: PyTree) -> tuple[Array, Array]:
            about = model._rows_about(origin, unit, rows)
            return _lloyd.nearest(centroids, about.x, about.square)

        own, nearest = map_rows(look, data, size)
        count = jax.ops.segment_sum(weights, own, num)
        left = count[own] - weights  # nothing, where a row is alone in its cluster, and there it stays
        stays = jnp.where(left > 0, safe_divide(count[own], left), 0) * nearest

        def better(rows: tuple[PyTree, Array, Array]) -> tuple[Array, Array]:
            (x, w, own), mass = rows, count[:, None]
            distance = _lloyd.distances(centroids, model._rows_about(origin, unit, x).x)
            elsewhere = own[None] != jnp.arange(num, dtype=jnp.int32)[:, None]
            return _lloyd.first_maximum(jnp.where(elsewhere, -safe_divide(mass, mass + w[None]) * distance, -jnp.inf))

        new, moves = map_rows(better, (data, weights, own), size)
        gain, absent = weights * (stays + moves), weights.shape[0]
        top = jax.ops.segment_max(gain, own, num)
        places = jnp.where(gain >= top[own], jnp.arange(absent, dtype=jnp.int32), jnp.int32(absent))
        first = jax.ops.segment_min(places, own, num)
        index = jnp.minimum(first, absent - 1)  # of an empty cluster none
        w = jnp.where((first < absent) & (top > 0), weights[index], 0)
        x = model._rows_about(origin, unit, jax.tree.map(lambda leaf: leaf[index], data)).x
        shift = lambda a, by: a.at[own[index]].add(-by).at[new[index]].add(by)
        mass, total = shift(count, w), shift(count[:, None] * centroids, w[:, None] * x)
        mean = origin[None] + safe_divide(total, mass[:, None]) / unit
        return dataclasses.replace(params, centroids=jnp.where((mass > 0)[:, None], mean, params.centroids))


@jax.jit
def _inertia(model: KMeans, params: KMeansParams, data: Array, weights: Array | None) -> Array:
    origin = model._frame(params)[0]
    shown = jnp.ones((), data.dtype) if model.units is None else model.units.shown
    inside = _lloyd.frame(jnp.concatenate([params.centroids, origin[None]]), data)[1]
    model = dataclasses.replace(model, origin=origin, units=Units(inside, shown))
    return -2 * model.e_step(params, data, weights).elbo_data


@jax.jit
def _labels(model: KMeans, params: KMeansParams, data: Array) -> Array:
    origin, unit = _lloyd.frame(params.centroids)  # of the params alone: a row's label does not depend on other rows
    centroids = (params.centroids - origin[None]) * unit
    nearest = lambda x: _lloyd.nearest(centroids, (x - origin[None]) * unit)[0]
    return map_rows(nearest, data, model.rows_at_once(data))


@jax.jit
def _distances(model: KMeans, params: KMeansParams, data: Array) -> Array:
    def block(x: Array) -> Array:
        unit = _lloyd.unit(jnp.max(jnp.abs(x), 1) + jnp.max(jnp.abs(params.centroids)))[:, None]
        length = lambda c: jnp.sqrt(jnp.sum(((x - c[None]) * unit) ** 2, 1))
        return jax.vmap(length, out_axes=1)(params.centroids) / unit

    return map_rows(block, data, model.rows_at_once(data))


def _farthest(
    centroids: Array,
    empty: Array,
    old: Array,
    count: Array,
    sums: Array,
    rows: Array,
    weights: Array,
    origin: Array,
    unit: Array,
) -> tuple[Array, Array]:
    """Puts the j-th empty centroid on the j-th farthest row, which leaves its cluster; (centroids, number moved).

    A row that moves is taken out of the mean of the cluster that it was counted in, so that the next means are those of
    the next assignment: the distortion falls by w |x - mean|^2 at least for each.
    """
    num = min(centroids.shape[0], rows.shape[0])
    x = (rows - origin[None]) * unit
    before, after = (old - origin[None]) * unit, (centroids - origin[None]) * unit
    size = _lloyd.block_rows(x.shape[0], before.shape)
    label, distance = map_rows(lambda x: _lloyd.assigned(before, after, x), x, size)
    top, index = jax.lax.top_k(jnp.where(weights > 0, distance, 0), num)
    rank = jnp.cumsum(empty.astype(jnp.int32)) - 1
    place = jnp.clip(rank, 0, num - 1)
    move = empty & (rank < num) & (top[place] > 0) & jnp.isfinite(top[place])
    moved = index[place]
    leaving = jnp.concatenate([jnp.ones_like(x[:, :1]), x], 1)[moved] * jnp.where(move, weights[moved], 0)[:, None]
    kept = jnp.concatenate([count[:, None], sums], 1).at[label[moved]].add(-leaving)
    left = kept[:, :1]
    # Where next to nothing is left, what is left of the sums is rounding: then the cluster keeps its mean.
    shrunk = (left < count[:, None]) & (left > 0.01 * count[:, None])
    centroids = jnp.where(shrunk, origin[None] + kept[:, 1:] / jnp.where(shrunk, left, 1) / unit, centroids)
    return jnp.where(move[:, None], rows[moved], centroids), jnp.sum(move, dtype=jnp.int32)


def _stay(centroids: Array, *rest: Array) -> tuple[Array, Array]:
    return centroids, jnp.zeros((), jnp.int32)


@jax.custom_batching.custom_vmap
def _relocate(centroids: Array, empty: Array, *rest: Array) -> tuple[Array, Array]:
    """Moves empty centroids if there are any. Under vmap one test covers all lanes, so it stays a real branch."""
    return jax.lax.cond(jnp.any(empty), _farthest, _stay, centroids, empty, *rest)


@_relocate.def_vmap
def _relocate_lanes(size: int, batched: Any, *args: Array) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
    axes = tuple(0 if b else None for b in batched)
    lanes = jax.vmap(_farthest, in_axes=axes, axis_size=size)
    stay = jax.vmap(_stay, in_axes=axes, axis_size=size)
    return jax.lax.cond(jnp.any(args[1]), lanes, stay, *args), (True, True)
