"""Ways of climbing the ELBO: each is an init and a step; `fit` owns the loop."""

from jaxem.algorithms.em import EM, EMState

__all__ = ["EM", "EMState"]
