"""Wrappers: the same model with its E-step computed in pieces, or with part of its latent variable known."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem._arguments import check_integer, expect, shown
from jaxem._numerics import is_concrete, safe_divide
from jaxem._pytree import dataclass, static
from jaxem._rows import takes_rows
from jaxem._tree import PyTree, float_dtype, map_rows, num_rows, sum_rows
from jaxem.model import DiscreteLatent, ELBOModel, EStep, Health, LatentModel
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


@dataclass
class PartlyLabelled(Wrapper, DiscreteLatent):
    """A discrete model whose states are known, or restricted, for some rows; see `partly_labelled`."""

    model: Any

    def validate(self, data: PyTree, params: PyTree | None) -> None:
        """What the model checks."""
        self.model.validate(data[0], params)

    def row_keys(self) -> tuple[str, ...] | None:
        """None: data are a pair."""
        return None

    def check_rows(self, data: PyTree, params: PyTree | None = None) -> None:
        """Checks the pair, the labels or the mask, and the observations as the model does."""
        if not isinstance(self.model, DiscreteLatent):
            raise TypeError(f"partly_labelled: expected a model with a discrete latent; found {shown(self.model)}")
        if not isinstance(data, tuple) or len(data) != 2 or not hasattr(data[1], "ndim"):
            raise TypeError(f"data: expected a pair (observations, known); found a {type(data).__name__}")
        known = data[1]
        if known.ndim not in (1, 2):
            raise ValueError(f"data[1]: expected labels (N,) or a mask (N, K); found shape {known.shape}")
        if is_concrete(known):
            self._check_values(np.asarray(known))
        self.model.check_rows(data[0], params)

    def _check_values(self, known: np.ndarray) -> None:
        num = getattr(self.model, "num_components", getattr(self.model, "num_clusters", None))
        if known.ndim == 1:
            top = np.inf if num is None else num - 1
            bad = known[(known != np.round(known)) | (known < -1) | (known > top)]
            if bad.size:
                raise ValueError(f"data[1]: expected labels from -1 (unknown) to {top}; found {bad[0]:g}")
            return
        if num is not None and known.shape[1] != num:
            raise ValueError(f"data[1]: expected a mask of shape (N, {num}); found {known.shape}")
        if not np.isin(known, (0, 1)).all():
            raise ValueError(f"data[1]: expected a mask of 0 and 1; found {known[~np.isin(known, (0, 1))][0]:g}")
        if not known.any(1).all():
            raise ValueError(
                f"data[1]: expected a state allowed in each row; found none in row {np.argmin(known.any(1))}"
            )

    def bind(self, data: PyTree, weights: Array) -> "PartlyLabelled":
        """Binds the model to the observations."""
        return PartlyLabelled(self.model.bind(data[0], weights))

    def inside(self, params: PyTree) -> tuple[Any, PyTree]:
        """The model inside, which takes rows without labels."""
        rows = None if self.rows is None else self.rows.part("[0]")
        return dataclasses.replace(self.model, rows=rows).inside(params)

    def arrange(self, data: PyTree) -> PyTree:
        """The data as they are."""
        return data

    def _rows(self, data: PyTree) -> int:
        return self.model._rows(data[0])

    def _allowed(self, known: Array, num: int) -> Array:
        if known.ndim == 2:
            return known > 0
        return (known[:, None] < 0) | (known[:, None] == jnp.arange(num).astype(known.dtype)[None])

    def log_joint(self, params: PyTree, data: PyTree) -> Array:
        """(N, K) the model's, with -inf for states that are not allowed."""
        log_joint = self.model.log_joint(params, data[0])
        return jnp.where(self._allowed(data[1], log_joint.shape[1]), log_joint, -jnp.inf)

    def statistics(self, params: PyTree, data: PyTree, resp: Array) -> PyTree:
        """The model's statistics."""
        return self.model.statistics(params, data[0], resp)

    def explain(self, params: PyTree, data: PyTree) -> tuple[Array, Any]:
        """log_joint, and the function from resp to statistics, sharing the model's work."""
        log_joint, collect = self.model.explain(params, data[0])
        return jnp.where(self._allowed(data[1], log_joint.shape[1]), log_joint, -jnp.inf), collect

    def init(self, key: Array, data: PyTree, weights: Array) -> PyTree:
        """A start of the model, its components matched to the labels, and one M-step that respects them."""
        import optax  # here, because it takes as long to import as all of jaxem

        x, known = data
        params = self.model.prepare(self.model.init(key, x, weights))
        resp = jax.nn.softmax(self.model.log_joint(params, x), 1)
        allowed = self._allowed(known, resp.shape[1])
        # What a row says about state k: nothing where all states are allowed.
        told = jnp.where(
            jnp.all(allowed, 1, keepdims=True),
            0,
            safe_divide(allowed.astype(resp.dtype), allowed.sum(1, keepdims=True).astype(resp.dtype)),
        )
        overlap = (weights[:, None] * told).T @ resp
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            rows, columns = optax.assignment.hungarian_algorithm(-overlap)
        order = columns[jnp.argsort(rows)]
        resp = jnp.where(allowed, resp[:, order] + 1e-3, 0)
        resp = weights[:, None] * resp / jnp.sum(resp, 1, keepdims=True)
        collect = lambda rows, w: self.model.statistics(params, rows[0], jnp.where((w > 0)[:, None], rows[1], 0))
        return self.model.m_step(params, sum_rows(collect, (x, resp), weights, self._rows(data)))

    def canonical(self, params: PyTree) -> PyTree:
        """Components as they are: the labels name them."""
        return self.model.adopt(params)


def partly_labelled(model: DiscreteLatent) -> PartlyLabelled:
    """The model, for data whose hidden states are known for some rows or restricted for others.

    Labels are hidden information brought to light: the log-joint of a state that a row does not allow is -inf, and all
    else, from restarts to weights, goes on as before. ELBO.data is sum_n log p(x_n, z_n in allowed_n). Components keep
    the order of the labels; a start matches the model's random components to them.

    The data are a pair (x, known), where known is

        (N,) labels: the state of each row, -1 where it is unknown
        (N, K) a mask: 1 where a state is allowed, 0 where it is forbidden

    Args:
      model: any `DiscreteLatent`, such as `GMM(3)`.

    Returns:
      A model. `fit.predict(x)`, `fit.posterior(x)` ... take new rows without labels; `fit.model.posterior(fit.params,
      (x, known))` rows with them. A start makes one (N, K) array.

    Raises:
      TypeError: no model with a discrete latent.

    Examples:
      >>> import jaxem
      >>> x = jnp.array([[0.0], [0.2], [0.1], [3.0], [3.3], [2.8]])
      >>> labels = jnp.array([1, -1, -1, 0, -1, -1])
      >>> fit = jaxem.fit(partly_labelled(jaxem.GMM(2)), (x, labels), key=jax.random.key(0))
      >>> fit.predict(x).tolist()
      [1, 1, 1, 0, 0, 0]

    References:
      McLachlan and Peel (2000), Finite Mixture Models, chapter 2.
    """
    expect("model", model, DiscreteLatent, "a model with a discrete latent, as jaxem.GMM(3)")
    return PartlyLabelled(model)
