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

    for name in cases.CASES if num < 4 else cases.SOME:
        rows, weights = cases.rows_of(name, rank, num)
        rows = jaxem.shard_data(rows, weights)
        fit = cases.fitted(name, rows)
        np.savez(f"{output}/{name}-{rank}.npz", **cases.numbers(fit), **cases.answers(name, fit, rows, own=rows.own))
    for name in cases.STREAMED if num < 4 else cases.STREAMED[:1]:
        rows, weights = cases.rows_of(name, rank, num)
        stream = jaxem.stream(rows, batch_rows=17 if name == "full" else 2500, weights=weights)
        fit = cases.fitted(name, stream, model=jaxem.sharded(cases.CASES[name][0]))
        np.savez(f"{output}/streamed-{name}-{rank}.npz", **cases.numbers(fit))
    mesh = jax.make_mesh((2, jax.device_count() // 2), ("restarts", "rows"))
    for name in cases.DEALT if num < 4 else cases.DEALT[:1]:
        half = rank % max(1, num // 2), max(1, num // 2)
        rows, weights = cases.rows_of(name, *half)
        fit = cases.fitted(name, jaxem.shard_data(rows, weights, mesh), num_restarts=4)
        np.savez(f"{output}/dealt-{name}-{rank}.npz", **cases.numbers(fit))


def stepped(rank, num, output):
    """One fit without a stop, and again with a checkpoint after each step; says in which step it is."""
    import cases

    import jaxem
    from jaxem.engine import checkpoint, drive

    drive.SEGMENT, checkpoint.INTERVAL = 0.0, 0.0
    rows, weights = cases.rows_of("full", rank, num)
    rows = jaxem.shard_data(rows, weights)
    endless = {"stop": jaxem.Stop(atol=-np.inf), "max_steps": 120, "num_restarts": 2}
    found = pathlib.Path(f"{output}/whole-{rank}.npz")
    if not found.exists():
        np.savez(found, **cases.numbers(cases.fitted("full", rows, **endless)))
    say = lambda progress: print("steps", progress.steps, flush=True)
    fit = cases.fitted("full", rows, **endless, checkpoint=f"{output}/checkpoint.npz", callback=say)
    np.savez(f"{output}/resumed-{rank}.npz", **cases.numbers(fit))


def wrong(rank, num, output):
    """Tells what is refused of what differs among processes, and how a fit ends that one of them interrupts."""
    import os
    import signal

    import cases

    import jaxem

    def told(name, work):
        try:
            said = work()
        except (ValueError, RuntimeError) as error:
            said = str(error)
        print(name, said.replace("\n", " "), sep=" | ", file=lines, flush=True)

    own = cases.rows_of("diag", rank, num)[0]
    bad = np.where(np.arange(own.size).reshape(own.shape) == 4, np.nan, own)
    other = own[:, : 1 + rank]
    rows, endless = jaxem.shard_data(own), {"stop": jaxem.Stop(atol=-np.inf), "max_steps": 10**6 // 50}
    fit = lambda rows, **changed: jaxem.fit(jaxem.GMM(2, "diag"), rows, **{"key": cases.KEY, **endless, **changed})
    one, both = (np.array(jax.devices()[:n]) for n in (1, num))
    dealt = jax.sharding.Mesh(both, ("restarts",))
    press = lambda progress: os.kill(os.getpid(), signal.SIGINT) if rank == 1 else None
    with open(f"{output}/{rank}.out", "w") as lines:
        told("not finite", lambda: jaxem.shard_data(bad if rank == 1 else own))
        told("columns", lambda: jaxem.shard_data(other))
        told("key", lambda: fit(rows, key=jax.random.key(rank)))
        told("max_steps", lambda: fit(rows, max_steps=3 + rank))
        told("mesh", lambda: jaxem.shard_data(own, mesh=jax.sharding.Mesh(one, ("rows",))))
        told("rows", lambda: jaxem.shard_data(own, mesh=dealt))
        told("interrupted", lambda: jaxem.Status(int(fit(rows, callback=press).status)).name)
        told("late", lambda: str(fit(rows, time_limit=0.3 if rank == 0 else 1e6).num_steps))
        jax.config.update("jax_compilation_cache_dir", output)
        jax.config.update("jax_enable_compilation_cache", True)
        told("cache", lambda: fit(rows))


if __name__ == "__main__":
    port, rank, num, devices = map(int, sys.argv[1:5])
    jax.config.update("jax_num_cpu_devices", devices)
    patience = {"heartbeat_timeout_seconds": 10, "shutdown_timeout_seconds": 10}
    jax.distributed.initialize(f"localhost:{port}", num, rank, cluster_detection_method="deactivate", **patience)
    {"everything": everything, "stepped": stepped, "wrong": wrong}[sys.argv[5]](rank, num, sys.argv[6])
