"""Calls that go wrong: each is an error that names the argument and the remedy, before anything is compiled."""

import inspect
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
import jaxem.testing
from jaxem import constraints, expfam, families, likelihoods, priors
from jaxem.networks import PerDatum, mlp

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = np.r_[RNG.normal(0, 1, (20, 2)), RNG.normal(6, 1, (20, 2))]
COUNTS = RNG.poisson(4, (40, 1)).astype(float)
BITS = (X > 3).astype(float)
VAE = {"encoder": mlp(4, 4), "decoder": mlp(4, 2), "latent_dim": 2}
NORMAL = expfam.Normal()


class Undecorated(jaxem.DiscreteLatent):
    """Two rates on a line, not made a pytree."""

    def init(self, key, data, weights):
        return {"rate": data.mean() * jnp.ones(2, data.dtype)}

    def log_joint(self, params, data):
        return -((data[:, :1] - params["rate"][None]) ** 2)

    def statistics(self, params, data, resp):
        return resp.sum(0), resp.T @ data[:, 0]

    def m_step(self, params, stats):
        return {"rate": stats[1] / stats[0]}


class Inheriting(jaxem.Mixture):
    """A subclass of a decorated class has its fields, and is no pytree."""


class OwnRule(jaxem.Rule):
    def __call__(self, log_joint, axis=-1):
        return jaxem.Exact()(log_joint, axis)


class OwnStop(jaxem.StopRule):
    def __call__(self, step):
        return jnp.asarray(True)


@jaxem.dataclass
class Moody(Undecorated):
    mood: str = "good"


class Line(jaxem.ELBOModel):
    def init(self, key, data, weights):
        return {"a": jnp.zeros((), data.dtype)}

    def constraints(self):
        return {"a": constraints.Real()}

    def elbo_data(self, params, data, weights, key=None):
        return jnp.sum(weights * -((data[:, 0] - params["a"]) ** 2))


class Field(jaxem.MeanField):
    def factors(self):
        return {"mu": jaxem.Factor(NORMAL)}

    def expected_log_lik(self, means, x):
        return means["mu"].x * x[:, 0]

    def expected_log_prior(self, means):
        return NORMAL.expected_log_prob(NORMAL.natural(0.0, 1.0), means["mu"])


class Drawn(jaxem.ContinuousLatent):
    def init(self, key, data, weights):
        return {"a": jnp.zeros((), data.dtype)}

    def log_joint(self, params, data, z):
        return -(z[:, 0] ** 2) - params["a"] ** 2

    def proposal(self, params, data):
        zero = jnp.zeros((data.shape[0], 1), data.dtype)
        return jaxem.DiagonalNormal(zero, zero)

    def statistics(self, params, data, z, resp):
        return resp.sum()

    def m_step(self, params, stats):
        return params


class Listed(jaxem.Enumerated):
    num_states = 2

    def init(self, key, data, weights):
        return {"a": jnp.zeros(2, data.dtype)}

    def constraints(self):
        return {"a": constraints.Real()}

    def log_joint_one(self, params, x, z):
        return -((x[0] - params["a"][z]) ** 2)


def nothing(*args, **kwargs):
    """A method without a return."""


def own(base=Undecorated, **members):
    """An instance of a decorated subclass with other members."""
    return jaxem.dataclass(type("Own", (base,), members))()


def factors(found):
    return own(Field, factors=lambda self: found)


def fit(model=None, data=X, **options):
    return lambda s: jaxem.fit(jaxem.GMM(2) if model is None else model, data, **{"key": KEY, **options})


def by(algorithm, model=None, data=X, **options):
    return fit(model, data, algorithm=algorithm, **options)


def rule(rule):
    return by(jaxem.EM(rule))


def stop(stop):
    return fit(stop=stop)


def mixture(family, data=COUNTS):
    return fit(jaxem.Mixture(family, 2), data)


def vae(**settings):
    return fit(jaxem.VAE(**{**VAE, **settings}), BITS)


def evidence(**settings):
    return fit(jaxem.BayesianGMM(2, **settings))


T, V = TypeError, ValueError
RULE = "rule: expected a rule, as jaxem.Hard"
FAMILY = r"family: expected one of jaxem.families, as jaxem.families.Gaussian\(\); found "
DECORATE = "decorate it with @jaxem.dataclass"
RETURN = "found None; does it end with a return"
GRADIENT = "optimizer: expected an optax GradientTransformation; found "
A_KEY = r"key: expected a JAX random key, as jax.random.key\(0\); found "
STATE = "state: expected an OnlineState, as begin and update return; found a MixtureParams"
UNKNOWN = r"num_restart: expected an argument of fit \(model, .*\); found an unknown name; did you mean num_restarts"

CASES = {
    # rules
    "EM('hard')": (rule("hard"), T, RULE + ".*found 'hard'; did you mean Hard"),
    "EM(Hard)": (rule(jaxem.Hard), T, RULE + ".*found the class Hard; call it first: Hard"),
    "EM(own rule)": (rule(OwnRule()), T, "rule: .*OwnRule.*" + DECORATE),
    "Tempered('hot')": (rule(jaxem.Tempered("hot")), T, "temperature: expected a number, an array over.*found 'hot'"),
    "Tempered(-1)": (rule(jaxem.Tempered(-1.0)), V, "temperature: expected finite numbers >= 0; found -1.0"),
    "Tempered(nan)": (rule(jaxem.Tempered(np.array([2, np.nan]))), V, "temperature: expected finite.*found nan"),
    "Tempered(inf)": (rule(jaxem.Tempered(np.inf)), V, "temperature: expected finite numbers >= 0; found inf"),
    "Tempered(uncalled)": (
        rule(jaxem.Tempered(optax.linear_schedule)),
        T,
        "temperature: expected a callable of the step.*linear_schedule, which fails: .*end_value",
    ),
    "Tempered(key=7)": (rule(jaxem.Tempered(2.0, 7)), T, A_KEY + "7"),
    "Tempered(noise=-1)": (rule(jaxem.Tempered(2.0, KEY, -1.0)), V, "noise: expected a finite number >= 0; found -1"),
    "ReverseKL('a')": (rule(jaxem.ReverseKL("a")), T, "lam: expected a number from 0 to 1; found 'a'"),
    "ReverseKL(1.5)": (rule(jaxem.ReverseKL(1.5)), V, "lam: expected a number from 0 to 1; found 1.5"),
    "ReverseKL(nan)": (rule(jaxem.ReverseKL(np.nan)), V, "lam: expected a number from 0 to 1; found nan"),
    "Sampled(3)": (rule(jaxem.Sampled(3)), T, A_KEY + "3"),
    "MonteCarlo for states": (rule(jaxem.MonteCarlo(KEY)), T, "rule: MonteCarlo draws.*use jaxem.Exact"),
    "Exact for a drawn latent": (by(jaxem.EM(jaxem.Exact()), own(Drawn)), T, "rule: Own needs a jaxem.MonteCarlo"),
    "no rule for a drawn latent": (fit(own(Drawn)), T, r"expected a rule with a key, as jaxem.EM\(jaxem.MonteCarlo"),
    # stop rules
    "stop=1e-4": (stop(1e-4), T, r"stop: expected a stop rule.*found 0.0001; write jaxem.Stop\(atol=0.0001\)"),
    "stop=Stop": (stop(jaxem.Stop), T, "stop: expected a stop rule.*the class Stop; call it first: Stop"),
    "stop=lambda": (stop(lambda step: True), T, "stop: expected a stop rule, as .*found the function <lambda>"),
    "own stop rule": (stop(OwnStop()), T, "stop: .*OwnStop.*" + DECORATE),
    "Stop(atol='a')": (stop(jaxem.Stop(atol="a")), T, "atol: expected a number >= 0.*found 'a'"),
    "Stop(atol=-1)": (
        stop(jaxem.Stop(atol=-1.0)),
        V,
        "atol: expected a number >= 0, or -numpy.inf for never; found -1",
    ),
    "Stop(atol=nan)": (stop(jaxem.Stop(atol=np.nan)), V, "atol: expected a number >= 0.*found nan"),
    "Stop(rtol=-1)": (stop(jaxem.Stop(rtol=-1.0)), V, "rtol: expected a finite number >= 0; found -1"),
    "StopAitken(None)": (stop(jaxem.StopAitken(None)), T, "atol: expected a number >= 0.*found None"),
    "StopParams(norm)": (stop(jaxem.StopParams(norm="maxi")), V, "norm: expected one of max, 2.*did you mean 'max'"),
    "StopGradient(-1)": (stop(jaxem.StopGradient(-1.0)), V, "atol: expected a number >= 0.*found -1"),
    "StopAny of 3": (stop(jaxem.StopAny((jaxem.Stop(), 3))), T, r"rules\[1\]: expected a stop rule.*found 3"),
    "StopAny(rule)": (stop(jaxem.StopAny(jaxem.Stop())), T, "rules: expected a tuple of stop rules.*found Stop"),
    "StopAll(())": (stop(jaxem.StopAll(())), V, "rules: expected at least one stop rule; found none"),
    "StopAll(class)": (stop(jaxem.StopAll((jaxem.Stop,))), T, r"rules\[0\]: .*call it first: Stop"),
    "StopAll(Stop(-1))": (stop(jaxem.StopAll((jaxem.Stop(-1.0),))), V, "atol: expected a number >= 0"),
    "StopQ of a VAE": (
        by(jaxem.GradientAscent(), jaxem.VAE(**VAE), BITS, stop=jaxem.StopQ()),
        T,
        r"stop: StopQ needs a model with a log_joint.*found VAE.*use jaxem.Stop\(\)",
    ),
    # screening
    "screen=4": (fit(screen=4), T, r"screen: expected jaxem.Screen\(.*found 4"),
    "screen=Screen": (fit(screen=jaxem.Screen), T, "screen: .*the class Screen; call it first"),
    "Screen(2.5)": (fit(screen=jaxem.Screen(2.5)), T, "screen.num_steps: expected an integer >= 0; found 2.5"),
    # algorithms
    "algorithm=EM": (
        by(jaxem.EM),
        T,
        r"algorithm: expected an algorithm, as jaxem.EM\(\).*the class EM; call it first",
    ),
    "algorithm='em'": (by("em"), T, "algorithm: expected an algorithm.*found 'em'; did you mean EM"),
    "algorithm=Hard()": (by(jaxem.Hard()), T, r"algorithm: .*found a rule; it goes into one, as jaxem.EM\(Hard\(\)\)"),
    "algorithm=optax": (by(optax.adam(0.1)), T, r"algorithm: expected.*jaxem.GradientAscent\(optimizer\)"),
    "EM of a VAE": (by(jaxem.EM(), jaxem.VAE(**VAE), BITS), T, "algorithm: EM needs a model with an e_step; found VAE"),
    "CoordinateAscent": (by(jaxem.CoordinateAscent()), T, "algorithm: CoordinateAscent does not suit GMM"),
    "damping": (by(jaxem.CoordinateAscent(0.0), own(Field)), V, r"damping: expected a number in \(0, 1\]; found 0"),
    "EM of a field": (by(jaxem.EM(), own(Field)), T, r"algorithm: EM does not suit Own.*use CoordinateAscent\(\)"),
    "GeneralizedEM(lambda)": (by(jaxem.GeneralizedEM(lambda g: g)), T, GRADIENT + "the function <lambda>; give one"),
    "GeneralizedEM(adam)": (by(jaxem.GeneralizedEM(optax.adam)), T, GRADIENT + "the function adam; call it first"),
    "GeneralizedEM('5')": (
        by(jaxem.GeneralizedEM(num_steps="5")),
        T,
        "num_steps: expected an integer >= 1; found '5'; write num_steps=5",
    ),
    "GradientAscent(1e-3)": (by(jaxem.GradientAscent(1e-3)), T, GRADIENT + "0.001"),
    "learning_rate='a'": (
        by(jaxem.GradientAscent(learning_rate="a")),
        T,
        "learning_rate: expected a number, an array over updates or a callable of the update; found 'a'",
    ),
    "learning_rate=-1": (by(jaxem.GradientAscent(learning_rate=-1.0)), V, "learning_rate: expected finite.*found -1"),
    "learning_rate uncalled": (
        by(jaxem.GradientAscent(learning_rate=optax.exponential_decay)),
        T,
        "learning_rate: expected a callable of the step.*exponential_decay, which fails",
    ),
    "batch_size='4'": (by(jaxem.GradientAscent(batch_size="4")), T, "batch_size: .*found '4'; write batch_size=4"),
    "batch_size=-4": (by(jaxem.GradientAscent(batch_size=-4)), V, "batch_size: expected an integer >= 1; found -4"),
    "patience='3'": (by(jaxem.GradientAscent(held_out=X, patience="3")), T, "patience: expected a number >= 1 or None"),
    "weights of nothing": (
        by(jaxem.GradientAscent(held_out_weights=np.ones(3))),
        V,
        "held_out_weights: expected held_out data as well",
    ),
    "GradientAscent(key=3)": (by(jaxem.GradientAscent(key=3)), T, A_KEY + "3"),
    "OnlineEM('10')": (by(jaxem.OnlineEM("10", key=KEY)), T, "batch_size: .*found '10'; write batch_size=10"),
    "kappa='a'": (by(jaxem.OnlineEM(10, kappa="a", key=KEY)), T, r"kappa: expected a number in \[0, 1\]; found 'a'"),
    "kappa=-0.1": (by(jaxem.OnlineEM(10, kappa=-0.1, key=KEY)), V, r"kappa: expected a number in \[0, 1\]; found -0.1"),
    "rate='fast'": (by(jaxem.OnlineEM(10, "fast", key=KEY)), T, "rate: expected a number, an array.*found 'fast'"),
    "rate=lambda: None": (by(jaxem.OnlineEM(10, nothing, key=KEY)), T, "rate: expected a callable.*which fails"),
    "OnlineEM(rule)": (by(jaxem.OnlineEM(10, rule="hard", key=KEY)), T, RULE),
    "average='yes'": (by(jaxem.OnlineEM(10, average="yes", key=KEY)), T, "average: expected True or False"),
    "begin(num_rows='a')": (
        lambda s: jaxem.OnlineEM(10).begin(s.fit.model, s.fit.params, X, num_rows="a"),
        T,
        "num_rows: expected a finite number > 0; found 'a'",
    ),
    "begin(params, model)": (
        lambda s: jaxem.OnlineEM(10).begin(s.fit.params, s.fit.model, X, num_rows=40),
        T,
        "OnlineEM needs a model with an e_step; found a MixtureParams",
    ),
    "begin(fit)": (
        lambda s: jaxem.OnlineEM(10).begin(s.fit.model, s.fit, X, num_rows=40),
        T,
        "params: expected MixtureParams, as in fit.params; found a Fit; give its .params",
    ),
    "begin with a schedule": (
        lambda s: jaxem.OnlineEM(9, rule=jaxem.Tempered(lambda t: 2.0)).begin(s.fit.model, s.fit.params, X, num_rows=9),
        T,
        "rule: expected its schedule as an array in a stream.*tabulate it",
    ),
    "update(params)": (lambda s: jaxem.OnlineEM(10).update(s.fit.model, s.fit.params, X), T, STATE),
    "estimate(params)": (lambda s: jaxem.OnlineEM(10).estimate(s.fit.model, s.fit.params), T, STATE),
    "StochasticEM(3)": (by(jaxem.StochasticEM(3)), T, A_KEY + "3"),
    "StochasticEM(burn_in)": (by(jaxem.StochasticEM(KEY, "a")), T, "burn_in: expected an integer >= 0; found 'a'"),
    # families
    "Mixture('gaussian')": (mixture("gaussian"), T, FAMILY + "'gaussian'; did you mean Gaussian"),
    "Mixture(Poisson)": (mixture(families.Poisson), T, FAMILY + "the class Poisson; call it first: Poisson"),
    "Mixture(2, family)": (fit(jaxem.Mixture(2, families.Poisson())), T, FAMILY + "2"),
    "Product of a class": (
        mixture(families.Product({"a": families.Poisson}), {"a": COUNTS}),
        T,
        r"families\['a'\]: expected one of jaxem.families.*the class Poisson; call it first",
    ),
    "Product of a list": (mixture(families.Product([families.Poisson()])), T, "families: expected a dict of at least"),
    "Binomial('5')": (mixture(families.Binomial("5")), T, "num_trials: .*found '5'; write num_trials=5"),
    "Binomial(array)": (
        mixture(families.Binomial(np.arange(1000))),
        T,
        r"num_trials: expected an integer >= 1; found an array of shape \(1000,\) and int64$",
    ),
    "Categorical(3)": (mixture(families.Categorical(3)), T, "num_levels: expected a tuple of integers >= 2.*found 3"),
    "Poisson('a')": (
        mixture(families.Poisson("a")),
        T,
        "pseudo_observations: expected a finite number >= 0; found 'a'",
    ),
    "Poisson(mean='a')": (mixture(families.Poisson(1.0, "a")), T, "pseudo_mean: expected a number or an array"),
    "StudentT(df=-1)": (mixture(families.StudentT(degrees_of_freedom=-1.0)), V, "degrees_of_freedom: .* > 0; found -1"),
    "LinearRegression": (
        mixture(families.LinearRegression("yes"), (X, X[:, 0])),
        T,
        "fit_intercept: expected True or False; found 'yes'",
    ),
    "from_distribution": (lambda s: families.from_distribution("normal"), T, "distribution: expected a distrax"),
    # mixtures and K-means
    "GMM('full')": (fit(jaxem.GMM("full")), T, "num_components: expected an integer >= 1; found 'full'"),
    "GMM(2.0)": (fit(jaxem.GMM(2.0)), T, "num_components: .*found 2.0; write num_components=2"),
    "GMM(2, 'fulll')": (fit(jaxem.GMM(2, "fulll")), V, "covariance: expected one of full, .*did you mean 'full'"),
    "GMM(2, 3)": (fit(jaxem.GMM(2, 3)), T, "covariance: expected one of 'full', 'tied', 'diag', 'spherical'; found 3"),
    "GMM(init_method)": (fit(jaxem.GMM(2, init_method="kmean")), V, "init_method: .*did you mean 'kmeans'"),
    "GMM(init_size)": (fit(jaxem.GMM(2, init_size="a")), T, "init_size: expected an integer >= 1; found 'a'"),
    "GMM(nu=nan)": (fit(jaxem.GMM(2, pseudo_observations=np.nan)), V, "pseudo_observations: expected a finite number"),
    "GMM(num_active)": (fit(jaxem.GMM(2, num_active="a")), T, "num_active: expected an integer from 1 to 2; found 'a'"),
    "GMM(pseudo_mean=[...])": (
        fit(jaxem.GMM(2, mean_pseudo_observations=1.0, pseudo_mean=[0.0, 0.0])),
        T,
        r"pseudo_mean: expected an array; found a list; write jnp.array",
    ),
    "KMeans('3')": (fit(jaxem.KMeans("3")), T, "num_clusters: .*found '3'; write num_clusters=3"),
    "KMeans(init_method)": (fit(jaxem.KMeans(2, init_method="kmeans+")), V, "init_method: .*did you mean 'kmeans"),
    "make_params('a')": (
        lambda s: jaxem.GMM(2).make_params("a", mean=X[:2], covariance=np.ones((2, 2, 2))),
        T,
        r"mixing: expected an array \(2,\) of proportions; found 'a'",
    ),
    # Bayesian models
    "BayesianGMM(mixing)": (
        evidence(mixing="dirichle"),
        V,
        "mixing: expected one of dirichlet.*did you mean 'dirichlet'",
    ),
    "BayesianGMM('a')": (evidence(concentration="a"), T, "concentration: expected a number or an array; found 'a'"),
    "BayesianGMM(-1)": (evidence(concentration=-1.0), V, "concentration: expected finite numbers > 0; found -1"),
    "BayesianGMM(dof='a')": (evidence(dof="a"), T, "prior.dof: expected a finite number >= 0; found 'a'"),
    "prior='gauss'": (
        fit(jaxem.BayesianMixture(families.Gaussian(), 2, "gauss")),
        T,
        r"prior: expected one of jaxem.priors, as jaxem.priors.GaussianPrior\(\)",
    ),
    "prior=GaussianPrior": (
        fit(jaxem.BayesianMixture(families.Gaussian(), 2, priors.GaussianPrior)),
        T,
        "prior: .*the class GaussianPrior; call it first: GaussianPrior",
    ),
    "EmpiricalBayes(3)": (fit(jaxem.EmpiricalBayes(3, ("a",))), T, "model: expected a jaxem model.*found 3"),
    "EmpiricalBayes('name')": (
        fit(jaxem.EmpiricalBayes(jaxem.BayesianGMM(2), "concentration")),
        T,
        r"names: expected a tuple.*found 'concentration'; write \('concentration',\)",
    ),
    "EmpiricalBayes(misspelt)": (
        fit(jaxem.EmpiricalBayes(jaxem.BayesianGMM(2), ("concentraton",))),
        V,
        "names: expected some of .*did you mean 'concentration'",
    ),
    "factors list": (fit(factors([jaxem.Factor(NORMAL)])), T, r"factors: expected factors\(\) to return a dict"),
    "factor of a class": (
        fit(factors({"mu": jaxem.Factor(expfam.Normal)})),
        T,
        r"factors\(\)\['mu'\].family: expected one of jaxem.expfam.*the class Normal; call it first",
    ),
    "no factor": (fit(factors({"mu": NORMAL})), T, r"factors\(\)\['mu'\]: expected a jaxem.Factor\(family"),
    "plate=3": (fit(factors({"mu": jaxem.Factor(NORMAL, 3)})), T, r"plate: expected a tuple.*found 3; write \(3,\)"),
    # VAEs
    "VAE('a')": (lambda s: jaxem.VAE("a", mlp(2), latent_dim=1), T, "encoder: expected a network: .*found 'a'"),
    "VAE(likelihood='b')": (
        lambda s: jaxem.VAE(**VAE, likelihood="bernoulli"),
        T,
        "likelihood: expected one of jaxem.likelihoods.*did you mean Bernoulli",
    ),
    "VAE(likelihood=class)": (
        lambda s: jaxem.VAE(**VAE, likelihood=likelihoods.Bernoulli),
        T,
        "likelihood: .*the class Bernoulli; call it first",
    ),
    "VAE(prior='gmm')": (
        lambda s: jaxem.VAE(**VAE, prior="gmm"),
        T,
        r"prior: expected None for N\(0, I\), or a Mixture",
    ),
    "VAE(estimator=class)": (
        lambda s: jaxem.VAE(**VAE, estimator=jaxem.IWAE),
        T,
        "estimator: expected an estimator.*the class IWAE; call it first",
    ),
    "IWAE('5')": (vae(estimator=jaxem.IWAE("5")), T, "num_samples: .*found '5'; write num_samples=5"),
    "beta=-1": (vae(beta=-1.0), V, "beta: expected a number >= 0, or an array of them over passes; found -1"),
    "beta='a'": (vae(beta="a"), T, "beta: expected a number >= 0, or an array of them over passes; found 'a'"),
    "latent_dim='2'": (vae(latent_dim="2"), T, "latent_dim: .*found '2'; write latent_dim=2"),
    "decay=2": (vae(estimator=jaxem.ScoreFunction(1, 0.0, 2.0)), V, "decay: expected a number from 0 to 1; found 2"),
    "Binomial likelihood": (vae(likelihood=likelihoods.Binomial("a")), T, "num_trials: expected an integer >= 1"),
    "floor='a'": (vae(likelihood=likelihoods.Gaussian("shared", "a")), T, "floor: expected a finite number >= 0"),
    "Gaussian('share')": (lambda s: likelihoods.Gaussian("share"), V, "scale: expected .*did you mean 'shared'"),
    "PerDatum('a')": (
        fit(jaxem.VAE(**{**VAE, "encoder": PerDatum("a", 4)}), (BITS, np.arange(40.0))),
        T,
        "num_rows: expected an integer >= 1; found 'a'",
    ),
    "mlp('a')": (lambda s: mlp("a"), T, r"sizes\[0\]: expected an integer >= 1; found 'a'"),
    "mlp(activation)": (lambda s: mlp(3, activation="relu"), T, "activation: expected a function, as jax.nn.relu"),
    # wrappers
    "chunked('x', 3)": (lambda s: jaxem.chunked("x", 3), T, "model: expected a model with an e_step.*found 'x'"),
    "chunked(GMM, 3)": (lambda s: jaxem.chunked(jaxem.GMM, 3), T, "model: expected .*found the class GMM"),
    "chunked(model, 0)": (lambda s: jaxem.chunked(jaxem.GMM(2), 0), V, "size: expected an integer >= 1; found 0"),
    "partly_labelled(3)": (lambda s: jaxem.partly_labelled(3), T, "model: expected a model with a discrete latent"),
    # models as such
    "model=GMM": (fit(jaxem.GMM), T, r"model: expected a jaxem model.*the class GMM; call it first, as in GMM\(3\)"),
    "model=KMeans": (fit(jaxem.KMeans), T, "model: expected a jaxem model.*the class KMeans; call it first"),
    "fit(fit, x)": (lambda s: jaxem.fit(s.fit, X, key=KEY), T, "model: expected a jaxem model.*a Fit; give its .model"),
    "fit(x, model)": (fit(X, jaxem.GMM(2)), T, "model: expected .*found an array.*the model comes first, then data"),
    "undecorated": (fit(Undecorated()), T, "model: .*Undecorated.*" + DECORATE),
    "undecorated subclass": (fit(Inheriting(families.Gaussian(), 2)), T, "model: .*Inheriting.*" + DECORATE),
    "undecorated, chunked": (lambda s: jaxem.chunked(Undecorated(), 9), T, "model: .*Undecorated.*" + DECORATE),
    "a string that is a leaf": (
        fit(Moody()),
        T,
        r"model.mood: expected a number or an array; found 'good'.*jaxem.static",
    ),
    "init None": (fit(own(init=nothing)), T, "Own.init: .*" + RETURN),
    "log_joint None": (fit(own(log_joint=nothing)), T, "Own.log_joint: .*" + RETURN),
    "statistics None": (fit(own(statistics=nothing)), T, "Own.statistics: .*" + RETURN),
    "m_step None": (fit(own(m_step=nothing)), T, "Own.m_step: .*" + RETURN),
    "m_step None, chunked": (fit(jaxem.chunked(own(m_step=nothing), 10)), T, "Own.m_step: .*" + RETURN),
    "m_step of other keys": (
        fit(own(m_step=lambda self, params, stats: {"r": params["rate"]})),
        V,
        "Own.m_step: expected the keys 'rate', as init gives; found 'r'",
    ),
    "elbo_data None": (fit(own(Line, elbo_data=nothing)), T, "Own.elbo_data: .*" + RETURN),
    "log_joint_one None": (fit(own(Listed, log_joint_one=nothing)), T, "Own.log_joint_one: .*" + RETURN),
    "num_states None": (fit(own(Listed, num_states=None)), T, "Own.num_states: expected an integer >= 1; found None"),
    "drawn log_joint None": (
        by(jaxem.EM(jaxem.MonteCarlo(KEY, 5)), own(Drawn, log_joint=nothing)),
        T,
        "Own.log_joint: .*" + RETURN,
    ),
    "expected_log_lik None": (fit(own(Field, expected_log_lik=nothing)), V, "expected_log_lik: expected shape.*None"),
    "constraints of classes": (
        fit(own(Line, constraints=lambda self: {"a": constraints.Real})),
        T,
        r"constraints\(\)\['a'\]: expected an object of jaxem.constraints.*the class Real; call it first",
    ),
    "no constraints": (
        fit(own(Line, constraints=jaxem.ELBOModel.constraints)),
        T,
        r"model: Own declares no constraints\(\).*write it",
    ),
    # keys
    "key=0": (fit(key=0), T, A_KEY + "0"),
    "key=None": (fit(key=None), T, A_KEY + "None"),
    "no key": (
        lambda s: jaxem.fit(jaxem.GMM(2), X),
        T,
        r"key: expected a JAX random key, by name; found none; give key=jax.random.key\(0\)",
    ),
    # what is asked of a fit
    "bic(x, fit)": (lambda s: jaxem.bic(X, s.fit), T, "fit: expected a Fit, .*found an array.*the fit comes first"),
    "bic(params, x)": (lambda s: jaxem.bic(s.fit.params, X), T, "fit: expected a Fit, .*give the fit itself"),
    "aic(model, x)": (
        lambda s: jaxem.aic(s.fit.model, X),
        T,
        "fit: expected a Fit, as jaxem.fit returns; found Mixture",
    ),
    "importance(x, fit)": (
        lambda s: jaxem.importance(X, s.fit, key=KEY),
        T,
        "fit: expected a Fit.*the fit comes first",
    ),
    "importance(key=3)": (lambda s: jaxem.importance(s.bayes, X, key=3), T, A_KEY + "3"),
    "importance('a')": (
        lambda s: jaxem.importance(s.bayes, X, key=KEY, num_draws="a"),
        T,
        "num_draws: expected an integer >= 25; found 'a'",
    ),
    "fit.predict(params, x)": (lambda s: s.fit.predict(s.fit.params, X), T, r"predict: too many.*fit.predict\(data\)"),
    "decompose(old=x)": (lambda s: s.fit.model.decompose(s.fit.params, X, X), T, "old: expected MixtureParams"),
    "free_energy('x')": (lambda s: jaxem.free_energy("x"), T, "log_joint: expected an array of numbers; found 'x'"),
    "free_energy(T=-1)": (
        lambda s: jaxem.free_energy(np.zeros((2, 2)), -1.0),
        V,
        "temperature: expected a number >= 0; found -1.0",
    ),
    "check_model(3)": (lambda s: jaxem.testing.check_model(3, X, key=KEY), T, "model: expected a jaxem model.*found 3"),
    "check_model(key=0)": (lambda s: jaxem.testing.check_model(jaxem.GMM(2), X, key=0), T, A_KEY + "0"),
    "gap of a mixture": (lambda s: jaxem.amortisation_gap(s.fit, X, key=KEY), T, "fit: expected a fit of a jaxem.VAE"),
    "pareto_k('a')": (lambda s: jaxem.pareto_k("a"), T, "log_ratios: expected a number or an array; found 'a'"),
    # params
    "params of 'diag'": (
        lambda s: fit(params=s.diag)(s),
        V,
        r"params.components.covariance_type: expected 'full', as Mixture\(Gaussian\('full'\), 2\) has; found 'diag'",
    ),
    "params of a StudentT": (
        lambda s: fit(params=s.student)(s),
        V,
        "params.components: expected a GaussianParams, as Mixture.* has; found a StudentTParams",
    ),
    "params of KMeans": (lambda s: fit(jaxem.KMeans(2), params=s.diag)(s), T, "params: expected KMeansParams"),
    "params=fit": (lambda s: fit(params=s.fit)(s), T, "params: expected MixtureParams.*found a Fit; give its .params"),
    "params=x": (fit(params=X), T, "params: expected MixtureParams, as in fit.params; found a ndarray"),
    "params of other K": (
        lambda s: fit(jaxem.GMM(3), params=s.fit.params)(s),
        V,
        r"params.mixing: expected shape \(3,\)",
    ),
    "params without R": (
        lambda s: fit(params=s.fit.params, num_restarts=4)(s),
        V,
        r"params.mixing: expected shape \(4, 2\), one start for each of num_restarts = 4; found \(2,\)",
    ),
    "params of other keys": (
        fit(own(), params={"r": 1.0}),
        V,
        r"params: expected the keys 'rate', as Own\(\) has; found",
    ),
    # other libraries' names
    "covariance_type": (
        lambda s: jaxem.GMM(2, covariance_type="diag"),
        T,
        "scikit-learn's name; here it is covariance",
    ),
    "n_components": (lambda s: jaxem.GMM(n_components=2), T, "scikit-learn's name; here it is num_components$"),
    "n_clusters": (lambda s: jaxem.KMeans(n_clusters=2), T, "scikit-learn's name; here it is num_clusters$"),
    "reg_covar": (lambda s: jaxem.GMM(2, reg_covar=1e-6), T, "here it is pseudo_observations"),
    "n_init": (fit(n_init=4), T, "n_init: scikit-learn's name; here it is num_restarts$"),
    "n_init of a model": (lambda s: jaxem.KMeans(2, n_init=4), T, "here it is num_restarts, of jaxem.fit"),
    "verbose": (fit(verbose=1), T, "verbose: scikit-learn's name; here it is progress=True$"),
    "random_state": (fit(random_state=0), T, r"here it is key=jax.random.key\(0\)$"),
    "max_iter": (fit(max_iter=10), T, "max_iter: scikit-learn's name; here it is max_steps$"),
    "Stop(tol)": (lambda s: jaxem.Stop(tol=1e-3), T, "tol: scikit-learn's name; here it is atol"),
    "Gaussian(covariance_type)": (lambda s: families.Gaussian(covariance_type="diag"), T, "here it is covariance"),
    "learning_rat": (lambda s: jaxem.GradientAscent(learning_rat=0.1), T, "did you mean learning_rate"),
    "make_params(means)": (
        lambda s: jaxem.GMM(2).make_params([0.5, 0.5], means=X[:2], covariance=np.ones((2, 2, 2))),
        T,
        r"means: expected an argument of Gaussian.make_params \(mean, covariance\).*did you mean mean",
    ),
    "tol": (fit(tol=1e-3), T, r"tol: scikit-learn's name; here it is stop=jaxem.Stop\(atol="),
    "sample_weight": (fit(sample_weight=np.ones(40)), T, "here it is weights$"),
    "weight_concentration_prior": (
        lambda s: jaxem.BayesianGMM(2, weight_concentration_prior=1.0),
        T,
        "here it is concentration",
    ),
    "num_restart": (fit(num_restart=4), T, UNKNOWN),
}


@pytest.fixture(scope="module")
def some():
    """A fit, and params of other models."""
    eye = np.stack([np.eye(2)] * 2)
    student = jaxem.Mixture(families.StudentT(), 2)
    return types.SimpleNamespace(
        fit=jaxem.fit(jaxem.GMM(2), X, key=KEY, max_steps=1),
        bayes=jaxem.fit(jaxem.BayesianGMM(1), X, key=KEY, max_steps=1),
        diag=jaxem.GMM(2, "diag").make_params([0.5, 0.5], mean=X[:2], covariance=np.ones((2, 2))),
        student=student.make_params([0.5, 0.5], mean=X[:2], scale_matrix=eye, degrees_of_freedom=4.0),
    )


@pytest.fixture(scope="module")
def compiled():
    """Names of events of compilation, appended as they happen."""
    seen = []
    listen = lambda event, seconds, **more: seen.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_call(name, some, compiled):
    call, error, message = CASES[name]
    compiled.clear()
    with pytest.raises(error) as found:
        call(some)
    assert compiled == []
    text = str(found.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert len(text) < 400


def test_events_of_compilation_are_seen(compiled):
    """What the test above rests on."""
    compiled.clear()
    jax.jit(lambda x: x * 3 + 1)(np.arange(5.0))
    assert compiled


def test_signatures_stay_clean():
    assert list(inspect.signature(jaxem.fit).parameters)[:3] == ["model", "data", "key"]
    assert next(iter(inspect.signature(jaxem.KMeans).parameters)) == "num_clusters"
    assert "args" not in inspect.signature(jaxem.Mixture).parameters
    assert jaxem.GMM.__doc__.startswith("Gaussian mixture")
    assert jaxem.KMeans(num_clusters=3).num_clusters == 3


def test_settings_at_their_bounds_are_welcome():
    fit = lambda **options: jaxem.fit(jaxem.KMeans(2), X, key=KEY, max_steps=1, **options)
    for stop in (jaxem.Stop(-np.inf), jaxem.Stop(np.float32(0)), jaxem.Stop(jnp.zeros(())), jaxem.Stop(1)):
        assert int(fit(stop=stop).num_steps) == 1
    soft = jaxem.EM(jaxem.Tempered([2, 1]))
    assert int(fit(algorithm=soft).num_steps) == 1
    heated = lambda t: fit(algorithm=jaxem.EM(jaxem.Tempered(t))).elbo.data
    assert jax.jit(jax.vmap(heated))(np.ones(2)).shape == (2,)
