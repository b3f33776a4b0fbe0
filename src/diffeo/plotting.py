"""Pictures with matplotlib, which loads when one is drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

INK, DATA, MODEL, PALE = "#1b1f24", "#3d5a80", "#ee6c4d", "#c9d3df"
MOST_BARS = 12  # categories shown of a column


def plot_pairs(data: np.ndarray, samples: np.ndarray, names: list[str] | None = None, most: int = 4) -> Any:
    """Data beside samples: histograms on the diagonal, data below it, samples above; returns the figure.

    Args:
        data, samples: rows (n, features).
        names: of the columns.
        most: show at most this many columns, the first ones.
    """
    import matplotlib.pyplot as plt

    d = min(data.shape[1], most)
    names = names or [f"x{i}" for i in range(data.shape[1])]
    figure = plt.figure(figsize=(2.1 * d + 0.6, 2.1 * d + 0.6), layout="constrained")
    axes = figure.subplots(d, d, squeeze=False)
    limits = [np.quantile(data[:, i], [0.002, 0.998]) for i in range(d)]
    limits = [(a - 0.05 * (b - a), b + 0.05 * (b - a)) if a < b else (a - 1, b + 1) for a, b in limits]
    rng = np.random.default_rng(0)
    shown = [rows[rng.permutation(len(rows))[:2000]] for rows in (data, samples)]
    for i in range(d):
        for j in range(d):
            ax = axes[i, j]
            if i == j:
                bins = np.linspace(*limits[i], 41)
                with np.errstate(invalid="ignore"):  # where no sample comes near the data
                    ax.hist(data[:, i], bins, density=True, color=DATA, alpha=0.55, label="data")
                    ax.hist(samples[:, i], bins, density=True, histtype="step", color=MODEL, lw=1.5, label="samples")
            else:
                rows, color = (shown[0], DATA) if i > j else (shown[1], MODEL)
                ax.plot(rows[:, j], rows[:, i], ".", ms=1.5, alpha=0.35, color=color, rasterized=True)
                ax.set_ylim(*limits[i])
            ax.set_xlim(*limits[j])
            ax.tick_params(labelbottom=i == d - 1, labelleft=j == 0 and i != j, left=i != j, labelsize=7)
            if i == d - 1:
                ax.set_xlabel(_literal(names[j]), fontsize=9)
            if j == 0:
                ax.set_ylabel(_literal(names[i]), fontsize=9)
            _quiet(ax)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_marginal(data: pd.Series, samples: pd.Series, ax: Any = None) -> Any:
    """One column of data and of samples: a histogram, or bars of categories; returns the axes."""
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.figure(figsize=(3, 2), layout="constrained").subplots()
    numeric = pd.api.types.is_numeric_dtype(data.dtype) and not pd.api.types.is_bool_dtype(data.dtype)
    if (numeric and data.nunique() > MOST_BARS) or pd.api.types.is_datetime64_any_dtype(data.dtype):
        values, drawn = (_as_numbers(column) for column in (data, samples))
        low, high = np.quantile(values, [0.001, 0.999])
        low, high = (low, high) if low < high else (values.min() - 0.5, values.max() + 0.5)
        bins = _bins(values, low, high)
        ax.hist(np.clip(values, low, high), bins, density=True, color=DATA, alpha=0.5)
        ax.hist(np.clip(drawn, low, high), bins, density=True, histtype="step", color=MODEL, lw=1.6)
        ax.set_yticks([])
        if pd.api.types.is_datetime64_any_dtype(data.dtype):
            ticks = np.linspace(low, high, 3)[[0, 2]]
            ax.set_xticks(ticks, [pd.Timestamp(t, unit="s").strftime("%Y-%m-%d") for t in ticks])
    else:
        share = data.value_counts(normalize=True)
        levels = share.index[:MOST_BARS]
        levels = list(levels.sort_values() if numeric or getattr(data.dtype, "ordered", False) else levels)
        drawn = samples.value_counts(normalize=True)
        at = np.arange(len(levels))
        ax.bar(at - 0.2, [share[v] for v in levels], 0.4, color=DATA, alpha=0.6)
        ax.bar(at + 0.2, [drawn.get(v, 0.0) for v in levels], 0.4, color=MODEL, alpha=0.85)
        long = max(len(str(v)) for v in levels) * len(levels) > 24
        ax.set_xticks(
            at, [_literal(_short(str(v))) for v in levels], rotation=30 if long else 0, ha="right" if long else "center"
        )
        ax.set_yticks([])
    ax.tick_params(labelsize=8)
    _quiet(ax)
    ax.spines["left"].set_visible(False)
    return ax


def plot_latents(latents: np.ndarray, base: np.ndarray, ax: Any = None) -> Any:
    """Quantiles of each latent coordinate of the data against those of the base; on the diagonal if it fits."""
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.figure(figsize=(4, 4), layout="constrained").subplots()
    levels = np.linspace(0.005, 0.995, 100)
    lines = [(np.quantile(base[:, j], levels), np.quantile(latents[:, j], levels)) for j in range(latents.shape[1])]
    ends = np.array([[x[0], x[-1]] for x, _ in lines])
    low, high = ends.min(), ends.max()
    ax.plot([low, high], [low, high], color=INK, lw=0.8, ls=":")
    for x, y in lines:
        ax.plot(x, y, color=DATA, lw=1.2, alpha=max(0.25, 1 / math.sqrt(len(lines))))
    ax.set(xlabel="quantiles of the base", ylabel="quantiles of the data's latents")
    _quiet(ax)
    return ax


def plot_calibration(ranks: np.ndarray, ax: Any = None) -> Any:
    """Histogram of where rows fall among the model's own samples, by log-density, in [0, 1]; flat if it fits.

    The band holds 95 % of what chance alone gives.
    """
    import matplotlib.pyplot as plt
    from scipy.stats import binom

    if ax is None:
        ax = plt.figure(figsize=(5, 4), layout="constrained").subplots()
    n, bins = len(ranks), int(min(20, max(5, len(ranks) // 15)))
    low, high = (binom.ppf(q, n, 1 / bins) * bins / n for q in (0.025, 0.975))
    ax.axhspan(float(low), float(high), color=PALE, alpha=0.6, lw=0)
    ax.hist(ranks, np.linspace(0, 1, bins + 1), weights=np.full(n, bins / n), color=DATA, alpha=0.6)
    ax.axhline(1, color=INK, lw=0.8, ls=":")
    ax.set(xlabel="share of samples with a lower log-density", ylabel="rows, relative to an even share", xlim=(0, 1))
    _quiet(ax)
    return ax


def plot_scores(groups: dict[str, np.ndarray], xlabel: str, ax: Any = None) -> Any:
    """Histograms of scores by group on one axis; returns the axes."""
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.figure(figsize=(6, 3.5), layout="constrained").subplots()
    every = np.concatenate(list(groups.values()))
    low, high = np.quantile(every, [0.0, 0.85])  # scores of anomalies may reach very far: the last bar holds the rest
    bins = np.linspace(low, high, 60)
    for (name, values), color in zip(groups.items(), [DATA, MODEL, INK], strict=False):
        ax.hist(np.clip(values, None, high), bins, density=True, alpha=0.55, color=color, label=name)
    ax.set(xlabel=f"{xlabel}; last bar: {high:.0f} and beyond", ylabel="share", yticks=[])
    ax.legend(frameon=False)
    _quiet(ax)
    return ax


def _bins(values: np.ndarray, low: float, high: float, about: int = 30) -> np.ndarray:
    """Edges of about so many bars; on a grid each bar holds equally many of its values."""
    gap = float(np.diff(np.unique(values)).min(initial=high - low))
    if (high - low) / gap > 2000:  # no grid that one could see
        return np.linspace(low, high, about + 1)
    width = max(1, round((high - low) / gap / about)) * gap
    return np.arange(low - gap / 2, high + width, width)


def _as_numbers(column: pd.Series) -> np.ndarray:
    """Values as floats, dates as seconds since 1970."""
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        return column.dt.tz_localize(None).astype("datetime64[ns]").astype("int64").to_numpy() / 1e9
    return column.to_numpy(dtype=np.float64)


def _literal(text: str) -> str:
    """Text as it is, not as matplotlib's mathematics."""
    return text.replace("$", r"\$")


def _short(text: str, most: int = 12) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _quiet(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
