"""Exponential families: natural and mean parameters, log-normalisers, entropies and divergences.

    p(x | eta) = h exp(<eta, t(x)> - A(eta)),    means = E[t(x)] = dA / d eta

Natural parameters and means of a family share one structure, a named tuple of arrays whose leading axes are plates, so
that a gradient with respect to means *is* a natural parameter: mean-field inference is built on that. Means come from
differentiating A; the base measure h is constant in every family here.
"""

from jaxem.expfam.family import Delta, ExponentialFamily
from jaxem.expfam.matrix import MultivariateNormal, NormalWishart, Wishart
from jaxem.expfam.scalar import Bernoulli, Beta, Gamma, InverseGamma, Normal, NormalGamma
from jaxem.expfam.simplex import Categorical, Dirichlet

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Delta",
    "Dirichlet",
    "ExponentialFamily",
    "Gamma",
    "InverseGamma",
    "MultivariateNormal",
    "Normal",
    "NormalGamma",
    "NormalWishart",
    "Wishart",
]
