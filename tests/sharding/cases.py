"""Fits that must come out alike on one device, on eight, and in several processes."""

import warnings

import jax
import numpy as np

import jaxem
from jaxem import families
from jaxem.networks import mlp

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NUM = 83  # a prime: uneven whatever the number of devices
HALF = np.arange(NUM) % 2
ROWS = RNG.normal(size=(NUM, 2)) + 4.0 * HALF[:, None]
COUNTS = RNG.poisson(np.where(HALF, 9.0, 2.0)[:, None]).astype(float)
WEIGHTS = np.where(np.arange(NUM) % 7 == 3, 0.0, 1.0 + np.arange(NUM) % 3)
MANY = RNG.normal(size=(12007, 2)) + 3.0 * (np.arange(12007) % 2)[:, None]  # more than a start looks at
SEQUENCES = [RNG.normal(size=(t, 2)) + 4.0 * (i % 2) for i, t in enumerate([3, 5, 2, 7, 4, 1, 6, 3, 5, 8, 2, 4, 6])]
FEW = np.array([[0.0, 1.0], [0.5, 0.0], [6.0, 5.0], [5.5, 6.5], [0.2, 0.3]])  # fewer than devices

MIXED = jaxem.Mixture(families.Product({"count": families.Poisson(), "place": families.Gaussian("diag")}), 2)
VAE = jaxem.VAE(mlp(4, 2), mlp(4, 2), latent_dim=1, likelihood=jaxem.likelihoods.Gaussian())
# A model, its rows and what else `fit` is told; "weights" are those of the rows.
CASES = {
    "full": (jaxem.GMM(2), ROWS, {"weights": WEIGHTS, "num_restarts": 3}),
    "tied": (jaxem.GMM(2, "tied"), ROWS, {}),
    "diag": (jaxem.GMM(2, "diag"), ROWS, {}),
    "spherical": (jaxem.GMM(2, "spherical"), ROWS, {}),
    "kmeans": (jaxem.KMeans(3), ROWS, {"max_steps": 12}),  # and swaps, being small
    "family": (MIXED, {"count": COUNTS, "place": ROWS}, {}),
    "bayesian": (jaxem.BayesianGMM(3), ROWS, {"num_restarts": 2}),
    "hmm": (jaxem.HMM(families.Gaussian(), 2), SEQUENCES, {}),
    "svi": (jaxem.BayesianGMM(2), ROWS, {"algorithm": jaxem.OnlineEM(24)}),
    "vae": (VAE, ROWS, {"algorithm": jaxem.GradientAscent(batch_size=24)}),
    "many": (jaxem.GMM(2), MANY, {"max_steps": 2}),
    "few": (jaxem.GMM(2, "spherical"), FEW, {}),
}
# Of which the more processes, the fewer: each compiles all programs.
SOME = ("full", "bayesian", "hmm", "few")
# Those whose restarts are dealt out among devices as well.
DEALT = ("full", "bayesian")
# Those whose rows are read a batch at a time as well.
STREAMED = ("full", "many")


def part(data, rank, num):
    """The rows of one process of `num`; the first has more than the others, the last fewest."""
    if isinstance(data, dict):
        return {name: part(leaf, rank, num) for name, leaf in data.items()}
    edges = [int(len(data) * (1 - (1 - i / num) ** 1.2) + 0.5) for i in range(num + 1)]
    return data[edges[rank] : edges[rank + 1]]


def rows_of(name, rank=0, num=1):
    """The data of a case, or of one process's part, and the weights."""
    _, data, told = CASES[name]
    data, weights = part(data, rank, num), told.get("weights")
    weights = None if weights is None else part(weights, rank, num)
    return (jaxem.sequences(data) if isinstance(data, list) else data), weights


def fitted(name, rows, weights=None, model=None, **told):
    """The fit of a case, or of another model, to rows, sharded or not."""
    plain, _, own = CASES[name]
    return jaxem.fit(
        plain if model is None else model, rows, key=KEY, **{"max_steps": 4, **own, "weights": weights, **told}
    )


def numbers(fit):
    """What is compared of a fit, as arrays by name."""
    leaves = [leaf for leaf in jax.tree.leaves(fit.params) if np.asarray(leaf).dtype.kind == "f"]
    found = {f"params{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    found |= {"elbo": fit.restarts.elbo.total, "trace": fit.restarts.trace, "num_steps": fit.restarts.num_steps}
    found |= {"hits": fit.hits, "weight": fit.total_weight, "rows": fit.num_rows}
    return {key: np.asarray(value) for key, value in found.items()}


def answers(name, fit, rows, weights=None, own=np.asarray):
    """What a fit says of its rows: of this process's alone, and a criterion of all."""
    if name in ("vae", "kmeans"):
        return {}
    found = {question: own(getattr(fit, question)(rows)) for question in ("predict", "log_prob", "posterior")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jaxem.FitWarning)  # of weights that the fit had
        return found | (
            {} if name in ("bayesian", "svi") else {"bic": np.asarray(jaxem.bic(fit, rows, weights=weights))}
        )
