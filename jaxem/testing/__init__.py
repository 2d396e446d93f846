"""check_model: the contract that every jaxem model keeps, as one call for a test-suite."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import wrappers as _wrappers
from jaxem.core.arguments import as_key, check_integer, expect, nearest, shown
from jaxem.core.tree import PyTree, float_dtype
from jaxem.core.warn import FitWarning
from jaxem.model import ELBOModel
from jaxem.testing.case import Case
from jaxem.testing.laws import CHECKS


def check_model(
    model: ELBOModel,
    data: PyTree,
    *,
    key: Array,
    num_starts: int = 6,
    algorithm: Any = None,
    skip: Mapping[str, str] | None = None,
) -> list[str]:
    """Checks a model against the contract of the library; raises AssertionError naming the law it breaks.

    additive: evaluations add up over data; linear: statistics are linear in the responsibilities; weights: 2 is a
    duplicated row, 0 an absent one, and they add up; permutation: the order of rows does not matter; monotone: the
    objective never falls, from many starts; stationary: at a fixed point the gradient in unconstrained coordinates is
    zero; m_step: no random feasible perturbation beats it, nor that of one factor of a mean-field model; bound:
    ELBO <= log p(x), equal for exact E-steps; transformed: jit, vmap and chunks change nothing; sharded: nor do several
    devices (where there are any); single_precision: float32 agrees with float64 and stays float32; degenerate: equal
    rows give a status, not a NaN; traces: one trace for a fit, none for a new key, tolerance or other float.

    An evaluation is the algorithm's: an E-step, or an ELBO. Where it draws, what other rows would draw is compared in
    the mean of 64 draws, to 6 standard errors, and what takes the same draws exactly. Where the algorithm lets the
    objective fall, monotone and stationary do not apply.

    Args:
      model: an `ELBOModel` that declares `constraints()`, or a `MeanField`, whose factors do.
      data: small data (about 100 rows) with an interior optimum that the model can fit; of an odd number of rows, the
        last is left out.
      key: random key of the starts.
      num_starts: restarts of the checks that fit.
      algorithm: what the checks evaluate and fit with; None for the model's own, as in `fit`.
      skip: laws that the model is not meant to keep, {name: reason in words}.

    Returns:
      The names of the laws checked, some with "(of the mean of 64 draws)" or the like; for a law that does not apply or
      is skipped, its name and "(not checked: why)".

    Raises:
      AssertionError: a law is broken.
      ValueError: methods of the model disagree about shapes; the message names the method. Or skip names no law.

    Takes about 10-20 seconds, most of it compilation. Runs in double precision whatever the x64 mode is.
    """
    _wrappers.check_model(model, data)
    key = as_key(key)
    check_integer("num_starts", num_starts, 1)
    skip = {} if skip is None else skip
    _check_skip(skip)
    with jax.enable_x64(True):
        case = Case(model, data, key, num_starts, algorithm)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # most of its fits take few steps on purpose
            said = {name: f"not checked: {skip[name]}" if name in skip else law(case) for name, law in CHECKS.items()}
        assert float_dtype(case.params) == jnp.float64
    return [name if what is None else f"{name} ({what})" for name, what in said.items()]


def _check_skip(skip: Any) -> None:
    """Raises unless these are names of laws with a reason each."""
    expect("skip", skip, Mapping, 'a reason for each law, as {"m_step": "it has no maximum"}')
    for name, reason in skip.items():
        if name not in CHECKS:
            known = ", ".join(CHECKS)
            raise ValueError(f"skip: expected some of {known}; found {shown(name)}{nearest(name, CHECKS)}")
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"skip[{name!r}]: expected a reason in words; found {shown(reason)}")
