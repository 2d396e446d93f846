import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxem
from jaxem import likelihoods
from jaxem.likelihoods.gaussian import Noise
from jaxem.networks import PerDatum, mlp

KEY = jax.random.key(0)
Q = 3


@pytest.fixture(scope="module")
def wine():
    from sklearn.datasets import load_wine

    x = load_wine().data
    return jnp.asarray((x - x.mean(0)) / x.std(0))


@pytest.fixture(scope="module")
def ppca(wine):
    """Loadings W (D, Q) along the principal axes and noise variance of the maximum-likelihood PPCA."""
    values, vectors = np.linalg.eigh(np.cov(np.asarray(wine).T, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    noise = values[Q:].mean()
    return vectors[:, :Q] * np.sqrt(values[:Q] - noise), noise


def linear_vae(num_columns, **options):
    options = {"likelihood": likelihoods.Gaussian(), "estimator": jaxem.SGVBA(), "standardise": None} | options
    return jaxem.VAE(mlp(2 * Q), mlp(num_columns), latent_dim=Q, **options)


def linear_params(w, noise, diagonal=None):
    """Params whose q is N(posterior mean, diag(diagonal)), by default the diagonal normal nearest to the posterior."""
    precision = np.eye(Q) + w.T @ w / noise
    variance = 1 / np.diag(precision) if diagonal is None else diagonal
    to_mean = w @ np.linalg.inv(precision) / noise
    encoder = {
        "w": np.concatenate([to_mean, np.zeros_like(to_mean)], 1),
        "b": np.concatenate([np.zeros(Q), np.log(variance)]),
    }
    decoder = {"w": w.T, "b": np.zeros(len(w))}
    params = {"encoder": [encoder], "decoder": [decoder], "likelihood": Noise(np.sqrt(noise)), "inputs": ()}
    return jax.tree.map(jnp.asarray, params)


def log_likelihood(x, w, noise):
    return stats.multivariate_normal(np.zeros(len(w)), w @ w.T + noise * np.eye(len(w))).logpdf(x)


def rotation():
    return np.linalg.qr(np.random.default_rng(1).normal(size=(Q, Q)))[0]


def test_elbo_is_the_ppca_likelihood_where_loadings_are_orthogonal(wine, ppca, reference):
    published = reference["linear_vae"]["ppca_log_likelihood"]
    model, params = linear_vae(13), linear_params(*ppca)
    model.check(wine)
    for seed in range(3):  # q is the posterior, so that every draw of z gives log p(x)
        found = model.elbo_data(params, wine, None, jax.random.key(seed))
        np.testing.assert_allclose(found, published, atol=1e-8)
    evidence = model.evidence(params, wine, key=KEY, num_samples=7)
    np.testing.assert_allclose(evidence.log_prob, log_likelihood(wine, *ppca), atol=1e-9)
    np.testing.assert_allclose(evidence.effective_size, 7, rtol=1e-9)
    assert "178 data by 7 draws each" in repr(evidence)


def test_a_rotation_costs_a_diagonal_posterior_what_the_theory_says(wine, ppca):
    w, noise = ppca[0] @ rotation(), ppca[1]
    precision = np.eye(Q) + w.T @ w / noise
    lost = (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1]) / 2
    params, model = linear_params(w, noise), linear_vae(13)
    model = linear_vae(13, estimator=jaxem.SGVBB(2000))
    total = model.elbo_data(params, wine, None, KEY)
    expected = log_likelihood(wine, w, noise).sum() - 178 * lost
    assert lost > 0.02
    np.testing.assert_allclose(total, expected, atol=0.5)
    wide = np.full(Q, 0.5)
    climb = jaxem.GradientAscent()
    fit = jaxem.fit(model, wine, key=KEY, params=linear_params(w, noise, wide), algorithm=climb, max_steps=0)
    gap = jaxem.amortisation_gap(fit, wine, key=KEY, num_samples=4000)
    np.testing.assert_allclose(gap.log_prob, log_likelihood(wine, w, noise), atol=0.05)
    np.testing.assert_allclose(gap.approximation.mean(), lost, atol=0.01)
    kl = (np.diag(precision) * wide - 1 - np.log(wide)).sum() / 2 - np.linalg.slogdet(precision)[1] / 2
    np.testing.assert_allclose(gap.amortisation.mean(), kl - lost, rtol=0.02)
    assert (gap.amortisation > -0.05).all()
    assert "approximation" in repr(gap)


def test_more_rows_than_a_block_give_the_sum_over_all(ppca):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4500, 13)))
    weights = jnp.asarray(np.random.default_rng(1).integers(0, 3, 4500), float)
    found = linear_vae(13).elbo_data(linear_params(*ppca), x, weights, KEY)
    np.testing.assert_allclose(found, weights @ log_likelihood(x, *ppca), rtol=1e-12)


@pytest.fixture(scope="module")
def binary():
    x = jnp.asarray(np.random.default_rng(7).binomial(1, np.linspace(0.1, 0.9, 6), (40, 6)), float)
    model = jaxem.VAE(mlp(8, 2, activation=jnp.tanh), mlp(8, 6, activation=jnp.tanh), latent_dim=1)
    params = model.init(KEY, x, jnp.ones(40))
    networks = {name: jax.tree.map(lambda a: 2 * a, params[name]) for name in ("encoder", "decoder")}
    return model, params | networks, x


def quadrature(model, params, x):
    """(N,) log p(x) with one latent, by a fine grid."""
    z = jnp.linspace(-9, 9, 3001)
    log_lik = jax.jit(jax.vmap(lambda v: model.log_lik(params, x)(jnp.full((x.shape[0], 1), v))))(z)
    return jax.nn.logsumexp(log_lik + stats.norm.logpdf(z)[:, None], 0) + np.log(z[1] - z[0])


def test_log_prob_agrees_with_quadrature_and_chunks_change_nothing(binary, monkeypatch):
    from jaxem.models.vae import latents as _vae_latents

    model, params, x = binary
    expected = quadrature(model, params, x)
    monkeypatch.setattr(_vae_latents, "CHUNK", 4000)
    evidence = model.evidence(params, x, key=KEY, num_samples=5050)  # 100 draws a chunk, and a part of one
    error = np.sqrt(1 / evidence.effective_size)
    assert (jnp.abs(evidence.log_prob - expected) < 5 * error).all()
    assert ((evidence.effective_size > 5) & (evidence.effective_size <= 5050)).all()
    assert (evidence.elbo < expected).all()
    np.testing.assert_array_equal(model.log_prob(params, x, key=KEY, num_samples=5050), evidence.log_prob)
    np.testing.assert_allclose(model.elbo(params, x, key=KEY, num_samples=4000).mean(), evidence.elbo.mean(), atol=0.02)


def test_importance_weights_and_effective_sizes_are_those_of_plain_numpy(binary):
    from jaxem.models.vae import latents as _vae_latents

    log_weight = jnp.asarray(np.random.default_rng(0).normal(size=(30, 4)) * 5).at[:10, 0].set(-jnp.inf)
    carry = (jnp.full(4, -jnp.inf), jnp.zeros(4), jnp.zeros(4), jnp.zeros(4))
    for part in (log_weight[:10], log_weight[10:20], log_weight[20:]):
        carry = _vae_latents._add(carry, part, jnp.ones((10, 1), bool))
    top, one, two, _ = carry
    w = np.exp(np.asarray(log_weight))
    np.testing.assert_allclose(top + jnp.log(one), np.log(w.sum(0)), rtol=1e-12)
    np.testing.assert_allclose(one**2 / two, w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-12)


def test_iwae_lies_between_the_elbo_and_log_prob(binary):
    model, params, x = binary
    iwae = dataclasses.replace(model, estimator=jaxem.IWAE(20))
    bounds = [dataclasses.replace(m, num_score_samples=200).elbo_data(params, x, None, KEY) for m in (model, iwae)]
    assert bounds[0] < bounds[1] < quadrature(model, params, x).sum()
    np.testing.assert_allclose(iwae.elbo(params, x, key=KEY, num_samples=2000).sum(), bounds[0], atol=3)


def test_beta_weighs_the_kl_in_training_only(binary):
    model, params, x = binary
    ones, kl = jnp.ones(40), 40 * model.kl_per_dimension(params, x).sum()
    plain = model.elbo_data(params, x, ones, KEY)
    model = dataclasses.replace(model, beta=jnp.array([0.0, 0.25, 3.0]))
    training_elbo = jax.jit(lambda params, step: model.training_elbo(params, x, ones, KEY, step))
    np.testing.assert_array_equal(model.elbo_data(params, x, ones, KEY), plain)
    for step, beta in ((0, 0.0), (1, 0.25), (2, 3.0), (9, 3.0)):
        found = training_elbo(params, jnp.int32(step))
        np.testing.assert_allclose(found, plain + (1 - beta) * kl, rtol=1e-4 if beta == 0 else 1e-12)


def test_collapse_is_visible(binary):
    model, params, x = binary
    assert model.active_units(params, x).tolist() == [True]
    kl = model.kl_per_dimension(params, x)
    q = model.encode(params, x)
    np.testing.assert_allclose(kl[0], q.kl_divergence(model.latent_prior(params)).mean())
    last = {**params["encoder"][1], "w": jnp.zeros((8, 2)), "b": jnp.zeros(2)}
    collapsed = {**params, "encoder": [params["encoder"][0], last]}
    assert model.active_units(collapsed, x).tolist() == [False]
    assert model.kl_per_dimension(collapsed, x).tolist() == [0.0]


def test_noise_at_its_floor_is_a_spike(wine, ppca):
    model, params = linear_vae(13), linear_params(*ppca)
    assert model.health(params).influence < 1e-4
    assert model.health({**params, "likelihood": Noise(jnp.array(1.5e-3))}).influence > 0.1


def test_mixture_prior(binary):
    _, _, x = binary
    model = jaxem.VAE(mlp(8, 4), mlp(8, 6), jaxem.GMM(3, "diag"), latent_dim=2)
    assert isinstance(model.estimator, jaxem.SGVBA)
    model.check(x)
    ones = jnp.ones(40)
    start = jax.jit(lambda model: (model.bind(x, ones), model.bind(x, ones).init(KEY, x, ones)))
    model, params = start(model)
    z = jax.random.normal(KEY, (5, 2))
    prior = params["prior"]
    density = sum(
        float(m) * stats.multivariate_normal(mean, cov).pdf(z)
        for m, mean, cov in zip(prior.mixing, prior.components.mean, prior.components.covariance, strict=True)
    )
    np.testing.assert_allclose(model.latent_prior(params).log_prob(z), np.log(density), rtol=1e-9)
    assert model.health(params).min_count <= 40 / 3
    np.testing.assert_array_equal(model.elbo_params(params), model.prior.elbo_params(prior))
    gradient = jax.jit(jax.grad(lambda p: model.training_elbo(p, x, ones, KEY, jnp.int32(0))))(params)["prior"]
    assert float(jnp.abs(gradient.components.mean).min()) > 0
    data, codes = model.sample(params, 7, key=KEY)
    assert (data.shape, codes.shape) == ((7, 6), (7, 2))
    with pytest.raises(TypeError, match="kl_per_dimension: expected a standard normal prior"):
        model.kl_per_dimension(params, x)


def test_running_baseline_is_a_parameter_that_is_not_climbed(binary):
    _, _, x = binary
    model = jaxem.VAE(mlp(8, 2), mlp(8, 6), latent_dim=1, estimator=jaxem.ScoreFunction(baseline=0.0))
    params = model.init(KEY, x, jnp.ones(40))
    assert isinstance(model.constraints()["baseline"], jaxem.constraints.Fixed)
    moved = model.adapt(params, jnp.asarray(-4.0))
    np.testing.assert_allclose(moved["baseline"], -0.4)
    gradient = jax.jit(jax.grad(lambda p: model.training_elbo(p, x, jnp.ones(40), KEY, jnp.int32(0))))
    one, two = gradient(params)["encoder"], gradient(moved)["encoder"]
    assert not jnp.allclose(one[0]["w"], two[0]["w"])  # the same draws, another baseline


def test_uses_have_their_shapes_and_dtypes(binary):
    model, _, x = binary
    params = jax.jit(model.init)(KEY, x.astype(jnp.float32), np.ones(40, np.float32))
    codes = model.encode(params, np.asarray(x, int)).mean()
    assert (codes.shape, codes.dtype) == ((40, 1), jnp.float32)
    found = model.reconstruct(params, x)
    np.testing.assert_array_equal(found, model.decode(params, codes))
    assert ((found > 0) & (found < 1)).all()
    data, z = model.sample(params, 9, key=KEY)
    assert (data.shape, data.dtype, z.shape) == ((9, 6), jnp.float32, (9, 1))
    assert model.elbo_data(params, x.astype(jnp.float32), None, KEY).dtype == jnp.float32
    assert model.log_prob(params, x, key=KEY, num_samples=3).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"z: expected shape \(n, 1\); found \(3, 2\)"):
        model.decode(params, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="data: expected values from 0 to 1"):
        model.encode(params, x + 1)
    with pytest.raises(ValueError, match="num_samples: expected an integer >= 1; found 0"):
        model.log_prob(params, x, key=KEY, num_samples=0)


def test_refinement_raises_the_elbo_and_is_differentiated_through(binary):
    model, params, x = binary
    semi = dataclasses.replace(model, num_refinements=5, refinement_rate=0.2)
    semi.check(x)
    before, after = (m.elbo(params, x, key=KEY, num_samples=500).mean() for m in (model, semi))
    assert after > before + 0.02
    gradient = jax.jit(jax.grad(lambda p: semi.training_elbo(p, x, jnp.ones(40), KEY, jnp.int32(0))))(params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert semi.encode(params, x, key=KEY).mean().shape == (40, 1)
    with pytest.raises(ValueError, match="key: a semi-amortised model needs a random key"):
        semi.encode(params, x)
    assert semi.active_units(params, x, key=KEY).shape == (1,)  # failed before: these took no key
    assert semi.kl_per_dimension(params, x, key=KEY).shape == (1,)


def heads(params, x):
    out = mlp(4).apply(params, x)
    return out[:, :2], out[:, 2:]


@pytest.mark.parametrize("form", ["pair", "scalars", "joint", "given"])
def test_encoders_and_decoders_of_every_form_are_one_model(binary, form):
    x = binary[2]
    plain = jaxem.VAE(mlp(4), mlp(6), latent_dim=2)
    params = plain.init(KEY, x, jnp.ones(40))
    expected = plain.elbo(params, x, key=KEY, num_samples=400)
    init, more = mlp(4).init, {}
    if form == "pair":
        model = jaxem.VAE((init, heads), mlp(6), latent_dim=2)
    elif form == "given":
        distrax = pytest.importorskip("distrax")
        logits = lambda z: params["likelihood"].values(z)
        decode = lambda params, z: distrax.Bernoulli(logits=logits(mlp(6).apply(params, z)))
        model = jaxem.VAE(mlp(4), (mlp(6).init, decode), latent_dim=2, likelihood=None)
        assert model.sample(params, 3, key=KEY)[0].shape == model.decode(params, jnp.zeros((3, 2))).shape == (3, 6)
    else:
        distrax = pytest.importorskip("distrax")

        def encode(params, x):
            mean, log_variance = heads(params, x)
            normal = distrax.Normal(mean, jnp.exp(log_variance / 2))
            return distrax.Independent(normal, 1) if form == "joint" else normal

        more = {"estimator": jaxem.SGVBA()}
        model = jaxem.VAE((init, encode), mlp(6), latent_dim=2, **more)
    model.check(x)
    found = model.elbo(params, x, key=KEY, num_samples=400)
    np.testing.assert_allclose(found.mean(), expected.mean(), atol=0.05)
    assert jnp.isfinite(model.log_prob(params, x, key=KEY, num_samples=10)).all()
    assert model.active_units(params, x).shape == (2,)


GOOD = {"encoder": mlp(4), "decoder": mlp(6), "latent_dim": 2}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"encoder": mlp(5)}, ValueError, r"encoder: expected outputs of shape \(40, 4\).*found \(40, 5\)"),
        (
            {"latent_dim": 3},
            ValueError,
            r"encoder: expected outputs of shape \(40, 6\).*latent_dim = 3; found \(40, 4\)",
        ),
        ({"latent_dim": 0}, ValueError, "latent_dim: expected an integer >= 1"),
        ({"decoder": mlp(5)}, ValueError, r"decoder: expected outputs of shape \(40, 6\), for 6 columns of Bernoulli"),
        ({"decoder": (mlp(6).init, lambda params, z: None)}, TypeError, "decoder: expected outputs of shape"),
        ({"encoder": (mlp(4).init, lambda params, z: {})}, TypeError, "encoder: expected outputs"),
        ({"encoder": (mlp(4).init, lambda params, x: (x, x))}, ValueError, "encoder: expected a pair of shapes"),
        ({"likelihood": None}, TypeError, "decoder: expected a distribution, as likelihood is None"),
        ({"likelihood": "bernoulli"}, TypeError, "likelihood: expected one of jaxem.likelihoods"),
        (
            {"likelihood": likelihoods.Gaussian("predicted")},
            ValueError,
            r"decoder: expected outputs of shape \(40, 12\)",
        ),
        ({"estimator": 3}, TypeError, "estimator: expected an estimator"),
        ({"prior": "mixture"}, TypeError, "prior: expected None for N"),
        ({"prior": jaxem.GMM(0)}, ValueError, "num_components: expected an integer >= 1"),
        ({"prior": jaxem.GMM(3), "estimator": jaxem.SGVBB()}, TypeError, "prior: SGVBB needs a prior with a closed KL"),
        ({"beta": -1.0}, ValueError, "beta: expected a number >= 0, or an array"),
        ({"beta": lambda t: t}, TypeError, "beta: expected a number >= 0, or an array"),
        ({"num_refinements": -1}, ValueError, "num_refinements: expected an integer >= 0"),
        ({"refinement_rate": np.nan}, ValueError, "refinement_rate: expected a number >= 0"),
    ],
)
def test_settings_are_refused_by_name(binary, change, error, message):
    with pytest.raises(error, match=message):
        jaxem.VAE(**(GOOD | change)).check(binary[2])


def test_data_outside_the_support_are_refused_before_anything_is_compiled(binary):
    x = binary[2]
    for bad, likelihood in ((x * 1.5, likelihoods.Bernoulli()), (x - 1, likelihoods.Poisson())):
        with pytest.raises(ValueError, match="data: expected"):
            jaxem.fit(jaxem.VAE(**GOOD, likelihood=likelihood), bad, key=KEY)
    model = jaxem.VAE(**GOOD)
    params = model.init(KEY, x, None)
    with pytest.raises(ValueError, match="key: the ELBO of a VAE is an estimate"):
        model.elbo_data(params, x)


def test_per_datum_posteriors_need_row_numbers(binary):
    x = binary[2]
    model = jaxem.VAE(PerDatum(40, 4), mlp(6), latent_dim=2)
    with pytest.raises(ValueError, match="data: PerDatum expects a pair"):
        model.check(x)
    data = (x, jnp.arange(40.0))
    model.check(data)
    params = model.init(KEY, data, jnp.ones(40))
    assert params["encoder"].shape == (40, 4)
    assert model.encode(params, data).mean().shape == (40, 2)
