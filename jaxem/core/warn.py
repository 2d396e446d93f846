"""Warnings that point at the line of the user who called, however deep in the library they arise."""

import contextvars
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = str(Path(__file__).parents[1])


class FitWarning(UserWarning):
    """What a fit ended as, or what it was given, makes its numbers doubtful; filter it by this class."""


_SILENT = contextvars.ContextVar("silent", default=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Leaves out `FitWarning`, in this thread alone, where the caller tells of the end himself."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


def warn(message: str, category: type[Warning] = UserWarning, beyond: tuple[str, ...] = ()) -> None:
    """`warnings.warn` from the first frame outside this package and files whose paths begin as in `beyond`."""
    if category is FitWarning and _SILENT.get():
        return
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith((_HERE, *beyond)):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, category, stacklevel=level)
