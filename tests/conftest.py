import contextlib
import csv
import gc
import importlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile

import jax
import numpy as np
import pytest

# Tests check results, not speed: an unoptimised backend compiles in half the time.
FLAGS = " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # a third less compile time; not offered since
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
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

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

MOST_MAPS = 15_000  # a file adds a few thousand
MODULES = []
for module, name in (("jax._src.pjit", "_pjit_lower"), ("jax._src.interpreters.pxla", "_cached_lowering_to_hlo")):
    with contextlib.suppress(ImportError, AttributeError):  # JAX's own, which may move
        MODULES.append(getattr(importlib.import_module(module), name))
gc.set_threshold(50_000, 20, 100)  # tracing makes many objects that live: looking for dead ones takes 3-5 % of a run
REFERENCE = pathlib.Path(__file__).parent / "reference"


def pytest_unconfigure(config):
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(autouse=True)
def _forget_modules():
    """What JAX keeps of a program besides the program, its MLIR module, makes every later one slower to lower.

    By 30 ms after 3000 programs in JAX 0.10, three times what a small one takes to compile. There is no public way to
    let go of the one without the other, so that where JAX names its caches otherwise they stay, and all is slower.
    """
    yield
    for cache in MODULES:
        cache.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs hold memory and memory maps, of which a process has 65530 on Linux: let go of them in time.

    Not after every file: the next one would compile the same small programs again.
    """
    yield
    try:
        maps = pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not Linux, which may have a limit all the same
        maps = MOST_MAPS
    if maps >= MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def reference():
    return json.loads((REFERENCE / "reference.json").read_text())


@pytest.fixture(scope="session")
def faithful():
    with open(REFERENCE / "old_faithful.csv") as file:
        rows = list(csv.reader(file))[1:]
    return np.array(rows, np.float64)


@pytest.fixture(scope="session")
def iris():
    from sklearn.datasets import load_iris

    return load_iris().data


@pytest.fixture(scope="session")
def blobs():
    """120 rows around three centres in two columns, with an interior optimum."""
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [6.0, 1.0], [1.0, 7.0]])
    return centres[rng.integers(0, 3, 120)] + rng.normal(size=(120, 2)) * np.array([1.0, 0.7])
