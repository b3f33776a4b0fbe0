"""A density over the rows of a table, in the table's own units."""

# pandas' and scikit-learn's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import copy
from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from diffeo.core import Density, Flow
from diffeo.densities import Dequantized, Mixed
from diffeo.kernels.private import version
from diffeo.tables.columns import Category, Constant
from diffeo.tables.dtypes import plain_values, restored
from diffeo.tables.explain import surprise
from diffeo.tables.frames import as_kind, as_pandas
from diffeo.tables.schema import Schema, impossible

if TYPE_CHECKING:
    from diffeo.training import FitResult

BLOCK = 8192  # rows scored or drawn at once
ROUNDING = 1e-9  # log-densities this near each other, relatively where they are large, count as equal in percentiles
REDRAWS = 100  # rounds in which rows with unseen categories are drawn again
QUANTILES = 1001  # of held-out rows' log-densities, kept for percentiles
NOISE, EXPLAIN_NOISE = 8, 4  # points of the cell of a whole number at which its density is taken; in `explain`


class TableDensity:
    """A density of DataFrames: p(row), or p(row | given columns), as `fit_table` returns it and `load` reads it.

    log p(row) = log P(categories) + log p(numbers | categories), in nats, numbers in the units of the table (dates by
    the day). A column on a grid counts with the mean density over the cell of its value, which is its probability where
    the grid is that of the integers; the cell's mean is taken over a few fixed points, so that with such columns the
    value is an estimate of a lower bound (`exact` is False), though always the same for the same row.

    Attributes:
        schema: what the columns hold.
        density: the density of encoded rows, a `Density`.
        notes: JSON data: history of the fit, quantiles of the training rows' log-densities, and what else was kept.
        exact: whether log-densities are exact.
        result: the `FitResult` of the fit that made it; None after loading.

    "Masked Autoencoder for Distribution Estimation" (Germain et al., 2015), https://arxiv.org/abs/1502.03509, for
    categories; "A note on the evaluation of generative models" (Theis et al., 2015), https://arxiv.org/abs/1511.01844,
    for whole numbers.

    >>> import numpy as np, pandas as pd, diffeo
    >>> rng = np.random.default_rng(0)
    >>> table = pd.DataFrame({"coin": rng.choice(["heads", "tails"], 200), "toss": rng.normal(size=200)})
    >>> model = diffeo.fit_table(table, recipe="maf", steps=10, progress=False)
    >>> model.sample(3).dtypes.tolist() == table.dtypes.tolist()
    True
    """

    def __init__(self, schema: Schema, density: Density, notes: Mapping[str, Any] | None = None):
        self.schema = schema
        self.density = density.eval()
        self.notes = dict(notes or {})
        self.result: FitResult | None = None
        self._exact: tuple[Any, Density] | None = None  # the density in float64, and of which weights

    @property
    def columns(self) -> list[Any]:
        """Names of all columns of the table, constant and given ones included."""
        return [c.name for c in self.schema.columns]

    @property
    def text_columns(self) -> set[str]:
        """Names of the columns that hold text, whatever it looks like."""
        return {str(c.name) for c in self.schema.columns if isinstance(c, Category) and isinstance(c.levels[0], str)}

    @property
    def exact(self) -> bool:
        return self.density.exact

    def log_prob(self, table: pd.DataFrame, samples: int = NOISE) -> pd.Series:
        """Log-density of each row in nats, with the index of the table.

        Rows that the table could not hold get −∞: a value beyond a bound, between two steps of a grid, or another one
        in a constant column.

        Args:
            table: with (at least) the model's columns, in any order.
            samples: points of the cell of a whole number; more cost more and tighten the bound.

        Raises:
            ValueError: a missing column, a missing or infinite value, a category never seen in training, a wrong dtype.
        """
        table = as_pandas(table, "log_prob")
        self.schema.check(table, self.columns)
        x, context = self.schema.encode(table), self.schema.encode_given(table)
        log_p = self.score(torch.from_numpy(x), None if context is None else torch.from_numpy(context), samples).numpy()
        log_p[self.schema.impossible(table)] = -np.inf
        return pd.Series(log_p, index=table.index, name="log_density")

    def score(self, x: Tensor, context: Tensor | None = None, samples: int = NOISE) -> Tensor:
        """Log-density of encoded rows in the table's units, in float64 and in blocks."""
        exact = self.exact_density
        noise = None
        if not exact.exact:
            noise = _lattice(samples, x.shape[-1])
        out = []
        size = BLOCK if noise is None else max(1, BLOCK // samples)
        with torch.inference_mode():
            for start in range(0, len(x), size):
                rows = x[start : start + size].double()
                c = None if context is None else context[start : start + size].double()
                out.append(exact(rows, c) if noise is None else exact(rows, c, noise=noise))  # type: ignore[call-arg]
        return torch.cat(out) - torch.from_numpy(self.schema.log_volumes(x.numpy())) if out else x.new_zeros(0).double()

    def rank_among(self, log_prob: np.ndarray, held_out: bool = True) -> None:
        """Take percentiles among rows of these log-densities from now on: rows that the weights have not seen."""
        at = np.linspace(0, 1, min(QUANTILES, len(log_prob)))
        # values that occur: between −∞ and another there is nothing
        self.notes["log_prob_quantiles"] = np.quantile(log_prob, at, method="nearest").tolist()
        self.notes["ranked"] = {"rows": len(log_prob), "held_out": held_out}

    def percentile(self, log_prob: pd.Series | np.ndarray) -> np.ndarray:
        """Share of held-out rows, in percent, whose log-density is not above each of these.

        Among n held-out rows, the standard error of a percentile p is √(p (100 − p) / n). A model that was fitted
        without held-out rows ranks among its training rows, whose densities are too high; `notes["ranked"]` says which.
        """
        known = np.asarray(self.notes["log_prob_quantiles"])
        # Equal rows, of which tables of categories have many, must not change places with a density's last bit, which
        # depends on how many rows are scored at once, and on the processor.
        known = known - ROUNDING * np.maximum(1.0, np.abs(known))
        return 100 * np.searchsorted(known, np.asarray(log_prob), side="right") / len(known)

    def sample(
        self,
        n: int,
        given: pd.DataFrame | Mapping[Any, Any] | None = None,
        *,
        temperature: float = 1.0,
        seed: int | torch.Generator | None = None,
    ) -> pd.DataFrame:
        """Rows like those of the table: its columns, dtypes, categories, ranges and rounding.

        Args:
            n: number of rows; with a table of several given rows, that many rows.
            given: values of the given columns: one for each column, or a DataFrame of n rows.
            temperature: below 1 for rows closer to the mode, above 1 for more varied ones.
            seed: for reproducible rows, or a generator; None draws from torch's global one.

        Raises:
            ValueError: n below 1, given values missing, unknown or of another number of rows.
        """
        if not isinstance(n, Integral) or n < 1:
            raise ValueError(f"sample: expected a whole number of rows, at least 1, got {n}")
        conditions = self._conditions(n, given)
        context = None if conditions is None else self.schema.encode_given(conditions)
        generator = torch.Generator().manual_seed(int(seed)) if isinstance(seed, Integral) else seed

        def draw(count: int, known: np.ndarray | None) -> np.ndarray:
            rows = []
            for start in range(0, count, BLOCK):
                size = min(BLOCK, count - start)
                c = None if known is None else torch.from_numpy(known[start : start + size]).float()
                rows.append(self.density.sample((size,), c, temperature=temperature, generator=generator))
            return torch.cat(rows).double().numpy()

        drawn = draw(n, context)
        for _ in range(REDRAWS):
            again = np.flatnonzero(self.schema.unseen(drawn))
            if len(again):
                drawn[again] = draw(len(again), None if context is None else context[again])
        if (left := int(self.schema.unseen(drawn).sum())) > 0:
            raise ValueError(f"sample: {left} rows still hold unseen categories after {REDRAWS} draws of them")
        drawn = self.schema.decode(drawn, conditions)
        return as_kind(restored(drawn, self.notes.get("dtypes", [])), self.notes.get("frame", "pandas"))

    def explain(self, table: pd.DataFrame) -> pd.DataFrame:
        """Which columns make each row unusual: the surprise, in nats, of each value given the rest of its row.

        sⱼ = E[log p(Xⱼ | x₋ⱼ)] − log p(xⱼ | x₋ⱼ), the expectation under the model: 0 on average, large where the value
        does not go with the others, ∞ where the column cannot hold it. Conditional densities are found by quadrature
        along each column.

        Cost: about 130 density evaluations for each value of a number, one for each category.
        """
        table = as_pandas(table, "explain")
        self.schema.check(table, self.columns)
        x, context = self.schema.encode(table), self.schema.encode_given(table)
        c = None if context is None else torch.from_numpy(context)
        whole = [n.whole for n in self.schema.numbers]
        bounds = [(n.low, n.high) for n in self.schema.numbers]
        quantiles = [torch.tensor(n.quantiles, dtype=torch.float64) for n in self.schema.numbers]
        levels = self.schema.levels
        atoms = {i: len(levels) - len(self.schema.with_atoms) + j for j, i in enumerate(self.schema.with_atoms)}

        def encoded(rows: Tensor, c: Tensor | None) -> Tensor:
            """The density of encoded rows, whose units are those of the points along a column."""
            return self.score(rows, c, EXPLAIN_NOISE) + torch.from_numpy(self.schema.log_volumes(rows.numpy()))

        nats = surprise(encoded, torch.from_numpy(x), c, levels, quantiles, bounds, whole, atoms)
        names = [column.name for column in self.schema.modelled]
        shown = pd.DataFrame(nats.numpy(), index=table.index, columns=pd.Index(names))
        for column in self.schema.columns:
            if isinstance(column, Constant) and column.name not in self.schema.given:
                shown[column.name] = np.where(column.differs(table[column.name]), np.inf, 0.0)
            elif column.name in names and not isinstance(column, Category):
                shown.loc[impossible(column, table[column.name]), column.name] = np.inf
        return shown[[name for name in self.columns if name in shown]]

    def latents(self, table: pd.DataFrame, centred: bool = False) -> np.ndarray:
        """What the flow maps the numbers of each row to, shape (n, numbers): like draws of its base if it fits.

        A whole number lies anywhere in its cell; `centred`, in the middle, so that equal rows have equal latents.
        """
        flow, mixed = self._parts()
        outer = self.exact_density
        if flow is None:
            return np.zeros((len(table), 0))
        table = as_pandas(table, "latents")
        self.schema.check(table, self.columns)
        x, given = torch.from_numpy(self.schema.encode(table)), self.schema.encode_given(table)
        c = None if given is None else torch.from_numpy(given)
        k = len(self.schema.levels)
        out = []
        with torch.inference_mode():
            for start in range(0, len(x), BLOCK):
                rows = x[start : start + BLOCK]
                noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(start)).double()
                noise = torch.full_like(noise, 0.5) if centred else noise
                placed = outer.place(rows, noise)[0] if isinstance(outer, Dequantized) else rows
                context = None if c is None else c[start : start + BLOCK]
                if mixed is not None:
                    context = mixed.condition(rows[:, :k], context)
                out.append(flow.transform(placed[:, k:], context)[0])
        return torch.cat(out).numpy()

    def base_samples(self, n: int, generator: torch.Generator | None = None) -> np.ndarray:
        """Draws of the flow's base, shape (n, numbers), to hold `latents` against."""
        flow, _ = self._parts()
        return np.zeros((n, 0)) if flow is None else flow.base.sample(n, generator=generator).numpy()

    def _parts(self) -> tuple[Flow | None, Mixed | None]:
        """The flow of the numbers and what joins it to the categories; None for what there is not."""
        inner = self.exact_density
        inner = inner.density if isinstance(inner, Dequantized) else inner
        mixed = inner if isinstance(inner, Mixed) else None
        flow = inner if mixed is None else mixed.numbers
        return (flow if isinstance(flow, Flow) else None), mixed

    def _conditions(self, n: int, given: pd.DataFrame | Mapping[Any, Any] | None) -> pd.DataFrame | None:
        """The given values as a table of n rows with the dtypes of training, or an error that says what is wrong."""
        names = list(self.schema.given)
        if not names:
            if given is not None and len(given):
                raise ValueError(f"sample: this model has no given columns, got values for {list(given)}")
            return None
        if given is None:
            raise ValueError(f"sample: this model is conditional: give values of {names}")
        unknown = [name for name in given if name not in names]
        lacking = [name for name in names if name not in given]
        if unknown or lacking:
            which = f"{lacking[0]!r} is missing" if lacking else f"{unknown[0]!r} is none of them"
            raise ValueError(f"sample: expected values of the given columns {names}; {which}")
        if not isinstance(given, Mapping):
            given = as_pandas(given, "sample: given")
        if not isinstance(given, pd.DataFrame):
            given = pd.DataFrame({name: [given[name]] * n for name in names})
            given = plain_values(given, self.notes.get("dtypes", []))
        if len(given) != n:
            raise ValueError(f"sample: {n} rows, but {len(given)} rows of given values")
        return given.reset_index(drop=True)

    @property
    def exact_density(self) -> Density:
        """The density in float64: what scores are computed with, so that a row alone scores as it does among others."""
        tensors = (*self.density.parameters(), *self.density.buffers())
        state = [(t.data_ptr(), version(t)) for t in tensors]
        if self._exact is None or self._exact[0] != state:  # the density may be trained further
            self._exact = state, copy.deepcopy(self.density).double().eval()
        return self._exact[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_exact": None}

    def __repr__(self) -> str:
        kinds = [f"{c.name}: {c.describe()}" for c in self.schema.columns]
        given = f" | {', '.join(map(str, self.schema.given))}" if self.schema.given else ""
        return f"TableDensity({', '.join(kinds)}{given})"


def _lattice(samples: int, dimensions: int) -> Tensor:
    """Fixed, evenly spaced points of the unit cube (Kronecker's, along powers of a generalised golden ratio)."""
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    steps = ratio ** -torch.arange(1, dimensions + 1, dtype=torch.float64)
    return (0.5 + torch.arange(samples, dtype=torch.float64)[:, None] * steps) % 1.0
