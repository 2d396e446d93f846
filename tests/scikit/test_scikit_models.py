"""`MixtureModel` and `LatentClass`, and estimators of all kinds in scikit-learn's company."""

import subprocess
import sys

import jax
import joblib
import numpy as np
import pandas
import polars
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import jaxem
from jaxem.sklearn import GaussianMixture, KMeans, LatentClass, MiniBatchKMeans, MixtureModel, _blocks


@pytest.fixture(scope="module")
def counts():
    rng = np.random.default_rng(0)
    return rng.poisson(np.repeat([[2.0, 9.0], [8.0, 3.0]], 100, 0))


@pytest.mark.parametrize(
    "family", ["poisson", "exponential", "gamma", "gaussian", "student_t", jaxem.families.Binomial(30)]
)
def test_a_model_is_the_library_s(counts, family):
    rows = counts + 0.5 if family in ("gamma", "exponential") else counts
    ours = MixtureModel(family, 2, n_init=4, random_state=0, max_iter=2000, tol=1e-6).fit(rows)
    with jax.enable_x64(True):
        density = np.asarray(ours.fit_.log_prob(rows.astype(float)))
        criterion = float(jaxem.bic(ours.fit_, rows.astype(float)))
    np.testing.assert_allclose(ours.score_samples(rows), density)
    assert ours.bic(rows) == pytest.approx(criterion)
    assert ours.score(rows) == pytest.approx(ours.lower_bound_, abs=1e-5)
    assert ours.parameters_
    assert all(isinstance(value, np.ndarray) for value in ours.parameters_.values())
    assert ours.predict_proba(rows).shape == (200, 2)
    assert ours.sample(5)[0].shape == (5, 2)
    assert clone(ours).get_params()["family"] is not None


def test_data_outside_a_family_are_refused(counts):
    with pytest.raises(ValueError, match="expected counts"):
        MixtureModel("poisson", 2).fit(counts - 20)


@pytest.mark.parametrize("frame", [np.array, pandas.DataFrame, polars.DataFrame])
def test_latent_classes_of_words(frame):
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 120)
    words = {
        "a": np.where(kind, "yes", "no").tolist(),
        "b": np.where(rng.random(120) < 0.9, np.where(kind, "red", "blue"), "green").tolist(),
        "c": rng.integers(0, 3, 120).astype(str).tolist(),
    }
    rows = np.stack([np.array(column) for column in words.values()], 1) if frame is np.array else frame(words)
    ours = LatentClass(2, n_init=4, random_state=0).fit(rows)
    assert [found.tolist() for found in ours.categories_] == [["no", "yes"], ["blue", "green", "red"], ["0", "1", "2"]]
    assert [part.shape for part in ours.probabilities_] == [(2, 2), (2, 3), (2, 3)]
    np.testing.assert_allclose(sum(part.sum() for part in ours.probabilities_), 6)
    agree = (ours.predict(rows) == kind).mean()
    assert agree in (0, 1)
    drawn, component = ours.sample(50)
    assert set(drawn[:, 0]) == {"no", "yes"}
    assert component.shape == (50,)
    if frame is not np.array:
        assert ours.feature_names_in_.tolist() == ["a", "b", "c"]
        return
    with pytest.raises(ValueError, match="unknown categories .*'maybe'.* in column 0"):
        ours.predict([["maybe", "red", "1"]])


def test_pipelines_searches_and_files(iris, tmp_path):
    """A grid over K in threads, which share programs; the best of it answers alike from a file in another process."""
    pipe = make_pipeline(StandardScaler(), GaussianMixture(n_init=2, random_state=0, max_iter=500))
    grid = {"gaussianmixture__n_components": [2, 3], "gaussianmixture__covariance_type": ["diag"]}
    with joblib.parallel_config("threading"):
        search = GridSearchCV(pipe, grid, n_jobs=4, cv=3, error_score="raise").fit(iris[::2])
    serial = GridSearchCV(pipe, grid, cv=3).fit(iris[::2])
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], serial.cv_results_["mean_test_score"])
    joblib.dump(search, tmp_path / "search")
    np.save(tmp_path / "rows.npy", iris)
    code = (
        "import joblib, numpy as np; search = joblib.load('search'); "
        "np.save('found.npy', search.best_estimator_.score_samples(np.load('rows.npy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), search.best_estimator_.score_samples(iris))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_in_and_out(iris, library):
    names = ["a", "b", "c", "d"]
    frame = pandas.DataFrame(iris, columns=names) if library == "pandas" else polars.DataFrame(iris, schema=names)
    pipe = make_pipeline(StandardScaler(), KMeans(2, random_state=0)).set_output(transform=library).fit(frame)
    assert list(pipe.transform(frame).columns) == ["kmeans0", "kmeans1"]
    assert pipe[-1].feature_names_in_.tolist() == names
    fit = KMeans(2, random_state=0).fit(frame).fit_
    assert fit.feature_names == tuple(names)
    assert fit.to_frame().columns.tolist() == [f"centroid[{name}]" for name in names]
    with pytest.raises(ValueError, match="feature names"):
        pipe.transform(frame[["b", "a", "c", "d"]])


def test_random_states_move_on(iris):
    state = np.random.RandomState(0)
    drawn = [KMeans(5, random_state=state, algorithm="lloyd").fit(iris).inertia_ for _ in range(3)]
    assert len(set(drawn)) > 1
    assert KMeans(5, random_state=0, algorithm="lloyd").fit(iris).inertia_ == drawn[0]


class Told:
    """A callback of scikit-learn's that keeps what it hears, and asks for the end after so many parts."""

    def __init__(self, most=1000):
        self.heard, self.most = [], most

    def setup(self, estimator, context):
        self.heard.append("setup")

    def teardown(self, estimator, context):
        self.heard.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        self.heard.append(context.task_name)

    def on_fit_task_end(self, estimator, context):
        return self.heard.count("part") >= self.most


@pytest.mark.parametrize("kind", ["GaussianMixture", "MiniBatchKMeans", "KMeans in blocks"])
def test_callbacks_of_scikit_learn(iris, kind, monkeypatch):
    callback = pytest.importorskip("sklearn.callback")
    told = Told()
    assert isinstance(told, callback.FitCallback)
    if kind == "GaussianMixture":
        GaussianMixture(2, random_state=0).set_callbacks(told).fit(iris)
    elif kind == "MiniBatchKMeans":
        MiniBatchKMeans(2, random_state=0).set_callbacks(told).fit(iris)
    else:
        monkeypatch.setattr(_blocks, "BLOCK", 64 * 4)
        KMeans(2, random_state=0).set_callbacks(told).fit(scipy.sparse.csr_matrix(iris))
    assert told.heard[:2] == ["setup", "fit"]
    assert told.heard[-1] == "teardown"
    assert told.heard.count("part") == 100


def test_a_callback_may_end_a_fit(iris):
    pytest.importorskip("sklearn.callback")
    ours = MiniBatchKMeans(2, batch_size=30, max_iter=20, max_no_improvement=None, random_state=0)
    assert ours.set_callbacks(Told(7)).fit(iris).n_steps_ == 7


def test_what_fails_is_named_by_its_model(iris):
    with pytest.raises(ValueError, match=r"^No start has a finite objective: .* overflow float32: rescale them$"):
        MixtureModel("exponential", 2, random_state=0).fit(np.float32(iris) * np.float32(1e37))


def test_verbose_says_how_starts_ended(iris, capsys):
    GaussianMixture(2, n_init=2, random_state=0, verbose=1).fit(iris)
    said = capsys.readouterr().out
    assert "Start 1: Initialization complete" in said
    assert "Converged" in said


def test_few_programs(iris):
    """Fits, and questions, of many lengths share programs."""
    from jax._src import monitoring

    compiled = []
    ours = GaussianMixture(2, random_state=0, covariance_type="spherical", max_iter=500)
    ours.fit(iris[:100]).predict_proba(iris[:100])

    def listen(name, seconds, **kwargs):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    monitoring.register_event_duration_secs_listener(listen)
    try:
        for num in (81, 99, 128):
            ours.fit(iris[:num]).predict_proba(iris[:num])
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def test_a_column_of_one_level_costs_nothing():
    rows = np.repeat([["yes", "red"], ["no", "blue"], ["no", "red"]], 10, 0)
    ours = LatentClass(2, random_state=0, max_iter=500).fit(rows)
    more = np.c_[rows, np.full(30, "same")]
    again = LatentClass(2, random_state=0, max_iter=500).fit(more)
    assert again.aic(more) - 2 * 5 == pytest.approx(-2 * again.score_samples(more).sum())
    assert ours.aic(rows) - 2 * 5 == pytest.approx(-2 * ours.score_samples(rows).sum())
