"""A mixture of Gaussians of files that lie on many hosts: the same script in one process or in N.

Run:      python examples/multi_host.py [--output DIR] [--toy]           one process, all of its devices
          python examples/multi_host.py --cluster                        where JAX finds the cluster: Slurm, TPU, ...
          JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=N JAX_PROCESS_ID=i python examples/multi_host.py
Prints:   from the first process alone: how the rows lie, and the fit, which is the same for any number of processes.
Writes:   labels-I.npy in DIR, of each process I those of its own rows, and from the first one a checkpoint: a job that
          is started again after it was killed goes on from there.

Each process loads its share of the files and nothing else; `shard_data` leaves the rows where they were loaded. The
lines that start it by Slurm, Kubernetes, Cloud TPU and Ray Train are in multi_host.md.
"""

import argparse
import os
import pathlib

import jax
import numpy as np

import jaxem

NUM_FILES = 8


def join(cluster: bool) -> None:
    """Makes this process one of those that fit together, before JAX is used; a launcher may have done so."""
    if jax.distributed.is_initialized():
        return
    # What one waits for a process that is gone; JAX's own are 100 s and 300 s.
    patience = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 30}
    if cluster:
        jax.distributed.initialize(**patience)
    elif "JAX_COORDINATOR_ADDRESS" in os.environ:
        number, rank = (int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        jax.distributed.initialize(None, number, rank, cluster_detection_method="deactivate", **patience)


def load(number: int, num_rows: int) -> np.ndarray:
    """The rows of one file; here drawn, in yours `np.load(files[number])`."""
    rng = np.random.default_rng(number)
    return rng.normal(size=(num_rows, 4)) + 2.5 * rng.integers(0, 3, num_rows)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("output"))
    parser.add_argument("--toy", action="store_true", help="few rows, for a quick look")
    parser.add_argument("--cluster", action="store_true", help="let JAX find the other processes")
    args = parser.parse_args()
    join(args.cluster)
    args.output.mkdir(parents=True, exist_ok=True)

    rank, num = jax.process_index(), jax.process_count()
    mine = np.array_split(np.arange(NUM_FILES), num)[rank]
    if not mine.size:
        raise SystemExit(f"process {rank}: expected at most {NUM_FILES} processes, one for each file; found {num}")
    rows = jaxem.shard_data(np.concatenate([load(i, 101 if args.toy else 50_001) for i in mine]))
    checkpoint = args.output / "checkpoint.npz"
    fit = jaxem.fit(jaxem.GMM(3), rows, key=jax.random.key(0), num_restarts=4, checkpoint=checkpoint)

    labels = rows.own(fit.predict(rows))
    np.save(args.output / f"labels-{rank}.npy", labels)
    if rank == 0:
        print(rows)
        print(fit)


if __name__ == "__main__":
    main()
