"""Coordinate ascent variational inference for mean-field models."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.algorithm import Algorithm, EMState, Found, Rows, accept
from jaxem.core import tree as _tree
from jaxem.core.arguments import check_number
from jaxem.core.ascent import ascend, check_optimizer
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree


@dataclass
class CoordinateAscent(Algorithm):
    """Coordinate ascent on the ELBO of a `MeanField` model: a step is one sweep over its global factors.

        q_j <- argmax over q_j of ELBO(q_1, ..., q_J),   in the order of model.factors(),   each after a new E-step

    Local factors are solved exactly before every update. No update lowers the ELBO, so a fall beyond rounding ends the
    restart as DECREASED. A sweep costs J E-steps, compiled once.

    Attributes:
      damping: rho in (0, 1]; eta <- (1 - rho) eta + rho eta*, a natural-gradient step of size rho. 1 is coordinate
        ascent; a smaller one is slower, and the ELBO still never falls: its slope along that segment is
        (1 - t) (eta* - eta)' F (eta* - eta) >= 0 with F the Fisher information on the way. For conjugate factors.
      optimizer: an optax `GradientTransformation` for the factors that are not conjugate, after the others in each
        sweep and in unconstrained coordinates; None for `optax.lbfgs()`. A result that lowers the ELBO is halved back
        and at last not taken, as in `GeneralizedEM`.
      num_steps: its updates in one sweep.

    Examples:
      See `jaxem.MeanField`.

    References:
      Bishop (2006), section 10.1; Hoffman, Blei, Wang and Paisley (2013), Stochastic
      variational inference (natural gradients).
    """

    damping: float | Array = 1.0
    optimizer: Any = static(default=None)
    num_steps: int = static(default=5)

    climbs_by: ClassVar[str] = "coordinates"

    def prepare(self, model: Any, data: PyTree, key: Array, num_steps: int) -> "CoordinateAscent":
        """The algorithm itself; raises TypeError for a model without factors, ValueError for settings out of range."""
        super().prepare(model, data, key, num_steps)
        check_number("damping", self.damping, 0, 1, above=True)
        check_optimizer(self.optimizer, self.num_steps)
        return self

    def evaluate(self, model: Any, state: EMState, data: PyTree, weights: Array) -> Found:
        """The E-step at the candidate, from which the first factor is updated."""
        found = model.e_step(state.candidate, data, weights)
        return Found(found.stats, found.elbo_data, jnp.sum(weights))

    def update(self, model: Any, state: EMState, found: Found, rows: Rows | None = None) -> EMState:
        """Accepts the candidate or ends the restart, and sweeps on; needs rows unless there is only one factor."""
        params, num = state.candidate, len(_names(model, conjugate=True))
        if num > 0:
            params = self._improve(model, params, 0, found.stats)
        if num > 1:
            params, _ = self._sweep(model, params, jnp.arange(1, num, dtype=jnp.int32), rows)
        return self._close(model, state, found, model.elbo_params(state.candidate), params, rows)

    def step(self, model: Any, state: EMState, data: PyTree, weights: Array) -> EMState:
        """`update` of what `evaluate` finds, the first E-step being one of those in the loop: compiled once."""
        num = len(_names(model, conjugate=True))
        if num == 0:
            return super().step(model, state, data, weights)
        index = jnp.arange(num, dtype=jnp.int32)
        params, scores = self._sweep(model, state.candidate, index, (data, weights))
        value, log_prior = (score[0] for score in scores)
        return self._close(model, state, Found((), value, jnp.sum(weights)), log_prior, params, (data, weights))

    def _sweep(self, model: Any, params: PyTree, index: Array, rows: Rows | None) -> Any:
        """Params after the updates of some factors in turn, and (ELBO.data, ELBO.params) before each."""
        assert rows is not None

        def body(params: PyTree, i: Array) -> tuple[PyTree, tuple[Array, Array]]:
            found = model.e_step(params, *rows)
            scores = found.elbo_data, model.elbo_params(params)  # here, as it shares the factors' means
            return self._improve(model, params, i, found.stats), scores

        return jax.lax.scan(body, params, index)

    def _improve(self, model: Any, params: PyTree, index: Array | int, stats: PyTree) -> PyTree:
        """Params with conjugate factor number `index` moved to its optimum."""
        best = model.m_step(params, stats)
        # All are computed and one is used: a program for each would take a third longer to compile, for three factors.
        moved = {
            name: _tree.where(jnp.equal(index, i), self._damped(params[name], best[name]), params[name])
            for i, name in enumerate(_names(model, conjugate=True))
        }
        return {**params, **moved}

    def _close(
        self, model: Any, state: EMState, found: Found, log_prior: Array, params: PyTree, rows: Rows | None
    ) -> EMState:
        """The end of a step: factors that are not conjugate climb, the candidate is accepted, params are the next."""
        for name in _names(model, conjugate=False):
            assert rows is not None
            params = self._climb(model, name, params, rows, found.weight)
        return accept(model, state, found, log_prior, params)

    def _damped(self, old: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: a + jnp.asarray(self.damping, a.dtype) * (b - a), old, new)

    def _climb(self, model: Any, name: str, params: PyTree, rows: Rows, total: Array) -> PyTree:
        """Params with the parameters of one factor raised by the optimiser, or as they were."""
        factor = model.factors()[name]
        family = factor.family

        def objective(own: PyTree) -> Array:
            moved = {**params, name: family.natural(**own)}
            value = model.elbo_data(moved, *rows)
            return value + model.elbo_params(moved).astype(value.dtype)

        own = family.conventional(params[name])
        raised = ascend(objective, own, family.constraints(factor.dim), self.optimizer, self.num_steps, total)
        same = jnp.all(jnp.stack([jnp.all(a == b) for a, b in zip(raised.values(), own.values(), strict=True)]))
        return {**params, name: _tree.where(same, params[name], family.natural(**raised))}


def _names(model: Any, conjugate: bool) -> list[str]:
    """The global factors of one kind in the model's order: that of the params is alphabetical under jit."""
    return [name for name, factor in model.factors().items() if not factor.local and factor.conjugate == conjugate]
