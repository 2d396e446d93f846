"""Devices and processes: the time of a step of EM on one core, and on two by two processes; and of eight on one chip.

Run:      python examples/benchmarks/devices.py [--rows 2000000] [--columns 16] [--components 16] [--rounds 5]
                                                 [--contenders 4]
Prints:   seconds a step of a GMM of one process on one core, of two processes pinned to one core each, of one process
          on all cores, and of one process whose CPU is eight devices; best of interleaved rounds, and their ratios.

A step is (time of 2 + STEPS steps - time of 2) / STEPS from the same params, by programs that are compiled before. All
contenders are alive in all rounds and wait for their turn, so that a noisy neighbour slows all of them. Seconds of the
CPU are of the busiest process: what neighbours change least, but without what processes wait for each other.
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys
import time

STEPS = 6


def work(port: int, rank: int, num: int, devices: int, cores: str, rows: int, columns: int, components: int) -> None:
    """One process of a contender: says "ready", and for each line that it reads times a round and says the seconds."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})  # before JAX counts its threads
    import jax
    import numpy as np

    import jaxem

    jax.config.update("jax_num_cpu_devices", devices)
    if num > 1:
        jax.distributed.initialize(f"localhost:{port}", num, rank, cluster_detection_method="deactivate")
    share = rows // num + (rank < rows % num)
    x = np.random.default_rng(rank).normal(size=(share, columns)).astype(np.float32)
    model, key = jaxem.GMM(components), jax.random.key(0)
    stop = jaxem.Stop(atol=-np.inf)
    data = x if num * devices == 1 else jaxem.shard_data(x)
    params = jaxem.fit(model, data, key=key, max_steps=1, stop=stop).params

    def timed(steps: int) -> np.ndarray:
        began = np.array([time.perf_counter(), time.process_time()])
        jaxem.fit(model, data, key=key, params=params, stop=stop, max_steps=steps)
        return np.array([time.perf_counter(), time.process_time()]) - began

    timed(2), timed(2 + STEPS)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(*(timed(2 + STEPS) - timed(2)) / STEPS, flush=True)


class Contender:
    """Processes that time their rounds together."""

    def __init__(self, cores: list[str], devices: int, sizes: list[int]):
        with socket.socket() as found:
            found.bind(("localhost", 0))
            port = found.getsockname()[1]
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        root = str(pathlib.Path(__file__).parents[2])
        env["PYTHONPATH"] = os.pathsep.join([root, env.get("PYTHONPATH", "")])
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--work", *map(str, [port, i, len(cores), devices, own, *sizes])],
                stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=env,
            )
            for i, own in enumerate(cores)
        ]  # fmt: skip
        self.heard()
        self.times: list[float] = []
        self.busy: list[float] = []

    def heard(self) -> list[str]:
        """What each process says, besides what the library that connects them writes."""
        said = []
        for process in self.processes:
            lines = iter(process.stdout.readline, "")  # type: ignore[union-attr]
            said.append(next((line.strip() for line in lines if not line.startswith("[Gloo]")), ""))
        if "" in said:
            raise RuntimeError("a process ended; start one by hand with --work to see why")
        return said

    def round(self) -> None:
        """One more time of a step: that of the slowest process."""
        for process in self.processes:
            process.stdin.write("\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        seconds = [[float(number) for number in line.split()] for line in self.heard()]
        self.times.append(max(wall for wall, _ in seconds))
        self.busy.append(max(busy for _, busy in seconds))

    def close(self) -> None:
        """Ends the processes."""
        for process in self.processes:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rows", 2_000_000), ("columns", 16), ("components", 16), ("rounds", 5), ("contenders", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    sizes = [args.rows, args.columns, args.components]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    one, two, every = str(cores[0]), str(cores[-1]), ",".join(map(str, cores))
    asked = {
        "1 process, 1 core": ([one], 1),
        "2 processes, 1 core each": ([one, two], 1),
        f"1 process, {len(cores)} cores": ([every], 1),
        f"1 process, {len(cores)} cores, 8 devices": ([every], 8),
    }
    found: dict[str, Contender] = {}
    try:
        for name, (own, devices) in list(asked.items())[: args.contenders]:
            found[name] = Contender(own, devices, sizes)
        for _ in range(args.rounds):
            for contender in found.values():
                contender.round()
    finally:
        for contender in found.values():
            contender.close()
    print(
        f"N = {args.rows:,}, D = {args.columns}, K = {args.components}, float32; seconds a step, best of {args.rounds}"
    )
    for name, contender in found.items():
        turns = " ".join(f"{t:.3f}" for t in contender.times)
        print(f"{name:32s} {min(contender.times):8.4f}   of the CPU {min(contender.busy):8.4f}   all: {turns}")
    for what in ("times", "busy"):
        seconds = [min(getattr(contender, what)) for contender in found.values()]
        ratios = [("2 processes against 1", seconds[:2]), ("8 devices against 1", seconds[2:])]
        said = [f"{name} {pair[0] / pair[1]:.2f} times as fast" for name, pair in ratios if len(pair) == 2]
        print(f"{'seconds' if what == 'times' else 'of the CPU'}: {'; '.join(said)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*map(int, sys.argv[2:6]), sys.argv[6], *map(int, sys.argv[7:]))
    else:
        main()
