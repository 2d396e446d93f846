"""What `bind` takes of all rows of a stream is what it takes of the same rows in memory, for every model here."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxem
from jaxem import families
from jaxem.engine import fit as _fit
from jaxem.engine.reading import Reader
from jaxem.engine.survey import Surveyor

N, ROWS = 413, 100  # five batches, the last of 13 rows
RNG = np.random.default_rng(3)
TABLE = RNG.normal(size=(N, 3)) * [1, 5, 0.1] + [100, -3, 0]
COUNTS = RNG.poisson(3.0, (N, 2)).astype(float)
WEIGHTS = RNG.integers(0, 3, N).astype(float)
SEQUENCES = jaxem.sequences([RNG.normal(size=(int(t), 2)) for t in RNG.integers(3, 9, N)])

CASES = {
    "gmm": (jaxem.GMM(3), TABLE),
    "dependent": (jaxem.GMM(3), np.concatenate([TABLE, TABLE[:, :1] - 3 * TABLE[:, 1:2]], 1)),
    "diag": (jaxem.GMM(3, "diag"), TABLE),
    "kmeans": (jaxem.KMeans(3), TABLE),
    "student": (jaxem.Mixture(families.StudentT("tied"), 2), TABLE),
    "gamma": (jaxem.Mixture(families.Gamma(), 2), np.exp(TABLE / [100, 5, 1])),
    "poisson": (jaxem.Mixture(families.Poisson(), 2), COUNTS),
    "bernoulli": (jaxem.Mixture(families.Bernoulli(), 2), (COUNTS > 2).astype(float)),
    "regression": (jaxem.Mixture(families.LinearRegression(), 2), (TABLE[:, :2], TABLE[:, 2])),
    "product": (
        jaxem.Mixture(families.Product({"a": families.Gaussian(), "b": families.Poisson()}), 2),
        {"a": TABLE, "b": COUNTS},
    ),
    "bayes": (jaxem.BayesianGMM(3), TABLE),
    "bayes poisson": (jaxem.BayesianMixture(families.Poisson(), 3), COUNTS),
    "hmm": (jaxem.HMM(families.Gaussian(), 2), SEQUENCES),
    "bayesian hmm": (jaxem.BayesianHMM(families.Gaussian("diag"), 2), SEQUENCES),
    "chunked": (jaxem.chunked(jaxem.GMM(2), 50), TABLE),
}


def batches(data, weights):
    def make():
        for i in range(0, N, ROWS):
            part = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i : i + ROWS]), (data, weights))
            yield part if weights is not None else part[0]

    return make


def surveyed(model, data, weights, starts):
    stream = jaxem.stream(batches(data, weights), weights=None if weights is None else True)
    reader = Reader(stream, model, np.dtype(np.float64), None)
    first, ones = reader.padded(jax.tree.map(lambda leaf: np.asarray(leaf[:ROWS]), data), None)
    options = dict.fromkeys(("params", "algorithm", "stop", "restart_batch", "screen"))
    key, sizes = jax.random.key(1), {"max_steps": 1, "num_restarts": 2}
    problem, _ = _fit.prepare(model, first, key, weights=ones, **options, **sizes)
    if not starts:
        problem = dataclasses.replace(problem, params=())  # given: none is drawn
    return Surveyor(reader, problem).run()


@pytest.mark.parametrize(
    ("name", "weighted"),
    [(name, False) for name in CASES]
    + [(name, True) for name in ("gmm", "dependent", "kmeans", "bayes poisson", "hmm")],
)
def test_bind_of_a_stream_is_bind_of_its_rows(name, weighted):
    model, data = CASES[name]
    weights = WEIGHTS if weighted else None
    found = surveyed(model, data, weights, starts=name in ("gmm", "kmeans"))
    ones = np.ones(N) if weights is None else weights
    bound = jax.jit(lambda model, data, weights: model.bind(data, weights))(model, data, ones)
    assert jax.tree.structure(found.model) == jax.tree.structure(bound)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found.model), jax.tree.leaves(bound), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12, err_msg=jax.tree_util.keystr(path))
    assert (found.num_rows, found.num_batches) == (N, 5)


@pytest.mark.parametrize(("name", "passes"), [("gmm", 1), ("kmeans", 1), ("bayes", 1), ("gamma", 3), ("dependent", 6)])
def test_passes_before_the_first_step(name, passes, monkeypatch):
    made, once = [], Surveyor._pass
    monkeypatch.setattr(Surveyor, "_pass", lambda self, *args: made.append(1) or once(self, *args))
    model, data = CASES[name]
    jaxem.fit(model, jaxem.stream(data, batch_rows=ROWS), key=jax.random.key(0), max_steps=0)
    assert len(made) == passes
