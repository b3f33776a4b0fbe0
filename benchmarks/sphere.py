"""Where the world's cities lie: a flow on the sphere against a mixture of von Mises–Fisher densities.

    DIFFEO_DATA=FOLDER python benchmarks/sphere.py

Rows are split at random into training, validation and test rows. The mixture has 1, 2, 4, … components, as many as
predict rows held out of the training rows best, and is then fitted to all of these. The flow has a uniform base, and
keeps the weights of the step that predicts the validation rows best. Log-densities are against the surface of the unit
sphere, in nats. Writes results/sphere.json and a map.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

import diffeo
from results import IMAGES, RESULTS, load, markdown, number, save
from tables import data_root

RESULT = RESULTS / "sphere.json"
SEEDS = (0, 1, 2)
COMPONENTS, HARMONICS, STEPS, LEARNING_RATE = 8192, 16, 8000, 1e-3


class Parts(NamedTuple):
    """Unit vectors, split."""

    train: Tensor
    validation: Tensor
    test: Tensor


def read(seed: int) -> Parts:
    """Cities as unit vectors, 80 % for training and 10 % each for validation and test."""
    cities = pd.read_csv(data_root() / "science" / "pzflow_city.csv.gz")
    latitude, longitude = np.radians(cities[["Latitude", "Longitude"]].to_numpy(np.float64)).T
    x = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], 1)
    x = torch.from_numpy(x[np.random.default_rng(seed).permutation(len(x))]).float()
    tenth = len(x) // 10
    return Parts(x[2 * tenth :], x[:tenth], x[tenth : 2 * tenth])


def fit_mixture(parts: Parts) -> tuple[diffeo.Density, dict[str, Any]]:
    """The mixture, by expectation and maximisation, and what is told of it."""
    began = time.perf_counter()
    mixture = diffeo.VonMisesFisherMixture(COMPONENTS)
    mixture.initialize(parts.train)
    used = int((mixture.logits > mixture.logits.min()).sum())
    return mixture, {"who": "mixture", "size": used, **_score(mixture, parts), "seconds": _since(began)}


def fit_flow(parts: Parts, seed: int, steps: int) -> tuple[diffeo.Density, dict[str, Any]]:
    """The recipe's flow, with enough bins and harmonics for coasts, and what is told of it."""
    began = time.perf_counter()
    torch.manual_seed(seed)
    flow = diffeo.sphere(layers=3, bins=32, hidden=(128, 128), harmonics=HARMONICS)
    result = diffeo.fit(
        flow, parts.train, validation=parts.validation, steps=steps, lr=LEARNING_RATE, seed=seed, progress=False
    )
    size = sum(p.numel() for p in flow.parameters())
    run = {"who": "flow", "size": size, **_score(flow, parts), "steps": result.best_step, "seconds": _since(began)}
    return flow.eval(), run


@torch.inference_mode()
def draw(parts: Parts, densities: dict[str, diffeo.Density]) -> None:
    """Test rows, and densities in the projection of Lambert, which keeps areas: longitude and height."""
    longitude, height = torch.linspace(-math.pi, math.pi, 600), torch.linspace(-1, 1, 200)
    around, up = torch.meshgrid(longitude, height, indexing="xy")
    radius = (1 - up**2).clamp_min(0).sqrt()
    grid = torch.stack([radius * around.cos(), radius * around.sin(), up], -1).reshape(-1, 3)
    figure, axes = plt.subplots(1 + len(densities), 1, figsize=(7.5, 2.7 * (1 + len(densities))), layout="constrained")
    axes[0].scatter(torch.atan2(parts.test[:, 1], parts.test[:, 0]), parts.test[:, 2], s=0.4, color="white")
    axes[0].set(xlim=(-math.pi, math.pi), ylim=(-1, 1), facecolor="black", title="cities that no model saw")
    for ax, (name, density) in zip(axes[1:], densities.items(), strict=True):
        nats = torch.cat([density(rows) for rows in grid.split(500)]).reshape(len(height), len(longitude))
        image = ax.imshow(
            nats, origin="lower", extent=(-math.pi, math.pi, -1, 1), aspect="auto", cmap="magma", vmin=-8, vmax=4
        )
        ax.set_title(name)
        figure.colorbar(image, ax=ax, label="log p (nats)")
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    figure.savefig(IMAGES / "sphere.png", dpi=100)
    plt.close(figure)


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


def section() -> str:
    """Cities: the flow against the mixture, split by split."""
    content = load(RESULT)
    rows = []
    for r in content["runs"]:
        size = f"{r['size']:,} {'components' if r['who'] == 'mixture' else 'parameters'}"
        nats = f"{number(r['nats'])} ± {r['stderr']:.3f}"
        rows.append([r["seed"], r["who"], size, number(r["validation"]), nats, f"{r['seconds']:.0f}"])
    return f"""\
## The sphere

The coordinates of {content["cities"]:,} cities: `diffeo.sphere` with {HARMONICS} harmonics against a mixture of von
Mises–Fisher densities (`diffeo.VonMisesFisherMixture`, by expectation and maximisation, with the number of
components that predicts held-out training rows best). Nats against the surface of the unit sphere on
validation rows and on a tenth of the cities that neither saw; a random split each, the same rows for both;
seconds with {content["threads"]} thread, beside other jobs. The validation rows chose the step of the flow.

{markdown(["split", "model", "size", "validation", "test", "seconds"], rows)}

![Cities, and the two densities on the map](images/sphere.png)

    DIFFEO_DATA=FOLDER python benchmarks/sphere.py
"""


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
        flow, of_flow = fit_flow(parts, seed, options.steps)
        mixture, of_mixture = fit_mixture(parts)
        for run in (of_flow, of_mixture):
            runs.append({"seed": seed, **run})
            print(runs[-1], flush=True)
        if seed == options.seeds[0]:
            draw(parts, {"the mixture": mixture, "the flow": flow})
        content = {"cities": sum(map(len, parts)), "steps": options.steps, "threads": options.threads, "runs": runs}
        save(RESULT, content)


if __name__ == "__main__":
    main()
