"""Assignment to the nearest centroid and cluster sums: the inner loop of K-means, for each platform.

On a CPU, XLA's argmin over a row-major (N, K) array is several times slower than everything else, so scores are laid
out (K, N) and reduced by compare-and-select over the K rows, each a vector operation over N.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxem._numerics import einsum

# Up to this many scalar multiply-adds, differences are unrolled and fused into one loop that stores no score.
UNROLL = 512
# Above this many scores the (K, n) block leaves the cache, and rows are cut into blocks.
SCORES = 1 << 22


def block_rows(num: int, num_clusters: int) -> int:
    """Rows per block: all of them while the scores fit, else about 2^19 scores, at least 2000 rows."""
    return max(1, num) if num * num_clusters <= SCORES else max(2000, (1 << 19) // num_clusters)


def _unrolled(shape: tuple[int, ...]) -> bool:
    return shape[1] <= 8 and shape[0] * shape[1] <= UNROLL


def nearest(centroids: Array, x: Array) -> tuple[Array, Array]:
    """Label (n,) of the nearest centroid, ties to the lowest index, and squared distance to it.

    For up to 8 columns the distance is a sum of squared differences, exact to rounding; otherwise it comes from
    |x|^2 - 2 x.c + |c|^2 about the mean of the centroids, whose rounding is relative to |x|^2 (see `exact_distance`).
    """
    if _unrolled(centroids.shape):
        return jax.lax.platform_dependent(centroids, x, cpu=_nearest_unrolled, default=_nearest_rows)
    return jax.lax.platform_dependent(centroids, x, cpu=_nearest_matmul, default=_nearest_rows)


def _nearest_unrolled(centroids: Array, x: Array) -> tuple[Array, Array]:
    columns = [x[:, d] for d in range(x.shape[1])]

    def distance(k: int) -> Array:
        parts = [(column - centroids[k, d]) ** 2 for d, column in enumerate(columns)]
        return sum(parts[1:], parts[0])

    best, label = distance(0), jnp.zeros(x.shape[0], jnp.int32)
    for k in range(1, centroids.shape[0]):
        current = distance(k)
        closer = current < best
        best, label = jnp.where(closer, current, best), jnp.where(closer, jnp.int32(k), label)
    return label, best


def _centred(centroids: Array, x: Array) -> tuple[Array, Array, Array]:
    """(centroids, x) about the mean centroid, and |c|^2 / 2."""
    origin = jnp.mean(centroids, 0)
    c = centroids - origin[None]
    return c, x - origin[None], 0.5 * jnp.sum(c * c, 1)


def _nearest_matmul(centroids: Array, x: Array) -> tuple[Array, Array]:
    c, x, half = _centred(centroids, x)
    scores = einsum("kd,nd->kn", c, x) - half[:, None]
    label, best = _first_maximum(scores)
    return label, jnp.maximum(jnp.sum(x * x, 1) - 2 * best, 0)


def _nearest_rows(centroids: Array, x: Array) -> tuple[Array, Array]:
    c, x, half = _centred(centroids, x)
    label = jnp.argmin(half[None] - einsum("nd,kd->nk", x, c), 1).astype(jnp.int32)
    return label, exact_distance(c, x, label)


def _first_maximum(scores: Array) -> tuple[Array, Array]:
    """Index of the first maximum over the leading axis, and the maximum: a chain of selects, or a tournament."""
    num = scores.shape[0]
    if num <= 64:
        best, label = scores[0], jnp.zeros(scores.shape[1], jnp.int32)
        for k in range(1, num):
            higher = scores[k] > best
            best, label = jnp.where(higher, scores[k], best), jnp.where(higher, jnp.int32(k), label)
        return label, best
    labels = jnp.broadcast_to(jnp.arange(num, dtype=jnp.int32)[:, None], scores.shape)
    while num > 1:
        half = -(-num // 2)
        rest = num - half
        a, b, la, lb = scores[:rest], scores[half:num], labels[:rest], labels[half:num]
        higher = (b > a) | ((b == a) & (lb < la))
        scores = jnp.concatenate([jnp.where(higher, b, a), scores[rest:half]])
        labels = jnp.concatenate([jnp.where(higher, lb, la), labels[rest:half]])
        num = half
    return labels[0], scores[0]


def exact_distance(centroids: Array, x: Array, label: Array) -> Array:
    """(n,) squared distance to the centroid `label`, from differences: exactly 0 at the centroid."""
    return jnp.sum((x - centroids[label]) ** 2, 1)


def distortion(centroids: Array, x: Array, weights: Array, label: Array, distance: Array) -> Array:
    """sum_n w_n |x_n - c_label|^2 without cancellation.

    Distances from scores have rounding errors relative to |x - origin|^2. Where the distortion is within 16 times of
    that scatter they cost at most 16 ulp; below, clusters are tight and far apart, and differences are taken instead.
    """
    total = jnp.sum(weights * distance)
    if _unrolled(centroids.shape):
        return total
    scatter = jnp.sum(weights * jnp.sum((x - jnp.mean(centroids, 0)[None]) ** 2, 1))
    return jax.lax.cond(
        16 * total >= scatter,
        lambda: total,
        lambda: jnp.sum(weights * exact_distance(centroids, x, label)),
    )


def cluster_sums(x: Array, weights: Array, label: Array, num_clusters: int) -> tuple[Array, Array]:
    """Weighted count (K,) and sum (K, D) of the rows of each cluster.

    Scatter-adds on a CPU; on accelerators, where scatters into few segments are slow and not deterministic, a product
    with the one-hot labels.
    """

    def scatter(x: Array, weights: Array, label: Array) -> tuple[Array, Array]:
        total = jax.ops.segment_sum(weights[:, None] * x, label, num_clusters)
        return jax.ops.segment_sum(weights, label, num_clusters), total

    def one_hot(x: Array, weights: Array, label: Array) -> tuple[Array, Array]:
        hot = jax.nn.one_hot(label, num_clusters, dtype=x.dtype) * weights[:, None]
        return jnp.sum(hot, 0), einsum("nk,nd->kd", hot, x)

    return jax.lax.platform_dependent(x, weights, label, cpu=scatter, default=one_hot)
