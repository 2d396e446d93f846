"""jaxem: latent-variable models fitted by climbing one ELBO, from many restarts, in compiled JAX programs."""

from jaxem._pytree import dataclass, static
from jaxem.algorithms import EM
from jaxem.elbo import ELBO, Decomposition, decompose, free_energy
from jaxem.families import Family, Gaussian
from jaxem.fit import Screen, fit
from jaxem.inference import aic, bic, icl
from jaxem.model import DiscreteLatent, ELBOModel, EStep, LatentModel
from jaxem.models.kmeans import KMeans
from jaxem.models.mixture import GMM, Mixture
from jaxem.result import Fit, FitError, Restarts
from jaxem.rules import Exact, Hard, Rule, Tempered
from jaxem.run import Progress, run
from jaxem.stopping import Status, Stop
from jaxem.transforms import chunked

__version__ = "0.1.0"

__all__ = [
    "Decomposition",
    "DiscreteLatent",
    "ELBO",
    "ELBOModel",
    "EM",
    "EStep",
    "Exact",
    "Family",
    "Fit",
    "FitError",
    "GMM",
    "Gaussian",
    "Hard",
    "KMeans",
    "LatentModel",
    "Mixture",
    "Progress",
    "Restarts",
    "Rule",
    "Screen",
    "Status",
    "Stop",
    "Tempered",
    "aic",
    "bic",
    "chunked",
    "dataclass",
    "decompose",
    "fit",
    "free_energy",
    "icl",
    "run",
    "static",
]
