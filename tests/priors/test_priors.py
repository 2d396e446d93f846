"""The protocol of a prior, kept by one that is not of the library: a family and its conjugate prior in one file."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxem
from jaxem import constraints, families, priors
from jaxem.core.checks import check_array
from jaxem.testing import CHECKS, check_model

KEY = jax.random.key(0)
LOG_2PI = math.log(2 * math.pi)


@jaxem.dataclass
class Places(families.Family):
    """x | z = k ~ N(mean_k, I); params are the means (K, D)."""

    def log_prob(self, params, x):
        return -0.5 * jnp.sum((x[:, None] - params[None]) ** 2, -1) - 0.5 * x.shape[1] * LOG_2PI

    def statistics(self, params, x, resp):
        return jnp.sum(resp, 0), resp.T @ x

    def m_step(self, params, stats):
        return stats[1] / jnp.maximum(stats[0], 1e-9)[:, None]

    def start(self, num_components):
        return jnp.zeros((num_components, 2))

    def features(self, x):
        return x

    def constraints(self):
        return constraints.Real()

    def num_parameters(self, params, num_components):
        return num_components * params.shape[1]

    def sample(self, key, params, component):
        return params[component] + jax.random.normal(key, (component.shape[0], params.shape[1]))


@jaxem.dataclass
class PlacePosterior:
    """mean_k ~ N(centre_k, I / strength_k)."""

    centre: Any
    strength: Any


@jaxem.dataclass
class PlaceAt(priors.PosteriorAt):
    def kl(self):
        q, dim, ratio = self.posterior, self.posterior.centre.shape[1], self.prior.strength / self.posterior.strength
        each = 0.5 * (dim * (ratio - 1 - jnp.log(ratio)) + self.prior.strength * jnp.sum(q.centre**2, 1))
        return jnp.sum(each)

    def draw(self, key):
        q, noise = self.posterior, jax.random.normal(key, self.posterior.centre.shape)
        mean = q.centre + noise / jnp.sqrt(q.strength)[:, None]

        def log_prob(centre, strength):
            distance = strength * jnp.sum((mean - centre) ** 2, 1)
            return 0.5 * (mean.shape[1] * (jnp.log(strength) - LOG_2PI) - distance)

        return mean, log_prob(q.centre, q.strength), log_prob(0.0, self.prior.strength)

    def log_predictive(self, x):
        shrink = self.posterior.strength / (1 + self.posterior.strength)
        distance = jnp.sum((x[:, None] - self.posterior.centre[None]) ** 2, -1)
        return 0.5 * (x.shape[1] * (jnp.log(shrink)[None] - LOG_2PI) - shrink[None] * distance)


@jaxem.dataclass
class PlacePrior(priors.Prior):
    """mean_k ~ N(0, I / strength)."""

    strength: Any = None

    families = (Places,)

    def check(self, family, x):
        super().check(family, x)
        if self.strength is not None:
            check_array("prior.strength", self.strength, ((),), positive=True)

    def bind(self, family, x, weights):
        return PlacePrior(jnp.asarray(1.0 if self.strength is None else self.strength, x.dtype))

    def posterior(self, here, stats):
        strength = stats[0] + self.strength
        return PlacePosterior(stats[1] / strength[:, None], strength)

    def at(self, family, posterior=None):
        q = PlacePosterior(jnp.zeros((1, 2)), self.strength[None]) if posterior is None else posterior
        return PlaceAt(self, q, family.at(q.centre), -0.5 * q.centre.shape[1] / q.strength)


X = np.random.default_rng(0).normal(size=(60, 2)) + 5 * (np.arange(60) < 25)[:, None]


def evidence(x):
    covariance = np.eye(len(x)) + np.ones((len(x), len(x)))
    return sum(stats.multivariate_normal.logpdf(column, np.zeros(len(x)), covariance) for column in x.T)


def test_a_family_finds_the_prior_that_names_it():
    assert isinstance(priors.default_prior(Places()), PlacePrior)
    found = {f: type(priors.default_prior(getattr(families, f)())) for f in ("Gaussian", "Poisson", "Bernoulli")}
    assert found == {"Gaussian": priors.GaussianPrior, "Poisson": priors.GammaPrior, "Bernoulli": priors.DirichletPrior}
    with pytest.raises(TypeError, match=r"conjugate prior \(Gaussian, Bernoulli, Categorical, Poisson, Exponential"):
        priors.default_prior(families.Gamma())
    with pytest.raises(ValueError, match=r"prior.strength: expected finite numbers > 0; found -1.0"):
        jaxem.fit(jaxem.BayesianMixture(Places(), 2, PlacePrior(-1.0)), X, key=KEY)


def test_one_component_has_the_exact_evidence_and_predictive_density():
    fit = jaxem.fit(jaxem.BayesianMixture(Places(), 1), X, key=KEY)
    assert float(fit.elbo.total) == pytest.approx(evidence(X), rel=1e-10)
    expected = evidence(np.concatenate([X, X[:1]])) - evidence(X)
    assert float(fit.log_prob(X[:1])[0]) == pytest.approx(expected, rel=1e-10)
    assert jaxem.importance(fit, X, key=KEY, num_draws=30).k_hat == -np.inf


def test_it_keeps_the_contract_and_has_what_the_others_have():
    assert list(check_model(jaxem.BayesianMixture(Places(), 2), X, key=KEY, num_starts=2)) == list(CHECKS)
    model = jaxem.EmpiricalBayes(jaxem.BayesianMixture(Places(), 2, mixing="dirichlet_process"), ("prior.strength",))
    fit = jaxem.fit(model, X, key=KEY, max_steps=30)
    inside, params = fit.model.inside(fit.params)
    assert inside.prior.strength < 1  # the means lie further from 0 than a strength of 1 says
    assert np.all(np.isfinite(inside.log_prob(params, X)))
