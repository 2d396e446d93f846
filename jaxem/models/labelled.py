"""Models whose latent variable is known, or restricted, for some rows."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import expect, shown
from jaxem.core.assignment import matching
from jaxem.core.numerics import is_concrete, safe_divide
from jaxem.core.pytree import dataclass
from jaxem.core.ragged import labels_of
from jaxem.core.rows import where_it_lies
from jaxem.core.sequences import Sequences
from jaxem.core.stages import in_stages, stage
from jaxem.core.tree import PyTree, sum_rows
from jaxem.model import At, DiscreteAt, DiscreteLatent
from jaxem.rules import Exact
from jaxem.wrappers import InnerAt, Wrapper, unwrapped


@dataclass
class LabelledAt(InnerAt, DiscreteAt):
    """A partly labelled model at params: `inner`, the model inside at its params, with some states ruled out."""

    e_step, posterior = DiscreteAt.e_step, DiscreteAt.posterior
    moved, beside, exchanged = At.moved, At.beside, At.exchanged

    def explain(self, data: PyTree) -> tuple[Array, Any]:
        """log_joint, -inf for states that are not allowed, and the function from resp to statistics."""
        log_joint, collect = self.inner.explain(data[0])
        num = self.model.num_states or log_joint.shape[-1]
        return self.inner.rule_out(log_joint, _allowed(data, num)), collect


@dataclass
class PartlyLabelled(Wrapper, DiscreteLatent):
    """A discrete model whose states are known, or restricted, for some rows; see `partly_labelled`."""

    model: Any

    row_keys: ClassVar[None] = None  # data are a pair
    e_step = DiscreteLatent.e_step  # which a wrapper would leave to the model inside, that takes rows without labels

    def check(self, data: PyTree, params: PyTree | None = None) -> None:
        """Checks the pair, the labels or the mask, and the observations as the model does."""
        if not isinstance(unwrapped(self.model), DiscreteLatent):
            raise TypeError(f"partly_labelled: expected a model with a discrete latent; found {shown(self.model)}")
        if not isinstance(data, tuple) or len(data) != 2 or not hasattr(data[1], "ndim"):
            raise TypeError(f"data: expected a pair (observations, known); found a {type(data).__name__}")
        known, axes = data[1], _axes(data)
        steps = data[0].observed.shape if axes == 2 else known.shape[:1]
        if known.ndim not in (axes, axes + 1) or known.shape[:axes] != steps:
            what = "labels (N,) or a mask (N, K)" if axes == 1 else f"labels {steps} or a mask {(*steps, 'K')}"
            raise ValueError(f"data[1]: expected {what}; found shape {known.shape}")
        if is_concrete(known):
            xp, flat = where_it_lies(known)
            self._check_values(flat.reshape(-1, *flat.shape[axes:]), xp)
        self.model.check(data[0], params)

    def _check_values(self, known: Any, xp: Any) -> None:
        num, first = self.model.num_states, lambda bad: float(known.reshape(-1)[int(xp.argmax(bad.reshape(-1)))])
        if known.ndim == 1:
            top = np.inf if num is None else num - 1
            bad = (known != xp.round(known)) | (known < -1) | (known > top)
            if bool(bad.any()):
                raise ValueError(f"data[1]: expected labels from -1 (unknown) to {top}; found {first(bad):g}")
            return
        if num is not None and known.shape[1] != num:
            raise ValueError(f"data[1]: expected a mask of shape (N, {num}); found {known.shape}")
        bad = (known != 0) & (known != 1)
        if bool(bad.any()):
            raise ValueError(f"data[1]: expected a mask of 0 and 1; found {first(bad):g}")
        none = ~(known != 0).any(1)
        if bool(none.any()):
            raise ValueError(f"data[1]: expected a state allowed in each row; found none in row {int(xp.argmax(none))}")

    def opened(self, data: Any, name: str) -> Any:
        """The pair, its observations as the model takes them, what is known of sequences padded alike."""
        if not isinstance(data, tuple) or len(data) != 2:
            return data  # which `check` refuses
        x, known = self.model.opened(data[0], f"{name}[0]"), data[1]
        return (x, labels_of(known, x, f"{name}[1]")) if isinstance(x, Sequences) else (x, known)

    def bind(self, data: PyTree, weights: Array) -> "PartlyLabelled":
        """Binds the model to the observations."""
        return dataclasses.replace(self, model=self.model.bind(data[0], weights))

    def inside(self, params: PyTree) -> tuple[Any, PyTree]:
        """The model inside, which takes rows without labels."""
        rows = None if self.rows is None else self.rows.part("[0]")
        return dataclasses.replace(self.model, rows=rows).inside(params)

    def arrange(self, data: PyTree) -> PyTree:
        """The data as they are."""
        return data

    def rows_at_once(self, data: PyTree) -> int:
        """Rows of a block of the model inside."""
        return self.model.rows_at_once(data[0])

    def at(self, params: PyTree) -> LabelledAt:
        """The model at params."""
        return LabelledAt(self, params, self.model.at(params))

    def log_joint(self, params: PyTree, data: PyTree) -> Array:
        """(N, K) the model's, with -inf for states that are not allowed."""
        return self.at(params).log_joint(data)

    def statistics(self, params: PyTree, data: PyTree, resp: Array) -> PyTree:
        """The model's statistics."""
        return self.model.statistics(params, data[0], resp)

    @in_stages
    def init(self, key: Array, data: PyTree, weights: Array) -> PyTree:
        """A start of the model, its components matched to the labels, and one M-step that respects them."""
        return _matched(self, self.model.init(key, data[0], weights), data, weights)

    def canonical(self, params: PyTree, reorder: bool | Array = True) -> PyTree:
        """Components in the order that they have: the labels name them."""
        return self.model.canonical(params, reorder=False)


@stage()
def _matched(model: PartlyLabelled, params: PyTree, data: PyTree, weights: Array) -> PyTree:
    """Params with the components in the order of the labels, after one M-step that respects them."""
    x, here = data[0], model.model.at(params)
    resp = here.posterior(x, Exact())
    num, counts = resp.shape[-1], weights
    allowed = _allowed(data, num).reshape(-1, num)
    if isinstance(x, Sequences):
        resp, counts = resp.reshape(-1, num), model.model.structure.row_weights(weights, x)
    # What a row says about state k: nothing where all states are allowed.
    told = jnp.where(
        jnp.all(allowed, 1, keepdims=True),
        0,
        safe_divide(allowed.astype(resp.dtype), allowed.sum(1, keepdims=True).astype(resp.dtype)),
    )
    order = matching((counts[:, None] * told).T @ resp)
    resp = jnp.where(allowed, resp[:, order] + 1e-3, 0)
    resp = resp / jnp.sum(resp, 1, keepdims=True)
    if isinstance(x, Sequences):
        return model.model.from_partition(x, resp, weights)
    resp = weights[:, None] * resp
    collect = lambda rows, w: here.statistics(rows[0], jnp.where((w > 0)[:, None], rows[1], 0))
    return here.m_step(sum_rows(collect, (x, resp), weights, model.rows_at_once(data)))


def _axes(data: PyTree) -> int:
    """How many axes labels have: of rows, or of sequences and steps."""
    return 2 if isinstance(data[0], Sequences) else 1


def _allowed(data: PyTree, num: int) -> Array:
    """(N, K) which states labels or a mask allow; of sequences (S, T, K)."""
    known = data[1]
    if known.ndim > _axes(data):
        return known > 0
    states = jnp.arange(num).astype(known.dtype).reshape((1,) * known.ndim + (num,))
    return (known[..., None] < 0) | (known[..., None] == states)


def partly_labelled(model: DiscreteLatent) -> PartlyLabelled:
    """The model, for data whose hidden states are known for some rows or restricted for others.

    Labels are hidden information brought to light: the log-joint of a state that a row does not allow is -inf, and all
    else, from restarts to weights, goes on as before. ELBO.data is sum_n log p(x_n, z_n in allowed_n). Components keep
    the order of the labels; a start matches the model's random components to them.

    The data are a pair (x, known), where known is

        (N,) labels: the state of each row, -1 where it is unknown
        (N, K) a mask: 1 where a state is allowed, 0 where it is forbidden

    For sequences it has the form that they have, a number or K for each step: (T,), a list of (T_i,), (S, T).

    Args:
      model: any `DiscreteLatent`, such as `GMM(3)`, in any wrapper. It is asked for its log-joints: a wrapper with an
        E-step of its own has that where it goes around this model.

    Returns:
      A model. `fit.predict(x)`, `fit.posterior(x)` ... take new rows without labels; `fit.model.posterior(fit.params,
      (x, known))` rows with them. A start makes one (N, K) array.

    Raises:
      TypeError: no model with a discrete latent.

    Examples:
      >>> import jax, jaxem
      >>> x = jnp.array([[0.0], [0.2], [0.1], [3.0], [3.3], [2.8]])
      >>> labels = jnp.array([1, -1, -1, 0, -1, -1])
      >>> fit = jaxem.fit(partly_labelled(jaxem.GMM(2)), (x, labels), key=jax.random.key(0))
      >>> fit.predict(x).tolist()
      [1, 1, 1, 0, 0, 0]

    References:
      McLachlan and Peel (2000), Finite Mixture Models, chapter 2.
    """
    expect("model", unwrapped(model), DiscreteLatent, "a model with a discrete latent, as jaxem.GMM(3)")
    return PartlyLabelled(model)  # type: ignore[abstract]
