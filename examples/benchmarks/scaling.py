"""A model of cost: measured steps against a formula, streamed passes against N, and plans for large machines.

Steps of fits from given params, in float32, the compilation apart (the time of a long fit less that of a short one, by
the steps between), while one of N, D, K, restarts R, chunk, devices and processes changes at a time. Then

    t = a + b N F(K, D, R) / rate + c log2(devices)

with positive a, 1 / rate and c by least squares of relative errors; N F are the flops of `_cost_model.flops`. Devices
are virtual ones of this machine, which share its cores, so that the rate is that of the machine; two processes are two
real ones that talk over localhost, and share it too.

Streams are .npy files in a temporary folder, which the operating system may hold in memory: they measure the way from
there through the fit, not a disk. A pass is timed by the fit's own callback, the least of some.

The plans at the end are arithmetic on stated assumptions, which flags change; they were not run.

    python examples/benchmarks/scaling.py --sizes full      # streams of up to 10,000,000 rows
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import _cost_model as cost
import _timing
import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem.models.kmeans import KMeansParams

NEVER = jaxem.Stop(atol=-np.inf)
KINDS = {"toy": ("diag",), "small": ("diag", "kmeans"), "full": ("diag", "full", "kmeans")}
# Rows of the steps that are measured, and of the streams.
ROWS = {"toy": 2_000, "small": 50_000, "full": 200_000}
STREAMS = {"toy": (2_000, 8_000), "small": (100_000, 400_000), "full": (100_000, 1_000_000, 10_000_000)}
COLUMNS, PASSES = 16, {"toy": 3, "small": 6, "full": 6}


@dataclasses.dataclass(frozen=True)
class Point:
    """What is measured: rows N, columns D, components K, restarts R, rows of a chunk (0 for the model's own), devices,
    processes.
    """

    rows: int
    columns: int = 16
    num: int = 16
    restarts: int = 1
    chunk: int = 0
    devices: int = 1
    processes: int = 1


def points(size: str) -> list[Point]:
    """The base, and points that differ from it in one thing."""
    n = ROWS[size]
    found = [Point(n), Point(4 * n), Point(n, devices=2), Point(n, restarts=4)]
    if size == "toy":
        return found
    found += [Point(2 * n), Point(n, columns=32), Point(n, num=32), Point(n, num=64), Point(n, chunk=n // 5)]
    found += [Point(n, devices=4), Point(n, devices=8), Point(4 * n, processes=2)]
    return found + ([Point(4 * n, columns=32, num=32), Point(4 * n, devices=8)] if size == "full" else [])


def make_data(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Rows (N, D) of 8 overlapping clusters, float32."""
    rng = np.random.default_rng(seed)
    centre = np.float32(2 * np.random.default_rng(0).standard_normal((8, columns)))
    return centre[rng.integers(8, size=rows)] + rng.standard_normal((rows, columns), np.float32)


def start(kind: str, point: Point) -> tuple[Any, Any]:
    """The model, and params for each restart: K rows that all processes know."""
    rows = make_data(point.num * point.restarts, point.columns, seed=1)
    mean = jnp.asarray(rows).reshape(point.restarts, point.num, point.columns)
    mean = mean if point.restarts > 1 else mean[0]
    lead = mean.shape[:-2]
    if kind == "kmeans":
        return jaxem.KMeans(point.num), KMeansParams(mean, jnp.zeros(lead, jnp.int32))
    model = jaxem.GMM(point.num, kind)
    scale = (
        jnp.ones(mean.shape)
        if kind == "diag"
        else jnp.broadcast_to(jnp.eye(point.columns), (*mean.shape, mean.shape[-1]))
    )
    mixing = jnp.full((*lead, point.num), 1 / point.num)
    make = lambda mixing, mean, covariance: model.make_params(mixing, mean=mean, covariance=covariance)
    return model, (jax.vmap(make) if lead else make)(mixing, mean, scale)


class Steps:
    """Fits of one point in this process, of rows of its own where there are several; timed as often as one likes."""

    def __init__(self, kind: str, point: Point):
        model, params = start(kind, point)
        self.model = jaxem.chunked(model, point.chunk) if point.chunk else model
        x = make_data(point.rows // point.processes, point.columns, seed=jax.process_index())
        alone = point.devices == point.processes == 1
        mesh = None if point.processes > 1 else point.devices
        self.data: Any = jnp.asarray(x) if alone else jaxem.shard_data(x, mesh=mesh)
        self.options = {"key": jax.random.key(0), "params": params, "num_restarts": point.restarts, "stop": NEVER}
        self.run(2)
        guess = max(self.run(2) / 3, 1e-4)
        self.long = 9 if point.processes > 1 else 1 + int(np.clip(0.3 / guess, 4, 60))  # the same in all processes
        self.least = [np.inf, np.inf]

    def run(self, steps: int) -> float:
        """Seconds of a fit of so many steps."""
        began = time.perf_counter()
        found = jaxem.fit(self.model, self.data, max_steps=steps, algorithm=jaxem.EM(), **self.options)
        jax.block_until_ready(found.params)
        return time.perf_counter() - began

    def again(self) -> None:
        """Times a short and a long fit once more."""
        self.least = [min(old, self.run(n)) for old, n in zip(self.least, (1, self.long), strict=True)]

    @property
    def seconds(self) -> float:
        """Of a step, by the least times so far."""
        return max(self.least[1] - self.least[0], 1e-7) / (self.long - 1)


def in_processes(kind: str, point: Point, repeats: int) -> float:
    """Seconds of a step of several processes on this machine; NaN where they fail."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    workers = []
    for rank in range(point.processes):
        told = json.dumps([kind, dataclasses.astuple(point), repeats, rank, port])
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), "--worker", told]
        workers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        said = [worker.communicate(timeout=300)[0] for worker in workers]
        return float(said[0].split()[-1]) if not any(worker.returncode for worker in workers) else float("nan")
    except subprocess.TimeoutExpired:
        return float("nan")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def work(told: str) -> None:
    """What one of several processes does."""
    kind, point, repeats, rank, port = json.loads(told)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", Point(*point).processes, rank)
    steps = Steps(kind, Point(*point))
    for _ in range(repeats):
        steps.again()
    print(steps.seconds, flush=True)


def steps_case(kind: str, size: str, repeats: int) -> dict[str, Any]:
    """Predicted against measured."""
    chosen = [point for point in points(size) if point.devices <= len(jax.devices())]
    here = {point: Steps(kind, point) for point in chosen if point.processes == 1}
    for _ in range(repeats):  # in turns, so that a busy neighbour slows all of them
        for steps in here.values():
            steps.again()
    measured = []
    for point in chosen:
        seconds = here[point].seconds if point in here else in_processes(kind, point, repeats)
        if not np.isfinite(seconds):
            print(f"  FAILED  {point}")
            continue
        count = cost.flops(kind, point.rows, point.columns, point.num, point.restarts)
        together = point.devices * point.processes
        measured.append(dataclasses.asdict(point) | {"seconds": seconds, "flops": count, "log_of": together})
    found, predicted = cost.fitted([{**m, "devices": m["log_of"]} for m in measured])
    errors = [abs(p / m["seconds"] - 1) for p, m in zip(predicted, measured, strict=True)]
    names = {"diag": "GMM diag", "full": "GMM full", "kmeans": "K-means"}
    rate = 1 / found[1] if found[1] else float("inf")
    print(
        f"{names[kind]}, a step: {1e3 * found[0]:.3g} ms + flops / {rate / 1e9:.3g} Gflop/s + "
        f"{1e3 * found[2]:.3g} ms log2(devices); median error {100 * float(np.median(errors)):.1f} %"
    )
    table = [
        [m["rows"], m["columns"], m["num"], m["restarts"], m["chunk"] or "-", m["devices"], m["processes"],
         1e3 * m["seconds"], 1e3 * float(p), f"{100 * (p / m['seconds'] - 1):+.0f} %"]
        for m, p in zip(measured, predicted, strict=True)
    ]  # fmt: skip
    _timing.show(["N", "D", "K", "R", "chunk", "devices", "processes", "ms", "predicted", "error"], table)
    print()
    agree = bool(np.all(np.isfinite(predicted)))
    reached = max(m["flops"] / m["seconds"] for m in measured)
    fit = {"rate": rate, "reached": reached, "overhead": found[0], "log": found[2], "median_error": np.median(errors)}
    return {"case": f"steps {kind}", "agree": agree, "points": measured} | {k: float(v) for k, v in fit.items()}


def write_rows(path: pathlib.Path, rows: int) -> None:
    """A .npy file of rows, written in parts."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, COLUMNS))
    for i in range(0, rows, 1_000_000):
        out[i : i + 1_000_000] = make_data(min(1_000_000, rows - i), COLUMNS, seed=i)
    out.flush()


def seconds_a_pass(path: pathlib.Path, passes: int, restarts: int = 1) -> list[float]:
    """Of each pass of a fit of a mixture of 8 diagonal components but the first."""
    seen: list[float] = []
    jaxem.fit(
        jaxem.GMM(8, "diag"),
        jaxem.stream(path),
        key=jax.random.key(0),
        stop=NEVER,
        max_steps=passes,
        num_restarts=restarts,
        callback=lambda progress: seen.append(progress.seconds),
    )
    return np.diff(seen).tolist()


def streams_case(size: str, repeats: int) -> dict[str, Any]:
    """Passes against N, and 16 restarts against one."""
    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {rows: pathlib.Path(folder) / f"{rows}.npy" for rows in STREAMS[size]}
        for rows, path in paths.items():
            write_rows(path, rows)
        for _ in range(repeats):  # in turns
            for rows, path in paths.items():
                passes = min(PASSES[size] * max(paths) // rows, 10 * PASSES[size])  # short ones more often
                found[rows] = min(found.get(rows, np.inf), *seconds_a_pass(path, passes))
        middle = STREAMS[size][1]
        many = min(seconds_a_pass(paths[middle], PASSES[size], restarts=16))
    most = max(found)
    table = [
        [rows, seconds, 1e9 * seconds / rows, 4 * COLUMNS * rows / seconds / 1e6,
         f"{100 * (seconds / rows / (found[most] / most) - 1):+.1f} %"]
        for rows, seconds in found.items()
    ]  # fmt: skip
    print(f"streamed passes of GMM(8, 'diag'), {COLUMNS} columns of float32")
    _timing.show(["rows", "s a pass", "ns a row", "MB/s", "against the longest, a row"], table)
    print(f"  16 restarts over {middle} rows: {many:.4g} s a pass, {many / found[middle]:.2f} times one restart\n")
    return {"case": "streams", "agree": all(np.isfinite(list(found.values()))), "seconds": found, "many": many}


def show_plan(title: str, rows: float, columns: int, num: int, machines: dict[str, cost.Machines]) -> dict[str, Any]:
    """Prints and returns the plan of each model, on machines as quick as they are for it."""
    m = machines["diag"]
    peaks = ", ".join(f"{machines[kind].flops / 1e12:.3g}" for kind in KINDS["full"])
    print(f"plan, not run: {rows:.0e} rows x {columns}, K = {num}, float32, on {m.number} {title}")
    launch = f", {1e6 * m.launch:g} us to start a kernel" if m.launch else ""
    print(
        f"  assumed of each: {peaks} Tflop/s for {', '.join(KINDS['full'])}, of which {100 * m.share:.0f} %, memory "
        f"{m.memory / 1e9:g} GB/s and {m.room / 1e9:g} GB, network {m.network / 1e9:g} GB/s and "
        f"{1e6 * m.latency:g} us, reading {m.reading / 1e9:g} GB/s{launch}"
    )
    plans = {kind: cost.plan(kind, rows, columns, num, machines[kind]) for kind in KINDS["full"]}
    each = [
        [kind, p["part_bytes"] / 1e9, p["read_once_seconds"], p["read_bytes_a_pass"] / 1e9, p["moved_bytes"] / 1e9,
         p["flops"] / 1e12, p["all_reduced_bytes"] / 1e6, p["compute_seconds"], p["memory_seconds"], p["read_seconds"],
         p["launch_seconds"], p["all_reduce_seconds"], p["pass_seconds"]]
        for kind, p in plans.items()
    ]  # fmt: skip
    columns_ = ["", "own GB", "s to read once", "GB read a pass", "GB moved", "Tflop", "MB reduced", "s compute",
                "s memory", "s reading", "s launches", "s all-reduce", "s a pass"]  # fmt: skip
    _timing.show(columns_, each)
    print()
    return {"case": f"plan {title}", "agree": True, "assumed": dataclasses.asdict(m), "plans": plans}


def parser() -> argparse.ArgumentParser:
    """The shared command line, and the assumptions of the plans."""
    found = _timing.parser(__doc__.splitlines()[0])
    for name, value, text in (
        ("gpu-peak", 60.0, "Tflop/s of a GPU in float32"),
        ("gpu-share", 0.4, "share of the peak that is reached"),
        ("gpu-memory", 3000.0, "GB/s to a GPU's memory"),
        ("gpu-room", 80.0, "GB of a GPU's memory"),
        ("gpu-launch", 4.0, "microseconds to start a kernel"),
        ("network", 25.0, "GB/s from a GPU or host to others, each way"),
        ("latency", 20.0, "microseconds of a message"),
        ("reading", 2.0, "GB/s that a GPU or host reads from disk"),
        ("host-cores", 32.0, "cores of a CPU host, each as quick as one here"),
        ("host-room", 128.0, "GB of memory of a CPU host"),
        ("host-memory", 100.0, "GB/s to a CPU host's memory"),
    ):
        found.add_argument(f"--{name}", type=float, default=value, help=f"{text} (default {value:g})")
    return found


def plans(args: argparse.Namespace, rates: dict[str, float], cores: int) -> list[dict[str, Any]]:
    """For GPUs by assumption alone; for hosts by the highest rates reached here, for each core."""
    net = {"network": 1e9 * args.network, "latency": 1e-6 * args.latency, "reading": 1e9 * args.reading}
    more = {"room": 1e9 * args.gpu_room, "launch": 1e-6 * args.gpu_launch}
    gpu = cost.Machines(64, 1e12 * args.gpu_peak, args.gpu_share, 1e9 * args.gpu_memory, **net, **more)
    host = cost.Machines(16, 0.0, 1.0, 1e9 * args.host_memory, **net, room=1e9 * args.host_room)
    each = {kind: rates.get(kind, rates["diag"]) / cores for kind in KINDS["full"]}
    said = ", ".join(f"{kind} {rate / 1e9:.3g}" for kind, rate in each.items() if kind in rates)
    print(f"Gflop/s that a core here reached: {said}; so is assumed of each core of a host")
    hosts = {kind: dataclasses.replace(host, flops=rate * args.host_cores) for kind, rate in each.items()}
    return [
        show_plan("GPUs", 1e9, 128, 1024, dict.fromkeys(KINDS["full"], gpu)),
        show_plan("CPU hosts", 1e10, 32, 64, hosts),
    ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, fits, prints tables and plans, and returns the report."""
    args = _timing.parsed(parser(), argv)
    with contextlib.suppress(RuntimeError):  # where there are devices already
        jax.config.update("jax_num_cpu_devices", 8)
    report: dict[str, Any] = {"benchmark": "scaling", **_timing.environment(), "cases": []}
    _timing.header("A model of cost", report)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    print(f"load of the machine: {load}\n")
    with jax.enable_x64(False), _timing.quiet_peers():
        for kind in KINDS[args.sizes]:
            if args.only in f"steps {kind}":
                report["cases"].append(steps_case(kind, args.sizes, args.repeats))
        if args.only in "streams":
            report["cases"].append(streams_case(args.sizes, args.repeats))
    rates = {c["case"].split()[1]: c["reached"] for c in report["cases"] if c["case"].startswith("steps")}
    if "diag" in rates:
        report["cases"] += plans(args, rates, report["cpus"])
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2])
        sys.exit()
    sys.exit(not main()["agree"])
