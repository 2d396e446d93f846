"""Ways of climbing the ELBO: each is an init and a step; `fit` owns the loop."""

from jaxem.algorithms.algorithm import Algorithm, EMState
from jaxem.algorithms.coordinate_ascent import CoordinateAscent
from jaxem.algorithms.em import EM
from jaxem.algorithms.generalized_em import GeneralizedEM
from jaxem.algorithms.gradient_ascent import GradientAscent, GradientAscentState
from jaxem.algorithms.online_em import OnlineEM, OnlineState
from jaxem.algorithms.stochastic_em import StochasticEM
from jaxem.algorithms.swap import Swap, SwapState

__all__ = [
    "Algorithm",
    "CoordinateAscent",
    "EM",
    "EMState",
    "GeneralizedEM",
    "GradientAscent",
    "GradientAscentState",
    "OnlineEM",
    "OnlineState",
    "StochasticEM",
    "Swap",
    "SwapState",
]
