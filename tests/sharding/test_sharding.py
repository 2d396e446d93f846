import dataclasses
import re

import cases
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxem
from jaxem.engine import fit as _fit
from jaxem.engine import table as _table
from jaxem.networks import mlp
from jaxem.testing import CHECKS, check_model

pytestmark = pytest.mark.filterwarnings("ignore::jaxem.FitWarning")
KEY = cases.KEY


def compare(found, expected, tolerance=1e-10):
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=tolerance, atol=tolerance, err_msg=key)


@pytest.fixture(scope="module")
def alone():
    """Of a case the fit on one device, its numbers and its answers."""
    found = {}

    def get(name, **told):
        key = (name, *told.items())
        if key not in found:
            rows, weights = cases.rows_of(name)
            fit = cases.fitted(name, rows, weights, **told)
            found[key] = fit, cases.numbers(fit), cases.answers(name, fit, rows, weights)
        return found[key]

    return get


def mesh_of(**axes):
    """A mesh of axes by name, with the first devices."""
    num = int(np.prod(list(axes.values())))
    return Mesh(np.array(jax.devices()[:num]).reshape(tuple(axes.values())), tuple(axes))


@pytest.mark.parametrize("name", cases.CASES)
def test_eight_devices_fit_as_one(alone, name):
    plain, numbers, answers = alone(name)
    rows = jaxem.shard_data(*cases.rows_of(name))
    fit = cases.fitted(name, rows)
    assert type(fit.model) is type(plain.model)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(fit))
    compare(cases.numbers(fit), numbers)
    compare(cases.answers(name, fit, rows, own=rows.own), answers)


MESHES = {
    "restarts and rows": {"restarts": 2, "rows": 4},
    "restarts": {"restarts": 4},
    "two axes of rows": {"hosts": 2, "devices": 4},
    "three devices": {"rows": 3},
}


@pytest.mark.parametrize("axes", MESHES)
def test_meshes(alone, axes):
    rows = jaxem.shard_data(*cases.rows_of("full"), mesh_of(**MESHES[axes]))
    compare(cases.numbers(cases.fitted("full", rows, num_restarts=4)), alone("full", num_restarts=4)[1])


def test_restarts_over_devices_do_not_depend_on_their_neighbours(alone):
    rows = jaxem.shard_data(*cases.rows_of("full"), mesh_of(restarts=4))
    fit = cases.fitted("full", rows, num_restarts=8, restart_batch=1)
    fewer = cases.fitted("full", rows, num_restarts=4, restart_batch=1)
    np.testing.assert_array_equal(fit.restarts.trace[:4], fewer.restarts.trace)


@pytest.mark.parametrize(
    "how", ["a sharded model", "an explicit mesh", "arrays of the user's", "weights of the user's"]
)
def test_ways_to_say_where_rows_lie(alone, how):
    weights = np.ones(80)
    expected = jaxem.fit(jaxem.GMM(2), cases.ROWS[:80], key=KEY, max_steps=4)
    model, data, told = jaxem.GMM(2), cases.ROWS[:80], {}
    if how == "a sharded model":
        model = jaxem.sharded(model)
        assert repr(model) == f"sharded({jaxem.GMM(2)!r}, 8)"
    elif how == "an explicit mesh":
        data = jaxem.shard_data(data, mesh=jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,)))
    else:
        spread = NamedSharding(mesh_of(x=8), PartitionSpec("x"))
        data = jax.device_put(data, spread)
        told = {"weights": jax.device_put(weights, spread)} if how == "weights of the user's" else {}
    compare(cases.numbers(jaxem.fit(model, data, key=KEY, max_steps=4, **told)), cases.numbers(expected))


def test_a_small_kmeans_goes_on_by_swaps_on_a_mesh_as_well():
    rows = jaxem.shard_data(cases.ROWS)
    told = {"max_steps": 40, "key": KEY}
    found = jaxem.fit(jaxem.KMeans(4), rows, **told)
    compare(cases.numbers(found), cases.numbers(jaxem.fit(jaxem.KMeans(4), cases.ROWS, **told)))
    assert found.num_steps > jaxem.fit(jaxem.KMeans(4), rows, algorithm=jaxem.EM(), **told).num_steps


def test_an_answer_of_rows_is_taken_apart():
    rows = jaxem.shard_data(cases.ROWS, cases.WEIGHTS)
    data, weights = rows
    assert data.shape[0] == weights.shape[0] == 88
    assert rows.num_rows == 83
    assert repr(rows) == "ShardedRows(83 rows over 8 devices)"
    np.testing.assert_array_equal(rows.own(data), cases.ROWS)
    np.testing.assert_array_equal(rows.own(np.asarray(weights)), cases.WEIGHTS)
    with pytest.raises(ValueError, match=r"answer: expected an array of 88 entries, .*; found shape \(83,\)"):
        rows.own(np.zeros(83))


LAWS = {
    "GMM": (jaxem.GMM(2, "diag"), cases.ROWS),
    "KMeans": (jaxem.KMeans(2), cases.ROWS),
    "BayesianGMM": (jaxem.BayesianGMM(2, "diag"), cases.ROWS),
    "HMM": (jaxem.HMM(jaxem.families.Gaussian("diag"), 2), jaxem.sequences(cases.SEQUENCES)),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_contract_holds_on_a_mesh(name):
    model, data = LAWS[name]
    found = check_model(jaxem.sharded(model), data, key=KEY, num_starts=2)
    assert [law.split(" ")[0] for law in found] == list(CHECKS)


KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def communication(text):
    """Of each computation of a compiled program the shapes of what is sent, by kind."""
    found, body = {}, ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and "{" in line:
            body = line.split(" ")[0].lstrip("%")
        kind = re.search(
            r"= (.+?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(", line
        )
        if kind:
            found.setdefault(body, []).append((kind[2], kind[1]))
    return found


def sizes(sent):
    """Numbers in each array that is sent."""
    dims = [re.findall(r"\w+\[([\d,]*)\]", shapes) for _, shapes in sent]
    return [int(np.prod([int(n) for n in dim.split(",") if n])) for each in dims for dim in each]


PROGRAMS = {
    "GMM": (jaxem.GMM(2), None),
    "KMeans": (jaxem.KMeans(3, init_size=5000), jaxem.EM()),
    "BayesianGMM": (jaxem.BayesianGMM(2), None),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_step_is_one_all_reduce_and_no_row_is_gathered(name):
    model, algorithm = PROGRAMS[name]
    given = {"params": None, "weights": None, "algorithm": algorithm, "stop": None, "max_steps": 3}
    given |= {"num_restarts": 2, "restart_batch": None, "screen": None}
    problem, _ = _fit.prepare(model, jaxem.shard_data(cases.MANY), KEY, *given.values())
    begun = dataclasses.replace(problem, algorithm=None, stop=None, screen=None, max_steps=0, lanes=1, last=np.int32(0))
    bound = _table._draw.lower(begun).compile().as_text()
    table = _table.begin(problem, *_table.draw(problem))
    loop = _table.advance.lower(problem.in_loop, table, np.int32(3)).compile().as_text()
    sent = communication(loop)
    inside = [kind for body, each in sent.items() if body != "ENTRY" for kind, _ in each]
    assert inside == ["all-reduce"]
    assert all(kind == "all-reduce" for kind, _ in sent.get("ENTRY", []))
    most = model.init_size * cases.MANY.shape[1]  # of the rows that a start looks at
    assert most < cases.MANY.size
    for each in (*sent.values(), *communication(bound).values()):
        assert max(sizes(each)) <= most
        assert all(max(sizes([one])) <= 8 * 16 for one in each if one[0] != "all-reduce")


BAD = {
    "more devices": (lambda: jaxem.shard_data(cases.ROWS, mesh=9), ValueError, "mesh: expected 1 to 8 devices"),
    "no devices": (lambda: jaxem.sharded(jaxem.GMM(2), 0), ValueError, "mesh: expected 1 to 8 devices"),
    "no mesh": (lambda: jaxem.sharded(jaxem.GMM(2), "rows"), TypeError, "mesh: expected a jax.sharding.Mesh"),
    "no E-step": (
        lambda: jaxem.sharded(jaxem.VAE(mlp(2), mlp(2), latent_dim=1), 8),
        TypeError,
        "model: expected a model with an e_step",
    ),
    "weights twice": (
        lambda: jaxem.fit(jaxem.GMM(2), jaxem.shard_data(cases.ROWS), key=KEY, weights=cases.WEIGHTS),
        ValueError,
        "weights: expected None, as sharded rows have theirs",
    ),
    "restarts": (
        lambda: jaxem.fit(
            jaxem.GMM(2), jaxem.shard_data(cases.ROWS, mesh=mesh_of(restarts=2)), key=KEY, num_restarts=3
        ),
        ValueError,
        'num_restarts: expected a multiple of the mesh\'s axis "restarts", 2; found 3; 4 take as long',
    ),
    "a screen": (
        lambda: jaxem.fit(
            jaxem.GMM(2),
            jaxem.shard_data(cases.ROWS, mesh=mesh_of(restarts=2)),
            key=KEY,
            num_restarts=4,
            screen=jaxem.Screen(),
        ),
        ValueError,
        'screen: expected None where the mesh has an axis "restarts"',
    ),
    "not finite": (lambda: jaxem.shard_data([[1.0], [np.nan]]), ValueError, "data: expected finite numbers; found nan"),
    "weights": (lambda: jaxem.shard_data(cases.ROWS, -cases.WEIGHTS), ValueError, "weights: expected numbers >= 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    act, error, said = BAD[name]
    with pytest.raises(error, match=re.escape(said)):
        act()


@pytest.mark.parametrize("data", [cases.ROWS, None], ids=["rows", "sharded rows"])
@pytest.mark.parametrize("inside", [False, True])
def test_chunks_are_of_the_rows_of_a_device_whatever_is_written_outermost(alone, inside, data):
    data = jaxem.shard_data(cases.ROWS) if data is None else data
    model = jaxem.chunked(jaxem.sharded(jaxem.GMM(2, "diag")), 5)
    model = model if inside else jaxem.sharded(jaxem.chunked(jaxem.GMM(2, "diag"), 5))
    fit = cases.fitted("diag", data, model=model)
    assert not any(isinstance(layer, type(jaxem.sharded(jaxem.GMM(2)))) for layer in (fit.model, fit.model.model))
    compare(cases.numbers(fit), alone("diag")[1])


WRAPPED = {
    "chunked": (jaxem.chunked(jaxem.GMM(2), 16), cases.ROWS),
    "labels": (jaxem.partly_labelled(jaxem.GMM(2)), (cases.ROWS, np.where(np.arange(cases.NUM) % 4, -1.0, cases.HALF))),
    "estimated": (
        jaxem.EmpiricalBayes(jaxem.BayesianMixture(jaxem.families.Poisson(), 2), ("prior.shape",)),
        cases.COUNTS,
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_goes_inside_for_questions_about_sharded_rows(name):
    model, data = WRAPPED[name]
    fit = jaxem.fit(model, data, key=KEY, max_steps=2)
    rows = jaxem.shard_data(data)
    expected = fit.model.e_step(fit.params, data)
    for a, b in zip(jax.tree.leaves(fit.model.e_step(fit.params, rows)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    there = model.over(rows.layout)
    assert type(there.model) is type(model)


def test_arrays_over_some_axes_of_a_mesh_need_not_suit_all():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    rows = cases.ROWS[:82]  # even, and no multiple of eight
    lying = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("a")))
    one, many = (jaxem.fit(jaxem.GMM(2), data, key=KEY, max_steps=3) for data in (rows, lying))
    np.testing.assert_allclose(many.elbo.total, one.elbo.total, rtol=1e-12)
    assert int(many.num_rows) == 82


@pytest.mark.parametrize("name", ["svi", "vae"])
def test_batches_where_restarts_are_dealt_out_as_well(alone, name):
    mesh = jax.make_mesh((2, 4), ("restarts", "rows"))
    rows, weights = cases.rows_of(name)
    fit = cases.fitted(name, jaxem.shard_data(rows, weights, mesh), num_restarts=2)
    compare(cases.numbers(fit), alone(name, num_restarts=2)[1])
