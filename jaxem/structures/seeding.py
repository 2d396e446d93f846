"""Starting points: greedy k-means++ centres, short Lloyd runs, and the partitions that mixtures start from."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import mesh as _mesh
from jaxem.core import threefry
from jaxem.core.numerics import einsum
from jaxem.core.stages import stage
from jaxem.core.tree import PyTree, num_rows
from jaxem.structures import lloyd as _lloyd


def uniform(key: Array, shape: tuple[int, ...], dtype: Any, low: float = 0.0) -> Array:
    """Uniforms from `low` to 1, drawn in float32 whatever the dtype, so that a key starts alike in both precisions.

    JAX draws other numbers for another dtype. Steps of 2^-23 are finer than any choice among the rows that a start
    looks at. What still differs is the rounding of cumulative weights: a number that falls within it of the edge
    between two rows draws the one or the other, in a subsample of a million rows for some percent of them.
    """
    return jax.random.uniform(key, shape, jnp.float32, low).astype(dtype)


def subsample(key: Array, data: PyTree, weights: Array, size: int) -> tuple[PyTree, Array, Array]:
    """At most `size` rows, weights of the same total, and a key to go on with.

    Rows are drawn in proportion to their weights (systematic sampling). All rows, as they are, where there are no
    more than `size`; then no random number is drawn.
    """
    if _mesh.real_rows(num_rows(data)) <= size:
        return *_mesh.all_rows((data, weights)), key
    key, rows_key = threefry.split(key)
    draws, mesh = threefry.uniform(rows_key, (size,)), _mesh.current()
    if mesh is not None:
        return *_subsample_over(draws, data, weights, mesh), key
    return *_subsample(draws, data, weights), key


def evenly(draw: Array, data: PyTree, weights: Array, size: int) -> tuple[PyTree, Array]:
    """At most `size` rows at even steps of the weight, by one uniform (1,), and weights of the same total."""
    mesh = _mesh.current()
    if _mesh.real_rows(num_rows(data)) <= size:
        return _mesh.all_rows((data, weights))
    if mesh is not None:
        return _subsample_over(jnp.broadcast_to(draw, (size,)), data, weights, mesh)
    return _subsample(jnp.broadcast_to(draw, (size,)), data, weights)


def places(draws: Array, total: Array) -> Array:
    """(n,) a place at a uniform one in each of n equal parts of a total weight."""
    size = draws.shape[0]
    return (jnp.arange(size).astype(total.dtype) + draws.astype(total.dtype)) / size * total


@stage()
def _subsample(draws: Array, data: PyTree, weights: Array) -> tuple[PyTree, Array]:
    """A row at a uniform place in each of equal parts of the weight."""
    size = draws.shape[0]
    cumulative = jnp.cumsum(weights)
    total = cumulative[-1]
    index = jnp.minimum(jnp.searchsorted(cumulative, places(draws, total), side="right"), num_rows(data) - 1)
    return jax.tree.map(lambda a: a[index], data), jnp.full(size, total / size)


@stage(3)
def _subsample_over(draws: Array, data: PyTree, weights: Array, mesh: Any) -> tuple[PyTree, Array]:
    """The same of rows over a mesh, as copies on all devices: one all-reduce of as many rows as are drawn."""
    size, axes, shards = draws.shape[0], _mesh.row_axes(mesh), _mesh.row_shards(mesh)
    data, weights = _mesh.padded(data, shards), _mesh.padded(weights, shards, zero=True)
    apiece = weights.shape[0] // shards

    def own(shard: Array, data: PyTree, weights: Array, draws: Array) -> tuple[PyTree, Array]:
        sums = jnp.cumsum(jax.lax.all_gather(jnp.sum(weights), axes))
        start, total = jnp.where(shard > 0, sums[shard - 1], 0), sums[shards - 1]
        points = places(draws, total)
        # The last shard with weight takes what by rounding lies beyond.
        mine = (points >= start) & ((points < sums[shard]) | (sums[shard] >= total)) & (sums[shard] > start)
        index = jnp.minimum(jnp.searchsorted(start + jnp.cumsum(weights), points, side="right"), apiece - 1)
        pick = lambda leaf: jnp.where(mine.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf[index], 0).astype(leaf.dtype)
        # Each of the shards adds its own weight to the total.
        return jax.tree.map(pick, data), jnp.sum(weights)

    rows, total = _mesh.where_rows_lie(own, mesh, (data, weights), True, draws)
    return rows, jnp.full(size, total / size)


@stage(3)
def random_rows(key: Array, x: Array, weights: Array, num: int) -> Array:
    """(num, D) different rows of x of positive weight, in proportion to the weights (Gumbel top-k).

    Where fewer rows have positive weight, the last ones repeat.
    """
    positive = weights > 0
    gumbel = jax.random.gumbel(key, weights.shape, jnp.float32).astype(weights.dtype)  # as in `uniform`
    scores = jnp.where(positive, jnp.log(jnp.where(positive, weights, 1)) + gumbel, -jnp.inf)
    value, index = jax.lax.top_k(scores, num)
    return x[jnp.where(jnp.isfinite(value), index, index[0])]


def plus_plus(key: Array, x: Array, weights: Array, num: int, unit: Array | float = 1.0) -> Array:
    """(num, D) greedy k-means++ centres: each the best of 2 + log K rows drawn in proportion to w * distance^2.

    Args:
      key: one draw of (num, trials) uniforms is all the randomness.
      x: (n, D) rows, D >= 1.
      weights: (n,) non-negative.
      num: number of centres; where fewer rows are distinct, some centres coincide.
      unit: what x is multiplied by in all arithmetic, a power of two.

    Returns:
      The centres. O(n D K log K).

    References:
      Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding, section 2 and the greedy variant
      of their conclusion.
    """
    return _plus_plus(_plus_plus_draws(key, num), x, weights, unit)


def _plus_plus_draws(key: Array, num: int) -> Array:
    return threefry.uniform(key, (num, 2 + int(math.log(num))))


def _centres(draws: Array, x: Array, weights: Array, unit: Array | float = 1.0) -> Array:
    """(K, D) centres of k-means++, by uniforms (K, trials)."""
    draws, far = draws.astype(x.dtype), jnp.finfo(x.dtype).max
    measure, draw = _distances(x * unit, weights), drawer(weights)

    def step(nearest: Array, u: Array) -> tuple[Array, Array]:
        candidates = draw(weights * jnp.where(nearest < far, nearest, 1), u)
        near = jnp.minimum(nearest[None], measure(candidates))
        best = jnp.argmin(einsum("n,tn->t", weights, near))
        return near[best], x[candidates[best]]

    return jax.lax.scan(step, jnp.full(x.shape[0], far, x.dtype), draws)[1]


_plus_plus = stage()(_centres)


def _distances(x: Array, weights: Array) -> Callable[[Array], Array]:
    """The function from rows' indices (t,) to squared distances (t, n) to all rows.

    From differences, column by column; for more than 8 columns by a product, about the mean.
    """
    if x.shape[1] <= 8:
        columns = [x[:, d] for d in range(x.shape[1])]

        def differences(index: Array) -> Array:
            points = x[index]
            parts = [(column[None] - points[:, d, None]) ** 2 for d, column in enumerate(columns)]
            return sum(parts[1:], parts[0])

        return differences
    about = x - x[:1]
    about = about - (einsum("n,nd->d", weights, about) / jnp.sum(weights))[None]
    square = jnp.sum(about * about, 1)

    def product(index: Array) -> Array:
        cross = einsum("td,nd->tn", about[index], about)
        return jnp.maximum(square[None] + square[index][:, None] - 2 * cross, 0)

    return product


def drawer(weights: Array) -> Callable[[Array, Array], Array]:
    """The function from mass (n,) and uniforms (t,) to rows' indices (t,), drawn in proportion to the mass.

    First a block of about sqrt(n) rows, then a row: two short cumulative sums, where one over all rows would cost more
    than all distances. They are products with a triangle of ones, which are calls of a library, where a cumulative sum
    of XLA is four kernels to compile. A row without mass is never drawn while another has some; where none has, it is
    the first one of positive weight.
    """
    num = weights.shape[0]
    size = max(2, math.isqrt(num - 1) + 1)
    index = jnp.arange(size)
    upto = (index[:, None] <= index[None]).astype(weights.dtype)
    first = jnp.argmax(weights > 0)

    def draw(mass: Array, u: Array) -> Array:
        blocks = jnp.pad(mass, (0, size * size - num)).reshape(size, size)
        # Two columns each, as a product with a vector would be a kernel of its own: the last is the sum of all.
        sums = einsum("bs,st->bt", blocks, upto[:, size - 2 :])
        ends = einsum("ab,at->bt", upto, sums)[:, 1]
        total, point = ends[size - 1], u * ends[size - 1]
        block = _first_beyond(ends[None], sums[None, :, 1], point)
        rows = blocks[block]
        within = (ends - sums[:, 1])[block][:, None] + einsum("ts,su->tu", rows, upto)
        drawn = block * size + _first_beyond(within, rows, point)
        return jnp.where(total > 0, drawn, first).astype(jnp.int32)

    return draw


def _first_beyond(cumulative: Array, mass: Array, point: Array) -> Array:
    """(t,) the first entry with mass whose cumulative sum is beyond the point (t,); by rounding, the largest."""
    score = jnp.where(cumulative > point[:, None], jnp.inf, cumulative)
    return jnp.argmax(jnp.where(mass > 0, score, -1), 1)


def lloyd(centres: Array, x: Array, weights: Array, num_steps: int, active: Array | None = None) -> Array:
    """(n,) labels of the nearest of `centres` after a fixed number of Lloyd steps; an empty cluster keeps its centre.

    Centres that are not `active` (K,) get no rows: they are put on the first one, and ties go to the lowest index.
    """
    index = jnp.arange(centres.shape[0], dtype=jnp.int32)
    ones_and_x = jnp.concatenate([jnp.ones_like(x), x], 1)

    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, _label = state
        if active is not None:
            centres = jnp.where(active[:, None], centres, centres[:1])
        label, _distance = _lloyd.nearest(centres, x)
        # By a product, where a scatter would be quicker to run for many clusters, but slower to compile.
        hot = jnp.where(label[None] == index[:, None], weights[None], 0)
        count, total = jnp.split(einsum("kn,nd->kd", hot, ones_and_x), 2, 1)
        return jnp.where(count > 0, total / count, centres), label

    # The last step's means are not used: an assignment outside the loop would be compiled twice.
    return jax.lax.fori_loop(0, num_steps + 1, step, (centres, jnp.zeros(x.shape[0], jnp.int32)))[1]


def partition(key: Array, x: Array, weights: Array, num: int, method: str, active: Array | None = None) -> Array:
    """(n, K) responsibilities to start a mixture from.

    Args:
      key: random key.
      x: (n, F) features on comparable scales.
      weights: (n,).
      num: K.
      method: "kmeans" (greedy k-means++ and 10 Lloyd steps), "kmeans++" (no Lloyd step), "random_points" (nearest of K
        random rows), "random_resp" (uniform random, normalised).
      active: (K,) bool, the components that may get rows; None for all.

    Returns:
      Rows that sum to 1; one-hot but for "random_resp".
    """
    if method in ("kmeans", "kmeans++"):
        return _plus_plus_cells(_plus_plus_draws(key, num), x, weights, active, 10 if method == "kmeans" else 0)
    return (_random_resp if method == "random_resp" else _random_cells)(key, x, weights, active, num)


@stage(4)
def _plus_plus_cells(draws: Array, x: Array, weights: Array, active: Array | None, num_steps: int) -> Array:
    return _cells(_centres(draws, x, weights), x, weights, active, num_steps)


@stage(4)
def _random_cells(key: Array, x: Array, weights: Array, active: Array | None, num: int) -> Array:
    return _cells(random_rows(key, x, weights, num), x, weights, active, 0)


@stage(4)
def _random_resp(key: Array, x: Array, weights: Array, active: Array | None, num: int) -> Array:
    draws = uniform(key, (x.shape[0], num), x.dtype, 1e-3)
    draws = draws if active is None else jnp.where(active[None], draws, 0)
    return draws / jnp.sum(draws, 1, keepdims=True)


def _cells(centres: Array, x: Array, weights: Array, active: Array | None, num_steps: int) -> Array:
    return jax.nn.one_hot(lloyd(centres, x, weights, num_steps, active), centres.shape[0], dtype=x.dtype)


PARTITIONS = ("kmeans", "kmeans++", "random_points", "random_resp")
