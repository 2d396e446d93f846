"""Draws from the variational posterior of a fit, as ArviZ takes them."""

import inspect
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import as_key, check_integer, shown
from jaxem.core.tree import PyTree
from jaxem.engine.export import check_one, needed, observed_rows
from jaxem.models.mean_field import MeanField
from jaxem.structures.chain import ChainMixing
from jaxem.wrappers import unwrapped

# Values (S, ...) and the names of the axes after the first.
Variable = tuple[np.ndarray, tuple[str, ...]]


def as_arviz(fit: Any, num_draws: int, key: Array) -> Any:
    """See `Fit.to_arviz`."""
    check_one(fit, "to_arviz")
    check_integer("num_draws", num_draws, 1)
    keys = jax.random.split(as_key(key), int(num_draws))
    model, params = fit.model.inside(fit.params)
    labels, model = observed_rows(model), unwrapped(model)
    coords: dict[str, list[Any]] = {}
    if isinstance(model, MeanField):
        variables = _factors(model, params, keys)
    elif hasattr(model, "draw") and hasattr(model, "plug_in"):
        drawn = jax.vmap(lambda one: _readable(model.draw(params, key=one)))(keys)
        variables = _named(drawn, coords, labels)
    else:
        what = "a model with a posterior of its parameters, as BayesianGMM, BayesianHMM or a MeanField"
        raise TypeError(f"to_arviz: expected {what}; found {shown(model)}")
    arviz = needed("arviz", "to_arviz")
    values = {name: np.asarray(value)[None] for name, (value, _) in variables.items()}
    told: dict[str, Any] = {
        "coords": coords,
        "dims": {name: list(axes) for name, (_, axes) in variables.items() if axes},
    }
    told["attrs"] = {"inference_library": "jaxem", "inference_library_version": sys.modules["jaxem"].__version__}
    if "data" in inspect.signature(arviz.from_dict).parameters:  # from 1.0 on, a DataTree
        return arviz.from_dict({"posterior": values}, **told | {"attrs": {"posterior": told["attrs"]}})
    return arviz.from_dict(posterior=values, **told)


def _readable(params: Any) -> dict[str, PyTree]:
    """Params of a mixture or a chain by quantities that a person asks for: covariances, not their factors."""
    mixing, parts = params.mixing, params.components
    chain = isinstance(mixing, ChainMixing)
    found = {"initial": mixing.initial, "transition": mixing.transition} if chain else {"weight": mixing}
    if hasattr(parts, "covariance"):
        return found | {"mean": parts.mean, "covariance": parts.covariance}
    return found | {name: getattr(parts, name) for name in parts.__dataclass_fields__}


def _named(drawn: dict[str, PyTree], coords: dict[str, list[Any]], rows: Any) -> dict[str, Variable]:
    """Drawn quantities with the names of their axes; `coords` is filled with what the axes' entries are called."""
    state = "state" if "initial" in drawn else "component"
    found: dict[str, Variable] = {}
    coords[state] = list(range(drawn["initial" if state == "state" else "weight"].shape[1]))
    for name, value in drawn.items():
        if isinstance(value, tuple):  # probabilities of the levels of each column
            for label, probs in zip(rows.labels(len(value)), value, strict=True):
                coords[f"level of {label}"] = list(range(probs.shape[-1]))
                found[f"{name}[{label}]"] = probs, (state, f"level of {label}")
            continue
        axes: tuple[str, ...] = (state, "next" if name == "transition" else "column", "other column")[: value.ndim - 1]
        for axis, num in zip(axes[1:], value.shape[2:], strict=True):
            coords[axis] = list(range(num)) if axis == "next" else list(rows.labels(num))
        found[name] = value, axes
    return found


def _factors(model: MeanField, params: PyTree, keys: Array) -> dict[str, Variable]:
    """Draws of the global factors, by name."""
    factors = {name: factor.family for name, factor in model.factors().items() if not factor.local}

    def one(key: Array) -> dict[str, Any]:
        each = zip(factors.items(), jax.random.split(key, len(factors)), strict=True)
        return {name: family.draw(k, params[name]) for (name, family), k in each}

    found: dict[str, Variable] = {}
    for name, statistics in jax.vmap(one)(keys).items():
        found |= {told: (np.asarray(value), ()) for told, value in _of_statistics(name, statistics).items()}
    return found


def _of_statistics(name: str, statistics: Any) -> dict[str, Array]:
    """The variables that sufficient statistics of a draw are of."""
    told = statistics._asdict()
    if "x" in told:
        return {name: told["x"]}
    if "one_hot" in told:
        return {name: jnp.argmax(told["one_hot"], -1)}
    if "weighted_mean" in told:  # a mean and its precision together
        precision, weighted = told["precision"], told["weighted_mean"]
        matrix = precision.ndim > weighted.ndim
        mean = jnp.linalg.solve(precision, weighted[..., None])[..., 0] if matrix else weighted / precision
        return {f"{name}_mean": mean, f"{name}_precision": precision}
    if "log" in told:
        return {name: jnp.exp(told["log"])}
    return {f"{name}_{field}": value for field, value in told.items()}
