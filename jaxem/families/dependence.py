"""Columns that are exact linear combinations of earlier ones, found once per fit."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.numerics import einsum
from jaxem.core.pytree import dataclass
from jaxem.core.sequences import sequences_in
from jaxem.core.tree import BLOCK_ROWS, PyTree, sum_rows
from jaxem.core.whole import in_batches, of_all, total

ROUNDS = 4
# Share of a column's variance below which the product moments, in which small differences cancel, say nothing about
# it: its residual is then taken from the rows, and looked at again on its own scale.
UNSURE = 1e-2
# Rows that the host looks at: where they are independent, so are all. And most columns, whose eigenvalues take a tenth
# of a second; beyond, compilation is the least of what a fit costs.
LOOKED_AT, WIDEST = 4096, 512

_known = contextvars.ContextVar("known", default=False)


@dataclass
class Span:
    """The columns that span the data.

    Attributes:
      dependent: (D,) bool, columns that are linear combinations of earlier ones.
      matrix: (D, D) each column as a combination of the independent ones, in standardised units: a row of the identity
        for an independent column, zeros in the columns of dependent ones. Lower triangular.
      std: (D,) the units.
    """

    dependent: Array
    matrix: Array
    std: Array


@contextlib.contextmanager
def independent(known: bool) -> Iterator[None]:
    """While a program is traced: whether its data are known to have independent columns.

    `find_span` then is not part of it, which takes a quarter of the compilation of a first fit; what it would find is
    the same to the bit. So it is the host that looks, where it can, at data of any shape and through any wrapper.
    """
    token = _known.set(known)
    try:
        yield
    finally:
        _known.reset(token)


def surely_independent(data: PyTree, weights: np.ndarray) -> bool:
    """Whether no columns of any table (N, D) among the data, on the host, can depend on each other; of steps, those."""
    found = sequences_in(data)
    if found is not None:
        steps = found.observed.shape[1]
        data = [leaf.reshape(-1, leaf.shape[-1]) for leaf in jax.tree.leaves(found.values) if leaf.ndim == 3]
        weights = np.repeat(weights, steps)
    tables = [leaf for leaf in jax.tree.leaves(data) if leaf.ndim == 2 and leaf.shape[1] > 1]
    return all(clearly_independent(table, weights) for table in tables)


def clearly_independent(x: np.ndarray, weights: np.ndarray) -> bool:
    """Whether no column of x (N, D) is anywhere near a combination of earlier ones, by some of the rows, on the host.

    What each column has of its own is compared with a thousand times the rounding of its numbers, offset included.
    """
    rows = np.flatnonzero(weights > 0)
    step = max(1, rows.size // LOOKED_AT)
    if x.shape[1] > WIDEST or rows.size // step <= x.shape[1] + 1:
        return False
    eps = np.finfo(x.dtype).eps
    with np.errstate(all="ignore"):
        x = x[rows[::step]].astype(np.float64)
        about = x - x.mean(0)
        std = np.sqrt((about**2).mean(0))
        offset = 1 + np.max(np.abs(x).max(0) / std)
        if not (std > 0).all() or not np.isfinite(offset):
            return False
        z = about / std
        own = np.linalg.eigvalsh(z.T @ z / len(z))[0]
    return bool(own > max(1e-3, 1e3 * eps * offset) ** 2)


def find_span(x: Array, weights: Array, location: Array, std: Array, constant: Array, centred: bool = True) -> Span:
    """The span of the columns of x, about `location`: a dependent column is predicted by earlier ones to rounding.

    A Gram-Schmidt process in three rounds: product moments of the residuals so far, the regressions of each column on
    the earlier ones (by Cholesky factors), and the residuals again from the rows. What is left of a dependent column
    in the end is rounding, a few eps of the numbers that enter, whereas a relation with a noise of 1e-4 keeps its noise
    in float32. Columns are not called dependent for lack of rows: only while there are more rows of positive weight
    than independent columns before, and one.

    Args:
      x: (N, D).
      weights: (N,).
      location: (D,) where columns are centred.
      std: (D,) their root mean squares about it.
      constant: (D,) columns without spread, which take no part.
      centred: whether the location is the mean, which takes one row of what there is.

    Returns:
      `Span`. O(N D^2 + D^3) time, in blocks of rows.
    """
    dim = x.shape[1]
    if _known.get():
        return Span(jnp.zeros(dim, bool), jnp.eye(dim, dtype=x.dtype), std)
    unit = jnp.where(constant, 0, 1 / std)
    share = weights / total(weights)
    eye = jnp.eye(dim, dtype=x.dtype)
    # Rounding of the columns' numbers themselves, offset included, adds up like independent errors. Single precision
    # mostly comes of one cast, 0.3 eps of an offset, and half an eps is the location's own; columns in double were made
    # by sums in that very precision.
    factor = 4 + dim**0.5 / 2
    own = 1.5 if x.dtype == jnp.float32 else factor
    size = 1 + (own / factor * location * unit) ** 2
    allowed = factor * jnp.finfo(x.dtype).eps

    # Residuals about a mean of their own: the error of the location grows with the number of rows, beyond rounding.
    middle = jnp.ones((), x.dtype) if centred else jnp.zeros((), x.dtype)

    def block(rows: Array, w: Array, transform: Array) -> Array:
        residual = einsum("nd,ed->ne", (rows - location[None]) * unit[None], transform)
        with_one = jnp.concatenate([jnp.ones_like(residual[:, :1]), residual], 1)
        return einsum("nd,ne->de", w[:, None] * with_one, residual)

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        transform = state[0]
        sums = of_all(lambda x, w: sum_rows(lambda x, w: block(x, w, transform), x, w, BLOCK_ROWS), x, share)
        moment = sums[1:] - middle * sums[0][:, None] * sums[0][None]
        rms = jnp.sqrt(jnp.sum(moment * eye, 0))
        none = rms <= allowed * jnp.sqrt(einsum("de,e->d", transform**2, size))
        return _regressed(moment, transform, rms, none), transform, none

    state = eye, eye, constant
    if in_batches():  # each round looks at all rows
        for number in range(ROUNDS):
            state = step(number, state)
    else:
        state = jax.lax.fori_loop(0, ROUNDS, step, state)
    _, transform, none = state
    free = (~(none | constant)).astype(x.dtype)
    before = jnp.cumsum(free) - free
    rows = total((weights > 0).astype(x.dtype))
    dependent = none & ~constant & (rows > before + int(centred))
    # Predictions by columns that are dependent themselves go back to the independent ones.
    relation = jnp.where(dependent[:, None], jnp.tril(transform, -1), 0) + eye
    kept = jnp.where(dependent[None], 0, eye)
    matrix = jax.lax.linalg.triangular_solve(relation, kept, left_side=True, lower=True, unit_diagonal=True)
    return Span(dependent, matrix, std)


def _regressed(moment: Array, transform: Array, rms: Array, none: Array) -> Array:
    """The transform after regressing each residual on the earlier ones, but for those with nearly nothing of their own.

    `none` marks residuals without anything left, which explain nothing either.
    """
    dim = rms.shape[0]
    eye = jnp.eye(dim, dtype=rms.dtype)
    eps = float(jnp.finfo(rms.dtype).eps)
    unit = jnp.where(none, 1, rms)
    correlation = moment / unit[:, None] / unit[None] * (1 - eye)
    # The lift is beyond the rounding of the moments, which may turn 0 into -1e-5, and short of UNSURE; it shortens the
    # coefficients a little, which the next round makes good.
    correlation = jnp.where(none[:, None] | none[None], 0, correlation) + (1 + eps**0.5 + 8 * dim * eps) * eye
    lower = jax.lax.linalg.cholesky(correlation, symmetrize_input=False)
    diagonal = jnp.sum(lower * eye, 0)
    sure = ~none & (diagonal**2 > UNSURE)
    # In units of the residuals: rows of `none`, which were left out of the factor, are not regressed any more.
    ratio = unit[:, None] / unit[None]
    change = jnp.where(sure[None], lower / jnp.where(sure, diagonal, 1)[None], 0) * (1 - eye) * ratio + eye
    return jax.lax.linalg.triangular_solve(change, transform, left_side=True, lower=True, unit_diagonal=True)
