"""Reading and writing tables for the program: CSV and Parquet, numbers only, every fault named in one line."""

from __future__ import annotations

import csv
import gzip
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffeo.atomic import replacing

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".csv.gz", ".parquet")


def read_table(path: Path) -> pd.DataFrame:
    """A table of finite numbers, columns named.

    A CSV whose first line is all numbers is taken to have no header; its columns are named x0, x1, …

    Raises:
        ValueError: anything wrong with the file or its contents.
    """
    import pandas as pd
    import pyarrow

    if path.is_dir():
        raise ValueError(f"{path}: a directory, not a table")
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: expected a table with one of the endings {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise ValueError(f"{path}: not a Parquet file ({_first_line(error)})") from error
    else:
        table = _read_csv(path)
    if not len(table.columns):
        raise ValueError(f"{path}: no columns")
    if not len(table):
        raise ValueError(f"{path}: a header but no rows")
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", newline="", encoding="utf-8-sig") as file:
            header = next((row for row in csv.reader(file) if row), [])
    except (UnicodeDecodeError, gzip.BadGzipFile, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file ({_first_line(error)})") from error
    for separator, name in ((";", "';'"), ("\t", "a tab")):
        if len(header) <= 2 and any(separator in cell for cell in header):
            raise ValueError(f"{path}: the separator looks like {name}; save it with commas")
    cells = [cell for cell in header if cell.strip().lower() not in ("", "na", "nan", "null")]
    headerless = bool(cells) and all(_is_number(cell) for cell in cells)
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled and not headerless:
        raise ValueError(f"{path}: the column name {doubled[0]!r} stands more than once in the header")
    names = [f"x{i}" for i in range(len(header))] if headerless else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(
                path, header=None if headerless else 0, names=names, index_col=False, encoding="utf-8-sig"
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path}: the rows do not all fit the header ({_first_line(error)})") from error


def numbers(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table as float64, or a ValueError that names the columns that are not finite numbers."""
    import numpy as np
    import pandas as pd
    from pandas.api import types

    words = [str(c) for c in table.columns if not types.is_numeric_dtype(table[c]) or types.is_bool_dtype(table[c])]
    if words:
        column: Any = table[words[0]]
        parsed: Any = pd.to_numeric(column, errors="coerce")
        bad = column[parsed.isna() & column.notna()]
        where = f" ({bad.iloc[0]!r} in row {bad.index[0] + 1})" if len(bad) else ""
        raise ValueError(f"{path}: {_columns(words)} not numeric{where}; drop or encode first")
    table = table.astype("float64")
    bad = (~np.isfinite(table)).sum()
    bad = bad[bad > 0]
    if len(bad):
        counts = ", ".join(f"{name!r}: {count}" for name, count in bad.head(6).items())
        raise ValueError(f"{path}: missing or infinite values ({counts}); drop or fill those rows first")
    return table


def write_table(table: pd.DataFrame, path: Path | None) -> None:
    """Write a table as its ending says, in one rename; None writes CSV to the standard output."""
    import sys

    if path is None:
        table.to_csv(sys.stdout, index=False)
        return
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            table.to_parquet(temporary, index=False)
        else:
            table.to_csv(temporary, index=False, compression="gzip" if path.suffix == ".gz" else None)


def check_output(path: Path | None, endings: tuple[str, ...], *inputs: Path) -> None:
    """Refuse an output that could not be written, or would overwrite an input, before any work is done."""
    if path is None:
        return
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise ValueError(f"{path}: the output would overwrite an input; give another name")
    if path.is_dir():
        raise ValueError(f"{path}: a directory; give a file name")
    if not path.name.endswith(endings):
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(endings)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {str(path.parent)!r} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: the folder {str(path.parent)!r} is not writable")


def _columns(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:6]) + (", …" if len(names) > 6 else "")
    return f"column {shown} is" if len(names) == 1 else f"columns {shown} are"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
