"""Small fits on fixed data, one of everything the library can climb: their traces are what a refactoring must keep.

Only public names of jaxem are used, so that the same file runs on the code before and after a move inside.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem import constraints, expfam, families, likelihoods
from jaxem.networks import mlp

KEY = jax.random.key(0)
NORMAL, GAMMA = expfam.Normal(), expfam.Gamma()


@jaxem.dataclass
class UnknownNormal(jaxem.MeanField):
    """y ~ N(mu, 1 / tau), mu ~ N(0, 1e6), tau ~ Gamma(1e-6, 1e-6); q(mu) q(tau)."""

    def factors(self) -> dict:
        """The two factors of q."""
        return {"mu": jaxem.Factor(NORMAL), "tau": jaxem.Factor(GAMMA)}

    def expected_log_lik(self, means: Any, x: Any) -> Any:
        """(n,) E log p(y | mu, tau), nats."""
        mu, tau = means["mu"], means["tau"]
        return 0.5 * (tau.log - math.log(2 * math.pi) - tau.x * (x**2 - 2 * x * mu.x + mu.xx))

    def expected_log_prior(self, means: Any) -> Any:
        """E log p(mu, tau), nats."""
        mu, tau = NORMAL.natural(0.0, 1e-6), GAMMA.natural(1e-6, 1e-6)
        return NORMAL.expected_log_prob(mu, means["mu"]) + GAMMA.expected_log_prob(tau, means["tau"])


@jaxem.dataclass
class Normals(jaxem.ContinuousLatent):
    """x ~ N(z, 1), z ~ N(mean, var); the proposal is the prior."""

    def init(self, key: Any, data: Any, weights: Any) -> dict:
        """A random mean."""
        return {"mean": jax.random.normal(key, (), data.dtype), "var": jnp.ones((), data.dtype)}

    def log_joint(self, params: Any, data: Any, z: Any) -> Any:
        """(n,) log p(x, z), nats."""
        log_prior = jax.scipy.stats.norm.logpdf(z[:, 0], params["mean"], jnp.sqrt(params["var"]))
        return log_prior + jax.scipy.stats.norm.logpdf(data, z[:, 0])

    def proposal(self, params: Any, data: Any) -> Any:
        """The prior, for each row."""
        wide = lambda value: jnp.broadcast_to(value, data.shape)[:, None]
        return jaxem.DiagonalNormal(wide(params["mean"]), wide(0.5 * jnp.log(params["var"])))

    def statistics(self, params: Any, data: Any, z: Any, resp: Any) -> Any:
        """Count, sum and sum of squares."""
        return resp.sum(), resp @ z[:, 0], resp @ z[:, 0] ** 2

    def m_step(self, params: Any, stats: Any) -> dict:
        """Moments."""
        count, first, second = stats
        return {"mean": first / count, "var": second / count - (first / count) ** 2}


@jaxem.dataclass
class ZeroInflated(jaxem.DiscreteLatent):
    """Counts that are 0 for sure with probability `zero`, else Poisson(rate)."""

    def init(self, key: Any, data: Any, weights: Any) -> dict:
        """A random share of zeros."""
        zero, factor = jax.random.uniform(key, (2,), data.dtype, minval=0.2, maxval=0.8)
        return {"zero": zero, "rate": 2 * factor * data.mean() + 0.1}

    def log_joint(self, params: Any, data: Any) -> Any:
        """(N, 2), nats."""
        structural = jnp.where(data == 0, jnp.log(params["zero"]), -jnp.inf)
        counted = jnp.log1p(-params["zero"]) + jax.scipy.stats.poisson.logpmf(data, params["rate"])
        return jnp.stack([structural, counted], axis=1)

    def statistics(self, params: Any, data: Any, resp: Any) -> dict:
        """Counts and the sum of what was counted."""
        return {"count": resp.sum(0), "total": resp[:, 1] @ data}

    def m_step(self, params: Any, stats: Any) -> dict:
        """Ratios of the statistics."""
        structural, counted = stats["count"]
        return {"zero": structural / (structural + counted), "rate": stats["total"] / counted}


@jaxem.dataclass
class ZeroInflatedOne(jaxem.Enumerated):
    """The same from one datum and one state, climbed by GeneralizedEM."""

    num_states = 2

    def init(self, key: Any, data: Any, weights: Any) -> dict:
        """A random share of zeros."""
        return ZeroInflated().init(key, data, weights)

    def constraints(self) -> dict:
        """A probability and a rate."""
        return {"zero": constraints.UnitInterval(), "rate": constraints.Positive()}

    def log_joint_one(self, params: Any, x: Any, z: Any) -> Any:
        """Log-joint of one datum and one state, nats."""
        structural = jnp.where(x == 0, jnp.log(params["zero"]), -jnp.inf)
        counted = jnp.log1p(-params["zero"]) + jax.scipy.stats.poisson.logpmf(x, params["rate"])
        return jnp.where(z == 0, structural, counted)


def _make_data() -> dict[str, Any]:
    """All data by name, float64, from one seed each, so that adding one changes no other."""
    draw = lambda seed: np.random.default_rng(seed)
    rng = draw(0)
    centres = np.array([[0.0, 0.0, 0.0], [3.0, 1.0, -1.0], [1.0, 4.0, 2.0]])
    label = rng.choice(3, 120, p=[0.5, 0.3, 0.2])
    data: dict[str, Any] = {"blobs": centres[label] + rng.normal(size=(120, 3)) * [1.0, 0.7, 1.3]}
    data["labelled"] = data["blobs"], np.where(draw(1).random(120) < 0.2, label, -1)
    data["weights"] = draw(2).uniform(0.2, 2.0, 120)
    data["counts"] = draw(3).poisson(draw(4).gamma(3.0, 2.0, (3, 4))[draw(5).choice(3, 150)]).astype(float)
    data["zeros"] = np.where(draw(6).random(90) < 0.3, 0, draw(7).poisson(2.5, 90)).astype(float)
    data["binary"] = (draw(8).random((100, 5)) < np.array([[0.2], [0.8]])[draw(9).choice(2, 100)]).astype(float)
    data["levels"] = draw(10).integers(0, 4, (100, 3)) * draw(11).integers(0, 2, (100, 1))
    data["positive"] = draw(12).gamma(np.array([2.0, 9.0])[draw(13).choice(2, 100)][:, None], 1.5, (100, 2))
    data["heavy"] = 2.0 * draw(14).choice(2, (110, 1)) + draw(15).standard_t(3.0, (110, 2))
    x = draw(16).normal(size=(100, 2))
    slope = np.where(draw(17).random(100) < 0.4, -2.0, 1.5)
    data["lines"] = x, slope * x[:, 0] + 0.5 * x[:, 1] + 0.3 * draw(18).normal(size=100)
    data["table"] = {"visits": data["counts"][:100, 0], "member": data["binary"][:, 0], "size": data["positive"]}
    data["column"] = draw(19).normal(5.0, 3.0, 40)
    data["dependent"] = np.c_[data["blobs"], data["blobs"] @ [1.0, 2.0, -1.0], np.full(120, 7.0)]
    data["far"] = 1e6 + data["blobs"]
    data["spike"] = np.r_[data["blobs"][:25], np.repeat(data["blobs"][:1], 4, 0)]
    return data


DATA = _make_data()


def _runs(
    model: Callable[[], Any],
    data: str,
    algorithm: Callable[[], Any] = lambda: None,
    weights: str | None = None,
    **options: Any,
) -> Callable[[Any], jaxem.Fit]:
    """A function dtype -> fit from three restarts, at most 25 steps, unless options say otherwise.

    Models and algorithms are made when it runs: one that cannot be made is an error of its fit, not of all.
    """

    def run(dtype: Any) -> jaxem.Fit:
        x, w = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == np.float64 else a, (DATA[data], DATA.get(weights)))
        settings = {"num_restarts": 3, "max_steps": 25, **options}
        return jaxem.fit(model(), x, key=KEY, weights=w, algorithm=algorithm(), **settings)

    return run


def _mixture(family: Any, num: int, **settings: Any) -> Callable[[], Any]:
    return lambda: jaxem.Mixture(family(), num, **settings)


def _online() -> Any:
    return jaxem.OnlineEM(30, key=jax.random.key(4))


def _vae() -> Any:
    return jaxem.VAE(mlp(6, 4), mlp(6, 5), latent_dim=2, likelihood=likelihoods.Bernoulli())


def _normal_vae() -> Any:
    return jaxem.VAE(mlp(4), mlp(3), jaxem.GMM(2), latent_dim=2, likelihood=likelihoods.Gaussian("shared"))


def _empirical() -> Any:
    return jaxem.EmpiricalBayes(jaxem.BayesianMixture(families.Poisson(), 3), ("concentration", "prior.rate"))


def _product() -> Any:
    return families.Product({"visits": families.Poisson(), "member": families.Bernoulli(), "size": families.Gaussian()})


def _gumbel() -> Any:
    import distrax  # takes a second, which a test of other fits need not wait

    return families.from_distribution(distrax.Gumbel(0.0, 1.0))


FULL, TIED, DIAG, SPHERICAL = "full", "tied", "diag", "spherical"
FITS: dict[str, Callable[[Any], jaxem.Fit]] = {
    **{
        f"GMM {shape}": _runs(lambda shape=shape: jaxem.GMM(3, shape), "blobs")
        for shape in (FULL, TIED, DIAG, SPHERICAL)
    },
    "GMM weighted": _runs(lambda: jaxem.GMM(3), "blobs", weights="weights"),
    "GMM num_active": _runs(lambda: jaxem.GMM(4, num_active=3, init_method="random_points"), "blobs"),
    "GMM mean prior": _runs(
        lambda: jaxem.GMM(3, mean_pseudo_observations=0.5, pseudo_observations=2.0, mixing_pseudo_counts=1.0), "blobs"
    ),
    "GMM random_resp": _runs(lambda: jaxem.GMM(3, DIAG, init_method="random_resp"), "blobs", max_steps=4),
    "GMM screened": _runs(
        lambda: jaxem.GMM(3, DIAG, init_method="random_points"), "blobs", num_restarts=8, screen=jaxem.Screen(3, 2)
    ),
    "GMM tempered": _runs(
        lambda: jaxem.GMM(3), "blobs", algorithm=lambda: jaxem.EM(jaxem.Tempered(np.linspace(3.0, 1.0, 8)))
    ),
    "GMM hard": _runs(
        lambda: jaxem.GMM(3, TIED, init_method="random_points"), "blobs", algorithm=lambda: jaxem.EM(jaxem.Hard())
    ),
    "GMM sampled": _runs(
        lambda: jaxem.GMM(2), "blobs", algorithm=lambda: jaxem.EM(jaxem.Sampled(jax.random.key(3))), max_steps=8
    ),
    "GMM reverse KL": _runs(
        lambda: jaxem.GMM(3), "blobs", algorithm=lambda: jaxem.EM(jaxem.ReverseKL(0.5)), max_steps=10
    ),
    "GMM Aitken": _runs(lambda: jaxem.GMM(2, DIAG), "blobs", stop=jaxem.StopAitken(1e-4), max_steps=60),
    "GMM dependent columns": _runs(lambda: jaxem.GMM(2), "dependent"),
    "GMM far from zero": _runs(lambda: jaxem.GMM(2, DIAG), "far"),
    "GMM spike": _runs(
        lambda: jaxem.GMM(3, DIAG, init_method="random_points", pseudo_observations=1e-9),
        "spike",
        num_restarts=6,
        max_steps=60,
    ),
    "KMeans": _runs(lambda: jaxem.KMeans(4), "blobs", num_restarts=6, algorithm=jaxem.EM),
    "KMeans online": _runs(lambda: jaxem.KMeans(3), "blobs", algorithm=_online, max_steps=6),
    "BayesianGMM dirichlet": _runs(lambda: jaxem.BayesianGMM(4), "blobs"),
    "BayesianGMM diag": _runs(lambda: jaxem.BayesianGMM(4, DIAG, concentration=1e-2), "blobs"),
    "BayesianGMM tied": _runs(lambda: jaxem.BayesianGMM(3, TIED), "blobs"),
    "BayesianGMM process": _runs(lambda: jaxem.BayesianGMM(4, mixing="dirichlet_process"), "blobs"),
    "BayesianGMM process fixed": _runs(
        lambda: jaxem.BayesianGMM(4, SPHERICAL, mixing="dirichlet_process", truncation="fixed"), "blobs"
    ),
    "BayesianMixture Poisson": _runs(lambda: jaxem.BayesianMixture(families.Poisson(), 3), "counts"),
    "BayesianMixture Bernoulli": _runs(lambda: jaxem.BayesianMixture(families.Bernoulli(), 3), "binary"),
    "BayesianMixture online": _runs(
        lambda: jaxem.BayesianMixture(families.Poisson(), 3), "counts", algorithm=_online, max_steps=6
    ),
    "Poisson": _runs(_mixture(families.Poisson, 3), "counts"),
    "Poisson prior": _runs(_mixture(lambda: families.Poisson(pseudo_observations=1.0), 3), "counts"),
    "Binomial": _runs(_mixture(lambda: families.Binomial(60), 2), "counts"),
    "Bernoulli": _runs(_mixture(lambda: families.Bernoulli(pseudo_observations=1.0), 2), "binary"),
    "Categorical": _runs(_mixture(lambda: families.Categorical((4, 4, 4), pseudo_observations=1.0), 2), "levels"),
    "Exponential": _runs(_mixture(families.Exponential, 2), "positive"),
    "Gamma": _runs(_mixture(families.Gamma, 2), "positive"),
    "StudentT": _runs(_mixture(families.StudentT, 2), "heavy"),
    "StudentT fixed": _runs(_mixture(lambda: families.StudentT(DIAG, degrees_of_freedom=4.0), 2), "heavy"),
    "LinearRegression": _runs(_mixture(families.LinearRegression, 2), "lines"),
    "Product": _runs(_mixture(_product, 2), "table"),
    "from_distribution": _runs(_mixture(_gumbel, 2), "positive", max_steps=10),
    "own model": _runs(ZeroInflated, "zeros"),
    "Enumerated": _runs(ZeroInflatedOne, "zeros", max_steps=12),
    "MeanField": _runs(UnknownNormal, "column", num_restarts=1),
    "MeanField damped": _runs(UnknownNormal, "column", num_restarts=1, algorithm=lambda: jaxem.CoordinateAscent(0.5)),
    "ContinuousLatent": _runs(
        Normals, "column", algorithm=lambda: jaxem.EM(jaxem.MonteCarlo(jax.random.key(2), 20)), max_steps=8
    ),
    "EmpiricalBayes": _runs(_empirical, "counts", max_steps=3),
    "OnlineEM": _runs(lambda: jaxem.GMM(3), "blobs", algorithm=_online, max_steps=6),
    "StochasticEM": _runs(
        lambda: jaxem.GMM(3, DIAG),
        "blobs",
        algorithm=lambda: jaxem.StochasticEM(key=jax.random.key(5), burn_in=4, num_draws=6),
        max_steps=10,
    ),
    "GeneralizedEM": _runs(lambda: jaxem.GMM(2, DIAG), "blobs", algorithm=jaxem.GeneralizedEM, max_steps=10),
    "GradientAscent": _runs(lambda: jaxem.GMM(2, DIAG), "blobs", algorithm=jaxem.GradientAscent, max_steps=10),
    "GradientAscent full": _runs(
        lambda: jaxem.GMM(2), "blobs", algorithm=lambda: jaxem.GradientAscent(batch_size=40), max_steps=6
    ),
    "VAE": _runs(_vae, "binary", algorithm=lambda: jaxem.GradientAscent(batch_size=25), max_steps=4, num_restarts=2),
    "VAE mixture prior": _runs(_normal_vae, "blobs", max_steps=4, num_restarts=1),
    "chunked": _runs(lambda: jaxem.chunked(jaxem.GMM(3), 50), "blobs"),
    "chunked Bayesian": _runs(lambda: jaxem.chunked(jaxem.BayesianGMM(3, DIAG), 50), "blobs"),
    "partly_labelled": _runs(lambda: jaxem.partly_labelled(jaxem.GMM(3, DIAG)), "labelled"),
}
# What the tests compare with a record of their own: few to compile.
TESTED = (
    "GMM full",
    "GMM weighted",
    "KMeans",
    "BayesianGMM diag",
    "Poisson",
    "Poisson prior",
    "own model",
    "MeanField",
    "MeanField damped",
)
# Their draws depend on every bit of the params, so rounding alone turns them into other draws of the same law.
NOISY = ("GMM sampled", "ContinuousLatent", "StochasticEM")
SINGLE = ("GMM full", "GMM tied", "GMM diag", "GMM spherical", "KMeans")


def record_fit(name: str, dtype: Any = np.float64) -> dict[str, Any]:
    """Runs one fit and returns what must stay, as plain numbers.

    Returns:
      `statuses`, `num_steps`, `hits`, `traces` (one list for each restart, its finite part, nats) and `elbo` (data and
      params of the winner, then of each restart: which of two equal ones wins is rounding's); or `error`, where the
      fit raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = FITS[name](dtype)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    traces = np.asarray(fit.restarts.trace, np.float64)
    pair = [np.asarray(value, np.float64) for value in (fit.restarts.elbo.data, fit.restarts.elbo.params)]
    return {
        "statuses": [jaxem.Status(code).name for code in np.asarray(fit.restarts.status).tolist()],
        "num_steps": np.asarray(fit.restarts.num_steps).tolist(),
        "hits": int(fit.hits),
        "traces": [row[np.isfinite(row)].tolist() for row in traces],
        "elbo": [[float(fit.elbo.data), float(fit.elbo.params)], *np.stack(pair, 1).tolist()],
    }
