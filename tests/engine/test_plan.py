"""Memory that is planned: chunks and lanes that fit, and what is said when there is none left."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.core import memory
from jaxem.engine import drive, plan
from jaxem.engine.plan import Plan

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(5000, 2)) + 3 * RNG.integers(0, 3, 5000)[:, None]
# Steps of all 5000 rows take an estimated half of a megabyte a restart.
SMALL, TINY = 1_500_000, 300_000


@jaxem.dataclass
class Spheres(jaxem.DiscreteLatent):
    """Unit spheres, of all rows at once."""

    num: int = jaxem.static(default=3)

    def init(self, key, data, weights):
        return {"mixing": jnp.full(self.num, 1 / self.num), "mean": jax.random.choice(key, data, (self.num,))}

    def log_joint(self, params, data):
        away = data[:, None, :] - params["mean"][None]
        return jnp.log(params["mixing"])[None] - 0.5 * jnp.sum(away**2, -1)

    def statistics(self, params, data, resp):
        return resp.sum(0), resp.T @ data

    def m_step(self, params, stats):
        count, total = stats
        return {"mixing": count / count.sum(), "mean": total / jnp.maximum(count, 1e-9)[:, None]}


@jaxem.dataclass
class Huge(Spheres):
    """Of 10^9 states, which nobody has room for."""

    def log_joint(self, params, data):
        there = jnp.arange(10**9, dtype=data.dtype)
        return jnp.sort(-((data[:, :1] - params["mean"][0, 0] - there[None]) ** 2), 0)  # a sort is fused with nothing

    def statistics(self, params, data, resp):
        return super().statistics(params, data, resp[:, : self.num])


def have(monkeypatch, size):
    monkeypatch.setattr(memory, "device_memory", lambda: float(size))


def fit(model, data=X, **options):
    return jaxem.fit(
        model, data, key=KEY, **{"num_restarts": 4, "max_steps": 8, "stop": jaxem.Stop(-np.inf), **options}
    )


@pytest.fixture(scope="module")
def plain():
    return fit(Spheres())


def assert_close(found, plain):
    np.testing.assert_allclose(found.restarts.trace, plain.restarts.trace, rtol=1e-10)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    assert found.status == plain.status


@pytest.mark.parametrize("size", [SMALL, TINY])
def test_what_does_not_fit_is_done_in_chunks(monkeypatch, plain, size):
    assert plain.plan is None
    assert "memory" not in repr(plain)
    have(monkeypatch, size)
    found = fit(Spheres())
    assert found.plan is not None
    assert found.plan.held <= size
    assert found.plan.chunk is not None
    assert found.plan.chunk < 5000
    assert type(found.model) is Spheres
    assert_close(found, plain)
    lanes = found.plan.lanes
    assert (lanes == 1) == (size == TINY)  # chunks would be too small to be quick
    first = (
        f"  memory    chunks of {found.plan.chunk:,} rows, {lanes} restart{'s' if lanes > 1 else ''} at once: about "
    )
    assert first in repr(found)
    assert f" of {size / 2**20:,.1f} MiB" in repr(found)
    # Questions are answered in chunks as well.
    np.testing.assert_allclose(found.log_prob(X), plain.log_prob(X), rtol=1e-12)
    np.testing.assert_array_equal(found.predict(X), plain.predict(X))
    with pytest.raises(ValueError, match="expected rows of shape"):
        found.predict(np.ones((3, 3)))


def test_a_plan_is_kept(monkeypatch, tmp_path, plain):
    have(monkeypatch, SMALL)
    found = fit(Spheres())
    jaxem.save(found, tmp_path / "fit.npz")
    for again in (jaxem.load(tmp_path / "fit.npz"), pickle.loads(pickle.dumps(found))):
        assert again.plan == found.plan
        assert repr(again) == repr(found)
    assert found.to_dict()["plan"] == dataclasses.asdict(found.plan)
    assert plain.to_dict()["plan"] is None


def test_what_was_asked_for_is_left(monkeypatch, plain):
    have(monkeypatch, SMALL)
    found = fit(Spheres(), restart_batch=4)
    assert found.plan.lanes == 4
    assert_close(found, plain)
    found = fit(jaxem.chunked(Spheres(), 4000))
    assert found.plan.chunk is None
    assert found.plan.lanes == 2
    assert "memory    2 restarts at once" in repr(found)
    assert repr(found.model) == "Chunked(model=Spheres(num=3), size=4000)"
    assert_close(found, plain)


def test_blocks_that_do_not_fit_are_made_smaller(monkeypatch):
    model = jaxem.GMM(3)
    plain = fit(model)
    have(monkeypatch, TINY)
    found = fit(model)
    assert found.plan.chunk < 2000
    assert found.plan.lanes == 1
    assert_close(found, plain)


def test_a_gradient_keeps_all_rows_so_that_lanes_are_fewer(monkeypatch):
    algorithm = jaxem.GradientAscent()
    model = dataclasses.replace(jaxem.Mixture(jaxem.families.Poisson(), 2))
    data = np.abs(X).round()
    plain = fit(model, data, algorithm=algorithm)
    have(monkeypatch, SMALL)
    found = fit(model, data, algorithm=algorithm)
    assert found.plan.lanes == 1
    assert_close(found, plain)


def test_inside_jit_as_outside(monkeypatch, plain):
    have(monkeypatch, SMALL)
    found = jax.jit(lambda x: fit(Spheres(), x))(X)
    assert found.plan.chunk is not None
    assert_close(found, plain)


def test_rows_over_devices_are_planned_for_one(monkeypatch, plain):
    have(monkeypatch, 8 * TINY)  # which the devices of a CPU share
    found = fit(Spheres(), jaxem.shard_data(X))
    assert found.plan is not None
    assert found.plan.memory == TINY
    assert found.plan.chunk is None or found.plan.chunk < 625
    assert type(found.model) is Spheres
    assert_close(found, plain)
    have(monkeypatch, 2 * TINY)
    assert_close(fit(Spheres(), jaxem.shard_data(X)), plain)


def test_a_stream_says_what_it_holds(monkeypatch, plain):
    start = jax.tree.map(lambda leaf: np.stack([leaf] * 2), plain.params)
    options = {"num_restarts": 2, "params": start}
    memory_fit = fit(Spheres(), **options)
    stream = jaxem.stream(X, batch_rows=2500)
    found = fit(Spheres(), stream, **options)
    assert (found.plan.batch, found.plan.chunk) == (2500, None)
    assert found.plan.held >= 2500 * 3 * 8
    assert "  memory    batches of 2,500 rows, 2 restarts at once: about " in repr(found)
    have(monkeypatch, TINY)
    chunks = fit(Spheres(), stream, **options)
    assert chunks.plan.chunk < 2500
    assert "batches of 2,500 rows, chunks of " in repr(chunks)
    for each in (found, chunks):
        assert type(each.model) is Spheres
        assert_close(each, memory_fit)


def test_ordinary_fits_are_not_traced_for_it(monkeypatch):
    def never(*args):
        raise AssertionError

    monkeypatch.setattr(plan, "_step_bytes", never)
    have(monkeypatch, 2**30)
    for model in (Spheres(), jaxem.GMM(3), jaxem.KMeans(3)):
        assert fit(model, X[:500], max_steps=1).plan is None


def test_memory_that_runs_out_says_what_to_set(monkeypatch):
    monkeypatch.setattr(plan, "_surely_fits", lambda *args: True)
    with pytest.raises(MemoryError) as caught:
        fit(Huge(), max_steps=1)
    text = str(caught.value)
    assert text.startswith("fit: expected all that it holds at once to fit into the ")
    assert (
        " TiB more being allocated, beside 0.1 MiB of data, for 4 of 4 restarts at once; set restart_batch=1, " in text
    )
    assert "fewer num_restarts, jaxem.chunked(model, 620), or rows in batches, by jaxem.stream(...)" in text
    assert "Out of memory allocating" in str(caught.value.__cause__)
    with pytest.raises(MemoryError, match=r"set fewer num_restarts, .*, or fewer batch_rows in jaxem\.stream"):
        fit(Huge(), jaxem.stream(X), max_steps=1, restart_batch=1)


def test_a_question_that_is_too_large(plain, monkeypatch):
    params = plain.params
    many = np.broadcast_to(X[:1], (memory.WAITED, 2)).copy()
    for ask in (Huge().posterior, Huge().predict):
        with pytest.raises(
            MemoryError, match=rf"{ask.__name__}: expected the answer to fit .* for 10,000 rows; ask for"
        ):
            ask(params, many)
    answers = Huge().posterior(params, jaxem.stream(X))
    with pytest.raises(MemoryError, match="posterior: expected the answer .* for a batch of .* fewer batch_rows"):
        next(iter(answers))
    one = Spheres().posterior(params, jaxem.stream(X))
    monkeypatch.setattr(np, "concatenate", lambda parts: np.empty(2**57))
    with pytest.raises(MemoryError, match=r"all answers together to fit .* found 1\.0 EiB more .*\.save\(path\)"):
        one.array()


def test_nothing_computed_is_lost(monkeypatch, tmp_path, plain):
    """Memory that runs out after some steps: the checkpoint has them, and the fit goes on from there."""
    path, steps = tmp_path / "table.npz", []
    stepped = drive._table.stepped

    def once(*args):
        if steps:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8.00GiB.")
        steps.append(stepped(*args))
        return steps[0]

    with monkeypatch.context() as patch:
        patch.setattr(drive._table, "stepped", once)
        with pytest.raises(MemoryError, match=r"found 8\.0 GiB more being allocated"):
            fit(Spheres(), checkpoint=path)
    assert path.exists()
    found = fit(Spheres(), checkpoint=path)
    np.testing.assert_array_equal(found.restarts.trace, plain.restarts.trace)
    have(monkeypatch, 2**40)  # of a larger machine, the same
    np.testing.assert_array_equal(fit(Spheres(), checkpoint=path).restarts.trace, plain.restarts.trace)


def test_other_errors_are_left():
    for error in (jax.errors.JaxRuntimeError("INTERNAL: no"), ValueError("no")):
        with pytest.raises(type(error), match="no"), memory.explained("fit: expected", "", ""):
            raise error


def test_what_a_program_holds():
    x = jax.ShapeDtypeStruct((1000,), jnp.float64)

    def peak(f, *args):
        return memory.peak(jax.make_jaxpr(f)(*args).jaxpr)

    assert peak(lambda x: x, x) == 0
    assert peak(lambda x: jnp.sin(jnp.cos(x)), x) == 16_000
    assert peak(lambda x: jnp.sin(x) + jnp.cos(x), x) == 24_000
    assert peak(jax.jit(lambda x: jnp.sin(jnp.cos(x))), x) == 16_000
    assert peak(lambda x: jnp.sum(x[:, None] * jnp.ones((1, 50))), x) == 400_008
    # Results of slices are put together: what is made of one of them comes and goes.
    assert peak(lambda x: jax.lax.map(lambda row: jnp.sin(jnp.cos(row)), x), x) == 8_000 + 2 * 8


def test_limits_of_control_groups(tmp_path):
    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    machine = memory._machine.__wrapped__
    physical = machine(tmp_path)
    assert physical > 2**20
    write("proc/self/cgroup", "0::/batch/job\n")
    assert machine(tmp_path) == physical
    write("sys/fs/cgroup/batch/job/memory.max", "max\n")
    write("sys/fs/cgroup/batch/memory.max", "4096\n")
    assert machine(tmp_path) == 4096
    write("proc/self/cgroup", "5:cpu,memory:/docker\n3:pids:/batch\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "2048\n")
    assert machine(tmp_path) == 2048


def test_sizes_and_plans_are_read():
    assert [memory.shown_size(size) for size in (1, 3 << 29, 5 << 41)] == ["0.0 MiB", "1.5 GiB", "10.0 TiB"]
    assert str(Plan(1, 1)) == "chunks of 1 row, 1 restart at once: about 0.0 MiB"
    assert str(Plan(3, batch=10_000, held=3 << 20, memory=2**30)) == (
        "batches of 10,000 rows, 3 restarts at once: about 3.0 MiB of 1.0 GiB"
    )
