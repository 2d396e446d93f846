"""Recursions over a Markov chain of states: forward-backward, Viterbi and path sampling, as one.

A rule is a smoothed maximum with its derivative: the log of a sum of exponentials and responsibilities, or a maximum
and a one-hot. Applied along the state before, it carries the filtered state forward; its derivatives R[j, k], the
probability that state k now came from j, carry the posterior back. So one recursion is forward-backward under `Exact`,
Viterbi under `Hard`, and forward filtering with backward sampling under `Sampled`. In log space that is `ByLogs`.

Under a rule that has a temperature it is also one of probabilities, rescaled at each step: `Scaled`, products of
matrices, ten times faster. They lose what is e^-87 of the best path so far in float32 (e^-708 in float64), which
matters where a transition is all but impossible: one outlier would drive a left-right chain onward for good. `passed`
sees when it happens and then goes through in log space. Neither way loses digits with the length: each step is shifted
by its own gain.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.core.numerics import einsum, matmul, safe_divide
from jaxem.core.pytree import dataclass
from jaxem.core.tree import PyTree
from jaxem.rules import Rule

# What a step of a loop costs on an accelerator, in exponentials: a few long sequences are there cut into blocks of
# steps that go side by side. On a CPU a step costs next to nothing (30 ns), and blocks would multiply the arithmetic.
LAUNCH = 50_000

# States up to which products within a loop are written out. Measured on a CPU: half the time at 5, none gained at 20.
FEW_STATES = 8

Answer = TypeVar("Answer")


@dataclass
class ChainJoint:
    """log p(x, z) of S sequences by its parts, nats; as q, the expected number of times that each part is used.

    Attributes:
      initial: (K,) of the first state; as q (S, K).
      transition: (K, K) from row to column; as q (S, K, K).
      log_prob: (S, T, K) of the observations, 0 where there is none; as q the posterior, 0 beyond the end.
      length: (S,) steps of each sequence.
    """

    initial: Array
    transition: Array
    log_prob: Array
    length: Array

    @property
    def alive(self) -> Array:
        """(S, T) which steps are within their sequence."""
        steps = jnp.arange(self.log_prob.shape[1]).astype(self.length.dtype)
        return steps[None] < self.length[:, None]


def passed(joint: Any, rule: Rule, ask: Callable[[Any], Answer]) -> Answer:
    """What is asked of a forward pass: `ByLogs`, or `Scaled` where the rule allows it and nothing is lost.

    Args:
      joint: the log-joint of S sequences.
      rule: the E-step rule.
      ask: a pass to a pytree of arrays; of either the same.

    Returns:
      The pytree.
    """
    temperature = rule.temperature_of()
    if temperature is None or num_blocks(*joint.log_prob.shape) > 1:
        return ask(by_logs(joint, rule))
    fast = scaled(joint, temperature)
    return _where_needed(fast.lost, ask(fast), lambda joint: ask(by_logs(joint, rule)), joint)


def _where_needed(needed: Array, otherwise: Answer, compute: Callable[[Any], Answer], data: PyTree) -> Answer:
    """`compute(data)` where it is needed, which under vmap, unlike a branch, costs nothing unless a lane needs it.

    A loop of one step or none. That the step waits for its condition keeps the compiler from taking it out of the loop.
    """

    def step(carried: tuple[Array, Answer]) -> tuple[Array, Answer]:
        here, _ = jax.lax.optimization_barrier((data, carried[0]))
        return jnp.zeros_like(carried[0]), compute(here)

    return jax.lax.while_loop(lambda carried: carried[0], step, (needed, otherwise))[1]


def _step_times(a: Array, b: Array) -> Array:
    """The product within a loop: of few states written out, as one kernel with what follows, up to 20 times faster.

    A CPU's runtime makes a schedule of a step with two kernels that do not wait for each other, at a microsecond.
    """
    if b.shape[0] > FEW_STATES:
        return matmul(a, b)
    return sum((a[:, j, None] * b[j][None] for j in range(1, b.shape[0])), a[:, 0, None] * b[0][None])


@dataclass
class Scaled:
    """A forward pass of probabilities.

    Attributes:
      joint: the log-joint.
      move: (K, K) transition probabilities, to the power of 1 / T.
      state: (T, S, K) the filtered states, summing to 1.
      gain: (S, T) what each step adds to the free energy; at T = 1 log p(x_t | x_1 .. x_(t-1)).
      lost: whether anything was lost to underflow that could matter.
    """

    joint: ChainJoint
    move: Array
    state: Array
    gain: Array
    lost: Array

    def filtered(self) -> Array:
        """(S, T, K) states given the observations so far; 0 beyond the end."""
        return jnp.where(self.joint.alive[..., None], jnp.moveaxis(self.state, 0, 1), 0)

    def backward(self) -> ChainJoint:
        """Expected counts, by the derivatives of the forward pass from its end to its start."""
        before, live = self.state[:-1], self.joint.alive.T

        def step(resp: Array, here: Any) -> tuple[Array, tuple[Array, Array]]:
            state, on = here
            reached = _step_times(state, self.move)
            ratio = jnp.where((reached > 0) & on[:, None], resp / jnp.where(reached > 0, reached, 1), 0)
            new = jnp.where(on[:, None], state * _step_times(ratio, self.move.T), resp)
            return new, (jnp.where(on[:, None], resp, 0), ratio)

        first, (rest, ratio) = jax.lax.scan(step, self.state[-1], (before, live[1:]), reverse=True)
        if live.shape[0] * jnp.finfo(first.dtype).eps > 1e-9:  # rounding adds up: to 1e-4 over 100 000 steps in float32
            scale = safe_divide(jnp.ones_like(rest[..., :1]), jnp.sum(rest, -1, keepdims=True))
            rest, ratio = rest * scale, ratio * scale
            first = first / jnp.sum(first, -1, keepdims=True)
        resp = jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, 1)
        moves = einsum("tsj,tsk->sjk", before, ratio) * self.move[None]
        return ChainJoint(first, moves, resp, self.joint.length)


def scaled(joint: ChainJoint, temperature: Any) -> Scaled:
    """The forward pass of probabilities, at a temperature."""
    dtype = joint.log_prob.dtype
    temperature = jnp.maximum(jnp.asarray(temperature, dtype), 1e3 * jnp.finfo(dtype).tiny)
    live, row = joint.alive.T, jnp.moveaxis(joint.log_prob, 1, 0)
    move = jnp.exp(joint.transition / temperature)

    def shifted(row: Array) -> tuple[Array, Array]:
        top = jnp.max(row, -1)
        return jnp.exp((row - jnp.where(jnp.isneginf(top), 0, top)[..., None]) / temperature), top

    def step(state: Array, here: Any) -> Any:
        said, on = here
        new = _step_times(state, move) * said
        size = jnp.sum(new, -1)
        new = jnp.where(on[:, None], new / jnp.where(size > 0, size, 1)[:, None], state)
        return new, (new, jnp.where(on, size, 1))

    start = joint.initial[None] + row[0]
    (first, top), (said, tops) = shifted(start), shifted(row[1:])
    size = jnp.sum(first, -1)
    first = first / jnp.where(size > 0, size, 1)[:, None]
    _, (rest, sizes) = jax.lax.scan(step, first, (said, live[1:]))
    pairs = ((first, rest), (size, sizes), (top, tops))
    state, size, top = (jnp.concatenate([a[None], b]) for a, b in pairs)
    gain = jnp.where(live, top + temperature * jnp.log(size), 0)
    return Scaled(joint, move, state, gain.T, _lost(joint, start, state, move, size))


def _lost(joint: ChainJoint, start: Array, state: Array, move: Array, size: Array) -> Array:
    """Whether a possible state underflowed where it leads to one that little else leads to."""
    info = jnp.finfo(state.dtype)
    least = info.tiny / info.eps

    def looked_at(parts: tuple[Array, ...]) -> Array:
        # A state that underflowed, and one that is hardly reached, at one step.
        state, move, _ = parts
        gone, hardly = jnp.any(state[:-1] < 8 * info.tiny, -1), jnp.any(matmul(state[:-1], move) < least, -1)
        return _where_needed(jnp.any(gone & hardly & joint.alive.T[1:]) | ends, ends, reached_at_all, parts)

    def reached_at_all(parts: tuple[Array, ...]) -> Array:
        # States that cannot have been reached at all, as those to the right of a left-right chain, are not lost.
        state, move, transition = parts
        can, live = (transition > -jnp.inf).astype(state.dtype), joint.alive.T
        possible = (jnp.moveaxis(joint.log_prob, 1, 0).at[0].set(start) > -jnp.inf).astype(state.dtype)

        def reach(support: Array, here: Any) -> Any:
            possible, on = here
            new = jnp.where(on[:, None], jnp.minimum(matmul(support, can), 1) * possible, support)
            return new, new

        _, support = jax.lax.scan(reach, possible[0], (possible[1:], live[1:]))
        support = jnp.concatenate([possible[:1], support])
        gone = (state < 8 * info.tiny) & (support > 0)
        leads = matmul(gone.astype(state.dtype)[:-1], can) > 0
        matters = leads & (matmul(state[:-1], move) < least) & live[1:, :, None]
        return jnp.any(matters) | jnp.any((size < least) & (jnp.max(support, -1) > 0))

    # Where no transition is as small as that, every state is reached.
    ends = jnp.any(size < least)
    return _where_needed(ends | (jnp.min(move) < least), ends, looked_at, (state, move, joint.transition))


@dataclass
class ByLogs:
    """A forward pass in log space over S sequences, of T = 1 + B L steps: the first, then B blocks of L.

    Attributes:
      joint: the log-joint.
      rule: the rule.
      before: (L, S, B, K) the filtered state before each step, its smoothed maximum 0.
      last: (S, K) that of the end.
      gain: (S, T) what each step adds to the free energy.
      back: (S, B, K, K) how the posterior after a block follows from that before the next; None for a single block.
    """

    joint: ChainJoint
    rule: Rule
    before: Array
    last: Array
    gain: Array
    back: Array | None

    def filtered(self) -> Array:
        """(S, T, K) states given the observations so far; 0 beyond the end."""
        states = _joined(self.before, self.joint.log_prob.shape[1] - 1)
        states = jnp.exp(jnp.concatenate([states, self.last[:, None]], 1))
        # A sequence that has ended keeps its state, so that the one before step t + 1 is the one at t.
        return jnp.where(self.joint.alive[..., None], states, 0)

    def backward(self) -> ChainJoint:
        """Expected counts, by the derivatives of the forward pass from its end to its start."""
        joint, rule = self.joint, self.rule
        number, _, live = _steps(joint)
        end = rule.fold(0).along(self.last, -1)[1]
        ends = end[:, None]
        if self.back is not None:

            def leave(state: Array, back: Array) -> tuple[Array, Array]:
                return matmul(back, state[..., None])[..., 0], state

            _, ends = jax.lax.scan(leave, end, jnp.moveaxis(self.back, 1, 0), reverse=True)
            ends = jnp.moveaxis(ends, 0, 1)

        def step(carried: Any, here: Any) -> Any:
            resp, count = carried
            at, state, on = here
            _, source = _onward(rule.fold(at), state, joint.transition)
            moved = jnp.where(on[..., None, None], source * resp[..., None, :], 0)
            new = jnp.where(on[..., None], jnp.sum(moved, -1), resp)
            new = new / jnp.sum(new, -1, keepdims=True)  # rounding adds up along the way
            return (new, count + moved), jnp.where(on[..., None], resp, 0)

        zero = jnp.zeros((*ends.shape, ends.shape[-1]), ends.dtype)
        (start, count), resp = jax.lax.scan(step, (ends, zero), (number, self.before, live), reverse=True)
        first, rest = start[:, 0], _joined(resp, joint.log_prob.shape[1] - 1)
        return ChainJoint(first, jnp.sum(count, 1), jnp.concatenate([first[:, None], rest], 1), joint.length)


def by_logs(joint: ChainJoint, rule: Rule) -> ByLogs:
    """The forward pass in log space, under any rule."""
    number, log_prob, live = _steps(joint)
    first, gain = _shift(joint.initial[None] + joint.log_prob[:, 0], rule)
    start, cut = first[:, None], live.shape[2] > 1
    if cut:
        start = _entered(rule, log_prob, live, joint.transition, first)
    states = first.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(states, dtype=first.dtype), (*start.shape, states))

    def step(carried: Any, here: Any) -> Any:
        state, back = carried
        at, row, on = here
        onward, source = _onward(rule.fold(at), state, joint.transition)
        new, gain = _shift(onward + row, rule)
        if back is not None:
            back = jnp.where(on[..., None, None], matmul(back, source), back)
        return (jnp.where(on[..., None], new, state), back), (state, jnp.where(on, gain, 0))

    (last, back), (before, gains) = jax.lax.scan(step, (start, eye if cut else None), (number, log_prob, live))
    gains = _joined(gains, joint.log_prob.shape[1] - 1)
    return ByLogs(joint, rule, before, last[:, -1], jnp.concatenate([gain[:, None], gains], 1), back)


def num_blocks(num_sequences: int, length: int, num_states: int) -> int:
    """Blocks that T - 1 steps are cut into: 1 on a CPU and where the sequences are many; else about sqrt(1.5 T).

    A block is entered in each of the K states at once, K times the arithmetic in three times sqrt(T) steps.
    """
    if jax.default_backend() == "cpu":
        return 1
    work = num_sequences * num_states**2
    steps = length - 1
    blocks = max(1, round((1.5 * steps) ** 0.5))
    whole = 2 * steps * (LAUNCH + work)
    cut = (3 * steps / blocks + 2 * blocks) * LAUNCH + steps * (num_states + 2) * work
    return blocks if cut < whole else 1


def _shift(value: Array, rule: Rule) -> tuple[Array, Array]:
    """Values (..., K) less their smoothed maximum, and that; impossible ones stay as they are."""
    top, _ = rule.along(value, -1)
    return value - jnp.where(jnp.isneginf(top), 0, top)[..., None], top


def _onward(rule: Rule, state: Array, transition: Array) -> tuple[Array, Array]:
    """(..., K) the smoothed maximum over the state before, and where it came from (..., K, K), columns summing to 1."""
    moves = transition.reshape((1,) * (state.ndim - 1) + transition.shape)
    return rule.along(state[..., :, None] + moves, -2)


def _steps(joint: ChainJoint) -> tuple[Array, Array, Array]:
    """Numbers (L,) of the steps of a block, their log_prob (L, S, B, K), and which are alive (L, S, B)."""
    num, steps, states = joint.log_prob.shape
    blocks = num_blocks(num, steps, states)
    length = -(-(steps - 1) // blocks)

    def cut(leaf: Array) -> Array:
        missing = blocks * length - leaf.shape[1]
        if missing:
            leaf = jnp.pad(leaf, ((0, 0), (0, missing)) + ((0, 0),) * (leaf.ndim - 2))
        return jnp.moveaxis(leaf.reshape(num, blocks, length, *leaf.shape[2:]), 2, 0)

    return 1 + jnp.arange(length), cut(joint.log_prob[:, 1:]), cut(joint.alive[:, 1:])


def _joined(leaf: Array, steps: int) -> Array:
    """(L, S, B, ...) of steps in blocks as (S, steps, ...)."""
    leaf = jnp.moveaxis(leaf, 0, 2)
    return leaf.reshape(leaf.shape[0], -1, *leaf.shape[3:])[:, :steps]


def _entered(rule: Rule, log_prob: Array, live: Array, transition: Array, first: Array) -> Array:
    """(S, B, K) the filtered state that each block is entered in, given that of the first."""
    states = transition.shape[0]
    none = jnp.where(jnp.eye(states, dtype=bool), 0, jnp.full((states, states), -jnp.inf, log_prob.dtype))
    start = jnp.broadcast_to(none, (*log_prob.shape[1:3], states, states))

    def step(carried: Array, here: Any) -> tuple[Array, None]:
        row, on = here
        new = _onward(rule, carried, transition)[0] + row[..., None, :]
        top = jnp.max(new, (-2, -1), keepdims=True)
        return jnp.where(on[..., None, None], new - jnp.where(jnp.isneginf(top), 0, top), carried), None

    through, _ = jax.lax.scan(step, start, (log_prob, live))

    def enter(state: Array, block: Array) -> tuple[Array, Array]:
        new, _ = rule.along(state[..., :, None] + block, -2)
        return _shift(new, rule)[0], state

    _, entered = jax.lax.scan(enter, first, jnp.moveaxis(through, 1, 0))
    return jnp.moveaxis(entered, 0, 1)
