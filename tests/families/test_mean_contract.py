"""The contract suite on mixtures of the families defined by a mean."""

import jax
import numpy as np
import pytest

import jaxem
from jaxem.families import Bernoulli, Binomial, Categorical, Exponential, Poisson
from jaxem.testing import CHECKS, check_model

RNG = np.random.default_rng(0)
GROUP = RNG.integers(0, 2, 96)  # as many rows as in the other contracts: what runs outside of programs is compiled once
LEVELS = np.stack([np.where(RNG.random(96) < 0.6, GROUP * (n - 1), RNG.integers(0, n, 96)) for n in (2, 3, 4)], 1)
MODELS = {
    "poisson": (Poisson(), RNG.poisson(np.array([[2.0, 9.0], [8.0, 3.0]])[GROUP])),
    "poisson with a prior": (
        Poisson(2.0, np.array([4.0, 4.0])),
        RNG.poisson(np.array([[2.0, 9.0], [8.0, 3.0]])[GROUP]),
    ),
    "binomial": (Binomial(12), RNG.binomial(12, np.array([[0.2, 0.6], [0.7, 0.3]])[GROUP])),
    "bernoulli": (Bernoulli(), RNG.random((96, 5)) < np.where(GROUP, 0.25, 0.8)[:, None]),
    "categorical": (Categorical((2, 3, 4)), LEVELS),
    "exponential": (Exponential(), RNG.exponential(np.array([[1.0, 20.0], [10.0, 1.0]])[GROUP])),
}


@pytest.mark.parametrize("name", MODELS)
def test_contract(name):
    family, data = MODELS[name]
    assert list(check_model(jaxem.Mixture(family, 2), data, key=jax.random.key(0), num_starts=3)) == list(CHECKS)
