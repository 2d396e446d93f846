"""Rows that stay on disk: a mixture fitted from a Parquet file, a batch at a time, ended early and gone on with.

Run:      python examples/larger_than_memory.py [--output DIR] [--toy]
Prints:   the stream; how far the fit came before it was ended, and that it then went on to the optimum; how far it is
          from the fit of the same rows in memory; labels written and the most memory that the process has held.
Writes:   rows.parquet, fit.npz and labels.npy in DIR.

One reading of a batch serves all restarts, and the rows of the starts are drawn in the first pass. `rows.parquet` may
as well be a list of files, a directory, Arrow, .npy, Zarr, or a function that makes an iterator of arrays.
"""

import argparse
import pathlib
import resource

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import jaxem


def write(path: pathlib.Path, num: int, groups: int) -> None:
    """A table of three clusters in four columns with weights, one row group after the other."""
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "d", "weight"]
    with pq.ParquetWriter(path, pa.schema([(name, pa.float32()) for name in names])) as file:
        for _ in range(groups):
            x = rng.normal(size=(num // groups, 4)) * [1, 2, 1, 3] + 2.5 * rng.integers(0, 3, (num // groups, 1))
            columns = [*x.T, rng.integers(1, 4, num // groups)]
            file.write_table(pa.table([pa.array(c.astype(np.float32)) for c in columns], names))


def main() -> None:
    """Writes the rows, fits them twice, and compares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--toy", action="store_true", help="a small file")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    path, num = args.output / "rows.parquet", 6_000 if args.toy else 600_000
    write(path, num, groups=12)

    rows = jaxem.stream(path, columns=["a", "b", "c", "d"], weights="weight")
    print(rows)
    settings = {"key": jax.random.key(0), "num_restarts": 8, "checkpoint": args.output / "fit.npz"}
    fit = jaxem.fit(jaxem.GMM(3), rows, **settings, callback=lambda seen: seen.steps >= 16)
    print(f"ended early: {fit.restarts.counts()}, ELBO {float(fit.elbo.total):.1f}")
    fit = jaxem.fit(jaxem.GMM(3), rows, **settings)  # goes on from fit.npz, as after a crash
    print(f"gone on: {fit.restarts.counts()}, {int(fit.hits)} at the same optimum, ELBO {float(fit.elbo.total):.1f}")

    table = pq.read_table(path)
    x = np.stack([table[name] for name in "abcd"], 1)
    whole = jaxem.fit(jaxem.GMM(3), x, key=jax.random.key(0), weights=np.asarray(table["weight"]), num_restarts=8)
    print(f"in memory the ELBO is {abs(float(whole.elbo.total - fit.elbo.total)) / num:.1e} nats a row away")

    fit.predict(rows).save(args.output / "labels.npy")
    labels = np.load(args.output / "labels.npy", mmap_mode="r")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{len(labels)} labels in a file of their own, clusters of {np.bincount(labels)} rows; at most {peak} MB held"
    )


if __name__ == "__main__":
    main()
