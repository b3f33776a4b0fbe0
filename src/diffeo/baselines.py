"""Simple densities to hold a flow against: a Gaussian, a mixture of Gaussians, a kernel density estimate.

All are fitted to standardised columns (by the training rows) and scored in the units of the data. The number of
components and the bandwidth are chosen on held-out rows.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

    from diffeo.tables import TableDensity

KDE_ROWS = 20_000  # training rows of a table that its KDE uses at most
COMPONENTS = (1, 2, 3, 5, 8, 12, 20, 32)
BANDWIDTHS = (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56, 0.8)  # in standard deviations
TUNING_ROWS = 2000  # held-out rows that choose the bandwidth


class Baseline(NamedTuple):
    """A baseline's score: mean log-density of the test rows in nats, its standard error, and what was chosen."""

    name: str
    nats: float
    stderr: float
    choice: str


def score_baselines(
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    kde_rows: int | None = None,
    cross_validate: bool = False,
    seed: int = 0,
) -> list[Baseline]:
    """Gaussian, mixture and KDE, fitted on `train`, tuned on `validation`, scored on `test`; arrays (n, features).

    Args:
        train, validation, test: rows in the same units; no constant column.
        kde_rows: use at most this many training rows for the KDE, drawn at random, since its cost grows with
            training times test rows. None: all.
        cross_validate: choose the bandwidth of the KDE by leaving out one training row at a time, not on `validation`.
        seed: of the mixture's start and the drawn rows.
    """
    return [
        _baseline(name, (log_p, choice))
        for name, log_p, choice in _scores(train, validation, test, kde_rows, cross_validate, seed)
    ]


def _scores(
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    kde_rows: int | None,
    cross_validate: bool,
    seed: int,
) -> list[tuple[str, np.ndarray, str]]:
    """Name, log-density of every test row, and what was chosen, of each."""
    mean, std = train.mean(0), train.std(0)
    volume = float(np.log(std).sum())
    parts = [(part - mean) / std for part in (train, validation, test)]
    found = {
        "Gaussian": _gaussian(*parts),
        "Gaussian mixture": _mixture(*parts, seed=seed),
        "KDE": _kde(*parts, rows=kde_rows, cross_validate=cross_validate, seed=seed),
    }
    return [(name, log_p - volume, choice) for name, (log_p, choice) in found.items()]


def table_baselines(
    model: TableDensity, train: pd.DataFrame, validation: pd.DataFrame, test: pd.DataFrame, seed: int = 0
) -> list[Baseline]:
    """The same for a table with columns of every kind: categories counted, independent of all else, numbers as above.

    In the table's units, whole numbers dequantized; given columns are ignored.
    """
    rng = np.random.default_rng(seed)
    schema = model.schema
    k = len(schema.levels)
    parts = [schema.encode(part) for part in (train, validation, test)]
    counted = np.zeros(len(test))
    for j, n in enumerate(schema.levels):
        frequency = np.bincount(parts[0][:, j].astype(int), minlength=n) + 0.5
        counted += np.log(frequency / frequency.sum())[parts[2][:, j].astype(int)]
    if not schema.numbers:
        return [_baseline("frequencies", (counted, "independent columns"))]
    whole = np.array([n.whole for n in schema.numbers])
    numbers = [part[:, k:] + whole * rng.random(part[:, k:].shape) for part in parts]
    remark = (", independent of the categories" if k else "") + (", given columns ignored" if schema.given else "")
    return [
        _baseline(name, (log_p + counted - schema.log_volume, choice + remark))
        for name, log_p, choice in _scores(*numbers, kde_rows=KDE_ROWS, cross_validate=True, seed=seed)
    ]


def _baseline(name: str, scored: tuple[np.ndarray, str]) -> Baseline:
    log_p, choice = scored
    return Baseline(name, float(log_p.mean()), float(log_p.std() / math.sqrt(len(log_p))), choice)


def _gaussian(train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, str]:
    return _fit_mixture(train, 1, 0).score_samples(test), "full covariance"


def _mixture(train: np.ndarray, validation: np.ndarray, test: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    best: Any = None
    best_score, best_k = -math.inf, 0
    for k in COMPONENTS:
        if k * train.shape[1] > len(train) and k > 1:
            break
        model = _fit_mixture(train, k, seed)
        score = model.score(validation)
        if score > best_score:
            best, best_score, best_k = model, score, k
        elif score < best_score - 0.5:  # clearly past the best
            break
    return best.score_samples(test), f"{best_k} component{'s' if best_k > 1 else ''}"


def _fit_mixture(rows: np.ndarray, k: int, seed: int):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(k, reg_covar=1e-6, max_iter=200, random_state=seed).fit(rows)


def _kde(
    train: np.ndarray, validation: np.ndarray, test: np.ndarray, rows: int | None, cross_validate: bool, seed: int
) -> tuple[np.ndarray, str]:
    rng = np.random.default_rng(seed)
    if rows is not None and len(train) > rows:
        train = train[rng.choice(len(train), rows, replace=False)]
    tuning = validation[rng.permutation(len(validation))[:TUNING_ROWS]]
    points = torch.from_numpy(np.ascontiguousarray(train, dtype=np.float32))
    if cross_validate:
        scores = [_kde_log_prob(points, train[:TUNING_ROWS], h, leave_out=True).mean() for h in BANDWIDTHS]
    else:
        scores = [_kde_log_prob(points, tuning, h).mean() for h in BANDWIDTHS]
    h = BANDWIDTHS[int(np.argmax(scores))]
    return _kde_log_prob(points, test, h), f"bandwidth {h:g} sd"


def _kde_log_prob(points: Tensor, rows: np.ndarray, bandwidth: float, leave_out: bool = False) -> np.ndarray:
    """Gaussian-kernel log-density of rows; scikit-learn's trees are far slower than matrix products at these sizes."""
    n, d = points.shape
    queries = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
    norm = math.log(n - leave_out) + d * math.log(bandwidth) + 0.5 * d * math.log(2 * math.pi)
    out = []
    for start, part in zip(range(0, len(queries), chunk := max(1, 20_000_000 // n)), queries.split(chunk), strict=True):
        exponent = torch.cdist(part, points, compute_mode="use_mm_for_euclid_dist").square_() / (-2 * bandwidth**2)
        if leave_out:  # row i is point i: without it
            exponent.diagonal(start).fill_(-math.inf)
        out.append(torch.logsumexp(exponent, 1))
    return torch.cat(out).double().numpy() - norm
