"""The dataclass decorator that every model, rule, algorithm and result in jaxem uses."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


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


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def dataclass(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass that JAX treats as a pytree.

    Instances are compared by identity (their leaves may be arrays) and changed by `dataclasses.replace`. JAX rebuilds
    instances with tracers in them, so `__init__` and `__post_init__` must not inspect values.

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

    # Not `register_dataclass`: two classes with the same field names then have equal tree structures (in JAX 0.10 and
    # 0.12), and in 0.10 `jit` ran the program of one for the other where their hashes agreed in seven bits.
    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
