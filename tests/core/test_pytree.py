import copy
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxem

LOAD = """
import pickle, sys
import jax, jaxem
fit, x = pickle.load(sys.stdin.buffer)
numbers = [str(leaf.dtype) + " " + leaf.tobytes().hex() for leaf in jax.tree.leaves((fit.params, fit.elbo))]
print(*numbers, repr(fit), float(jaxem.bic(fit, x)), sep=chr(10))
"""


@jaxem.dataclass
class Tree:
    value: object
    name: str = jaxem.static(default="a")


def test_a_pickled_fit_keeps_its_digits_where_x64_is_off():
    x = np.random.default_rng(0).normal(size=(20, 2))
    fit = jaxem.fit(jaxem.GMM(1), x, key=jax.random.key(0))
    told = subprocess.run([sys.executable, "-c", LOAD], input=pickle.dumps((fit, x)), capture_output=True, check=True)
    *numbers, bic = told.stdout.decode().strip().split("\n")
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((fit.params, fit.elbo))]
    assert numbers[: len(leaves)] == [f"float64 {leaf.tobytes().hex()}" for leaf in leaves]
    assert numbers[len(leaves) :] == repr(fit).split("\n")
    np.testing.assert_allclose(float(bic), float(jaxem.bic(fit, x)), rtol=1e-5)


def test_copies_and_pickles_hold_jax_arrays_again_and_the_rest_as_it_was():
    key = jax.random.key(3)
    tree = Tree(Tree({"jax": jnp.arange(3.0), "numpy": np.arange(2)})), Tree((key, None, 2.5), "b")
    for again in (pickle.loads(pickle.dumps(tree)), copy.deepcopy(tree), tuple(copy.copy(part) for part in tree)):
        arrays, others = again[0].value.value, again[1]
        assert isinstance(arrays["jax"], jax.Array)
        assert type(arrays["numpy"]) is np.ndarray
        np.testing.assert_array_equal(arrays["jax"], [0, 1, 2])
        assert others.name == "b"
        assert others.value[0] == key
        assert others.value[1:] == (None, 2.5)
    assert jax.jit(lambda tree: copy.copy(tree).value.value["jax"].sum())(tree[0]) == 3
