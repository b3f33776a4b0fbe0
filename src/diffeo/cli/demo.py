"""`make demo`: a real table from fit to pictures, and anomalies found in it, with data that scikit-learn ships."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = ("mean radius", "mean texture", "mean concavity", "worst symmetry")


def main(folder: str = "demo") -> None:
    """Fit, compare, detect, draw; everything goes into `folder`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from sklearn.datasets import load_breast_cancer

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    table: Any = load_breast_cancer()
    names = [str(name) for name in table.feature_names]
    density(table.data, names, out)
    anomalies(table.data[table.target == 1], table.data[table.target == 0], out)
    print(f"\nWrote {', '.join(sorted(p.name for p in out.iterdir()))} to {out}/.")
    print("Now one's own table:  .venv/bin/diffeo fit mytable.csv -o mymodel.safetensors")


def density(rows: np.ndarray, names: list[str], out: Path) -> None:
    """Part one: the density of the whole table, beside simple ones; model, samples and pictures."""
    import torch

    import diffeo
    from diffeo.baselines import score_baselines
    from diffeo.plotting import plot_pairs

    order = np.random.default_rng(0).permutation(len(rows))
    fifth = len(rows) // 5
    test, validation, train = rows[order[:fifth]], rows[order[fifth : 2 * fifth]], rows[order[2 * fifth :]]
    print(f"Wisconsin breast cancer: {len(rows)} tumours, {rows.shape[1]} measurements of cell nuclei.")
    print(f"Fitting diffeo.nsf_ar({rows.shape[1]}) to {len(train)} of them ...", flush=True)
    torch.manual_seed(0)
    flow = diffeo.nsf_ar(rows.shape[1])
    result = diffeo.fit(flow, train, validation=validation)
    print(f"  {result}")
    nats = _score(flow, test)
    print(f"\nMean log-density of {len(test)} test rows, in nats (higher is better):")
    scores = [("nsf_ar", nats.mean(), nats.std() / len(nats) ** 0.5, "this flow")]
    for name, value, error, choice in [*scores, *score_baselines(train, validation, test, cross_validate=True)]:
        print(f"  {name:<18}{value:>9.2f} ± {error:.2f}   {choice}")
    notes = {
        "columns": names,
        "rows": {"train": len(train), "validation": len(validation), "test": len(test)},
        "test_nats": float(nats.mean()),
        "test_stderr": float(nats.std() / len(nats) ** 0.5),
        "baselines": {},
        "fit": {"steps": result.steps, "seconds": round(result.seconds, 1), "stopped": result.stopped},
    }
    diffeo.save(flow, out / "model.safetensors", notes=notes)
    samples = flow.sample(2000, generator=torch.Generator().manual_seed(0)).numpy()
    np.savetxt(out / "samples.csv", samples, delimiter=",", header=",".join(names), comments="", fmt="%.6g")
    chosen = [names.index(name) for name in SHOWN]
    plot_pairs(rows[:, chosen], samples[:, chosen], list(SHOWN)).savefig(out / "pairs.png", dpi=110)
    result.plot().figure.savefig(out / "history.png", dpi=110)


def anomalies(benign: np.ndarray, malignant: np.ndarray, out: Path) -> None:
    """Part two: a flow that has seen only benign tumours finds the malignant ones unusual."""
    import torch
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import roc_auc_score

    import diffeo
    from diffeo.plotting import plot_scores

    order = np.random.default_rng(0).permutation(len(benign))
    cut = int(0.7 * len(benign))
    train, held = benign[order[:cut]], benign[order[cut:]]
    print(f"\nAnomalies: fitting {len(train)} benign tumours only ...", flush=True)
    torch.manual_seed(0)
    flow = diffeo.nsf_ar(benign.shape[1])
    diffeo.fit(flow, train)
    scores = {"benign, held out": -_score(flow, held), "malignant": -_score(flow, malignant)}
    truth = np.r_[np.zeros(len(held)), np.ones(len(malignant))]
    forest = IsolationForest(random_state=0).fit(train)
    found = {
        "flow (nsf_ar)": roc_auc_score(truth, np.concatenate(list(scores.values()))),
        "IsolationForest": roc_auc_score(truth, -forest.score_samples(np.r_[held, malignant])),
    }
    print(f"AUROC of {len(held)} held-out benign against {len(malignant)} malignant tumours:")
    for name, value in found.items():
        print(f"  {name:<18}{value:>9.3f}")
    ax = plot_scores(scores, "surprise: minus log-density (nats)")
    ax.set_title(f"AUROC {found['flow (nsf_ar)']:.3f}", fontsize=10)
    ax.figure.savefig(out / "anomalies.png", dpi=110)


def _score(flow: Any, rows: np.ndarray) -> np.ndarray:
    from diffeo.cli.app import score

    return score(flow, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
