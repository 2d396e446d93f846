"""Random swaps: what they find, what they promise, and the pieces they are made of."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import compiled

import jaxem
from jaxem import families
from jaxem.algorithms import EM, Swap
from jaxem.algorithms.swap import swapped
from jaxem.engine.fit import SEARCH
from jaxem.models.kmeans import KMeansParams
from jaxem.stopping import Status

datasets = pytest.importorskip("sklearn.datasets")
KEY = jax.random.key(0)
SWAP = Swap(num_swaps=20)


@pytest.fixture(scope="module")
def iris():
    return datasets.load_iris().data


def test_kmeans_reaches_the_best_known_distortion_where_restarts_do_not(iris):
    best = 27.786092417
    plain = jaxem.fit(jaxem.KMeans(9), iris, key=KEY, num_restarts=64, algorithm=EM())
    assert float(plain.inertia(iris)) > best * (1 + 1e-4)
    for seed in range(3):
        fit = jaxem.fit(jaxem.KMeans(9), iris, key=jax.random.key(seed), num_restarts=16)
        assert float(fit.inertia(iris)) == pytest.approx(best, rel=1e-9)
        assert Status(int(fit.status)) == Status.CONVERGED


@pytest.fixture(scope="module")
def searched(iris):
    return jaxem.fit(jaxem.GMM(4), iris, key=KEY, num_restarts=16, algorithm=SWAP)


def test_a_mixture_finds_an_optimum_without_tiny_components(iris, searched):
    """The best honest optimum known, with 21 rows in its smallest component; restarts alone end 2 to 7 nats lower."""
    plain = jaxem.fit(jaxem.GMM(4), iris, key=KEY, num_restarts=16, algorithm=Swap(num_swaps=0))
    assert float(searched.elbo.total) == pytest.approx(-157.9664, abs=1e-3)
    assert float(searched.health.min_count) > 20
    assert float(searched.health.influence) < 1e-3
    assert float(plain.elbo.total) < -159
    # No restart is worse than without swaps, and none was lost to a spike that a swap led to.
    assert np.all(np.asarray(searched.restarts.elbo.total) >= np.asarray(plain.restarts.elbo.total) - 1e-6)
    spikes = lambda fit: np.flatnonzero(np.asarray(fit.restarts.status) == Status.DEGENERATE)
    np.testing.assert_array_equal(spikes(searched), spikes(plain))


def test_what_is_kept_never_falls_and_depends_on_the_key_alone(iris, searched):
    for trace in np.asarray(searched.restarts.trace):
        trace = trace[np.isfinite(trace)]
        assert np.diff(trace).min() >= -1e-9
    few = jaxem.fit(jaxem.GMM(4), iris, key=KEY, num_restarts=5, restart_batch=4, algorithm=SWAP)
    np.testing.assert_array_equal(few.restarts.elbo.total, searched.restarts.elbo.total[:5])
    np.testing.assert_array_equal(few.restarts.num_steps, searched.restarts.num_steps[:5])


def test_a_fit_inside_jit_is_the_same(iris):
    go = lambda x: jaxem.fit(jaxem.KMeans(5), x, key=KEY, num_restarts=3, max_steps=30)
    for a, b in zip(jax.tree.leaves(go(iris).restarts), jax.tree.leaves(jax.jit(go)(iris).restarts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_program_serves_any_number_of_swaps(iris):
    from jaxem.engine.table import advance

    go = lambda swaps, steps: jaxem.fit(
        jaxem.KMeans(5), iris, key=KEY, algorithm=Swap(num_swaps=swaps, num_steps=steps)
    )
    go(3, 5)
    before = advance._cache_size()
    more = go(8, 7)
    assert advance._cache_size() == before
    assert int(more.num_steps) >= 8


def test_no_step_scores_the_start(iris):
    options = {"key": KEY, "num_restarts": 3, "max_steps": 0}
    ends = [jaxem.fit(jaxem.KMeans(5), iris, algorithm=a, **options) for a in (EM(), SWAP)]
    assert float(ends[0].elbo.total) == float(ends[1].elbo.total)


def test_kmeans_is_searched_unless_told(iris):
    same = lambda a, b: np.testing.assert_array_equal(a.restarts.trace, b.restarts.trace)
    model, options = jaxem.KMeans(3), {"key": KEY, "num_restarts": 2, "max_steps": 100}
    plain = jaxem.fit(model, iris, algorithm=EM(), **options)
    chosen = jaxem.fit(model, iris, **options)
    same(chosen, jaxem.fit(model, iris, algorithm=Swap(num_swaps=45, num_steps=5), **options))
    assert not np.array_equal(chosen.restarts.num_steps, plain.restarts.num_steps)
    start = jax.tree.map(lambda a: jnp.stack([a, a]), plain.params)
    same(
        jaxem.fit(model, iris, params=start, **options), jaxem.fit(model, iris, params=start, algorithm=EM(), **options)
    )
    screen = jaxem.Screen(2, 1)
    same(
        jaxem.fit(model, iris, screen=screen, **options),
        jaxem.fit(model, iris, screen=screen, algorithm=EM(), **options),
    )
    wide = np.tile(iris, (1 + SEARCH // (3 * iris.size), 1))
    same(jaxem.fit(model, wide, **options), jaxem.fit(model, wide, algorithm=EM(), **options))


def test_the_state_that_is_missed_least_goes_where_the_model_explains_worst():
    rng = np.random.default_rng(1)
    centres = np.array([[0.0, 0], [20, 0], [0, 20], [20, 20]])
    x = jnp.asarray(np.repeat(centres, 50, 0) + rng.normal(0, 0.5, (200, 2)))
    weights = jnp.ones(200)
    near = np.array([[-0.4, 0], [0.4, 0], [20, 0], [0, 20]])  # the first cluster twice, the last not at all
    kmeans = compiled(jaxem.KMeans(4).bind, x, weights)
    mixture = compiled(jaxem.GMM(4, "spherical").bind, x, weights)
    gmm = mixture.make_params([0.25] * 4, mean=near, covariance=[1.0] * 4)
    for model, params, centre in (
        (kmeans, KMeansParams(jnp.asarray(near), jnp.int32(0)), lambda p: p.centroids),
        (mixture, gmm, lambda p: p.components.mean),
    ):
        move = jax.jit(lambda draws, model=model, params=params: swapped(model, params, draws, x, weights))
        for seed in range(5):
            after = np.asarray(centre(move(jax.random.uniform(jax.random.key(seed), (3,)))))
            assert np.isfinite(after).all()
            assert (np.abs(after).max(1) < 2).sum() == 1  # one of the two stays
            assert (after.min(1) > 8).sum() == 1  # the other is at a row of the last cluster, or half-way to it


def test_an_exchange_is_hartigans(iris):
    """Of each cluster the row whose move lowers the distortion most, by what the formula says, weights and all."""
    rng = np.random.default_rng(3)
    x, w = jnp.asarray(rng.normal(size=(60, 3))), jnp.asarray(rng.uniform(0.5, 3.0, 60))
    model = compiled(jaxem.KMeans(4).bind, x, w)
    fit = jaxem.fit(jaxem.KMeans(4), x, key=KEY, weights=w, algorithm=EM(), stop=jaxem.Stop(atol=0.0, rtol=1e-12))
    label, params = np.asarray(fit.predict(x)), fit.params

    def distortion(label):
        total = 0.0
        for k in range(4):
            rows, mass = np.asarray(x)[label == k], np.asarray(w)[label == k]
            if mass.size:
                total += float((mass[:, None] * (rows - np.average(rows, 0, mass)) ** 2).sum())
        return total

    new = label.copy()
    for k in range(4):
        best = (distortion(label) - 1e-12, None)
        for n in np.flatnonzero(label == k):
            for j in range(4):
                trial = label.copy()
                trial[n] = j
                best = min(best, (distortion(trial), (n, j)), key=lambda pair: pair[0])
        if best[1] is not None:
            new[best[1][0]] = best[1][1]
    assert (new != label).any()
    means = np.stack([np.average(np.asarray(x)[new == k], 0, np.asarray(w)[new == k]) for k in range(4)])
    found = jax.jit(lambda params: model.at(params).exchanged(x, w).centroids)(params)
    np.testing.assert_allclose(found, means, rtol=1e-12, atol=1e-12)


CASES = {
    "Poisson": lambda: jaxem.Mixture(families.Poisson(), 4),
    "tied": lambda: jaxem.GMM(3, "tied"),
    "num_active": lambda: jaxem.GMM(5, "diag", num_active=3),
    "Bayesian": lambda: jaxem.BayesianGMM(4),
    "empirical Bayes": lambda: jaxem.EmpiricalBayes(
        jaxem.BayesianMixture(families.Poisson(), 3), ("prior.rate",), optax.sgd(0.05), 1
    ),
    "chunked K-means": lambda: jaxem.chunked(jaxem.KMeans(4), 50),
}


@pytest.mark.parametrize("name", CASES)
def test_every_mixture_can_be_searched(name):
    rng = np.random.default_rng(2)
    x = rng.poisson(np.array([[2.0, 9], [9, 2], [20, 20], [40, 3]])[rng.integers(4, size=150)]).astype(float)
    model, options = CASES[name](), {"key": KEY, "num_restarts": 3}
    fit = jaxem.fit(model, x, algorithm=Swap(num_swaps=6, num_steps=5), **options)
    plain = jaxem.fit(model, x, algorithm=Swap(num_swaps=0, num_steps=5), **options)
    assert Status(int(fit.status)) == Status.CONVERGED
    assert np.all(np.asarray(fit.restarts.elbo.total) >= np.asarray(plain.restarts.elbo.total) - 1e-6)
    assert np.all(np.asarray(fit.restarts.num_steps) >= 6)
    if name == "num_active":
        np.testing.assert_array_equal(np.asarray(fit.params.mixing)[3:], 0)


def test_labels_stay_the_names_of_components(iris):
    truth = datasets.load_iris().target
    known = np.where(np.arange(150) % 5 == 0, truth, -1)
    fit = jaxem.fit(jaxem.partly_labelled(jaxem.GMM(3)), (iris, known), key=KEY, num_restarts=2, algorithm=SWAP)
    assert (np.asarray(fit.predict(iris)) == truth).mean() > 0.9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_that_leave_nothing_to_find(dtype):
    for x in (
        np.zeros((6, 2)),  # equal rows
        np.repeat([[0.0, 0.0], [1.0, 5.0]], 3, 0),  # more clusters than distinct rows
        np.arange(12.0).reshape(6, 2) * 1e8,  # as many clusters as rows
    ):
        fit = jaxem.fit(jaxem.KMeans(6), x.astype(dtype), key=KEY, num_restarts=2)
        assert float(fit.elbo.data) == 0
        assert np.isfinite(np.asarray(fit.params.centroids)).all()
    one = jaxem.fit(jaxem.GMM(1), np.arange(9.0)[:, None].astype(dtype), key=KEY, algorithm=SWAP)
    assert Status(int(one.status)) == Status.CONVERGED


def test_a_swap_is_chosen_among_rows_that_weigh_something():
    """More rows than are looked at, of which all that are evenly spaced are absent."""
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    x = np.repeat(centres, 3000, 0) + rng.normal(0, 0.5, (12_000, 2))
    w = np.arange(12_000) % 2.0
    model = compiled(jaxem.KMeans(4).bind, jnp.asarray(x), jnp.asarray(w))
    params = KMeansParams(jnp.asarray([[-0.4, 0.0], [0.4, 0.0], [9.0, 0.0], [0.0, 9.0]]), jnp.int32(0))
    after = np.asarray(jax.jit(swapped)(model, params, np.array([0.3, 0.3, 0.6]), x, w).centroids)
    assert (after.min(1) > 6).sum() == 1
    # Which rows are looked at and which of them is drawn are two things: any row can be the place.
    move = jax.jit(lambda draws: swapped(model, params, draws, jnp.asarray(x), jnp.ones(12_000)).centroids)
    places = [np.asarray(move(jnp.asarray([u, 0.3, 0.6]))) for u in (0.1, 0.5, 0.9)]
    assert len(np.unique(places, axis=0)) > 1


@pytest.mark.parametrize("power", [12, -40])
def test_a_unit_changes_no_swap(iris, power):
    """By a power of two, so that every number is the same but for its exponent."""
    fit, other = (jaxem.fit(jaxem.KMeans(5), iris * 2.0**p, key=KEY, num_restarts=3, max_steps=30) for p in (0, power))
    np.testing.assert_array_equal(other.restarts.num_steps, fit.restarts.num_steps)
    np.testing.assert_array_equal(np.asarray(other.restarts.trace) * 4.0**-power, fit.restarts.trace)


def test_a_chunked_model_moves_components_a_chunk_at_a_time(monkeypatch):
    seen = []
    x = jnp.asarray(np.random.default_rng(0).normal(size=(90, 2)))
    inner = compiled(jaxem.GMM(3).bind, x, jnp.ones(90))
    at = type(inner.at(inner.init(KEY, x, jnp.ones(90))))
    explain = at.explain
    monkeypatch.setattr(at, "explain", lambda self, data: (seen.append(data.shape[0]), explain(self, data))[1])
    model = jaxem.chunked(inner, 30)
    params = inner.init(KEY, x, jnp.ones(90))
    model.at(params).moved(jnp.int32(0), jnp.int32(1), x[:1], jnp.asarray(1.0), x, jnp.ones(90))
    assert max(seen) <= 31  # a chunk and the row


def test_an_objective_climbed_by_gradients_is_not_searched(iris):
    @jaxem.dataclass
    class Distances(jaxem.Enumerated):
        scales, num_states = True, 2

        def init(self, key, data, weights):
            return {"place": data[:2]}

        def log_joint_one(self, params, x, z):
            return -jnp.sum((x - params["place"][z]) ** 2)

        def constraints(self):
            return {"place": jaxem.constraints.Real()}

    fit = jaxem.fit(Distances(), iris, key=KEY, max_steps=3)
    assert int(fit.num_steps) > 0


def test_units_offsets_and_absent_rows_change_nothing(iris):
    fit = jaxem.fit(jaxem.KMeans(4), iris, key=KEY)
    far = jaxem.fit(jaxem.KMeans(4), iris + 1e6, key=KEY)
    assert float(far.inertia(iris + 1e6)) == pytest.approx(float(fit.inertia(iris)), rel=1e-6)
    weights = np.where(np.arange(150) < 5, 0.0, 1.0)
    absent = [
        jaxem.fit(jaxem.KMeans(4), np.where(weights[:, None] > 0, iris, place), key=KEY, weights=weights)
        for place in (1e3, -1e3)
    ]
    assert float(absent[0].elbo.total) == pytest.approx(float(absent[1].elbo.total), rel=1e-9)
    there = jaxem.fit(jaxem.KMeans(4), iris[5:], key=KEY)
    assert float(absent[0].elbo.total) == pytest.approx(float(there.elbo.total), rel=1e-9)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Swap(Swap()), "goes around one that climbs by an m_step"),
        (Swap(jaxem.OnlineEM(10)), "goes around one that climbs by an m_step"),
        (Swap(jaxem.GeneralizedEM()), "goes around one that climbs by an m_step"),
        (Swap(3), "expected an algorithm to swap around"),
        (Swap(num_swaps=-1), "num_swaps"),
        (Swap(num_swaps=2.5), "num_swaps"),
        (Swap(num_steps=0), "num_steps"),
        (Swap(key=3), "key"),
    ],
)
def test_settings_are_checked(iris, algorithm, message):
    with pytest.raises((TypeError, ValueError), match=message):
        jaxem.fit(jaxem.GMM(3), iris, key=KEY, algorithm=algorithm)


def test_models_without_states_of_independent_rows_are_refused(iris):
    hmm, rows = jaxem.HMM(families.Gaussian(), 2), jaxem.sequences([iris[:50], iris[50:]])
    with pytest.raises(TypeError, match="rows that are independent"):
        jaxem.fit(hmm, rows, key=KEY, algorithm=SWAP)


def test_a_fit_goes_on_from_its_checkpoint(iris, tmp_path):
    swap = dataclasses.replace(SWAP, num_swaps=4)
    go = lambda **options: jaxem.fit(
        jaxem.KMeans(5), iris, key=KEY, num_restarts=3, max_steps=30, algorithm=swap, **options
    )
    whole, path = go(), tmp_path / "fit.npz"
    assert int(go(checkpoint=path, callback=lambda progress: progress.steps > 4).restarts.num_steps.max()) < 5
    rest = go(checkpoint=path)
    np.testing.assert_array_equal(rest.restarts.trace, whole.restarts.trace)
