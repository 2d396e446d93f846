"""Values out of the JSON and the arrays that `encoding` made of them; no code of the file's choice is run."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxem.core.encoding import Arrays, NotKept, extended, said
from jaxem.core.named import UnnamedError, find


def decode(node: Any, arrays: Arrays, name: str, trusted: Iterable[Any] = (), like: Any = None) -> Any:
    """The value that `encode` made this of.

    No class of jaxem, and no pytree, has its constructor run: what it held is put back.

    Args:
      node: the JSON.
      arrays: by name, all of which must be used.
      name: of the value, for messages.
      trusted: see `jaxem.core.named.find`.
      like: of the same structure, from which parts that were left out are taken; None for nothing.

    Raises:
      ValueError: what is no such JSON, arrays that are not as it says, names that stand for nothing here, or arrays
        that JAX would round in this process.
    """
    decoder = _Decoder(arrays, tuple(trusted), like)
    try:
        value = decoder.value(node, (name,))
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}: expected what jaxem.save writes; found something else ({error!r})") from None
    unused = sorted(set(arrays) - decoder.used)
    if unused:
        raise ValueError(f"{name}: expected arrays that it holds; found {', '.join(unused[:4])} as well")
    if decoder.wide:
        dtypes = ", ".join(sorted({str(arrays[key].dtype) for key in decoder.wide}))
        raise ValueError(
            f"{name}: it holds {dtypes} ({', '.join(decoder.wide[:3])}, ...), which JAX would round here, as its x64 "
            "mode is off; call jax.config.update('jax_enable_x64', True) first, or load and use it inside "
            "`with jax.enable_x64(True):`"
        )
    return value


class _Decoder:
    """Reads one value; which arrays were used, and which JAX cannot hold as they are."""

    def __init__(self, arrays: Arrays, trusted: tuple[Any, ...], like: Any):
        self._arrays, self._trusted, self._like = arrays, trusted, like
        self.used: set[str] = set()
        self.wide: list[str] = []
        self._by_tag: dict[str, Callable[[dict[str, Any], tuple[str, ...]], Any]] = {
            "float": lambda n, place: float(n["float"]),
            "complex": lambda n, place: complex(*self._each(n["complex"], place)),
            "dtype": lambda n, place: _dtype(n["dtype"]),
            "enum": self._enum,
            "given": self._given,
            "array": self._array,
            "tuple": lambda n, place: tuple(self._each(n["tuple"], place)),
            "list": lambda n, place: self._each(n["list"], place),
            "dict": lambda n, place: {self.value(k, place): self.value(v, (*place, str(k))) for k, v in n["dict"]},
            "namedtuple": self._namedtuple,
            "treedef": lambda n, place: jax.tree.structure(self.value(n["treedef"], place)),
            "name": lambda n, place: self._find(n["name"], place, call=True),
            "partial": lambda n, place: functools.partial(
                self.value(n["partial"], place), *self.value(n["args"], place), **self.value(n["keywords"], place)
            ),
            "object": self._object,
            "made": self._made,
        }

    def value(self, node: Any, place: tuple[str, ...]) -> Any:
        """What a node stands for."""
        if not isinstance(node, dict):
            if isinstance(node, list):
                raise TypeError(f"{said(place)} is a bare list")
            return node
        return self._by_tag[next(iter(node))](node, place)

    def _each(self, items: list[Any], place: tuple[str, ...]) -> list[Any]:
        return [self.value(item, (*place, str(i))) for i, item in enumerate(items)]

    def _find(self, name: Any, place: tuple[str, ...], call: bool = False) -> Any:
        try:
            return find(name, self._trusted, call)
        except UnnamedError as error:
            raise ValueError(f"{said(place)}: it needs {error}") from None

    def _array(self, node: dict[str, Any], place: tuple[str, ...]) -> Any:
        name, kind, dtype = node["array"], node["kind"], _dtype(node["dtype"])
        if name not in self._arrays:
            raise ValueError(f"{said(place)}: expected an array called {name}; found none")
        array = self._arrays[name]
        self.used.add(name)
        stored = np.dtype(f"u{dtype.itemsize}") if extended(dtype) else dtype
        if array.shape != tuple(node["shape"]) or array.dtype != stored:
            expected = f"{dtype}{tuple(node['shape'])}"
            raise ValueError(f"{said(place)}: expected an array {expected}; found {array.dtype}{array.shape}")
        array = array.view(dtype) if extended(dtype) else array
        if kind == "key":
            return jax.random.wrap_key_data(jax.device_put(array), impl=node["impl"])
        if kind != "jax":
            return array if kind == "numpy" else array[()]
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            self.wide.append(name)
            return array
        return jax.device_put(array)

    def _enum(self, node: dict[str, Any], place: tuple[str, ...]) -> Any:
        cls = self._find(node["enum"], place)
        if not issubclass(cls, Enum) or node["member"] not in cls.__members__:
            raise ValueError(f"{said(place)}: expected a member of {cls.__name__}; found {node['member']}")
        return cls.__members__[node["member"]]

    def _given(self, node: dict[str, Any], place: tuple[str, ...]) -> Any:
        """A part that was left out, from what is like the whole."""
        found = self._like
        for name in place[1:]:
            found = _part(found, name)
        if found is not None:
            return found
        if not node["needed"]:
            return NotKept(node["given"])
        raise ValueError(
            f"{said(place)}: it needs {node['given']}, which was left out; give it: jaxem.load(path, like=model), the "
            "model made again as it was for the fit"
        )

    def _namedtuple(self, node: dict[str, Any], place: tuple[str, ...]) -> Any:
        cls, items = self._find(node["namedtuple"], place), self._each(node["items"], place)
        if len(items) != len(cls._fields):
            raise ValueError(f"{said(place)}: expected the fields {', '.join(cls._fields)}; found {len(items)}")
        return tuple.__new__(cls, items)

    def _holds(self, node: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
        return {name: self.value(part, (*place, name)) for name, part in node["holds"]}

    def _object(self, node: dict[str, Any], place: tuple[str, ...]) -> Any:
        cls = self._find(node["object"], place)
        held = self._holds(node, place)
        if dataclasses.is_dataclass(cls):
            held = _with_defaults(cls, held, place)
        elif any(name.startswith("__") for name in held):
            raise ValueError(f"{said(place)}: expected attributes of a {cls.__name__}; found {', '.join(held)}")
        value = object.__new__(cls)
        for name, part in held.items():
            object.__setattr__(value, name, part)
        return value

    def _made(self, node: dict[str, Any], place: tuple[str, ...]) -> Any:
        cls = self._find(node["made"], place, call=True)
        return cls(**self._holds(node, place))


def _part(whole: Any, name: str) -> Any:
    """The part of that name, as `encode` calls it; None where there is none."""
    if isinstance(whole, type(jax.tree.structure(0))):
        structure: Any = whole
        whole = jax.tree.unflatten(structure, range(structure.num_leaves))
    if isinstance(whole, dict):
        return next((part for key, part in whole.items() if str(key) == name), None)
    if type(whole) in (tuple, list):
        return whole[int(name)] if name.isdecimal() and int(name) < len(whole) else None
    return getattr(whole, name, None)


def _dtype(name: str) -> np.dtype:
    added = getattr(ml_dtypes, name, None) if name.isidentifier() else None
    return np.dtype(name if added is None else added)


def _with_defaults(cls: Any, held: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    """What a dataclass holds, fields that were not there when it was written at their defaults."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    extra = sorted(set(held) - set(fields))
    if extra:
        raise ValueError(
            f"{said(place)}: expected the fields of a {cls.__name__}, {', '.join(fields)}; found {', '.join(extra)} "
            "as well; it was written by another version of the class"
        )
    for name, field in fields.items():
        if name in held:
            continue
        if field.default is not dataclasses.MISSING:
            held[name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            held[name] = field.default_factory()
        elif field.init:
            raise ValueError(
                f"{said(place)}: expected the field {name} of a {cls.__name__}; found none; it was written by another "
                "version of the class"
            )
    return held
