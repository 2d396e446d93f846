"""Networks as pairs init, apply: a small MLP in plain JAX, and modules of Flax, Equinox or your own as they are."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import check_choice, check_decorated, check_integer, shown
from jaxem.core.normal import standard_promotion
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree, float_dtype


class Network(ABC):
    """A function of params and a batch, with a start for its params; a frozen `jaxem.dataclass`.

    Where jaxem asks for a network it takes

    * anything with `init(key, x) -> params` and `apply(params, x) -> outputs`: an object of this class, a Flax linen
      module (without mutable collections), ...;
    * a pair of functions (init, apply); of `jax.example_libraries.stax`, whose init takes a shape:
      `(lambda key, x: init(key, x.shape)[1], apply)`;
    * an Equinox module, or any callable pytree, which maps one datum and is vmapped; its floating-point arrays are the
      params, and all restarts start from them;
    * a function key -> such a module, with which restarts start apart.

    x has a leading axis n of rows, and so have the outputs.
    """

    @abstractmethod
    def init(self, key: Array, x: PyTree) -> PyTree:
        """Random starting params for rows like those of x."""

    @abstractmethod
    def apply(self, params: PyTree, x: PyTree) -> Any:
        """Outputs for a batch of rows, each row on its own."""


@dataclass
class MLP(Network):
    """Layers h <- activation(h W + b), the last one affine; see `mlp`.

    Attributes:
      sizes: number of outputs of each layer.
      activation: elementwise function between layers.
      precision: of the matrix products, as JAX names it.
    """

    sizes: tuple[int, ...] = static()
    activation: Callable[[Array], Array] = static(default=jax.nn.relu)
    precision: str = static(default="highest")

    def init(self, key: Array, x: Array) -> list[dict[str, Array]]:
        """Weights uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010), biases 0; from one draw."""
        if not hasattr(x, "ndim") or x.ndim != 2:
            raise ValueError(f"mlp: expected rows (n, D); found {jax.tree.map(jnp.shape, x)}")
        shapes = list(zip((x.shape[1], *self.sizes[:-1]), self.sizes, strict=True))
        noise = jax.random.uniform(key, (sum(a * b for a, b in shapes),), x.dtype, -1, 1)
        params, first = [], 0
        for a, b in shapes:
            w = noise[first : first + a * b].reshape(a, b) * np.sqrt(6 / (a + b)).astype(x.dtype)
            params.append({"w": w, "b": jnp.zeros(b, x.dtype)})
            first += a * b
        return params

    def apply(self, params: list[dict[str, Array]], x: Array) -> Array:
        """(n, sizes[-1]) outputs."""
        for i, layer in enumerate(params):
            x = self.activation(x) if i else x
            x = jnp.dot(x, layer["w"], precision=self.precision) + layer["b"][None]
        return x


def mlp(*sizes: int, activation: Callable[[Array], Array] = jax.nn.relu, precision: str = "highest") -> MLP:
    """A multilayer perceptron in plain JAX.

        h_0 = x,   h_l = activation(h_{l-1}) W_l + b_l,   (no activation on x),   output h_L

    Args:
      *sizes: outputs of each layer, the last that of the network; a single one makes it affine.
      activation: an elementwise function, such as `jax.nn.relu`, `jax.nn.gelu` or `jnp.tanh`; part of the program.
      precision: of the matrix products: "highest" (float32 is float32 everywhere) or "default", the faster TF32 on
        NVIDIA GPUs and bfloat16 on TPUs; on CPUs the two are the same.

    Returns:
      An `MLP`. Its params are a list of {"w": (fan_in, fan_out), "b": (fan_out,)} in the dtype of the data.

    Raises:
      TypeError, ValueError: no sizes, or one that is no integer >= 1.

    Examples:
      >>> network = mlp(32, 4)
      >>> x = jnp.ones((5, 3))
      >>> params = network.init(jax.random.key(0), x)
      >>> network.apply(params, x).shape
      (5, 4)
    """
    if not sizes:
        raise ValueError("sizes: expected at least one layer; found none")
    for i, size in enumerate(sizes):
        check_integer(f"sizes[{i}]", size, 1)
    if not callable(activation):
        raise TypeError(f"activation: expected a function, as jax.nn.relu; found {shown(activation)}")
    check_choice("precision", precision, ("highest", "high", "default"))
    return MLP(tuple(int(size) for size in sizes), activation, precision)


@dataclass
class PerDatum(Network):
    """A row of free outputs for each datum, looked up by its number: variational inference without an encoder.

    Data are a pair (x, rows) with the numbers rows (n,) of x's rows, 0 to num_rows - 1; below 2^24 in float32. Nothing
    is shared between data, so that new data have no outputs.

    Attributes:
      num_rows: N.
      num_outputs: outputs for each, 2 Q for means and log-variances of Q latents. They start at 0.

    Examples:
      >>> x, rows = jnp.ones((5, 3)), jnp.arange(5.0)
      >>> table = PerDatum(5, 4)
      >>> table.apply(table.init(jax.random.key(0), (x, rows)), (x[:2], rows[:2])).shape
      (2, 4)
    """

    num_rows: int = static()
    num_outputs: int = static()

    def init(self, key: Array, x: tuple[Array, Array]) -> Array:
        """(num_rows, num_outputs) zeros."""
        check_integer("num_rows", self.num_rows, 1)
        check_integer("num_outputs", self.num_outputs, 1)
        return jnp.zeros((self.num_rows, self.num_outputs), float_dtype(x))

    def apply(self, params: Array, x: tuple[Array, Array]) -> Array:
        """(n, num_outputs) of the rows named; a number out of range gives NaN."""
        if not isinstance(x, tuple) or len(x) != 2 or jnp.ndim(x[1]) != 1:
            raise ValueError(f"data: PerDatum expects a pair (x, row numbers (N,)); found {jax.tree.map(jnp.shape, x)}")
        index = x[1].astype(jnp.int32)
        return params.at[jnp.where(index < 0, self.num_rows, index)].get(mode="fill", fill_value=jnp.nan)


@dataclass
class Functions(Network):
    """A network of someone else, its params cast to the dtype of the data.

    Attributes:
      network: an object with init and apply, or the pair of them.
    """

    network: Any = static()

    def init(self, key: Array, x: PyTree) -> PyTree:
        """What the function gives, floating-point leaves in the dtype of the data."""
        init = self.network[0] if isinstance(self.network, tuple) else self.network.init
        with standard_promotion():
            return _cast(init(key, x), float_dtype(x))

    def apply(self, params: PyTree, x: PyTree) -> Any:
        """What the function gives."""
        apply = self.network[1] if isinstance(self.network, tuple) else self.network.apply
        with standard_promotion():
            return apply(params, x)


@dataclass
class Module(Network):
    """A callable pytree that maps one datum, such as an Equinox module.

    Its params are the module with everything but floating-point arrays taken out, as by `equinox.partition`.

    Attributes:
      arrays: the module's own params; None where a function makes them.
      make: the function key -> module, or None.
      rest: the structure, and the leaves that are no params, in their places.
    """

    arrays: PyTree = None
    make: Any = static(default=None)
    rest: Any = static(default=None)

    def init(self, key: Array, x: PyTree) -> PyTree:
        """The module's own params, or those of a new module, in the dtype of the data."""
        with standard_promotion():
            arrays = self.arrays if self.make is None else _split(self.make(key))[0]
            return _cast(arrays, float_dtype(x))

    def apply(self, params: PyTree, x: PyTree) -> Any:
        """The module's outputs for each row, by vmap."""
        structure, constants = self.rest
        given = iter(jax.tree.leaves(params))
        module = jax.tree.unflatten(structure, [next(given) if _is_mark(c) else c for c in constants])
        with standard_promotion():
            return jax.vmap(module)(x)


# Marks the place of a params leaf.
_PARAM = "<array>"


def _is_mark(leaf: Any) -> bool:
    return isinstance(leaf, str) and leaf == _PARAM  # no more the same object, once pickled or read from a file


def _is_param(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if _is_param(leaf) else leaf, tree)


def _split(module: Any) -> tuple[PyTree, Any]:
    """(params, rest) of a callable pytree."""
    leaves, structure = jax.tree.flatten(module)
    params = jax.tree.unflatten(structure, [leaf if _is_param(leaf) else None for leaf in leaves])
    return params, (structure, tuple(_PARAM if _is_param(leaf) else leaf for leaf in leaves))


def _is_module(network: Any) -> bool:
    return callable(network) and any(_is_param(leaf) for leaf in jax.tree.leaves(network))


def _made(make: Any, name: str) -> Module:
    """The network of a function key -> module; the module is only traced."""
    seen = []

    def trace(key: Array) -> PyTree:
        module = make(key)
        if not _is_module(module):
            raise TypeError(_expected(name, f"a function of a key that returns {shown(module)}"))
        params, rest = _split(module)
        seen.append(rest)
        return params

    try:
        with standard_promotion():
            jax.eval_shape(trace, jax.random.key(0))
    except TypeError as error:
        if name in str(error).split(":")[0]:
            raise
        raise TypeError(_expected(name, f"{shown(make)}, which is no function of a key: {error}")) from error
    return Module(None, make, seen[0])


def _expected(name: str, found: str) -> str:
    return (
        f"{name}: expected a network: an object with init and apply, a pair (init, apply), an Equinox module or a "
        f"function key -> module; found {found}"
    )


def as_network(network: Any, name: str = "network") -> Network:
    """Any of the forms that `Network` lists, as a `Network`.

    Args:
      network: see `Network`.
      name: what errors call it.

    Returns:
      The network; static where it holds no arrays, so that equal ones share compiled programs.

    Raises:
      TypeError: it has none of the forms, or is not hashable.

    Examples:
      >>> scale = as_network((lambda key, x: jnp.ones(()), lambda params, x: params * x))
      >>> scale.apply(scale.init(jax.random.key(0), jnp.ones((2, 1))), jnp.ones((2, 1))).shape
      (2, 1)
    """
    if isinstance(network, Network):
        check_decorated(name, network)
        return network
    if isinstance(network, type):
        raise TypeError(_expected(name, f"the class {network.__name__}; call it first"))
    pair = isinstance(network, tuple) and len(network) == 2 and all(map(callable, network))
    if pair or (callable(getattr(network, "init", None)) and callable(getattr(network, "apply", None))):
        try:
            hash(network)
        except TypeError as error:
            raise TypeError(f"{name}: expected a network that is hashable; found {shown(network)}: {error}") from None
        return Functions(network)
    if _is_module(network):
        params, rest = _split(network)
        return Module(params, None, rest)
    if callable(network):
        return _made(network, name)
    raise TypeError(_expected(name, shown(network)))
