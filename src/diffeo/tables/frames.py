"""Tables of other libraries as those of pandas, and back."""

from __future__ import annotations

from typing import Any

import pandas as pd

from diffeo.tables.dtypes import plain


def as_pandas(table: Any, who: str) -> pd.DataFrame:
    """A DataFrame of pandas in plain dtypes, from one of pandas or polars, or a table of Arrow.

    Raises:
        ValueError: it is none of them.
    """
    if isinstance(table, pd.DataFrame):
        return plain(table)
    if hasattr(table, "collect") and hasattr(table, "lazy"):  # polars, evaluated late
        table = table.collect()
    if not hasattr(table, "to_pandas"):
        raise ValueError(f"{who}: expected a DataFrame, got {type(table).__name__}; use pd.DataFrame(rows)")
    return plain(table.to_pandas())


def kind_of(table: Any) -> str:
    """Which library a table is of: "pandas", "polars" or "pyarrow"."""
    return type(table).__module__.partition(".")[0]


def as_kind(table: pd.DataFrame, kind: str) -> Any:
    """The table as one of that library."""
    if kind == "polars":
        import polars  # pyright: ignore[reportMissingImports] (whoever fits its tables has it)

        return polars.from_pandas(table)
    if kind == "pyarrow":
        import pyarrow as pa

        return pa.Table.from_pandas(table, preserve_index=False)
    return table
