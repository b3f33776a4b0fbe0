"""Text tables: how a file is written (separator, decimal mark, header), and what the text of a column stands for.

Every column is read as text first, so that nothing is lost before all of it was seen: leading zeros, a country called
NA, numbers with a decimal comma.
"""

# pandas' annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SEPARATORS = (",", ";", "\t", "|", " ")
NAMED = {"tab": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}
# what stands for a missing number; in a column of text only an empty cell does, since a country may be called NA
MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "nat", "?", "-", "--", "."}
DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}.*)?$")  # ISO 8601: other dates are not guessed at
OFFSET = re.compile(r"(?:Z|[+-]\d{2}:?\d{2})$")
CODE = re.compile(r"[+-]?0\d")  # a number is not written so, but a code is
GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?$")
POINTED = re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{3})+|\d*)(?:,\d+)?(?:[eE][+-]?\d+)?$")
ROW = "the first line looks like a row, not a header; if it is a header, pass --header"
COMMA = re.compile(r"[+-]?[\d.]*\d,\d+(?:[eE][+-]?\d+)?")  # a number with a decimal comma
LINES = 200  # that tell how a file is written
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip", ".zst")


class Dialect(NamedTuple):
    """How a text table is written; None for what the file itself is to say."""

    separator: str | None = None
    decimal: str | None = None
    header: bool | None = None
    missing: tuple[str, ...] = ()

    def checked(self) -> Dialect:
        """The dialect with names of separators resolved, or an error that names the option."""
        separator = None if self.separator is None else NAMED.get(self.separator, self.separator.replace("\\t", "\t"))
        if separator is not None and (len(separator) != 1 or separator.isalnum()):
            raise ValueError(f"--sep: expected one character, or {', '.join(NAMED)}; got {self.separator!r}")
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"--decimal: expected . or , but got {self.decimal!r}")
        if self.decimal == "," and separator == ",":
            raise ValueError("--decimal , and --sep , cannot both be; give another separator")
        return self._replace(separator=separator)


class Layout(NamedTuple):
    """What was found of a file: where its rows begin and what its columns are called."""

    separator: str
    decimal: str
    names: list[str]
    skipped: int  # lines before the first row
    remark: str | None  # what the user should know of it


def open_text(path: Path) -> IO[str]:
    """The text of a file, unpacked."""
    ending = path.suffix.lower()
    if ending == ".zip":
        archive = zipfile.ZipFile(path)
        members = [m for m in archive.namelist() if not m.endswith("/")]
        if len(members) != 1:
            raise ValueError(f"{path}: the archive holds {len(members)} files; expected one table")
        binary: Any = archive.open(members[0])
    elif ending == ".zst":
        try:
            import zstandard  # pyright: ignore[reportMissingImports] (of the extra `files`)
        except ImportError:
            raise ValueError(f"{path}: .zst needs the extra files (pip install zstandard)") from None
        binary = zstandard.open(path, "rb")
    else:
        opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(ending, open)
        binary = opener(path, "rb")
    return io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")


def find_layout(path: Path, dialect: Dialect) -> Layout:
    """How the file is written, from its first lines.

    Raises:
        ValueError: it is no text table.
    """
    lines, comments = _first_lines(path)
    if not lines:
        raise ValueError(f"{path}: the file is empty, but for blank lines and comments")
    if "\0" in "".join(lines):
        raise ValueError(f"{path}: not a text table (it holds null characters)")
    try:
        separator = dialect.separator or _separator(path, lines)
        rows = [row for row in _split(lines, separator) if row]
    except csv.Error as error:
        raise ValueError(f"{path}: not a text table ({error})") from error
    head, body = rows[0], rows[1:]
    decimal = dialect.decimal or _decimal(rows, separator)
    header, remark = dialect.header, None
    if header is None:
        header, remark = _has_header(head, body, decimal)
    names = [cell.strip() for cell in head] if header else [f"x{i}" for i in range(len(head))]
    if header:
        while names and not names[-1] and all(len(row) < len(names) or not row[len(names) - 1] for row in body):
            names.pop()  # a separator that ends every line
        names = [name or f"x{i}" for i, name in enumerate(names)]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"{path}: the column name {doubled[0]!r} stands more than once in the header; "
                "if the first line is a row like the others, pass --no-header"
            )
    return Layout(separator, decimal, names, comments + (1 if header else 0), remark)


def typed(cells: pd.Series, layout: Layout, missing: Collection[str] = (), text: bool = False) -> pd.Series:
    """What the text of a column stands for: numbers, booleans, dates, or text.

    Args:
        cells: text, None where a row was too short.
        layout: of the file.
        missing: further strings that stand for a missing value.
        text: whether the column holds text whatever it looks like.
    """
    import pandas as pd

    known = cells.fillna("").astype(object).map(str.strip)
    gone = (known == "") | known.isin(list(missing))
    if not text:
        for attempt in (_numbers, _booleans, _dates):
            found = attempt(known, gone, layout.decimal)
            if found is not None:
                return pd.Series(found, index=cells.index, name=cells.name)
    kept = cells.astype(object).where(~gone, None)
    return kept.infer_objects()


def parse_numbers(text: pd.Series, decimal: str) -> np.ndarray:
    """Numbers of cells, NaN for those that are none."""
    import pandas as pd

    if decimal == ",":
        # 1.5 is no number here: to take its point for one of thousands would make it 15
        text = text.where(text.str.match(POINTED), "?")
        text = text.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    else:
        grouped = text.str.match(GROUPED)
        if grouped.any():
            text = text.where(~grouped, text.str.replace(",", "", regex=False))
    return pd.to_numeric(text, errors="coerce").to_numpy()


def _numbers(known: pd.Series, gone: pd.Series, decimal: str) -> Any:
    import numpy as np

    absent = gone | known.str.lower().isin(MISSING)
    rest = known[~absent]
    if not len(rest) or rest.str.match(CODE).any():
        return None
    if decimal == "." and rest.str.fullmatch(r"[+-]?\d{1,3},\d{1,3}").all():
        return None  # 1,234 may be a thousand or a bit more than one: whoever reads the column says so
    values = parse_numbers(rest.astype(str), decimal)
    if np.isnan(values.astype(float)).any():
        return None
    if not absent.any():
        return values
    filled = np.full(len(known), np.nan)
    filled[(~absent).to_numpy()] = values.astype(float)
    return filled


def _booleans(known: pd.Series, gone: pd.Series, decimal: str) -> Any:
    if gone.any() or not known.str.lower().isin(["true", "false"]).all():
        return None
    return (known.str.lower() == "true").to_numpy()


def _dates(known: pd.Series, gone: pd.Series, decimal: str) -> Any:
    """ISO 8601, in UTC where the cells name an offset, since one column may hold those of summer and of winter."""
    import pandas as pd

    rest = known[~gone]
    if not len(rest) or not DATE.match(rest.iloc[0]):
        return None
    zoned = rest.str.contains(OFFSET).all() and rest.str.contains(":").all()
    try:
        return pd.to_datetime(known.where(~gone, None), format="ISO8601", utc=bool(zoned)).array
    except (ValueError, TypeError):
        return None  # text after all


def _first_lines(path: Path) -> tuple[list[str], int]:
    """Some lines of the file, and how many of comments and blanks come before them."""
    lines: list[str] = []
    comments = 0
    try:
        with open_text(path) as file:
            for line in file:
                if not lines and (not line.strip() or line.startswith("#")):
                    comments += 1
                    continue
                lines.append(line)
                if len(lines) >= LINES:
                    break
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text table in UTF-8 ({error}); save it as UTF-8") from error
    except (gzip.BadGzipFile, zipfile.BadZipFile, lzma.LZMAError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a text table ({error})") from error
    return lines, comments


def _split(lines: list[str], separator: str) -> list[list[str]]:
    if separator == " ":
        return [line.split() for line in lines]
    return list(csv.reader(lines, delimiter=separator, skipinitialspace=True))


def _separator(path: Path, lines: list[str]) -> str:
    """The separator that gives most lines the same number of cells, the one of the file's ending first."""
    name = path.name.lower()
    first = "\t" if ".tsv" in name or ".tab" in name else ","

    def agreement(separator: str) -> tuple[float, int]:
        counts = [len(row) for row in _split(lines, separator) if row]
        width = counts[0] if counts else 0
        return sum(n == width for n in counts) / max(1, len(counts)), width

    found = {separator: agreement(separator) for separator in (first, *[s for s in SEPARATORS if s != first])}
    share, width = found[first]
    others = [s for s, (share, width) in found.items() if width > 1 and share == 1 and s not in (" ", first)]

    def joined(separator: str, other: str) -> bool:
        """Whether cells hold the other separator, and not as a decimal comma."""
        cells = [cell.strip() for row in _split(lines, separator) for cell in row]
        return any(other in cell and not (other == "," and COMMA.fullmatch(cell)) for cell in cells)

    if (width > 1 and share == 1) or (width > 2 and share > 0.9):
        better = [s for s in others if joined(first, s) and not joined(s, first)]  # 0,5;1,5 is not 0 and 5;1 and 5
        return max(better, key=lambda s: found[s][1]) if better else first
    good = {s: width for s, (share, width) in found.items() if width > 1 and share > 0.9 and s != " "}
    if good:
        return max(good, key=lambda s: good[s])
    share, width = found[" "]
    rows = _split(lines, " ")
    numeric = sum(_is_number(cell) for row in rows[1:] for cell in row)
    if width > 1 and share == 1 and len(rows) > 1 and numeric > sum(map(len, rows[1:])) / 2:
        return " "
    return first


def _decimal(rows: list[list[str]], separator: str) -> str:
    """A comma where numbers are written so and none is written with a point."""
    if separator == ",":
        return "."
    cells = [cell.strip() for row in rows[1:] for cell in row]
    commas = sum(COMMA.fullmatch(cell) is not None for cell in cells)
    points = sum(bool(re.fullmatch(r"[+-]?\d+\.\d+([eE][+-]?\d+)?", cell)) for cell in cells)
    return "," if commas > points else "."


def _has_header(head: list[str], body: list[list[str]], decimal: str) -> tuple[bool, str | None]:
    """Whether the first line names the columns, and what to say where that is no more than likely."""
    if not body:
        return True, None
    columns = [[row[i].strip() for row in body if i < len(row) and row[i].strip()] for i in range(len(head))]
    named = numbers = repeated = 0
    for cell, column in zip((c.strip() for c in head), columns, strict=True):
        numeric = bool(column) and sum(_is_number(c, decimal) for c in column) > len(column) / 2
        if numeric and cell and cell.lower() not in MISSING and not _is_number(cell, decimal):
            named += 1
        elif numeric and _is_number(cell, decimal):
            numbers += 1
        elif not numeric and cell and cell in column:
            repeated += 1
    if named:
        return True, None
    if repeated or (numbers and all(_is_number(c, decimal) or c.lower() in MISSING for c in map(str.strip, head))):
        return False, ROW
    if numbers:
        return True, "some of the header is numbers; if the first line is a row, pass --no-header"
    if len(set(head)) < len(head):
        return False, ROW
    return True, None


def _is_number(cell: str, decimal: str = ".") -> bool:
    try:
        float(cell.replace(",", ".") if decimal == "," else cell)
    except ValueError:
        return False
    return True
