"""Assignment to the nearest centroid and cluster sums: the inner loop of K-means, for each platform.

On a CPU, XLA's argmin over a row-major (N, K) array is several times slower than everything else, so scores are laid
out (K, N) and reduced by compare-and-select over the K rows, each a vector operation over N.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import einsum

# Up to this many scalar multiply-adds, differences are unrolled and fused into one loop that stores no score.
UNROLL = 512
# Above this many scores the (K, n) block leaves the cache, and rows are cut into blocks: of `FEW` rows, or where the
# product is worth sharing among cores, from `HEAVY` numbers of the centroids on, of about `BLOCK` scores. (For small
# blocks waking the other cores costs more than they do.) Rows of scores a power of two long would lie in the same few
# places of the cache, a third slower.
SCORES, FEW, HEAVY, BLOCK = 1 << 20, 2000, 2048, 400_000
# Scores are reduced this many at a time: longer chains compile to loops several times slower.
GROUP = 8


def unrolled(shape: tuple[int, ...]) -> bool:
    """Whether the distances to centroids of this shape (K, D) are taken from differences in one fused loop."""
    return shape[1] <= 8 and shape[0] * shape[1] <= UNROLL


def block_rows(num: int, shape: tuple[int, ...]) -> int:
    """Rows per block for centroids of this shape (K, D): all of them while the scores fit, at least 2000 else."""
    clusters, scores = shape[0], num * shape[0]
    if unrolled(shape):  # no scores are stored
        return max(1, num) if scores <= 1 << 22 else max(FEW, (1 << 19) // clusters)
    if scores <= SCORES:
        return max(1, num)
    return FEW if clusters * shape[1] < HEAVY else max(FEW, BLOCK // clusters // 16 * 16)


def unit(size: Array) -> Array:
    """The power of two next to 1 / size where squares of such numbers come near the ends of the dtype, else 1.

    In float32 it is 1 for sizes from about 1e-12 to 1e12: there squares of differences of a millionth of the size, and
    sums of 2^40 squares, are in range. 1 for size 0.
    """
    info = jnp.finfo(size.dtype)
    ordinary = 2.0 ** (5 * info.maxexp // 16)
    power = jax.lax.reduce_precision(
        jnp.clip(size, 4 * float(info.tiny), float(info.max) / 4), info.bits - info.nmant - 1, 0
    )
    return jnp.where((size == 0) | ((size >= 1 / ordinary) & (size <= ordinary)), 1, 1 / power)


def representable(size: Array, total: Array, num_columns: int) -> Array:
    """Whether sums of squares of numbers up to `size`, of that weight, and their last digits, are within the dtype."""
    info = jnp.finfo(size.dtype)
    low, high = (float(info.tiny) / float(info.eps)) ** 0.5, float(info.max) ** 0.5 / 4
    scale = jnp.sqrt(total)
    return (size == 0) | ((size * jnp.minimum(scale, 1) >= low) & (size <= high / (num_columns**0.5 * scale)))


def frame(centroids: Array, data: Array | None = None) -> tuple[Array, Array]:
    """Origin (D,) and unit in which distances among centroids, and from them to data, neither under- nor overflow."""
    origin = jnp.mean(centroids * 0.5, 0) * 2  # halves: the sum of two numbers near the end of the dtype
    gap = jnp.max(jnp.abs(centroids - origin[None]))
    if data is not None:
        gap = jnp.maximum(gap, jnp.max(jnp.abs(data - origin[None])))
    return origin, unit(jnp.where(gap > 0, gap, jnp.max(jnp.abs(origin))))


def assigned(old: Array, new: Array, x: Array) -> tuple[Array, Array]:
    """(n,) label of the nearest of the `old` centroids, and squared distance to the `new` one of that label.

    From differences, on every platform: slower than `nearest`, but quicker to compile.
    """
    label = jnp.argmin(jax.vmap(lambda c: jnp.sum((x - c[None]) ** 2, 1))(old), 0).astype(jnp.int32)
    return label, exact_distance(new, x, label)


def nearest(centroids: Array, x: Array, square: Array | None = None) -> tuple[Array, Array]:
    """Label (n,) of the nearest centroid, ties to the lowest index, and squared distance to it.

    For up to 8 columns the distance is a sum of squared differences, exact to rounding; otherwise it comes from
    |x|^2 - 2 x.c + |c|^2, whose rounding is relative to |x|^2 (see `distortion`): give x and centroids about an origin
    among the data. `square` is |x|^2 (n,), where the caller has it.
    """
    if unrolled(centroids.shape):
        return jax.lax.platform_dependent(centroids, x, cpu=_nearest_unrolled, default=_nearest_rows)
    square = jnp.sum(x * x, 1) if square is None else square
    matmul = lambda c, x, square: _nearest_matmul(c, x, square)
    rows = lambda c, x, square: _nearest_rows(c, x)
    return jax.lax.platform_dependent(centroids, x, square, cpu=matmul, default=rows)


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


def _nearest_matmul(centroids: Array, x: Array, square: Array) -> tuple[Array, Array]:
    num = centroids.shape[0]
    half = 0.5 * jnp.sum(centroids**2, 1)
    if num > 2 * GROUP:  # whole groups: a centroid at infinity is never the nearest
        extra = -num % GROUP
        centroids, half = jnp.pad(centroids, ((0, extra), (0, 0))), jnp.pad(half, (0, extra), constant_values=jnp.inf)
    label, best = first_maximum(einsum("kd,nd->kn", centroids, x) - half[:, None])
    return label, jnp.maximum(square - 2 * best, 0)


def _nearest_rows(centroids: Array, x: Array) -> tuple[Array, Array]:
    half = 0.5 * jnp.sum(centroids**2, 1)
    label = jnp.argmin(half[None] - einsum("nd,kd->nk", x, centroids), 1).astype(jnp.int32)
    return label, exact_distance(centroids, x, label)


def first_maximum(scores: Array) -> tuple[Array, Array]:
    """Index of the first maximum over the leading axis, and the maximum, in groups of `GROUP` where there are many."""
    num = scores.shape[0]
    if num <= 2 * GROUP:
        return _chain([(scores[k], jnp.full(scores.shape[1:], k, jnp.int32)) for k in range(num)])
    extra = -num % GROUP
    if extra:
        scores = jnp.concatenate([scores, jnp.full((extra, *scores.shape[1:]), -jnp.inf, scores.dtype)])
    groups = scores.reshape(-1, GROUP, *scores.shape[1:])
    within, best = first_maximum(jnp.moveaxis(groups, 1, 0))
    first = GROUP * jnp.arange(groups.shape[0], dtype=jnp.int32)
    label = within + first.reshape(-1, *([1] * (within.ndim - 1)))
    while best.shape[0] > 1:  # winners of the groups, 2 * GROUP at a time
        parts = range(0, best.shape[0], 2 * GROUP)
        rounds = [_chain(list(zip(best[i : i + 2 * GROUP], label[i : i + 2 * GROUP], strict=True))) for i in parts]
        label, best = jnp.stack([r[0] for r in rounds]), jnp.stack([r[1] for r in rounds])
    return label[0], best[0]


def _chain(entries: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """(label, value) of the first largest value, elementwise."""
    best, label = entries[0]
    for value, name in entries[1:]:
        higher = value > best
        best, label = jnp.where(higher, value, best), jnp.where(higher, name, label)
    return label, best


def distances(centroids: Array, x: Array, unit: Array | float = 1.0) -> Array:
    """(K, n) squared distances in a unit, from differences; column by column for up to 8, where a sum is slow."""
    if x.shape[1] > 8:
        return jax.vmap(lambda c: jnp.sum(((x - c[None]) * unit) ** 2, 1))(centroids)
    parts = [((x[None, :, d] - centroids[:, d, None]) * unit) ** 2 for d in range(x.shape[1])]
    return sum(parts[1:], parts[0])


def exact_distance(centroids: Array, x: Array, label: Array) -> Array:
    """(n,) squared distance to the centroid `label`, from differences: exactly 0 at the centroid."""
    return jnp.sum((x - centroids[label]) ** 2, 1)


@jax.custom_batching.custom_vmap
def in_any_lane(flag: Array) -> Array:
    """The flag (); under vmap one for all lanes, whether it is up in any, so that a branch on it stays a branch."""
    return flag


@in_any_lane.def_vmap
def _in_any_lane(size: int, batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return in_any_lane(jnp.any(flag)), False


def distortion(
    centroids: Array, x: Array, weights: Array, label: Array, distance: Array, square: Array | None = None
) -> Array:
    """sum_n w_n |x_n - c_label|^2 without cancellation.

    Distances from scores have rounding errors relative to |x|^2. Where the distortion is within 16 times of that
    scatter they cost at most 16 ulp; below, clusters are tight and far apart, and differences are taken instead.
    """
    total = jnp.sum(weights * distance)
    if unrolled(centroids.shape):
        return total
    scatter = jnp.sum(weights * (jnp.sum(x * x, 1) if square is None else square))
    near = ~(16 * total >= scatter)
    exact = lambda: jnp.sum(weights * exact_distance(centroids, x, label))
    # A lane's value is by its own flag, whether or not others go along.
    lanes = lambda: jax.lax.cond(in_any_lane(near), lambda: jnp.where(near, exact(), total), lambda: total)
    return jax.lax.platform_dependent(cpu=lanes, default=lambda: jax.lax.cond(near, exact, lambda: total))


def cluster_sums(x: Array, weights: Array, label: Array, num_clusters: int, look: bool = False) -> tuple[Array, Array]:
    """Weighted count (K,) and sum (K, D) of the rows of each cluster.

    Scatter-adds on a CPU; on accelerators, where scatters into few segments are slow and not deterministic, a product
    with the one-hot labels.

    Args:
      x: (n, D).
      weights: (n,).
      label: (n,) cluster of each row.
      num_clusters: K.
      look: on a CPU, to look whether all weights are 1, as they mostly are, and not to multiply by them then: a tenth
        of a step of many columns, for a tenth of a second of compilation.
    """
    sums = lambda values, label: jax.ops.segment_sum(values, label, num_clusters)

    def scatter(x: Array, weights: Array, label: Array) -> tuple[Array, Array]:
        weighted = lambda: sums(weights[:, None] * x, label)
        if not look:
            return sums(weights, label), weighted()
        differ = in_any_lane(jnp.any(weights != 1))
        return sums(weights, label), jax.lax.cond(differ, weighted, lambda: sums(x, label))

    def one_hot(x: Array, weights: Array, label: Array) -> tuple[Array, Array]:
        hot = jax.nn.one_hot(label, num_clusters, dtype=x.dtype) * weights[:, None]
        return jnp.sum(hot, 0), einsum("nk,nd->kd", hot, x)

    return jax.lax.platform_dependent(x, weights, label, cpu=scatter, default=one_hot)
