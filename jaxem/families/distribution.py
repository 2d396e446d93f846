"""A component given as a distribution: closed form where the family is known, gradients otherwise."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core import constraints as _constraints
from jaxem.core.arguments import check_constraints, shown
from jaxem.core.ascent import ascend
from jaxem.core.moments import moments
from jaxem.core.normal import standard_promotion
from jaxem.core.numerics import einsum, is_concrete
from jaxem.core.pytree import dataclass, static
from jaxem.core.rows import where_it_lies
from jaxem.core.tree import PyTree
from jaxem.families.bernoulli import Bernoulli
from jaxem.families.exponential import Exponential
from jaxem.families.family import Family
from jaxem.families.gamma import Gamma
from jaxem.families.gaussian import Gaussian
from jaxem.families.poisson import Poisson

REAL, POSITIVE, SIMPLEX = _constraints.Real(), _constraints.Positive(), _constraints.Simplex()
# What the parameters of distrax's distributions are called, and where they live.
KNOWN = {
    **dict.fromkeys(("loc", "logits", "bias"), REAL),
    **dict.fromkeys(("scale", "scale_diag", "rate", "concentration", "alpha", "beta"), POSITIVE),
}
# Families of jaxem whose components are the distributions of these names, without further arguments.
CLOSED = {family.__name__: family for family in (Bernoulli, Exponential, Gamma, Poisson)}
GAUSSIAN = {
    "Normal": "diag",
    "MultivariateNormalDiag": "diag",
    "MultivariateNormalTri": "full",
    "MultivariateNormalFullCovariance": "full",
}
# Updates of L-BFGS in a start that has no moments to go by.
INIT_STEPS = 10


@dataclass
class Distribution(Family):
    """Components that are K copies of a distribution, fitted by gradients; made by `from_distribution`.

    A scalar distribution describes each column of (N, D) data, columns independent given the component; a batch of D
    scalar distributions or one with a vector event describes the row. Params are a dict of (K, ...) arrays. There are
    no statistics and no m_step: a `Mixture` of it is fitted by `GeneralizedEM`, the default.

    A start fits each copy to a cell of a partition of the rows (equal copies would be a saddle), a tenth of each row
    being shared evenly, so that no copy collapses on a small cell: loc and scale by the mean and standard deviation of
    the cell, other params by 10 steps of L-BFGS from the values given.

    Nothing bounds the likelihood: where a scale may go to 0 on a few equal rows (Laplace, Gumbel), the best of many
    restarts may be such a spike, and none is flagged DEGENERATE. Look at `health.min_count` and `hits` of the fit.

    Attributes:
      make: keyword params -> distribution with `log_prob`, `sample`, `batch_shape` and `event_shape`, vectorised over
        leading axes of the params.
      values: where the params start, a dict of numbers or arrays, for one component.
      spec: pairs (name, constraint), sorted by name.
      standardise: whether the params are a loc and a scale, which start from moments.
      location: (D,) mean of the data, set by `bind`.
      spread: (D,) standard deviation, 1 where it is 0, set by `bind`.
    """

    make: Callable[..., Any] = static()
    values: dict[str, Any]
    spec: tuple[tuple[str, Any], ...] = static()
    standardise: bool = static(default=False)
    location: Array | None = dataclasses.field(default=None, repr=False)
    spread: Array | None = dataclasses.field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Distribution({getattr(self.make, '__name__', self.make)})"

    @property
    def closed_form(self) -> bool:
        """False: there is no m_step."""
        return False

    def _one(self) -> Any:
        """One component, as given."""
        return self._build(self.values)

    def _build(self, params: Mapping[str, Any]) -> Any:
        with standard_promotion():
            return self.make(**params)

    def check(self, x: Any, params: Any = None) -> None:
        """Checks that rows have the shape of the distribution, or of the fit, and a density under its first values."""
        if len(jax.tree.leaves(x)) != 1 or not hasattr(x, "ndim") or x.ndim < 2:
            found = f"shape {x.shape}" if hasattr(x, "shape") else f"a {type(x).__name__}"
            raise ValueError(
                f"data: expected one array (N, D); found {found}; one column is numpy.reshape(data, (-1, 1))"
            )
        one = self._one()
        row = tuple(one.batch_shape) + tuple(one.event_shape)
        if row not in ((), x.shape[1:]):
            raise ValueError(f"data: expected rows of shape {row}, as {self!r} has; found {x.shape[1:]}")
        if self.location is not None and math.prod(x.shape[1:]) != self.location.shape[0]:
            raise ValueError(f"data: expected {self.location.shape[0]} columns, as in the fit; found shape {x.shape}")
        if not is_concrete(x, self.values):
            return
        with standard_promotion():
            xp, bad = where_it_lies(jnp.isnan(one.log_prob(x)).reshape(x.shape[0], -1).any(1))
        if bool(bad.any()):
            n = int(xp.argmax(bad))
            raise ValueError(f"data: expected values with a density under {self!r}; found row {n}: {np.asarray(x[n])}")

    def bind(self, x: Array, weights: Array) -> "Distribution":
        """Takes the location and spread of each column."""
        seen = moments(x.reshape(x.shape[0], -1), weights)
        return dataclasses.replace(self, location=seen.mean, spread=jnp.where(seen.constant, 1, seen.std))

    def start(self, num_components: int) -> dict[str, Array]:
        """K equal components; the family must be bound."""
        if self.location is None or self.spread is None:
            raise ValueError("family: not bound to data; call bind(data, weights) first")
        one, dtype = self._one(), self.location.dtype
        values = {name: jnp.asarray(value).astype(dtype) for name, value in self.values.items()}
        # A scalar distribution takes a copy for each column; a scalar param of a batch is given to each.
        lead = () if tuple(one.event_shape) else tuple(one.batch_shape) or self.location.shape
        alike = () if tuple(one.event_shape) or tuple(one.batch_shape) else lead

        def copies(value: Array) -> Array:
            value = jnp.broadcast_to(value, lead) if value.ndim == 0 else value
            if alike and value.shape != lead:  # (L,) logits for each of D columns
                value = jnp.broadcast_to(value.reshape(1, *value.shape), alike + value.shape)
            return jnp.broadcast_to(value[None], (num_components, *value.shape))

        return {name: copies(value) for name, value in values.items()}

    def from_partition(self, x: Array, weights: Array, resp: Array) -> dict[str, Array]:
        """Params of components fitted to weighted responsibilities (N, K) of a start: by moments or by gradients."""
        num = resp.shape[1]
        mass = jnp.sum(resp, 1, keepdims=True)
        resp = 0.9 * resp + 0.1 * mass / num
        if self.standardise:
            return self._moments(x, resp)
        begin = self.start(num)

        def objective(params: PyTree) -> Array:
            used = resp > 0
            return jnp.sum(jnp.where(used, resp * jnp.where(used, self.log_prob(params, x), 0), 0))

        return ascend(objective, begin, self.constraints(), None, INIT_STEPS, jnp.sum(mass))

    def _moments(self, x: Array, resp: Array) -> dict[str, Array]:
        """The params loc and scale by the mean and standard deviation of each component's share."""
        share = resp / jnp.sum(resp, 0, keepdims=True)
        z = self.features(x)  # near the origin, whatever the offset
        mean = einsum("nk,nd->kd", share, z)
        std = jnp.sqrt(einsum("nk,nkd->kd", share, (z[:, None] - mean[None]) ** 2))
        assert self.location is not None
        assert self.spread is not None
        std = jnp.maximum(std, 1e-3)  # a cell of equal rows
        return {"loc": self.location[None] + mean * self.spread[None], "scale": std * self.spread[None]}

    def features(self, x: Array) -> Array:
        """(N, F) standardised columns; plain columns when not bound."""
        flat = x.reshape(x.shape[0], -1)
        if self.location is None or self.spread is None:
            return flat
        return (flat - self.location[None]) / self.spread[None]

    def log_prob(self, params: Mapping[str, Array], x: Array) -> Array:
        """(N, K) log p(x_n | theta_k), nats; the sum over columns for a scalar distribution."""
        with standard_promotion():
            log_prob = self.make(**params).log_prob(x[:, None])
        return jnp.sum(log_prob.reshape(*log_prob.shape[:2], -1), -1).astype(x.dtype)

    def explain(self, params: Mapping[str, Array], x: Array) -> tuple[Array, Callable[[Array], Any]]:
        """log_prob, and no statistics."""
        return self.log_prob(params, x), lambda resp: ()

    def statistics(self, params: PyTree, x: Array, resp: Array) -> PyTree:
        """Raises TypeError: there are none."""
        raise TypeError(f"{self!r} has no statistics: fit it with GeneralizedEM()")

    def m_step(self, params: PyTree, stats: PyTree) -> PyTree:
        """Raises TypeError: there is none."""
        raise TypeError(f"{self!r} has no m_step: fit it with GeneralizedEM()")

    def constraints(self) -> dict[str, Any]:
        """The constraint of each parameter."""
        return dict(self.spec)

    def num_parameters(self, params: PyTree, num_components: int) -> int:
        """Free coordinates of a component, times K."""
        free = jax.eval_shape(lambda p: _constraints.unconstrain(self.constraints(), p), params)
        return sum(leaf.size // max(1, leaf.shape[0]) for leaf in jax.tree.leaves(free)) * num_components

    def sample(self, key: Array, params: Mapping[str, Array], component: Array) -> Array:
        """One draw from each entry of component (N,)."""
        chosen = self._build({name: leaf[component] for name, leaf in params.items()})
        with standard_promotion():
            return chosen.sample(seed=key)

    def distribution(self, params: Mapping[str, Array]) -> Any:
        """The K components as one batched distribution, a row of data as its event."""
        import distrax

        batch = self._build(params)
        with standard_promotion():
            extra = len(batch.batch_shape) - 1
            return distrax.Independent(batch, extra) if extra else batch

    def make_params(self, **values: Any) -> dict[str, Array]:
        """Params from (K, ...) arrays, by the distribution's own names."""
        if sorted(values) != sorted(self.values):
            raise ValueError(f"make_params: expected {', '.join(sorted(self.values))}; found {', '.join(values)}")
        return {name: jnp.asarray(value).astype(jnp.result_type(float)) for name, value in values.items()}


def from_distribution(
    distribution: Any,
    *,
    params: Mapping[str, Any] | None = None,
    constraints: Mapping[str, Any] | None = None,
) -> Family:
    """A family for `Mixture` whose components are copies of a distribution.

    An instance of distrax's own distributions gives the names of its params by its constructor and where they start by
    its values: `distrax.Gumbel(0.0, 1.0)`. Where jaxem has the family (Normal, MultivariateNormalDiag and -Tri, and
    Bernoulli, Exponential, Gamma, Poisson where they are in `jaxem.families`) that one is returned, with its closed
    M-step and its own starts. Everything else is fitted by gradients (`Distribution`), and so is a known one
    if `constraints` are given. Any function of keyword params that returns such a distribution will do, with `params`
    and `constraints` spelled out.

    Args:
      distribution: a distrax distribution, or a function (or class) keyword params -> distribution. Scalar: one column
        each, independent; a batch (D,) or an event (D,): the row. A function is part of the program: a new lambda
        compiles anew.
      params: for a function, a dict of the params that one component starts from.
      constraints: a dict name -> `jaxem.constraints` object; needed for names other than distrax's (loc, scale, rate,
        concentration, alpha, beta, logits, ...). `Fixed()` holds a parameter at its value.

    Returns:
      A `Family`.

    Raises:
      TypeError: neither a distribution nor a function.
      ValueError: a parameter without a start or without a constraint.

    Examples:
      >>> import warnings, jax, jaxem
      >>> with warnings.catch_warnings():
      ...     warnings.simplefilter("ignore")
      ...     import distrax
      >>> from_distribution(distrax.Normal(0.0, 1.0))
      Gaussian('diag')
      >>> x = jax.random.gumbel(jax.random.key(0), (200, 1)).at[:50].add(20.0)
      >>> model = jaxem.Mixture(from_distribution(distrax.Gumbel(0.0, 1.0)), 2)
      >>> fit = jaxem.fit(model, x, key=jax.random.key(1))
      >>> fit.params.mixing.round(2).tolist()
      [0.75, 0.25]
    """
    for label, value in (("params", params), ("constraints", constraints)):
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{label}: expected a dict by the names of parameters; found {shown(value)}")
    given = dict(constraints or {})
    if isinstance(distribution, type) or not hasattr(distribution, "log_prob"):
        if not callable(distribution):
            raise TypeError(f"distribution: expected a distrax distribution or a function; found {shown(distribution)}")
        if not params:
            raise ValueError("params: expected the values that one component starts from, for a function; found none")
        make, values = distribution, dict(params)
        standardise = False
    else:
        closed = None if given or params else _closed_form(distribution)
        if closed is not None:
            return closed
        make, values = type(distribution), _arguments(distribution) | dict(params or {})
        standardise = sorted(values) == ["loc", "scale"] and not given and not params
        standardise = standardise and not tuple(distribution.event_shape) and values["loc"].ndim < 2
    name = getattr(make, "__name__", repr(make))
    unknown = sorted(set(given) - set(values))
    if unknown:
        raise ValueError(f"constraints: {name} has no parameter {unknown[0]!r}; it has {', '.join(sorted(values))}")
    spec = []
    for key in sorted(values):
        constraint = given.get(key, KNOWN.get(key))
        if constraint is None:
            raise ValueError(f"constraints: none is known for parameter {key!r} of {name}; pass constraints={{...}}")
        check_constraints({key: constraint})
        spec.append((key, constraint))
    return Distribution(make, values, tuple(spec), standardise)


def _closed_form(distribution: Any) -> Family | None:
    """The family of jaxem that a distribution is, if it is one."""
    name, module = type(distribution).__name__, type(distribution).__module__
    if not module.startswith(("distrax", "tensorflow_probability")):
        return None
    if name in GAUSSIAN:
        return Gaussian(GAUSSIAN[name])
    return CLOSED[name]() if name in CLOSED else None


def _arguments(distribution: Any) -> dict[str, Array]:
    """The numbers that a distrax distribution was made from, by the names of its constructor's arguments."""
    names = [name for name in inspect.signature(type(distribution)).parameters if name != "dtype"]
    if {"logits", "probs"} <= set(names):
        names.remove("probs")  # one coordinate of the two
    found = {name: getattr(distribution, name, None) for name in names}
    values = {name: jnp.asarray(value) for name, value in found.items() if value is not None}
    if not values or len(values) < len(names):
        raise ValueError(
            f"distribution: cannot read the arguments of {type(distribution).__name__} ({', '.join(names)}); "
            "pass a function and params"
        )
    return values
