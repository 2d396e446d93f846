"""`KMeans` with scikit-learn's arguments and attributes on jaxem's K-means, and what minibatches share with it."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import sklearn.cluster
from jax import Array
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxem.algorithms import EM
from jaxem.engine.fit import search
from jaxem.models.kmeans import KMeans as Model
from jaxem.models.kmeans import KMeansParams
from jaxem.sklearn import _blocks
from jaxem.sklearn._shared import (
    FLOATS,
    Watched,
    checked_weights,
    in_x64,
    padded,
    print_traces,
    seed,
    warn,
    with_callbacks,
)
from jaxem.stopping import Stop, StopParams

STARTS = {"k-means++": "kmeans++", "random": "random"}


@jax.jit
def _assigned(model: Model, centroids: Array, X: Array, weights: Array) -> tuple[Array, Array]:
    """Labels (N,) and the distortion."""
    params = KMeansParams(centroids)
    return model.predict(params, X), model.inertia(params, X, weights)


@jax.jit
def _distances(model: Model, centroids: Array, X: Array) -> Array:
    return model.transform(KMeansParams(centroids), X)


class Facade(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Watched):
    """What both estimators are asked, by `cluster_centers_` alone, as a user may set them.

    The mixins, which scikit-learn's classes have as well, are named for `set_output`: they wrap `transform` where it is
    defined.
    """

    AUTO: int  # starts of n_init="auto" where these are random rows

    def _rows(self, X: Any, reset: bool) -> Any:
        """Rows as float64 or float32, dense or CSR."""
        return validate_data(
            self, X, reset=reset, accept_sparse="csr", dtype=FLOATS, order="C", accept_large_sparse=False
        )

    def _settle_inits(self, num_rows: int) -> None:
        """Checks the number of rows, and decides how many starts there are."""
        if num_rows < self.n_clusters:
            raise ValueError(f"n_samples={num_rows} should be >= n_clusters={self.n_clusters}.")
        random = callable(self.init) or (isinstance(self.init, str) and self.init == "random")
        self._n_init = (self.AUTO if random else 1) if self.n_init == "auto" else int(self.n_init)
        if self._given and self._n_init != 1:
            name = type(self).__name__
            warn(
                f"Explicit initial center position passed: performing only one init in {name} instead of "
                f"n_init={self._n_init}.",
                RuntimeWarning,
            )
            self._n_init = 1

    @property
    def _given(self) -> bool:
        """Whether `init` is an array."""
        return not (isinstance(self.init, str) or callable(self.init))

    def _centers(self, init: Any, X: Any) -> np.ndarray:
        """Given centroids (K, D) as numbers of the rows' dtype."""
        init = init.toarray() if scipy.sparse.issparse(init) else init
        centers = check_array(init, dtype=X.dtype, order="C", copy=True)
        for axis, name, expected in (
            (0, "number of clusters", self.n_clusters),
            (1, "number of features of the data", X.shape[1]),
        ):
            if centers.shape[axis] != expected:
                raise ValueError(
                    f"The shape of the initial centers {centers.shape} does not match the {name} {expected}."
                )
        return centers

    def _given_centers(self, X: Any, random_state: Any) -> np.ndarray | None:
        """(R, K, D) centroids that `init` gives; None where it names a method."""
        if isinstance(self.init, str):
            return None
        if self._given:
            return self._centers(self.init, X)[None]
        num = self.n_clusters
        return np.stack([self._centers(self.init(X, num, random_state=random_state), X) for _ in range(self._n_init)])

    @property
    def _method(self) -> str:
        return STARTS.get(self.init, "kmeans++") if isinstance(self.init, str) else "kmeans++"

    def _model(self) -> Model:
        """The model of questions, in the data's own units."""
        return Model(len(self.cluster_centers_))

    def _assign(self, X: Any, weights: np.ndarray | None) -> tuple[np.ndarray, float]:
        """Labels (N,) and the distortion of rows, dense or sparse."""
        labels, total = [], 0.0
        for rows, row_weights in _blocks.blocks(X, weights):
            found, distortion = _assigned(self._model(), self.cluster_centers_, *padded(rows, row_weights))
            labels.append(np.array(found)[: len(rows)])
            total += float(distortion)
        return np.concatenate(labels).astype(np.int32), total

    @in_x64
    def predict(self, X: Any) -> np.ndarray:
        """(N,) nearest centroid of each row, ties to the lowest index."""
        check_is_fitted(self)
        return self._assign(self._rows(X, reset=False), None)[0]

    @in_x64
    def _transform(self, X: Any) -> np.ndarray:
        """(N, K) distances to the centroids."""
        found = []
        for rows, _ in _blocks.blocks(X, None):
            found.append(np.array(_distances(self._model(), self.cluster_centers_, padded(rows)[0]))[: len(rows)])
        return np.concatenate(found)

    def transform(self, X: Any) -> np.ndarray:
        """(N, K) distances of rows to the centroids, in the data's units."""
        check_is_fitted(self)
        return self._transform(self._rows(X, reset=False))

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """Fits, and returns the distances (N, K) of the rows to the centroids."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    @in_x64
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the distortion of the rows, sum_n w_n |x_n - nearest centroid|^2."""
        check_is_fitted(self)
        X = self._rows(X, reset=False)
        return -self._assign(X, checked_weights(sample_weight, X))[1]

    def _warn_of_few(self, labels: np.ndarray) -> None:
        distinct = len(np.unique(labels))
        if distinct < self.n_clusters:
            warn(
                f"Number of distinct clusters ({distinct}) found smaller than n_clusters ({self.n_clusters}). "
                "Possibly due to duplicate points in X.",
                ConvergenceWarning,
            )


class KMeans(Facade, sklearn.cluster.KMeans):
    """scikit-learn's `KMeans`, fitted by `jaxem.KMeans`: all `n_init` starts in one compiled program.

        J = sum_n w_n min_k |x_n - cluster_centers_k|^2 = inertia_

    Arguments, attributes and methods are scikit-learn's; see there. What is more, or not the same:

    * `algorithm="auto"`, the default, goes on from random starts by swaps of a centroid and short climbs
      (`jaxem.Swap`) while N D K is at most 200,000: it reaches optima that many more starts do not. "lloyd" and "elkan"
      are Lloyd's algorithm from each start, and give the same.
    * `tol`: Lloyd's algorithm stops as there, when the centroids moved by at most sqrt(tol * mean variance) together;
      swaps climb until a step changes J by a factor below tol / 1000.
    * `fit_` is the `jaxem.Fit`, `statuses_` how the starts ended; neither for sparse rows of more than one block.
    * An empty cluster moves to the farthest row. Clusters are ordered by no rule.
    * Sparse rows (CSR) are made dense a block of rows at a time, never as a whole; starts are drawn from one block.

    float64 stays float64 and float32 float32, whatever JAX's setting; fitted attributes are NumPy arrays.

    Examples:
      >>> import numpy as np
      >>> from jaxem.sklearn import KMeans
      >>> X = np.array([[1.0, 2.0], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
      >>> kmeans = KMeans(2, random_state=0).fit(X)
      >>> sorted(kmeans.cluster_centers_.tolist()), kmeans.inertia_
      ([[1.0, 2.0], [10.0, 2.0]], 16.0)
    """

    AUTO = 10
    _parameter_constraints: ClassVar[dict] = {
        **sklearn.cluster.KMeans._parameter_constraints,
        "algorithm": [StrOptions({"auto", "lloyd", "elkan"})],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: Any = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
        copy_x: bool = True,
        algorithm: str = "auto",
    ):
        super().__init__(
            n_clusters=n_clusters,
            init=init,
            n_init=n_init,
            max_iter=max_iter,
            tol=tol,
            verbose=verbose,
            random_state=random_state,
            copy_x=copy_x,
            algorithm=algorithm,
        )

    @_fit_context(prefer_skip_nested_validation=True)
    @with_callbacks
    @in_x64
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "KMeans":
        """Fits the centroids from `n_init` starts side by side and keeps the best.

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
        self._settle_inits(X.shape[0])
        if self.algorithm == "elkan" and self.n_clusters == 1:
            warn(
                "algorithm='elkan' doesn't make sense for a single cluster. Using 'lloyd' instead.",
                RuntimeWarning,
            )
        random_state = check_random_state(self.random_state)
        key, centers = seed(random_state), self._given_centers(X, random_state)
        if _blocks.fits(X):
            X = X.toarray() if scipy.sparse.issparse(X) else X
            self._fit_whole(X, weights, key, centers)
        else:
            self._fit_blocks(X, weights, key, centers)
        self._n_features_out = self.n_clusters
        self.labels_, self.inertia_ = self._assign(X, weights)
        self._warn_of_few(self.labels_)
        return self

    def _fit_whole(self, X: np.ndarray, weights: Any, key: Array, centers: np.ndarray | None) -> None:
        params, num = None, self._n_init
        if centers is not None:
            params = KMeansParams(jnp.asarray(centers), np.zeros(num, np.int32))
            params = jax.tree.map(lambda leaf: leaf[0], params) if num == 1 else params
        model = Model(self.n_clusters, init_method=self._method)
        searched = self.algorithm == "auto" and centers is None
        algorithm = search(model, X, int(self.max_iter)) if searched else None
        near = StopParams(rtol=0.0, atol=_blocks.near(X, self.tol), norm="2")
        stop = Stop(atol=0.0, rtol=self.tol / 1000) if algorithm else near
        fit = self._run(
            model,
            X,
            weights,
            key=key,
            params=params,
            algorithm=algorithm or EM(),
            stop=stop,
            max_steps=int(self.max_iter),
            num_restarts=num,
        )
        if self.verbose:
            ended = (
                f"change of inertia within {self.tol / 1000:g}"
                if algorithm
                else f"center shift is within tolerance {self.tol:g}"
            )
            print_traces(fit, "inertia", -2.0, tol=ended)
        self.cluster_centers_, self.n_iter_ = np.array(fit.params.centroids), max(int(fit.num_steps), 1)

    def _fit_blocks(self, X: Any, weights: Any, key: Array, centers: np.ndarray | None) -> None:
        """Lloyd's algorithm on rows that are made dense block by block, one start after the other."""
        near, most = _blocks.near(X, self.tol), int(self.max_iter)
        for name in ("fit_", "statuses_"):
            self.__dict__.pop(name, None)  # of an earlier fit
        best, bar, stop = np.inf, self._bar(X), False
        for start in range(self._n_init):

            def tell(step: int, inertia: float, start: int = start) -> bool:
                nonlocal stop
                if self.verbose:
                    print(f"  Iteration {step}, inertia {inertia:.5f}")
                stop = bar.at((start + step / most) / self._n_init)
                return stop

            model, places = _blocks.begin(
                Model(self.n_clusters, init_method=self._method), X, weights, jax.random.fold_in(key, start)
            )
            places = places if centers is None else jnp.asarray(centers[start])
            places, inertia, steps = _blocks.lloyd(model, places, X, weights, most, near, tell)
            if start == 0 or inertia < best:
                best, self.cluster_centers_, self.n_iter_ = inertia, np.array(places), steps
            if stop:
                break
        bar.end()
