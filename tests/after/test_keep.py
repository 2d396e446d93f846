"""Fits kept in files: the same answers in another process, what is refused, and what a file may not do."""

import copy
import dataclasses
import io
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
import warnings
import zipfile

import jax
import jax.numpy as jnp
import kept
import numpy as np
import pytest
from test_contract import BITS, CASES, RATES

import jaxem
from jaxem import families
from jaxem.core import archive
from jaxem.core.named import find
from jaxem.networks import mlp

KEY = jax.random.key(0)
REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
TABLE = {"size": RATES[:, :1] / 3, "visits": RATES[:, 1:], "kind": (RATES[:, :1] > 4).astype(float)}
PRODUCT = families.Product(
    {"size": families.Gaussian("diag"), "visits": families.Poisson(), "kind": families.Categorical((2,))}
)
MORE = {
    "Product": (jaxem.Mixture(PRODUCT, 2), TABLE),
    "BayesianGMM": (jaxem.BayesianGMM(3, "full", mixing="dirichlet_process", concentration=0.5), RATES),
    "StudentT": (jaxem.Mixture(families.StudentT(), 2), RATES),
    "VAE, tanh": (jaxem.VAE(mlp(3, 2, activation=jnp.tanh), mlp(3, activation=jax.nn.gelu), latent_dim=1), BITS),
}


def models():
    """(model, data, algorithm) by name: of the contract each model once, and more."""
    seen, found = [], {}
    for name, (model, data, algorithm, _) in CASES.items():
        if not any(model is other for other in seen):
            seen.append(model)
            found[re.sub(r"\W+", "_", name)] = (model, data, algorithm)
    return found | {re.sub(r"\W+", "_", name): (*case, None) for name, case in MORE.items()}


@pytest.fixture(scope="module")
def fits(blobs):
    found = {}
    for name, (model, data, algorithm) in models().items():
        data = blobs if isinstance(data, str) else data
        found[name] = jaxem.fit(model, data, key=KEY, algorithm=algorithm, max_steps=2), data
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_every_model_answers_the_same_bits_in_another_process(fits, tmp_path):
    for name, (fit, _) in fits.items():
        jaxem.save(fit, tmp_path / f"{name}.npz")
        kept_optimizer = fit if name != "EmpiricalBayes" else without_optimizer(fit)
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(kept_optimizer))
    (tmp_path / "data.pickle").write_bytes(pickle.dumps({name: data for name, (_, data) in fits.items()}))
    here = pathlib.Path(__file__).parent
    places = [str(pathlib.Path(jaxem.__file__).parents[1]), *(str(here.parent / part) for part in ("", "models"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places)}
    done = subprocess.run([sys.executable, here / "kept.py", tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = pickle.loads((tmp_path / "answers.pickle").read_bytes())
    for name, (fit, data) in fits.items():
        expected = kept.answers(fit, data)
        assert len(expected) > 3
        for found in told[name]:  # of the file, and of the pickle
            assert_same(found, expected)
        assert_same(kept.answers(copy.deepcopy(fit), data), expected)


def without_optimizer(fit):
    """The fit of `EmpiricalBayes` without optax's closures, which cannot be pickled either."""
    return dataclasses.replace(fit, model=dataclasses.replace(fit.model, optimizer=None))


@pytest.mark.parametrize("name", models())
def test_a_fit_comes_back_as_it_was(fits, name, tmp_path):
    fit, _ = fits[name]
    jaxem.save(fit, tmp_path / "fit.npz")
    again = jaxem.load(tmp_path / "fit.npz")
    expected = without_optimizer(fit) if name == "EmpiricalBayes" else fit
    found = without_optimizer(again) if name == "EmpiricalBayes" else again
    assert jax.tree.structure(found) == jax.tree.structure(expected)  # so that no program is compiled anew
    assert found.model.rows == expected.model.rows
    leaves = lambda tree: [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    assert_same(leaves(found), leaves(expected))
    assert all(map(isinstance, jax.tree.leaves(found), map(type, jax.tree.leaves(expected))))
    jaxem.save(again, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "fit.npz").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small saved fit: its fit, path, text and arrays."""
    fit = jaxem.fit(jaxem.GMM(2, "diag"), RATES, key=KEY, max_steps=1)
    path = tmp_path_factory.mktemp("whole") / "fit.npz"
    jaxem.save(fit, path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    return fit, path, members


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a member twice
        for name, content in members.items() if isinstance(members, dict) else members:
            out.writestr(name, content)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def edited(change, summed=True):
    """A damage: the text changed as an object, with or without its checksum put right."""

    def damage(members):
        head = json.loads(members["fit.json"])
        change(head)
        if summed:
            head["checksum"] = archive.digest(archive._canonical(head))
        return zipped(members | {"fit.json": json.dumps(head)})

    return damage


def replaced(name, raw):
    """A damage that somebody meant: an array changed together with both checksums."""

    def damage(members):
        head = json.loads(members["fit.json"])
        head["members"][name] = archive.digest(raw)
        head["checksum"] = archive.digest(archive._canonical(head))
        return zipped(members | {name: raw, "fit.json": json.dumps(head)})

    return damage


def flipped(name):
    """A damage: one bit in the middle of a member."""

    def damage(members):
        raw = bytearray(zipped(members))
        raw[raw.index(members[name]) + len(members[name]) // 2] ^= 4
        return bytes(raw)

    return damage


def without(members, *names):
    return {name: raw for name, raw in members.items() if name not in names}


def held(head, *names):
    """The node of a part of the fit, by the names that lead to it."""
    node = head["fit"]
    for name in names:
        node = dict(node["holds"])[name]
    return node


def drop(node, name):
    node["holds"] = [pair for pair in node["holds"] if pair[0] != name]


MIXING = "params.mixing.npy"
DAMAGES = {
    "empty": (lambda m: b"", "an empty file"),
    "text": (lambda m: b"mixing,0.5,0.5\n", "no archive .it begins with b'mixing"),
    "pickle": (lambda m: pickle.dumps({"mixing": 0.5}), "a pickle, which is not read"),
    "one array": (lambda m: npy(np.ones(3)), "one array of NumPy"),
    "foreign npz": (
        lambda m: zipped({"x.npy": npy(np.ones(3))}),
        "of something else: it holds x, and no fit",
    ),
    "empty archive": (lambda m: zipped({}), "an archive of something else: it holds nothing"),
    "half": (lambda m: zipped(m)[: len(zipped(m)) // 2], "a truncated file"),
    "last byte gone": (lambda m: zipped(m)[:-1], "a truncated file"),
    "first bytes gone": (lambda m: zipped(m)[100:], "damaged file|no archive|truncated"),
    "a bit of an array": (flipped(MIXING), "damaged file: its array params.mixing cannot be read .Bad CRC"),
    "a bit of the text": (flipped("fit.json"), "damaged file: its fit.json cannot be read .Bad CRC"),
    "another array": (lambda m: zipped(m | {MIXING: npy(np.ones(2))}), "array params.mixing .* by its checksum"),
    "array gone": (lambda m: zipped(without(m, MIXING)), "a damaged file: without params.mixing.npy"),
    "two arrays gone": (lambda m: zipped(without(m, MIXING, "trace.npy")), "without params.mixing.npy, trace.npy"),
    "one array more": (lambda m: zipped(m | {"y.npy": npy(np.ones(2))}), "with y.npy, which it was not written with"),
    "an array twice": (lambda m: zipped([*m.items(), (MIXING, m[MIXING])]), "a damaged file: with a member twice"),
    "another shape": (replaced(MIXING, npy(np.ones(3))), r"fit.params.mixing: expected an array float64\(2,\); found"),
    "another dtype": (replaced(MIXING, npy(np.ones(2, np.float32))), r"expected an array float64\(2,\); found float32"),
    "objects": (replaced(MIXING, npy(np.array([{}, 1], object))), "array params.mixing cannot be read .Object arrays"),
    "no array": (replaced(MIXING, b"mixing"), "array params.mixing cannot be read"),
    "a text edited": (edited(lambda h: h.update(jax="9"), summed=False), "fit.json is not as it was written"),
    "no checksum": (edited(lambda h: h.pop("checksum"), summed=False), "fit.json is not as it was written"),
    "half a text": (
        lambda m: zipped(m | {"fit.json": m["fit.json"][:200]}),
        "damaged file: its fit.json cannot be read",
    ),
    "a list": (
        lambda m: zipped(m | {"fit.json": b"[1]"}),
        "something else: its fit.json holds no object",
    ),
    "no members": (edited(lambda h: h.pop("members")), "its fit.json lists no members"),
    "another format": (edited(lambda h: h.update(format="other")), "something else, by its format 'other'"),
    "newer": (edited(lambda h: h.update(layout=2, jaxem="9.1")), "of jaxem 9.1, of layout 2; this is jaxem .* newer"),
    "no layout": (edited(lambda h: h.update(layout="1")), "a damaged file: its layout is '1'"),
    "no fit": (edited(lambda h: h.pop("fit")), "expected arrays that it holds"),
    "a bare list": (edited(lambda h: h.update(fit=[1, 2])), "fit: expected what jaxem.save writes"),
    "another tag": (edited(lambda h: h.update(fit={"pickle": "gAR9lC4="})), "fit: expected what jaxem.save writes"),
    "a field more": (
        edited(lambda h: h["fit"]["holds"].append(["a", 1])),
        "found a as well; it was written",
    ),
    "a field gone": (edited(lambda h: drop(held(h, "params"), "components")), "params: expected the field components"),
    "an array unknown": (
        edited(lambda h: held(h, "winner").update(array="w")),
        "an array called w; found none",
    ),
    "an array unused": (
        edited(lambda h: (held(h, "params").clear(), held(h, "params").update({"tuple": []}))),
        "expected arrays that it holds; found params.components.mean",
    ),
    "a class unknown": (
        edited(lambda h: held(h, "model").update(object="jaxem.models.mixture:G")),
        "this version",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_with_what_is_wrong(whole, name, tmp_path):
    damage, expected = DAMAGES[name]
    path = tmp_path / "fit.npz"
    path.write_bytes(damage(whole[2]))
    with pytest.raises(ValueError, match=f"^path: expected a fit that jaxem.save wrote; found {path}, .*({expected})"):
        jaxem.load(path)


def test_no_byte_of_a_file_may_change_without_notice(whole, tmp_path):
    # What no checksum is over are names and dates of the zip itself: then the fit is still the fit.
    fit, path, _ = whole
    raw, silent = path.read_bytes(), 0
    for place in np.random.default_rng(0).choice(len(raw), 150, replace=False):
        changed = bytearray(raw)
        changed[place] ^= 1 << int(place) % 8
        (tmp_path / "fit.npz").write_bytes(changed)
        try:
            again = jaxem.load(tmp_path / "fit.npz")
        except ValueError:
            continue
        silent += 1
        assert_same(
            [np.asarray(leaf) for leaf in jax.tree.leaves(again)], [np.asarray(a) for a in jax.tree.leaves(fit)]
        )
    assert silent < 50


def test_a_checkpoint_of_a_running_fit_is_named(tmp_path):
    jaxem.fit(jaxem.GMM(2, "diag"), RATES, key=KEY, max_steps=1, checkpoint=tmp_path / "run.npz")
    with pytest.raises(ValueError, match="found .*run.npz, the checkpoint of a fit, which jaxem.fit"):
        jaxem.load(tmp_path / "run.npz")
    with pytest.raises(FileNotFoundError):
        jaxem.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "name",
    [
        *("os:system", "subprocess:run", "builtins:eval", "jax.numpy:load", "jaxem.core.archive:os.remove"),
        *("jaxem.core.archive:write", "jaxem.after.keep:save", "functools:partial", "numpy:load", "antigravity:x"),
    ],
)
@pytest.mark.parametrize("tag", ["name", "object", "made", "namedtuple", "enum"])
def test_a_file_cannot_name_what_could_run(whole, name, tag, tmp_path):
    def change(head):
        node = held(head, "model", "family")
        node.clear()
        node.update({tag: name, "holds": [["args", "ls"]], "items": [], "member": "a"})

    path = tmp_path / "fit.npz"
    path.write_bytes(edited(change)(whole[2]))
    before = set(sys.modules)
    with pytest.raises(ValueError, match="fit.model.family: it needs "):
        jaxem.load(path)
    assert "antigravity" not in set(sys.modules) - before


def test_a_file_is_written_whole_or_not_at_all(whole, monkeypatch, tmp_path):
    fit, *_ = whole
    path = tmp_path / "fit.npz"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError("no space left on device")

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, fail)
            with pytest.raises(OSError, match="no space"):
                jaxem.save(fit, path)
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["fit.npz"]
    (tmp_path / "link.npz").symlink_to(path)
    jaxem.save(fit, str(tmp_path / "link.npz"))
    assert (tmp_path / "link.npz").is_symlink()
    assert_same([np.load(path)["params.mixing"]], [np.asarray(fit.params.mixing)])  # NumPy reads it alone
    jaxem.load(path)


def test_64_bits_are_not_rounded_where_x64_is_off(whole):
    fit, path, _ = whole
    with jax.enable_x64(False), pytest.raises(ValueError, match="it holds float64 .* x64 mode is off; call jax.config"):
        jaxem.load(path)
    with jax.enable_x64(True):
        assert jaxem.load(path).params.mixing.dtype == np.float64
    plain = jax.tree.map(np.asarray, fit)  # NumPy's stay NumPy's
    jaxem.save(plain, path.with_name("plain.npz"))
    with jax.enable_x64(False):
        assert type(jaxem.load(path.with_name("plain.npz")).params.mixing) is np.ndarray


def scaled(values):
    return jnp.tanh(values) * 2


def local(factor):
    def inner(values, scale=1.0):
        return jnp.tanh(values * scale) * factor

    return inner


class Affine:
    """A network that is no dataclass."""

    def __init__(self, num):
        self.num = num

    def init(self, key, x):
        return jnp.zeros((x.shape[1], self.num), x.dtype)

    def apply(self, params, x):
        return x @ params


def autoencoder(activation=jnp.tanh, decoder=None):
    model = jaxem.VAE(mlp(3, 2, activation=activation), decoder or mlp(3), latent_dim=1)
    return jaxem.fit(model, BITS, key=KEY, max_steps=0)


def test_functions_and_classes_of_the_user_must_be_trusted(tmp_path):
    fit = autoencoder(scaled, Affine(3))
    path = tmp_path / "fit.npz"
    jaxem.save(fit, path)
    with pytest.raises(ValueError, match=r"fit.model.encoder.activation: it needs scaled of .* trusted=\[scaled\]"):
        jaxem.load(path)
    with pytest.raises(ValueError, match=r"fit.model.decoder.network: it needs Affine of .* trusted=\[Affine\]"):
        jaxem.load(path, trusted=[scaled])
    for trusted in ([scaled, Affine], [sys.modules[__name__]]):
        again = jaxem.load(path, trusted=trusted)
        assert again.model.encoder.activation is scaled
        assert again.model.decoder.network.num == 3
    moved = type("Affine", (), {"__module__": "elsewhere"})
    assert type(jaxem.load(path, trusted=[scaled, moved]).model.decoder.network) is moved
    for wrong in ("scaled", scaled, ["scaled"]):
        with pytest.raises(TypeError, match=r"trusted: expected a list of classes, functions or modules.*; found"):
            jaxem.load(path, trusted=wrong)


@pytest.mark.parametrize(
    ("activation", "found"),
    [(lambda x: x, "a lambda"), ((lambda f: lambda x: f(x))(jnp.tanh), "a lambda"), (np.tanh, None)],
)
def test_functions_without_a_name_are_refused_when_saving(activation, found, tmp_path):
    if found is None:
        return
    with pytest.raises(
        ValueError, match=f"fit.model.encoder.activation: expected a function .*; found {found}; define"
    ):
        jaxem.save(autoencoder(activation), tmp_path / "fit.npz")
    assert not list(tmp_path.iterdir())


def test_what_was_left_out_is_taken_from_a_model_made_again(tmp_path):
    path, make = tmp_path / "fit.npz", lambda: lambda x: x + 1
    fit = autoencoder(make())
    jaxem.save(fit, path, leave_out=True)
    with pytest.raises(ValueError, match="fit.model.encoder.activation: it needs the function <lambda>.*like=model"):
        jaxem.load(path)
    with pytest.raises(ValueError, match="fit.model.encoder.activation: it needs the function <lambda>.*like=model"):
        jaxem.load(path, like=jaxem.GMM(3))
    with pytest.raises(TypeError, match="model: expected a jaxem model"):
        jaxem.load(path, like=make)
    again = jaxem.load(path, like=autoencoder(make()).model)
    assert_same([np.asarray(again.encode(BITS).mean())], [np.asarray(fit.encode(BITS).mean())])


@jaxem.dataclass
class Layer:
    """A callable pytree, as the modules of Equinox are, with a leaf that is no parameter."""

    matrix: jax.Array
    offset: int = 1

    def __call__(self, row):
        return self.matrix @ row + self.offset


def test_a_module_comes_back_from_files_and_pickles(tmp_path):
    fit = autoencoder(decoder=Layer(jnp.ones((3, 1))))
    jaxem.save(fit, tmp_path / "fit.npz")
    for again in (jaxem.load(tmp_path / "fit.npz"), pickle.loads(pickle.dumps(fit)), copy.deepcopy(fit)):
        assert_same([np.asarray(again.reconstruct(BITS))], [np.asarray(fit.reconstruct(BITS))])
        assert jax.tree.structure(again) == jax.tree.structure(fit)


def test_modules_of_flax_and_equinox_are_kept(tmp_path):
    linen, equinox = pytest.importorskip("flax.linen"), pytest.importorskip("equinox")
    path, make = tmp_path / "fit.npz", lambda: equinox.nn.Linear(1, 3, key=KEY)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for decoder, trusted in ((linen.Dense(3), [linen]), (make(), [equinox])):
            fit = autoencoder(decoder=decoder)
            jaxem.save(fit, path)
            again = jaxem.load(path, trusted=trusted)
            assert_same([np.asarray(again.reconstruct(BITS))], [np.asarray(fit.reconstruct(BITS))])


def test_a_class_that_is_not_imported_is_named(whole, tmp_path):
    for name, remedy in (("mine:Model", "import that module"), ("numpy:Model", "which has no such name here")):
        path = tmp_path / "fit.npz"
        path.write_bytes(edited(lambda h, name=name: held(h, "model").update(object=name))(whole[2]))
        with pytest.raises(ValueError, match=rf"fit.model: it needs Model of module .*{remedy}.*trusted=\[Model\]"):
            jaxem.load(path)


def test_the_optimizer_of_a_model_is_asked_for_again(fits, tmp_path):
    fit, data = fits["EmpiricalBayes"]
    jaxem.save(fit, tmp_path / "fit.npz")
    again = jaxem.load(tmp_path / "fit.npz")
    with pytest.raises(TypeError, match="optimizer: expected an optax Grad.*; found an optax optimiser, which no file"):
        jaxem.fit(again.model, data, key=KEY)
    jaxem.fit(dataclasses.replace(again.model, optimizer=fit.model.optimizer), data, key=KEY, max_steps=2)


def test_wrong_arguments(whole, tmp_path):
    with pytest.raises(TypeError, match="fit: expected a Fit"):
        jaxem.save(3, "a")
    with pytest.raises(TypeError, match="path: expected the path of a file, as 'fit.npz'; found 3"):
        jaxem.save(whole[0], 3)
    with pytest.raises(TypeError, match="path: expected the path of a file, as 'fit.npz'; found 3"):
        jaxem.load(3)
    with pytest.raises(TypeError, match="leave_out: expected True or False; found 'yes'"):
        jaxem.save(whole[0], tmp_path / "fit.npz", leave_out="yes")
    for path in (tmp_path, tmp_path / "none" / "fit.npz"):
        with pytest.raises(ValueError, match="path: expected a file in a directory that exists; found"):
            jaxem.save(whole[0], path)


def test_a_batch_of_fits_is_kept(tmp_path):
    one = lambda key: jaxem.fit(jaxem.GMM(2, "diag"), jnp.asarray(RATES), key=key, max_steps=1)
    fits = jax.vmap(one)(jax.random.split(KEY, 2))
    jaxem.save(fits, tmp_path / "fits.npz")
    again = jaxem.load(tmp_path / "fits.npz")
    assert_same([np.asarray(again.restarts.trace)], [np.asarray(fits.restarts.trace)])
    assert repr(again) == "Fit(batch of shape (2,))"


def named_in(node):
    """The names of jaxem's classes in the JSON of a file."""
    if isinstance(node, list):
        return {name for part in node for name in named_in(part)}
    if not isinstance(node, dict):
        return set()
    own = {node[tag] for tag in ("object", "made", "namedtuple", "enum", "name") if isinstance(node.get(tag), str)}
    return own.union(*map(named_in, node.values()))


def test_files_of_this_version_will_be_read_by_later_ones(fits, tmp_path):
    # A class that moves needs a line in jaxem.core.named.MOVED; one that is new goes into kept.json as well.
    known = json.loads((REFERENCE / "kept.json").read_text())
    for name in known:
        assert find(name) is not None
    found = set()
    for fit, _ in fits.values():
        jaxem.save(fit, tmp_path / "fit.npz")
        found |= named_in(json.loads(np.load(tmp_path / "fit.npz")["fit.json"])["fit"])
    assert {name for name in found if name.startswith("jaxem.")} <= set(known)


def test_a_file_of_layout_1_is_read():
    # Written by jaxem 0.1.0 with JAX 0.10.2: a mixture of products, and what it said of its rows.
    again = jaxem.load(REFERENCE / "fit.npz")
    assert sorted(again.model.family.families) == ["kind", "size", "visits"]
    np.testing.assert_allclose(again.log_prob(TABLE), np.load(REFERENCE / "fit_log_prob.npy"), rtol=1e-9)
