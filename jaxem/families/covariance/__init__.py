"""Shapes of a Gaussian covariance, by name: a new one is a class in a file of its own, and a line here."""

from jaxem.families.covariance.correlated import Full, Tied
from jaxem.families.covariance.covariance import Covariance
from jaxem.families.covariance.uncorrelated import Diag, Spherical

SHAPES: dict[str, type[Covariance]] = {"full": Full, "tied": Tied, "diag": Diag, "spherical": Spherical}

__all__ = ["SHAPES", "Covariance", "Diag", "Full", "Spherical", "Tied"]
