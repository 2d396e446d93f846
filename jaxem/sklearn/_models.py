"""`MixtureModel`, a mixture of any of jaxem's families, and `LatentClass`, of categorical items, as estimators."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
import sklearn.mixture
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.preprocessing import OrdinalEncoder
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxem import families
from jaxem.families import Family
from jaxem.models.mixture import Mixture
from jaxem.sklearn._mixtures import STARTS, Facade
from jaxem.sklearn._shared import host

FAMILIES: dict[str, Callable[[], Family]] = {
    "bernoulli": families.Bernoulli,
    "exponential": families.Exponential,
    "gamma": families.Gamma,
    "gaussian": families.Gaussian,
    "poisson": families.Poisson,
    "student_t": families.StudentT,
}
_THEIRS = sklearn.mixture.GaussianMixture._parameter_constraints
_SHARED = {
    name: _THEIRS[name]
    for name in ("n_components", "tol", "max_iter", "n_init", "init_params", "random_state", "warm_start", "verbose")
}


class Model(Facade, DensityMixin, BaseEstimator):
    """What estimators of other families share: the bound is a mean, and the questions go by the fit."""

    weights_: np.ndarray
    verbose_interval = 1

    def __init__(
        self,
        n_components: int,
        tol: float,
        max_iter: int,
        n_init: int,
        init_params: str,
        random_state: Any,
        warm_start: bool,
        verbose: int,
    ):
        self.n_components = n_components
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def _check_parameters(self, X: np.ndarray) -> None:
        """Nothing that scikit-learn would check."""

    def _family(self, X: np.ndarray) -> Family:
        raise NotImplementedError

    def _model(self, checked: Any, X: np.ndarray, weights: np.ndarray | None) -> Mixture:
        return Mixture(self._family(X), self.n_components, init_method=STARTS[self.init_params])

    def _unit(self, total: float) -> float:
        return 1.0

    def _at(self, by: str = "") -> tuple[Any, Any]:
        check_is_fitted(self, "fit_")
        return self.fit_.model, self.fit_.params

    def _describe(self, fit: Any) -> None:
        self.weights_ = np.array(fit.params.mixing)

    def _criterion(self, X: Any, price: Callable[[int], float]) -> float:
        density = self.score_samples(X)
        return float(-2 * density.sum() + self._n_parameters() * price(len(density)))

    def _n_parameters(self) -> int:
        model, params = self._at()
        return int(model.num_parameters(params))

    def bic(self, X: Any) -> float:
        """-2 log-likelihood + p log N, nats; lower is better."""
        return self._criterion(X, np.log)

    def aic(self, X: Any) -> float:
        """-2 log-likelihood + 2 p, nats; lower is better."""
        return self._criterion(X, lambda num: 2.0)


class MixtureModel(Model):
    """A mixture of any of jaxem's families, `jaxem.Mixture(family, n_components)`, as a scikit-learn estimator.

        p(x) = sum_k weights_k family(x; parameters_k)

    Args:
      family: "gaussian" (full covariances), "student_t", "gamma", "exponential", "poisson" or "bernoulli"; or a
        `jaxem.families.Family` of rows that are one array, as `jaxem.families.Gaussian("diag")` or
        `jaxem.families.Binomial(10)`.
      n_components: K >= 1.
      tol: a start has converged when a step raises the mean log-likelihood by no more.
      max_iter: most M-steps; 0 only starts.
      n_init: starts, all in one compiled program; the best is kept.
      init_params: "kmeans", "k-means++", "random" (responsibilities) or "random_from_data".
      random_state: seed, `RandomState` or None.
      warm_start: start from the last fit.
      verbose: 1 prints the steps of each start.

    Attributes:
      weights_: (K,) proportions, largest first.
      parameters_: the components' params by name, each with a leading axis K where it is not shared.
      fit_: the `jaxem.Fit`, by which questions go: `weights_` and `parameters_` show what it holds.
      statuses_: how many starts ended with which `jaxem.Status`.
      converged_, n_iter_, lower_bound_, lower_bounds_: as of `GaussianMixture`.

    Examples:
      >>> import numpy as np
      >>> from jaxem.sklearn import MixtureModel
      >>> X = np.random.default_rng(0).poisson(np.repeat([[2.0, 9.0], [8.0, 3.0]], 100, 0))
      >>> model = MixtureModel("poisson", 2, n_init=4, random_state=0).fit(X)
      >>> model.parameters_["rate"].round().tolist() in ([[2.0, 9.0], [8.0, 3.0]], [[8.0, 3.0], [2.0, 9.0]])
      True
    """

    _parameter_constraints: ClassVar[dict] = {"family": [StrOptions(set(FAMILIES)), Family], **_SHARED}
    parameters_: dict[str, np.ndarray]

    def __init__(
        self,
        family: Any = "gaussian",
        n_components: int = 1,
        *,
        tol: float = 1e-3,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
    ):
        super().__init__(n_components, tol, max_iter, n_init, init_params, random_state, warm_start, verbose)
        self.family = family

    def _family(self, X: np.ndarray) -> Family:
        return FAMILIES[self.family]() if isinstance(self.family, str) else self.family

    def _describe(self, fit: Any) -> None:
        super()._describe(fit)
        found = jax.tree_util.tree_flatten_with_path(fit.params.components)[0]
        self.parameters_ = {jax.tree_util.keystr(path).lstrip("."): np.array(leaf) for path, leaf in found}


class LatentClass(Model):
    """Latent class analysis: a mixture of independent categorical items, `jaxem.families.Categorical`.

        p(x) = sum_k weights_k prod_d probabilities_[d][k, x_d]

    Columns hold categories: numbers or strings, each value a level. Missing values are refused.

    Args:
      n_components: K >= 1.
      pseudo_observations: a >= 0; each class has a more rows, whose levels are as frequent as in the data. 0 is maximum
        likelihood, which gives levels that a class does not have probability 0.
      tol: as of `MixtureModel`, as the rest.
      max_iter: most M-steps.
      n_init: starts.
      init_params: how they start.
      random_state: seed, `RandomState` or None.
      warm_start: start from the last fit.
      verbose: 1 prints the steps of each start.

    Attributes:
      categories_: D arrays, the levels of each column in order.
      probabilities_: D arrays (K, L_d), the probability of each level in each class.
      weights_, fit_, statuses_, converged_, n_iter_, lower_bound_, lower_bounds_: as of `MixtureModel`.

    Examples:
      >>> import numpy as np
      >>> from jaxem.sklearn import LatentClass
      >>> X = np.repeat([["yes", "red", "big"], ["no", "blue", "small"]], 20, 0)
      >>> model = LatentClass(2, n_init=4, random_state=0).fit(X)
      >>> model.probabilities_[1].round(2).tolist() in ([[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
      True
    """

    _parameter_constraints: ClassVar[dict] = {
        **_SHARED,
        "pseudo_observations": sklearn.mixture.GaussianMixture._parameter_constraints["reg_covar"],
    }
    categories_: list[np.ndarray]
    probabilities_: list[np.ndarray]

    def __init__(
        self,
        n_components: int = 1,
        *,
        pseudo_observations: float = 0.0,
        tol: float = 1e-3,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
    ):
        super().__init__(n_components, tol, max_iter, n_init, init_params, random_state, warm_start, verbose)
        self.pseudo_observations = pseudo_observations

    def _read(self, X: Any, reset: bool) -> np.ndarray:
        """Codes of the levels, as floats, which all estimators here compute with."""
        X = validate_data(self, X, reset=reset, dtype=None, ensure_min_samples=2 if reset else 1)
        if reset:
            self._encoder = OrdinalEncoder(dtype=np.float64).fit(X)
            self.categories_ = self._encoder.categories_
        return self._encoder.transform(X)

    def _family(self, X: np.ndarray) -> Family:
        levels = tuple(max(2, len(found)) for found in self.categories_)
        return families.Categorical(levels, float(self.pseudo_observations))

    def _describe(self, fit: Any) -> None:
        super()._describe(fit)
        probs = host(fit.params.components.probs)
        sizes = [len(found) for found in self.categories_]
        self.probabilities_ = [np.array(part[:, :size]) for part, size in zip(probs, sizes, strict=True)]

    def _n_parameters(self) -> int:
        """Free ones; a column of one level, which the family holds as one of two, has none."""
        alone = sum(len(found) == 1 for found in self.categories_)
        return super()._n_parameters() - alone * len(self.weights_)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draws rows (n, D) of levels and their classes (n,), in order of the classes."""
        codes, component = super().sample(n_samples)
        return self._encoder.inverse_transform(codes), component

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags
