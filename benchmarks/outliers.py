"""Anomaly detection on the ADBench tables: `FlowOutlierDetector()` beside scikit-learn's and PyOD's, by AUROC.

Fit on a random 70 % of the normal rows, tested on the other normal rows and all anomalies. Everybody gets the same
rows; LOF, k-NN and the mixture get standardised columns, and at most 20,000 training rows. Finished runs are kept in
results/outliers.json and skipped.

    python benchmarks/outliers.py [--tables Pima yeast] [--seeds 0 1 2]

`--settings` measures the detector with other numbers of neighbours and other weights of theirs in the score, kept in
results/outliers_settings.json: what it would reach on each table with the settings that are best on all others.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from statistics import mean

import numpy as np
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor

import diffeo
from diffeo.estimators.outlier import WEIGHT
from results import RESULTS, load, markdown, number, save
from tables import data_root

RESULT = RESULTS / "outliers.json"
SETTINGS = RESULTS / "outliers_settings.json"
NEIGHBOURS, WEIGHTS = (1, 5, 20), (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
LOF_ROWS = 20_000
COMPONENTS = range(1, 21)


def main() -> None:
    files = sorted((data_root() / "tabular" / "adbench").glob("*.npz"))
    by_name = {path.stem.partition("_")[2]: path for path in files}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(by_name), choices=list(by_name))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--settings", action="store_true", help="other settings of the detector instead")
    options = parser.parse_args()
    if options.settings:
        measure_settings({name: by_name[name] for name in options.tables}, options.seeds)
        return
    done = load(RESULT, [])
    for seed in options.seeds:
        for name in options.tables:
            train, test, truth = split(*rows_of(by_name[name]), seed)
            for detector in DETECTORS:
                if any((r["table"], r["seed"], r["detector"]) == (name, seed, detector) for r in done):
                    continue
                began = time.perf_counter()
                auroc = float(roc_auc_score(truth, DETECTORS[detector](train, test, seed)))
                seconds = time.perf_counter() - began
                done.append(
                    {
                        "table": name,
                        "seed": seed,
                        "detector": detector,
                        "auroc": auroc,
                        "seconds": round(seconds, 2),
                        "rows": len(train),
                        "features": train.shape[1],
                        "diffeo": diffeo.__version__,
                    }
                )
                save(RESULT, done)
                print(f"{name:<14}{seed:>3}  {detector:<22}{auroc:.4f}  {seconds:6.1f} s", flush=True)


def measure_settings(files: dict[str, Path], seeds: list[int]) -> None:
    """AUROC of every number of neighbours and every weight, by one fit for each table and seed."""
    done = load(SETTINGS, [])
    for seed in seeds:
        for name, path in files.items():
            if any((r["table"], r["seed"]) == (name, seed) for r in done):
                continue
            train, test, truth = split(*rows_of(path), seed)
            detector = diffeo.FlowOutlierDetector(random_state=seed).fit(train)
            detector.neighbours = 0
            alone = detector.score_samples(test)
            possible = np.isfinite(alone)
            aurocs, now = [], min(detector.crowds_[0].rows.shape[1], WEIGHT)
            for detector.neighbours in NEIGHBOURS:
                near = np.zeros(len(test))  # what neighbours add with a weight of one
                near[possible] = (detector.score_samples(test)[possible] - alone[possible]) / now
                aurocs.append([float(roc_auc_score(truth, -_finite(alone + w * near))) for w in WEIGHTS])
            done.append({"table": name, "seed": seed, "auroc": aurocs})
            save(SETTINGS, done)
            print(f"{name:<14}{seed:>3}", *(f"{auroc:.4f}" for row in aurocs for auroc in row), flush=True)


def _finite(scores: np.ndarray) -> np.ndarray:
    """Scores with −inf just below all others."""
    return np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].min() - 1)


def rows_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Columns, and which rows are anomalies."""
    with np.load(path) as file:
        return file["X"].astype(np.float64), file["y"]


def split(x: np.ndarray, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, test rows, and which of these are anomalies; columns that are constant in training are kept."""
    normal = x[y == 0]
    order = np.random.default_rng(seed).permutation(len(normal))
    cut = int(0.7 * len(normal))
    test = np.concatenate([normal[order[cut:]], x[y == 1]])
    truth = np.r_[np.zeros(len(order) - cut), np.ones(int((y == 1).sum()))]
    return normal[order[:cut]], test, truth


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, scale = train.mean(0), train.std(0)
    scale[scale == 0] = 1
    return (train - mean) / scale, (test - mean) / scale


def _forest(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return -IsolationForest(random_state=seed).fit(train).score_samples(test)


def _lof(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    train, test = _standardised(train, test)
    some = np.random.default_rng(seed).permutation(len(train))[:LOF_ROWS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # many equal rows: its own remark
        return -LocalOutlierFactor(novelty=True).fit(train[some]).score_samples(test)


def _mixture(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    train, test = _standardised(train, test)
    some = train[np.random.default_rng(seed).permutation(len(train))[:LOF_ROWS]]
    best, best_bic = None, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in COMPONENTS:
            model = GaussianMixture(k, random_state=seed).fit(some)
            bic = model.bic(some)
            if bic < best_bic:
                best, best_bic = model, bic
    assert best is not None
    return -best.score_samples(test)


def _mahalanobis(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    train, test = _standardised(train, test)
    return LedoitWolf().fit(train).mahalanobis(test)


def _neighbours(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    from pyod.models.knn import KNN

    train, test = _standardised(train, test)
    some = np.random.default_rng(seed).permutation(len(train))[:LOF_ROWS]
    return KNN().fit(train[some]).decision_function(test)


def _ecod(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    from pyod.models.ecod import ECOD

    return ECOD().fit(train).decision_function(test)


def _flow(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return -diffeo.FlowOutlierDetector(random_state=seed).fit(train).score_samples(test)


DETECTORS = {
    "FlowOutlierDetector": _flow,
    "IsolationForest": _forest,
    "LOF": _lof,
    "Gaussian mixture": _mixture,
    "Mahalanobis": _mahalanobis,
    "k-NN": _neighbours,
    "ECOD": _ecod,
}


def section() -> str:
    """AUROC by table, mean over seeds, the best of each in bold."""
    runs = load(RESULT)
    detectors = [d for d in DETECTORS if any(r["detector"] == d for r in runs)]
    names = sorted({r["table"] for r in runs}, key=str.lower)
    seeds = sorted({r["seed"] for r in runs})
    ours = detectors[0]
    rows, lost = [], []
    means: dict[tuple[str, str], float] = {}
    for name in names:
        found = [r for r in runs if r["table"] == name]
        aurocs = {d: mean(r["auroc"] for r in found if r["detector"] == d) for d in detectors}
        means |= {(name, d): auroc for d, auroc in aurocs.items()}
        winner = max(detectors, key=aurocs.__getitem__)
        near = aurocs[winner] - 5e-4  # the same in three digits, or nearly
        cells = [f"**{auroc:.3f}**" if auroc > near else f"{auroc:.3f}" for auroc in aurocs.values()]
        rows.append([name, f"{found[0]['rows']:,} × {found[0]['features']}", *cells])
        if aurocs[ours] <= near:
            lost.append(f"{name} (to {winner}, by {aurocs[winner] - aurocs[ours]:.3f})")
    rows.append(["**mean**", "", *(f"{mean(means[name, d] for name in names):.4f}" for d in detectors)])
    for seed in seeds:
        of_seed = [[r["auroc"] for r in runs if (r["seed"], r["detector"]) == (seed, d)] for d in detectors]
        rows.append([f"seed {seed}", "", *(f"{mean(aurocs):.4f}" for aurocs in of_seed)])
    behind = [min(means[n, d] - max(means[n, other] for other in detectors) for n in names) for d in detectors]
    rows.append(["worst, against the best of that table", "", *(number(gap) for gap in behind)])
    seconds = [r["seconds"] for r in runs if r["detector"] == ours]
    return f"""\
## Outliers: `FlowOutlierDetector()`

ADBench's tables, AUROC, mean of {len(seeds)} seeds: fitted on a random 70 % of the normal rows, tested on the other
normal rows and all anomalies. Detectors of scikit-learn and PyOD (k-NN, ECOD) with their defaults, on standardised
columns where it matters; the mixture has up to 20 components by BIC; LOF, k-NN, the mixture and the flow learn from
at most 20,000 rows. The detector's settings (noise of 0.1, three layers of 64 × 2, 600 steps, five
neighbours with a weight of four) were chosen among about fifty on these very tables, the same for all.
{_told_settings(means, names, detectors[1:])}

{markdown(["table", "training rows", *detectors], rows)}

Lost: {"; ".join(lost)}. A fit and its scores took {min(seconds):.0f} to {max(seconds):.0f} s on one busy core.

    python benchmarks/outliers.py
"""


def _told_settings(means: dict[tuple[str, str], float], names: list[str], others: list[str]) -> str:
    """What is reached on each table with the neighbours that would be chosen without it, by two rules."""
    runs = load(SETTINGS, [])
    if {r["table"] for r in runs} != set(names):
        return ""
    grid = {name: np.mean([r["auroc"] for r in runs if r["table"] == name], axis=0) for name in names}
    best = {name: max(means[name, other] for other in others) for name in names}
    rules = {
        "the best mean": lambda known: np.mean([grid[name] for name in known], axis=0),
        "the least shortfall": lambda known: np.min([grid[name] - best[name] for name in known], axis=0),
    }
    told = []
    for rule, value in rules.items():
        reached = {}
        for name in names:
            of_others = value([other for other in names if other != name])
            reached[name] = float(grid[name].flat[of_others.argmax()])
        worst = min(names, key=lambda name: reached[name] - best[name])
        ahead = mean(reached.values()) - max(mean(means[name, other] for name in names) for other in others)
        told.append(
            f"- by {rule} there, the mean is {mean(reached.values()):.4f}, {number(ahead)} above the best other\n"
            f"  detector; the worst table is {worst}, {number(best[worst] - reached[worst])} behind the best there"
        )
    lines = "\n".join(told)
    return f"""
Chosen blindly, the number and the weight of the neighbours of a table are the best of {len(NEIGHBOURS) * len(WEIGHTS)}
on the other {len(names) - 1} tables:

{lines}"""


if __name__ == "__main__":
    main()
