import tracemalloc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled
from sklearn.cluster import KMeans as Peer
from sklearn.datasets import make_blobs

import jaxem
from jaxem.models.kmeans import KMeansParams
from jaxem.structures import lloyd as _lloyd
from jaxem.structures import seeding as _seeding

KEY = jax.random.key(0)
EM = jaxem.EM()  # of fits whose search is not what is looked at


def brute(centroids, x):
    distance = ((np.asarray(x, np.float64)[:, None] - np.asarray(centroids, np.float64)[None]) ** 2).sum(2)
    return distance.argmin(1), distance.min(1)


@pytest.mark.parametrize("init", ["kmeans++", "random"])
def test_iris_best_known(reference, iris, init):
    for num, best in reference["iris"]["kmeans_best_known_inertia"].items():
        result = jaxem.fit(jaxem.KMeans(int(num), init_method=init), iris, key=KEY, algorithm=EM, num_restarts=64)
        assert float(result.model.inertia(result.params, iris)) == pytest.approx(best, rel=1e-9)
        assert float(-2 * result.elbo.data) == pytest.approx(best, rel=1e-9)
        assert float(result.elbo.params) == 0


@pytest.mark.parametrize(("num", "dim"), [(3, 1), (5, 3), (5, 8), (5, 12), (100, 3), (100, 12)])
def test_kernels_agree_with_brute_force(num, dim):
    rng = np.random.default_rng(num + dim)
    c, x = rng.normal(size=(num, dim)), rng.normal(size=(400, dim))
    label, distance = brute(c, x)
    matmul = lambda c, x: _lloyd._nearest_matmul(c, x, jnp.sum(x * x, 1))
    for f in (_lloyd.nearest, matmul, _lloyd._nearest_rows):
        found, squared = jax.jit(f)(c, x)
        np.testing.assert_array_equal(found, label)
        np.testing.assert_allclose(squared, distance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num", [4, 20, 130, 1030])
def test_ties_go_to_the_lowest_index(num):
    c = np.concatenate([np.zeros((2, 10)), np.full((num - 2, 10), 3.0)])
    x = np.concatenate([np.zeros((3, 10)), np.full((3, 10), 3.0)])
    matmul = lambda c, x: _lloyd._nearest_matmul(c, x, jnp.sum(x * x, 1))
    for f in (matmul, _lloyd._nearest_rows, _lloyd.nearest):
        np.testing.assert_array_equal(jax.jit(f)(c, x)[0], [0, 0, 0, 2, 2, 2])
    model = jaxem.KMeans(2)
    halfway = KMeansParams(jnp.array([[0.0], [2.0]]))
    assert int(model.predict(halfway, [[1.0]])[0]) == 0


@pytest.mark.parametrize("dim", [2, 20])
def test_one_lloyd_iteration_equals_scikit_learn(dim):
    x = np.random.default_rng(0).normal(size=(500, dim))
    start = x[:7]
    ours = jaxem.fit(jaxem.KMeans(7), x, key=KEY, params=KMeansParams(jnp.asarray(start), jnp.int32(0)), max_steps=4)
    theirs = Peer(7, init=start, n_init=1, max_iter=4, tol=0, algorithm="lloyd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that four iterations are few is the point
        theirs.fit(x)
    np.testing.assert_allclose(ours.params.centroids, theirs.cluster_centers_, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(ours.model.predict(ours.params, x), theirs.labels_)
    assert float(ours.model.inertia(ours.params, x)) == pytest.approx(theirs.inertia_, rel=1e-9)


@pytest.mark.parametrize("dim", [3, 12])
@pytest.mark.parametrize("std", [1.0, 1e-3])
def test_float32_distortion_is_exact_for_tight_clusters(dim, std):
    rng = np.random.default_rng(1)
    x = (np.eye(dim)[rng.integers(0, 3, 600)] * 1.0 + std * rng.normal(size=(600, dim)) + 50).astype(np.float32)
    result = jaxem.fit(jaxem.KMeans(3), x, key=KEY, algorithm=EM, num_restarts=4)
    assert result.elbo.data.dtype == jnp.float32
    _, distance = brute(result.params.centroids, x)
    assert float(result.model.inertia(result.params, x)) == pytest.approx(distance.sum(), rel=1e-4)
    if std == 1e-3:
        assert distance.sum() == pytest.approx(600 * dim * std**2, rel=0.1)


def test_a_tight_lane_is_exact_and_costs_the_others_nothing():
    """Under vmap the test for cancellation stays a branch, one for all lanes, and each lane's value is its own."""
    rng = np.random.default_rng(2)
    tight = np.float32(100.0 * np.eye(12)[:3])
    x = tight[rng.integers(0, 3, 300)] + np.float32(1e-3) * np.float32(rng.normal(size=(300, 12)))
    centroids = np.stack([tight, np.float32(0.5) * tight, np.float32(0.9) * tight])

    def distortion(c):
        return _lloyd.distortion(c, x, jnp.ones(300, jnp.float32), *_lloyd.nearest(c, x))

    lanes = jax.jit(jax.vmap(distortion)).lower(centroids).compile()
    if jax.default_backend() == "cpu":
        assert "conditional(" in lanes.as_text()
    for c, found in zip(centroids, lanes(centroids), strict=True):
        assert float(found) == pytest.approx(brute(c, x)[1].sum(), rel=1e-4)
        assert float(jax.jit(distortion)(c)) == pytest.approx(float(found), rel=1e-6)
    nested = jax.jit(jax.vmap(jax.vmap(distortion)))(np.stack([centroids, centroids[::-1]]))
    np.testing.assert_allclose(nested[1, ::-1], nested[0], rtol=1e-6)
    slope = jax.jit(jax.vmap(jax.grad(distortion)))(centroids[1:])
    np.testing.assert_allclose(slope[0], jax.jit(jax.grad(distortion))(centroids[1]), rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 16), (64, 64), (128, 64), (256, 128), (5000, 128)])
def test_blocks_of_rows_keep_clear_of_powers_of_two(shape):
    """Scores of rows 4096 bytes apart, or a multiple, all lie in one place of the cache; whole vectors need 16 rows."""
    rows = _lloyd.block_rows(10_000_000, shape)
    assert rows % 16 == 0
    assert rows % 1024
    assert rows >= 2000
    assert _lloyd.block_rows(1000, shape) == 1000 or shape[0] == 5000


def test_sums_of_rows_that_all_count_once():
    """Rows of weight 1 are not multiplied by it; one other weight, in any lane, and all are."""
    rng = np.random.default_rng(3)
    x, label = jnp.asarray(rng.normal(size=(50, 12))), jnp.asarray(rng.integers(0, 4, 50), jnp.int32)
    ones = np.ones(50)
    weights = np.stack([ones, np.where(np.arange(50) == 7, 0.0, 1.0), rng.uniform(0, 2, 50)])
    look = lambda w: _lloyd.cluster_sums(x, w, label, 5, True)
    lanes = jax.jit(jax.vmap(look))(weights)
    for lane, w in enumerate(weights):
        hot = np.eye(5)[np.asarray(label)] * w[:, None]
        for found in (jax.jit(look)(w), jax.tree.map(lambda a, lane=lane: a[lane], lanes)):
            np.testing.assert_allclose(found[0], hot.sum(0), rtol=1e-12)
            np.testing.assert_allclose(found[1], hot.T @ np.asarray(x), rtol=1e-12, atol=1e-12)


def test_transform_is_exactly_zero_to_itself():
    for dim in (2, 30):
        x = (np.random.default_rng(0).normal(size=(5, dim)) * 1e3 + 1e5).astype(np.float32)
        distance = jaxem.KMeans(5).transform(KMeansParams(jnp.asarray(x)), x)
        np.testing.assert_array_equal(np.diagonal(distance), 0)
        np.testing.assert_allclose(distance, np.sqrt(((x[:, None] - x[None]) ** 2).sum(2)), rtol=1e-5)


def test_empty_clusters_move_to_the_farthest_rows():
    x = jnp.asarray(np.concatenate([np.zeros((10, 2)), np.ones((10, 2)), [[9.0, 9.0]], [[-7.0, 3.0]]]))
    far = KMeansParams(jnp.array([[0.5, 0.5], [100.0, 100.0], [200.0, 0.0]]), jnp.int32(0))
    result = jaxem.fit(jaxem.KMeans(3), x, key=KEY, params=far, max_steps=50)
    assert result.status == jaxem.Status.CONVERGED
    assert int(result.params.num_relocated) == 2
    assert any("empty clusters were moved 2 times" in note for note in result.warnings())
    assert (np.diff(result.trace[np.isfinite(result.trace)]) >= 0).all()
    assert len(np.unique(result.model.predict(result.params, x))) == 3
    unbound = jaxem.KMeans(3)
    stats = compiled(unbound.e_step, far, x).stats
    after = compiled(unbound.m_step, far, stats)
    np.testing.assert_array_equal(after.centroids[1:], far.centroids[1:])  # no reserve: stays


def test_lanes_relocate_as_alone():
    x = np.random.default_rng(0).normal(size=(60, 2))
    centroids = np.random.default_rng(1).normal(size=(6, 5, 2))
    centroids[::2, 1:] += 50  # every second start has empty clusters
    params = KMeansParams(jnp.asarray(centroids), jnp.zeros(6, jnp.int32))
    wide = jaxem.fit(jaxem.KMeans(5), x, key=KEY, params=params, num_restarts=6, restart_batch=3)
    for i in range(6):
        one = jax.tree.map(lambda a, i=i: a[i], params)
        alone = jaxem.fit(jaxem.KMeans(5), x, key=KEY, params=one)
        assert float(wide.restarts.elbo.data[i]) == pytest.approx(float(alone.elbo.data), rel=1e-9)


def test_coincident_centroids_are_found_in_memory_of_the_centroids():
    rng = np.random.default_rng(0)
    c = np.round(rng.normal(size=(4000, 12)), 1)
    model = jaxem.KMeans(4000)
    tracemalloc.start()
    assert not bool(model.coincident(KMeansParams(c)))
    assert tracemalloc.get_traced_memory()[1] < 20 * c.nbytes
    tracemalloc.stop()
    c[3333] = c[7]
    assert bool(model.coincident(KMeansParams(c)))
    assert bool(jax.jit(model.coincident)(KMeansParams(jnp.asarray(c))))


def test_fewer_distinct_rows_than_clusters():
    x = np.repeat([[0.0, 1.0], [4.0, 5.0]], 5, axis=0)
    result = jaxem.fit(jaxem.KMeans(4), x, key=KEY, algorithm=EM, num_restarts=4)
    assert float(result.elbo.data) == 0
    assert bool(result.coincident)
    assert np.isfinite(result.params.centroids).all()


def test_weights_and_offsets():
    x = np.random.default_rng(2).normal(size=(80, 3))
    counts = np.random.default_rng(3).integers(0, 3, 80)
    start = KMeansParams(jnp.asarray(x[counts > 0][:4]), jnp.int32(0))
    weighted = jaxem.fit(jaxem.KMeans(4), x, key=KEY, params=start, weights=counts)
    repeated = jaxem.fit(jaxem.KMeans(4), np.repeat(x, counts, axis=0), key=KEY, params=start)
    np.testing.assert_allclose(weighted.params.centroids, repeated.params.centroids, rtol=1e-10)
    moved = jaxem.fit(jaxem.KMeans(4), x + 1e8, key=KEY, algorithm=EM, num_restarts=4)
    still = jaxem.fit(jaxem.KMeans(4), (x + 1e8) - 1e8, key=KEY, algorithm=EM, num_restarts=4)
    assert float(moved.elbo.data) == pytest.approx(float(still.elbo.data), rel=1e-6)


@pytest.mark.parametrize("init", ["kmeans++", "random"])
def test_starts_are_the_same_in_both_precisions(init):
    """Blobs with K = 8, where every start ends elsewhere: a key must draw the same start whatever the dtype."""
    x, _ = make_blobs(100, 5, centers=3, random_state=42)
    model = jaxem.KMeans(8, init_method=init)
    for seed in range(10):
        single, double = (
            jaxem.fit(model, x.astype(t), key=jax.random.key(seed), restart_batch=1, algorithm=jaxem.EM())
            for t in ("f4", "f8")
        )
        assert float(single.elbo.total) == pytest.approx(float(double.elbo.total), rel=1e-6)


def test_mixtures_start_alike_in_both_precisions(iris):
    """The responsibilities of every kind of start, and the rows of a subsample."""
    draw = jax.jit(_seeding.partition, static_argnums=(3, 4))
    for method in _seeding.PARTITIONS:
        resp = [draw(KEY, jnp.asarray(iris, t), jnp.ones(150, t), 4, method) for t in ("float32", "float64")]
        np.testing.assert_allclose(resp[0], resp[1], atol=1e-6)
    rows = [_seeding.subsample(KEY, jnp.arange(1000), jnp.ones(1000, t), 100)[0] for t in ("float32", "float64")]
    np.testing.assert_array_equal(*rows)


def test_a_row_that_an_empty_cluster_moves_to_leaves_its_old_cluster():
    x = np.array([[0, 0], [0.5, 0], [0.5, 1], [1, 1]])
    start = KMeansParams(np.array([[0.5, 0.5], [3, 3]]), 0)
    result = jaxem.fit(jaxem.KMeans(2), x, key=KEY, params=start)
    np.testing.assert_allclose(-2 * result.trace[:3], [1.5, 11 / 18, 0.25], rtol=1e-12)
    # Twelve of 40 centroids empty, several rows leaving one cluster, weights: the objective never falls.
    rng = np.random.default_rng(0)
    x, weights = rng.standard_t(2, size=(300, 3)), rng.gamma(1.0, size=300)
    start = KMeansParams(np.r_[x[:4] * 0.01, np.full((12, 3), 1e3) + np.arange(12)[:, None]], 0)
    result = jaxem.fit(jaxem.KMeans(16), x, key=KEY, params=start, weights=weights)
    assert int(result.params.num_relocated) >= 12
    trace = np.asarray(result.trace)
    assert (np.diff(trace[np.isfinite(trace)]) >= 0).all()
    assert result.status == jaxem.Status.CONVERGED


UNITS = {"f4": [-100, -60, -45, 0, 45, 60, 100], "f8": [-498, -350, 350, 520]}


@pytest.mark.parametrize("dim", [2, 12])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_no_unit_is_too_small_or_too_large(dim, dtype):
    """Powers of two: the same labels and centroids to the bit, and J in the unit that the model names."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (60, dim)), rng.normal([8, 3] + [0] * (dim - 2), 1, (60, dim))]).astype(dtype)
    fit = lambda x: jaxem.fit(jaxem.KMeans(2), x, key=KEY, algorithm=EM, num_restarts=2)
    plain = fit(x)
    labels = plain.model.predict(plain.params, x)
    assert not plain.model.notes()
    for power in UNITS[dtype]:
        scale = np.asarray(2.0, dtype) ** power
        result = fit(x * scale)
        model, params, shown = result.model, result.params, float(result.model.units.shown)
        np.testing.assert_array_equal(params.centroids / scale, plain.params.centroids)
        best = float(plain.elbo.data) * (float(scale) * shown) ** 2
        assert float(result.elbo.data) / best == pytest.approx(1, rel=1e-6)
        assert float(model.inertia(params, x * scale)) / best == pytest.approx(-2, rel=1e-6)
        assert bool(model.notes()) == (shown != 1) == (abs(power) > (50 if dtype == "f4" else 400))
        for other in (model, jaxem.KMeans(2)):  # bound or not
            np.testing.assert_array_equal(other.predict(params, x * scale), labels)
            distances = other.transform(params, x * scale) / scale
            np.testing.assert_allclose(distances, plain.model.transform(plain.params, x), rtol=1e-6)
        if shown == 1:
            assert float(jaxem.KMeans(2).inertia(params, x * scale)) / best == pytest.approx(-2, rel=1e-6)


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e20, 1e30])
def test_any_factor_gives_the_same_labels(factor):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (60, 2)), rng.normal([8, 3], 1, (60, 2))])
    labels = []
    for data in (x, x * factor):
        result = jaxem.fit(jaxem.KMeans(5), data.astype("f4"), key=KEY, algorithm=EM, num_restarts=4)
        assert result.status == jaxem.Status.CONVERGED
        labels.append(np.asarray(result.model.predict(result.params, data.astype("f4"))))
    np.testing.assert_array_equal(*labels)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_units_do_not_matter(iris, scale):
    result = jaxem.fit(jaxem.KMeans(3), iris * scale, key=KEY, algorithm=EM, num_restarts=16)
    assert float(result.model.inertia(result.params, iris * scale)) / scale**2 == pytest.approx(78.851441426146)


def test_soft_kmeans_by_a_rule(iris):
    result = jaxem.fit(jaxem.KMeans(3), iris, key=KEY, algorithm=jaxem.EM(jaxem.Tempered(0.01)), num_restarts=4)
    assert float(result.model.inertia(result.params, iris)) == pytest.approx(78.85, abs=0.1)


def test_seeding_spreads_and_respects_weights():
    x = jnp.asarray(np.repeat(np.arange(5.0)[:, None] * 10, 20, axis=0))
    weights = jnp.ones(100).at[:20].set(0)
    for seed in range(10):
        centres = _seeding.plus_plus(jax.random.key(seed), x, weights, 4)
        assert sorted(np.asarray(centres)[:, 0]) == [10, 20, 30, 40]
        rows = _seeding.random_rows(jax.random.key(seed), x, weights, 4)
        assert (np.asarray(rows) > 0).all()


def test_a_subsample_follows_the_weights():
    weights = jnp.asarray(np.r_[np.zeros(500), np.ones(400), np.full(100, 6.0)])
    rows, w, _ = _seeding.subsample(KEY, jnp.arange(1000.0), weights, 200)
    assert float(w.sum()) == pytest.approx(1000)
    assert (np.asarray(rows) >= 500).all()
    assert np.mean(np.asarray(rows) >= 900) == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("dim", [3, 12])
def test_an_offset_changes_nothing(dim):
    """Seeds, labels and distortion of data shifted by 1e8 (float64), by differences and by products."""
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(3, dim))[rng.integers(0, 3, 300)] * 4 + rng.normal(size=(300, dim)) * 0.1, 3)
    shifted = (x + 1e8) - 1e8  # what the shift leaves of the digits
    near, far = (jaxem.fit(jaxem.KMeans(3), data, key=KEY, algorithm=EM, num_restarts=4) for data in (shifted, x + 1e8))
    assert float(far.elbo.total) == pytest.approx(float(near.elbo.total), rel=1e-6)
    assert int(far.hits) == int(near.hits)
