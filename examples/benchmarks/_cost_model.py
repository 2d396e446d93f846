"""The cost of a step on paper: flops, bytes, and a plan for machines that are not here."""

import dataclasses
import math

import numpy as np

# An exponential, a logarithm, maxima and divisions of the E-step, for each row and component, in flops.
SOFTMAX = 20
# Times that a number of the (N, K) responsibilities goes to memory or comes from it in a step of a mixture on a GPU:
# log-densities written and read for their maximum, read for responsibilities, these written, read for statistics.
TRIPS = 5
# Rows of a block of an E-step, and kernels of a block.
BLOCK, KERNELS = 2000, 10


def flops(kind: str, rows: float, columns: int, num: int, restarts: int = 1) -> float:
    """Flops of one step, multiply and add counted as two.

    "diag":   log-densities 4 N K D (products with x and x^2), statistics the same, responsibilities 20 N K
    "full":   whitening 2 N K D^2, its squares 2 N K D, scatter 2 N K D^2, responsibilities 20 N K
    "kmeans": scores 2 N K D, the least of them 3 N K, sums of clusters 2 N D
    """
    n, d, k = rows, columns, num
    one = {
        "diag": 8 * n * k * d + SOFTMAX * n * k,
        "full": 4 * n * k * d * d + 2 * n * k * d + SOFTMAX * n * k,
        "kmeans": 2 * n * k * d + 3 * n * k + 2 * n * d,
    }
    return restarts * one[kind]


def statistics_bytes(kind: str, columns: int, num: int, itemsize: int) -> int:
    """Bytes that are summed over devices once a step: counts, sums, squares (D or D^2 a component), and the ELBO."""
    d, each = columns, {"diag": 2 * columns + 1, "full": columns * columns + columns + 1, "kmeans": columns + 1}
    return itemsize * (num * each[kind] + 1) if d else 0


def moved_bytes(kind: str, rows: float, columns: int, num: int, itemsize: int) -> float:
    """Bytes to and from memory in a step: rows once for scores and once for sums, and (N, K) scores.

    Of a mixture `TRIPS` times; of K-means once written and once read for the least.
    """
    return itemsize * rows * (2 * columns + num * (2 if kind == "kmeans" else TRIPS))


@dataclasses.dataclass(frozen=True)
class Machines:
    """What a plan assumes of each of `number` devices or hosts.

    Attributes:
      number: of them.
      flops: a second, at best.
      share: of that which products of these shapes reach.
      memory: bytes a second to and from memory.
      network: bytes a second to others, each way.
      latency: seconds of a message.
      reading: bytes a second from disk or object store.
      room: bytes of memory.
      launch: seconds of starting a kernel; 0 where there is none to speak of.
    """

    number: int
    flops: float
    share: float
    memory: float
    network: float
    latency: float
    reading: float
    room: float
    launch: float = 0.0


def all_reduce(size: float, machines: Machines) -> float:
    """Seconds of a ring's all-reduce: 2 (p - 1) / p size / network + 2 log2(p) latency."""
    p = machines.number
    return 2 * (p - 1) / p * size / machines.network + 2 * math.log2(p) * machines.latency if p > 1 else 0.0


def plan(kind: str, rows: float, columns: int, num: int, machines: Machines, itemsize: int = 4) -> dict[str, float]:
    """What one step, a pass over all rows, costs on each machine.

    seconds = max(flops / (peak share), bytes moved / memory, bytes read / reading if streamed) + launches + all-reduce

    Rows are read in every pass only where a machine's part takes more than half of its memory; else once.
    """
    own = rows / machines.number
    part = own * columns * itemsize
    streamed = part > 0.5 * machines.room
    count, moved = flops(kind, own, columns, num), moved_bytes(kind, own, columns, num, itemsize)
    summed = statistics_bytes(kind, columns, num, itemsize)
    found = {
        "part_bytes": part,
        "read_once_seconds": part / machines.reading,
        "read_bytes_a_pass": part if streamed else 0.0,
        "moved_bytes": moved,
        "flops": count,
        "all_reduced_bytes": float(summed),
        "compute_seconds": count / (machines.flops * machines.share),
        "memory_seconds": moved / machines.memory,
        "read_seconds": part / machines.reading if streamed else 0.0,
        "launch_seconds": machines.launch * KERNELS * own / BLOCK,
        "all_reduce_seconds": all_reduce(summed, machines),
    }
    slowest = max(found["compute_seconds"], found["memory_seconds"], found["read_seconds"])
    return found | {"pass_seconds": slowest + found["launch_seconds"] + found["all_reduce_seconds"]}


def fitted(points: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(a, 1 / rate, c) >= 0 of  t = a + flops / rate + c log2(devices)  by least squares of relative errors, and t."""
    from scipy.optimize import nnls

    design = np.array([[1.0, point["flops"], math.log2(point["devices"])] for point in points])
    seconds = np.array([point["seconds"] for point in points])
    scale = np.maximum(np.abs(design).max(0), 1e-300)  # flops are 10^9 times seconds
    found = nnls(design / scale / seconds[:, None], np.ones(len(points)))[0] / scale
    return found, design @ found
