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
def started(num, devices, task, *told):
    """`num` workers of `devices` each; whatever happens, none is left behind."""
    env = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), env.get("PYTHONPATH", "")])
    port, workers = free_port(), []
    try:
        for rank in range(num):
            told_all = [HERE / "worker.py", port, rank, num, devices, task, *told]
            command = [sys.executable, *map(str, told_all)]
            workers.append(
                subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def ended(workers, seconds):
    """The exit codes and the output of workers, which end within a time."""
    end, texts = time.perf_counter() + seconds, []
    for worker in workers:
        texts.append(worker.communicate(timeout=max(1.0, end - time.perf_counter()))[0])
    return [worker.returncode for worker in workers], texts
