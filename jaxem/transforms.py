"""Wrappers that follow from additivity: the same model, its E-step computed in pieces."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem._pytree import dataclass, static
from jaxem._tree import PyTree, as_floats, float_dtype, map_rows, num_rows, sum_rows
from jaxem.model import ELBOModel, EStep, Health, LatentModel
from jaxem.rules import Rule
from jaxem.stopping import Stop


@dataclass
class Chunked(LatentModel):
    """A model whose E-step scans over chunks of rows; see `chunked`."""

    model: Any
    size: int = static()

    def __getattr__(self, name: str) -> Any:
        # What the wrapper does not chunk (sample, distribution, num_parameters, ...) is the model's own.
        if name.startswith("_") or name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def e_step(self, params: PyTree, data: PyTree, weights: Array | None = None, rule: Rule | None = None) -> EStep:
        """The model's E-step, summed over chunks."""
        weights = jnp.ones(num_rows(data), float_dtype(data)) if weights is None else weights
        params = self.model.prepare(params)
        return sum_rows(lambda x, w: self.model.e_step(params, x, w, rule), data, weights, self.size)

    def posterior(self, params: PyTree, data: PyTree) -> Array:
        """(N, K) responsibilities, a chunk at a time."""
        return _map(self, "posterior", params, as_floats(data, float_dtype(params)))

    def predict(self, params: PyTree, data: PyTree) -> Array:
        """(N,) most probable states; no (N, K) array."""
        return _map(self, "predict", params, as_floats(data, float_dtype(params)))

    def log_prob(self, params: PyTree, data: PyTree) -> Array:
        """(N,) log p(x_n), nats; no (N, K) array."""
        return _map(self, "log_prob", params, as_floats(data, float_dtype(params)))

    def bind(self, data: PyTree, weights: Array) -> "Chunked":
        """Binds the model."""
        return Chunked(self.model.bind(data, weights), self.size)

    def validate(self, data: PyTree, params: PyTree | None) -> None:
        """Checks the size, and what the model checks."""
        if not isinstance(self.model, LatentModel):
            raise TypeError(f"chunked: expected a model with an e_step; found {self.model!r}")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size: expected an integer >= 1; found {self.size!r}")
        self.model.validate(data, params)

    def init(self, key: Array, data: PyTree, weights: Array) -> PyTree:
        return self.model.init(key, data, weights)

    def rebase(self, stats: PyTree, old: PyTree, new: PyTree) -> PyTree:
        return self.model.rebase(stats, old, new)

    def arrange(self, data: PyTree) -> PyTree:
        return self.model.arrange(data)

    def m_step(self, params: PyTree, stats: PyTree) -> PyTree:
        return self.model.m_step(params, stats)

    def prepare(self, params: PyTree) -> PyTree:
        return self.model.prepare(params)

    def default_rule(self) -> Rule:
        return self.model.default_rule()

    def default_stop(self) -> Stop:
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

    def coincident(self, params: PyTree) -> Array:
        return self.model.coincident(params)

    def same_optimum(self, elbo: Array, best: Array) -> Array:
        return self.model.same_optimum(elbo, best)

    def slack(self, elbo: Array, total_weight: Array) -> Array:
        return self.model.slack(elbo, total_weight)

    def step_cost(self, data: PyTree) -> int:
        return self.model.step_cost(data)


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

    Examples:
      >>> import jax, jaxem
      >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> model = jaxem.chunked(jaxem.GMM(2), 100)
      >>> jaxem.fit(model, x, key=jax.random.key(1), max_steps=3).params.mixing.shape
      (2,)
    """
    return Chunked(model, size)
