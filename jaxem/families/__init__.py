"""Observation families: how one component of a latent structure explains an observation. One file each."""

from jaxem.families.family import Family
from jaxem.families.gaussian import Gaussian, GaussianParams

__all__ = ["Family", "Gaussian", "GaussianParams"]
