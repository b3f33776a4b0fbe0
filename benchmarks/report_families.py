"""Sections of docs/benchmarks.md about the families: energies, continuous flows, the sphere."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from energies import ENERGIES, FLOWS, SEEDS
from markdown import load, number, table
from sphere import HARMONICS

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def energies_section() -> list[str]:
    """KL to the four energies, best of the seeds."""
    content = load("energies")
    runs = {(r["flow"], r["energy"], r["seed"]): r for r in content["runs"]}
    rows = []
    for flow in FLOWS:
        best = [min((runs[flow, e, s] for s in SEEDS), key=lambda r: r["kl"]) for e in ENERGIES]
        seconds = [r["seconds"] for key, r in runs.items() if key[0] == flow]
        cells = [f"{r['kl']:.4f} ({r['effective_sample_size']:.0%}, {number(r['pareto_k'], 2)})" for r in best]
        rows.append([flow, *cells, f"{sum(seconds) / len(seconds):.0f} s"])
    return [
        "## A density known up to a constant",
        "",
        "Flows made close to the four energies of Rezende and Mohamed (2015) by `diffeo.ReverseKL`: KL(q ‖ p) in nats",
        f"to the normalised energy, a sum over a grid; the best of {len(SEEDS)} seeds, each {content['steps']:,} steps of",
        f"{content['samples']} samples. In brackets the effective share of 4,096 importance-weighted samples and the",
        "Pareto k of their weights. Seconds are means over runs on one thread, two runs at a time.",
        "",
        *table(["flow", *[e.upper() for e in ENERGIES], "seconds"], rows),
        "",
        "![The energies, and the best flow of each kind](images/energies.png)",
        "",
        "    python benchmarks/energies.py",
        "    python benchmarks/energies.py --picture",
        "",
    ]


def continuous_section() -> list[str]:
    """Likelihood against flow matching; estimates; error against evaluations."""
    content = load("continuous")
    rows, notes = [], []
    for name, target in content["targets"].items():
        for kind, run in target["runs"].items():
            title = "likelihood" if kind == "likelihood" else f"flow matching, {kind}"
            rows.append(
                [name, title, str(run["steps"]), f"{run['seconds']:.0f}", number(run["nats"]), str(run["evaluations"])]
            )
        rows.append([name, "the density itself", "", "", number(target["true_nats"]), ""])
        h = target["hutchinson"]
        notes.append(
            f"{name}: {number(h['difference'], 5)} ± {h['error']:.5f} nats (one estimate of one row: ± {h['spread']:.2f})"
        )
    return [
        "## Continuous flows",
        "",
        "`diffeo.ffjord(2)` on 20,000 samples of known densities, trained by likelihood, and by `diffeo.FlowMatching` in less",
        f"than a fifth of the seconds; nats on 5,000 others; evaluations of the field for a density; {content['threads']} thread, beside other jobs.",
        "",
        *table(["target", "trained by", "steps", "seconds", "nats", "evaluations"], rows),
        "",
        "Hutchinson's estimate of the log-density less the exact one, over 1,000 rows and 50 draws: "
        + "; ".join(notes)
        + ".",
        "",
        "![Error of the log-density against evaluations of the field](images/continuous.png)",
        "",
        "    python benchmarks/continuous.py",
        "",
    ]


def sphere_section() -> list[str]:
    """Cities: the flow against the mixture, split by split."""
    content = load("sphere")
    rows = []
    for r in content["runs"]:
        size = f"{r['size']:,} {'components' if r['who'] == 'mixture' else 'parameters'}"
        nats = f"{number(r['nats'])} ± {r['stderr']:.3f}"
        rows.append([str(r["seed"]), r["who"], size, number(r["validation"]), nats, f"{r['seconds']:.0f}"])
    return [
        "## The sphere",
        "",
        f"The coordinates of {content['cities']:,} cities: `diffeo.sphere` with {HARMONICS} harmonics against a mixture of von",
        "Mises–Fisher densities (`diffeo.VonMisesFisherMixture`, by expectation and maximisation, with the number of",
        "components that predicts held-out training rows best). Nats against the surface of the unit sphere on",
        "validation rows and on a tenth of the cities that neither saw; a random split each, the same rows for both;",
        f"seconds with {content['threads']} thread, beside other jobs. The validation rows chose the step of the flow.",
        "",
        *table(["split", "model", "size", "validation", "test", "seconds"], rows),
        "",
        "![Cities, and the two densities on the map](images/sphere.png)",
        "",
        "    DIFFEO_DATA=FOLDER python benchmarks/sphere.py",
        "",
    ]


def draw_continuous() -> None:
    """Error of the log-density against evaluations of the field."""
    content = load("continuous")
    figure, axes = plt.subplots(
        1, len(content["targets"]), figsize=(8, 3.2), layout="constrained", sharey=True, squeeze=False
    )
    for ax, (name, target) in zip(axes[0], content["targets"].items(), strict=True):
        for method, colour in (("rk4", "#3d5a80"), ("dopri5", "#ee6c4d")):
            points = [(s["evaluations"], s["error"]) for s in target["solvers"] if s["method"] == method]
            ax.loglog(*zip(*sorted(points), strict=True), "o-", color=colour, label=method)
        ax.set(title=name, xlabel="evaluations of the field")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("mean |error| of log p (nats)")
    axes[0, 0].legend(frameon=False)
    figure.savefig(IMAGES / "continuous.png", dpi=110)
    plt.close(figure)


SECTIONS = (energies_section, continuous_section, sphere_section)
