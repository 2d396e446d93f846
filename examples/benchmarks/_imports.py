"""The import graph of a package, read from syntax trees: arrows, circles, and the longest way down."""

import ast
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Graph = dict[str, set[str]]


class Module(NamedTuple):
    """A file: its dotted name below the package ("" for the package's own __init__), text and syntax tree."""

    name: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The folder or file directly in the package that it is or lies in."""
        return self.name.split(".")[0]


def read(package: pathlib.Path) -> list[Module]:
    """All modules of the package, sorted by name."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        found.append(Module(name, text, ast.parse(text)))
    return found


def name_of(node: ast.expr) -> str:
    """The dotted name of a base or a decorator, without subscripts and arguments; "" for anything else."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    if isinstance(node, ast.Subscript):
        return name_of(node.value)
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def short(name: str) -> str:
    """The last of a dotted name."""
    return name.rpartition(".")[2]


def imported(module: Module, package: str, names: set[str]) -> Iterator[str]:
    """Modules that a module imports, by their names below the package; those for type checking alone left out."""
    skipped = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and short(name_of(node.test)) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(module.tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for parts in (name.split(".")[1:] for name in dotted if name.split(".")[0] == package):
            while parts and ".".join(parts) not in names:  # what is imported is no module, but a name in one
                parts = parts[:-1]
            yield ".".join(parts)


def graphs(modules: Sequence[Module], package: str) -> tuple[Graph, Graph]:
    """Who imports whom, of rooms and of modules, without the package's own __init__."""
    names = {module.name for module in modules}
    by_module: Graph = {module.name: set() for module in modules if module.name}
    by_room: Graph = {module.room: set() for module in modules if module.name}
    for module in (module for module in modules if module.name):
        for other in set(imported(module, package, names)) - {"", module.name}:
            by_module[module.name].add(other)
            if other.split(".")[0] != module.room:
                by_room[module.room].add(other.split(".")[0])
    return by_room, by_module


def circles(graph: Graph) -> list[frozenset[str]]:
    """Sets of nodes that reach each other, the single ones included."""
    below = {node: reachable(graph, node) for node in graph}
    return sorted({frozenset({a} | {b for b in below[a] if a in below[b]}) for a in graph}, key=sorted)


def reachable(graph: Graph, start: str) -> set[str]:
    """All nodes that a way leads to."""
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo.extend(graph[node])
    return seen


def longest(graph: Graph) -> list[str]:
    """The longest way down, circles being one node each, from top to bottom."""
    groups = circles(graph)
    group_of = {node: group for group in groups for node in group}
    best: dict[frozenset[str], list[str]] = {}

    def way(group: frozenset[str]) -> list[str]:
        if group not in best:
            below = {group_of[other] for node in group for other in graph[node]} - {group}
            best[group] = [" = ".join(sorted(group)), *max(map(way, sorted(below, key=sorted)), key=len, default=[])]
        return best[group]

    return max(map(way, groups), key=len, default=[])


def private(modules: Sequence[Module], package: str) -> list[str]:
    """Imports of a private module that lies in another room's folder, as "importer -> imported"."""
    names = {module.name for module in modules}
    pairs = {(module, other) for module in modules if module.name for other in imported(module, package, names)}
    return sorted(
        f"{module.name} -> {other}"
        for module, other in pairs
        if other.split(".")[0] != module.room and any(part.startswith("_") for part in other.split(".")[1:])
    )
