"""Hidden Markov models over families, in all forms of sequences, against enumeration and published numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import compiled

import jaxem
from jaxem import EM, HMM, BayesianHMM, Hard, Status, Stop, Tempered, families, sequences

KEY = jax.random.key(0)


def enumerated(initial, transition, log_prob):
    """(log p(x), filtered and smoothed posteriors (T, K), the best path) by all K^T paths, in numpy."""
    length, num = log_prob.shape
    found = np.array(list(itertools.product(range(num), repeat=length)))
    with np.errstate(divide="ignore"):
        log_joint = np.log(initial)[found[:, 0]] + np.log(transition)[found[:, :-1], found[:, 1:]].sum(1)
    log_joint = log_joint + log_prob[np.arange(length), found].sum(1)
    q = np.exp(log_joint - np.logaddexp.reduce(log_joint))
    posterior = np.stack([np.bincount(found[:, t], q, num) for t in range(length)])
    return np.logaddexp.reduce(log_joint), posterior, found[log_joint.argmax()]


def simulated(num, length, emit, seed=0, stay=0.85):
    """Sequences of a chain of three states, and the states."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, 3, (num, length))
    for t in range(1, length):
        z[:, t] = np.where(rng.random(num) < stay, z[:, t - 1], z[:, t])
    return emit(z, rng), z


EMIT = {
    "gaussian": (families.Gaussian(), lambda z, rng: 2.0 * z[..., None] + rng.normal(size=(*z.shape, 2))),
    "poisson": (families.Poisson(), lambda z, rng: rng.poisson(1.0 + 5.0 * z)[..., None]),
    "bernoulli": (families.Bernoulli(), lambda z, rng: rng.random((*z.shape, 3)) < 0.1 + 0.4 * z[..., None]),
    "categorical": (families.Categorical((3,)), lambda z, rng: rng.integers(0, 3, (*z.shape, 1)) * (z > 0)[..., None]),
    "product": (
        families.Product({"y": families.Gaussian("diag"), "n": families.Poisson()}),
        lambda z, rng: {"y": z[..., None] + rng.normal(size=(*z.shape, 1)), "n": rng.poisson(1.0 + z)[..., None] * 1.0},
    ),
}


@pytest.mark.parametrize("name", EMIT)
def test_everything_asked_of_a_model_by_enumeration(name):
    family, emit = EMIT[name]
    x, _ = simulated(3, 8, emit)
    data = sequences(x)
    model = HMM(family, 3)
    fit = jaxem.fit(model, data, key=KEY, max_steps=2)
    params, mixing = fit.params, fit.params.mixing
    rows = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]) * 1.0, data.values)
    log_prob = np.asarray(fit.model.family.log_prob(params.components, rows)).reshape(3, 8, 3)
    parts = np.asarray(mixing.initial), np.asarray(mixing.transition)
    asked = [
        np.asarray(ask(data)) for ask in (fit.log_prob, fit.posterior, fit.predict, fit.filtered, fit.log_predictive)
    ]
    for s in range(3):
        value, posterior, path, filtered, predictive = (a[s] for a in asked)
        evidence, smoothed, best = enumerated(*parts, log_prob[s])
        np.testing.assert_allclose(value, evidence, rtol=1e-12)
        np.testing.assert_allclose(posterior, smoothed, atol=1e-12)
        np.testing.assert_array_equal(path, best)
        for t in (0, 4):
            so_far, short, _ = enumerated(*parts, log_prob[s, : t + 1])
            np.testing.assert_allclose(filtered[t], short[-1], atol=1e-12)
            np.testing.assert_allclose(predictive[: t + 1].sum(), so_far, rtol=1e-12)


def test_the_weather_example(reference):
    case = reference["hidden_markov"]["weather"]
    model = HMM(families.Categorical((3,)), 2)
    params = model.make_params(case["initial"], case["transition"], probs=[np.array(case["emission"])])
    x = np.array(case["observed"])[:, None]
    # Published in single precision: enumeration gives 0.23170296 and 0.13602285.
    np.testing.assert_allclose(model.posterior(params, x), case["posterior"], atol=1e-7)
    path = np.asarray(model.predict(params, x))
    assert path.tolist() == [1, 0, 0]
    chain, emission = np.array(case["transition"]), np.array(case["emission"])
    probability = case["initial"][path[0]] * np.prod(chain[path[:-1], path[1:]]) * np.prod(emission[path, x[:, 0]])
    np.testing.assert_allclose(probability, case["path_probability"], rtol=1e-12)


@pytest.fixture(scope="module")
def earthquakes(reference):
    return np.array(reference["hidden_markov"]["earthquakes"]["counts"], float)[:, None]


@pytest.mark.parametrize("num", [2, 3])
@pytest.mark.parametrize("start", ["free", "stationary"])
def test_published_fits_of_earthquakes(reference, earthquakes, num, start):
    published = reference["hidden_markov"]["earthquakes"][start][str(num)]
    model = HMM(families.Poisson(), num, stationary=start == "stationary")
    fit = jaxem.fit(model, earthquakes, key=KEY, num_restarts=64, max_steps=500, stop=Stop(atol=1e-9))
    assert fit.status == Status.CONVERGED
    assert int(fit.hits) == 64
    np.testing.assert_allclose(fit.elbo.data, published["log_likelihood"], atol=1e-4)
    order = np.argsort(np.asarray(fit.params.components.rate)[:, 0])
    np.testing.assert_allclose(np.asarray(fit.params.components.rate)[order, 0], published["rate"], atol=2e-3)
    trace = np.asarray(fit.trace)
    assert np.all(np.diff(trace[np.isfinite(trace)]) >= -1e-9)
    rows = np.asarray(fit.params.transition)[order][:, order]
    if "transition" in published:
        np.testing.assert_allclose(rows, published["transition"], atol=1e-3)
    if start == "stationary":
        first = np.asarray(fit.params.initial)[order]
        np.testing.assert_allclose(first @ rows, first, atol=1e-10)
    free = num * (num - 1) + (num - 1 if start == "free" else 0) + num
    np.testing.assert_allclose(jaxem.bic(fit, earthquakes), -2 * fit.elbo.data + free * np.log(107), rtol=1e-12)


def test_em_from_fifteen_and_twenty_five_climbs(earthquakes):
    model = HMM(families.Poisson(), 2)
    params = model.make_params([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], rate=np.array([[15.0], [25.0]]))
    fit = jaxem.fit(model, earthquakes, key=KEY, params=params, max_steps=500, stop=Stop(atol=1e-9))
    trace = np.asarray(fit.trace)
    assert np.all(np.diff(trace[np.isfinite(trace)]) > 0)
    np.testing.assert_allclose(fit.params.components.rate[:, 0], [15.421, 26.018], atol=2e-3)


@pytest.fixture(scope="module")
def counts():
    """Four sequences of different lengths of two states, and the states."""
    rng, series, states = np.random.default_rng(0), [], []
    for length in (40, 1, 25, 60):
        z = np.zeros(length, int)
        for t in range(1, length):
            z[t] = z[t - 1] if rng.random() < 0.9 else 1 - z[t - 1]
        states.append(z)
        series.append(rng.poisson(np.where(z, 9.0, 2.0))[:, None].astype(float))
    return series, states


@pytest.fixture(scope="module")
def fitted(counts):
    return jaxem.fit(HMM(families.Poisson(), 2), counts[0], key=KEY, num_restarts=4)


def test_a_list_of_sequences_is_fitted_and_answered_as_a_list(counts, fitted):
    series, states = counts
    assert fitted.status == Status.CONVERGED
    assert int(fitted.hits) == 4
    found = [np.asarray(path) for path in fitted.predict(series)]
    assert [len(path) for path in found] == [40, 1, 25, 60]
    right = np.mean(np.concatenate(found) == np.concatenate(states))
    assert max(right, 1 - right) > 0.95
    assert [p.shape for p in fitted.posterior(series)] == [(40, 2), (1, 2), (25, 2), (60, 2)]
    assert fitted.log_prob(series).shape == (4,)
    assert fitted.forecast(series, 60).shape == (4, 60, 2)  # by horizon, though as many as the steps
    assert float(fitted.total_weight) == 126


def test_all_forms_of_the_same_sequences_are_the_same(counts, fitted):
    series, _ = counts
    lengths = np.array([40, 1, 25, 60])
    whole = np.asarray(fitted.log_prob(series))
    padded = np.zeros((4, 60, 1))
    for into, x in zip(padded, series, strict=True):
        into[: len(x)] = x
    for data in ((padded, lengths), sequences(padded, lengths), sequences(np.concatenate(series), lengths)):
        np.testing.assert_array_equal(fitted.log_prob(data), whole)
        assert fitted.predict(data).shape == (4, 60)
        assert np.all(np.asarray(fitted.predict(data))[1, 1:] == -1)
    alone = [fitted.log_prob(x) for x in series]
    assert alone[0].shape == ()
    np.testing.assert_allclose(np.array(alone), whole, rtol=1e-12)
    assert fitted.predict(series[0]).shape == (40,)
    stacked = np.stack([series[0][:25], series[2]])
    np.testing.assert_allclose(fitted.log_prob(stacked), [fitted.log_prob(x) for x in stacked], rtol=1e-12)
    inside = jax.jit(fitted.model.log_prob)(fitted.params, jnp.asarray(series[0]))
    np.testing.assert_allclose(inside, whole[0], rtol=1e-12)
    inside = jax.jit(fitted.model.log_prob)(fitted.params, (jnp.asarray(padded), jnp.asarray(lengths)))
    np.testing.assert_allclose(inside, whole, rtol=1e-12)


def test_frames_keep_their_columns(counts):
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame(x, columns=["count"]) for x in counts[0]]
    fit = jaxem.fit(HMM(families.Poisson(), 2), frames, key=KEY, max_steps=2)
    assert [path.shape for path in fit.predict(frames)] == [(40,), (1,), (25,), (60,)]
    with pytest.raises(ValueError, match=r"columns.*'count'.*'other'"):
        fit.predict(frames[0].rename(columns={"count": "other"}))


def test_pieces_of_one_sequence_are_joined_by_the_filter(counts, fitted):
    """log p(x) of a sequence is that of its beginning and, from its forecast, of the rest."""
    x = counts[0][3]
    forecast = np.asarray(fitted.forecast(x[:30], 1))[0]
    params = fitted.model.make_params(forecast, fitted.params.transition, rate=fitted.params.components.rate)
    rest = fitted.model.log_prob(params, x[30:])
    np.testing.assert_allclose(fitted.log_prob(x[:30]) + rest, fitted.log_prob(x), rtol=1e-12)


def test_forecasts_are_powers_of_the_transitions(counts, fitted):
    x = counts[0][0]
    last, rows = np.asarray(fitted.filtered(x))[-1], np.asarray(fitted.params.transition)
    found = fitted.forecast(x, 5)
    np.testing.assert_allclose(found, [last @ np.linalg.matrix_power(rows, h) for h in range(1, 6)], rtol=1e-12)
    density = np.exp(np.asarray(fitted.log_forecast(x, np.arange(80)[:, None], 3)))  # integers, as counts are
    with pytest.raises(ValueError, match="values"):
        fitted.log_forecast(x, -np.ones((1, 1)))
    np.testing.assert_allclose(density.sum(1), 1, rtol=1e-9)
    mean = np.asarray(found)[:3] @ np.asarray(fitted.params.components.rate)[:, 0]
    np.testing.assert_allclose(density @ np.arange(80.0), mean, rtol=1e-6)
    np.testing.assert_allclose(fitted.expected_durations(), 1 / (1 - np.diag(rows)), rtol=1e-12)


def test_a_step_without_observation_is_summed_over(counts, fitted):
    x = counts[0][0][:8].copy()
    seen = np.array([1, 1, 0, 1, 0, 0, 1, 1], bool)
    x[~seen] = np.nan
    data = sequences(x, observed=seen)
    log_prob = np.zeros((8, 2))
    log_prob[seen] = np.asarray(fitted.model.family.log_prob(fitted.params.components, x[seen]))
    parts = np.asarray(fitted.params.initial), np.asarray(fitted.params.transition)
    evidence, posterior, best = enumerated(*parts, log_prob)
    np.testing.assert_allclose(fitted.log_prob(data)[0], evidence, rtol=1e-12)
    np.testing.assert_allclose(fitted.posterior(data)[0], posterior, atol=1e-12)
    np.testing.assert_array_equal(fitted.predict(data)[0], best)
    stats = compiled(fitted.model.e_step, fitted.params, data).stats
    np.testing.assert_allclose(stats.count.transition.sum(), 7, rtol=1e-12)  # the chain goes on meanwhile
    whole = jaxem.fit(HMM(families.Poisson(), 2), data, key=KEY, max_steps=3)
    assert np.isfinite(whole.elbo.total)
    assert float(whole.total_weight) == 5


def test_known_and_forbidden_states(counts):
    series, states = counts
    labels = [np.where(np.arange(len(z)) % 5 == 0, 1 - z, -1) for z in states]  # named the other way round
    model = jaxem.partly_labelled(HMM(families.Poisson(), 2))
    fit = jaxem.fit(model, (series, labels), key=KEY, num_restarts=2)
    assert fit.status == Status.CONVERGED
    found = np.concatenate([np.asarray(path) for path in fit.predict(series)])
    assert np.mean(found == 1 - np.concatenate(states)) > 0.95
    x, known = series[0][:8], labels[0][:8]
    log_prob = np.asarray(fit.model.model.family.log_prob(fit.params.components, x))
    log_prob = np.where((known[:, None] < 0) | (known[:, None] == np.arange(2)), log_prob, -np.inf)
    evidence, posterior, best = enumerated(np.asarray(fit.params.initial), np.asarray(fit.params.transition), log_prob)
    np.testing.assert_allclose(fit.model.log_prob(fit.params, (x, known)), evidence, rtol=1e-12)
    np.testing.assert_allclose(fit.model.posterior(fit.params, (x, known)), posterior, atol=1e-12)
    np.testing.assert_array_equal(fit.model.predict(fit.params, (x, known)), best)
    mask = np.ones((8, 2)) * (known < 0)[:, None] + np.eye(2)[np.maximum(known, 0)] * (known >= 0)[:, None]
    np.testing.assert_allclose(model.log_prob(fit.params, (x, mask)), evidence, rtol=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "gap"),
    [
        (EM(Hard()), 5.0),
        (EM(Tempered(np.linspace(3, 1, 20))), 1e-4),
        (jaxem.OnlineEM(batch_size=2), 0.01),
        (jaxem.StochasticEM(burn_in=20, num_draws=100), 0.1),
    ],
    ids=["hard", "annealed", "online", "stochastic"],
)
def test_algorithms_reach_the_same_optimum(counts, fitted, algorithm, gap):
    fit = jaxem.fit(HMM(families.Poisson(), 2), counts[0], key=KEY, algorithm=algorithm, num_restarts=2)
    score = np.sum(fit.log_prob(counts[0]))
    assert fitted.elbo.data - gap <= score <= fitted.elbo.data + 1e-6


def test_weights_and_chunks(counts, fitted):
    series = counts[0]
    twice = jaxem.fit(HMM(families.Poisson(), 2), [*series, series[0]], key=KEY, num_restarts=4)
    weighed = jaxem.fit(HMM(families.Poisson(), 2), series, key=KEY, weights=[2, 1, 1, 1], num_restarts=4)
    np.testing.assert_allclose(weighed.elbo.data, twice.elbo.data, atol=1e-4)
    assert float(weighed.total_weight) == 166
    parts = jaxem.fit(jaxem.chunked(HMM(families.Poisson(), 2), 3), series, key=KEY, num_restarts=4)
    np.testing.assert_allclose(parts.elbo.data, fitted.elbo.data, rtol=1e-9)
    assert [path.shape for path in parts.predict(series)] == [(40,), (1,), (25,), (60,)]


def test_structure_of_the_chain(counts):
    series = counts[0]
    allowed = np.triu(np.ones((3, 3)))
    fit = jaxem.fit(HMM(families.Poisson(), 3, allowed=allowed), series, key=KEY, num_restarts=4, max_steps=50)
    assert np.all(np.asarray(fit.params.transition)[allowed == 0] == 0)
    np.testing.assert_allclose(fit.params.transition.sum(1), 1, rtol=1e-12)
    assert fit.model.num_parameters(fit.params) == 2 + 3 + 3
    for path in fit.predict(series):
        assert np.all(np.diff(np.asarray(path)) >= 0)
    given = jaxem.fit(HMM(families.Poisson(), 2, initial=np.array([0.25, 0.75])), series, key=KEY, max_steps=5)
    np.testing.assert_array_equal(given.params.initial, [0.25, 0.75])
    moving = HMM(families.Poisson(), 2, stationary=True)  # by gradients, the first state follows the rows
    algorithm = jaxem.GeneralizedEM(optax.sgd(0.1), num_steps=2)  # a line search evaluates the chain in many places
    climbed = jaxem.fit(moving, series, key=KEY, algorithm=algorithm, max_steps=10)
    np.testing.assert_allclose(climbed.params.initial @ climbed.params.transition, climbed.params.initial, rtol=1e-9)
    np.testing.assert_allclose(climbed.elbo.data, np.sum(climbed.log_prob(series)), rtol=1e-10)
    sticky = [jaxem.fit(HMM(families.Poisson(), 2, stickiness=s), series, key=KEY) for s in (0.0, 50.0)]
    assert np.all(np.diag(sticky[1].params.transition) > np.diag(sticky[0].params.transition))
    assert sticky[1].elbo.params < 0


def test_a_state_that_is_never_visited(counts):
    model = HMM(families.Poisson(), 3)
    params = model.make_params(
        [0.5, 0.5, 0], [[0.9, 0.1, 0], [0.1, 0.9, 0], [0.2, 0.3, 0.5]], rate=np.array([[2.0], [9.0], [5.0]])
    )
    fit = jaxem.fit(model, counts[0], key=KEY, params=params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(fit.params))
    assert float(fit.params.initial[2]) == 0
    np.testing.assert_allclose(fit.params.transition[:2, 2], 0)
    np.testing.assert_allclose(fit.params.transition[2], 1 / 3)
    prior = jaxem.fit(HMM(families.Poisson(), 3, stickiness=2.0), counts[0], key=KEY, params=params)
    np.testing.assert_allclose(prior.params.transition[2], [0, 0, 1])  # the prior's mode
    assert prior.status == Status.CONVERGED


def test_what_is_sampled_is_fitted_again(fitted):
    x, z = fitted.sample(40, key=KEY, length=50)
    assert x.shape == (40, 50, 1)
    assert z.shape == (40, 50)
    again = jaxem.fit(HMM(families.Poisson(), 2), x, key=KEY, num_restarts=2)
    order = np.argsort(-np.asarray(again.params.components.rate)[:, 0])
    truth = np.argsort(-np.asarray(fitted.params.components.rate)[:, 0])
    rates = (np.asarray(f.params.components.rate)[o] for f, o in ((again, order), (fitted, truth)))
    np.testing.assert_allclose(*rates, rtol=0.1)
    rows = (np.asarray(f.params.transition)[o][:, o] for f, o in ((again, order), (fitted, truth)))
    np.testing.assert_allclose(*rows, atol=0.03)
    single = jaxem.fit(HMM(families.Poisson(), 2), x[:, :1], key=KEY, max_steps=20)  # of length 1: a mixture
    assert np.isfinite(single.elbo.data)


def test_long_sequences_start_from_windows():
    x, _ = simulated(2, 3000, lambda z, rng: 6.0 * z[..., None] + rng.normal(size=(*z.shape, 1)))
    fit = jaxem.fit(HMM(families.Gaussian(), 3, init_size=1000), x, key=KEY, num_restarts=2)
    assert fit.status == Status.CONVERGED
    np.testing.assert_allclose(np.sort(np.asarray(fit.params.components.mean)[:, 0]), [0, 6, 12], atol=0.2)
    np.testing.assert_allclose(np.diag(fit.params.transition), 0.9, atol=0.03)


def test_a_bayesian_model_drops_states_it_does_not_need():
    x, _ = simulated(6, 80, lambda z, rng: 6.0 * z[..., None] + rng.normal(size=(*z.shape, 1)))
    model = BayesianHMM(families.Gaussian(), 5, concentration=0.01, stickiness=1.0)
    fit = jaxem.fit(model, x, key=KEY, num_restarts=16, max_steps=500)
    assert fit.status == Status.CONVERGED
    trace = np.asarray(fit.trace)
    assert np.all(np.diff(trace[np.isfinite(trace)]) >= -1e-8)
    assert len(np.unique(fit.predict(x))) == 3
    pruning = fit.pruning()
    assert np.asarray(pruning.kept).tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(pruning.count.sum(), 480, rtol=1e-9)  # all steps
    np.testing.assert_allclose(fit.log_predictive(x).sum(1), fit.log_prob(x), rtol=1e-10)
    density = np.exp(np.asarray(fit.log_forecast(x, np.linspace(-20, 40, 2001)[:, None], 2))).sum(-1) * 0.03
    np.testing.assert_allclose(density, 1, atol=1e-3)
    point = jaxem.fit(HMM(families.Gaussian(), 3), x, key=KEY, num_restarts=4)
    assert fit.elbo.total < point.elbo.data
    plug = fit.model.plug_in(fit.params)
    np.testing.assert_allclose(
        np.sort(plug.components.mean[:3, 0]), np.sort(point.params.components.mean[:, 0]), atol=0.1
    )
    np.testing.assert_allclose(fit.log_prob(x).sum(), point.elbo.data, atol=25)
    drawn, states = fit.sample(2, key=KEY, length=7)
    assert drawn.shape == (2, 7, 1)
    assert states.shape == (2, 7)
    np.testing.assert_allclose(fit.forecast(x, 2).sum(-1), 1, rtol=1e-9)


def test_a_bayesian_chain_keeps_to_its_structure():
    x, _ = simulated(4, 30, EMIT["poisson"][1])
    model = BayesianHMM(families.Poisson(), 3, allowed=np.triu(np.ones((3, 3))), initial_concentration=2.0)
    fit = jaxem.fit(model, x, key=KEY, max_steps=100)
    posterior = fit.params.transition.concentration
    assert np.all(np.asarray(posterior)[np.tril_indices(3, -1)] == 0)
    assert np.all(np.isfinite(posterior))
    assert np.isfinite(fit.elbo.total)


WRONG = {
    "nan": (lambda x: [x, np.array([[1.0], [np.nan]])], ValueError, r"data\[1\].*nan in row 1, column 0.*observed="),
    "empty": (lambda x: [], ValueError, "data: expected at least one sequence"),
    "no steps": (lambda x: [x, x[:0]], ValueError, r"data\[1\]: expected at least one step"),
    "columns": (lambda x: [x, np.ones((4, 2))], ValueError, r"data\[1\]: expected steps of shapes"),
    "text": (lambda x: [["a"], ["b"]], TypeError, r"data\[0\]"),
    "lengths": (lambda x: sequences(x, lengths=[3, 99]), ValueError, "lengths: expected"),
    "fractions": (lambda x: sequences(x, lengths=[1.5, 2]), ValueError, "lengths: expected whole numbers"),
    "zero": (lambda x: sequences(x, lengths=[0, 40]), ValueError, "lengths: expected at least one step"),
    "marks": (lambda x: sequences(x, observed=[True, False]), ValueError, "observed: expected 40 booleans"),
    "blind": (lambda x: sequences(x, observed=np.zeros(40)), ValueError, "observed: expected at least one"),
    "negative": (lambda x: [x, -x], ValueError, "data"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_are_named(counts, name):
    make, error, match = WRONG[name]
    with pytest.raises(error, match=match):
        jaxem.fit(HMM(families.Poisson(), 2), make(counts[0][0]), key=KEY)


SETTINGS = {
    "num_states": {"num_states": 0},
    "allowed": {"allowed": np.ones((3, 3))},
    "allowed: expected a transition": {"allowed": np.array([[1, 1], [0, 0]])},
    "initial": {"initial": np.array([0.5, 0.6])},
    "initial: expected None": {"initial": np.array([0.5, 0.5]), "stationary": True},
    "stickiness": {"stickiness": -1.0},
    "initial_pseudo_counts": {"initial_pseudo_counts": -1.0},
    "transition_pseudo_counts": {"transition_pseudo_counts": -1.0},
    "stationary": {"stationary": "yes"},
    "init_method": {"init_method": "kmean"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_wrong_settings_are_named(counts, name):
    settings = {"num_states": 2, **SETTINGS[name]}
    with pytest.raises((TypeError, ValueError), match=name):
        jaxem.fit(HMM(families.Poisson(), **settings), counts[0], key=KEY)


def test_fewer_observations_than_states_and_wrong_params_are_named(counts, fitted):
    with pytest.raises(ValueError, match="at least num_states = 3 observations; found 1"):
        jaxem.fit(HMM(families.Poisson(), 3), counts[0][1], key=KEY)
    with pytest.raises(ValueError, match=r"weights: expected shape \(4,\)"):
        jaxem.fit(HMM(families.Poisson(), 2), counts[0], key=KEY, weights=np.ones(126))
    with pytest.raises(ValueError, match="params: expected those of 3 states"):
        HMM(families.Poisson(), 3).log_prob(fitted.params, counts[0])
    with pytest.raises(ValueError, match="transition"):
        fitted.model.make_params([0.5, 0.5], [[0.9, 0.2], [0.1, 0.9]], rate=np.ones((2, 1)))
    with pytest.raises(ValueError, match="expected rows of shape"):
        fitted.predict(np.ones((5, 2)))


def test_gaps_say_nothing_of_columns():
    """Which steps were observed is no column: random gaps were taken for columns that do not depend on each other."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 8, 2))
    x = np.concatenate([x, x[..., :1] + x[..., 1:]], -1)
    data = jaxem.sequences(x, observed=rng.random((60, 8)) < 0.6)
    fit = jaxem.fit(jaxem.HMM(families.Gaussian(), 2), data, key=jax.random.key(0), max_steps=1)
    assert np.asarray(fit.model.family.scale.span.dependent).tolist() == [False, False, True]
