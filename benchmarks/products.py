"""Matrix products of conditioners: the ways to ask for one, interleaved; what `diffeo.kernels.layout` rests on.

    python benchmarks/products.py

Microseconds (lowest decile) of y = x Wᵀ, of its gradients as autograd would take them and laid out for their long
sides, and of oneDNN's linear operator for the same. Writes benchmarks/results/products.json.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from results import RESULTS, save

SHAPES = (
    (256, 2, 64),
    (512, 4, 128),
    (512, 8, 128),
    (512, 128, 92),
    (1024, 32, 256),
    (1024, 256, 256),
    (1024, 256, 736),
)
REPEATS = 150


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ by oneDNN, which PyTorch's float32 products on CPUs do not use by themselves."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def measure(batch: int, inputs: int, outputs: int) -> dict[str, float]:
    """Microseconds of every way."""
    x, weight, g = torch.randn(batch, inputs), torch.randn(outputs, inputs), torch.randn(batch, outputs)
    ways: dict[str, Callable[[], Tensor]] = {
        "y = x W'": lambda: x @ weight.T,
        "y, batch innermost": lambda: weight @ x.T,
        "y, oneDNN": lambda: onednn(x, weight),
        "dx = g W": lambda: g @ weight,
        "dx' = W' g'": lambda: weight.T @ g.T,
        "dx, oneDNN": lambda: onednn(g, weight.T),
        "dW = g' x": lambda: g.T @ x,
        "dW' = x' g": lambda: x.T @ g,
        "dW, oneDNN": lambda: onednn(g.T, x.T),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(1e6 * (time.perf_counter() - began))
    return {name: round(sorted(t)[REPEATS // 10], 1) for name, t in times.items()}


def main() -> None:
    """Measure every shape."""
    with torch.inference_mode():
        runs = [{"batch": b, "in": i, "out": o, **measure(b, i, o)} for b, i, o in SHAPES]
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cores": os.cpu_count(), "runs": runs}
    save(RESULTS / "products.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
