"""A VAE fits data as they come: units, offsets and counts of any size, against independent columns in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import compiled
from scipy import special, stats

import jaxem
from jaxem import GradientAscent, Status, likelihoods
from jaxem.networks import mlp

KEY = jax.random.key(0)
CLIMB = GradientAscent(batch_size=50, num_passes=10)


def correlated():
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) + 0.3 * rng.normal(size=(400, 6))


def vae(likelihood, outputs=6, **options):
    return jaxem.VAE(mlp(32, 4), mlp(32, outputs), latent_dim=2, likelihood=likelihood, **options)


def fitted(likelihood, x, outputs=6, max_steps=4, **options):
    model = vae(likelihood, outputs, **options)
    return jaxem.fit(model, np.asarray(x, np.float32), key=KEY, algorithm=CLIMB, max_steps=max_steps)


def independent_normals(x):
    """Nats a row of the best independent normals."""
    x = np.float64(np.float32(x))
    return stats.norm(x.mean(0), x.std(0)).logpdf(x).sum(1).mean()


UNITS = {
    "factor 1e-30": (1e-30, 0),
    "factor 1e-3": (1e-3, 0),
    "factor 100": (100, 0),
    "factor 1e6": (1e6, 0),
    "factor 1e15": (1e15, 0),
    "offset 20": (1, 20),
    "offset 1e4": (1, 1e4),
    "mixed": (np.array([1e-3, 1, 30, 1e4, 1e6, 1e-6]), np.array([0, 5, 100, 0, 1e6, 0])),
}


@pytest.mark.parametrize("kind", ["shared", "predicted"])
def test_units_and_offsets_change_the_density_alone(kind):
    x, outputs = correlated(), 6 if kind == "shared" else 12
    own = fitted(likelihoods.Gaussian(kind), x, outputs)
    expected = float(own.elbo.data) / 400
    assert expected > independent_normals(x) + 0.5
    codes = own.model.encode(own.params, x).mean()
    for name in UNITS if kind == "shared" else ("factor 100", "offset 1e4"):
        factor, offset = UNITS[name]
        data = np.float32(x * factor + offset)
        fit = fitted(likelihoods.Gaussian(kind), data, outputs)
        log = np.log(factor * np.ones(6)).sum()
        np.testing.assert_allclose(float(fit.elbo.data) / 400 + log, expected, atol=0.03, err_msg=name)
        assert fit.status == Status.MAX_STEPS, name
        np.testing.assert_allclose(fit.model.encode(fit.params, data).mean(), codes, atol=0.1, err_msg=name)
        found = (np.float64(fit.model.reconstruct(fit.params, data)) - offset) / factor
        np.testing.assert_allclose(found, own.model.reconstruct(own.params, x), atol=0.1, err_msg=name)


COUNTS = {
    "Poisson, 1e4 and their own noise": (likelihoods.Poisson(), 6, lambda rng, x: rng.poisson(1e4 * np.exp(0.02 * x))),
    "Poisson, 1e4 and more": (likelihoods.Poisson(), 6, lambda rng, x: rng.poisson(1e4 * np.exp(0.5 * x))),
    "Binomial(255)": (likelihoods.Binomial(255), 6, lambda rng, x: rng.binomial(255, special.expit(x))),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_any_size_end_above_independent_columns(name):
    likelihood, outputs, draw = COUNTS[name]
    x = draw(np.random.default_rng(1), correlated())
    law = stats.poisson(x.mean(0)) if "Poisson" in name else stats.binom(255, x.mean(0) / 255)
    fit = fitted(likelihood, x, outputs)
    least = law.logpmf(x).sum()
    np.testing.assert_allclose(fit.model.least_elbo() + 0.01 * 2400, least, rtol=1e-5)
    assert float(fit.elbo.data) > least + 400  # -9e27 or FitError before columns were standardised
    assert fit.status == Status.MAX_STEPS


@pytest.mark.parametrize("kind", ["shared", "predicted"])
def test_what_is_below_independent_columns_is_underfit(kind):
    x, outputs = correlated() * 100, 6 if kind == "shared" else 12
    start = fitted(likelihoods.Gaussian(kind), x, outputs, max_steps=0)
    np.testing.assert_allclose(start.model.least_elbo() / 400 + 0.06, independent_normals(x), rtol=1e-3)
    assert start.elbo.data < start.model.least_elbo()
    assert start.status == Status.UNDERFIT
    missing = float(start.model.least_elbo() - start.elbo.data) / 400
    assert start.warnings()[0].startswith("UNDERFIT: below what independent columns reach")
    assert start.warnings()[0].endswith(f"it misses that by {missing:.3g} nats for each unit of weight")
    slow, x = dataclasses.replace(CLIMB, learning_rate=1e-6), np.float32(x)
    fit = jaxem.fit(start.model, x, key=KEY, algorithm=slow, max_steps=2, stop=jaxem.Stop(atol=1e9))
    assert fit.status == Status.UNDERFIT  # not CONVERGED, as the stop rule has it


def test_params_carry_their_coordinates():
    x = np.float32(correlated() * 100 + 1000)
    fit = fitted(likelihoods.Gaussian("shared"), x)
    unbound, other = vae(likelihoods.Gaussian("shared")), x[:50] * 3
    expected = fit.model.encode(fit.params, other).mean()
    np.testing.assert_array_equal(unbound.encode(fit.params, other).mean(), expected)
    again = jaxem.fit(unbound, other, key=KEY, params=fit.params, algorithm=CLIMB, max_steps=1)
    for name in ("inputs", "likelihood"):
        columns = again.params[name] if name == "inputs" else again.params[name].columns
        np.testing.assert_allclose(columns.centre, x.mean(0), rtol=1e-5)  # of the first fit, and not climbed
        np.testing.assert_allclose(columns.scale, x.std(0), rtol=1e-4)
    drawn, _ = unbound.sample(fit.params, 4000, key=KEY)
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=30)
    np.testing.assert_allclose(drawn.std(0), x.std(0), rtol=0.3)


def test_weights_and_the_rest_of_a_tuple_are_respected():
    x = np.float32(correlated() * 100)
    weights = np.repeat([2.0, 0.0], 200).astype(np.float32)
    seen = []

    def look(params, data):
        seen.append(data)
        return mlp(4).apply(params, data[0])

    init = lambda key, data: mlp(4).init(key, data[0])
    model = jaxem.VAE((init, look), mlp(6), latent_dim=2, likelihood=likelihoods.Gaussian())
    data = (jnp.asarray(x), jnp.arange(400, dtype=jnp.float32))
    params = model.init(KEY, data, jnp.asarray(weights))
    np.testing.assert_allclose(params["inputs"].centre, x[:200].mean(0), rtol=1e-4, atol=1e-3)
    q = model._posterior(params, data, None)
    assert q.mean().shape == (400, 2)
    rows, more = seen[-1]
    np.testing.assert_allclose(rows[:200].std(0), 1, rtol=1e-4)
    np.testing.assert_array_equal(more, data[1])  # row numbers and classes stay what they are


def test_the_choice_of_coordinates():
    x = jnp.asarray(correlated() * [1, 2, 3, 4, 5, 6] + 10)
    ones = jnp.ones(400)
    table = vae(likelihoods.Gaussian(), standardise="table").init(KEY, x, ones)
    spread = np.sqrt(np.mean(np.asarray(x).var(0)))
    np.testing.assert_allclose(table["likelihood"].columns.scale, spread)
    np.testing.assert_allclose(table["inputs"].scale, spread)
    np.testing.assert_allclose(table["inputs"].centre, x.mean(0))
    plain = vae(likelihoods.Gaussian(), standardise=None)
    params = plain.init(KEY, x, ones)
    assert params["inputs"] == params["likelihood"].columns == ()
    outputs = plain.outputs(params, jnp.ones((3, 2)))
    np.testing.assert_array_equal(plain.decode(params, np.ones((3, 2))), outputs)
    np.testing.assert_allclose(
        compiled(plain.bind, x, ones).least_elbo() / 400 + 0.06, independent_normals(x), rtol=1e-5
    )
    with pytest.raises(ValueError, match="standardise: expected 'columns', 'table' or None; found 'rows'"):
        vae(likelihoods.Gaussian(), standardise="rows").check(x)


def test_a_log_variance_of_tens_does_not_rule_the_first_passes():
    from jaxem.models.vae.latents import as_posterior

    said = jnp.array([[-9.0, 0.0, 3.9, 4.0, 5.0, 40.0, 1e4]])
    q = as_posterior((jnp.zeros_like(said), said), 7, said.dtype)
    np.testing.assert_allclose(q.variance()[0, :4], np.exp([-9, 0, 3.9, 4]))
    np.testing.assert_allclose(q.variance()[0, 4:], np.exp(4) * np.array([2.0, 37, 9997]))  # the tangent of exp
    slope = jax.grad(lambda a: as_posterior((jnp.zeros_like(a), a), 7, a.dtype).log_scale.sum())(said)
    np.testing.assert_allclose(slope[0, :5], [0.5, 0.5, 0.5, 0.5, 0.25])
    assert (slope > 0).all()
