"""jaxem: latent-variable models fitted by climbing one ELBO, from many restarts, in compiled JAX programs."""

from jaxem import expfam, families, priors
from jaxem._pytree import dataclass, static
from jaxem.algorithms import EM, CoordinateAscent, GeneralizedEM, GradientAscent, OnlineEM, OnlineState, StochasticEM
from jaxem.diagnostics import importance, pareto_k
from jaxem.elbo import ELBO, Decomposition, decompose, free_energy
from jaxem.families import Family, Gaussian
from jaxem.fit import Screen, fit
from jaxem.inference import aic, bic, icl
from jaxem.model import DiscreteLatent, ELBOModel, EStep, LatentModel
from jaxem.models.bayesian_mixture import BayesianGMM, BayesianMixture
from jaxem.models.empirical_bayes import EmpiricalBayes
from jaxem.models.enumerated import Enumerated
from jaxem.models.kmeans import KMeans
from jaxem.models.mean_field import Factor, MeanField
from jaxem.models.mixture import GMM, Mixture
from jaxem.result import Fit, FitError, Restarts
from jaxem.rules import Exact, Hard, ReverseKL, Rule, Sampled, Tempered
from jaxem.run import Progress, run
from jaxem.stopping import Status, Step, Stop, StopAitken, StopAll, StopAny, StopGradient, StopParams, StopQ, StopRule
from jaxem.transforms import chunked, partly_labelled

__version__ = "0.1.0"

__all__ = [
    "BayesianGMM",
    "BayesianMixture",
    "CoordinateAscent",
    "Decomposition",
    "DiscreteLatent",
    "ELBO",
    "ELBOModel",
    "EM",
    "EStep",
    "EmpiricalBayes",
    "Enumerated",
    "Exact",
    "Factor",
    "Family",
    "Fit",
    "FitError",
    "GMM",
    "Gaussian",
    "GeneralizedEM",
    "GradientAscent",
    "Hard",
    "KMeans",
    "LatentModel",
    "MeanField",
    "Mixture",
    "OnlineEM",
    "OnlineState",
    "Progress",
    "Restarts",
    "ReverseKL",
    "Rule",
    "Sampled",
    "Screen",
    "Status",
    "Step",
    "StochasticEM",
    "Stop",
    "StopAitken",
    "StopAll",
    "StopAny",
    "StopGradient",
    "StopParams",
    "StopQ",
    "StopRule",
    "Tempered",
    "aic",
    "bic",
    "chunked",
    "dataclass",
    "decompose",
    "expfam",
    "families",
    "fit",
    "free_energy",
    "icl",
    "importance",
    "pareto_k",
    "partly_labelled",
    "priors",
    "run",
    "static",
]
