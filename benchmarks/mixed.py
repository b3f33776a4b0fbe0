"""Mixed tables: can a classifier tell sampled rows from real ones, and does log_prob equal a density that is known?

- penguins (palmerpenguins) and affairs (statsmodels): `fit_table` on a random 80 % of the rows; as many samples as the
  table has rows; five-fold AUROC of gradient boosting between the two (0.5: it cannot tell, 1: it always can). A
  Gaussian copula on the same training rows beside it.
- known: a synthetic table (category, positive and real numbers, a count) with a density in closed form; mean difference
  of log-densities on fresh rows.

    python -m pip install palmerpenguins statsmodels && python benchmarks/mixed.py
"""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, poisson
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

import diffeo
from diffeo.storage import replacing

RESULTS = Path(__file__).parent / "results" / "mixed.json"
SEEDS = (0, 1, 2)


def main() -> None:
    done = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name, load in (("penguins", penguins), ("affairs", affairs)):
        table = load()
        for seed in SEEDS:
            if any((r["table"], r["seed"]) == (name, seed) for r in done):
                continue
            done.append({"table": name, "seed": seed, **compare(table, seed)})
            _write(done)
    for seed in SEEDS:
        if not any((r["table"], r["seed"]) == ("known", seed) for r in done):
            done.append({"table": "known", "seed": seed, **known(seed)})
            _write(done)


def _write(done: list[dict]) -> None:
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(done, indent=1) + "\n")
    print(done[-1], flush=True)


def penguins() -> pd.DataFrame:
    """333 birds: species, island, sex, year and four rounded measurements; those with missing values left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from palmerpenguins import load_penguins

        return load_penguins().dropna().reset_index(drop=True)


def affairs() -> pd.DataFrame:
    """6,366 women of a survey by Redbook in 1974: ages, years, children, and occupations as categories.

    Without the column that gave the survey its name: two thirds of it are zeros, a spike that no density describes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from statsmodels.datasets import fair

        table = fair.load_pandas().data
    return table.drop(columns="affairs").astype({"occupation": "category", "occupation_husb": "category"})


def compare(table: pd.DataFrame, seed: int) -> dict:
    """AUROC of a classifier between the table and samples of either model."""
    train = table.iloc[np.random.default_rng(seed).permutation(len(table))[: int(0.8 * len(table))]]
    began = time.perf_counter()
    model = diffeo.fit_table(train, seed=seed, vocabulary=table, progress=False)
    seconds = time.perf_counter() - began
    return {
        "rows": len(table),
        "columns": len(table.columns),
        "flow": told_apart(table, model.sample(len(table), seed=seed), seed),
        "copula": told_apart(table, gaussian_copula(train, len(table), seed), seed),
        "seconds": round(seconds, 1),
        "diffeo": diffeo.__version__,
    }


def told_apart(real: pd.DataFrame, sampled: pd.DataFrame, seed: int) -> float:
    """Five-fold AUROC of gradient boosting between real and sampled rows."""
    rows = pd.concat([real, sampled], ignore_index=True)
    for name in rows.columns:
        if not pd.api.types.is_numeric_dtype(rows[name].dtype):
            rows[name] = rows[name].astype("category").cat.codes
    truth = np.r_[np.zeros(len(real)), np.ones(len(sampled))]
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    classifier = HistGradientBoostingClassifier(random_state=seed)
    found = cross_val_predict(classifier, rows, truth, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(truth, found))


def gaussian_copula(train: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Samples with the empirical marginals of the table and the correlations of its normal scores."""
    rng = np.random.default_rng(seed)
    scores, ordered = [], {}
    for name in train.columns:
        column = train[name]
        codes = column if pd.api.types.is_numeric_dtype(column.dtype) else column.astype("category").cat.codes
        rank = np.lexsort((rng.random(len(codes)), codes)).argsort()  # ties in random order
        scores.append(norm.ppf((rank + 0.5) / len(codes)))
        ordered[name] = column.iloc[np.argsort(codes.to_numpy(), kind="stable")]
    z = rng.multivariate_normal(np.zeros(len(scores)), np.corrcoef(np.array(scores)), n)
    at = np.minimum((norm.cdf(z) * len(train)).astype(int), len(train) - 1)
    return pd.DataFrame({name: ordered[name].to_numpy()[at[:, j]] for j, name in enumerate(train.columns)})


def synthetic(n: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows of a table and their true log-density."""
    rng = np.random.default_rng(seed)
    p, mean, spread = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), np.array([0.5, 0.3, 0.7])
    k = rng.choice(3, n, p=p)
    log_size = mean[k] + spread[k] * rng.normal(size=n)
    slope = 3.0 * (k == 1)
    real = slope * log_size + rng.normal(size=n)
    rate = 2.0 + 4 * k
    count = rng.poisson(rate)
    log_p = np.log(p[k]) + norm.logpdf(log_size, mean[k], spread[k]) - log_size
    log_p += norm.logpdf(real, slope * log_size) + poisson.logpmf(count, rate)
    kind = np.array(["red", "green", "blue"])[k]
    return pd.DataFrame({"kind": kind, "size": np.exp(log_size), "real": real, "count": count}), log_p


def known(seed: int) -> dict:
    """Mean of true minus fitted log-density on fresh rows: the divergence of the model from the truth."""
    model = diffeo.fit_table(synthetic(20_000, 2 * seed)[0], seed=seed, progress=False)
    fresh, truth = synthetic(20_000, 2 * seed + 1)
    excess = truth - model.log_prob(fresh, samples=64).to_numpy()
    return {
        "rows": 20_000,
        "truth": float(truth.mean()),
        "truth_stderr": float(truth.std() / len(truth) ** 0.5),
        "excess": float(excess.mean()),
        "excess_stderr": float(excess.std() / len(excess) ** 0.5),
        "diffeo": diffeo.__version__,
    }


if __name__ == "__main__":
    main()
