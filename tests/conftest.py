import contextlib
import csv
import gc
import importlib
import json
import pathlib

import settings  # before JAX starts

# isort: split
import jax
import numpy as np
import pytest

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
    settings.clean()


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
