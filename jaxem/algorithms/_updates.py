"""Passes of an optax optimiser over shuffled minibatches, for `GradientAscent`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.algorithms import _stepwise
from jaxem.core import tree as _tree
from jaxem.core.ascent import coordinates, like
from jaxem.core.mesh import real_rows, take_rows
from jaxem.core.numerics import safe_divide
from jaxem.core.pytree import dataclass, static
from jaxem.core.tree import PyTree


@dataclass
class Climb:
    """What an update changes: params, the optimiser's state, and the number of updates left out so far."""

    params: PyTree
    opt_state: PyTree
    left_out: Array


@dataclass
class Updates:
    """How to update: what stays the same in all passes of a step.

    Attributes:
      model: the bound model.
      rate: the learning rate, a scalar or an array over updates.
      total: sum of all weights.
      optimizer: an optax `GradientTransformation`, or None for Adam.
      batches: updates in a pass.
      num_samples: evaluations averaged in an update.
    """

    model: Any
    rate: Array
    total: Array
    optimizer: Any = static()
    batches: int = static()
    num_samples: int = static()

    def sweep(self, climb: Climb, data: PyTree, weights: Array, key: Array, index: Array) -> Climb:
        """One pass over all rows, each once, in random batches whose sizes differ by at most one.

        Args:
          climb: where to start.
          data: N rows.
          weights: (N,).
          key: of the order and the noise of this pass.
          index: number of passes before this one.

        Returns:
          The end. Memory of one batch, and N integers for the order.
        """
        num, dtype, first = real_rows(_tree.num_rows(data)), weights.dtype, index * self.batches
        keys = jax.random.split(key, self.batches + 1)
        if self.batches == 1:
            return self.update(climb, (data, weights), jnp.ones((), dtype), self.at(first), keys[0], index)
        order = _stepwise.shuffled(keys[-1], jnp.arange(num, dtype=jnp.int32), num)
        small, longer = num // self.batches, num % self.batches
        slots = jnp.arange(small + (longer > 0), dtype=jnp.int32)

        def body(climb: Climb, batch: tuple[Array, Array]) -> tuple[Climb, None]:
            number, key = batch
            size = small + (number < longer).astype(jnp.int32)
            rows = order[jnp.minimum(number * small + jnp.minimum(number, longer) + slots, num - 1)]
            some, w = take_rows((data, weights), rows)
            w = jnp.where(slots < size, w, 0)
            scale = num / size.astype(dtype)
            return self.update(climb, (some, w), scale, self.at(first + number), key, index), None

        return jax.lax.scan(body, climb, (jnp.arange(self.batches, dtype=jnp.int32), keys[:-1]))[0]

    def at(self, update: Array) -> Array:
        """The learning rate of the update after `update` others."""
        return self.rate if self.rate.ndim == 0 else self.rate.at[update].get(mode="clip")

    def update(
        self, climb: Climb, batch: tuple[PyTree, Array], scale: Array, rate: Array, key: Array, index: Array
    ) -> Climb:
        """One update on one batch of rows and weights, or none where its gradient is not finite.

        Args:
          climb: params and state before.
          batch: rows and their weights.
          scale: N / B.
          rate: the learning rate.
          key: of the noise.
          index: number of the pass.

        Returns:
          Params and state after.
        """
        free, rebuild = coordinates(self.model.constraints(), climb.params)

        def loss(free: PyTree) -> tuple[Array, Array]:
            params = rebuild(free)
            value = self._estimate(params, batch, key, index)
            return -(scale * value + self.model.elbo_params(params).astype(value.dtype)) / self.total, value

        (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(free)

        def move() -> tuple[PyTree, PyTree]:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                moves, opt_state = complete(self.optimizer).update(
                    gradient, climb.opt_state, free, value=value, grad=gradient, value_fn=lambda free: loss(free)[0]
                )
            moved = jax.tree.map(lambda a, u: a + (rate.astype(u.dtype) * u).astype(a.dtype), free, moves)
            params = self.model.adapt(rebuild(moved), safe_divide(found, jnp.sum(batch[1])))
            return params, like(opt_state, climb.opt_state)

        # A branch, not a choice between two results, which would cost another pass over params and optimiser state: a
        # tenth of the time of an update of a VAE.
        good = _finite((value, gradient))
        params, opt_state = jax.lax.cond(good, move, lambda: (climb.params, climb.opt_state))
        return Climb(params, opt_state, climb.left_out + jnp.where(good, 0, 1).astype(jnp.int32))

    def _estimate(self, params: PyTree, batch: tuple[PyTree, Array], key: Array, index: Array) -> Array:
        """The mean of `num_samples` evaluations of the training ELBO of a batch."""
        one = lambda key: self.model.training_elbo(params, *batch, key, index)
        if self.num_samples == 1:
            return one(key)
        return jnp.mean(jax.vmap(one)(jax.random.split(key, self.num_samples)))


def _finite(tree: PyTree) -> Array:
    """Whether no entry of any leaf is NaN or infinite; 0 times it would be NaN, and sums are the fastest test."""
    return jnp.all(jnp.stack([jnp.sum(leaf * 0) == 0 for leaf in jax.tree.leaves(tree)]))


def complete(optimizer: Any) -> Any:
    """The optimiser, Adam for None, as one that takes values and gradients for line searches."""
    import optax  # half a second, not needed by the closed-form algorithms

    return optax.with_extra_args_support(optax.adam(1.0) if optimizer is None else optimizer)


@partial(jax.jit, static_argnums=0)
def opt_states(optimizer: Any, model: Any, params: PyTree) -> PyTree:
    """The optimiser's states at the params of R restarts."""

    def one(params: PyTree) -> PyTree:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            state = complete(optimizer).init(coordinates(model.constraints(), params)[0])
        state = jax.tree.map(jnp.asarray, state)
        if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)):
            raise TypeError("optimizer: expected a state of plain arrays; found a random key in it")
        return like(state, state)

    return jax.vmap(one)(params)
