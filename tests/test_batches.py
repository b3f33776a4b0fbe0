"""Scoring batch by batch gives what scoring at once gives."""

import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import diffeo


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    kind = rng.choice(["a", "b"], 300)
    return pd.DataFrame({"kind": kind, "x": rng.normal(size=300) + (kind == "a"), "n": rng.poisson(3.0, 300)})


@pytest.fixture(scope="module")
def model(table):
    return diffeo.fit_table(table, recipe="maf", steps=20, progress=False)


def cut(table: pd.DataFrame) -> list[pd.DataFrame]:
    return [table[:1], table[1:130], table[130:]]


FORMS = {
    "pandas": (lambda t: t, lambda b: b),
    "table": (lambda t: pa.Table.from_pandas(t, preserve_index=False), lambda b: b.to_pandas()),
    "batch": (lambda t: pa.RecordBatch.from_pandas(t, preserve_index=False), lambda b: b.to_pandas()),
    "dict": (lambda t: {name: t[name].to_numpy() for name in t}, pd.DataFrame),
    "dict of fixed-width text": (
        lambda t: {name: np.asarray(t[name].tolist()) for name in t},
        pd.DataFrame,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_get_the_same_scores_in_any_form(form, table, model):
    make, back = FORMS[form]
    scored = pd.concat([back(b) for b in diffeo.BatchScorer(model).over(map(make, cut(table)))], ignore_index=True)
    expected = model.log_prob(table)
    assert np.allclose(scored["log_density"], expected, rtol=0, atol=1e-9)
    assert np.array_equal(scored["percentile"], model.percentile(expected))
    assert scored["kind"].tolist() == table["kind"].tolist()
    assert type(diffeo.BatchScorer(model)(make(table))) is type(make(table))


def test_percentiles_of_equal_rows_do_not_depend_on_the_batches():
    """Rows of categories are equal to many training rows; the last bit of a density depends on the size of a batch."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"a": rng.choice(list("abc"), 150), "b": rng.choice(["x", "y"], 150), "n": rng.poisson(1, 150)})
    model = diffeo.fit_table(rows, recipe="maf", steps=20, validation=0, progress=False)
    score = diffeo.BatchScorer(model)
    whole = score(rows)
    for size in (1, 7, 100):
        parts = pd.concat(score.over(rows[i : i + size] for i in range(0, len(rows), size)))
        assert np.array_equal(parts["percentile"], whole["percentile"])
    best = model.log_prob(rows).max()
    assert model.percentile(np.array([best, -np.inf])).tolist() == [100.0, 0.0]


def test_a_scorer_of_a_file_is_small_and_reads_it_where_it_is_used(table, model, tmp_path):
    diffeo.save(model, tmp_path / "model.safetensors")
    score = diffeo.BatchScorer(tmp_path / "model.safetensors")
    score(table)  # has read it
    sent = pickle.dumps(score)
    assert len(sent) < 1000
    assert np.allclose(pickle.loads(sent)(table)["log_density"], model.log_prob(table))


def test_what_cannot_be_scored_is_refused(table, model, tmp_path):
    score = diffeo.BatchScorer(model)
    with pytest.raises(ValueError, match="column 'log_density' already"):
        score(score(table))
    with pytest.raises(ValueError, match="dict of arrays"):
        score([1, 2])
    diffeo.save(diffeo.maf(2), tmp_path / "flow.safetensors")
    with pytest.raises(ValueError, match="not a model of a table"):
        diffeo.BatchScorer(tmp_path / "flow.safetensors")(table)
