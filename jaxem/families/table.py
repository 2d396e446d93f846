"""Tables of mixed type as a family: what each column of a data frame is, by a stated rule, and codes that stay."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxem.core import columns as _columns
from jaxem.core.arguments import shown
from jaxem.core.pytree import dataclass, static
from jaxem.core.seen import Rows
from jaxem.core.tree import PyTree
from jaxem.families._categories import codes_of, is_category, levels_of
from jaxem.families.bernoulli import Bernoulli
from jaxem.families.categorical import Categorical
from jaxem.families.family import Family
from jaxem.families.gaussian import Gaussian
from jaxem.families.product import Product

NUMBERS, BINARY, CATEGORIES = "numbers", "binary", "categories"
KINDS = ("number", "category")


class Group(NamedTuple):
    """Columns that one family of a table explains.

    Attributes:
      key: of the family in `families`, and of its params.
      names: of the columns.
      levels: for each column its categories in the order of their codes, None for a column of numbers.
    """

    key: str
    names: tuple[Any, ...]
    levels: tuple[tuple[Any, ...] | None, ...]


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Columns of numbers as the door takes a frame: by duck typing, with names, and the index where there is one."""

    column_names: tuple[Any, ...]
    columns: tuple[Any, ...]
    index: Any = None

    def itercolumns(self) -> Any:
        """The columns."""
        return iter(self.columns)


@dataclass
class Table(Product):
    """A `Product` that takes data frames: made by `from_frame`, where the rule is.

    Attributes:
      families: one for each group of columns.
      groups: of each family its columns, and the categories of those that have codes.
      left_out: names of columns that frames may have and the family does not look at.
    """

    groups: tuple[Group, ...] = static(default=())
    left_out: tuple[Any, ...] = static(default=())

    def __repr__(self) -> str:
        told = [f"{self.families[g.key]!r} of {', '.join(map(str, g.names))}" for g in self.groups]
        return f"Table({'; '.join(told)})"

    @property
    def row_keys(self) -> None:
        """None: frames are read by `opened`."""
        return None

    def opened(self, x: Any, name: str) -> Any:
        """A frame as a dict of the groups, its categories as codes; a dict of groups, as `sample` draws, as it is."""
        found = _columns.frame_columns(name, x)
        if found is None:
            if isinstance(x, dict):
                return x
            what = "a data frame of pandas, polars or pyarrow, as the family was made of"
            raise TypeError(f"{name}: expected {what}; found {shown(x)}")
        columns = dict(found)
        _check_names(name, columns, [n for group in self.groups for n in group.names], self.left_out)
        read = lambda label, levels: (
            columns[label] if levels is None else codes_of(f"{name}[{label!r}]", columns[label], levels)
        )
        return {
            group.key: _Frame(group.names, tuple(map(read, group.names, group.levels)), getattr(x, "index", None))
            for group in self.groups
        }

    def describe(self, params: PyTree, rows: Rows) -> dict[str, np.ndarray]:
        """Each family's, by the names of columns and categories: "mean[age]", "prob[city=Rome]"."""
        found: dict[str, np.ndarray] = {}
        for group in self.groups:
            part = Rows(("",), ((len(group.names),),), (group.names,))
            told = self.families[group.key].describe(params[group.key], part)
            codes = {
                f"prob[{label}={code}]": f"prob[{label}={level}]"
                for label, levels in zip(group.names, group.levels, strict=True)
                for code, level in enumerate(levels or ())
            }
            own = lambda name, key=group.key: name if name.endswith("]") else f"{name}[{key}]"
            found |= {codes.get(name, own(name)): values for name, values in told.items()}
        return found


def from_frame(frame: Any, families: Mapping[Any, Any] | None = None) -> Table:
    """A family for the rows of a data frame: by the type of each column, unless told otherwise.

        bool, and numbers that are 0 and 1 only       Bernoulli(), together the part "binary"
        other numbers, whole ones too                 Gaussian("diag"), together the part "numbers"
        text, category, Categorical, Enum             Categorical(levels), together the part "categories"
        dates, times, anything else                   refused: make numbers of them, or leave them out

    Whole numbers are taken for measurements, as no rule can tell counts (a `Poisson`) or codes ("category") from these:
    say so in `families`. Text is never read as numbers, nor are numbers ever taken for categories.

    The family remembers the columns, and the categories in the order of their codes: those that the frame's type
    declares (pandas, an Enum of polars), else the values found, sorted. Models of it take frames as they are, in `fit`
    and every question: columns are found by name, in any order, and get the same codes; a category that the family does
    not know is refused. `jaxem.save` keeps all of it.

    Args:
      frame: a data frame of pandas, polars or pyarrow, to read types and categories from; usually the data of the fit.
      families: for a column, or a tuple of columns, what it is instead: a family, "number", "category", or None to
        leave it out; {"visits": Poisson(), ("height", "weight"): Gaussian("full"), "zip": "category", "id": None}.

    Returns:
      A `Table`, which is a `Product` whose parts are independent given the component.

    Raises:
      TypeError: no data frame, a column of no such type, or no such override.
      ValueError: an unknown column, a category that is missing in a row, or a column with one category only.

    Examples:
      >>> import jax, jaxem, pandas
      >>> visitors = pandas.DataFrame({
      ...     "age": [21.0, 24.0, 22.5, 61.0, 66.0, 63.0], "city": ["Bonn", "Bonn", "Rome", "Rome", "Rome", "Bonn"],
      ...     "visits": [1, 2, 1, 9, 8, 11], "member": [False, False, True, True, True, True]})
      >>> family = jaxem.families.from_frame(visitors, {"visits": jaxem.families.Poisson()})
      >>> family
      Table(Poisson() of visits; Gaussian('diag') of age; Bernoulli() of member; Categorical((2,)) of city)
      >>> fit = jaxem.fit(jaxem.Mixture(family, 2), visitors, key=jax.random.key(0), num_restarts=4)
      >>> fit.predict(visitors.sort_values("age"))[:2].tolist() == fit.predict(visitors)[:2].tolist()
      True
      >>> [name for name in fit.to_frame() if "city" in name]
      ['prob[city=Bonn]', 'prob[city=Rome]']
    """
    found = _columns.frame_columns("frame", frame)
    if found is None:
        what = "a data frame of pandas, polars or pyarrow"
        raise TypeError(f"frame: expected {what}; found {shown(frame)}")
    columns = dict(found)
    if not columns or len(columns) < len(found):
        raise ValueError(
            "frame: expected columns, each of another name; found " + ("none" if not found else "one twice")
        )
    asked = _overrides(families, columns)
    own = [(_group(names, columns, what), what) for names, what in asked.items() if isinstance(what, Family)]
    told = {name: what for names, what in asked.items() for name in names}
    kinds: dict[str, list[Any]] = {NUMBERS: [], BINARY: [], CATEGORIES: []}
    for name, column in columns.items():
        what = told.get(name, "")
        if what is not None and not isinstance(what, Family):
            kinds[CATEGORIES if what == "category" else _kind(name, column, what)].append(name)
    taken = {group.key for group, _ in own}
    for key, names in kinds.items():
        if names:
            own.append(_of_kind(key, _free(key, taken), names, columns))
    if not own:
        raise ValueError("families: expected at least one column that is not left out; found none")
    out = tuple(name for name, what in told.items() if what is None)
    return Table({group.key: family for group, family in own}, tuple(group for group, _ in own), out)


def _group(names: tuple[Any, ...], columns: dict[Any, Any], family: Family) -> Group:
    """The group of a family that was asked for; text gets codes for a `Categorical`, numbers are codes already."""
    coded = lambda name: isinstance(family, Categorical) and is_category(columns[name])
    levels = tuple(levels_of(name, columns[name]) if coded(name) else None for name in names)
    return Group("+".join(map(str, names)), names, levels)


def _of_kind(kind: str, key: str, names: list[Any], columns: dict[Any, Any]) -> tuple[Group, Family]:
    """All columns of a kind, and their family."""
    if kind != CATEGORIES:
        family: Family = Gaussian("diag") if kind == NUMBERS else Bernoulli()
        return Group(key, tuple(names), (None,) * len(names)), family
    levels = tuple(levels_of(name, columns[name]) for name in names)
    return Group(key, tuple(names), levels), Categorical(tuple(map(len, levels)))


def _overrides(families: Any, columns: dict[Any, Any]) -> dict[tuple[Any, ...], Any]:
    """What is asked for, by tuples of columns."""
    if families is not None and not isinstance(families, Mapping):
        raise TypeError(f"families: expected a dict by columns, as {{'visits': Poisson()}}; found {shown(families)}")
    asked: dict[tuple[Any, ...], Any] = {}
    for names, what in (families or {}).items():
        each = names if isinstance(names, tuple) and names not in columns else (names,)
        for name in each:
            if name not in columns:
                raise ValueError(
                    f"families: expected columns of the frame, {', '.join(map(repr, columns))}; found {name!r}"
                )
            if any(name in others for others in asked):
                raise ValueError(f"families: expected each column once; found {name!r} twice")
        if not (what is None or isinstance(what, Family) or (isinstance(what, str) and what in KINDS)):
            kinds = "a family, as jaxem.families.Poisson(), 'number', 'category', or None to leave it out"
            raise TypeError(f"families[{names!r}]: expected {kinds}; found {shown(what)}")
        if what is None or isinstance(what, str):
            asked |= {(name,): what for name in each}
        else:
            asked[tuple(each)] = what
    return asked


def _free(key: str, taken: set[str]) -> str:
    while key in taken:  # by a column of that name
        key += "_"
    return key


def _kind(name: Any, column: Any, told: str) -> str:
    """The group of a column by its type, or one of numbers as it is told."""
    if told != "number" and is_category(column):
        return CATEGORIES
    try:
        values = _columns.as_numbers(f"frame[{name!r}]", column)
    except TypeError as error:
        raise TypeError(f"{error}; or leave it out: families={{{name!r}: None}}") from None
    binary = values.dtype == bool or set(np.unique(values).tolist()) == {0, 1}
    return BINARY if binary and told != "number" else NUMBERS


def _check_names(name: str, columns: dict[Any, Any], known: list[Any], left_out: tuple[Any, ...]) -> None:
    missing = [label for label in known if label not in columns]
    extra = [label for label in columns if label not in known and label not in left_out]
    if missing or extra:
        parts = [
            f"{what} {', '.join(map(repr, some))}" for what, some in (("without", missing), ("with", extra)) if some
        ]
        raise ValueError(
            f"{name}: expected a frame of the columns {', '.join(map(repr, known))}; found one {' and '.join(parts)}"
        )
