"""What the methods of a user's model must return, checked by tracing, before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import shown
from jaxem.core.inputs import as_many
from jaxem.core.tree import PyTree, float_dtype, num_rows
from jaxem.core.treedefs import check_structure
from jaxem.model import DiscreteLatent, EStep, LatentModel
from jaxem.models.continuous import ContinuousLatent, MonteCarlo
from jaxem.models.mean_field import MeanField
from jaxem.models.probe import check_functions
from jaxem.structures.structured import StructuredAt
from jaxem.wrappers import Chunked, unwrapped


def check(model: Any, data: PyTree, key: Array) -> None:
    """Raises where the methods of a model return something else than the E-step and the loop need.

    Models of jaxem itself are tested, and skipped unless their family is the user's: tracing costs a few hundredths of
    a second. `chunked` is looked through.

    Args:
      model: the model, not bound.
      data: observations, cast.
      key: any random key.

    Raises:
      TypeError, ValueError: naming the method, what was found and what was expected.
    """
    while isinstance(model, Chunked):
        model = model.model
    if isinstance(unwrapped(model), MeanField):
        check_functions(unwrapped(model), data)
    if _is_own(model) or ((hasattr(type(model), "family") or "family" in vars(model)) and _is_own(model.family)):
        jax.eval_shape(_trace, model, *as_many(model, data), key)


def _is_own(thing: Any) -> bool:
    """Whether a class is the user's."""
    return type(thing).__module__.split(".")[0] != "jaxem"


@jax.jit  # for its cache: a second fit does not trace again
def _trace(model: Any, data: PyTree, weights: Array, key: Array) -> None:
    name = type(model).__name__
    model = _returned(f"{name}.bind", model.bind(data, weights))
    params = _returned(f"{name}.init", model.init(key, data, weights))
    if not isinstance(model, LatentModel):
        return _check_scalar(f"{name}.elbo_data", model.elbo_data(params, data, weights, key))
    if model.climbed_by == "coordinates":  # its functions have been probed
        return None
    here = model.at(params)
    _check_scalar(f"{name}.elbo_params", here.elbo_params())
    if isinstance(here, StructuredAt):  # the log-joint is its structure's
        stats = here.e_step(data, weights, model.default_rule()).stats
    elif isinstance(model, DiscreteLatent):
        stats = _discrete(name, model, params, data)
    else:
        rule = MonteCarlo(key, 2) if isinstance(model, ContinuousLatent) else None
        found = model.e_step(params, data, weights, rule)
        if not isinstance(found, EStep):
            raise TypeError(f"{name}.e_step: expected a jaxem.EStep(stats, elbo_data); found {shown(found)}")
        _check_scalar(f"{name}.e_step(...).elbo_data", found.elbo_data)
        stats = found.stats
    if model.climbed_by == "m_step":
        _returned(f"{name}.statistics", stats)
        _check_step(name, params, _returned(f"{name}.m_step", here.m_step(stats)))
    return None


def _discrete(name: str, model: DiscreteLatent, params: PyTree, data: PyTree) -> PyTree:
    """Statistics of a discrete model, its log-joint checked."""
    num, dtype = num_rows(data), float_dtype(data)
    log_joint = _returned(f"{name}.log_joint", model.log_joint(params, data))
    if jnp.ndim(log_joint) != 2 or log_joint.shape[0] != num or log_joint.dtype != dtype:
        raise ValueError(
            f"{name}.log_joint: expected shape ({num}, K), one row for each of data, of {dtype}; "
            f"found {jnp.shape(log_joint)} of {jnp.result_type(log_joint)}"
        )
    return model.statistics(params, data, log_joint) if model.climbed_by == "m_step" else ()


def _returned(method: str, found: Any) -> Any:
    """What a method returned; TypeError for None, which it returns without a return statement."""
    if found is None:
        raise TypeError(f"{method}: expected a result; found None; does it end with a return?")
    return found


def _check_scalar(method: str, found: Any) -> None:
    if jnp.shape(_returned(method, found)) != ():
        raise ValueError(f"{method}: expected a scalar; found shape {jnp.shape(found)}")


def _check_step(name: str, params: PyTree, stepped: PyTree) -> None:
    """An M-step gives params of the structure, shapes and dtypes of init's."""
    check_structure(f"{name}.m_step", stepped, params, "init gives")

    def same(path: Any, new: Any, old: Any) -> None:
        (a, b), (s, t) = (jnp.shape(new), jnp.shape(old)), (jnp.result_type(new), jnp.result_type(old))
        if a != b or s != t:
            where = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name}.m_step: expected {where} of shape {b} and {t}, as init gives; found {a} and {s}")

    jax.tree_util.tree_map_with_path(same, stepped, params)
