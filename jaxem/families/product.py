"""Products of families over groups of columns: tables of mixed type."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.core.arguments import expect, shown
from jaxem.core.pytree import dataclass
from jaxem.core.seen import Rows
from jaxem.core.tree import PyTree
from jaxem.families.family import At, Derived, DerivedFamily, Family


@dataclass
class Product(DerivedFamily):
    """Groups of columns, each with a family of its own, independent given the component.

        x_n = {name: x_n[name]},   log p(x_n | theta_k) = sum over names of log p(x_n[name] | theta_k[name])

    Data, params and statistics are dicts with the names of the families. Starts are partitions of all parts' features
    side by side; where a part has a start of its own, the first such part, by name, decides. The mixture is
    identifiable where that of one part is and all components differ in this part.

    Priors, penalties and spikes are the parts': ELBO.params is their sum, and a component has collapsed when it has
    in any part.

    Attributes:
      families: name -> family, at least one.

    Examples:
      >>> import jax, jaxem, numpy as np
      >>> from jaxem.families import Gaussian, Poisson
      >>> rng = np.random.default_rng(0)
      >>> group = np.repeat([0, 1], 150)
      >>> size, visits = rng.normal(4.0 * group[:, None], 1.0, (300, 2)), rng.poisson(2 + 6 * group)
      >>> table = {"size": size, "visits": visits[:, None]}
      >>> model = jaxem.Mixture(Product({"size": Gaussian("diag"), "visits": Poisson()}), 2)
      >>> fit = jaxem.fit(model, table, key=jax.random.key(0), num_restarts=4)
      >>> rate = fit.params.components["visits"].rate
      >>> bool(rate.min() < 3), bool(rate.max() > 6)
      (True, True)
    """

    families: dict[str, Family]

    def __repr__(self) -> str:
        return f"Product({self.families!r})"

    def _each(self, f: Callable[..., Any], *trees: Any) -> dict[str, Any]:
        """f(family, its parts of the dicts) for each name."""
        return {name: f(family, *(tree[name] for tree in trees)) for name, family in self.families.items()}

    @property
    def row_keys(self) -> tuple[str, ...] | None:
        """The names, for which a frame is taken apart."""
        return tuple(self.families) if isinstance(self.families, dict) else None

    def check(self, x: PyTree, params: PyTree | None = None) -> None:
        """Checks that data are a dict with the names of the families, and lets each family check its part."""
        what = "a dict of at least one name -> family"
        if not isinstance(self.families, dict):
            raise TypeError(f"families: expected {what}; found {shown(self.families)}")
        if not self.families:
            raise ValueError(f"families: expected {what}; found {self.families!r}")
        for name, family in self.families.items():
            expect(f"families[{name!r}]", family, Family, "one of jaxem.families, as jaxem.families.Gaussian()")
        if not isinstance(x, dict):
            raise TypeError(f"data: expected a dict with the keys {sorted(self.families)}; found a {type(x).__name__}")
        if set(x) != set(self.families):
            raise ValueError(f"data: expected the keys {sorted(self.families)}; found {sorted(x)}")
        for name, family in self.families.items():
            try:
                family.check(x[name], None if params is None else params[name])
            except (TypeError, ValueError) as error:
                raise type(error)(_named(name, str(error))) from None

    @property
    def finds_span(self) -> bool:
        """Whether any part does."""
        return any(family.finds_span for family in self.families.values())

    def bind(self, x: PyTree, weights: Array) -> "Product":
        """Binds each family to its part."""
        return dataclasses.replace(self, families=self._each(lambda family, part: family.bind(part, weights), x))

    def arrange(self, x: PyTree) -> dict[str, PyTree]:
        """Each part in the layout of its family."""
        return self._each(lambda family, part: family.arrange(part), x)

    def at(self, params: PyTree) -> "ProductAt":
        """Each part at its params."""
        parts = self._each(lambda family, p: family.at(p), params)
        return ProductAt(self, {name: part.params for name, part in parts.items()}, parts)

    def start(self, num_components: int) -> dict[str, PyTree]:
        """Each part's K equal components."""
        return self._each(lambda family: family.start(num_components))

    def features(self, x: PyTree) -> Array:
        """(N, F) the parts' features side by side, by name."""
        parts = self._each(lambda family, part: family.features(part), x)
        return jnp.concatenate([parts[name] for name in sorted(parts)], 1)

    def init_resp(self, key: Array, x: PyTree, weights: Array, num_components: int, method: str) -> Array | None:
        """The start of the first part, by name, that has one of its own; None where no part has."""
        for name in sorted(self.families):
            resp = self.families[name].init_resp(key, x[name], weights, num_components, method)
            if resp is not None:
                return resp
        return None

    @property
    def closed_form(self) -> bool:
        """Whether every part has an m_step."""
        return all(family.closed_form for family in self.families.values())

    def from_partition(self, x: PyTree, weights: Array, resp: Array) -> dict[str, PyTree]:
        """Each part's components of a start."""
        return self._each(lambda family, part: family.from_partition(part, weights, resp), x)

    @property
    def exchangeable(self) -> bool:
        """Whether the components of every part have the same prior."""
        return all(family.exchangeable for family in self.families.values())

    def constraints(self) -> dict[str, PyTree]:
        """Each part's constraints."""
        return self._each(lambda family: family.constraints())

    def num_parameters(self, params: PyTree, num_components: int) -> int:
        """The parts' free parameters together."""
        return sum(self._each(lambda family, p: family.num_parameters(p, num_components), params).values())

    def sample(self, key: Array, params: PyTree, component: Array) -> dict[str, PyTree]:
        """A dict of the parts' draws, one row for each entry of component."""
        keys = dict(zip(sorted(self.families), jax.random.split(key, len(self.families)), strict=True))
        return self._each(lambda family, k, p: family.sample(k, p, component), keys, params)

    def notes(self, params: PyTree | None = None, count: Array | None = None) -> list[str]:
        """The parts' notes, with their names."""
        part = lambda name: None if params is None else params[name]
        return [f"{name}: {note}" for name, family in self.families.items() for note in family.notes(part(name), count)]

    def canonical(self, params: PyTree, index: Array | None = None) -> dict[str, PyTree]:
        """Each part's."""
        return self._each(lambda family, p: family.canonical(p, index), params)

    def coincident(self, params: PyTree) -> Array:
        """(K, K) whether two components agree in every part."""
        same = list(self._each(lambda family, p: family.coincident(p), params).values())
        for other in same[1:]:
            same[0] = same[0] & other
        return same[0]

    def describe(self, params: PyTree, rows: Rows) -> dict[str, np.ndarray]:
        """Each part's, with the name of the part: "rate[visits]", "mean[sizes.height]"; see `Family.describe`."""
        found: dict[str, np.ndarray] = {}
        for name, family in self.families.items():
            part = rows.part(f"[{name!r}]")
            told = family.describe(params[name], part.renamed(name))
            found |= {key if key.endswith("]") else f"{key}[{name}]": values for key, values in told.items()}
        return found

    def make_params(self, **values: Any) -> dict[str, PyTree]:
        """Params from a dict of plain arrays for each name, such as make_params(visits={"rate": [[2.0], [8.0]]})."""
        if set(values) != set(self.families):
            raise ValueError(f"params: expected the names {sorted(self.families)}; found {sorted(values)}")
        return self._each(lambda family, value: family.make_params(**value), values)


@dataclass
class ProductAt(Derived):
    """A product at its params.

    Attributes:
      family: the product.
      params: its params.
      parts: name -> the part's family at its params.
    """

    parts: dict[str, At]

    def _each(self, f: Callable[..., Any], *trees: Any) -> dict[str, Any]:
        return {name: f(part, *(tree[name] for tree in trees)) for name, part in self.parts.items()}

    def explain(self, x: PyTree) -> tuple[Array, Callable[[Array], dict[str, PyTree]]]:
        """Sum of the parts' log-densities, and the function from resp to their statistics, sharing each part's work."""
        pairs = self._each(lambda part, rows: part.explain(rows), x)

        def collect(resp: Array) -> dict[str, PyTree]:
            return {name: pair[1](resp) for name, pair in pairs.items()}

        return _total({name: pair[0] for name, pair in pairs.items()}), collect

    def log_prob(self, x: PyTree) -> Array:
        """(N, K) sum of the parts' log-densities, nats."""
        return _total(self._each(lambda part, rows: part.log_prob(rows), x))

    def statistics(self, x: PyTree, resp: Array) -> dict[str, PyTree]:
        """Each part's statistics."""
        return self._each(lambda part, rows: part.statistics(rows, resp), x)

    def m_step(self, stats: PyTree) -> dict[str, PyTree]:
        """Each part's M-step."""
        return self._each(lambda part, s: part.m_step(s), stats)

    def rebase(self, stats: PyTree, new: Any) -> dict[str, PyTree]:
        """Each part's statistics as if taken at `new`."""
        return self._each(lambda part, s, other: part.rebase(s, other), stats, new.parts)

    def elbo_params(self) -> Array:
        """Sum of the parts' penalties and log priors, nats."""
        return _total(self._each(lambda part: part.elbo_params()))

    def influence(self, count: Array) -> Array:
        """(K,) the largest of the parts'."""
        return jnp.max(jnp.stack([part.influence(count) for part in self.parts.values()]), 0)


def _total(parts: dict[str, Array]) -> Array:
    """Sum of the parts in the order of their names, the same whatever the order of the dict."""
    first, *rest = (parts[name] for name in sorted(parts))
    return sum(rest, first)


def _named(name: str, message: str) -> str:
    """A part's message with the place of the part: data -> data['name']."""
    if message.startswith("data"):
        return f"data[{name!r}]{message[4:]}"
    return f"families[{name!r}].{message}"
