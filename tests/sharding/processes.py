"""Real processes that fit together on this machine."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
# Those of the network would be asked for the way to this machine.
PROXIES = {"http_proxy", "https_proxy", "all_proxy", "grpc_proxy"}


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def started(num, devices, task, folder, *told):
    """`num` workers of `devices` each, that write to a folder; whatever happens, none is left behind."""
    env = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
    env["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # see jaxem.shard_data
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), env.get("PYTHONPATH", "")])
    port, workers = free_port(), []
    try:
        for rank in range(num):
            arguments = map(str, (HERE / "worker.py", port, rank, num, devices, task, folder, *told))
            with open(f"{folder}/{rank}.txt", "w") as text:  # a pipe that nobody reads from fills up
                command = [sys.executable, *arguments]
                workers.append(subprocess.Popen(command, env=env, stdout=text, stderr=subprocess.STDOUT))
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def ended(workers, seconds):
    """The exit codes of workers, which end within a time; TimeoutExpired where one does not."""
    end = time.perf_counter() + seconds
    return [worker.wait(max(0.1, end - time.perf_counter())) for worker in workers]
