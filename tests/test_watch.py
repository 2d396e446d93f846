import functools
import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import jaxem
from jaxem import Status, _checkpoint, _drive

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


def test_a_time_limit_of_zero_still_returns_a_fit(iris):
    result = jaxem.fit(jaxem.GMM(3), iris, key=KEY, time_limit=0.0, **OPTIONS)
    assert result.restarts.counts() == {"INTERRUPTED": 12}
    assert "INTERRUPTED" in repr(result)
    with pytest.raises(ValueError, match="time_limit: expected seconds >= 0"):
        jaxem.fit(jaxem.GMM(3), iris, key=KEY, time_limit=-1.0)


def test_errors_of_a_callback_pass_through(iris):
    def fail(progress):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jaxem.fit(jaxem.GMM(3), iris, key=KEY, callback=fail, **OPTIONS)


def test_the_bar(iris, capsys):
    jaxem.fit(jaxem.GMM(3), iris, key=KEY, progress=True, **OPTIONS)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "best" in shown


def test_refused_under_jit(iris):
    with pytest.raises(TypeError, match="inside jit or vmap call fit"):
        jax.jit(lambda x: jaxem.fit(jaxem.GMM(3), x, key=KEY))(iris)


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
from jaxem import _checkpoint, _drive
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
        ({"max_steps": 4}, "algorithm, max_steps"),
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


def test_the_bar_of_one_restart_counts_steps(iris, capsys):
    options = {"stop": jaxem.Stop(-np.inf), "max_steps": 7}
    jaxem.fit(jaxem.GMM(3), iris, key=KEY, progress=True, **options)
    shown = capsys.readouterr().err
    assert "7/7" in shown
    assert "step" in shown
