"""The codec of a table: DataFrame ↔ encoded rows, learned from training rows."""

# pandas' and scikit-learn's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from diffeo.tables.columns import Category, Column, Constant, Moment, Number, atom, from_json, learn_column, to_json
from diffeo.tables.dtypes import refuse_strange


@dataclass(frozen=True)
class Schema:
    """What the columns of a table hold, in the table's order, and which of them the others are conditional on.

    Encoded rows hold the codes of categories first, then the numbers; a context holds the conditioning columns,
    categories one-hot and numbers on a common scale.
    """

    columns: tuple[Column, ...]
    given: tuple[Any, ...] = ()

    @cached_property
    def modelled(self) -> list[Column]:
        """The columns with a density, in the order of encoded rows."""
        free = [c for c in self.columns if c.name not in self.given and not isinstance(c, Constant)]
        return [c for c in free if isinstance(c, Category)] + [c for c in free if not isinstance(c, Category)]

    @cached_property
    def conditions(self) -> list[Column]:
        """The conditioning columns, without constant ones."""
        return [c for c in self.columns if c.name in self.given and not isinstance(c, Constant)]

    @cached_property
    def levels(self) -> list[int]:
        """Number of categories of each modelled categorical column, and of the atoms of each number that has some."""
        own = [c.codes for c in self.modelled if isinstance(c, Category)]
        return own + [1 + len(self.numbers[i].atoms) for i in self.with_atoms]

    @cached_property
    def numbers(self) -> list[Number]:
        """The modelled number columns, dates as numbers."""
        return [n for c in self.modelled if (n := _number(c)) is not None]

    @cached_property
    def with_atoms(self) -> list[int]:
        """Places, among the numbers, of those with atoms."""
        return [i for i, n in enumerate(self.numbers) if n.atoms]

    def log_volumes(self, rows: np.ndarray) -> np.ndarray:
        """`log_volume` of each encoded row: an atom has a probability, which needs no unit."""
        codes = rows[:, len(self.levels) - len(self.with_atoms) : len(self.levels)]
        scales = np.log([self.numbers[i].scale for i in self.with_atoms])
        return self.log_volume - (codes > 0) @ scales if len(scales) else np.full(len(rows), self.log_volume)

    @cached_property
    def log_volume(self) -> float:
        """Σ log scale of the number columns: a density of encoded rows minus this is one in the table's units."""
        return float(sum(np.log(n.scale) for n in self.numbers))

    @property
    def context_width(self) -> int:
        """Width of the context."""
        return sum(c.codes if isinstance(c, Category) else 1 for c in self.conditions)

    def recipe_arguments(self) -> dict[str, Any]:
        """What `diffeo.mixed` needs to know of the columns."""
        return {
            "features": len(self.numbers),
            "levels": self.levels,
            "context": self.context_width,
            "low": [n.low for n in self.numbers],
            "high": [n.high for n in self.numbers],
            "whole": [i for i, n in enumerate(self.numbers) if n.whole],
            "atoms": self.with_atoms,
        }

    def column(self, name: Any) -> Column:
        """The column of this name."""
        return next(c for c in self.columns if c.name == name)

    def encode(self, table: pd.DataFrame) -> np.ndarray:
        """Encoded rows, shape (n, categories + numbers)."""
        self.check(table, [c.name for c in self.modelled])
        columns = [c.encode(table[c.name]) for c in self.modelled]  # type: ignore[union-attr]
        names = [c.name for c in self.modelled if not isinstance(c, Category)]
        codes = [self.numbers[i].atom_codes(table[names[i]]) for i in self.with_atoms]
        columns[len(columns) - len(names) : len(columns) - len(names)] = codes
        return np.column_stack(columns) if columns else np.zeros((len(table), 0))

    def encode_given(self, table: pd.DataFrame, plain: bool = False) -> np.ndarray | None:
        """The context, shape (n, context_width); None where nothing is given. `plain`: numbers without soft bounds."""
        for column in self.columns:
            if column.name in self.given and isinstance(column, Constant):
                self.check(table, [column.name])
                if column.differs(table[column.name]).any():
                    raise ValueError(
                        f"column {column.name!r}: it was {column.value!r} in all training rows, so nothing is known of "
                        "rows where it is not"
                    )
        if not self.conditions:
            return None
        self.check(table, [c.name for c in self.conditions])
        parts = []
        for column in self.conditions:
            codes = column.encode(table[column.name])  # type: ignore[union-attr]
            number = _number(column)
            if number is None:
                parts.append(codes[:, None] == np.arange(column.codes))  # type: ignore[union-attr]
            else:
                parts.append((codes if plain else number.condition(codes))[:, None])
        return np.concatenate(parts, 1).astype(np.float64)

    def impossible(self, table: pd.DataFrame) -> np.ndarray:
        """Rows that this table cannot hold: beyond a bound, off a grid, or with another value in a constant column."""
        bad = np.zeros(len(table), dtype=bool)
        for column in self.columns:
            if column.name in self.given or column.name not in table:
                continue
            if isinstance(column, Constant):
                bad |= column.differs(table[column.name])
            elif not isinstance(column, Category):
                bad |= impossible(column, table[column.name])
        return bad

    def screen(self, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
        """Why each row has no finite density, in a few words, empty for the others; and the table as these can be read.

        Text among numbers or dates counts as none; a column of nothing else is refused when it is encoded.

        Raises:
            ValueError: a missing column, or one of another kind than in training.
        """
        self.check_columns(table, [c.name for c in self.columns])
        table = table.copy(deep=False)
        reasons = pd.Series("", index=table.index, dtype=object)

        def say(rows: np.ndarray, name: Any, what: str) -> None:
            shown: Any = table[name].astype(object)
            for i in np.flatnonzero(rows & (reasons == "").to_numpy()):
                reasons.iloc[i] = f"{name}: {what.format(shown.iloc[i])}"

        for column in self.columns:
            values: Any = table[column.name]
            gone = unusable(values).to_numpy()
            if not pd.api.types.is_numeric_dtype(values.dtype) and isinstance(column, Number):
                read = pd.to_numeric(values, errors="coerce")
                if read.notna().any():
                    say(read.isna().to_numpy() & ~gone, column.name, "{!r} is no number")
                    table[column.name], gone = read, gone | read.isna().to_numpy()
                    values = read
            say(gone, column.name, "missing or infinite")
            if gone.all():
                continue
            kept = values[~gone]
            strange = np.zeros(len(table), dtype=bool)
            if isinstance(column, Category):
                strange[~gone] = column.strange(kept) & (not column.open)
                say(strange, column.name, "{!r} never occurred in training")
            elif isinstance(column, Constant):
                strange[~gone] = column.differs(kept)
                say(strange, column.name, "{!r}, where it was always " + str(column.value))
            else:
                strange[~gone] = impossible(column, kept)
                if column.name not in self.given:
                    say(strange, column.name, "{!r} lies beyond the bounds or off the grid of the column")
        return table, reasons

    def hide_some(self, table: pd.DataFrame, seed: int) -> pd.DataFrame:
        """Training rows in which a share of the values of open columns stand for unseen ones."""
        generator = np.random.default_rng(seed)
        table = table.copy(deep=False)
        for column in self.columns:
            if isinstance(column, Category) and column.open:
                table[column.name] = column.hide(table[column.name], generator)
        return table

    def unseen(self, rows: np.ndarray) -> np.ndarray:
        """Which encoded rows hold a category that is none of those known."""
        own = [c for c in self.modelled if isinstance(c, Category)]
        last = [c.codes - 1 if c.open else np.inf for c in own]
        return (rows[:, : len(own)] >= last).any(1)

    def decode(self, rows: np.ndarray, given: pd.DataFrame | None = None) -> pd.DataFrame:
        """A table from encoded rows, with the columns, dtypes, categories, ranges and rounding of the training one."""
        categories = sum(isinstance(c, Category) for c in self.modelled)
        shift = len(self.with_atoms)  # codes of atoms lie between categories and numbers
        place = {c.name: i + (shift if i >= categories else 0) for i, c in enumerate(self.modelled)}
        names = [c.name for c in self.modelled[categories:]]
        atoms = {names[i]: categories + j for j, i in enumerate(self.with_atoms)}
        columns: dict[Any, pd.Series] = {}
        for column in self.columns:
            if column.name in self.given:
                if given is not None and column.name in given:
                    columns[column.name] = _as_trained(column, given[column.name].reset_index(drop=True))
            elif isinstance(column, Constant):
                columns[column.name] = column.decode(len(rows))
            else:
                y, code = rows[:, place[column.name]], atoms.get(column.name)
                if code is None:
                    columns[column.name] = column.decode(y)
                else:
                    nothing = rows[:, code] > 0
                    decoded = column.decode(np.where(nothing, 0.0, y))
                    columns[column.name] = column.place_atoms(decoded, rows[:, code])  # type: ignore[union-attr]
        return pd.DataFrame(columns)

    def check(self, table: pd.DataFrame, names: Sequence[Any]) -> None:
        """Refuse a table that lacks a column, or misses values in one."""
        self.check_columns(table, names)
        check_complete(table[list(names)], hint="drop or fill those rows first")

    def check_columns(self, table: pd.DataFrame, names: Sequence[Any]) -> None:
        """Refuse a table that lacks a column."""
        if not isinstance(table, pd.DataFrame):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"expected a DataFrame with the columns {list(names)}, got {type(table).__name__}")
        lacking = [name for name in names if name not in table]
        if lacking:
            raise ValueError(f"the model needs a column {lacking[0]!r}, which the table lacks")

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON data."""
        return {"columns": [to_json(c) for c in self.columns], "given": list(self.given)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Schema:
        """The schema that `to_json` wrote."""
        return Schema(tuple(from_json(c) for c in data["columns"]), tuple(data["given"]))


def learn_schema(
    table: pd.DataFrame,
    given: Sequence[Any] = (),
    kinds: Mapping[Any, Any] | None = None,
    known: pd.DataFrame | None = None,
    unseen: bool = False,
) -> tuple[Schema, list[str]]:
    """The schema of a table without missing values, and warnings about columns that no density describes well.

    Scales and grids come from `table`, the training rows; which values and categories exist at all, from `known`.
    `unseen` gives each column of categories, then those of `table` alone, a code for those that it does not hold.

    Raises:
        ValueError: unknown names in `given` or `kinds`, no column left to model, or a column that is not supported.
    """
    kinds = dict(kinds or {})
    for what, names in (("given", given), ("kinds", kinds)):
        unknown = [name for name in names if name not in table]
        if unknown:
            raise ValueError(f"{what}: no column {unknown[0]!r} in the table; it has {list(table.columns)}")
    strange = [name for name in table.columns if not isinstance(name, str | int)]
    if strange:
        raise ValueError(f"column names must be text or whole numbers, got {strange[0]!r}")
    columns, warnings = [], []
    for name in table.columns:
        column = learn_column(table[name], kinds.get(name), None if known is None else known[name], unseen)
        columns.append(column)
        if name not in given and (spike := atom(column, table[name])) is not None:
            warnings.append(
                f"column {name!r} holds {spike[0]:g} in {spike[1]:.0%} of the rows; a density grows without bound at "
                "such a value, so log-densities say little about this column"
            )
        if name not in given and _counts_rows(table[name]):
            warnings.append(f"column {name!r} looks like a row number; leave it out unless it means something")
    schema = Schema(tuple(columns), tuple(given))
    warnings += _twins(schema, table)
    if not schema.modelled:
        raise ValueError("no column to model: all are constant or given")
    return schema, warnings


def _twins(schema: Schema, table: pd.DataFrame) -> list[str]:
    """Warnings about continuous columns that are another one in other units, so that there is no density of both."""
    numbers = [c for c in schema.modelled if isinstance(c, Number) and not c.whole]
    if not 1 < len(numbers) <= 1000:
        return []
    rows = np.column_stack([c.position(table[c.name]) for c in numbers])
    rows = (rows - rows.mean(0)) / rows.std(0)
    alike = np.triu(np.abs(rows.T @ rows / len(rows)) > 1 - 1e-9, 1)
    return [
        f"columns {numbers[i].name!r} and {numbers[j].name!r} hold the same numbers, up to units: a density grows "
        "without bound at such rows; leave one out"
        for i, j in np.argwhere(alike)
    ]


def _counts_rows(values: pd.Series) -> bool:
    """Whether a column of whole numbers has another one in (nearly) every row."""
    if not pd.api.types.is_integer_dtype(values.dtype) or len(values) < 20 or not values.is_unique:
        return False
    return bool(values.max() - values.min() < 1.5 * len(values))


def check_complete(table: pd.DataFrame, hint: str) -> None:
    """Refuse missing and infinite values, counted by column, and names that do not tell columns apart."""
    doubled = table.columns[table.columns.duplicated()].tolist()
    if doubled:
        raise ValueError(f"the column name {doubled[0]!r} stands more than once in the table")
    counts = {}
    for name in table.columns:
        bad = unusable(table[name])
        if bad.any():
            counts[name] = int(bad.sum())
    if counts:
        shown = ", ".join(f"{name!r}: {count}" for name, count in list(counts.items())[:6])
        more = ", …" if len(counts) > 6 else ""
        raise ValueError(f"missing or infinite values ({shown}{more}); {hint}")


def unusable(values: pd.Series) -> pd.Series:
    """Which values are missing or infinite; refuses a dtype whose values cannot be compared."""
    refuse_strange(values.name, values.dtype)
    bad = values.isna()
    if pd.api.types.is_float_dtype(values.dtype):
        bad |= np.isinf(values.to_numpy(dtype=np.float64, na_value=np.nan))
    elif pd.api.types.is_object_dtype(values.dtype):
        bad |= values.map(lambda v: isinstance(v, float | np.floating) and bool(np.isinf(v))).astype(bool)
    return bad


def _as_trained(column: Column, values: pd.Series) -> pd.Series:
    """Given values in the dtype of the training column."""
    if isinstance(column, Category):
        if column.strange(values).any() and column.open:
            return values
        return column.decode(column.encode(values))
    return values.astype(column.dtype)  # pyright: ignore[reportCallIssue]


def impossible(column: Column, values: pd.Series) -> np.ndarray:
    """Which values of a number or date the column cannot hold."""
    number: Any = _number(column)
    bad = number.impossible(column.position(values))  # type: ignore[union-attr]
    return bad & (number.atom_codes(values) == 0) if number.atoms else bad


def _number(column: Column) -> Number | None:
    return column.number if isinstance(column, Moment) else column if isinstance(column, Number) else None
