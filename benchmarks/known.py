"""Defaults on eight known densities: `FlowDensity()` beside a mixture of Gaussians by BIC and a KDE, 3,000 rows.

    python benchmarks/known.py [--densities spiral banana] [--seeds 0 1 2]

Scores are nats on 20,000 fresh rows, less those of the density itself. Finished runs are kept in results/known.json.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from statistics import mean
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm, t
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import diffeo
from diffeo.baselines import score_baselines
from results import RESULTS, load, markdown, number, save

RESULT = RESULTS / "known.json"
ROWS, FRESH, COMPONENTS = 3_000, 20_000, range(1, 31)
MULTIMODAL = ("five clusters", "two rings", "spiral", "two moons", "clusters in 5-D")


class Known(NamedTuple):
    """A density that can be drawn from and evaluated."""

    draw: Callable[[int, np.random.Generator], np.ndarray]
    log_prob: Callable[[np.ndarray], np.ndarray]


def around(points: np.ndarray, spread: float) -> Known:
    """Normals of one spread around points, all as likely."""
    d = points.shape[1]

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        return points[rng.integers(0, len(points), n)] + spread * rng.standard_normal((n, d))

    def log_prob(x: np.ndarray) -> np.ndarray:
        parts = [
            logsumexp(-((some[:, None] - points) ** 2).sum(-1) / (2 * spread**2), axis=1)
            for some in np.array_split(x, 40)
        ]
        return np.concatenate(parts) - math.log(len(points)) - d * math.log(spread) - 0.5 * d * math.log(2 * math.pi)

    return Known(draw, log_prob)


def _circle(radius: float, n: int) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return radius * np.c_[np.cos(angle), np.sin(angle)]


def densities() -> dict[str, Known]:
    """All eight."""
    turn = np.sqrt(np.linspace(0.05, 1, 400)) * 3 * np.pi
    half = np.linspace(0, np.pi, 150)
    upper, lower = np.c_[np.cos(half), np.sin(half)], np.c_[1 - np.cos(half), 0.5 - np.sin(half)]
    skew = np.linalg.cholesky(np.array([[1, 0.5, 0.2], [0.5, 1, 0.4], [0.2, 0.4, 1]]))
    shear = np.array([[1, 0, 0, 0], [0.6, 1, 0, 0], [-0.3, 0.4, 1, 0], [0.2, 0.1, 0.5, 1]])

    def banana(n: int, rng: np.random.Generator) -> np.ndarray:
        z = rng.standard_normal((n, 2)) * [2, 0.5]
        return np.c_[z[:, 0], z[:, 1] + 0.5 * z[:, 0] ** 2]

    return {
        "five clusters": around(_circle(4, 5), 0.5),
        "two rings": around(np.concatenate([_circle(1, 100), _circle(2.5, 250)]), 0.15),
        "spiral": around(np.c_[turn * np.cos(turn), turn * np.sin(turn)] / 3, 0.15),
        "two moons": around(np.concatenate([upper, lower]), 0.1),
        "clusters in 5-D": around(3 * np.random.default_rng(5).normal(size=(6, 5)), 0.7),
        "skewed, 3-D": Known(
            lambda n, rng: np.exp(rng.standard_normal((n, 3)) @ skew.T),
            lambda x: (
                norm.logpdf(np.linalg.solve(skew, np.log(x).T).T).sum(1)
                - np.log(np.diag(skew)).sum()
                - np.log(x).sum(1)
            ),
        ),
        "heavy tails, 4-D": Known(
            lambda n, rng: rng.standard_t(2.5, (n, 4)) @ shear.T,
            lambda x: t.logpdf(np.linalg.solve(shear, x.T).T, 2.5).sum(1),
        ),
        "banana": Known(banana, lambda x: norm.logpdf(x[:, 0], 0, 2) + norm.logpdf(x[:, 1], 0.5 * x[:, 0] ** 2, 0.5)),
    }


def by_bic(rows: np.ndarray, fresh: np.ndarray) -> float:
    """Mean log-density of fresh rows under the mixture that the BIC chooses, standardised columns."""
    center, scale = rows.mean(0), rows.std(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = [GaussianMixture(k, random_state=0).fit((rows - center) / scale) for k in COMPONENTS]
    best = min(found, key=lambda m: m.bic((rows - center) / scale))
    return float(best.score((fresh - center) / scale) - np.log(scale).sum())


def main() -> None:
    known = densities()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--densities", nargs="+", default=list(known), choices=list(known))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    done = load(RESULT, [])
    for seed in options.seeds:
        for name in options.densities:
            if any((r["density"], r["seed"]) == (name, seed) for r in done):
                continue
            rng = np.random.default_rng(seed)
            rows, fresh = known[name].draw(ROWS, rng), known[name].draw(FRESH, rng)
            truth = float(known[name].log_prob(fresh).mean())
            kde = next(b for b in score_baselines(rows, rows[:2], fresh, cross_validate=True) if b.name == "KDE").nats
            mixture = by_bic(rows, fresh)
            began = time.perf_counter()
            ours = float(diffeo.FlowDensity(random_state=seed).fit(rows).score_samples(fresh).mean())
            seconds = round(time.perf_counter() - began, 1)
            short = {"ours": truth - ours, "mixture": truth - mixture, "kde": truth - kde}
            done.append({"density": name, "seed": seed, **short, "seconds": seconds})
            save(RESULT, done)
            print(name, seed, {k: round(v, 4) for k, v in short.items()}, f"{seconds} s", flush=True)


def section() -> str:
    """Nats short of the truth, mean over seeds."""
    done = load(RESULT, [])
    if not done:
        return ""
    rows = []
    for name in dict.fromkeys(r["density"] for r in done):
        some = [r for r in done if r["density"] == name]
        ours, mixture, kde = (mean(r[k] for r in some) for k in ("ours", "mixture", "kde"))
        ahead = [min(r["mixture"], r["kde"]) - r["ours"] for r in some]
        rows.append([name, *(f"{v:.3f}" for v in (ours, mixture, kde)), number(mean(ahead)), number(min(ahead))])
    n = len({r["seed"] for r in done})
    seeds = f"{n} seeds" if n > 1 else "one seed"
    header = ["density", "`FlowDensity()`", "mixture by BIC", "KDE", "ahead of the better", "at the least"]
    return f"""\
## Known densities: the defaults

Nats short of the density itself on {FRESH:,} fresh rows, after {ROWS:,} rows (lower is better), mean of {seeds}:
`FlowDensity()` as it is, a mixture of up to {max(COMPONENTS)} Gaussians by BIC, and a kernel density estimate whose
bandwidth leaves one row out at a time. The last columns say by how much the flow is ahead of the better of the two
(negative: behind), on average and with the worst seed.

{markdown(header, rows)}

    python benchmarks/known.py
"""


if __name__ == "__main__":
    main()
