"""Turns the JSON in benchmarks/results into docs/benchmarks.md.

python benchmarks/report.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import report_families
import report_scale
import report_speed
import report_tables
from markdown import load, number, table

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {"nsf_ar": "autoregressive", "nsf": "coupling"}
# best of zuko, nflows, normflows and FlowJAX as measured when the goal was set, with standard error where given
GOALS = {
    ("nsf_ar", "power"): "1.49 ± 0.05",
    ("nsf", "power"): "1.44",
    ("nsf_ar", "protein"): "2.68 ± 0.09",
    ("nsf", "protein"): "3.21 ± 0.09",
    ("nsf_ar", "magic.gamma"): "−4.02 ± 0.14",
    ("nsf", "magic.gamma"): "−4.43",
}


def peers_section() -> list[str]:
    """Ours beside the peers, mean over seeds."""
    ours, others = load("density_ours"), load("density_peers")
    runs = [*ours["runs"], *others["runs"]]
    versions = sorted({f"{r['library']} {r['version']}" for r in runs if "(" not in r["library"]})
    out = [
        "## Beside the peers, same architecture and budget",
        "",
        "Five layers, hidden layers 128 × 2, 8 bins, 3,000 steps of batch 512, Adam 1e-3 with cosine decay, gradient norm",
        "clipped at 5, the last weights. Tables shuffled with seed 0: first tenth test, second tenth validation (unused),",
        "the rest training; standardised by the training rows; power dequantized. Test nats (higher is better), ± the",
        "standard error over test rows; where several seeds have run, their mean and (lowest … highest). Ours are the",
        "recipes as they come: they begin with layers set from the training rows and end in a small mixture of Gaussians.",
        f"Versions: {', '.join(versions)}; torch {ours['runs'][0]['torch']}.",
        "",
    ]
    for family, title in FAMILIES.items():
        libraries = list(dict.fromkeys(r["library"] for r in runs))
        tables = list(dict.fromkeys(r["table"] for r in runs))
        rows = [["best peer, measured beforehand", *[GOALS[family, t] for t in tables]]]
        for library in libraries:
            cells = []
            for name in tables:
                found = [r for r in runs if (r["library"], r["family"], r["table"]) == (library, family, name)]
                cells.append(_cell(found))
            rows.append([library, *cells])
        out += [f"### {title.capitalize()} splines (`{family}`)", "", *table(["", *tables], rows), ""]
    return [
        *out,
        "normflows' layers take residual conditioners only: two residual blocks are five linear layers where the others",
        "have three, and it gets a learned linear map between layers. `diffeo (residual)` is our recipe with conditioners",
        "of that size (`residual=True`), to compare like with like. nflows' coupling uses its unconditional spline on the",
        "conditioning half, since without it a random permutation may leave a column untouched; that choice was made on",
        "seed 0 and gains on power what it loses on protein (2.61 without).",
        "",
        "    python benchmarks/density.py peers",
        "    python benchmarks/peers.py --libraries flowjax    # in an environment with JAX",
        "",
    ]


def _cell(found: list[dict[str, Any]]) -> str:
    if not found:
        return "not run"
    nats = [r["nats"] for r in found]
    text = f"{number(float(np.mean(nats)), 2)} ± {np.mean([r['stderr'] for r in found]):.2f}"
    return text + (f" ({number(min(nats), 2)} … {number(max(nats), 2)})" if len(nats) > 1 else "")


def defaults_section() -> list[str]:
    """The defaults on ten tables."""
    result = load("density_defaults")
    out = [
        "## The defaults, no tuning",
        "",
        "`diffeo.nsf_ar(D)` and `diffeo.fit(flow, train, validation=valid)`, nothing else, against a Gaussian, a mixture",
        "of Gaussians (components by validation) and a kernel density estimate (bandwidth by validation). 60/20/20 split",
        "with seed 0; columns whose values repeat get uniform noise of their median spacing, the same for everybody. Test",
        "nats per row in units of the training rows' standard deviations, ± standard error.",
        "",
    ]
    wins = {}
    for title, chosen in (
        ("Tables without an atom", [r for r in result["runs"] if not r["atoms"]]),
        (
            "Tables where some value holds over 5 % of a column (scores on such columns say little)",
            [r for r in result["runs"] if r["atoms"]],
        ),
    ):
        rows = []
        for r in chosen:
            best = max(b["nats"] for b in r["baselines"].values())
            wins[r["table"]] = r["nats"] - best
            rows.append(
                [
                    r["table"],
                    f"{r['rows']:,} × {r['features']}",
                    f"**{number(r['nats'])} ± {r['stderr']:.3f}**",
                    *[number(b["nats"]) for b in r["baselines"].values()],
                    number(r["nats"] - best),
                    f"{r['steps']:,}",
                    f"{r['seconds']:.0f} s",
                ]
            )
        header = ["table", "training rows", "nsf_ar", "Gaussian", "mixture", "KDE", "flow − best", "steps", "time"]
        out += [f"### {title}", "", *table(header, rows), ""]
    above = sum(v > 0 for v in wins.values())
    worst = min(wins, key=lambda k: wins[k])
    out += [
        f"Above the best baseline on {above} of {len(wins)} tables; the least advantage is {number(wins[worst])} "
        f"({worst}). Times are of a shared two-core machine, {result['runs'][0]['threads']} thread.",
        "",
        "    python benchmarks/density.py defaults",
        "",
    ]
    return out


def roundtrip_section() -> list[str]:
    """Float32 round trips of trained recipes."""
    runs = load("density_roundtrip")["runs"]
    steps = load("density_roundtrip")["protocol"]["steps"]
    full = load("density_defaults")["runs"]
    rows = []
    for recipe in dict.fromkeys(r["recipe"] for r in runs):
        found = [r for r in runs if r["recipe"] == recipe]
        rows.append([f"{recipe}, {steps} steps", *_roundtrip_cells(found)])
    rows.append(["nsf_ar, the full default fits above", *_roundtrip_cells([r["roundtrip"] for r in full])])
    return [
        "## Round trip in float32",
        "",
        "|x − inverse(forward(x))| / (1 + |x|) over test entries in the tables' own units, after training on each of the ten",
        "tables; the worst table counts in each cell. Goal: 99.9 % of entries below 1e-3, median below 1e-5.",
        "",
        *table(["recipe", "tables", "largest median", "largest 99.9 % quantile", "least share below 1e-3"], rows),
        "",
        "    python benchmarks/density.py roundtrip",
        "",
    ]


def _roundtrip_cells(found: list[dict[str, float]]) -> list[str]:
    return [
        str(len(found)),
        f"{max(r['median'] for r in found):.1e}",
        f"{max(r['p999'] for r in found):.1e}",
        f"{min(r['share_below_1e-3'] for r in found):.5f}",
    ]


def inverse_section() -> list[str]:
    """Cost of the autoregressive inverse."""
    result = load("inverse")
    rows = [
        [
            f"D = {r['features']}, hidden {r['hidden']} × 2, batch {r['batch']:,}"
            + (", residual" if r["residual"] else ""),
            f"{r['density'][1]:.1f} ms",
            f"{r['inverse'][1]:.1f} ms",
            f"{r['ratio'][1]:.2f} ({r['ratio'][0]:.2f} … {r['ratio'][2]:.2f})",
            f"{r['error']:.0e}",
        ]
        for r in result["runs"]
    ]
    return [
        "## The autoregressive inverse",
        "",
        "One spline layer with 8 bins: its inverse, which computes each hidden unit once, beside its own density pass;",
        f"eager mode, interleaved, medians (quartiles), {result['threads']} thread of {result['cores']} cores. Goal at D = 64:",
        "at most 4.",
        "",
        *table(["layer", "density", "inverse", "ratio", "round-trip error"], rows),
        "",
        "    python benchmarks/inverse.py",
        "",
    ]


def main() -> None:
    """Write docs/benchmarks.md."""
    head = [
        "# Benchmarks",
        "",
        "Written by `benchmarks/report.py` from the JSON in `benchmarks/results`; no number is typed in by hand. The data is",
        "not shipped: set `DIFFEO_DATA` to its folder. `make bench` measures speed; `make bench-scale`,",
        "`bench-density`, `bench-families` and `bench-tables` the rest.",
        "",
    ]
    sections = [
        peers_section,
        defaults_section,
        report_tables.estimator_section,
        report_tables.outliers_section,
        report_tables.regression_section,
        report_tables.mixed_section,
        report_tables.streaming_section,
        roundtrip_section,
        report_speed.speed_section,
        *report_scale.SECTIONS,
        inverse_section,
        *report_families.SECTIONS,
    ]
    text = "\n".join([*head, *(line for section in sections for line in section())])
    (ROOT / "docs" / "benchmarks.md").write_text(text.rstrip() + "\n")
    report_speed.write_picture(ROOT / "docs" / "images" / "speed.png")
    report_families.draw_continuous()


if __name__ == "__main__":
    main()
