"""Simple densities to hold a flow against: a Gaussian, a mixture of Gaussians, a kernel density estimate.

All are fitted to standardised columns (by the training rows) and scored in the units of the data. The number of
components and the bandwidth are chosen on held-out rows. Where columns are given, each models them too, and scores
log p(rest | given) = log p(rest, given) − log p(given), the second by its own marginal density.
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
        for name, log_p, choice in _scores(train, validation, test, 0, kde_rows, cross_validate, seed)
    ]


def _scores(
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    given: int,
    kde_rows: int | None,
    cross_validate: bool,
    seed: int,
) -> list[tuple[str, np.ndarray, str]]:
    """Name, log-density of every test row given its first `given` columns, and what was chosen, of each."""
    mean, std = train.mean(0), train.std(0)
    volume = float(np.log(std[given:]).sum())
    parts = [(part - mean) / std for part in (train, validation, test)]
    found = {
        "Gaussian": _gaussian(*parts, given=given),
        "Gaussian mixture": _mixture(*parts, given=given, seed=seed),
        "KDE": _kde(*parts, given=given, rows=kde_rows, cross_validate=cross_validate, seed=seed),
    }
    return [(name, log_p - volume, choice) for name, (log_p, choice) in found.items()]


def table_baselines(
    model: TableDensity, train: pd.DataFrame, validation: pd.DataFrame, test: pd.DataFrame, seed: int = 0
) -> list[Baseline]:
    """The same for a table with columns of every kind: categories apart from the numbers, which go as above.

    Categories are counted, or a logistic regression on the given columns. In the table's units, whole numbers
    dequantized.
    """
    rng = np.random.default_rng(seed)
    schema = model.schema
    k = len(schema.levels)
    parts = [schema.encode(part) for part in (train, validation, test)]
    known = [_conditions(schema, part) for part in (train, validation, test)]
    varies = known[0].std(0) > 0
    known = [c[:, varies] for c in known]
    counted = np.zeros(len(test))
    for j, n in enumerate(schema.levels):
        codes = [part[:, j].astype(int) for part in parts]
        counted += _frequencies(codes[0], codes[2], n) if not known[0].shape[1] else _regressed(known, codes, n)
    if not schema.numbers:
        return [_baseline("frequencies", (counted, "each column by itself"))]
    whole = np.array([n.whole for n in schema.numbers])
    numbers = [part[:, k:] + whole * rng.random(part[:, k:].shape) for part in parts]
    rows = [np.concatenate(both, 1) for both in zip(known, numbers, strict=True)]
    given = known[0].shape[1]
    remark = ", independent of the categories" if k else ""
    return [
        _baseline(name, (log_p + counted - schema.log_volume, choice + remark))
        for name, log_p, choice in _scores(*rows, given=given, kde_rows=KDE_ROWS, cross_validate=True, seed=seed)
    ]


def _conditions(schema: Any, table: pd.DataFrame) -> np.ndarray:
    found = schema.encode_given(table, plain=True)
    return np.zeros((len(table), 0)) if found is None else found


def _frequencies(train: np.ndarray, test: np.ndarray, levels: int) -> np.ndarray:
    """Log-frequency of each code, half a row added to each level."""
    frequency = np.bincount(train, minlength=levels) + 0.5
    return np.log(frequency / frequency.sum())[test]


def _regressed(known: list[np.ndarray], codes: list[np.ndarray], levels: int) -> np.ndarray:
    """Log-probability of each code given the context, by logistic regression; levels never seen count half a row."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen = np.unique(codes[0])
    if len(seen) < 2:
        return _frequencies(codes[0], codes[2], levels)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(known[0], codes[0])
    rare = 0.5 / (len(codes[0]) + 0.5 * levels)
    probability = np.full((len(codes[2]), levels), rare)
    probability[:, seen] = model.predict_proba(known[2]) * (1 - rare * (levels - len(seen)))
    return np.log(probability[np.arange(len(codes[2])), codes[2]])


def _baseline(name: str, scored: tuple[np.ndarray, str]) -> Baseline:
    log_p, choice = scored
    return Baseline(name, float(log_p.mean()), float(log_p.std() / math.sqrt(len(log_p))), choice)


def _gaussian(train: np.ndarray, validation: np.ndarray, test: np.ndarray, given: int) -> tuple[np.ndarray, str]:
    return _mixture_log_prob(_fit_mixture(train, 1, 0), test, given), "full covariance"


def _mixture(
    train: np.ndarray, validation: np.ndarray, test: np.ndarray, given: int, seed: int
) -> tuple[np.ndarray, str]:
    best: Any = None
    best_score, best_k = -math.inf, 0
    for k in COMPONENTS:
        if k * train.shape[1] > len(train) and k > 1:
            break
        model = _fit_mixture(train, k, seed)
        score = _mixture_log_prob(model, validation, given).mean()
        if score > best_score:
            best, best_score, best_k = model, score, k
        elif score < best_score - 0.5:  # clearly past the best
            break
    return _mixture_log_prob(best, test, given), f"{best_k} component{'s' if best_k > 1 else ''}"


def _fit_mixture(rows: np.ndarray, k: int, seed: int):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GaussianMixture(k, reg_covar=1e-6, max_iter=200, random_state=seed).fit(rows)


def _mixture_log_prob(model: Any, rows: np.ndarray, given: int) -> np.ndarray:
    """Log-density of rows given their first columns."""
    if not given:
        return model.score_samples(rows)
    from sklearn.mixture import GaussianMixture

    marginal = GaussianMixture(model.n_components)
    marginal.weights_, marginal.means_ = model.weights_, model.means_[:, :given]
    marginal.covariances_ = model.covariances_[:, :given, :given]
    marginal.precisions_cholesky_ = np.linalg.inv(np.linalg.cholesky(marginal.covariances_)).transpose(0, 2, 1)
    return model.score_samples(rows) - marginal.score_samples(rows[:, :given])


def _kde(
    train: np.ndarray,
    validation: np.ndarray,
    test: np.ndarray,
    given: int,
    rows: int | None,
    cross_validate: bool,
    seed: int,
) -> tuple[np.ndarray, str]:
    rng = np.random.default_rng(seed)
    if rows is not None and len(train) > rows:
        train = train[rng.choice(len(train), rows, replace=False)]
    tuning = validation[rng.permutation(len(validation))[:TUNING_ROWS]]
    points = torch.from_numpy(np.ascontiguousarray(train, dtype=np.float32))

    def log_prob(rows: np.ndarray, h: float, leave_out: bool = False) -> np.ndarray:
        joint = _kde_log_prob(points, rows, h, leave_out)
        return joint - _kde_log_prob(points[:, :given], rows[:, :given], h, leave_out) if given else joint

    of = train[:TUNING_ROWS] if cross_validate else tuning
    h = max(BANDWIDTHS, key=lambda h: log_prob(of, h, cross_validate).mean())
    return log_prob(test, h), f"bandwidth {h:g} sd"


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
