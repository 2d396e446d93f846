"""The sets that parameters live in, each with a bijection to real coordinates; see `jaxem.core.constraints`."""

from jaxem.core.constraints import (
    Above,
    Cholesky,
    Constraint,
    Fixed,
    Positive,
    PositiveDefinite,
    Real,
    Simplex,
    UnitInterval,
    constrain,
    unconstrain,
)

__all__ = [
    "Above",
    "Cholesky",
    "Constraint",
    "Fixed",
    "Positive",
    "PositiveDefinite",
    "Real",
    "Simplex",
    "UnitInterval",
    "constrain",
    "unconstrain",
]
