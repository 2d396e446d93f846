"""Checks of settings and other arguments that are no data: on the host, with errors that name argument and remedy.

Every message reads "name: expected ...; found ...; remedy". Something of the wrong class is a TypeError, something out
of range a ValueError; what a tracer holds is not looked at.
"""

import difflib
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.numerics import is_concrete

# Characters of a value that a message shows.
WIDTH = 80


def shown(value: Any) -> str:
    """A value in one short line: arrays of more than a few numbers by shape and dtype, functions by name."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, jax.core.Tracer):
        return f"a tracer of shape {value.shape} and {value.dtype}"
    if isinstance(value, (np.ndarray, jax.Array)) and value.size > 8:
        return f"an array of shape {value.shape} and {value.dtype}"
    if isinstance(getattr(value, "__name__", None), str) and callable(value):
        return f"the function {value.__name__}"
    if type(value).__name__ == "Fit":  # whose repr computes
        return "a Fit"
    try:
        lines = repr(value).splitlines() or [""]
    except Exception:  # a repr of something half made must not hide the message
        return f"a {type(value).__name__}"
    text = " ".join(line.strip() for line in lines)
    if len(text) > WIDTH and has_fields(value):
        return f"a {type(value).__name__}"
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def has_fields(value: Any) -> bool:
    """Whether a value has named fields, so that its class says more than the first characters of its repr."""
    return hasattr(type(value), "__dataclass_fields__") or hasattr(type(value), "_fields")


def nearest(name: Any, options: Iterable[str]) -> str:
    """The remedy "; did you mean 'full'?" for a misspelt name, or nothing."""
    lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(str(name).lower(), lower, 1, 0.6)
    return f"; did you mean {lower[found[0]]!r}?" if found else ""


def check_choice(name: str, value: Any, options: Iterable[str]) -> None:
    """Raises unless value is one of the names; TypeError where it is no string."""
    options = tuple(options)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {', '.join(map(repr, options))}; found {shown(value)}")
    if value not in options:
        remedy = nearest(value, options)
        raise ValueError(f"{name}: expected one of {', '.join(options)}; found {shown(value)}{remedy}")


def expect(name: str, value: Any, kind: Any, what: str) -> None:
    """Raises TypeError unless value is an instance of `kind`; `what` says what that is and how one is made.

    An instance of a class of the user's own must be a pytree: without `jaxem.dataclass` JAX would refuse it deep inside
    a program.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, type) and any(issubclass(value, k) for k in kinds):
        raise TypeError(f"{name}: expected {what}; found {shown(value)}; call it first: {value.__name__}(...)")
    if not isinstance(value, kinds):
        remedy = nearest(value, _own_classes(kinds)).replace("'", "") if isinstance(value, str) else ""
        raise TypeError(f"{name}: expected {what}; found {shown(value)}{remedy}")
    check_decorated(name, value)


def _own_classes(kinds: Iterable[type]) -> set[str]:
    """Names of the library's classes below these, which a string may have meant."""
    below: list[Any] = list(chain.from_iterable(kind.__subclasses__() for kind in kinds))
    names = {c.__name__ for c in below if c.__module__.startswith("jaxem") and not c.__name__.startswith("_")}
    return names | _own_classes(below) if below else names


def check_decorated(name: str, value: Any) -> None:
    """Raises TypeError for an instance of a class that was not made a pytree; a subclass does not inherit that."""
    if jax.tree_util.all_leaves([value]):
        raise TypeError(
            f"{name}: expected a pytree; found an instance of {type(value).__name__}, which JAX takes for a leaf; "
            "decorate it with @jaxem.dataclass"
        )


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises unless value is an integer (of Python or NumPy, no bool) within the bounds."""
    bounds = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected {bounds}; found {shown(value)}{_as_integer(name, value)}")
    if value < least or (most is not None and value > most):
        raise ValueError(f"{name}: expected {bounds}; found {value}")


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError unless value is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False; found {shown(value)}")


def _as_integer(name: str, value: Any) -> str:
    """The remedy for what is nearly an integer: "3", 3.0, an array of one."""
    if isinstance(value, (bool, type)) or np.ndim(value) > 0 or isinstance(value, jax.core.Tracer):
        return ""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    return f"; write {name.split('.')[-1]}={int(number)}" if number.is_integer() else ""


def as_numbers(value: Any) -> np.ndarray | None:
    """A concrete value as an array of real numbers; None where it is none."""
    if (
        isinstance(value, jax.core.Tracer)
        or value is None
        or isinstance(value, (str, bytes, bool, type))
        or callable(value)
    ):
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return None
    return array if array.dtype.kind in "fiu" or jnp.issubdtype(array.dtype, jnp.floating) else None


def check_number(
    name: str,
    value: Any,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    above: bool = False,
    finite: bool = True,
    dims: tuple[int, ...] = (0,),
    what: str | None = None,
    each: str | None = None,
) -> None:
    """Raises unless a value that can be looked at is a number from low to high, and not NaN.

    Args:
      name: of the argument.
      value: the value; a tracer passes.
      low: least value.
      high: largest value.
      above: whether low itself is refused.
      finite: whether infinite values are.
      dims: numbers of axes that are allowed; 0 is a number, 1 an array of them, of which there must be one.
      what: what is expected, in place of the words made from the bounds.
      each: what is expected of the numbers, where `what` tells of kinds only.
    """
    if not is_concrete(value):
        return
    what = _range(low, high, above, finite) if what is None else what
    array = as_numbers(value)
    if array is None:
        raise TypeError(f"{name}: expected {what}; found {shown(value)}")
    if array.ndim not in dims:
        raise ValueError(f"{name}: expected {what}; found an array of shape {array.shape}")
    good = (array > low if above else array >= low) & (array <= high)
    good = good & np.isfinite(array) if finite else good
    if array.size == 0 or not good.all():
        found = shown(value) if array.ndim == 0 or array.size == 0 else f"{array[~good].flat[0]}"
        raise ValueError(f"{name}: expected {each or what}; found {found}")


def _range(low: float, high: float, above: bool, finite: bool) -> str:
    """The words for a range."""
    if high < np.inf:
        return f"a number in ({low:g}, {high:g}]" if above else f"a number from {low:g} to {high:g}"
    number = "a finite number" if finite else "a number"
    return number if low == -np.inf else f"{number} {'>' if above else '>='} {low:g}"


def tabulated(name: str, schedule: Callable[[int], Any], num: int) -> np.ndarray:
    """The values of a schedule at steps 0..num-1 as numbers; TypeError, named, where it gives none."""
    try:
        return np.array([float(schedule(t)) for t in range(num)])
    except Exception as error:
        found = f"{shown(schedule)}, which fails: {error}"
        raise TypeError(f"{name}: expected a callable of the step that gives a number; found {found}") from error


def check_tolerance(name: str, value: Any) -> None:
    """Raises unless value is a tolerance: a number >= 0, or -inf, which never stops."""
    number = as_numbers(value) if is_concrete(value) else None
    if number is None or number.ndim or number != -np.inf:
        check_number(name, value, 0, finite=False, what="a number >= 0, or -numpy.inf for never")


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises unless a leaf that can be looked at is a whole number within the bounds, of whatever dtype."""
    bounds = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
    check_number(name, value, what=bounds)
    if is_concrete(value) and not (value == np.round(value) and least <= value <= (np.inf if most is None else most)):
        raise ValueError(f"{name}: expected {bounds}; found {shown(value)}")


def check_key(name: str, key: Any) -> None:
    """Raises unless key is one random key of JAX, typed or of the older uint32 kind."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(f"{name}: expected one key; found an array of keys of shape {key.shape}")
    elif not (hasattr(key, "dtype") and key.dtype == np.uint32 and np.ndim(key) == 1):
        raise TypeError(f"{name}: expected a JAX random key, as jax.random.key(0); found {shown(key)}")


def as_key(key: Any, name: str = "key") -> Array:
    """A typed random key; see `check_key`."""
    check_key(name, key)
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(jnp.asarray(key))


def check_optimizer(optimizer: Any, name: str = "optimizer") -> None:
    """Raises TypeError unless this is an optax optimiser, or None."""
    if optimizer is None:
        return
    if isinstance(optimizer, type) or not (hasattr(optimizer, "update") and hasattr(optimizer, "init")):
        uncalled = callable(optimizer) and getattr(optimizer, "__name__", "") != "<lambda>"
        remedy = "call it first, as optax.adam(1e-3)" if uncalled else "give one, as optax.adam(1e-3), or None"
        raise TypeError(f"{name}: expected an optax GradientTransformation; found {shown(optimizer)}; {remedy}")
    hash_or_raise(name, optimizer)


def hash_or_raise(name: str, value: Any) -> None:
    """Raises TypeError for a static setting that is not hashable, which compiled programs are found by."""
    try:
        hash(value)
    except TypeError as error:
        found = f"{shown(value)}: {error}"
        raise TypeError(f"{name}: expected settings that are hashable, as tuples, not lists; found {found}") from None


def check_constraints(spec: Any) -> None:
    """Raises TypeError unless every leaf of what `constraints()` returned is a constraint."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(spec)[0]:
        if isinstance(leaf, type) or not (hasattr(leaf, "unconstrain") and hasattr(leaf, "constrain")):
            place, remedy = jax.tree_util.keystr(path), "; call it first" if isinstance(leaf, type) else ""
            what = "an object of jaxem.constraints, as jaxem.constraints.Positive()"
            raise TypeError(f"constraints(){place}: expected {what}; found {shown(leaf)}{remedy}")


def check_leaves(name: str, tree: Any) -> None:
    """Raises TypeError for a part of a configuration that no compiled program can take, with the place of the part."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        place = name + jax.tree_util.keystr(path)
        if isinstance(leaf, (bool, int, float, np.bool_, np.number, jax.Array)):
            continue
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
            continue
        if hasattr(type(leaf), "__dataclass_fields__"):
            check_decorated(place, leaf)
        raise TypeError(
            f"{place}: expected a number or an array; found {shown(leaf)}; what is part of the program (a string, a "
            "function) is declared with jaxem.static()"
        )
    hash_or_raise(name, jax.tree.structure(tree))
