"""Mixtures of products of families: tables of mixed type."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled

import jaxem
from jaxem.families import Bernoulli, Categorical, Exponential, Gaussian, Poisson, Product
from jaxem.testing import CHECKS, check_model

KEY = jax.random.key(0)
NUM = 96  # as in the other contracts
RNG = np.random.default_rng(0)
GROUP = RNG.integers(0, 2, NUM)
FAMILY = Product({"visits": Poisson(), "size": Gaussian("diag"), "answers": Categorical((2, 3))})
TABLE = {
    "answers": np.stack([np.where(RNG.random(NUM) < 0.4, GROUP * (n - 1), RNG.integers(0, n, NUM)) for n in (2, 3)], 1),
    "size": RNG.normal(size=(NUM, 2)) + 1.5 * GROUP[:, None],
    "visits": RNG.poisson(np.where(GROUP, 6.0, 2.5))[:, None],
}
VALUES = {
    "answers": {"probs": [[[0.7, 0.3], [0.4, 0.6]], [[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]]},
    "size": {"mean": np.array([[0.0, 0.0], [1.5, 1.5]]), "covariance": np.ones((2, 2))},
    "visits": {"rate": [[2.5], [6.0]]},
}
MODEL = jaxem.Mixture(FAMILY, 2)


def floats(table):
    return jax.tree.map(lambda a: jnp.asarray(a, float), table)


@pytest.fixture(scope="module")
def params():
    return MODEL.make_params(mixing=np.array([0.5, 0.5]), **VALUES)


def test_contract():
    assert list(check_model(MODEL, TABLE, key=KEY, num_starts=3)) == list(CHECKS)


def test_log_density_is_the_sum_of_the_parts(params):
    x = floats(TABLE)
    parts = {name: f.log_prob(params.components[name], x[name]) for name, f in FAMILY.families.items()}
    found, collect = FAMILY.explain(params.components, x)
    np.testing.assert_allclose(found, sum(parts.values()), rtol=1e-13)
    np.testing.assert_array_equal(found, FAMILY.log_prob(params.components, x))
    resp = MODEL.posterior(params, x)
    for one, other in zip(
        *map(jax.tree.leaves, (collect(resp), FAMILY.statistics(params.components, x, resp))), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_weight_two_is_a_row_twice(params):
    weights = np.where(np.arange(NUM) < 30, 2.0, 1.0)
    twice = jax.tree.map(lambda a: np.concatenate([a, a[:30]]), TABLE)
    options = {"key": KEY, "params": params, "max_steps": 25, "stop": jaxem.Stop(atol=-np.inf)}
    one = jaxem.fit(MODEL, TABLE, weights=weights, **options)
    two = jaxem.fit(MODEL, twice, **options)
    assert one.num_steps == two.num_steps == 25
    for a, b in zip(*map(jax.tree.leaves, ((one.params, one.elbo), (two.params, two.elbo))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    plain = jaxem.fit(MODEL, TABLE, **options)
    assert abs(float(one.params.mixing[0] - plain.params.mixing[0])) > 1e-4  # the weights did matter


def test_planted_groups_are_recovered_and_parts_ordered_together(params):
    x, group = MODEL.sample(params, 1500, key=jax.random.key(5))
    fit = jaxem.fit(MODEL, x, key=KEY, num_restarts=4)
    assert fit.status == jaxem.Status.CONVERGED
    assert not fit.coincident
    visits, size = fit.params.components["visits"].rate[:, 0], fit.params.components["size"].mean
    order = np.argsort(visits)
    np.testing.assert_allclose(np.asarray(visits)[order], [2.5, 6.0], rtol=0.1)
    np.testing.assert_allclose(np.asarray(size)[order], VALUES["size"]["mean"], atol=0.2)
    for found, planted in zip(fit.params.components["answers"].probs, VALUES["answers"]["probs"], strict=True):
        np.testing.assert_allclose(np.asarray(found)[order], planted, atol=0.1)
    assert np.mean(np.asarray(order)[np.asarray(group)] == np.asarray(fit.model.predict(fit.params, x))) > 0.85
    assert fit.model.num_parameters(fit.params) == 1 + 2 * (1 + 4 + 3)


def test_priors_penalties_spikes_and_notes_are_the_parts():
    parts = {"a": Poisson(2.0), "b": Exponential(), "c": Gaussian("diag")}
    x = {"a": jnp.ones((4, 1)), "b": jnp.zeros((4, 1)), "c": jnp.array([[1.0], [2.0], [3.0], [5.0]])}
    weights, resp = jnp.ones(4), jnp.full((4, 2), 0.5)
    family = compiled(Product(parts).bind, x, weights)
    assert family.notes() == ["b: columns [0] are all zero: their rates have no maximum-likelihood estimate"]
    start = family.start(2)
    params = compiled(family.m_step, start, compiled(family.statistics, start, x, resp))
    total = sum(float(f.elbo_params(params[name])) for name, f in family.families.items())
    assert float(family.elbo_params(params)) == pytest.approx(total, rel=1e-12)
    assert np.all(np.asarray(compiled(family.influence, params, jnp.full(2, 2.0))) > 0.9)  # the exponential part's
    assert not np.any(np.asarray(family.families["c"].influence(params["c"], jnp.full(2, 2.0))) > 0.1)
    assert np.all(family.coincident(params))
    moved = {**params, "a": dataclasses.replace(params["a"], rate=jnp.array([[1.0], [2.0]]))}
    np.testing.assert_array_equal(family.coincident(moved), np.eye(2, dtype=bool))


def test_a_start_of_a_parts_own_decides():
    @jaxem.dataclass
    class Halves(Poisson):
        def init_resp(self, key, x, weights, num_components, method):
            half = jnp.arange(x.shape[0]) < x.shape[0] // 2
            return jnp.stack([half, ~half], 1).astype(x.dtype)

    x = floats({"a": TABLE["visits"], "b": TABLE["visits"]})
    arguments = (KEY, x, jnp.ones(NUM), 2, "kmeans")
    assert Product({"a": Poisson(), "b": Poisson()}).init_resp(*arguments) is None
    resp = Product({"a": Poisson(), "b": Halves()}).init_resp(*arguments)
    np.testing.assert_array_equal(resp.sum(0), [48, 48])


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ({**TABLE, "more": np.ones(NUM)}, ValueError, "expected the keys .*'visits'.; found .*'more'"),
        ({"size": TABLE["size"]}, ValueError, r"expected the keys .*; found \['size'\]"),
        (TABLE["size"], TypeError, "data: expected a dict with the keys"),
        ({**TABLE, "visits": TABLE["visits"] - 9}, ValueError, r"data\['visits'\]: expected counts 0, 1, 2"),
        ({**TABLE, "answers": TABLE["answers"] + 1}, ValueError, r"data\['answers'\]: expected levels 0, ..., 1"),
        ({**TABLE, "size": TABLE["size"][:, :, None]}, ValueError, r"data\['size'\]: expected shape \(N, D\)"),
    ],
)
def test_bad_tables_are_named(data, error, message):
    with pytest.raises(error, match=message):
        jaxem.fit(MODEL, data, key=KEY)


def test_bad_families_and_params_are_named():
    with pytest.raises(ValueError, match="families: expected a dict of at least one"):
        Product({}).check({})
    with pytest.raises(TypeError, match=r"families\['a'\]: expected one of jaxem.families"):
        Product({"a": 3}).check({"a": np.ones((2, 1))})
    with pytest.raises(ValueError, match=r"families\['a'\].pseudo_observations: expected"):
        Product({"a": Bernoulli(-1.0)}).check({"a": np.ones((2, 1))})
    with pytest.raises(ValueError, match=r"params: expected the names \['a'\]; found \['b'\]"):
        Product({"a": Bernoulli()}).make_params(b={"prob": [[0.5]]})
    with pytest.raises(TypeError, match="Product has no distrax distribution"):
        MODEL.distribution(MODEL.make_params(mixing=np.array([0.5, 0.5]), **VALUES))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_part_without_an_m_step_makes_the_whole_a_case_for_gradients():
    """A Gumbel column beside counts: `fit` takes GeneralizedEM and refuses EM."""
    import distrax

    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 40)
    table = {"wait": (rng.gumbel(size=80) + 9 * group)[:, None], "visits": rng.poisson(2 + 6 * group)[:, None]}
    family = Product({"wait": jaxem.families.from_distribution(distrax.Gumbel(0.0, 1.0)), "visits": Poisson()})
    model = jaxem.Mixture(family, 2)
    fit = jaxem.fit(model, table, key=jax.random.key(0), max_steps=30)
    assert np.sort(fit.params.components["wait"]["loc"][:, 0]) == pytest.approx([0, 9], abs=0.5)
    assert np.sort(fit.params.components["visits"].rate[:, 0]) == pytest.approx([2, 8], abs=0.8)
    with pytest.raises(TypeError, match="EM needs statistics and m_step, which Mixture does not have"):
        jaxem.fit(model, table, key=jax.random.key(0), algorithm=jaxem.EM())
