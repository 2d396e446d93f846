"""Wrappers: the same model with its E-step computed in another way."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.arguments import check_integer, expect, shown
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import takes_rows
from jaxem.core.tree import PyTree, float_dtype, map_rows, num_rows, sum_rows
from jaxem.model import ELBOModel, EStep, Health, LatentModel
from jaxem.rules import Rule
from jaxem.stopping import StopRule


@dataclass
class Wrapper(LatentModel):
    """A model around another, `self.model`, which answers all that the wrapper does not."""

    model: Any

    def __getattr__(self, name: str) -> Any:
        # What the protocol does not name (sample, distribution, num_parameters, ...) is the model's own.
        if name.startswith("_") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def init(self, key: Array, data: PyTree, weights: Array) -> PyTree:
        return self.model.init(key, data, weights)

    def check_rows(self, data: PyTree, params: PyTree | None = None) -> None:
        self.model.check_rows(data, params)

    def check_params(self, params: PyTree) -> None:
        self.model.check_params(params)

    def inside(self, params: PyTree) -> tuple[Any, PyTree]:
        model, inner = dataclasses.replace(self.model, rows=self.rows).inside(params)
        return dataclasses.replace(self, model=model, rows=model.rows), inner

    def row_keys(self) -> tuple[str, ...] | None:
        return self.model.row_keys()

    def bind(self, data: PyTree, weights: Array) -> Any:
        return dataclasses.replace(self, model=self.model.bind(data, weights))

    def m_step(self, params: PyTree, stats: PyTree) -> PyTree:
        return self.model.m_step(params, stats)

    def prepare(self, params: PyTree) -> PyTree:
        return self.model.prepare(params)

    def rebase(self, stats: PyTree, old: PyTree, new: PyTree) -> PyTree:
        return self.model.rebase(stats, old, new)

    def arrange(self, data: PyTree) -> PyTree:
        return self.model.arrange(data)

    @property
    def least_rows(self) -> tuple[str, int]:
        return self.model.least_rows

    @property
    def sequential(self) -> bool:
        return self.model.sequential

    @property
    def closed_form(self) -> bool:
        return self.model.closed_form

    def default_rule(self) -> Rule:
        return self.model.default_rule()

    def default_stop(self) -> StopRule:
        return self.model.default_stop()

    def elbo_params(self, params: PyTree) -> Array:
        return self.model.elbo_params(params)

    def constraints(self) -> PyTree:
        return self.model.constraints()

    def canonical(self, params: PyTree) -> PyTree:
        return self.model.canonical(params)

    def health(self, params: PyTree) -> Health:
        return self.model.health(params)

    def notes(self) -> list[str]:
        return self.model.notes()

    def diagnose(self, params: PyTree) -> list[str]:
        return self.model.diagnose(params)

    def adopt(self, params: PyTree) -> PyTree:
        return self.model.adopt(params)

    def coincident(self, params: PyTree) -> Array:
        return self.model.coincident(params)

    def same_optimum(self, elbo: Array, best: Array, total_weight: Array) -> Array:
        return self.model.same_optimum(elbo, best, total_weight)

    def slack(self, elbo: Array, total_weight: Array) -> Array:
        return self.model.slack(elbo, total_weight)

    def step_cost(self, data: PyTree) -> int:
        return self.model.step_cost(data)


@dataclass
class Chunked(Wrapper):
    """A model whose E-step scans over chunks of rows; see `chunked`."""

    size: int = static()

    def _rows(self, data: PyTree) -> int:
        return self.size

    @takes_rows
    def e_step(self, params: PyTree, data: PyTree, weights: Array | None = None, rule: Rule | None = None) -> EStep:
        """The model's E-step, summed over chunks."""
        weights = jnp.ones(num_rows(data), float_dtype(data)) if weights is None else weights
        params = self.model.prepare(params)
        return sum_rows(lambda x, w: self.model.e_step(params, x, w, rule), data, weights, self.size)

    @takes_rows
    def posterior(self, params: PyTree, data: PyTree) -> Array:
        """(N, K) responsibilities, a chunk at a time."""
        return _map(self, "posterior", params, data)

    @takes_rows
    def predict(self, params: PyTree, data: PyTree) -> Array:
        """(N,) most probable states; no (N, K) array."""
        return _map(self, "predict", params, data)

    @takes_rows
    def log_prob(self, params: PyTree, data: PyTree) -> Array:
        """(N,) log p(x_n), nats; no (N, K) array."""
        return _map(self, "log_prob", params, data)

    def validate(self, data: PyTree, params: PyTree | None) -> None:
        """Checks the size, and what the model checks."""
        if not isinstance(self.model, LatentModel):
            raise TypeError(f"chunked: expected a model with an e_step; found {shown(self.model)}")
        check_integer("size", self.size, 1)
        self.model.validate(data, params)


@partial(jax.jit, static_argnums=1)
def _map(wrapper: Chunked, method: str, params: PyTree, data: PyTree) -> Array:
    return map_rows(lambda x: getattr(wrapper.model, method)(params, x), data, wrapper.size)


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
    return Chunked(model, int(size))
