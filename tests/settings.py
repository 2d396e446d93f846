"""Set before JAX starts: a backend that compiles fast, one thread a process, and one cache for all of a run."""

import importlib.metadata
import os
import shutil
import tempfile

# Tests check results, not speed: an unoptimised backend compiles in half the time.
FLAGS = " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # a third less compile time; not offered since
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
if FLAGS not in os.environ.get("XLA_FLAGS", ""):  # a worker has those of the process that started it
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + FLAGS
os.environ.setdefault("MPLBACKEND", "Agg")

# One cache of compiled programs for the processes of one run: what one has compiled the others load. A folder named
# by the environment is kept, and the next run compiles only what has changed.
CACHE = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        CACHE = tempfile.mkdtemp(prefix="jaxem-tests-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    # Each core has a process: threads of NumPy's, SciPy's and scikit-learn's would wait for one another, busily.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def clean() -> None:
    """Throws away the cache of this run."""
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)
