import dataclasses

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba

import jaxem
from jaxem import Status, plot


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    blobs = [rng.normal(size=(40, 3)) @ np.diag([1.0, 0.5, 2.0]), rng.normal(size=(20, 3)) + 3.0]
    return np.concatenate(blobs).astype(np.float32)


@pytest.fixture(scope="module")
def gmm(x):
    return jaxem.fit(jaxem.GMM(2), x, key=jax.random.key(0), num_restarts=4, max_steps=50)


@pytest.fixture(scope="module")
def kmeans(x):
    return jaxem.fit(jaxem.KMeans(2), x, key=jax.random.key(0), algorithm=jaxem.EM())


def with_restarts(fit, trace, status, winner):
    """The fit with another table of restarts."""
    codes = np.asarray(status, np.int32)
    restarts = dataclasses.replace(fit.restarts, trace=np.asarray(trace), status=codes)
    return dataclasses.replace(fit, restarts=restarts, winner=np.int32(winner))


def test_ellipses_are_level_sets_of_the_marginals(gmm, x):
    columns, levels = (2, 0), (1.0, 2.5)
    ax = plot.components(gmm, x, columns=columns, levels=levels)
    mean, cov = np.asarray(gmm.params.components.mean), np.asarray(gmm.params.components.covariance, np.float64)
    assert len(ax.patches) == 4
    for i, patch in enumerate(ax.patches):
        k, level = i // 2, levels[i % 2]
        marginal = cov[k][np.ix_(columns, columns)]
        half_axes = sorted([patch.width / 2, patch.height / 2])
        np.testing.assert_allclose(half_axes, level * np.sqrt(np.linalg.eigvalsh(marginal)), rtol=1e-6)
        # Every vertex of the curve, which carries the angle too, is `level` Mahalanobis distances from the mean.
        on_curve = patch.get_patch_transform().transform(np.array([[1.0, 0], [0, 1], [-1, 0], [0.6, 0.8]]))
        residual = on_curve - mean[k][list(columns)]
        distance = np.sqrt(np.einsum("nd,de,ne->n", residual, np.linalg.inv(marginal), residual))
        np.testing.assert_allclose(distance, level, rtol=1e-5)


@pytest.mark.parametrize("name", ["gmm", "kmeans"])
def test_points_take_the_colour_of_their_label_and_centres_are_marked(name, x, request):
    fit = request.getfixturevalue(name)
    ax = plot.components(fit, x)
    points, centres = ax.collections
    np.testing.assert_array_equal(points.get_offsets(), x[:, :2])
    label = np.asarray(fit.model.predict(fit.params, x))
    np.testing.assert_allclose(points.get_facecolors()[:, :3], plot.colours(2)[label])
    expected = fit.params.centroids if name == "kmeans" else fit.params.components.mean
    np.testing.assert_allclose(centres.get_offsets(), np.asarray(expected)[:, :2], rtol=1e-6)
    assert len(ax.patches) == (0 if name == "kmeans" else 4)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column 0", "column 1")


def test_axes_have_the_names_that_the_columns_had(x):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(x, columns=[f"c{d}" for d in range(x.shape[1])])
    fit = jaxem.fit(jaxem.GMM(2), table, key=jax.random.key(0))
    ax = plot.components(fit, table, columns=("c1", 0))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("c1", "c0")
    with pytest.raises(ValueError, match="columns: expected some of c0, c1, .*; found 'age'"):
        plot.responsibilities(fit, table, columns=("age", 0))


def test_draws_on_the_axes_given_and_keeps_their_names(gmm, x):
    _, given = plt.subplots()
    given.set_xlabel("length")
    assert plot.responsibilities(gmm, x, ax=given) is given
    assert given.get_xlabel() == "length"
    assert len(plt.get_fignums()) == 1


def test_responsibilities_blend_colours_and_ring_the_uncertain(x):
    model = jaxem.GMM(2, "spherical")
    points = np.array([[-3.0, 0.0], [0.0, 0.0], [3.0, 0.0]])
    fit = jaxem.fit(
        model,
        points,
        key=jax.random.key(0),
        params=model.make_params([0.5, 0.5], mean=np.array([[-3.0, 0.0], [3.0, 0.0]]), covariance=np.ones(2)),
        max_steps=0,
    )
    ax = plot.responsibilities(fit, points)
    (drawn,) = ax.collections
    where = {tuple(offset): i for i, offset in enumerate(drawn.get_offsets().tolist())}
    left, middle, right = where[-3.0, 0.0], where[0.0, 0.0], where[3.0, 0.0]
    faces, palette = drawn.get_facecolors()[:, :3], plot.colours(2)
    np.testing.assert_allclose(faces[middle], palette.mean(0), atol=1e-6)
    np.testing.assert_allclose(sorted(faces[[left, right]].tolist()), sorted(palette.tolist()), atol=1e-6)
    assert middle == 2, "the uncertain point is drawn last, on top"
    assert drawn.get_linewidths()[middle] > 0 == drawn.get_linewidths()[left]
    assert drawn.get_sizes()[middle] > drawn.get_sizes()[left]
    assert "1 points" in ax.get_legend().get_texts()[-1].get_text()


def test_one_line_per_restart_with_its_trace(gmm):
    ax = plot.traces(gmm)
    assert len(ax.lines) == 4
    for line, row in zip(ax.lines, np.asarray(gmm.restarts.trace), strict=True):
        drawn = row[np.isfinite(row)]
        np.testing.assert_allclose(line.get_ydata(), drawn)
        np.testing.assert_array_equal(line.get_xdata(), 1 + np.arange(drawn.size))
    black = [i for i, line in enumerate(ax.lines) if line.get_color() == "black"]
    assert black == [int(gmm.winner)]


def test_traces_show_status_and_never_cut_a_spike(gmm):
    nan = np.nan
    trace = [[-900.0, -11.0, -10.0], [-20.0, 500.0, nan], [-18.0, -12.0, nan], [nan, nan, nan], [-19.0, -12.0, -9.0]]
    status = [Status.CONVERGED, Status.DEGENERATE, Status.MAX_STEPS, Status.NONFINITE, Status.CONVERGED]
    ax = plot.traces(with_restarts(gmm, trace, status, winner=4))
    assert len(ax.lines) == 5
    for line, code in list(zip(ax.lines, status, strict=True))[:4]:
        colour, style, marker = plot.STYLES[code]
        assert to_rgba(line.get_color()) == to_rgba(colour)
        assert (line.get_linestyle(), line.get_marker()) == (style, marker)
    assert len({tuple(part) for part in zip(*[plot.STYLES[s] for s in (1, 5)], strict=True)}) == 3
    low, high = ax.get_ylim()
    assert high > 500
    assert -900 < low < -18, "a start far below the others does not squeeze the ends into a line"
    assert ax.lines[3].get_xdata().size == 0
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == [
        "CONVERGED (2)",
        "MAX_STEPS (1)",
        "NONFINITE (1)",
        "DEGENERATE (1)",
        "winner: restart 4, CONVERGED",
    ]


def test_every_status_that_ends_a_restart_has_a_style():
    assert set(plot.STYLES) == set(Status) - {Status.RUNNING}
    assert len(set(plot.STYLES.values())) == len(plot.STYLES)


def test_criteria_marks_the_lowest_value_and_breaks_curves_at_gaps():
    ax = plot.criteria({"full": {3: 12.0, 1: 30.0, 2: np.nan}, "tied": {1: 31.0, 2: np.float32(11.5), 3: 13.0}})
    full, tied, star = ax.lines
    np.testing.assert_array_equal(full.get_xydata(), [[1.0, 18.5], [2.0, np.nan], [3.0, 0.5]])
    assert tied.get_label() == "tied"
    assert star.get_xydata().tolist() == [[2.0, 0.0]]
    assert ax.get_ylabel() == "criterion above its lowest, 11.50"
    assert star.get_label() == "lowest: tied, K = 2"


def test_criteria_marks_spikes_with_crosses_in_view_and_apart():
    table = {"full": {1: 30.0, 2: np.inf, 5: np.inf}, "diag": {1: 31.0, 2: 11.5}, "tied": {1: 32.0, 2: -np.inf}}
    ax = plot.criteria(table)
    (crosses,) = ax.collections
    where = np.asarray(crosses.get_offsets())
    assert where[:, 0].tolist() == [2, 5, 2]
    assert where[0, 1] == where[1, 1] > where[2, 1], "a row for each curve"
    np.testing.assert_allclose(crosses.get_edgecolors()[:, :3], plot.colours(3)[[0, 0, 2]])
    low, high = ax.get_xlim()
    assert low < 1
    assert high > 5
    highest = ax.transAxes.inverted().transform(ax.transData.transform([1, 32 - 11.5]))[1]
    assert highest < where[:, 1].min(), "above all curves"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["full", "diag", "tied", "lowest: diag, K = 2", "no value: a spike, or not finite"]
    assert not plot.criteria({"full": {1: 30.0, 2: 20.0}}).collections


@pytest.mark.parametrize("num", [1, 6, 7, 40])
def test_colours_differ(num):
    assert len(np.unique(plot.colours(num).round(6), axis=0)) == num


def test_pictures_can_be_saved(gmm, x, tmp_path):
    _, axes = plt.subplots(1, 3)
    plot.components(gmm, x, ax=axes[0])
    plot.responsibilities(gmm, x, ax=axes[1])
    plot.traces(gmm, ax=axes[2])
    axes[0].figure.savefig(tmp_path / "all.png")
    assert plt.imread(tmp_path / "all.png").std() > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"columns": (0, 3)}, ValueError, r"columns: expected two different ones of 0\.\.2; found \(0, 3\)"),
        ({"columns": (1, 1)}, ValueError, "columns: expected two different"),
        ({"columns": (0, 1, 2)}, ValueError, "columns: expected two different"),
        ({"columns": (0, -1)}, ValueError, "columns: expected two different"),
        ({"columns": (0, 1.5)}, TypeError, "columns: expected two integers"),
        ({"columns": 0}, TypeError, "columns: expected two integers; found 0"),
        ({"levels": (1.0, -2.0)}, ValueError, "levels: expected positive numbers"),
    ],
)
def test_bad_options_are_named(gmm, x, options, error, message):
    with pytest.raises(error, match=message):
        plot.components(gmm, x, **options)


def test_unsuitable_fits_are_named(gmm, x):
    odd = dataclasses.replace(gmm, params={"rate": np.ones(2)})
    with pytest.raises(TypeError, match=r"fit: expected params with components\.mean .* found dict"):
        plot.components(odd, x)
    with pytest.raises(TypeError, match="fit: expected a jaxem Fit; found a GMM"):
        plot.traces(gmm.model)
    with pytest.raises(TypeError, match="fit: expected a model with a posterior; found object"):
        plot.responsibilities(dataclasses.replace(gmm, model=object()), x)
    with pytest.raises(ValueError, match=r"fit: expected one fit; found a batch of shape \(3,\)"):
        plot.traces(dataclasses.replace(gmm, status=np.ones(3, np.int32)))


def test_unsuitable_data_and_tables_are_named(gmm, x):
    with pytest.raises(ValueError, match=r"data: expected rows of shape \(3,\), .*; found \(2,\)"):
        plot.components(gmm, x[:, :2])
    with pytest.raises(ValueError, match=r"data: expected rows of shape \(3,\), .*; found \(\)"):
        plot.responsibilities(gmm, x[:, 0])
    for table in ({}, {"full": {}}, {"full": {1: np.nan}}):
        with pytest.raises(ValueError, match="table: expected at least one finite value"):
            plot.criteria(table)
    for table in ([1.0], {"full": [1.0]}, {"full": {1: "low"}}):
        with pytest.raises(TypeError, match="table: expected"):
            plot.criteria(table)
    assert not plt.get_fignums(), "nothing is drawn before the checks"
