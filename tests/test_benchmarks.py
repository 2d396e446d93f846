import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("sklearn")

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.fixture
def benchmark_main(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name):
        return importlib.import_module(name).main

    return load


def settings():
    return jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion


@pytest.mark.parametrize(
    ("name", "flags"),
    [("gmm", []), ("gmm", ["--memory"]), ("kmeans", []), ("restarts", []), ("families", [])],
    ids=lambda v: "".join(v),
)
def test_benchmark_at_toy_size(benchmark_main, tmp_path, capsys, name, flags):
    before = settings()
    path = tmp_path / "report.json"
    benchmark_main(name)(["--sizes", "toy", "--repeats", "1", "--json", str(path), *flags])
    assert settings() == before
    report = json.loads(path.read_text())
    assert report["benchmark"] == name
    assert report["agree"], capsys.readouterr().out
    assert report["cases"]
    for case in report["cases"]:
        if flags:
            assert case["resident_mb"]["after_fit"] > 0
            continue
        assert {"jaxem", "NumPy" if name == "families" else "scikit-learn"} <= set(case["contenders"])
        assert case["contenders"]["jaxem"]["ratio"] == 1
        assert all(isinstance(c["ratio"], float) for c in case["contenders"].values())
    if name == "kmeans":
        ours, theirs = (report["cases"][-1]["to_tolerance"][who] for who in ("jaxem", "scikit-learn"))
        assert abs(ours["steps"] - theirs["steps"]) <= 1  # one rule
        assert ours["inertia"] == pytest.approx(theirs["inertia"], rel=1e-4)


def test_scikit_at_toy_size(benchmark_main, tmp_path):
    before = settings()
    report = benchmark_main("scikit")(["--sizes", "toy", "--repeats", "1", "--json", str(tmp_path / "report.json")])
    assert settings() == before
    assert report["agree"]
    assert [case["case"].split(",")[0] for case in report["cases"]] == ["GaussianMixture full", "KMeans"]
    assert all(set(case["contenders"]) == {"jaxem", "scikit-learn"} for case in report["cases"])


def test_online_at_toy_size(benchmark_main, tmp_path, capsys):
    before = settings()
    path = tmp_path / "report.json"
    benchmark_main("online")(["--sizes", "toy", "--repeats", "1", "--json", str(path)])
    assert settings() == before
    mixture, kmeans = json.loads(path.read_text())["cases"]
    assert mixture["agree"], capsys.readouterr().out
    assert kmeans["agree"], capsys.readouterr().out
    online = mixture["contenders"]["rate 0.1"]
    assert online["bound_nats"] == 0.1 * 2000 * mixture["num_parameters"] / (4 * 100)
    assert online["shortfall_percent"][-1] < mixture["contenders"]["EM"]["shortfall_percent"][-1]
    assert set(kmeans["equal_time"]) == {"2"}


def test_bayesian_at_toy_size(benchmark_main, tmp_path, capsys):
    before = settings()
    path = tmp_path / "report.json"
    benchmark_main("bayesian")(["--sizes", "toy", "--repeats", "1", "--json", str(path)])
    assert settings() == before
    report = json.loads(path.read_text())
    assert report["agree"], capsys.readouterr().out
    assert len(report["cases"]) == 4
    stochastic = report["cases"][-1]["contenders"]
    starts = [stochastic[name]["shortfall_percent"][0] for name in ("jaxem", "NumPy", "coordinate ascent")]
    assert starts == pytest.approx([starts[0]] * 3, rel=1e-6)  # the same ELBO, from two implementations


def test_unknown_size_is_refused(benchmark_main, capsys):
    with pytest.raises(SystemExit):
        benchmark_main("kmeans")(["--sizes", "huge"])
    assert "--sizes" in capsys.readouterr().err


def test_vae_at_toy_size(benchmark_main, tmp_path, capsys):
    before = settings()
    path = tmp_path / "report.json"
    benchmark_main("vae")(["--sizes", "toy", "--repeats", "1", "--json", str(path)])
    assert settings() == before
    report = json.loads(path.read_text())
    assert report["agree"], capsys.readouterr().out
    training, seeds = report["cases"]
    # A difference of two short runs, which noise may turn round: its sign is the clock's, not the library's.
    assert np.isfinite(training["contenders"]["jaxem"]["rows_per_s"])
    assert training["contenders"]["jaxem"]["elbo"] < 0
    assert seeds["contenders"]["one after the other"]["ratio"] > 0


def test_guard_at_toy_size(benchmark_main, tmp_path, capsys):
    """What is recorded is what is found again; the programs' counts are there."""
    before, path = settings(), str(tmp_path / "report.json")
    benchmark_main("guard")(["--record", path, "--only", "traces", "--match", "KMeans"])
    report = benchmark_main("guard")(["--against", path, "--only", "traces", "--match", "KMeans"])
    assert settings() == before
    assert report["agree"]
    assert set(report["traces"]) == {"KMeans", "KMeans online", "KMeans float32"}
    assert capsys.readouterr().out.count("bit-identical") == 3
    report = benchmark_main("guard")(["--only", "programs", "--match", "KMeans"])
    parts = report["programs"]["KMeans"]
    assert 0 < parts["loop"]["fusions"] <= parts["loop"]["kernels"]
    assert parts["step"]["bytes"] > 0
    assert parts["first"]["programs"] >= 1


def test_guard_races_two_trees(benchmark_main, capsys):
    flags = ["--only", "times", "--times-against", str(FOLDER.parents[1]), "--match", "KMeans 64"]
    report = benchmark_main("guard")([*flags, "--rounds", "1", "--repeats", "1"])
    found = report["times"]["KMeans 64 restarts"]
    assert found["programs"]["minima"] == 1
    assert found["seconds"]["before"][0] > 0
    with pytest.raises(SystemExit):
        benchmark_main("guard")(["--only", "times"])
    assert "--times-against FOLDER" in capsys.readouterr().err


def test_hidden_markov_models_at_toy_size(benchmark_main, tmp_path, capsys):
    before = settings()
    path = tmp_path / "report.json"
    benchmark_main("hmm")(["--sizes", "toy", "--repeats", "1", "--json", str(path)])
    assert settings() == before
    (case,) = json.loads(path.read_text())["cases"]
    assert case["agree"], capsys.readouterr().out
    assert case["contenders"]["jaxem"]["ratio"] == 1


def test_first_calls_at_toy_size(benchmark_main, tmp_path, capsys):
    before, path = settings(), tmp_path / "report.json"
    benchmark_main("first_call")(["--sizes", "toy", "--repeats", "1", "--json", str(path)])
    assert settings() == before
    report = json.loads(path.read_text())
    assert report["agree"], capsys.readouterr().out
    (case,) = report["cases"]
    assert case["calls"]["fit"]["now"]["programs"] > case["calls"]["predict"]["now"]["programs"] > 0
    assert case["calls"]["fit"]["cached"]["loaded"] > 0


def test_search_at_toy_size(benchmark_main, tmp_path, capsys):
    before = settings()
    path = tmp_path / "report.json"
    benchmark_main("search")(["--sizes", "toy", "--json", str(path)])
    assert settings() == before
    report = json.loads(path.read_text())
    assert report["agree"], capsys.readouterr().out
    for case in report["cases"]:
        assert set(case["contenders"]) == {"restarts", "screened", "swaps", "annealing", "scikit-learn"}
        assert case["contenders"]["swaps"]["found"] == 1
        assert case["contenders"]["swaps"]["seconds_to_best"] > 0


def test_scaling_at_toy_size(benchmark_main, tmp_path, capsys):
    before, path = settings(), tmp_path / "report.json"
    benchmark_main("scaling")(["--sizes", "toy", "--repeats", "1", "--network", "50", "--json", str(path)])
    assert settings() == before
    report = json.loads(path.read_text())
    assert report["agree"], capsys.readouterr().out
    steps, streams, gpus, hosts = report["cases"]
    assert len(steps["points"]) == 4
    assert set(streams["seconds"]) == {"2000", "8000"}
    # 10^9 x 128 float32 among 64: 8 GB each, and K (2 D + 1) + 1 numbers are summed.
    diag = gpus["plans"]["diag"]
    assert diag["part_bytes"] == 8e9
    assert diag["all_reduced_bytes"] == 4 * (1024 * 257 + 1)
    assert diag["flops"] == 1e9 / 64 * 1024 * (8 * 128 + 20)
    assert gpus["assumed"]["network"] == 50e9
    assert hosts["plans"]["kmeans"]["read_bytes_a_pass"] == 1e10 / 16 * 32 * 4  # 80 GB of 128: read in every pass


def test_a_known_cost_is_found(benchmark_main):
    benchmark_main("scaling")
    fitted = importlib.import_module("_cost_model").fitted
    points = [{"flops": f * 1e9, "devices": 1, "seconds": 0.012 + f / 5} for f in (1, 2, 8)]
    points += [{"flops": 1e9, "devices": p, "seconds": 0.212 + 0.03 * np.log2(p)} for p in (2, 4, 8)]
    (overhead, inverse, log), seconds = fitted(points)
    np.testing.assert_allclose([overhead, inverse, log], [0.012, 2e-10, 0.03], rtol=1e-6)
    np.testing.assert_allclose(seconds, [point["seconds"] for point in points], rtol=1e-6)


def test_streams_at_toy_size(benchmark_main, tmp_path, capsys):
    before, path = settings(), tmp_path / "report.json"
    benchmark_main("streams")(["--sizes", "toy", "--repeats", "1", "--json", str(path)])
    assert settings() == before
    report = json.loads(path.read_text())
    assert report["agree"], capsys.readouterr().out
    mixture, kmeans = report["cases"]
    assert {"jaxem, stream", "jaxem, memory", "scikit-learn, memory"} <= set(mixture["contenders"])
    assert 1 <= len(kmeans["partial_fit"]["inertia"]) <= 3
