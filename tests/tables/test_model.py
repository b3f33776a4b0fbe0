"""Tables: what columns are taken for, codec and density in the table's units, samples like the table, errors."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import trapezoid

import diffeo
from diffeo.tables.columns import Category, Constant, Moment, Number, from_json, learn_column, to_json
from diffeo.tables.explain import surprise
from diffeo.tables.schema import Schema, learn_schema


def _table(n: int = 600, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    return pd.DataFrame(
        {
            "real": rng.normal(size=n).astype("float32"),
            "kind": pd.Categorical.from_codes(kind, ["low", "mid", "high"], ordered=True),
            "flag": rng.random(n) < 0.3,
            "word": np.array(["a", "b"])[rng.integers(0, 2, n)],
            "size": np.exp(0.5 * rng.normal(size=n) + kind),
            "count": rng.poisson(3 + 2 * kind),
            "rounded": np.round(2 * rng.normal(size=n), 1),
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, n), "D"),
            "share": rng.beta(2, 2, n),
            "nullable": pd.array(rng.integers(10, 50, n), dtype="Int64"),
            "always": 7,
            "binary": rng.integers(0, 2, n),
        }
    )


@pytest.fixture(scope="module")
def model() -> diffeo.TableDensity:
    return diffeo.fit_table(_table(), recipe="maf", steps=60, progress=False)


def test_columns_are_recognised():
    schema, remarks = learn_schema(_table())
    assert remarks == []
    assert {c.name: c.describe() for c in schema.columns} == {
        "real": "continuous",
        "kind": "3 categories",
        "flag": "2 categories",
        "word": "2 categories",
        "size": "positive",
        "count": "whole steps of 1",
        "rounded": "whole steps of 0.1",
        "when": "date, whole days",
        "share": "bounded",
        "nullable": "whole steps of 1",
        "always": "always 7",
        "binary": "2 categories",
    }


@pytest.mark.parametrize(
    ("values", "described"),
    [
        (np.arange(100) % 7 * 5, "whole steps of 5"),
        (np.array([17.5, 22, 27, 32, 37, 42])[np.arange(100) % 6], "6 categories"),  # age groups by their midpoints
        (
            np.array([1, 2, 4, 7])[np.arange(100) % 4],
            "4 categories",
        ),  # 3, 5 and 6 never, though their neighbours are common
        (np.r_[np.arange(100) % 4, 5, 7], "whole steps of 1"),  # rare values leave gaps
        (np.arange(100) % 7 * 0.25 - 3, "whole steps of 0.25"),
        ((np.arange(100) % 7 - 3.1234567) / 1.7654321, "whole steps of 0.566434"),  # standardised integers
        (np.random.default_rng(0).normal(size=100), "continuous"),
        (np.random.default_rng(0).normal(size=100) * 1e-8, "continuous"),
        (1e7 + np.random.default_rng(0).normal(size=100), "continuous"),
        (np.random.default_rng(0).exponential(size=100), "positive"),
        (np.random.default_rng(0).normal(size=100) + 50, "continuous"),  # positive, but far from zero
        (np.round(np.random.default_rng(0).normal(size=100), 6), "continuous"),  # rounded, but no value twice
        (np.float32(np.arange(100) % 9) / np.float32(10), "whole steps of 0.1"),
    ],
)
def test_numbers_are_recognised(values, described):
    assert learn_column(pd.Series(values, name="x")).describe() == described


def test_declared_kinds():
    x = pd.Series(np.random.default_rng(0).uniform(1, 9, 200), name="x")
    assert learn_column(x, (0, 10)).describe() == "bounded"
    assert learn_column(x, "continuous").describe() == "continuous"
    upper = learn_column(x, (None, 10))
    assert isinstance(upper, Number)
    assert (upper.low, upper.high) == (None, 0.0)
    whole = pd.Series(np.arange(100) % 7, name="x")
    assert learn_column(whole, "category").describe() == "7 categories"
    assert learn_column(whole, "continuous").describe() == "continuous"
    for kind, message in (("integer", "expected a kind"), ((2, 10), "reach the bounds"), ("whole", "evenly spaced")):
        with pytest.raises(ValueError, match=message):
            learn_column(x, kind)


def test_every_column_survives_the_codec():
    table = _table()
    schema, _ = learn_schema(table)
    back = schema.decode(schema.encode(table))
    assert back.dtypes.equals(table.dtypes)
    assert list(back.columns) == list(table.columns)
    for name in table.columns:
        if pd.api.types.is_float_dtype(table[name].dtype):
            assert np.allclose(back[name], table[name], rtol=1e-6), name
        else:
            assert (back[name] == table[name]).all(), name
    assert Schema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Rome"])
@pytest.mark.parametrize("step", ["h", "min", "ns"])
def test_times_survive_the_codec(zone, step):
    rng = np.random.default_rng(0)
    moments = pd.Timestamp("2024-03-30", tz=zone) + pd.to_timedelta(rng.integers(0, 60, 200), step)
    values = pd.Series(moments, name="t")
    column = learn_column(values)
    assert isinstance(column, Moment)
    again = from_json(to_json(column))
    assert isinstance(again, Moment)
    back = again.decode(again.encode(values))
    assert back.dtype == values.dtype
    assert (back == values).all()


def test_midnights_of_a_time_zone_are_days():
    days = pd.date_range("2024-03-01", periods=200, freq="D", tz="Europe/Berlin")  # the clock changes within
    values = pd.Series(days, name="t").sample(150, replace=True, random_state=0).reset_index(drop=True)
    column = learn_column(values)
    assert column.describe() == "date, whole days"
    assert isinstance(column, Moment)
    assert (column.decode(column.encode(values)) == values).all()
    assert (column.encode(values.dt.tz_convert("UTC")) == column.encode(values)).all()
    with pytest.raises(ValueError, match="time zone"):
        column.encode(values.dt.tz_localize(None))


def test_samples_look_like_the_table(model):
    table, samples = _table(), model.sample(2000, seed=1)
    assert samples.dtypes.equals(table.dtypes)
    assert (samples["size"] > 0).all()
    assert (samples["count"] >= 0).all()
    assert samples["share"].between(0, 1).all()
    for name in ("real", "size", "count", "rounded", "share", "nullable"):  # beyond the table's own, as the density is
        for q in (0.05, 0.5, 0.95):
            within = (samples[name].astype(float) <= table[name].quantile(q)).mean()
            assert abs(within - (table[name] <= table[name].quantile(q)).mean()) < 0.1, (name, q)
    assert list(samples["kind"].cat.categories) == ["low", "mid", "high"]
    assert samples["kind"].cat.ordered
    assert (samples["always"] == 7).all()
    assert np.allclose(samples["rounded"] * 10, np.rint(samples["rounded"] * 10))
    assert model.sample(5, seed=3).equals(model.sample(5, seed=3))
    assert not model.sample(5, seed=3).equals(model.sample(5, seed=4))


def test_a_row_alone_scores_as_among_others(model):
    table = _table(50, seed=2)
    every = model.log_prob(table)
    assert every.index.equals(table.index)
    shuffled = table.sample(frac=1.0, random_state=0)
    assert np.abs(model.log_prob(shuffled).loc[table.index] - every).max() < 1e-9
    assert abs(model.log_prob(table.iloc[[7]]).iloc[0] - every.iloc[7]) < 1e-9
    assert not model.exact


def test_save_and_load(model, tmp_path):
    path = tmp_path / "m.safetensors"
    diffeo.save(model, path)
    loaded = diffeo.load(path)
    assert isinstance(loaded, diffeo.TableDensity)
    table = _table(20, seed=3)
    assert np.array_equal(loaded.log_prob(table), model.log_prob(table))
    assert loaded.sample(5, seed=0).equals(model.sample(5, seed=0))
    assert 0 <= loaded.percentile(loaded.log_prob(table)).min() <= 100
    assert repr(loaded).startswith("TableDensity(real: continuous, kind: 3 categories")


def _known(n: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A table whose log-density is known: a category, a positive and a real number, both depending on it."""
    rng = np.random.default_rng(seed)
    p, mean, spread = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), np.array([0.5, 0.3, 0.7])
    k = rng.choice(3, n, p=p)
    log_size = mean[k] + spread[k] * rng.normal(size=n)
    real = 3 * log_size * (k == 1) + rng.normal(size=n)
    log_p = np.log(p[k]) - 0.5 * ((log_size - mean[k]) / spread[k]) ** 2 - np.log(spread[k]) - log_size
    log_p += -0.5 * (real - 3 * log_size * (k == 1)) ** 2 - math.log(2 * math.pi)
    table = pd.DataFrame({"kind": np.array(["x", "y", "z"])[k], "size": np.exp(log_size), "real": real})
    return table, log_p


def test_the_density_of_a_known_table():
    train, _ = _known(4000, 0)
    model = diffeo.fit_table(train, options={"layers": 2, "hidden": (32, 32)}, steps=300, seed=0, progress=False)
    assert model.exact
    test, truth = _known(4000, 1)
    log_p = model.log_prob(test).to_numpy()
    excess = truth - log_p  # its mean is the divergence of the model from the truth: at least 0, and small
    error = excess.std() / len(excess) ** 0.5
    assert -3 * error < excess.mean() < 0.06


def test_the_density_integrates_to_one_in_the_tables_units():
    train, _ = _known(500, 0)
    model = diffeo.fit_table(train[["kind", "size"]], recipe="maf", steps=50, progress=False)
    size = np.geomspace(1e-4, 1e4, 4001)
    total = 0.0
    for kind in "xyz":
        p = np.exp(model.log_prob(pd.DataFrame({"kind": kind, "size": size})).to_numpy())
        total += trapezoid(p, size)
    assert abs(total - 1) < 0.01
    counts = pd.DataFrame({"n": np.random.default_rng(0).poisson(4, 500) * 5})
    whole = diffeo.fit_table(counts, recipe="maf", steps=50, progress=False)
    p = np.exp(whole.log_prob(pd.DataFrame({"n": np.arange(0, 300, 5)}), samples=256))
    assert abs(p.sum() * 5 - 1) < 0.02  # probabilities of steps of 5, by unit of the column


def test_categories_alone():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, 3000)
    table = pd.DataFrame({"a": a.astype(str), "b": np.where(rng.random(3000) < 0.9, a, (a + 1) % 3).astype(str)})
    model = diffeo.fit_table(table, steps=400, lr=1e-2, progress=False)
    seen = table.value_counts(normalize=True)
    p = np.exp(model.log_prob(seen.index.to_frame(index=False)).to_numpy())
    assert np.abs(p - seen.to_numpy()).max() < 0.02
    assert abs(p.sum() - 1) < 0.02
    surprises = model.explain(pd.DataFrame({"a": ["0", "0"], "b": ["0", "2"]}))
    assert surprises["b"].iloc[0] < 1 < surprises["b"].iloc[1]


def test_given_columns():
    train, _ = _known(1500, 0)
    model = diffeo.fit_table(train, given=["kind"], recipe="maf", steps=150, progress=False)
    drawn = {kind: model.sample(500, {"kind": kind}, seed=0) for kind in "xz"}
    assert (drawn["z"]["kind"] == "z").all()
    assert np.log(drawn["z"]["size"]).mean() - np.log(drawn["x"]["size"]).mean() > 1.5
    rows = train.iloc[:4][["kind"]]
    assert list(model.sample(4, rows)["kind"]) == list(rows["kind"])
    assert list(model.sample(4, rows).columns) == list(train.columns)
    for given, message in (
        (None, "give values"),
        ({"size": 1.0}, "is missing"),
        ({"kind": "x", "size": 1}, "is none of them"),
        (rows, "4 rows of given"),
        ({"kind": "w"}, "never occurred"),
    ):
        with pytest.raises(ValueError, match=message):
            model.sample(3, given)
    assert list(model.explain(train.iloc[:2]).columns) == ["size", "real"]


def test_surprise_of_a_correlated_normal():
    """sⱼ = ½ (zⱼ² − 1) with zⱼ the standardised residual of xⱼ given the others: known for a normal."""
    rho = 0.95
    precision = torch.linalg.inv(torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64))
    x = torch.tensor([[0.0, 0.0], [2.0, 2.0], [1.5, -1.5]], dtype=torch.float64)

    def score(rows, context):
        return -0.5 * torch.einsum("ni,ij,nj->n", rows, precision, rows)

    known = torch.linspace(-3.5, 3.5, 33, dtype=torch.float64)
    got = surprise(score, x, None, [], [known] * 2, [(None, None)] * 2, [False, False], {})
    z = (x - rho * x.flip(1)) / (1 - rho**2) ** 0.5
    assert torch.allclose(got, 0.5 * (z * z - 1), atol=0.02)


def test_explain_names_the_odd_column():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1500)
    table = pd.DataFrame({"x": x, "twice": 2 * x + 0.1 * rng.normal(size=1500), "n": rng.poisson(5, 1500)})
    model = diffeo.fit_table(table, recipe="maf", options={"layers": 2, "hidden": (32, 32)}, steps=200, progress=False)
    odd = pd.DataFrame({"x": [0.0, 0.0], "twice": [0.0, 0.0], "n": [5, 17]})
    nats = model.explain(odd)
    assert nats.shape == (2, 3)
    assert nats.iloc[0].abs().max() < 1.5
    assert nats.iloc[1].idxmax() == "n"
    assert nats.iloc[1]["n"] > 5
    assert model.explain(table.iloc[:150]).mean().abs().max() < 0.25  # zero on average


def test_impossible_rows_have_no_density(model):
    row = _table(1, seed=4)
    assert np.isfinite(model.log_prob(row)).all()
    off = [("count", 2.5), ("rounded", 0.05), ("when", pd.Timestamp("2024-02-01 10:00"))]
    for name, value in (("size", -1.0), ("share", 1.5), ("always", 8), ("count", -1), *off):
        assert model.log_prob(row.assign(**{name: value})).iloc[0] == -math.inf, name


def test_latents_of_the_training_table_look_like_the_base(model):
    latents = model.latents(_table())
    base = model.base_samples(500, torch.Generator().manual_seed(0))
    assert latents.shape == (600, 7)
    assert base.shape == (500, 7)
    assert np.abs(latents.mean(0)).max() < 0.3
    assert np.abs(latents.std(0) - 1).max() < 0.3


BAD_ROWS = [
    ({"real": np.nan}, "missing or infinite values \\('real': 1\\)"),
    ({"size": np.inf}, "missing or infinite values"),
    ({"word": "c"}, "'word': 'c' never occurred in training; it knows 'a', 'b'"),
    ({"count": "many"}, "column 'count': expected numbers"),
    ({"when": 3.0}, "column 'when': expected dates"),
    ({"binary": 2}, "never occurred"),
    ({"binary": "yes"}, "never occurred"),
    ({"always": "x"}, "expected numbers"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ROWS)
def test_bad_rows(model, change, message):
    with pytest.raises(ValueError, match=message):
        model.log_prob(_table(1, seed=4).assign(**change))


def test_a_lacking_column_is_named(model):
    with pytest.raises(ValueError, match="needs a column 'size', which the table lacks"):
        model.log_prob(_table(3).drop(columns="size"))
    with pytest.raises(ValueError, match="expected a DataFrame"):
        model.log_prob(np.zeros((3, 12)))


def _with(**columns) -> pd.DataFrame:
    return pd.DataFrame({"x": np.random.default_rng(0).normal(size=60), **columns})


BAD_TABLES = [
    (lambda: _with(y=[np.nan] * 3 + [1.0] * 57), {}, "'y': 3\\); .*missing=\"drop\""),
    (lambda: _with(y=[f"id{i}" for i in range(60)]), {}, "text with 60 distinct values in 60 rows is no category"),
    (
        lambda: _with(y=[*range(59), "x"]),
        {},
        "column 'y': text that looks like numbers, such as '0', but for 1 of 60 rows with 'x', first in row 60",
    ),
    (lambda: _with(y=[[1]] * 60), {}, "holds list objects"),
    (lambda: _with(y=pd.to_timedelta(range(60), "D")), {}, "timedelta64.* is not supported"),
    (lambda: _with()[["x"]].assign(x=1.0), {}, "no column to model"),
    (lambda: _with(), {"given": ["z"]}, "given: no column 'z'"),
    (lambda: _with(), {"given": ["x"]}, "no column to model"),
    (lambda: _with(), {"kinds": {"z": "whole"}}, "kinds: no column 'z'"),
    (lambda: _with(), {"recipe": "glow2"}, "unknown recipe 'glow2'"),
    (lambda: _with(), {"recipe": "mixed"}, "'mixed' is no density of vectors.*; there are .*bernstein, bnaf"),
    (lambda: np.zeros((60, 2)), {}, "expected a DataFrame, got ndarray"),
    (lambda: _with(), {"missing": "fill"}, "missing must be"),
    (lambda: _with(y=pd.Categorical([b"a", b"b"] * 30)), {}, "column 'y': categories such as b'a'"),
    (lambda: _with(y=10**18 + np.arange(60)), {}, "too large to be told apart"),
    (lambda: _with(y=[f"{i:05d}" for i in range(60)]), {}, "is no category"),
    (lambda: _with().set_axis([("a", 1)], axis=1), {}, "column names must be text"),
    (lambda: pd.concat([_with(), _with()], axis=1), {}, "'x' stands more than once"),
    (lambda: _with().iloc[:1], {}, "at least 2 training rows"),
]


@pytest.mark.parametrize(("table", "options", "message"), BAD_TABLES)
def test_bad_tables(table, options, message):
    with pytest.raises(ValueError, match=message):
        diffeo.fit_table(table(), steps=2, progress=False, **options)


def test_missing_rows_can_be_dropped():
    table = _with(y=[np.nan] * 3 + list(np.linspace(0, 1, 57) ** 2))
    model = diffeo.fit_table(table, missing="drop", recipe="gaussian", steps=2, progress=False)
    assert model.notes["rows"] == {"train": 43, "validation": 14}


def test_too_common_a_value_is_named():
    rng = np.random.default_rng(0)
    table = _with(spike=np.r_[np.zeros(20), rng.normal(size=40)])
    with pytest.warns(UserWarning, match="column 'spike' holds 0 in 3.% of the rows"):
        diffeo.fit_table(table, kinds={"spike": "continuous"}, recipe="gaussian", steps=2, progress=False)


def test_a_row_number_is_named():
    with pytest.warns(UserWarning, match="column 'id' looks like a row number"):
        diffeo.fit_table(_with(id=range(60)), recipe="gaussian", steps=2, progress=False)


def test_categories_of_held_out_rows_are_known():
    table = _with(y=["a", "b"] * 29 + ["a", "rare"])
    model = diffeo.fit_table(table.iloc[:58], validation=table.iloc[58:], recipe="gaussian", steps=2, progress=False)
    kind = model.schema.column("y")
    assert isinstance(kind, Category)
    assert kind.levels == ["a", "b", "rare"]
    assert np.isfinite(model.log_prob(table)).all()


def _towns(n: int, seed: int) -> pd.DataFrame:
    """Towns, each new one of which is like most: few are seen often, and some once."""
    rng = np.random.default_rng(seed)
    town = np.where(rng.random(n) < 0.9, rng.integers(0, 4, n), rng.integers(4, 60, n))
    return pd.DataFrame({"town": [f"town {t}" for t in town], "size": rng.normal(size=n) + 2.0 * (town > 3)})


@pytest.mark.parametrize("given", [(), ("town",)])
def test_unseen_categories_have_a_level_on_request(tmp_path, given):
    rows, fresh = _towns(1500, 0), _towns(1500, 1)
    fresh.loc[:200, "town"] = "elsewhere"
    model = diffeo.fit_table(rows, unseen="level", given=given, recipe="maf", steps=150, progress=False)
    diffeo.save(model, tmp_path / "m.safetensors")
    model = diffeo.load(tmp_path / "m.safetensors")
    column: Any = model.schema.column("town")
    assert column.open
    assert column.describe().endswith("one for all others")
    log_p = model.log_prob(fresh)
    assert np.isfinite(log_p).all()
    if given:
        drawn = model.sample(3, given={"town": "elsewhere"}, seed=0)
        assert drawn["town"].tolist() == ["elsewhere"] * 3
        return
    # the mass of what was never seen is that of the towns seen once, shared with nothing else
    grid = pd.DataFrame({"town": "elsewhere", "size": np.linspace(-6, 9, 600)})
    mass = trapezoid(np.exp(model.log_prob(grid)), grid["size"])
    once = (rows["town"].value_counts() == 1).sum() / len(rows)
    assert mass == pytest.approx(max(once, 0.01), rel=0.5)
    assert set(model.sample(4000, seed=0)["town"]) <= set(column.levels)
    assert np.isfinite(model.explain(fresh[:3])).all(axis=None)
    assert (model.schema.screen(fresh)[1] == "").all()


def test_open_categories_of_every_dtype():
    values = {
        "text": pd.Series(["a", "b"] * 50),
        "one": pd.Series(["a"] * 100),
        "category": pd.Series(pd.Categorical(["x", "y"] * 50)),
        "string": pd.Series(["a", "b"] * 50, dtype="string"),
        "number": pd.Series([3, 7] * 50),
        "flag": pd.Series([True, False] * 50),
    }
    open_ = {name: learn_column(v.rename(name), None, None, True) for name, v in values.items()}
    assert [name for name, c in open_.items() if isinstance(c, Category) and c.open] == [
        "text", "one", "category", "string",
    ]  # fmt: skip
    for name in ("text", "one", "category", "string"):
        column: Any = open_[name]
        assert column.encode(pd.Series(["never"])).tolist() == [len(column.levels)]
        hidden = column.hide(values[name], np.random.default_rng(0))
        assert column.strange(hidden).sum() == 1
        assert len(hidden) == 100
        assert from_json(json.loads(json.dumps(to_json(column)))) == column


def test_open_categories_read_what_files_make_of_them():
    numbers: Any = learn_column(pd.Series([1, 2, 3] * 20, dtype=object, name="n"), "category", None, True)
    assert numbers.open
    assert numbers.encode(pd.Series(["1", "3", "A", "2.0"])).tolist() == [0, 2, 3, 1]
    assert numbers.parse("3.0") == 3
    texts: Any = learn_column(pd.Series(["1", "2"] * 20, name="t"), "text", None, True)
    assert texts.encode(pd.Series([1, 2, 7])).tolist() == [0, 1, 2]
    assert texts.encode(pd.Series([1.0, 2.0])).tolist() == [0, 1]
    declared = pd.Series(pd.Categorical(["x", "z"] * 20, categories=["x", "y", "z"], ordered=True), name="c")
    some: Any = learn_column(declared, None, None, True)
    assert some.levels == ["x", "z"]
    assert some.encode(pd.Series(["x", "y"])).tolist() == [0, 2]
    assert some.decode(np.array([1.0])).dtype == declared.dtype
    assert some == from_json(json.loads(json.dumps(to_json(some))))
    names: Any = learn_column(pd.Series([f"n{i}" for i in range(20)], name="n"), "category", None, True)
    assert names.strange(names.hide(pd.Series(names.levels), np.random.default_rng(0))).sum() == 10


def test_a_wrong_word_for_unseen_is_refused():
    with pytest.raises(ValueError, match="unseen must be"):
        diffeo.fit_table(_towns(100, 0), unseen="ignore")


def test_a_number_constant_in_training_only():
    column = learn_column(pd.Series([1.0] * 9, name="x"), known=pd.Series([1.0] * 9 + [2.0, 3.5]))
    assert isinstance(column, Number)
    assert isinstance(learn_column(pd.Series(["q"] * 9, name="x")), Constant)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series([1, 2, 3] * 20).astype("category"),
        pd.Series([True, False] * 30, dtype=object),
        pd.Series([True, False] * 30, dtype="bool[pyarrow]"),
        pd.Series([0.5, 2.5] * 30),
        pd.Series(["a", "b"] * 30, dtype="string[pyarrow]"),
        pd.Series(range(60), dtype="uint8"),
        pd.Series(np.arange(60) ** 2, dtype="int64[pyarrow]"),
        pd.Series([1, 2, 5.5] * 20, dtype=object),
        pd.Series(10**9 + np.arange(60) % 7),
    ],
)
def test_dtypes_survive(values):
    table = pd.DataFrame({"y": values})
    schema, _ = learn_schema(table)
    back = schema.decode(schema.encode(table))["y"]
    assert (back.astype(object) == values.astype(object)).all()
    if values.dtype != object:
        # by name: before pandas 3, string[python] and string[pyarrow] are both called "string"
        assert str(back.dtype) == str(values.dtype)
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


def test_a_given_column_that_was_constant():
    table = _with(g=1.0)
    model = diffeo.fit_table(table, given=["g"], recipe="gaussian", steps=2, progress=False)
    assert len(model.sample(3, {"g": 1.0})) == 3
    with pytest.raises(ValueError, match=r"it was 1\.0 in all training rows"):
        model.sample(3, {"g": 77.0})


def test_surprise_on_wide_grids_and_skewed_columns():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 3000, 2000)
    skewed = np.exp(2 * rng.normal(size=2000))
    table = pd.DataFrame({"a": a, "b": a + rng.integers(0, 50, 2000), "skewed": skewed})
    model = diffeo.fit_table(table, recipe="maf", options={"layers": 3, "hidden": (64, 64)}, steps=200, progress=False)
    assert model.explain(table.iloc[:100]).mean().abs().max() < 0.4


SMALL = {"layers": 2, "hidden": (32, 32)}
SHAPES = {
    "skewed": lambda rng, n: rng.lognormal(0, 2.0, n),
    "rain": lambda rng, n: np.where(rng.random(n) < 0.6, 0.0, rng.exponential(5, n)),
    "capped": lambda rng, n: np.minimum(rng.exponential(200, n), 500.0),
    "share": lambda rng, n: rng.beta(0.5, 0.5, n),
    "heavy": lambda rng, n: rng.standard_t(2, n),
    "spikes": lambda rng, n: np.where(
        rng.random(n) < 0.2, -9.0, np.where(rng.random(n) < 0.2, 7.5, rng.normal(size=n))
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_samples_have_the_distribution_of_the_data(shape):
    rng = np.random.default_rng(3)
    x = SHAPES[shape](rng, 2000)
    table = pd.DataFrame({"x": x, "y": rng.normal(size=2000) + 0.1 * np.arcsinh(x)})
    model = diffeo.fit_table(table, options=SMALL, steps=140, progress=False)
    drawn = model.sample(6000, seed=0)["x"].to_numpy()
    distinct, counts = np.unique(x, return_counts=True)
    for value in distinct[counts > 20]:
        assert abs((drawn == value).mean() - (x == value).mean()) < 0.03, value
    rest = x[~np.isin(x, distinct[counts > 20])]
    assert (drawn == rest.max()).mean() < 0.002
    assert (drawn == rest.min()).mean() < 0.002
    for q in (0.1, 0.25, 0.5, 0.75, 0.9, 0.97):
        assert abs((drawn <= np.quantile(x, q)).mean() - (x <= np.quantile(x, q)).mean()) < 0.06, q


def test_atoms_are_a_mixed_measure(tmp_path):
    rng = np.random.default_rng(0)
    rain = np.where(rng.random(1500) < 0.6, 0.0, rng.exponential(5, 1500))
    table = pd.DataFrame({"rain": rain, "wind": rng.normal(size=1500)})
    model = diffeo.fit_table(table, options=SMALL, steps=130, progress=False)
    assert repr(model) == "TableDensity(rain: 0 or positive, wind: continuous)"
    # the probability of the atom and the density beside it add up to one
    at = pd.DataFrame({"rain": np.r_[0.0, np.linspace(1e-3, 60, 4001)], "wind": 0.3})
    p = np.exp(model.log_prob(at))
    whole = p.iloc[0] + np.trapezoid(p.iloc[1:], at["rain"].iloc[1:])
    wind = np.exp(diffeo.fit_table(table[["wind"]], options=SMALL, steps=130, progress=False).log_prob(at[:1])).iloc[0]
    assert abs(whole / wind - 1) < 0.25
    assert 0.45 < p.iloc[0] / whole < 0.75
    scaled = diffeo.fit_table(table.assign(rain=rain * 1000), options=SMALL, steps=130, progress=False)
    assert abs((scaled.log_prob(at.assign(rain=at["rain"] * 1000)) - np.log(p)).iloc[0]) < 0.15  # no unit at the atom
    nats = model.explain(table[:150])
    assert abs(nats["rain"].mean()) < 0.3
    diffeo.save(model, tmp_path / "m.safetensors")
    again = diffeo.load(tmp_path / "m.safetensors")
    assert again.log_prob(table).equals(model.log_prob(table))
    assert again.sample(9, seed=2).equals(model.sample(9, seed=2))


def test_rows_are_screened():
    table = _table()
    model = diffeo.fit_table(table.drop(columns="real"), recipe="maf", steps=5, progress=False)
    bad = table.iloc[:5].copy()
    bad["kind"] = bad["kind"].astype(object)
    bad.loc[bad.index[0], "kind"] = "huge"
    bad.loc[bad.index[1], "size"] = np.nan
    bad.loc[bad.index[2], "always"] = 8
    read, reasons = model.schema.screen(bad)
    assert [r.partition(":")[0] for r in reasons] == ["kind", "size", "always", "", ""]
    assert len(read) == 5


def test_percentiles_are_among_held_out_rows():
    rng = np.random.default_rng(0)
    table, fresh = (pd.DataFrame(rng.normal(size=(n, 20))) for n in (300, 2000))
    model = diffeo.fit_table(table, options=SMALL, steps=100, progress=False)
    assert model.notes["ranked"] == {"rows": 50, "held_out": True}
    assert abs((model.percentile(model.log_prob(fresh)) < 50).mean() - 0.5) < 0.2
    alone = diffeo.fit_table(table, steps=5, validation=0, progress=False)
    assert alone.notes["ranked"] == {"rows": 300, "held_out": False}


def test_weights_count():
    side = np.repeat([-2.0, 2.0], 300)
    table = pd.DataFrame({"a": side + 0.5 * np.random.default_rng(0).normal(size=600)})
    weights = np.where(side > 0, 1.0, 0.01)
    model = diffeo.fit_table(table, weights=weights, recipe="gaussian", steps=50, progress=False)
    assert model.sample(500, seed=0)["a"].mean() > 1.5
    with pytest.raises(ValueError, match="a weight for each of 600 rows"):
        diffeo.fit_table(table, weights=weights[:5], recipe="gaussian", steps=1, progress=False)


def test_scores_follow_a_density_that_is_trained_further():
    rng = np.random.default_rng(0)
    old, new = (pd.DataFrame(rng.normal(at, 1, size=(300, 2))) for at in (0, 4))
    model = diffeo.fit_table(old, recipe="maf", steps=20, progress=False)
    before = model.log_prob(new).mean()
    diffeo.fit(model.density, model.schema.encode(new), steps=100, progress=False)
    assert model.log_prob(new).mean() > before + 1


def test_twins_are_named():
    table = _with(other=None)
    table["other"] = 2.5 * table[table.columns[0]] + 1
    with pytest.warns(UserWarning, match="hold the same numbers"):
        diffeo.fit_table(table, recipe="gaussian", steps=2, progress=False)


@pytest.mark.parametrize("kind", ["polars", "pyarrow"])
def test_tables_of_other_libraries(kind):
    library = pytest.importorskip(kind, reason="an optional library of tables, which is not installed")
    plain = pd.DataFrame({"a": np.random.default_rng(0).normal(size=200), "kind": ["p", "q"] * 100})
    table = library.from_pandas(plain) if kind == "polars" else library.Table.from_pandas(plain)
    model = diffeo.fit_table(table, recipe="maf", steps=5, progress=False)
    drawn = model.sample(7, seed=0)
    assert type(drawn) is type(table)
    assert np.allclose(model.log_prob(table), model.log_prob(plain))
    assert np.isfinite(model.log_prob(drawn)).all()
    assert model.explain(table).shape == (200, 2)
    density = diffeo.FlowDensity(recipe="maf", max_epochs=1, random_state=0).fit(table)
    assert np.allclose(density.score_samples(table), density.score_samples(plain))


def test_percentiles_beside_rows_that_are_ruled_out():
    model = diffeo.fit_table(_with(y=np.arange(60) % 7), recipe="gaussian", steps=2, progress=False)
    model.rank_among(np.array([-np.inf, -3.0, -2.0, -1.0]))
    assert model.percentile(np.array([-np.inf, -2.5, 0.0])).tolist() == [25.0, 50.0, 100.0]
