"""What is asked of all rows of a fit, wherever they lie: in memory, over a mesh, or in a stream that shows a batch."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core import mesh as _mesh

PyTree = Any


class Wanted(Exception):  # noqa: N818 - no error: it leads out of a `bind` that cannot go on yet
    """What a batch says of itself, where the same of all rows is needed to go on; None where a count is."""

    def __init__(self, part: PyTree):
        super().__init__()
        self.part = part


class Survey:
    """What is known so far of all rows of a stream, while a `bind` is traced with one batch of them.

    Attributes:
      known: what `of_all` has found, in the order in which it was asked.
      kept: the rows that `every` gives, with their weights; None while they are not known.
      num_rows: N; None while it is not known.
      weights: of the batch.
      total: that of all weights; None while it is not known.
    """

    def __init__(self, known: list[PyTree], kept: PyTree, num_rows: int | None, weights: Array, total: Array | None):
        self.known, self.kept, self.num_rows = known, kept, num_rows
        self.weights, self.total = weights, total
        self.asked = 0


_survey: contextvars.ContextVar[Survey | None] = contextvars.ContextVar("survey", default=None)


_rows: contextvars.ContextVar[int | None] = contextvars.ContextVar("rows", default=None)


@contextlib.contextmanager
def of_many(num: int) -> Iterator[None]:
    """While arguments are checked: the rows at hand are some of `num`."""
    token = _rows.set(num)
    try:
        yield
    finally:
        _rows.reset(token)


def is_part() -> bool:
    """Whether arguments are checked with some rows of many at hand."""
    return _rows.get() is not None


@contextlib.contextmanager
def surveying(survey: Survey | None) -> Iterator[None]:
    """While a `bind` is traced: its rows are one batch of a stream."""
    token = _survey.set(survey)
    try:
        yield
    finally:
        _survey.reset(token)


def in_batches() -> bool:
    """Whether the rows of the program being traced are one batch of many, so that a loop cannot look at all."""
    return _survey.get() is not None


def of_all(f: Callable[..., PyTree], *rows: PyTree) -> PyTree:
    """`f(*rows)` of all rows, where it adds up: f(A ++ B) = f(A) + f(B).

    All that a `bind` takes from rows goes through here, or `every`. Of rows in memory it is just `f(*rows)`; of a
    stream each batch is asked, in a pass of its own for each of these that follow from one another.
    """
    survey = _survey.get()
    if survey is None:
        return f(*rows)
    number = survey.asked
    survey.asked += 1
    if number < len(survey.known):
        return survey.known[number]
    raise Wanted(f(*rows))


def total(weights: Array) -> Array:
    """The sum of all weights; those of the rows themselves are counted in any first pass over a stream."""
    survey = _survey.get()
    if survey is not None and weights is survey.weights:
        if survey.total is None:
            raise Wanted(None)
        return survey.total
    return of_all(jnp.sum, weights)


def num_all(num: int) -> int:
    """N, where `num` rows are at hand; rows of padding do not count."""
    survey, many = _survey.get(), _rows.get()
    if many is not None:
        return many
    if survey is None:
        return _mesh.real_rows(num)
    if survey.num_rows is None:
        raise Wanted(None)
    return survey.num_rows


def stride(num: int, most: int) -> int:
    """The step at which at most `most` of N rows, `num` of which are at hand, are met."""
    return max(1, -(-num_all(num) // most))


def every(tree: PyTree, step: int) -> PyTree:
    """Each row whose number is a multiple of `step`; over a mesh as copies on all devices.

    Of a stream those that were kept: at `stride(N, KEPT)`.
    """
    survey = _survey.get()
    if survey is not None:
        if survey.kept is None:
            raise Wanted(None)
        return survey.kept
    if _mesh.current() is None:
        return jax.tree.map(lambda leaf: leaf[::step], tree)
    num = _mesh.real_rows(jax.tree.leaves(tree)[0].shape[0])
    return _mesh.as_copies(_mesh.take_rows(tree, jnp.arange(0, num, step, dtype=jnp.int32)))


# Most rows that a survey of a stream keeps for `every`.
KEPT = 4096
