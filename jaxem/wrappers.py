"""Wrappers: the same model with its E-step computed in another way."""

import abc
import dataclasses
import functools
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array

from jaxem.core.arguments import check_decorated, check_integer, expect, shown
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import takes_rows
from jaxem.core.tree import PyTree, map_rows, ones_for, sum_blocks
from jaxem.elbo import Decomposition
from jaxem.model import At, ELBOModel, EStep, LatentModel
from jaxem.rules import Rule


@dataclass
class Wrapper(LatentModel):
    """A model around another, `self.model`, which answers all that the wrapper does not.

    What the protocols name is forwarded by rule, below; what they do not (sample, num_parameters) by `__getattr__`.
    """

    model: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # The ELBO of an E-step of the wrapper's own is that E-step's, not that of the model inside.
        super().__init_subclass__(**kwargs)
        if "e_step" in vars(cls) and "elbo_data" not in vars(cls):
            cls.elbo_data = LatentModel.elbo_data  # type: ignore[method-assign]
        if "elbo_data" in vars(cls) and "training_elbo" not in vars(cls):
            cls.training_elbo = ELBOModel.training_elbo  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def bind(self, data: PyTree, weights: Array) -> Any:
        """The wrapper of the bound model."""
        return dataclasses.replace(self, model=self.model.bind(data, weights))

    def inside(self, params: PyTree) -> tuple[Any, PyTree]:
        """The wrapper of the model that the model inside has inside."""
        model, inner = dataclasses.replace(self.model, rows=self.rows).inside(params)
        return dataclasses.replace(self, model=model, rows=model.rows), inner

    def at(self, params: PyTree) -> At:
        """The wrapper at params; one with an E-step of its own is asked for it."""
        return At(self, params)


def protocol() -> dict[str, Any]:
    """What the protocols of a latent model name: hooks, questions and settings, by name."""
    named = {**vars(ELBOModel), **vars(LatentModel)}
    fields = {field.name for field in dataclasses.fields(ELBOModel)}
    return {name: what for name, what in named.items() if not name.startswith("_") and name not in fields}


def _forward(name: str, what: Any) -> Any:
    if not callable(what) or isinstance(what, type):
        return property(lambda self: getattr(self.model, name), doc=f"`{name}` of the model inside.")

    @functools.wraps(what)
    def method(self: Wrapper, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.model, name)(*args, **kwargs)

    method.__isabstractmethod__ = False  # type: ignore[attr-defined]
    return method


# Inherited defaults would hide `__getattr__`: each name of the protocols has a method or a property of its own.
for _name, _what in protocol().items():
    if _name not in vars(Wrapper):
        setattr(Wrapper, _name, _forward(_name, _what))
abc.update_abstractmethods(Wrapper)  # type: ignore[type-abstract]


def unwrapped(model: Any) -> Any:
    """The model inside all wrappers, or the model."""
    while isinstance(model, Wrapper):
        model = model.model
    return model


def check_model(model: Any, data: Any = None) -> None:
    """Raises TypeError unless model is an instance of one of the protocols, and a pytree."""
    if not isinstance(model, ELBOModel):
        hint = "; call it first, as in GMM(3)" if callable(model) else ""
        hint = "; the model comes first, then data" if isinstance(data, ELBOModel) else hint
        hint = "; give its .model" if hasattr(model, "params") and hasattr(model, "model") else hint
        raise TypeError(f"model: expected a jaxem model, as jaxem.GMM(3); found {shown(model)}{hint}")
    check_decorated("model", model)
    if isinstance(model, Wrapper):
        check_model(model.model)


@dataclass
class InnerAt(At):
    """A wrapper at params: `inner`, the model inside at its params, answers what the wrapper does not."""

    inner: At

    def explain(self, data: PyTree) -> tuple[Array, Any]:
        return self.inner.explain(data)

    def infer(self, log_joint: PyTree, rule: Rule) -> tuple[Array, PyTree]:
        return self.inner.infer(log_joint, rule)

    def posterior(self, data: PyTree, rule: Rule) -> Array:
        return self.inner.posterior(data, rule)

    def shown(self, q: PyTree) -> Array:
        return self.inner.shown(q)

    def best(self, log_joint: PyTree) -> Array:
        return self.inner.best(log_joint)

    def rule_out(self, log_joint: PyTree, allowed: Array) -> PyTree:
        return self.inner.rule_out(log_joint, allowed)

    def decompose(self, log_joint: PyTree, old: PyTree, rule: Rule) -> Decomposition:
        return self.inner.decompose(log_joint, old, rule)

    def moved(self, gone: Array, owner: Array, row: PyTree, share: Array, data: PyTree, weights: Array) -> PyTree:
        # By the wrapper's own blocks and M-step, unless the model inside has a way of its own.
        by = At.moved.__get__(self) if type(self.inner).moved is At.moved else self.inner.moved
        return by(gone, owner, row, share, data, weights)

    def beside(self, row: PyTree, data: PyTree) -> Array | None:
        return self.inner.beside(row, data)

    def exchanged(self, data: PyTree, weights: Array) -> PyTree | None:
        return self.inner.exchanged(data, weights)

    def e_step(self, data: PyTree, weights: Array, rule: Rule) -> EStep:
        return self.inner.e_step(data, weights, rule)

    def m_step(self, stats: PyTree) -> PyTree:
        return self.inner.m_step(stats)

    def rebase(self, stats: PyTree, new: Any) -> PyTree:
        return self.inner.rebase(stats, new.inner)

    def elbo_params(self) -> Array:
        return self.inner.elbo_params()


@dataclass
class PartsAt(InnerAt):
    """A model in parts at params."""

    def e_step(self, data: PyTree, weights: Array, rule: Rule) -> EStep:
        """The model's E-step, summed over parts."""
        one = lambda number, x, w, inner, rule: inner.e_step(x, w, rule.fold(number))
        return self.model.summed(one, data, weights, self.inner, rule)


@dataclass
class InParts(Wrapper):
    """A model whose rows are taken in parts: E-steps are summed over them, answers for each row come part by part.

    Subclasses say how, in `summed` and `mapped`.
    """

    @abstractmethod
    def summed(self, f: Callable[..., PyTree], data: PyTree, weights: Array, *rest: PyTree) -> PyTree:
        """The sum of `f(number, x, w, *rest)` over parts of the rows; `f` holds nothing else of a program around it."""

    @abstractmethod
    def mapped(self, f: Callable[[PyTree], PyTree], data: PyTree) -> PyTree:
        """`f(data)` for an `f` that treats rows one by one."""

    def at(self, params: PyTree) -> PartsAt:
        """The model at params."""
        return PartsAt(self, params, self.model.at(params))

    @takes_rows
    def e_step(self, params: PyTree, data: PyTree, weights: Array | None = None, rule: Rule | None = None) -> EStep:
        """The model's E-step, summed over parts."""
        weights = ones_for(data) if weights is None else weights
        return self.at(params).e_step(data, weights, self.default_rule() if rule is None else rule)

    @takes_rows
    def elbo_data(self, params: PyTree, data: PyTree, weights: Array | None = None, key: Array | None = None) -> Array:
        """The model's ELBO.data, summed over parts."""
        weights = ones_for(data) if weights is None else weights
        one = lambda number, x, w, model, params, key: model.elbo_data(params, x, w, _folded(key, number))
        return self.summed(one, data, weights, self.model, params, key)

    def training_elbo(self, params: PyTree, data: PyTree, weights: Array, key: Array, step: Array) -> Array:
        """The model's, summed over parts."""

        def one(number: Any, x: PyTree, w: Array, model: Any, params: PyTree, key: Array, step: Array) -> Array:
            return model.training_elbo(params, x, w, _folded(key, number), step)

        return self.summed(one, data, weights, self.model, params, key, step)

    @takes_rows
    def posterior(self, params: PyTree, data: PyTree) -> Array:
        """(N, K) responsibilities, by parts."""
        return _mapped(self, "posterior", params, data)

    @takes_rows
    def predict(self, params: PyTree, data: PyTree) -> Array:
        """(N,) most probable states, by parts; no (N, K) array."""
        return _mapped(self, "predict", params, data)

    @takes_rows
    def log_prob(self, params: PyTree, data: PyTree) -> Array:
        """(N,) log p(x_n), nats, by parts; no (N, K) array."""
        return _mapped(self, "log_prob", params, data)


def _folded(key: Array | None, number: Any) -> Array | None:
    return None if key is None else jax.random.fold_in(key, number)


@partial(jax.jit, static_argnums=1)
def _mapped(wrapper: InParts, method: str, params: PyTree, data: PyTree) -> Array:
    return wrapper.mapped(lambda x: getattr(wrapper.model, method)(params, x), data)


@dataclass
class Chunked(InParts):
    """A model whose E-step scans over chunks of rows; see `chunked`."""

    size: int = static()

    def rows_at_once(self, data: PyTree) -> int:
        """Rows of a chunk."""
        return self.size

    def summed(self, f: Callable[..., PyTree], data: PyTree, weights: Array, *rest: PyTree) -> PyTree:
        """Over chunks."""
        return sum_blocks(lambda x, w, number: f(number, x, w, *rest), data, weights, self.size)

    def mapped(self, f: Callable[[PyTree], PyTree], data: PyTree) -> PyTree:
        """A chunk at a time."""
        return map_rows(f, data, self.size)

    def check(self, data: PyTree, params: PyTree | None = None) -> None:
        """Checks the size, and what the model checks."""
        if params is None:
            if not isinstance(self.model, LatentModel):
                raise TypeError(f"chunked: expected a model with an e_step; found {shown(self.model)}")
            check_integer("size", self.size, 1)
        self.model.check(data, params)


def chunked(model: ELBOModel, size: int) -> Chunked:
    """The same model with its E-step, posterior, predict and log_prob scanned over chunks of rows.

    An E-step is additive over data, so the sum over chunks is the E-step: results agree with the model's own to
    rounding, and memory for responsibilities is O(size K) instead of O(N K). The last chunk is moved back to end at the
    last row, its overlap weighted 0, so nothing is copied or padded.

    Args:
      model: a model with an e_step.
      size: most rows in a chunk, >= 1; chunks are made equal.

    Returns:
      A model.

    Raises:
      TypeError, ValueError: no model with an e_step, or no integer >= 1.

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> model = jaxem.chunked(jaxem.GMM(2), 100)
      >>> jaxem.fit(model, x, key=jax.random.key(1), max_steps=3).params.mixing.shape
      (2,)
    """
    expect("model", model, LatentModel, "a model with an e_step, as jaxem.GMM(3)")
    check_integer("size", size, 1)
    return Chunked(model, int(size))  # type: ignore[abstract]
