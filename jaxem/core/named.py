"""Classes and functions by name: which a file may name, and where they are found without importing or running code."""

import importlib
import sys
import types
import warnings
from collections.abc import Iterable
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp

from jaxem.core.arguments import shown
from jaxem.core.pytree import is_decorated

# Functions that a file may name without being trusted: of JAX, pure and elementwise. Not its whole modules, as
# jax.numpy.load, which reads pickles.
_DTYPES = ("bfloat16", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
_ELEMENTWISE = (
    *("abs", "arcsinh", "arctan", "cbrt", "cos", "cosh", "exp", "expm1", "log", "log1p", "negative", "reciprocal"),
    *("sign", "sin", "sinc", "sinh", "sqrt", "square", "tan", "tanh"),
)
_PUBLIC: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (jax.nn, tuple(n for n, v in vars(jax.nn).items() if callable(v) and not n.startswith("_"))),
    (jnp, (*_ELEMENTWISE, *_DTYPES)),
    (jax.lax, ("cos", "erf", "exp", "logistic", "sin", "tanh")),
    (jax.scipy.special, ("erf", "expit", "log_ndtr", "ndtr")),
)


# What files of earlier versions call a class -> what it is called now. Files live longer than modules: a class that
# moves gets a line here, and no line is ever taken out.
MOVED: dict[str, str] = {}


class UnnamedError(ValueError):
    """Why a class or a function has no name, or why a name stands for nothing that may be used."""


def name_of(value: Any) -> str:
    """The name "module:qualname" of a class or a function at the top of a module, by which `find` finds it again."""
    short = getattr(value, "__name__", None)
    for module, names in _PUBLIC:  # whose own modules may know another object by the name
        if short in names and getattr(module, short, None) is value:
            return f"{module.__name__}:{short}"
    module_name, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(qualname, str):
        raise UnnamedError(
            f"expected a function or a class at the top of a module; found {shown(value)}, which has no name"
        )
    if module_name.startswith("distrax.") and _in(sys.modules.get("distrax"), qualname) is value:
        return f"distrax:{qualname}"
    if _in(sys.modules.get(module_name), qualname) is not value:
        what = "a lambda" if "<lambda>" in qualname else f"{qualname}, which is none of {module_name}"
        raise UnnamedError(
            f"expected a function or a class at the top of a module, which a file can name; found {what}; define it "
            "there by def or class, or leave it out by leave_out=True, and load by like=, the model made again"
        )
    return f"{module_name}:{qualname}"


def find(name: Any, trusted: Iterable[Any] = (), call: bool = False) -> Any:
    """What a name in a file stands for; nothing is imported for it but distrax, and nothing is run.

    Classes of jaxem and distrax, `jaxem.dataclass`es, named tuples and enumerations of modules that are imported, the
    elementwise functions of JAX, and whatever is trusted.

    Args:
      name: as `name_of` gives it.
      trusted: classes, functions, and modules, everything defined in or below which is trusted.
      call: whether what is found may be called, with arguments of the file: others' classes must then be trusted.

    Raises:
      UnnamedError: there is nothing, or what there is must be trusted first.
    """
    if not isinstance(name, str) or name.count(":") != 1:
        raise UnnamedError(f"expected module:name; found {name!r}")
    name = MOVED.get(name, name)
    given = _among(name, trusted)
    if given is not None:
        return given
    module_name, qualname = name.split(":")
    for module, names in _PUBLIC:
        if module.__name__ == module_name and qualname in names:
            return getattr(module, qualname)
    if module_name == "distrax":
        return _of_distrax(qualname)
    found = _in(sys.modules.get(module_name), qualname)
    if isinstance(found, type) and (found.__module__, found.__qualname__) == (module_name, qualname):
        own = module_name.partition(".")[0] == "jaxem"
        inert = is_decorated(found) or issubclass(found, Enum)
        inert |= issubclass(found, tuple) and hasattr(found, "_fields")
        if (inert and (own or not call)) or (own and not call):
            return found
    raise UnnamedError(_missing(module_name, qualname, found))


def _among(name: str, trusted: Iterable[Any]) -> Any:
    """The trusted thing of that name, whole or without its module, which may have moved; None for none."""
    module_name, qualname = name.split(":")
    others = [t for t in trusted if not isinstance(t, types.ModuleType)]
    for same in (
        [t for t in others if _told(t) == (module_name, qualname)],
        [t for t in others if _told(t)[1] == qualname],
    ):
        if same:
            return same[0]
    for module in trusted:
        if isinstance(module, types.ModuleType):
            found = _in(sys.modules.get(module_name), qualname)
            home = str(getattr(found, "__module__", ""))
            if found is not None and f"{home}.".startswith(f"{module.__name__}."):
                return found
    return None


def _told(value: Any) -> tuple[str, str]:
    return str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", ""))


def _in(module: Any, qualname: str) -> Any:
    """The attribute of a module at a dotted path; None where there is none."""
    for part in qualname.split("."):
        module = getattr(module, part, None)
    return module


def _of_distrax(qualname: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        distrax = importlib.import_module("distrax")
    found = getattr(distrax, qualname, None)
    if isinstance(found, type) and issubclass(found, (distrax.Distribution, distrax.Bijector)):
        return found
    raise UnnamedError(f"expected a distribution of distrax; found {qualname}, which this version does not have")


def _missing(module_name: str, qualname: str, found: Any) -> str:
    short = qualname.split(".")[-1]
    if module_name.partition(".")[0] == "jaxem":
        return f"{module_name}:{qualname}, which this version of jaxem does not have, or no file may name"
    remedy = f"give it: jaxem.load(path, trusted=[{short}])"
    if found is None and module_name in sys.modules:
        return f"{qualname} of module {module_name}, which has no such name here; define it, then {remedy}"
    if found is None:
        return f"{qualname} of module {module_name}, which is not imported; import that module, then {remedy}"
    return f"{qualname} of module {module_name}, which jaxem does not know; if you trust the file, {remedy}"
