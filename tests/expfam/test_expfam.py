"""Exponential families: against quadrature, sampling and scipy's closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from programs import compiled

from jaxem import expfam
from jaxem.expfam import formulas

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MATRIX = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.7]])
LOCATION = np.array([0.5, -1.0, 2.0])

# Family, conventional parameters, a second set of them, and scipy's distribution of one real variable with its support.
SCALAR = [
    (expfam.Normal(), (0.7, 2.5), (-0.2, 0.8), lambda m, p: scipy.stats.norm(m, p**-0.5), (-15, 15)),
    (expfam.Gamma(), (2.5, 3.0), (1.2, 0.7), lambda a, b: scipy.stats.gamma(a, scale=1 / b), (0, 40)),
    (expfam.InverseGamma(), (4.0, 3.0), (5.0, 2.0), lambda a, b: scipy.stats.invgamma(a, scale=b), (1e-3, 2e3)),
    (expfam.Beta(), (2.5, 1.7), (3.0, 4.0), scipy.stats.beta, (0, 1)),
]
STATISTICS = {
    "Normal": lambda x: (x, x**2),
    "Gamma": lambda x: (x, np.log(x)),
    "InverseGamma": lambda x: (1 / x, np.log(x)),
    "Beta": lambda x: (np.log(x), np.log1p(-x)),
}
ALL = [
    *[(family, first, second) for family, first, second, *_ in SCALAR],
    (expfam.Bernoulli(), (0.3,), (0.6,)),
    (expfam.Categorical(), (np.array([0.2, 0.5, 0.3]),), (np.array([0.1, 0.1, 0.8]),)),
    (expfam.Dirichlet(), (np.array([1.5, 2.0, 0.7]),), (np.array([3.0, 1.0, 1.0]),)),
    (expfam.MultivariateNormal(), (LOCATION, MATRIX), (-LOCATION, np.eye(3))),
    (expfam.Wishart(), (MATRIX, 5.5), (np.eye(3), 4.0)),
    (expfam.NormalGamma(), (0.7, 2.0, 3.0, 1.5), (0.0, 1.0, 2.0, 1.0)),
    (expfam.NormalWishart(), (LOCATION, 2.0, MATRIX, 5.5), (np.zeros(3), 1.0, np.eye(3), 4.0)),
]
IDS = [repr(case[0]) for case in ALL]


def close(found, expected, **kwargs):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **kwargs)


@pytest.mark.parametrize("case", SCALAR, ids=lambda case: repr(case[0]))
def test_scalars_against_quadrature(case):
    family, params, other, peer, (low, high) = case
    natural, second = family.natural(*params), family.natural(*other)
    p, q = peer(*params), peer(*other)
    expect = lambda f: scipy.integrate.quad(lambda x: p.pdf(x) * f(x), low, high, limit=400, points=[0.5])[0]
    means = compiled(family.means, natural)
    for found, statistic in zip(means, range(2), strict=True):
        expected = expect(lambda x, s=statistic: STATISTICS[type(family).__name__](x)[s])
        assert float(found) == pytest.approx(expected, rel=1e-6)
    assert float(compiled(family.entropy, natural)) == pytest.approx(float(p.entropy()), rel=1e-9)
    assert float(compiled(family.kl, natural, second)) == pytest.approx(
        expect(lambda x: p.logpdf(x) - q.logpdf(x)), rel=1e-6
    )
    assert float(family.expected_log_prob(second, means)) == pytest.approx(expect(q.logpdf), rel=1e-6)


@pytest.mark.parametrize(("family", "params", "other"), ALL, ids=IDS)
def test_identities(family, params, other):
    natural, second = family.natural(*params), family.natural(*other)

    @jax.jit
    def found(natural, second):
        means, divergences = family.means(natural), [family.kl(natural, x) for x in (natural, second)]
        crosses = [-family.expected_log_prob(x, means) for x in (natural, second)]
        again = tuple(family.conventional(natural).values())
        return family.valid(natural), again, divergences, crosses, family.entropy(natural)

    valid, again, (none, divergence), (own, cross), entropy = found(natural, second)
    assert bool(valid)
    close(again, params, rtol=1e-9, atol=1e-12)
    assert float(none) == pytest.approx(0, abs=1e-12)
    assert float(divergence) > 0.01
    assert float(own) == pytest.approx(float(entropy), rel=1e-12)
    assert float(cross) - float(entropy) == pytest.approx(float(divergence), rel=1e-9)


@pytest.mark.parametrize(("family", "params", "other"), ALL, ids=IDS)
def test_plates(family, params, other):
    """Leading axes are plates: each element has its own normaliser, entropy and divergence."""
    pairs = [family.natural(*p) for p in (params, other, params)]
    plates = jax.tree.map(lambda *leaves: np.stack(leaves), *pairs)
    asked = family.log_normaliser, family.entropy, family.valid, family.means
    answers = jax.jit(lambda natural: [method(natural) for method in asked])
    (*found, means), each = answers(plates), [answers(one) for one in pairs]
    for which, values in enumerate(found):
        np.testing.assert_allclose(values, [one[which] for one in each], rtol=1e-12, atol=1e-12)
    close(jax.tree.map(lambda a: a[1], means), each[1][3], rtol=1e-12, atol=1e-12)
    narrow = jax.tree.map(lambda a: a.astype(np.float32), plates)
    assert jax.eval_shape(family.entropy, narrow).dtype == jnp.float32


def test_vectors_against_closed_forms():
    normal = expfam.MultivariateNormal()
    natural = normal.natural(LOCATION, MATRIX)
    covariance = np.linalg.inv(MATRIX)
    peer = scipy.stats.multivariate_normal(LOCATION, covariance)
    assert float(normal.entropy(natural)) == pytest.approx(peer.entropy(), rel=1e-10)
    close(normal.means(natural), (LOCATION, covariance + np.outer(LOCATION, LOCATION)), rtol=1e-9)
    dirichlet = expfam.Dirichlet()
    peer = scipy.stats.dirichlet([1.5, 2.0, 0.7])
    natural = dirichlet.natural(np.array([1.5, 2.0, 0.7]))
    assert float(dirichlet.entropy(natural)) == pytest.approx(peer.entropy(), rel=1e-10)
    draws = np.log(peer.rvs(200_000, random_state=0))
    np.testing.assert_allclose(dirichlet.means(natural).log, draws.mean(0), atol=5 * draws.std(0).max() / 447)
    wishart = expfam.Wishart()
    natural = wishart.natural(MATRIX, 5.5)
    peer = scipy.stats.wishart(5.5, covariance)
    assert float(wishart.entropy(natural)) == pytest.approx(peer.entropy(), rel=1e-10)
    np.testing.assert_allclose(wishart.means(natural).x, peer.mean(), rtol=1e-9)
    draws = np.linalg.slogdet(peer.rvs(100_000, random_state=0))[1]
    assert float(wishart.means(natural).log_det) == pytest.approx(draws.mean(), abs=5 * draws.std() / 316)
    categorical = expfam.Categorical()
    prob = np.array([0.2, 0.5, 0.3])
    assert float(categorical.entropy(categorical.natural(prob))) == pytest.approx(-(prob * np.log(prob)).sum())
    impossible = categorical.natural(np.array([0.0, 0.4, 0.6]))
    assert float(categorical.entropy(impossible)) == pytest.approx(-(0.4 * np.log(0.4) + 0.6 * np.log(0.6)))


def test_blocks_against_sampling():
    """Means of normal-gamma and normal-Wishart statistics, and their entropies as sums of conditional ones."""
    num, (location, strength, shape, rate) = 400_000, (0.7, 2.0, 3.0, 1.5)
    tau = RNG.gamma(shape, 1 / rate, num)
    mean = location + RNG.normal(size=num) / np.sqrt(strength * tau)
    family = expfam.NormalGamma()
    found = family.means(family.natural(location, strength, shape, rate))
    for value, draws in zip(found, (tau, np.log(tau), tau * mean, tau * mean**2), strict=True):
        assert float(value) == pytest.approx(draws.mean(), abs=5 * draws.std() / np.sqrt(num))
    gamma = expfam.Gamma().natural(shape, rate)
    conditional = 0.5 * (1 + np.log(2 * np.pi) - np.log(strength) - float(expfam.Gamma().means(gamma).log))
    total = float(expfam.Gamma().entropy(gamma)) + conditional
    assert float(family.entropy(family.natural(location, strength, shape, rate))) == pytest.approx(total, rel=1e-10)

    family, wishart = expfam.NormalWishart(), expfam.Wishart()
    found = family.means(family.natural(LOCATION, 2.0, MATRIX, 5.5))
    precision = 5.5 * np.linalg.inv(MATRIX)
    np.testing.assert_allclose(found.precision, precision, rtol=1e-9)
    np.testing.assert_allclose(found.weighted_mean, precision @ LOCATION, rtol=1e-9)
    assert float(found.weighted_square) == pytest.approx(LOCATION @ precision @ LOCATION + 3 / 2.0, rel=1e-9)
    scale = wishart.natural(MATRIX, 5.5)
    log_det = float(wishart.means(scale).log_det)
    conditional = 0.5 * (3 * (1 + np.log(2 * np.pi) - np.log(2.0)) - log_det)
    total = float(wishart.entropy(scale)) + conditional
    assert float(family.entropy(family.natural(LOCATION, 2.0, MATRIX, 5.5))) == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize(
    ("family", "params"),
    [
        (expfam.Normal(), (0.0, -1.0)),
        (expfam.Gamma(), (-1.0, 1.0)),
        (expfam.Gamma(), (1.0, 0.0)),
        (expfam.InverseGamma(), (1.0, -1.0)),
        (expfam.Beta(), (0.0, 1.0)),
        (expfam.Dirichlet(), (np.array([1.0, 0.0]),)),
        (expfam.MultivariateNormal(), (np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]))),
        (expfam.Wishart(), (np.eye(3), 2.0)),
        (expfam.NormalGamma(), (0.0, 1.0, 1.0, -1.0)),
        (expfam.NormalWishart(), (np.zeros(2), 0.0, np.eye(2), 3.0)),
    ],
    ids=lambda case: repr(case)[:30],
)
def test_invalid_parameters_are_recognised(family, params):
    assert not bool(family.valid(family.natural(*params)))


def _log_prob_of_draws(family, natural, key):
    distribution = family.distribution(natural)
    return distribution.log_prob(distribution.sample(seed=key, sample_shape=(20_000,)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_distributions_agree():
    key = jax.random.key(0)
    for family, params, _ in ALL:
        natural = family.natural(*params)
        if isinstance(family, expfam.NormalGamma | expfam.NormalWishart):
            with pytest.raises(TypeError, match="conventional"):
                family.distribution(natural)
            continue
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            log_prob = jax.jit(_log_prob_of_draws, static_argnums=0)(family, natural, key)
        assert float(-log_prob.mean()) == pytest.approx(float(family.entropy(natural)), abs=0.05)


@pytest.mark.parametrize(("family", "params", "other"), ALL, ids=IDS)
def test_modes(family, params, other):
    """No statistics of a point near the mode have a higher density, and Delta is that point with entropy 0."""
    natural = family.natural(*params)
    if isinstance(family, expfam.Dirichlet):
        natural = family.natural(params[0] + 1)
    delta = expfam.Delta(family)
    top = delta.means(natural)
    assert bool(delta.valid(natural))
    assert float(delta.entropy(natural)) == 0
    points = jax.jit(jax.vmap(lambda size: _statistics(family, top, size)))(np.linspace(-0.1, 0.1, 21))
    many = jax.tree.map(lambda leaf: np.broadcast_to(leaf[None], (21, *leaf.shape)), natural)
    densities = np.asarray(compiled(family.inner, many, points))
    assert densities.argmax() == 10 or np.ptp(densities) < 1e-12
    assert float(family.inner(natural, top)) == pytest.approx(densities[10], rel=1e-9)


def _statistics(family, top, size):
    """t(x) at a point `size` away from the point with statistics `top`, in every coordinate."""
    name, up = type(family).__name__, jnp.exp(size)
    if name == "Normal":
        return type(top)(top.x + size, (top.x + size) ** 2)
    if name == "Gamma":
        return type(top)(top.x * up, top.log + size)
    if name == "InverseGamma":
        return type(top)(top.inverse / up, top.log + size)
    if name == "Beta":
        x = jnp.exp(top.log) * (1 - abs(size)) + 0.5 * (abs(size) + size) * 0.5
        return type(top)(jnp.log(x), jnp.log1p(-x))
    if name == "Dirichlet":
        x = jnp.exp(top.log) + size * 0.5 * jnp.array([1.0, -1.0, 0.0])
        return type(top)(jnp.log(x))
    if name == "MultivariateNormal":
        return type(top)(top.x + size, jnp.outer(top.x + size, top.x + size))
    if name == "Wishart":
        return type(top)(top.x * up, top.log_det + 3 * size)
    if name == "NormalGamma":
        mean, tau = top.weighted_mean / top.precision + size, top.precision * up
        return type(top)(tau, jnp.log(tau), tau * mean, tau * mean**2)
    if name == "NormalWishart":
        mean, tau = jnp.linalg.solve(top.precision, top.weighted_mean) + size, top.precision * up
        return type(top)(tau, top.log_det + 3 * size, tau @ mean, mean @ tau @ mean)
    return top  # discrete: nothing lies near


@pytest.mark.parametrize(("family", "params", "other"), ALL, ids=IDS)
def test_draws_have_the_means_and_the_density(family, params, other):
    """Averages over a plate of draws: E[t(x)] and E[-log p(x)], within five standard errors; plates are independent."""
    num = 20_000
    natural = family.natural(*params)
    plate = jax.tree.map(lambda leaf: np.broadcast_to(leaf[None], (num, *leaf.shape)), natural)
    draws = compiled(family.draw, jax.random.key(1), plate)
    assert isinstance(draws, family.Statistics)
    for found, mean in zip(draws, compiled(family.means, natural), strict=True):
        error = np.std(found, 0) / np.sqrt(num)
        np.testing.assert_array_less(np.abs(np.mean(found, 0) - mean), 5 * error + 1e-12)
    surprise = -np.asarray(compiled(family.expected_log_prob, plate, draws))
    assert surprise.mean() == pytest.approx(
        float(compiled(family.entropy, natural)), abs=5 * surprise.std() / np.sqrt(num) + 1e-9
    )
    one = jax.eval_shape(family.draw, jax.random.key(1), natural)
    for leaf, point in zip(one, natural, strict=True):
        assert leaf.shape == point.shape
    narrow = jax.eval_shape(family.draw, jax.random.key(1), jax.tree.map(lambda a: a.astype(np.float32), plate))
    assert all(leaf.dtype == jnp.float32 for leaf in narrow)
    close(expfam.Delta(family).draw(jax.random.key(1), natural), family.at_mode(natural), rtol=0)


@pytest.mark.parametrize(("family", "params", "other"), ALL, ids=IDS)
def test_the_statistics_of_a_draw_are_of_one_point(family, params, other):
    """Each draw lies on the manifold t(x): what one statistic says of x, the others say too."""
    name = type(family).__name__
    plate = jax.tree.map(lambda leaf: np.broadcast_to(leaf[None], (50, *leaf.shape)), family.natural(*params))
    t = jax.tree.map(np.asarray, compiled(family.draw, jax.random.key(2), plate))
    if name in ("Normal", "MultivariateNormal"):
        np.testing.assert_allclose(t.xx, t.x**2 if name == "Normal" else t.x[:, :, None] * t.x[:, None, :], rtol=1e-12)
    elif name == "Gamma":
        np.testing.assert_allclose(np.exp(t.log), t.x, rtol=1e-12)
    elif name == "InverseGamma":
        np.testing.assert_allclose(np.exp(-t.log), t.inverse, rtol=1e-12)
    elif name in ("Beta", "Dirichlet"):
        total = np.exp(t.log) + np.exp(t.log1m) if name == "Beta" else np.exp(t.log).sum(1)
        np.testing.assert_allclose(total, 1, rtol=1e-12)
    elif name in ("Bernoulli", "Categorical"):
        assert set(np.unique(t[0])) == {0, 1}
        assert name == "Bernoulli" or np.all(t.one_hot.sum(1) == 1)
    elif name == "Wishart":
        np.testing.assert_allclose(np.linalg.slogdet(t.x)[1], t.log_det, rtol=1e-9)
    elif name == "NormalGamma":
        np.testing.assert_allclose(np.exp(t.log_precision), t.precision, rtol=1e-12)
        np.testing.assert_allclose(t.weighted_square, t.weighted_mean**2 / t.precision, rtol=1e-12)
    else:
        np.testing.assert_allclose(np.linalg.slogdet(t.precision)[1], t.log_det, rtol=1e-8, atol=1e-8)
        mean = np.linalg.solve(t.precision, t.weighted_mean[:, :, None])[:, :, 0]
        np.testing.assert_allclose(np.sum(mean * t.weighted_mean, 1), t.weighted_square, rtol=1e-8)


def test_impossible_states_are_never_drawn_and_tiny_shapes_keep_their_logarithm():
    logits = expfam.Categorical().natural(np.broadcast_to(np.array([0.0, 0.4, 0.6])[None], (500, 3)))
    draws = compiled(expfam.Categorical().draw, jax.random.key(0), logits)
    assert float(draws.one_hot[:, 0].sum()) == 0
    assert np.all(np.isfinite(expfam.Categorical().expected_log_prob(logits, draws)))
    small = np.full((200, 3), 1e-4)
    drawn = compiled(expfam.Dirichlet().draw, jax.random.key(0), expfam.Dirichlet().natural(small))
    assert np.all(np.isfinite(drawn.log))
    pair = compiled(expfam.Beta().draw, jax.random.key(0), expfam.Beta().natural(small, small))
    assert np.all(np.isfinite(pair.log))
    assert np.all(np.isfinite(pair.log1m))


@pytest.mark.parametrize(("dtype", "tiny"), [(jnp.float64, 1e-300), (jnp.float32, 1e-30)])
def test_formulas_keep_the_digits_of_tiny_concentrations(dtype, tiny):
    """Where natural parameters, shape - 1, keep none. To first order all of them diverge by r - 1 - log r each."""
    a, b, one = jnp.asarray(2 * tiny, dtype), jnp.asarray(tiny, dtype), jnp.ones((), dtype)
    assert float(expfam.Gamma().natural(b, one).log + 1) == 0
    expected = pytest.approx(0.5 - 1 + np.log(2), rel=1e-5)
    assert float(formulas.gamma_kl(a, one, b, one)) == expected
    assert float(formulas.beta_kl(a, a, b, b)) == expected
    assert float(formulas.dirichlet_kl(jnp.stack([a, a]), jnp.stack([b, b]))) == expected
    items = formulas.Items((2, 3))
    both = formulas.dirichlet_kl(jnp.full(5, a), jnp.full(5, b), items)
    assert float(both) == pytest.approx(3 * (0.5 - 1 + np.log(2)), rel=1e-5)  # one for each free level
    for logs in (formulas.dirichlet_draw(jax.random.key(0), jnp.full(5, b), items), formulas.gamma_draw(KEY, b, one)):
        assert np.all(np.isfinite(logs))
        assert logs.dtype == dtype


def test_a_wishart_of_fewer_rows_than_columns():
    """Rows that count for nothing leave the law of the others."""
    dof, log_det = jnp.asarray(4.5), jnp.asarray(0.3)
    for found, expected in zip(formulas.wishart(dof, log_det, 5, 3), formulas.wishart(dof, log_det, 3, 3), strict=True):
        assert float(found) == pytest.approx(float(expected), rel=1e-12)
    peer = expfam.Wishart()
    natural = peer.natural(MATRIX, 4.5)
    own, mean = formulas.wishart(dof, jnp.linalg.slogdet(MATRIX)[1], 3, 3)
    assert float(peer.log_normaliser(natural)) == pytest.approx(float(own), rel=1e-12)
    assert float(peer.means(natural).log_det) == pytest.approx(float(mean), rel=1e-12)
