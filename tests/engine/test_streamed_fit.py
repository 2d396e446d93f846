"""Fits of streams: the results of the same rows in memory, one reading of a batch for all restarts, nothing lost."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import families
from jaxem.engine import checkpoint as _checkpoint
from jaxem.engine import stream as _stream
from jaxem.engine import survey as _survey
from jaxem.engine.reading import Reader, ahead

KEY = jax.random.key(0)
N, ROWS = 1003, 128
RNG = np.random.default_rng(1)
X = RNG.normal(size=(N, 3)) + 4.0 * RNG.integers(0, 3, (N, 1))
WEIGHTS = RNG.integers(0, 3, N).astype(float)
COUNTS = RNG.poisson(np.exp(RNG.integers(0, 3, (N, 1))) * np.ones(2)).astype(float)
OPTIONS = {"num_restarts": 3, "max_steps": 6, "stop": jaxem.Stop(-jnp.inf)}


def floats(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree) if np.asarray(leaf).dtype.kind == "f"]


def close(a, b, tolerance=1e-10):
    assert float(abs(a.elbo.total - b.elbo.total)) <= tolerance * abs(float(a.elbo.total))
    same = int(a.winner) == int(b.winner)  # restarts at one optimum are told apart by rounding
    for x, y in zip(floats(a.params), floats(b.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9 if same else 1e-5, atol=1e-9 if same else 1e-5)
    np.testing.assert_allclose(a.restarts.trace, b.restarts.trace, rtol=tolerance)
    assert [int(n) for n in (a.status, a.num_steps, a.hits, a.num_rows)] == [
        int(n) for n in (b.status, b.num_steps, b.hits, b.num_rows)
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, X)
    return path


@pytest.fixture(scope="module")
def gmm(path):
    return jaxem.fit(jaxem.GMM(3), jaxem.stream(path, batch_rows=ROWS), key=KEY, **OPTIONS)


@pytest.mark.parametrize(
    ("model", "data", "weights"),
    [
        (jaxem.GMM(3, init_size=200), X, WEIGHTS),  # starts look at some rows, drawn by their weights
        (jaxem.KMeans(4), X, None),
        (jaxem.BayesianMixture(families.Poisson(), 3), COUNTS, None),
    ],
    ids=["gmm", "kmeans", "bayes"],
)
def test_a_stream_gives_the_fit_of_its_rows(model, data, weights):
    whole = jaxem.fit(model, data, key=KEY, weights=weights, algorithm=jaxem.EM(), **OPTIONS)
    streamed = jaxem.fit(model, jaxem.stream(data, batch_rows=ROWS, weights=weights), key=KEY, **OPTIONS)
    close(whole, streamed)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_stream_over_devices(gmm, path, devices):
    stream = jaxem.stream(path, batch_rows=ROWS)
    close(gmm, jaxem.fit(jaxem.sharded(jaxem.GMM(3), devices), stream, key=KEY, **OPTIONS))


def test_from_given_params_and_after_screening(gmm):
    stream = jaxem.stream(X, batch_rows=ROWS)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), gmm.params)
    given = jaxem.fit(jaxem.GMM(3), stream, key=KEY, params=starts, **OPTIONS)
    assert float(given.elbo.total) >= float(gmm.elbo.total) - 1e-8
    screen = jaxem.Screen(num_steps=1, keep=1)
    screened = jaxem.fit(jaxem.GMM(3), stream, key=KEY, screen=screen, **OPTIONS)
    whole = jaxem.fit(jaxem.GMM(3), X, key=KEY, screen=screen, **OPTIONS)
    assert screened.restarts.counts() == whole.restarts.counts()
    assert screened.restarts.counts()["SCREENED"] == 2  # which of them, of starts at one optimum rounding tells
    np.testing.assert_allclose(screened.elbo.total, whole.elbo.total, rtol=1e-7)


def test_a_batch_is_read_once_for_all_restarts():
    reads = []

    def make():
        reads.append(0)
        for i in range(0, N, ROWS):
            reads[-1] += 1
            yield X[i : i + ROWS]

    counts = {}
    for num in (1, 3):
        stream = jaxem.stream(make)
        reads.clear()
        jaxem.fit(jaxem.GMM(3), stream, key=KEY, **{**OPTIONS, "num_restarts": num, "max_steps": 2})
        counts[num] = [n for n in reads if n > 1]  # the first batch alone is looked at where arguments are checked
    assert counts[1] == counts[3]
    assert counts[3] == [8] * 5  # two passes as N is not known before, and three evaluations
    known = jaxem.stream(X, batch_rows=ROWS)
    passes = []
    with pytest.MonkeyPatch.context() as patch:
        host = Reader.host
        patch.setattr(Reader, "host", lambda self, *args, **kw: passes.append(1) or host(self, *args, **kw))
        jaxem.fit(jaxem.GMM(3), known, key=KEY, **{**OPTIONS, "max_steps": 2})
    assert len(passes) == 4  # one for the moments, the rows of starts and those kept, and three evaluations


def test_questions_to_the_rows_of_a_stream(gmm, path, tmp_path):
    stream = jaxem.stream(path, batch_rows=ROWS)
    np.testing.assert_allclose(gmm.log_prob(stream).array(), gmm.log_prob(X), rtol=1e-12)
    np.testing.assert_allclose(gmm.posterior(stream).array(), gmm.posterior(X), atol=1e-12)
    gmm.predict(stream).save(tmp_path / "labels.npy")
    assert np.array_equal(np.load(tmp_path / "labels.npy"), gmm.predict(X))
    lazy = jaxem.stream(lambda: (X[i : i + 100] for i in range(0, N, 100)))
    gmm.posterior(lazy).save(tmp_path / "posterior.npy")
    assert np.load(tmp_path / "posterior.npy").shape == (N, 3)
    for criterion in (jaxem.bic, jaxem.aic, jaxem.icl):
        np.testing.assert_allclose(criterion(gmm, stream), criterion(gmm, X), rtol=1e-12)
    summed = gmm.model.e_step(gmm.params, stream)
    np.testing.assert_allclose(summed.elbo_data, gmm.elbo.data, rtol=1e-12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.npy", "posterior.npy"]


def test_columns_keep_their_names(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"age": X[:, 0], "visits": COUNTS[:, 0], "w": WEIGHTS})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=150)
    stream = jaxem.stream(tmp_path / "rows.parquet", weights="w")
    family = families.Product({"age": families.Gaussian(), "visits": families.Poisson()})
    fit = jaxem.fit(jaxem.Mixture(family, 2), stream, key=KEY, max_steps=3)
    assert fit.feature_names == ("age", "visits")
    assert int(fit.num_rows) == (WEIGHTS > 0).sum()
    with pytest.raises(ValueError, match="data: expected a stream of the columns age, visits; found age"):
        jaxem.fit(jaxem.Mixture(family, 2), jaxem.stream(tmp_path / "rows.parquet", columns=["age"]), key=KEY)
    plain = jaxem.fit(jaxem.GMM(2, "diag"), jaxem.stream(tmp_path / "rows.parquet", columns=["age"]), key=KEY)
    assert plain.feature_names == ("age",)


def test_online_em_takes_passes_in_another_order(gmm, path):
    stream = jaxem.stream(path, batch_rows=ROWS)
    online = jaxem.OnlineEM(64)
    fit = jaxem.fit(jaxem.GMM(3), stream, key=KEY, algorithm=online, num_restarts=3, max_steps=4)
    assert float(fit.elbo.total) > float(gmm.elbo.total) - 20  # about rate p N / (4 B) nats, at such rates
    assert abs(float(fit.model.e_step(fit.params, X).elbo_data - fit.elbo.data)) < 1e-8
    again = jaxem.fit(jaxem.GMM(3), stream, key=KEY, algorithm=online, num_restarts=3, max_steps=4)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(floats(fit), floats(again), strict=True))


def test_the_order_of_a_pass_goes_with_the_key(path):
    stream = jaxem.stream(path, batch_rows=ROWS)
    go = lambda seed: jaxem.fit(
        jaxem.GMM(3, "diag"), stream, key=KEY, algorithm=jaxem.OnlineEM(64, key=jax.random.key(seed)), max_steps=1
    )
    one, again, other = go(1), go(1), go(2)
    assert float(one.elbo.total) == float(again.elbo.total) != float(other.elbo.total)


def test_batches_of_one_row_go_on_and_take_params(tmp_path):
    stream, file = jaxem.stream(X[:12], batch_rows=1), tmp_path / "fit.npz"
    whole = jaxem.fit(jaxem.GMM(3), stream, key=KEY, max_steps=3)
    jaxem.fit(jaxem.GMM(3), stream, key=KEY, max_steps=1, checkpoint=file)
    gone_on = jaxem.fit(jaxem.GMM(3), stream, key=KEY, max_steps=3, checkpoint=file)
    for a, b in zip(floats(gone_on), floats(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jaxem.fit(jaxem.GMM(3), stream, key=KEY, max_steps=1, params=whole.params).params.mixing.shape == (3,)


def test_estimates_draw_anew_in_each_batch():
    from jaxem.networks import mlp

    model = jaxem.VAE(mlp(3, 2), mlp(3, 3), latent_dim=1, likelihood=jaxem.likelihoods.Gaussian())
    params = model.init(KEY, jnp.asarray(X), jnp.ones(N))
    same = jaxem.stream(lambda: iter([X[:20]] * 2))
    answers = model.evidence(params, same, key=KEY, num_samples=5)
    first, second = (part.log_prob for part in answers)
    assert not np.allclose(first, second, rtol=1e-9)
    np.testing.assert_allclose(first, second, atol=5)
    with pytest.raises(AttributeError, match="the answers of a stream have no 'log_prob': iterate over them"):
        model.log_prob(params, same, key=KEY)


def test_rows_are_gathered_once(monkeypatch):
    made = []
    gather = _survey._Gather
    monkeypatch.setattr(_survey, "_Gather", lambda *args: made.append(1) or gather(*args))
    dependent = np.concatenate([X, X[:, :1] + X[:, 1:2]], 1)  # which takes several passes
    fit = jaxem.fit(jaxem.GMM(2), jaxem.stream(dependent, batch_rows=ROWS), key=KEY, max_steps=1)
    assert made == [1]
    assert np.asarray(fit.model.family.scale.span.dependent).tolist() == [False, False, False, True]


def test_drawn_states_differ_between_batches():
    options = {"key": KEY, "algorithm": jaxem.EM(jaxem.Sampled(jax.random.key(3))), "max_steps": 1}
    model = jaxem.GMM(3, "diag", init_size=100)
    twice = jaxem.fit(model, jaxem.stream(lambda: iter([X[:100]] * 2)), **options)
    once = jaxem.fit(model, jaxem.stream(X[:100], weights=np.full(100, 2.0)), **options)
    assert float(abs(twice.trace[0] - once.trace[0])) > 1e-3  # equal, where both batches had the same draws


def test_a_users_own_bind_sees_rows_of_all(path):
    seen = []

    @jaxem.dataclass
    class Own(jaxem.Mixture):
        def bind(self, data, weights):
            seen.append(data.shape)
            return super().bind(data, weights)

    fit = jaxem.fit(Own(families.Gaussian(), 2), jaxem.stream(path, batch_rows=ROWS), key=KEY, max_steps=2)
    assert (N, 3) in seen  # of so few rows all
    assert float(fit.model.total_weight) == pytest.approx(N)


# What goes on after an end.


@pytest.mark.parametrize("algorithm", [None, jaxem.OnlineEM(64)], ids=["em", "online"])
def test_ended_anywhere_it_goes_on_bit_by_bit(path, tmp_path, monkeypatch, algorithm):
    stream = jaxem.stream(path, batch_rows=ROWS)
    options = {"num_restarts": 2, "max_steps": 3, "stop": jaxem.Stop(-jnp.inf), "algorithm": algorithm}
    whole = jaxem.fit(jaxem.GMM(3), stream, key=KEY, **options)
    monkeypatch.setattr(_checkpoint, "INTERVAL", 0.0)
    load, left = Reader._load, [0]

    def broken(self, *args):
        left[0] -= 1
        if left[0] == 0:
            raise OSError("the disk is gone")
        return load(self, *args)

    monkeypatch.setattr(Reader, "_load", broken)
    ended = []
    for after in (3, 5, 9, 2, 11, 7, 4, 30, 200):
        left[0] = after
        try:
            fit = jaxem.fit(jaxem.GMM(3), stream, key=KEY, checkpoint=tmp_path / "fit.npz", **options)
        except OSError as caught:
            ended.append(caught)
        else:
            break
    assert len(ended) >= 3
    counts = [error.fit.restarts.counts() for error in ended if hasattr(error, "fit")]
    assert counts
    assert all(found == {"INTERRUPTED": 2} for found in counts)
    for a, b in zip(jax.tree.leaves(fit), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("algorithm", "where"),
    [(None, "wait"), (jaxem.OnlineEM(64), "wait"), (jaxem.OnlineEM(64), "_begin_pass")],
    ids=["em", "online", "between"],
)
def test_ctrl_c_leaves_no_batch_counted_twice(path, tmp_path, monkeypatch, algorithm, where):
    stream = jaxem.stream(path, batch_rows=ROWS)
    options = {"num_restarts": 2, "max_steps": 3, "stop": jaxem.Stop(-jnp.inf), "algorithm": algorithm}
    whole = jaxem.fit(jaxem.GMM(3), stream, key=KEY, **options)
    kept, calls = getattr(_stream, where), []

    def pressed(*args):
        calls.append(1)
        if len(calls) == (20 if where == "wait" else 2):
            raise KeyboardInterrupt
        return kept(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_stream, where, pressed)
        cut = jaxem.fit(jaxem.GMM(3), stream, key=KEY, checkpoint=tmp_path / "fit.npz", **options)
    assert cut.restarts.counts() == {"INTERRUPTED": 2}
    gone_on = jaxem.fit(jaxem.GMM(3), stream, key=KEY, checkpoint=tmp_path / "fit.npz", **options)
    for a, b in zip(floats(gone_on), floats(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_iterator_may_fill_one_array_again_and_again():
    buffer = np.empty((100, 3))

    def make():
        for i in range(0, 1000, 100):
            buffer[:] = X[i : i + 100]
            yield buffer

    close(
        jaxem.fit(jaxem.GMM(3), jaxem.stream(X[:1000], batch_rows=100), key=KEY, **OPTIONS),
        jaxem.fit(jaxem.GMM(3), jaxem.stream(make), key=KEY, **OPTIONS),
    )


def test_more_batches_than_before_are_refused(tmp_path):
    parts = [X[:400], X[400:800]]
    stream = lambda: jaxem.stream(lambda: iter(parts))
    jaxem.fit(jaxem.GMM(3), stream(), key=KEY, checkpoint=tmp_path / "fit.npz", **{**OPTIONS, "max_steps": 2})
    parts.append(X[800:])
    with pytest.raises(ValueError, match="expected 2 batches in every pass, as in the first; found 3 or more"):
        jaxem.fit(jaxem.GMM(3), stream(), key=KEY, checkpoint=tmp_path / "fit.npz", **OPTIONS)


def test_x64_for_one_call_alone():
    with jax.enable_x64(False):
        stream = jaxem.stream(X.astype(np.float32), batch_rows=ROWS)
        assert jaxem.fit(jaxem.GMM(2), stream, key=KEY, max_steps=1).elbo.data.dtype == np.float32
        with jax.enable_x64(True):
            stream = jaxem.stream(X, batch_rows=ROWS)
            assert jaxem.fit(jaxem.GMM(2), stream, key=KEY, max_steps=1).elbo.data.dtype == np.float64


def test_sharded_rows_are_copies():
    own = X.copy()
    rows = jaxem.shard_data(own, mesh=1)
    own[:] = 0
    assert np.array_equal(rows.data, X)


def test_a_checkpoint_goes_on_for_more_steps_and_not_for_other_rows(gmm, path, tmp_path):
    stream, file = jaxem.stream(path, batch_rows=ROWS), tmp_path / "fit.npz"
    jaxem.fit(jaxem.GMM(3), stream, key=KEY, checkpoint=file, **{**OPTIONS, "max_steps": 2})
    more = jaxem.fit(jaxem.GMM(3), stream, key=KEY, checkpoint=file, **OPTIONS)
    for a, b in zip(floats(more), floats(gmm), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="max_steps: expected at least that of the checkpoint, 6; found 3"):
        jaxem.fit(jaxem.GMM(3), stream, key=KEY, checkpoint=file, **{**OPTIONS, "max_steps": 3})
    other = tmp_path / "other.npy"
    np.save(other, X + 1)
    with pytest.raises(ValueError, match="of one with another data;"):
        jaxem.fit(jaxem.GMM(3), jaxem.stream(other, batch_rows=ROWS), key=KEY, checkpoint=file, **OPTIONS)


def test_killed_it_goes_on_bit_by_bit(path, tmp_path):
    code = (
        "import sys, numpy as np, jax, jaxem\n"
        "from jaxem.engine import checkpoint\n"
        "checkpoint.INTERVAL = 0.0\n"
        "jax.config.update('jax_enable_x64', True)\n"
        "rows = jaxem.stream(sys.argv[1], batch_rows=128)\n"
        "told = lambda seen: print(seen.steps, flush=True)\n"
        "fit = jaxem.fit(jaxem.GMM(3), rows, key=jax.random.key(0), num_restarts=3, max_steps=60,\n"
        "                stop=jaxem.Stop(-np.inf), callback=told, checkpoint=sys.argv[2])\n"
        "np.save(sys.argv[3], fit.trace)\n"
    )
    run = lambda *args: subprocess.Popen([sys.executable, "-c", code, str(path), *map(str, args)], stdout=-1, text=True)
    whole = run(tmp_path / "a.npz", tmp_path / "a.npy")
    killed = run(tmp_path / "b.npz", tmp_path / "b.npy")
    again = None
    try:
        assert [killed.stdout.readline() for _ in range(7)][-1].strip() == "18"
        killed.kill()
        killed.communicate()
        assert not (tmp_path / "b.npy").exists()
        again = run(tmp_path / "b.npz", tmp_path / "b.npy")
        assert int(again.stdout.readline()) >= 18
        for process in (whole, again):
            process.communicate()
            assert process.returncode == 0
    finally:
        for process in (whole, killed, again):
            if process is not None and process.poll() is None:
                process.kill()
                process.communicate()
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"), equal_nan=True)


# What is refused, or ends with a name.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"algorithm": jaxem.Swap()}, TypeError, "algorithm: Swap looks at all rows again"),
        ({"algorithm": jaxem.StochasticEM()}, TypeError, "algorithm: StochasticEM looks at all rows again"),
        ({"stop": jaxem.StopAny((jaxem.Stop(), jaxem.StopQ()))}, TypeError, "looks at the rows, which a stream"),
        ({"weights": np.ones(N)}, ValueError, "weights: expected None, as a stream has its own"),
        ({"data": jaxem.stream(X[:2])}, ValueError, "data: expected at least num_components = 3 rows; found 2"),
        (
            {"data": jaxem.stream(lambda: iter([X[:2]]))},
            ValueError,
            "expected at least num_components = 3 rows; found 2",
        ),
        (
            {"data": (row for row in X)},
            TypeError,
            r"found a generator, which can be read only once; give jaxem.stream\(lambda: ...\)",
        ),
        ({"data": "rows.parquet"}, TypeError, r"jaxem.stream\('rows.parquet'\)"),
        ({"data": jaxem.stream(X, weights=np.zeros(N))}, ValueError, "weights: expected at least one positive"),
    ],
)
def test_refused(change, error, message):
    arguments = {"data": jaxem.stream(X, batch_rows=ROWS), "key": KEY} | change
    with pytest.raises(error, match=message):
        jaxem.fit(jaxem.GMM(3), arguments.pop("data"), **arguments)


def test_refused_inside_jit():
    stream = jaxem.stream(X, batch_rows=ROWS)
    with pytest.raises(TypeError, match="data: expected rows in memory inside jit or vmap"):
        jax.jit(lambda key: jaxem.fit(jaxem.GMM(3), stream, key=key).elbo.total)(KEY)


def test_rows_that_the_model_cannot_have_made_are_named(tmp_path):
    counts = COUNTS.copy()
    counts[700, 1] = -1
    np.save(tmp_path / "counts.npy", counts)
    model = jaxem.Mixture(families.Poisson(), 2)
    with pytest.raises(ValueError, match=r"counts.npy, rows from 640 on: data: .*found -1 in row 60"):
        jaxem.fit(model, jaxem.stream(tmp_path / "counts.npy", batch_rows=ROWS), key=KEY)


def test_a_file_that_changes_in_the_run_ends_it_with_what_there_is(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, X)

    def cut(seen):
        if seen.steps >= 6:
            with open(path, "r+b") as file:
                file.truncate(8000)

    with pytest.raises(ValueError, match=r"rows.npy") as caught:
        jaxem.fit(jaxem.GMM(3), jaxem.stream(path, batch_rows=ROWS), key=KEY, callback=cut, **OPTIONS)
    assert int(caught.value.fit.restarts.num_steps.sum()) == 6


def test_a_reader_stops_when_nobody_reads_on():
    made = []

    def items():
        try:
            for i in range(1000):
                made.append(i)
                yield i
        finally:
            made.append("closed")

    reader = ahead(items())
    assert next(reader) == 0
    reader.close()
    assert made[-1] == "closed"
    assert len(made) < 10
