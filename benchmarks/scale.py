"""What grows with what: memory with depth, cost with features and rows, memory with the table, start-up, the inverse.

    python benchmarks/scale.py            # all, or some of: depth, cost, table, startup, inverse

Every measurement is a process of its own. Writes benchmarks/results/scale.json, part by part.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from results import RESULTS, load, markdown, save, short

RESULT = RESULTS / "scale.json"
DEPTHS = (4, 32)
POLICIES = ("store", "recompute", "invert")
SIZES = ((8, 128, 512), (64, 256, 1024))  # features, hidden, rows
FEATURES = (8, 64, 512)
ROWS = (1, 16, 256, 4096)
PARQUET = (500_000, 8_000_000)  # rows of 8 float64 columns
INVERSES = 30
STARTS = 9


def depth() -> list[dict[str, Any]]:
    """Bytes saved for the backward pass, peak memory and time of a step of couplings, by memory policy."""
    return [
        work("step", features=features, hidden=hidden, rows=rows, layers=layers, policy=policy)
        for features, hidden, rows in SIZES
        for layers in DEPTHS
        for policy in POLICIES
    ]


def step(features: int, hidden: int, rows: int, layers: int, policy: str) -> dict[str, Any]:
    """One process: a training step of `layers` spline couplings, with gradients compared with "store"."""
    import torch

    import diffeo

    flow, x = _flow("nsf", features, hidden, layers), torch.randn(rows, features)
    weights = {p.untyped_storage().data_ptr() for p in flow.parameters()}
    saved: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return t

    def gradient(x: torch.Tensor) -> torch.Tensor:
        flow.zero_grad()
        with diffeo.compiled_kernels():  # as in a fit
            (-flow(x).mean()).backward()
        return torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])

    flow.transform.memory = policy
    gradient(x[:8])
    before = _peak_mb()
    gradient(x)
    peak = _peak_mb() - before
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        kept = -flow(x).mean()
    del kept
    times: dict[str, list[float]] = {"store": [], policy: []}
    for _ in range(3 if features * layers > 500 else 15):
        for name, ms in times.items():  # in turn with "store"
            flow.transform.memory = name
            began = time.perf_counter()
            gradient(x)
            ms.append(1e3 * (time.perf_counter() - began))
    errors = {}
    for kind in (torch.float32, torch.float64):
        flow, x = flow.to(kind), x.to(kind)
        flow.transform.memory = "store"
        reference = gradient(x)
        flow.transform.memory = policy
        errors[str(kind).removeprefix("torch.")] = float((gradient(x) - reference).norm() / reference.norm())
    return {
        "saved_mb": round(sum(saved.values()) / 1e6, 4),
        "event_mb": round(4 * rows * features / 1e6, 4),
        "peak_mb": round(peak, 1),
        "ms": round(statistics.median(times[policy]), 1),
        "over_store": round(statistics.median(times[policy]) / statistics.median(times["store"]), 2),
        "gradient_error": errors,
    }


def cost() -> list[dict[str, Any]]:
    """Milliseconds of density and samples, compiled, by features and by rows."""
    flows = [(family, features) for features in FEATURES for family in ("realnvp", "nsf", "maf", "nsf_ar")]
    return [entry for family, features in flows for entry in work("directions", family=family, features=features)]


def directions(family: str, features: int) -> list[dict[str, Any]]:
    """One process: both directions of a flow of five layers; all numbers of rows where the features are few."""
    import torch

    flow = _flow(family, features, hidden=128 if features <= 8 else 256)
    flow.compile()
    out = []
    with torch.no_grad():
        for rows in ROWS if features == min(FEATURES) else (256,):
            x = torch.randn(rows, features)
            entry: dict[str, Any] = {"rows": rows}
            runs: dict[str, Callable[[], Any]] = {
                "density": lambda x=x: flow(x),
                "sample": lambda n=rows: flow.sample(n),
            }
            for name, run in runs.items():
                run(), run()
                ms: list[float] = []
                while len(ms) < 5 or (sum(ms) < 500 and len(ms) < 100):
                    began = time.perf_counter()
                    run()
                    ms.append(1e3 * (time.perf_counter() - began))
                entry[name] = round(statistics.median(ms), 3)
            out.append(entry)
    return out


def parquet() -> list[dict[str, Any]]:
    """Peak memory of one epoch over a Parquet file, and over the same rows read into memory."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = []
    random = np.random.default_rng(0)
    for rows in PARQUET:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/rows.parquet"
            names = [f"c{i}" for i in range(8)]
            with pq.ParquetWriter(path, pa.schema([(name, pa.float64()) for name in names])) as file:
                for _ in range(0, rows, 100_000):
                    block = random.normal(size=(100_000, 8)).cumsum(1)
                    file.write(pa.table(dict(zip(names, block.T, strict=True))), row_group_size=50_000)
            out += [
                {"table_mb": round(rows * 64 / 1e6), **work("epoch", path=path, rows=rows, streamed=streamed)}
                for streamed in (True, False)
            ]
    return out


def epoch(path: str, rows: int, streamed: bool) -> dict[str, Any]:
    """One process: an epoch of a small flow."""
    import pandas as pd
    import torch

    import diffeo

    def fit(x: Any, steps: int) -> diffeo.FitResult:
        flow = diffeo.maf(8, layers=2, hidden=(32, 32))
        return diffeo.fit(flow, x, validation=0, steps=steps, batch_size=8192, progress=False)

    fit(torch.randn(20_000, 8), 3)  # what a fit needs anyway
    before = _peak_mb()
    began = time.perf_counter()
    steps = rows // 8192
    result = fit(diffeo.ParquetRows(path) if streamed else pd.read_parquet(path).to_numpy(), steps)
    return {
        "steps": result.steps,
        "peak_mb": round(_peak_mb() - before),
        "seconds": round(time.perf_counter() - began, 1),
        "loss": round(result.history[-1]["train_loss"], 3),
    }


def startup() -> dict[str, Any]:
    """Seconds until a process has imported, or the program has answered; in turn."""
    commands = {
        "import torch": [sys.executable, "-c", "import torch"],
        "import torch, diffeo": [sys.executable, "-c", "import torch, diffeo"],
        "diffeo --version": [sys.executable, "-m", "diffeo.cli", "--version"],
        "diffeo fit --help": [sys.executable, "-m", "diffeo.cli", "fit", "--help"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(STARTS):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    return {name: [round(q, 3) for q in statistics.quantiles(t, n=4)] for name, t in times.items()}


def inverse() -> dict[str, Any]:
    """Milliseconds of one autoregressive layer's inverse beside its own density pass."""
    runs = [
        work("directions_of_a_layer", features=features, hidden=hidden, batch=batch, residual=residual)
        for features, hidden, batch in SIZES
        for residual in (False, True)
    ]
    return {"torch": version("torch"), "cores": os.cpu_count(), "runs": runs}


def directions_of_a_layer(features: int, hidden: int, batch: int, residual: bool) -> dict[str, Any]:
    """One process: quartiles of one spline layer with 8 bins and two hidden layers, in eager mode, interleaved."""
    import torch

    import diffeo

    torch.manual_seed(0)
    spline = diffeo.RationalQuadraticSpline(8)
    net = diffeo.nets.MADE(features, spline.n_params, hidden=(hidden, hidden), residual=residual)
    layer = diffeo.testing.perturbed(diffeo.Autoregressive(net, spline))
    x = torch.randn(batch, features)
    times: dict[str, list[float]] = {"density": [], "inverse": []}
    with torch.inference_mode():
        z, _ = layer(x)
        error = float((layer.inverse(z)[0] - x).abs().max())
        for _ in range(INVERSES):
            for name, run, value in (("density", layer.forward, x), ("inverse", layer.inverse, z)):
                began = time.perf_counter()
                run(value)
                times[name].append(1e3 * (time.perf_counter() - began))
    ratios = [i / d for i, d in zip(times["inverse"], times["density"], strict=True)]
    quartiles = {name: [round(q, 3) for q in statistics.quantiles(t, n=4)] for name, t in times.items()}
    return {**quartiles, "ratio": [round(q, 2) for q in statistics.quantiles(ratios, n=4)], "error": error}


def work(task: str, **arguments: Any) -> Any:
    """Run a function of this file in a process of its own."""
    command = [sys.executable, __file__, "--worker", task, json.dumps(arguments)]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    entries = [{**arguments, **entry} for entry in told] if isinstance(told, list) else {**arguments, **told}
    for entry in entries if isinstance(entries, list) else [entries]:
        entry.pop("path", None)
        print(entry, flush=True)
    return entries


def _flow(family: str, features: int, hidden: int, layers: int = 5) -> Any:
    """Layers of one kind with random weights and nothing between them."""
    import torch

    import diffeo
    from diffeo.nets import MADE, MLP

    torch.manual_seed(0)
    parts: list[diffeo.Transform] = []
    for i in range(layers):
        u = diffeo.RationalQuadraticSpline(8, 5.0) if "nsf" in family else diffeo.Affine()
        if family in ("realnvp", "nsf"):
            mask = torch.arange(features) % 2 == i % 2
            kept = int(mask.sum())
            net = MLP(kept, features - kept, n_params=u.n_params, hidden=(hidden,) * 2)
            parts.append(diffeo.Coupling(mask, net, u))
        else:
            order = torch.arange(features) if i % 2 == 0 else torch.arange(features).flip(0)
            parts.append(diffeo.Autoregressive(MADE(features, u.n_params, hidden=(hidden,) * 2, order=order), u))
    return diffeo.testing.perturbed(diffeo.Flow(diffeo.Chain(*parts), diffeo.Normal(features)))


def _peak_mb() -> float:
    """Most memory this process has held so far (getrusage would tell that of the one that started it)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def section() -> str:
    """All parts but the inverse."""
    result = load(RESULT)
    depths = [
        [
            f"D{run['features']} H{run['hidden']} B{run['rows']}", str(run["layers"]), run["policy"],
            f"{run['saved_mb']:.3f}", f"{run['event_mb']:.3f}", f"{run['peak_mb']:.0f}", f"{run['ms']:.0f}",
            f"{run['over_store']:.2f}", *(f"{run['gradient_error'][kind]:.0e}" for kind in ("float32", "float64")),
        ]
        for run in result["depth"]
    ]  # fmt: skip
    costs = [
        [
            run["family"], str(run["features"]), str(run["rows"]), short(run["density"]), short(run["sample"]),
            f"{run['sample'] / run['density']:.1f}",
        ]
        for run in result["cost"]
    ]  # fmt: skip
    epochs = [
        [
            f"{run['rows']:,}", str(run["table_mb"]), "ParquetRows" if run["streamed"] else "in memory",
            str(run["peak_mb"]), str(run["steps"]), f"{run['seconds']:.0f}",
        ]
        for run in result["table"]
    ]  # fmt: skip
    starts = [[name, f"{q[1]:.2f} ({q[0]:.2f} … {q[2]:.2f})"] for name, q in result["startup"].items()]
    header = ["couplings (nsf)", "layers", "memory", "saved MB", "one event tensor, MB", "peak MB", "ms", "ms / store"]
    return f"""\
## Memory with depth

`Chain(memory=...)`: megabytes that one training step keeps for its backward pass (weights not counted), how much
its peak raises that of the process, its time (median, in turn with `store`), and the relative difference of its
gradients from those of `store`. Not compiled but for what runs in C, as in a fit; {result["threads"]} threads.

{markdown([*header, "gradients, float32", "float64"], depths)}

## Cost with features and rows

Milliseconds (medians) of five layers, compiled, {result["threads"]} threads; hidden layers 128 × 2 for 8 features,
else 256 × 2.

{markdown(["flow", "features", "rows", "density", "samples", "samples / density"], costs)}

## A table larger than memory

One epoch of `diffeo.fit` over eight float64 columns, from a Parquet file by `ParquetRows` and read whole: how much it
raises the peak memory of a process that has fitted before.

{markdown(["rows", "table MB", "", "peak MB", "steps", "seconds"], epochs)}

## Start-up

Seconds of a whole process, medians (quartiles), in turn.

{markdown(["", "seconds"], starts)}

    python benchmarks/scale.py
"""


def inverse_section() -> str:
    """Cost of the autoregressive inverse."""
    result = load(RESULT)
    rows = [
        [
            f"D = {r['features']}, hidden {r['hidden']} × 2, batch {r['batch']:,}{', residual' * r['residual']}",
            f"{r['density'][1]:.1f} ms",
            f"{r['inverse'][1]:.1f} ms",
            f"{r['ratio'][1]:.2f} ({r['ratio'][0]:.2f} … {r['ratio'][2]:.2f})",
            f"{r['error']:.0e}",
        ]
        for r in result["inverse"]["runs"]
    ]
    return f"""\
## The autoregressive inverse

One spline layer with 8 bins: its inverse, which computes each hidden unit once, beside its own density pass;
eager mode, interleaved, medians (quartiles), {result["threads"]} thread of {result["inverse"]["cores"]} cores. \
Goal at D = 64:
at most 4.

{markdown(["layer", "density", "inverse", "ratio", "round-trip error"], rows)}

    python benchmarks/scale.py inverse
"""


PARTS: dict[str, Callable[[], Any]] = {
    "depth": depth,
    "cost": cost,
    "table": parquet,
    "startup": startup,
    "inverse": inverse,
}
TASKS: dict[str, Callable[..., Any]] = {
    "step": step,
    "directions": directions,
    "epoch": epoch,
    "directions_of_a_layer": directions_of_a_layer,
}


def main() -> None:
    """Measure the parts asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        task, arguments = options.worker
        print(json.dumps(TASKS[task](**json.loads(arguments))))
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    content = load(RESULT, {})
    for part in options.parts:
        content[part] = PARTS[part]()
        content["threads"] = options.threads
        save(RESULT, content)


if __name__ == "__main__":
    main()
