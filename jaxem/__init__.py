"""jaxem: latent-variable models fitted by climbing one ELBO, from many restarts, in compiled JAX programs."""

import importlib
from typing import Any

from jaxem import constraints, expfam, families, likelihoods, networks, priors
from jaxem.after.amortisation import AmortisationGap, amortisation_gap
from jaxem.after.criteria import aic, bic, icl
from jaxem.after.importance import importance, pareto_k
from jaxem.after.keep import load, save
from jaxem.algorithms import (
    EM,
    CoordinateAscent,
    GeneralizedEM,
    GradientAscent,
    OnlineEM,
    OnlineState,
    StochasticEM,
    Swap,
)
from jaxem.core.arguments import nearest
from jaxem.core.compilation import cache
from jaxem.core.mesh import ShardedRows
from jaxem.core.normal import DiagonalNormal
from jaxem.core.pytree import dataclass, static
from jaxem.core.ragged import sequences
from jaxem.core.sequences import Sequences
from jaxem.core.warn import FitWarning
from jaxem.elbo import ELBO, Decomposition, decompose, free_energy
from jaxem.engine.drive import Progress
from jaxem.engine.fit import fit
from jaxem.engine.result import Fit, FitError, Restarts
from jaxem.engine.table import Screen
from jaxem.estimators import IWAE, SGVBA, SGVBB, Estimator, ScoreFunction, StickingTheLanding
from jaxem.families import Family, Gaussian
from jaxem.model import DiscreteLatent, ELBOModel, EStep, LatentModel
from jaxem.models.bayesian_hmm import BayesianHMM
from jaxem.models.bayesian_mixture import BayesianGMM, BayesianMixture
from jaxem.models.continuous import ContinuousLatent, MonteCarlo
from jaxem.models.empirical_bayes import EmpiricalBayes
from jaxem.models.enumerated import Enumerated
from jaxem.models.hmm import HMM
from jaxem.models.kmeans import KMeans
from jaxem.models.labelled import partly_labelled
from jaxem.models.mean_field import Factor, MeanField
from jaxem.models.mixture import GMM, Mixture
from jaxem.models.vae.autoencoder import VariationalAutoencoder
from jaxem.models.vae.vae import VAE
from jaxem.rules import Exact, Hard, ReverseKL, Rule, Sampled, Tempered
from jaxem.sharding import shard_data, sharded
from jaxem.stopping import Status, Step, Stop, StopAitken, StopAll, StopAny, StopGradient, StopParams, StopQ, StopRule
from jaxem.streams import stream
from jaxem.wrappers import chunked

__version__ = "0.1.0"

__all__ = [
    "AmortisationGap",
    "BayesianGMM",
    "BayesianHMM",
    "BayesianMixture",
    "ContinuousLatent",
    "CoordinateAscent",
    "Decomposition",
    "DiagonalNormal",
    "DiscreteLatent",
    "ELBO",
    "ELBOModel",
    "EM",
    "EStep",
    "EmpiricalBayes",
    "Enumerated",
    "Estimator",
    "Exact",
    "Factor",
    "Family",
    "Fit",
    "FitError",
    "FitWarning",
    "GMM",
    "Gaussian",
    "GeneralizedEM",
    "GradientAscent",
    "HMM",
    "Hard",
    "IWAE",
    "KMeans",
    "LatentModel",
    "MeanField",
    "Mixture",
    "MonteCarlo",
    "OnlineEM",
    "OnlineState",
    "Progress",
    "Restarts",
    "ReverseKL",
    "Rule",
    "SGVBA",
    "SGVBB",
    "Sampled",
    "ScoreFunction",
    "Screen",
    "Sequences",
    "ShardedRows",
    "Status",
    "Step",
    "StickingTheLanding",
    "StochasticEM",
    "Stop",
    "StopAitken",
    "StopAll",
    "StopAny",
    "StopGradient",
    "StopParams",
    "StopQ",
    "StopRule",
    "Swap",
    "Tempered",
    "VAE",
    "VariationalAutoencoder",
    "aic",
    "amortisation_gap",
    "bic",
    "cache",
    "chunked",
    "constraints",
    "dataclass",
    "decompose",
    "expfam",
    "families",
    "fit",
    "free_energy",
    "icl",
    "importance",
    "likelihoods",
    "load",
    "networks",
    "pareto_k",
    "partly_labelled",
    "priors",
    "save",
    "sequences",
    "shard_data",
    "sharded",
    "static",
    "stream",
]

# Imported when they are first looked at: two take others' seconds, one is for those who write models.
_LAZY = ("plot", "sklearn", "testing")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'jaxem' has no attribute {name!r}{nearest(name, __all__)}")
    try:
        return importlib.import_module(f"jaxem.{name}")
    except ModuleNotFoundError as error:
        if name != "plot" or error.name != "matplotlib":
            raise
        raise ModuleNotFoundError("jaxem.plot draws with matplotlib: pip install matplotlib", name=error.name) from None


def __dir__() -> list[str]:
    return sorted({*__all__, *_LAZY, "__version__"})
