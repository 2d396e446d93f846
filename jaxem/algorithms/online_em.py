"""Online EM: a moving average of the statistics of minibatches, driven by `fit` or fed one batch at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.algorithms import _stepwise
from jaxem.algorithms._stepwise import OnlineState
from jaxem.algorithms.algorithm import (
    Algorithm,
    EMState,
    Found,
    Rows,
    accept,
    at_candidate,
    check_climbs,
    check_rule,
    prepared,
    rule_at,
    rule_of,
)
from jaxem.core import rows as _rows
from jaxem.core import tree as _tree
from jaxem.core.arguments import check_flag, check_integer, check_number, expect, shown
from jaxem.core.foreign import named_fields
from jaxem.core.inputs import as_params, cast_floats
from jaxem.core.keys import ORDER, own_or_fits
from jaxem.core.mesh import real_rows, take_rows
from jaxem.core.numerics import is_concrete
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree
from jaxem.core.whole import num_all
from jaxem.model import LatentModel
from jaxem.rules import Rule


@named_fields
@dataclass
class OnlineEM(Algorithm):
    """Online (stepwise) EM: each minibatch moves the statistics a little, and an M-step follows.

        s <- (1 - rho_t) s + rho_t (W / W_b) sum_{n in batch} w_n s(x_n; theta),      theta <- m_step(s)

    for every model with additive statistics; for `KMeans` it is minibatch K-means. W is the weight of all rows and W_b
    that of the batch (N and B without weights): W / W_b keeps the data's strength beside priors and penalties, and a
    batch padded with rows of weight 0, or with one row of weight 2 in place of two, is the same batch. Where weights
    differ, batches of equal rows have unequal weight but count alike, a bias of order 1 / B; a batch without any weight
    changes no statistics. Statistics that are relative to the params they were taken at are carried along by
    `model.rebase`. Memory: one batch and two sets of statistics, whatever the number of rows.

    Driven, `fit(model, data, algorithm=OnlineEM(B), max_steps=passes)`: a step scores the params on all rows,
    so that the ELBO reported is exactly theirs, and takes one pass over the rows in ceil(N / B) shuffled batches whose
    sizes differ by at most one, each row once; so a step costs two passes and no memory. The pass starts
    from the statistics of the scoring E-step, which are there anyway: errors do not add up over passes, and a cluster
    of K-means that lost its rows has count 0 there and is moved, while a moving average alone only ever halves it. With
    B = N the step is EM's, whatever the rate. All restarts see the same batches. Of a `jaxem.stream` the pass is a
    second reading, in an order that goes with the key; its batches do not reach across those of the stream.

    Streaming, batches fed one at a time: `begin`, then `update` for each; `estimate` reads the params off a state.

    Not monotone: a lower ELBO ends nothing (no DECREASED), and the params returned are those of the last pass that are
    finite, not the best seen. A fit is CONVERGED when a pass changes the ELBO by less than the stop rule's bound, which
    at a constant rate noise forbids and at a falling one only says that steps are small: give `max_steps` by time.
    An M-step that gives NaN (a component without rows in a user's model) is not taken; the statistics go on.

    **How far from the optimum.** At a small constant rate rho the expected shortfall of the log-likelihood is at most

        rho N p / (4 B) nats,       p the number of free parameters,

    so divide it by N: rho p / (4 B) per row. Near the optimum let I_o and I_c be the observed and the complete-data
    information of all N rows, and A = I_c^-1 I_o, with eigenvalues in [0, 1]. A batch is off by a score of covariance
    (N / B) I_o, which an M-step maps to I_c^-1 times it, so the error d of the params obeys d <- (1 - rho A) d + rho e
    with Cov e = (N / B) I_c^-1 I_o I_c^-1. Its stationary covariance S solves A S + S A' = rho Cov e (first order in
    rho): S = rho N / (2 B) I_c^-1. The shortfall tr(I_o S) / 2 = rho N / (4 B) tr A, and tr A <= p: equality if nothing
    is hidden. Drawing without replacement and starting each pass afresh only lower it. It holds for well-specified
    models whose batches keep all components filled, at rates where 1 - rho / 2 is about 1.

    Attributes:
      batch_size: B, at most N rows in a batch.
      rate: rho in (0, 1]; a number, an array over updates (its last entry is kept) or a callable of the update, as an
        optax schedule, which `fit` tabulates for the first 65536 updates. None: (t + 2)^-kappa, t counting updates from
        0 over all passes.
      kappa: exponent of the default rate, in [0, 1]; above 1/2 the iterates converge. Used only if rate is None.
      average: whether to average the statistics over updates (Polyak), update t of a pass or a stream weighted by about
        t^3. Averages of statistics, unlike those of params, respect all constraints and need no unconstrained
        coordinates. A fit restarts the average in each pass, and the next pass from the averaged params.
      rule: the E-step rule; None for the model's own. Its schedule, if any, counts passes in a fit, updates in a
        stream, where it must be an array.
      key: random key of the shuffles; None for that of the fit.

    Examples:
      >>> import jaxem
      >>> x = jax.random.normal(jax.random.key(0), (1000, 1)).at[:500].add(6.0)
      >>> algorithm = OnlineEM(50)
      >>> fit = jaxem.fit(jaxem.GMM(2), x, key=jax.random.key(2), algorithm=algorithm, max_steps=5)
      >>> sorted(round(mean) for mean in fit.params.components.mean[:, 0].tolist())
      [0, 6]

      The same as a stream, from a sample:

      >>> model = jaxem.GMM(2).bind(x[::10], jnp.ones(100))
      >>> params = model.init(jax.random.key(3), x[::10], jnp.ones(100))
      >>> state = algorithm.begin(model, params, x[::10], num_rows=1000)
      >>> for batch in jax.random.permutation(jax.random.key(4), x).reshape(20, 50, 1):
      ...     state = algorithm.update(model, state, batch)
      >>> sorted(round(mean) for mean in algorithm.estimate(model, state).components.mean[:, 0].tolist())
      [0, 6]

    References:
      Cappe and Moulines (2009), On-line expectation-maximization algorithm for latent data models, JRSS B 71; Liang and
      Klein (2009), Online EM for unsupervised models; Shamir and Zhang (2013), Stochastic gradient descent for
      non-smooth optimization (the weights of the average).
    """

    batch_size: int = static()
    rate: float | Array | np.ndarray | Callable[[int], Any] | None = None
    kappa: float | Array = dataclasses.field(default=0.6, kw_only=True)
    average: bool = static(default=False, kw_only=True)
    rule: Rule | None = dataclasses.field(default=None, kw_only=True)
    key: Array | None = dataclasses.field(default=None, kw_only=True)

    open_ended: ClassVar[bool] = True
    reads: ClassVar[str] = "pass"

    def prepare(self, model: Any, data: PyTree, key: Array, num_steps: int) -> "OnlineEM":
        """The algorithm with callables replaced by arrays; checks the settings, the model and the size of a batch."""
        super().prepare(model, data, key, num_steps)
        self._check(model)
        num = num_all(_tree.num_rows(data))
        if self.batch_size > num:
            raise ValueError(f"batch_size: expected at most the number of rows, {num}; found {self.batch_size}")
        rate = _stepwise.tabulated(self.rate) if callable(self.rate) else self.rate
        return dataclasses.replace(
            self, rate=rate, rule=prepared(self.rule, model, key, num_steps), key=own_or_fits(self.key, key, ORDER)
        )

    def _check(self, model: Any) -> None:
        """Raises TypeError or ValueError for settings of the wrong class or out of range."""
        check_integer("batch_size", self.batch_size, 1)
        if not callable(self.rate) and self.rate is not None:
            _stepwise.check_rates(self.rate)
        check_number("kappa", self.kappa, 0, 1, what="a number in [0, 1]")
        check_flag("average", self.average)
        check_rule(self.rule, model)

    def _check_stream(self, model: Any) -> None:
        """The settings' checks, and those of the rule, whose schedule must be an array: a stream has no last step."""
        self._check(model)
        if self.rule is not None:
            if any(callable(value) for value in vars(self.rule).values()):
                raise TypeError(
                    f"rule: expected its schedule as an array in a stream; found {shown(self.rule)}; tabulate it, as "
                    "jnp.array([schedule(t) for t in range(100)])"
                )
            self.rule.prepare(None, 0)

    def _rate(self, step: Array, dtype: Any) -> Array:
        """Rho of the update after `step` others."""
        if self.rate is None:
            return (step.astype(dtype) + 2) ** -jnp.asarray(self.kappa, dtype)
        table = jnp.asarray(self.rate, dtype)
        return table if table.ndim == 0 else table.at[step].get(mode="clip")

    def settled(self, model: LatentModel, step: Array) -> Array:
        """Whether a stop rule may be trusted from `step` on: once the E-step rule has settled."""
        return rule_of(self.rule, model).settled(step)

    def evaluate(self, model: LatentModel, state: EMState, data: PyTree, weights: Array) -> Found:
        """The E-step at the candidate, on all rows."""
        rule = rule_at(self.rule, model, state)
        found = at_candidate(model, state).e_step(data, weights, rule)
        return Found(found.stats, found.elbo_data, jnp.sum(weights))

    def _sweep(self, model: LatentModel, state: EMState, found: Found, rows: Rows) -> EMState:
        """Accepts the candidate if finite, and takes one pass over shuffled batches."""
        data, weights = rows
        if real_rows(_tree.num_rows(data)) > self.batch_size:
            return self.end_pass(model, state, found, self._pass(model, state, found, data, weights))
        here = at_candidate(model, state)  # the batch's statistics are those of all rows
        return accept(model, state, found, here.elbo_params(), here.m_step(found.stats), promised=False)

    def begin_pass(self, model: LatentModel, state: EMState, found: Found) -> OnlineState:
        """The statistics of all rows at the candidate."""
        average = found.stats if self.average else None
        zero = jnp.zeros((), jnp.int32)
        return OnlineState(state.candidate, found.stats, average, zero, zero, found.weight)

    def in_pass(
        self, model: LatentModel, state: EMState, now: OnlineState, data: PyTree, weights: Array, number: Array
    ) -> OnlineState:
        """After the updates, on about `batch_size` rows each, that some shuffled rows make."""
        num = _tree.num_rows(data)
        batches = -(-num // self.batch_size)
        slots = jnp.arange(-(-num // batches), dtype=jnp.int32)
        rule = rule_at(self.rule, model, state)

        def body(now: OnlineState, batch: Array) -> tuple[OnlineState, None]:
            index = batch * slots.shape[0] + slots
            some, w = take_rows((data, weights), jnp.minimum(index, num - 1))
            w = jnp.where(index < num, w, 0)
            rate = self._rate(number * batches + batch, w.dtype)
            return _stepwise.absorb(model, now, some, w, rate, rule), None

        return jax.lax.scan(body, now, jnp.arange(batches, dtype=jnp.int32))[0]

    def end_pass(self, model: LatentModel, state: EMState, found: Found, now: OnlineState) -> EMState:
        """Accepts the candidate if finite; the next is what the pass has come to."""
        log_prior = at_candidate(model, state).elbo_params()
        return accept(model, state, found, log_prior, self.estimate(model, now), promised=False)

    def _pass(self, model: LatentModel, state: EMState, found: Found, data: PyTree, weights: Array) -> OnlineState:
        """One pass over all rows in a random order, from the statistics of all rows at the candidate."""
        num = real_rows(_tree.num_rows(data))
        batches = -(-num // self.batch_size)
        dtype, small, longer = weights.dtype, num // batches, num % batches
        assert self.key is not None  # `prepare` has set it
        key = jax.random.fold_in(self.key, state.step)
        slots = jnp.arange(small + (longer > 0), dtype=jnp.int32)
        rule = rule_at(self.rule, model, state)

        def body(now: OnlineState, number: Array) -> tuple[OnlineState, None]:
            start = number * small + jnp.minimum(number, longer)
            size = small + (number < longer).astype(jnp.int32)
            index = _stepwise.shuffled(key, jnp.minimum(start + slots, num - 1), num)
            batch, w = take_rows((data, weights), index)
            w = jnp.where(slots < size, w, 0)
            rate = self._rate(state.step * batches + number, dtype)
            return _stepwise.absorb(model, now, batch, w, rate, rule), None

        start = self.begin_pass(model, state, found)
        return jax.lax.scan(body, start, jnp.arange(batches, dtype=jnp.int32))[0]

    def begin(
        self, model: LatentModel, params: PyTree, sample: PyTree, weights: Any = None, *, num_rows: float
    ) -> OnlineState:
        """A stream's state before its first batch: the statistics of a sample, scaled to a weight of `num_rows`.

        The rate decides how long the sample is remembered, about 1 / rho updates, so let it hold some batches' worth of
        rows where the rate is small. A model takes its data-scaled penalty from `model.bind(sample, weights)`; unbound,
        it has none: Gaussians are then plain maximum likelihood and may collapse, and empty clusters of K-means stay
        where they are.

        Args:
          model: a `LatentModel`; pass the same one to `update`.
          params: where to start, as from `model.init` or `make_params`.
          sample: rows that look like the stream's; fewer than clusters will do, as `params` are given.
          weights: their weights (n,); None for ones.
          num_rows: the weight of all that the batches stand for, N where weights are 1: the strength of the data beside
            priors.

        Returns:
          An `OnlineState`. Save its leaves with numpy, and put them back by `jax.tree.unflatten`: a resumed stream is
          bit-identical.

        Raises:
          ValueError, TypeError: bad input, named.
        """
        check_climbs(self, model)
        self._check_stream(model)
        check_number("num_rows", num_rows, 0, above=True)
        sample = _rows.rows(model, params, sample, "sample")
        dtype = _tree.float_dtype(sample)
        weights = _rows.as_weights(weights, _tree.num_rows(sample), dtype)
        model = cast_floats(model, dtype)
        model.check(sample)
        params = as_params(params, _stepwise.start_shapes(model, sample), 1, dtype, model)
        model.check(sample, params)
        algorithm = cast_floats(dataclasses.replace(self, rate=None, key=None), dtype)
        return _begin(algorithm, model, params, sample, weights, jnp.asarray(num_rows, dtype))

    def update(self, model: LatentModel, state: Any, batch: PyTree, weights: Any = None) -> Any:
        """The state after one more batch; compiled once for each shape of batch.

        In a fit, whose states are no `OnlineState`, the second half of a step: `batch` is then what `evaluate` found,
        `weights` the pair of all rows and their weights, which it needs.

        Args:
          model: the model given to `begin`.
          state: from `begin` or `update`, and left as it is.
          batch: rows, cast to the dtype of the state's params; any number of them, each number a program of its own.
          weights: their weights; None for ones.

        Returns:
          The new state. A batch whose statistics are not finite changes nothing but `step` and `skipped`. Batches may
            be padded to one length with rows of weight 0, so that they share a program.

        Raises:
          ValueError, TypeError: bad input, named.
        """
        if isinstance(state, EMState):
            return self._sweep(model, state, batch, weights)
        check_climbs(self, model)
        self._check_stream(model)
        expect("state", state, OnlineState, "an OnlineState, as begin and update return")
        dtype = state.num_rows.dtype
        # A copy, as a loader may fill the same array again before this is computed.
        batch = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, batch)
        batch = _rows.rows(model, state.params, batch, "batch")
        weights = _rows.as_weights(weights, _tree.num_rows(batch), dtype)
        algorithm = self
        if callable(self.rate):
            rate = self.rate(int(state.step) if is_concrete(state.step) else state.step)
            _stepwise.check_rates(rate, decays=True)
            algorithm = dataclasses.replace(self, rate=rate)
        algorithm = cast_floats(dataclasses.replace(algorithm, key=None), dtype)
        return _update(algorithm, cast_floats(model, dtype), state, batch, weights)

    def estimate(self, model: LatentModel, state: OnlineState) -> PyTree:
        """The params of a state: the current ones, or those of the averaged statistics."""
        expect("state", state, OnlineState, "an OnlineState, as begin and update return")
        if state.average is None:
            return state.params
        return _stepwise.unless_nan(model.at(state.params).m_step(state.average), state.params)


@jax.jit
def _begin(
    algorithm: OnlineEM, model: LatentModel, params: PyTree, sample: PyTree, weights: Array, num_rows: Array
) -> OnlineState:
    zero = jnp.zeros((), jnp.int32)
    found = model.at(params).e_step(sample, weights, rule_of(algorithm.rule, model).at(zero)).stats
    stats = jax.tree.map(lambda a: num_rows / jnp.sum(weights) * a, found)
    return OnlineState(params, stats, stats if algorithm.average else None, zero, zero, num_rows)


@jax.jit
def _update(algorithm: OnlineEM, model: LatentModel, state: OnlineState, batch: PyTree, weights: Array) -> OnlineState:
    dtype = state.num_rows.dtype
    rule = rule_of(algorithm.rule, model).at(state.step)
    return _stepwise.absorb(model, state, batch, weights, algorithm._rate(state.step, dtype), rule)
