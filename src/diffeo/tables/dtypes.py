"""Columns of rarer dtypes as plain ones for the codec, and back: sparse, of Arrow, of text held in another way than
pandas' own, of another byte order, of categories that are neither text nor numbers or that are held in another dtype
than theirs."""

# pandas' annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import base64
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

# categories that are neither text nor numbers, but that a file can hold; others the codec names
MOMENTS = (datetime.date, datetime.timedelta, pd.Period, pd.Interval)


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every column in a dtype that the codec reads; the same object where nothing is to be done."""
    if not table.columns.is_unique or not any(map(_is_rare, table.dtypes)):
        return table
    columns = {name: _plain(table[name]) if _is_rare(table[name].dtype) else table[name] for name in table}
    return pd.DataFrame(columns, index=table.index)


def rare(table: pd.DataFrame) -> list[tuple[Any, dict[str, Any]]]:
    """Names of columns of rarer dtypes, and what is needed to give these back, as JSON data."""
    return [(name, _written(dtype)) for name, dtype in table.dtypes.items() if _is_rare(dtype)]


def restored(table: pd.DataFrame, dtypes: Sequence[tuple[Any, Mapping[str, Any]]]) -> pd.DataFrame:
    """The table with these columns in the dtypes that `rare` noted."""
    changed = {name: _restore(table[name], how) for name, how in dtypes if name in table}
    return pd.DataFrame({**table, **changed}) if changed else table


def plain_values(table: pd.DataFrame, dtypes: Sequence[tuple[Any, Mapping[str, Any]]]) -> pd.DataFrame:
    """Values of such columns that came without their dtype, as the codec knows them."""
    table = table.copy(deep=False)
    for name, how in dtypes:
        if name not in table:
            continue
        if "categories" in how:
            table[name] = table[name].map(str)
        elif "arrow" in how and not pd.api.types.is_numeric_dtype(table[name].dtype):
            table[name] = _plain(pd.Series(pd.arrays.ArrowExtensionArray(_like(table[name], how)), table.index))
    return table


def refuse_strange(name: Any, dtype: Any) -> None:
    """Name a column whose values pandas or NumPy cannot even compare, or whose dtype pandas does not know."""
    strange = isinstance(dtype, np.dtype) and dtype.kind in "cV"
    if isinstance(dtype, pd.ArrowDtype):
        import pyarrow.types as kinds

        try:
            strange = kinds.is_nested(dtype.pyarrow_dtype) or dtype.type is None
        except NotImplementedError:  # a kind of Arrow's that pandas does not know
            strange = True
    if strange:
        raise ValueError(f"column {name!r}: {dtype} is not supported; turn it into numbers, text or dates")


def _is_rare(dtype: Any) -> bool:
    if isinstance(dtype, pd.SparseDtype):
        return True
    if isinstance(dtype, pd.ArrowDtype):
        return _arrow_kind(dtype) is not None
    if isinstance(dtype, pd.StringDtype):
        return dtype.storage != getattr(pd.api.types.pandas_dtype(str(dtype)), "storage", None)
    if isinstance(dtype, pd.CategoricalDtype):
        return _of_moments(dtype) or _of_other_levels(dtype)
    return isinstance(dtype, np.dtype) and dtype.kind in "iuf" and not dtype.isnative


def _of_moments(dtype: pd.CategoricalDtype) -> bool:
    """Whether categories are dates, spans or intervals."""
    levels = dtype.categories
    alike = levels.dtype != object or all(type(v) is datetime.date for v in levels)
    return len(levels) > 0 and alike and all(isinstance(v, MOMENTS) for v in levels)


def _of_other_levels(dtype: pd.CategoricalDtype) -> bool:
    """Whether categories are text or numbers of another dtype than such values have by themselves."""
    levels = dtype.categories.tolist()
    known = len(levels) > 0 and all(isinstance(v, str | bool | int | float) for v in levels)
    return known and repr(pd.Index(levels).dtype) != repr(dtype.categories.dtype)


def _arrow_kind(dtype: pd.ArrowDtype) -> str | None:
    """Which of Arrow's types that pandas shows under no plain name."""
    import pyarrow.types as kinds

    for name in ("dictionary", "date", "decimal", "string", "large_string"):
        if getattr(kinds, f"is_{name}")(dtype.pyarrow_dtype):
            return name
    return None


def _plain(values: pd.Series) -> pd.Series:
    dtype = values.dtype
    if isinstance(dtype, pd.SparseDtype):
        return values.sparse.to_dense()
    if isinstance(dtype, pd.CategoricalDtype):
        return values.cat.rename_categories([str(v) for v in dtype.categories]) if _of_moments(dtype) else values
    if isinstance(dtype, pd.StringDtype):
        return values.astype(object).where(values.notna(), None)
    if not isinstance(dtype, pd.ArrowDtype):
        return values.astype(dtype.newbyteorder("="))
    kind = _arrow_kind(dtype)
    if kind == "decimal":
        return values.astype("float64")
    objects = values.astype(object).where(values.notna(), None)
    if kind == "date":
        return pd.to_datetime(objects)
    return objects.astype("category") if kind == "dictionary" else objects


def _written(dtype: Any) -> dict[str, Any]:
    if isinstance(dtype, pd.SparseDtype):
        fill = dtype.fill_value
        fill = fill.item() if isinstance(fill, np.generic) else fill
        # neither NaN nor a date is JSON
        fill = None if fill != fill else str(fill) if isinstance(fill, MOMENTS) else fill
        return {"sparse": str(dtype.subtype), "fill": fill}
    if isinstance(dtype, pd.ArrowDtype):
        import pyarrow as pa

        return {"arrow": _text(pa.schema([("x", dtype.pyarrow_dtype)]).serialize())}
    if isinstance(dtype, pd.StringDtype):
        return {"text": dtype.storage, "missing": "NA" if dtype.na_value is pd.NA else "nan"}
    if isinstance(dtype, pd.CategoricalDtype) and not _of_moments(dtype):
        levels = dtype.categories.dtype
        return {"levels": _written(levels) if _is_rare(levels) else {"name": str(levels)}}
    if isinstance(dtype, pd.CategoricalDtype):
        import pyarrow as pa

        sink, table = pa.BufferOutputStream(), pa.Table.from_pandas(pd.DataFrame({"x": dtype.categories}))
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return {"categories": _text(sink.getvalue()), "ordered": bool(dtype.ordered)}
    return {"numpy": dtype.str}


def _restore(values: pd.Series, how: Mapping[str, Any]) -> pd.Series:
    if "sparse" in how:
        subtype, fill = how["sparse"], how["fill"]
        if isinstance(fill, str):
            fill = pd.Timestamp(fill) if subtype.startswith("datetime") else pd.Timedelta(fill)
        return values.astype(pd.SparseDtype(subtype, np.nan if fill is None else fill))
    if "levels" in how:
        levels = pd.Series(values.cat.categories)
        inner = how["levels"]
        as_before = levels.astype(inner["name"]) if "name" in inner else _restore(levels, inner)
        return values.cat.rename_categories(pd.Index(as_before))
    if "numpy" in how:
        return values.astype(how["numpy"])
    if "text" in how:
        # pandas 2.2 knows no other than NA, but for a storage of that name
        missing = {"na_value": np.nan} if how["missing"] == "nan" and how["text"] != "pyarrow_numpy" else {}
        return values.astype(pd.StringDtype(how["text"], **missing))
    import pyarrow as pa

    if "categories" in how:
        categories = pa.ipc.open_stream(base64.b64decode(how["categories"])).read_pandas()["x"]
        codes = pd.Index([str(v) for v in categories]).get_indexer(values.astype(object))
        return pd.Series(pd.Categorical.from_codes(codes, pd.Index(categories), how["ordered"]), values.index)
    kind = _arrow_type(how)
    if pa.types.is_decimal(kind):  # from text: a binary number has digits beyond the scale
        most = (10.0**kind.precision - 1) / 10.0**kind.scale
        array = pa.array([f"{min(max(v, -most), most):.{max(kind.scale, 0)}f}" for v in values]).cast(kind)
    elif pa.types.is_date(kind):
        array = pa.array(pd.to_datetime(values).dt.date.tolist(), type=kind)
    elif pa.types.is_dictionary(kind):
        array = pa.array(values.tolist(), type=kind.value_type).dictionary_encode().cast(kind)
    else:
        array = pa.array(values.tolist(), type=kind)
    return pd.Series(pd.arrays.ArrowExtensionArray(array), values.index)


def _arrow_type(how: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(how["arrow"]))).field("x").type


def _like(values: pd.Series, how: Mapping[str, Any]) -> Any:
    """Values as Arrow holds the column; text is read as what it says."""
    import pyarrow as pa

    kind = _arrow_type(how)
    return pa.array(values.tolist()).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _text(data: Any) -> str:
    return base64.b64encode(data.to_pybytes()).decode()
