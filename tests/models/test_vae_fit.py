"""Variational autoencoders through fit: against PPCA, with every network, from many restarts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem import GradientAscent, Status, likelihoods
from jaxem.networks import PerDatum, mlp

KEY = jax.random.key(0)
NEVER = jaxem.Stop(atol=-np.inf)
Q = 3


@pytest.fixture(scope="module")
def wine():
    from sklearn.datasets import load_wine

    x = load_wine().data
    return jnp.asarray((x - x.mean(0)) / x.std(0))


def exact_elbo(model, params, x):
    """The ELBO of a linear VAE in closed form, nats: E_q[log N(x | W z + b, s^2)] - KL."""
    q, scale = model.encode(params, x), params["likelihood"].scale
    layer = params["decoder"][0]
    residual = x - model.decode(params, q.mean())
    square = jnp.sum(residual**2, 1) + q.variance() @ jnp.sum(layer["w"] ** 2, 1)
    log_lik = -0.5 * (square / scale**2 + x.shape[1] * jnp.log(2 * jnp.pi * scale**2))
    return jnp.sum(log_lik - q.kl_divergence(jaxem.DiagonalNormal.standard(Q)))


def principal_angle(params, x):
    """Largest angle between the decoder's columns and the leading principal axes, radians."""
    axes = np.linalg.svd(np.asarray(x), full_matrices=False)[2][:Q].T
    loadings = np.linalg.qr(np.asarray(params["decoder"][0]["w"]).T)[0]
    return np.arccos(np.linalg.svd(loadings.T @ axes)[1].min())


def test_a_linear_vae_is_ppca(wine, reference):
    published = reference["linear_vae"]["ppca_log_likelihood"]
    model = jaxem.VAE(
        mlp(2 * Q), mlp(13), latent_dim=Q, likelihood=likelihoods.Gaussian("shared"), num_score_samples=32
    )
    algorithm = GradientAscent(batch_size=32, learning_rate=optax.cosine_decay_schedule(1e-2, 400 * 6), num_passes=40)
    fit = jaxem.fit(
        model, wine, key=KEY, algorithm=algorithm, stop=NEVER, max_steps=10, num_restarts=4, restart_batch=4
    )
    assert fit.restarts.counts() == {"MAX_STEPS": 4}
    found = exact_elbo(fit.model, fit.params, wine)
    worst = jax.scipy.stats.norm.logpdf(wine).sum()  # N(mean, s^2 I)
    assert 0 < published - found < 0.005 * (published - worst)
    assert principal_angle(fit.params, wine) < 1e-2
    np.testing.assert_allclose(fit.elbo.data, found, atol=10)
    assert fit.health.influence < 1e-4
    assert fit.model.active_units(fit.params, wine).all()


def test_per_datum_posteriors_fit_without_an_encoder(wine):
    data = (wine[:60], jnp.arange(60.0))
    options = {"latent_dim": Q, "likelihood": likelihoods.Gaussian("shared")}
    model = jaxem.VAE(PerDatum(60, 2 * Q), mlp(13), estimator=jaxem.StickingTheLanding(), **options)
    algorithm = GradientAscent(learning_rate=0.03, num_passes=100)
    fit = jaxem.fit(model, data, key=KEY, algorithm=algorithm, stop=NEVER, max_steps=20)
    gap = jaxem.amortisation_gap(fit, data, key=KEY)
    assert fit.trace[-1] > fit.trace[0] + 100
    assert gap.amortisation.mean() < 0.1  # each q was climbed by itself already
    assert gap.approximation.mean() < 0.2


def fitted(encoder, decoder, x, **options):
    algorithm = GradientAscent(batch_size=20, learning_rate=0.01, num_passes=10)
    model = jaxem.VAE(encoder, decoder, latent_dim=2, **options)
    return jaxem.fit(model, x, key=KEY, algorithm=algorithm, stop=NEVER, max_steps=3, num_restarts=2, restart_batch=2)


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    rate = np.where(rng.random((60, 1)) < 0.5, [[0.9] * 3 + [0.1] * 3], [[0.1] * 3 + [0.9] * 3])
    return (rng.random((60, 6)) < rate).astype(np.float32)


@pytest.mark.parametrize("name", ["iwae", "score", "mixture", "refined"])
def test_every_option_climbs(x, name):
    options = {
        "iwae": {"estimator": jaxem.IWAE(4, doubly_reparameterised=True)},
        "score": {"estimator": jaxem.ScoreFunction(4, baseline=0.0), "beta": jnp.array([0.5, 1.0])},
        "mixture": {"prior": jaxem.GMM(2, "diag")},
        "refined": {"num_refinements": 2},
    }[name]
    fit = fitted(mlp(8, 4), mlp(8, 6), x, **options)
    assert fit.trace[-1] > fit.trace[0] + 10
    assert set(fit.restarts.counts()) == {"MAX_STEPS"}
    assert {leaf.dtype for leaf in jax.tree.leaves(fit.params)} == {jnp.dtype(jnp.float32)}
    if name == "score":
        assert fit.params["baseline"] < -1
    if name == "mixture":
        assert fit.elbo.params < 0
        np.testing.assert_allclose(fit.params["prior"].mixing.sum(), 1, rtol=1e-6)


def test_flax_modules_fit_unchanged(x):
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        features: int

        @linen.compact
        def __call__(self, x):
            return linen.Dense(self.features)(linen.relu(linen.Dense(8)(x)))

    fit = fitted(Net(4), Net(6), x)
    assert fit.trace[-1] > fit.trace[0] + 10
    assert set(fit.params["encoder"]["params"]) == {"Dense_0", "Dense_1"}
    assert jnp.isfinite(fit.model.log_prob(fit.params, x, key=KEY, num_samples=20)).all()


def test_equinox_modules_fit_unchanged(x):
    equinox = pytest.importorskip("equinox")
    encoder = lambda key: equinox.nn.MLP(6, 4, 8, 1, key=key)
    fit = fitted(encoder, equinox.nn.MLP(2, 6, 8, 1, key=KEY), x)
    assert fit.trace[-1] > fit.trace[0] + 10
    assert not np.isclose(*np.asarray(fit.restarts.elbo.data))
    assert fit.model.reconstruct(fit.params, x).shape == (60, 6)


def test_bad_input_is_named_before_anything_is_compiled(x):
    model = jaxem.VAE(mlp(4), mlp(6), latent_dim=2)
    with pytest.raises(ValueError, match="batch_size: expected at most the number of rows, 60; found 61"):
        jaxem.fit(model, x, key=KEY, algorithm=GradientAscent(batch_size=61))
    with pytest.raises(ValueError, match="held_out"):
        jaxem.fit(model, x, key=KEY, algorithm=GradientAscent(held_out=x[:0]))
    with pytest.raises(ValueError, match="expected values from 0 to 1"):
        jaxem.fit(model, x, key=KEY, algorithm=GradientAscent(held_out=x[:3] + 1))
    wrong = dataclasses.replace(model, latent_dim=3)
    with pytest.raises(ValueError, match="encoder: expected outputs of shape"):
        jaxem.fit(wrong, x, key=KEY)


def test_weights_are_counts_of_rows(x):
    model, weights = jaxem.VAE(mlp(4), mlp(6), latent_dim=2), np.repeat([1.0, 0.0], 30)
    algorithm = GradientAscent(learning_rate=0.01, key=KEY)
    half = jaxem.fit(model, x, key=KEY, weights=weights, algorithm=algorithm, max_steps=3, stop=NEVER)
    flipped = np.concatenate([x[:30], 1 - x[30:]])
    other = jaxem.fit(model, flipped, key=KEY, weights=weights, algorithm=algorithm, max_steps=3, stop=NEVER)
    np.testing.assert_array_equal(half.trace, other.trace)  # rows of weight 0 count for nothing
    assert half.status == Status.UNDERFIT  # three steps


def test_a_new_beta_or_an_equal_network_compiles_nothing(x):
    from jaxem.engine.table import advance

    algorithm = GradientAscent(batch_size=20, key=KEY)

    def fit(beta, rate):
        model = jaxem.VAE(mlp(4), mlp(6), latent_dim=2, beta=beta, likelihood=likelihoods.Bernoulli())
        rated = dataclasses.replace(algorithm, learning_rate=rate)
        return jaxem.fit(model, x, key=KEY, algorithm=rated, max_steps=2, stop=NEVER)

    one = fit(1.0, 0.01)
    before = advance._cache_size()
    two = fit(0.1, 0.02)
    assert advance._cache_size() == before
    assert one.trace[-1] != two.trace[-1]


def test_learning_rates_vmapped_are_those_of_single_fits(x):
    model = jaxem.VAE(mlp(4), mlp(6), latent_dim=2)

    def final(rate):
        algorithm = GradientAscent(batch_size=20, learning_rate=rate, key=KEY)
        return jaxem.fit(model, x, key=KEY, algorithm=algorithm, max_steps=3, stop=NEVER).elbo.data

    rates = jnp.array([1e-3, 1e-2, 3e-2], x.dtype)
    np.testing.assert_allclose(jax.jit(jax.vmap(final))(rates), [final(rate) for rate in rates], rtol=1e-5)


def test_a_rate_far_too_high_ends_with_finite_params(x):
    model = jaxem.VAE(mlp(8, 4), mlp(8, 6), latent_dim=2)
    algorithm = GradientAscent(batch_size=20, learning_rate=1e6)
    fit = jaxem.fit(model, x, key=KEY, algorithm=algorithm, max_steps=5, stop=NEVER)
    assert fit.status in (Status.NONFINITE, Status.UNDERFIT)
    assert np.isfinite(fit.elbo.total)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.params))
