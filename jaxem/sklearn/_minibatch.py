"""`MiniBatchKMeans`: batches of rows, dense or sparse, added to the statistics of jaxem's K-means one at a time."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import sklearn.cluster
from jax import Array
from sklearn.base import _fit_context
from sklearn.utils import check_random_state

from jaxem.models.kmeans import KMeans as Model
from jaxem.models.kmeans import KMeansStats
from jaxem.sklearn import _blocks
from jaxem.sklearn._kmeans import Facade
from jaxem.sklearn._shared import checked_weights, host, in_x64, padded, seed, total_weight, warn, with_callbacks

ALL = 2**30  # rows that a start may look at: those given, of which there are `init_size`


@dataclasses.dataclass
class Stream:
    """What a sequence of batches has come to.

    Attributes:
      model: bound to the first rows seen, about whose mean sums are taken.
      centers: (K, D).
      stats: counts and sums of all rows so far.
      since: rows seen since the last look for small clusters.
    """

    model: Model
    centers: np.ndarray
    stats: Any
    since: int = 0


@dataclasses.dataclass
class Smoothed:
    """The distortion of batches, smoothed: whether it still falls.

    Attributes:
      num_rows: N, over which it is smoothed.
      patience: batches without a new least that end a fit; None for no end.
      mean: the exponentially weighted mean.
      least: its least.
      idle: batches since.
    """

    num_rows: int
    patience: int | None
    mean: float | None = None
    least: float = np.inf
    idle: int = 0

    def add(self, inertia: float, size: int) -> bool:
        """Takes in the mean distortion of a batch; whether patience is at its end."""
        share = min(size * 2.0 / (self.num_rows + 1), 1.0)
        self.mean = inertia if self.mean is None else self.mean * (1 - share) + inertia * share
        self.idle = 0 if self.mean < self.least else self.idle + 1
        self.least = min(self.least, self.mean)
        return self.patience is not None and self.idle >= self.patience


@partial(jax.jit, static_argnums=6)
def _starts(
    model: Model, X: Array, weights: Array, valid: Array, valid_weights: Array, key: Array, num: int
) -> tuple[Model, Array, Array]:
    """The model bound to rows, `num` starts (R, K, D) from these, and the distortion of others at each."""
    bound = model.bind(X, weights)
    centers = jax.lax.map(lambda key: bound.init(key, X, weights).centroids, jax.random.split(key, num))
    return bound, centers, _distortions(bound, centers, valid, valid_weights)


@jax.jit
def _distortions(model: Model, centers: Array, X: Array, weights: Array) -> Array:
    return jax.lax.map(lambda c: _blocks.collect(model, c, X, weights)[1], centers)


@jax.jit
def _absorbed(
    model: Model, centers: Array, stats: KMeansStats, X: Array, weights: Array
) -> tuple[Array, KMeansStats, Array, Array]:
    """Centroids after one more batch, all statistics, the batch's distortion before it, and how far they went."""
    found, distortion = _blocks.collect(model, centers, X, weights)
    stats = jax.tree.map(jnp.add, stats, found)
    new, shift = _blocks.moved(model, centers, stats)
    return new, stats, distortion, shift


class MiniBatchKMeans(Facade, sklearn.cluster.MiniBatchKMeans):
    """scikit-learn's `MiniBatchKMeans`: each centroid is the mean of all rows that it was nearest to so far.

    Arguments, attributes, stop rules and methods are scikit-learn's; see there. What is more, or not the same:

    * A batch is one compiled step on additive statistics, of fixed size, so that one program serves a fit; from a
      memory map or sparse rows (CSR) only the rows of a batch are read and made dense.
    * `partial_fit` goes on from any fit, with batches of any size.
    * A cluster that has no row at all moves to the farthest of at most 4096 rows kept from the start; one of fewer than
      `reassignment_ratio` times the largest's, to a random row of the batch, as there.
    * There is no `fit_`: a stream has no objective.

    Examples:
      >>> import numpy as np
      >>> from jaxem.sklearn import MiniBatchKMeans
      >>> X = np.repeat([[1.0, 2.0], [1, 4], [10, 2], [10, 4]], 10, 0)
      >>> kmeans = MiniBatchKMeans(2, batch_size=20, random_state=0).fit(X)
      >>> kmeans.labels_[0] == kmeans.labels_[10], kmeans.labels_[0] == kmeans.labels_[20]
      (np.True_, np.False_)
    """

    AUTO = 3

    def _settle_sizes(self, num_rows: int) -> None:
        """The batch, and how many rows starts are drawn from."""
        self._settle_inits(num_rows)
        self._batch_size = min(self.batch_size, num_rows)
        size, few = self.init_size, self.n_clusters
        if size is None:
            size = 3 * self._batch_size if 3 * self._batch_size >= few else 3 * few
        elif size < few:
            warn(
                f"init_size={size} should be larger than n_clusters={few}. Setting it to min(3*n_clusters, n_samples)",
                RuntimeWarning,
            )
            size = 3 * few
        self._init_size = min(size, num_rows)

    @_fit_context(prefer_skip_nested_validation=True)
    @with_callbacks
    @in_x64
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "MiniBatchKMeans":
        """Draws batches of rows, in proportion to their weights, until the smoothed distortion falls no more.

        Args:
          X: (N, D) rows, dense or sparse.
          y: not used.
          sample_weight: (N,) non-negative; None for ones.

        Returns:
          The estimator.

        Raises:
          ValueError: bad input.
        """
        X = self._rows(X, reset=True)
        weights = checked_weights(sample_weight, X)
        self._settle_sizes(X.shape[0])
        self._random_state = random_state = check_random_state(self.random_state)
        self._stream = self._begin(X, weights, random_state)
        num, size = X.shape[0], self._batch_size
        num_steps = (self.max_iter * num) // size
        edges = np.cumsum(np.ones(num) if weights is None else weights, dtype=np.float64)
        near = _blocks.near(X, self.tol) if self.tol > 0 else -1.0
        smoothed, bar = Smoothed(num, self.max_no_improvement), self._bar(X)
        for step in range(1, num_steps + 1):
            drawn = edges.searchsorted(random_state.random_sample(size) * edges[-1], side="right")
            inertia, shift = self._absorb(X[drawn], None, random_state)
            told_to_end = bar.at(step / num_steps)
            if self._ended(smoothed, step, num_steps, inertia / size, shift, near) or told_to_end:
                break
        bar.end()
        self.n_steps_, self.n_iter_ = step, int(np.ceil(step * size / num))
        self._settle(X, weights, smoothed)
        return self

    def _ended(self, smoothed: Smoothed, step: int, num_steps: int, inertia: float, shift: float, near: float) -> bool:
        """Whether the fit is over; the first batch, whose distortion is that of the start, does not count."""
        said = f"Minibatch step {step}/{num_steps}: mean batch inertia: {inertia}"
        if step == 1:
            if self.verbose:
                print(said)
            return False
        idle = smoothed.add(inertia, self._batch_size)
        if self.verbose:
            print(f"{said}, ewa inertia: {smoothed.mean}")
        reason = "small centers change" if shift <= near else "lack of improvement in inertia" if idle else ""
        if self.verbose and reason:
            print(f"Converged ({reason}) at step {step}/{num_steps}")
        return bool(reason)

    def _settle(self, X: Any, weights: Any, smoothed: Smoothed) -> None:
        """Labels and the distortion of all rows, or an estimate of it from the batches."""
        self._n_features_out = self.n_clusters
        if self.compute_labels:
            self.labels_, self.inertia_ = self._assign(X, weights)
        else:
            self.inertia_ = (np.nan if smoothed.mean is None else smoothed.mean) * total_weight(X, weights)

    @_fit_context(prefer_skip_nested_validation=True)
    @in_x64
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "MiniBatchKMeans":
        """Takes in one batch, the first of which is what a start is drawn from.

        Args:
          X: (n, D) rows, dense or sparse; at least `n_clusters` in the first batch.
          y: not used.
          sample_weight: (n,) non-negative; None for ones.

        Returns:
          The estimator.

        Raises:
          ValueError: bad input.
        """
        first = not hasattr(self, "cluster_centers_")
        X = self._rows(X, reset=first)
        weights = checked_weights(sample_weight, X)
        if first:
            self._settle_sizes(X.shape[0])
            self._random_state = check_random_state(self.random_state)
            self._stream = self._begin(X, weights, self._random_state)
            self.n_steps_ = 0
        else:
            X = X.astype(self._stream.centers.dtype, copy=False)
            self._follow()
        for rows, row_weights in _blocks.blocks(X, weights):
            self._absorb(rows, row_weights, self._random_state)
        self.n_steps_ += 1
        self._n_features_out = self.n_clusters
        if self.compute_labels:
            self.labels_, self.inertia_ = self._assign(X, weights)
        return self

    def _follow(self) -> None:
        """Takes over centroids that a user has set: they stand for as many rows as before."""
        stream = self._stream
        centers = np.asarray(self.cluster_centers_, stream.centers.dtype)
        if centers.shape != stream.centers.shape:
            raise ValueError(f"cluster_centers_: expected shape {stream.centers.shape}; found {centers.shape}")
        if not np.array_equal(stream.centers, centers):
            stats = dataclasses.replace(stream.stats, sum_x=self._sums(centers, stream.stats.count))
            self._stream = dataclasses.replace(stream, centers=centers, stats=stats)

    def _sums(self, centers: np.ndarray, count: np.ndarray) -> np.ndarray:
        """(K, D) sums, about the stream's origin, of clusters of so many rows with these means."""
        origin, unit = self._stream.model.origin, self._stream.model.units.inside  # type: ignore[union-attr]
        return count[:, None] * (centers - origin) * unit

    def _begin(self, X: Any, weights: Any, random_state: Any) -> Stream:
        """The best of the starts, by the distortion of some rows, and empty statistics."""
        num = X.shape[0]
        dense = lambda index: X[index].toarray() if scipy.sparse.issparse(X) else X[index]
        chosen = lambda index: None if weights is None else weights[index]
        valid, rows = (random_state.randint(0, num, self._init_size) for _ in range(2))
        if self._init_size >= num:
            rows = np.arange(num)
        if weights is not None and not (weights[rows] > 0).any():
            rows = np.flatnonzero(weights > 0)[: self._init_size]
        key, given = seed(random_state), self._given_centers(X, random_state)
        model = Model(self.n_clusters, init_method=self._method, init_size=ALL)
        seen, looked = padded(dense(rows), chosen(rows)), padded(dense(valid), chosen(valid))
        model, centers, inertia = _starts(model, *seen, *looked, key, 1 if given is not None else self._n_init)
        if given is not None:
            centers = given
            inertia = _distortions(model, centers, *looked)
        if self.verbose:
            for start, value in enumerate(np.asarray(inertia)):
                print(f"Inertia for init {start + 1}/{len(centers)}: {value}")
        zero: Any = np.zeros(self.n_clusters, X.dtype)
        stats = KMeansStats(zero, np.zeros((self.n_clusters, X.shape[1]), X.dtype))  # type: ignore[arg-type]
        self.cluster_centers_ = np.array(centers[int(np.argmin(inertia))])
        return Stream(host(model), self.cluster_centers_, stats)

    def _absorb(self, rows: Any, weights: Any, random_state: Any) -> tuple[float, float]:
        """One batch: its distortion before it and how far the centroids went together."""
        stream = self._stream
        rows = rows.toarray() if scipy.sparse.issparse(rows) else rows
        centers, stats, distortion, shift = host(
            _absorbed(stream.model, stream.centers, stream.stats, *padded(rows, weights))
        )
        stream.since += len(rows)
        if (stats.count == 0).any() or stream.since >= 10 * self.n_clusters:
            stream.since = 0
            centers, stats = self._reassigned(
                centers, stats, rows if weights is None else rows[weights > 0], random_state
            )
        self._stream = dataclasses.replace(stream, centers=centers, stats=stats)
        self.cluster_centers_, self._counts = np.array(centers), np.array(stats.count)
        return float(distortion), float(shift)

    def _reassigned(
        self, centers: np.ndarray, stats: Any, rows: np.ndarray, random_state: Any
    ) -> tuple[np.ndarray, Any]:
        """Small clusters, at most half as many as the batch has rows, on random rows; they count as the least other."""
        small = np.flatnonzero((stats.count < self.reassignment_ratio * stats.count.max()) & (stats.count > 0))
        small = small[np.argsort(stats.count[small], kind="stable")][: len(rows) // 2]
        if not small.size:
            return centers, stats
        if self.verbose:
            print(f"[MiniBatchKMeans] Reassigning {small.size} cluster centers.")
        kept = np.setdiff1d(np.flatnonzero(stats.count > 0), small)
        centers, count, sums = np.array(centers), np.array(stats.count), np.array(stats.sum_x)
        centers[small] = rows[random_state.choice(len(rows), small.size, replace=False)]
        count[small] = count[kept].min()
        sums[small] = self._sums(centers, count)[small]
        return centers, dataclasses.replace(stats, count=count, sum_x=sums)
