import sys

import jax
import numpy as np
import pytest

import jaxem
from jaxem import Status

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
    monkeypatch.setattr(sys.modules["jaxem.run"], "SEGMENT", segment)
    seen = []
    result = jaxem.run(jaxem.GMM(3), iris, key=KEY, callback=seen.append, **OPTIONS)
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
    jaxem.run(Counting(3), iris, key=KEY, **OPTIONS)
    assert len(traces) == before


def test_a_callback_can_end_it(iris):
    result = jaxem.run(jaxem.GMM(3), iris, key=KEY, callback=lambda p: p.steps > 8, **OPTIONS)
    codes = np.asarray(result.restarts.status)
    assert (codes == Status.INTERRUPTED).any()
    assert np.isfinite(result.elbo.total)
    assert float(result.elbo.total) == np.max(result.restarts.elbo.total)


def test_control_c_returns_the_best_so_far(iris, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxem.run"], "SEGMENT", 1e-9)  # look after every sweep

    def interrupt(progress):
        if progress.finished >= 3:
            raise KeyboardInterrupt

    result = jaxem.run(jaxem.GMM(3), iris, key=KEY, callback=interrupt, **OPTIONS)
    counts = result.restarts.counts()
    assert counts["INTERRUPTED"] >= 1
    assert counts["CONVERGED"] >= 3
    assert result.status == Status.CONVERGED


def test_a_time_limit_of_zero_still_returns_a_fit(iris):
    result = jaxem.run(jaxem.GMM(3), iris, key=KEY, time_limit=0.0, **OPTIONS)
    assert result.restarts.counts() == {"INTERRUPTED": 12}
    assert "INTERRUPTED" in repr(result)
    with pytest.raises(ValueError, match="time_limit: expected seconds >= 0"):
        jaxem.run(jaxem.GMM(3), iris, key=KEY, time_limit=-1.0)


def test_errors_of_a_callback_pass_through(iris):
    def fail(progress):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        jaxem.run(jaxem.GMM(3), iris, key=KEY, callback=fail, **OPTIONS)


def test_the_bar(iris, capsys):
    jaxem.run(jaxem.GMM(3), iris, key=KEY, progress=True, **OPTIONS)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "best" in shown


def test_refused_under_jit(iris):
    with pytest.raises(TypeError, match="inside jit or vmap call fit"):
        jax.jit(lambda x: jaxem.run(jaxem.GMM(3), x, key=KEY))(iris)
