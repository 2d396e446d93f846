"""Traces of small fits against those that were recorded: a change of a step that was not meant shows here."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "tests" / "reference" / "guard.json").read_text())
# Rounding of other versions of JAX and of the unoptimised programs of the tests leaves 1.4e-15 at most.
TOLERANCE = 1e-12


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    import guard

    return guard


@pytest.mark.parametrize("name", RECORDED["traces"])
def test_a_trace_is_that_recorded(guard, name):
    before, after = RECORDED["traces"][name], guard.traces.record_fit(name)
    words, trace, elbo = guard.compare_fit(before, after)
    assert words == ""
    assert max(trace, elbo) < TOLERANCE


def test_what_is_recorded_is_what_is_tested(guard):
    assert tuple(RECORDED["traces"]) == guard.traces.TESTED
    assert set(guard.traces.TESTED) | set(guard.traces.NOISY) | set(guard.traces.SINGLE) <= set(guard.traces.FITS)


def test_what_differs_is_seen(guard):
    before = RECORDED["traces"]["KMeans"]
    other = json.loads(json.dumps(before))
    other["traces"][0][1] *= 1 + 1e-9
    assert guard.compare_fit(before, other) == ("", pytest.approx(1e-9), 0.0)
    other["traces"][0].append(1.0)
    assert guard.compare_fit(before, other)[1] == np.inf
    other["statuses"][0], other["num_steps"][0] = "DECREASED", 99
    assert guard.compare_fit(before, other)[0].startswith("statuses ['CONVERGED', ")
    assert "num_steps" in guard.compare_fit(before, other)[0]
    assert guard.compare_fit(before, {"error": "TypeError: no"})[0] == "error: none -> TypeError: no"
    assert guard.deviation([[1.0, np.nan]], [[1.0, np.nan]]) == 0
    assert guard.deviation([[1.0, np.nan]], [[1.0, 2.0]]) == np.inf


HLO = """HloModule jit_f

%fused (a: f32[3]) -> f32[3] {
  %a = f32[3]{0} parameter(0)
  ROOT %add.1 = f32[3]{0} add(%a, %a)
}

%body (p: (f32[3], s32[])) -> (f32[3], s32[]) {
  %p = (f32[3]{0}, /*index=1*/s32[]) parameter(0)
  %x = f32[3]{0} get-tuple-element(%p), index=0
  %fusion.1 = f32[3]{0} fusion(%x), kind=kLoop, calls=%fused
  %solve = f32[3]{0} custom-call(%fusion.1), custom_call_target="lapack_strsm_ffi"
  %called = f32[3]{0} call(%solve), to_apply=%helper
  ROOT %t = (f32[3]{0}, s32[]) tuple(%called, %x)
}

%helper (h: f32[3]) -> f32[3] {
  %h = f32[3]{0} parameter(0)
  ROOT %copy.1 = f32[3]{0} copy(%h)
}

%condition (q: (f32[3], s32[])) -> pred[] {
  %q = (f32[3]{0}, s32[]) parameter(0)
  ROOT %less = pred[] fusion(%q), kind=kLoop, calls=%fused
}

ENTRY %main (x: f32[3]) -> f32[3] {
  %x.1 = f32[3]{0} parameter(0)
  %while.1 = (f32[3]{0}, s32[]) while(%x.1), condition=%condition, body=%body, metadata={op_name="jit(f)/while"}
  ROOT %dot.1 = f32[3]{0} dot(%while.1, %x.1)
}
"""


def test_kernels_of_a_loop_are_counted(guard):
    module = guard.programs.computations(HLO)
    loop = guard.programs.largest_loop(module)
    assert loop == {"kernels": 4, "fusions": 2, "loops": 0, "custom_calls": {"lapack_strsm_ffi": 1}}
    assert guard.programs.count(module, [""])["kernels"] == 5
    assert guard.programs.count(module, [""])["loops"] == 1


def test_programs_that_grow_are_seen(guard, capsys):
    part = {"kernels": 4, "custom_calls": {"a": 1}, "bytes": 100.0, "compile": 1.0}
    assert guard.compare_programs({"m": {"loop": part}}, {"m": {"loop": {**part, "bytes": 104.0, "compile": 9.0}}})
    assert not guard.compare_programs({"m": {"loop": part}}, {"m": {"loop": {**part, "custom_calls": {"b": 2}}}})
    assert not guard.compare_programs({"m": {"loop": part}}, {"m": {"loop": {**part, "bytes": 106.0}}})
    assert "100 -> 106" in capsys.readouterr().out


@pytest.fixture
def house(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "benchmarks"))
    import house

    return house


FILES = {
    "__init__.py": "from pkg.top import fit\n",
    "low.py": '"""Low."""\n\nX = 1  # one\n',
    "mid/__init__.py": "from pkg.mid.model import Model\n",
    "mid/model.py": (
        "from abc import ABC, abstractmethod\nfrom typing import TYPE_CHECKING\nfrom pkg import low\n\n"
        "if TYPE_CHECKING:\n    from pkg import top\n\n\n"
        "class ELBOModel(ABC):\n    rows: int = 0\n\n    @abstractmethod\n    def init(self):\n        pass\n\n"
        "    def _private(self):\n        pass\n"
    ),
    "mid/_inner.py": "def f():\n    from pkg.other import g\n",
    "other.py": "from pkg.mid import _inner\n",
    "top.py": (
        "from pkg.mid import model\nfrom pkg.mid.model import ELBOModel as Base\nfrom pkg.mid._inner import f\n\n\n"
        "class A(Base):\n    def init(self):\n        pass\n\n\n"
        "class B(A):\n    rows = 1\n\n    def init(self):\n        pass\n\n\n"
        "class Wrapper(Base):\n    def init(self):\n        pass\n"
    ),
}


def test_the_shape_of_a_small_house(house, tmp_path, capsys):
    for name, text in FILES.items():
        path = tmp_path / "pkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    report = house.main([str(tmp_path / "pkg"), "--names"])
    assert report["rooms"]["low"] == {"files": 1, "lines": 3, "code": 1}
    assert report["room"]["arrows"] == 4  # mid -> low, mid -> other, other -> mid, top -> mid
    assert report["room"]["longest"] == ["top", "mid = other", "low"]
    assert report["room"]["circles"] == [["mid", "other"]]
    assert report["private"] == ["other -> mid._inner", "top -> mid._inner"]
    assert report["hooks"]["model"] == {
        "rows": {"of": "ELBOModel", "abstract": False, "by": ["B"]},
        "init": {"of": "ELBOModel", "abstract": True, "by": ["A", "B"]},
    }
    assert "4 rooms, 4 arrows, 3 floors" in capsys.readouterr().out
