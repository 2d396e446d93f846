"""Puts jaxem's estimators in the place of scikit-learn's, then lets scikit-learn's own tests run as they are.

    python -m pytest -c tests/foreign/pytest.ini

What is expected to fail stands in expected.txt, each line a regular expression for tests' names and the reason. An
entry that matches no test, and an expected failure that passes, are errors.
"""

import pathlib
import re

import settings  # XLA's flags, before JAX starts

# isort: split
import jax
import pytest
import sklearn.cluster
import sklearn.mixture

import jaxem.sklearn as ours

EXPECTED = pathlib.Path(__file__).parent / "expected.txt"
seen = {"programs": 0, "seconds": 0.0}


def expected():
    """(expression, reason) of each entry."""
    for line in EXPECTED.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition("  ")
            assert reason.strip(), f"no reason: {line}"
            yield name.strip(), reason.strip()


def _count(name, seconds, **kwargs):
    if name == "/jax/core/compile/backend_compile_duration":
        seen["programs"] += 1
        seen["seconds"] += seconds


def pytest_configure(config):
    jax.monitoring.register_event_duration_secs_listener(_count)
    homes = {
        "GaussianMixture": (sklearn.mixture, sklearn.mixture._gaussian_mixture),
        "BayesianGaussianMixture": (sklearn.mixture, sklearn.mixture._bayesian_mixture),
        "KMeans": (sklearn.cluster, sklearn.cluster._kmeans),
        "MiniBatchKMeans": (sklearn.cluster, sklearn.cluster._kmeans),
    }
    for name, modules in homes.items():
        for module in modules:
            setattr(module, name, getattr(ours, name))


def pytest_collection_modifyitems(config, items):
    whole = len(config.args) >= 3 and not config.getoption("keyword")  # all files, all tests
    for name, reason in expected():
        found = [item for item in items if re.search(name, item.nodeid)]
        if whole and not found:
            raise pytest.UsageError(f"expected.txt: {name!r} matches no test")
        for item in found:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def pytest_unconfigure(config):
    settings.clean()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["seen"] = dict(seen)


def pytest_testnodedown(node, error):
    for name, value in getattr(node, "workeroutput", {}).get("seen", {}).items():
        seen[name] += value


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"{seen['programs']} programs compiled or read, {seen['seconds']:.0f} s")
