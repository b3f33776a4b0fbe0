"""Pictures and page of docs/gallery, from results/gallery.json and the flows that gallery.py keeps."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import torch
from markdown import load, number
from matplotlib.colors import hsv_to_rgb
from torch import Tensor

import diffeo
from shapes import SHAPES, WINDOWS

GALLERY = Path(__file__).resolve().parents[1] / "docs" / "gallery"
GRID, SAMPLES, MOVED, STAGES = 150, 1500, 700, 5
INK, COLOURS = "#1b1f24", "magma"


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


def write() -> None:
    """docs/gallery/index.md."""
    content = load("gallery")
    cells = {(c["family"], c["shape"]): c for c in content["cells"]}
    families = list(dict.fromkeys(c["family"] for c in content["cells"]))
    gaps, costs = [], []
    best = {s: min(cells[f, s]["gap"] for f in families if (f, s) in cells) for s in SHAPES}
    for family in families:
        mine = [cells[family, s] for s in SHAPES if (family, s) in cells]
        gaps.append([_link(family), *(_gap(cells.get((family, s)), best[s]) for s in SHAPES)])
        costs.append(
            [
                _link(family),
                f"{mine[0]['parameters']:,}",
                f"{median(c['steps'] for c in mine):,.0f}",
                f"{median(c['seconds'] for c in mine):.1f}",
                f"{median(c['density_ms'] for c in mine):.3g}",
                f"{median(c['sampling_ms'] for c in mine):.3g}",
                f"{max(c['round_trip'] for c in mine):.0e}",
            ]
        )
    truth = ["nats of the density itself"]
    truth += [number(next(c for (_, s), c in cells.items() if s == shape)["true_nats"]) for shape in SHAPES]
    lines = [
        "# Gallery",
        "",
        "Every family of the plane on the same eight densities, which can be evaluated exactly. Made by",
        "`python benchmarks/gallery.py`.",
        "",
        f"{content['train']:,} samples, of which `fit` holds out a tenth; steps of {content['batch']} rows, as many as",
        "the table of costs says, with `fit`'s defaults, one thread and no compiler, beside other work.",
        "Conditioners have hidden layers of 64 and 64, and layers were chosen so that most families have 20,000 to",
        "50,000 parameters; planar, radial, Sylvester and Gaussianization flows are small by nature. Couplings named",
        "after a scalar map have no recipe: benchmarks/gallery.py shows how they are put together. nsf and nsf_ar",
        "begin, as always, with a mixture of Gaussians fitted to the training rows.",
        "",
        "![All densities](densities.webp)",
        "",
        "## Nats short of the truth",
        "",
        f"Mean of log p − log q over {content['test']:,} other samples: an estimate of KL(p ‖ q), 0 at best; the",
        "best of a column in bold, with what comes within 0.01 of it. The standard error is",
        f"{_standard_error(cells):.3f} in the median.",
        "",
        *markdown(["family", *SHAPES], [*gaps, truth]),
        "",
        "## Cost",
        "",
        "Medians over the densities: seconds of the fit, and milliseconds of the transform without the base for",
        f"{content['timed']:,} rows, from data to noise and back. The",
        "round trip is the largest error of any of these rows after z and back, relative to max(1, |x|), in float32.",
        "",
        *markdown(["family", "parameters", "steps", "seconds", "to noise, ms", "to data, ms", "round trip"], costs),
        "",
    ]
    for family in families:
        training = " Trained by flow matching." if family.endswith("flow matching") else ""
        lines += [
            f"## {family}",
            "",
            f"Density, samples, and points of the base on their way through the layers.{training}",
            "",
            f"![{family}]({slug(family)}.webp)",
            "",
        ]
    (GALLERY / "index.md").write_text("\n".join(lines))


def _link(family: str) -> str:
    anchor = family.replace(",", "").replace(" ", "-")
    return f"[{family}](#{anchor})"


def _gap(cell: dict | None, best: float) -> str:
    if cell is None:
        return "another domain"
    text = number(cell["gap"]) if not cell["not_finite"] else f"−∞ for {cell['not_finite']} rows"
    return f"**{text}**" if cell["gap"] < best + 0.01 else text


def _standard_error(cells: dict) -> float:
    return median(c["gap_error"] for c in cells.values())
