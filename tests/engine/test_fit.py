"""The loop and the table of restarts: what is promised, in the terms it is promised."""

import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled

import jaxem
from jaxem import Status
from jaxem.engine import table as _table
from jaxem.engine.table import advance

KEY = jax.random.key(0)
OPTIONS = {"num_restarts": 12, "restart_batch": 4, "max_steps": 60}


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def table(iris):
    return jaxem.fit(jaxem.GMM(3), iris, key=KEY, **OPTIONS)


def test_the_result_is_consistent(iris, table):
    """The ELBO belongs to the params returned, and the trace to the steps counted."""
    again = compiled(table.model.e_step, table.params, iris).elbo_data
    assert float(again) == pytest.approx(float(table.elbo.data), rel=1e-12)
    for trace, elbo, steps in zip(
        np.asarray(table.restarts.trace),
        np.asarray(table.restarts.elbo.total),
        np.asarray(table.restarts.num_steps),
        strict=True,
    ):
        assert np.isfinite(trace[: steps + 1]).all()
        assert np.isnan(trace[steps + 1 :]).all()
        assert trace[steps] == elbo
    assert int(table.winner) == np.argmax(table.restarts.elbo.total)
    assert_same(table.trace, table.restarts.trace[table.winner])
    assert int(table.hits) == np.sum(np.abs(table.restarts.elbo.total - table.elbo.total) <= 0.01)


def test_num_steps_counts_m_steps(iris):
    by_hand = jaxem.fit(jaxem.GMM(3), iris, key=KEY, max_steps=0)
    params, model = by_hand.params, by_hand.model
    for _ in range(3):
        params = compiled(model.m_step, params, compiled(model.e_step, params, iris).stats)
    three = jaxem.fit(jaxem.GMM(3), iris, key=KEY, params=by_hand.params, max_steps=3)
    assert three.status == Status.MAX_STEPS
    assert int(three.num_steps) == 3
    np.testing.assert_allclose(three.params.components.mean, params.components.mean, rtol=1e-12)


def test_restarts_depend_on_their_own_key_alone(iris, table):
    """Bit-identical for equal width: fewer restarts, and restart i among others."""
    fewer = jaxem.fit(jaxem.GMM(3), iris, key=KEY, **{**OPTIONS, "num_restarts": 7})
    assert_same(jax.tree.map(lambda a: a[:7], table.restarts), fewer.restarts)


def test_a_nan_neighbour_changes_nothing_and_never_wins(iris, table):
    init = jax.vmap(lambda i: table.model.init(jax.random.fold_in(KEY, i), jnp.asarray(iris), jnp.ones(150)))
    starts = jax.jit(init)(np.arange(12))
    clean = jaxem.fit(jaxem.GMM(3), iris, key=KEY, params=starts, **OPTIONS)
    poisoned = jax.tree.map(lambda a: a, starts)
    scale = poisoned.components.scale.at[5].set(1e-300)  # finite params whose density overflows
    bad = jaxem.models.mixture.MixtureParams(
        poisoned.mixing, jaxem.families.GaussianParams(poisoned.components.mean, scale, "full")
    )
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, params=bad, **OPTIONS)
    assert result.restarts.status[5] == Status.NONFINITE
    assert np.isneginf(result.restarts.elbo.total[5])
    keep = np.arange(12) != 5
    assert_same(jax.tree.map(lambda a: a[keep], result.restarts), jax.tree.map(lambda a: a[keep], clean.restarts))
    assert np.isfinite(result.elbo.total)


def test_under_the_callers_jit_and_vmap(iris, table):
    inside = jax.jit(lambda x, k: jaxem.fit(jaxem.GMM(3), x, key=k, **OPTIONS))(iris, KEY)
    assert_same(inside.restarts, table.restarts)
    assert_same(inside.params, table.params)
    two = jax.vmap(lambda k: jaxem.fit(jaxem.GMM(3), jnp.asarray(iris), key=k, **OPTIONS))(
        jnp.stack([KEY, jax.random.key(9)])
    )
    assert repr(two) == "Fit(batch of shape (2,))"
    np.testing.assert_allclose(two.elbo.total[0], table.elbo.total, rtol=1e-9)


def test_widths_agree_to_rounding(iris, table):
    for width in (1, 12):
        other = jaxem.fit(jaxem.GMM(3), iris, key=KEY, **{**OPTIONS, "restart_batch": width})
        np.testing.assert_allclose(other.restarts.elbo.total, table.restarts.elbo.total, rtol=1e-6)


def test_nothing_compiles_again(iris, table):
    before = advance._cache_size()
    algorithm = lambda t: jaxem.EM(jaxem.Tempered(t))
    jaxem.fit(jaxem.GMM(3), iris, key=jax.random.key(5), **OPTIONS)
    jaxem.fit(jaxem.GMM(3, pseudo_observations=1e-5), iris, key=KEY, **OPTIONS)
    assert advance._cache_size() == before
    jaxem.fit(jaxem.GMM(3), iris, key=KEY, stop=jaxem.Stop(1e-4), algorithm=algorithm(1.0), **OPTIONS)
    once = advance._cache_size()
    jaxem.fit(jaxem.GMM(3), iris, key=KEY, stop=jaxem.Stop(1e-5, 1e-6), algorithm=algorithm(2), **OPTIONS)
    assert advance._cache_size() == once <= before + 1


def test_the_e_step_is_traced_once_for_the_loop():
    calls = []

    @jaxem.dataclass
    class Counting(jaxem.KMeans):
        def e_step(self, *args):
            calls.append(1)
            return super().e_step(*args)

    jaxem.fit(Counting(2), np.arange(12.0)[:, None], key=KEY)
    assert len(calls) <= 2  # once, and once more where lanes are traced for shapes


@jaxem.dataclass
class Scripted(jaxem.LatentModel):
    """A model whose ELBO follows a script: params count the steps."""

    script: jax.Array
    influence: float = 0.0

    def init(self, key, data, weights):
        return {"t": jnp.zeros(())}

    def e_step(self, params, data, weights=None, rule=None):
        return jaxem.EStep(params["t"], self.script[jnp.round(params["t"]).astype(jnp.int32)])

    def m_step(self, params, stats):
        return {"t": stats + 1}

    def health(self, params):
        unknown = jaxem.model.Health.unknown(jnp.float64)
        return jaxem.model.Health(unknown.influence + self.influence, unknown.min_count, unknown.relocated)


@pytest.mark.parametrize(
    ("script", "status", "steps", "elbo"),
    [
        ([-5.0, -3.0, -2.0, -2.0, 9.0], Status.CONVERGED, 3, -2.0),
        ([-5.0, -3.0, -4.0, 0.0, 9.0], Status.DECREASED, 1, -3.0),
        ([-5.0, -3.0, np.nan, 0.0, 9.0], Status.NONFINITE, 1, -3.0),
        ([-5.0, np.inf, 0.0, 0.0, 9.0], Status.NONFINITE, 0, -5.0),
        ([-5.0, -4.0, -3.0, -2.0, -1.0], Status.MAX_STEPS, 4, -1.0),
    ],
)
def test_each_code_keeps_the_params_its_elbo_belongs_to(script, status, steps, elbo):
    result = jaxem.fit(Scripted(jnp.array(script)), np.zeros(3), key=KEY, max_steps=4)
    assert result.status == status
    assert int(result.num_steps) == steps
    assert float(result.elbo.total) == elbo
    assert float(result.params["t"]) == steps
    assert status.message in repr(result) or status == Status.CONVERGED


def test_a_degenerate_winner_is_only_a_last_resort_and_says_so():
    result = jaxem.fit(Scripted(jnp.array([-5.0, -3.0, -3.0]), 0.5), np.zeros(3), key=KEY, max_steps=2)
    assert result.status == Status.DEGENERATE
    assert "DEGENERATE" in repr(result)


def test_all_failed_raises_on_the_host_and_is_defined_under_jit():
    model = Scripted(jnp.full(3, jnp.nan))
    with pytest.raises(jaxem.FitError, match="NONFINITE.*: the starts are finite, but their log-joint") as caught:
        jaxem.fit(model, np.zeros(3), key=KEY, max_steps=2, num_restarts=3)
    assert caught.value.fit.restarts.counts() == {"NONFINITE": 3}
    inside = jax.jit(lambda x: jaxem.fit(model, x, key=KEY, max_steps=2, num_restarts=3))(np.zeros(3))
    assert inside.status == Status.NONFINITE
    assert np.isneginf(inside.elbo.total)


def test_overflowing_data_are_named_by_the_fit_error():
    with pytest.raises(jaxem.FitError, match=r"data reach 3e\+200, whose squares overflow float64: rescale"):
        jaxem.fit(Scripted(jnp.full(3, jnp.nan)), np.array([[1e200], [-1e200], [3e200]]), key=KEY, max_steps=2)


def test_a_fit_error_says_what_is_known_and_can_be_pickled():
    @jaxem.dataclass
    class Lost(Scripted):
        def init(self, key, data, weights):
            return {"t": jnp.where(jax.random.uniform(key) < 2, jnp.nan, 0)}

        def notes(self, params=None):
            return ["the model's own note"]

    told = r"init gives NaN or infinities in params\['t'\] of 2 starts; the model's own"
    with pytest.raises(jaxem.FitError, match=told):
        jaxem.fit(Lost(jnp.full(3, jnp.nan)), np.zeros(3), key=KEY, max_steps=2, num_restarts=2)
    with pytest.raises(jaxem.FitError) as caught:
        jaxem.fit(Scripted(jnp.full(3, jnp.nan)), np.zeros(3), key=KEY, max_steps=2)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.fit.restarts.counts() == {"NONFINITE": 1}


UP, DOWN, FLAT = [-5.0, -4.0, -3.0], [-2.0, -1.0, -3.0], [-9.0, -9.0, -9.0]


def test_honest_unfinished_restarts_win_over_failed_ones_with_a_higher_objective():
    """Grades: CONVERGED, MAX_STEPS, DECREASED and NONFINITE, DEGENERATE."""
    script = jnp.array([*UP, *DOWN, *FLAT])

    def fit(*starts):
        options = {"params": {"t": jnp.array(starts)}, "num_restarts": len(starts), "max_steps": 2}
        result = jaxem.fit(Scripted(script), np.zeros(3), key=KEY, **options)
        return Status(int(result.status)).name, float(result.elbo.total)

    assert fit(0.0, 3.0) == ("MAX_STEPS", -3.0)
    assert fit(3.0, 3.0) == ("DECREASED", -1.0)
    assert fit(0.0, 3.0, 6.0) == ("CONVERGED", -9.0)


def test_a_warning_names_the_end_the_reason_and_the_remedy_at_the_callers_line():
    @jaxem.dataclass
    class Explained(Scripted):
        def notes(self, params=None):
            return [] if params is None else [f"rows after {float(params['t']):g} steps are one value; leave them out"]

    up, data = jnp.array([-5.0, -4.0, -3.0, -2.0]), np.zeros(3)
    with pytest.warns(jaxem.FitWarning, match="fit ended as MAX_STEPS: .* raise max_steps") as seen:
        jaxem.fit(Scripted(up), data, key=KEY, max_steps=2, num_restarts=3)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert "\n" not in str(seen[0].message)
    with pytest.warns(jaxem.FitWarning, match="fit ended as DECREASED: .* check that m_step maximises") as seen:
        jaxem.fit(Scripted(-up), data, key=KEY, max_steps=2)
    assert seen[0].filename == __file__
    with pytest.warns(jaxem.FitWarning, match="fit ended as NONFINITE: .*; try more restarts"):
        jaxem.fit(Scripted(jnp.array([-5.0, -4.0, jnp.nan])), data, key=KEY, max_steps=2)
    with pytest.warns(jaxem.FitWarning, match="DEGENERATE: .* no upper end.*; rows after 2 steps are one value; leave"):
        fit = jaxem.fit(Explained(up, 0.5), data, key=KEY, max_steps=2)
    assert fit.warnings() == [fit.verdict()]


def test_no_warning_where_the_end_is_no_news():
    up, data = jnp.array([-5.0, -4.0, -3.0, -2.0]), np.zeros(3)
    fit = lambda script=up, **options: jaxem.fit(Scripted(script), data, key=KEY, **{"max_steps": 2, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("error", jaxem.FitWarning)
        assert fit(jnp.zeros(4)).status == Status.CONVERGED
        assert fit(max_steps=0).warnings() == []
        never = jaxem.Stop(atol=-np.inf)
        for stop in (never, jaxem.StopAny((never, never)), jaxem.StopAll((jaxem.Stop(), never))):
            assert fit(stop=stop).status == Status.MAX_STEPS
        assert fit(algorithm=jaxem.EM(jaxem.Sampled(KEY))).status == Status.MAX_STEPS
        jax.jit(lambda x: jaxem.fit(Scripted(up), x, key=KEY, max_steps=2))(data)
        interrupted = jaxem.fit(Scripted(up), data, key=KEY, max_steps=2, time_limit=0)
        assert interrupted.status == Status.INTERRUPTED


def test_one_optimum_is_told_by_weight_and_rounding(blobs):
    """The same fit with weights of 1 and 1e6: as many restarts reach its optimum, float64 and float32."""
    for dtype in (np.float64, np.float32):
        hits = []
        for factor in (1, 1e6):
            options = {"weights": np.full(120, factor), "num_restarts": 8, "max_steps": 500}
            fit = jaxem.fit(jaxem.GMM(3), blobs.astype(dtype), key=KEY, **options)
            hits.append(int(fit.hits))
            assert float(fit.total_weight) == pytest.approx(120 * factor)
            assert int(fit.num_rows) == 120
        assert hits[1] >= hits[0] > 1


def test_weights_that_sum_to_one_are_told_for_what_they_are(blobs):
    weights = np.r_[np.full(119, 1 / 119), 0]
    options = {"key": KEY, "num_restarts": 8, "max_steps": 500}
    fit = jaxem.fit(jaxem.GMM(3), blobs, weights=weights, **options)
    assert int(fit.num_rows) == 119
    assert any(note.startswith("the weights sum to 1 over 119 rows: they are counts") for note in fit.warnings())
    assert "smallest component" not in repr(fit)
    few = jaxem.fit(jaxem.GMM(3), blobs, weights=np.r_[np.ones(7), np.zeros(113)], **options)
    assert any("the smallest component has" in note for note in few.warnings())


def test_converged_wins_over_a_higher_unfinished_restart():
    starts = {"t": jnp.array([0.0, 4.0])}
    script = jnp.array([-5.0, -5.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    result = jaxem.fit(Scripted(script), np.zeros(3), key=KEY, params=starts, num_restarts=2, max_steps=2)
    assert result.restarts.counts() == {"CONVERGED": 1, "MAX_STEPS": 1}
    assert int(result.winner) == 0
    assert any("1 restarts stopped at max_steps with a higher objective" in note for note in result.warnings())


def test_screening_keeps_the_best_and_names_the_rest(iris, table):
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, screen=jaxem.Screen(4, 3), **OPTIONS)
    counts = result.restarts.counts()
    assert counts.pop("SCREENED") == 9
    assert sum(counts.values()) == 3
    after = np.asarray(table.restarts.trace)[:, 4]
    kept = np.flatnonzero(np.asarray(result.restarts.status) != Status.SCREENED)
    assert after[kept].min() >= np.delete(after, kept).max()
    assert (np.asarray(result.restarts.num_steps)[np.asarray(result.restarts.status) == Status.SCREENED] == 4).all()
    assert_same(
        jax.tree.map(lambda a: a[kept], result.restarts.elbo), jax.tree.map(lambda a: a[kept], table.restarts.elbo)
    )


def test_float32_stays_float32(iris):
    result = jaxem.fit(jaxem.GMM(3), iris.astype(np.float32), key=KEY, **OPTIONS)
    for leaf in jax.tree.leaves((result.params, result.elbo, result.trace, result.restarts.elbo)):
        assert leaf.dtype == jnp.float32
    wide = jaxem.fit(jaxem.GMM(3), iris.astype(np.float32).astype(np.float64), key=KEY, **OPTIONS)
    assert float(result.elbo.data) == pytest.approx(float(wide.elbo.data), abs=0.01)


def test_stop_is_per_unit_of_weight_and_needs_two_values():
    def say(stop, before, after, weight):
        zero = jnp.array(0.0)
        known = {"total_weight": jnp.array(weight), "rounding": zero, "weights": zero, "index": jnp.int32(3)}
        values = {"previous": jnp.array(before), "current": jnp.array(after), "old_params": zero, "params": zero}
        return bool(stop(jaxem.Step(model=None, data=zero, **known, **values)))

    stop = jaxem.Stop(atol=0.1)
    assert not say(stop, -jnp.inf, 1.0, 1.0)
    assert not say(stop, 0.0, 1.0, 9.0)
    assert say(stop, 0.0, 1.0, 11.0)
    assert not say(stop, 0.0, jnp.nan, 11.0)
    assert say(jaxem.Stop(0.0, 1e-3), 1000.0, 1000.5, 1.0)


def test_stop_does_not_depend_on_the_units(iris):
    steps = [
        int(jaxem.fit(jaxem.GMM(3), iris * scale, key=KEY, max_steps=60).num_steps)
        for scale in (2.0**-10, 1.0, 2.0**10)
    ]
    assert len(set(steps)) == 1


def test_the_repr_reads_like_a_report(table):
    text = repr(table)
    for part in ("Fit of", "elbo", "nats", "CONVERGED after", "12: 12 CONVERGED", "reached this optimum", "float64"):
        assert part in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 10**9}, "max_steps: expected a trace, .* of at most 512 MiB; found 1000000000, .* 7629 MiB"),
        (
            {"num_restarts": 10**6},
            "num_restarts: expected a trace, .* found 1000000, which makes it 1533 MiB; lower it",
        ),
        ({"max_steps": 2**31}, "max_steps: expected a trace"),
        ({"num_restarts": 2**40, "max_steps": 0}, "num_restarts: expected a trace"),
    ],
)
def test_absurd_sizes_are_answered_at_once(iris, monkeypatch, options, message):
    monkeypatch.setattr(_table, "restart_keys", None)  # nothing may be compiled or allocated
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.GMM(3), iris, key=KEY, **options)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: jaxem.fit(jaxem.GMM(3), x, key=KEY, **options))(iris)


def test_states_that_cannot_fit_are_refused_before_anything_is_drawn(iris, monkeypatch):
    assert 2**20 < _table._memory() < np.inf
    monkeypatch.setattr(_table, "_memory", lambda: 1e6)
    with pytest.raises(ValueError, match=r"num_restarts: expected restarts .* 0\.0 GiB of memory; found 5001, which"):
        jaxem.fit(jaxem.KMeans(7), iris, key=KEY, num_restarts=5001, max_steps=1)


def test_counts_beyond_int32_mean_all():
    options = {"key": KEY, "num_restarts": 3, "max_steps": 5, "algorithm": jaxem.EM()}
    x = np.arange(12.0)[:, None] ** 2
    plain = jaxem.fit(jaxem.KMeans(3), x, **options)
    screened = jaxem.fit(jaxem.KMeans(3), x, **options, screen=jaxem.Screen(2**31, 2**40), restart_batch=2**40)
    assert_same(screened.restarts, plain.restarts)


@pytest.mark.parametrize("jitted", [False, True])
def test_components_keep_the_order_of_given_params(jitted):
    """The values of `params=` name the components; after random starts the largest comes first."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (20, 2)), rng.normal(9, 1, (80, 2))])
    model = jaxem.GMM(2)
    start = model.make_params([0.2, 0.8], mean=[[1.0, 1.0], [8.0, 8.0]], covariance=[np.eye(2)] * 2)
    go = lambda x, **options: jaxem.fit(model, x, key=KEY, params=start, **options)
    go = jax.jit(go, static_argnames="max_steps") if jitted else go
    np.testing.assert_array_equal(go(x, max_steps=0).params.mixing, [0.2, 0.8])
    warm = go(x, max_steps=50)
    np.testing.assert_allclose(warm.params.mixing, [0.2, 0.8], atol=1e-9)
    np.testing.assert_allclose(warm.params.components.mean[0], x[:20].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(warm.model.predict(warm.params, x), np.repeat([0, 1], [20, 80]))
    again = jaxem.fit(model, x, key=KEY, params=warm.params)  # a warm start
    np.testing.assert_array_equal(again.model.predict(again.params, x), np.repeat([0, 1], [20, 80]))
    cold = jaxem.fit(model, x, key=KEY, num_restarts=2)
    np.testing.assert_allclose(cold.params.mixing, [0.8, 0.2], atol=1e-9)


def test_settings_and_rows_are_checked_once():
    """With given params too: then these are checked besides, and nothing a second time."""
    asked = []

    @jaxem.dataclass
    class Counting(Scripted):
        def check(self, data, params=None):
            asked.append("settings" if params is None else "params")

    jaxem.fit(Counting(jnp.array([-2.0, -1.0])), np.zeros(3), key=KEY, params={"t": jnp.zeros(())}, max_steps=1)
    assert asked == ["settings", "params"]
    asked.clear()
    jaxem.fit(Counting(jnp.array([-2.0, -1.0])), np.zeros(3), key=KEY, max_steps=1)
    assert asked == ["settings"]


def test_a_model_may_hold_something_called_model():
    @jaxem.dataclass
    class Holding(Scripted):
        model: str = jaxem.static(default="a name")

    fit = jaxem.fit(Holding(jnp.array([-2.0, -1.0])), np.zeros(3), key=KEY, max_steps=1)
    assert float(fit.elbo.total) == -1.0


def test_a_discrete_model_with_an_e_step_of_its_own_is_a_tree_at_its_params():
    @jaxem.dataclass
    class Plain(jaxem.DiscreteLatent):
        def init(self, key, data, weights):
            return {"t": jnp.zeros(2)}

        def log_joint(self, params, data):
            return params["t"][None] - data[:, None] ** 2

        def statistics(self, params, data, resp):
            return resp.sum(0)

        def m_step(self, params, stats):
            return {"t": jnp.log(stats / stats.sum())}

        def e_step(self, params, data, weights=None, rule=None):
            return super().e_step(params, data, weights, rule)

    here = Plain().at({"t": jnp.zeros(2)})
    assert [leaf.shape for leaf in jax.tree.leaves(here)] == [(2,)]
    found = here.e_step(jnp.arange(3.0), jnp.ones(3), jaxem.Exact())
    np.testing.assert_allclose(found.stats, [1.5, 1.5])


def test_given_proportions_of_a_users_model_sum_to_one():
    @jaxem.dataclass
    class Shares(Scripted):
        def constraints(self):
            return {"t": jaxem.constraints.Simplex()}

        def init(self, key, data, weights):
            return {"t": jnp.ones(1)}

    with pytest.raises(ValueError, match=r"params\['t'\]: expected proportions that sum to 1; found array\(\[0.5\]\)"):
        jaxem.fit(Shares(jnp.zeros(2)), np.zeros(3), key=KEY, params={"t": jnp.full(1, 0.5)}, max_steps=1)


def test_starts_do_not_depend_on_how_many_are_drawn_at_once(iris, monkeypatch):
    """One by one from the host, by stages that models share, or all in one program: the same bits."""
    labels = np.where(np.arange(150) % 5 == 0, np.arange(150) // 50, -1)
    for model, x in (
        (jaxem.GMM(3), iris),
        (jaxem.GMM(3, "diag", num_active=2, init_size=100), iris),
        (jaxem.KMeans(4, init_size=100), iris),
        (jaxem.partly_labelled(jaxem.GMM(3)), (iris, labels)),
        (jaxem.HMM(jaxem.families.Gaussian("diag"), 3, init_size=40), iris.reshape(3, 50, 4)),  # of windows
    ):
        fit = lambda model=model, x=x: jaxem.fit(model, x, key=KEY, num_restarts=3, max_steps=0).restarts
        few = fit()
        with monkeypatch.context() as patched:
            patched.setattr(_table, "FEW", 0)
            assert_same(fit(), few)


def test_models_share_the_programs_of_their_partitions(iris):
    from jaxem.structures import seeding

    jaxem.fit(jaxem.GMM(3), iris, key=KEY, max_steps=0)
    before = seeding._plus_plus_cells.compiled._cache_size()
    jaxem.fit(jaxem.GMM(3, "diag", pseudo_observations=1.0), iris, key=KEY, max_steps=0, num_restarts=2)
    jaxem.fit(jaxem.BayesianGMM(3, init_method="kmeans"), iris, key=KEY, max_steps=0)
    assert seeding._plus_plus_cells.compiled._cache_size() == before


def test_fits_that_differ_in_max_steps_share_their_programs(iris):
    fit = lambda steps: jaxem.fit(jaxem.GMM(3), iris, key=KEY, max_steps=steps, num_restarts=2)
    short, size = fit(5), advance._cache_size()
    long = fit(40)
    assert advance._cache_size() == size
    assert short.restarts.trace.shape == (2, 6)
    assert long.trace.shape == (41,)
    assert_same(long.restarts.trace[:, :6], short.restarts.trace)
    assert short.restarts.counts() == {"MAX_STEPS": 2}
