"""Cost of the autoregressive inverse: one layer's inverse beside its own density pass, interleaved, eager mode.

    python benchmarks/inverse.py

Writes benchmarks/results/inverse.json; `benchmarks/report.py` puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

import torch

import diffeo
import peers

REPEATS = 30
CONFIGURATIONS = ((8, 128, 512), (64, 256, 1024))  # features, hidden, batch


def measure(features: int, hidden: int, batch: int, residual: bool) -> dict[str, float]:
    """Medians and quartiles in milliseconds, of one spline layer with 8 bins and two hidden layers."""
    torch.manual_seed(0)
    spline = diffeo.RationalQuadraticSpline(8)
    net = diffeo.nets.MADE(features, spline.n_params, hidden=(hidden, hidden), residual=residual)
    layer = diffeo.testing.perturbed(diffeo.Autoregressive(net, spline))
    x = torch.randn(batch, features)
    times: dict[str, list[float]] = {"density": [], "inverse": []}
    with torch.inference_mode():
        z, _ = layer(x)
        error = float((layer.inverse(z)[0] - x).abs().max())
        for _ in range(REPEATS):
            for name, run, value in (("density", layer.forward, x), ("inverse", layer.inverse, z)):
                began = time.perf_counter()
                run(value)
                times[name].append(1e3 * (time.perf_counter() - began))
    ratios = [i / d for i, d in zip(times["inverse"], times["density"], strict=True)]
    quartiles = {name: [round(q, 3) for q in statistics.quantiles(t, n=4)] for name, t in times.items()}
    return {**quartiles, "ratio": [round(q, 2) for q in statistics.quantiles(ratios, n=4)], "error": error}


def main() -> None:
    """Measure every configuration, plain and residual."""
    runs = [
        {"features": d, "hidden": h, "batch": b, "residual": r, **measure(d, h, b, r)}
        for d, h, b in CONFIGURATIONS
        for r in (False, True)
    ]
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "runs": runs}
    peers._write(Path(__file__).parent / "results" / "inverse.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
