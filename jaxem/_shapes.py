"""Shapes that the methods of a user's model must agree on, checked by tracing, before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem._tree import PyTree, float_dtype, num_rows
from jaxem.model import DiscreteLatent


def check(model: Any, data: PyTree, weights: Array, key: Array) -> None:
    """Raises where log_joint, statistics or m_step of a model give other shapes than the E-step and the loop need.

    Models of jaxem itself are tested, and skipped: tracing costs a few hundredths of a second. So are models that are
    no `DiscreteLatent`. A wrapper is checked as a user's model where it is one itself.

    Args:
      model: the model, not bound.
      data: observations, cast.
      weights: (N,).
      key: any random key.

    Raises:
      ValueError: naming the method, what was found and what was expected.
    """
    if not isinstance(model, DiscreteLatent) or type(model).__module__.split(".")[0] == "jaxem":
        return
    jax.eval_shape(_trace, model, data, weights, key)


@jax.jit  # for its cache: a second fit does not trace again
def _trace(model: Any, data: PyTree, weights: Array, key: Array) -> None:
    name, num, dtype = type(model).__name__, num_rows(data), float_dtype(data)
    model = model.bind(data, weights)
    params = model.init(key, data, weights)
    prepared = model.prepare(params)
    log_joint = model.log_joint(prepared, data)
    if jnp.ndim(log_joint) != 2 or log_joint.shape[0] != num or log_joint.dtype != dtype:
        raise ValueError(
            f"{name}.log_joint: expected shape ({num}, K), one row for each of data, of {dtype}; "
            f"found {jnp.shape(log_joint)} of {jnp.result_type(log_joint)}"
        )
    penalty = model.elbo_params(prepared)
    if jnp.shape(penalty) != ():
        raise ValueError(f"{name}.elbo_params: expected a scalar; found shape {jnp.shape(penalty)}")
    if model.closed_form:
        _check_step(name, params, model.m_step(prepared, model.statistics(prepared, data, log_joint)))


def _check_step(name: str, params: PyTree, stepped: PyTree) -> None:
    """An M-step gives params of the structure, shapes and dtypes of init's."""
    found: Any = jax.tree.structure(stepped)
    expected: Any = jax.tree.structure(params)
    if found != expected:
        raise ValueError(f"{name}.m_step: expected params of the structure that init gives, {expected}; found {found}")

    def same(path: Any, new: Any, old: Any) -> None:
        (a, b), (s, t) = (jnp.shape(new), jnp.shape(old)), (jnp.result_type(new), jnp.result_type(old))
        if a != b or s != t:
            where = f"params{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name}.m_step: expected {where} of shape {b} and {t}, as init gives; found {a} and {s}")

    jax.tree_util.tree_map_with_path(same, stepped, params)
