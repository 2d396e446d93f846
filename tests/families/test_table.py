"""Tables of mixed type: the rule by which columns get families, codes that stay, and what is refused."""

import jax
import numpy as np
import pytest

import jaxem
from jaxem.families import Bernoulli, Categorical, Gaussian, Poisson, Product, from_frame

pandas = pytest.importorskip("pandas")

KEY = jax.random.key(0)
NUM = 80
RNG = np.random.default_rng(0)
OLD = np.arange(NUM) % 2
FRAME = pandas.DataFrame(
    {
        "age": 20 + 40 * OLD + 3 * RNG.normal(size=NUM),
        "city": np.where(RNG.random(NUM) < 0.2 + 0.6 * OLD, "Rome", "Bonn"),
        "grade": pandas.Categorical(np.where(OLD, "hi", "lo"), categories=["lo", "mid", "hi"], ordered=True),
        "visits": RNG.poisson(2 + 6 * OLD),
        "member": OLD.astype(bool),
        "flag": RNG.integers(0, 2, NUM),
        "id": [f"u{i}" for i in range(NUM)],
    }
)
ASKED = {"visits": Poisson(), "id": None}


@pytest.fixture(scope="module")
def fit():
    return jaxem.fit(jaxem.Mixture(from_frame(FRAME, ASKED), 2), FRAME, key=KEY, max_steps=20)


def others():
    """The same table in other libraries, by name."""
    polars, arrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    lists = {name: FRAME[name].astype(str if name == "grade" else FRAME[name].dtype).to_list() for name in FRAME}
    enum = polars.col("grade").cast(polars.Enum(["lo", "mid", "hi"]))
    categorical = polars.col("city").cast(polars.Categorical)
    return {
        "polars": polars.DataFrame(lists).with_columns(enum, categorical),
        "pyarrow": arrow.Table.from_pandas(FRAME, preserve_index=False),
        "pandas, nullable": FRAME.convert_dtypes(),
        "pandas, objects": FRAME.astype({"city": object, "grade": object}),
    }


def parts(family):
    return {group.key: group.names for group in family.groups}


def test_columns_get_families_by_their_type():
    family = from_frame(FRAME, ASKED)
    assert isinstance(family, Product)
    expected = {
        "visits": ("visits",),
        "numbers": ("age",),
        "binary": ("member", "flag"),
        "categories": ("city", "grade"),
    }
    assert parts(family) == expected
    kinds = {"visits": Poisson, "numbers": Gaussian, "binary": Bernoulli, "categories": Categorical}
    assert {key: type(part) for key, part in family.families.items()} == kinds
    assert family.families["categories"].num_levels == (2, 3)  # "mid" is declared
    assert family.groups[-1].levels == (("Bonn", "Rome"), ("lo", "mid", "hi"))
    assert parts(from_frame(FRAME[["age", "visits"]])) == {"numbers": ("age", "visits")}  # whole numbers are numbers


def test_the_rule_may_be_overridden_by_column():
    asked = {("age", "visits"): Gaussian("full"), "flag": "category", "member": "number", "id": None, "city": None}
    family = from_frame(FRAME, asked)
    assert parts(family) == {"age+visits": ("age", "visits"), "numbers": ("member",), "categories": ("grade", "flag")}
    assert family.groups[-1].levels[1] == (0, 1)
    assert family.left_out == ("id", "city")
    clash = FRAME[["age", "visits"]].rename(columns={"visits": "numbers"})
    assert parts(from_frame(clash, {"numbers": Poisson()})) == {"numbers": ("numbers",), "numbers_": ("age",)}
    coded = from_frame(FRAME[["flag", "city"]], {"flag": Categorical((3,)), "city": Categorical((2,))})
    assert [group.levels for group in coded.groups] == [(None,), (("Bonn", "Rome"),)]


def test_a_fit_is_that_of_the_product_of_arrays(fit):
    arrays = {
        "visits": FRAME[["visits"]].to_numpy(float),
        "numbers": FRAME[["age"]].to_numpy(),
        "binary": FRAME[["member", "flag"]].to_numpy(float),
        "categories": np.stack([(FRAME["city"] == "Rome") * 1, FRAME["grade"].cat.codes], 1),
    }
    plain = Product(from_frame(FRAME, ASKED).families)
    same = jaxem.fit(jaxem.Mixture(plain, 2), arrays, key=KEY, max_steps=20)
    np.testing.assert_array_equal(same.trace, fit.trace)
    np.testing.assert_array_equal(same.log_prob(arrays), fit.log_prob(FRAME))
    np.testing.assert_array_equal(fit.predict(arrays), fit.predict(FRAME))  # as `sample` draws them


@pytest.mark.parametrize("name", ["polars", "pyarrow", "pandas, nullable", "pandas, objects"])
def test_frames_of_any_library_in_any_order_get_the_same_codes(fit, name):
    table = others()[name]
    expected = np.asarray(fit.log_prob(FRAME))
    np.testing.assert_array_equal(fit.log_prob(table), expected)
    columns = ["flag", "grade", "visits", "city", "member", "age"]  # without the one that is left out
    shuffled = table.select(columns) if hasattr(table, "select") else table[columns]
    np.testing.assert_array_equal(fit.log_prob(shuffled), expected)
    found = from_frame(table, ASKED)
    assert parts(found) == parts(from_frame(FRAME, ASKED))
    few = table[:5] if name != "pyarrow" else table.slice(0, 5)  # where not all categories are seen
    np.testing.assert_allclose(fit.log_prob(few), expected[:5])


def test_every_function_and_wrapper_takes_the_frame(fit, tmp_path):
    assert float(jaxem.bic(fit, FRAME)) < float(jaxem.bic(fit, FRAME, weights=np.full(NUM, 2.0)))
    jaxem.icl(fit, FRAME), jaxem.aic(fit, FRAME)
    family = from_frame(FRAME, ASKED)
    wrapped = jaxem.partly_labelled(jaxem.chunked(jaxem.Mixture(family, 2), 30))
    labelled = jaxem.fit(wrapped, (FRAME, np.where(np.arange(NUM) < 9, OLD, -1)), key=KEY, max_steps=3)
    assert (np.asarray(labelled.predict(FRAME)) == OLD).mean() > 0.95
    chain = jaxem.fit(jaxem.HMM(family, 2), [FRAME, FRAME[:30]], key=KEY, max_steps=3)
    assert [len(path) for path in chain.predict([FRAME[:7], FRAME])] == [7, NUM]
    for kept in (fit, chain):
        jaxem.save(kept, tmp_path / "fit.npz")
        again = jaxem.load(tmp_path / "fit.npz")
        np.testing.assert_array_equal(again.predict(FRAME), kept.predict(FRAME))
    assert set(fit.feature_names) == {"age", "visits", "city", "grade", "member", "flag"}


def test_a_table_of_components_has_the_categories_by_name(fit):
    table = fit.to_frame()
    expected = [
        "rate[visits]",
        "mean[age]",
        "std[age]",
        "prob[member]",
        "prob[flag]",
        "prob[city=Bonn]",
        "prob[city=Rome]",
    ]
    assert list(table)[1:8] == expected
    assert list(table)[8:] == ["prob[grade=lo]", "prob[grade=mid]", "prob[grade=hi]"]
    np.testing.assert_allclose(table.filter(like="grade").sum(axis=1), 1)
    first = np.asarray(fit.posterior(FRAME))[:, 0]
    np.testing.assert_allclose(
        table.loc[0, "prob[grade=hi]"], first @ (FRAME["grade"] == "hi") / first.sum(), atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"city": "Oslo"},
            r"data\['city'\]: expected the categories of the family, 'Bonn', 'Rome'; found 'Oslo' in row 0",
        ),
        ({"grade": None}, r"data\['grade'\]: expected a category in each row; found none in row 0; fill it in"),
        ({"more": 1}, "data: expected a frame of the columns .*; found one with 'more'"),
        ({"age": np.nan}, r"data\['numbers'\]: expected finite numbers; found nan in row 0, column 'age'"),
        ({"flag": 3}, "data.*expected"),
        ({"visits": "many"}, "expected numbers; found text, 'many' in row 0"),
    ],
)
def test_later_frames_are_held_against_the_first(fit, change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fit.predict(FRAME.assign(**change))


def test_what_is_no_frame_or_lacks_a_column_is_named(fit):
    with pytest.raises(ValueError, match="data: expected a frame of the columns .*; found one without 'city'"):
        fit.predict(FRAME.drop(columns="city"))
    with pytest.raises(TypeError, match="data: expected a data frame of pandas, polars or pyarrow, as the family was"):
        fit.predict(FRAME.to_numpy())
    with pytest.raises(TypeError, match="found text, 'Bonn' in row 0; of tables with text jaxem.families.from_frame"):
        jaxem.fit(jaxem.GMM(2), FRAME, key=KEY)


@pytest.mark.parametrize(
    ("frame", "families", "error", "message"),
    [
        (
            FRAME.to_numpy(),
            None,
            TypeError,
            "frame: expected a data frame of pandas, polars or pyarrow; found an array",
        ),
        (FRAME[[]], None, ValueError, "frame: expected columns, each of another name; found none"),
        (FRAME[["age", "age"]], None, ValueError, "frame: expected columns, each of another name; found one twice"),
        (FRAME, ["age"], TypeError, "families: expected a dict by columns"),
        (FRAME, {"vists": Poisson()}, ValueError, "families: expected columns of the frame, 'age', .*; found 'vists'"),
        (FRAME, {"age": "real"}, TypeError, r"families\['age'\]: expected a family, .*; found 'real'"),
        (FRAME, {("age", "flag"): Gaussian(), "age": None}, ValueError, "expected each column once; found 'age' twice"),
        (
            FRAME,
            {"city": "number"},
            TypeError,
            r"frame\['city'\]: expected numbers; found text.*families={'city': None}",
        ),
        (FRAME[["age"]], {"age": None}, ValueError, "expected at least one column that is not left out"),
        (FRAME.assign(city="Rome"), None, ValueError, "expected at least two categories; found 'Rome' in all rows"),
        (
            FRAME.assign(day=pandas.Timestamp("2020-01-01")),
            None,
            TypeError,
            r"frame\['day'\]: expected real numbers; .*date",
        ),
        (FRAME.assign(city=["x", None] * 40), None, ValueError, r"frame\['city'\]: expected a category .* in row 1"),
    ],
)
def test_bad_frames_and_overrides_are_named(frame, families, error, message):
    with pytest.raises(error, match=message):
        from_frame(frame, families)


def test_names_of_rows_are_noticed():
    with pytest.warns(UserWarning, match=r"frame\['id'\]: 80 categories in 80 rows, which look like names of the rows"):
        from_frame(FRAME)
