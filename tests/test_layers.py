"""The rooms of the house: a module imports only from its own level or below."""

import ast
import pathlib
import subprocess
import sys

import jaxem

ROOT = pathlib.Path(jaxem.__file__).parent
# Floors, from the ground: a room imports itself and rooms of lower floors.
FLOORS = (
    ("core",),
    ("constraints", "elbo", "expfam", "networks", "streams"),
    ("estimators", "rules", "stopping"),
    ("families", "model"),
    ("likelihoods", "priors", "wrappers"),
    ("sharding", "structures"),
    ("models",),
    ("algorithms",),
    ("engine",),
    ("after", "plot", "sklearn", "testing"),
)
LEVELS = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def imports(path):
    """(room, all parts) of what a file imports from jaxem."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxem":
            parts = node.module.split(".")[1:]
            for alias in node.names:
                whole = [*parts, alias.name]
                yield whole[0], whole


def test_imports_only_go_down():
    seen = set()
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        seen.add(room)
        for other, whole in imports(path):
            name = f"{path.relative_to(ROOT)} imports {'.'.join(whole)}"
            assert other == room or LEVELS[other] < LEVELS[room], f"{name} from above"
            assert other == room or not any(part.startswith("_") for part in whole), f"{name}, which is private"
    assert seen == set(LEVELS)


def test_all_is_sorted_and_complete():
    assert jaxem.__all__ == sorted(jaxem.__all__)
    for name in jaxem.__all__:
        assert getattr(jaxem, name).__doc__, name


def test_import_is_light_and_touches_no_backend():
    code = (
        "import jax, sys, jaxem\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"
        "assert len(jax.devices()) == 3\n"
        "heavy = {'distrax', 'tensorflow_probability', 'sklearn', 'matplotlib', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not jax.config.jax_enable_x64\n"
    )
    environment = {"PATH": "", "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
