"""The laws of the contract: each takes a `Case`, raises AssertionError where it is broken, and may say what it left."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.ascent import coordinates
from jaxem.core.inputs import cast_floats
from jaxem.core.numerics import slack as rounding
from jaxem.core.numerics import weigh
from jaxem.core.tree import PyTree
from jaxem.engine.result import FitError
from jaxem.model import LatentModel
from jaxem.rules import Exact, Hard, Tempered
from jaxem.stopping import Status, Stop
from jaxem.testing.case import DRAWS, STEPS, Case, close
from jaxem.wrappers import chunked

# Said of laws whose two sides use different draws.
MEAN = f"of the mean of {DRAWS} draws"


def _same(case: Case, found: PyTree, expected: PyTree, what: str, drawn: bool = False) -> None:
    """Evaluations agree to rounding."""
    close(found, expected, what, sizes=case.sizes, drawn=drawn)


def _in_the_mean(case: Case) -> str | None:
    return MEAN if case.drawn else None


def _additive(case: Case) -> str | None:
    a, b = (case.found(case.params, *case.part(slice(*part))) for part in case.halves)
    whole = case.found(case.params, case.data, case.weights)
    _same(case, jax.tree.map(np.add, a, b), whole, "e_step(A ++ B) = e_step(A) + e_step(B)", drawn=case.drawn)
    return _in_the_mean(case)


def _weights(case: Case) -> str | None:
    half, params, ones = case.half, case.params, jax.device_put(np.ones(case.num))
    first, second = (jax.device_put((np.arange(case.num) // half == i).astype(float)) for i in range(2))
    once, double = jax.device_put(np.ones(half)), jax.device_put(1.0 + (np.arange(half) == 0))
    longer = jax.device_put((np.arange(case.num) <= half).astype(float))
    few = case.rows(slice(0, half))
    more = case.rows(np.r_[0:half, 0, half + 1 : case.num])
    twice = case.found(params, few, double)
    what = "weight 2 = a duplicated row"
    _same(case, case.found(params, more, longer), twice, what, drawn=case.drawn)
    what = "weight 0 = an absent row"
    absent = case.found(params, case.data, first)
    _same(case, absent, case.found(params, few, once), what, drawn=case.drawn)
    # Rows of weight 0 take the same draws: nor does it matter what they hold, and weights add up.
    _same(case, case.found(params, case.rows(np.r_[0:half, 0:half]), first), absent, what)
    both = jax.tree.map(np.add, absent, case.found(params, case.data, second))
    _same(case, both, case.found(params, case.data, ones), "weights: e_step(v + w) = e_step(v) + e_step(w)")
    return _in_the_mean(case)


def _permutation(case: Case) -> str | None:
    order = np.random.default_rng(1).permutation(case.num)
    found = case.found(case.params, *case.part(order))
    expected = case.found(case.params, case.data, case.weights)
    _same(case, found, expected, "the order of the rows does not matter", drawn=case.drawn)
    return _in_the_mean(case)


def _no_promise(case: Case) -> str:
    return f"not checked: this {case.name} does not promise that the objective rises"


def _monotone(case: Case) -> str | None:
    if not case.rises.any():
        return _no_promise(case)
    result = case.fit()
    counts = result.restarts.counts()
    assert not {"DECREASED", "NONFINITE"} & set(counts), f"monotone: restarts ended as {counts}"
    for trace in np.asarray(result.restarts.trace):
        trace = trace[np.isfinite(trace)]
        slack = rounding(trace[1:], np.asarray(case.weights).sum(), case.model.scales)
        change, promised = np.diff(trace), case.rises[1 : trace.size]
        fall = np.max(-change[promised], initial=0.0)
        assert np.all(change[promised] >= -slack[promised]), f"monotone: the objective falls by {fall:.3g}"
        assert not promised.all() or trace[-1] >= trace[0], "monotone: the objective ends below its start"
    return None if case.rises[1:].all() else "from the step on that promises a rise"


def _factors(model: Any) -> dict[str, Any]:
    return {name: factor for name, factor in model.factors().items() if not factor.local}


def _coordinates(case: Case, params: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    """Real coordinates of params and the map back; of a mean-field model those of its factors' usual parameters."""
    if case.climbs_by != "coordinates":
        return coordinates(case.model.constraints(), params)
    factors = _factors(case.model)
    spec = {name: f.family.constraints(f.dim) for name, f in factors.items()}
    free, rebuild = coordinates(spec, {name: f.family.conventional(params[name]) for name, f in factors.items()})
    return free, lambda free: {name: factors[name].family.natural(**own) for name, own in rebuild(free).items()}


def _slope(case: Case) -> Callable[[PyTree], float]:
    """The largest slope of the objective that the algorithm reports, in real coordinates, as a function of params."""

    @jax.jit
    def slopes(params: PyTree) -> PyTree:
        free, rebuild = _coordinates(case, params)

        def objective(free: PyTree) -> Array:
            moved = rebuild(free)
            found = case.evaluate(case.model, moved, case.data, case.weights, step=STEPS).elbo_data
            return found + case.model.elbo_params(moved)

        return jax.grad(objective)(free)

    return lambda params: max(float(np.max(np.abs(g))) for g in jax.tree.leaves(slopes(params)) if g.size)


def _stationary(case: Case) -> str | None:
    if not case.rises[-1]:
        return _no_promise(case)
    best, slope = case.fit(stop=Stop(atol=0.0, rtol=0.0)), _slope(case)
    start, end = slope(case.params), slope(best.params)
    assert end <= 1e-3 * max(start, 1e-6 * case.num), f"fixed point: gradient {end:.3g}, {start:.3g} near the start"
    again = case.climb(best.params, 1, first=STEPS)
    close(again, best.params, "fixed point: a step from the optimum stays there", rtol=1e-4)
    return None


def _no_gain(value: Callable[[PyTree], Array], free: PyTree, num: int, what: str) -> None:
    """No random move of real coordinates raises a value."""
    free = jax.device_get(free)
    top, rng = float(value(free)), np.random.default_rng(2)
    for trial in range(num):
        size = 10.0 ** rng.uniform(-3, -0.5)
        moved = jax.tree.map(lambda leaf, size=size: leaf + size * rng.normal(size=leaf.shape), free)
        gain = float(value(moved)) - top
        assert gain <= 1e-9 * abs(top), f"{what}: perturbation {trial} of size {size:.2g} gains {gain:.3g}"


def _m_step(case: Case) -> str | None:
    if case.climbs_by == "coordinates":
        _each_factor(case)
        return None
    if case.climbs_by != "m_step":
        return f"not checked: {case.name} raises the objective and need not maximise it"
    if not case.discrete:
        return f"not checked: the expected log-joint of {type(case.model).__name__} is not known"
    model, rule = case.model, case.model.default_rule()

    @jax.jit
    def improved(params: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        here = model.at(params)
        new = here.m_step(here.e_step(case.data, case.weights, rule).stats)
        return _coordinates(case, new)[0], new, here.log_joint(case.data)

    free, new, old = improved(case.params)

    @jax.jit
    def expected(free: PyTree, new: PyTree, old: PyTree) -> Array:
        there = model.at(_coordinates(case, new)[1](free))
        terms = there.decompose(there.log_joint(case.data), old, rule)
        return jnp.sum(weigh(case.weights, terms.expected_log_joint)) + there.elbo_params()

    _no_gain(lambda free: expected(free, new, old), free, 30, "m_step")
    return None


def _each_factor(case: Case) -> None:
    """The update of a factor maximises the objective while the others stay."""
    model, params = case.model, case.params
    best = jax.jit(model.m_step)(params, case.found(params, case.data, case.weights).stats)
    total = jax.jit(lambda p: model.elbo_data(p, case.data, case.weights) + model.elbo_params(p))
    for name, factor in _factors(model).items():
        if factor.conjugate:
            family = factor.family
            free, rebuild = coordinates(family.constraints(factor.dim), family.conventional(best[name]))
            value = lambda free, n=name, f=family, r=rebuild: total({**params, n: f.natural(**r(free))})
            _no_gain(jax.jit(value), free, 10, f"m_step: factor {name!r}")


def _linear(case: Case) -> str | None:
    if case.climbs_by == "gradient":
        return f"not checked: {case.name} uses no statistics"
    if not case.discrete:
        return f"not checked: {type(case.model).__name__} has no states to weigh"
    statistics = jax.jit(lambda q: case.model.at(case.params).statistics(case.data, q))
    one, rng = jax.device_get(case.infer(case.params, Exact())[1]), np.random.default_rng(3)
    two = jax.tree.map(lambda leaf: rng.uniform(0, 1, leaf.shape), one)
    mix = lambda a, b: jax.tree.map(lambda a, b: 3 * a + 0.5 * b, a, b)
    what = "statistics: linear in resp, statistics(3 a + b / 2) = 3 statistics(a) + statistics(b) / 2"
    apart = mix(*jax.device_get((statistics(one), statistics(two))))
    close(statistics(mix(one, two)), apart, what, atol=1e-12 * case.num)
    return None


def _bound(case: Case) -> str | None:
    if not case.discrete:
        return f"not checked: log p(x) of {type(case.model).__name__} is not known"
    evidence = np.asarray(case.infer(case.params, Exact())[0])
    exact = jax.jit(lambda p: case.model.at(p).e_step(case.data, case.weights, Exact()).elbo_data)(case.params)
    close(exact, np.asarray(case.weights) @ evidence, "ELBO = log p(x) for the exact E-step")
    for rule in (Tempered(2.0), Tempered(0.5), Hard()):
        terms = jax.device_get(case.decompose(case.params, rule))
        close(terms.elbo + terms.kl, evidence, "log p(x) = ELBO + KL")
        assert np.all(terms.elbo <= evidence + 1e-9), "ELBO <= log p(x)"
    return None


def _transformed(case: Case) -> str | None:
    few, w = case.part(slice(0, case.half))
    with jax.disable_jit():
        plain = case.evaluate(case.model, case.params, few, w)
    _same(case, plain, case.one(case.params, few, w), "jit = no jit")
    starts = [case.climb(case.init(key), 1) for key in case.keys(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
    lanes = jax.jit(jax.vmap(lambda p: case.evaluate(case.model, p, case.data, case.weights)))(stacked)
    for i, params in enumerate(starts):
        one = case.one(params, case.data, case.weights)
        _same(case, jax.tree.map(lambda a, i=i: np.asarray(a)[i], lanes), one, "vmap = loop")
    if not isinstance(case.model, LatentModel):
        return f"but for chunks: {type(case.model).__name__} has no e_step"
    evaluate = case.draws if case.drawn else case.evaluate
    parts = chunked(case.model, max(1, case.num // 4 + 1))
    pieces = jax.jit(lambda *args: evaluate(parts, *args))(case.params, case.data, case.weights)
    whole = case.found(case.params, case.data, case.weights)
    _same(case, pieces, whole, "chunked = whole", drawn=case.drawn)
    return f"chunks {MEAN}" if case.drawn else None


def _sharded(case: Case) -> str | None:
    devices = jax.devices()
    num = case.num - case.num % len(devices)
    if len(devices) == 1 or num == 0:
        return "not checked: there is one device" if num else "not checked: fewer rows than devices"
    mesh = jax.sharding.Mesh(np.array(devices), ("rows",))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    data, w = case.part(slice(0, num))
    spread = jax.device_put(jax.device_get((data, w)), spec)  # from the host, where a slice is no program
    _same(case, case.one(case.params, *spread), case.one(case.params, data, w), "sharded = whole")
    return None


def _single_precision(case: Case) -> str | None:
    narrow = _cast((case.data, case.weights), jnp.float32)
    model = jax.jit(lambda *rows: cast_floats(case.free, jnp.float32).bind(*rows))(*narrow)
    params = _cast(case.params, jnp.float32)
    evaluate = case.draws if case.drawn else case.evaluate
    _stays_single(jax.eval_shape(evaluate, model, params, *narrow))  # a step would mix it with float32, which may raise
    everything = lambda *args: (evaluate(*args), case.next(*args), args[0].elbo_params(args[1]))
    results = jax.jit(everything)(model, params, *narrow)
    wide = _cast((params, *narrow), jnp.float64)
    what = "float32 agrees with float64"
    close(results[0], case.found(*wide), what, rtol=1e-4, atol=1e-6 * case.num, drawn=case.drawn)
    _stays_single(results)
    return _in_the_mean(case)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Floating arrays in another dtype, by the host."""
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, dtype)) if is_float(leaf) else leaf, tree)


def _stays_single(results: PyTree) -> None:
    for leaf in jax.tree.leaves(results):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32, f"dtypes: float32 data gave {leaf.dtype}"
        assert not leaf.weak_type, "dtypes: a weakly typed result compiles again in a loop"


def _degenerate(case: Case) -> None:
    equal = case.rows(np.zeros(case.num, int))
    twins = case.rows(np.where(np.arange(case.num) < case.half, np.arange(case.num), 0))
    for name, data in (("equal rows", equal), ("half of the rows equal", twins)):
        try:
            result = case.fit(data=data, weights=np.ones(case.num), stop=None)
        except FitError as error:  # all restarts failed, and said so
            if "NONFINITE" not in error.fit.restarts.counts():
                raise AssertionError(f"{name}: failed without a status") from error
            continue
        finite = all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((result.params, result.elbo)))
        assert finite, f"{name}: {Status(int(result.status)).name} with NaN in the params or the ELBO"


def _nudged(tree: PyTree) -> PyTree:
    """All floats of a configuration a little smaller."""
    is_float = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jax.tree.map(lambda leaf: leaf * (1 - 1e-6) if is_float(leaf) else leaf, tree)


def _traces(case: Case) -> None:
    if not case.traced:
        case.fit()
    model = _nudged(case.free)
    try:
        model.check(case.data)
    except ValueError:  # floats that are counts
        model = case.free
    key = case.keys(2)[1]
    del case.traced[1:]
    case.fit(key=key)
    case.fit(key=key, stop=Stop(atol=1e-3))
    case.fit(key=key, algorithm=_nudged(case.given))
    case.fit(key=key, model=model)
    what = "for a fit, a new key, a new tolerance, floats of the algorithm and of the model"
    assert case.traced in ([1, 0, 0, 0, 0], [0] * 5), f"traces: {case.traced} {what}"


# A law returns None, or what is to be said: why it is not checked, or in what sense it is.
CHECKS: dict[str, Callable[[Case], str | None]] = {
    "additive": _additive,
    "linear": _linear,
    "weights": _weights,
    "permutation": _permutation,
    "monotone": _monotone,
    "stationary": _stationary,
    "m_step": _m_step,
    "bound": _bound,
    "transformed": _transformed,
    "sharded": _sharded,
    "single_precision": _single_precision,
    "degenerate": _degenerate,
    "traces": _traces,
}
