"""Online EM: equal to EM where it must be, to a NumPy recursion elsewhere, near the optimum, resumable, and safe."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import compiled
from test_testing import COUNTS, ZeroInflatedPoisson

import jaxem
from jaxem.algorithms import OnlineEM, _stepwise, online_em
from jaxem.engine.table import advance

KEY = jax.random.key(0)
NEVER = jaxem.Stop(atol=-np.inf)


def bound(model, x, key=KEY):
    """A model bound to x, and starting params."""
    weights = jnp.ones(x.shape[0], x.dtype)
    model = compiled(model.bind, jnp.asarray(x), weights)
    return model, model.init(key, jnp.asarray(x), weights)


def leaves_close(a, b, rtol=1e-9, atol=1e-9):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), rtol, atol)


@pytest.fixture(scope="module")
def mixture():
    """2000 rows of three overlapping clusters."""
    rng = np.random.default_rng(3)
    centres = np.array([[0.0, 0.0], [4.0, 1.0], [1.0, 4.0]])
    return centres[rng.integers(0, 3, 2000)] + rng.normal(size=(2000, 2))


@pytest.mark.parametrize(
    "model", [jaxem.GMM(3), jaxem.KMeans(3), ZeroInflatedPoisson()], ids=lambda m: type(m).__name__
)
def test_one_batch_is_em(blobs, model):
    x = COUNTS if isinstance(model, ZeroInflatedPoisson) else blobs
    online = OnlineEM(x.shape[0], 1.0, key=KEY)
    fits = [jaxem.fit(model, x, key=KEY, algorithm=a, max_steps=200) for a in (online, jaxem.EM())]
    assert fits[0].status == fits[1].status == jaxem.Status.CONVERGED
    for a, b in zip(jax.tree.leaves(fits[0]), jax.tree.leaves(fits[1]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "model", [*(jaxem.GMM(3, c) for c in ("full", "tied", "spherical")), jaxem.KMeans(3), ZeroInflatedPoisson()]
)
def test_streaming_all_rows_at_rate_one_is_em(blobs, model):
    x = COUNTS if isinstance(model, ZeroInflatedPoisson) else blobs
    model, params = bound(model, x)
    algorithm, weights = OnlineEM(10, 1.0), np.random.default_rng(0).uniform(0.5, 2, x.shape[0])
    em = jax.jit(lambda p: model.m_step(p, model.e_step(p, jnp.asarray(x), jnp.asarray(weights)).stats))
    state = algorithm.begin(model, params, x, weights, num_rows=weights.sum())
    for _ in range(3):
        state, params = algorithm.update(model, state, x, weights), em(params)
    leaves_close(state.params, params)


def numpy_stepwise(x, order, mixing, mean, variance, rate, average):
    """Stepwise EM of a one-dimensional mixture of two normals by raw moments; averages of the moments by t^3."""

    def moments(rows):
        density = mixing / np.sqrt(variance) * np.exp(-0.5 * (rows[:, None] - mean) ** 2 / variance)
        resp = density / density.sum(1, keepdims=True)
        return x.size / rows.size * np.stack([resp.sum(0), rows @ resp, rows**2 @ resp])

    def maximise(s):
        return s[0] / s[0].sum(), s[1] / s[0], s[2] / s[0] - (s[1] / s[0]) ** 2

    stats = mixed = moments(x)
    for t, rows in enumerate(order):
        stats = (1 - rate[t]) * stats + rate[t] * moments(x[rows])
        share = 4 / (t + 4)
        mixed = (1 - share) * mixed + share * stats
        mixing, mean, variance = maximise(stats)
    return maximise(mixed) if average else (mixing, mean, variance)


@pytest.mark.parametrize(("covariance", "average"), [("full", True), ("diag", False)])
def test_against_a_numpy_recursion_on_raw_moments(faithful, covariance, average):
    x = faithful[:, 0]
    order = np.random.default_rng(0).permutation(x.size)[:240].reshape(12, 20)
    rate = np.array([0.9, 0.5, 0.3, 0.2])
    start = np.array([0.4, 0.6]), np.array([2.0, 4.0]), np.array([0.3, 0.5])
    expected = numpy_stepwise(x, order, *start, np.r_[rate, np.full(8, rate[-1])], average)
    model = jaxem.GMM(2, covariance)  # unbound: no penalty
    scale = start[2].reshape(2, 1, 1) if covariance == "full" else start[2].reshape(2, 1)
    params = model.make_params(start[0], mean=start[1][:, None], covariance=scale)
    algorithm = OnlineEM(20, rate, average=average)
    state = algorithm.begin(model, params, x[:, None], num_rows=x.size)
    for rows in order:
        state = algorithm.update(model, state, x[rows, None])
    found = algorithm.estimate(model, state)
    parts = found.mixing, found.components.mean[:, 0], found.components.covariance[:, 0, 0]
    leaves_close(parts, expected, 1e-10)


def test_kmeans_is_minibatch_kmeans_bound_or_not(blobs):
    bound_model, params = bound(jaxem.KMeans(3), blobs)
    centroids = np.asarray(params.centroids)
    count, total = np.zeros(3), np.zeros((3, 2))
    states = []
    models = (bound_model, jaxem.KMeans(3))
    algorithm = OnlineEM(40, 0.3)
    states = [algorithm.begin(model, params, blobs, num_rows=120) for model in models]
    for t, rows in enumerate([np.arange(120), *np.random.default_rng(1).permutation(120).reshape(3, 40)]):
        label = ((blobs[rows, None] - centroids) ** 2).sum(-1).argmin(1)
        hot = np.eye(3)[label] * 120 / rows.size
        rate = 0.3 if t else 1.0
        count = (1 - rate) * count + rate * hot.sum(0)
        total = (1 - rate) * total + rate * hot.T @ blobs[rows]
        if t:
            centroids = total / count[:, None]
            states = [algorithm.update(m, s, blobs[rows]) for m, s in zip(models, states, strict=True)]
    for state in states:
        np.testing.assert_allclose(state.params.centroids, centroids, rtol=1e-12)


def test_a_pass_is_a_stream_of_the_same_batches(blobs):
    rows, size, sizes = 118, 35, [30, 30, 29, 29]
    x = blobs[:rows]
    weights = np.random.default_rng(0).uniform(0, 2, rows)
    model = compiled(jaxem.GMM(3).bind, jnp.asarray(x), jnp.asarray(weights))
    params = model.init(KEY, jnp.asarray(x), jnp.asarray(weights))
    algorithm = OnlineEM(size, average=True, key=jax.random.key(5))
    options = {"params": params, "weights": weights, "stop": NEVER}
    once = jaxem.fit(jaxem.GMM(3), x, key=KEY, algorithm=algorithm, max_steps=1, **options)
    shuffle = jax.random.fold_in(algorithm.key, 0)
    order = np.asarray(_stepwise.shuffled(shuffle, jnp.arange(rows, dtype=jnp.int32), rows))
    state = algorithm.begin(model, params, x, weights, num_rows=weights.sum())
    batches = np.split(order, np.cumsum(sizes)[:-1])
    assert [b.size for b in batches] == sizes
    for batch in batches:
        state = algorithm.update(model, state, x[batch], weights[batch])
    leaves_close(once.params, algorithm.estimate(model, state))  # in the order of the params that were given


def test_shuffles_are_permutations_and_uniform():
    for num in (1, 2, 3, 118, 1000, 1024, 1025):
        order = np.asarray(_stepwise.shuffled(KEY, jnp.arange(num, dtype=jnp.int32), num))
        np.testing.assert_array_equal(np.sort(order), np.arange(num))
    one = jax.jit(jax.vmap(lambda key: _stepwise.shuffled(key, jnp.arange(12, dtype=jnp.int32), 12)))
    orders = np.asarray(one(jax.random.split(KEY, 12_000)))
    counts = np.stack([np.bincount(orders[:, place], minlength=12) for place in range(12)])
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)  # each row at each place
    follows = np.bincount((orders[:, 1] - orders[:, 0]) % 12, minlength=12)
    assert follows[0] == 0
    assert np.abs(follows[1:] - 12_000 / 11).max() < 5 * np.sqrt(12_000 / 11)


def test_batches_are_scaled_by_weight(blobs):
    """Statistics of parts, each scaled to the whole, average to those of the whole by the parts' weights."""
    model, params = bound(jaxem.GMM(3), blobs)
    weights = np.random.default_rng(0).uniform(0, 1, 120) ** 4
    algorithm = OnlineEM(30)
    whole = algorithm.begin(model, params, blobs, weights, num_rows=120).stats
    parts = [algorithm.begin(model, params, blobs[i::4], weights[i::4], num_rows=120).stats for i in range(4)]
    share = [weights[i::4].sum() / weights.sum() for i in range(4)]
    leaves_close(jax.tree.map(lambda *a: sum(s * b for s, b in zip(share, a, strict=True)), *parts), whole)
    for stats in (whole, *parts):
        assert float(jnp.sum(stats.count)) == pytest.approx(120)


def test_padded_and_weighted_batches_are_the_batch(blobs):
    """Rows of weight 0 add nothing, and a row of weight 2 is two rows: begin and update, scale included."""
    for model, params in (bound(jaxem.GMM(3, mixing_pseudo_counts=5.0), blobs), bound(jaxem.KMeans(3), blobs)):
        algorithm, ends = OnlineEM(30, 0.4, average=True), []
        rows, twice = blobs[:30], np.r_[blobs[:30], blobs[:10]]
        padded, weights = np.r_[twice, np.full((9, 2), 1e3)], np.r_[np.ones(40), np.zeros(9)]
        for batch, w in ((twice, None), (padded, weights), (rows, np.where(np.arange(30) < 10, 2.0, 1.0))):
            state = algorithm.begin(model, params, batch, w, num_rows=500)
            state = algorithm.update(model, state, batch[::-1].copy(), None if w is None else w[::-1].copy())
            ends.append(algorithm.update(model, state, batch, w))
        for end in ends[1:]:
            leaves_close(end, ends[0], 1e-9)


def test_a_pass_skips_batches_without_weight(blobs):
    """Most rows absent: some batches of a pass are empty, and must not take from the statistics."""
    weights = np.zeros(120)
    weights[::40] = 1.0
    model, params = bound(jaxem.KMeans(3), blobs)
    options = {"params": params, "weights": weights, "stop": NEVER, "max_steps": 2}
    found = jaxem.fit(jaxem.KMeans(3), blobs, key=KEY, algorithm=OnlineEM(2, 0.5, key=KEY), **options)
    seen = np.asarray(found.params.centroids)
    assert np.all(np.isfinite(seen))
    assert float(found.elbo.total) == pytest.approx(0, abs=1e-3 * np.var(blobs))
    model = found.model
    state = OnlineEM(2, 0.5).begin(model, found.params, blobs, num_rows=3)
    after = jax.jit(lambda s, x, w: OnlineEM(2, 0.5).update(model, s, x, w))(state, blobs[:2], np.zeros(2))
    leaves_close(after.stats, state.stats)
    assert (int(after.step), int(after.skipped)) == (1, 0)


def test_a_stream_begins_from_fewer_rows_than_clusters(blobs):
    model, params = bound(jaxem.KMeans(3), blobs)
    state = OnlineEM(3).begin(model, params, blobs[:2], num_rows=100)
    assert np.all(np.isfinite(OnlineEM(3).update(model, state, blobs[:3]).params.centroids))
    mixture, start = bound(jaxem.GMM(3), blobs)
    assert float(OnlineEM(3).begin(mixture, start, blobs[:1], num_rows=100).stats.count.sum()) == pytest.approx(100)


def test_weight_two_is_a_row_twice_and_zero_none(blobs):
    model, params = bound(jaxem.GMM(3), blobs)
    weights = np.ones(120)
    weights[:30], weights[30:40] = 2, 0
    rows = np.r_[0:120, 0:30]
    rows = rows[(rows < 30) | (rows >= 40)]
    algorithm, ends = OnlineEM(10, 0.5), []
    for x, w in ((blobs, weights), (blobs[rows], None)):
        state = algorithm.begin(model, params, x, w, num_rows=140)
        ends.append(algorithm.update(model, state, x, w))
    leaves_close(ends[0].params, ends[1].params)


@pytest.fixture(scope="module")
def shortfalls(mixture):
    """One program for all keys and rates: a start, its optimum and how far below it each of several runs ends."""
    model, params = bound(jaxem.GMM(3), mixture, jax.random.key(2))
    options = {"key": KEY, "params": params, "stop": NEVER}
    best = jaxem.fit(model, mixture, **options, max_steps=400)
    low = jaxem.fit(jaxem.GMM(1), mixture, key=KEY)
    fits, sizes = [], []
    for seed, kappa in [(seed, kappa) for seed in range(4) for kappa in (0.6, 0.8)]:
        algorithm = OnlineEM(100, kappa=kappa, key=jax.random.key(seed))
        fits.append(jaxem.fit(model, mixture, **options, algorithm=algorithm, max_steps=8))
        sizes.append(advance._cache_size())
    gain = float(best.elbo.total - low.elbo.total)
    return [float(best.elbo.total - f.elbo.total) / gain for f in fits], fits, sizes


def test_ends_near_the_optimum(shortfalls):
    share, fits, _ = shortfalls
    assert max(share) < 0.02
    assert np.mean(share) < 0.01
    assert {int(f.status) for f in fits} == {jaxem.Status.MAX_STEPS}


def test_the_elbo_is_that_of_the_params(shortfalls, mixture):
    for result in shortfalls[1][:2]:
        assert float(result.elbo.data) == pytest.approx(float(result.model.log_prob(result.params, mixture).sum()))
        assert float(result.elbo.total) == float(result.trace[8])


def test_new_keys_and_rates_do_not_compile_again(shortfalls):
    assert len(set(shortfalls[2])) == 1


def test_shuffles_differ_by_key(shortfalls):
    assert len({float(f.elbo.total) for f in shortfalls[1]}) == len(shortfalls[1])


def test_constant_rate_shortfall_is_the_formula_where_nothing_is_hidden():
    """One Gaussian: A is the identity, and the bound rho N p / (4 B), over 1 - rho / 2, is an equality."""
    rows, size, rate = 500, 50, 0.1
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2)) @ np.array([[1.0, 0.3], [0.0, 2.0]])
    model, params = bound(jaxem.GMM(1), x)
    algorithm = OnlineEM(size, rate)
    state = algorithm.begin(model, params, x, num_rows=rows)
    score = jax.jit(lambda p: model.elbo_data(p, jnp.asarray(x)))
    best, values = float(score(model.m_step(params, state.stats))), []
    for t in range(800):
        state = algorithm.update(model, state, x[rng.integers(rows, size=size)])
        if t >= 100 and t % 5 == 0:
            values.append(best - float(score(state.params)))
    expected = rate * rows * model.num_parameters(params) / (4 * size * (1 - rate / 2))
    assert np.mean(values) == pytest.approx(expected, rel=0.25)


def test_a_saved_state_resumes_bit_for_bit(blobs, tmp_path):
    x = blobs.astype(np.float32)
    model, params = bound(jaxem.GMM(3), x)
    algorithm = OnlineEM(30, average=True)
    state = begun = algorithm.begin(model, params, x[:60], num_rows=120)
    batches = np.random.default_rng(0).permutation(x).reshape(4, 30, 2)
    compiled = online_em._update._cache_size()
    for t, batch in enumerate(batches):
        if t == 2:
            np.savez(tmp_path / "state.npz", *jax.tree.leaves(state))
        state = algorithm.update(model, state, batch)
    assert online_em._update._cache_size() == compiled + 1
    with np.load(tmp_path / "state.npz") as file:
        again = jax.tree.unflatten(jax.tree.structure(begun), [file[name] for name in file.files])
    for batch in batches[2:]:
        again = algorithm.update(model, again, batch)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        assert a.dtype == b.dtype
        assert a.dtype in (jnp.float32, jnp.int32)
        np.testing.assert_array_equal(a, b)
    assert int(state.step) == 4


def test_rates_from_schedules(blobs):
    model, params = bound(jaxem.KMeans(3), blobs)
    schedule = optax.exponential_decay(0.9, 2, 0.5)
    table = np.array([0.9 * 0.5 ** (t / 2) for t in range(6)])
    ends = []
    for rate in (schedule, table, lambda t: 0.9 * 0.5 ** (t / 2)):
        algorithm = OnlineEM(30, rate)
        state = algorithm.begin(model, params, blobs, num_rows=120)
        for t in range(4):
            state = algorithm.update(model, state, blobs[t::4])
        ends.append(state.params)
    leaves_close(ends[0], ends[1], 1e-6)
    leaves_close(ends[2], ends[1])
    for rate in (schedule, lambda t: 0.9 * 0.5 ** (t / 2), lambda t: 0.5 if t < 3 else 0.1):
        found = OnlineEM(30, rate, key=KEY).prepare(model, blobs, KEY, 5).rate
        np.testing.assert_allclose(found[:6], [rate(t) for t in range(6)], rtol=1e-6)
    default = OnlineEM(30, kappa=0.7)._rate(jnp.int32(3), jnp.float64)
    assert float(default) == pytest.approx(5**-0.7)


def test_a_cluster_without_rows_is_moved_by_a_fit(blobs):
    centroids = jnp.array([[0.0, 0.0], [6.0, 1.0], [1e3, 1e3]])
    params = jaxem.models.kmeans.KMeansParams(centroids, jnp.zeros((), jnp.int32))
    algorithm = OnlineEM(30, 0.1, key=KEY)
    result = jaxem.fit(jaxem.KMeans(3), blobs, key=KEY, params=params, algorithm=algorithm, max_steps=8, stop=NEVER)
    best = jaxem.fit(jaxem.KMeans(3), blobs, key=KEY, algorithm=jaxem.EM(), num_restarts=4)
    assert int(result.health.relocated) >= 1
    assert float(result.elbo.total) >= 1.02 * float(best.elbo.total)


def test_restarts_in_lanes(blobs):
    algorithm = OnlineEM(30, 0.2, key=KEY)
    options = {"key": KEY, "algorithm": algorithm, "max_steps": 3, "stop": NEVER}
    result = jaxem.fit(jaxem.KMeans(3), blobs, num_restarts=3, restart_batch=2, **options)
    assert result.restarts.counts() == {"MAX_STEPS": 3}
    assert float(result.elbo.total) == max(result.restarts.elbo.total.tolist())
    again = jaxem.fit(jaxem.KMeans(3), blobs, num_restarts=3, restart_batch=2, **options)
    np.testing.assert_array_equal(result.restarts.trace, again.restarts.trace)


def test_tiny_batches_leave_no_nan(blobs):
    model, params = bound(jaxem.GMM(3), blobs)
    algorithm = OnlineEM(1, 1.0)
    state = algorithm.begin(model, params, blobs, num_rows=120)
    for row in blobs[:8]:
        state = algorithm.update(model, state, row[None])
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_an_m_step_without_rows_is_not_taken():
    model, params = ZeroInflatedPoisson(), {"zero": jnp.asarray(1 - 1e-300), "rate": jnp.asarray(3.0)}
    algorithm = OnlineEM(5, 1.0)
    state = algorithm.begin(model, params, COUNTS, num_rows=90)
    empty = algorithm.update(model, state, np.zeros(5))  # all structural zeros: no row tells about the rate
    leaves_close(empty.params, params)
    full = algorithm.update(model, empty, np.array([0.0, 2, 4, 3, 1]))
    assert 0 < float(full.params["rate"]) < 5
    assert np.isfinite(float(full.params["zero"]))


def test_a_batch_that_overflows_is_skipped(blobs):
    x = blobs.astype(np.float32)
    model, params = bound(jaxem.GMM(3), x)
    algorithm = OnlineEM(30)
    state = algorithm.begin(model, params, x, num_rows=120)
    after = algorithm.update(model, state, np.full((30, 2), 1e30, np.float32))
    assert int(after.skipped) == 1
    after = algorithm.update(model, after, x[:30])
    assert int(after.skipped) == 1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))


def test_no_stop_before_the_rule_has_settled():
    algorithm = OnlineEM(10, rule=jaxem.Tempered(np.array([2.0, 1.5, 1.0])), key=KEY)
    algorithm = algorithm.prepare(jaxem.GMM(2), np.zeros((20, 1)), KEY, 5)
    assert [bool(algorithm.settled(jaxem.GMM(2), jnp.int32(t))) for t in range(4)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1; found 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size: expected an integer"),
        ({"batch_size": 121}, ValueError, "batch_size: expected at most the number of rows, 120; found 121"),
        ({"rate": 0.0}, ValueError, r"rate: expected numbers in \(0, 1\]; found 0"),
        ({"rate": 1.5}, ValueError, r"rate: .* found 1.5"),
        ({"rate": np.array([0.5, np.nan])}, ValueError, "rate: .* found nan"),
        ({"rate": np.ones((2, 2))}, ValueError, "rate: expected a number, an array"),
        ({"rate": lambda t: 2.0}, ValueError, "rate: .* found 2.0"),
        ({"kappa": 1.5}, ValueError, "kappa: expected a number in"),
        ({"key": 3}, TypeError, "key: expected a JAX random key"),
    ],
)
def test_bad_settings_are_named(blobs, settings, error, message):
    algorithm = OnlineEM(**{"batch_size": 10, "key": KEY, **settings})
    with pytest.raises(error, match=message):
        jaxem.fit(jaxem.GMM(3), blobs, key=KEY, algorithm=algorithm)


def test_bad_streams_are_named(blobs):
    model, params = bound(jaxem.KMeans(3), blobs)
    algorithm = OnlineEM(10)
    with pytest.raises(ValueError, match="num_rows: expected a finite number > 0; found 0"):
        algorithm.begin(model, params, blobs, num_rows=0)
    with pytest.raises(TypeError, match="algorithm: OnlineEM needs a model with an e_step; found None"):
        algorithm.begin(None, params, blobs, num_rows=120)
    bad = jaxem.models.kmeans.KMeansParams(params.centroids[:2], params.num_relocated)
    with pytest.raises(ValueError, match=r"params: expected 3 centroids; found shape \(2, 2\)"):
        algorithm.begin(model, bad, blobs, num_rows=120)
    state = algorithm.begin(model, params, blobs, num_rows=120)
    with pytest.raises(ValueError, match="batch: expected finite numbers"):
        algorithm.update(model, state, np.full((4, 2), np.nan))
    with pytest.raises(ValueError, match=r"weights: expected shape \(4,\)"):
        algorithm.update(model, state, blobs[:4], np.ones(3))
