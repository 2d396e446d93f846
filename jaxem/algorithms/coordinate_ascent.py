"""Coordinate ascent variational inference for mean-field models."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem import _tree
from jaxem._pytree import dataclass
from jaxem._tree import PyTree
from jaxem.algorithms.em import EM, EMState
from jaxem.elbo import ELBO
from jaxem.stopping import Status


@dataclass
class CoordinateAscent:
    """Coordinate ascent on the ELBO of a `MeanField` model: a step is one sweep over its global factors.

        q_j <- argmax over q_j of ELBO(q_1, ..., q_J),   in the order of model.factors(),   each after a new E-step

    Local factors are solved exactly before every update. No update lowers the ELBO, so a fall beyond rounding ends the
    restart as DECREASED. A sweep costs J E-steps, compiled once.

    Attributes:
      damping: rho in (0, 1]; eta <- (1 - rho) eta + rho eta*, a natural-gradient step of size rho. 1 is coordinate
        ascent; a smaller one is slower, and the ELBO still never falls: its slope along that segment is
        (1 - t) (eta* - eta)' F (eta* - eta) >= 0 with F the Fisher information on the way.

    Examples:
      See `jaxem.MeanField`.

    References:
      Bishop (2006), section 10.1; Hoffman, Blei, Wang and Paisley (2013), section 2.4 (natural gradients).
    """

    damping: float | Array = 1.0

    @property
    def needs_m_step(self) -> bool:
        """True."""
        return True

    def tabulate(self, num_steps: int) -> "CoordinateAscent":
        """The algorithm itself: nothing in it depends on the step."""
        return self

    def settled(self, model: Any, step: Array) -> Array:
        """Always."""
        return jnp.asarray(True)

    def init(self, params: PyTree, num_restarts: int, dtype: Any) -> EMState:
        """The states of all restarts before their first sweep; every leaf of params has a leading axis R."""
        return EM().init(params, num_restarts, dtype)

    def step(self, model: Any, state: EMState, data: PyTree, weights: Array) -> EMState:
        """Scores the candidate, accepts it or ends the restart, and sweeps on."""
        names = list(state.candidate)

        def update(carry: tuple[PyTree, ELBO], index: Array) -> tuple[tuple[PyTree, ELBO], None]:
            params, score = carry
            found = model.e_step(params, data, weights)
            total = ELBO(found.elbo_data, model.elbo_params(params).astype(found.elbo_data.dtype))
            best = model.m_step(params, found.stats)
            moved = {
                name: _tree.where(index == j, self._damped(params[name], best[name]), params[name])
                for j, name in enumerate(names)
            }
            return (moved, _tree.where(index == 0, total, score)), None

        zero = jnp.zeros((), state.elbo.data.dtype)
        start = (state.candidate, ELBO(zero, zero))
        (candidate, elbo), _ = jax.lax.scan(update, start, jnp.arange(len(names), dtype=jnp.int32))
        finite = jnp.isfinite(elbo.total)
        fell = elbo.total < state.elbo.total - model.slack(elbo.total, jnp.sum(weights))
        accepted = finite & ~fell
        ended = jnp.where(finite, Status.DECREASED, Status.NONFINITE)
        return EMState(
            candidate=candidate,
            params=_tree.where(accepted, state.candidate, state.params),
            elbo=_tree.where(accepted, elbo, state.elbo),
            step=state.step + 1,
            status=jnp.where(accepted, state.status, ended).astype(jnp.int32),
        )

    def _damped(self, old: PyTree, new: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: a + jnp.asarray(self.damping, a.dtype) * (b - a), old, new)
