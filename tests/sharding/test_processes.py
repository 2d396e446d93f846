import time

import cases
import numpy as np
import processes
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
BY_ROW = ("predict", "log_prob", "posterior")


def texts(folder):
    return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(folder.glob("*.txt")))


@pytest.fixture(scope="module", params=[2, 4])
def run(request, tmp_path_factory):
    """A number of processes, and the folder that they wrote to."""
    folder = tmp_path_factory.mktemp("processes")
    with processes.started(request.param, 1, "everything", folder) as workers:
        codes = processes.ended(workers, 600)
    assert codes == [0] * request.param, texts(folder)
    return request.param, folder


@pytest.fixture(scope="module")
def alone():
    """Of a case the numbers and answers of one process with one device."""
    found = {}

    def get(name):
        if name not in found:
            way, _, case = name.rpartition("-")
            rows, weights = cases.rows_of(case)
            fit = cases.fitted(case, rows, weights, **({"num_restarts": 4} if way == "dealt" else {}))
            found[name] = cases.numbers(fit) | ({} if way else cases.answers(name, fit, rows, weights))
        return found[name]

    return get


WAYS = [f"{way}-{name}" for way, names in (("dealt", cases.DEALT), ("streamed", cases.STREAMED)) for name in names]


@pytest.mark.parametrize("name", [*cases.CASES, *WAYS])
def test_processes_fit_as_one(run, alone, name):
    num, folder = run
    found = [np.load(path) for path in sorted(folder.glob(f"{name}-?.npz"))]
    if not found:
        assert num == 4
        pytest.skip("each process compiles all programs: with two")
    assert len(found) == num
    for key, expected in alone(name).items():
        got = [file[key] for file in found]
        got = np.concatenate(got) if key in BY_ROW else got[0]
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-10, err_msg=key)
        if key not in BY_ROW:
            assert all(np.array_equal(file[key], found[0][key], equal_nan=True) for file in found), key


def until(folder, workers, text, seconds=240):
    end = time.perf_counter() + seconds
    while text not in (folder / "0.txt").read_text():
        assert time.perf_counter() < end, texts(folder)
        assert all(worker.poll() is None for worker in workers), texts(folder)
        time.sleep(0.01)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_the_rest_is_done_by_a_new_run(tmp_path, victim):
    """An error within the heartbeat's ten seconds and some for a busy machine; what was saved leads to the same fit."""
    with processes.started(2, 1, "stepped", tmp_path) as workers:
        until(tmp_path, workers, "steps 40")
        workers[victim].kill()
        assert processes.ended([workers[1 - victim]], 60) != [0]
    with processes.started(2, 1, "stepped", tmp_path) as workers:
        assert processes.ended(workers, 240) == [0, 0], texts(tmp_path)
    said = (tmp_path / "0.txt").read_text()
    assert "steps 30\n" not in said
    assert "steps 240\n" in said
    for rank in range(2):
        whole, resumed = (np.load(tmp_path / f"{kind}-{rank}.npz") for kind in ("whole", "resumed"))
        assert all(np.array_equal(whole[key], resumed[key], equal_nan=True) for key in whole)


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """What two processes that were given what does not go together said."""
    folder = tmp_path_factory.mktemp("refused")
    with processes.started(2, 1, "wrong", folder) as workers:
        assert processes.ended(workers, 240) == [0, 0], texts(folder)
    return [dict(line.split(" | ") for line in (folder / f"{rank}.out").read_text().splitlines()) for rank in range(2)]


REFUSED = {
    "not finite": "data: expected finite numbers; found nan in row 2, column 0",
    "columns": "data: expected the same in all processes, but for the number of rows; found",
    "key": "key: expected the same in all processes, which fit together; found",
    "max_steps": "max_steps, num_restarts, restart_batch or screen: expected the same in all processes",
    "mesh": "mesh: expected devices of every process; found none of process 1",
    "rows": "data: expected the same rows from processes that hold the same parts of them",
    "cache": "jax_compilation_cache_dir: expected no cache of compiled programs for several processes on CPUs",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_an_error_in_all(refused, name):
    assert all(REFUSED[name] in said[name] for said in refused), refused


def test_ctrl_c_in_one_process_ends_the_fit_of_all(refused):
    assert [said["interrupted"] for said in refused] == ["INTERRUPTED", "INTERRUPTED"]


def test_a_time_limit_is_that_of_the_first_process(refused):
    assert [said["late"] for said in refused] == [refused[0]["late"]] * 2
