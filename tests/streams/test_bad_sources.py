"""Streams: every bad source named."""

import os
import sys

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from sources import ROWS, TABLE, D, N, W, X, put

import jaxem


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
