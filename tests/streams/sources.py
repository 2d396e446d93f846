"""The same rows in every kind of source."""

import h5py
import jax
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather as feather
import pyarrow.parquet as pq
import zarr

N, D = 230, 3
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
W = np.random.default_rng(1).uniform(size=N).astype(np.float32)
TABLE = pa.table({**{f"x{i}": X[:, i] for i in range(D)}, "w": W})
ROWS = TABLE.drop_columns("w")


def write(folder):
    """The files that `SOURCES` read."""
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


def put(x, row, column, value):
    x = x.copy()
    x[row, column] = value
    return x


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
