import dataclasses

import jax
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxem
from jaxem import families, plot

TRANSITION = np.array([[0.9, 0.1, 0.0], [0.05, 0.9496, 0.0004], [0.0, 0.0, 1.0]])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data():
    """Two sequences of two columns, the first with steps that nobody observed, NaN and in the middle of a run."""
    rng = np.random.default_rng(0)
    rate = np.array([[2.0, 8.0], [15.0, 1.0], [40.0, 30.0]])
    first = rng.poisson(rate[np.repeat([0, 1, 0, 1], [6, 4, 9, 5])]).astype(float)
    second = rng.poisson(rate[np.repeat([1, 2], [5, 8])]).astype(float)
    second[4] = [25, 9]  # of which neither state is sure
    observed = [np.ones(24, bool), np.ones(13, bool)]
    observed[0][[12, 13]] = False
    first[~observed[0]] = np.nan
    return jaxem.sequences([first, second], observed=observed)


@pytest.fixture(scope="module")
def fit(data):
    """States in this order, which is not that of their shares."""
    model = jaxem.HMM(families.Poisson(), 3)
    params = model.make_params([0.4, 0.4, 0.2], TRANSITION, rate=[[2.0, 8.0], [15.0, 1.0], [40.0, 30.0]])
    return jaxem.fit(model, data, key=jax.random.key(0), params=params, max_steps=0)


def runs(path):
    """(first step, number of steps, state) of each run."""
    starts = [t for t in range(len(path)) if t == 0 or path[t] != path[t - 1]]
    return [(s, e - s, path[s]) for s, e in zip(starts, [*starts[1:], len(path)], strict=True)]


def bands(ax):
    """(left end, width, colour of the state) of each band, in their order."""
    full = lambda patch: tuple(1 - (1 - np.array(patch.get_facecolor()[:3])) / 0.3)
    return [(patch.get_x(), patch.get_width(), full(patch)) for patch in ax.patches]


@pytest.mark.parametrize(("sequence", "length"), [(0, 24), (1, 13)])
def test_bands_are_the_runs_of_the_path(fit, data, sequence, length):
    ax = plot.states(fit, data, sequence=sequence)
    path = np.asarray(fit.predict(data))[sequence, :length].tolist()
    expected = runs(path)
    assert len(expected) == (4, 2)[sequence]
    found = bands(ax)
    assert [(left + 0.5, width) for left, width, _ in found] == [(start, num) for start, num, _ in expected]
    np.testing.assert_allclose(
        [colour for *_, colour in found], plot.colours(3)[[state for *_, state in expected]], atol=1e-9
    )
    assert ax.get_xlim() == (-0.5, length - 0.5)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == [f"state {k}" for k in sorted(set(path))] + ["column 0", "column 1"]


def test_lines_are_the_columns_and_break_where_nothing_was_observed(fit, data):
    ax = plot.states(fit, data, columns=[1, 0])
    values = np.where(np.asarray(data.observed)[0, :24, None] > 0, np.asarray(data.values)[0, :24], np.nan)
    assert np.isnan(values).any(1).nonzero()[0].tolist() == [12, 13]
    for line, column in zip(ax.lines, values.T[::-1], strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(24))
        np.testing.assert_array_equal(line.get_ydata(), column)
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    (line,) = plot.states(fit, data, columns=[1]).lines
    np.testing.assert_array_equal(line.get_ydata(), values[:, 1])
    assert (line.axes.get_xlabel(), line.axes.get_ylabel()) == ("step", "column 1")


def test_the_strip_stacks_the_smoothed_probabilities(fit, data):
    (strip,) = plot.states(fit, data, sequence=1).child_axes
    resp = np.asarray(fit.posterior(data))[1, :13]
    assert ((resp > 0.01) & (resp < 0.99)).any()
    below = np.zeros(13)
    for k, (layer, colour) in enumerate(zip(strip.collections, plot.colours(3), strict=True)):
        np.testing.assert_allclose(layer.get_facecolor()[0, :3], colour)
        corners = layer.get_paths()[0].vertices
        for step in range(13):
            # Flat from half a step before to half a step after, so both ends are corners at both heights.
            for x in (step - 0.5, step + 0.5):
                for y in (below[step], below[step] + resp[step, k]):
                    assert np.abs(corners - [x, y]).max(1).min() < 1e-5
        below += resp[:, k]


def test_times_put_edges_half_way_between_steps(fit, data):
    years = np.array([1900, 1901, 1903, *range(1910, 1931)])
    ax = plot.states(fit, data, time=years)
    edges = np.array([1899.5, 1900.5, 1902, 1906.5, *np.arange(1910.5, 1931)])
    expected = [(edges[s], edges[s + n] - edges[s]) for s, n, _ in runs(np.asarray(fit.predict(data))[0].tolist())]
    assert [(left, width) for left, width, _ in bands(ax)] == expected
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), years)
    days = np.datetime64("2020-03-01") + np.arange(24)
    ax = plot.states(fit, data, time=days)
    assert ax.get_xlim() == (mdates.date2num(days[0]) - 0.5, mdates.date2num(days[-1]) + 0.5)
    ax.figure.canvas.draw()
    assert ax.get_xticklabels()[0].get_text().startswith("2020-03")


def test_draws_on_the_axes_given_and_keeps_their_names(fit, data):
    _, (left, right) = plt.subplots(1, 2)
    left.set(xlabel="year", ylabel="counts")
    assert plot.states(fit, data, ax=left) is left
    assert (left.get_xlabel(), left.get_ylabel()) == ("year", "counts")
    assert plot.transitions(fit, ax=right) is right
    assert len(plt.get_fignums()) == 1


def test_a_list_and_one_series_are_drawn_alike(fit, data):
    second = np.asarray(data.values)[1, :13]
    one = bands(plot.states(fit, second))
    assert one == bands(plot.states(fit, [second, second], sequence=1)) == bands(plot.states(fit, data, sequence=1))


def test_transitions_write_the_matrix_from_row_to_column(fit):
    ax = plot.transitions(fit)
    np.testing.assert_allclose(ax.images[0].get_array(), TRANSITION, atol=1e-6)
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}  # (column, row)
    expected = [["0.900", "0.100", "0"], ["0.050", "0.950", "<0.001"], ["0", "0", "1.000"]]
    assert texts == {(j, i): expected[i][j] for i in range(3) for j in range(3)}
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["state 0\n10.0 steps", "state 1\n19.8 steps", "state 2\nnever left"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2"]
    assert ax.get_xlabel() == "to state"


@pytest.fixture(scope="module")
def bayesian(data):
    """Sticky, so that a state that nothing entered would last, and hold observations, by its expected probabilities."""
    model = jaxem.BayesianHMM(families.Poisson(), 8, concentration=0.05, stickiness=5.0)
    return jaxem.fit(model, data, key=jax.random.key(0))


def test_of_a_bayesian_model_the_expected_probabilities_of_the_states_in_use(bayesian, data):
    used = len({int(k) for k in np.asarray(bayesian.predict(data)).ravel()} - {-1})
    assert 2 <= used < 8
    ax = plot.transitions(bayesian)
    rows = np.asarray(bayesian.params.transition.concentration)
    mean = (rows / rows.sum(1, keepdims=True))[:used, :used]
    np.testing.assert_allclose(ax.images[0].get_array(), mean, rtol=1e-5)
    diagonal = [text.get_text() for text in ax.texts][:: used + 1]
    assert diagonal == [f"{value:.3f}" for value in np.diag(mean)]
    assert ax.get_xlabel() == f"to state ({8 - used} that nothing entered left out)"
    colour = bands(plot.states(bayesian, data))[0][2]
    assert any(np.allclose(colour, known) for known in plot.colours(used))


def test_wrapped_models_are_drawn_as_the_model_inside(fit, data):
    chunks = dataclasses.replace(fit, model=jaxem.chunked(fit.model, 1))
    labelled = dataclasses.replace(fit, model=jaxem.partly_labelled(fit.model))
    for wrapped in (chunks, labelled):
        assert bands(plot.states(wrapped, data)) == bands(plot.states(fit, data))
        assert len(plot.transitions(wrapped).texts) == 9


def test_pictures_can_be_saved(fit, data, tmp_path):
    plot.states(fit, data).set_title("a title above the strip")
    path = tmp_path / "states.png"
    plt.savefig(path)
    assert plt.imread(path).std() > 0.01


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sequence": 2}, ValueError, r"sequence: expected one of 0\.\.1; found 2"),
        ({"sequence": "first"}, TypeError, "sequence: "),
        ({"columns": [2]}, ValueError, r"columns: expected some of 0\.\.1; found \(2,\)"),
        ({"columns": []}, ValueError, "columns: expected some"),
        ({"columns": 0}, TypeError, "columns: expected integers; found 0"),
        ({"time": np.arange(13)}, ValueError, r"time: expected 24 numbers or dates .* found shape \(13,\)"),
        ({"time": ["monday"] * 24}, ValueError, "time: expected 24 numbers or dates"),
        ({"time": np.zeros(24)}, ValueError, "time: expected finite numbers or dates that increase"),
    ],
)
def test_bad_options_are_named(fit, data, options, error, message):
    with pytest.raises(error, match=message):
        plot.states(fit, data, **options)


def test_unsuitable_fits_and_data_are_named(fit, data):
    batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), fit)
    other = dataclasses.replace(fit, model=jaxem.KMeans(3))
    for draw in (plot.transitions, lambda given: plot.states(given, data)):
        with pytest.raises(TypeError, match="fit: expected a jaxem Fit; found a HMMParams"):
            draw(fit.params)
        with pytest.raises(ValueError, match="fit: expected one fit; found a batch"):
            draw(batch)
        with pytest.raises(TypeError, match="fit: expected a fit of a hidden Markov model; found one of KMeans"):
            draw(other)
    with pytest.raises(ValueError, match=r"data.*3"):
        plot.states(fit, np.ones((10, 3)))
    with pytest.raises(ValueError, match="data"):
        plot.states(fit, np.full((10, 2), np.nan))
