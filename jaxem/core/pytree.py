"""The dataclass decorator that every model, rule, algorithm and result in jaxem uses."""

import dataclasses
import weakref
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")

# Every class that `dataclass` has made a pytree.
_DECORATED: weakref.WeakSet[type] = weakref.WeakSet()


def static(**kwargs: Any) -> Any:
    """Declares a dataclass field that is part of the program, not of its data.

    A static field (an int, a string) is compared by value when JAX decides whether to compile again; every other
    field is a leaf, and a new value never recompiles.

    Args:
      **kwargs: passed to `dataclasses.field` (`default`, `kw_only`, ...).

    Returns:
      A dataclass field marked static.

    Examples:
      >>> import jaxem
      >>> @jaxem.dataclass
      ... class Scaled:
      ...     factor: float
      ...     power: int = jaxem.static(default=2)
      >>> jax.tree.leaves(Scaled(3.0))
      [3.0]
    """
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclasses.dataclass(frozen=True)
class _Saved:
    """A JAX array as it is pickled: by itself it would come back as float32 in a process without x64 mode, silently."""

    array: np.ndarray


def _save(leaf: Any) -> Any:
    plain = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return _Saved(np.asarray(leaf)) if plain and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) else leaf


def _load(leaf: Any) -> Any:
    if not isinstance(leaf, _Saved):
        return leaf
    kept = jax.dtypes.canonicalize_dtype(leaf.array.dtype) == leaf.array.dtype
    return jax.device_put(leaf.array) if kept else leaf.array


@dataclasses.dataclass(frozen=True)
class _Public:
    """A function of `jax.nn` as it is pickled: by its public name, as its own module knows another object by it."""

    name: str


def _save_static(value: Any) -> Any:
    name = getattr(value, "__name__", None)
    return _Public(name) if isinstance(name, str) and getattr(jax.nn, name, None) is value else value


def _load_static(value: Any) -> Any:
    return getattr(jax.nn, value.name) if isinstance(value, _Public) else value


def _statics(instance: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(instance) if f.metadata.get("static", False)}


def _getstate(self: Any) -> dict[str, Any]:
    statics = _statics(self)
    return {name: _save_static(v) if name in statics else jax.tree.map(_save, v) for name, v in vars(self).items()}


def _setstate(self: Any, state: dict[str, Any]) -> None:
    statics = _statics(self)
    for name, value in state.items():
        object.__setattr__(self, name, _load_static(value) if name in statics else jax.tree.map(_load, value))


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def dataclass(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass that JAX treats as a pytree.

    Instances are compared by identity (their leaves may be arrays) and changed by `dataclasses.replace`. JAX rebuilds
    instances with tracers in them, so `__init__` and `__post_init__` must not inspect values. They are pickled with
    NumPy arrays, which come back as JAX arrays unless JAX would round them: 64 bits where its x64 mode is off.

    Args:
      cls: a class with annotated fields; fields made by `static()` become part of the tree structure.

    Returns:
      The same class, registered with `jax.tree_util`.

    Examples:
      >>> import jaxem
      >>> @jaxem.dataclass
      ... class Point:
      ...     x: float
      ...     y: float
      >>> jax.tree.map(lambda v: 2 * v, Point(1.0, 2.0))
      Point(x=2.0, y=4.0)
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = [f for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    leaves = tuple(f.name for f in fields if not f.metadata.get("static", False))
    statics = tuple(f.name for f in fields if f.metadata.get("static", False))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in leaves)

    def flatten(tree: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(tree, name) for name in leaves), tuple(getattr(tree, name) for name in statics)

    def flatten_with_keys(tree: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, aux = flatten(tree)
        return tuple(zip(keys, children, strict=True)), aux

    def unflatten(aux: tuple[Any, ...], children: Iterable[Any]) -> T:
        return cls(**dict(zip(leaves, children, strict=True)), **dict(zip(statics, aux, strict=True)))

    if "__getstate__" not in vars(cls):
        cls.__getstate__, cls.__setstate__ = _getstate, _setstate  # type: ignore[attr-defined, method-assign]
    # Not `register_dataclass`: two classes with the same field names then have equal tree structures (in JAX 0.10 and
    # 0.12), and in 0.10 `jit` ran the program of one for the other where their hashes agreed in seven bits.
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    _DECORATED.add(cls)
    return cls


def is_decorated(cls: type) -> bool:
    """Whether a class is a `dataclass` itself; a subclass that is not decorated does not inherit that."""
    return cls in _DECORATED
