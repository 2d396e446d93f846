"""Fits in the forms of others: plain Python and NumPy, data frames of pandas, draws for ArviZ."""

import dataclasses
import importlib
from typing import Any

import jax
import numpy as np

from jaxem.core.arguments import shown
from jaxem.core.seen import Rows
from jaxem.core.tree import PyTree
from jaxem.model import ELBOModel
from jaxem.stopping import Status
from jaxem.structures.chain import ChainMixing
from jaxem.structures.structured import Structured
from jaxem.wrappers import unwrapped

# What an unknown look of rows is, as of a fit inside jit.
NOTHING = Rows((), (), ())
_OF_RESTARTS = ("num_steps", "influence", "min_count", "skipped")


def needed(library: str, what: str) -> Any:
    """A library that is no dependency, imported where it is used; a ModuleNotFoundError says how to get it."""
    extra = {"pandas": "frames"}.get(library, library)
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        told = f"{what} needs {library}: pip install 'jaxem[{extra}]'"
        raise ModuleNotFoundError(told, name=library) from None


def check_one(fit: Any, what: str) -> None:
    """Raises unless this is one fit, of values."""
    if isinstance(fit.status, jax.core.Tracer):
        raise TypeError(f"{what}: expected a fit of values; found tracers; call it outside of jit, grad and vmap")
    if np.ndim(fit.status):
        first = "jax.tree.map(lambda leaf: leaf[0], fits)"
        raise ValueError(f"{what}: expected one fit; found a batch of shape {np.shape(fit.status)}; take one: {first}")


def observed_rows(model: ELBOModel) -> Rows:
    """What the rows of the model's data look like; of sequences their steps."""
    rows = model.rows or NOTHING
    steps = rows.part(".values")
    return steps if steps.paths else rows


def component_table(fit: Any) -> dict[str, np.ndarray]:
    """The components of a fit, or its states or clusters, as columns of a table: name -> (K,)."""
    check_one(fit, "to_frame")
    model, params = fit.model.inside(fit.params)
    rows, model = observed_rows(model), unwrapped(model)
    if hasattr(params, "centroids"):
        labels = rows.labels(params.centroids.shape[1])
        return _by_label("centroid", params.centroids, labels)
    if not isinstance(model, Structured):
        remedy = "fit.to_dict()['params'] has the params of any model"
        raise TypeError(f"to_frame: expected a model of components; found {shown(model)}; {remedy}")
    paired: Any = model  # every pairing has a family, and a law of mixing
    components = params.components
    if hasattr(paired.components, "prior"):  # a posterior, shown at its means
        components = paired.components.at(components).q.expected()
    return _mixing(paired.law.mean(params.mixing)) | paired.family.describe(components, rows)


def _mixing(mixing: Any) -> dict[str, np.ndarray]:
    """Proportions (K,), or those of a chain's first state and its transitions."""
    if not isinstance(mixing, ChainMixing):
        return {"weight": np.asarray(mixing[0])}
    to = np.asarray(mixing.transition)
    return {"initial": np.asarray(mixing.initial), **{f"to[{k}]": to[:, k] for k in range(to.shape[1])}}


def _by_label(name: str, values: Any, labels: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {f"{name}[{label}]": np.asarray(values)[:, d] for d, label in enumerate(labels)}


def as_frame(fit: Any) -> Any:
    """See `Fit.to_frame`."""
    columns = component_table(fit)
    pandas = needed("pandas", "to_frame")
    first = next(iter(columns))
    what = "state" if first == "initial" else "component" if first == "weight" else "cluster"
    index = pandas.RangeIndex(len(next(iter(columns.values()))), name=what)
    return pandas.DataFrame({name: np.array(values) for name, values in columns.items()}, index=index)


def as_dict(fit: Any) -> dict[str, Any]:
    """See `Fit.to_dict`."""
    check_one(fit, "to_dict")
    restarts, elbo = fit.restarts, _elbo(fit.elbo)
    return {
        "model": repr(fit.model),
        "status": Status(int(fit.status)).name,
        "verdict": fit.verdict(),
        "notes": fit.warnings(),
        "elbo": {name: value.item() for name, value in elbo.items()},
        "num_steps": int(fit.num_steps),
        "hits": int(fit.hits),
        "winner": int(fit.winner),
        "total_weight": float(fit.total_weight),
        "num_rows": int(fit.num_rows),
        "feature_names": None if fit.feature_names is None else list(fit.feature_names),
        "plan": None if fit.plan is None else dataclasses.asdict(fit.plan),
        "params": plain(fit.params),
        "trace": np.asarray(fit.trace),
        "restarts": {
            **{f"elbo_{name}": value for name, value in _elbo(restarts.elbo).items()},
            "status": [Status(int(code)).name for code in np.asarray(restarts.status)],
            **{name: np.asarray(getattr(restarts, name)) for name in _OF_RESTARTS},
        },
    }


def _elbo(elbo: Any) -> dict[str, np.ndarray]:
    data, params = np.asarray(elbo.data), np.asarray(elbo.params)
    return {"total": data + params, "data": data, "params": params}


def plain(tree: PyTree) -> Any:
    """A pytree as dicts by the names of fields and keys, lists, NumPy arrays and what is no array as it is."""
    if isinstance(tree, jax.Array) and jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key):
        tree = jax.random.key_data(tree)
    if hasattr(tree, "__dataclass_fields__"):
        return {name: plain(getattr(tree, name)) for name in tree.__dataclass_fields__}
    if isinstance(tree, dict):
        return {str(name): plain(part) for name, part in tree.items()}
    if hasattr(tree, "_fields"):
        return {name: plain(part) for name, part in zip(tree._fields, tree, strict=True)}
    if isinstance(tree, (tuple, list)):
        return [plain(part) for part in tree]
    return np.asarray(tree) if hasattr(tree, "dtype") else tree
