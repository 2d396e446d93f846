"""`GaussianMixture` with scikit-learn's arguments and attributes on `jaxem.GMM`."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.mixture
from jax import Array

from jaxem.core.tree import PyTree
from jaxem.models.kmeans import KMeans, KMeansParams
from jaxem.models.mixture import GMM, MixtureParams
from jaxem.sklearn._mixtures import MATRICES, STARTS, Facade, covariances_of, floats
from jaxem.sklearn._shared import padded, total_weight
from jaxem.stopping import Status
from jaxem.structures.seeding import subsample


class GaussianMixture(Facade, sklearn.mixture.GaussianMixture):
    """scikit-learn's `GaussianMixture`, fitted by `jaxem.GMM`: all `n_init` starts in one compiled program.

        p(x) = sum_k weights_k N(x; means_k, covariances_k)

    Arguments, attributes and methods are scikit-learn's; see there. What is more, or not the same:

    * `fit`, `fit_predict` and `score` take `sample_weight`.
    * `fit_` is the `jaxem.Fit`, `statuses_` how the starts ended. A collapsed component (`DEGENERATE`) loses to any
      honest start, whatever its likelihood, and warns where there is none; with `reg_covar=0` it is an error.
    * `reg_covar` is in units of the data's variances S0, so that no unit of the data changes a fit: it is the strength
      of a penalty of nu = reg_covar N / K pseudo-observations, covariance = (scatter + nu S0) / (N_k + nu). On
      standardised columns an average component gets reg_covar added, as there; a smaller one more.
    * `lower_bound_` is the mean log-likelihood of the params that are returned, where scikit-learn's is of those one
      M-step before; `lower_bounds_[t]` after t + 1 M-steps, with the penalty, so that it never falls.
    * A constant column has variance 1 in `covariances_`, and columns that are linear combinations of earlier ones add
      nothing to a density; samples keep both, and `fit_.warnings()` names them.
    * Components are ordered by weight, largest first, unless they start from given ones.
    * Where `means_init` is given and weights or precisions are not, these start from the rows nearest to each mean.

    float64 stays float64 and float32 float32, whatever JAX's setting; fitted attributes are NumPy arrays. The first
    fit of a shape compiles for seconds; rows are padded to a few lengths, so that later ones rarely do.

    Examples:
      >>> import numpy as np
      >>> from jaxem.sklearn import GaussianMixture
      >>> X = np.random.default_rng(0).normal(size=(200, 2)) + np.repeat([[0.0, 0.0], [10.0, 5.0]], 100, 0)
      >>> mixture = GaussianMixture(2, n_init=8, random_state=0).fit(X)
      >>> sorted(mixture.means_[:, 1].round(1).tolist()), mixture.statuses_
      ([0.1, 4.9], {'CONVERGED': 8})
    """

    _failed: ClassVar[str] = (
        "Fitting the mixture model failed because some components have ill-defined empirical covariance (for instance "
        "caused by singleton or collapsed samples). Try to decrease the number of components, increase reg_covar, or "
        "scale the input data."
    )

    def _unit(self, total: float) -> float:
        """The bound is a mean."""
        return 1.0

    def _model(self, checked: Any, X: np.ndarray, weights: np.ndarray | None) -> GMM:
        return GMM(
            self.n_components,
            self.covariance_type,
            init_method=STARTS[self.init_params],
            pseudo_observations=float(self.reg_covar) * total_weight(X, weights) / self.n_components,
        )

    def _start(self, checked: Any, model: Any, X: np.ndarray, weights: Any, key: Array) -> tuple[Any, int]:
        mixing, mean, covariance = checked.weights_init, checked.means_init, checked.precisions_init
        if covariance is not None:
            covariance = (
                covariances_of(np.linalg.cholesky(covariance), self.covariance_type)
                if (self.covariance_type in MATRICES)
                else 1 / covariance
            )
        given = [None if part is None else jnp.asarray(part, X.dtype) for part in (mixing, mean, covariance)]
        if all(part is None for part in given) or self._goes_on:
            return super()._start(checked, model, X, weights, key)
        num = int(self.n_init) if mean is None else 1
        starts = _starts(model, *padded(X, weights), key, *given, num)
        return (starts if num > 1 else jax.tree.map(lambda leaf: leaf[0], starts)), num

    def _refuse(self, found: Any) -> None:
        settled = int(found.num_steps) < self.max_iter
        if self.reg_covar == 0 and settled and int(found.status) == Status.DEGENERATE:
            raise ValueError(f"{self._failed} {'; '.join(found.warnings())}")

    def _describe(self, fit: Any) -> None:
        self.weights_ = np.array(fit.params.mixing)
        self._show(fit.params.components, weights_=self.weights_)

    def _of_attributes(self, by: str) -> tuple[GMM, MixtureParams]:
        kind = self.covariance_type
        chosen = by if hasattr(self, by) else ({"covariances_", "precisions_cholesky_"} - {by}).pop()
        part = floats(getattr(self, chosen))
        covariance = part if chosen == "covariances_" else covariances_of(part, kind)
        model = GMM(len(self.means_), kind)
        return model, model.make_params(floats(self.weights_), mean=floats(self.means_), covariance=covariance)

    def _n_parameters(self) -> int:
        model, params = self._at()
        return int(model.num_parameters(params))


@partial(jax.jit, static_argnums=7)
def _starts(
    model: GMM,
    X: Array,
    weights: Array,
    key: Array,
    mixing: Array | None,
    mean: Array | None,
    covariance: Array | None,
    num: int,
) -> PyTree:
    """Params of `num` starts in which what is given stands in place of what was drawn.

    With given means, what is not given is of the rows nearest to each, on standardised columns.
    """
    bound: Any = model.bind(X, weights)
    if mean is None:
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num))
        params = jax.vmap(lambda key: bound.init(key, X, weights))(keys)
    else:
        rows, row_weights, _ = subsample(key, X, weights, model.init_size)
        places = KMeansParams(bound.family.features(mean))
        label = KMeans(model.num_components).predict(places, bound.family.features(rows))
        resp = jax.nn.one_hot(label, model.num_components, dtype=X.dtype)
        params = jax.tree.map(lambda leaf: leaf[None], bound.from_partition(rows, resp, row_weights))
    every = lambda part: jnp.repeat(part[None], num, 0)
    components = params.components
    if mean is not None:
        components = dataclasses.replace(components, mean=every(mean))
    if covariance is not None:
        components = dataclasses.replace(components, scale=every(bound.family.factor(covariance).scale))
    return MixtureParams(params.mixing if mixing is None else every(mixing), components)
