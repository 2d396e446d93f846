"""Values through JSON and back: every kind of part, and what is refused."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import constraints, expfam
from jaxem.core.decoding import decode
from jaxem.core.encoding import encode
from jaxem.core.named import UnnamedError, find, name_of
from jaxem.stopping import Status


class Pair(NamedTuple):
    first: object
    second: object


def around(value, **kwargs):
    node, arrays = encode(value, "v")
    return decode(json.loads(json.dumps(node, allow_nan=False)), arrays, "v", **kwargs)


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -(2**70), 0.1, -0.0, float("inf"), float("-inf"), 1e-320, 2j, "text", "", "Ünï\x00"),
        *(
            (),
            (1, (2.0, None)),
            [1, [2]],
            {},
            {"a": 1, 2: "b", (1, 2): [3], None: 0.5},
            Status.CONVERGED,
            Pair(1, (2,)),
        ),
        *(np.dtype("float32"), np.dtype(jnp.bfloat16), jnp.float32, jax.nn.relu, jnp.tanh, jaxem.GMM),
        *(constraints.Positive(), expfam.Normal(), expfam.Delta(expfam.Gamma()), jax.tree.structure({"a": (1, [2])})),
    ],
    ids=lambda value: type(value).__name__,  # the same in every process
)
def test_what_compares_by_value_comes_back_equal(value):
    again = around(value)
    assert type(again) is type(value)
    assert again == value
    assert repr(again) == repr(value) or " at 0x" in repr(value)  # -0.0 is not 0.0


@pytest.mark.parametrize(
    "array",
    [
        *(np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(3, dtype=">i4")),
        *(np.array([np.nan, -np.inf, 5e-324]), np.zeros((0, 3), np.float32), np.array(2.5), np.array(["a", "bc"])),
        *(np.array([True]), np.array([1 + 2j]), np.arange(3).astype(jnp.bfloat16), np.arange(3).astype("M8[s]")),
        *(np.arange(4, dtype=np.float16), np.arange(3).astype(jnp.int4), np.ones(2, jnp.float8_e4m3fn)),
        *(np.float64(0.1), np.int8(3), np.bool_(True), jnp.bfloat16(1.5), np.str_("a")),
        *(jnp.arange(3), jnp.ones((2, 2), jnp.bfloat16), jnp.zeros((), jnp.float32), jnp.ones(0)),
    ],
    ids=lambda a: f"{a.dtype}{np.shape(a)}",
)
def test_arrays_come_back_bit_by_bit(array):
    again = around({"a": array})["a"]
    assert isinstance(again, jax.Array if isinstance(array, jax.Array) else type(array))
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert np.asarray(again).tobytes() == np.asarray(array).tobytes()


def test_keys_partials_and_names_that_meet():
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 2)
    again = around(keys)
    assert again.dtype == keys.dtype
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(keys))
    doubled = around(functools.partial(jax.nn.leaky_relu, negative_slope=0.5))
    assert (doubled.func, doubled.keywords) == (jax.nn.leaky_relu, {"negative_slope": 0.5})
    node, arrays = encode({"a/b": np.ones(1), "a_b": np.zeros(1), "../x": np.ones(2)}, "v")
    assert sorted(arrays) == [".._x", "a_b", "a_b-2"]
    again = decode(node, arrays, "v")
    assert [again[name].tolist() for name in ("a/b", "a_b", "../x")] == [[1], [0], [1, 1]]


LOOP = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([{}, 1], object), "v: expected an array of numbers or text; found dtype object"),
        ({"a": [1, {1, 2}]}, "v.a.1: expected numbers, strings, .*; found {1, 2}, a set"),
        ({"a": b"raw"}, "v.a: expected numbers, strings"),
        ({"a": LOOP}, "v.a.0: expected a tree; found .* inside itself"),
        ([lambda x: x], "v.0: expected a function or a class at the top of a module, .* found a lambda; define it"),
        ([jaxem.GMM(2).init], "v.0: expected a function or a class at the top"),
        (type("Local", (), {}), "v: expected a function or a class at the top of a module"),
        (type("Local", (), {})(), "v: expected a function or a class at the top of a module"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_written_is_refused_with_its_place(value, message):
    with pytest.raises(ValueError, match=message):
        encode(value, "v")


def test_a_tracer_is_refused():
    with pytest.raises(ValueError, match="v.a: expected a value; found a tracer; save outside of jit"):
        jax.jit(lambda a: encode({"a": a}, "v"))(1.0)


def test_names_are_found_only_where_nothing_can_run():
    for value in (jax.nn.gelu, jnp.tanh, jax.nn.silu, jnp.float32, jaxem.GMM, Status, np.tanh):
        if value is not np.tanh:
            assert find(name_of(value)) is value
    for name in ("jax.numpy:load", "jax.numpy:save", "numpy:load", "os:system", "jaxem:fit", "jax:jit", "nonsense", 3):
        with pytest.raises(UnnamedError):
            find(name)
    with pytest.raises(UnnamedError):
        find("jaxem.engine.checkpoint:Saver", call=True)  # which is no value
    # An inert class of others may be filled, not called.
    assert find(f"{__name__}:Pair") is Pair
    with pytest.raises(UnnamedError, match=r"trusted=\[Pair\]"):
        find(f"{__name__}:Pair", call=True)
    assert find(f"{__name__}:Pair", [Pair], call=True) is Pair
