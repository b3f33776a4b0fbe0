"""The section of docs/benchmarks.md about speed, and its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markdown import load, table
from speed_peers import CONFIGURATIONS, OPERATIONS, PEERS

TITLES = {"density": "Log-density", "step": "Training step", "sample": "Samples"}


def speed_section() -> list[str]:
    """Every configuration, library and operation of benchmarks/speed.py."""
    result = load("speed")
    runs = _in_order(result["runs"])
    some = next(iter(runs.values()))
    versions = {name: v for run in runs.values() for who in run["versions"].values() for name, v in who.items()}
    out = [
        "## Speed beside the peers",
        "",
        "The same flows in every library: L layers, conditioners of two hidden layers of width H, splines of 8 bins,",
        "batches of B rows; standard normal base, no learned linear maps. Milliseconds, medians (quartiles) over",
        f"interleaved bursts, {some['threads']} threads on {some['cores']} cores ({some['processor']}), a shared machine.",
        "The last column is `diffeo` as a multiple of the fastest peer's median. `floor` and `floor-onednn` are the dense",
        "matrix products alone, by PyTorch's default and by oneDNN; `diffeo` is compiled by `flow.compile()`, `diffeo-eager`",
        "is not.",
        "Versions: " + ", ".join(f"{name} {v}" for name, v in sorted(versions.items())) + ".",
        "",
    ]
    for operation in OPERATIONS:
        libraries = list(next(iter(runs.values()))["results"])
        rows = [_row(name, run, operation, libraries) for name, run in runs.items()]
        out += [f"### {TITLES[operation]}", "", *table(["flow", *libraries, "diffeo / fastest peer"], rows), ""]
    rows = []
    for name, run in runs.items():
        first = {library: r["first_call_s"] for library, r in run["results"].items()}
        rows.append([name, *[" / ".join(f"{first[k][o]:.1f}" for o in OPERATIONS) for k in ("diffeo", "flowjax")]])
    out += [
        "![Speed as a multiple of the fastest peer's](images/speed.png)",
        "",
        "### Seconds of the first call (compilation)",
        "",
        "Density / training step / samples. PyTorch's compiler had kernels on disk from earlier runs where it had seen the",
        "same flow before.",
        "",
        *table(["flow", "diffeo", "flowjax"], rows),
        "",
        "What each library runs:",
        "",
        *(f"- {library}: {idiom}." for library, idiom in result["idioms"].items()),
        "",
        "    python benchmarks/speed.py --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python",
        "",
    ]
    return out


def _in_order(runs: dict[str, Any]) -> dict[str, Any]:
    return {c.name: runs[c.name] for c in CONFIGURATIONS if c.name in runs}


def _row(name: str, run: dict[str, Any], operation: str, libraries: list[str]) -> list[str]:
    cells, medians = [], {}
    for library in libraries:
        low, middle, high = run["results"][library][operation]["ms"]
        medians[library] = middle
        cells.append(f"{_ms(middle)} ({_ms(low)} … {_ms(high)})")
    fastest = min(ms for library, ms in medians.items() if library in PEERS)
    label = f"{run['family']} D{run['features']} H{run['hidden']} L{run['layers']} B{run['batch']}"
    return [label, *cells, f"{medians['diffeo'] / fastest:.2f}"]


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write_picture(path: Path) -> None:
    """Ratios to the fastest peer: below one is faster."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    runs = _in_order(load("speed")["runs"])
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharey=True)
    for ax, operation in zip(axes, OPERATIONS, strict=True):
        for library, color in (("diffeo", "#ee6c4d"), ("diffeo-eager", "#e0b1a3"), ("floor", "#98a2ad")):
            ratios = []
            for run in runs.values():
                ms = {k: r[operation]["ms"][1] for k, r in run["results"].items()}
                ratios.append(ms[library] / min(v for k, v in ms.items() if k in PEERS))
            ax.plot(ratios, range(len(runs)), "o", color=color, label=library)
        ax.axvline(1, color="#1b1f24", lw=0.8)
        ax.set(xscale="log", title=TITLES[operation], xlabel="times the fastest peer's")
        low, high = ax.get_xlim()
        ticks = [t for t in (0.01, 0.03, 0.1, 0.3, 0.5, 1, 2, 5) if low < t < high]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(axis="y", color="#e6e8eb")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(runs)), list(runs))
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    fig.savefig(path, dpi=130)
