"""The density benchmark: held-out nats of ours beside the peers', and of the defaults beside simple baselines.

    python benchmarks/density.py peers      # ours and every installed peer under the shared budget, three seeds
    python benchmarks/density.py defaults   # diffeo.nsf_ar(D) + diffeo.fit on ten tables, no tuning
    python benchmarks/density.py roundtrip  # float32 inverse(forward(x)) of every tabular recipe after training
    python benchmarks/density.py            # all three

Results are JSON in benchmarks/results, read first, so that an interrupted benchmark goes on where it stopped.
`benchmarks/report.py` turns them into docs/benchmarks.md. FlowJAX needs JAX and an environment of its own; run
`python benchmarks/peers.py --libraries flowjax` there, on the same files.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import peers
import tables

RESULTS = Path(__file__).parent / "results"
DEFAULT_TABLES = (
    "Wilt", "Waveform", "magic.gamma", "kin40k", "protein", "power", "annthyroid", "PageBlocks", "elevators", "cover",
)  # fmt: skip
RECIPES = ("gaussian", "nice", "realnvp", "maf", "iaf", "nsf", "nsf_ar")
ROUNDTRIP_STEPS = 200
# the recipes as they are, and with conditioners as large as those that normflows offers (two residual blocks)
OURS: dict[str, dict[str, Any]] = {"diffeo": {}, "diffeo (residual)": {"residual": True}}


def run_peers(seeds: list[int], threads: int) -> None:
    """Ours and the installed peers, seed by seed."""
    installed = [name for name in peers.LIBRARIES if importlib.util.find_spec(name)]
    for seed in seeds:
        for _ in resumable(
            RESULTS / "density_ours.json",
            {"protocol": {**peers.PROTOCOL, "idioms": {"diffeo": "the recipes' defaults; no averaging of weights"}}},
            [
                {"library": library, "family": family, "table": table, "seed": seed, "steps": peers.STEPS}
                for library in OURS
                for family in peers.FAMILIES
                for table in peers.TABLES
            ],
            lambda job: ours(job["family"], job["table"], job["seed"], **OURS[job["library"]]),
        ):
            pass
        if installed:
            command = [sys.executable, str(Path(__file__).parent / "peers.py"), "--libraries", *installed]
            subprocess.run([*command, "--seeds", str(seed), "--threads", str(threads)], check=True)


def ours(family: str, table: str, seed: int, **size: Any) -> dict[str, Any]:
    """One fit under the peers' budget: the last weights, no validation, no averaging."""
    import torch

    import diffeo

    train, _, test = tables.peer_split(table)
    torch.manual_seed(seed)
    flow = getattr(diffeo, family)(train.shape[1], **size)
    began, cpu = time.perf_counter(), time.process_time()
    diffeo.fit(
        flow, train, validation=0, seed=seed, steps=peers.STEPS, batch_size=peers.BATCH, clip=peers.CLIP,
        lr=peers.RATE, weight_decay=0.0, average=0.0, compile=False,
    )  # fmt: skip
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    nats = score(flow, test)
    return {
        **mean_and_error(nats),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "version": diffeo.__version__,
        "torch": version("torch"),
        "threads": torch.get_num_threads(),
    }


def run_defaults() -> None:
    """The first call of a user on ten tables, beside baselines tuned on the same validation rows."""
    protocol = {
        "split": "tables.default_split: 60/20/20 with seed 0, uniform noise of the median spacing on repeating columns",
        "flow": "diffeo.nsf_ar(D); diffeo.fit(flow, train, validation=valid); nothing else",
        "nats": "per test row, in units of the training rows' standard deviations",
    }
    for _ in resumable(
        RESULTS / "density_defaults.json",
        {"protocol": protocol},
        [{"table": table} for table in DEFAULT_TABLES],
        lambda job: default_fit(job["table"]),
    ):
        pass


def run_estimator() -> None:
    """`FlowDensity()` on the same tables; training and validation rows together, since it holds out rows itself."""
    protocol = {
        "split": "as density_defaults.json; fit on the first 80 %",
        "flow": "diffeo.FlowDensity(random_state=0).fit(X), score_samples on the test rows; nothing else",
        "nats": "per test row, in units of the training rows' standard deviations",
    }
    for _ in resumable(
        RESULTS / "density_estimator.json",
        {"protocol": protocol},
        [{"table": table} for table in DEFAULT_TABLES],
        lambda job: estimator_fit(job["table"]),
    ):
        pass


def estimator_fit(table: str) -> dict[str, Any]:
    """One table: FlowDensity with no argument but the seed."""
    import diffeo

    train, valid, test = tables.default_split(table)
    units = float(np.log(train.std(0)).sum())
    began = time.perf_counter()
    model = diffeo.FlowDensity(random_state=0).fit(np.concatenate([train, valid]))
    return {
        "rows": len(train) + len(valid),
        "features": train.shape[1],
        **mean_and_error(model.score_samples(test) + units),
        "steps": model.result_.steps,
        "stopped": model.result_.stopped,
        "seconds": round(time.perf_counter() - began, 1),
    }


def default_fit(table: str) -> dict[str, Any]:
    """One table: our default fit, its round trip in float32, and the baselines."""
    import torch

    import diffeo
    from diffeo.baselines import score_baselines

    train, valid, test = tables.default_split(table)
    units = float(np.log(train.std(0)).sum())
    torch.manual_seed(0)
    flow = diffeo.nsf_ar(train.shape[1])
    result = diffeo.fit(flow, train, validation=valid)
    others = score_baselines(train, valid, test)
    return {
        "rows": len(train),
        "features": train.shape[1],
        "atoms": {str(k): round(v, 3) for k, v in tables.atoms(table).items()},
        **mean_and_error(score(flow, test) + units),
        "baselines": {b.name: {"nats": b.nats + units, "stderr": b.stderr, "choice": b.choice} for b in others},
        "roundtrip": roundtrip_error(flow, test),
        "steps": result.steps,
        "best_step": result.best_step,
        "stopped": result.stopped,
        "seconds": round(result.seconds, 1),
        "threads": torch.get_num_threads(),
    }


def run_roundtrip() -> None:
    """Every tabular recipe, trained for a while on each of the ten tables, inverted in float32."""
    for _ in resumable(
        RESULTS / "density_roundtrip.json",
        {"protocol": {"steps": ROUNDTRIP_STEPS, "rows": "up to 5,000 test rows", "error": "|x - back| / (1 + |x|)"}},
        [{"table": table, "recipe": recipe} for table in DEFAULT_TABLES for recipe in RECIPES],
        lambda job: trained_roundtrip(job["table"], job["recipe"]),
    ):
        pass


def trained_roundtrip(table: str, recipe: str) -> dict[str, Any]:
    """Train one recipe on one table, in the table's own units, and measure the round trip on test rows."""
    import torch

    import diffeo

    train, valid, test = tables.default_split(table)
    torch.manual_seed(0)
    flow = getattr(diffeo, recipe)(train.shape[1])
    batch = 128 if recipe == "iaf" else 512
    diffeo.fit(flow, train, validation=valid[:1000], steps=ROUNDTRIP_STEPS, batch_size=batch)
    return roundtrip_error(flow, test[:5000])


def roundtrip_error(flow: Any, rows: np.ndarray) -> dict[str, float]:
    """Quantiles of |x − inverse(forward(x))| / (1 + |x|) over all entries, in float32."""
    import torch

    x = torch.from_numpy(rows).float()
    with torch.no_grad():
        back = torch.cat([flow.transform.inverse(flow.transform(part)[0])[0] for part in x.split(4096)])
    error = ((x - back).abs() / (1 + x.abs())).double().flatten().numpy()
    return {
        "median": float(np.median(error)),
        "p999": float(np.quantile(error, 0.999)),
        "share_below_1e-3": float((error < 1e-3).mean()),
    }


def score(flow: Any, rows: np.ndarray) -> np.ndarray:
    """Log-density of rows in float32, as the flow was trained."""
    import torch

    with torch.inference_mode():
        return torch.cat([flow(part) for part in torch.from_numpy(rows).float().split(4096)]).double().numpy()


def mean_and_error(log_p: np.ndarray) -> dict[str, float]:
    """Mean nats and their standard error over rows."""
    return {"nats": float(log_p.mean()), "stderr": float(log_p.std() / np.sqrt(len(log_p)))}


def resumable(
    path: Path, head: dict[str, Any], jobs: list[dict[str, Any]], run: Callable[[dict[str, Any]], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Run the jobs that the file lacks, rewriting it after each."""
    content = json.loads(path.read_text()) if path.exists() else {**head, "runs": []}
    for job in jobs:
        if any(all(done.get(k) == v for k, v in job.items()) for done in content["runs"]):
            continue
        entry = {**job, **run(job)}
        content["runs"].append(entry)
        peers._write(path, content)
        print(json.dumps(entry), flush=True)
        yield entry


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["peers", "defaults", "estimator", "roundtrip"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    peers._limit_threads(args.threads)
    if "peers" in args.parts:
        run_peers(args.seeds, args.threads)
    if "defaults" in args.parts:
        run_defaults()
    if "estimator" in args.parts:
        run_estimator()
    if "roundtrip" in args.parts:
        run_roundtrip()


if __name__ == "__main__":
    main()
