"""Rows of Parquet files: each once an epoch, in an order that can be continued, and refused where they do not fit."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import diffeo
from diffeo.training import parquet

N = 3000


@pytest.fixture
def folder(tmp_path):
    """Three files in groups of 100 rows; column `row` numbers them."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"row": np.arange(N), "a": random.normal(size=N), "c": random.normal(size=N)})
    table["b"] = table["a"] ** 2 + 0.5 * random.normal(size=N) + table["c"]
    for i in range(3):
        part = table[i * 1000 : (i + 1) * 1000]
        pq.write_table(pa.Table.from_pandas(part, preserve_index=False), tmp_path / f"{i}.parquet", row_group_size=100)
    return tmp_path


def test_an_epoch_meets_every_row_that_is_not_held_out_at_most_once(folder, monkeypatch):
    monkeypatch.setattr(parquet, "INITIAL", 500)
    rows = diffeo.ParquetRows(folder, columns=["row"], shuffle_rows=700)
    train, held, _ = rows.hold_out(0.1, seed=3)
    (sample,) = train.sample()
    assert held is not None
    assert 200 < len(held) < 400
    assert len(train) == N - len(held)
    assert 450 < len(sample) < 600
    outside = set(held.tensors[0][:, 0].tolist())
    assert not outside & set(sample[:, 0].tolist())
    batches = [x[:, 0].tolist() for _, (x,) in islice(train.batches(32, seed=0, step=0), N // 32 - 20)]
    met = [row for batch in batches for row in batch]
    per_read = 32 * (700 // 32)
    first_epoch = met[: per_read * (len(train) // 800)]
    assert len(set(first_epoch)) == len(first_epoch)
    assert not outside & set(met)
    assert met != sorted(met)


def test_row_numbers_are_those_of_the_table(folder):
    rows = diffeo.ParquetRows([folder / "1.parquet", folder / "0.parquet"], columns=["row"], shuffle_rows=500)
    for numbers, (x,) in islice(rows.batches(64, seed=1, step=0), 20):
        expected = (numbers + 1000) % 2000  # the second file comes first
        assert torch.equal(expected.float(), x[:, 0])


@pytest.mark.parametrize("step", [1, 21, 22, 60, 130, 200])
def test_the_order_continues_from_any_step(folder, step):
    rows = diffeo.ParquetRows(folder, columns=["row", "a"], context=["c"], shuffle_rows=700)
    whole = list(islice(rows.batches(32, seed=5, step=0), step + 3))[step:]
    continued = list(islice(rows.batches(32, seed=5, step=step), 3))
    for (numbers, batch), (again, same) in zip(whole, continued, strict=True):
        assert torch.equal(numbers, again)
        assert [t.shape for t in batch] == [(32, 2), (32, 1)]
        assert all(map(torch.equal, batch, same))


def test_batches_larger_than_a_read_come_from_all_rows(folder):
    rows = diffeo.ParquetRows(folder, columns=["row"], shuffle_rows=1)
    _, (x,) = next(rows.batches(2048, seed=0, step=0))
    assert len(x) == 2048
    assert len(set(x[:, 0].tolist())) == 2048


def build() -> diffeo.Flow:
    torch.manual_seed(0)
    return diffeo.nsf_ar(2, context=1, layers=1, hidden=(16, 16))


def test_a_fit_learns_what_one_in_memory_learns(folder):
    options = {"steps": 120, "lr": 1e-2, "batch_size": 128, "progress": False}
    rows = diffeo.ParquetRows(folder, columns=["a", "b"], context=["c"], shuffle_rows=500)
    flow = build()
    result = diffeo.fit(flow, rows, **options)
    table = pd.read_parquet(folder)
    other = build()
    x, c = (torch.tensor(table[names].to_numpy()).float() for names in (["a", "b"], ["c"]))
    in_memory = diffeo.fit(other, x, c, **options)
    assert result.validation_loss is not None
    assert in_memory.validation_loss is not None
    with torch.no_grad():
        a, b = (f(x, c).mean() for f in (flow, other))
    assert abs(a - b) < 0.05


def test_a_fit_that_stopped_continues_to_the_same_weights(folder, tmp_path):
    rows = diffeo.ParquetRows(folder, columns=["a", "b"], context=["c"], shuffle_rows=500)
    options = {"steps": 60, "batch_size": 64, "progress": False, "checkpoint_every": 1e-6}
    whole = build()
    diffeo.fit(whole, rows, **options)
    stopped = build()
    forward, calls = diffeo.MaximumLikelihood.forward, 0

    def failing(self, *batch):
        nonlocal calls
        calls += self.training
        if calls == 40:
            raise InterruptedError
        return forward(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffeo.MaximumLikelihood, "forward", failing)
        with pytest.raises(InterruptedError):
            diffeo.fit(stopped, rows, checkpoint=tmp_path / "state", **options)
    continued = build()
    result = diffeo.fit(continued, rows, checkpoint=tmp_path / "state", resume=True, **options)
    assert 0 < result.resumed_steps < 60
    for a, b in zip(whole.parameters(), continued.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rows_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no columns \['z'\]"):
        diffeo.ParquetRows(folder, columns=["z"])
    with pytest.raises(ValueError, match="named twice"):
        diffeo.ParquetRows(folder, columns=["a"], context=["a"])
    with pytest.raises(ValueError, match="names the context itself"):
        diffeo.fit(build(), diffeo.ParquetRows(folder), torch.zeros(N, 1))
    bad = tmp_path / "bad.parquet"
    pd.DataFrame({"a": [1.0, None, 2.0], "s": ["x", "y", "z"]}).to_parquet(bad)
    with pytest.raises(ValueError, match=r"'s' of .* holds .*string"):
        diffeo.ParquetRows(bad)
    with pytest.raises(ValueError, match="a: 1"):
        diffeo.ParquetRows(bad, columns=["a"])
    pq.write_table(pa.table({"a": [1.0, float("nan")] * 50, "b": [0.0, 1.0] * 50}), bad)  # not a missing value
    with pytest.raises(ValueError, match=r"NaN or infinite.*column 0: 50"):
        diffeo.fit(diffeo.maf(2, layers=1), diffeo.ParquetRows(bad), progress=False)
