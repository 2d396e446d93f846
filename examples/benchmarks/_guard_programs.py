"""What the compiled programs of a fit hold: kernels, calls of LAPACK, loops, bytes; in float32, 1000 x 8, K = 5.

Two programs a model, for one restart and from given params, so that no other loop is as large:

* `step`: e_step, m_step and elbo_params as one program, of the model at its params or of the model itself;
* `loop`: the body and the condition of the largest while loop of a whole `jaxem.fit`, read in its text, whatever the
  design inside is called.

A kernel is an instruction that computes or moves: a fusion, a dot, a copy, a custom call; what a fusion holds is one.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

NEVER = jaxem.Stop(atol=-np.inf)
SHAPES = ("full", "tied", "diag", "spherical")
MODELS: dict[str, Callable[[int], Any]] = {
    **{f"GMM {shape}": lambda num, shape=shape: jaxem.GMM(num, shape) for shape in SHAPES},
    "KMeans": jaxem.KMeans,
    "BayesianGMM": jaxem.BayesianGMM,
}
# Instructions that are no work of their own.
_FREE = frozenset({"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "call", "while", "conditional"})
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?\S+ = .*? ([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(
    r"(?:condition|body|to_apply|true_computation|false_computation|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)"
)
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


def make_data(rows: int, columns: int, num: int) -> np.ndarray:
    """Float32 rows of `num` overlapping clusters of unequal size and width."""
    rng = np.random.default_rng(0)
    label = rng.choice(num, rows, p=rng.dirichlet(np.full(num, 5.0)))
    centre, width = 2.0 * rng.standard_normal((num, columns)), rng.uniform(0.5, 1.5, num)
    return np.float32(centre[label] + width[label, None] * rng.standard_normal((rows, columns)))


def computations(text: str) -> dict[str, list[str]]:
    """The instructions of each computation of a compiled module, by name; the entry is ""."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("ENTRY"):
            lines = found.setdefault("", [])
        elif line.startswith("%") and line.endswith("{"):
            lines = found.setdefault(line.split()[0], [])
        elif _INSTRUCTION.match(line):
            lines.append(line)
    return found


def count(module: dict[str, list[str]], names: list[str]) -> dict[str, Any]:
    """Instructions of the computations named and of those they call, each call counted."""
    total = {"kernels": 0, "fusions": 0, "loops": 0, "custom_calls": Counter()}
    for line in (line for name in names for line in module[name]):
        kind = _INSTRUCTION.match(line)[1]
        total["kernels"] += kind not in _FREE
        total["fusions"] += kind == "fusion"
        total["loops"] += kind == "while"
        if kind == "custom-call":
            total["custom_calls"][_TARGET.search(line)[1]] += 1
        if kind in ("while", "call", "conditional"):
            inner = count(module, called(line))
            total = {field: total[field] + inner[field] for field in total}
    return total


def called(line: str) -> list[str]:
    """Names of the computations that an instruction calls."""
    return [name for group in _CALLED.findall(line) for name in group.split(", ") if name]


def largest_loop(module: dict[str, list[str]]) -> dict[str, Any]:
    """Counts of the while loop with the most kernels among those that the entry runs."""
    loops = [line for line in module[""] if _INSTRUCTION.match(line)[1] == "while"]
    return max((count(module, called(line)) for line in loops), key=lambda found: found["kernels"])


def cost(program: Any) -> dict[str, float]:
    """Floating-point operations, bytes accessed and bytes of scratch memory of a program; a loop counts once."""
    analysis = program.cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    scratch = program.memory_analysis().temp_size_in_bytes
    return {"flops": analysis["flops"], "bytes": analysis["bytes accessed"], "scratch": float(scratch)}


def record_model(name: str) -> dict[str, Any]:
    """Counts of the `step` and of the `loop` of one model; `error` in place of what cannot be compiled."""
    model, x, key = MODELS[name](5), jnp.asarray(make_data(1000, 8, 5)), jax.random.key(0)
    start = jaxem.fit(model, x, key=key, max_steps=0)
    weights = jnp.ones(x.shape[0], x.dtype)
    whole = lambda params, x, key: jaxem.fit(model, x, key=key, params=params, stop=NEVER, max_steps=7)

    def step(bound: Any, params: Any, x: Any, weights: Any) -> Any:
        if hasattr(bound, "at"):  # the model at its params, which has what is derived from them
            here = bound.at(params)
            found = here.e_step(x, weights, bound.default_rule())
            return here.m_step(found.stats), found.elbo_data + here.elbo_params()
        params = bound.prepare(params) if hasattr(bound, "prepare") else params
        found = bound.e_step(params, x, weights)
        return bound.m_step(params, found.stats), found.elbo_data + bound.elbo_params(params)

    record = {}
    for part, function, inputs, look in (
        ("step", step, (start.model, start.params, x, weights), lambda module: count(module, [""])),
        ("loop", whole, (start.params, x, key), largest_loop),
    ):
        try:
            program = jax.jit(function).lower(*inputs).compile()
        except Exception as error:
            record[part] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        else:
            record[part] = look(computations(program.as_text())) | cost(program)
    return record
