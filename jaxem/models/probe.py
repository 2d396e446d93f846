"""What mean-field updates by autodiff rest on, checked by differentiating at random points before a fit."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import check_flag, check_integer, shown
from jaxem.core.inputs import cast_floats
from jaxem.core.mesh import first_rows
from jaxem.core.numerics import is_concrete
from jaxem.core.tree import PyTree, num_rows
from jaxem.expfam import Delta, ExponentialFamily

ROWS = 8


def check(model: Any, params: PyTree | None) -> None:
    """Raises TypeError or ValueError for factors that are none, and for params outside their domain."""
    factors = model.factors()
    check_factors(factors)
    if not any(not factor.local for factor in factors.values()):
        raise ValueError("factors: expected at least one global factor; found none")
    if params is not None:
        _check_params(model, params)


def check_functions(model: Any, data: PyTree) -> None:
    """Raises ValueError, naming the factor, where a coordinate update would be no valid gradient; compiles a little."""
    if not is_concrete(model, data):
        return
    factors = model.factors()
    rows = jax.tree.map(lambda a: np.asarray(a, np.float64), first_rows(data, ROWS))
    with jax.enable_x64(True):
        _check_functions(cast_floats(model, np.float64), factors, rows)


def check_factors(factors: Any) -> None:
    """Raises unless these are factors by name, each of a family, a plate of integers and a dimension."""
    if not isinstance(factors, dict):
        raise TypeError(f"factors: expected factors() to return a dict name -> jaxem.Factor; found {shown(factors)}")
    for name, factor in factors.items():
        place = f"factors()[{name!r}]"
        if not all(hasattr(factor, field) for field in ("family", "plate", "dim", "local", "conjugate")):
            raise TypeError(f"{place}: expected a jaxem.Factor(family, ...); found {shown(factor)}")
        family = factor.family
        if not isinstance(family, ExponentialFamily):
            remedy = "; call it first" if isinstance(family, type) else ""
            what = "one of jaxem.expfam, as jaxem.expfam.Normal()"
            raise TypeError(f"{place}.family: expected {what}; found {shown(family)}{remedy}")
        if not isinstance(factor.plate, tuple):
            remedy = f"; write ({factor.plate},)" if isinstance(factor.plate, int) else ""
            raise TypeError(f"{place}.plate: expected a tuple of integers; found {shown(factor.plate)}{remedy}")
        for i, size in enumerate(factor.plate):
            check_integer(f"{place}.plate[{i}]", size, 1)
        check_integer(f"{place}.dim", factor.dim, 1)
        check_flag(f"{place}.local", factor.local)
        check_flag(f"{place}.conjugate", factor.conjugate)


def _check_params(model: Any, params: PyTree) -> None:
    for name, natural in params.items():
        valid = model.factors()[name].family.valid(natural)
        if is_concrete(valid) and not np.all(valid):
            raise ValueError(
                f"params[{name!r}]: natural parameters outside the domain of {model.factors()[name].family}"
            )


def _standard(factors: dict[str, Any], num: int, key: Array, size: float) -> dict[str, Any]:
    """Mean parameters of standard factors, the conjugate ones moved at random: polynomials are defined anywhere."""
    means = {}
    for name, f in factors.items():
        plate = (num, *f.plate) if f.local else f.plate
        family = f.family.family if isinstance(f.family, Delta) else f.family
        means[name] = family.means(family.standard(f.dim, plate, jnp.float64))
    # Functions of a factor that is not conjugate need its means in their domain.
    moved = _moved(means, key, size)
    return {name: moved[name] if f.conjugate else means[name] for name, f in factors.items()}


def _moved(tree: PyTree, key: Array, size: float) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    noise = [size * jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, [leaf + n for leaf, n in zip(leaves, noise, strict=True)])


def _differs(a: PyTree, b: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(float(jnp.max(jnp.abs(x - y), initial=0.0)) > 1e-7 * (1 + float(jnp.max(jnp.abs(x)))) for x, y in pairs)


def _globals(model: Any, means: dict[str, Any]) -> dict[str, Any]:
    factors = model.factors()
    return {name: means[name] for name in means if not factors[name].local}


# Compiled once for a class of models, with the model an argument: a second fit probes again but compiles nothing.
@jax.jit
def _gradient(model: Any, means: dict[str, Any], rows: PyTree) -> dict[str, Any]:
    """Derivatives in the means of the expected log-joint of all rows and the prior."""

    def total(means: dict[str, Any]) -> Array:
        return jnp.sum(model.expected_log_lik(means, rows)) + model.expected_log_prior(_globals(model, means))

    return jax.grad(total)(means)


@jax.jit
def _prior_gradient(model: Any, means: dict[str, Any]) -> dict[str, Any]:
    return jax.grad(model.expected_log_prior)(means)


def _check_functions(model: Any, factors: dict[str, Any], rows: PyTree) -> None:
    num = num_rows(rows)
    standard = lambda: _standard(factors, num, jax.random.key(0), 0.1)
    lik = _shape(jax.eval_shape(lambda: model.expected_log_lik(standard(), rows)))
    if lik != (num,):
        raise ValueError(f"expected_log_lik: expected shape ({num},), one for each row; found {lik}")
    prior = _shape(jax.eval_shape(lambda: model.expected_log_prior(_globals(model, standard()))))
    if prior != ():
        raise ValueError(f"expected_log_prior: expected a scalar; found shape {prior}")
    point = standard()
    gradient = lambda means: _gradient(model, means, rows)
    at_point = gradient(point)
    for name in factors:
        _check_factor(name, factors, gradient, point, at_point[name])
    _check_locals(factors, gradient, point, at_point)
    _check_prior(model, factors)


def _shape(found: Any) -> Any:
    """The shape of what a function returned; what else it is where it is no array."""
    return found.shape if hasattr(found, "shape") else shown(found)


def _check_factor(name: str, factors: dict[str, Any], gradient: Any, point: Any, own: Any) -> None:
    """The gradient in one factor's means must not depend on them, and not be zero everywhere."""
    if all(not np.any(leaf) for leaf in jax.tree.leaves(own)):
        raise ValueError(f"factors: {name!r} is never used by expected_log_lik or expected_log_prior")
    if not factors[name].conjugate:
        if factors[name].local:
            raise ValueError(
                f"factors: expected a conjugate factor where it is local; found conjugate=False of {name!r}"
            )
        return
    key = jax.random.key(1)
    if not _differs(gradient({**point, name: _moved(point[name], key, 0.1)})[name], own):
        return
    # One element of the plate moved: does its own gradient change, or that of the others?
    first = lambda leaf: leaf.ndim > 0 and leaf.shape[0] > 1 and (bool(factors[name].plate) or factors[name].local)
    if all(first(leaf) for leaf in jax.tree.leaves(point[name])):
        moved = _moved(point[name], key, 0.1)
        one = jax.tree.map(lambda a, b: a.at[0].set(b[0]), point[name], moved)
        found = gradient({**point, name: one})[name]
        if not _differs(jax.tree.map(lambda a: a[0], found), jax.tree.map(lambda a: a[0], own)):
            raise ValueError(
                f"expected_log_lik, expected_log_prior: elements of the plate of factor {name!r} are coupled, so that "
                "parallel updates could lower the ELBO; split it into factors of their own or make it one vector"
            )
    raise ValueError(
        f"expected_log_lik, expected_log_prior: not linear in the mean parameters of factor {name!r}, so its update is "
        "no gradient; write the expectation in terms of its statistics, or declare it with conjugate=False"
    )


def _check_locals(factors: dict[str, Any], gradient: Any, point: Any, own: Any) -> None:
    """The gradient in one local factor's means must not depend on those of another."""
    for a, b in itertools.combinations(sorted(name for name, factor in factors.items() if factor.local), 2):
        moved = {**point, b: _moved(point[b], jax.random.key(2), 0.1)}
        if _differs(gradient(moved)[a], own[a]):
            raise ValueError(
                f"factors: the local factors {a!r} and {b!r} are coupled, so that neither has a closed form given the "
                "global ones; join them into one factor"
            )


def _check_prior(model: Any, factors: dict[str, Any]) -> None:
    """Given proper values of the others, the prior alone must be a distribution; but for point estimates."""
    point = _standard({n: f for n, f in factors.items() if not f.local}, 0, jax.random.key(0), 0.0)
    for name, eta in _prior_gradient(model, point).items():
        family = factors[name].family
        proper = isinstance(family, Delta) or not factors[name].conjugate or np.all(family.valid(eta))
        if not proper:
            raise ValueError(
                f"expected_log_prior: improper for factor {name!r}: its natural parameters {tuple(map(str, eta))} are "
                f"outside the domain of {family!r}"
            )
