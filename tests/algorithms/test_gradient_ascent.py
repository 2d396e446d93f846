"""Gradient ascent: EM's optimum by gradients, whatever batches, weights, NaN and neighbours do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem import GradientAscent, Status, constraints
from jaxem.engine import drive as _drive

KEY = jax.random.key(0)
NEVER = jaxem.Stop(-np.inf)
WEIGHTS = np.random.default_rng(5).uniform(0.5, 2.0, 120)


@jaxem.dataclass
class Location(jaxem.ELBOModel):
    """x ~ N(mean, scale^2) for each column, with noise in the objective if `noise` is not 0."""

    noise: float = 0.0
    factor: float = 1.0

    def init(self, key, data, weights):
        return {
            "mean": jax.random.normal(key, data.shape[1:], data.dtype),
            "scale": jnp.ones(data.shape[1:], data.dtype),
            "pulls": jnp.zeros((), data.dtype),
            "count": jnp.zeros((), jnp.int32),
        }

    def elbo_data(self, params, data, weights=None, key=None):
        z = (data - params["mean"][None]) / params["scale"][None]
        shift = jnp.asarray(self.noise, z.dtype) * jax.random.normal(key, (), z.dtype)
        values = -jnp.sum(0.5 * (z + shift) ** 2 + jnp.log(params["scale"])[None], 1)
        return jnp.sum(jnp.where(weights > 0, weights * values, 0))

    def training_elbo(self, params, data, weights, key, step):
        return jnp.asarray(self.factor, data.dtype) * self.elbo_data(params, data, weights, key)

    def adapt(self, params, value):
        return {**params, "pulls": 0.5 * params["pulls"] + 0.5 * value, "count": params["count"] + 1}

    def constraints(self):
        fixed = constraints.Fixed()
        return {"mean": constraints.Real(), "scale": constraints.Positive(), "pulls": fixed, "count": fixed}


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def location(x, algorithm=None, model=None, key=KEY, **options):
    algorithm = GradientAscent(batch_size=32, learning_rate=0.05) if algorithm is None else algorithm
    options = {"max_steps": 8, "stop": NEVER} | options
    return jaxem.fit(Location() if model is None else model, x, key=key, algorithm=algorithm, **options)


def test_a_mixture_reaches_the_optimum_of_em(blobs):
    model = jaxem.GMM(3, "diag")
    options = {"key": KEY, "weights": WEIGHTS, "num_restarts": 2}
    optimum = jaxem.fit(model, blobs, stop=jaxem.Stop(1e-12), **options)
    algorithm = GradientAscent(optax.lbfgs(), num_passes=10)
    found = jaxem.fit(model, blobs, algorithm=algorithm, stop=jaxem.Stop(1e-10), restart_batch=2, **options)
    assert found.restarts.counts() == {"CONVERGED": 2}
    assert float(found.elbo.total) == pytest.approx(float(optimum.elbo.total), abs=1e-6)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(optimum.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_minibatches_with_a_falling_rate_reach_it_too(blobs):
    model = jaxem.GMM(3, "diag")
    optimum = jaxem.fit(model, blobs, key=KEY, weights=WEIGHTS)
    algorithm = GradientAscent(batch_size=40, num_passes=5, learning_rate=optax.cosine_decay_schedule(0.1, 600))
    found = jaxem.fit(model, blobs, key=KEY, weights=WEIGHTS, algorithm=algorithm, max_steps=40, stop=NEVER)
    assert float(found.elbo.total) == pytest.approx(float(optimum.elbo.total), abs=1e-2)


def test_a_users_model_needs_no_algorithm_and_no_statistics(blobs):
    found = jaxem.fit(Location(), blobs, key=KEY, max_steps=3, stop=NEVER)
    assert int(found.params["count"]) == 3
    assert found.restarts.counts() == {"MAX_STEPS": 1}
    algorithm = GradientAscent(learning_rate=0.1, num_passes=20)
    found = jaxem.fit(Location(), blobs, key=KEY, algorithm=algorithm, weights=WEIGHTS, stop=jaxem.Stop(1e-12))
    mean = np.average(blobs, 0, WEIGHTS)
    assert int(found.status) == Status.CONVERGED
    np.testing.assert_allclose(found.params["mean"], mean, atol=1e-4)
    np.testing.assert_allclose(found.params["scale"] ** 2, np.average((blobs - mean) ** 2, 0, WEIGHTS), rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_belongs_to_the_params_and_dtypes_stay(blobs, dtype):
    model = Location(noise=0.1)
    found = location(blobs.astype(dtype), model=model, num_restarts=2)
    floats = {leaf.dtype for leaf in jax.tree.leaves(found.params) if leaf.dtype != np.int32}
    assert floats == {np.dtype(dtype)}
    trace = np.asarray(found.trace)
    assert np.isfinite(trace).all()
    assert trace[-1] == found.elbo.total
    again = location(blobs.astype(dtype), model=model, params=found.params, max_steps=0)  # the same fixed noise
    assert float(again.elbo.total) == pytest.approx(float(found.elbo.total), rel=1e-6)


def test_one_update_is_the_weighted_mean_gradient_of_a_shuffled_batch(blobs):
    start = {"mean": jnp.zeros(2), "scale": jnp.ones(2), "pulls": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}
    # At one pass of plain SGD with a tiny rate all gradients are those of the start: their sum is the full gradient
    # times the number of batches, if the N / B scaling is unbiased and each row is seen once.
    rate, total = 1e-9, WEIGHTS.sum()
    whole = (WEIGHTS[:, None] * blobs).sum(0) / total
    for size, batches in ((120, 1), (50, 3), (24, 5), (1, 120)):
        algorithm = GradientAscent(optax.sgd(rate), batch_size=size)
        found = location(blobs, algorithm, params=start, weights=WEIGHTS, max_steps=1)
        np.testing.assert_allclose(found.params["mean"] / (rate * batches), whole, rtol=1e-4)
        assert int(found.params["count"]) == batches


def test_weights_are_repeated_rows_and_scale_nothing(blobs):
    x = blobs[:40]
    twice = np.concatenate([x, x[:10]])
    double = np.where(np.arange(40) < 10, 2.0, 1.0)
    algorithm = GradientAscent(learning_rate=0.1)
    a, b = location(twice, algorithm), location(x, algorithm, weights=double)
    c = location(x, algorithm, weights=1000 * double)
    # Restarts differ in nothing but the weights: the same start.
    for found in (b, c):
        np.testing.assert_allclose(found.params["mean"], a.params["mean"], rtol=1e-9)
        np.testing.assert_allclose(found.params["scale"], a.params["scale"], rtol=1e-9)
    x = np.concatenate([x, np.full((1, 2), 1e6)])
    d = location(x, algorithm, weights=np.append(double, 0.0))
    np.testing.assert_allclose(d.params["mean"], a.params["mean"], rtol=1e-9)


def test_learning_rates_vmapped_are_those_one_at_a_time(blobs):
    rates = jnp.array([0.0, 0.01, 0.1])
    one = lambda rate: location(blobs, GradientAscent(batch_size=32, learning_rate=rate))
    together = jax.jit(jax.vmap(one))(rates)
    for i, rate in enumerate(rates):
        alone = one(rate)
        np.testing.assert_allclose(together.trace[i], alone.trace, rtol=1e-10)
        np.testing.assert_allclose(together.params["mean"][i], alone.params["mean"], rtol=1e-10)
    assert together.trace[0, 0] == together.trace[0, -1]


def test_a_new_rate_or_key_or_patience_compiles_nothing(blobs):
    traces = []

    @jaxem.dataclass
    class Counting(Location):
        def elbo_data(self, params, data, weights=None, key=None):
            traces.append(1)
            return super().elbo_data(params, data, weights, key)

    def go(rate, key, patience):
        algorithm = GradientAscent(batch_size=32, learning_rate=rate, held_out=blobs[:7], patience=patience)
        return location(blobs, algorithm, Counting(), key)

    first = go(None, KEY, 5)
    before = len(traces)
    second = go(0.3, jax.random.key(3), 6)
    jaxem.fit(
        Counting(),
        blobs,
        key=KEY,
        algorithm=GradientAscent(batch_size=32, learning_rate=0.2, held_out=blobs[:7], patience=3),
        max_steps=8,
        stop=NEVER,
    )
    assert len(traces) == before
    assert first.elbo.total != second.elbo.total


@pytest.mark.parametrize("rate", [1e3, 1e200, 1.7e308])
def test_far_too_high_a_rate_ends_with_a_status_and_finite_params(blobs, rate):
    found = location(blobs, GradientAscent(batch_size=32, learning_rate=rate), num_restarts=2, max_steps=20)
    assert np.isfinite(found.elbo.total)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))
    assert found.restarts.counts() == {"NONFINITE": 2}
    trace = np.asarray(found.trace)
    assert np.isfinite(trace[: int(found.num_steps) + 1]).all()
    assert np.isnan(trace[int(found.num_steps) + 1 :]).all()
    assert trace[int(found.num_steps)] == found.elbo.total


@jaxem.dataclass
class Trap(Location):
    """A gradient that is NaN in batches that hold the row 99; the score is fine."""

    def training_elbo(self, params, data, weights, key, step):
        bad = jnp.any((data[:, 0] == 99) & (weights > 0))
        return super().training_elbo(params, data, weights, key, step) * jnp.where(bad, jnp.nan, 1)


def test_steps_that_are_not_finite_are_skipped_and_counted(blobs):
    x = np.concatenate([blobs, [[99.0, 0.0]]])
    weights = np.append(np.ones(120), 1e-3)
    found = location(x, model=Trap(), weights=weights, num_restarts=2)
    np.testing.assert_array_equal(found.restarts.skipped, [8, 8])  # one batch of four in each of eight passes
    assert found.restarts.counts() == {"MAX_STEPS": 2}
    assert int(found.params["count"]) == 24
    assert "8 updates were skipped: their gradients were not finite" in found.warnings()
    stuck = location(x, GradientAscent(learning_rate=0.05), Trap(), weights=weights)
    assert (int(stuck.status), int(stuck.num_steps), int(stuck.restarts.skipped[0])) == (Status.NONFINITE, 0, 1)
    assert np.isfinite(stuck.trace[0])
    assert stuck.trace[0] == stuck.elbo.total


def test_restarts_know_nothing_of_each_other(blobs):
    model = Location(noise=1.0)
    few = location(blobs, model=model, num_restarts=3, restart_batch=2)
    many = location(blobs, model=model, num_restarts=5, restart_batch=2)
    np.testing.assert_array_equal(few.restarts.trace, many.restarts.trace[:3])
    assert len(np.unique(many.restarts.elbo.total)) == 5
    start = jax.tree.map(lambda a: np.stack([a, a]), Location().init(KEY, jnp.asarray(blobs), None))
    pair = location(blobs, model=model, num_restarts=2, params=start)
    assert pair.restarts.trace[0, 0] == pair.restarts.trace[1, 0]  # scores share their noise
    assert pair.restarts.trace[0, 1] != pair.restarts.trace[1, 1]  # updates do not


@pytest.mark.parametrize("segment", [1e-9, 0.2])
def test_segments_change_no_bit(blobs, monkeypatch, segment):
    monkeypatch.setattr(_drive, "SEGMENT", segment)
    algorithm = GradientAscent(batch_size=32, learning_rate=0.05)
    model = Location(noise=1.0)
    watched = location(blobs, algorithm, model, num_restarts=3, callback=lambda seen: None)
    same(watched, location(blobs, algorithm, model, num_restarts=3))


def test_early_stopping_keeps_the_best(blobs):
    x, held_out = blobs[:100], blobs[100:] + 1.5
    # Starts beyond the held-out mean and moves towards the other: the held-out score rises, then falls.
    start = {
        "mean": jnp.full(2, 9.0),
        "scale": 7 * jnp.ones(2),
        "pulls": jnp.zeros(()),
        "count": jnp.zeros((), jnp.int32),
    }
    options = {"params": start, "max_steps": 60}
    rate = {"learning_rate": 0.1, "batch_size": 25}
    found = location(x, GradientAscent(held_out=held_out, patience=4, **rate), **options)
    plain = location(x, GradientAscent(**rate), **options)
    best, last = int(found.num_steps), int(np.isfinite(found.trace).sum()) - 1
    assert int(found.status) == Status.CONVERGED
    assert 5 < best == last - 4
    np.testing.assert_array_equal(found.trace[: last + 1], plain.trace[: last + 1])
    assert found.elbo.total == found.trace[best] != found.trace[last]
    score = lambda params: float(Location().elbo_data(params, held_out, jnp.ones(20), KEY))
    assert score(found.params) > score(plain.params)
    shorter = location(x, GradientAscent(**rate), **options | {"max_steps": best})
    same(found.params, shorter.params)
    patient = location(x, GradientAscent(held_out=held_out, **rate), **options)
    assert (int(patient.status), int(patient.num_steps)) == (Status.MAX_STEPS, best)
    weighted = GradientAscent(held_out=held_out, held_out_weights=np.full(20, 3.0), patience=4, **rate)
    assert int(location(x, weighted, **options).num_steps) == best


def test_passes_samples_and_schedules(blobs):
    rates = np.linspace(0.1, 0.01, 16)
    slow = location(blobs, GradientAscent(batch_size=60, learning_rate=rates))
    fast = location(blobs, GradientAscent(batch_size=60, learning_rate=rates, num_passes=4), max_steps=2)
    np.testing.assert_allclose(fast.trace[:3], slow.trace[::4], rtol=1e-12)
    called = location(blobs, GradientAscent(batch_size=60, learning_rate=lambda t: 0.1 - 0.006 * t))
    np.testing.assert_allclose(called.trace, slow.trace, rtol=1e-6)
    # The mean of many draws has less noise: nearer to the noiseless path.
    exact = location(blobs, GradientAscent(learning_rate=0.05))
    gap = lambda num: abs(
        location(blobs, GradientAscent(num_samples=num, learning_rate=0.05), Location(noise=1.0)).params["mean"]
        - exact.params["mean"]
    ).max()
    assert gap(200) < gap(1) / 3


def test_a_schedule_that_starts_at_zero_has_not_converged(blobs):
    rate = optax.linear_schedule(0.0, 0.1, 5)
    found = jaxem.fit(Location(), blobs, key=KEY, algorithm=GradientAscent(learning_rate=rate), max_steps=6)
    assert (int(found.status), int(found.num_steps)) == (Status.MAX_STEPS, 6)


def test_the_key_of_the_algorithm_decides_where_given(blobs):
    go = lambda own, key: (
        location(
            blobs,
            GradientAscent(batch_size=32, key=own, learning_rate=0.05),
            Location(noise=1.0),
            key,
            params=Location().init(KEY, jnp.asarray(blobs), None),
        ).trace
    )
    own = jax.random.key(7)
    same(go(own, KEY), go(own, jax.random.key(1)))
    assert go(None, KEY)[1] != go(None, jax.random.key(1))[1]
    same(go(own, KEY), go(jax.random.key_data(own), KEY))


def test_what_is_climbed_may_differ_from_the_score(blobs):
    sgd = GradientAscent(optax.sgd(0.1), batch_size=60)
    half, whole = location(blobs, sgd, Location(factor=0.5)), location(blobs, sgd)
    assert half.trace[0] == whole.trace[0]
    assert half.trace[-1] < whole.trace[-1]
    assert float(half.params["pulls"]) == pytest.approx(float(half.elbo.data) / 240, rel=0.2)


def test_a_chain_with_clipping_and_momentum(blobs):
    chain = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5, momentum=0.9))
    found = location(blobs, GradientAscent(chain, batch_size=60), max_steps=60, num_restarts=2)
    np.testing.assert_allclose(found.params["mean"], blobs.mean(0), atol=0.3)


EMPTY = np.zeros((0, 2))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 121}, ValueError, "batch_size: expected at most the number of rows, 120; found 121"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1; found 0"),
        ({"num_samples": 1.5}, TypeError, "num_samples: expected an integer >= 1; found 1.5"),
        ({"num_passes": 0}, ValueError, "num_passes: expected an integer >= 1; found 0"),
        ({"optimizer": 3}, TypeError, "optimizer: expected an optax GradientTransformation; found 3"),
        (
            {"optimizer": optax.add_noise(0.1, 0.5, 0)},
            TypeError,
            "optimizer: expected a state of plain arrays; found a",
        ),
        ({"learning_rate": -1.0}, ValueError, "learning_rate: expected finite numbers >= 0; found -1.0"),
        ({"learning_rate": lambda t: np.nan}, ValueError, "learning_rate: expected finite numbers >= 0; found nan"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate: expected a number, an array over updates or a call"),
        ({"held_out": EMPTY}, ValueError, r"held_out: expected at least one row; found shape \(0, 2\)"),
        ({"held_out": np.zeros((3, 4))}, ValueError, r"held_out: expected the data's shape \('n', 2\); found \(3, 4\)"),
        ({"held_out": (EMPTY + 1, EMPTY)}, ValueError, "held_out"),
        ({"held_out": [[np.nan, 0.0]]}, ValueError, "held_out: expected finite numbers"),
        (
            {"held_out": {"x": np.zeros((3, 2))}},
            ValueError,
            "held_out: expected an array .*as the data are; found a dict",
        ),
        ({"held_out": np.ones((3, 2)), "held_out_weights": [1.0]}, ValueError, "held_out_weights: expected shape"),
        ({"patience": 3}, ValueError, "patience: expected held_out data as well; found none"),
        ({"held_out": np.ones((3, 2)), "patience": 0}, ValueError, "patience: expected a number >= 1 or None; found 0"),
        ({"key": 3}, TypeError, "key: expected a JAX random key"),
    ],
)
def test_settings_are_checked(blobs, settings, error, message):
    with pytest.raises(error, match=message):
        location(blobs, GradientAscent(**settings))


def test_a_model_without_constraints_is_named(blobs):
    @jaxem.dataclass
    class Bare(Location):
        def constraints(self):
            return jaxem.ELBOModel.constraints(self)

    with pytest.raises(TypeError, match=r"Bare declares no constraints\(\)"):
        location(blobs, model=Bare())


def test_other_algorithms_refuse_a_model_without_an_e_step(blobs):
    with pytest.raises(TypeError, match="EM needs a model with an e_step"):
        location(blobs, jaxem.EM())
