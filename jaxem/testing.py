"""check_model: the contract that every jaxem model keeps, as one call for a test-suite."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import model as _model
from jaxem.core import constraints
from jaxem.core import rows as _rows
from jaxem.core.arguments import as_key, check_integer
from jaxem.core.inputs import cast_floats
from jaxem.core.numerics import slack as rounding
from jaxem.core.tree import PyTree, float_dtype, num_rows
from jaxem.core.warn import FitWarning
from jaxem.elbo import decompose
from jaxem.engine import shapes as _shapes
from jaxem.engine.fit import choose_algorithm, fit
from jaxem.engine.result import Fit, FitError
from jaxem.engine.table import advance
from jaxem.model import DiscreteLatent, LatentModel
from jaxem.rules import Exact, Hard, Tempered
from jaxem.stopping import Status, Stop
from jaxem.wrappers import chunked

# Most steps of a fit in a check.
STEPS = 3000


class _Case:
    """A model bound to float64 data, with params a few steps from a start, shared by the checks."""

    def __init__(self, model: Any, data: PyTree, key: Array, num_starts: int, algorithm: Any = None):
        self.key, self.num_starts = key, num_starts
        self.free = model
        self.data = cast_floats(_rows.as_data(data, keys=model.row_keys), jnp.float64)
        self.num = num_rows(self.data)
        self.weights = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, self.num))
        model = cast_floats(model, jnp.float64)
        model.check(self.data)
        _shapes.check(model, self.data, self.weights, key)
        self.algorithm: Any = choose_algorithm(model, algorithm).prepare(model, self.data, key, STEPS)
        # Laws of statistics and of the exact M-step bind those who use them.
        self.closed = self.algorithm.climbs_by == "m_step"
        self.model: Any = jax.jit(model.bind)(self.data, self.weights)
        self.init = jax.jit(lambda k: self.model.init(k, self.data, self.weights))
        self.e_step = jax.jit(lambda p, x, w: self.model.e_step(p, x, w))
        self.log_joint = jax.jit(lambda p: self.model.log_joint(p, self.data))
        self.step = jax.jit(lambda p, x, w: self.next(self.model, p, x, w))
        self.params = self.climb(self.init(key), 2)

    def climb(self, params: PyTree, steps: int) -> PyTree:
        for _ in range(steps):
            params = self.step(params, self.data, self.weights)
        return params

    def next(self, model: Any, params: PyTree, data: PyTree, weights: Array) -> PyTree:
        """The params that one step of the algorithm proposes."""
        algorithm = cast_floats(self.algorithm, weights.dtype)
        states = algorithm.init(model, jax.tree.map(lambda a: a[None], params), 1, weights.dtype)
        return algorithm.step(model, jax.tree.map(lambda a: a[0], states), data, weights).candidate

    def rows(self, index: Any) -> PyTree:
        return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[index]), self.data)

    def fit(self, **kwargs: Any) -> Fit:
        """A fit; of one shape and number of steps, so that all checks share one compiled program."""
        options: dict[str, Any] = {"key": self.key, "weights": self.weights, "stop": Stop(), "max_steps": STEPS}
        options |= {"data": self.data, "algorithm": self.algorithm, "num_restarts": self.num_starts, **kwargs}
        return fit(self.free, options.pop("data"), **options)


def _close(found: PyTree, expected: PyTree, what: str, rtol: float = 1e-9, atol: float = 1e-30) -> None:
    """Leaves agree to rtol of the largest entry of each leaf, or to atol."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        chex.assert_equal_shape([a, b])
        scale = np.max(np.abs(b), initial=0.0)
        error = np.max(np.abs(a - b), initial=0.0)
        assert error <= max(rtol * scale, atol), f"{what}: differs by {error:.3g} at scale {scale:.3g}"


def _additive(case: _Case) -> None:
    half = case.num // 2  # two parts of one shape: one program
    parts = slice(0, half), slice(half, 2 * half), slice(0, 2 * half)
    a, b, whole = (case.e_step(case.params, case.rows(part), case.weights[part]) for part in parts)
    _close(jax.tree.map(np.add, a, b), whole, "e_step(A ++ B) = e_step(A) + e_step(B)")


def _weights(case: _Case) -> None:
    ones, more = jnp.ones(case.num), case.rows(np.r_[0 : case.num, 0])
    twice = case.e_step(case.params, more, jnp.ones(case.num + 1))
    _close(case.e_step(case.params, case.data, ones.at[0].set(2)), twice, "weight 2 = a duplicated row")
    absent = case.e_step(case.params, more, jnp.ones(case.num + 1).at[-1].set(0))
    _close(case.e_step(case.params, case.data, ones), absent, "weight 0 = an absent row")
    # Nor does it matter what an absent row holds.
    other = case.e_step(case.params, case.rows(np.r_[1, 1 : case.num]), ones.at[0].set(0))
    _close(case.e_step(case.params, case.data, ones.at[0].set(0)), other, "weight 0 = an absent row")


def _permutation(case: _Case) -> None:
    order = np.random.default_rng(1).permutation(case.num)
    found = case.e_step(case.params, case.rows(order), case.weights[order])
    _close(found, case.e_step(case.params, case.data, case.weights), "the order of the rows does not matter")


def _monotone(case: _Case) -> None:
    result = case.fit()
    counts = result.restarts.counts()
    assert not {"DECREASED", "NONFINITE"} & set(counts), f"monotone: restarts ended as {counts}"
    for trace in np.asarray(result.restarts.trace):
        trace = trace[np.isfinite(trace)]
        slack = np.asarray(rounding(jnp.asarray(trace[1:]), jnp.sum(case.weights), case.model.scales))
        assert np.all(np.diff(trace) >= -slack), f"monotone: the objective falls by {-np.diff(trace).min():.3g}"
        assert trace[-1] >= trace[0], "monotone: the objective ends below its start"


def _gradient(case: _Case, params: PyTree) -> float:
    spec = case.model.constraints()

    def objective(free: PyTree) -> Array:
        p = constraints.constrain(spec, free, params)
        return case.model.elbo_data(p, case.data, case.weights) + case.model.elbo_params(p)

    gradient = jax.jit(jax.grad(objective))(constraints.unconstrain(spec, params))
    return max(float(np.max(np.abs(g))) for g in jax.tree.leaves(gradient) if g.size)


def _stationary(case: _Case) -> None:
    best = case.fit(stop=Stop(atol=0.0, rtol=0.0))
    start, end = _gradient(case, case.params), _gradient(case, best.params)
    assert end <= 1e-3 * max(start, 1e-6 * case.num), f"fixed point: gradient {end:.3g}, {start:.3g} near the start"
    again = case.climb(best.params, 1)
    _close(again, best.params, "fixed point: a step from the optimum stays there", rtol=1e-4)


def _m_step_is_best(case: _Case) -> str | None:
    model, old = case.model, case.params
    if not case.closed:
        return f"{type(case.algorithm).__name__} raises the objective and need not maximise it"
    if not isinstance(model, DiscreteLatent):
        return None
    rule = model.default_rule()
    resp = case.weights[:, None] * rule(case.log_joint(old))[1]

    def expected(params: PyTree) -> Array:
        log_joint = jnp.where(resp > 0, model.log_joint(params, case.data), 0)
        return jnp.sum(resp * log_joint) + model.elbo_params(params)

    expected = jax.jit(expected)
    new = case.climb(old, 1)
    top, spec = float(expected(new)), model.constraints()
    free = constraints.unconstrain(spec, new)
    constrain = jax.jit(lambda free, params: constraints.constrain(spec, free, params))
    leaves, structure = jax.tree.flatten(free)
    rng = np.random.default_rng(2)
    for trial in range(30):
        size = 10.0 ** rng.uniform(-3, -0.5)
        moved = [leaf + size * rng.normal(size=leaf.shape) for leaf in leaves]
        value = float(expected(constrain(jax.tree.unflatten(structure, moved), new)))
        assert value <= top + 1e-9 * abs(top), (
            f"m_step: perturbation {trial} of size {size:.2g} gains {value - top:.3g}"
        )
    return None


def _linear(case: _Case) -> str | None:
    model, old = case.model, case.params
    if not case.closed:
        return f"{type(case.algorithm).__name__} uses no statistics"
    if not isinstance(model, DiscreteLatent):
        return None
    statistics = jax.jit(lambda r: model.statistics(old, case.data, r))
    one = Exact()(case.log_joint(old))[1]
    two = jnp.asarray(np.random.default_rng(3).uniform(0, 1, one.shape))
    mixed = jax.tree.map(lambda a, b: 3 * a + 0.5 * b, statistics(one), statistics(two))
    what = "statistics: linear in resp, statistics(3 a + b / 2) = 3 statistics(a) + statistics(b) / 2"
    _close(statistics(3 * one + 0.5 * two), mixed, what, atol=1e-12 * case.num)
    return None


def _bound(case: _Case) -> None:
    model = case.model
    if not isinstance(model, DiscreteLatent):
        return
    log_joint = case.log_joint(case.params)
    evidence, _ = Exact()(log_joint)
    exact = jax.jit(lambda p, x, w: model.e_step(p, x, w, Exact()))(case.params, case.data, case.weights).elbo_data
    _close(exact, jnp.sum(case.weights * evidence), "ELBO = log p(x) for the exact E-step")
    for rule in (Tempered(2.0), Tempered(0.5), Hard()):
        terms = decompose(log_joint, rule(log_joint)[1])
        _close(terms.elbo + terms.kl, evidence, "log p(x) = ELBO + KL")
        assert np.all(np.asarray(terms.elbo) <= np.asarray(evidence) + 1e-9), "ELBO <= log p(x)"


def _transformed(case: _Case) -> None:
    whole = case.e_step(case.params, case.data, case.weights)
    with jax.disable_jit():
        few = slice(0, min(case.num, 20))
        plain = case.model.e_step(case.params, case.rows(few), case.weights[few])
    _close(plain, case.e_step(case.params, case.rows(few), case.weights[few]), "jit = no jit")
    starts = [case.climb(case.init(jax.random.fold_in(case.key, i)), 1) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    lanes = jax.jit(jax.vmap(lambda p: case.model.e_step(p, case.data, case.weights)))(stacked)
    for i, params in enumerate(starts):
        one = case.e_step(params, case.data, case.weights)
        _close(jax.tree.map(lambda a, i=i: np.asarray(a)[i], lanes), one, "vmap = loop")
    parts = chunked(case.model, max(1, case.num // 4 + 1))
    pieces = jax.jit(parts.e_step)(case.params, case.data, case.weights)
    _close(pieces, whole, "chunked = whole")


def _sharded(case: _Case) -> None:
    devices = jax.devices()
    num = case.num - case.num % len(devices)
    if len(devices) == 1 or num == 0:
        return
    mesh = jax.sharding.Mesh(np.array(devices), ("rows",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    data, weights = case.rows(slice(0, num)), case.weights[:num]
    spread = jax.device_put((data, weights), spec)
    _close(case.e_step(case.params, *spread), case.e_step(case.params, data, weights), "sharded = whole")


def _single_precision(case: _Case) -> None:
    narrow = cast_floats((case.data, case.weights), jnp.float32)
    model = jax.jit(lambda *rows: cast_floats(case.free, jnp.float32).bind(*rows))(*narrow)
    params = cast_floats(case.params, jnp.float32)
    found = jax.jit(model.e_step)(params, *narrow)
    wide = cast_floats((params, *narrow), jnp.float64)
    _close(found, case.e_step(*wide), "float32 agrees with float64", rtol=1e-4, atol=1e-6 * case.num)
    stepped = jax.jit(case.next)(model, params, *narrow)
    for leaf in jax.tree.leaves((found, stepped, jax.eval_shape(model.elbo_params, params))):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32, f"dtypes: float32 data gave {leaf.dtype}"
        assert not leaf.weak_type, "dtypes: a weakly typed result compiles again in a loop"


def _degenerate(case: _Case) -> None:
    equal = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), case.data)
    half = case.num // 2
    twins = jax.tree.map(lambda a, e: jnp.concatenate([a[:half], e[half:]]), case.data, equal)
    for name, data in (("equal rows", equal), ("half of the rows equal", twins)):
        try:
            result = case.fit(data=data, weights=jnp.ones(case.num), stop=None)
        except FitError as error:  # all restarts failed, and said so
            if "NONFINITE" not in error.fit.restarts.counts():
                raise AssertionError(f"{name}: failed without a status") from error
            continue
        finite = all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((result.params, result.elbo)))
        assert finite, f"{name}: {Status(int(result.status)).name} with NaN in the params or the ELBO"


def _traces(case: _Case) -> None:
    loop: Any = advance
    data = jax.tree.map(lambda a: jnp.concatenate([a, a[:1]]), case.data)  # a shape of its own
    counts = [loop._cache_size()]
    for seed, atol, temperature in ((0, 1e-6, 1.0), (1, 1e-6, 1.0), (1, 1e-3, 1.0), (1, 1e-3, 2.0)):
        algorithm = dataclasses.replace(case.algorithm, rule=Tempered(temperature))
        fit(case.free, data, key=jax.random.key(seed), algorithm=algorithm, stop=Stop(atol=atol), max_steps=3)
        counts.append(loop._cache_size())
    assert counts[1:] == [counts[0] + 1] * 4, f"traces: cache sizes {counts} for a new key, tolerance and temperature"


# A check returns None, or why it does not apply.
CHECKS: dict[str, Callable[[_Case], str | None]] = {
    "additive": _additive,
    "linear": _linear,
    "weights": _weights,
    "permutation": _permutation,
    "monotone": _monotone,
    "stationary": _stationary,
    "m_step": _m_step_is_best,
    "bound": _bound,
    "transformed": _transformed,
    "sharded": _sharded,
    "single_precision": _single_precision,
    "degenerate": _degenerate,
    "traces": _traces,
}


def check_model(
    model: LatentModel, data: PyTree, *, key: Array, num_starts: int = 6, algorithm: Any = None
) -> list[str]:
    """Checks a model against the contract of the library; raises AssertionError naming the law it breaks.

    additive: E-steps add up over data; linear: statistics are linear in the responsibilities; weights: 2 is a
    duplicated row, 0 an absent one; permutation: the order of rows does not matter; monotone: the objective never
    falls, from many starts; stationary: at a fixed point the gradient in unconstrained coordinates is zero; m_step: no
    random feasible perturbation beats it; bound: ELBO <= log p(x), equal for exact E-steps; transformed: jit, vmap and
    chunks change nothing; sharded: nor do several devices (where there are any); single_precision: float32 agrees with
    float64 and stays float32; degenerate: equal rows give a status, not a NaN; traces: one trace for a fit, none for a
    new key, tolerance or temperature.

    Args:
      model: a `LatentModel` that declares `constraints()`.
      data: small data (about 100 rows) with an interior optimum that the model can fit.
      key: random key of the starts.
      num_starts: restarts of the checks that fit.
      algorithm: what the checks fit with; None for `EM()`, or `GeneralizedEM()` for a model without an m_step. It has
        a `rule`.

    Returns:
      The names of the laws checked; for a law that does not apply, its name and "(not checked: why)".

    Raises:
      AssertionError: a law is broken.
      ValueError: methods of the model disagree about shapes; the message names the method.

    Takes about 10-20 seconds, most of it compilation. Runs in double precision whatever the x64 mode is.
    """
    _model.check_model(model, data)
    key = as_key(key)
    check_integer("num_starts", num_starts, 1)
    with jax.enable_x64(True):
        case = _Case(model, data, key, num_starts, algorithm)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # most of its fits take few steps on purpose
            reasons = {name: check(case) for name, check in CHECKS.items()}
        assert float_dtype(case.params) == jnp.float64
    return [name if why is None else f"{name} (not checked: {why})" for name, why in reasons.items()]
