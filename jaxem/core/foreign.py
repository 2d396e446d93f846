"""Keywords that a function does not know: names of scikit-learn and others are translated, misspelt ones corrected."""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from jaxem.core.arguments import nearest

P = ParamSpec("P")
T = TypeVar("T")

FIT, BAYES = "jaxem.fit", "jaxem.BayesianGMM"
# name there -> (what to write here, where it is an argument)
NAMES = {
    "X": ("data", FIT),
    "sample_weight": ("weights", FIT),
    "n_components": ("num_components", "the model"),
    "n_clusters": ("num_clusters", "jaxem.KMeans"),
    "n_init": ("num_restarts", FIT),
    "max_iter": ("max_steps", FIT),
    "n_iter": ("max_steps", FIT),
    "num_iterations": ("max_steps", FIT),
    "covariance_type": ("covariance", "the model, as jaxem.GMM(3, covariance='diag')"),
    "reg_covar": ("pseudo_observations", "jaxem.GMM"),
    "init_params": ("init_method", "the model"),
    "init": ("init_method", "the model"),
    "weight_concentration_prior_type": ("mixing", BAYES),
    "weight_concentration_prior": ("concentration", BAYES),
    "mean_precision_prior": ("strength", BAYES),
    "mean_prior": ("mean", BAYES),
    "degrees_of_freedom_prior": ("dof", BAYES),
    "covariance_prior": ("inverse_scale", BAYES),
    "verbose": ("progress=True", FIT),
    "random_state": ("key=jax.random.key(0)", FIT),
    "seed": ("key=jax.random.key(0)", FIT),
    "rng": ("key=jax.random.key(0)", FIT),
    "tol": ("stop=jaxem.Stop(atol=...)", FIT),
    "warm_start": ("params=fit.params", FIT),
    "weights_init": ("params=model.make_params(...)", FIT),
    "means_init": ("params=model.make_params(...)", FIT),
    "precisions_init": ("params=model.make_params(...)", FIT),
    "batch_size": ("algorithm=jaxem.OnlineEM(batch_size)", FIT),
}
# What scikit-learn's fitted estimators are asked for, and what it is on a `Fit`.
QUESTIONS = {
    "bic": "jaxem.bic(fit, data)",
    "aic": "jaxem.aic(fit, data)",
    "score": "fit.log_prob(data).mean()",
    "score_samples": "fit.log_prob(data)",
    "predict_proba": "fit.posterior(data)",
    "fit_predict": "fit.predict(data)",
    "labels_": "fit.predict(data)",
    "inertia_": "fit.inertia(data)",
    "cluster_centers_": "fit.params.centroids",
    "weights_": "fit.params.mixing",
    "means_": "fit.params.components.mean",
    "covariances_": "fit.params.components.covariance",
    "lower_bound_": "fit.elbo.total",
    "converged_": "fit.status == jaxem.Status.CONVERGED",
    "n_iter_": "fit.num_steps",
    "feature_names_in_": "fit.feature_names",
}
OWN = {"seed", "rng", "num_iterations", "n_iter"}  # no names of scikit-learn's


def translation(name: str, known: tuple[str, ...]) -> str | None:
    """What a foreign name is here, given the names that the function has itself; None for an unknown one."""
    theirs = "another library's name" if name in OWN else "scikit-learn's name"
    if name == "n_components" and "num_clusters" in known:
        return f"{theirs}; here it is num_clusters"
    if name == "tol" and "atol" in known:
        return f"{theirs}; here it is atol"
    if name not in NAMES:
        return None
    ours, home = NAMES[name]
    return f"{theirs}; here it is {ours}" + ("" if ours.split("=")[0] in known else f", of {home}")


def named(f: Callable[P, T]) -> Callable[P, T]:
    """The function, which answers an unknown keyword with the right one; its signature stays what it is.

    What a function takes by any name (`**kwargs`) is not to be wrapped.
    """
    known = tuple(signature(f).parameters)
    names = frozenset(known)
    key = signature(f).parameters.get("key")
    needs_key = key is not None and key.default is key.empty

    @wraps(f)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not names.issuperset(kwargs):
            raise TypeError(_unknown(next(name for name in kwargs if name not in names), known, f.__qualname__))
        if needs_key and "key" not in kwargs:
            raise TypeError("key: expected a JAX random key, by name; found none; give key=jax.random.key(0)")
        return f(*args, **kwargs)

    return call


def named_fields(cls: type[T]) -> type[T]:
    """The class, whose constructor answers an unknown keyword with the right one; see `named`."""
    cls.__init__ = named(cls.__init__)  # type: ignore[method-assign]
    return cls


def constructor(init: Callable[..., None]) -> Callable[..., None]:
    """Marks the `__init__` of a dataclass that takes other arguments than the fields of its base, and is `named`.

    `dataclasses.replace` and JAX rebuild an instance from all of its fields by name: those are set as they are.
    """
    asked = named(init)

    @wraps(init)
    def build(self: Any, *args: Any, **values: Any) -> None:
        if args or values.keys() != {field.name for field in fields(self)}:
            return asked(self, *args, **values)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        return None

    return build


def _unknown(name: str, known: tuple[str, ...], owner: str) -> str:
    owner = owner.removesuffix(".__init__")
    text = translation(name, known)
    if text is not None:
        return f"{name}: {text}"
    own = [parameter for parameter in known if parameter != "self"]
    remedy = nearest(name, own).replace("'", "")
    return f"{name}: expected an argument of {owner} ({', '.join(own)}); found an unknown name{remedy}"
