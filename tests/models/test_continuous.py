"""Monte Carlo EM of a continuous latent, against a model whose posterior and optimum are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import EM, ContinuousLatent, DiagonalNormal, MonteCarlo

KEY = jax.random.key(2)


@jaxem.dataclass
class Normals(ContinuousLatent):
    """x ~ N(z, 1), z ~ N(mean, var); the proposal is the posterior, or the prior."""

    exact: bool = jaxem.static(default=True)
    scalar: bool = jaxem.static(default=False)

    def init(self, key, data, weights):
        return {"mean": jax.random.normal(key, (), data.dtype), "var": jnp.ones((), data.dtype)}

    def log_joint(self, params, data, z):
        z = z if self.scalar else z[:, 0]
        log_prior = jax.scipy.stats.norm.logpdf(z, params["mean"], jnp.sqrt(params["var"]))
        return log_prior + jax.scipy.stats.norm.logpdf(data, z)

    def proposal(self, params, data):
        mean, var = params["mean"], params["var"]
        loc = (mean + var * data) / (1 + var) if self.exact else jnp.broadcast_to(mean, data.shape)
        scale = jnp.sqrt(var / (1 + var) if self.exact else var)
        log_scale = jnp.broadcast_to(jnp.log(scale), data.shape)
        if self.scalar:
            import distrax

            return distrax.Normal(loc, jnp.exp(log_scale))
        return DiagonalNormal(loc[:, None], log_scale[:, None])

    def statistics(self, params, data, z, resp):
        z = z if self.scalar else z[:, 0]
        return resp.sum(), resp @ z, resp @ z**2

    def m_step(self, params, stats):
        count, first, second = stats
        mean = first / count
        return {"mean": mean, "var": second / count - mean**2}


@jaxem.dataclass
class InBlocks(Normals):
    block_rows = 70


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(2.0, np.sqrt(3.0), 200)


PARAMS = {"mean": jnp.asarray(1.0), "var": jnp.asarray(1.5)}
step = jax.jit(lambda model, params, x, w, rule: model.e_step(params, x, w, rule))


def log_prob(params, x):
    return jax.scipy.stats.norm.logpdf(x, params["mean"], jnp.sqrt(1 + params["var"]))


def exact(params, x):
    mean = (params["mean"] + params["var"] * x) / (1 + params["var"])
    second = params["var"] / (1 + params["var"]) + mean**2
    return np.array([len(x), mean.sum(), second.sum()])


def test_with_the_posterior_as_proposal_the_value_is_the_log_likelihood(x):
    found = step(Normals(), PARAMS, x, jnp.ones(200), MonteCarlo(KEY, 50))
    assert float(found.elbo_data) == pytest.approx(float(log_prob(PARAMS, x).sum()), rel=1e-12)
    # The mean of 50 draws from N(m, v) for each of 200 rows, v = 0.6.
    np.testing.assert_allclose(found.stats[1], exact(PARAMS, x)[1], atol=5 * np.sqrt(0.6 * 200 / 50))


def test_importance_weights_correct_another_proposal(x):
    model, w = Normals(exact=False), jnp.ones(200)
    keys = jax.random.split(KEY, 40)
    steps = {
        num: jax.jit(jax.vmap(lambda key, num=num: model.e_step(PARAMS, x, w, MonteCarlo(key, num))))(keys)
        for num in (2, 300)
    }
    evidence, right = float(log_prob(PARAMS, x).sum()), exact(PARAMS, x)
    few, many = (np.asarray(steps[num].elbo_data) for num in (2, 300))
    assert few.mean() < many.mean() - 20 < evidence - 20
    assert many.mean() < evidence
    assert many.mean() == pytest.approx(evidence, abs=2.0)  # below by about 200 var(w) / (2 L)
    np.testing.assert_allclose(steps[300].stats[0], 200, rtol=1e-12)
    for k in (1, 2):
        values = np.asarray(steps[300].stats[k])
        # Self-normalised weights have a bias of order 1 / L, a hundredth here; unweighted draws miss by far more.
        assert values.mean() == pytest.approx(right[k], rel=0.01)
        prior = 200 * [1.0, 1.0, 2.5][k]
        assert abs(values.mean() - right[k]) < 0.05 * abs(prior - right[k])


@pytest.mark.parametrize("model", [Normals(), Normals(exact=False), Normals(scalar=True)], ids=str)
def test_monte_carlo_em_finds_the_maximum_of_the_likelihood(model, x):
    fit = jaxem.fit(model, x, key=KEY, algorithm=EM(MonteCarlo(KEY, 200)), max_steps=60, num_restarts=2)
    assert fit.restarts.counts() == {"MAX_STEPS": 2}
    best = {"mean": x.mean(), "var": x.var() - 1}
    # Spread of one draw of the statistics over 200 rows is about 1 / sqrt(200 * 200) of the latent's.
    assert float(fit.params["mean"]) == pytest.approx(best["mean"], abs=0.05)
    assert float(fit.params["var"]) == pytest.approx(best["var"], abs=0.15)
    top = float(log_prob(best, x).sum())
    assert float(log_prob(fit.params, x).sum()) == pytest.approx(top, abs=0.3)
    if model.exact:  # then what is reported belongs to the params reported, exactly
        assert float(fit.elbo.data) == pytest.approx(float(log_prob(fit.params, x).sum()), rel=1e-10)


def test_a_stream_of_online_em_averages_the_noise_away(x):
    """Stochastic approximation EM: all rows again and again, statistics averaged over steps."""
    top = float(log_prob({"mean": x.mean(), "var": x.var() - 1}, x).sum())
    loss = {"em": [], "stream": []}
    for seed in range(4):
        rule = MonteCarlo(jax.random.key(seed), 2)
        fit = jaxem.fit(Normals(), x, key=KEY, algorithm=EM(rule), max_steps=60)
        algorithm = jaxem.OnlineEM(200, rule=rule, average=True)
        state = algorithm.begin(Normals(), PARAMS, x, num_rows=200)
        for _ in range(60):
            state = algorithm.update(Normals(), state, x)
        loss["em"].append(top - float(log_prob(fit.params, x).sum()))
        loss["stream"].append(top - float(log_prob(algorithm.estimate(Normals(), state), x).sum()))
    assert np.mean(loss["stream"]) < 0.3 * np.mean(loss["em"]), loss


def test_draws_differ_between_steps_rows_blocks_and_restarts_and_repeat(x):
    w = jnp.ones(200)
    rule = MonteCarlo(KEY, 10)
    first = step(Normals(), PARAMS, x, w, rule.at(jnp.int32(3)))
    again = step(Normals(), PARAMS, x, w, rule.at(jnp.int32(3)))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (rule.at(jnp.int32(4)), rule.fold(1).at(jnp.int32(3))):
        assert abs(float(step(Normals(), PARAMS, x, w, other).stats[1] - first.stats[1])) > 1e-3
    # The same noise at params that moved a little, of which the result is then a smooth function.
    moved = {**PARAMS, "mean": jnp.asarray(1.0 + 1e-9)}
    near = step(Normals(), moved, x, w, rule.at(jnp.int32(3))).stats[1]
    assert abs(float(near - first.stats[1])) < 1e-4
    model = Normals()
    q = lambda rows: model.proposal(PARAMS, x[rows])
    one, two = (
        np.asarray(rule.fold(number).draw(q(rows))) - np.asarray(q(rows).loc)
        for number, rows in enumerate((slice(0, 70), slice(70, 140)))
    )
    assert np.abs(one - two).min() > 0
    assert len(np.unique(one)) == one.size


def test_blocks_and_chunks_draw_apart(x):
    """With one datum in all rows, blocks that shared their draws would have equal statistics."""
    same, w = np.full(180, 1.0), jnp.ones(180)
    for model in (InBlocks(), jaxem.chunked(Normals(), 60)):
        spread = lambda key, model=model: model.e_step(PARAMS, same, w, MonteCarlo(key, 1)).stats[1]
        means = np.asarray(jax.jit(jax.vmap(spread))(jax.random.split(KEY, 300)))
        assert means.var() == pytest.approx(180 * 0.6, rel=0.35)  # of sums of independent draws, v = 0.6
        score = lambda key, model=model: model.elbo_data(PARAMS, same, w, key)
        assert np.isfinite(float(score(KEY)))


def test_blocks_and_weights(x):
    w = jnp.ones(200).at[:50].set(2.0).at[150:].set(0.0)
    spoiled = np.where(np.arange(200) < 150, x, 1e6)  # absent rows do not matter
    expected = float(jnp.sum(w[:150] * log_prob(PARAMS, x[:150])))
    right = exact(PARAMS, np.concatenate([x[:50], x[:150]]))
    for model in (Normals(), InBlocks(), jaxem.chunked(Normals(), 60)):
        found = step(model, PARAMS, spoiled, w, MonteCarlo(KEY, 200))
        assert float(found.elbo_data) == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(np.array(found.stats), right, rtol=0.03)


def test_an_impossible_datum_ends_a_restart_with_a_status(x):
    class Impossible(Normals):
        def log_joint(self, params, data, z):
            return jnp.where(data > 3, -jnp.inf, super().log_joint(params, data, z))

    with pytest.raises(jaxem.FitError) as error:
        jaxem.fit(jaxem.dataclass(Impossible)(), x, key=KEY, algorithm=EM(MonteCarlo(KEY, 5)))
    assert error.value.fit.restarts.counts() == {"NONFINITE": 1}


def test_elbo_data_has_a_gradient(x):
    model = Normals(exact=False)
    gradient = jax.jit(jax.grad(lambda p: model.elbo_data(p, jnp.asarray(x), key=KEY)))(PARAMS)
    right = jax.jit(jax.grad(lambda p: log_prob(p, x).sum()))(PARAMS)
    assert float(gradient["mean"]) == pytest.approx(float(right["mean"]), rel=0.15)
    with pytest.raises(TypeError, match="key: Normals.elbo_data draws the latent"):
        model.elbo_data(PARAMS, x)


def test_single_precision(x):
    fit = jaxem.fit(Normals(), x.astype(np.float32), key=KEY, algorithm=EM(MonteCarlo(KEY, 20)), max_steps=5)
    assert fit.params["mean"].dtype == fit.elbo.data.dtype == jnp.float32


def test_what_does_not_fit_is_named(x, blobs):
    fit = lambda model, algorithm=None, data=x: jaxem.fit(model, data, key=KEY, algorithm=algorithm, max_steps=3)
    with pytest.raises(TypeError, match=r"Normals has a latent that is drawn; expected a rule .*MonteCarlo\(key"):
        fit(Normals())
    with pytest.raises(TypeError, match=r"rule: Normals needs a jaxem.MonteCarlo\(key, num_samples\); found Exact"):
        fit(Normals(), EM(jaxem.Exact()))
    with pytest.raises(TypeError, match="rule: MonteCarlo draws a continuous latent"):
        fit(jaxem.GMM(2), EM(MonteCarlo(KEY)), blobs)
    with pytest.raises(TypeError, match="GeneralizedEM needs a model with a log_joint of states that can be enum"):
        fit(Normals(), jaxem.GeneralizedEM())
    for num, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="num_samples: expected an integer >= 1; found"):
            fit(Normals(), EM(MonteCarlo(KEY, num)))

    class Summed(Normals):
        def log_joint(self, params, data, z):
            return super().log_joint(params, data, z).sum()

    with pytest.raises(ValueError, match=r"Summed.log_joint: expected shape \(200,\).* found \(\)"):
        fit(jaxem.dataclass(Summed)(), EM(MonteCarlo(KEY)))
