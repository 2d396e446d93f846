"""Conjugate priors of the observation families, and the posteriors that variational Bayes makes of them."""

from jaxem.priors.gaussian import GaussianPosterior, GaussianPrior
from jaxem.priors.prior import PosteriorAt, Prior, canonical, default_prior
from jaxem.priors.probability import DirichletPosterior, DirichletPrior
from jaxem.priors.rate import GammaPosterior, GammaPrior

__all__ = [
    "DirichletPosterior",
    "DirichletPrior",
    "GammaPosterior",
    "GammaPrior",
    "GaussianPosterior",
    "GaussianPrior",
    "PosteriorAt",
    "Prior",
    "canonical",
    "default_prior",
]
