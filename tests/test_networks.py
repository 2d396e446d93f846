import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.example_libraries import stax

import jaxem
from jaxem.networks import PerDatum, as_network, mlp

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)


def test_mlp_is_its_formula():
    network = mlp(5, 2, activation=jnp.tanh)
    params = network.init(KEY, X)
    one, two = [{name: np.asarray(a) for name, a in layer.items()} for layer in params]
    expected = np.tanh(np.asarray(X) @ one["w"] + one["b"]) @ two["w"] + two["b"]
    np.testing.assert_allclose(network.apply(params, X), expected, rtol=1e-13)
    affine = mlp(2)
    params = affine.init(KEY, X)
    np.testing.assert_allclose(affine.apply(params, X), X @ params[0]["w"] + params[0]["b"][None])


def test_mlp_starts_within_glorots_range_in_the_dtype_of_the_data():
    network = mlp(300, 7)
    first, last = network.init(KEY, jnp.zeros((1, 200), jnp.float32))
    assert first["w"].dtype == jnp.float32
    for layer, fans in ((first, 500), (last, 307)):
        bound = np.sqrt(6 / fans)
        w = np.asarray(layer["w"])
        assert 0.98 * bound < np.abs(w).max() <= bound
        np.testing.assert_allclose(w.std(), bound / np.sqrt(3), rtol=0.05)
        assert not layer["b"].any()
    assert network.init(KEY, X)[0]["w"].dtype == jnp.float64


@pytest.mark.parametrize(
    ("sizes", "options", "error", "name"),
    [
        ((), {}, ValueError, "sizes"),
        ((0,), {}, ValueError, r"sizes\[0\]"),
        ((2.5,), {}, TypeError, r"sizes\[0\]"),
        ((True,), {}, TypeError, r"sizes\[0\]"),
        ((2,), {"activation": "relu"}, TypeError, "activation"),
        ((2,), {"precision": "low"}, ValueError, "precision"),
    ],
)
def test_mlp_refuses_by_name(sizes, options, error, name):
    with pytest.raises(error, match=f"^{name}: expected"):
        mlp(*sizes, **options)


def test_mlp_wants_a_matrix():
    with pytest.raises(ValueError, match=r"mlp: expected rows \(n, D\); found \(3,\)"):
        mlp(2).init(KEY, X[0])


def test_a_pair_of_functions_is_a_network_and_so_is_stax():
    init, apply = stax.serial(stax.Dense(5), stax.Relu, stax.Dense(2))
    network = as_network((lambda key, x: init(key, x.shape)[1], apply))
    params = network.init(KEY, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {X.dtype}
    assert network.apply(params, X).shape == (4, 2)


def test_an_object_with_init_and_apply_is_a_network():
    class Scale:
        def init(self, key, x):
            return jax.random.normal(key, (), jnp.float32)

        def apply(self, params, x):
            return params * x

    scale = Scale()
    network = as_network(scale)
    params = network.init(KEY, X)
    assert params.dtype == X.dtype  # the dtype follows the data, whatever the module's default
    np.testing.assert_array_equal(network.apply(params, X), params * X)
    same = as_network(scale)
    assert jax.tree.structure(network) == jax.tree.structure(same)  # shares compiled programs


@jaxem.dataclass
class Dense:
    """A callable pytree that maps one datum, as Equinox modules are, with a leaf that is no array."""

    weight: jax.Array
    activation: object = jnp.tanh

    def __call__(self, x):
        return self.activation(self.weight @ x)


def test_a_callable_pytree_is_vmapped_and_its_arrays_are_the_params():
    module = Dense(jnp.ones((2, 3)))
    network = as_network(module)
    params = network.init(KEY, X)
    assert len(jax.tree.leaves(params)) == 1
    np.testing.assert_allclose(network.apply(params, X), jnp.tanh(X @ jnp.ones((3, 2))))
    jax.jit(lambda network, params: network.apply(params, X))(network, params)


def test_a_function_of_a_key_starts_restarts_apart():
    network = as_network(lambda key: Dense(jax.random.normal(key, (2, 3))))
    one, two = (network.init(jax.random.key(i), X) for i in range(2))
    assert not jnp.allclose(one.weight, two.weight)
    np.testing.assert_allclose(network.apply(one, X), jnp.tanh(X @ one.weight.T))


@pytest.mark.parametrize("found", [3, None, mlp, (mlp(2),), Dense, lambda params, x: x, lambda key: 3])
def test_what_is_no_network_is_refused_by_name(found):
    with pytest.raises(TypeError, match="^encoder: expected a network"):
        as_network(found, "encoder")


def test_a_network_that_is_not_hashable_is_refused_by_name():
    class Loose:
        __hash__ = None
        init = apply = lambda self, key, x: x

    with pytest.raises(TypeError, match="decoder: expected a network that is hashable"):
        as_network(Loose(), "decoder")


def test_per_datum_looks_its_rows_up():
    table = PerDatum(4, 2)
    data = (X, jnp.arange(4.0))
    params = table.init(KEY, data) + jnp.arange(4.0)[:, None]
    np.testing.assert_array_equal(table.apply(params, (X[:2], jnp.array([3.0, 1.0])))[:, 0], [3, 1])
    outside = table.apply(params, (X[:3], jnp.array([4.0, -1.0, 0.0])))
    assert jnp.isnan(outside[:2]).all()
    assert jnp.isfinite(outside[2]).all()
    with pytest.raises(ValueError, match="PerDatum expects a pair"):
        table.apply(params, X)


def test_flax_modules_are_networks():
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(2)(jnp.tanh(linen.Dense(5)(x)))

    network = as_network(Net())
    params = network.init(KEY, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {X.dtype}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(network.apply(params, X), Net().apply(params, X), rtol=1e-12)
    assert jax.tree.structure(network) == jax.tree.structure(as_network(Net()))


def test_equinox_modules_are_networks():
    equinox = pytest.importorskip("equinox")
    make = lambda key: equinox.nn.MLP(3, 2, 5, 1, key=key)
    module = make(KEY)
    for network in (as_network(module), as_network(make)):
        params = network.init(KEY, X)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {X.dtype}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            np.testing.assert_allclose(network.apply(params, X), jax.vmap(module)(X), rtol=1e-6)
        back = equinox.combine(params, equinox.partition(module, equinox.is_inexact_array)[1])
        assert back(X[0]).shape == (2,)
