"""Where the world's cities lie: a flow on the sphere against mixtures of von Mises and Fisher's density.

    DIFFEO_DATA=FOLDER python benchmarks/sphere.py

Rows are split at random into training, validation and test rows; the number of components, and when the flow stops, go
by the validation rows. Log-densities are against the surface of the unit sphere, in nats. Writes results/sphere.json.
"""

from __future__ import annotations

import argparse
import json
import math
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
COMPONENTS = (1, 4, 16, 64, 256, 512, 1024, 2048, 4096, 8192)
SEEDS = (0, 1, 2)
LAYERS, BINS = 6, 32


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


class Mixture:
    """log p(x) = log Σₖ πₖ κₖ exp(κₖ (mₖᵀx − 1)) / (2π (1 − exp(−2κₖ))), fitted by expectation and maximisation."""

    def __init__(self, x: Tensor, components: int, seed: int, iterations: int = 60):
        generator = torch.Generator().manual_seed(seed)
        self.means = x[torch.randperm(len(x), generator=generator)[:components]]
        self.concentrations = torch.full((components,), 10.0)
        self.weights = torch.full((components,), 1 / components)
        last = -math.inf
        for _ in range(iterations):
            joint = self._joint(x)
            total = joint.logsumexp(1)
            share = joint.sub_(total.unsqueeze(1)).exp_()
            mass = share.sum(0).clamp_min(1e-6)
            sums = share.T @ x
            length = sums.norm(dim=1).clamp_min(1e-9)
            self.means, self.weights = sums / length.unsqueeze(1), mass / mass.sum()
            self.concentrations = _concentration((length / mass).double()).float()
            if float(total.mean()) - last < 1e-4:
                break
            last = float(total.mean())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of unit vectors."""
        return self._joint(x).logsumexp(1).double()

    def _joint(self, x: Tensor) -> Tensor:
        k = self.concentrations
        log_norm = k.log() - math.log(2 * math.pi) - torch.log(-torch.expm1(-2 * k))
        return self.weights.log() + log_norm + k * (x @ self.means.T - 1)


def _concentration(length: Tensor) -> Tensor:
    """κ with coth κ − 1/κ equal to the mean length, by Newton from Banerjee's approximation."""
    length = length.clamp(1e-6, 1 - 1e-6)
    k = length * (3 - length**2) / (1 - length**2)
    for _ in range(20):
        mean = 1 / torch.tanh(k) - 1 / k
        slope = 1 / k**2 - 1 / torch.sinh(k.clamp_max(300)) ** 2
        k = (k - (mean - length) / slope.clamp_min(1e-12)).clamp(1e-3, 1e5)
    return k


def fit_mixture(parts: Parts, seed: int) -> dict[str, Any]:
    """The mixture with the components that predict the validation rows best."""
    began = time.perf_counter()
    tried = []
    for components in COMPONENTS:
        mixture = Mixture(parts.train, components, seed)
        tried.append((float(mixture.log_prob(parts.validation).mean()), components, mixture))
        print(f"  {components} components: validation {tried[-1][0]:.4f}", flush=True)
        if len(tried) > 1 and tried[-1][0] < tried[-2][0]:
            break
    _, components, best = max(tried, key=lambda entry: entry[0])
    return {
        "who": "mixture",
        "seed": seed,
        "components": components,
        "validation": {c: nats for nats, c, _ in tried},
        **_score(best.log_prob(parts.test)),
        "seconds": round(time.perf_counter() - began, 1),
    }


def fit_flow(parts: Parts, seed: int, steps: int) -> dict[str, Any]:
    """The recipe's flow, with `fit`'s defaults but the number of steps."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    flow = diffeo.sphere(layers=LAYERS, bins=BINS, hidden=(128, 128))
    result = diffeo.fit(
        flow, parts.train, validation=parts.validation, steps=steps, weight_decay=0.0, seed=seed, progress=False
    )
    with torch.inference_mode():
        scores = flow(parts.test).double()
    return {
        "who": "sphere",
        "seed": seed,
        "steps": result.best_step,
        **_score(scores),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _score(log_prob: Tensor) -> dict[str, float]:
    return {"nats": float(log_prob.mean()), "stderr": float(log_prob.std() / len(log_prob) ** 0.5)}


def main() -> None:
    """All seeds, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=15_000)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        parts = read(seed)
        for run in (fit_mixture(parts, seed), fit_flow(parts, seed, options.steps)):
            runs.append(run)
            print({key: value for key, value in run.items() if key != "validation"}, flush=True)
        RESULTS.write_text(json.dumps({"cities": sum(map(len, parts)), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
