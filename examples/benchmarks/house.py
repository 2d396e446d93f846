"""The shape of the code, read and not imported: lines by room, hooks by protocol, floors and arrows of the imports.

A room is a folder or a file directly in the package. How it counts:

* lines: all of them, and those with code (no blank ones, comments and docstrings);
* hooks: public names, and `__call__`, that the classes of a protocol define in their bodies, methods, properties and
  attributes alike, each once; `abstract` must be written, `one` and `more` have one or several classes in the package
  that write them anew, those that forward to another left out; `none` are for people to call, or nobody's;
* arrows: pairs (importer, imported) among the rooms, and among the modules, wherever in the file the import stands,
  unless for type checking alone; the package's own `__init__` is left out, as it imports everything;
* floors: the number of rooms on the longest way down, a circle being one floor; a circle is what imports itself.

    python examples/benchmarks/house.py FOLDER [--names] [--json FILE]
"""

import argparse
import ast
import io
import json
import pathlib
import sys
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import _timing
from _imports import Module, circles, graphs, longest, name_of, private, read, short

PROTOCOLS = {
    "model": ("ELBOModel", "LatentModel", "DiscreteLatent"),
    "family": ("Family",),
    "prior": ("Prior",),
    "algorithm": ("Algorithm",),
    "covariance": ("Covariance",),
    "rule": ("Rule",),
    "stop rule": ("StopRule",),
    "likelihood": ("Likelihood",),
    "exponential family": ("ExponentialFamily",),
}
FORWARDERS = ("Wrapper",)
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


class Class(NamedTuple):
    """A class: its dotted name, the dotted names of its bases, and its members, name -> whether abstract."""

    name: str
    bases: tuple[str, ...]
    members: dict[str, bool]


def code_lines(module: Module) -> int:
    """Lines on which there is code: no blank ones, comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in _SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def classes(modules: Sequence[Module], package: str) -> list[Class]:
    """All classes at the top of a module, private ones too; a name that is only passed on is followed to its home."""
    homes: dict[str, str] = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
                for alias in node.names:
                    homes[f"{module.name}.{alias.asname or alias.name}"] = below(f"{node.module}.{alias.name}")

    def home(name: str) -> str:
        first, _, last = name.rpartition(".")
        moved = homes.get(name) or (f"{homes[first]}.{last}" if first in homes else name)
        return name if moved == name else home(moved)

    found = []
    for module in modules:
        for node in (node for node in module.tree.body if isinstance(node, ast.ClassDef)):
            members = dict(item for statement in node.body for item in members_of(statement))
            bases = tuple(home(f"{module.name}.{name_of(base)}") for base in node.bases)
            found.append(Class(f"{module.name}.{node.name}", bases, members))
    return found


def below(name: str) -> str:
    """A dotted name without that of the package."""
    return name.partition(".")[2]


def members_of(statement: ast.stmt) -> Iterator[tuple[str, bool]]:
    """Public names, and `__call__`, that a statement in a class defines, and whether they are abstract."""
    names: list[str] = []
    if isinstance(statement, ast.FunctionDef):
        names = [statement.name]
    elif isinstance(statement, ast.AnnAssign | ast.Assign):
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else statement.targets
        names = [target.id for target in targets if isinstance(target, ast.Name)]
    abstract = any(short(name_of(node)) == "abstractmethod" for node in getattr(statement, "decorator_list", []))
    yield from ((name, abstract) for name in names if not name.startswith("_") or name == "__call__")


def hooks(found: Sequence[Class], protocol: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Hooks of a protocol by name: the class that defines it, whether it is abstract, and who writes it anew."""
    table: dict[str, dict[str, Any]] = {}
    roots = [chosen for name in protocol for chosen in found if short(chosen.name) == name]
    for chosen in roots:
        for name, abstract in chosen.members.items():
            table.setdefault(name, {"of": short(chosen.name), "abstract": abstract, "by": []})
    known = {chosen.name for chosen in roots}
    while more := {cls.name for cls in found if known & set(cls.bases)} - known:
        known |= more
    for cls in (cls for cls in found if cls.name in known and short(cls.name) not in (*protocol, *FORWARDERS)):
        for name in cls.members.keys() & table.keys():
            table[name]["by"].append(short(cls.name))
    return table


def survey(package: pathlib.Path) -> dict[str, Any]:
    """All that is printed, as one tree."""
    modules = read(package)
    found = classes(modules, package.name)
    rooms: dict[str, dict[str, int]] = {}
    for module in modules:
        room = rooms.setdefault(module.room or "__init__", {"files": 0, "lines": 0, "code": 0})
        room["files"] += 1
        room["lines"] += module.text.count("\n")
        room["code"] += code_lines(module)
    by_room, by_module = graphs(modules, package.name)
    report: dict[str, Any] = {"rooms": rooms, "private": private(modules, package.name)}
    report["hooks"] = {name: hooks(found, protocol) for name, protocol in PROTOCOLS.items()}
    for name, graph in (("room", by_room), ("module", by_module)):
        report[name] = {
            "nodes": len(graph),
            "arrows": sum(map(len, graph.values())),
            "longest": longest(graph),
            "circles": [sorted(group) for group in circles(graph) if len(group) > 1],
        }
    return report


def show(report: dict[str, Any], names: bool) -> None:
    """Prints the survey."""
    rooms = sorted(report["rooms"].items(), key=lambda item: -item[1]["lines"])
    total = ["all", *(sum(room[field] for _, room in rooms) for field in ("files", "lines", "code"))]
    _timing.show(["room", "files", "lines", "code"], [[name, *room.values()] for name, room in rooms] + [total])
    print()
    rows = []
    for protocol, table in report["hooks"].items():
        writers = [len(hook["by"]) for hook in table.values()]
        kinds = sum(hook["abstract"] for hook in table.values()), *(sum(n == k for n in writers) for k in (0, 1))
        rows.append([protocol, len(table), *kinds, sum(n > 1 for n in writers), " < ".join(PROTOCOLS[protocol][::-1])])
    _timing.show(["protocol", "hooks", "abstract", "none", "one", "more", ""], rows)
    if names:
        for protocol, table in report["hooks"].items():
            print(f"\n{protocol}")
            for name, hook in sorted(table.items(), key=lambda item: len(item[1]["by"])):
                print(f"  {hook['of']}.{name}{' (abstract)' if hook['abstract'] else ''}: {', '.join(hook['by'])}")
    for name in ("room", "module"):
        graph = report[name]
        print(f"\n{graph['nodes']} {name}s, {graph['arrows']} arrows, {len(graph['longest'])} floors, from the top:")
        print(f"  {' > '.join(graph['longest'])}")
        print(f"  circles: {'; '.join(map(', '.join, graph['circles'])) or 'none'}")
    print(f"\n{len(report['private'])} imports of a private module in another room")
    if names:
        print("".join(f"  {pair}\n" for pair in report["private"]), end="")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Reads the package, prints the survey and returns it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="the package, or the folder that it lies in")
    parser.add_argument("--names", action="store_true", help="also every hook and who writes it, and private imports")
    parser.add_argument("--json", metavar="FILE", help="also write the survey there")
    args = parser.parse_args(argv)
    package = args.folder / "jaxem" if (args.folder / "jaxem").is_dir() else args.folder
    if not (package / "__init__.py").is_file():
        parser.error(f"folder: expected a package, or the folder that jaxem lies in; found {args.folder}")
    report = survey(package.resolve())
    show(report, args.names)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main(sys.argv[1:])
