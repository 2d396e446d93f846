import functools
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import optax
import pytest

import jaxem
from jaxem import Status
from jaxem.engine import checkpoint as _checkpoint
from jaxem.engine import drive as _drive
from jaxem.engine import table as _table

KEY = jax.random.key(0)
OPTIONS = {"num_restarts": 12, "restart_batch": 4, "max_steps": 60}


@pytest.fixture(scope="module")
def table(iris):
    return jaxem.fit(jaxem.GMM(3), iris, key=KEY, **OPTIONS)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("segment", [1e-9, 0.2])
def test_bit_identical_to_fit(iris, table, monkeypatch, segment):
    monkeypatch.setattr(_drive, "SEGMENT", segment)
    seen = []
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, callback=seen.append, **OPTIONS)
    assert_same(result, table)
    finished = [p.finished for p in seen]
    assert finished == sorted(finished)
    assert finished[-1] == 12
    assert seen[-1].statuses == table.restarts.counts()
    assert seen[-1].best_elbo == float(table.restarts.elbo.total.max())
    assert seen[-1].steps == int(table.restarts.num_steps.sum())
    if segment < 1e-3:
        assert len(seen) > 20


def test_nothing_is_traced_after_fit(iris):
    traces = []

    @jaxem.dataclass
    class Counting(jaxem.KMeans):
        def m_step(self, params, stats):
            traces.append(1)
            return super().m_step(params, stats)

    jaxem.fit(Counting(3), iris, key=KEY, **OPTIONS)
    assert traces
    before = len(traces)
    jaxem.fit(Counting(3), iris, key=KEY, **OPTIONS)
    assert len(traces) == before


def test_a_callback_can_end_it(iris):
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, callback=lambda p: p.steps > 8, **OPTIONS)
    codes = np.asarray(result.restarts.status)
    assert (codes == Status.INTERRUPTED).any()
    assert np.isfinite(result.elbo.total)
    assert float(result.elbo.total) == np.max(result.restarts.elbo.total)


def test_control_c_returns_the_best_so_far(iris, monkeypatch):
    monkeypatch.setattr(_drive, "SEGMENT", 1e-9)  # look after every sweep

    def interrupt(progress):
        if progress.finished >= 3:
            raise KeyboardInterrupt

    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, callback=interrupt, **OPTIONS)
    counts = result.restarts.counts()
    assert counts["INTERRUPTED"] >= 1
    assert counts["CONVERGED"] >= 3
    assert result.status == Status.CONVERGED


def test_a_signal_ends_a_fit_that_nobody_watches(iris, monkeypatch):
    """SIGINT itself, sent to this process once steps are taken; without it the fit would take minutes."""
    advance, calls = _table.advance, []

    def stepping(*args):
        calls.append(1)
        if len(calls) == 4:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        return advance(*args)

    monkeypatch.setattr(_table, "advance", stepping)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        options = {"stop": jaxem.Stop(-np.inf), "max_steps": 2_000_000}
        result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.restarts.counts() == {"INTERRUPTED": 1}
    steps, trace = int(result.num_steps), np.asarray(result.trace)
    assert 0 < steps < 2_000_000
    assert np.isfinite(trace[: steps + 1]).all()
    assert np.isnan(trace[steps + 1 :]).all()
    assert trace[steps] == result.elbo.total


def interrupted(monkeypatch, when, **options):
    """Ctrl-C while the host waits for the `when`-th time: first for the starts, then for one sweep after the other."""
    waits, wait = [], _drive.wait

    def waiting(tree):
        waits.append(1)
        if len(waits) == when:
            raise KeyboardInterrupt
        wait(tree)

    monkeypatch.setattr(_drive, "wait", waiting)
    monkeypatch.setattr(_drive, "SEGMENT", 1e-9)
    return jaxem.fit(
        jaxem.KMeans(3),
        np.arange(12.0)[:, None] ** 2,
        key=KEY,
        algorithm=jaxem.EM(),
        callback=lambda seen: None,
        **options,
    )


@pytest.mark.parametrize(("grace", "steps"), [(10.0, 2), (-1.0, 1)])
def test_control_c_keeps_the_segment_under_way_if_it_is_short(monkeypatch, tmp_path, grace, steps):
    """With a grace of -1 every sweep counts as long: what is returned was made ready before the next began."""
    monkeypatch.setattr(_drive, "GRACE", grace)
    if grace < 0:
        monkeypatch.setattr(_drive, "_ready_soon", lambda table: False)
    path = tmp_path / "fit.npz"
    result = interrupted(monkeypatch, 4, stop=jaxem.Stop(-np.inf), checkpoint=path)
    assert result.restarts.counts() == {"INTERRUPTED": 1}
    assert int(result.num_steps) == steps
    with np.load(path) as saved:
        assert np.isfinite(saved["trace"]).sum() == steps + 1


@pytest.mark.parametrize("when", [1, 2])
def test_control_c_before_any_step_has_nothing_to_return(monkeypatch, tmp_path, when):
    monkeypatch.setattr(_drive, "_ready_soon", lambda table: False)
    with pytest.raises(KeyboardInterrupt):
        interrupted(monkeypatch, when, checkpoint=tmp_path / "fit.npz")
    assert not list(tmp_path.iterdir())


def test_a_time_limit_of_zero_still_returns_a_fit(iris):
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, time_limit=0.0, **OPTIONS)
    assert result.restarts.counts() == {"INTERRUPTED": 12}
    assert "INTERRUPTED" in repr(result)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"callback": 3}, TypeError, "callback: expected a function .* found 3"),
        ({"progress": 1}, TypeError, "progress: expected True or False; found 1"),
        ({"progress": "yes"}, TypeError, "progress: expected True or False; found 'yes'"),
        ({"time_limit": -1.0}, ValueError, "time_limit: expected a number of seconds >= 0, or None; found -1.0"),
        ({"time_limit": np.nan}, ValueError, "time_limit: expected a number of seconds >= 0, or None; found nan"),
        ({"time_limit": "1 h"}, TypeError, "time_limit: expected a number of seconds >= 0, or None; found '1 h'"),
        ({"time_limit": True}, TypeError, "time_limit: expected a number of seconds >= 0, or None; found True"),
        ({"checkpoint": 3}, TypeError, "checkpoint: expected the path of a file, or None; found 3"),
        ({"checkpoint": "no/such/folder/fit.npz"}, ValueError, "checkpoint: expected a file in a directory that exis"),
        ({"checkpoint": "."}, ValueError, "checkpoint: expected a file in a directory that exists; found '.'"),
    ],
)
def test_what_is_no_such_argument_is_said_before_anything_is_compiled(iris, monkeypatch, option, error, message):
    monkeypatch.setattr(_table, "restart_keys", None)
    with pytest.raises(error, match=message):
        jaxem.fit(jaxem.GMM(3), iris, key=KEY, **option)


def test_errors_of_a_callback_pass_through_and_lose_nothing(iris, tmp_path, table):
    path = tmp_path / "fit.npz"

    def fail(progress):
        if progress.steps > 3:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jaxem.fit(jaxem.GMM(3), iris, key=KEY, callback=fail, checkpoint=path, **OPTIONS)
    seen = []
    resumed = jaxem.fit(jaxem.GMM(3), iris, key=KEY, callback=seen.append, checkpoint=path, **OPTIONS)
    assert seen[0].steps > 3
    assert_same(resumed, table)


@pytest.fixture
def bars(monkeypatch):
    """What every state of a tqdm bar would have shown: (description, n, total)."""
    from tqdm import auto

    shown = []

    class Recorded(auto.tqdm):
        def refresh(self, *args, **kwargs):
            shown.append((self.desc, self.n, self.total))
            return super().refresh(*args, **kwargs)

    monkeypatch.setattr(auto, "tqdm", Recorded)
    return shown


def test_the_bar(iris, capsys, monkeypatch, bars):
    """It says when it compiles, moves within restarts, and is full at the end."""
    monkeypatch.setattr(_drive, "SEGMENT", 1e-9)
    jaxem.fit(jaxem.GMM(3), iris, key=KEY, progress=True, **OPTIONS)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "best" in shown
    said = [description.rstrip(": ") for description, *_ in bars]
    assert list(dict.fromkeys(s for s in said if s)) == [
        "compiling the starts",
        "drawing the starts",
        "compiling the loop",
        "compiling the summary",
    ]
    moves = [n for _, n, _ in bars]
    assert moves == sorted(moves)
    assert 0 < min(n for n in moves if n) < 1  # before any restart has ended
    assert (moves[-1], bars[-1][2]) == (12, 12)


def test_the_bar_of_one_restart_counts_steps_and_ends_full(iris, capsys, bars):
    options = {"stop": jaxem.Stop(-np.inf), "max_steps": 7}
    jaxem.fit(jaxem.GMM(3), iris, key=KEY, progress=True, **options)
    assert "7/7" in capsys.readouterr().err
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, progress=True, max_steps=60)
    steps = int(result.num_steps)
    assert f"{steps}/{steps}" in capsys.readouterr().err
    assert steps < 60
    jaxem.fit(jaxem.GMM(3), iris, key=KEY, progress=True, time_limit=0.0, **options)
    assert "0/7" in capsys.readouterr().err


def test_the_bar_needs_tqdm(iris, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="progress: needs the package tqdm; pip install tqdm"):
        jaxem.fit(jaxem.GMM(3), iris, key=KEY, progress=True)


WATCHED = {"callback": print, "progress": True, "time_limit": 0.0, "checkpoint": "fit.npz"}
START = jaxem.models.kmeans.KMeansParams(np.array([[0.0], [9.0], [90.0]]), np.int32(0))


@pytest.mark.parametrize("place", ["data", "weights", "key", "params", "model", "algorithm", "stop"])
def test_inside_a_program_a_fit_has_the_same_bits_and_no_host(place):
    """A tracer anywhere among the arguments."""
    x = np.arange(12.0)[:, None] ** 2
    values = {
        "data": x,
        "weights": np.ones(12),
        "key": KEY,
        "params": START,
        "model": jaxem.GMM(2, pseudo_observations=np.float64(1e-3)),
        "algorithm": jaxem.EM(jaxem.Tempered(np.float64(1.0))),
        "stop": jaxem.Stop(np.float64(1e-5)),
    }

    def go(value, **watched):
        model = value if place == "model" else jaxem.KMeans(3)
        options = {"key": KEY, "max_steps": 20, "algorithm": jaxem.EM()} | (
            {place: value} if place not in ("data", "model") else {}
        )
        return jaxem.fit(model, value if place == "data" else x, **options, **watched)

    assert_same(jax.jit(go)(values[place]).restarts, go(values[place]).restarts)
    for name, value in WATCHED.items():
        with pytest.raises(TypeError, match=f"{name}: expected (None|False) inside jit or vmap"):
            jax.jit(lambda v, name=name, value=value: go(v, **{name: value}))(values[place])


def test_refused_where_nothing_but_the_program_is_traced():
    x = np.arange(12.0)[:, None] ** 2
    with pytest.raises(TypeError, match="callback: expected None inside jit or vmap"):
        jax.jit(lambda: jaxem.fit(jaxem.KMeans(3), x, key=KEY, algorithm=jaxem.EM(), callback=print))()


@pytest.mark.parametrize("algorithm", ["em", "gradient"])
def test_an_interrupted_run_resumes_bit_identical(iris, tmp_path, algorithm):
    path = tmp_path / "run.npz"
    options = OPTIONS | {"num_restarts": 6}
    if algorithm == "gradient":
        options |= {"algorithm": jaxem.GradientAscent(batch_size=50), "stop": jaxem.Stop(-np.inf), "max_steps": 6}
    whole = jaxem.fit(jaxem.GMM(3), iris, key=KEY, **options)
    cut = jaxem.fit(jaxem.GMM(3), iris, key=KEY, checkpoint=path, callback=lambda p: p.steps > 3, **options)
    assert "INTERRUPTED" in cut.restarts.counts()
    steps = []
    resumed = jaxem.fit(
        jaxem.GMM(3), iris, key=KEY, checkpoint=str(path), callback=lambda p: steps.append(p.steps), **options
    )
    assert steps[0] > 3
    assert_same(resumed, whole)
    assert_same(jaxem.fit(jaxem.GMM(3), iris, key=KEY, checkpoint=path, **options), whole)
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]


SCRIPT = """
import sys, time
import jax, numpy as np, optax, jaxem
from jaxem.engine import checkpoint as _checkpoint
from jaxem.engine import drive as _drive
_checkpoint.INTERVAL = 0.0
_drive.SEGMENT = 1e-9  # look after every step
path, slow = sys.argv[1], sys.argv[2] == "slow"
x = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
algorithm = jaxem.GradientAscent(optax.adamw(1e-2), batch_size=16)
tell = lambda p: (print(p.steps, flush=True), time.sleep(0.2 if slow else 0))[0]
fit = jaxem.fit(jaxem.GMM(2), x, key=jax.random.key(0), algorithm=algorithm, stop=jaxem.Stop(-np.inf), max_steps=40,
                checkpoint=path if path else None, callback=tell)
np.savez(sys.argv[3], *jax.tree.leaves((fit.params, fit.elbo, fit.trace, fit.status)))
"""


def test_a_killed_process_resumes_bit_identical(tmp_path):
    def process(*args, **kwargs):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", SCRIPT, *map(str, args)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    path, end = tmp_path / "run.npz", tmp_path / "end.npz"
    victim = process(path, "slow", tmp_path / "never.npz")
    for line in victim.stdout:
        if int(line) >= 4:
            break
    victim.kill()
    victim.communicate()
    assert path.exists()
    with process(path, "fast", end) as second:
        told = [int(line) for line in second.stdout]
    with process("", "fast", tmp_path / "whole.npz") as third:
        third.communicate()
    assert second.returncode == third.returncode == 0
    assert 4 <= told[0] <= 10
    with np.load(end) as a, np.load(tmp_path / "whole.npz") as b:
        assert_same(dict(a), dict(b))


def test_a_checkpoint_of_another_run_is_refused(blobs, tmp_path):
    path = tmp_path / "run.npz"

    def go(model=None, x=None, key=KEY, rate=0.1, optimizer=None, **options):
        algorithm = jaxem.GradientAscent(optimizer, learning_rate=rate)
        options = {"checkpoint": path, "max_steps": 3} | options
        model = jaxem.GMM(2) if model is None else model
        return jaxem.fit(model, blobs if x is None else x, key=key, algorithm=algorithm, **options)

    first = go()
    assert_same(go(), first)
    before = path.read_bytes()
    for change, part in (
        ({"model": jaxem.GMM(2, pseudo_observations=0.1)}, "model"),
        ({"x": blobs + 1e-12}, "data"),
        ({"key": jax.random.key(1)}, "keys, algorithm"),
        ({"rate": 0.2}, "algorithm"),
        ({"optimizer": optax.sgd(0.1)}, "algorithm"),
        ({"stop": jaxem.Stop(1e-3)}, "stop"),
        ({"weights": np.full(120, 2.0)}, "weights"),
        ({"max_steps": 4}, "algorithm"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint: expected a file of this fit; .* with another {part};"):
            go(**change)
    assert path.read_bytes() == before
    path.write_bytes(before[:200])
    with pytest.raises(ValueError, match="checkpoint: expected a file written by jaxem.fit"):
        go()
    with pytest.raises(ValueError, match="checkpoint: expected a file in a directory that exists"):
        go(checkpoint=tmp_path / "nowhere" / "run.npz")


def test_fingerprints_see_what_functions_hold():
    seen = lambda value: _checkpoint.digest(value)
    assert seen(optax.adam(1e-3)) == seen(optax.adam(1e-3))
    assert seen(optax.adam(1e-3)) != seen(optax.adam(1e-2))
    assert seen(optax.adam(1e-3)) != seen(optax.sgd(1e-3))
    assert seen(functools.partial(max, 1)) != seen(functools.partial(max, 2))
    assert seen(jax.nn.relu) != seen(jax.nn.gelu)
    assert seen({"a": 1.0}) != seen({"a": np.float32(1)})
    loop = []
    loop.append(loop)
    assert seen(loop) == seen(loop)
