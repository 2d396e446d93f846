"""Values as JSON with the arrays beside it: pytrees, settings and the names of classes and functions; no pickle."""

import dataclasses
import functools
import math
import re
from enum import Enum
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxem.core.arguments import shown
from jaxem.core.named import UnnamedError, name_of

Arrays = dict[str, np.ndarray]
# What a class of one's own may not be made from: such values would come back as plain ones.
_BUILTIN = (dict, list, tuple, set, frozenset, str, bytes, int, float)


@dataclasses.dataclass(frozen=True)
class NotKept:
    """What stands for a part that no file can keep, and that no question needs: an optimiser, made of closures.

    Attributes:
      what: it was.
    """

    what: str

    def __repr__(self) -> str:
        return f"{self.what}, which no file keeps"


def encode(value: Any, name: str, leave_out: bool = False) -> tuple[Any, Arrays]:
    """A value as what JSON can hold, and its arrays by name.

    Args:
      value: None, numbers, strings, arrays, random keys, containers of them, dataclasses, objects of jaxem's and a
        user's classes, functions and classes at the top of a module.
      name: of the value, for messages.
      leave_out: whether functions and objects of classes that have no name are left out, for the reader to give again.

    Raises:
      ValueError: a part that cannot be written, with its place and the remedy.
    """
    encoder = _Encoder(leave_out)
    return encoder.node(value, (name,)), encoder.arrays


class _Encoder:
    """Collects the arrays of one value; a place is the names that lead to a part."""

    def __init__(self, leave_out: bool) -> None:
        self.arrays: Arrays = {}
        self._leave_out = leave_out
        self._above: list[int] = []

    def node(self, value: Any, place: tuple[str, ...]) -> Any:
        """The JSON of a part."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) is complex:
            return {"complex": [self.node(value.real, place), self.node(value.imag, place)]}
        if isinstance(value, jax.core.Tracer):
            raise ValueError(f"{said(place)}: expected a value; found a tracer; save outside of jit, grad and vmap")
        if isinstance(value, Enum):
            return {"enum": name_of(type(value)), "member": value.name}
        if isinstance(value, (jax.Array, np.ndarray, np.generic)):
            return self._array(value, place)
        if isinstance(value, np.dtype):
            return {"dtype": _dtype_name(value)}
        if _is_optimizer(value) or isinstance(value, NotKept):
            what = value.what if isinstance(value, NotKept) else "an optax optimiser"
            return {"given": what, "needed": False}
        if id(value) in self._above:
            raise ValueError(f"{said(place)}: expected a tree; found {shown(value)} inside itself")
        self._above.append(id(value))
        try:
            return self._compound(value, place)
        except UnnamedError as error:
            if not self._leave_out:
                raise ValueError(f"{said(place)}: {error}") from None
            return {"given": shown(value), "needed": True}
        finally:
            self._above.pop()

    def _compound(self, value: Any, place: tuple[str, ...]) -> Any:
        each = lambda items: [self.node(item, (*place, str(i))) for i, item in enumerate(items)]
        if type(value) in (tuple, list):
            return {type(value).__name__: each(value)}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            items = [self.node(item, (*place, field)) for field, item in zip(value._fields, value, strict=True)]
            return {"namedtuple": name_of(type(value)), "items": items}
        if type(value) is dict:
            return {"dict": [[self.node(k, place), self.node(v, (*place, str(k)))] for k, v in value.items()]}
        if type(value) is functools.partial:
            held = {"args": value.args, "keywords": value.keywords}
            return {"partial": self.node(value.func, place)} | {k: self.node(v, place) for k, v in held.items()}
        if isinstance(value, type(jax.tree.structure(0))):
            structure: Any = value
            return {"treedef": self.node(jax.tree.unflatten(structure, range(structure.num_leaves)), place)}
        if isinstance(value, type) or (callable(value) and hasattr(value, "__name__")):
            return {"name": name_of(value)}
        return self._object(value, place)

    def _object(self, value: Any, place: tuple[str, ...]) -> Any:
        """An object by its class and what it holds; a dataclass that is no pytree is made again by its constructor."""
        cls = type(value)
        if isinstance(value, _BUILTIN) or not hasattr(value, "__dict__"):
            what = "numbers, strings, arrays, tuples, lists, dicts, or objects of classes of Python's own making"
            raise ValueError(f"{said(place)}: expected {what}; found {shown(value)}, a {cls.__name__}")
        tag, names = "object", list(vars(value))
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
            leaf = jax.tree_util.all_leaves([value]) and not cls.__module__.startswith("jaxem.")
            if leaf:
                tag, names = "made", [f.name for f in dataclasses.fields(value) if f.init and not _default(value, f)]
        named = name_of(cls)
        held = [[name, self.node(getattr(value, name), (*place, name))] for name in names]
        return {tag: named, "holds": held}

    def _array(self, value: Any, place: tuple[str, ...]) -> Any:
        """A reference to an array, with what is checked when it is read."""
        kind: dict[str, Any] = {"kind": "numpy" if isinstance(value, np.ndarray) else "scalar"}
        if isinstance(value, jax.Array):
            kind = {"kind": "jax"}
            if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
                kind, value = {"kind": "key", "impl": str(jax.random.key_impl(value))}, jax.random.key_data(value)
        array = np.asarray(value)
        if array.dtype.hasobject or array.dtype.names:
            raise ValueError(f"{said(place)}: expected an array of numbers or text; found dtype {array.dtype}")
        node = {**kind, "dtype": _dtype_name(array.dtype), "shape": list(array.shape)}
        if extended(array.dtype):  # which NumPy's format does not know
            array = array.view(f"u{array.dtype.itemsize}")
        name = base = re.sub(r"[^\w.-]", "_", ".".join(place[1:])) or place[0]
        number = 1
        while name in self.arrays:
            number += 1
            name = f"{base}-{number}"
        self.arrays[name] = array
        return {"array": name, **node}


def _default(value: Any, field: Any) -> bool:
    """Whether a field holds its default, which may have no name: an initialiser of Flax, a closure."""
    return getattr(value, field.name) is field.default


def said(place: tuple[str, ...]) -> str:
    """The names that lead to a part, as Python writes them."""
    return ".".join(place)


def extended(dtype: Any) -> bool:
    """Whether a dtype is one of those that JAX adds to NumPy's, as bfloat16."""
    return getattr(ml_dtypes, dtype.name, None) is not None


def _dtype_name(dtype: Any) -> str:
    return dtype.name if extended(dtype) else dtype.str


def _is_optimizer(value: Any) -> bool:
    """Whether this is one of optax's transformations, which are closures."""
    return type(value).__module__.startswith("optax.") and isinstance(value, tuple) and hasattr(value, "update")
