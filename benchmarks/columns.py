"""Samples against data: twelve columns of every shape, each fitted by `fit_table` as it is, beside a normal column.

The share of samples at or below each of nine quantiles of the data, in standard errors of two samples; shares at atoms
and at the ends of the data. Finished runs are kept in results/columns.json.

    python benchmarks/columns.py [--columns rain capped]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

import diffeo
from results import RESULTS, load, markdown, save

RESULT = RESULTS / "columns.json"
ROWS, DRAWN = 3_000, 20_000
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
OFTEN = 0.01  # share of the rows from which on a value counts as an atom

Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda rng, n: rng.normal(10, 3, n),
    "skewed (log-normal, σ 1)": lambda rng, n: rng.lognormal(0, 1, n),
    "very skewed (log-normal, σ 2.5)": lambda rng, n: rng.lognormal(0, 2.5, n),
    "rain: 61 % zeros": lambda rng, n: np.where(rng.random(n) < 0.61, 0.0, rng.exponential(5, n)),
    "capped at 500": lambda rng, n: np.minimum(rng.exponential(200, n), 500.0),
    "bounded share": lambda rng, n: rng.beta(0.5, 0.5, n),
    "heavy tails (t, 2)": lambda rng, n: rng.standard_t(2, n),
    "two modes": lambda rng, n: np.where(rng.random(n) < 0.3, rng.normal(-4, 0.5, n), rng.normal(2, 1, n)),
    "two spikes": lambda rng, n: np.select(
        [(u := rng.random(n)) < 0.2, u < 0.36], [np.full(n, -9.0), np.full(n, 7.5)], rng.normal(size=n)
    ),
    "counts": lambda rng, n: rng.poisson(3, n).astype(float),
    "uneven levels": lambda rng, n: rng.choice([0, 1, 2, 3, 4, 5.5], n, p=[0.3, 0.2, 0.2, 0.15, 0.1, 0.05]),
    "rounded to 0.1": lambda rng, n: np.round(rng.gamma(2, 2, n), 1),
}


def compare(x: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """The largest distance of quantiles in standard errors, and of shares at atoms and ends in percent."""
    distances = []
    for q in QUANTILES:
        at = np.quantile(x, q, method="inverted_cdf")
        p, got = (x <= at).mean(), (drawn <= at).mean()
        if p < 1:
            distances.append(abs(got - p) / (p * (1 - p) * (1 / len(x) + 1 / len(drawn))) ** 0.5)
    values, counts = np.unique(x, return_counts=True)
    atoms = [abs((drawn == v).mean() - c / len(x)) for v, c in zip(values, counts, strict=True) if c > OFTEN * len(x)]
    ends = [abs((drawn == end).mean() - (x == end).mean()) for end in (x.min(), x.max())]
    return {"quantiles": float(max(distances)), "atoms": 100 * max(atoms, default=0.0), "ends": 100 * max(ends)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    options = parser.parse_args()
    done = load(RESULT, [])
    for name in options.columns:
        if any(r["column"] == name for r in done):
            continue
        rng = np.random.default_rng(0)
        x = SHAPES[name](rng, ROWS)
        table = pd.DataFrame({"x": x, "y": rng.normal(size=ROWS) + 0.1 * np.arcsinh(x)})
        began = time.perf_counter()
        model = diffeo.fit_table(table, progress=False)
        drawn = model.sample(DRAWN, seed=0)["x"].to_numpy()
        done.append({"column": name, **compare(x, drawn), "seconds": round(time.perf_counter() - began, 1)})
        save(RESULT, done)
        print(done[-1], flush=True)


def section() -> str:
    """A row for each column."""
    done = load(RESULT, [])
    if not done:
        return ""
    rows = [[r["column"], f"{r['quantiles']:.1f}", f"{r['atoms']:.2f}", f"{r['ends']:.2f}"] for r in done]
    header = ["column", "quantiles, standard errors", "atoms, % of rows", "ends, % of rows"]
    return f"""\
## Samples against data

`fit_table` as it is on {ROWS:,} rows of one such column and a second, nearly independent one; {DRAWN:,} samples. Over
the quantiles from 1 to 99 %, the largest difference between the shares of samples and of rows below them, in standard
errors of two samples; the largest difference of shares at values that at least {OFTEN:.0%} of the rows have, and at
the smallest and the largest value.

{markdown(header, rows)}

    python benchmarks/columns.py
"""


if __name__ == "__main__":
    main()
