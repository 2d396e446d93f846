"""`BayesianGaussianMixture` with scikit-learn's arguments and attributes on `jaxem.BayesianGMM`."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import sklearn.mixture
from sklearn.exceptions import NotFittedError

from jaxem.families import GaussianParams
from jaxem.models.bayesian_mixture import BayesianGMM, BayesianMixtureParams
from jaxem.models.mixture import Mixture
from jaxem.priors.gaussian import GaussianPosterior
from jaxem.sklearn._mixtures import MATRICES, STARTS, Facade, covariances_of, floats
from jaxem.sklearn._shared import host

# What scikit-learn's checks set from the data where it is not given.
PRIORS = (
    "weight_concentration_prior_",
    "mean_precision_prior_",
    "mean_prior_",
    "degrees_of_freedom_prior_",
    "covariance_prior_",
)


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

    def _model(self, checked: Any, X: np.ndarray, weights: np.ndarray | None) -> BayesianGMM:
        kind = self.covariance_type
        for name in PRIORS:
            setattr(self, name, getattr(checked, name))
        spread = np.var(X, axis=0, dtype=np.float64) if weights is None else self._weigh(X, weights)
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

    def _weigh(self, X: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Takes the priors that are the data's own from weighted rows, as scikit-learn from rows; the variances (D,).

        Weights are counts, of a covariance over W - 1; below W = 2, where this has no meaning, over W / 2.
        """
        X, weights = X.astype(np.float64), weights.astype(np.float64)
        total, mean = weights.sum(), np.average(X, axis=0, weights=weights)
        scatter = (weights[:, None] * (X - mean)).T @ (X - mean)
        if self.mean_prior is None:
            self.mean_prior_ = mean
        if self.covariance_prior is None:
            covariance = scatter / max(total - 1, total / 2)
            variances = np.diag(covariance)
            kind = self.covariance_type
            self.covariance_prior_ = (
                covariance if kind in MATRICES else variances.mean() if kind == "spherical" else variances.copy()
            )
        return np.diag(scatter) / total

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
        drawn = Mixture(model.family, len(self.weights_))
        return drawn, dataclasses.replace(model.plug_in(params), mixing=floats(self.weights_))

    def _of_attributes(self, by: str) -> tuple[Any, BayesianMixtureParams]:
        if not hasattr(self, "fit_"):
            raise NotFittedError(f"This {type(self).__name__} has attributes but no prior: call fit first.")
        mixing, kind = self.fit_.params.mixing, self.covariance_type
        part = floats(getattr(self, by))
        cov = part if by == "covariances_" else covariances_of(part, kind)
        plug: GaussianParams = self.fit_.model.family.make_params(mean=floats(self.means_), covariance=cov)
        components = GaussianPosterior(plug, *map(jnp.asarray, (self.mean_precision_, self.degrees_of_freedom_)))
        names = ("concentration",) if self.fit_.model.mixing == "dirichlet" else ("taken", "left")
        values = (self.weight_concentration_,) if len(names) == 1 else self.weight_concentration_
        mixing = dataclasses.replace(mixing, **dict(zip(names, map(np.asarray, values), strict=True)))
        return self.fit_.model, BayesianMixtureParams(mixing, components)
