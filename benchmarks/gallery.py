"""Every family on the same eight densities in two dimensions: fits, figures, pictures and pages.

    python benchmarks/gallery.py

Each fit has 1,000 steps (400 where a step is slow, 4,000 where it is very fast), in one process with one thread and
without a compiler. Fits are kept (results/gallery.json, flows in .cache/gallery), so that a run that was cut short goes
on. Then the pictures and pages of docs/gallery are made from them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import hsv_to_rgb
from torch import Tensor

import diffeo
from results import RESULTS, load, markdown, number, save
from shapes import SHAPES, WINDOWS

ROOT = Path(__file__).resolve().parents[1]
RESULT = RESULTS / "gallery.json"
FLOWS, GALLERY = ROOT / ".cache" / "gallery", ROOT / "docs" / "gallery"
GRID, SAMPLES, MOVED, STAGES = 150, 1500, 700, 5
INK, COLOURS = "#1b1f24", "magma"
TRAIN, TEST, TIMED = 20_000, 10_000, 2_000
BATCH, FEW_STEPS, MANY_STEPS = 512, 400, 4000
WIDE = {"hidden": (64, 64)}


def couplings(univariate: str, **options: float) -> diffeo.Flow:
    """Couplings with a scalar map."""
    return diffeo.coupling_flow(2, univariate=univariate, univariate_options=options, layers=6, hidden=(64, 64))


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
    "linear splines": Family(lambda: couplings("LinearSpline", bins=16, bound=4.0)),
    "quadratic splines": Family(lambda: couplings("QuadraticSpline", bins=8, bound=4.0)),
    "cubic splines": Family(lambda: couplings("CubicSpline", bins=8, bound=4.0)),
    "rational-linear splines": Family(lambda: couplings("RationalLinearSpline", bins=8, bound=4.0)),
    "nsf": Family(lambda: diffeo.nsf(2, **WIDE)),
    "nsf_ar": Family(lambda: diffeo.nsf_ar(2, **WIDE)),
    "ttf": Family(lambda: diffeo.ttf(2, **WIDE)),
    "logistic mixtures": Family(lambda: couplings("MixtureCDF", components=8)),
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


def trained(cell: Cell) -> diffeo.Flow:
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


def draw(flows: dict[str, dict[str, diffeo.Flow]]) -> None:
    """One picture of all densities, and one of each family: density, samples, base points on their way."""
    GALLERY.mkdir(exist_ok=True)
    densities = {family: {s: _density(f, s) for s, f in fits.items()} for family, fits in flows.items()}
    truth = {shape: _density(build(), shape) for shape, build in SHAPES.items()}
    _draw_overview({"the density itself": truth, **densities}, truth)
    for family, fits in flows.items():
        _draw_family(family, fits, densities[family], truth)


def _draw_overview(densities: dict[str, dict[str, Tensor]], truth: dict[str, Tensor]) -> None:
    height = 0.95 * len(densities) + 0.25
    figure, axes = plt.subplots(len(densities), len(SHAPES), figsize=(8.6, height), squeeze=False)
    for row, (family, shown) in zip(axes, densities.items(), strict=True):
        for ax, shape in zip(row, SHAPES, strict=True):
            _bare(ax)
            if shape in shown:
                _show(ax, shown[shape], truth[shape], shape)
            else:
                ax.spines[:].set_visible(False)
        row[0].set_ylabel(family.replace(", ", ",\n").replace(" splines", "\nsplines"), fontsize=7, color=INK)
    for ax, shape in zip(axes[0], SHAPES, strict=True):
        ax.set_title(shape, fontsize=8, color=INK)
    figure.subplots_adjust(0.09, 0.02 / height, 0.998, 1 - 0.25 / height, 0.04, 0.04)
    _save(figure, "densities")


def _draw_family(
    family: str, fits: dict[str, diffeo.Flow], densities: dict[str, Tensor], truth: dict[str, Tensor]
) -> None:
    columns = 2 + STAGES
    figure, axes = plt.subplots(len(fits), columns, figsize=(1.2 * columns, 1.2 * len(fits) + 0.25), squeeze=False)
    for row, (shape, flow) in zip(axes, fits.items(), strict=True):
        low, high = WINDOWS.get(shape, (-4.8, 4.8))
        _show(row[0], densities[shape], truth[shape], shape)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            samples = flow.sample(SAMPLES, generator=generator)
            z = flow.base.sample(MOVED, generator=generator)
            states = stages(flow, z)
        row[1].plot(*samples.T, ".", ms=1, color=INK, alpha=0.5, mew=0)
        row[1].set(xlim=(low, high), ylim=(low, high))
        center = z - z.median(0).values
        hue = torch.atan2(center[:, 1], center[:, 0]) / (2 * torch.pi) % 1
        colour = hsv_to_rgb(torch.stack([hue, torch.full_like(hue, 0.8), torch.full_like(hue, 0.85)], 1).numpy())
        for ax, points in zip(row[2:], states, strict=True):
            ax.scatter(*points.T, s=2, c=colour, linewidths=0)
            ends = points.quantile(torch.tensor([0.01, 0.99]), 0)
            pad = 0.15 * (ends[1] - ends[0])
            ax.set(xlim=_ends(ends, pad, 0), ylim=_ends(ends, pad, 1))
        row[0].set_ylabel(shape, fontsize=8, color=INK)
    for ax in axes.flat:
        _bare(ax)
    for ax, title in zip(axes[0], ["density", "samples", "base", *[""] * (STAGES - 2), "data"], strict=True):
        ax.set_title(title, fontsize=8, color=INK)
    figure.subplots_adjust(0.035, 0.005, 0.998, 1 - 0.25 / (1.2 * len(fits) + 0.25), 0.05, 0.05)
    _save(figure, slug(family))


def _ends(ends: Tensor, pad: Tensor, axis: int) -> tuple[float, float]:
    return float(ends[0, axis] - pad[axis]), float(ends[1, axis] + pad[axis])


def stages(flow: diffeo.Flow, z: Tensor) -> list[Tensor]:
    """Base points at the start, at three places between the layers, and at the end."""
    states = [z]
    for part in reversed(flow.transform.parts):
        if isinstance(part, diffeo.Continuous):
            states += part.path(states[-1], (0.25, 0.5, 0.75, 1.0))
        else:
            states.append(part.inverse(states[-1])[0])
    return [states[round(i * (len(states) - 1) / (STAGES - 1))] for i in range(STAGES)]


def slug(family: str) -> str:
    """Name of a picture."""
    return family.replace(",", "").replace(" ", "_")


@torch.no_grad()
def _density(density: diffeo.Density, shape: str) -> Tensor:
    """p on a grid over the window of a shape, row by row upwards."""
    axis = torch.linspace(*WINDOWS.get(shape, (-4.8, 4.8)), GRID)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x, y], -1).reshape(-1, 2)
    return torch.cat([density(part) for part in grid.split(5000)]).exp().reshape(GRID, GRID)


def _show(ax: plt.Axes, density: Tensor, truth: Tensor, shape: str) -> None:
    low, high = WINDOWS.get(shape, (-4.8, 4.8))
    power = 0.35 if shape == "heavy tails" else 0.6  # of the density, so that what is faint shows
    most = truth.max() ** power
    ax.imshow(density**power, origin="lower", extent=(low, high, low, high), cmap=COLOURS, vmin=0, vmax=most)


def _bare(ax: plt.Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.set_box_aspect(1)
    for spine in ax.spines.values():
        spine.set_linewidth(0.4)


def _save(figure: plt.Figure, name: str) -> None:
    figure.savefig(GALLERY / f"{name}.webp", dpi=100, pil_kwargs={"quality": 70, "method": 6})
    plt.close(figure)


def page() -> str:
    """docs/gallery/index.md."""
    content = load(RESULT)
    known = {(c["family"], c["shape"]): c for c in content["cells"]}
    families = list(dict.fromkeys(family for family, _ in known))
    best = {s: min(known[f, s]["gap"] for f in families if (f, s) in known) for s in SHAPES}
    gaps, costs, pictures = [], [], []
    for family in families:
        link = f"[{family}](#{family.replace(',', '').replace(' ', '-')})"
        gaps.append([link, *(_gap(known.get((family, s)), best[s]) for s in SHAPES)])
        mine = [known[family, s] for s in SHAPES if (family, s) in known]
        middle = {k: median(c[k] for c in mine) for k in ("steps", "seconds", "density_ms", "sampling_ms")}
        costs.append(
            [
                link, f"{mine[0]['parameters']:,}", f"{middle['steps']:,.0f}", f"{middle['seconds']:.1f}",
                f"{middle['density_ms']:.3g}", f"{middle['sampling_ms']:.3g}",
                f"{max(c['round_trip'] for c in mine):.0e}",
            ]
        )  # fmt: skip
        training = " Trained by flow matching." if family.endswith("flow matching") else ""
        pictures.append(
            f"""\
## {family}

Density, samples, and points of the base on their way through the layers.{training}

![{family}]({slug(family)}.webp)
"""
        )
    truth = [next(c["true_nats"] for (_, s), c in known.items() if s == shape) for shape in SHAPES]
    gaps.append(["nats of the density itself", *map(number, truth)])
    all_pictures = "\n".join(pictures)
    return f"""\
# Gallery

Every family of the plane on the same eight densities, which can be evaluated exactly. Made by
`python benchmarks/gallery.py`.

{content["train"]:,} samples, of which `fit` holds out a tenth; steps of {content["batch"]} rows, as many as
the table of costs says, with `fit`'s defaults, one thread and no compiler, beside other work.
Conditioners have hidden layers of 64 and 64, and layers were chosen so that most families have 20,000 to
50,000 parameters; planar, radial, Sylvester and Gaussianization flows are small by nature. Couplings named
after a scalar map are `diffeo.coupling_flow(2, univariate=…)`. nsf and nsf_ar
begin, as always, with a mixture of Gaussians fitted to the training rows.

![All densities](densities.webp)

## Nats short of the truth

Mean of log p − log q over {content["test"]:,} other samples: an estimate of KL(p ‖ q), 0 at best; the
best of a column in bold, with what comes within 0.01 of it. The standard error is
{median(c["gap_error"] for c in known.values()):.3f} in the median.

{markdown(["family", *SHAPES], gaps)}

## Cost

Medians over the densities: seconds of the fit, and milliseconds of the transform without the base for
{content["timed"]:,} rows, from data to noise and back. The
round trip is the largest error of any of these rows after z and back, relative to max(1, |x|), in float32.

{markdown(["family", "parameters", "steps", "seconds", "to noise, ms", "to data, ms", "round trip"], costs)}

{all_pictures}"""


def _gap(cell: dict[str, Any] | None, best: float) -> str:
    if cell is None:
        return "another domain"
    text = number(cell["gap"]) if not cell["not_finite"] else f"−∞ for {cell['not_finite']} rows"
    return f"**{text}**" if cell["gap"] < best + 0.01 else text


def main() -> None:
    """What is missing, then the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="fit again what was kept")
    options = parser.parse_args()
    known = load(RESULT, {"cells": []})["cells"]
    done = {Cell(r["family"], r["shape"]): r for r in known}
    asked = [c for c in cells(options.families) if options.again or c not in done or not c.path.exists()]
    with ProcessPoolExecutor(options.processes) as pool:
        for result in pool.map(measure, asked):
            print(result, flush=True)
            done[Cell(result["family"], result["shape"])] = result
            kept = [done[c] for c in cells(list(FAMILIES)) if c in done]
            content = {"batch": BATCH, "train": TRAIN, "test": TEST}
            save(RESULT, {**content, "timed": TIMED, "version": diffeo.__version__, "cells": kept})
    complete = [f for f in FAMILIES if all(c in done and c.path.exists() for c in cells([f]))]
    draw({family: {c.shape: trained(c) for c in cells([family])} for family in complete})
    (GALLERY / "index.md").write_text(page())


if __name__ == "__main__":
    main()
