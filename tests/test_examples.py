import ast
import pathlib
import re
import runpy
import sys

import jax
import matplotlib.pyplot as plt
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch, tmp_path, capsys):
    """Runs an example at toy size; what it printed, and the folder it wrote to."""
    x64 = jax.config.read("jax_enable_x64")

    def run(name):
        output = tmp_path / "output"
        monkeypatch.setattr(sys, "argv", [name, "--toy", "--output", str(output)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out, output

    yield run
    jax.config.update("jax_enable_x64", x64)
    assert not plt.get_fignums(), "an example closes its figures"


def pictures(output):
    """Names of the PNG files, each checked to be a picture of something."""
    for path in output.iterdir():
        assert plt.imread(path).std() > 0.01
    return sorted(path.name for path in output.iterdir())


def test_old_faithful(example):
    text, output = example("old_faithful.py")
    assert re.search(r"^tied +2607\.62 +2325\.22$", text, re.MULTILINE)
    assert "lowest BIC: tied, K = 2" in text
    assert "all restarts: {'CONVERGED': 8}" in text
    assert re.search(r"compiling [\d.]+ s, running [\d.]+ s", text)
    assert pictures(output) == ["bic.png", "components.png", "responsibilities.png", "traces.png"]


def test_image_colours(example):
    text, output = example("image_colours.py")
    assert "pixels      1080" in text
    assert float(re.search(r"PSNR ([\d.]+) dB", text)[1]) > 22
    assert "CONVERGED" in text
    assert pictures(output) == ["colours.png"]


def test_segments(example):
    text, output = example("segments.py")
    counts = [[int(n) for n in row.split()] for row in re.findall(r"^cluster \d +(.*)$", text, re.MULTILINE)]
    assert [len(row) for row in counts] == [3, 3, 3]
    assert sum(map(sum, counts)) == 178
    assert sum(counts[k][k] for k in range(3)) > 150
    wines = re.findall(r"\((\d\.\d+), (\d\.\d+), (\d\.\d+)\)", text)
    assert len(wines) == 8
    largest = [max(map(float, resp)) for resp in wines]
    assert largest == sorted(largest)
    assert all(abs(sum(map(float, resp)) - 1) < 2e-3 for resp in wines)
    assert pictures(output) == ["segments.png"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_say_what_they_show(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    docstring = ast.get_docstring(ast.parse(text))
    assert f"python examples/{path.name}" in docstring
    assert "Prints:" in docstring
