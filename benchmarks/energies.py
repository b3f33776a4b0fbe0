"""Flows made close to four energies by reverse KL: planar flows of 2, 8 and 32 layers, and a neural spline flow.

    python benchmarks/energies.py

The divergence KL(q ‖ p) to the normalised energy is a sum over a grid, for the best of three seeds; every seed is kept
in results/energies.json. `--picture` draws the best flow of each kind beside the energies instead, training again those
that are not in .cache/energies.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch

import diffeo
from results import IMAGES, RESULTS, load, markdown, number, save

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "energies"
RESULT = RESULTS / "energies.json"
ENERGIES = ("u1", "u2", "u3", "u4")
FLOWS = {"planar, K = 2": 2, "planar, K = 8": 8, "planar, K = 32": 32, "nsf": 0}
SEEDS = (0, 1, 2)
SAMPLES, STEPS = 256, 6000
HALF, POINTS = 8.0, 801  # of the grid, along each axis


class Run(NamedTuple):
    """One flow, trained."""

    energy: str
    flow: str
    seed: int

    @property
    def path(self) -> Path:
        """Where its weights are kept."""
        return CACHE / f"{self.energy}-{self.flow}-{self.seed}.pt".replace(" ", "").replace(",", "-")


def build(name: str, seed: int) -> diffeo.Flow:
    """The flow of a run."""
    torch.manual_seed(seed)
    if FLOWS[name]:
        return diffeo.planar(2, layers=FLOWS[name])
    return diffeo.nsf(2, components=0, hidden=(64, 64))


def train(run: Run, steps: int = STEPS) -> tuple[diffeo.Flow, diffeo.FitResult]:
    """The flow of a run after training."""
    flow = build(run.flow, run.seed)
    objective = diffeo.ReverseKL(flow, getattr(diffeo.targets, run.energy))
    result = diffeo.fit(objective, SAMPLES, steps=steps, lr=5e-3, seed=run.seed, progress=False)
    CACHE.mkdir(parents=True, exist_ok=True)
    torch.save(flow.state_dict(), run.path)
    return flow, result


@torch.no_grad()
def divergence(flow: diffeo.Flow, energy: str) -> tuple[float, float]:
    """KL(q ‖ p) over the grid, and the share of q that the grid holds."""
    axis = torch.linspace(-HALF, HALF, POINTS)
    grid = torch.cartesian_prod(axis, axis)
    log_cell = 2 * float((axis[1] - axis[0]).log())
    log_p = getattr(diffeo.targets, energy)(grid).double()
    log_p = log_p - log_p.logsumexp(0) - log_cell
    log_q = torch.cat([flow(rows) for rows in grid.split(20_000)]).double()
    mass = (log_q + log_cell).exp()
    return float((mass * (log_q - log_p)).nan_to_num(0.0).sum()), float(mass.sum())


def measure(run: Run) -> dict[str, Any]:
    """One run, in a process of its own."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    flow, result = train(run)
    seconds = time.perf_counter() - began
    kl, mass = divergence(flow, run.energy)
    return {
        **run._asdict(),
        "kl": kl,
        "mass": mass,
        "seconds": round(seconds, 1),
        "effective_sample_size": result.effective_sample_size,
        "pareto_k": result.pareto_k,
    }


def keep(run: Run) -> None:
    """Train a flow whose weights are not at hand, in a process of its own."""
    torch.set_num_threads(1)
    if not run.path.exists():
        train(run)


def draw(flows: Sequence[str], processes: int) -> None:
    """Energies, and the best flow of each kind, on [−4, 4]²."""
    runs = load(RESULT)["runs"]
    best = {}
    for r in sorted(runs, key=lambda r: -r["kl"]):
        best[r["flow"], r["energy"]] = Run(r["energy"], r["flow"], r["seed"]), r["kl"]
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(keep, [best[flow, energy][0] for flow in flows for energy in ENERGIES]))
    axis = torch.linspace(-4, 4, 250)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    figure, axes = plt.subplots(
        len(ENERGIES), 1 + len(flows), figsize=(1.8 * (1 + len(flows)), 7.4), layout="constrained"
    )
    for row, energy in zip(axes, ENERGIES, strict=True):
        densities = [getattr(diffeo.targets, energy)(grid).exp()]
        for name in flows:
            run, kl = best[name, energy]
            flow = build(name, run.seed)
            flow.load_state_dict(torch.load(run.path))
            with torch.no_grad():
                densities.append(torch.cat([flow.eval()(rows) for rows in grid.split(5000)]).exp())
            row[len(densities) - 1].set_xlabel(f"KL {kl:.3f}", fontsize=8)
        for ax, density in zip(row, densities, strict=True):
            ax.imshow(density.reshape(250, 250), origin="lower", extent=(-4, 4, -4, 4), cmap="magma")
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(energy.upper())
    for ax, title in zip(axes[0], ("energy", *flows), strict=True):
        ax.set_title(title, fontsize=9)
    figure.savefig(IMAGES / "energies.png", dpi=100)


def section() -> str:
    """KL to the four energies, best of the seeds."""
    content = load(RESULT)
    rows = []
    for flow in FLOWS:
        runs = [r for r in content["runs"] if r["flow"] == flow]
        best = [min((r for r in runs if r["energy"] == e), key=lambda r: r["kl"]) for e in ENERGIES]
        cells = [f"{r['kl']:.4f} ({r['effective_sample_size']:.0%}, {number(r['pareto_k'], 2)})" for r in best]
        rows.append([flow, *cells, f"{sum(r['seconds'] for r in runs) / len(runs):.0f} s"])
    return f"""\
## A density known up to a constant

Flows made close to the four energies of Rezende and Mohamed (2015) by `diffeo.ReverseKL`: KL(q ‖ p) in nats
to the normalised energy, a sum over a grid; the best of {len(SEEDS)} seeds, each {content["steps"]:,} steps of
{content["samples"]} samples. In brackets the effective share of 4,096 importance-weighted samples and the
Pareto k of their weights. Seconds are means over runs on one thread, two runs at a time.

{markdown(["flow", *[e.upper() for e in ENERGIES], "seconds"], rows)}

![The energies, and the best flow of each kind](images/energies.png)

    python benchmarks/energies.py
    python benchmarks/energies.py --picture
"""


def main() -> None:
    """All runs, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--energies", nargs="+", default=ENERGIES, choices=ENERGIES)
    parser.add_argument("--flows", nargs="+", default=list(FLOWS), choices=FLOWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args()
    if options.picture:
        draw(options.flows, options.processes)
        return
    asked = [Run(e, f, s) for f in options.flows for e in options.energies for s in options.seeds]
    known = load(RESULT, {"runs": []})["runs"]
    done = {(r["energy"], r["flow"], r["seed"]): r for r in known}
    with ProcessPoolExecutor(options.processes) as pool:
        for result in pool.map(measure, asked):
            print(result, flush=True)
            done[result["energy"], result["flow"], result["seed"]] = result
            content = {"samples": SAMPLES, "steps": STEPS, "version": diffeo.__version__, "runs": list(done.values())}
            save(RESULT, content)


if __name__ == "__main__":
    main()
