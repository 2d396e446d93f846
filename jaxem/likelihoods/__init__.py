"""Likelihoods: how the outputs of a decoder become p(x | z)."""

from jaxem.likelihoods.counts import Bernoulli, Binomial, Categorical, Poisson
from jaxem.likelihoods.gaussian import FixedGaussian, Gaussian, PredictedGaussian, SharedGaussian
from jaxem.likelihoods.likelihood import FromDecoder, Likelihood

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "FixedGaussian",
    "FromDecoder",
    "Gaussian",
    "Likelihood",
    "Poisson",
    "PredictedGaussian",
    "SharedGaussian",
]
