"""Streams: the same rows from every kind of source, in any pass and order."""

import itertools
import json
import os
import tracemalloc

import jax
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import SOURCES, TABLE, D, Loader, N, W, X, frames, put

import jaxem


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_rows(folder, kind):
    source = SOURCES[kind](folder)
    for batch_rows, first in itertools.product((None, 1, 7, 50, 64, N, 1000), (0, 1, 3, 10_000)):
        stream = jaxem.stream(source, batch_rows=batch_rows)
        assert not stream.weighted
        for _ in range(2):
            batches = list(stream.read(first))
            assert (first == 10_000) == (not batches) or batch_rows in (None, N, 1000)
            for batch in batches:
                num = len(batch.data)
                assert 1 <= num <= stream.batch_rows
                assert batch.data.dtype == np.float32
                assert batch.data.flags.c_contiguous
                assert np.array_equal(batch.data, X[batch.start : batch.start + num])
                assert batch.weights is None
            if first == 0:
                assert sum(len(batch.data) for batch in batches) == N == stream.num_rows


@pytest.mark.parametrize("kind", SOURCES)
def test_shuffled_rows_are_a_permutation(folder, kind):
    stream = jaxem.stream(SOURCES[kind](folder), batch_rows=10)
    seen = []
    for seed in (0, 1):
        shuffled = stream.shuffled(seed, 3)
        batches = list(shuffled.read())
        assert all(len(batch.data) == 10 for batch in batches)
        rows = np.concatenate([batch.data for batch in batches])
        assert np.array_equal(np.sort(rows[:, 0]), np.sort(X[:, 0]))
        again = list(shuffled.read(5))
        assert [batch.start for batch in again] == list(range(50, N, 10))
        assert all(np.array_equal(a.data, b.data) for a, b in zip(batches[5:], again, strict=True))
        seen.append(rows)
    assert not np.array_equal(*seen)
    assert stream.shuffled(0).identity() != stream.shuffled(1).identity()


def test_shuffled_rows_mix_across_row_groups(folder):
    order = {value: i for i, value in enumerate(X[:, 0].tolist())}
    batch = next(jaxem.stream(folder / "rows.parquet", batch_rows=31, buffer=4).shuffled(0).read())
    groups = {order[value] // 31 for value in batch.data[:, 0].tolist()}
    assert len(groups) >= 3
    large = jaxem.stream(folder / "many", batch_rows=10, buffer=4)  # whose row groups are larger than the buffer
    for seed in range(5):
        rows = [order[value] for value in next(large.shuffled(seed).read()).data[:, 0].tolist()]
        assert len(set(np.searchsorted([40, 80, 100], rows, "right").tolist())) >= 2


def test_weights_come_with_their_rows(folder):
    pairs = lambda: ((X[i : i + 40], W[i : i + 40]) for i in range(0, N, 40))
    sources = [
        (folder / "weighted.parquet", "w"),
        (TABLE, "w"),
        (folder / "rows.npy", folder / "w.npy"),
        (folder / "rows.parquet", W),
        (X, W),
        (X, W.tolist()),
        (pairs, True),
        (Loader(X, W), True),
        (lambda: TABLE.to_batches(max_chunksize=40), "w"),
    ]
    for source, weights in sources:
        stream = jaxem.stream(source, weights=weights, batch_rows=17)
        assert stream.weighted
        for order in (stream, stream.shuffled(0)):
            rows = np.concatenate([batch.data for batch in order.read()])
            found = np.concatenate([batch.weights for batch in order.read()])
            assert rows.shape == (N, D)
            assert found.dtype == np.float32
            assert dict(zip(rows[:, 0].tolist(), found.tolist(), strict=True)) == dict(
                zip(X[:, 0].tolist(), W.tolist(), strict=True)
            )


def test_pytrees_and_columns(folder):
    both = {"x": folder / "rows.npy", "y": W.astype(np.float64), "z": X}
    stream = jaxem.stream(both, columns=["x", "y"], batch_rows=100)
    batches = list(stream.read())
    assert [batch.data["x"].shape for batch in batches] == [(100, D), (100, D), (30, D)]
    assert {leaf.dtype for leaf in jax.tree.leaves(batches[0].data)} == {np.dtype(np.float64)}
    assert np.array_equal(np.concatenate([batch.data["y"] for batch in batches]), W.astype(np.float64))
    pair = next(jaxem.stream((X, W)).read()).data
    assert isinstance(pair, tuple)
    assert pair[1].shape == (N,)
    picked = jaxem.stream(folder / "weighted.parquet", columns=["x2", "x0"], weights="w")
    assert picked.columns == ("x2", "x0")
    assert np.array_equal(next(picked.read()).data, X[:, [2, 0]])
    assert jaxem.stream(frames, columns=["x2"]).columns == ("x2",)


@pytest.mark.parametrize(
    ("given_dtype", "kept"),
    [("f2", "f4"), ("f4", "f4"), (">f4", "f4"), ("f8", "f8"), ("i4", "f8"), ("u1", "f8"), ("?", "f8")],
)
def test_dtypes_are_those_of_data_in_memory(tmp_path, given_dtype, kept):
    x = (np.arange(12).reshape(6, 2) % 2).astype(given_dtype)
    np.save(tmp_path / "x.npy", x)
    sources = [x, tmp_path / "x.npy", lambda: [x]]
    if given_dtype[0] != ">":
        sources.append(pa.table({"a": x[:, 0], "b": x[:, 1]}))
    for source in sources:
        data = next(jaxem.stream(source).read()).data
        assert data.dtype == np.dtype(kept) == jaxem.core.rows.read(x)[0].dtype
        assert np.array_equal(data, x.astype(kept))


def test_wide_numbers_where_x64_is_off(folder, tmp_path):
    with jax.enable_x64(False):
        stream = jaxem.stream(folder / "wide.npy")
        assert next(stream.read()).data.dtype == np.float32
        np.save(tmp_path / "large.npy", np.where(np.arange(6)[:, None] == 4, 1e300, np.ones((6, 2))))
        with pytest.raises(
            ValueError, match=r"large.npy: expected numbers that float32 can hold; found 1e\+300 in row 4"
        ):
            list(jaxem.stream(tmp_path / "large.npy").read())
        with pytest.warns(UserWarning, match="keeps fewer than three digits"):
            list(jaxem.stream(1.7e9 + np.arange(10.0)).read())


def test_rows_of_a_batch():
    count = lambda shape, **kw: jaxem.stream(np.zeros(shape, np.float32), **kw).batch_rows
    assert count((10, 3)) == 10
    assert count((10, 3), batch_rows=4) == 4
    assert count((100_000, 64)) == 25_008  # four equal ones of less than 8 MiB
    assert count((300_000,)) == 100_000
    assert count((4000, 4096)) == 1008
    assert jaxem.stream(lambda: [X[:9], X]).batch_rows == 9


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    batch_rows=st.integers(1, 12),
    buffer=st.integers(1, 5),
    first=st.integers(0, 8),
    seed=st.integers(0, 5),
)
def test_any_sizes(tmp_path_factory, sizes, batch_rows, buffer, first, seed):
    num = sum(sizes)
    if not num:
        return
    path = tmp_path_factory.mktemp("any") / "rows.parquet"
    x, at = np.arange(num, dtype=np.float32), 0
    with pq.ParquetWriter(path, pa.schema([("x", pa.float32())])) as writer:
        for size in sizes:
            writer.write_table(pa.table({"x": x[at : at + size]}))
            at += size
    stream = jaxem.stream(path, batch_rows=batch_rows, buffer=buffer)
    values = lambda batches: [value for batch in batches for value in batch.data[:, 0].tolist()]
    assert values(stream.read(first)) == x[first * batch_rows :].tolist()
    mixed = stream.shuffled(seed)
    assert sorted(values(mixed.read())) == x.tolist()
    assert values(mixed.read(first)) == values(mixed.read())[first * batch_rows :]


def test_identity_tells_rows_apart(folder, tmp_path):
    os.link(folder / "rows.npy", tmp_path / "other.npy")
    for kind, source in SOURCES.items():
        one, two = (jaxem.stream(source(folder), batch_rows=20).identity() for _ in range(2))
        assert one == two == json.loads(json.dumps(one)), kind
    identity = lambda source, **kw: jaxem.stream(source, **kw).identity()
    assert identity(X) != identity(X[::-1])
    assert identity(X) != identity(X, batch_rows=20)
    assert identity(folder / "rows.npy") != identity(tmp_path / "other.npy")
    assert identity(TABLE, columns=["x0"]) != identity(TABLE, columns=["x1"])
    assert identity([X, X]) != identity([X + 1, X])


def test_a_relative_path_outlives_a_change_of_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    streams = [jaxem.stream(name) for name in ("rows.npy", "rows.parquet", "rows.feather")]
    monkeypatch.chdir("/")
    for stream in streams:
        assert np.array_equal(next(stream.read()).data, X)


def test_a_pass_holds_a_few_batches(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((400_000, 8), np.float32))
    stream = jaxem.stream(tmp_path / "rows.npy", batch_rows=10_000, buffer=3)
    batch_bytes = 10_000 * 8 * 4
    for order, most in ((stream, 4), (stream.shuffled(0), 8)):
        tracemalloc.start()
        assert sum(len(batch.data) for batch in order.read()) == 400_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most * batch_bytes


def test_columns_of_lists_and_decimals(tmp_path):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), D)
    decimals = pa.array(list(range(N)), pa.decimal128(9, 2))
    table = pa.table({"a": decimals, "x": lists})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=31)
    for source in (tmp_path / "rows.parquet", table):
        stream = jaxem.stream(source, columns=["x", "a"], batch_rows=40)
        assert stream.columns == ("x[0]", "x[1]", "x[2]", "a")
        rows = np.concatenate([batch.data for batch in stream.read()])
        assert np.array_equal(rows, np.column_stack([X, np.arange(N)]))
    values = X.ravel().tolist()
    values[50 * D + 2] = None
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), D)})
    with pytest.raises(ValueError, match="found a null in row 50, column 'x'"):
        list(jaxem.stream(table, batch_rows=40).read())
    with pytest.raises(ValueError, match="weights: expected one number in each row; found lists in column 'x'"):
        jaxem.stream(pa.table({"a": W, "x": lists}), weights="x")


def test_grain_loaders():
    grain = pytest.importorskip("grain")
    data = grain.MapDataset.source(X).batch(50)
    for source in (data, data.to_iter_dataset()):
        stream = jaxem.stream(source)
        for _ in range(2):
            assert np.array_equal(np.concatenate([batch.data for batch in stream.read()]), X)


def test_two_passes_at_once(folder):
    for kind in ("npy", "parquet", "feather", "h5", "zarr", "function"):
        stream = jaxem.stream(SOURCES[kind](folder), batch_rows=10)
        for one, two in zip(stream.read(), stream.read(), strict=True):
            assert np.array_equal(one.data, two.data)


def test_a_pass_that_begins_later_reads_nothing_of_what_comes_before(tmp_path):
    bad = put(X, 3, 0, np.nan)
    np.save(tmp_path / "rows.npy", bad)
    table = pa.table({f"x{i}": bad[:, i] for i in range(D)})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=31)
    feather.write_feather(table, tmp_path / "rows.feather", chunksize=31)
    for source in (*(tmp_path / f"rows.{kind}" for kind in ("npy", "parquet", "feather")), bad, table, zarr.array(bad)):
        stream = jaxem.stream(source, batch_rows=35)
        for batch in stream.read(1):
            assert np.array_equal(batch.data, X[batch.start : batch.start + 35])
        with pytest.raises(ValueError, match="in row 3"):
            next(stream.read())


def test_halves_of_both_kinds():
    for dtype in (jax.numpy.float16, jax.numpy.bfloat16):
        x = jax.numpy.asarray(X, dtype)
        for source in (x, np.asarray(x), [np.asarray(x)]):
            data = next(jaxem.stream(source).read()).data
            assert data.dtype == np.float32
            assert np.array_equal(data, np.asarray(x, np.float32))
