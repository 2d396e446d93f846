"""The picture of a choice among models: a criterion over the number of components."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from jaxem.plot.style import colours, new_axes

# Height of a row of crosses, as a share of the axes.
ROW = 0.045


def criteria(table: Mapping[str, Mapping[int, Any]], *, ax: Axes | None = None) -> Axes:
    """Curves of a criterion, such as BIC or ICL, above its lowest value, over the number of components.

    The axis is linear to 10 and logarithmic beyond, so that close rivals can be told apart beside hopeless ones; among
    models compared by BIC a difference of 10 is very strong evidence (Kass and Raftery 1995). A star marks the lowest.
    A value that is not finite, as `jaxem.bic` gives for a spike (DEGENERATE) or a fit that failed (NONFINITE), breaks
    its curve and is a cross at the top, in the colour of the curve; it is never the lowest.

    Args:
      table: from a label (a covariance, say) to {K: value}; lower is better.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes: one line per label and then the star; the crosses, if there are any, are its only collection.

    Raises:
      TypeError: table is not a mapping of mappings to numbers.
      ValueError: there is no finite value in it.

    Examples:
      >>> import matplotlib.pyplot as plt
      >>> ax = criteria({"full": {1: 30.0, 2: 20.0, 3: np.inf}, "tied": {1: 30.0, 2: 22.0}})
      >>> ax.lines[-1].get_xydata().tolist(), ax.collections[0].get_label()
      ([[2.0, 0.0]], 'no value: a spike, or not finite')
      >>> plt.close(ax.figure)
    """
    curves = _curves(table)
    best, k, lowest = min(
        ((name, k, value) for name, curve in curves.items() for k, value in curve.tolist() if np.isfinite(value)),
        key=lambda point: point[2],
    )
    ax, palette = new_axes(ax), colours(len(curves))
    for (name, curve), colour, marker in zip(curves.items(), palette, _markers(len(curves)), strict=True):
        ax.plot(curve[:, 0], curve[:, 1] - lowest, marker=marker, color=colour, label=str(name), markersize=5, lw=1.4)
    name = f"lowest: {best}, K = {k:g}"
    ax.plot([k], [0], linestyle="none", marker="*", markersize=14, color="black", label=name, zorder=3, clip_on=False)
    ax.set_yscale("symlog", linthresh=10)
    ax.set_ylim(bottom=-2)
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.set(xlabel="number of components K", ylabel=f"criterion above its lowest, {lowest:.2f}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _mark_gaps(ax, list(curves.values()), palette)
    ax.legend(frameon=False)
    return ax


def _curves(table: Any) -> dict[str, np.ndarray]:
    """(n, 2) K and value of each label, sorted by K, NaN for values that are not finite; raises for a bad table."""
    if not isinstance(table, Mapping) or not all(isinstance(row, Mapping) for row in table.values()):
        raise TypeError(f"table: expected a mapping from labels to mappings K -> value; found {table!r}")
    try:
        curves = {name: np.array(sorted(row.items()), float).reshape(-1, 2) for name, row in table.items()}
    except (TypeError, ValueError) as error:
        raise TypeError(f"table: expected numbers for K and value; found {table!r}: {error}") from None
    for curve in curves.values():
        curve[~np.isfinite(curve[:, 1]), 1] = np.nan
    if not any(np.isfinite(curve[:, 1]).any() for curve in curves.values()):
        raise ValueError(
            f"table: expected at least one finite value; found {table!r}; bic(..., allow_degenerate=True) gives those "
            "of spikes"
        )
    return curves


def _mark_gaps(ax: Axes, curves: list[np.ndarray], palette: np.ndarray) -> None:
    """Crosses above the plot's curves for values that are not finite, those of each curve in a row of their own."""
    gaps = [(k, row) for row, curve in enumerate(curves) for k in curve[np.isnan(curve[:, 1]), 0]]
    if not gaps:
        return
    rows = sorted({row for _, row in gaps})
    # Room for the rows, in the share of the height that the axis leaves above the highest value.
    height = ROW * (len(rows) + 0.5)
    transform, (low, high) = ax.yaxis.get_transform(), ax.get_ylim()
    bottom, top = transform.transform(np.array([low, high]))
    ax.set_ylim(top=float(transform.inverted().transform(np.array([bottom + (top - bottom) / (1 - height)]))[0]))
    where = np.array([(k, 1 - ROW * (rows.index(row) + 0.75)) for k, row in gaps])
    ax.update_datalim([(k, 0.0) for k, _ in gaps])  # coordinates of the axes do not count towards its limits
    ax.autoscale_view(scaley=False)
    ax.scatter(
        where[:, 0],
        where[:, 1],
        marker="x",
        s=36,
        linewidths=1.8,
        c=palette[[row for _, row in gaps]],
        transform=ax.get_xaxis_transform(),
        label="no value: a spike, or not finite",
        zorder=3,
    )


def _markers(num: int) -> list[str]:
    return ["osD^vPX"[i % 7] for i in range(num)]
