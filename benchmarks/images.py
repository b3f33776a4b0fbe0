"""Flows of MNIST digits: bits per dimension of the exact test split against minutes of training.

    python benchmarks/images.py [--recipes glow realnvp_image] [--minutes 15] [--preset small]

Each recipe trains for that long on 58,000 training digits, with uniform dequantization; 2,000 more decide which weights
are kept. The curve is of these; the figure is of all 10,000 test digits. Finished runs are kept in results/images.json.
A run that is interrupted goes on where it stopped (`--folder`, default build/images).
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from pathlib import Path

import numpy as np
import torch

import diffeo
from diffeo.apps.images import decode, encode, gaussian_bits, histogram_bits
from results import RESULTS, load, markdown, save
from tables import data_root

RESULT = RESULTS / "images.json"
HELD, SHOWN = 2_000, 1_000  # digits that choose the weights, and that go to noise and back
DIMS = 28 * 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["glow", "realnvp_image"])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--folder", type=Path, default=Path("build/images"))
    options = parser.parse_args()
    with np.load(data_root() / "images" / "mnist.npz") as file:
        images, test = (torch.from_numpy(file[name]).unsqueeze(1) for name in ("x_train", "x_test"))
    content = load(RESULT, {"baselines": {}, "runs": []})
    if not content["baselines"]:
        train = images[HELD:]
        content["baselines"] = {
            "Gaussian": gaussian_bits(train, test),
            "histogram of each pixel": histogram_bits(train, test, 256),
        }
        save(RESULT, content)
    for recipe in options.recipes:
        job = {"recipe": recipe, "preset": options.preset, "minutes": options.minutes}
        if any(job.items() <= done.items() for done in content["runs"]):
            continue
        content["runs"].append({**job, **run(images, test, options.folder / recipe, **job)})
        save(RESULT, content)
        print({k: v for k, v in content["runs"][-1].items() if k != "curve"}, flush=True)


def run(images: torch.Tensor, test: torch.Tensor, folder: Path, recipe: str, preset: str, minutes: float) -> dict:
    """Train one recipe and measure it."""
    torch.manual_seed(0)
    model = getattr(diffeo, recipe)((1, 28, 28), preset=preset)
    result = diffeo.fit(
        model, images[HELD:], validation=images[:HELD], batch_size=64, lr=2e-3, epochs=100,
        time_limit=60 * minutes, checkpoint=folder, resume=True,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    bits = diffeo.bits_per_dim(model, test, generator=generator)
    x = test[:SHOWN]
    with torch.no_grad():
        exact = x.float() + 0.5
        z = encode(model, x)
        error = float((model.transform.inverse(z)[0] - exact).abs().max())
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "bits_per_dim": float(bits.mean()),
        "stderr": float(bits.std() / len(bits) ** 0.5),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "largest_error_levels": error,
        "lost_levels": int((decode(model, z) - x.long()).abs().max()),
        "cores": os.cpu_count(),
        "curve": [
            [round(e["seconds"] / 60, 2), e["validation_loss"] / (DIMS * math.log(2))]
            for e in result.history
            if e["validation_loss"] is not None
        ],
    }


def section() -> str:
    """MNIST: bits per dimension and the way there."""
    content = load(RESULT, {"baselines": {}, "runs": []})
    if not content["runs"]:
        return ""
    rows = [
        [
            r["recipe"],
            r["preset"],
            f"{r['parameters']:,}",
            f"{r['seconds'] / 60:.0f}",
            f"{r['steps']:,}",
            f"{r['bits_per_dim']:.3f} ± {r['stderr']:.3f}",
            f"{r['largest_error_levels']:.1e}",
        ]
        for r in content["runs"]
    ]
    rows += [[name, "", "", "", "", f"{bits:.3f}", ""] for name, bits in content["baselines"].items()]
    header = ["model", "preset", "parameters", "minutes", "steps", "bits per dimension", "round trip"]
    times = (1, 2, 5, 10, 15, 30, 60)
    reached = []
    for r in content["runs"]:
        cells = [[bits for minute, bits in r["curve"] if minute <= t] for t in times]
        late = [t > r["seconds"] / 60 + 0.5 for t in times]
        reached.append(
            [r["recipe"], *("" if not c or no else f"{c[-1]:.3f}" for c, no in zip(cells, late, strict=True))]
        )
    cores = content["runs"][0]["cores"]
    way = ""
    if any(any(cells[1:]) for cells in reached):
        table = markdown(["model", *(f"{t} min" for t in times)], reached)
        way = f"On {HELD:,} held-out digits, after so many minutes:\n\n{table}\n\n"
    return f"""\
## Pictures: MNIST

Bits per dimension of the 10,000 test digits, uniform dequantization, one sample of the noise (an upper bound; lower
is better), after training on {cores} shared cores. Round trip: the largest error of noise and back in float32, in
levels of 256, over {SHOWN:,} test digits. The baselines are a Gaussian with shrunk covariance and independent pixels.

{markdown(header, rows)}

{way}    python benchmarks/images.py
"""


if __name__ == "__main__":
    main()
