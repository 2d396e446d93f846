"""Warnings that point at the line of the user who called, however deep in the library they arise."""

import sys
import warnings
from pathlib import Path

_HERE = str(Path(__file__).parents[1])


class FitWarning(UserWarning):
    """What a fit ended as, or what it was given, makes its numbers doubtful; filter it by this class."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` from the first frame outside this package."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, category, stacklevel=level)
