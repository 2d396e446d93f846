"""The three laws of proportions behind one interface."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxem.core.ascent import vector
from jaxem.structures.mixing import Dirichlet, Proportions, Sticks

KEY = jax.random.key(0)
COUNT = jnp.array([3.0, 0.5, 10.0, 5.0])
LAWS = {
    "point": Proportions(0.3),
    "active": Proportions(0.3, 3),
    "dirichlet": Dirichlet(0.7),
    "sticks": Sticks(0.7),
    "fixed": Sticks(0.7, "fixed"),
}


def law_and_params(name):
    law, count = LAWS[name].bind(4, COUNT.dtype), COUNT.at[3].set(0.0) if name == "active" else COUNT
    return law, count, law.update(count)


@pytest.mark.parametrize("name", LAWS)
def test_an_update_is_the_best(name):
    law, count, params = law_and_params(name)

    def objective(params):
        return jnp.sum(jnp.where(count > 0, count * law.expected_log(params), 0)) + law.elbo(params)

    best = float(objective(params))
    free, rebuild = vector(law.constraints(), params)
    rng = np.random.default_rng(0)
    for size in 10.0 ** rng.uniform(-3, 0, 20):
        assert float(objective(rebuild(free + size * rng.normal(size=free.shape)))) <= best + 1e-12


@pytest.mark.parametrize("name", LAWS)
def test_means_ranks_and_draws(name):
    law, count, params = law_and_params(name)
    mean, rest = law.mean(params)
    assert float(jnp.sum(mean) + rest) == pytest.approx(1, rel=1e-12)
    assert (float(rest) > 0) == (name == "sticks")
    index = law.rank(params)
    assert index.tolist() == jnp.argsort(-count, stable=True).tolist()
    ordered = law.order(params, index)
    np.testing.assert_allclose(law.mean(ordered)[0], mean[index], rtol=1e-12)
    np.testing.assert_allclose(law.expected_log(ordered), law.expected_log(params)[index], rtol=1e-12)
    assert float(law.elbo(ordered)) == pytest.approx(float(law.elbo(params)), rel=1e-12)
    logs, log_q, log_p = law.draw(KEY, params)
    assert float(jnp.exp(logs).sum()) <= 1 + 1e-12
    assert np.isfinite(float(log_q - log_p))
    if "point" in name:
        np.testing.assert_allclose(law.count(params, jnp.sum(count)).sum(), count.sum())
    elif name != "active":
        np.testing.assert_allclose(law.count(params, jnp.sum(count)), count, rtol=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_a_law_serves_the_rows_of_a_transition_matrix(name):
    law = law_and_params(name)[0]
    counts = jnp.stack([COUNT, COUNT[::-1], COUNT + 1])
    rows = jax.jit(jax.vmap(law.update))(counts)
    for method in (law.expected_log, law.elbo, lambda params: law.mean(params)[0], law.rank):
        together = jax.jit(jax.vmap(method))(rows)
        for i in range(3):
            np.testing.assert_allclose(together[i], method(law.update(counts[i])), rtol=1e-12)
