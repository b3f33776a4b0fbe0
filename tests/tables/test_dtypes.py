"""Columns of rarer dtypes come back as they went in, from a model and from its file."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import diffeo
from diffeo.report import write_report

RNG = np.random.default_rng(0)
NUMBERS, LETTERS, DAYS = (
    RNG.normal(size=300),
    RNG.choice(["a", "b"], 300),
    pd.Timestamp("2024-01-01") + pd.to_timedelta(RNG.integers(0, 90, 300), "D"),
)
COLUMNS = {
    "Arrow text": pd.Series(LETTERS).astype(pd.ArrowDtype(pa.string())),
    "text held by Python": pd.Series(LETTERS).astype(pd.StringDtype("python")),
    "Arrow dictionary": pd.Series(LETTERS).astype(pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))),
    "Arrow date": pd.Series(DAYS.date).astype(pd.ArrowDtype(pa.date32())),
    "Arrow decimal": pd.Series(NUMBERS.round(2)).astype(pd.ArrowDtype(pa.decimal128(10, 2))),
    "sparse numbers": pd.Series(pd.arrays.SparseArray(np.where(NUMBERS < 0.5, 0.0, NUMBERS), fill_value=0.0)),
    "sparse integers": pd.Series(pd.arrays.SparseArray((NUMBERS > 0.5) * np.arange(300) % 40)),
    "sparse, nothing left out": pd.Series(pd.arrays.SparseArray(np.exp(NUMBERS))),
    "categories of spans": pd.Series(pd.to_timedelta(RNG.integers(1, 4, 300), "h")).astype("category"),
    "categories of months": pd.Series(DAYS).dt.to_period("M").astype("category"),
    "another byte order": pd.Series(np.exp(NUMBERS).astype(">f8")),
    "integers of another byte order": pd.Series((np.arange(300) % 50).astype(">i4")),
    "categories of dates": pd.Series(DAYS).dt.to_period("M").dt.to_timestamp().astype("category"),
    "categories of objects": pd.Series(LETTERS.astype(object)).astype(
        pd.CategoricalDtype(pd.Index(["b", "a"], dtype=object))
    ),
    "categories of text held by Python": pd.Series(LETTERS).astype(pd.StringDtype("python")).astype("category"),
    "categories of Arrow text": pd.Series(LETTERS).astype(pd.ArrowDtype(pa.string())).astype("category"),
    "categories of small numbers": pd.Series(np.arange(300) % 4).astype("int8").astype("category"),
    "categories of single precision": pd.Series(np.arange(300) % 4 / 2).astype("float32").astype("category"),
    "categories of nullable numbers": pd.Series(np.arange(300) % 4).astype("Int64").astype("category"),
    "categories of intervals": pd.cut(pd.Series(NUMBERS), 3),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_rarer_dtypes_come_back(kind, tmp_path):
    table = pd.DataFrame({"x": COLUMNS[kind], 7: NUMBERS})
    model = diffeo.fit_table(table, recipe="gaussian", steps=2, progress=False)
    diffeo.save(model, tmp_path / "m.safetensors")
    for m in (model, diffeo.load(tmp_path / "m.safetensors")):
        drawn = m.sample(30, seed=0)
        assert drawn["x"].dtype == table["x"].dtype
        assert repr(drawn["x"].dtype) == repr(table["x"].dtype)  # how text is held counts, too
        if "categories" in kind:
            assert repr(drawn["x"].cat.categories.dtype) == repr(table["x"].cat.categories.dtype)
        assert drawn["x"].notna().all()
        assert np.isfinite(m.log_prob(table)).all()
        assert np.isfinite(m.log_prob(drawn)).all()
        assert m.explain(table[:3]).shape == (3, 2)
    if "Arrow text" in kind or "categories" in kind or "dictionary" in kind:
        assert set(drawn["x"].astype(object)) <= set(table["x"].astype(object))


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_given_column_of_a_rarer_dtype(kind, tmp_path):
    table = pd.DataFrame({"x": NUMBERS, "g": COLUMNS[kind]})
    model = diffeo.fit_table(table, given=["g"], vocabulary=table, recipe="gaussian", steps=2, progress=False)
    drawn = model.sample(5, {"g": table["g"].iloc[0]})
    assert drawn["g"].dtype == table["g"].dtype
    assert (drawn["g"].astype(object) == table["g"].iloc[0]).all()
    assert len(model.sample(300, table[["g"]])) == 300


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(NUMBERS.astype(complex)),
        pd.Series(NUMBERS.astype(">c16")),
        pd.Series(pd.arrays.ArrowExtensionArray(pa.array([[1], [2]] * 150))),
        pd.Series(pd.arrays.ArrowExtensionArray(pa.array([{"a": 1}, {"a": 2}] * 150))),
        pd.Series(pd.arrays.ArrowExtensionArray(pa.array(["a", "b"] * 150, type=pa.string_view()))),
        pd.Series(pd.arrays.ArrowExtensionArray(pa.array([b"a", b"b"] * 150))),
        pd.Series(pd.arrays.ArrowExtensionArray(pa.array([b"a", b"b"] * 150, type=pa.binary_view()))),
        pd.Series(pd.arrays.ArrowExtensionArray(pa.array([(1, 2, 3)] * 300, type=pa.month_day_nano_interval()))),
    ],
    ids=["complex", "other byte order", "lists", "structs", "string views", "bytes", "byte views", "spans"],
)
@pytest.mark.parametrize("missing", ["error", "drop"])
def test_dtypes_without_a_density_are_named(values, missing):
    table = pd.DataFrame({"x": values, "y": NUMBERS})
    with pytest.raises(ValueError, match=r"column 'x': .* is not supported"):
        diffeo.fit_table(table, missing=missing, recipe="gaussian", steps=2, progress=False)


def test_a_report_of_rarer_dtypes(tmp_path):
    table = pd.DataFrame({name: COLUMNS[name] for name in ("Arrow date", "Arrow decimal", "categories of months")})
    model = diffeo.fit_table(table, recipe="gaussian", steps=2, progress=False)
    write_report(model, table, tmp_path / "r.html")
    assert "Arrow date" in (tmp_path / "r.html").read_text()


def test_decimals_stay_within_their_precision():
    table = pd.DataFrame({"x": pd.Series(NUMBERS.round(2)).astype(pd.ArrowDtype(pa.decimal128(3, 2)))})
    model = diffeo.fit_table(table, recipe="gaussian", steps=2, progress=False)
    drawn = model.sample(500, temperature=8.0, seed=0)["x"].astype(float)
    assert 9.0 < drawn.abs().max() < 10.0


@pytest.mark.parametrize(
    "levels",
    [
        [datetime.date(2024, 1, 1), datetime.timedelta(1)],
        [pd.Period("2024-01", "M"), pd.Period("2024", "Y")],
        [(1, 2), (3, 4)],
    ],
)
def test_categories_that_no_file_holds_are_named(levels):
    table = pd.DataFrame(
        {"x": pd.Categorical([levels[i % 2] for i in range(40)], pd.Index(levels, tupleize_cols=False))}
    )
    with pytest.raises(ValueError, match="column 'x': categories such as"):
        diffeo.fit_table(table, recipe="gaussian", steps=2, progress=False)


def test_a_sparse_column_of_dates_is_kept(tmp_path):
    days = pd.Series(pd.arrays.SparseArray(DAYS.to_numpy(), fill_value=pd.Timestamp("2024-01-01")))
    model = diffeo.fit_table(pd.DataFrame({"x": days}), recipe="gaussian", steps=2, progress=False)
    diffeo.save(model, tmp_path / "m.safetensors")
    assert diffeo.load(tmp_path / "m.safetensors").sample(5)["x"].dtype == days.dtype
