"""Mean-field models by autodiff: published values, conjugate truths, and what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status, expfam
from jaxem.engine.table import advance
from jaxem.expfam import Delta
from jaxem.models.mean_field import Factor, MeanField

KEY = jax.random.key(0)
LOG_2PI = math.log(2 * math.pi)
NORMAL, GAMMA, DIRICHLET = expfam.Normal(), expfam.Gamma(), expfam.Dirichlet()
TIGHT = jaxem.Stop(1e-14)


@jaxem.dataclass
class UnknownNormal(MeanField):
    """y ~ N(mu, 1 / tau), mu ~ N(0, 1 / precision), tau ~ Gamma(shape, rate)."""

    precision: float = 1e-6
    shape: float = 1e-6
    rate: float = 1e-6
    point: bool = jaxem.static(default=False)

    def factors(self):
        wrap = Delta if self.point else lambda family: family
        return {"mu": Factor(wrap(NORMAL)), "tau": Factor(wrap(GAMMA))}

    def expected_log_lik(self, means, x):
        mu, tau = means["mu"], means["tau"]
        return 0.5 * (tau.log - LOG_2PI - tau.x * (x**2 - 2 * x * mu.x + mu.xx))

    def expected_log_prior(self, means):
        mu = NORMAL.expected_log_prob(NORMAL.natural(0.0, self.precision), means["mu"])
        return mu + GAMMA.expected_log_prob(GAMMA.natural(self.shape, self.rate), means["tau"])


@pytest.fixture(scope="module")
def draws(reference):
    state = np.random.RandomState(1)
    return state.normal(5, 10, size=10)


def test_published_normal_gamma(draws, reference):
    """The ELBO of every sweep, the limit, and q(tau)."""
    expected = reference["normal_gamma_cavi"]
    result = jaxem.fit(UnknownNormal(), draws, key=KEY, stop=TIGHT)
    np.testing.assert_allclose(result.trace[1:5], expected["elbo"], atol=5e-6)
    assert float(result.elbo.total) == pytest.approx(expected["limit"], abs=1e-9)
    tau = GAMMA.conventional(result.params["tau"])
    assert float(tau["shape"]) == pytest.approx(expected["q_tau"]["a"], abs=1e-9)
    assert float(tau["rate"]) == pytest.approx(expected["q_tau"]["b"], abs=2e-6)
    assert float(result.model.means(result.params)["mu"].x) == pytest.approx(expected["q_mu_mean"], abs=1e-7)
    four = jaxem.fit(UnknownNormal(), draws, key=KEY, stop=TIGHT, max_steps=4)
    assert float(GAMMA.conventional(four.params["tau"])["rate"]) == pytest.approx(
        expected["after_four_updates"]["b"], abs=1e-6
    )
    assert float(four.elbo.total) == pytest.approx(expected["after_four_updates"]["elbo"], abs=1e-10)


def test_sweeps_are_in_the_models_order_not_the_alphabets(draws):
    class Reversed(UnknownNormal):
        def factors(self):
            return dict(reversed(super().factors().items()))

    one = jaxem.fit(UnknownNormal(), draws, key=KEY, max_steps=1)
    other = jaxem.fit(jaxem.dataclass(Reversed)(), draws, key=KEY, max_steps=1)
    # From q(mu) = N(0, 1): tau first sees E[mu^2] = 1.
    rate = 1e-6 + 0.5 * np.sum(draws**2 + 1)
    assert float(GAMMA.conventional(other.params["tau"])["rate"]) == pytest.approx(rate, rel=1e-9)
    assert float(GAMMA.conventional(one.params["tau"])["rate"]) < 0.999 * rate


def test_a_second_fit_compiles_nothing(draws):
    """A new key and new numbers of the prior: neither the loop nor the probing of the model."""
    from jaxem.models import probe as _probe

    programs = (advance, _probe._gradient, _probe._prior_gradient)
    jaxem.fit(UnknownNormal(), draws, key=KEY)
    before = [program._cache_size() for program in programs]
    jaxem.fit(UnknownNormal(0.1, 2.0, 3.0), draws, key=jax.random.key(5))
    assert [program._cache_size() for program in programs] == before


def test_priors_written_as_numbers_follow_the_data():
    natural = NORMAL.natural(0.0, 1e-3)
    assert all(leaf.weak_type for leaf in natural)
    assert NORMAL.natural(np.float32(1.0), 2.0).xx.dtype == jnp.float32


def test_weights_are_counts_and_chunks_change_nothing(draws):
    weights = np.array([2.0, 0, 1, 1, 3, 1, 1, 0, 1, 1])
    one = jaxem.fit(UnknownNormal(), draws, key=KEY, weights=weights, stop=TIGHT)
    two = jaxem.fit(UnknownNormal(), np.repeat(draws, weights.astype(int)), key=KEY, stop=TIGHT)
    three = jaxem.fit(jaxem.chunked(UnknownNormal(), 3), draws, key=KEY, weights=weights, stop=TIGHT)
    assert float(one.elbo.total) == pytest.approx(float(two.elbo.total), abs=1e-9)
    assert float(one.elbo.total) == pytest.approx(float(three.elbo.total), abs=1e-9)


def test_the_elbo_is_below_the_evidence(draws):
    """Evidence by two-dimensional quadrature, with a proper prior; mean-field variance is not above the true one."""
    import scipy.integrate
    import scipy.stats

    model = UnknownNormal(0.02, 2.0, 100.0)
    result = jaxem.fit(model, draws, key=KEY, stop=TIGHT)

    def joint(mu, tau):
        prior = scipy.stats.norm.pdf(mu, 0, 0.02**-0.5) * scipy.stats.gamma.pdf(tau, 2, scale=0.01)
        return prior * np.exp(scipy.stats.norm.logpdf(draws, mu, tau**-0.5).sum())

    moments = [scipy.integrate.dblquad(lambda m, t, p=p: m**p * joint(m, t), 1e-5, 0.2, -40, 40)[0] for p in range(3)]
    evidence, mean = moments[0], moments[1] / moments[0]
    gap = np.log(evidence) - float(result.elbo.total)
    assert 0 < gap < 0.2
    variance = moments[2] / evidence - mean**2
    q = NORMAL.conventional(result.params["mu"])
    assert 1 / float(q["precision"]) < variance


def test_point_factors_are_map(draws):
    """All deltas: the ELBO is the log-joint at its mode, which alternating maximisation of mu and tau finds."""
    model = UnknownNormal(0.02, 3.0, 50.0, point=True)
    result = jaxem.fit(model, draws, key=KEY, stop=TIGHT, max_steps=500)
    mu, tau = 0.0, 1.0
    for _ in range(500):
        mu = tau * draws.sum() / (0.02 + 10 * tau)
        tau = (3.0 - 1 + 5) / (50.0 + 0.5 * ((draws - mu) ** 2).sum())
    found = result.model.means(result.params)
    assert float(found["mu"].x) == pytest.approx(mu, rel=1e-8)
    assert float(found["tau"].x) == pytest.approx(tau, rel=1e-8)
    log_joint = 0.5 * np.sum(np.log(tau) - LOG_2PI - tau * (draws - mu) ** 2)
    log_joint += 0.5 * (np.log(0.02) - LOG_2PI - 0.02 * mu**2)
    log_joint += 3 * np.log(50.0) - np.log(2.0) + 2 * np.log(tau) - 50 * tau
    assert float(result.elbo.total) == pytest.approx(log_joint, rel=1e-10)


def test_damped_sweeps_never_fall_and_end_at_the_same_place(draws):
    whole = jaxem.fit(UnknownNormal(), draws, key=KEY, stop=TIGHT, max_steps=400)
    half = jaxem.fit(
        UnknownNormal(), draws, key=KEY, stop=TIGHT, max_steps=400, algorithm=jaxem.CoordinateAscent(damping=0.4)
    )
    trace = np.asarray(half.trace)[1:]
    assert np.all(np.diff(trace[np.isfinite(trace)]) > -1e-10)
    assert half.status == Status.CONVERGED
    assert int(half.num_steps) > int(whole.num_steps)
    assert float(half.elbo.total) == pytest.approx(float(whole.elbo.total), abs=1e-8)


@jaxem.dataclass
class Clusters(MeanField):
    """Mixture of K unit-variance normals in one column, with local labels."""

    num: int = jaxem.static()

    def factors(self):
        label = Factor(expfam.Categorical(), dim=self.num, local=True)
        return {"mixing": Factor(DIRICHLET, dim=self.num), "mean": Factor(NORMAL, (self.num,)), "z": label}

    def expected_log_lik(self, means, x):
        square = x[:, None] ** 2 - 2 * x[:, None] * means["mean"].x[None] + means["mean"].xx[None]
        log_joint = means["mixing"].log[None] - 0.5 * (LOG_2PI + square)
        return jnp.sum(means["z"].one_hot * log_joint, 1)

    def expected_log_prior(self, means):
        mixing = DIRICHLET.expected_log_prob(DIRICHLET.natural(jnp.ones(self.num)), means["mixing"])
        return mixing + jnp.sum(NORMAL.expected_log_prob(NORMAL.natural(jnp.zeros(self.num), 0.01), means["mean"]))

    def init(self, key, data, weights):
        start = super().init(key, data, weights)
        return {**start, "mean": NORMAL.natural(3 * jax.random.normal(key, (self.num,), data.dtype), 1.0)}


def test_local_factors(reference):
    """A mixture of two against the exact evidence, by enumerating all labels and integrating the parameters."""
    import itertools

    from scipy.special import betaln

    x = np.array([-5.0, -4.6, -5.3, 4.8, 5.2])
    result = jaxem.fit(Clusters(2), x, key=KEY, stop=TIGHT, num_restarts=4)
    total = []
    for labels in itertools.product((0, 1), repeat=5):
        z = np.array(labels)
        value = betaln(1 + (z == 0).sum(), 1 + (z == 1).sum()) - betaln(1, 1)
        for k in (0, 1):
            rows = x[z == k]
            precision = 0.01 + len(rows)
            value += 0.5 * (
                np.log(0.01 / precision) - len(rows) * LOG_2PI - (rows**2).sum() + rows.sum() ** 2 / precision
            )
        total.append(value)
    evidence = np.logaddexp.reduce(total)
    gap = evidence - float(result.elbo.total)
    assert np.log(2) - 1e-3 < gap < np.log(2) + 0.1  # the two arrangements of the labels, well separated
    local = jax.jit(result.model.local)(result.params, x)["z"]
    prob = np.asarray(expfam.Categorical().conventional(local)["prob"])
    np.testing.assert_allclose(np.sort(prob, 1)[:, 1], 1, atol=1e-9)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_in_float32(draws):
    model = UnknownNormal(1e-3, 0.1, 0.1)  # shape - 1 is what is stored: a shape of 1e-6 has lost its digits there
    wide = jaxem.fit(model, draws, key=KEY)
    narrow = jaxem.fit(model, draws.astype(np.float32), key=KEY)
    assert narrow.elbo.total.dtype == jnp.float32
    assert narrow.status == Status.CONVERGED
    assert float(narrow.elbo.total) == pytest.approx(float(wide.elbo.total), rel=1e-5)


@jaxem.dataclass
class Logistic(MeanField):
    """y ~ Bernoulli(sigmoid(x w)), w ~ N(0, I / alpha), alpha ~ Gamma(1, 1); E log sigmoid by quadrature."""

    def factors(self):
        return {"w": Factor(expfam.MultivariateNormal(), dim=3, conjugate=False), "alpha": Factor(GAMMA)}

    def expected_log_lik(self, means, x):
        w, rows = means["w"], x[:, :3]
        variance = ((rows @ (w.xx - w.x[:, None] * w.x[None])) * rows).sum(1)
        score = (rows @ w.x)[:, None] + jnp.sqrt(variance)[:, None] * jnp.asarray(NODES)[None]
        return jax.nn.log_sigmoid((2 * x[:, 3:] - 1) * score) @ jnp.asarray(SHARES)

    def expected_log_prior(self, means):
        w, alpha = means["w"], means["alpha"]
        log_w = 0.5 * (3 * (alpha.log - LOG_2PI) - alpha.x * jnp.trace(w.xx))
        return log_w + GAMMA.expected_log_prob(GAMMA.natural(1.0, 1.0), alpha)


NODES, SHARES = np.polynomial.hermite_e.hermegauss(20)
SHARES = SHARES / SHARES.sum()


def test_mixed_steps_reach_scipys_optimum():
    from scipy.optimize import minimize
    from scipy.special import digamma, gammaln

    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    y = (rng.random(80) < 1 / (1 + np.exp(-x @ [1.0, -2.0, 0.0]))) * 1.0
    fit = jaxem.fit(Logistic(), np.c_[x, y], key=KEY, stop=TIGHT)
    assert fit.status == Status.CONVERGED
    assert np.all(np.diff(np.asarray(fit.trace)[: int(fit.num_steps) + 1]) >= -1e-10)

    def loss(t):
        factor = np.zeros((3, 3))
        factor[np.tril_indices(3)] = t[3:9]
        mean, covariance, (a, b) = t[:3], factor @ factor.T, np.exp(t[9:])
        spread = np.sqrt(np.einsum("nd,de,ne->n", x, covariance, x))
        score = (2 * y - 1)[:, None] * ((x @ mean)[:, None] + spread[:, None] * NODES)
        lik, log_alpha = -(np.logaddexp(0, -score) @ SHARES).sum(), digamma(a) - np.log(b)
        prior = 0.5 * (3 * (log_alpha - LOG_2PI) - a / b * (mean @ mean + np.trace(covariance))) - a / b
        entropy = 0.5 * (3 * (1 + LOG_2PI) + np.linalg.slogdet(covariance)[1])
        return -(lik + prior + entropy + a - np.log(b) + gammaln(a) + (1 - a) * digamma(a))

    best = minimize(loss, np.r_[np.zeros(3), np.eye(3)[np.tril_indices(3)], 0, 0], options={"gtol": 1e-7})
    assert float(fit.elbo.total) == pytest.approx(-best.fun, abs=1e-7)
    np.testing.assert_allclose(fit.model.means(fit.params)["w"].x, best.x[:3], atol=1e-4)


def test_a_mixed_model_compiles_under_another_optimizer_and_never_falls(draws):
    import optax

    data = np.c_[np.random.default_rng(1).normal(size=(30, 3)), np.arange(30) % 2]
    algorithm = jaxem.CoordinateAscent(optimizer=optax.adam(0.5), num_steps=3)
    fit = jaxem.fit(Logistic(), data, key=KEY, algorithm=algorithm, max_steps=20)
    trace = np.asarray(fit.trace)[: int(fit.num_steps) + 1]
    assert np.all(np.diff(trace) >= -1e-9)
    assert trace[-1] > trace[0]


@jaxem.dataclass
class Groups(MeanField):
    """y_nk ~ N(theta_k, 1), theta_k ~ N(0, 1 / alpha), alpha a hyperparameter: no prior on it."""

    conjugate: bool = jaxem.static(default=True)

    def factors(self):
        alpha = Factor(Delta(GAMMA), conjugate=self.conjugate)
        return {"theta": Factor(NORMAL, (6,)), "alpha": alpha}

    def expected_log_lik(self, means, x):
        theta = means["theta"]
        return -0.5 * (LOG_2PI + x**2 - 2 * x * theta.x[None] + theta.xx[None]).sum(1)

    def expected_log_prior(self, means):
        theta, alpha = means["theta"], means["alpha"]
        return 0.5 * jnp.sum(alpha.log - LOG_2PI - alpha.x * theta.xx)


def test_a_hyperparameter_is_the_maximum_of_the_evidence():
    """Empirical Bayes by a point factor: in closed form, and by gradients where it is declared not conjugate."""
    from scipy.optimize import minimize_scalar
    from scipy.stats import norm

    means = np.array([2.0, -1.5, 0.5, 3.0, -2.5, 1.0])
    x = means + np.random.default_rng(0).normal(size=(5, 6))
    # sum_k log N(mean of y_k; 0, 1 / alpha + 1 / 5) is the evidence up to a constant.
    evidence = lambda log_alpha: -norm.logpdf(x.mean(0), 0, np.sqrt(np.exp(-log_alpha) + 0.2)).sum()
    best = np.exp(minimize_scalar(evidence, bounds=(-5, 5), method="bounded", options={"xatol": 1e-10}).x)
    for conjugate in (True, False):
        fit = jaxem.fit(Groups(conjugate), x, key=KEY, stop=TIGHT, max_steps=500)
        assert fit.status == Status.CONVERGED
        assert float(fit.model.means(fit.params)["alpha"].x) == pytest.approx(best, rel=1e-4)


class Broken:
    """One broken model each."""

    class Square(UnknownNormal):
        def expected_log_lik(self, means, x):
            return super().expected_log_lik(means, x) - means["mu"].x ** 2 * means["mu"].xx

    class Unused(UnknownNormal):
        def factors(self):
            return {**super().factors(), "spare": Factor(GAMMA)}

    class Improper(UnknownNormal):
        def expected_log_prior(self, means):
            return NORMAL.expected_log_prob(NORMAL.natural(0.0, 1.0), means["mu"])

    class Coupled(Clusters):
        def expected_log_lik(self, means, x):
            return super().expected_log_lik(means, x) + 0.1 * means["mean"].x[0] * means["mean"].x[1]

    class TwoLocals(Clusters):
        def factors(self):
            return {**super().factors(), "y": Factor(NORMAL, local=True)}

        def expected_log_lik(self, means, x):
            return super().expected_log_lik(means, x) + means["y"].x * means["z"].one_hot[:, 0] - means["y"].xx

    class LocalGradient(Clusters):
        def factors(self):
            return {name: f._replace(conjugate=not f.local) for name, f in super().factors().items()}

    class Summed(UnknownNormal):
        def expected_log_lik(self, means, x):
            return super().expected_log_lik(means, x).sum()

    class Vector(Clusters):
        def expected_log_prior(self, means):
            return NORMAL.expected_log_prob(NORMAL.natural(jnp.zeros(2), 0.01), means["mean"])


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        (Broken.Square, {}, "not linear in the mean parameters of factor 'mu'"),
        (Broken.Unused, {}, "'spare' is never used"),
        (Broken.Improper, {}, "improper for factor 'tau'"),
        (Broken.Coupled, {"num": 2}, "elements of the plate of factor 'mean' are coupled"),
        (Broken.TwoLocals, {"num": 2}, "local factors 'y' and 'z' are coupled"),
        (
            Broken.LocalGradient,
            {"num": 2},
            "expected a conjugate factor where it is local; found conjugate=False of 'z'",
        ),
        (Broken.Summed, {}, r"expected_log_lik: expected shape \(8,\), one for each row; found \(\)"),
        (Broken.Vector, {"num": 2}, r"expected_log_prior: expected a scalar; found shape \(2,\)"),
    ],
)
def test_what_is_refused(draws, model, fields, message):
    with pytest.raises(ValueError, match=message):
        jaxem.fit(jaxem.dataclass(type("Model", (model,), {}))(**fields), draws, key=KEY)


def test_bad_parameters_and_rules(draws):
    outside = {"mu": NORMAL.natural(0.0, -1.0), "tau": GAMMA.natural(1.0, 1.0)}
    with pytest.raises(ValueError, match=r"params\['mu'\]: natural parameters outside the domain of Normal"):
        jaxem.fit(UnknownNormal(), draws, key=KEY, params=outside)
    with pytest.raises(TypeError, match="EM does not suit UnknownNormal"):
        jaxem.fit(UnknownNormal(), draws, key=KEY, algorithm=jaxem.EM())
    with pytest.raises(TypeError, match="CoordinateAscent does not suit GMM"):
        jaxem.fit(jaxem.GMM(2), draws[:, None], key=KEY, algorithm=jaxem.CoordinateAscent())
    with pytest.raises(TypeError, match="exact E-step only"):
        UnknownNormal().e_step(UnknownNormal().init(KEY, draws, None), jnp.asarray(draws), rule=jaxem.Hard())
