"""Streams: the same rows from every kind of source, and every bad source named."""

import itertools
import os
import sys
import tracemalloc

import h5py
import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxem

N, D = 230, 3
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
W = np.random.default_rng(1).uniform(size=N).astype(np.float32)
TABLE = pa.table({**{f"x{i}": X[:, i] for i in range(D)}, "w": W})
ROWS = TABLE.drop_columns("w")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    np.save(folder / "rows.npy", X)
    np.save(folder / "fortran.npy", np.asfortranarray(X))
    np.save(folder / "wide.npy", X.astype(">f8"))
    np.save(folder / "w.npy", W)
    pq.write_table(ROWS, folder / "rows.parquet", row_group_size=31)
    pq.write_table(TABLE, folder / "weighted.parquet", row_group_size=31)
    feather.write_feather(ROWS, folder / "rows.feather", chunksize=31)
    (folder / "many" / "deep").mkdir(parents=True)
    pq.write_table(ROWS.slice(0, 100), folder / "many" / "a.parquet", row_group_size=40)
    pq.write_table(ROWS.slice(100), folder / "many" / "deep" / "b.parquet")
    (folder / "many" / "_metadata.parquet").write_bytes(b"no table")
    with h5py.File(folder / "rows.h5", "w") as file:
        file["x"] = X
        file.create_dataset("chunked", data=X, chunks=(37, D))
    return folder


class Loader:
    """Iterated again and again, as a DataLoader; the arrays of a batch come in a list."""

    def __init__(self, *arrays, size=50):
        self.arrays, self.size = arrays, size

    def __iter__(self):
        for first in range(0, N, self.size):
            yield [array[first : first + self.size] for array in self.arrays]


def frames():
    return (ROWS.slice(first, 50).to_pandas() for first in range(0, N, 50))


SOURCES = {
    "npy": lambda f: f / "rows.npy",
    "text": lambda f: str(f / "rows.npy"),
    "fortran": lambda f: f / "fortran.npy",
    "npys": lambda f: [f / "rows.npy"],
    "memmap": lambda f: np.load(f / "rows.npy", mmap_mode="r"),
    "view": lambda f: np.load(f / "rows.npy", mmap_mode="r")[:],
    "fortran map": lambda f: np.load(f / "fortran.npy", mmap_mode="r"),
    "copied map": lambda f: np.load(f / "rows.npy", mmap_mode="c"),
    "array": lambda f: X,
    "strided": lambda f: np.repeat(X, 2, 1)[:, ::2],
    "jax": lambda f: jax.numpy.asarray(X),
    "zarr": lambda f: zarr.array(X, chunks=(50, D)),
    "h5": lambda f: h5py.File(f / "rows.h5")["x"],
    "h5 chunks": lambda f: h5py.File(f / "rows.h5")["chunked"],
    "parquet": lambda f: f / "rows.parquet",
    "feather": lambda f: f / "rows.feather",
    "directory": lambda f: f / "many",
    "paths": lambda f: [f / "many" / "a.parquet", f / "many" / "deep" / "b.parquet"],
    "mixed": lambda f: [f / "many" / "a.parquet", f / "many" / "deep"],
    "table": lambda f: ROWS,
    "record batch": lambda f: ROWS.combine_chunks().to_batches()[0],
    "dataset": lambda f: ds.dataset([f / "many" / "a.parquet", f / "many" / "deep" / "b.parquet"]),
    "feather dataset": lambda f: ds.dataset(f / "rows.feather", format="feather"),
    "list": lambda f: [X[:50], X[50:51], X[51:]],
    "loader": lambda f: Loader(X),
    "function": lambda f: lambda: iter([X[:50], X[50:51], X[51:]]),
    "frames": lambda f: frames,
    "polars": lambda f: lambda: (pl.from_pandas(frame) for frame in frames()),
    "record batches": lambda f: lambda: ROWS.to_batches(max_chunksize=50),
}


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
    import json

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


def put(x, row, column, value):
    x = x.copy()
    x[row, column] = value
    return x


@pytest.mark.parametrize(("value", "said"), [(np.nan, "nan"), (-np.inf, "-inf"), (None, "a null")])
def test_bad_numbers_are_named(tmp_path, value, said):
    columns = {f"x{i}": [value if (row, i) == (123, 1) else 1.0 for row in range(N)] for i in range(D)}
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=31)
    pq.write_table(table, tmp_path / "small.parquet", row_group_size=3)  # several are read at once
    feather.write_feather(table, tmp_path / "rows.feather", chunksize=31)
    where = "expected finite numbers; found " + said + " in row 123, column 'x1'"
    for source, place in (
        ("rows.parquet", "rows.parquet, row group 3"),
        ("small.parquet", "small.parquet, row group 41"),
        ("rows.feather", "rows.feather, record batch 3"),
        (table, "source"),
        (ds.dataset(tmp_path / "rows.parquet"), "rows.parquet, row group 3"),
    ):
        stream = jaxem.stream(tmp_path / source if isinstance(source, str) else source, batch_rows=40)
        for _ in range(2):  # in every pass
            with pytest.raises(ValueError, match=f"{place}: {where}"):
                list(stream.read())
        with pytest.raises(ValueError, match=f"{place}: {where}"):
            list(stream.read(3))
        with pytest.raises(ValueError, match=f"{place}: {where}"):
            list(stream.shuffled(0).read())
    if value is None:
        return
    np.save(tmp_path / "rows.npy", put(X, 123, 1, value))
    where = where.replace("'x1'", "1")
    bad = [
        (tmp_path / "rows.npy", "rows.npy"),
        (put(X, 123, 1, value), "source"),
        (lambda: (put(X, 123, 1, value)[i : i + 30] for i in range(0, N, 30)), "source, batch 4"),
    ]
    for source, place in bad:
        with pytest.raises(ValueError, match=f"{place}: {where}"):
            list(jaxem.stream(source, batch_rows=20).read())
    with pytest.raises(
        ValueError, match=rf"source\['b'\]: expected finite .*; found {said} in row 123 of \['b'\], column 1"
    ):
        list(jaxem.stream({"a": W, "b": put(X, 123, 1, value)}).read())


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_bad_weights_are_named(tmp_path, value):
    w = W.copy()
    w[100] = value
    what = "expected weights >= 0; found -1" if value < 0 else "expected finite weights; found nan"
    pq.write_table(TABLE.set_column(D, "w", pa.array(w)), tmp_path / "rows.parquet", row_group_size=31)
    pairs = lambda: ((X[i : i + 30], w[i : i + 30]) for i in range(0, N, 30))
    for source, weights, place in (
        (tmp_path / "rows.parquet", "w", "row group 3"),
        (X, w, "weights"),
        (pairs, True, "source, batch 3"),
    ):
        with pytest.raises(ValueError, match=f"{place}: {what} in row 100"):
            list(jaxem.stream(source, weights=weights).read())


def test_a_file_that_ends_early(folder, tmp_path):
    raw = (folder / "rows.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(raw[:1000])
    with pytest.raises(ValueError, match=r"short.npy: expected 2888 bytes, .* \(230, 3\).*; found 1000: .* in row 72"):
        jaxem.stream(tmp_path / "short.npy")
    for name in ("rows.parquet", "rows.feather"):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:-100])
        with pytest.raises(ValueError, match=f"{name}: expected a .* with its footer at the end; found .* bytes, and"):
            jaxem.stream(tmp_path / name)
    (tmp_path / "none.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none.npy: expected at least one row; found an empty file"):
        jaxem.stream(tmp_path / "none.npy")


@pytest.mark.parametrize("name", ["rows.npy", "rows.parquet", "rows.feather", "dataset"])
@pytest.mark.parametrize("change", ["shrink", "write", "remove", "replace"])
def test_a_file_that_changes_during_the_run(folder, tmp_path, name, change):
    as_dataset, name = name == "dataset", "rows.parquet" if name == "dataset" else name
    path = tmp_path / name
    path.write_bytes((folder / name).read_bytes())
    stream = jaxem.stream(ds.dataset(path) if as_dataset else path, batch_rows=31)
    batches = stream.read()
    next(batches)
    if change == "shrink":
        os.truncate(path, 1000)
        said = "found 1000: the file shrank during the run"
    elif change == "write":
        os.utime(path, ns=(1, 1))
        said = "found that it was written to since"
    elif change == "remove":
        path.unlink()
        said = "found none"
    else:
        (tmp_path / "new").write_bytes(b"other")
        os.replace(tmp_path / "new", path)
        said = "found 5: the file shrank"
    for rows in (batches, stream.read(), stream.read(3), stream.shuffled(0).read()):
        with pytest.raises(ValueError, match=f"{name}: expected .*{said}"):
            list(rows)


def test_a_map_is_not_touched_once_its_file_has_shrunk(folder, tmp_path):
    path = tmp_path / "rows.npy"
    path.write_bytes((folder / "rows.npy").read_bytes())
    stream = jaxem.stream(np.load(path, mmap_mode="r")[10:], batch_rows=20)
    batches = stream.read()
    assert np.array_equal(next(batches).data, X[10:30])
    os.truncate(path, 500)  # the map's pages beyond are gone: to look at them is a SIGBUS
    with pytest.raises(ValueError, match="shrank"):
        list(batches)


def test_a_file_that_shrinks_while_it_is_read(folder, tmp_path, monkeypatch):
    path = tmp_path / "rows.npy"
    path.write_bytes((folder / "rows.npy").read_bytes())
    stream = jaxem.stream(path, batch_rows=50)
    monkeypatch.setattr("jaxem.streams.files.File.check", lambda self, what="": None)
    os.truncate(path, 1000)
    with pytest.raises(
        ValueError, match=r"rows.npy: expected bytes 728 to 1327; found the file's end: .*1000, in row 72"
    ):
        list(stream.read())


def test_a_damaged_row_group_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(ROWS, path, row_group_size=50, write_page_checksum=True, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(1)
    raw = bytearray(path.read_bytes())
    raw[chunk.data_page_offset + chunk.total_compressed_size - 5] ^= 0xFF
    path.write_bytes(raw)
    last = chunk.data_page_offset + chunk.total_compressed_size - 1
    where = (
        rf"row group 2: expected rows that can be read; found in column 'x1', bytes {chunk.data_page_offset} to {last}"
    )
    with pytest.raises(ValueError, match=where):
        list(jaxem.stream(path).read())
    with pytest.raises(ValueError, match=where):
        list(jaxem.stream(path, batch_rows=50).read(2))
    assert len(list(jaxem.stream(path, columns=["x0"]).read())) == 1
    pq.write_table(ROWS, path, row_group_size=2, write_page_checksum=True, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(40).column(2)
    raw = bytearray(path.read_bytes())
    raw[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="row group 40: expected rows that can be read; found in column 'x2'"):
        list(jaxem.stream(path).read())


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


def test_files_that_are_not_alike(tmp_path):
    pq.write_table(ROWS, tmp_path / "a.parquet")
    pq.write_table(ROWS.select(["x2", "x1", "x0"]), tmp_path / "b.parquet")
    stream = jaxem.stream([tmp_path / "a.parquet", tmp_path / "b.parquet"], batch_rows=N)
    assert all(np.array_equal(batch.data, X) for batch in stream.read())
    for other, said in (
        (ROWS.select(["x0", "x1"]), r"c.parquet: expected the columns of .*a.parquet; found a table without 'x2'"),
        (
            ROWS.append_column("y", pa.array(W)),
            r"c.parquet: expected the columns of .*; found a table with 'y' as well",
        ),
        (
            ROWS.set_column(1, "x1", pa.array(X[:, 1].astype(float))),
            r"c.parquet: expected float, as in .*a.parquet; found double in column 'x1'",
        ),
        (
            ROWS.select(["x2", "x1", "x0"]).set_column(1, "x1", pa.array(X[:, 1].astype(float))),
            r"c.parquet: expected float, as in .*a.parquet; found double in column 'x1'",
        ),
    ):
        pq.write_table(other, tmp_path / "c.parquet")
        with pytest.raises(ValueError, match=said):
            jaxem.stream([tmp_path / "a.parquet", tmp_path / "c.parquet"])
    np.save(tmp_path / "a.npy", X)
    for other in (X[:, :2], X.astype(float)):
        np.save(tmp_path / "b.npy", other)
        with pytest.raises(ValueError, match=r"b.npy: expected rows of shape \(3,\) and float32, as in .*; found"):
            jaxem.stream([tmp_path / "a.npy", tmp_path / "b.npy"])


def test_batches_that_are_not_alike():
    def refused(second, said, first=X, **kw):
        with pytest.raises(ValueError, match=f"source, batch 1.*: expected {said}"):
            list(jaxem.stream(lambda: [first, second], **kw).read())

    refused(X[:, :2], r"rows of shape \(3,\) and float32, as in batch 0; found rows of shape \(2,\)")
    refused(X.astype(float), "rows of shape .* float32, as in batch 0; found .* float64")
    refused((X, X), "data made as in batch 0")
    refused(X, "a pair", (X, W), weights=True)
    refused((X, W[:-1]), "arrays with one shared leading axis", (X, W))
    refused(
        TABLE.select(["x0", "w", "x2"]).to_pandas(),
        "the columns of batch 0, .*; found 'x0', 'w', 'x2'",
        ROWS.to_pandas(),
    )


def test_passes_that_differ():
    passes = iter([[X, X], [X, X], [X], [X, X, X], [X + 1, X]])
    stream = jaxem.stream(lambda: next(passes))  # the first is looked into when the stream is made
    assert stream.num_rows is None
    list(stream.read())
    assert stream.num_rows == 2 * N
    with pytest.raises(ValueError, match=r"expected 2 batches of 460 rows in all, .*; found 1 of 230 rows"):
        list(stream.read())
    with pytest.raises(ValueError, match=r"expected 2 batches of 460 rows in all, .*; found 3 of 690 rows or more"):
        list(stream.read())
    with pytest.raises(ValueError, match=r"batch 0: expected the rows that came first in .* before; found others"):
        list(stream.read())
    spent = iter([X])
    stream = jaxem.stream(lambda: spent)
    with pytest.raises(ValueError, match=r"source: expected the batches of the pass before; found none; give a"):
        list(stream.read())


@pytest.mark.parametrize(
    ("source", "keywords", "error", "said"),
    [
        ((x for x in [X]), {}, TypeError, "source: .* found a generator, which is used up .* jaxem.stream.lambda"),
        (iter([X]), {}, TypeError, "source: .* found a list_iterator"),
        (lambda: 3, {}, TypeError, "source: expected a function that returns an iterator; it returned 3"),
        (3, {}, TypeError, "source: expected .*; found 3"),
        (None, {}, TypeError, "source: expected .*; found None"),
        (jaxem.stream(X), {}, TypeError, "source: expected .*; found a stream"),
        (pd.DataFrame(X), {}, TypeError, "source: expected .*; found a frame in memory"),
        ([], {}, ValueError, "source: expected at least one row; found an empty list"),
        ({}, {}, ValueError, "source: expected at least one array"),
        (lambda: [], {}, ValueError, "source: expected at least one row"),
        (X[:0], {}, ValueError, "source: expected at least one row"),
        (np.float32(3), {}, ValueError, "source: expected an array with a leading axis"),
        ([X[:0], X], {}, ValueError, "source, batch 0: expected at least one row"),
        ([[1.0, 2.0]], {}, TypeError, "source, batch 0: expected an array .*; found a list"),
        (["a.npy", X], {}, TypeError, "source, batch 0: expected an array .*; found text, 'a.npy'"),
        ([1.0, 2.0], {}, ValueError, "source, batch 0: expected arrays with one shared leading axis"),
        ("none.npy", {}, FileNotFoundError, "source: expected a file that exists; found no 'none.npy'"),
        (
            (X, W[:-1]),
            {},
            ValueError,
            r"source: expected arrays with one shared leading axis; found lengths \[229, 230\]",
        ),
        ({"x": 3}, {}, TypeError, r"source\['x'\]: expected an array that slices, or a path; found 3"),
        (X.astype(complex), {}, TypeError, "source: expected real numbers; found dtype complex128"),
        (X.astype(str), {}, TypeError, "source: expected real numbers; found dtype <U"),
        (X, {"columns": ["a"]}, TypeError, "columns: expected None, as the arrays of source have no names"),
        (TABLE, {"columns": "x0"}, TypeError, r"columns: expected a list of names; found 'x0'; write columns=\['x0'\]"),
        (TABLE, {"columns": ["x0", "x0"]}, ValueError, "columns: expected different names"),
        (TABLE, {"columns": ["x0", "x9"]}, ValueError, "columns: expected columns of source; found none called 'x9'"),
        (TABLE, {"columns": ["w"], "weights": "w"}, ValueError, "columns: expected columns of data; found 'w'"),
        (TABLE, {"weights": "v"}, ValueError, "weights: expected a column of source; found none called 'v'"),
        (TABLE, {"weights": True}, TypeError, "weights: expected an array"),
        (X, {"weights": W[:-1]}, ValueError, r"weights: expected shape \(230,\), one for each row; found \(229,\)"),
        ([X], {"weights": W}, TypeError, "weights: expected True, for items that are pairs"),
        (X, {"batch_rows": 0}, ValueError, "batch_rows: expected an integer >= 1"),
        (X, {"batch_rows": 2.0}, TypeError, "batch_rows: expected an integer >= 1"),
        (X, {"buffer": 0}, ValueError, "buffer: expected an integer >= 1"),
        (
            TABLE.append_column("city", pa.array(["a"] * N)),
            {},
            ValueError,
            r"source: expected numbers in every column; found string in column 'city'; choose others by columns=\[",
        ),
    ],
)
def test_bad_arguments_are_named(source, keywords, error, said):
    with pytest.raises(error, match=said):
        jaxem.stream(source, **keywords)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rows.csv", "expected a .npy.*rows.csv'; give jaxem.stream.lambda: pandas.read_csv"),
        ("rows.npz", "save its arrays as .npy files"),
        ("rows.txt", "expected a .npy, .parquet"),
        ("rows.npy", "expected a .npy file; found one that begins with"),
        ("rows.parquet", "expected a Parquet file"),
    ],
)
def test_other_files_are_named(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"a,b\n1,2\n" * 5)
    with pytest.raises(ValueError, match=said):
        jaxem.stream(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"source: expected .parquet files in .*; found none"):
        jaxem.stream(tmp_path / "empty")


def test_groups_and_filters_are_refused_with_the_remedy(folder):
    with h5py.File(folder / "rows.h5") as file, pytest.raises(TypeError, match=r"choose arrays of it, as group\['x'\]"):
        jaxem.stream(file)
    filtered = ds.dataset(folder / "rows.parquet").filter(ds.field("x0") > 0)
    with pytest.raises(ValueError, match="expected a data set without a filter"):
        jaxem.stream(filtered)
    stream = jaxem.stream(lambda: filtered.to_batches())
    assert sum(len(batch.data) for batch in stream.read()) == (X[:, 0] > 0).sum()


def test_without_pyarrow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"rows.parquet is read by pyarrow: pip install 'jaxem\[streams\]'"):
        jaxem.stream(folder / "rows.parquet")


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
