"""Every family on the same eight densities in two dimensions: fits, figures, pictures and pages.

    python benchmarks/gallery.py

Each fit has 1,000 steps (400 where a step is slow, 4,000 where it is very fast), in one process with one thread and
without a compiler. Fits are kept (results/gallery.json, flows in .cache/gallery), so that a run that was cut short goes
on. Then the pictures and pages of docs/gallery are made from them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import diffeo
import gallery_pages
from shapes import SHAPES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gallery.json"
FLOWS = ROOT / ".cache" / "gallery"
TRAIN, TEST, TIMED = 20_000, 10_000, 2_000
BATCH, FEW_STEPS, MANY_STEPS = 512, 400, 4000
WIDE = {"hidden": (64, 64)}


def couplings(univariate: Callable[[], diffeo.Univariate], layers: int = 6) -> diffeo.Flow:
    """Couplings with a scalar map that has no recipe of its own, and learned linear maps between."""
    parts: list[diffeo.Transform] = [diffeo.Whiten(2)]
    for i in range(layers):
        mask, scalar = torch.tensor([i % 2 == 0, i % 2 == 1]), univariate()
        net = diffeo.nets.MLP(1, scalar.n_params, hidden=(64, 64))
        parts += [diffeo.Coupling(mask, net, scalar), diffeo.LULinear(2)]
    return diffeo.Flow(diffeo.Chain(*parts), diffeo.Normal(2))


class Family(NamedTuple):
    """How a family is built, and how it is trained."""

    build: Callable[[], diffeo.Flow]
    training: str = "likelihood"
    steps: int = 1000


FAMILIES = {
    "gaussian": Family(lambda: diffeo.gaussian(2), "training rows alone"),
    "planar": Family(lambda: diffeo.planar(2)),
    "radial": Family(lambda: diffeo.radial(2)),
    "sylvester": Family(lambda: diffeo.sylvester(2)),
    "nice": Family(lambda: diffeo.nice(2, layers=8, **WIDE)),
    "realnvp": Family(lambda: diffeo.realnvp(2, layers=8, **WIDE)),
    "maf": Family(lambda: diffeo.maf(2, layers=8, **WIDE)),
    "iaf": Family(lambda: diffeo.iaf(2, layers=8, **WIDE)),
    "linear splines": Family(lambda: couplings(lambda: diffeo.LinearSpline(16, 4.0))),
    "quadratic splines": Family(lambda: couplings(lambda: diffeo.QuadraticSpline(8, 4.0))),
    "cubic splines": Family(lambda: couplings(lambda: diffeo.CubicSpline(8, 4.0))),
    "rational-linear splines": Family(lambda: couplings(lambda: diffeo.RationalLinearSpline(8, 4.0))),
    "nsf": Family(lambda: diffeo.nsf(2, **WIDE)),
    "nsf_ar": Family(lambda: diffeo.nsf_ar(2, **WIDE)),
    "ttf": Family(lambda: diffeo.ttf(2, **WIDE)),
    "logistic mixtures": Family(lambda: couplings(lambda: diffeo.MixtureCDF(8))),
    "naf": Family(lambda: diffeo.naf(2, **WIDE)),
    "naf, dense": Family(lambda: diffeo.naf(2, dense=True, units=8, **WIDE)),
    "unaf": Family(lambda: diffeo.unaf(2, **WIDE), steps=FEW_STEPS),
    "sos": Family(lambda: diffeo.sos(2, **WIDE)),
    "bernstein": Family(lambda: diffeo.bernstein(2, **WIDE)),
    "bnaf": Family(lambda: diffeo.bnaf(2, width=32)),
    "gaussianization": Family(lambda: diffeo.gaussianization(2, layers=12)),
    "gaussianization, layerwise": Family(
        lambda: diffeo.gaussianization(2, layers=40, layerwise=True), "training rows alone"
    ),
    "residual_flow": Family(lambda: diffeo.residual_flow(2, layers=8, **WIDE)),
    "ffjord": Family(lambda: diffeo.ffjord(2), steps=FEW_STEPS),
    "ffjord, flow matching": Family(lambda: diffeo.ffjord(2), "flow matching", MANY_STEPS),
    "unit_box": Family(lambda: diffeo.unit_box(2)),
}
ONLY = {"unit_box": ("bounded",)}  # families of other domains than the plane


class Cell(NamedTuple):
    """One family on one density."""

    family: str
    shape: str

    @property
    def path(self) -> Path:
        """Where its flow is kept."""
        return FLOWS / f"{self.family}-{self.shape}.pt".replace(" ", "_").replace(",", "")


def cells(families: list[str]) -> list[Cell]:
    """All that is asked."""
    return [Cell(family, shape) for family in families for shape in ONLY.get(family, tuple(SHAPES))]


def rows(shape: str, n: int, seed: int) -> Tensor:
    """Samples of a density."""
    return SHAPES[shape]().sample(n, generator=torch.Generator().manual_seed(seed))


def load(cell: Cell) -> diffeo.Flow:
    """The flow of a cell, trained."""
    flow = FAMILIES[cell.family].build()
    flow.load_state_dict(torch.load(cell.path))
    return flow.eval()


def measure(cell: Cell) -> dict[str, Any]:
    """One fit and what is told of it, in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    family, x = FAMILIES[cell.family], rows(cell.shape, TRAIN, 0)
    flow = family.build()
    began, steps = time.perf_counter(), 0
    if family.training == "training rows alone":
        flow.initialize(x)
    else:
        what = flow if family.training == "likelihood" else diffeo.FlowMatching(flow)
        steps = diffeo.fit(what, x, steps=family.steps, batch_size=BATCH, compile=False, seed=0, progress=False).steps
    seconds = time.perf_counter() - began
    flow.eval()
    test = rows(cell.shape, TEST, 1)
    with torch.no_grad():
        scores = torch.cat([flow(part) for part in test.split(TIMED)]).double()
        truth = SHAPES[cell.shape]()(test).double()
        part = test[:TIMED]
        density, (z, _) = _timed(lambda: flow.transform(part))
        sampling, (back, _) = _timed(lambda: flow.transform.inverse(z))
    FLOWS.mkdir(parents=True, exist_ok=True)
    torch.save(flow.state_dict(), cell.path)
    finite = scores.isfinite()
    return {
        **cell._asdict(),
        "nats": float(scores.mean()),
        "true_nats": float(truth.mean()),
        "gap": float((truth - scores).mean()),
        "gap_error": float((truth - scores).std() / len(test) ** 0.5),
        "not_finite": int((~finite).sum()),
        "steps": steps,
        "seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "round_trip": float(((back - part).abs() / part.abs().clamp_min(1)).max()),
        "density_ms": 1e3 * density,
        "sampling_ms": 1e3 * sampling,
    }


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the fastest of three calls after a first one, and what it gave."""
    result, times = call(), []
    for _ in range(3):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times), result


def main() -> None:
    """What is missing, then the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="fit again what was kept")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else []
    done = {Cell(r["family"], r["shape"]): r for r in known}
    asked = [c for c in cells(options.families) if options.again or c not in done or not c.path.exists()]
    with ProcessPoolExecutor(options.processes) as pool:
        for result in pool.map(measure, asked):
            print(result, flush=True)
            done[Cell(result["family"], result["shape"])] = result
            kept = [done[c] for c in cells(list(FAMILIES)) if c in done]
            content = {"batch": BATCH, "train": TRAIN, "test": TEST}
            RESULTS.write_text(
                json.dumps({**content, "timed": TIMED, "version": diffeo.__version__, "cells": kept}, indent=1) + "\n"
            )
    complete = [f for f in FAMILIES if all(c in done and c.path.exists() for c in cells([f]))]
    gallery_pages.draw({family: {c.shape: load(c) for c in cells([family])} for family in complete})
    gallery_pages.write()


if __name__ == "__main__":
    main()
