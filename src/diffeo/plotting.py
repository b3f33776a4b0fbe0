"""Pictures with matplotlib, which loads when one is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

INK, DATA, MODEL = "#1b1f24", "#3d5a80", "#ee6c4d"


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
    limits = [(a - 0.05 * (b - a), b + 0.05 * (b - a)) for a, b in limits]
    rng = np.random.default_rng(0)
    shown = [rows[rng.permutation(len(rows))[:2000]] for rows in (data, samples)]
    for i in range(d):
        for j in range(d):
            ax = axes[i, j]
            if i == j:
                bins = np.linspace(*limits[i], 41)
                ax.hist(data[:, i], bins, density=True, color=DATA, alpha=0.55, label="data")
                ax.hist(samples[:, i], bins, density=True, histtype="step", color=MODEL, lw=1.5, label="samples")
            else:
                rows, color = (shown[0], DATA) if i > j else (shown[1], MODEL)
                ax.plot(rows[:, j], rows[:, i], ".", ms=1.5, alpha=0.35, color=color, rasterized=True)
                ax.set_ylim(*limits[i])
            ax.set_xlim(*limits[j])
            ax.tick_params(labelbottom=i == d - 1, labelleft=j == 0 and i != j, left=i != j, labelsize=7)
            if i == d - 1:
                ax.set_xlabel(names[j], fontsize=9)
            if j == 0:
                ax.set_ylabel(names[i], fontsize=9)
            _quiet(ax)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


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


def _quiet(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
