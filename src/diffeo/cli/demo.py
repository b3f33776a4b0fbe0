"""`make demo`: a real table from file to report, and anomalies found in it, with data that scikit-learn ships."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SHOWN = ["mean radius", "mean texture", "mean concavity", "worst symmetry"]


def main(folder: str = "demo") -> int:
    """Fit, sample, report, detect, draw; everything goes into `folder`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from sklearn.datasets import load_breast_cancer

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    data: Any = load_breast_cancer(as_frame=True)
    table = data.data.copy()
    table.insert(0, "diagnosis", np.array(data.target_names)[data.target])
    table.to_csv(out / "tumours.csv", index=False)
    print(f"Wisconsin breast cancer: {len(table)} tumours, {data.data.shape[1]} measurements of cell nuclei each.")
    commands = [
        ["fit", f"{out}/tumours.csv", "-o", f"{out}/tumours.safetensors"],
        ["sample", f"{out}/tumours.safetensors", "-n", "569", "-o", f"{out}/samples.csv"],
        ["score", f"{out}/tumours.safetensors", f"{out}/tumours.csv", "-o", f"{out}/scores.csv"],
    ]
    for command in commands:
        if code := _run(command):
            return code
    _pairs(table, pd.read_csv(out / "samples.csv"), out / "pairs.png")
    _anomalies(data.data, data.target == 1, out)
    if code := _run(["report", f"{out}/tumours.safetensors", f"{out}/tumours.csv", "-o", f"{out}/report.html"]):
        return code
    print(
        f"\nWrote {', '.join(sorted(p.name for p in out.iterdir()))} to {out}/.  Open {out}/report.html in a browser."
    )
    print("Now one's own table:  .venv/bin/diffeo fit mytable.csv -o mytable.safetensors")
    return 0


def _run(command: list[str]) -> int:
    """One command of the program, shown as a user would type it."""
    from diffeo.cli import main as run

    print(f"\n$ diffeo {shlex.join(command)}", flush=True)
    return run(command)


def _pairs(table: pd.DataFrame, samples: pd.DataFrame, path: Path) -> None:
    from diffeo.plotting import plot_pairs

    plot_pairs(table[SHOWN].to_numpy(), samples[SHOWN].to_numpy(), SHOWN).savefig(path, dpi=110)


def _anomalies(table: pd.DataFrame, benign: pd.Series, out: Path) -> None:
    """A detector that has seen only benign tumours finds the malignant ones unusual, and says why."""
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import roc_auc_score

    import diffeo
    from diffeo.plotting import plot_scores

    normal, malignant = table[benign], table[~benign]
    order = np.random.default_rng(0).permutation(len(normal))
    cut = int(0.7 * len(normal))
    train, held = normal.iloc[order[:cut]], normal.iloc[order[cut:]]
    print(f"\nAnomalies: diffeo.FlowOutlierDetector on {len(train)} benign tumours only ...", flush=True)
    detectors = {
        "FlowOutlierDetector": diffeo.FlowOutlierDetector(random_state=0).fit(train),
        "IsolationForest": IsolationForest(random_state=0).fit(train),
    }
    truth = np.r_[np.zeros(len(held)), np.ones(len(malignant))]
    tested = pd.concat([held, malignant])
    print(f"AUROC of {len(held)} held-out benign against {len(malignant)} malignant tumours:")
    found = {name: roc_auc_score(truth, -detector.score_samples(tested)) for name, detector in detectors.items()}
    for name, value in found.items():
        print(f"  {name:<20}{value:.3f}")
    flow = detectors["FlowOutlierDetector"]
    scores = {"benign, held out": -flow.score_samples(held), "malignant": -flow.score_samples(malignant)}
    worst = malignant.iloc[[int(scores["malignant"].argmax())]]
    nats = flow.explain(worst).iloc[0].sort_values(ascending=False)
    reasons = ", ".join(f"{name} = {worst[name].iloc[0]:g} ({value:.0f} nats)" for name, value in nats.head(3).items())
    print(f"The most unusual of them, row {worst.index[0] + 1}, because of: {reasons}.")
    ax = plot_scores(scores, "surprise: minus score")
    ax.set_title(f"AUROC {found['FlowOutlierDetector']:.3f}", fontsize=10)
    ax.figure.savefig(out / "anomalies.png", dpi=110)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
