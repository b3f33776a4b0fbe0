"""How many fresh clean rows `FlowOutlierDetector(contamination=0.05)` calls outliers, by size of the training table.

Rows are correlated normals; a third of the columns are skewed (exponentials of normals). Finished runs are kept in
results/alarms.json and skipped.

    python benchmarks/alarms.py [--rows 200 1000] [--columns 5 30] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import time
from statistics import mean

import numpy as np

import diffeo
from results import RESULTS, load, markdown, save

RESULT = RESULTS / "alarms.json"
ROWS, COLUMNS, SEEDS = (200, 500, 1_000, 5_000), (5, 30, 100), (0, 1, 2)
CONTAMINATION, FRESH = 0.05, 4_000


def clean(columns: int, seed: int):
    """A sampler of rows: z A with A random, every third column exp."""
    mixing = np.random.default_rng(seed).normal(size=(columns, columns)) / columns**0.5 + np.eye(columns)

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        x = rng.normal(size=(n, columns)) @ mixing
        x[:, ::3] = np.exp(x[:, ::3] / 2)
        return x

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--columns", nargs="+", type=int, default=COLUMNS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    options = parser.parse_args()
    done = load(RESULT, [])
    for seed in options.seeds:
        for rows in options.rows:
            for columns in options.columns:
                if any((r["rows"], r["columns"], r["seed"]) == (rows, columns, seed) for r in done):
                    continue
                draw, rng = clean(columns, seed), np.random.default_rng(seed + 100)
                began = time.perf_counter()
                detector = diffeo.FlowOutlierDetector(contamination=CONTAMINATION, random_state=seed)
                flagged = float((detector.fit(draw(rows, rng)).predict(draw(FRESH, rng)) == -1).mean())
                seconds = round(time.perf_counter() - began, 1)
                done.append({"rows": rows, "columns": columns, "seed": seed, "flagged": flagged, "seconds": seconds})
                save(RESULT, done)
                print(f"{rows:>6} × {columns:<4} seed {seed}: {flagged:.2%}, {seconds} s", flush=True)


def section() -> str:
    """Share of fresh rows flagged, each seed."""
    done = load(RESULT, [])
    if not done:
        return ""
    sizes = sorted({(r["rows"], r["columns"]) for r in done})
    table = [
        [
            f"{rows:,} × {columns}",
            " / ".join(f"{100 * r['flagged']:.1f}" for r in done if (r["rows"], r["columns"]) == (rows, columns)),
        ]
        for rows, columns in sizes
    ]
    shares = [100 * r["flagged"] for r in done]
    return f"""\
## Outliers: the share of alarms

Percent of {FRESH:,} fresh clean rows that `FlowOutlierDetector(contamination=0.05)` calls outliers, for each seed:
correlated normals, every third column skewed. Mean {mean(shares):.1f} %, from {min(shares):.1f} to {max(shares):.1f} %.

{markdown(["training rows × columns", "flagged, %"], table)}

    python benchmarks/alarms.py
"""


if __name__ == "__main__":
    main()
