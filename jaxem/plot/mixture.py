"""Pictures of fits, with matplotlib (the `examples` extra): each function draws on an Axes and returns it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse

from jaxem.engine.result import Fit
from jaxem.plot.style import INK, check_fit, check_points, colours, column_labels, fit_rows, new_axes, numbered
from jaxem.stopping import Status

# Colour, line style and end marker of each status: a spike differs in all three, so that grey print shows it too.
STYLES: dict[Status, Any] = {
    Status.CONVERGED: ("#0072B2", "-", "o"),
    Status.MAX_STEPS: ("#E69F00", "-", ">"),
    Status.NONFINITE: ("#CC79A7", ":", "s"),
    Status.DECREASED: ("#009E73", ":", "v"),
    Status.DEGENERATE: ("#D55E00", "--", "X"),
    Status.SCREENED: ("#999999", "-", "|"),
    Status.INTERRUPTED: ("#56B4E9", "-.", "d"),
    Status.UNDERFIT: ("#882255", "-.", "P"),
}


def _label_axes(ax: Axes, labels: list[str], columns: list[int]) -> None:
    """Names the columns, where the caller's axes carry no names yet."""
    if not ax.get_xlabel():
        ax.set_xlabel(labels[columns[0]])
    if not ax.get_ylabel():
        ax.set_ylabel(labels[columns[1]])


def ellipse(mean: np.ndarray, covariance: np.ndarray, level: float, **style: Any) -> Ellipse:
    """The curve (x - mean)' covariance^-1 (x - mean) = level^2 of a Gaussian in two dimensions.

    Args:
      mean: (2,).
      covariance: (2, 2), positive semi-definite.
      level: half axes in standard deviations; 1 holds 39% of the mass in two dimensions, 2 holds 86%.
      **style: passed to `matplotlib.patches.Ellipse`.

    Returns:
      An unattached patch with half axes level * sqrt(eigenvalues) along the eigenvectors.

    Examples:
      >>> shape = ellipse(np.zeros(2), np.diag([4.0, 1.0]), 1.0)
      >>> sorted([float(shape.width), float(shape.height)])
      [2.0, 4.0]
    """
    values, vectors = np.linalg.eigh(covariance)
    width, height = 2 * level * np.sqrt(np.maximum(values[::-1], 0))
    angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    return Ellipse((float(mean[0]), float(mean[1])), width, height, angle=angle, **style)


def components(
    fit: Fit,
    data: Any,
    *,
    columns: Sequence[int | str] = (0, 1),
    levels: Sequence[float] = (1.0, 2.0),
    ax: Axes | None = None,
) -> Axes:
    """Data coloured by predicted component, with the covariance ellipses of a Gaussian mixture or K-means centroids.

    Ellipses are those of the marginal in the two columns: half axes level * sqrt(eigenvalue) of that block of the
    covariance. Means and centroids are crosses. O(N K) for the labels.

    Args:
      fit: a fit of a Gaussian mixture (params.components has mean and covariance), Bayesian or not, or of `KMeans`.
      data: (N, D), usually those of the fit.
      columns: two different columns, on the horizontal and vertical axis, by number or by the names that the fit knows.
      levels: sizes of the ellipses in standard deviations; empty for none.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes.

    Raises:
      TypeError: fit is no `Fit`, or its params have neither Gaussian components nor centroids.
      ValueError: a batch of fits; data, columns or levels that do not suit.

    Examples:
      >>> import jax, jaxem
      >>> import matplotlib.pyplot as plt
      >>> x = jax.random.normal(jax.random.key(0), (50, 2))
      >>> fit = jaxem.fit(jaxem.GMM(1), x, key=jax.random.key(1))
      >>> ax = components(fit, x)
      >>> len(ax.patches)
      2
      >>> plt.close(ax.figure)
    """
    check_fit(fit)
    parts: Any = getattr(fit.params, "components", None)
    gaussian = hasattr(parts, "mean") and hasattr(parts, "covariance")
    if not gaussian and not hasattr(fit.params, "centroids"):
        found = type(fit.params if parts is None else parts).__name__
        raise TypeError(f"fit: expected params with components.mean and .covariance, or centroids; found {found}")
    mean = np.asarray(parts.mean if gaussian else fit.params.centroids, np.float64)
    x, columns = check_points(fit_rows(fit, data), numbered(fit, columns), mean.shape[1])
    if not all(0 < float(level) < math.inf for level in levels):
        raise ValueError(f"levels: expected positive numbers of standard deviations; found {levels!r}")
    ax, palette = new_axes(ax), colours(mean.shape[0])
    label = np.asarray(fit.model.predict(fit.params, x))
    ax.scatter(x[:, columns[0]], x[:, columns[1]], s=14, c=palette[label], alpha=0.6, linewidths=0)
    if gaussian:
        # Unused and dead components come last; of a Bayesian mixture those with at most one row.
        pruned = fit.model.pruning(fit.params).kept if hasattr(fit.model, "pruning") else fit.params.mixing
        used = np.asarray(pruned) > 0
        mean, covariance = mean[used], np.asarray(parts.covariance, np.float64)[used][:, columns][:, :, columns]
        for m, cov, colour in zip(mean[:, columns], covariance, palette, strict=False):
            for level in levels:
                ax.add_patch(ellipse(m, cov, level, facecolor="none", edgecolor=0.75 * colour, linewidth=1.4))
    marker, size, width = ("+", 70, 1.8) if gaussian else ("x", 110, 2.5)
    ax.scatter(mean[:, columns[0]], mean[:, columns[1]], s=size, c=INK, marker=marker, linewidths=width, zorder=3)
    ax.autoscale_view()
    _label_axes(ax, column_labels(fit, x.shape[1]), columns)
    return ax


def responsibilities(fit: Fit, data: Any, *, columns: Sequence[int | str] = (0, 1), ax: Axes | None = None) -> Axes:
    """Points coloured by their responsibilities; the less certain ones are larger, ringed and on top.

    A point's colour is the blend sum_k resp_nk colour_k. Its ring and size grow with 1 - max_k resp_nk, and points
    below 0.99 are counted in the legend. O(N K).

    Args:
      fit: a fit of any model with a posterior (N, K).
      data: (N, D), usually those of the fit.
      columns: two different columns, on the horizontal and vertical axis, by number or by the names that the fit knows.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes.

    Raises:
      TypeError: fit is no `Fit`, or its model has no posterior.
      ValueError: a batch of fits; data or columns that do not suit.

    Examples:
      >>> import jax, jaxem
      >>> import matplotlib.pyplot as plt
      >>> x = jax.random.normal(jax.random.key(0), (50, 2))
      >>> ax = responsibilities(jaxem.fit(jaxem.KMeans(2), x, key=jax.random.key(1)), x)
      >>> [text.get_text() for text in ax.get_legend().get_texts()]
      ['component 0', 'component 1', 'largest below 0.99 (0 points)']
      >>> plt.close(ax.figure)
    """
    check_fit(fit)
    if not hasattr(fit.model, "posterior"):
        raise TypeError(f"fit: expected a model with a posterior; found {type(fit.model).__name__}")
    x, columns = check_points(fit_rows(fit, data), numbered(fit, columns))
    resp = np.asarray(fit.model.posterior(fit.params, x), np.float64)
    resp = resp[:, : 1 + np.flatnonzero(resp.any(0))[-1]]  # unused components come last
    ax, palette = new_axes(ax), colours(resp.shape[1])
    doubt = np.clip(1 - resp.max(1), 0, 1)
    order = np.argsort(doubt, kind="stable")
    unsure = doubt > 0.01
    ax.scatter(
        x[order, columns[0]],
        x[order, columns[1]],
        s=np.where(unsure, 32 + 60 * doubt, 14)[order],
        c=np.clip(resp @ palette, 0, 1)[order],
        edgecolors=INK,
        linewidths=np.where(unsure, 0.6 + 1.2 * doubt, 0)[order].tolist(),
    )
    dot: dict[str, Any] = {"marker": "o", "linestyle": "none"}
    handles = [Line2D([], [], color=c, label=f"component {k}", **dot) for k, c in enumerate(palette[:8])]
    name = f"largest below 0.99 ({unsure.sum()} points)"
    handles.append(Line2D([], [], markerfacecolor="none", markeredgecolor=INK, label=name, **dot))
    ax.legend(handles=handles, frameon=False)
    _label_axes(ax, column_labels(fit, x.shape[1]), columns)
    return ax


def traces(fit: Fit, *, ax: Axes | None = None) -> Axes:
    """ELBO of every restart after each M-step, coloured by status; the winner is drawn thick, in black.

    One line per restart, in the order of the restarts, ending in its status's marker; the winner's is black. Steps are
    on a logarithmic axis (of 1 + step). The vertical axis begins at the lower quartile of the starts where those lie
    far below the ends, so that the optima can be told apart; spikes are never cut off. O(R max_steps).

    Args:
      fit: a fit; its restarts.trace is (R, max_steps + 1), NaN where not reached.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes. A restart without a finite value has an empty line and a place in the legend.

    Raises:
      TypeError: fit is no `Fit`.
      ValueError: a batch of fits.

    Examples:
      >>> import jax, jaxem
      >>> import matplotlib.pyplot as plt
      >>> x = jax.random.normal(jax.random.key(0), (50, 2))
      >>> ax = traces(jaxem.fit(jaxem.GMM(2), x, key=jax.random.key(1), num_restarts=3))
      >>> len(ax.lines)
      3
      >>> plt.close(ax.figure)
    """
    check_fit(fit)
    ax = new_axes(ax)
    trace, codes = np.asarray(fit.restarts.trace, np.float64), np.asarray(fit.restarts.status)
    winner, steps = int(fit.winner), 1 + np.arange(trace.shape[1])
    for i, (row, code) in enumerate(zip(trace, codes.tolist(), strict=True)):
        reached = np.flatnonzero(np.isfinite(row))
        colour, line, marker = STYLES[Status(code)]
        style: dict[str, Any] = {"color": colour, "linewidth": 0.9, "alpha": 0.6, "markersize": 4.5, "zorder": 2}
        if i == winner:
            style = {"color": "black", "linewidth": 2.2, "markersize": 8, "zorder": 3}
        end = reached[-1] + 1 if reached.size else 0
        ax.plot(steps[:end], row[:end], linestyle=line, marker=marker, markevery=[-1] if end else None, **style)
    handles = [_key(code, int((codes == code).sum())) for code in sorted(set(codes.tolist()))]
    name = f"winner: restart {winner}, {Status(codes[winner]).name}"
    handles.append(Line2D([], [], color="black", linewidth=2.2, marker=STYLES[Status(codes[winner])][2], label=name))
    ax.legend(handles=handles, frameon=False, loc="lower right")
    ax.set_xscale("log")
    ax.set(xlabel="1 + M-steps", ylabel="ELBO (nats)")
    _limit_below(ax, trace)
    return ax


def _key(code: int, count: int) -> Line2D:
    colour, line, marker = STYLES[Status(code)]
    return Line2D([], [], color=colour, linestyle=line, marker=marker, label=f"{Status(code).name} ({count})")


def _limit_below(ax: Axes, trace: np.ndarray) -> None:
    """Cuts off low starts where they would squeeze the ends into a line."""
    rows = [row[np.isfinite(row)] for row in trace if np.isfinite(row).any()]
    if not rows:
        return
    start, ends = np.array([r[0] for r in rows]), np.array([r[-1] for r in rows])
    top, low = ends.max(), min(np.quantile(start, 0.25), ends.min())
    if top > low > start.min():
        ax.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low))
