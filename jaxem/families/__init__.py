"""Observation families: how one component of a latent structure explains an observation. One file each."""

from jaxem.families.bernoulli import Bernoulli, BernoulliParams
from jaxem.families.binomial import Binomial, BinomialParams
from jaxem.families.categorical import Categorical, CategoricalParams
from jaxem.families.distribution import Distribution, from_distribution
from jaxem.families.exponential import Exponential, ExponentialParams
from jaxem.families.family import Family
from jaxem.families.gamma import Gamma, GammaParams
from jaxem.families.gaussian import Gaussian
from jaxem.families.gaussian_kernel import GaussianParams
from jaxem.families.linear_regression import LinearRegression, LinearRegressionParams
from jaxem.families.poisson import Poisson, PoissonParams
from jaxem.families.product import Product
from jaxem.families.student_t import StudentT, StudentTParams
from jaxem.families.table import Table, from_frame

__all__ = [
    "Bernoulli",
    "BernoulliParams",
    "Binomial",
    "BinomialParams",
    "Categorical",
    "CategoricalParams",
    "Distribution",
    "Exponential",
    "ExponentialParams",
    "Family",
    "Gamma",
    "GammaParams",
    "Gaussian",
    "GaussianParams",
    "LinearRegression",
    "LinearRegressionParams",
    "Poisson",
    "PoissonParams",
    "Product",
    "StudentT",
    "StudentTParams",
    "Table",
    "from_distribution",
    "from_frame",
]
