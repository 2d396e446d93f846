"""The door: every public method that takes rows, of every shipped model, against every kind of bad rows."""

import math
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import expfam, families, likelihoods
from jaxem.core import rows as door
from jaxem.networks import mlp

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
REAL = np.concatenate([RNG.normal(0, 1, (8, 3)), RNG.normal(9, 1, (8, 3))])
COUNTS = RNG.poisson(np.repeat([[2.0, 9.0, 4.0], [12.0, 2.0, 1.0]], 8, 0)).astype(float)
BINARY = (RNG.uniform(size=(16, 3)) < np.repeat([[0.2, 0.8, 0.5], [0.9, 0.1, 0.3]], 8, 0)).astype(float)
NAMES = ("a", "b", "c")


class Frame:
    """As much of a data frame as is looked at: labels, and columns by position. No frame library is needed."""

    def __init__(self, x, names=NAMES):
        self.values, self.columns = x, list(names)
        self.iloc = self

    def __getitem__(self, index):
        return self.values[:, index[1]]


def normal(loc, scale):
    import distrax

    return distrax.Normal(loc, scale)


@jaxem.dataclass
class Own(jaxem.DiscreteLatent):
    """Two unit normals, as a user would write it."""

    def init(self, key, data, weights):
        return data[:2] + 0.0

    def log_joint(self, params, data):
        return -0.5 * jnp.sum((data[:, None] - params[None]) ** 2, 2) - math.log(2)

    def statistics(self, params, data, resp):
        return resp.sum(0), resp.T @ data

    def m_step(self, params, stats):
        return stats[1] / stats[0][:, None]


@jaxem.dataclass
class Field(jaxem.MeanField):
    """A vector of means under unit noise."""

    def factors(self):
        return {"mu": jaxem.Factor(expfam.Normal(), plate=(3,))}

    def expected_log_lik(self, means, x):
        mu = means["mu"]
        return -0.5 * jnp.sum(x**2 - 2 * x * mu.x[None] + mu.xx[None], 1)

    def expected_log_prior(self, means):
        return jnp.sum(-0.5 * means["mu"].xx)


MODELS = {
    "full": (jaxem.GMM(2), REAL),
    "tied": (jaxem.GMM(2, "tied"), REAL),
    "diag": (jaxem.GMM(2, "diag"), REAL),
    "spherical": (jaxem.GMM(2, "spherical"), REAL),
    "bayesian": (jaxem.BayesianGMM(2, "diag"), REAL),
    "student": (jaxem.Mixture(families.StudentT("diag"), 2), REAL),
    "gamma": (jaxem.Mixture(families.Gamma(), 2), np.exp(REAL / 9)),
    "exponential": (jaxem.Mixture(families.Exponential(), 2), np.exp(REAL / 9)),
    "poisson": (jaxem.Mixture(families.Poisson(), 2), COUNTS),
    "binomial": (jaxem.Mixture(families.Binomial(40), 2), COUNTS),
    "bernoulli": (jaxem.Mixture(families.Bernoulli(1.0), 2), BINARY),
    "categorical": (jaxem.Mixture(families.Categorical((2, 2, 2), 1.0), 2), BINARY),
    "distrax": (jaxem.Mixture(families.from_distribution(normal, params={"loc": 0.0, "scale": 1.0}), 2), REAL),
    "kmeans": (jaxem.KMeans(2), REAL),
    "chunked": (jaxem.chunked(jaxem.GMM(2, "diag"), 5), REAL),
    "empirical": (jaxem.EmpiricalBayes(jaxem.BayesianGMM(2, "diag"), ("concentration",)), REAL),
    "vae": (jaxem.VAE(mlp(4, 4), mlp(4, 3), latent_dim=2, likelihood=likelihoods.Poisson()), COUNTS),
    "own": (Own(), REAL),
    "mean field": (Field(), REAL),
}
SUPPORT = {
    "gamma": 0.0,
    "exponential": -1.0,
    "poisson": 1.5,
    "binomial": 41.0,
    "bernoulli": 0.5,
    "categorical": 2.0,
    "vae": -1.0,
}


@pytest.fixture(scope="module")
def fits():
    found = {}

    def fit(name):
        if name not in found:
            model, x = MODELS[name]
            algorithm = jaxem.GradientAscent() if name == "vae" else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # three steps are few
                found[name] = jaxem.fit(model, Frame(x), key=KEY, algorithm=algorithm, max_steps=3)
        return found[name]

    return fit


SPECIAL = (jaxem.KMeans, jaxem.VariationalAutoencoder)  # no density; one by draws from a key


def questions(fit, rows):
    """Everything that takes rows, as a person calls it, by name; `rows` are good ones."""
    model, params = fit.model, fit.params
    asked = {}
    for name in ("predict", "posterior", "log_prob", "transform", "inertia", "local", "expected_num_components"):
        if name in dir(fit) and not (name == "log_prob" and isinstance(model, SPECIAL)):
            asked[f"fit.{name}"] = getattr(fit, name)
            if name in dir(model):
                asked[f"model.{name}"] = lambda x, name=name: getattr(model, name)(params, x)
    for name in ("encode", "reconstruct", "log_prob", "evidence", "active_units", "kl_per_dimension"):
        if isinstance(model, jaxem.VariationalAutoencoder):
            keyed = {"key": KEY} if name in ("log_prob", "evidence") else {}
            asked[f"fit.{name}"] = lambda x, name=name, keyed=keyed: getattr(fit, name)(x, **keyed)
    if isinstance(model, jaxem.VariationalAutoencoder):
        asked["model.elbo"] = lambda x: model.elbo(params, x, key=KEY)
        asked["model.elbo_data"] = lambda x: model.elbo_data(params, x, key=KEY)
        asked["amortisation_gap"] = lambda x: jaxem.amortisation_gap(fit, x, key=KEY)
        return asked
    asked["model.e_step"] = lambda x: model.e_step(params, x)
    asked["model.elbo_data"] = lambda x: model.elbo_data(params, x)
    if hasattr(model, "num_parameters") and not isinstance(model, jaxem.KMeans):
        for criterion in (jaxem.bic, jaxem.aic, jaxem.icl):
            asked[criterion.__name__] = lambda x, criterion=criterion: criterion(fit, x)
    if isinstance(model, (jaxem.BayesianMixture, jaxem.MeanField)):
        asked["importance"] = lambda x: jaxem.importance(fit, x, key=KEY)
    if isinstance(model, jaxem.Mixture) and model.climbed_by == "m_step":
        online = jaxem.OnlineEM(8)
        state = online.begin(model, params, Frame(rows), num_rows=16)
        asked["OnlineEM.begin"] = lambda x: online.begin(model, params, x, num_rows=16)
        asked["OnlineEM.update"] = lambda x: online.update(model, state, x)
    return asked


def bad_rows(x, outside):
    """Kinds of bad rows made of good ones: name -> (rows, what the message must say)."""
    hole, far, mask = x.copy(), x.copy(), np.zeros(x.shape, bool)
    hole[5, 1], far[4, 2], mask[3, 0] = np.nan, np.inf, True
    text = x.astype(object)
    text[2, 1] = "one"
    kinds = {
        "one column": (x[:, :1], r"3|columns|width"),
        "a column fewer": (x[:, :2], r"3|columns"),
        "a column more": (np.c_[x, x[:, :1]], r"3|columns"),
        "NaN": (hole, r"found nan in row 5, column 1"),
        "inf": (far, r"found inf in row 4, column 2"),
        "masked": (np.ma.array(x, mask=mask), r"masked array with 1 masked entries, the first in row 3"),
        "text among objects": (text, r"text, 'one' in row 2, column 1"),
        "text": (x.astype(str), r"dtype <U32: text; leave out"),
        "complex": (x + 0j, r"complex"),
        "dates": (x.astype("M8[s]"), r"dates"),
        "time differences": (x.astype("m8[s]"), r"time differences"),
        "empty": (x[:0], r"at least one row"),
        "one row as a vector": (x[0], r"shape|rows"),
        "ragged": ([[1.0, 2.0, 3.0], [1.0, 2.0]], r"3 entries in row 0 and 2 entries in row 1"),
        "images": (np.stack([x, x], 2), r"shape|rows"),
        "wrong names": (Frame(x, ("a", "b", "z")), r"without 'c' and with 'z'"),
        "wrong order": (Frame(x[:, [1, 0, 2]], ("b", "a", "c")), r"order of the fit, 'a', 'b', 'c'; found 'b', 'a'"),
        "NaN in a frame": (Frame(hole), r"found nan in row 5, column 'b'"),
        "a dict": ({"a": x}, r"that the model was fitted to, (data|batch|sample); found"),
        "none": (None, r"at least one array"),
        "sparse": (type("Sparse", (), {"toarray": None, "nnz": 3, "shape": x.shape})(), r"\.toarray\(\)"),
        "categories": (Categories(), r"categories"),
    }
    if outside is not None:
        wrong = x.copy()
        wrong[6, 1] = outside
        kinds["outside the support"] = (wrong, r"row 6, column 1")
    return kinds


class Categories:
    """As much of a categorical column as is looked at."""

    dtype = type("dtype", (), {"categories": ("x", "y")})()


@pytest.mark.parametrize("name", MODELS)
def test_no_bad_rows_pass_any_question_in_silence(fits, name):
    fit, x = fits(name), MODELS[name][1]
    asked = questions(fit, x)
    assert len(asked) >= 2
    for kind, (rows, message) in bad_rows(x, SUPPORT.get(name)).items():
        for question, ask in asked.items():
            with pytest.raises((ValueError, TypeError)) as caught:
                ask(rows)
            what = f"{question}({kind}): {caught.value}"
            assert str(caught.value).startswith(("data", "batch", "sample")), what
            assert caught.match(message), what


@pytest.mark.parametrize("name", ["full", "poisson", "kmeans", "vae"])
def test_good_rows_in_other_containers_give_the_same(fits, name):
    fit, x = fits(name), MODELS[name][1]
    ask = fit.reconstruct if name == "vae" else fit.posterior
    expected = ask(x)
    same = [x.tolist(), x.astype(object), x.astype(">f8"), np.asfortranarray(x), Frame(x), jnp.asarray(x)]
    same += [np.ma.array(x), Frame(x.astype(object)), np.repeat(x, 2, 0)[::2]]
    for rows in same:
        np.testing.assert_array_equal(ask(rows), expected)
    np.testing.assert_allclose(jax.jit(ask)(x), expected, rtol=1e-12)


def test_the_pure_methods_of_a_model_that_was_not_fitted_hold_rows_against_the_params():
    model = jaxem.GMM(2, "diag")
    params = model.make_params([0.5, 0.5], mean=np.zeros((2, 3)), covariance=np.ones((2, 3)))
    for bad in (REAL[:, :1], REAL[:, :2], np.c_[REAL, REAL]):
        with pytest.raises(ValueError, match="data: expected 3 columns, as the params have"):
            model.log_prob(params, bad)
    with pytest.raises(TypeError, match="params: expected MixtureParams.*params come first, then data"):
        model.predict(REAL, params)
    with pytest.raises(TypeError, match="params: expected those of covariance 'full', the model's; found 'diag'"):
        jaxem.GMM(2).predict(params, REAL)
    with pytest.raises(ValueError, match="params: expected those of 3 components; found 2"):
        jaxem.GMM(3, "diag").predict(params, REAL)
    kmeans = jaxem.models.kmeans.KMeansParams(np.zeros((2, 3)), 0)
    with pytest.raises(ValueError, match="data: expected 3 columns"):
        jaxem.KMeans(2).transform(kmeans, REAL[:, :1])
    with pytest.raises(ValueError, match="one column is numpy.reshape"):
        jaxem.KMeans(2).predict(kmeans, REAL[0])
    with pytest.raises(ValueError, match=r"data.reshape\(len\(data\), -1\)"):
        jaxem.fit(jaxem.GMM(1), np.zeros((4, 2, 2)), key=KEY)


def test_a_fit_asks_the_model_inside_any_wrapper(fits):
    labels = np.where(np.arange(16) % 4 == 0, np.arange(16) // 8, -1)
    fit = jaxem.fit(jaxem.partly_labelled(jaxem.GMM(2, "diag")), (Frame(REAL), labels), key=KEY)
    np.testing.assert_array_equal(fit.predict(REAL), np.arange(16) // 8)  # rows without labels
    np.testing.assert_array_equal(fit.model.predict(fit.params, (REAL, labels)), np.arange(16) // 8)
    with pytest.raises(ValueError, match="order of the fit"):
        fit.predict(Frame(REAL, ("b", "a", "c")))
    empirical = fits("empirical")
    assert empirical.log_prob(REAL).shape == (16,)
    assert empirical.draw(key=KEY).mixing.shape == (2,)
    assert fits("chunked").sample(5, key=KEY)[0].shape == (5, 3)
    go = lambda key: jaxem.fit(jaxem.KMeans(2), REAL, key=key, algorithm=jaxem.EM())
    many = jax.jit(jax.vmap(go))(jax.random.split(KEY, 2))
    assert jax.vmap(lambda fit: fit.predict(REAL))(many).shape == (2, 16)
    with pytest.raises(AttributeError, match="a batch of fits has no predict; ask each"):
        _ = many.predict


def test_what_a_person_calls_is_what_tab_shows(fits):
    fit = fits("full")
    assert {"predict", "posterior", "log_prob", "sample", "params", "elbo", "warnings"} <= set(dir(fit))
    assert {"predict", "sample", "make_params", "num_components", "bind"} <= set(dir(fit.model))
    engine = {"e_step", "m_step", "rebase", "at", "slack", "init", "check"}
    assert not engine & (set(dir(fit.model)) | set(dir(fit)))
    assert "params" not in str(fit.predict.__signature__ if hasattr(fit.predict, "__signature__") else "")
    assert fit.predict.__doc__ == fit.model.predict.__doc__
    with pytest.raises(AttributeError, match="has no 'predicts'; it has .*predict"):
        fit.predicts  # noqa: B018
    with pytest.raises(AttributeError, match="has no 'm_step'"):
        fit.m_step  # noqa: B018
    again = pickle.loads(pickle.dumps(fit))
    assert again.model.rows == fit.model.rows
    np.testing.assert_array_equal(again.predict(REAL), fit.predict(REAL))


def test_a_frame_is_taken_apart_for_a_product():
    family = families.Product({"a": families.Gaussian(), "b": families.Poisson()})
    x = np.c_[REAL[:, 0], COUNTS[:, 0]]
    fit = jaxem.fit(jaxem.Mixture(family, 2), Frame(x, ("a", "b")), key=KEY)
    same = fit.log_prob({"a": x[:, :1], "b": x[:, 1:].tolist()})
    np.testing.assert_array_equal(fit.log_prob(Frame(x[:, ::-1], ("b", "a"))), same)
    with pytest.raises(ValueError, match="data: expected a frame of the columns 'a', 'b'; found one without 'b'"):
        fit.predict(Frame(x, ("a", "z")))
    with pytest.raises(ValueError, match="with 'c' as well; leave those out"):
        fit.predict(Frame(np.c_[x, x[:, 0]], NAMES))
    with pytest.raises(ValueError, match=r"data\['b'\]: expected counts.* in row 0, column 0"):
        fit.predict({"a": x[:, :1], "b": x[:, :1]})


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.uint32, np.float64, object])
def test_a_cast_that_loses_the_spread_is_told_of_any_dtype(dtype):
    t = (np.array([0, 1, 2, 3, 60, 61, 62, 63]) + 1_700_000_000)[:, None].astype(dtype)
    with jax.enable_x64(False):
        with pytest.warns(UserWarning, match="column 0 .*keeps fewer than three digits of its spread; subtract"):
            door.as_data(t)
        with pytest.warns(UserWarning, match="column 'time' "):
            door.as_data(Frame(t, ("time",)))
        door.as_data(t - t.min())  # no warning
    if dtype is np.int64:  # even float64 loses nanoseconds of centuries
        with pytest.warns(UserWarning, match="int64 becomes float64, and column 0"):
            door.as_data(t * 0 + 2**62 + np.arange(8)[:, None] * 100)


def test_the_field_case_of_bursts_in_integer_seconds():
    t = (np.array([0, 1, 2, 3, 60, 61, 62, 63]) + 1_700_000_000)[:, None]
    fit = jaxem.fit(jaxem.KMeans(2), t, key=KEY, algorithm=jaxem.EM(), num_restarts=4)  # x64
    np.testing.assert_allclose(np.sort(fit.params.centroids[:, 0]), [1700000001.5, 1700000061.5], rtol=0, atol=1e-6)


def test_weights_pass_the_same_door():
    mask = np.ma.array(np.ones(16), mask=np.arange(16) == 3)
    for bad, error, message in (
        (mask, TypeError, "weights: .*masked array with 1 masked entries, the first in row 3"),
        (np.full(16, "1"), TypeError, "weights: .*text"),
        (np.where(np.arange(16) == 2, np.nan, 1), ValueError, "weights: .*nan in row 2"),
        (-np.ones(16), ValueError, "weights: expected numbers >= 0; found -1 in row 0"),
        (np.ones(15), ValueError, r"weights: expected shape \(16,\)"),
    ):
        with pytest.raises(error, match=message):
            jaxem.fit(jaxem.GMM(2), REAL, key=KEY, weights=bad)
        fit = jaxem.fit(jaxem.GMM(2, "diag"), REAL, key=KEY)
        with pytest.raises(error, match=message):
            fit.model.e_step(fit.params, REAL, bad)
        with pytest.raises(error, match=message):
            jaxem.bic(fit, REAL, weights=bad)
    ones = jaxem.fit(jaxem.GMM(2, "diag"), REAL, key=KEY, weights=[1] * 16)
    assert ones.elbo.total == fit.elbo.total


def test_missing_values_of_nullable_columns_are_named():
    NA = type("NAType", (), {})()
    x = np.array([[1, 2.5], [None, 3], [4, NA]], object)
    with pytest.raises(ValueError, match="found nan in row 1, column 0, 2 such entries in 2 rows"):
        door.as_data(x)
    np.testing.assert_array_equal(door.as_data(np.array([[1, 2], [3, 4]], object)), [[1, 2], [3, 4]])


def test_inside_jit_nothing_is_checked_and_nothing_costs(fits):
    fit = fits("poisson")
    bad = COUNTS + 0.5
    assert jax.jit(fit.predict)(bad).shape == (16,)  # no host to raise on
    steps = (type(fit.model).e_step, type(fit.model).e_step.__wrapped__)
    programs = [str(jax.make_jaxpr(lambda x, step=step: step(fit.model, fit.params, x))(COUNTS)) for step in steps]
    assert programs[0] == programs[1]
    with pytest.raises(ValueError, match="row 0, column 0"):
        fit.predict(bad)


class Index(list):
    """As much of an index as is looked at."""

    def equals(self, other):
        return list(self) == list(other)


class Labelled(Frame):
    """A frame whose rows have labels."""

    def __init__(self, x, index):
        super().__init__(x)
        self.index = Index(index)


class Column:
    """A column whose rows have labels."""

    def __init__(self, values, index):
        self.values, self.index = values, Index(index)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_labels_of_rows_must_agree():
    frame = Labelled(REAL, range(16))
    weights = np.arange(16) + 1.0
    turned = Column(weights[::-1], range(15, -1, -1))
    model = jaxem.GMM(2, "diag")
    fit = jaxem.fit(model, frame, key=KEY, weights=Column(weights, range(16)))
    for ask in (
        lambda: jaxem.fit(model, frame, key=KEY, weights=turned),
        lambda: jaxem.bic(fit, frame, weights=turned),
        lambda: fit.model.e_step(fit.params, frame, turned),
        lambda: jaxem.fit(jaxem.Mixture(families.LinearRegression(), 2), (frame, turned), key=KEY),
    ):
        with pytest.raises(ValueError, match=r"expected the index of data.*found another one, or another order"):
            ask()
    assert jaxem.bic(fit, REAL, weights=weights) == jaxem.bic(fit, frame, weights=np.array(turned)[::-1])


def test_columns_known_by_numbers_keep_their_order():
    fit = jaxem.fit(jaxem.GMM(2, "diag"), Frame(REAL, (0, 1, 2)), key=KEY)
    with pytest.raises(ValueError, match="in the order of the fit, 0, 1, 2; found 2, 1, 0"):
        fit.predict(Frame(REAL[:, ::-1], (2, 1, 0)))
    pairs = jaxem.fit(jaxem.GMM(2, "diag"), Frame(REAL, (("s", 1), ("s", 2), ("t", 1))), key=KEY)
    with pytest.raises(ValueError, match="in the order of the fit"):
        pairs.predict(Frame(REAL[:, ::-1], (("t", 1), ("s", 2), ("s", 1))))
    np.testing.assert_array_equal(fit.predict(Frame(REAL)), fit.predict(REAL))  # a frame that was given no names


def test_numbers_that_the_cast_would_make_infinite_are_refused():
    fit = jaxem.fit(jaxem.KMeans(2), REAL.astype("f4"), key=KEY, algorithm=jaxem.EM())
    far = REAL.copy()
    far[3, 2] = -1e39
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=r"float32 can hold; found -1e\+39 in row 3, column 2"):
            door.as_data(far)
        with pytest.raises(ValueError, match=r"float32 can hold; found -1e\+39 in row 3, column 'c'"):
            door.as_data(Frame(far))
        for size in (1e38, 1e-46):
            with pytest.raises(ValueError, match="weights: expected counts whose sum float32 can hold"):
                door.as_weights(np.full(16, size), 16, np.float32)
    with pytest.raises(ValueError, match="row 3, column 2"):
        fit.inertia(far)


def test_a_fit_with_networks_can_be_pickled(fits):
    fit = fits("vae")
    again = pickle.loads(pickle.dumps(fit))
    np.testing.assert_array_equal(again.encode(COUNTS).mean(), fit.encode(COUNTS).mean())


def test_what_scikit_learn_calls_otherwise_is_translated(fits):
    for name, there in (("means_", "fit.params.components.mean"), ("bic", r"jaxem.bic\(fit, data\)")):
        with pytest.raises(AttributeError, match=f"write {there}"):
            getattr(fits("full"), name)
    with pytest.raises(TypeError, match=r"key: expected a JAX random key, by name; found none"):
        jaxem.fit(jaxem.GMM(2), REAL)
    with pytest.raises(AttributeError, match="did you mean 'KMeans'"):
        jaxem.Kmeans  # noqa: B018
