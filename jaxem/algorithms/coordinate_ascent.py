"""Coordinate ascent variational inference for mean-field models."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.algorithm import Algorithm, EMState, accept
from jaxem.core import tree as _tree
from jaxem.core.arguments import check_number
from jaxem.core.ascent import ascend, check_optimizer
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree
from jaxem.elbo import ELBO
from jaxem.model import LatentModel


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

    def validate(self, model: Any, num_rows: int) -> None:
        """Raises TypeError for a model that is no mean-field one, and for settings out of range."""
        if not (isinstance(model, LatentModel) and model.sequential):
            raise TypeError(
                f"algorithm: CoordinateAscent does not suit {type(model).__name__}; it is for mean-field models"
            )
        check_number("damping", self.damping, 0, 1, above=True)
        check_optimizer(self.optimizer, self.num_steps)

    def step(self, model: Any, state: EMState, data: PyTree, weights: Array) -> EMState:
        """Scores the candidate, accepts it or ends the restart, and sweeps on."""
        factors = model.factors()
        # In the model's order: that of the params is alphabetical under jit.
        order = [name for name in factors if not factors[name].local]
        names = [name for name in order if factors[name].conjugate]

        def score(params: PyTree) -> ELBO:
            found = model.elbo_data(params, data, weights)
            return ELBO(found, model.elbo_params(params).astype(found.dtype))

        def update(carry: tuple[PyTree, ELBO], index: Array) -> tuple[tuple[PyTree, ELBO], None]:
            params, scored = carry
            found = model.e_step(params, data, weights)
            total = ELBO(found.elbo_data, model.elbo_params(params).astype(found.elbo_data.dtype))
            best = model.m_step(params, found.stats)
            moved = {
                name: _tree.where(index == names.index(name), self._damped(natural, best[name]), natural)
                if name in names
                else natural
                for name, natural in params.items()
            }
            return (moved, _tree.where(index == 0, total, scored)), None

        if names:
            zero = jnp.zeros((), state.elbo.data.dtype)
            start = (state.candidate, ELBO(zero, zero))
            (candidate, elbo), _ = jax.lax.scan(update, start, jnp.arange(len(names), dtype=jnp.int32))
        else:
            candidate, elbo = state.candidate, score(state.candidate)
        for name in order:
            if name not in names:
                candidate = self._climb(name, factors[name], candidate, score, jnp.sum(weights))
        return accept(model, state, elbo, candidate, weights)

    def _damped(self, old: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: a + jnp.asarray(self.damping, a.dtype) * (b - a), old, new)

    def _climb(self, name: str, factor: Any, params: PyTree, score: Any, total: Array) -> PyTree:
        """Params with the parameters of one factor raised by the optimiser, or as they were."""
        family = factor.family
        objective = lambda own: score({**params, name: family.natural(**own)}).total
        own = family.conventional(params[name])
        raised = ascend(objective, own, family.constraints(factor.dim), self.optimizer, self.num_steps, total)
        same = jnp.all(jnp.stack([jnp.all(a == b) for a, b in zip(raised.values(), own.values(), strict=True)]))
        return {**params, name: _tree.where(same, params[name], family.natural(**raised))}
