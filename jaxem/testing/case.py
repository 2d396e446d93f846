"""What the laws of the contract are asked of: a bound model, an algorithm, and params a few steps from a start."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.algorithms.algorithm import Found
from jaxem.core import rows as _rows
from jaxem.core import threefry
from jaxem.core.inputs import cast_floats
from jaxem.core.tree import PyTree, num_rows
from jaxem.elbo import ELBO
from jaxem.engine import shapes as _shapes
from jaxem.engine.fit import choose_algorithm, fit
from jaxem.engine.result import Fit
from jaxem.engine.table import advance
from jaxem.model import DiscreteLatent
from jaxem.stopping import Status, Stop
from jaxem.wrappers import unwrapped

# Most steps of a fit in a check, and of one whose algorithm does not promise to get anywhere.
STEPS, FEW = 3000, 10
# Independent evaluations whose mean is compared where an evaluation draws.
DRAWS = 64


def redrawn(algorithm: Any, number: Any) -> Any:
    """The algorithm with other random keys."""
    is_key = lambda leaf: isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda leaf: jax.random.fold_in(leaf, number) if is_key(leaf) else leaf, algorithm)


class Case:
    """A model bound to float64 data, its algorithm and some params, shared by all laws.

    An even number of rows is kept, so that a half of them and all of them are the only shapes that are compiled.

    What only some laws ask is found when it is asked for.
    """

    def __init__(self, model: Any, data: PyTree, key: Array, num_starts: int, algorithm: Any = None):
        self.key, self.num_starts, self.free = key, num_starts, model
        data = _rows.as_data(model.opened(data, "data"), keys=model.row_keys)
        data = cast_floats(data, jnp.float64)
        self.num = num_rows(data) // 2 * 2
        if self.num == 0:
            raise ValueError("data: expected at least 2 rows; found 1")
        self.half = self.num // 2
        self.halves = (0, self.half), (self.half, self.num)
        self.data = jax.tree.map(lambda a: a[: self.num], data)
        self.weights = jax.device_put(np.random.default_rng(0).uniform(0.5, 2.0, self.num))
        model = cast_floats(model, jnp.float64)
        model.check(self.data)
        _shapes.check(model, self.data, key)
        self.given = choose_algorithm(model, algorithm)
        self.algorithm: Any = self.given.prepare(model, self.data, key, STEPS)
        self.name, self.climbs_by = type(self.algorithm).__name__, self.algorithm.climbs_by
        self.discrete = isinstance(unwrapped(model), DiscreteLatent)
        self.model: Any = jax.jit(model.bind)(self.data, self.weights)
        self.init = jax.jit(lambda k: self.model.init(k, self.data, self.weights))
        here = lambda p: (self.model.at(p), self.model.at(p).log_joint(self.data))
        self.infer = jax.jit(lambda p, rule: here(p)[0].infer(here(p)[1], rule))
        self.decompose = jax.jit(lambda p, rule: here(p)[0].decompose(here(p)[1], here(p)[1], rule))
        self._step = jax.jit(lambda p, step: self.next(self.model, p, self.data, self.weights, step))
        self._one = jax.jit(lambda *args: self.evaluate(self.model, *args))
        self._each = jax.jit(lambda *args: self.draws(self.model, *args))
        self.params = self.climb(self.init(key), 2)
        self.traced: list[int] = []

    def _state(self, model: Any, algorithm: Any, params: PyTree, dtype: Any, **fields: Any) -> Any:
        states = algorithm.init(model, jax.tree.map(lambda a: a[None], params), 1, dtype)
        return dataclasses.replace(jax.tree.map(lambda a: a[0], states), **fields)

    def evaluate(
        self, model: Any, params: PyTree, data: PyTree, weights: Array, number: Any = 0, step: Any = 0
    ) -> Found:
        """What the algorithm finds of params in rows, by the draws of that number; traceable."""
        number, step = jnp.asarray(number, jnp.int32), jnp.asarray(step, jnp.int32)
        algorithm = redrawn(cast_floats(self.algorithm, weights.dtype), number)
        state = self._state(model, algorithm, params, weights.dtype, restart=number, step=step)
        return algorithm.evaluate(model, state, data, weights)

    def draws(self, model: Any, params: PyTree, data: PyTree, weights: Array) -> Found:
        """DRAWS evaluations by different draws, stacked; traceable."""
        each = lambda number: self.evaluate(model, params, data, weights, number)
        return jax.vmap(each)(jnp.arange(DRAWS, dtype=jnp.int32))

    @functools.cached_property
    def drawn(self) -> bool:
        """Whether an evaluation is an estimate, which depends on a key."""
        differs = lambda a, b: np.any(np.abs(a - b) > 1e-9 * np.max(np.abs(a), initial=0.0))
        found = (self._one(self.params, self.data, self.weights, np.int32(n)) for n in range(2))
        return any(differs(*map(np.asarray, pair)) for pair in zip(*map(jax.tree.leaves, found), strict=True))

    @functools.cached_property
    def rises(self) -> np.ndarray:
        """(STEPS + 1,) whether the algorithm promises that no step to this one lowers the objective.

        Then a candidate far below the params before it ends a restart as DECREASED.
        """
        high = ELBO(jnp.asarray(1e30), jnp.asarray(0.0))

        def status(step: Array, found: Found) -> Array:
            state = self._state(self.model, self.algorithm, self.params, jnp.float64, step=step, elbo=high)
            return self.algorithm.update(self.model, state, found, (self.data, self.weights)).status

        found = self._one(self.params, self.data, self.weights, np.int32(0))
        steps = np.arange(STEPS + 1, dtype=np.int32)
        return np.asarray(jax.jit(jax.vmap(status, (0, None)))(steps, found)) == Status.DECREASED

    @functools.cached_property
    def sizes(self) -> PyTree:
        """Of each leaf of an evaluation, the largest entry of either half of the rows: a sum of all may be 0."""
        parts = (jax.device_get(self.found(self.params, *self.part(slice(*part)))) for part in self.halves)
        return jax.tree.map(lambda *leaves: max(np.max(np.abs(leaf), initial=0.0) for leaf in leaves), *parts)

    def one(self, params: PyTree, data: PyTree, weights: Array) -> Found:
        """One evaluation."""
        return self._one(params, data, weights, np.int32(0))

    def found(self, params: PyTree, data: PyTree, weights: Array) -> Found:
        """An evaluation; where it draws, DRAWS of them, stacked."""
        return self._each(params, data, weights) if self.drawn else self.one(params, data, weights)

    def climb(self, params: PyTree, steps: int, first: int = 0) -> PyTree:
        """The params after some steps of number `first`."""
        for _ in range(steps):
            params = self._step(params, np.int32(first))
        return params

    def next(self, model: Any, params: PyTree, data: PyTree, weights: Array, step: Any = 0) -> PyTree:
        """The params that a step of the algorithm proposes; traceable."""
        algorithm = cast_floats(self.algorithm, weights.dtype)
        state = self._state(model, algorithm, params, weights.dtype, step=jnp.asarray(step, jnp.int32))
        return algorithm.step(model, state, data, weights).candidate

    def rows(self, index: Any) -> PyTree:
        """The rows of that index."""
        return jax.tree.map(lambda a: jax.device_put(np.asarray(a)[index]), self.data)

    def part(self, index: Any) -> tuple[PyTree, Array]:
        """The rows of that index and their weights."""
        return self.rows(index), jax.device_put(np.asarray(self.weights)[index])

    def keys(self, num: int) -> list[Array]:
        """As many keys, fold_in(key, i)."""
        return threefry.each(threefry.fold_in_each(self.key, num))

    def fit(self, model: Any = None, **kwargs: Any) -> Fit:
        """A fit; of one shape and number of steps, so that all laws share one compiled program."""
        steps = STEPS if self.rises.any() else FEW
        options: dict[str, Any] = {"key": self.key, "weights": self.weights, "stop": Stop(), "max_steps": steps}
        options |= {"data": self.data, "algorithm": self.given, "num_restarts": self.num_starts, **kwargs}
        loop: Any = advance
        before = loop._cache_size()
        result = fit(self.free if model is None else model, options.pop("data"), **options)
        if "data" not in kwargs:  # of which some models' programs know whether columns depend on each other
            self.traced.append(loop._cache_size() - before)
        return result


def close(
    found: PyTree,
    expected: PyTree,
    what: str,
    rtol: float = 1e-9,
    atol: float = 1e-30,
    sizes: PyTree = None,
    drawn: bool = False,
) -> None:
    """Leaves agree to rtol of the largest entry of each leaf, or of its size where those are given, or to atol.

    Where they hold draws, their means agree, to 6 standard errors besides.
    """
    floors = jax.tree.leaves(sizes) if sizes is not None else [0.0] * len(jax.tree.leaves(expected))
    for a, b, floor in zip(jax.tree.leaves(found), jax.tree.leaves(expected), floors, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        chex.assert_equal_shape([a, b])
        spread = 0.0
        if drawn:  # the same keys may give both sides related draws, whose deviations then add up
            spread = 6 * (a.std(0) + b.std(0)) / np.sqrt(DRAWS)
            a, b = a.mean(0), b.mean(0)
        scale = max(np.max(np.abs(b), initial=0.0), floor)
        error = np.max(np.abs(a - b) - spread, initial=0.0)
        assert error <= max(rtol * scale, atol), f"{what}: differs by {error:.3g} at scale {scale:.3g}"
