"""Estimators of the ELBO and its gradient, against closed forms, quadrature and enumeration.

A replicate is a row: n equal data, each with a q and model parameters of its own, so that the gradient of the sum of
the values holds n independent draws of the estimator.
"""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import IWAE, SGVBA, SGVBB, DiagonalNormal, ScoreFunction, StickingTheLanding

KEY = jax.random.key(0)
NUM = 20_000
LOG_2PI = math.log(2 * math.pi)
REPARAMETERISED = [SGVBA(3), SGVBB(3), StickingTheLanding(3)]
ELBO = [ScoreFunction(1), ScoreFunction(3), ScoreFunction(1, -4.0), *REPARAMETERISED]
name = lambda e: f"{type(e).__name__}{e.num_samples}"


def replicated(tree, num=NUM):
    return jax.tree.map(lambda a: jax.device_put(np.broadcast_to(np.asarray(a, float), (num, *np.shape(a)))), tree)


class Linear:
    """Linear-Gaussian model x ~ N(W z, s^2 I), z ~ N(0, I), and a diagonal normal q: the ELBO in closed form."""

    prior = DiagonalNormal(jnp.zeros(2), jnp.zeros(2))
    x = np.array([1.5, -0.5, 1.0])
    params = {  # noqa: RUF012
        "q": DiagonalNormal(np.array([0.3, -0.6]), np.array([-0.4, 0.2])),
        "weight": np.array([[1.0, 0.3], [-0.2, 0.8], [0.5, -0.7]]),
        "log_noise": np.array(-0.3),
    }

    @staticmethod
    def log_lik(params, x):
        def log_lik(z):
            mean = jnp.sum(params["weight"] * z[:, None], -1)
            log_noise = params["log_noise"][:, None]
            return jnp.sum(-0.5 * ((x[None] - mean) * jnp.exp(-log_noise)) ** 2 - log_noise - LOG_2PI / 2, -1)

        return log_lik

    @staticmethod
    def elbo(params, x):
        q, weight, log_noise = params["q"], params["weight"], params["log_noise"]
        spread = jnp.sum((weight * jnp.exp(q.log_scale)[None]) ** 2)
        square = jnp.sum((x - weight @ q.loc) ** 2) + spread
        expected = -0.5 * square * jnp.exp(-2 * log_noise) - len(x) * (log_noise + LOG_2PI / 2)
        kl = jnp.sum(jnp.exp(2 * q.log_scale) + q.loc**2 - 1 - 2 * q.log_scale) / 2
        return expected - kl


exactly = jax.jit(jax.value_and_grad(Linear.elbo))


@jax.jit
def draws(estimator, key, params, x):
    """(values (n,), gradients (n, F)) of n replicates."""

    def total(params):
        values = estimator(key, params["q"], Linear.log_lik(params, x), Linear.prior)
        return values.sum(), values

    gradient, values = jax.grad(total, has_aux=True)(params)
    return values, jnp.concatenate([leaf.reshape(values.shape[0], -1) for leaf in jax.tree.leaves(gradient)], 1)


def errors(found, exact):
    """Distance of the mean over replicates from the exact value, in standard errors."""
    found = np.asarray(found)
    return np.abs(found.mean(0) - exact) / (found.std(0, ddof=1) / np.sqrt(len(found)))


@pytest.mark.parametrize("estimator", ELBO, ids=name)
def test_values_and_gradients_are_unbiased(estimator):
    params = jax.tree.map(jnp.asarray, Linear.params)
    value, gradient = exactly(params, Linear.x)
    exact = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    values, gradients = draws(estimator, KEY, replicated(Linear.params), Linear.x)
    assert errors(values, float(value)) < 5
    assert errors(gradients, exact).max() < 5
    # The test can tell: each entry is known to a twentieth of the gradient's size.
    assert (gradients.std(0) / np.sqrt(NUM)).max() < 0.05 * np.abs(exact).max()


def test_differentiating_through_draws_that_are_not_reparameterised_is_wrong():
    params = jax.tree.map(jnp.asarray, Linear.params)
    _, exact = exactly(params, Linear.x)

    class Naive(DiagonalNormal):
        def sample(self, *, seed, sample_shape=()):
            return jax.lax.stop_gradient(super().sample(seed=seed, sample_shape=sample_shape))

    def total(params):
        q = Naive(params["q"].loc, params["q"].log_scale)
        return SGVBA(3)(KEY, q, Linear.log_lik(params, Linear.x), Linear.prior).sum()

    gradient = jax.jit(jax.grad(total))(replicated(Linear.params))
    q, right = gradient["q"], exact["q"]
    assert errors(q.loc, right.loc).min() > 20  # what is left is the score, of mean 0
    assert errors(q.loc, 0).max() < 5
    assert errors(gradient["weight"], exact["weight"]).max() < 5  # only q's parameters are concerned


class Scalar:
    """Scalar latent, one datum x ~ N(w z, s^2 I): q can be the posterior."""

    weight, noise = np.array([0.5, 0.4]), 1.0

    def __init__(self, x):
        self.x = np.asarray(x)
        precision = 1 + self.weight @ self.weight / self.noise**2
        self.mean, self.log_scale = self.weight @ self.x / self.noise**2 / precision, -0.5 * np.log(precision)
        cov = self.noise**2 * np.eye(2) + np.outer(self.weight, self.weight)
        self.log_prob = -0.5 * (self.x @ np.linalg.solve(cov, self.x) + np.linalg.slogdet(2 * np.pi * cov)[1])

    def params(self, share):
        """Q on the way from the prior (0) to the posterior (1)."""
        q = DiagonalNormal(np.array([share * self.mean, 0.0]), np.array([share * self.log_scale, 0.0]))
        weight = np.stack([self.weight, np.zeros(2)], 1)
        return {"q": q, "weight": weight, "log_noise": np.log(self.noise)}

    def variances(self, estimator, num=NUM):
        """At the prior, half-way, and at the posterior: variance of the gradient in q's first coordinate, summed."""
        found = [draws(estimator, KEY, replicated(self.params(t), num), self.x)[1] for t in (0.0, 0.5, 1.0)]
        # Leaves in order: log_noise (1), q.loc (2), q.log_scale (2), weight (4).
        return np.array([np.asarray(g)[:, [1, 3]].var(0).sum() for g in found])


FAR = Scalar([4.5, 3.0])  # the posterior mean is two standard deviations of the prior away
NEAR = Scalar([0.6, 0.2])


@pytest.fixture(scope="module")
def variances():
    """Variances for a datum far from the prior, by estimator and number of samples."""
    found = {}
    for num in (2, 8):
        for estimator in (ScoreFunction(num), SGVBA(num), SGVBB(num), StickingTheLanding(num), IWAE(num, True)):
            found[type(estimator).__name__, num] = FAR.variances(estimator)
    return found


def test_score_function_is_above_a_above_b_at_the_prior(variances):
    for num in (2, 8):
        score, a, b = (variances[name, num] for name in ("ScoreFunction", "SGVBA", "SGVBB"))
        assert score[0] > 2 * a[0]
        assert a[0] > 1.1 * b[0]
        assert score[1] > a[1]


def test_a_and_the_score_function_can_be_below_b_at_the_posterior(variances):
    for num in (2, 8):
        score, a, b = (variances[name, num][2] for name in ("ScoreFunction", "SGVBA", "SGVBB"))
        assert a < 0.9 * b
        assert score < 1e-20 < a
    # Where the posterior is near the prior the common claim holds.
    assert NEAR.variances(SGVBA(2))[2] > 1.1 * NEAR.variances(SGVBB(2))[2]


def test_variances_are_those_worked_out_by_hand(variances):
    lam, mean = FAR.weight @ FAR.weight / FAR.noise**2, FAR.mean
    centre = (1 + lam) * mean
    a = [3 * (1 + lam) ** 2 + centre**2, 1 + lam + 2]
    b = [3 * lam**2 + centre**2, (lam**2 + mean**2) / (1 + lam) + 2 * (lam / (1 + lam)) ** 2]
    for num in (2, 8):
        np.testing.assert_allclose(num * variances["SGVBA", num][[0, 2]], a, rtol=0.05)
        np.testing.assert_allclose(num * variances["SGVBB", num][[0, 2]], b, rtol=0.05)


def test_sticking_the_landing_and_double_reparameterisation_have_no_variance_at_the_posterior(variances):
    for name in ("StickingTheLanding", "IWAE"):
        for num in (2, 8):
            assert variances[name, num][2] < 1e-20 < variances[name, num][1]
    # Plain IWAE keeps its score.
    assert FAR.variances(IWAE(8))[2] > 0.1


@pytest.fixture(scope="module")
def pairs():
    """The bound of two samples and its gradient in (loc, log_scale, log_noise) by quadrature, for `FAR` half-way."""
    nodes, mass = np.polynomial.hermite_e.hermegauss(80)
    mass = mass / mass.sum()
    params = FAR.params(0.5)

    def bound(q_loc, q_log_scale, log_noise):
        z = q_loc + jnp.exp(q_log_scale) * jnp.asarray(nodes)
        residual = (FAR.x[None] - z[:, None] * FAR.weight[None]) * jnp.exp(-log_noise)
        log_joint = jnp.sum(-0.5 * residual**2 - log_noise - LOG_2PI / 2, 1) - z**2 / 2 - LOG_2PI / 2
        log_q = -0.5 * nodes**2 - q_log_scale - LOG_2PI / 2
        log_w = log_joint - log_q
        return mass @ (jnp.logaddexp(log_w[:, None], log_w[None]) - math.log(2)) @ mass

    start = (params["q"].loc[0], params["q"].log_scale[0], params["log_noise"])
    value, gradient = jax.jit(jax.value_and_grad(bound, (0, 1, 2)))(*(jnp.asarray(a, float) for a in start))
    return float(value), np.array(gradient)


@pytest.mark.parametrize("doubly", [False, True])
def test_both_gradients_of_the_importance_weighted_bound_are_unbiased(doubly, pairs):
    values, gradients = draws(IWAE(2, doubly), KEY, replicated(FAR.params(0.5), 4 * NUM), FAR.x)
    assert errors(values, pairs[0]) < 5
    gradients = np.asarray(gradients)[:, [1, 3, 0]]
    assert errors(gradients, pairs[1]).max() < 5
    assert (gradients.std(0) / np.sqrt(4 * NUM)).max() < 0.02 * np.abs(pairs[1]).max()


def test_importance_weighted_bounds_rise_to_the_evidence():
    params = replicated(FAR.params(0.5), 4000)
    values = [np.asarray(draws(IWAE(num), KEY, params, FAR.x)[0]) for num in (1, 4, 16, 256)]
    means = np.array([v.mean() for v in values])
    error = np.array([v.std() for v in values]) / np.sqrt(4000)
    assert (np.diff(means) > 5 * np.hypot(error[1:], error[:-1]))[:3].all()
    assert (means < FAR.log_prob + 5 * error).all()
    assert means[-1] == pytest.approx(FAR.log_prob, abs=0.02)


def test_one_weight_is_the_elbo():
    params = replicated(Linear.params, 50)
    for pair in ((IWAE(1), SGVBA(1)), (IWAE(1, True), StickingTheLanding(1))):
        for a, b in zip(*(draws(e, KEY, params, Linear.x) for e in pair), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_elbo_plus_kl_is_the_evidence_by_quadrature():
    """A Bernoulli datum with logit 2 z - 1: neither the evidence nor the posterior has a closed form."""
    grid = np.linspace(-12, 12, 40_001)
    step = grid[1] - grid[0]
    log_lik = lambda z: jax.nn.log_sigmoid(2 * z - 1)
    q, prior = DiagonalNormal(np.array([0.4]), np.array([-0.3])), DiagonalNormal(jnp.zeros(1), jnp.zeros(1))
    log_joint = np.asarray(log_lik(jnp.asarray(grid)) + prior.log_prob(grid[:, None]))
    log_q = np.asarray(q.log_prob(grid[:, None]))
    log_evidence = np.log(np.sum(np.exp(log_joint)) * step)
    elbo = np.sum(np.exp(log_q) * (log_joint - log_q)) * step
    kl = np.sum(np.exp(log_q) * (log_q - (log_joint - log_evidence))) * step
    assert kl > 0.01
    assert elbo + kl == pytest.approx(log_evidence, abs=1e-10)
    for estimator in (SGVBB(2), SGVBA(2)):
        values = jax.jit(lambda q, e=estimator: e(KEY, q, lambda z: log_lik(z[:, 0]), prior))(replicated(q))
        assert errors(values, log_evidence - kl) < 5


def test_all_elbo_estimators_return_the_same_value():
    params = replicated(Linear.params, 20)
    value = lambda e: draws(e, KEY, params, Linear.x)[0]
    for other in (SGVBA(3), StickingTheLanding(3)):
        np.testing.assert_allclose(value(ScoreFunction(3)), value(other), rtol=1e-12)


def distrax():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import distrax
    return distrax


class Held:
    """A constant of a program, known by its identity."""

    def __init__(self, it):
        self.it = it


@pytest.mark.parametrize("estimator", [ScoreFunction(3), *REPARAMETERISED, IWAE(3, True)], ids=name)
def test_distrax_distributions_give_the_same(estimator):
    log_lik = Linear.log_lik(replicated(Linear.params, 5), Linear.x)

    def total(loc, log_scale, make, prior):
        return estimator(KEY, make(loc, log_scale), log_lik, prior.it).sum()

    dx = distrax()
    standard = dx.MultivariateNormalDiag(jnp.zeros(2), jnp.ones(2))
    ours = lambda loc, log_scale: DiagonalNormal(loc, log_scale)
    theirs = lambda loc, log_scale: dx.MultivariateNormalDiag(loc, jnp.exp(log_scale))
    independent = lambda loc, log_scale: dx.Independent(dx.Normal(loc, jnp.exp(log_scale)), 1)
    q = replicated(Linear.params["q"], 5)
    compiled = jax.jit(jax.value_and_grad(total, (0, 1)), static_argnums=(2, 3))
    both = lambda make, prior: compiled(q.loc, q.log_scale, make, Held(prior))
    expected = both(ours, Linear.prior)
    for make, prior in ((theirs, standard), (theirs, Linear.prior), (ours, standard), (independent, None)):
        if prior is None:
            prior = dx.Independent(dx.Normal(jnp.zeros(2), jnp.ones(2)), 1)
        for a, b in zip(jax.tree.leaves(both(make, prior)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_a_scalar_latent_has_no_event_axis():
    dx = distrax()
    q = dx.Normal(jnp.array([0.0, 1.0]), jnp.ones(2))
    prior = dx.Normal(0.0, 1.0)
    for estimator in (ScoreFunction(2), SGVBA(2), SGVBB(2), StickingTheLanding(2), IWAE(2, True)):
        assert estimator(KEY, q, lambda z: -(z**2), prior).shape == (2,)
    np.testing.assert_allclose(SGVBB()(KEY, q, lambda z: 0 * z, prior), [0, -0.5], atol=1e-12)


def test_the_score_function_serves_discrete_latents():
    dx = distrax()
    log_joint = np.log([0.1, 0.4, 0.2])
    logits = np.array([0.3, -0.2, 0.5])

    def elbo(logits):
        log_q = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_q) * (jnp.asarray(log_joint) - log_q))

    def total(logits, estimator):
        values = estimator(KEY, dx.Categorical(logits), lambda z: jnp.asarray(log_joint)[z])
        return values.sum(), values

    rows = replicated(logits)
    for num in (1, 4):
        gradient, values = jax.jit(jax.grad(total, has_aux=True))(rows, ScoreFunction(num))
        assert errors(values, float(elbo(jnp.asarray(logits)))) < 5
        assert errors(gradient, np.asarray(jax.grad(elbo)(jnp.asarray(logits)))).max() < 5
    with pytest.raises(TypeError, match="q: SGVBA differentiates through the samples of q; found Categorical"):
        total(rows, SGVBA())


def test_the_running_baseline_moves_and_lowers_the_variance():
    start = ScoreFunction(1, 0.0, 0.5)
    params = replicated(FAR.params(0.5))
    spread = lambda e: float(np.var(draws(e, KEY, params, FAR.x)[1][:, 1]))
    before, moved = spread(start), start
    for _ in range(8):
        moved = moved.update(jnp.mean(draws(moved, KEY, params, FAR.x)[0]))
    assert moved.num_samples == 1
    assert spread(moved) < before / 3
    assert float(moved.baseline) == pytest.approx(float(np.mean(draws(start, KEY, params, FAR.x)[0])), rel=0.01)
    for lost in (np.nan, -np.inf):  # one bad batch does not end the run
        assert float(moved.update(lost).baseline) == float(moved.baseline)
    assert start.update(2.0).baseline == 1.0
    for other in (ScoreFunction(2), SGVBA(2), IWAE(2)):
        assert other.update(jnp.asarray(1.0)) is other


def test_a_new_baseline_does_not_compile_again():
    params = replicated(Linear.params, 20)
    draws(ScoreFunction(1, jnp.asarray(0.5)), KEY, params, Linear.x)
    size = draws._cache_size()
    draws(ScoreFunction(1, jnp.asarray(1.5), 0.9), KEY, params, Linear.x)
    draws(ScoreFunction(1, jnp.asarray(2.5), 0.9), jax.random.key(5), params, Linear.x)
    assert draws._cache_size() == size


@pytest.mark.parametrize("estimator", [ScoreFunction(4), *REPARAMETERISED, IWAE(4), IWAE(4, True)], ids=name)
def test_what_is_not_finite_shows_in_its_own_row_only(estimator):
    q = replicated(DiagonalNormal(np.zeros(2), np.zeros(2)), 5)
    prior = DiagonalNormal(jnp.zeros(2), jnp.zeros(2))
    clean = lambda z: -jnp.sum(z**2, -1)
    rows = np.arange(5)

    @jax.jit
    def found(q, spoil):
        spoiled = lambda z: jnp.where(spoil & (rows == 1), jnp.nan, jnp.where(spoil & (rows == 3), -jnp.inf, clean(z)))
        total = lambda q: (lambda v: (v.sum(), v))(estimator(KEY, q, spoiled, prior))
        return jax.grad(total, has_aux=True)(q)

    gradient, values = found(q, True)
    expected, whole = found(q, False)
    assert np.isnan(values[1])
    assert values[3] == -np.inf
    good = np.array([0, 2, 4])
    np.testing.assert_array_equal(values[good], whole[good])
    np.testing.assert_array_equal(gradient.loc[good], expected.loc[good])


def test_impossible_samples_have_no_weight_in_the_importance_weighted_bound():
    q = replicated(DiagonalNormal(np.zeros(1), np.zeros(1)), 8)
    prior = DiagonalNormal(jnp.zeros(1), jnp.zeros(1))
    half = lambda z: jnp.where(z[:, 0] > 0, 0.0, -jnp.inf)  # p(x) = 1 / 2
    for doubly in (False, True):
        estimator = IWAE(4000, doubly)
        total = lambda q: (lambda v: (v.sum(), v))(estimator(KEY, q, half, prior))
        gradient, values = jax.jit(jax.grad(total, has_aux=True))(q)
        np.testing.assert_allclose(values, math.log(0.5), atol=0.08)
        assert np.isfinite(gradient.loc).all()
    assert (np.asarray(SGVBA(20)(KEY, q, half, prior)) == -np.inf).all()


@pytest.mark.parametrize("estimator", [ScoreFunction(2, 0.5), *REPARAMETERISED, IWAE(2, True)], ids=name)
def test_single_precision_stays(estimator):
    q = DiagonalNormal(jnp.zeros((3, 2), jnp.float32), jnp.zeros((3, 2), jnp.float32))
    prior = DiagonalNormal.standard(2, jnp.float32)
    total = lambda q: (lambda v: (v.sum(), v))(estimator(KEY, q, lambda z: -jnp.sum(z**2, -1), prior))
    gradient, values = jax.jit(jax.grad(total, has_aux=True))(q)
    assert values.dtype == gradient.loc.dtype == jnp.float32
    assert not values.weak_type


def test_bad_arguments_are_named():
    q, prior = DiagonalNormal(jnp.zeros((3, 2)), jnp.zeros((3, 2))), DiagonalNormal.standard(2)
    flat = lambda z: jnp.zeros(3)
    with pytest.raises(ValueError, match=r"log_lik: expected shape \(3,\), one value for each datum; found \(3, 2\)"):
        SGVBA()(KEY, q, lambda z: z, prior)
    with pytest.raises(ValueError, match=r"prior.log_prob: expected shape \(3,\).* found \(3, 2\)"):
        SGVBA()(KEY, q, flat, distrax().Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"q.log_prob: expected shape \(3,\).* found \(3, 2\)"):
        SGVBA()(KEY, distrax().Normal(jnp.zeros((3, 2)), 1.0), flat)
    for num, error in ((0, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)):
        with pytest.raises(error, match="num_samples: expected an integer >= 1; found"):
            IWAE(num).validate(None)
    with pytest.raises(ValueError, match="decay: expected a number from 0 to 1; found 1.5"):
        ScoreFunction(1, 0.0, 1.5).validate(None)
    with pytest.raises(TypeError, match="baseline: expected None, or the number to start from; found 'running'"):
        ScoreFunction(1, "running").validate(None)
    with pytest.raises(ValueError, match="baseline: expected a finite number; found nan"):
        ScoreFunction(1, np.nan).validate(None)


def test_sgvbb_refuses_a_prior_without_a_closed_kl_by_name():
    dx = distrax()
    q, flat = DiagonalNormal(jnp.zeros((3, 2)), jnp.zeros((3, 2))), lambda z: jnp.zeros(3)
    mixture = dx.MixtureSameFamily(
        dx.Categorical(jnp.zeros(2)), dx.MultivariateNormalDiag(jnp.zeros((2, 2)), jnp.ones((2, 2)))
    )
    found = "prior: SGVBB needs a prior with a closed KL"
    for prior in (mixture, jaxem.GMM(2), jaxem.BayesianGMM(2)):
        with pytest.raises(TypeError, match=f"{found}.*found {type(prior).__name__}, which has none; use SGVBA"):
            SGVBB().validate(prior)
        SGVBA().validate(prior)
    with pytest.raises(TypeError, match=f"{found}.*found None"):
        SGVBB()(KEY, q, flat)
    unlike = dx.Independent(dx.Laplace(jnp.zeros(2), jnp.ones(2)), 1)
    with pytest.raises(TypeError, match=f"{found}.*found DiagonalNormal and Independent"):
        SGVBB()(KEY, q, flat, unlike)
    assert SGVBA()(KEY, q, flat, mixture).shape == (3,)


@pytest.mark.parametrize(
    "estimator", [ScoreFunction(8), SGVBA(1), SGVBB(1), StickingTheLanding(1), IWAE(4, True)], ids=name
)
def test_every_estimator_fits_a_model_without_an_encoder(estimator):
    """Probabilistic PCA with a q for each datum, by Adam: up to the maximum of the likelihood, known in closed form."""
    import optax

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1)) @ np.array([[1.5, -1.0, 0.5]]) + 0.5 * rng.normal(size=(60, 3))
    values = np.linalg.eigvalsh(x.T @ x / 60)
    noise = values[:2].mean()  # Tipping and Bishop (1999), eq. 8
    best = -30 * (3 * LOG_2PI + np.log(values[2]) + 2 * np.log(noise) + 3)
    start = {
        "q": replicated(DiagonalNormal(np.zeros(1), np.zeros(1)), 60),
        "weight": jnp.full((3, 1), 0.3),
        "log_noise": jnp.zeros(()),
    }
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 800))
    prior = DiagonalNormal.standard(1)

    def loss(params, key):
        def log_lik(z):
            residual = (x - z @ params["weight"].T) * jnp.exp(-params["log_noise"])
            return jnp.sum(-0.5 * residual**2 - params["log_noise"] - LOG_2PI / 2, -1)

        return -estimator(key, params["q"], log_lik, prior).mean()

    def step(carry, key):
        params, state = carry
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = optimizer.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(KEY, 800)
    params = jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), keys)[0][0])()
    each = lambda loc, log_scale, x: Linear.elbo({**params, "q": DiagonalNormal(loc, log_scale)}, x)
    elbo = float(jnp.sum(jax.vmap(each)(params["q"].loc, params["q"].log_scale, jnp.asarray(x))))
    assert best - 0.01 * 60 < elbo <= best + 1e-6
