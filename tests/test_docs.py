"""What the README says runs."""

import pathlib
import re

import jax

import jaxem

ROOT = pathlib.Path(__file__).parents[1]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes a file
    scope, fits = {}, []
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in blocks("python"):
            if "jaxem.cache" not in block:
                exec(block, scope)
                fits.append(scope["fit"])
    names = [type(fit.model).__name__ for fit in fits]
    expected = {
        "GMM",
        "KMeans",
        "BayesianGMM",
        "VAE",
        "ZeroInflatedPoisson",
        "UnknownNormal",
    }
    assert expected <= set(names)
    for name, fit in zip(names, fits, strict=True):
        briefly = name == "VAE"  # four steps, to be quick
        assert fit.status == (jaxem.Status.MAX_STEPS if briefly else jaxem.Status.CONVERGED)


def test_a_users_model_is_under_30_lines():
    source = next(block for block in blocks("python") if "class ZeroInflatedPoisson" in block)
    body = source[source.index("@jaxem.dataclass") : source.index("counts = ")].strip().splitlines()
    assert len(body) < 30


def test_set_up_commands_are_single_lines():
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("pip install")]
    assert len(commands) == 2
    assert all("&&" in command for command in commands)
