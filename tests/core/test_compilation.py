"""Compiled programs that outlive their process; each test in processes of their own, whose settings it may change."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import jaxem

FIT = """
import json, sys, time
import jax, numpy as np
from jax import monitoring
import jaxem
if {early}:
    jax.jit(lambda x: x + 1)(np.ones(3))  # JAX has made up its mind about a cache
folder = jaxem.cache({path})
seen = []
monitoring.register_event_listener(lambda name, **_: seen.append(name))
x = np.random.default_rng(0).normal(size=(60, 2))
began = time.process_time()
fit = jaxem.fit(jaxem.GMM(2), x, key=jax.random.key(0), max_steps=5, stop=jaxem.Stop(-np.inf))
told = dict(cpu=time.process_time() - began, folder=str(folder), elbo=float(fit.elbo.total))
print(json.dumps(told | {{name: seen.count("/jax/compilation_cache/cache_" + name) for name in ("hits", "misses")}}))
"""


def fit(path, early=False, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    code = FIT.format(path=path, early=early)
    found = subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_a_second_process_compiles_nothing(tmp_path):
    flags = os.environ.get("XLA_FLAGS", "").replace("--xla_backend_optimization_level=0", "")
    first = fit(None, XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path), XLA_FLAGS=flags)
    assert first["misses"] > 0
    assert pathlib.Path(first["folder"]).is_relative_to(tmp_path)
    again = fit(repr(first["folder"]), early=True, XLA_FLAGS=flags)
    assert again["misses"] == 0
    assert again["hits"] > 0
    assert again["elbo"] == first["elbo"]
    assert again["cpu"] < first["cpu"] / 2  # of one fifth or so; the machine may be busy


def test_what_is_no_folder_is_refused_and_nothing_is_set(tmp_path):
    (tmp_path / "file").write_text("")
    for path, error, message in [
        (3, TypeError, "path: expected the path of a folder, or None; found 3"),
        (tmp_path / "file", ValueError, "path: expected a folder; found a file"),
        (
            tmp_path / "file" / "below",
            ValueError,
            "path: expected a folder that can be made; found .*give another path",
        ),
    ]:
        with pytest.raises(error, match=message):
            jaxem.cache(path)
    assert not (tmp_path / "below").exists()
