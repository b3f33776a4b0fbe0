"""`write_report`: what a model says about a table, as one self-contained HTML page."""

# pandas' and scikit-learn's annotations are unions of all that could come back
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

import base64
import html
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from diffeo.plotting import plot_calibration, plot_latents, plot_marginal, plot_pairs
from diffeo.storage import replacing
from diffeo.tables import TableDensity
from diffeo.tables.columns import Constant, Number
from diffeo.tables.frames import as_pandas
from diffeo.training import FitResult
from diffeo.version import __version__

MOST_ROWS = 20_000  # rows of the table that the page looks at
MOST_MARGINALS, MOST_PAIRS, MOST_UNUSUAL, MOST_REASONS = 24, 5, 10, 3


def write_report(
    model: TableDensity,
    table: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    title: str = "table",
    model_name: str = "model",
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Write one self-contained HTML page: fit, marginals, pairs, calibration, the most unusual rows and why.

    Args:
        model: the density of a table.
        table: rows with its columns, best ones it was not fitted to.
        path: of the page, written whole or not at all.
        title, model_name: what the page calls table and model.
        seed: of the samples shown beside the data.
        progress: show a progress bar, where there is a terminal.

    Raises:
        ValueError: a table that the model cannot score.
    """
    import matplotlib as mpl
    from rich.console import Console
    from rich.progress import track

    table = as_pandas(table, "write_report")
    log_p = model.log_prob(table)
    some = np.sort(np.random.default_rng(seed).permutation(len(table))[:MOST_ROWS])
    seen = table.iloc[some]
    given = seen[list(model.schema.given)].reset_index(drop=True) if model.schema.given else None
    samples = as_pandas(model.sample(len(seen), given, seed=seed), "write_report")
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "path", "axes.edgecolor": "#8a94a0", "figure.dpi": 150}):
        parts: dict[str, Callable[[], Any]] = {
            "history": lambda: _history(model),
            "marginals": lambda: _marginals(model, seen, samples),
            "pairs": lambda: _pairs(model, seen, samples),
            "calibration": lambda: _calibration(model, log_p.to_numpy()[some], samples, seed),
            "latents": lambda: _latents(model, seen, seed),
            "unusual": lambda: _unusual(model, table, log_p),
        }
        shown = progress and sys.stderr.isatty()
        bar = track(
            parts.items(), "report", len(parts), console=Console(stderr=True), disable=not shown, transient=True
        )
        figures = {name: draw() for name, draw in bar}
    page = _template().render(
        title=title,
        model_name=model_name,
        facts=_facts(model, table, log_p),
        scores=_scores(model),
        figures=figures,
        columns=[(c.name, c.describe(), c.name in model.schema.given) for c in model.schema.columns],
        unusual=figures["unusual"],
        exact=model.exact,
        given=model.schema.given,
        shown=len(seen),
        total=len(table),
        hidden=max(0, len(_drawn(model)) - MOST_MARGINALS),
        version=__version__,
        flow=model.notes["flow"],
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))


def _facts(model: TableDensity, table: pd.DataFrame, log_p: pd.Series) -> list[tuple[str, str, str]]:
    """The big numbers: value, unit, and what it is."""
    rows = model.notes["rows"]
    percentile = model.percentile(log_p)
    facts = [
        (f"{len(table):,}", "rows", f"of {len(model.columns)} columns in this table"),
        (f"{rows['train']:,}", "rows", "taught the model"),
        (f"{log_p.mean():.2f}", "nats", "mean log-density of a row here"),
        (f"{(percentile < 1).mean():.1%}", "", "of the rows lie below 99 % of the held-out rows"),
    ]
    return facts


def _scores(model: TableDensity) -> list[dict[str, Any]]:
    """The flow beside the baselines on held-out rows, as bars; the longest bar is the best."""
    if "test_nats" not in model.notes:
        return []
    notes = model.notes
    entries = [(f"{notes['flow']} (this flow)", notes["test_nats"], notes["test_stderr"], "", True)]
    entries += [(b["name"], b["nats"], b["stderr"], b["choice"], False) for b in notes["baselines"]]
    values = np.array([entry[1] for entry in entries])
    best, worst = values.max(), values.min()
    span = max(best - worst, 1e-9)
    return [
        {
            "name": name,
            "nats": f"{nats:.3f}",
            "stderr": f"{stderr:.3f}",
            "choice": choice,
            "own": own,
            "width": 12 + 88 * (nats - worst) / span,
            "behind": best - nats,
        }
        for name, nats, stderr, choice, own in sorted(entries, key=lambda entry: -entry[1])
    ]


def _unusual(model: TableDensity, table: pd.DataFrame, log_p: pd.Series) -> list[dict[str, Any]]:
    """The rows of lowest log-density, and the columns that make them so."""
    order = np.argsort(log_p.to_numpy(), kind="stable")[:MOST_UNUSUAL]
    possible = [i for i in order if np.isfinite(log_p.iloc[i])]
    nats = model.explain(table.iloc[possible]) if possible else pd.DataFrame()
    percentile = model.percentile(log_p)
    worst = float(nats.to_numpy().max()) if nats.size else 1.0
    rows = []
    for i in order:
        reasons = []
        if i in possible:
            surprise = nats.iloc[possible.index(i)].sort_values(ascending=False)
            reasons = [
                {
                    "column": name,
                    "value": _show(table[name].iloc[i]),
                    "nats": f"{value:.1f}",
                    "width": 100 * max(0.0, float(value)) / max(worst, 1e-9),
                }
                for name, value in surprise.items()
                if value > 1 or name == surprise.index[0]
            ][:MOST_REASONS]
        rows.append(
            {
                "row": f"{i + 1:,}",
                "log_p": f"{log_p.iloc[i]:.1f}" if np.isfinite(log_p.iloc[i]) else "−∞",
                "percentile": f"{percentile[i]:.1f}",
                "reasons": reasons,
                "impossible": i not in possible,
            }
        )
    return rows


def _history(model: TableDensity) -> str | None:
    if not model.notes["history"]:
        return None
    result = FitResult(**{**model.notes["fit"], "history": model.notes["history"]})
    ax = _axes(6, 3.2)
    return _svg(result.plot(ax).figure, "Loss curve: log-density of training and held-out rows by step")


def _marginals(model: TableDensity, seen: pd.DataFrame, samples: pd.DataFrame) -> list[tuple[str, str]]:
    out = []
    for name in _drawn(model)[:MOST_MARGINALS]:
        ax = plot_marginal(seen[name], samples[name], _axes(2.4, 1.4))
        out.append((name, _svg(ax.figure, f"{name}: data and samples")))
    return out


def _drawn(model: TableDensity) -> list[Any]:
    """Columns whose samples mean something: not constant, not given."""
    return [c.name for c in model.schema.columns if not isinstance(c, Constant) and c.name not in model.schema.given]


def _pairs(model: TableDensity, seen: pd.DataFrame, samples: pd.DataFrame) -> str | None:
    names = [c.name for c in model.schema.columns if isinstance(c, Number) and c.name not in model.schema.given]
    if len(names) < 2:
        return None
    # those that have most to do with the others
    together = seen[names].astype("float64").rank().corr().abs().fillna(0.0).sum().sort_values(ascending=False)
    chosen = sorted(together.index[:MOST_PAIRS], key=names.index)
    rows = [part[chosen].to_numpy(dtype=np.float64) for part in (seen, samples)]
    figure = plot_pairs(rows[0], rows[1], [str(name) for name in chosen], most=MOST_PAIRS)
    return _svg(figure, "Pairs of columns: data below the diagonal, samples above")


def _calibration(model: TableDensity, log_p: np.ndarray, samples: pd.DataFrame, seed: int) -> str:
    own = np.sort(model.log_prob(samples).to_numpy())
    below, upto = np.searchsorted(own, log_p, "left"), np.searchsorted(own, log_p, "right")
    u = np.random.default_rng(seed).random(len(log_p))  # where categories make rows equally likely
    ranks = (below + u * (upto - below)) / len(own)
    return _svg(plot_calibration(ranks, _axes(4.6, 3.4)).figure, "Ranks of the rows among the model's samples")


def _latents(model: TableDensity, seen: pd.DataFrame, seed: int) -> str | None:
    latents = model.latents(seen)
    if not latents.shape[1]:
        return None
    base = model.base_samples(len(seen), torch.Generator().manual_seed(seed))
    return _svg(plot_latents(latents, base, _axes(3.8, 3.4)).figure, "Quantiles of the latents against the base")


def _axes(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").subplots()


def _svg(figure: Any, alternative: str) -> str:
    """The figure as an image to put into the page."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alternative)}" src="data:image/svg+xml;base64,{data}">'


def _show(value: Any) -> str:
    """A cell as a reader wants to see it."""
    if isinstance(value, float | np.floating):
        return f"{value:.5g}"
    if isinstance(value, pd.Timestamp):
        return value.isoformat(sep=" ").removesuffix(" 00:00:00")
    return str(value)
