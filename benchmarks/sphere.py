"""Where the world's cities lie: a flow on the sphere against a mixture of von Mises–Fisher densities.

    DIFFEO_DATA=FOLDER python benchmarks/sphere.py

Rows are split at random into training, validation and test rows. The mixture has 1, 2, 4, … components, as many as
predict rows held out of the training rows best, and is then fitted to all of these. It is the flow before training; the
best step of that goes by the validation rows. Another flow has a uniform base. Log-densities are against the
surface of the unit sphere, in nats. Writes results/sphere.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import diffeo
from tables import data_root

RESULTS = Path(__file__).parent / "results" / "sphere.json"
SEEDS = (0, 1, 2)
COMPONENTS, STEPS = 8192, 4000


class Parts(NamedTuple):
    """Unit vectors, split."""

    train: Tensor
    validation: Tensor
    test: Tensor


def read(seed: int) -> Parts:
    """Cities as unit vectors, 80 % for training and 10 % each for validation and test."""
    table = pd.read_csv(data_root() / "science" / "pzflow_city.csv.gz")
    latitude, longitude = np.radians(table[["Latitude", "Longitude"]].to_numpy(np.float64)).T
    x = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], 1)
    x = torch.from_numpy(x[np.random.default_rng(seed).permutation(len(x))]).float()
    tenth = len(x) // 10
    return Parts(x[2 * tenth :], x[:tenth], x[tenth : 2 * tenth])


def fit(parts: Parts, seed: int, components: int, steps: int) -> list[dict[str, Any]]:
    """The recipe's flow, with `fit`'s defaults; and before that its base alone, where that is a mixture."""
    torch.manual_seed(seed)
    flow = diffeo.sphere(layers=6, bins=32, hidden=(128, 128), components=components)
    runs = []
    began = time.perf_counter()
    if components:
        flow.initialize(parts.train)  # its layers turn the sphere and do no more, so that it is the mixture
        used = int((flow.base.logits > flow.base.logits.min()).sum())
        runs.append({"who": "mixture", "components": used, **_score(flow, parts), "seconds": _since(began)})
        print(seed, runs[-1], flush=True)
    result = diffeo.fit(
        flow, parts.train, validation=parts.validation, steps=steps, weight_decay=0.0, seed=seed, progress=False
    )
    who = "flow from the mixture" if components else "flow from the uniform density"
    runs.append({"who": who, "steps": result.best_step, **_score(flow, parts), "seconds": _since(began)})
    print(seed, runs[-1], flush=True)
    return [{"seed": seed, **run} for run in runs]


@torch.inference_mode()
def _score(density: diffeo.Density, parts: Parts) -> dict[str, float]:
    scores = torch.cat([density(rows) for rows in parts.test.split(500)]).double()
    validation = torch.cat([density(rows) for rows in parts.validation.split(500)]).double()
    return {
        "nats": float(scores.mean()),
        "stderr": float(scores.std() / len(scores) ** 0.5),
        "validation": float(validation.mean()),
    }


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 1)


def main() -> None:
    """All seeds, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        parts = read(seed)
        runs += fit(parts, seed, COMPONENTS, options.steps) + fit(parts, seed, 0, options.steps)
        content = {"cities": sum(map(len, parts)), "steps": options.steps, "threads": options.threads, "runs": runs}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
