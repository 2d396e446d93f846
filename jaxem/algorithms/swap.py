"""Random swaps: a state that is little missed is put where the model explains worst, and left there if that helps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.algorithms._stepwise import scrambled
from jaxem.algorithms.algorithm import Algorithm, EMState, Found, Rows
from jaxem.algorithms.em import EM
from jaxem.core import tree as _tree
from jaxem.core.arguments import check_whole, expect, shown
from jaxem.core.keys import DRAWS, own_or_fits
from jaxem.core.numerics import namespace, safe_divide, slack, weigh
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.elbo import ELBO
from jaxem.families.reasons import DEGENERATE
from jaxem.model import DiscreteLatent
from jaxem.stopping import Status
from jaxem.structures import seeding
from jaxem.structures.structure import Structure
from jaxem.wrappers import unwrapped

# Most rows by which a swap is chosen: a draw needs no more.
ROWS = 10_000


@dataclass
class SwapState(EMState):
    """Where one restart stands: an `EMState` of what is kept, whose `step` counts rounds.

    Attributes:
      inner: state of the algorithm inside where the climb is; of what is kept, unless a swap is on trial.
      settled: whether the climb has settled, so that the next round is a swap.
      on_trial: whether what is climbed came by a swap that is not kept yet.
      tried: swaps so far.
    """

    inner: Any
    settled: Array
    on_trial: Array
    tried: Array

    @property
    def num_steps(self) -> Array:
        """Rounds so far, beside the one that scored the start."""
        return namespace(self.step).maximum(self.step - 1, 0)

    @property
    def skipped(self) -> Array:
        """Updates that the algorithm inside left out."""
        return self.inner.skipped


@dataclass
class Swap(Algorithm):
    """Random swaps around another algorithm: the search that restarts alone are not.

    A step is a round: `num_steps` steps of the algorithm inside. Once the climb has settled by the fit's stop rule, a
    round starts with a swap: one state (a component, a cluster) is taken away, drawn by how little the objective would
    lose by it, and put at a row drawn by how badly the model explains it. If the objective is not higher at the end of
    that round it is undone; else the climb goes on until it has settled, and then it is kept. After `num_swaps` swaps
    the restart has converged. What is kept never falls, is at least as good as without swaps, and depends on the key
    alone; all restarts swap side by side, as lanes.

    A component of a mixture comes to lie half-way between the row and the centre of the component that explained it
    best, in that one's shape, and shares its observations. A swap is undone, however high it leads, where it makes a
    spike (`Health.influence` above 0.1), or a component of fewer observations than it has free parameters unless one
    was as small before: likelihoods reward both, and neither is news. The climb from the start is not held back.

    K-means needs no shape. There a round has a second half: of each cluster one row, that which gains most, moves to
    the cluster where the distortion falls with the centroids moving along, as no step of Lloyd's sees it (Hartigan);
    `num_steps` steps from there are kept where they are better. `KMeans` is searched by swaps unless told; see `fit`.

    `max_steps` and `num_steps` of the fit count rounds, and the trace is what was kept after each. A swap costs about
    `num_steps` + 3 steps of the algorithm inside; one of K-means 2 `num_steps`, and 6 to 11 for the choices. The
    program of the loop takes three times as long to compile as EM's.

    Attributes:
      algorithm: what climbs; `EM()`, or one that suits a model with an m_step and promises that nothing falls.
      num_swaps: swaps of a restart, an integer >= 0; a number of the program's data, not of the program.
      num_steps: steps of the algorithm inside in a round, an integer >= 1; the same.
      key: random key of the draws; None for that of the fit.

    Raises (in `fit`, before compilation):
      TypeError: a model whose latents are not states of independent rows, or an algorithm that cannot be inside.
      ValueError: numbers out of range.

    Examples:
      >>> import jaxem
      >>> x = jax.random.normal(jax.random.key(0), (90, 1)) + 9 * jnp.repeat(jnp.arange(3.0), 30)[:, None]
      >>> fit = jaxem.fit(jaxem.GMM(3), x, key=jax.random.key(1), algorithm=Swap(num_swaps=5))
      >>> sorted(round(mean) for mean in fit.params.components.mean[:, 0].tolist())
      [0, 9, 18]

    References:
      Franti (2018), Efficiency of random swap clustering, Journal of Big Data 5; Zhao, Hautamaki, Karkkainen and Franti
      (2012), Random swap EM algorithm for Gaussian mixture models, Pattern Recognition Letters 33; Telgarsky and
      Vattani (2010), Hartigan's method: k-means clustering without Voronoi, AISTATS.
    """

    algorithm: Algorithm = dataclasses.field(default_factory=EM)
    num_swaps: int | Array = 50
    num_steps: int | Array = 10
    key: Array | None = dataclasses.field(default=None, kw_only=True)

    def prepare(self, model: Any, data: PyTree, key: Array, num_steps: int) -> "Swap":
        """The algorithm with the one inside ready and its key; checks the settings and the model."""
        expect("algorithm", self.algorithm, Algorithm, "an algorithm to swap around, as jaxem.EM()")
        name = type(self.algorithm).__name__
        if isinstance(self.algorithm, Swap) or self.algorithm.open_ended or self.algorithm.climbs_by != "m_step":
            raise TypeError(f"algorithm: Swap goes around one that climbs by an m_step, as jaxem.EM(); found {name}")
        inner = self.algorithm.prepare(model, data, key, num_steps)
        if not has_places(model):
            raise TypeError(
                "algorithm: Swap moves states of rows that are independent, as the components of a mixture; found "
                f"{shown(model)}"
            )
        check_whole("num_swaps", self.num_swaps, 0)
        check_whole("num_steps", self.num_steps, 1)
        return dataclasses.replace(self, algorithm=inner, key=own_or_fits(self.key, key, DRAWS))

    def settled(self, model: Any, step: Array) -> Array:
        """Whether a stop rule may be trusted from `step` of the algorithm inside on."""
        return self.algorithm.settled(model, step)

    def init(self, model: Any, params: PyTree, num_restarts: int, dtype: Any) -> SwapState:
        """The states of all restarts before their first round."""
        inner = self.algorithm.init(model, params, num_restarts, dtype)
        own = {name: getattr(inner, name) for name in ("candidate", "params", "elbo", "step", "status", "restart")}
        no = inner.step != 0
        return SwapState(**own, inner=inner, settled=no, on_trial=no, tried=inner.step)

    def evaluate(self, model: Any, state: SwapState, data: PyTree, weights: Array) -> Found:
        """The first evaluation of a round. For a swap it needs all rows, among which it looks for a place."""
        return self.algorithm.evaluate(model, self._start(model, state, (data, weights)), data, weights)

    def update(self, model: Any, state: SwapState, found: Found, rows: Rows | None = None) -> SwapState:
        """The round from its first evaluation on, for which it needs the rows."""
        assert rows is not None
        start = self._start(model, state, rows)
        first = self.algorithm.update(model, start, found, rows)
        return self._close(model, state, self._round(model, state, first, 1, rows), found.weight)

    def step(self, model: Any, state: SwapState, data: PyTree, weights: Array) -> SwapState:
        """`update` of what `evaluate` finds, the first evaluation being one of those in the loop: compiled once."""
        rows = data, weights
        end = self._round(model, state, self._start(model, state, rows), 0, rows)
        return self._close(model, state, end, jnp.sum(weights))

    def conclude(self, model: Any, before: SwapState, after: SwapState, small: Any) -> SwapState:
        """After a small round the climb has settled, and what was on trial is kept; the last swap ends the restart."""
        old = _climbing(before)
        known = (before.step > 0) & self.settled(model, jnp.maximum(old.step - 1, 0))
        settled = after.settled | (known & (after.status == Status.RUNNING) & small(old, _climbing(after)))
        done = settled & (after.tried >= _whole(self.num_swaps))
        status = jnp.where(done, Status.CONVERGED, after.status).astype(jnp.int32)
        kept = _keep(after, after.inner, settled & after.on_trial)
        return dataclasses.replace(kept, settled=settled, on_trial=after.on_trial & ~settled, status=status)

    def _swaps(self, state: SwapState) -> Array:
        """Whether the next round starts with a swap."""
        return state.settled & (state.tried < _whole(self.num_swaps))

    def _start(self, model: Any, state: SwapState, rows: Rows) -> EMState:
        """Where a round starts: where the climb is, or at params with a state moved."""
        assert self.key is not None  # `prepare` has set it
        inner = _climbing(state)
        draws = _draws(self.key, state.restart, state.step).astype(rows[1].dtype)
        moved = lambda: _from(inner, swapped(model, inner.params, draws, *rows))
        return jax.lax.cond(self._swaps(state), moved, lambda: inner)

    def _round(self, model: Any, state: SwapState, start: EMState, taken: int, rows: Rows) -> EMState:
        """The state inside at the end of a round of which `taken` steps are done, whether it is kept or not."""
        # The first round scores the start, as the first step of any algorithm does.
        num = jnp.where(state.step == 0, 1, _whole(self.num_steps))
        step = lambda _, now: _unless_ended(now, self.algorithm.step(model, now, *rows))
        if jax.eval_shape(lambda params: model.at(params).exchanged(*rows), state.params) is None:
            return jax.lax.fori_loop(taken, num, step, start)

        def half(now: EMState, which: Array) -> tuple[EMState, None]:
            exchange = lambda: _from(now, model.at(now.params).exchanged(*rows))
            begin = jax.lax.cond(which == 0, lambda: start, exchange)
            end = jax.lax.fori_loop(jnp.where(which == 0, taken, 0), num, step, begin)
            better = (which == 0) | ((state.step > 0) & _better(model, now, end, jnp.sum(rows[1])))
            return _tree.where(better, end, now), None

        # Both halves by one loop: the program holds one E-step.
        return jax.lax.scan(half, start, jnp.arange(2, dtype=jnp.int32))[0]

    def _close(self, model: Any, state: SwapState, end: EMState, weight: Array) -> SwapState:
        """The end of a round: a climb from the start is taken as it is, a swap only while it is better and honest."""
        swaps = self._swaps(state)
        on_trial = state.on_trial | swaps
        health = model.health(end.params)
        enough = jnp.minimum(_free_parameters(model, end.params), model.health(state.params).min_count)
        honest = (health.influence <= DEGENERATE) & (health.min_count >= enough)
        undone = on_trial & ~(_better(model, state, end, weight) & honest)
        return dataclasses.replace(
            _keep(state, end, ~on_trial),
            inner=end,
            step=state.step + 1,
            settled=undone,
            on_trial=on_trial & ~undone,
            tried=state.tried + swaps.astype(jnp.int32),
        )


def _climbing(state: SwapState) -> EMState:
    """The state inside where the climb is: what is on trial, or what is kept."""
    kept = {name: getattr(state, name) for name in ("candidate", "params", "elbo", "status")}
    plain = dataclasses.replace(state.inner, **kept, restart=state.restart)
    return _tree.where(state.on_trial, state.inner, plain)


def _keep(state: SwapState, inner: EMState, holds: Array) -> SwapState:
    """The state with what is inside kept, where that holds."""
    new = {name: getattr(inner, name) for name in ("candidate", "params", "elbo", "status")}
    old = {name: getattr(state, name) for name in new}
    return dataclasses.replace(state, **_tree.where(holds, new, old), here=None)


def _draws(key: Array, restart: Array, step: Array) -> Array:
    """Three uniforms of 23 bits for each restart and round; scrambled counts, as a draw of JAX's is 20 more kernels."""
    one, two = jax.random.key_data(key).reshape(-1)[:2]
    count = scrambled(restart.astype(jnp.uint32), one) + 3 * step.astype(jnp.uint32)
    bits = scrambled(count + jnp.arange(3, dtype=jnp.uint32), two)
    return (bits >> 9).astype(jnp.float32) * jnp.float32(2.0**-23)


def has_places(model: Any) -> bool:
    """Whether a model's latents are states of independent rows, which can be put at one of them."""
    plain = unwrapped(model)
    return isinstance(plain, DiscreteLatent) and type(getattr(plain, "structure", Structure())) is Structure


def _whole(number: Any) -> Array:
    return jnp.asarray(number).astype(jnp.int32)  # `fit` casts every number of an algorithm to floats


def _from(inner: EMState, params: PyTree) -> EMState:
    """The state with other params to score next, which need not be better than the last."""
    low = jnp.full_like(inner.elbo.data, -jnp.inf)
    return dataclasses.replace(inner, candidate=params, elbo=ELBO(low, jnp.zeros_like(inner.elbo.params)))


def _unless_ended(now: EMState, after: EMState) -> EMState:
    return _tree.where(now.status == Status.RUNNING, after, now)


def _better(model: Any, old: EMState, new: EMState, weight: Array) -> Array:
    """Whether the new state still runs and its objective is higher by more than rounding."""
    room = slack(old.elbo.total, weight, model.scales)
    return (new.status == Status.RUNNING) & (new.elbo.total > old.elbo.total + room)


def _free_parameters(model: Any, params: PyTree) -> Any:
    """Free parameters for each state in use; 0 where the model does not say."""
    model, params = model.inside(params)
    count = getattr(model, "num_parameters", None)
    used = getattr(model, "num_active", None)
    return 0.0 if count is None else count(params) / (model.num_states if used is None else used)


def swapped(model: Any, params: PyTree, draws: Array, data: PyTree, weights: Array) -> PyTree:
    """Params with one state moved to a row; see `Swap`.

    The row is drawn in proportion to its weight times how far, in nats, it is from the one explained best. The price of
    a state is what the rows whose most probable state it is would lose without it, the new one serving as well where
    the model knows what it will be; state k goes with probability proportional to price_k^-4, which for K-means found
    optima up to twice as often as price_k^-1. Both look at up to `ROWS` rows.

    Args:
      model: the bound model.
      params: its params.
      draws: (3,) uniforms, for the rows that are looked at, the row and the state.
      data: all rows.
      weights: (N,).
    """
    here, rule = model.at(params), model.default_rule()
    some, w = seeding.evenly(draws[:1], data, weights, ROWS)
    log_joint = here.log_joint(some)
    num = log_joint.shape[-1]
    states, best = jnp.arange(num, dtype=jnp.int32), jnp.argmax(log_joint, -1).astype(jnp.int32)
    used = jnp.max(log_joint, 0) > -jnp.inf
    value = here.infer(log_joint, rule)[0]
    top = 0 if model.scales else jnp.max(jnp.where(w > 0, value, -jnp.inf))
    row = seeding.drawer(w)(w * (top - value), draws[1:2])
    at_row = jax.tree.map(lambda leaf: leaf[row], some)
    there = log_joint[row[0]]
    new = here.beside(at_row, some)
    if new is not None:
        log_joint = jnp.concatenate([log_joint, new[:, None]], 1)
        value = here.infer(log_joint, rule)[0]
    others = here.rule_out(log_joint, best[:, None] != jnp.arange(log_joint.shape[-1], dtype=jnp.int32)[None])
    # Infinite where rows are possible in one state alone, which then stays.
    price = jax.ops.segment_sum(weigh(w, value - here.infer(others, rule)[0]), best, num)
    price = safe_divide(price, jnp.mean(jnp.where(jnp.isfinite(price), price, 0))) + 0.01
    chances = jnp.cumsum(jnp.where(used, price**-4, 0))
    gone = jnp.minimum(jnp.sum(chances <= draws[2] * chances[-1], dtype=jnp.int32), num - 1)
    owner = jnp.argmax(jnp.where(states == gone, -jnp.inf, there)).astype(jnp.int32)
    share = 0.25 * jnp.sum(jnp.where(best == owner, w, 0)) * safe_divide(jnp.sum(weights), jnp.sum(w))
    return here.moved(gone, owner, at_row, share, data, weights)
