"""Anomaly detection on the ADBench tables: `FlowOutlierDetector()` beside scikit-learn's and PyOD's, by AUROC.

Fit on a random 70 % of the normal rows, tested on the other normal rows and all anomalies. Everybody gets the same
rows; LOF, k-NN and the mixture get standardised columns, and at most 20,000 training rows. Finished runs are kept in
results/outliers.json and skipped.

    python benchmarks/outliers.py [--tables Pima yeast] [--seeds 0 1 2]

`--settings` measures the detector with other settings (`FITS`, and all of `NEIGHBOURS`, `PERCENTS` with each), kept in
results/outliers_settings.json: what it reaches on each table with the settings that would be chosen on all others.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections import Counter
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor

import diffeo
from diffeo.estimators import outlier
from results import RESULTS, load, markdown, number, save
from tables import data_root

RESULT = RESULTS / "outliers.json"
SETTINGS = RESULTS / "outliers_settings.json"
BLURS, LAYERS, NUMBERS = (0.05, 0.1, 0.2), (2, 3, 5), (300, 600, 1200)
# an orthogonal array: every two values of two settings meet once
FITS = [(BLURS[i], LAYERS[j], NUMBERS[(i + j + 2) % 3]) for i in range(3) for j in range(3)]
NEIGHBOURS, PERCENTS = (0, 1, 5, 20), (5, 10, 25)
BEHIND = 0.03  # AUROC, behind the best detector of a table: what we allow ourselves
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
    """AUROC of every setting: one fit for each of `FITS`, table and seed; all neighbours and percentiles score it."""
    done = load(SETTINGS, [])
    for seed, (blur, layers, steps), name in itertools.product(seeds, FITS, files):
        run = {"table": name, "seed": seed, "blur": blur, "layers": layers, "steps": steps}
        if any(run.items() <= r.items() for r in done):
            continue
        train, test, truth = split(*rows_of(files[name]), seed)
        outlier.STEPS.update({False: steps, True: steps // 4})
        detector = Watched(blur=blur, layers=layers, random_state=seed).fit(train)
        varying, known = (
            table.loc[:, detector.varying_] for table in (detector._table(test, reset=False), detector.seen)
        )
        folds = detector._folds(len(detector.seen), detector.seed)
        unseen = [detector.all_views(i, known.iloc[fold]) for i, fold in enumerate(folds)]
        views = [detector.all_views(i, varying) for i in range(len(folds))]
        aurocs = []
        for neighbours in NEIGHBOURS:
            aurocs.append([])
            for percent in PERCENTS:
                pooled = [np.concatenate(view) for view in zip(*(each[neighbours] for each in unseen), strict=True)]
                usual = np.array([outlier._usual(view, percent) for view in pooled])
                scores = [outlier._least(each[neighbours], usual) for each in views]
                aurocs[-1].append(float(roc_auc_score(truth, -_finite(np.mean(scores, axis=0)))))
        done.append({**run, "auroc": aurocs})
        save(SETTINGS, done)
        told = " ".join(f"{auroc:.3f}" for row in aurocs for auroc in row)
        print(f"{seed:>3}{blur:>6}{layers:>3}{steps:>6}  {name:<14}{told}", flush=True)


class Watched(diffeo.FlowOutlierDetector):
    """Keeps the rows that it learned from, and shows what any number of neighbours says."""

    def _fit_model(self, table: pd.DataFrame, weights: np.ndarray | None, seed: int) -> None:
        self.seen, self.seed = table, seed
        super()._fit_model(table, weights, seed)

    def all_views(self, member: int, varying: pd.DataFrame) -> dict[int, list[np.ndarray]]:
        """The views of rows by each number of neighbours."""
        model, (latents, numbers) = self.models_[member], self.crowds_[member]
        log_p, z, x = (
            self._member_scores(model, varying),
            outlier._latents(model, varying),
            outlier._numbers(model, varying),
        )
        return {k: [log_p, latents.nearness(z, k), numbers.nearness(x, k)] if k else [log_p] for k in NEIGHBOURS}


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
at most 20,000 rows. The detector's settings, the same for all, were chosen on these very tables; what it reaches on a
table with settings chosen on the others stands below.

{markdown(["table", "training rows", *detectors], rows)}

Lost: {"; ".join(lost)}. A fit and its scores took {min(seconds):.0f} to {max(seconds):.0f} s on one busy core.

{_told_settings(means, names, detectors[1:])}

    python benchmarks/outliers.py
"""


def _told_settings(means: dict[tuple[str, str], float], names: list[str], others: list[str]) -> str:
    """What is reached on each table with the settings that would be chosen without it, and which they are."""
    runs = load(SETTINGS, [])
    if not runs or len(runs) != len(FITS) * len(names) * len({r["seed"] for r in runs}):
        return ""
    settings = list(itertools.product(FITS, NEIGHBOURS, PERCENTS))
    grid = {name: np.array([_measured(runs, name, *each) for each in settings]) for name in names}
    best = {name: max(means[name, other] for other in others) for name in names}
    reached, chosen = {}, Counter()
    for name in names:
        known = [other for other in names if other != name]
        found = choose(np.stack([grid[other] for other in known]), np.array([best[other] for other in known]))
        reached[name] = float(grid[name][found])
        chosen[settings[found]] += 1
    worst = min(names, key=lambda name: reached[name] - best[name])
    ahead = mean(reached.values()) - max(mean(means[name, other] for name in names) for other in others)
    told = "; ".join(f"{_said(setting)} ({times}×)" for setting, times in chosen.most_common())
    of_all = choose(np.stack([grid[name] for name in names]), np.array([best[name] for name in names]))
    cells = [[name, f"{reached[name]:.3f}", f"{best[name]:.3f}", number(reached[name] - best[name])] for name in names]
    ours = _defaults()
    same = ": the defaults" if settings[of_all] == ours else f"; the defaults are {_said(ours)}"
    number_of, few = len(names) - 1, ", ".join(map(str, NEIGHBOURS))
    return f"""\
**Chosen blindly.** The settings for each table are chosen on the other {number_of} alone, among {len(settings)}:
{len(FITS)} combinations of noise, layers and steps, an orthogonal array of three values each, with {few}
neighbours and percentiles of {", ".join(map(str, PERCENTS))} as units; of those that stay within {BEHIND} of the best
detector on all of these {number_of}, the one with the best mean; where none does, the one whose worst is best. The mean
is then {mean(reached.values()):.4f}, {number(ahead)} above the best other detector; the worst table is {worst},
{number(best[worst] - reached[worst])} behind the best there. Chosen were {told}. On all {len(names)} the rule takes
{_said(settings[of_all])}{same}. That
a row has three views, of which the least counts, was found on these tables too, and no choice on twelve of them can
show what that is worth on others.

{markdown(["table", "FlowOutlierDetector", "best of the others", "difference"], cells)}"""


def _defaults() -> tuple:
    """The setting of the detector as it is."""
    detector = diffeo.FlowOutlierDetector()
    fit = detector.blur, detector._options()["layers"], outlier.STEPS[False]
    return fit, detector.neighbours, outlier.LOWER


def _said(setting: tuple) -> str:
    (blur, layers, steps), neighbours, percent = setting
    return f"noise of {blur}, {layers} layers, {steps} steps, {neighbours} neighbours, percentile {percent}"


def _measured(runs: list[dict], name: str, fit: tuple, neighbours: int, percent: int) -> float:
    """Mean AUROC over seeds of one setting on one table."""
    found = [r["auroc"] for r in runs if (r["table"], r["blur"], r["layers"], r["steps"]) == (name, *fit)]
    return mean(auroc[NEIGHBOURS.index(neighbours)][PERCENTS.index(percent)] for auroc in found)


def choose(auroc: np.ndarray, best: np.ndarray) -> int:
    """The setting to take, from what each reaches on tables, (tables, settings), and the best others there, (tables,).

    Of the settings that are nowhere more than `BEHIND` behind, that of the best mean; without any, that of the least
    shortfall.
    """
    worst = (auroc - best[:, None]).min(0)
    within = worst >= -BEHIND
    return int(np.where(within, auroc.mean(0), -np.inf).argmax() if within.any() else worst.argmax())


if __name__ == "__main__":
    main()
