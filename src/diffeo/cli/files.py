"""Tables as files: read whole or a block at a time, written a block at a time, every fault named in one line.

Which format is meant, the ending says: CSV, TSV, JSON Lines, Parquet, Feather or Excel; text may be compressed. `-` is
CSV from a pipe. What the cells of a text table stand for is in `cells`.
"""

from __future__ import annotations

import decimal
import gzip
import itertools
import json
import math
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffeo.cli.cells import COMPRESSIONS, DATE, OFFSET, Dialect, find_layout, open_text, typed

if TYPE_CHECKING:
    import pandas as pd

TEXT, TYPED = (".csv", ".tsv", ".txt", ".jsonl"), (".parquet", ".feather", ".xlsx")
WRITTEN = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".feather")
PIPE = Path("-")
BLOCK = 65_536  # rows read or written at once
DEFAULT = Dialect()


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The path itself, or a temporary file with what a pipe brings."""
    if path != PIPE:
        yield path
        return
    if sys.stdin.isatty():
        raise ValueError("-: no pipe to read a table from; use it as in  cat table.csv | diffeo fit -")
    with tempfile.TemporaryDirectory() as folder:
        spooled = Path(folder) / "stdin.csv"
        with open(spooled, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield spooled


def read_table(path: Path, dialect: Dialect = DEFAULT, text: Collection[str] = ()) -> pd.DataFrame:
    """The whole table; for the arguments see `read_blocks`.

    Raises:
        ValueError: anything wrong with the file.
    """
    import pandas as pd

    # text is read as one block: what a column holds shows in all of its rows
    return _dates(pd.concat(list(read_blocks(path, None, text, dialect)), ignore_index=True))


def read_blocks(
    path: Path, rows: int | None = BLOCK, text: Collection[str] = (), dialect: Dialect = DEFAULT
) -> Iterator[pd.DataFrame]:
    """The table a block of rows at a time, so that it may be larger than memory; at least one row in all.

    Args:
        path: of the table.
        rows: of a block of a text file; None for all of it.
        text: columns of a text table that hold text, whatever a block of them looks like.
        dialect: how a text table is written.
    """
    check_input(path)
    kind = _kind(path)
    readers: dict[str, Callable[[], Iterator[pd.DataFrame]]] = {
        "csv": lambda: _csv_blocks(path, rows, text, dialect),
        "tsv": lambda: _csv_blocks(path, rows, text, dialect),
        "txt": lambda: _csv_blocks(path, rows, text, dialect),
        "jsonl": lambda: _json_blocks(path, rows),
        "parquet": lambda: _parquet_blocks(path),
        "feather": lambda: _feather_blocks(path),
        "xlsx": lambda: _excel_blocks(path),
    }
    seen = 0
    for block in readers[kind]():
        if not len(block.columns):
            raise ValueError(f"{path}: no columns")
        doubled = block.columns[block.columns.duplicated()].tolist()
        if doubled:
            raise ValueError(f"{path}: the column name {doubled[0]!r} stands more than once")
        block.columns = [str(name) for name in block.columns]
        seen += len(block)
        if len(block):
            yield _dates(block)
    if not seen:
        raise ValueError(
            f"{path}: no rows" if kind in ("jsonl", "parquet", "feather") else f"{path}: a header but no rows"
        )


def _kind(path: Path) -> str:
    """The format, by the ending of a name without that of its compression."""
    name = path.name.lower()
    compression = next((c for c in COMPRESSIONS if name.endswith(c)), "")
    return name.removesuffix(compression).rpartition(".")[2]


def check_input(path: Path) -> None:
    """Refuse what cannot be a table, before any work."""
    if path.is_dir():
        raise ValueError(f"{path}: a directory, not a table")
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    name = path.name.lower()
    packed = tuple(ending + c for ending in TEXT for c in COMPRESSIONS)
    if not name.endswith((*TEXT, *packed, *TYPED)):
        raise ValueError(
            f"{path}: expected a table with one of the endings {', '.join((*TEXT, *TYPED))}, the text ones perhaps "
            f"with {', '.join(COMPRESSIONS)}, or - for a pipe"
        )
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")


def _csv_blocks(path: Path, rows: int | None, text: Collection[str], dialect: Dialect) -> Iterator[pd.DataFrame]:
    import pandas as pd

    layout = find_layout(path, dialect)
    if layout.remark:
        print(f"diffeo: warning: {path}: {layout.remark}", file=sys.stderr)
    try:
        with warnings.catch_warnings(), open_text(path) as file:
            warnings.simplefilter("error", pd.errors.ParserWarning)
            found: Any = pd.read_csv(
                file,
                sep=r"\s+" if layout.separator == " " else layout.separator,
                header=None,
                names=layout.names,
                skiprows=layout.skipped,
                index_col=False,
                dtype=str,
                na_filter=False,
                skipinitialspace=True,
                low_memory=False,
                chunksize=rows,
            )
            for cells in [found] if rows is None else found:
                yield pd.DataFrame({c: typed(cells[c], layout, dialect.missing, c in text) for c in cells.columns})
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path}: a header but no rows") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text table in UTF-8 ({_first_line(error)}); save it as UTF-8") from error
    except (ValueError, EOFError, OSError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path}: the rows do not all fit the header ({_first_line(error)})") from error


def _json_blocks(path: Path, rows: int | None) -> Iterator[pd.DataFrame]:
    import pandas as pd

    try:
        with open_text(path) as file:
            lines = (line for line in file if line.strip())
            while block := [json.loads(line) for line in itertools.islice(lines, rows)]:
                if not all(isinstance(row, dict) for row in block):
                    raise ValueError("a line that is no object")
                yield pd.DataFrame(block)
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not JSON Lines, one object a line ({_first_line(error)})") from error


def _parquet_blocks(path: Path) -> Iterator[pd.DataFrame]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if not file.metadata.num_rows:
                yield _frame(file.schema_arrow.empty_table())
            for batch in file.iter_batches(BLOCK):
                yield _frame(batch)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a Parquet file ({_first_line(error)})") from error


def _feather_blocks(path: Path) -> Iterator[pd.DataFrame]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            if not file.num_record_batches:
                yield _frame(file.schema.empty_table())
            for i in range(file.num_record_batches):
                batch = file.get_batch(i)
                for start in range(0, batch.num_rows, BLOCK):
                    yield _frame(batch.slice(start, BLOCK))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a Feather file ({_first_line(error)})") from error


def _excel_blocks(path: Path) -> Iterator[pd.DataFrame]:
    import pandas as pd

    try:
        yield pd.read_excel(path)
    except ImportError:
        raise ValueError(f"{path}: Excel files need the extra files (pip install openpyxl)") from None
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not an Excel file ({_first_line(error)})") from error


def _frame(batch: Any) -> pd.DataFrame:
    """Arrow rows as a DataFrame; a named index is a column like the others."""
    table = batch.to_pandas()
    named = [name for name in table.index.names if name is not None]
    return table.reset_index() if named else table.reset_index(drop=True)


def _dates(table: pd.DataFrame) -> pd.DataFrame:
    """Objects that files bring as what they are: ISO dates of text columns, decimal numbers, dates without a time."""
    import pandas as pd

    for name in table.columns:
        column = table[name]
        if not pd.api.types.is_string_dtype(column.dtype) and not pd.api.types.is_object_dtype(column.dtype):
            continue
        known = column.dropna()
        if len(known) and isinstance(known.iloc[0], decimal.Decimal):
            table[name] = column.astype(float)
            continue
        if not len(known) or not DATE.match(str(known.iloc[0])):
            continue
        try:
            first = str(known.iloc[0])
            written = None if isinstance(known.iloc[0], date) else "ISO8601"
            table[name] = pd.to_datetime(column, format=written, utc=bool(OFFSET.search(first)) and ":" in first)
        except (ValueError, TypeError):
            continue  # text after all
    return table


class Writer:
    """A table written block after block to a path that appears whole at the end, or as CSV to the standard output."""

    def __init__(self, path: Path | None):
        self.path = path
        self._file: Any = None
        self._began = False

    def __enter__(self) -> Writer:
        if self.path is None:
            self._file = sys.stdout
            return self
        from diffeo.storage import replacing

        self._replacing = replacing(self.path)
        self._temporary = self._replacing.__enter__()
        self._kind = kind = _kind(self.path)
        if kind in ("csv", "tsv", "jsonl"):
            opener = gzip.open if self.path.suffix == ".gz" else open
            self._file = opener(self._temporary, "wt", newline="", encoding="utf-8")
        return self

    def write(self, block: pd.DataFrame) -> None:
        """Append rows; every block has the same columns."""
        kind = "csv" if self.path is None else self._kind
        if not self._began:
            self._columns = list(block.columns)
        elif sorted(map(str, block.columns)) != sorted(map(str, self._columns)):
            raise ValueError("the columns of a later row differ from those of the first ones")
        block = block.reindex(columns=self._columns)
        if kind in ("csv", "tsv"):
            separator = "\t" if kind == "tsv" else ","
            block.to_csv(self._file, sep=separator, index=False, header=not self._began, lineterminator="\n")
        elif kind == "jsonl":
            for row in block.to_dict("records"):
                self._file.write(json.dumps({k: _as_json(v) for k, v in row.items()}) + "\n")
        else:
            self._write_arrow(block)
        self._began = True

    def _write_arrow(self, block: pd.DataFrame) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._began:
            self._schema = pa.Schema.from_pandas(block, preserve_index=False)
            where = str(self._temporary)
            if self._kind == "parquet":
                self._file = pq.ParquetWriter(where, self._schema)
            else:
                self._file = pa.ipc.new_file(where, self._schema)
        try:
            self._file.write(pa.Table.from_pandas(block, schema=self._schema, preserve_index=False))
        except pa.ArrowException as error:
            raise ValueError(f"a later row does not fit the types of the first ones ({_first_line(error)})") from error

    def __exit__(self, *error: Any) -> None:
        if self.path is None:
            sys.stdout.flush()
            return
        try:
            if self._file is not None:
                self._file.close()
        except BaseException as failed:
            self._replacing.__exit__(type(failed), failed, failed.__traceback__)
            raise
        self._replacing.__exit__(*error)


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
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:  # a full or read-only disk shows here, not after hours
            probe.write(b"\0" * 65_536)
            probe.flush()
    except OSError as error:
        raise ValueError(f"{path}: cannot write there ({error.strerror})") from error


def _as_json(value: Any) -> Any:
    """A cell as JSON: dates in ISO 8601, and null for what JSON has no number for."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
