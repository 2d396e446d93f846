"""Every wrapper around every wrapper, and under every algorithm: each pair fits, or is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem.model import ELBOModel, LatentModel
from jaxem.wrappers import Wrapper, protocol

KEY = jax.random.key(0)
X = np.random.default_rng(0).poisson(np.repeat([[2.0, 9.0], [8.0, 3.0]], 24, 0)).astype(float)
LABELS = np.where(np.arange(48) % 6 == 0, np.arange(48) // 24, -1)
# One object of each: an optimiser made anew is another to JAX, and compiles anew.
SGD, ADAM = optax.sgd(0.1), optax.adam(0.05)


@jaxem.dataclass
class Halves(Wrapper):
    """A user's wrapper, of which nothing in the library knows: an E-step on either half of the rows."""

    def e_step(self, params, data, weights=None, rule=None):
        num = jax.tree.leaves(data)[0].shape[0]
        weights = jnp.ones(num) if weights is None else weights
        parts = [jax.tree.map(lambda a, s=s: a[s], (data, weights)) for s in (slice(0, num // 2), slice(num // 2, num))]
        return jax.tree.map(jnp.add, *(self.model.e_step(params, *part, rule) for part in parts))


WRAPPERS = {
    "chunked": lambda model: jaxem.chunked(model, 20),
    "labelled": jaxem.partly_labelled,
    "empirical": lambda model: jaxem.EmpiricalBayes(model, ("concentration",), SGD, 1),
    "halves": Halves,
    "sharded": jaxem.sharded,
}


def bayesian():
    return jaxem.BayesianMixture(jaxem.families.Poisson(), 2)


def rows(*names):
    """Data for a model in these wrappers: a pair for each that takes labels."""
    data = X
    for _ in range(names.count("labelled")):
        data = (data, LABELS)
    return data


def fit(model, data, **options):
    return jaxem.fit(model, data, key=KEY, **{"num_restarts": 2, "max_steps": 60, **options})


@pytest.fixture(scope="module")
def plain():
    return fit(bayesian(), X)


def test_the_list_of_what_is_forwarded_is_complete():
    """Whatever a protocol names has an answer of the wrapper's own class: a default would hide the model's."""
    names = {n for cls in (ELBOModel, LatentModel) for n in vars(cls) if not n.startswith("_")} - {"rows"}
    assert names == set(protocol())
    assert names <= set(vars(Wrapper))
    assert not Wrapper.__abstractmethods__


@pytest.mark.parametrize("name", sorted(protocol()))
def test_each_name_reaches_the_model_inside(name):
    """Planted in a model inside, an answer comes out of the wrapper."""
    own = ("at", "bind", "inside", "over", "e_step")
    if name in own:
        pytest.skip("a wrapper has one of its own")
    settings = not callable(protocol()[name])
    planted = "planted" if settings else lambda self, *args: "planted"
    model = type("Planted", (jaxem.BayesianMixture,), {name: planted})(jaxem.families.Poisson(), 2)
    found = getattr(Wrapper(model), name)
    assert (found if settings else found()) == "planted"


REFUSED = {("empirical", "empirical"): "hyperparameters"}


@pytest.mark.parametrize("outer", WRAPPERS)
@pytest.mark.parametrize("inner", WRAPPERS)
def test_wrapper_around_wrapper(plain, outer, inner):
    data = rows(outer, inner)
    if (outer, inner) in REFUSED:
        with pytest.raises((TypeError, AttributeError, ValueError), match=REFUSED[outer, inner]):
            fit(WRAPPERS[outer](WRAPPERS[inner](bayesian())), data)
        return
    found = fit(WRAPPERS[outer](WRAPPERS[inner](bayesian())), data)
    # Chunks and halves change nothing, so that what is left is what one wrapper, or none, gives.
    rest = [name for name in (outer, inner) if name in ("labelled", "empirical")]
    alone = fit(WRAPPERS[rest[0]](bayesian()), rows(rest[0])) if rest else plain
    if len(set(rest)) < 2:
        np.testing.assert_allclose(found.elbo.total, alone.elbo.total, rtol=1e-9)
        assert found.status == alone.status
    first = np.asarray(found.predict(X))
    np.testing.assert_array_equal(first == first[0], np.arange(48) < 24)
    assert found.sample(3, key=KEY)[0].shape == (3, 2)


ALGORITHMS = {
    "EM": lambda: jaxem.EM(),
    "GeneralizedEM": lambda: jaxem.GeneralizedEM(),
    "OnlineEM": lambda: jaxem.OnlineEM(16, key=KEY),
    "StochasticEM": lambda: jaxem.StochasticEM(key=KEY, burn_in=5),
    "GradientAscent": lambda: jaxem.GradientAscent(ADAM),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", [*WRAPPERS, "none"])
def test_wrapper_under_algorithm(name, algorithm):
    """A mixture of Poissons; what stands under the wrapper ends within a nat or so of EM under it."""
    wrap = WRAPPERS.get(name, lambda model: model)
    model = wrap(bayesian() if name == "empirical" else jaxem.Mixture(jaxem.families.Poisson(), 2))
    data = rows(name)
    if (name, algorithm) == ("empirical", "GeneralizedEM"):
        with pytest.raises(TypeError, match="GeneralizedEM needs a model with a log_joint"):
            fit(model, data, algorithm=ALGORITHMS[algorithm]())
        return
    best = fit(model, data, num_restarts=1, max_steps=40)
    found = fit(model, data, num_restarts=1, algorithm=ALGORITHMS[algorithm](), max_steps=40)
    assert np.isfinite(found.elbo.total)
    assert abs(found.elbo.total - best.elbo.total) < (10 if algorithm == "GradientAscent" else 1.5)


def test_chunks_of_a_latent_that_is_drawn():
    """Their ELBO takes the key, so that gradients climb it."""

    @jaxem.dataclass
    class Offset(jaxem.ContinuousLatent):
        def init(self, key, data, weights):
            return {"m": jnp.zeros(())}

        def constraints(self):
            return {"m": jaxem.constraints.Real()}

        def log_joint(self, params, data, z):
            norm = jax.scipy.stats.norm
            return norm.logpdf(z[:, 0]) + norm.logpdf(data[:, 0], params["m"] + z[:, 0])

        def proposal(self, params, data):
            mean = (data[:, :1] - params["m"]) / 2
            return jaxem.DiagonalNormal(mean, jnp.full_like(mean, -0.3465735902799727))

        def statistics(self, params, data, z, resp):
            return {"sum": resp @ (data[:, 0] - z[:, 0]), "count": jnp.sum(resp)}

        def m_step(self, params, stats):
            return {"m": stats["sum"] / stats["count"]}

    exact = float(np.sum(jax.scipy.stats.norm.logpdf(X[:, 0], 1.0, np.sqrt(2))))
    for model in (Offset(), jaxem.chunked(Offset(), 20)):
        found = jax.jit(model.elbo_data)({"m": jnp.ones(())}, X, None, KEY)
        np.testing.assert_allclose(found, exact, rtol=1e-9)  # the proposal is the posterior: equal for every draw
    climbed = fit(model, X, algorithm=jaxem.GradientAscent(optax.adam(0.3)), max_steps=200, num_restarts=1)
    np.testing.assert_allclose(climbed.params["m"], X[:, 0].mean(), atol=0.2)


def test_partly_labelled_kmeans_is_kmeans():
    """One-hot, and no density, as the model inside."""
    data = rows("labelled")
    found = fit(jaxem.partly_labelled(jaxem.KMeans(2)), data, algorithm=jaxem.EM())
    resp = np.asarray(found.model.posterior(found.params, data))
    np.testing.assert_array_equal(resp, np.eye(2)[resp.argmax(1)])
    with pytest.raises(TypeError, match="has no density"):
        found.model.log_prob(found.params, data)
