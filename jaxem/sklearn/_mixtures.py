"""What the mixtures share: fits, reports, and questions that go by the attributes, as a user may set them."""

import copy
import inspect
from typing import Any

import numpy as np
from jax import Array
from sklearn.base import _fit_context
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxem.sklearn._shared import (
    FLOATS,
    Watched,
    asked,
    checked_weights,
    host,
    in_x64,
    print_traces,
    seed,
    total_weight,
    with_callbacks,
)
from jaxem.stopping import Status, Stop

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


def floats(value: Any) -> np.ndarray:
    """An attribute, as a user may set it, as an array of floats."""
    array = np.asarray(value)
    return array if array.dtype in FLOATS else array.astype(np.float64)


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
        total = total_weight(X, weights)
        model, key = self._model(checked, X, weights), seed(self.random_state)
        params, num = self._start(checked, model, X, weights, key)
        try:
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
        except (TypeError, ValueError) as error:
            if not self._goes_on or not str(error).startswith("params"):
                raise
            raise ValueError(
                "warm_start=True goes on from the last fit: expected its number of components, kind of components and "
                "columns; found others; fit with warm_start=False, or a clone of the estimator"
            ) from error
        return self._keep(fit, X, total)

    @property
    def _goes_on(self) -> bool:
        """Whether a fit starts from the last one."""
        return bool(self.warm_start) and hasattr(self, "converged_")

    def _read(self, X: Any, reset: bool) -> np.ndarray:
        """Rows as an array, their columns held against those of the fit unless this is one."""
        return validate_data(self, X, reset=reset, dtype=FLOATS, ensure_min_samples=2 if reset else 1)

    def _start(self, checked: Any, model: Any, X: np.ndarray, weights: Any, key: Array) -> tuple[Any, int]:
        """Params to start from, None for random ones, and how many starts there are."""
        if self._goes_on:
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
