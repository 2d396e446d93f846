"""Parts of a computation that are programs of their own on the host, shared by all that come with such shapes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.core.mesh import over
from jaxem.core.numerics import is_concrete
from jaxem.core.tree import PyTree


def fence(tree: PyTree) -> PyTree:
    """Keeps the stages of a fit apart inside a caller's program, where they would be fused to other roundings."""
    return tree if is_concrete(tree) else jax.lax.optimization_barrier(tree)


def stage(*static: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function a program of its own when called from the host, and kept apart within a caller's.

    Both then round alike. `static` are the places of arguments that are part of the program; another one holds a float.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = jax.jit(function, static_argnums=static)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            with over(None):  # the mesh of the caller is not in the cache's key; a stage that needs one is given it
                return run(*args)

        def run(*args: Any) -> Any:
            if is_concrete(args):
                return compiled(*args)
            free = {place: arg for place, arg in enumerate(args) if place not in static}
            return _apart(lambda free: function(*(free.get(place, arg) for place, arg in enumerate(args))), free)

        call.compiled = compiled  # type: ignore[attr-defined]
        return call

    return wrap


def _apart(function: Callable[[PyTree], PyTree], args: PyTree) -> PyTree:
    """The function of arguments behind a fence, in a branch that is always taken.

    Of the body of a loop, as that over restarts, the compiler takes out what does not change, be it a product of
    constants, and a product and a sum in one kernel round otherwise than in two. Out of a branch it takes nothing.
    """
    args = fence(args)
    none = lambda args: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, args))
    number = next(leaf for leaf in jax.tree.leaves(args) if jnp.issubdtype(leaf.dtype, jnp.floating)).ravel()[0]
    return fence(jax.lax.cond(number > jnp.inf, none, function, args))


def in_stages(init: Callable[..., Any]) -> Callable[..., Any]:
    """Marks an `init` that is made of stages: called from the host as it is, where others are compiled as a whole.

    That of a wrapper is, where that of the model inside is.
    """
    init.in_stages = True  # type: ignore[attr-defined]
    return init
