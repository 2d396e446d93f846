"""Data as people hold them: memory of any order, files, arrays of other libraries, frames, in every function."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem.core import columns, rows

KEY = jax.random.key(0)
X = (np.random.default_rng(0).normal(size=(60, 3)) + 6.0 * (np.arange(60) % 2)[:, None]).astype(np.float64)


class Tensor:
    """An array of another library: DLPack alone, and nothing else of NumPy's."""

    def __init__(self, array, device=1, error=None, dtype="float64"):
        self.array, self.device, self.error, self.dtype = array, device, error, dtype

    def __dlpack__(self, **kwargs):
        if self.error is not None:
            raise self.error
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return (self.device, 0)


class Tracked(Tensor):
    """A tensor that also has `__array__`, as those of torch do, which refuse where gradients are tracked."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


@pytest.fixture(scope="module")
def fit():
    return jaxem.fit(jaxem.GMM(2, "diag"), X, key=KEY, max_steps=5)


def containers(folder):
    mapped = np.memmap(folder / "x.bin", np.float64, "w+", shape=X.shape)
    mapped[:] = X
    np.save(folder / "x.npy", X)
    return {
        "memmap": np.memmap(folder / "x.bin", np.float64, "r", shape=X.shape),
        "npy, mapped": np.load(folder / "x.npy", mmap_mode="r"),
        "Fortran order": np.asfortranarray(X),
        "other bytes": X.astype(">f8"),
        "every other row": np.repeat(X, 2, 0)[::2],
        "backwards": X[::-1][::-1],
        "read only": np.frombuffer(X.tobytes()).reshape(X.shape),
        "DLPack": Tensor(X),
        "lists": X.tolist(),
    }


def test_every_container_gives_the_same_bits(fit, tmp_path):
    expected = jaxem.bic(fit, X), fit.predict(X), fit.log_prob(X)
    for name, data in containers(tmp_path).items():
        found = jaxem.bic(fit, data), fit.predict(data), fit.log_prob(data)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
        again = jaxem.fit(jaxem.GMM(2, "diag"), data, key=KEY, max_steps=5, weights=Tensor(np.ones(60)))
        np.testing.assert_array_equal(again.params.components.mean, fit.params.components.mean, err_msg=name)


def test_tensors_that_cannot_be_read_are_named(fit):
    with pytest.raises(
        TypeError, match="data: expected numbers; found Can't call numpy.. on Tensor that requires grad"
    ):
        fit.predict(Tracked(X))
    far = Tensor(X, device=2, error=BufferError("no such device here"))
    with pytest.raises(TypeError, match=r"data: expected an array that JAX can take; found .*\.numpy\(\)"):
        fit.predict(far)
    halves = Tensor(jnp.asarray(X, jnp.bfloat16), dtype="torch.bfloat16")  # which NumPy cannot read
    array, _ = columns.read("data", halves)
    assert array.dtype == jnp.bfloat16


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mapped_file_is_not_copied_whole_on_the_host(tmp_path, order):
    shape = (200_000, 8)
    big = np.memmap(tmp_path / "big.bin", np.float64, "w+", shape=shape, order=order)
    big[:] = np.random.default_rng(0).normal(size=shape)
    tracemalloc.start()
    found, _ = columns.read("data", big)
    rows.check_finite("data", found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.shares_memory(found, big)
    assert peak < big.nbytes / 2  # masks of a byte for each number


def test_every_function_takes_frames(fit):
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    arrow = pytest.importorskip("pyarrow")
    names = ["a", "b", "c"]
    table = pandas.DataFrame(X, columns=names)
    named = jaxem.fit(jaxem.GMM(2, "diag"), table, key=KEY, max_steps=5)
    bayes = jaxem.fit(jaxem.BayesianGMM(2, "diag"), table, key=KEY, max_steps=3)
    vae = jaxem.VAE(jaxem.networks.mlp(2), jaxem.networks.mlp(3), latent_dim=1, likelihood=jaxem.likelihoods.Gaussian())
    vae = jaxem.fit(vae, table, key=KEY, max_steps=1)
    asked = {
        "bic": lambda x: jaxem.bic(named, x),
        "aic": lambda x: jaxem.aic(named, x),
        "icl": lambda x: jaxem.icl(named, x),
        "predict": named.predict,
        "posterior": named.posterior,
        "log_prob": named.log_prob,
        "decompose": lambda x: jax.tree.leaves(named.decompose(named.params, x)),
        "importance": lambda x: jax.tree.leaves(jaxem.importance(bayes, x, key=KEY, num_draws=30)),
        "amortisation_gap": lambda x: jax.tree.leaves(jaxem.amortisation_gap(vae, x, key=KEY, num_steps=2)),
    }
    arrow_table = arrow.table({name: X[:, d] for d, name in enumerate(names)})
    for name, ask in asked.items():
        expected = ask(X)
        for frame in (table, polars.DataFrame(X, schema=names), arrow_table):
            for a, b in zip(jax.tree.leaves(ask(frame)), jax.tree.leaves(expected), strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)
        with pytest.raises(ValueError, match="expected the columns in the order of the fit, 'a', 'b', 'c'"):
            ask(table[["b", "a", "c"]])


def test_held_out_rows_pass_the_same_door():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=["a", "b", "c"])
    climb = lambda rows: jaxem.GradientAscent(optax.adam(0.05), held_out=rows)
    fit = lambda rows: jaxem.fit(jaxem.GMM(2, "diag"), table, key=KEY, algorithm=climb(rows), max_steps=2)
    np.testing.assert_array_equal(fit(table).trace, fit(X).trace)
    with pytest.raises(ValueError, match="held_out: expected the columns in the order of the fit, 'a', 'b'"):
        fit(table[["c", "a", "b"]])  # which went by in silence
    mixed = table.assign(kind=np.where(X[:, 0] > 3, "high", "low"))
    model = jaxem.Mixture(jaxem.families.from_frame(mixed), 2)
    jaxem.fit(model, mixed, key=KEY, algorithm=climb(mixed), max_steps=1)
