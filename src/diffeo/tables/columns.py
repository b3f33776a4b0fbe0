"""Columns: what each holds, as numbers for a density and back; learned from training rows, written as JSON.

A number column is encoded as y = (x − shift) / scale, with bounds where the values have them and `whole` where they lie
on a grid (then y counts its steps); a category as its code; a date as a number of days; a constant not at all.
"""

# pandas' and scikit-learn's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

ATOM = 0.05  # a value that holds more of the rows than this is too much for a density
FINE_ATOM, COARSE_ATOM = 0.01, 0.05  # share of the rows that makes an atom, among values that repeat seldom, or often
MOST_ATOMS = 8
OFF_GRID = 1e-3  # steps by which a value may miss its grid
REPEATS = 0.95  # a column on a grid whose distinct values are fewer than this share of its rows is dequantized
MOST_LEVELS = 0.5  # text with more distinct values than this share of its rows is no category
TINY = 1e-30  # smallest range of a column
UNSEEN = 0.01  # least share of the training rows that stand for unseen categories, where these have a code
HIDDEN = "\0unseen"  # no level
DAY = 86_400_000_000_000  # nanoseconds
DECIMALS = 9
FEW = 32  # distinct numbers with gaps between them that may count as levels
COMMON = 10  # rows of a value next to which an empty place of the grid is no chance
FEW_NUMBERS = 10  # distinct texts that look like numbers and may be names
QUANTILES = 33  # kept of each number
KINDS = ("number", "continuous", "positive", "whole", "category", "text", "date")


@dataclass(frozen=True)
class Number:
    """A numeric column: y = (x − shift) / scale, within [low, high]; of whole values only, if it lies on a grid."""

    name: Any
    dtype: str
    shift: float
    scale: float
    low: float | None
    high: float | None
    whole: bool
    minimum: float  # of the training rows, in the units of the column
    maximum: float
    decimals: int | None  # with which the training rows are written
    quantiles: list[float]  # of the training rows, encoded: where along the column they lie
    atoms: list[float] = field(
        default_factory=list
    )  # values with probabilities of their own, since many rows hold them
    type: str = "number"

    def describe(self) -> str:
        """What the column holds, in a few words."""
        bounded = self.low is not None and self.high is not None
        kind = "bounded" if bounded else "positive" if self.low is not None else "continuous"
        kind = f"whole steps of {self.scale:g}" if self.whole else kind
        return " or ".join([*(f"{value:g}" for value in self.atoms), kind])

    def atom_codes(self, values: pd.Series) -> np.ndarray:
        """Which atom each value is, from 1; 0 for none."""
        x, codes = _floats(values), np.zeros(len(values))
        for i, value in enumerate(self.atoms, 1):
            codes[x == value] = i
        return codes

    def position(self, values: pd.Series) -> np.ndarray:
        """y of values that need not lie on the grid."""
        return (_floats(values) - self.shift) / self.scale

    def encode(self, values: pd.Series) -> np.ndarray:
        y = self.position(values)
        return np.rint(y) if self.whole else y

    def impossible(self, y: np.ndarray) -> np.ndarray:
        """Which positions lie beyond a bound or between two steps of the grid."""
        off = np.abs(y - np.rint(y)) > OFF_GRID if self.whole else np.zeros(len(y), dtype=bool)
        y = np.rint(y) if self.whole else y
        below = y < self.low if self.low is not None else False
        return off | below | (y > self.high if self.high is not None else False)

    def parse(self, text: str) -> float:
        """A value of the column from text."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"column {self.name!r}: expected a number, got {text!r}")
        return value

    def place_atoms(self, x: pd.Series, codes: np.ndarray) -> pd.Series:
        """The values with the atoms of these codes in their places."""
        out = x.copy()
        for i, value in enumerate(self.atoms, 1):
            out[codes == i] = value
        return out.astype(x.dtype)

    def condition(self, y: np.ndarray) -> np.ndarray:
        """Encoded values on a common scale, long tails pulled in: what a conditioner reads."""
        if self.whole or (self.low is not None and self.high is not None):
            x = y * self.scale + self.shift
            return (x - (self.minimum + self.maximum) / 2) * 4 / (self.maximum - self.minimum)
        return np.arcsinh(y)

    def decode(self, y: np.ndarray) -> pd.Series:
        """Values of the column: as the density has them, so beyond those of the training rows too."""
        if not np.isfinite(y).all():
            count = int((~np.isfinite(y)).sum())
            raise ValueError(f"column {self.name!r}: {count} of {len(y)} sampled values are not finite")
        x = y * self.scale + self.shift
        if self.decimals is not None:
            x = np.round(x, self.decimals)
        dtype: Any = pd.api.types.pandas_dtype(self.dtype)
        if types.is_integer_dtype(dtype):
            limits = np.iinfo(getattr(dtype, "numpy_dtype", dtype))
            x = _whole(np.rint(x), limits)
        return pd.Series(x).astype(self.dtype)  # pyright: ignore


@dataclass(frozen=True)
class Moment:
    """A column of dates or times: days since an origin, on a grid where the times are that of a clock."""

    name: Any
    dtype: str
    origin: int  # nanoseconds since 1970, UTC
    step: int  # nanoseconds between neighbouring times that were seen
    number: Number
    local: bool = False  # midnights of a time zone: days are counted by its calendar
    type: str = "moment"

    def describe(self) -> str:
        steps = {DAY: "whole days", 3_600_000_000_000: "whole hours", 60_000_000_000: "whole minutes"}
        return "date, " + steps.get(self.step, f"steps of {self.step / 1e9:g} s") if self.number.whole else "time"

    def position(self, values: pd.Series) -> np.ndarray:
        """Days, or steps of the grid, since the origin."""
        if not types.is_datetime64_any_dtype(values.dtype):
            raise ValueError(f"column {self.name!r}: expected dates, got {values.dtype}")
        zones = [getattr(pd.api.types.pandas_dtype(dtype), "tz", None) for dtype in (self.dtype, values.dtype)]
        if (zones[0] is None) != (zones[1] is None):
            raise ValueError(
                f"column {self.name!r}: expected {self.dtype}, got {values.dtype}: a time zone too many or few"
            )
        values = values.dt.tz_convert(zones[0]) if self.local else values
        return self.number.position(pd.Series((_nanoseconds(values, self.local) - self.origin) / DAY))

    def encode(self, values: pd.Series) -> np.ndarray:
        y = self.position(values)
        return np.rint(y) if self.number.whole else y

    def parse(self, text: str) -> pd.Timestamp:
        """A value of the column from text."""
        try:
            moment = pd.Timestamp(text)
        except ValueError:
            moment = pd.NaT
        if moment is pd.NaT:
            raise ValueError(f"column {self.name!r}: expected a date such as 2024-05-31, got {text!r}")
        zone = getattr(pd.api.types.pandas_dtype(self.dtype), "tz", None)
        return moment if zone is None or moment.tz is not None else moment.tz_localize(zone)

    def decode(self, y: np.ndarray) -> pd.Series:
        steps = np.rint(self.number.decode(y).to_numpy() * (DAY / self.step)).astype("int64")
        moments = pd.Series(pd.to_datetime(self.origin + steps * self.step, unit="ns", utc=True))
        zone = getattr(pd.api.types.pandas_dtype(self.dtype), "tz", None)
        if self.local:
            local = moments.dt.tz_localize(None).dt.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")  # type: ignore
            return local.astype(self.dtype)  # pyright: ignore
        return (moments.dt.tz_convert(zone) if zone is not None else moments.dt.tz_localize(None)).astype(self.dtype)  # pyright: ignore


@dataclass(frozen=True)
class Category:
    """A column of categories, each with a code: those of a categorical dtype, or the distinct values.

    An open one has a further code, the last, for every value that is none of its levels.
    """

    name: Any
    dtype: str
    levels: list[Any]
    ordered: bool = False
    open: bool = False
    declared: list[Any] = field(default_factory=list)  # all categories of the dtype, where the levels are but some
    type: str = "category"

    @property
    def codes(self) -> int:
        """How many codes there are."""
        return len(self.levels) + self.open

    def describe(self) -> str:
        return f"{len(self.levels)} categories" + (" and one for all others" if self.open else "")

    def strange(self, values: pd.Series) -> np.ndarray:
        """Which values are none of the levels."""
        return ~self._read(values).isin(self.levels).to_numpy(dtype=bool)

    def hide(self, values: pd.Series, generator: np.random.Generator) -> pd.Series:
        """Training values, some of which became one that is no level, so that a model learns what an unseen one says.

        Their share is what Good and Turing estimate of values never seen: that of the levels in a single row.

        "The population frequencies of species and the estimation of population parameters" (Good, 1953),
        https://doi.org/10.1093/biomet/40.3-4.237
        """
        once = int((values.value_counts() == 1).sum())
        count = min(max(once, math.ceil(UNSEEN * len(values))), len(values) // 2)
        hidden = values.astype(object)
        hidden.iloc[generator.permutation(len(values))[:count]] = HIDDEN
        return hidden

    def encode(self, values: pd.Series) -> np.ndarray:
        code = {level: i for i, level in enumerate(self.levels)}
        other = len(self.levels) if self.open else -1
        codes = np.array([code.get(value, other) for value in self._read(values).tolist()], dtype=np.int64)
        if (codes < 0).any():
            unseen = list(dict.fromkeys(values[codes < 0].tolist()))
            raise ValueError(
                f"column {self.name!r}: {_listed(unseen)} never occurred in training; it knows {_listed(self.levels)}"
            )
        return codes.astype(np.float64)

    def _read(self, values: pd.Series) -> pd.Series:
        """Values in the type of the levels, which a file with one odd row changes; only of an open column."""
        if not self.open:
            return values
        if all(isinstance(level, str) for level in self.levels):
            if pd.api.types.is_numeric_dtype(values.dtype):
                return values.map(lambda v: str(int(v)) if float(v).is_integer() else str(v))
            return values
        if pd.api.types.is_numeric_dtype(values.dtype):
            return values
        read = pd.to_numeric(values.astype(object), errors="coerce").astype(object)
        return read.where(read.notna(), values.astype(object))

    def parse(self, text: str) -> Any:
        """A value of the column from text."""
        for level in self.levels:
            if isinstance(level, int | float) and not isinstance(level, bool) and _same_number(text, level):
                return level
            if str(level) == text or (isinstance(level, bool) and str(level).lower() == text.lower()):
                return level
        if self.open:
            return text
        raise ValueError(f"column {self.name!r}: {text!r} never occurred in training; it knows {_listed(self.levels)}")

    def decode(self, y: np.ndarray) -> pd.Series:
        codes = np.rint(y).astype(np.int64)
        if self.dtype == "category":
            dtype = pd.CategoricalDtype(self.declared or self.levels, self.ordered)
            return pd.Series(pd.Categorical([self.levels[code] for code in codes], dtype=dtype))
        return pd.Series(np.array(self.levels, dtype=object)[codes]).astype(self.dtype)  # pyright: ignore


def _same_number(text: str, level: float) -> bool:
    try:
        return float(text) == level
    except ValueError:
        return False


@dataclass(frozen=True)
class Constant:
    """A column with one value in all training rows: set aside, and put back into samples."""

    name: Any
    dtype: str
    value: Any
    type: str = "constant"

    def describe(self) -> str:
        return f"always {self.value}"

    def differs(self, values: pd.Series) -> np.ndarray:
        """Which rows hold another value."""
        if isinstance(self.value, float | int) and not types.is_numeric_dtype(values.dtype):
            raise ValueError(f"column {self.name!r}: expected numbers, got {values.dtype}")
        return (values.astype(object) != self._typed()).to_numpy(dtype=bool)

    def parse(self, text: str) -> Any:
        """The constant, whatever the text."""
        return self.value

    def decode(self, n: int) -> pd.Series:
        return pd.Series([self._typed()] * n).astype(self.dtype)  # pyright: ignore

    def _typed(self) -> Any:
        return pd.Timestamp(self.value) if self.dtype.startswith("datetime") else self.value


Column = Number | Moment | Category | Constant


def to_json(column: Column) -> dict[str, Any]:
    """The column as JSON data."""
    return asdict(column)


def from_json(data: dict[str, Any]) -> Column:
    """The column that `to_json` wrote."""
    types_: dict[str, Any] = {"number": Number, "moment": Moment, "category": Category, "constant": Constant}
    if data.get("type") not in types_:
        raise ValueError(f"a column of type {data.get('type')!r}, which this version does not know: upgrade diffeo")
    if data["type"] == "moment":
        data = {**data, "number": Number(**data["number"])}
    return types_[data["type"]](**data)


def is_text(dtype: Any) -> bool:
    """Whether a column holds text or categories."""
    return types.is_string_dtype(dtype) or isinstance(dtype, pd.CategoricalDtype)


def learn_column(values: pd.Series, kind: Any = None, known: pd.Series | None = None, unseen: bool = False) -> Column:
    """The column that these training values (none of them missing) make.

    Args:
        values: the column.
        kind: "continuous", "positive", "whole" or "category"; "number" for whole or continuous, without bounds; or
            bounds (low, high) with None for an open side; None finds out.
        known: rows that tell which categories there are, and whether the column is constant; None: the values.
        unseen: whether categories that the values do not hold, be they in `known`, have a code of their own.

    Raises:
        ValueError: text that is no category, a dtype that is not supported, values against a declared kind.
    """
    name, dtype = values.name, values.dtype
    every = values if known is None else known
    if kind is not None and kind not in KINDS and not (isinstance(kind, tuple | list) and len(kind) == 2):
        raise ValueError(f"column {name!r}: expected a kind among {', '.join(KINDS)}, or (low, high); got {kind!r}")
    if types.is_object_dtype(dtype) and all(_is_real(v) for v in every):
        number = learn_column(pd.to_numeric(values), kind, pd.to_numeric(every), unseen)
        return replace(number, name=name)
    if types.is_object_dtype(dtype):
        strange = [v for v in values if not isinstance(v, str | bool | np.bool_) and not _is_real(v)]
        if strange:
            what = type(strange[0]).__name__
            ways = {"Decimal": "astype(float)", "date": "pd.to_datetime", "datetime": "pd.to_datetime"}
            hint = f"convert them by {ways[what]}" if what in ways else "turn them into text or numbers"
            raise ValueError(f"column {name!r}: holds {what} objects; {hint}")
    of_bools = types.is_bool_dtype(dtype) or all(isinstance(v, bool | np.bool_) for v in values)
    of_text = not of_bools and is_text(dtype)
    unseen = unseen and (of_text or kind in ("category", "text"))
    every = values if unseen else every
    distinct = every.drop_duplicates()
    if len(distinct) == 1 and not unseen:
        return Constant(name, str(dtype), _plain(distinct.iloc[0]))
    if values.nunique() == 1 and not unseen:  # constant in training, but known not to be
        values = every
    if kind == "date" and not types.is_datetime64_any_dtype(dtype):
        raise ValueError(f"column {name!r}: expected dates for the kind 'date', got {dtype}; use pd.to_datetime")
    if types.is_datetime64_any_dtype(dtype):
        return _learn_moment(values)
    if types.is_numeric_dtype(dtype) and not types.is_bool_dtype(dtype) and not types.is_complex_dtype(dtype):
        if kind in ("category", "text") or (kind is None and _few_values(_floats(values), _floats(distinct))):
            return Category(name, str(dtype), sorted(_plain(v) for v in distinct), open=unseen)
        if len(np.unique(_floats(distinct))) < len(distinct):
            raise ValueError(f"column {name!r}: its values are too large to be told apart; subtract an offset")
        return _learn_number(name, str(dtype), _floats(values), kind, _floats(distinct))
    if kind not in (None, "category", "text"):
        raise ValueError(f"column {name!r}: expected numbers for the kind {kind!r}, got {dtype}")
    if isinstance(dtype, pd.CategoricalDtype):
        levels = [_plain(v) for v in dtype.categories]
        strange = [v for v in levels if not isinstance(v, str | bool | int | float)]
        if strange or not levels:
            what = f"categories such as {strange[0]!r}" if strange else "no categories"
            raise ValueError(f"column {name!r}: {what}; expected text or numbers, as .astype(str) gives")
        if not unseen:
            return Category(name, "category", levels, bool(dtype.ordered))
        held = set(values.tolist())
        return Category(name, "category", [v for v in levels if v in held], bool(dtype.ordered), True, levels)
    if not (types.is_bool_dtype(dtype) or types.is_string_dtype(dtype) or types.is_object_dtype(dtype)):
        ways = {"m": "turn durations into numbers, by .dt.total_seconds()", "O": "turn it into numbers or text"}
        hint = ways.get(getattr(dtype, "kind", ""), "turn it into numbers, categories or dates")
        raise ValueError(f"column {name!r}: {dtype} is not supported; {hint}")
    if kind is None and not types.is_bool_dtype(dtype):
        _refuse_written_numbers(name, every, distinct)
    if kind is None and len(distinct) > max(20, MOST_LEVELS * len(every)):
        raise ValueError(
            f"column {name!r}: text with {len(distinct)} distinct values in {len(every)} rows is no category; "
            "drop it, or turn it into numbers or dates"
        )
    levels = sorted((_plain(v) for v in distinct), key=lambda v: (str(type(v)), v))
    return Category(name, str(dtype), levels, open=unseen)


def atom(column: Column, values: pd.Series) -> tuple[Any, float] | None:
    """A value of a continuous column that holds too many rows for a density and is no atom, and their share."""
    if not isinstance(column, Number) or column.whole:
        return None
    x = _floats(values)
    distinct, counts = np.unique(x[~np.isin(x, column.atoms)], return_counts=True)
    share = counts.max(initial=0) / len(values)
    return (float(distinct[counts.argmax()]), share) if share > ATOM and counts.max() >= 5 else None


def _atoms(x: np.ndarray) -> list[float]:
    """Values that stand out by how often they occur, where the others are too many to be levels themselves."""
    distinct, counts = np.unique(x, return_counts=True)
    least = max(10.0, (COARSE_ATOM if len(distinct) < len(x) / 4 else FINE_ATOM) * len(x))
    often = counts >= least
    rest = counts[~often]
    if not often.any() or often.sum() > MOST_ATOMS or len(rest) <= FEW or counts[often].min() < 5 * np.median(rest):
        return []
    return [float(value) for value in distinct[often]]


def _learn_number(name: Any, dtype: str, x: np.ndarray, kind: Any, known: np.ndarray) -> Number:
    atoms = _atoms(x) if kind in (None, "number") else []
    if atoms:  # the others make a column of their own
        rest = _learn_number(name, dtype, x[~np.isin(x, atoms)], kind, known[~np.isin(known, atoms)])
        written = {"minimum": min(rest.minimum, *atoms), "maximum": max(rest.maximum, *atoms)}
        return replace(rest, atoms=atoms, **written)
    distinct = np.unique(x)
    if len(distinct) == 1:
        raise ValueError(f"column {name!r}: its values are too large to be told apart; subtract an offset first")
    if not TINY < distinct[-1] - distinct[0] < 1 / TINY:
        size = "small" if distinct[-1] - distinct[0] < 1 else "large"
        raise ValueError(f"column {name!r}: its values are too {size} for float32; multiply it by a scale first")
    least, most = known.min(), known.max()  # bounds are bounds of every row there is
    low, high = kind if isinstance(kind, tuple | list) else (None, None)
    decimals = _decimals(distinct)
    step = _step(distinct, decimals)
    whole = kind == "whole" or (kind in (None, "number") and step is not None and _repeats(x, step))
    written = {"minimum": float(distinct[0]), "maximum": float(distinct[-1]), "decimals": decimals}

    def number(shift: float, scale: float, low: float | None, high: float | None, whole: bool = False) -> Number:
        at = (np.quantile(x, np.linspace(0, 1, QUANTILES)) - shift) / scale
        quantiles = (np.rint(at) if whole else at).tolist()
        return Number(name, dtype, float(shift), float(scale), low, high, whole, quantiles=quantiles, **written)

    if whole:
        if step is None:
            raise ValueError(f"column {name!r}: its values are not evenly spaced, so they are not whole steps")
        # a grid that begins at zero or one step above it counts something, which is never less
        counts = kind != "number" and bool(0 <= least <= distinct[0] <= 1.5 * step)
        shift = distinct[0] - (math.floor(distinct[0] / step + 1e-9) * step if counts else 0.0)
        return number(shift, step, 0.0 if counts else None, None, whole=True)
    if kind == "positive":
        low = 0.0
    elif kind is None and least > 0:
        if most < 1 and distinct[0] < 0.1 and distinct[-1] > 0.9:
            low, high = 0.0, 1.0
        elif distinct[0] < 0.5 * np.median(x):  # otherwise the bound is too far away to matter
            low = 0.0
    if (low is not None and least <= low) or (high is not None and most >= high):
        raise ValueError(
            f"column {name!r}: values from {least:g} to {most:g} reach the bounds ({low}, {high}); "
            "they must lie strictly between"
        )
    if low is not None and high is not None:
        return number(low, high - low, 0.0, 1.0)
    if low is not None:
        return number(low, np.median(x - low), 0.0, None)
    if high is not None:
        return number(high, np.median(high - x), None, 0.0)
    return number(np.median(x), x.std(), None, None)


def _learn_moment(values: pd.Series) -> Moment:
    zone = values.dt.tz
    local = zone is not None and bool((values.dt.tz_localize(None) == values.dt.tz_localize(None).dt.normalize()).all())
    ns = _nanoseconds(values, local)
    origin = int(ns.min())
    step = int(np.gcd.reduce(ns - origin)) or 1
    days = (ns - origin) / DAY
    whole = _repeats(days, step / DAY)
    spread = float(days.std())
    shift, scale = (0.0, step / DAY) if whole else (float(np.median(days)), spread)
    at = (np.quantile(days, np.linspace(0, 1, QUANTILES)) - shift) / scale
    quantiles = (np.rint(at) if whole else at).tolist()
    number = Number("days", "float64", shift, scale, None, None, whole, 0.0, float(days.max()), None, quantiles)
    return Moment(values.name, str(values.dtype), origin, step, number, local)


def _decimals(distinct: np.ndarray) -> int | None:
    """How many decimals write every value exactly, or None where there are too many."""
    for decimals in range(DECIMALS + 1):
        scaled = distinct * 10.0**decimals
        # as exact as single precision can be, but never so coarse that large values all count as whole
        if np.all(np.abs(scaled - np.rint(scaled)) <= np.minimum(1e-3, 2e-7 * np.abs(scaled))):
            return decimals
    return None


def _step(distinct: np.ndarray, decimals: int | None) -> float | None:
    """The spacing of the grid that holds every value, or None where there is none."""
    gaps = np.diff(distinct)
    if decimals is not None and (distinct[-1] - distinct[0]) * 10.0**decimals < 2**53:
        steps = np.rint((distinct - distinct[0]) * 10.0**decimals).astype(np.int64)
        return float(np.gcd.reduce(steps) / 10.0**decimals)
    counted = gaps / gaps.min()
    on_grid = np.abs(counted - np.rint(counted)).max() < 1e-3 and counted.sum() < 1e6
    return float((distinct[-1] - distinct[0]) / np.rint(counted).sum()) if on_grid else None


def _few_values(x: np.ndarray, distinct: np.ndarray) -> bool:
    """Whether numbers are levels: two values, or a few, between two of which, both common, their grid is empty."""
    if len(distinct) == 2:
        return True
    if not 2 < len(distinct) <= FEW or len(x) < 10 * len(distinct):
        return False
    distinct = np.sort(distinct)
    step = _step(distinct, _decimals(distinct))
    if step is None:
        return True
    seen, counts = np.unique(x, return_counts=True)
    common = seen[counts >= COMMON]
    gaps = np.diff(common)[np.isin(common[1:], distinct)] if len(common) > 1 else np.zeros(0)
    inside = np.searchsorted(distinct, common[1:]) - np.searchsorted(distinct, common[:-1]) == 1  # nothing rare between
    return bool((gaps[inside] > 1.5 * step).any())


def _refuse_written_numbers(name: Any, every: pd.Series, distinct: pd.Series) -> None:
    """Refuse text most of whose many values are numbers or dates in another way of writing, and say how to read it."""
    text = distinct.astype(str)
    looks = {
        "numbers with a decimal comma": text.str.fullmatch(r"[+-]?\d+,\d+"),
        "numbers with separated thousands": text.str.fullmatch(r"[+-]?\d{1,3}([,.' ]\d{3})+([.,]\d+)?"),
        "numbers with a sign": text.str.fullmatch(r"[$€£¥<>~≈≤≥]\s*[\d.,]+|[\d.,]+\s*[%$€£¥]"),
        "dates": text.str.fullmatch(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}.*"),
        "numbers": pd.to_numeric(text, errors="coerce").notna() & ~text.str.match(r"[+-]?0\d"),
    }
    hints = {
        "numbers with a decimal comma": "read it with decimal=',' (--decimal ,)",
        "numbers with separated thousands": "read it with thousands=',', or with decimal=',' (--decimal ,)",
        "numbers with a sign": "take the signs out",
        "dates": "write dates as 2024-05-31, as pd.to_datetime gives them",
        "numbers": "if the others mean that a value is missing, name them (--na)",
    }
    share = {what: found.mean() for what, found in looks.items()}
    if sum(share.values()) < 0.5 or sum(found.sum() for found in looks.values()) <= FEW_NUMBERS:
        return
    what = max(share, key=lambda k: share[k])
    other, example = text[~looks[what]], text[looks[what]].iloc[0]
    rest = ""
    if len(other):
        rows = np.flatnonzero((every.astype(str) == other.iloc[0]).to_numpy())
        place = every.index[rows[0]]
        rest = f", but for {len(rows)} of {len(every)} rows with {other.iloc[0]!r}, first in row "
        rest += str(place + 1 if isinstance(place, Integral) else place)
    raise ValueError(
        f"column {name!r}: text that looks like {what}, such as {example!r}{rest}; "
        f"{hints[what]}, or declare it a category (kinds={{{name!r}: 'category'}}, --kind {name}=category)"
    )


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _repeats(x: np.ndarray, step: float) -> bool:
    """Whether a column on a grid of this step meets its values again, beyond a single atom, and not by a hair."""
    distinct, counts = np.unique(x, return_counts=True)
    rest = len(x) - counts.max()
    coarse = (distinct[-1] - distinct[0]) / step <= max(1000, 20 * len(distinct))
    return coarse and (rest == 0 or (len(distinct) - 1) < REPEATS * rest)


def _floats(values: pd.Series) -> np.ndarray:
    if types.is_object_dtype(values.dtype) and all(isinstance(v, int | float | np.number) for v in values):
        values = pd.Series(pd.to_numeric(values), name=values.name)
    if not types.is_numeric_dtype(values.dtype) or types.is_complex_dtype(values.dtype):
        raise ValueError(f"column {values.name!r}: expected numbers, got {values.dtype}")
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _whole(x: np.ndarray, limits: np.iinfo) -> np.ndarray:
    """Whole numbers as integers, those beyond the type's limits at its limits."""
    wide = np.uint64 if limits.dtype.kind == "u" else np.int64
    inside = np.where((x > limits.min) & (x < limits.max), x, 0.0).astype(wide)
    return np.where(x >= limits.max, wide(limits.max), np.where(x <= limits.min, wide(limits.min), inside))


def _nanoseconds(values: pd.Series, local: bool = False) -> np.ndarray:
    """Since 1970: in UTC, or on the clock of the time zone."""
    if values.min().year < 1678 or values.max().year > 2261:
        raise ValueError(
            f"column {values.name!r}: dates from {values.min():%Y-%m-%d} to {values.max():%Y-%m-%d}; only those of "
            "1678 to 2261 can be modelled: turn it into numbers, such as years, or leave it out"
        )
    moments = values
    if values.dt.tz is not None:
        moments = (values if local else values.dt.tz_convert("UTC")).dt.tz_localize(None)
    return moments.astype("datetime64[ns]").to_numpy().astype(np.int64)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"expected finite numbers, got {value}")
    return value


def _listed(values: list[Any], most: int = 4) -> str:
    return ", ".join(repr(v) for v in values[:most]) + (", …" if len(values) > most else "")
