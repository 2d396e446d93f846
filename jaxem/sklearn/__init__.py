"""scikit-learn's mixtures and K-means under the same names, fitted by jaxem: change one import.

    from jaxem.sklearn import BayesianGaussianMixture, GaussianMixture, KMeans, MiniBatchKMeans

The first four are subclasses of scikit-learn's, with its arguments, attributes and messages, and work in pipelines,
grid searches and wherever those do; `MixtureModel` and `LatentClass` are mixtures of the other families. Every number
is computed by jaxem. Needs scikit-learn: pip install jaxem[sklearn].
"""

try:
    import sklearn as _theirs
except ModuleNotFoundError as _error:
    if _error.name != "sklearn":
        raise
    _needed = "jaxem.sklearn needs scikit-learn: pip install 'jaxem[sklearn]'"
    raise ModuleNotFoundError(_needed, name="sklearn") from None
if tuple(map(int, _theirs.__version__.split(".")[:2])) < (1, 6):
    raise ImportError(f"jaxem.sklearn: expected scikit-learn 1.6 or later; found {_theirs.__version__}; upgrade it")

from jaxem.sklearn._bayesian_mixture import BayesianGaussianMixture
from jaxem.sklearn._gaussian_mixture import GaussianMixture
from jaxem.sklearn._kmeans import KMeans
from jaxem.sklearn._minibatch import MiniBatchKMeans
from jaxem.sklearn._models import LatentClass, MixtureModel

__all__ = [
    "BayesianGaussianMixture",
    "GaussianMixture",
    "KMeans",
    "LatentClass",
    "MiniBatchKMeans",
    "MixtureModel",
]
