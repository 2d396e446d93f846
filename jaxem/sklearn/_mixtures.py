"""`GaussianMixture` and `BayesianGaussianMixture` with scikit-learn's arguments and attributes on jaxem's fits."""

import copy
import dataclasses
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.mixture
from jax import Array
from sklearn.base import _fit_context
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxem.core.tree import PyTree
from jaxem.families import GaussianParams
from jaxem.models.bayesian_mixture import BayesianGMM, BayesianMixtureParams
from jaxem.models.kmeans import KMeans, KMeansParams
from jaxem.models.mixture import GMM, Mixture, MixtureParams
from jaxem.priors.gaussian import GaussianPosterior
from jaxem.sklearn._shared import (
    FAILED,
    FLOATS,
    Watched,
    asked,
    checked_weights,
    host,
    in_x64,
    padded,
    print_traces,
    seed,
    with_callbacks,
)
from jaxem.stopping import Status, Stop
from jaxem.structures.seeding import subsample

# Starts under scikit-learn's names.
STARTS = {"kmeans": "kmeans", "k-means++": "kmeans++", "random": "random_resp", "random_from_data": "random_points"}
MATRICES = ("full", "tied")


def natural(covariance: np.ndarray, kind: str) -> np.ndarray:
    """Covariances (K, D, D) in scikit-learn's shape for the type: (K, D, D), (D, D), (K, D) or (K,)."""
    if kind == "tied":
        return covariance[0]
    diagonal = np.diagonal(covariance, axis1=1, axis2=2)
    return {"full": covariance, "diag": diagonal.copy(), "spherical": diagonal[:, 0].copy()}[kind]


def inverse(factor: np.ndarray, kind: str) -> np.ndarray:
    """Inverses of factors in their natural shape; columns that depend on others, 0 on the diagonal, stay 0."""
    if kind not in MATRICES:
        return 1 / factor
    dead = np.diagonal(factor, axis1=-2, axis2=-1) == 0
    gone = dead[..., :, None] | dead[..., None, :]
    eye = np.broadcast_to(np.eye(factor.shape[-1], dtype=bool), factor.shape)
    upside = np.linalg.inv(np.where(gone, eye, factor).astype(factor.dtype))
    return np.where(gone, 0, upside).astype(factor.dtype)


def precisions(cholesky: np.ndarray, kind: str) -> np.ndarray:
    """U U' of factors U of precisions, in their natural shape."""
    return cholesky @ cholesky.swapaxes(-1, -2) if kind in MATRICES else cholesky**2


def covariances_of(cholesky: np.ndarray, kind: str) -> np.ndarray:
    """The inverses of U U', symmetric."""
    factor = inverse(cholesky, kind)
    return factor.swapaxes(-1, -2) @ factor if kind in MATRICES else factor**2


def _checked(estimator: Any, X: np.ndarray) -> Any:
    """A copy on which scikit-learn's own checks have run, which write priors and given starts to the estimator."""
    checked = copy.copy(estimator)
    takes_xp = "xp" in inspect.signature(checked._check_parameters).parameters  # since 1.8
    checked._check_parameters(X, **({"xp": np} if takes_xp else {}))
    return checked


def _same(value: Any, shown: np.ndarray) -> bool:
    return value is not None and np.array_equal(value, shown)


class Facade(Watched):
    """A scikit-learn mixture whose numbers are jaxem's; the questions go by the attributes, as a user may set them."""

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fits the mixture from `n_init` starts side by side and keeps the best.

        Args:
          X: (N, D) observations.
          y: not used.
          sample_weight: (N,) non-negative; weight 2 is a row twice, weight 0 an absent row. None for ones.

        Returns:
          The estimator.

        Raises:
          ValueError: bad input, or no start with a finite objective.
        """
        self.fit_predict(X, sample_weight=sample_weight)
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    @with_callbacks
    @in_x64
    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """As `fit`, and returns the component (N,) of each row."""
        X = self._read(X, reset=True)
        if len(X) < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = {self.n_components}, n_samples = {len(X)}"
            )
        weights = checked_weights(sample_weight, X)
        checked = _checked(self, X)
        total = float(len(X) if weights is None else weights.sum())
        model, key = self._model(checked, X, total), seed(self.random_state)
        params, num = self._start(checked, model, X, weights, key)
        fit = self._run(
            model,
            X,
            weights,
            key=key,
            params=params,
            stop=Stop(atol=self.tol / self._unit(total)),
            max_steps=int(self.max_iter),
            num_restarts=num,
        )
        return self._keep(fit, X, total)

    def _read(self, X: Any, reset: bool) -> np.ndarray:
        """Rows as an array, their columns held against those of the fit unless this is one."""
        return validate_data(self, X, reset=reset, dtype=FLOATS, ensure_min_samples=2 if reset else 1)

    def _start(self, checked: Any, model: Any, X: np.ndarray, weights: Any, key: Array) -> tuple[Any, int]:
        """Params to start from, None for random ones, and how many starts there are."""
        if self.warm_start and hasattr(self, "converged_"):
            return self._at()[1], 1
        return None, int(self.n_init)

    def _keep(self, fit: Any, X: np.ndarray, total: float) -> np.ndarray:
        """Sets the attributes and returns the labels."""
        unit = self._unit(total) / total
        self.n_iter_ = int(fit.num_steps)
        self.converged_ = int(fit.status) == Status.CONVERGED
        self.lower_bound_ = float(self._bound(fit)) * unit
        self.lower_bounds_ = [float(value) * unit for value in fit.trace[1 : self.n_iter_ + 1]]
        self._describe(fit)
        if self.verbose:
            print_traces(fit, "lower bound", unit, self.verbose_interval, f"change of the bound below {self.tol:g}")
        if self.max_iter > 0:
            self._report(UNCONVERGED)
        return asked(lambda x: fit.model.predict(fit.params, x), X).astype(np.intp)

    def _bound(self, fit: Any) -> Any:
        """The log-likelihood, without the penalty."""
        return fit.elbo.data

    def _show(self, components: Any, **more: Any) -> None:
        """Sets what the components are made of, and remembers it, so that what a user changes is seen."""
        kind = self.covariance_type
        factor = inverse(np.asarray(components.scale), kind)
        cholesky = np.ascontiguousarray(factor.swapaxes(-1, -2)) if kind in MATRICES else factor
        shown = {
            "means_": np.array(components.mean),
            "covariances_": natural(np.array(components.covariance), kind),
            "precisions_cholesky_": cholesky,
            **more,
        }
        self.precisions_ = precisions(cholesky, kind)
        for name, value in shown.items():
            setattr(self, name, value)
        self._shown = {name: np.copy(value) for name, value in shown.items()}

    def _at(self, by: str = "precisions_cholesky_") -> tuple[Any, Any]:
        """Model and params: those of the fit, or made of the attributes where a user has set these."""
        check_is_fitted(self)
        shown = getattr(self, "_shown", None)
        if shown and all(_same(getattr(self, name, None), value) for name, value in shown.items()):
            return self.fit_.model, self.fit_.params
        return self._of_attributes(by)

    def _point(self) -> tuple[Any, Any]:
        """A mixture and its params, to draw from."""
        return self._at(by="covariances_")

    @in_x64
    def _ask(self, name: str, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = self._read(X, reset=False)
        model, params = self._at()
        return asked(lambda x: getattr(model, name)(params, x), X)

    def predict(self, X: Any) -> np.ndarray:
        """(N,) most probable component of each row."""
        return self._ask("predict", X).astype(np.intp)

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, K) responsibilities."""
        return self._ask("posterior", X)

    def score_samples(self, X: Any) -> np.ndarray:
        """(N,) log density of each row, nats."""
        return self._ask("log_prob", X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Mean log density of the rows, nats; weighted where weights are given."""
        density = self.score_samples(X)
        return float(np.average(density, weights=checked_weights(sample_weight, density)))

    @in_x64
    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Draws rows (n, D) and their components (n,), in order of the components."""
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample.")
        model, params = self._point()
        rows, component = host(model.sample(params, int(n_samples), key=seed(self.random_state)))
        order = np.argsort(component, kind="stable")
        return np.array(rows)[order], component[order].astype(np.intp)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = False
        return tags


UNCONVERGED = (
    "Best performing initialization did not converge. Try different init parameters, or increase max_iter, tol, or "
    "check for degenerate data."
)


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
      ([0.1, 5.1], {'CONVERGED': 8})
    """

    def _unit(self, total: float) -> float:
        """The bound is a mean."""
        return 1.0

    def _model(self, checked: Any, X: np.ndarray, total: float) -> GMM:
        return GMM(
            self.n_components,
            self.covariance_type,
            init_method=STARTS[self.init_params],
            pseudo_observations=float(self.reg_covar) * total / self.n_components,
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
        if all(part is None for part in given) or (self.warm_start and hasattr(self, "converged_")):
            return super()._start(checked, model, X, weights, key)
        num = int(self.n_init) if mean is None else 1
        starts = _starts(model, *padded(X, weights), key, *given, num)
        return (starts if num > 1 else jax.tree.map(lambda leaf: leaf[0], starts)), num

    def _describe(self, fit: Any) -> None:
        if self.reg_covar == 0 and int(fit.status) == Status.DEGENERATE:
            raise ValueError(f"{FAILED} {'; '.join(fit.warnings())}")
        self.weights_ = np.array(fit.params.mixing)
        self._show(fit.params.components, weights_=self.weights_)

    def _of_attributes(self, by: str) -> tuple[GMM, MixtureParams]:
        kind = self.covariance_type
        chosen = by if hasattr(self, by) else ({"covariances_", "precisions_cholesky_"} - {by}).pop()
        part = np.asarray(getattr(self, chosen))
        covariance = part if chosen == "covariances_" else covariances_of(part, kind)
        model = GMM(len(self.means_), kind)
        return model, model.make_params(np.asarray(self.weights_), mean=np.asarray(self.means_), covariance=covariance)

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


class BayesianGaussianMixture(Facade, sklearn.mixture.BayesianGaussianMixture):
    """scikit-learn's `BayesianGaussianMixture`, fitted by `jaxem.BayesianGMM`: all `n_init` starts in one program.

    Arguments, priors, attributes and methods are scikit-learn's; see there. What is more, or not the same:

    * `fit`, `fit_predict` and `score` take `sample_weight`; `fit_` is the `jaxem.Fit`, `statuses_` how starts ended.
    * `lower_bound_` is the ELBO with all its constants, in nats and summed over rows as there, of the params that are
      returned: below log p(X), and comparable between priors and numbers of components.
    * Covariances of type "diag" and "spherical" have gamma priors, and "tied" one Wishart prior, updated by coordinate
      ascent; scikit-learn's updates of these three do not ascend its own bound.
    * `score_samples` is the log of the posterior predictive density, a mixture of Student-t, where scikit-learn's
      exp(E log p) integrates to less than 1.
    * `reg_covar` times the data's variances is added to the diagonal of the prior's `covariance_prior_`.
    * Sticks of the Dirichlet process are assigned anew in every step, the largest component first; `weights_` sum to 1,
      without what is left to further components.

    Examples:
      >>> import numpy as np
      >>> from jaxem.sklearn import BayesianGaussianMixture
      >>> X = np.random.default_rng(0).normal(size=(200, 2)) + np.repeat([[0.0, 0.0], [10.0, 5.0]], 100, 0)
      >>> mixture = BayesianGaussianMixture(n_components=4, n_init=8, random_state=0, max_iter=500).fit(X)
      >>> mixture.weights_.round(2).tolist()
      [0.5, 0.5, 0.0, 0.0]
    """

    def _unit(self, total: float) -> float:
        """The bound is a sum."""
        return total

    def _bound(self, fit: Any) -> Any:
        """The ELBO."""
        return fit.elbo.total

    def _model(self, checked: Any, X: np.ndarray, total: float) -> BayesianGMM:
        kind = self.covariance_type
        for name in PRIORS:
            setattr(self, name, getattr(checked, name))
        spread = np.var(X, axis=0, dtype=np.float64)
        ridge = float(self.reg_covar) * np.where(spread > 0, spread, 1)
        ridge = np.diag(ridge) if kind in MATRICES else ridge.mean() if kind == "spherical" else ridge
        process = self.weight_concentration_prior_type == "dirichlet_process"
        return BayesianGMM(
            self.n_components,
            kind,
            mixing="dirichlet_process" if process else "dirichlet",
            concentration=float(self.weight_concentration_prior_),
            strength=float(self.mean_precision_prior_),
            mean=np.asarray(self.mean_prior_, X.dtype),
            dof=float(self.degrees_of_freedom_prior_),
            inverse_scale=np.asarray(self.covariance_prior_ + ridge, X.dtype),
            init_method=STARTS[self.init_params],
        )

    def _describe(self, fit: Any) -> None:
        mixing, components = fit.params.mixing, fit.params.components
        sticks = fit.model.mixing == "dirichlet_process"
        self.weight_concentration_ = host((mixing.taken, mixing.left) if sticks else mixing.concentration)
        expected = np.array(fit.model.expected_mixing(fit.params))
        self.weights_ = expected / expected.sum()
        more = {"mean_precision_": np.array(components.strength), "degrees_of_freedom_": np.array(components.dof)}
        self._show(components.plug, weight_concentration_=self.weight_concentration_, **more)

    def _point(self) -> tuple[Any, Any]:
        """The mixture of `weights_`, `means_` and `covariances_`."""
        model, params = super()._point()
        return Mixture(model.family, self.n_components), model.plug_in(params)

    def _of_attributes(self, by: str) -> tuple[Any, BayesianMixtureParams]:
        if not hasattr(self, "fit_"):
            raise NotFittedError(f"This {type(self).__name__} has attributes but no prior: call fit first.")
        mixing, kind = self.fit_.params.mixing, self.covariance_type
        part = np.asarray(getattr(self, by))
        cov = part if by == "covariances_" else covariances_of(part, kind)
        plug: GaussianParams = self.fit_.model.family.make_params(mean=np.asarray(self.means_), covariance=cov)
        components = GaussianPosterior(plug, *map(jnp.asarray, (self.mean_precision_, self.degrees_of_freedom_)))
        names = ("concentration",) if self.fit_.model.mixing == "dirichlet" else ("taken", "left")
        values = (self.weight_concentration_,) if len(names) == 1 else self.weight_concentration_
        mixing = dataclasses.replace(mixing, **dict(zip(names, map(np.asarray, values), strict=True)))
        return self.fit_.model, BayesianMixtureParams(mixing, components)


PRIORS = (
    "weight_concentration_prior_",
    "mean_precision_prior_",
    "mean_prior_",
    "degrees_of_freedom_prior_",
    "covariance_prior_",
)
