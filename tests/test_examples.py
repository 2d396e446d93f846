import ast
import pathlib
import re
import runpy
import sys
import warnings

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxem

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch, tmp_path, capsys):
    """Runs an example at toy size; what it printed, and the folder it wrote to."""
    x64 = jax.config.read("jax_enable_x64")

    def run(name):
        output = tmp_path / "output"
        monkeypatch.setattr(sys, "argv", [name, "--toy", "--output", str(output)])
        with warnings.catch_warnings():
            warnings.simplefilter("error", jaxem.FitWarning)  # a script handles what it knows
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


def test_missing_value(example):
    text, output = example("missing_value.py")
    steps = re.findall(r"^  mu after +(\d+) steps +([\d.]+) +([\d.]+) ", text, re.MULTILINE)
    assert [int(step) for step, _, _ in steps] == list(range(1, 11))
    assert steps[-1][1] == steps[-1][2] == "1.4999745973682874"
    assert "[1, 2, 0.7]" in text
    assert "[1, 2, 6] complete:    mu = 3.0" in text
    assert "limit 1.5000000, imputed value 1.5000000" in text
    assert pictures(output) == ["missing_value.png"]


def test_linkage(example):
    text, output = example("linkage.py")
    assert re.search(r"^ +1 +0\.608247423 ", text, re.MULTILINE)
    assert "maximum    0.62682149787098" in text
    assert "rate       0.1327" in text
    assert pictures(output) == ["linkage.png"]


def test_deaths(example):
    text, output = example("deaths.py")
    assert re.search(r"1500 steps +0\.3600250922  1\.2563379007  2\.6635749577  1989\.9458601", text)
    assert re.search(r"10000 steps .* 1989\.945859883 +10000  MAX_STEPS", text)
    assert re.search(r"default rule .* 1989\.947\d+ .* CONVERGED", text)
    assert re.search(r"restarts  4: [1-4] CONVERGED", text)
    assert pictures(output) == ["deaths.png"]


def test_heights(example):
    text, output = example("heights.py")
    rows = dict(re.findall(r"^(no labels|swapped|labels) .* (-[\d.]+) +[\d.]+%$", text, re.MULTILINE))
    assert float(rows["no labels"]) == float(rows["swapped"]) > float(rows["labels"])
    spikes = [float(value) for value in re.findall(r"std .*: log-likelihood +(-[\d.]+)", text)]
    assert len(spikes) == 4
    assert spikes == sorted(spikes)
    assert pictures(output) == ["heights.png"]


def test_em_picture(example):
    text, output = example("em_picture.py")
    rows = [[float(value) for value in row.split()] for row in re.findall(r"^ +\d .*$", text, re.MULTILINE)]
    assert len(rows) == 2
    assert all(climb > 0 and kl > 0 for *_, climb, kl in rows)
    assert abs(rows[0][2] + rows[0][3] + rows[0][4] - rows[1][2]) < 5e-6
    assert pictures(output) == ["em_picture.png"]


def test_your_own_model(example):
    text, _ = example("your_own_model.py")
    assert "all restarts: {'CONVERGED': 4}" in text
    rows = re.findall(r"^(\w+) +idle ([\d.]+)  rate ([\d.]+)$", text, re.MULTILINE)
    found = {name: (float(idle), float(rate)) for name, idle, rate in rows}
    assert list(found) == ["plain", "annealed", "weighted", "shorter"]
    assert found["shorter"] == pytest.approx(found["plain"], abs=2e-3)
    assert found["annealed"] == pytest.approx(found["plain"], abs=2e-3)
    assert found["plain"] == pytest.approx((0.4, 2.5), abs=0.1)
    assert found["weighted"][0] < found["plain"][0] - 0.05
    assert "kept: additive, linear, weights," in text


def test_annealing(example):
    text, _ = example("annealing.py")
    rows = re.findall(r"^(plain EM, .+?|annealed.*?) +(\d+)/8 +\d+% +[\d.]+ +(?:\d+|none)$", text, re.MULTILINE)
    assert len(rows) == 4
    assert max(int(hits) for _, hits in rows) >= 1


def test_regularised_esteps(example):
    text, _ = example("regularised_esteps.py")
    rows = re.findall(r"^(forward|reverse) +(0\.0|0\.5|1\.0) +(-\d\.\d+) ", text, re.MULTILINE)
    assert len(rows) == 6
    assert rows[0][2] == rows[3][2]  # both are EM at lambda = 0
    assert len(re.findall(r"best lambda > 0 is .* two standard errors", text)) == 2


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short_and_say_what_they_show(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    docstring = ast.get_docstring(ast.parse(text))
    assert f"python examples/{path.name}" in docstring
    assert "Prints:" in docstring


def test_bayesian_mixture(example):
    text, output = example("bayesian_mixture.py")
    assert "restarts  4: 4 CONVERGED" in text
    assert "2 of 6 components used; expected counts 174.8, 97.2, 0.0 (not used)" in text
    rows = re.findall(r"^ (\d) +(-[\d.]+) +(-[\d.]+) +(\d)$", text, re.MULTILINE)
    assert [(row[0], row[3]) for row in rows] == [("1", "1"), ("2", "2"), ("3", "2")]
    assert max(rows, key=lambda row: float(row[2]))[0] == "2"
    far, near = (float(ratio) for ratio in re.findall(r"^ +[63]\.0 .* ([\d.]+)$", text, re.MULTILINE))
    assert 0.6 < far < 1.4
    assert near < 0.9 * far
    assert pictures(output) == ["bayesian_mixture.png"]


def test_estimators(example):
    text, output = example("estimators.py")
    rows = re.findall(r"^(prior|half-way|posterior) +(\S.*?) +([\d.e+-]+) +([\d.e+-]+)   (.*)$", text, re.MULTILINE)
    assert len(rows) == 21
    found = {(point, name): float(value) for point, name, value, _, _ in rows}
    assert (
        found["prior", "score function"] > found["prior", "leave-one-out"] > found["prior", "A"] > found["prior", "B"]
    )
    assert found["posterior", "leave-one-out"] < 1e-20 < found["posterior", "A"] < found["posterior", "B"]
    assert all(float(errors) < 5 for *_, errors in rows if errors != "other bound")
    near = re.search(r"near the prior.* A ([\d.]+), B ([\d.]+)", text)
    assert float(near[1]) > float(near[2])
    assert pictures(output) == ["estimators.png"]


def test_vae_digits(example):
    text, output = example("vae_digits.py")
    row = r"^(\S.*?) +(-[\d.]+) +(-[\d.]+) +([\d.]+) \+- [\d.]+ +(exact|[\d.]+, [\d.]+)$"
    rows = {
        name: (float(train), float(test), float(nll), size)
        for name, train, test, nll, size in re.findall(row, text, re.M)
    }
    assert list(rows) == ["mixture, K = 6", "VAE", "IWAE(8)"]
    assert rows["mixture, K = 6"][1] == -rows["mixture, K = 6"][2]
    for name in ("VAE", "IWAE(8)"):
        assert -rows[name][1] > rows[name][2]  # the ELBO is below the importance-sampled value
    assert len(re.findall(r"of 16 latents active", text)) == len(re.findall("approximation .* amortisation", text)) == 2
    names = ["vae_latents.png", "vae_reconstructions.png", "vae_samples.png", "vae_traversals.png"]
    assert pictures(output) == names


def test_vae_mixture_prior(example):
    text, output = example("vae_mixture_prior.py")
    rows = re.findall(
        r"^(N\(0, I\)\S?.*?|mixture by.*?|all climbed.*?)  +(-[\d.]+) +([\d.]+) +\d+ of 50 +(\S+)$", text, re.M
    )
    assert [name for name, *_ in rows] == [
        "N(0, I)",
        "N(0, I), twice the passes",
        "mixture by EM in its place",
        "all climbed together",
    ]
    elbo = [float(row[1]) for row in rows]
    assert elbo[3] > elbo[2]
    assert [row[3] == "-" for row in rows] == [True, True, False, False]
    assert pictures(output) == ["vae_mixture_prior.png"]


def test_earthquakes(example):
    text, output = example("earthquakes.py")
    # Zucchini and MacDonald (2009), three states, stationary.
    assert re.search(
        r"^ 3  stationary +329\.4603 +676\.9 +701\.0 +8/8   13\.146, 19\.721, 29\.71[45]$", text, re.MULTILINE
    )
    rows = np.array([row.split() for row in re.findall(r"^ +\d  0.*$", text, re.MULTILINE)], float)
    np.testing.assert_allclose(
        rows[:, 1:4], [[0.955, 0.024, 0.021], [0.050, 0.899, 0.051], [0, 0.197, 0.803]], atol=1e-3
    )
    np.testing.assert_allclose(rows[:, 5], 1 / (1 - np.diag(rows[:, 1:4])), rtol=0.02)
    years = re.findall(r"^(20\d\d) +([\d.]+) +\d+ to \d+ +(0\.\d+)$", text, re.MULTILINE)
    assert [int(year) for year, *_ in years] == [2007, 2008, 2011, 2036]
    means = [float(mean) for _, mean, _ in years]
    assert 13 < means[0] < means[1] < means[2] < means[3] < 20  # from the quiet state back to the mean of all years
    assert pictures(output) == ["earthquakes.png"]


def test_regimes(example):
    text, output = example("regimes.py")
    row = r"^(mixture of 2|one change) +(-[\d.]+) +([\d.]+) +(\d)/8 +(-[\d.]+)$"
    found = {name: tuple(map(float, numbers)) for name, *numbers in re.findall(row, text, re.MULTILINE)}
    assert list(found) == ["mixture of 2", "one change"]
    assert found["one change"][1] < found["mixture of 2"][1] - 40
    assert found["one change"][3] > found["mixture of 2"][3] + 0.15
    assert re.search(r"^one change +1097\.3, 850\.8 +2 +2$", text, re.MULTILINE)
    assert "first year of less flow: 1899 on the path; probabilities 1899: 0.786, 1898: 0.119" in text
    assert pictures(output) == ["regimes.png"]


def test_many_sequences(example):
    text, output = example("many_sequences.py")
    assert "Sequences(12 of " in text
    row = r"^(all|held out) +([\d.]+) +([\d.]+) +([\d.]+)% +(\d)/8$"
    rows = re.findall(row, text, re.MULTILINE)
    assert [name for name, *_ in rows] == ["all", "held out"]
    assert all(float(right) > 95 for *_, right, _ in rows)
    scores = dict(re.findall(r"^\d+ sequences (fitted|held out): (-[\d.]+) nats a step$", text, re.MULTILINE))
    assert abs(float(scores["fitted"]) - float(scores["held out"])) < 0.3
    counts = [int(n) for n in re.search(r"steps in each of its states: \[(.*)\]", text)[1].split(", ")]
    assert len(counts) == 6
    assert counts[5] == 0  # empty states come last; that three are left takes more sequences and more starts
    assert pictures(output) == ["many_sequences.png"]


def test_sklearn_pipeline(example):
    text, output = example("sklearn_pipeline.py")
    assert re.search(r"^held-out log-likelihood -[\d.]+ nats a row by .*'gaussianmixture__n_components': 3", text, re.M)
    assert "read back, it answers alike: True" in text
    ours, theirs = map(float, re.search(r"inertia ([\d.]+) from one start, .* of 50 ([\d.]+)$", text, re.M).groups())
    assert ours < theirs
    assert "356 observations in 178 rows" in text
    assert [path.name for path in output.iterdir()] == ["search.joblib"]


def test_multi_host(example):
    text, output = example("multi_host.py")
    assert "ShardedRows(808 rows over 8 devices)" in text
    assert "CONVERGED" in text
    assert len(np.load(output / "labels-0.npy")) == 808
    assert (output / "checkpoint.npz").exists()


def test_larger_than_memory(example):
    text, output = example("larger_than_memory.py")
    assert re.search(r"ended early: \{'INTERRUPTED': 8\}", text)
    assert re.search(r"gone on: \{'CONVERGED': 8\}, 8 at the same optimum", text)
    assert float(re.search(r"ELBO is (\S+) nats a row away", text)[1]) < 1e-5
    assert sorted(path.name for path in output.iterdir()) == ["fit.npz", "labels.npy", "rows.parquet"]
    assert np.load(output / "labels.npy").shape == (6000,)
