"""Pictures of hidden Markov models: a series with its path of states, and the transitions between them."""

from collections.abc import Sequence
from typing import Any

import jax
import matplotlib.dates as mdates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jaxem.core.arguments import check_integer
from jaxem.core.rows import rows
from jaxem.core.sequences import Sequences
from jaxem.engine.result import Fit
from jaxem.models.bayesian_hmm import BayesianHMM
from jaxem.models.hmm import Sequential
from jaxem.plot.style import INK, check_fit, colours, column_labels, new_axes, numbered
from jaxem.wrappers import unwrapped

# How much of a state's colour its bands have, the rest white.
TINT = 0.3
# Lines of a series' columns, which leave the colours to the states.
DASHES = ("-", "--", ":", "-.")
# Up to so many steps each observation is a dot on the line.
DOTS = 400


def states(
    fit: Fit,
    data: Any,
    *,
    sequence: int = 0,
    columns: Sequence[int | str] | None = None,
    time: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """A series against time, the most probable path of states behind it, and above it how sure each state is.

    Each run of the path is shaded in the colour of its state, half a step before its first step to half a step after
    its last. The strip above is stacked: at each step every state has the height of its smoothed probability. Lines are
    broken at steps without an observation. Time O(T K^2).

    Args:
      fit: a fit of an `HMM` or a `BayesianHMM`.
      data: sequences in any form that the model takes, usually those of the fit.
      sequence: which one of them.
      columns: which columns to draw, by number, those of several arrays counted on, or by name; None for the first
        four at most.
      time: (T,) increasing numbers or dates of the steps; None for 0 .. T - 1.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes; the strip is its only child axes.

    Raises:
      TypeError: fit is no `Fit` of a hidden Markov model.
      ValueError: a batch of fits; data, sequence, columns or time that do not suit.

    Examples:
      >>> import jax, jaxem
      >>> import matplotlib.pyplot as plt
      >>> x = np.repeat([[1], [9], [2]], 20, axis=0)
      >>> fit = jaxem.fit(jaxem.HMM(jaxem.families.Poisson(), 2), x, key=jax.random.key(0))
      >>> ax = states(fit, x)
      >>> [(float(run.get_x()), float(run.get_width())) for run in ax.patches]
      [(-0.5, 20.0), (19.5, 20.0), (39.5, 20.0)]
      >>> plt.close(ax.figure)
    """
    model, params = _hmm(fit)
    found, length = _one(rows(model, params, data), sequence)
    series, names = _columns(fit, found, length, columns)
    ticks, dated = _times(time, length)
    path = np.asarray(model.predict(params, found))[0, :length]
    resp = np.asarray(model.posterior(params, found), np.float64)[0, :length]
    ax, palette = new_axes(ax), colours(max(_num_used(model, params), int(path.max()) + 1))
    edges = _edges(ticks)
    _shade(ax, path, edges, palette)
    for column, style in zip(series.T, _styles(len(names), length), strict=True):
        ax.plot(ticks, column, **style)
    ax.set_xlim(edges[0], edges[-1])
    if dated:
        ax.xaxis_date()
    _strip(ax, resp, edges, palette)
    _name_series(ax, path, palette, names, length)
    return ax


def transitions(fit: Fit, *, ax: Axes | None = None) -> Axes:
    r"""The matrix of transitions as a heat map: a row for each state, a column for the next, and how long visits last.

    Of a Bayesian model the expected probabilities. Its states that the data enter less than once in expectation are
    left out where they come last, so that rows need not sum to 1.

    Args:
      fit: a fit of an `HMM` or a `BayesianHMM`.
      ax: where to draw; None for a new figure.

    Returns:
      The Axes: an image of the probabilities, their texts row by row, and rows labelled with the expected number of
      steps of a visit, 1 / (1 - A_kk).

    Raises:
      TypeError: fit is no `Fit` of a hidden Markov model.
      ValueError: a batch of fits.

    Examples:
      >>> import jax, jaxem
      >>> import matplotlib.pyplot as plt
      >>> x = np.repeat([[1], [9], [2]], 20, axis=0)
      >>> fit = jaxem.fit(jaxem.HMM(jaxem.families.Poisson(), 2), x, key=jax.random.key(0))
      >>> ax = transitions(fit)
      >>> [text.get_text() for text in ax.texts], ax.get_yticklabels()[1].get_text()
      (['0.974', '0.026', '0.050', '0.950'], 'state 1\n20.0 steps')
      >>> plt.close(ax.figure)
    """
    model, params = _hmm(fit)
    num = _num_used(model, params)
    matrix = np.asarray(model.law.mean(params.mixing).transition, np.float64)[:num, :num]
    ax, size = new_axes(ax), "medium" if num < 5 else "small" if num < 8 else "x-small"
    ax.imshow(matrix, cmap="Greys", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(matrix):
        ink = "white" if value > 0.55 else INK
        ax.text(j, i, _probability(value), ha="center", va="center", color=ink, fontsize=size)
    lasting = [_steps(value) for value in np.asarray(model.expected_durations(params))[:num]]
    ax.set_xticks(range(num), [str(k) for k in range(num)])
    ax.set_yticks(range(num), [f"state {k}\n{steps}" for k, steps in enumerate(lasting)], fontsize=size)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        for label, colour in zip(labels, colours(num), strict=True):
            label.set_color(0.75 * colour)
    ax.tick_params(length=0)
    left = model.num_states - num
    note = f" ({left} that nothing entered left out)" if left else ""
    ax.set(xlabel="to state" + note, ylabel="from, and how long a visit lasts")
    return ax


def _hmm(fit: Any) -> tuple[Any, Any]:
    """The hidden Markov model of a fit, without wrappers, and its params."""
    check_fit(fit)
    model, params = fit.model.inside(fit.params)
    model = unwrapped(model)
    if not isinstance(model, Sequential):
        raise TypeError(f"fit: expected a fit of a hidden Markov model; found one of {type(model).__name__}")
    return model, params


def _num_used(model: Any, params: Any) -> int:
    """States to show: all, but of a Bayesian model none after the last that is entered once or more in expectation.

    From what the data added to the prior's counts: by the expected probabilities a sticky state that no data entered
    would hold some of them.
    """
    if not isinstance(model, BayesianHMM):
        return model.num_states
    law: Any = model.law
    num = model.num_states
    allowed = np.ones((num, num)) if law.allowed is None else np.asarray(law.allowed)
    prior = (float(law.rows.concentration) + float(law.stickiness) * np.eye(num)) * allowed
    entered = np.asarray(params.initial.concentration, np.float64) - float(law.initial.concentration)
    entered = entered + (np.asarray(params.transition.concentration, np.float64) - prior).sum(0)
    return max(1, int(np.flatnonzero(entered >= 1).max(initial=-1)) + 1)


def _one(data: Sequences, which: int) -> tuple[Sequences, int]:
    """One of the sequences, and its number of steps."""
    check_integer("sequence", which, 0)
    num = data.observed.shape[0]
    if which >= num:
        raise ValueError(f"sequence: expected one of 0..{num - 1}; found {which}")
    return jax.tree.map(lambda leaf: leaf[which : which + 1], data), int(data.length[which])


def _columns(
    fit: Fit, data: Sequences, length: int, chosen: Sequence[int | str] | None
) -> tuple[np.ndarray, list[str]]:
    """(T, n) of one sequence, NaN where nothing was observed, and the names of the columns."""
    leaves = jax.tree_util.tree_flatten_with_path(data.values)[0]
    parts, names = [], []
    for path, leaf in leaves:
        part = np.asarray(leaf, np.float64)[0, :length].reshape(length, -1)
        place = jax.tree_util.keystr(path) + " " if len(leaves) > 1 else ""
        parts.append(part)
        names += [f"{place}column {d}" for d in range(part.shape[1])]
    series = np.concatenate(parts, 1)
    num = series.shape[1]
    names = names if fit.feature_names is None else column_labels(fit, num)
    columns: Any = range(min(num, len(DASHES))) if chosen is None else numbered(fit, chosen)
    if not isinstance(columns, Sequence) or not all(isinstance(c, (int, np.integer)) for c in columns):
        raise TypeError(f"columns: expected integers; found {columns!r}")
    if not len(columns) or not all(0 <= c < num for c in columns):
        raise ValueError(f"columns: expected some of 0..{num - 1}; found {tuple(columns)}")
    series = np.where(np.asarray(data.observed)[0, :length, None] > 0, series[:, list(columns)], np.nan)
    return series, [names[c] for c in columns]


def _times(time: Any, length: int) -> tuple[np.ndarray, bool]:
    """(T,) where the steps are on the axis, and whether they are dates."""
    if time is None:
        return np.arange(length, dtype=np.float64), False
    found = np.asarray(time)
    dated = found.dtype.kind == "M"
    if found.shape != (length,) or found.dtype.kind not in "iufM":
        raise ValueError(
            f"time: expected {length} numbers or dates (datetime64), one for each step of the sequence; found shape "
            f"{found.shape} of {found.dtype}"
        )
    ticks = np.asarray(mdates.date2num(found) if dated else found, np.float64)
    if not np.isfinite(ticks).all() or (np.diff(ticks) <= 0).any():
        raise ValueError("time: expected finite numbers or dates that increase from step to step")
    return ticks, dated


def _edges(ticks: np.ndarray) -> np.ndarray:
    """(T + 1,) the ends of the steps: half-way between neighbours."""
    gaps = np.diff(ticks) if len(ticks) > 1 else np.ones(1)
    return np.concatenate([[ticks[0] - gaps[0] / 2], ticks[:-1] + np.diff(ticks) / 2, [ticks[-1] + gaps[-1] / 2]])


def _shade(ax: Axes, path: np.ndarray, edges: np.ndarray, palette: np.ndarray) -> None:
    """A band for each run of the path."""
    cuts = np.flatnonzero(np.diff(path)) + 1
    for start, end in zip([0, *cuts], [*cuts, len(path)], strict=True):
        ax.axvspan(edges[start], edges[end], facecolor=_tinted(palette[path[start]]), linewidth=0, zorder=0)


def _tinted(colour: np.ndarray) -> tuple[float, float, float]:
    """The colour, opaque: a legend's must not take that of the band below it."""
    red, green, blue = (1 - TINT * (1 - colour)).tolist()
    return red, green, blue


def _styles(num: int, length: int) -> list[dict[str, Any]]:
    """Of each column."""
    marker = "." if length <= DOTS else ""
    shared = {"color": INK, "linewidth": 1.1, "marker": marker, "markersize": 4}
    return [{**shared, "linestyle": DASHES[i % len(DASHES)]} for i in range(num)]


def _strip(ax: Axes, resp: np.ndarray, edges: np.ndarray, palette: np.ndarray) -> None:
    """Smoothed probabilities, stacked, in axes above."""
    strip = ax.inset_axes((0, 1.03, 1, 0.16), sharex=ax)
    steps, shown = np.repeat(edges, 2)[1:-1], resp[:, : len(palette)]  # flat over each step
    strip.stackplot(steps, np.repeat(shown, 2, 0).T, colors=palette, linewidth=0)
    strip.set(ylim=(0, 1), yticks=(0, 1))
    strip.set_ylabel("p(state)", fontsize="small")
    strip.tick_params(labelbottom=False, labelsize="small")


def _name_series(ax: Axes, path: np.ndarray, palette: np.ndarray, names: list[str], length: int) -> None:
    """Names of the axes, where they have none yet, and of the states on the path and the columns."""
    if not ax.get_xlabel():
        ax.set_xlabel("step")
    if not ax.get_ylabel():
        ax.set_ylabel(names[0] if len(names) == 1 else "observation")
    handles: list[Any] = [
        Patch(facecolor=_tinted(palette[k]), edgecolor=tuple(palette[k]), label=f"state {k}") for k in np.unique(path)
    ]
    if len(names) > 1:
        styles = _styles(len(names), length)
        handles += [Line2D([], [], label=name, **style) for name, style in zip(names, styles, strict=True)]
    ax.legend(handles=handles, frameon=False, ncols=1 + len(handles) // 7, fontsize="small")


def _probability(value: float) -> str:
    """Three digits; what is no transition at all is told from a rare one."""
    if value == 0:
        return "0"
    return "<0.001" if value < 5e-4 else f"{value:.3f}"


def _steps(duration: float) -> str:
    return f"{duration:.1f} steps" if np.isfinite(duration) else "never left"
