"""One of several processes that fit together: worker.py PORT RANK NUM DEVICES TASK OUTPUT; see test_processes."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import settings  # noqa: F401  before JAX starts

# isort: split
import jax
import numpy as np

jax.config.update("jax_enable_x64", True)


def everything(rank, num, output):
    import cases

    import jaxem

    for name in cases.CASES:
        rows, weights = cases.rows_of(name, rank, num)
        rows = jaxem.shard_data(rows, weights)
        fit = cases.fitted(name, rows)
        np.savez(f"{output}/{name}-{rank}.npz", **cases.numbers(fit), **cases.answers(name, fit, rows, own=rows.own))
    mesh = jax.make_mesh((2, jax.device_count() // 2), ("restarts", "rows"))
    for name in cases.DEALT:
        half = rank % max(1, num // 2), max(1, num // 2)
        rows, weights = cases.rows_of(name, *half)
        fit = cases.fitted(name, jaxem.shard_data(rows, weights, mesh), num_restarts=4)
        np.savez(f"{output}/dealt-{name}-{rank}.npz", **cases.numbers(fit))


if __name__ == "__main__":
    port, rank, num, devices = map(int, sys.argv[1:5])
    jax.config.update("jax_num_cpu_devices", devices)
    patience = {"heartbeat_timeout_seconds": 10, "shutdown_timeout_seconds": 10}
    jax.distributed.initialize(f"localhost:{port}", num, rank, cluster_detection_method="deactivate", **patience)
    {"everything": everything}[sys.argv[5]](rank, num, sys.argv[6])
