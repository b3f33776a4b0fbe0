"""The report: one self-contained page with everything it promises, for tables of every shape."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import diffeo
from diffeo.report import write_report


def _table(n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, n)
    return pd.DataFrame(
        {
            "kind": np.array(["a", "<b>"])[kind],
            "price in $": rng.exponential(1.0 + kind),
            "count": rng.poisson(3, n),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 90, n), "D"),
        }
    )


def _page(model, table, path) -> str:
    write_report(model, table, path, title="my <table>")
    return path.read_text(encoding="utf-8")


def test_the_page_is_whole_and_stands_alone(tmp_path):
    table = _table()
    model = diffeo.fit_table(table, recipe="maf", steps=40, progress=False)
    model.notes |= {"test_nats": -9.0, "test_stderr": 0.1}
    model.notes["baselines"] = [{"name": "Gaussian", "nats": -9.5, "stderr": 0.1, "choice": "full covariance"}]
    odd = pd.DataFrame({"kind": ["a"], "price in $": [80.0], "count": [3], "day": table["day"].iloc[:1]})
    page = _page(model, pd.concat([table, odd]), tmp_path / "r.html")  # an index with duplicates
    for heading in ("How well it fits", "The most unusual rows", "Column by column", "Two by two", "Calibration"):
        assert f"<h2>{heading}</h2>" in page
    assert "my &lt;table&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is loaded from elsewhere
    assert "= <b>" not in page  # text of the table is escaped
    first = re.search(r'<td class="n">([\d,]+)</td>.*?<span>(.*?)</span>', page, re.DOTALL)
    assert first is not None
    assert first.group(1) == "201"  # the odd row comes first,
    assert "price in $" in first.group(2)  # because of its price
    assert page.count("<figure") >= 4 + 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html"]


@pytest.mark.parametrize(
    "columns",
    [["kind"], ["price in $"], ["kind", "day"], ["count", "day"]],
)
def test_pages_of_narrow_tables(tmp_path, columns):
    table = _table(80)[columns]
    model = diffeo.fit_table(table, recipe="maf", steps=5, progress=False)
    assert "</html>" in _page(model, table, tmp_path / "r.html")
    assert "</html>" in _page(model, table.iloc[:1], tmp_path / "one.html")


def test_a_page_of_a_conditional_model(tmp_path):
    table = _table()
    model = diffeo.fit_table(table, given=["kind"], recipe="maf", steps=5, progress=False)
    page = _page(model, table, tmp_path / "r.html")
    assert "conditional on kind" in page
    assert "<figcaption>kind</figcaption>" not in page


def test_a_table_that_does_not_fit_leaves_no_page(tmp_path):
    model = diffeo.fit_table(_table(), recipe="maf", steps=5, progress=False)
    with pytest.raises(ValueError, match="never occurred"):
        write_report(model, _table().assign(kind="z"), tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []
