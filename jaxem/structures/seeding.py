"""Starting points: greedy k-means++ centres, short Lloyd runs, and the partitions that mixtures start from."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import einsum, safe_divide
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
    num = num_rows(data)
    if num <= size:
        return data, weights, key
    key, rows_key = jax.random.split(key)
    cumulative = jnp.cumsum(weights)
    total = cumulative[-1]
    points = (jnp.arange(size).astype(weights.dtype) + uniform(rows_key, (size,), weights.dtype)) / size
    index = jnp.minimum(jnp.searchsorted(cumulative, points * total, side="right"), num - 1)
    return jax.tree.map(lambda a: a[index], data), jnp.full(size, total / size), key


def random_rows(key: Array, x: Array, weights: Array, num: int) -> Array:
    """(num, D) different rows of x of positive weight, in proportion to the weights (Gumbel top-k).

    Where fewer rows have positive weight, the last ones repeat.
    """
    positive = weights > 0
    gumbel = jax.random.gumbel(key, weights.shape, jnp.float32).astype(weights.dtype)  # as in `uniform`
    scores = jnp.where(positive, jnp.log(jnp.where(positive, weights, 1)) + gumbel, -jnp.inf)
    value, index = jax.lax.top_k(scores, num)
    return x[jnp.where(jnp.isfinite(value), index, index[0])]


def plus_plus(key: Array, x: Array, weights: Array, num: int) -> Array:
    """(num, D) greedy k-means++ centres: each the best of 2 + log K rows drawn in proportion to w * distance^2.

    Args:
      key: one draw of (num, trials) uniforms is all the randomness.
      x: (n, D) rows, D >= 1.
      weights: (n,) non-negative.
      num: number of centres; where fewer rows are distinct, some centres coincide.

    Returns:
      The centres. O(n D K log K).

    References:
      Arthur and Vassilvitskii (2007), k-means++: the advantages of careful seeding, section 2 and the greedy variant
      of their conclusion.
    """
    trials = 2 + int(math.log(num))
    draws = uniform(key, (num, trials), x.dtype)
    measure = _distances(x, weights)

    def step(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, nearest = state
        mass = weights * jnp.where(k == 0, 1, nearest)
        candidates = draw(mass, draws[k])
        near = jnp.minimum(nearest[None], measure(candidates))
        best = jnp.argmin(einsum("n,tn->t", weights, near))
        return chosen.at[k].set(candidates[best]), near[best]

    far = jnp.full(x.shape[0], jnp.finfo(x.dtype).max, x.dtype)
    chosen, _ = jax.lax.fori_loop(0, num, step, (jnp.zeros(num, jnp.int32), far))
    return x[chosen]


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


def draw(mass: Array, u: Array) -> Array:
    """Indices drawn in proportion to mass (n,), one for each uniform: first a block of about sqrt(n), then a row.

    Two short cumulative sums, where one over all rows would cost more than all distances.
    """
    num = mass.shape[0]
    size = math.isqrt(num - 1) + 1
    blocks = jnp.pad(mass, (0, -num % size)).reshape(-1, size)
    ends = jnp.cumsum(einsum("bs,s->b", blocks, jnp.ones(size, mass.dtype)))
    point = u * ends[-1]
    block = jnp.minimum(jnp.sum(ends[None] <= point[:, None], 1), ends.shape[0] - 1)
    before = jnp.where(block > 0, ends[block - 1], 0)
    within = jnp.cumsum(blocks[block], 1)
    row = jnp.sum(within <= (point - before)[:, None], 1)
    # Rounding may put the point beyond the block's last positive row: then that row.
    last = size - 1 - jnp.argmax((blocks[block] > 0)[:, ::-1], 1)
    return jnp.minimum(block * size + jnp.minimum(row, last), num - 1).astype(jnp.int32)


def lloyd(centres: Array, x: Array, weights: Array, num_steps: int, active: Array | None = None) -> Array:
    """(n,) labels of the nearest of `centres` after a fixed number of Lloyd steps; an empty cluster keeps its centre.

    Centres that are not `active` (K,) get no rows: they are put on the first one, and ties go to the lowest index.
    """

    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        centres, _label = state
        if active is not None:
            centres = jnp.where(active[:, None], centres, centres[:1])
        label, _distance = _lloyd.nearest(centres, x)
        count, total = _lloyd.cluster_sums(x, weights, label, centres.shape[0])
        return jnp.where((count > 0)[:, None], safe_divide(total, count[:, None]), centres), label

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
    if method == "random_resp":
        draws = uniform(key, (x.shape[0], num), x.dtype, 1e-3)
        draws = draws if active is None else jnp.where(active[None], draws, 0)
        return draws / jnp.sum(draws, 1, keepdims=True)
    if method == "random_points":
        centres = random_rows(key, x, weights, num)
    else:
        centres = plus_plus(key, x, weights, num)
    label = lloyd(centres, x, weights, 10 if method == "kmeans" else 0, active)
    return jax.nn.one_hot(label, num, dtype=x.dtype)


PARTITIONS = ("kmeans", "kmeans++", "random_points", "random_resp")
