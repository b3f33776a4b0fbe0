"""Mixed tables: can a classifier tell sampled rows from real ones, and does log_prob equal a density that is known?

- penguins (palmerpenguins) and affairs (statsmodels): `fit_table` on a random 80 % of the rows; as many samples as the
  table has rows; five-fold AUROC of gradient boosting between the two (0.5: it cannot tell, 1: it always can). A
  Gaussian copula on the same training rows beside it.
- known: a synthetic table (category, positive and real numbers, a count) with a density in closed form; mean difference
  of log-densities on fresh rows.

    python -m pip install palmerpenguins statsmodels && python benchmarks/mixed.py
"""

from __future__ import annotations

import time
import warnings
from statistics import mean

import numpy as np
import pandas as pd
from scipy.stats import norm, poisson
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

import diffeo
from results import RESULTS, load, markdown, number, save

RESULT = RESULTS / "mixed.json"
SEEDS = (0, 1, 2)


def main() -> None:
    done = load(RESULT, [])
    for name, read in (("penguins", penguins), ("affairs", affairs)):
        real = read()
        for seed in SEEDS:
            if any((r["table"], r["seed"]) == (name, seed) for r in done):
                continue
            done.append({"table": name, "seed": seed, **compare(real, seed)})
            _write(done)
    for seed in SEEDS:
        if not any((r["table"], r["seed"]) == ("known", seed) for r in done):
            done.append({"table": "known", "seed": seed, **known(seed)})
            _write(done)


def _write(done: list[dict]) -> None:
    save(RESULT, done)
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

        survey = fair.load_pandas().data
    return survey.drop(columns="affairs").astype({"occupation": "category", "occupation_husb": "category"})


def compare(real: pd.DataFrame, seed: int) -> dict:
    """AUROC of a classifier between the table and samples of either model."""
    train = real.iloc[np.random.default_rng(seed).permutation(len(real))[: int(0.8 * len(real))]]
    began = time.perf_counter()
    model = diffeo.fit_table(train, seed=seed, vocabulary=real, progress=False)
    seconds = time.perf_counter() - began
    return {
        "rows": len(real),
        "columns": len(real.columns),
        "flow": told_apart(real, model.sample(len(real), seed=seed), seed),
        "copula": told_apart(real, gaussian_copula(train, len(real), seed), seed),
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
    p, center, spread = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0]), np.array([0.5, 0.3, 0.7])
    k = rng.choice(3, n, p=p)
    log_size = center[k] + spread[k] * rng.normal(size=n)
    slope = 3.0 * (k == 1)
    real = slope * log_size + rng.normal(size=n)
    rate = 2.0 + 4 * k
    count = rng.poisson(rate)
    log_p = np.log(p[k]) + norm.logpdf(log_size, center[k], spread[k]) - log_size
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


def section() -> str:
    """Real against sampled rows, and the known density."""
    runs = load(RESULT)
    rows = []
    for name in dict.fromkeys(r["table"] for r in runs if r["table"] != "known"):
        found = [r for r in runs if r["table"] == name]
        aurocs = [[r[model] for r in found] for model in ("flow", "copula")]
        cells = [f"{mean(a):.3f} ({min(a):.3f} … {max(a):.3f})" for a in aurocs]
        rows.append([name, f"{found[0]['rows']:,} × {found[0]['columns']}", *cells])
    of_known = [r for r in runs if r["table"] == "known"]
    truth, excess = (
        ", ".join(f"{number(r[key])} ± {r[f'{key}_stderr']:.3f}" for r in of_known) for key in ("truth", "excess")
    )
    return f"""\
## Mixed tables

AUROC of gradient boosting (five folds) between real rows and as many samples: 0.5 if it cannot tell them apart.
`fit_table` with its defaults on 80 % of the rows; a Gaussian copula with empirical marginals on the same rows. Mean
of the seeds (lowest … highest).

{markdown(["table", "rows", "fit_table", "Gaussian copula"], rows)}

A synthetic table with a category, a positive and a real number and a count, whose density is known: mean true
log-density of fresh rows {truth} nats (three seeds; Monte-Carlo error), and by so much the fitted one is lower
on the same rows: {excess} nats.

    python benchmarks/mixed.py
"""


if __name__ == "__main__":
    main()
