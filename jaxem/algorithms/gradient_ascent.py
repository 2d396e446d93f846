"""Gradient ascent on the ELBO: optax over shuffled minibatches, for models that have no E-step."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.algorithms import _stepwise
from jaxem.algorithms._updates import Climb, Updates, opt_states
from jaxem.algorithms.algorithm import Algorithm, EMState, Found, Rows, accept
from jaxem.core import rows as _rows
from jaxem.core import tree as _tree
from jaxem.core.arguments import as_key, check_constraints, check_integer, check_key, check_number, check_optimizer
from jaxem.core.foreign import named_fields
from jaxem.core.inputs import as_more
from jaxem.core.keys import DRAWS, SCORE
from jaxem.core.mesh import real_rows
from jaxem.core.numerics import namespace
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree
from jaxem.stopping import Status


@dataclass
class GradientAscentState(EMState):
    """Where one restart stands. `elbo` belongs to `params`; `candidate` is not scored yet.

    Attributes:
      opt_state: the optimiser's state at `candidate`.
      taken: steps behind `params`.
      latest: ELBO.total of the params scored last, NaN where it was not finite.
      best: held-out ELBO.data of `params`, -inf before the first score.
      waited: steps since the held-out score was last raised.
      left_out: updates skipped so far.
    """

    opt_state: PyTree
    taken: Array
    latest: Array
    best: Array
    waited: Array
    left_out: Array

    @property
    def num_steps(self) -> Array:
        """Steps behind `params`: with held-out data these are the best, not the last."""
        return self.taken

    @property
    def scored(self) -> Array:
        """ELBO.total of the params scored last, which the trace records."""
        return self.latest

    @property
    def skipped(self) -> Array:
        """Updates that were left out because they were not finite."""
        return self.left_out


@named_fields
@dataclass
class GradientAscent(Algorithm):
    """Stochastic gradient ascent on the ELBO by an optax optimiser, for any `ELBOModel` that declares constraints.

        phi <- phi + rate_t * optimizer(gradient of L_t),   theta = constrain(phi)
        L_t = ( (N / B) sum_{n in batch} w_n ELBO_n(theta) + G(theta) ) / sum_n w_n

    in unconstrained coordinates (`model.constraints()`). L_t is unbiased for the objective per unit of weight, so that
    rates depend neither on N nor on the scale of the weights. A step of `fit` scores the params on all rows with
    `model.elbo_data`, so that the ELBO reported is theirs, then makes `num_passes` passes over the rows in ceil(N / B)
    shuffled batches whose sizes differ by at most one, each row once a pass, inside one compiled scan. What is climbed
    is `model.training_elbo`, which may differ from the score (a KL that is warmed up). The optimiser's state, with its
    momentum and counts, lives through all passes.

    Randomness: restart i at pass t draws batches and noise of its own from `key`, whatever its neighbours. All scores
    of a fit use one fixed key (common random numbers): differences between steps are then not noise, but a score is
    still a Monte Carlo estimate; use the model's own methods for a precise one.

    A batch whose value or gradient is not finite is skipped, optimiser state included, and counted in
    `Restarts.skipped`. A step without one finite gradient, or a score that is not finite (as after an update that
    overflowed), ends the restart as NONFINITE with the last params that had a finite score. Not monotone: a lower ELBO
    ends nothing, and without held-out data the params returned are the last, not the best.

    Early stopping: with `held_out` data the params kept are those with the highest held-out ELBO.data so far (the
    trace goes on recording the params of every step), `Fit.elbo` and `num_steps` are theirs, and `patience` steps
    without a better one end the restart as CONVERGED. The stop rule is then not consulted. Without it, CONVERGED
    means that a step changed the ELBO by less than the rule's bound, which noise forbids at a constant rate.

    Cost of a step: `num_passes` passes of values and gradients, and one pass of values for the score; memory of the
    model's ELBO on all rows for the score (models score in blocks), one batch and the optimiser's state.

    Attributes:
      optimizer: an optax `GradientTransformation` (clipping, chains, line searches); None for `optax.adam(1.0)`. It is
        part of the program: numbers in it are fixed at compilation, and a new optimiser object compiles anew.
      batch_size: B, at most N rows in a batch; None for all rows in one update a pass.
      num_samples: independent evaluations of `training_elbo` averaged in each update.
      learning_rate: multiplies the optimiser's updates; a number, an array over updates (its last entry is kept) or a
        callable of the update, as an optax schedule, which `fit` tabulates. A leaf: a new value compiles nothing, and
        `fit` may be vmapped over it. None: 1e-3 for the default optimiser, else 1.
      num_passes: passes over the data in one step of `fit`; more make scores rarer and cheaper.
      held_out: rows like the data, for early stopping.
      held_out_weights: their weights; None for ones.
      patience: steps without a better held-out score that end a restart; None for no end before `max_steps`.
      key: random key of batches and noise; None derives it from the key of the fit.

    Raises (in `fit`, before compilation):
      ValueError, TypeError: the model declares no constraints, B > N, held-out data unlike the data or without rows,
        settings out of range; named.

    Examples:
      A model needs no more than an init, an ELBO and constraints:

      >>> import jaxem
      >>> @jaxem.dataclass
      ... class Rate(jaxem.ELBOModel):
      ...     def init(self, key, data, weights):
      ...         return {"rate": jax.random.exponential(key)}
      ...     def elbo_data(self, params, data, weights, key=None):
      ...         return jnp.sum(weights * (jnp.log(params["rate"]) - params["rate"] * data))
      ...     def constraints(self):
      ...         return {"rate": jaxem.constraints.Positive()}
      >>> data = jnp.array([1.0, 2.0, 3.0, 2.0])
      >>> algorithm = GradientAscent(batch_size=2, learning_rate=0.01)
      >>> fit = jaxem.fit(Rate(), data, key=jax.random.key(0), algorithm=algorithm, max_steps=400)
      >>> round(float(fit.params["rate"]), 1)
      0.5

    References:
      Kingma and Welling (2014), Auto-encoding variational Bayes, algorithm 1; Kingma and Ba (2015), Adam.
    """

    optimizer: Any = static(default=None)
    batch_size: int | None = static(default=None)
    num_samples: int = static(default=1)
    learning_rate: float | Array | np.ndarray | Callable[[int], Any] | None = dataclasses.field(
        default=None, kw_only=True
    )
    num_passes: int = static(default=1, kw_only=True)
    held_out: PyTree = dataclasses.field(default=None, kw_only=True)
    held_out_weights: Array | None = dataclasses.field(default=None, kw_only=True)
    patience: int | Array | None = dataclasses.field(default=None, kw_only=True)
    key: Array | None = dataclasses.field(default=None, kw_only=True)
    # The step after which `fit` takes no more; known to a bound algorithm.
    last_step: Array | None = dataclasses.field(default=None, kw_only=True, repr=False)

    climbs_by: ClassVar[str] = "gradient"
    open_ended: ClassVar[bool] = True

    def prepare(self, model: Any, data: PyTree, key: Array, num_steps: int) -> "GradientAscent":
        """The algorithm with its key, a tabulated rate, and held-out data checked against the data and cast.

        Raises TypeError for a model without constraints, and for settings out of range.
        """
        num = real_rows(_tree.num_rows(data))
        self._check(model, num)
        updates = num_steps * self.num_passes * self._batches(num)
        held_out, weights = self.held_out, self.held_out_weights
        if held_out is not None:
            held_out = as_more(model, held_out, data, "held_out")
            model.check(held_out)
            dtype = _tree.float_dtype(data)
            weights = _rows.as_weights(weights, _tree.num_rows(held_out), dtype, "held_out_weights")
        return dataclasses.replace(
            self,
            learning_rate=self._rates(max(1, updates)),
            held_out=held_out,
            held_out_weights=weights,
            key=key if self.key is None else as_key(self.key),
            last_step=jax.device_put(np.int32(num_steps)),
        )

    def _check(self, model: Any, num: int) -> None:
        """Raises TypeError or ValueError for settings of the wrong class or out of range."""
        check_constraints(model.constraints())
        check_optimizer(self.optimizer)
        for name in ("num_samples", "num_passes"):
            check_integer(name, getattr(self, name), 1)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
            if self.batch_size > num:
                raise ValueError(f"batch_size: expected at most the number of rows, {num}; found {self.batch_size}")
        for name in ("patience", "held_out_weights"):
            if getattr(self, name) is not None and self.held_out is None:
                raise ValueError(f"{name}: expected held_out data as well; found none")
        if self.patience is not None:
            check_number("patience", self.patience, 1, finite=False, what="a number >= 1 or None")
        if self.key is not None:
            check_key("key", self.key)

    def _rates(self, updates: int) -> Any:
        """The learning rate as a number or an array, checked."""
        rate: Any = self.learning_rate
        if rate is None:
            rate = 1e-3 if self.optimizer is None else 1.0
        if callable(rate):
            rate = _stepwise.tabulate("learning_rate", rate, updates)
        what, each = "a number, an array over updates or a callable of the update", "finite numbers >= 0"
        check_number("learning_rate", rate, 0, dims=(0, 1), what=what, each=each)
        return rate

    def _batches(self, num: int) -> int:
        """Updates in one pass over `num` rows."""
        return 1 if self.batch_size is None else -(-num // self.batch_size)

    def settled(self, model: Any, step: Array) -> Array:
        """Whether the stop rule may be trusted: not with held-out data, nor before the first rate above 0."""
        if self.held_out is not None:
            return jnp.asarray(False)
        rate = jnp.atleast_1d(jnp.asarray(self.learning_rate))
        if rate.shape[0] == 1:
            return jnp.asarray(True)
        return jnp.any((rate > 0) & (jnp.arange(rate.shape[0], dtype=jnp.int32) < self.num_passes * (step + 1)))

    def init(self, model: Any, params: PyTree, num_restarts: int, dtype: Any) -> GradientAscentState:
        """The states of all restarts before their first step; every leaf of params has a leading axis R."""
        state, xp = super().init(model, params, num_restarts, dtype), namespace(params)
        zero = xp.zeros(num_restarts, xp.int32)
        return GradientAscentState(
            **vars(state),
            opt_state=opt_states(self.optimizer, model, params),
            taken=zero,
            latest=state.elbo.data,
            best=state.elbo.data,
            waited=zero,
            left_out=zero,
        )

    def evaluate(self, model: Any, state: GradientAscentState, data: PyTree, weights: Array) -> Found:
        """The candidate's ELBO, with the same noise in every step; additive in expectation where it is an estimate."""
        return Found((), model.elbo_data(state.candidate, data, weights, self._score_key()), jnp.sum(weights))

    def update(
        self, model: Any, state: GradientAscentState, found: Found, rows: Rows | None = None
    ) -> GradientAscentState:
        """Keeps the candidate or ends the restart, and takes `num_passes` passes over the rows, which it needs."""
        assert rows is not None
        held = found.elbo_data  # without held-out data only asked whether it is finite
        if self.held_out is not None:
            held = model.elbo_data(state.candidate, self.held_out, self.held_out_weights, self._score_key())
        sound, better = jnp.isfinite(held), self.held_out is None or held > state.best
        log_prior = model.elbo_params(state.candidate)
        after = accept(model, state, found, log_prior, state.candidate, promised=False, sound=sound, better=better)
        finite = after.status != Status.NONFINITE
        kept = finite & better
        waited = jnp.where(kept, 0, state.waited + 1).astype(jnp.int32)
        status = after.status
        if self.patience is not None:
            patience = jnp.asarray(self.patience)
            status = jnp.where(finite & (waited.astype(patience.dtype) >= patience), Status.CONVERGED, status)
        more = status == Status.RUNNING
        if self.last_step is not None:  # the params of a pass after the last would never be scored
            more = more & (state.step < self.last_step)
        climb = self._climb(model, state, *rows, jnp.where(more, self.num_passes, 0).astype(jnp.int32))
        stuck = more & (climb.left_out == self.num_passes * self._batches(real_rows(_tree.num_rows(rows[0]))))
        total = found.elbo_data + log_prior.astype(found.elbo_data.dtype)
        return dataclasses.replace(
            after,
            candidate=climb.params,
            status=jnp.where(stuck, Status.NONFINITE, status).astype(jnp.int32),
            opt_state=climb.opt_state,
            taken=jnp.where(kept, state.step, state.taken),
            latest=jnp.where(finite, total, jnp.nan),
            best=jnp.where(kept, held, state.best),
            waited=waited,
            left_out=state.left_out + climb.left_out,
        )

    def _score_key(self) -> Array:
        assert self.key is not None  # `prepare` has set it
        return jax.random.fold_in(self.key, SCORE)

    def _climb(self, model: Any, state: GradientAscentState, data: PyTree, weights: Array, passes: Array) -> Climb:
        """`passes` passes over all rows from the candidate; restart and pass number make the draws."""
        assert self.key is not None
        rate = jnp.asarray(self.learning_rate, weights.dtype)
        batches = self._batches(real_rows(_tree.num_rows(data)))
        updates = Updates(model, rate, jnp.sum(weights), self.optimizer, batches, self.num_samples)
        stream = jax.random.fold_in(self.key, state.restart.astype(jnp.uint32) + DRAWS)

        def sweep(i: Array, climb: Climb) -> Climb:
            index = state.step * self.num_passes + i
            return updates.sweep(climb, data, weights, jax.random.fold_in(stream, index), index)

        start = Climb(state.candidate, state.opt_state, jnp.zeros((), jnp.int32))
        return jax.lax.fori_loop(0, passes, sweep, start)
