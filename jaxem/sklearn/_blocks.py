"""Rows in blocks: sparse ones made dense a block at a time, and Lloyd's algorithm on the additive statistics."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import Array

from jaxem.models.kmeans import KMeans, KMeansParams, KMeansStats
from jaxem.rules import Hard
from jaxem.sklearn._shared import padded

# Most numbers of a block of sparse rows, once dense: 32 MiB in float64.
BLOCK = 2**22


def fits(X: Any) -> bool:
    """Whether rows are dense, or one block."""
    return not scipy.sparse.issparse(X) or X.shape[0] * X.shape[1] <= BLOCK


def blocks(X: Any, weights: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Dense rows with their weights: all of them, or sparse ones block by block."""
    if not scipy.sparse.issparse(X):
        yield X, weights
        return
    size = max(1, BLOCK // max(1, X.shape[1]))
    for start in range(0, X.shape[0], size):
        part = slice(start, start + size)
        yield X[part].toarray(), None if weights is None else weights[part]


def variances(X: Any) -> np.ndarray:
    """(D,) variances of columns in float64, accurate at any offset for dense ones."""
    if not scipy.sparse.issparse(X):
        return np.var(X, axis=0, dtype=np.float64)
    X = X.astype(np.float64)
    mean = np.asarray(X.mean(axis=0)).ravel()
    square = np.asarray(X.multiply(X).mean(axis=0)).ravel()
    return np.maximum(square - mean**2, 0)


def near(X: Any, tol: float) -> float:
    """How far centroids may move together in a last step: sqrt(tol * mean variance)."""
    return float(np.sqrt(tol * np.mean(variances(X))))


def begin(model: KMeans, X: Any, weights: np.ndarray | None, key: Array) -> tuple[KMeans, Array]:
    """The model bound to a random block of sparse rows, and a start drawn from it."""
    size, num = max(model.num_clusters, BLOCK // max(1, X.shape[1])), X.shape[0]
    weights = np.ones(num, X.dtype) if weights is None else weights
    drawn = np.array(jax.random.permutation(key, num)[: min(size, num)])
    drawn = np.sort(drawn)
    if not (weights[drawn] > 0).any():
        drawn = np.flatnonzero(weights > 0)[:size]
    return _begin(model, *padded(X[drawn].toarray(), weights[drawn]), key)


@jax.jit
def _begin(model: KMeans, X: Array, weights: Array, key: Array) -> tuple[KMeans, Array]:
    bound = model.bind(X, weights)
    return bound, bound.init(key, X, weights).centroids


@jax.jit
def collect(model: KMeans, centroids: Array, X: Array, weights: Array) -> tuple[KMeansStats, Array]:
    """Statistics and the distortion of some rows; additive, about the origin of the bound model."""
    found = model.at(KMeansParams(centroids)).e_step(model.arrange(X), weights, Hard())
    return found.stats, -2 * found.elbo_data


@jax.jit
def moved(model: KMeans, centroids: Array, stats: KMeansStats) -> tuple[Array, Array]:
    """The means of the clusters, empty ones moved, and how far they went together."""
    new = model.m_step(KMeansParams(centroids), stats).centroids
    return new, jnp.sqrt(jnp.sum((new - centroids) ** 2))


def lloyd(
    model: KMeans,
    centroids: Array,
    X: Any,
    weights: np.ndarray | None,
    max_iter: int,
    near: float,
    tell: Callable[[int, float], bool],
) -> tuple[Array, float, int]:
    """Centroids, the last distortion seen and the number of steps; `tell` hears of each, and may ask for the end."""
    inertia, step = np.inf, 0
    for step in range(1, max_iter + 1):
        stats, total = None, 0.0
        for rows, row_weights in blocks(X, weights):
            found, distortion = collect(model, centroids, *padded(rows, row_weights))
            stats = found if stats is None else jax.tree.map(jnp.add, stats, found)
            total += float(distortion)
        centroids, shift = moved(model, centroids, stats)
        settled = tell(step, total) or float(shift) <= near or total == inertia
        inertia = total
        if settled:
            break
    return centroids, inertia, step
