"""What all pictures share: colours, axes, and checks of fits and points."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from jaxem.core.rows import rows
from jaxem.engine.result import Fit

# Okabe and Ito (2008), without black and yellow: told apart by people with any common colour vision.
PALETTE = ("#0072B2", "#E69F00", "#CC79A7", "#009E73", "#56B4E9", "#D55E00")
INK = "#222222"


def colours(num: int) -> np.ndarray:
    """(num, 3) RGB colours of components, the same for the same number in every picture."""
    if num <= len(PALETTE):
        return np.array([to_rgb(c) for c in PALETTE[:num]])
    return mpl.colormaps["turbo"](np.linspace(0.05, 0.95, num))[:, :3]


def new_axes(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def check_fit(fit: Any) -> None:
    """Raises unless fit is one `Fit`."""
    if not isinstance(fit, Fit):
        raise TypeError(f"fit: expected a jaxem Fit; found a {type(fit).__name__}")
    if np.ndim(fit.status) > 0:
        raise ValueError(f"fit: expected one fit; found a batch of shape {np.shape(fit.status)}")


def fit_rows(fit: Fit, data: Any) -> np.ndarray:
    """Rows for the model of a fit, or the one inside its wrapper, checked like those of any question."""
    model, params = fit.model.inside(fit.params)
    return np.asarray(rows(model, params, data))


def column_labels(fit: Fit, num: int) -> list[str]:
    """What `num` columns are called on axes: by the names they had in the data, else "column 0"."""
    names = fit.feature_names
    return list(names) if names is not None and len(names) == num else [f"column {d}" for d in range(num)]


def numbered(fit: Fit, columns: Any) -> Any:
    """Columns given by name as numbers; ValueError for a name that the fit does not know."""
    names = fit.feature_names or ()
    if not isinstance(columns, Sequence) or isinstance(columns, str) or not any(isinstance(c, str) for c in columns):
        return columns
    for name in columns:
        if isinstance(name, str) and name not in names:
            known = ", ".join(names) or "numbers, as the data had no names"
            raise ValueError(f"columns: expected some of {known}; found {name!r}")
    return [names.index(c) if isinstance(c, str) else c for c in columns]


def check_points(data: Any, columns: Sequence[int], num_columns: int | None = None) -> tuple[np.ndarray, list[int]]:
    """Data as an array (N, D), and two different column numbers that it has."""
    x = np.asarray(data)
    if x.ndim != 2 or (num_columns is not None and x.shape[1] != num_columns):
        expected = "(N, D)" if num_columns is None else f"(N, {num_columns}), as the fit has"
        raise ValueError(f"data: expected shape {expected}; found {x.shape}")
    if not isinstance(columns, Sequence) or not all(isinstance(c, (int, np.integer)) for c in columns):
        raise TypeError(f"columns: expected two integers; found {columns!r}")
    if len(columns) != 2 or columns[0] == columns[1] or not all(0 <= c < x.shape[1] for c in columns):
        raise ValueError(f"columns: expected two different ones of 0..{x.shape[1] - 1}; found {tuple(columns)}")
    return x, [int(c) for c in columns]
