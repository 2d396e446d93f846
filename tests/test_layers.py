"""The rooms of the house: a module imports only from its own level or below."""

import ast
import pathlib
import subprocess
import sys

import jaxem

ROOT = pathlib.Path(jaxem.__file__).parent
LEVELS = {
    "_pytree": 0,
    "_warn": 0,
    "_tree": 0,
    "_numerics": 0,
    "_columns": 0,
    "_foreign": 0,
    "_arguments": 0,
    "_structure": 0,
    "_rows": 1,
    "_reverse_kl": 1,
    "networks": 1,
    "_normal": 1,
    "elbo": 1,
    "estimators": 1,
    "expfam": 1,
    "rules": 1,
    "constraints": 1,
    "_ascent": 1,
    "stopping": 1,
    "families": 2,
    "likelihoods": 2,
    "model": 2,
    "priors": 2,
    "result": 3,
    "_inputs": 3,
    "_shapes": 3,
    "algorithms": 3,
    "models": 3,
    "_table": 3,
    "_drive": 4,
    "_verdict": 4,
    "fit": 4,
    "transforms": 3,
    "_checkpoint": 4,
    "amortisation": 5,
    "diagnostics": 5,
    "inference": 5,
    "plot": 5,
    "_plot_criteria": 5,
    "_plot_latent": 5,
    "_plot_style": 5,
    "testing": 5,
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxem":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]


def test_imports_only_go_down():
    seen = set()
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        seen.add(room)
        for other in imports(path):
            assert LEVELS[other] <= LEVELS[room], f"{path.relative_to(ROOT)} imports {other} from above"
            if room == "models":
                assert other not in ("algorithms", "fit")
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
