"""`KMeans` and `MiniBatchKMeans` beside scikit-learn's own."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
import sklearn.cluster
from sklearn.exceptions import ConvergenceWarning

from jaxem.sklearn import KMeans, MiniBatchKMeans, _blocks


@pytest.fixture(scope="module")
def X(iris):  # noqa: N802
    return iris


@pytest.fixture
def small_blocks(monkeypatch):
    """Sparse rows come 64 at a time."""
    monkeypatch.setattr(_blocks, "BLOCK", 64 * 4)


def test_lloyd_from_given_centers_is_theirs(X):
    settings = dict(n_clusters=3, init=X[[0, 75, 149]], n_init=1, tol=0)
    ours = KMeans(algorithm="lloyd", **settings).fit(X)
    theirs = sklearn.cluster.KMeans(**settings).fit(X)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-12)
    assert (ours.labels_ == theirs.labels_).all()
    assert ours.labels_.dtype == np.int32
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), atol=1e-9)
    assert ours.score(X) == -ours.inertia_


def test_the_default_searches(X):
    """K = 10: 20 seeds of 50 starts of scikit-learn's do not all reach what one start and swaps do."""
    ours = KMeans(10, random_state=0).fit(X)
    assert ours.inertia_ == pytest.approx(25.834, abs=1e-3)
    assert KMeans(10, algorithm="lloyd", random_state=0).fit(X).inertia_ > ours.inertia_ + 0.1
    assert ours.fit_.num_steps == ours.n_iter_


def test_centers_are_what_is_asked(X):
    ours = KMeans(2, random_state=0).fit(X)
    ours.cluster_centers_ = np.array(X[[0, 149]])
    assert (ours.predict(X[[0, 149]]) == [0, 1]).all()
    assert np.diag(ours.transform(X[[0, 149]])).tolist() == [0, 0]


def test_lloyd_in_units_whose_squares_overflow(X):
    settings = dict(init=X[[0, 1, 2]], n_init=1, algorithm="lloyd")
    rows, unit = np.float32(X), np.float32(2.0**120)
    plain = KMeans(3, **settings).fit(rows)
    huge = KMeans(3, **{**settings, "init": rows[:3] * unit}).fit(rows * unit)
    assert plain.n_iter_ == huge.n_iter_ > 2
    assert (plain.labels_ == huge.labels_).all()


def test_few_distinct_rows_warn(X):
    with pytest.warns(ConvergenceWarning, match=r"distinct clusters \(2\) found smaller than n_clusters \(3\)"):
        KMeans(3, random_state=0).fit(np.repeat(X[[0, 149]], 5, 0))


@pytest.mark.parametrize("container", [scipy.sparse.csr_matrix, scipy.sparse.csr_array])
def test_sparse_rows_in_blocks_are_dense_ones(X, small_blocks, container):
    rows, weights = container(X), np.random.default_rng(0).random(len(X))
    settings = dict(init=X[[0, 75, 149]], n_init=1, algorithm="lloyd", tol=0)
    sparse = KMeans(3, **settings).fit(rows, sample_weight=weights)
    dense = KMeans(3, **settings).fit(X, sample_weight=weights)
    np.testing.assert_allclose(sparse.cluster_centers_, dense.cluster_centers_, rtol=1e-10)
    assert (sparse.predict(rows) == dense.labels_).all()
    assert sparse.inertia_ == pytest.approx(dense.inertia_, rel=1e-10)
    np.testing.assert_allclose(sparse.transform(rows), dense.transform(X), atol=1e-9)
    drawn = KMeans(3, n_init=4, random_state=0).fit(rows)
    assert drawn.inertia_ == pytest.approx(78.851, abs=1e-3)


def test_no_sparse_rows_are_made_dense_whole(X, small_blocks, monkeypatch):
    made = []
    toarray = scipy.sparse.csr_matrix.toarray
    monkeypatch.setattr(
        scipy.sparse.csr_matrix, "toarray", lambda self, *args: made.append(self.shape[0]) or toarray(self, *args)
    )
    rows = scipy.sparse.csr_matrix(X)
    KMeans(3, random_state=0).fit(rows).transform(rows)
    MiniBatchKMeans(3, batch_size=32, random_state=0).fit(rows).predict(rows)
    assert made
    assert max(made) <= 96


def test_minibatches_are_means_of_what_was_seen(X):
    """With one batch of all rows a step is Lloyd's; with two, each centre is the mean of its rows of both."""
    start = X[[0, 70, 120]]  # without ties
    ours = MiniBatchKMeans(3, init=start, n_init=1, reassignment_ratio=0).partial_fit(X)
    label = sklearn.cluster.KMeans(3, init=start, n_init=1, max_iter=1).fit(X).cluster_centers_
    np.testing.assert_allclose(ours.cluster_centers_, label, rtol=1e-10)
    first = ours.predict(X[:140])
    own = ((X[:, None] - start) ** 2).sum(-1).argmin(1)
    sums = np.stack([X[own == k].sum(0) + X[:140][first == k].sum(0) for k in range(3)])
    counts = np.array([(own == k).sum() + (first == k).sum() for k in range(3)])
    ours.partial_fit(X[:140])
    np.testing.assert_allclose(ours.cluster_centers_, sums / counts[:, None], rtol=1e-10)
    np.testing.assert_allclose(ours._counts, counts)
    assert ours.n_steps_ == 2


def test_minibatches_stop_and_come_near(X):
    ours = MiniBatchKMeans(3, batch_size=30, random_state=0, n_init=3).fit(X)
    assert ours.inertia_ < 78.852 * 1.15
    assert ours.n_iter_ == -(-ours.n_steps_ * 30 // 150)
    assert ours.n_steps_ < 100 * 5
    one = MiniBatchKMeans(3, batch_size=30, random_state=0, max_iter=1, max_no_improvement=None).fit(X)
    assert one.n_steps_ == 5
    near = MiniBatchKMeans(3, batch_size=30, random_state=0, tol=10.0).fit(X)
    assert near.n_steps_ == 2


def test_a_stream_goes_on_from_a_fit_and_a_pickle(X):
    ours = MiniBatchKMeans(3, batch_size=30, random_state=0).fit(X)
    seen = ours._counts.sum()
    again = pickle.loads(pickle.dumps(ours))
    for estimator in (ours, again):
        estimator.partial_fit(X[:2])
    assert ours._counts.sum() == pytest.approx(seen + 2)
    assert np.array_equal(ours.cluster_centers_, again.cluster_centers_)


def test_small_clusters_move_to_rows_of_the_batch(X):
    far = np.array([[1e3] * 4, X[0], X[149]])
    ours = MiniBatchKMeans(3, init=far, n_init=1, reassignment_ratio=0.5, random_state=0)
    ours.partial_fit(np.concatenate([X, far[:1]]))
    assert ours.cluster_centers_.max() < 10  # the cluster of one row was the smallest


def test_memory_maps_are_read_by_the_batch(X, tmp_path):
    rows = np.memmap(tmp_path / "rows", dtype=np.float32, mode="w+", shape=X.shape)
    rows[:] = X
    ours = MiniBatchKMeans(3, batch_size=30, random_state=0).fit(rows)
    assert ours.cluster_centers_.dtype == np.float32
    assert ours.inertia_ < 78.852 * 1.15


def test_batches_of_another_dtype_are_taken(X):
    ours = MiniBatchKMeans(3, batch_size=30, random_state=0).fit(X)
    ours.partial_fit(X[:20].astype(np.float32))
    assert ours.cluster_centers_.dtype == np.float64
    single = MiniBatchKMeans(3, random_state=0).partial_fit(X.astype(np.float32)).partial_fit(X)
    assert single.cluster_centers_.dtype == np.float32


def test_a_stream_goes_on_from_centers_that_are_set(X):
    """They weigh as many rows as those they replace, as in scikit-learn."""
    ours = MiniBatchKMeans(3, init=X[[0, 70, 120]], n_init=1, reassignment_ratio=0).partial_fit(X)
    before, count = ours.cluster_centers_ + 0.25, ours._counts
    ours.cluster_centers_ = before
    own = ours.predict(X)
    ours.partial_fit(X)
    sums = np.stack([X[own == k].sum(0) for k in range(3)]) + count[:, None] * before
    np.testing.assert_allclose(ours.cluster_centers_, sums / (count + np.bincount(own))[:, None], rtol=1e-10)
    ours.cluster_centers_ = before[:2]
    with pytest.raises(ValueError, match=r"cluster_centers_: expected shape \(3, 4\); found \(2, 4\)"):
        ours.partial_fit(X)


def test_no_cluster_moves_to_an_absent_row(X):
    far = np.array([[1e3] * 4, X[0], X[149]])
    rows, weights = np.concatenate([X, far[:1], np.full((900, 4), 1e6)]), np.r_[np.ones(151), np.zeros(900)]
    ours = MiniBatchKMeans(3, init=far, n_init=1, reassignment_ratio=0.5, random_state=0)
    assert ours.partial_fit(rows, sample_weight=weights).cluster_centers_.max() < 10


def test_no_fit_is_left_of_an_earlier_one(X, small_blocks):
    ours = KMeans(3, random_state=0).fit(X)
    ours.fit(scipy.sparse.csr_matrix(X))
    assert not hasattr(ours, "fit_")
    assert not hasattr(ours, "statuses_")


def test_fits_answer_quietly_without_x64(X):
    fit = KMeans(3, random_state=0).fit(X).fit_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (fit.posterior(X).argmax(1) == fit.predict(X)).all()
