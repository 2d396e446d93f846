"""Stochastic EM: a chain of params from drawn states, and the params of its averaged statistics."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.algorithms.algorithm import Algorithm, EMState, Found, Rows, accept, at_candidate
from jaxem.core import tree as _tree
from jaxem.core.arguments import check_whole
from jaxem.core.assignment import matching
from jaxem.core.keys import DRAWS, own_or_fits
from jaxem.core.numerics import einsum
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.model import At, LatentModel
from jaxem.rules import Exact, Sampled
from jaxem.stopping import Status

# Rows by which labels are aligned: enough to tell components apart, few beside an E-step.
ALIGN_ROWS = 500


@dataclass
class _Chain:
    """What a sweep changes: the chain's params, and the mean of the statistics so far.

    `stats` is that mean, each part taken relative to the params `reference`, and `average` its M-step.
    """

    params: PyTree
    reference: PyTree
    stats: PyTree
    average: PyTree


@dataclass
class StochasticEM(Algorithm):
    """Stochastic EM: the M-step of statistics averaged over a chain of EM sweeps with drawn states.

        S: z_n ~ p(z | x_n, theta_t) for every row          M: theta_{t+1} = arg max log p(x, z | theta) + G(theta)

    After `burn_in` sweeps the statistics of `num_draws` sweeps are averaged, each rebased to the same reference params,
    and the result is the M-step of their mean, with its own ELBO. It is near a maximum of the likelihood (within a bias
    of order 1 / N and Monte Carlo error of order 1 / sqrt(num_draws)), not at one: run `EM` from it where that
    matters. The chain can leave poor optima and saddles that EM stays at. To see the chain itself, with its
    log-likelihood in the trace, use `EM(Sampled())`.

    The components of a mixture are renamed after every sweep by the permutation whose posteriors overlap most with
    those of the average so far (on 500 rows), so that labels that switch within a chain are not averaged into each
    other. Models without interchangeable parts (their `canonical` orders none) are taken as they are.

    Under `fit` the whole chain is one step: trace[0] is the ELBO of the start, trace[1] that of the averaged params.
    There is nothing to converge: every restart ends as MAX_STEPS, or as NONFINITE with its start. Restart i draws with
    fold_in(key, i), a stream of its own. Cost: burn_in + num_draws + 1 E-steps, memory of one.

    Attributes:
      key: random key of the draws; None for that of the fit.
      burn_in: sweeps before averaging, an integer >= 0.
      num_draws: sweeps averaged, an integer >= 1.

    Examples:
      >>> import jaxem
      >>> x = jax.random.normal(jax.random.key(0), (200, 1)).at[:100].add(8.0)
      >>> algorithm = StochasticEM(burn_in=5, num_draws=20)
      >>> fit = jaxem.fit(jaxem.GMM(2), x, key=jax.random.key(2), algorithm=algorithm)
      >>> print(fit.params.mixing.round(2), jaxem.Status(int(fit.status)).name)
      [0.5 0.5] MAX_STEPS

    References:
      Celeux and Diebolt (1985), The SEM algorithm; Nielsen (2000), The stochastic EM algorithm, Bernoulli 6; Stephens
      (2000), Dealing with label switching in mixture models, JRSS B 62, for the alignment by posteriors.
    """

    key: Array | None = None
    burn_in: int | Array = 50
    num_draws: int | Array = 200

    open_ended: ClassVar[bool] = True

    def prepare(self, model: Any, data: PyTree, key: Array, num_steps: int) -> "StochasticEM":
        """The algorithm with its key; raises for a model, counts or a key that are none."""
        super().prepare(model, data, key, num_steps)
        for name, value, least in (("burn_in", self.burn_in, 0), ("num_draws", self.num_draws, 1)):
            check_whole(name, value, least)
        return dataclasses.replace(self, key=own_or_fits(self.key, key, DRAWS))

    def settled(self, model: LatentModel, step: Array) -> Array:
        """False: no stop rule applies."""
        return jnp.asarray(False)

    def evaluate(self, model: LatentModel, state: EMState, data: PyTree, weights: Array) -> Found:
        """The E-step at the candidate with drawn states: the first of a chain, and the score of the candidate."""
        found = at_candidate(model, state).e_step(data, weights, self._rule(state).at(jnp.int32(0)))
        return Found(found.stats, found.elbo_data, jnp.sum(weights))

    def update(self, model: LatentModel, state: EMState, found: Found, rows: Rows | None = None) -> EMState:
        """Accepts the start and runs the chain from it, for which it needs the rows, or accepts the chain's average."""
        assert rows is not None
        start, zero = state.candidate, jnp.zeros((), jnp.int32)
        first = self._go_on(at_candidate(model, state), _Chain(start, start, found.stats, start), found, zero, rows)
        return self._close(model, state, found, self._run(model, state, first, zero + 1, rows)[0])

    def step(self, model: LatentModel, state: EMState, data: PyTree, weights: Array) -> EMState:
        """`update` of what `evaluate` finds, the first E-step being one of those in the loop: compiled once."""
        start, zero = state.candidate, jnp.zeros((), jnp.int32)
        shapes = jax.eval_shape(lambda: model.at(start).e_step(data, weights, self._rule(state)))
        stats = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes.stats)
        chain, score = self._run(model, state, _Chain(start, start, stats, start), zero, (data, weights))
        return self._close(model, state, Found((), score, jnp.sum(weights)), chain)

    def _rule(self, state: EMState) -> Sampled:
        return Sampled(self.key).fold(state.restart)

    def _close(self, model: LatentModel, state: EMState, found: Found, chain: _Chain) -> EMState:
        """The end of a step: the candidate is accepted, and the average of the chain from it is the next."""
        log_prior = model.at(state.candidate).elbo_params()
        after = accept(model, state, found, log_prior, chain.average, promised=False)
        ended = (state.step > 0) & (after.status == Status.RUNNING)
        return dataclasses.replace(after, status=jnp.where(ended, Status.MAX_STEPS, after.status).astype(jnp.int32))

    def _run(self, model: LatentModel, state: EMState, chain: _Chain, first: Array, rows: Rows) -> tuple[_Chain, Array]:
        """The chain at its end, from sweep `first` on, and ELBO.data of the params of sweep `first`.

        The average is scored by a step of one sweep: the program holds one E-step.
        """
        num = jnp.where(state.step == 0, jnp.asarray(self.burn_in + self.num_draws).astype(jnp.int32), 1)
        rule = self._rule(state)

        def sweep(i: Array, carry: tuple[_Chain, Array]) -> tuple[_Chain, Array]:
            here = model.at(carry[0].params)
            found = here.e_step(*rows, rule.at(i))
            score = jnp.where(i == first, found.elbo_data, carry[1])
            return self._go_on(here, carry[0], found, i, rows), score

        return jax.lax.fori_loop(first, num, sweep, (chain, jnp.zeros((), state.elbo.data.dtype)))

    def _go_on(self, here: At, chain: _Chain, found: Any, sweep: Array, rows: Rows) -> _Chain:
        """The chain after a sweep that drew the states behind `found`."""
        count = sweep - jnp.asarray(self.burn_in).astype(jnp.int32) + 1
        fresh = count <= 1  # until then the mean is the last draw
        reference = _tree.where(fresh, chain.params, chain.reference)
        share = 1 / jnp.maximum(count, 1).astype(found.elbo_data.dtype)
        there = here.model.at(reference)
        moved = here.rebase(found.stats, there)
        mean = jax.tree.map(lambda m, s: jnp.where(fresh, s, m + (s - m) * share), chain.stats, moved)
        # Both M-steps as one vmapped, in the burn-in too, where they are the same: compiled once.
        pairs = jax.tree.map(lambda *pair: jnp.stack(pair), (here, found.stats), (there, mean))
        both = jax.vmap(lambda at, stats: at.m_step(stats))(*pairs)
        following, average = (jax.tree.map(lambda a, k=k: a[k], both) for k in (0, 1))
        return _Chain(_align(here.model, following, average, rows[0]), reference, mean, average)


def _align(model: Any, params: PyTree, average: PyTree, data: PyTree) -> PyTree:
    """Params with components renamed to match those of `average`; as they are for models without interchangeable ones.

    The sum over rows of p(k | x, params) p(j | x, average) is maximised over permutations, ties to the labels as
    they are. The same params in another order are put back exactly (Cauchy-Schwarz).
    """
    if model.num_states in (None, 1):
        return params
    stride = max(1, _tree.num_rows(data) // ALIGN_ROWS)
    rows = jax.tree.map(lambda a: a[::stride], data)
    pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, average)
    told = lambda params: model.at(params).posterior(rows, Exact()).reshape(-1, model.num_states)
    new, old = jax.vmap(told)(pair)
    overlap = einsum("nj,nk->jk", old, new) + 1e-3 * jnp.eye(model.num_states, dtype=new.dtype)
    return model.canonical(params, matching(overlap))
