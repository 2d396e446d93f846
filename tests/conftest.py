import os

# Tests check results, not speed: an unoptimised backend compiles in half the time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("MPLBACKEND", "Agg")

import csv
import json
import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

REFERENCE = pathlib.Path(__file__).parent / "reference"


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs hold memory maps, of which a process has 65530 on Linux: let go of them after each file."""
    yield
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
