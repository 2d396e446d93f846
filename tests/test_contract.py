"""The contract on every shipped model, alone and wrapped, and under every algorithm that suits it.

Mixtures of each family, and Bayesian ones, have theirs beside the tests of the family.
"""

import inspect

import distrax
import jax
import numpy as np
import optax
import pytest
from test_continuous import Normals
from test_enumerated import Open
from test_mean_field import UnknownNormal
from test_testing import COUNTS

import jaxem
from jaxem import EM, GMM, families
from jaxem.algorithms.algorithm import Algorithm
from jaxem.networks import mlp
from jaxem.testing import CHECKS, check_model

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NUM = 96  # of the rows of all, and two states: operations outside of programs are then compiled once
HALF = np.arange(NUM) // (NUM // 2)
RATES = RNG.poisson(np.array([[2.0, 9.0], [8.0, 3.0]])[HALF]).astype(float)
LABELS = np.where(np.arange(NUM) % 6 == 0, HALF, -1)
BITS = RNG.binomial(1, np.where(HALF[:, None], 0.2, 0.7), (NUM, 3)).astype(float)
NORMAL = RNG.normal(2.0, 2.0, NUM)
GUMBELS = RNG.gumbel(np.where(HALF[:, None], 20.0, 0.0), 2.0, (NUM, 1))

STATES = np.repeat(RNG.integers(0, 2, (12, 3)), 3, 1)
CHAINS = jaxem.sequences(RNG.poisson(np.where(STATES, 9.0, 2.0))[..., None], lengths=[9] * 6 + [5, 3, 1, 7, 8, 2])

TWO = GMM(2, "diag")
PRIOR = jaxem.BayesianMixture(families.Poisson(), 2)
EXTREMES = jaxem.Mixture(families.from_distribution(distrax.Gumbel(0.0, 1.0)), 2)
AUTOENCODER = jaxem.VAE(mlp(4, 2), mlp(4, 3), latent_dim=1)
ADAM = optax.adam(0.05)

# Laws that are not checked: of algorithms that let the objective fall, that take no statistics, and of models whose
# latent variable is not summed over.
FALLS, FREE, OTHER = {"monotone", "stationary"}, {"linear", "m_step"}, {"linear", "m_step", "bound"}
CASES = {
    "HMM": (jaxem.HMM(families.Poisson(), 2), CHAINS, None, set()),
    "BayesianHMM": (jaxem.BayesianHMM(families.Gaussian("diag"), 2), CHAINS, None, set()),
    **{f"GMM, {shape}": (GMM(2, shape), RATES, EM(), set()) for shape in ("full", "tied", "diag", "spherical")},
    "KMeans": (jaxem.KMeans(2), RATES, None, set()),
    "chunked": (jaxem.chunked(jaxem.BayesianGMM(2, "diag"), 40), RATES, None, set()),
    "partly_labelled": (jaxem.partly_labelled(jaxem.chunked(TWO, 40)), (RATES, LABELS), None, set()),
    "EmpiricalBayes": (jaxem.EmpiricalBayes(PRIOR, ("prior.rate",), optax.sgd(0.05), 1), RATES, None, set()),
    "from_distribution": (EXTREMES, GUMBELS, jaxem.GeneralizedEM(), FREE),
    "Enumerated, by gradients": (Open(), COUNTS, jaxem.GradientAscent(ADAM), FREE | FALLS),
    "MeanField": (UnknownNormal(0.02, 2.0, 8.0), NORMAL, jaxem.CoordinateAscent(), {"linear", "bound"}),
    "MeanField, damped": (UnknownNormal(0.02, 2.0, 8.0), NORMAL, jaxem.CoordinateAscent(0.7), {"linear", "bound"}),
    "ContinuousLatent": (Normals(), NORMAL, EM(jaxem.MonteCarlo(num_samples=20)), OTHER | FALLS),
    "VAE": (AUTOENCODER, BITS, jaxem.GradientAscent(learning_rate=0.01), OTHER | FALLS),
    "tempered": (TWO, RATES, EM(jaxem.Tempered(2.0)), FALLS),
    "annealed": (TWO, RATES, EM(jaxem.Tempered(np.geomspace(4, 1, 5))), set()),
    "hard": (TWO, RATES, EM(jaxem.Hard()), set()),
    "OnlineEM": (TWO, RATES, jaxem.OnlineEM(24), FALLS),
    "StochasticEM": (TWO, RATES, jaxem.StochasticEM(burn_in=5, num_draws=20), FALLS),
    "Swap": (TWO, RATES, jaxem.Swap(num_swaps=2, num_steps=3), set()),
    "GradientAscent": (TWO, RATES, jaxem.GradientAscent(ADAM), FREE | FALLS),
}
DRAW = {"ContinuousLatent", "VAE", "StochasticEM"}


@pytest.mark.parametrize("name", CASES)
def test_contract(name):
    model, data, algorithm, left_out = CASES[name]
    found = check_model(model, data, key=KEY, num_starts=2, algorithm=algorithm)
    assert [law.split(" ")[0] for law in found] == list(CHECKS)
    assert {law.split(" ")[0] for law in found if "not checked" in law} == left_out
    assert any("of the mean of 64 draws" in law for law in found) == (name in DRAW)


def layers(model):
    """The model, and those inside it."""
    while model is not None:
        yield model
        model = getattr(model, "model", None)


def test_no_public_model_or_algorithm_is_left_out():
    public = [value for value in vars(jaxem).values() if inspect.isclass(value)]
    seen = [layer for model, *_ in CASES.values() for layer in layers(model)]
    used = {type(algorithm) for _, _, algorithm, _ in CASES.values()}
    for cls in public:
        if issubclass(cls, jaxem.ELBOModel):
            assert any(isinstance(model, cls) for model in seen), cls
        if issubclass(cls, Algorithm):
            assert cls in used, cls
