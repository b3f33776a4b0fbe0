"""Result files, and what the sections of docs/benchmarks.md are made of."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def load(path: Path, otherwise: Any = None) -> Any:
    """The content of a result file; if there is none and `otherwise` is given, that."""
    return json.loads(path.read_text()) if otherwise is None or path.exists() else otherwise


def save(path: Path, content: Any) -> None:
    """Replaces the file at once, so that a run that is killed leaves a whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def resume(path: Path, protocol: Any, jobs: list[dict[str, Any]], run: Callable[..., dict[str, Any]]) -> None:
    """Runs the jobs that the file lacks, rewriting it after each; runs of another protocol are not mixed with these."""
    content = load(path, {"protocol": protocol, "runs": []})
    if content["protocol"] != protocol:
        raise SystemExit(f"{path} holds runs of another protocol: move it away or name another file")
    for job in jobs:
        if not any(job.items() <= done.items() for done in content["runs"]):
            content["runs"].append({**job, **run(**job)})
            save(path, content)
            print(json.dumps(content["runs"][-1]), flush=True)


def run_parts(doc: str | None, path: Path, parts: dict[str, Callable[[float], dict[str, Any]]], minutes: float) -> None:
    """The program of a benchmark of several parts: those named, or those that the file lacks, kept as they are done."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=[], choices=parts)
    parser.add_argument("--minutes", type=float, default=minutes, help="of training, for each model")
    options = parser.parse_args()
    content = load(path, {})
    for part in options.parts or [part for part in parts if part not in content]:
        print(part, flush=True)
        found = {**parts[part](60 * options.minutes), "cores": os.cpu_count()}
        content = {**load(path, {}), part: found}  # another process may have added to it meanwhile
        save(path, content)
        print(content[part], flush=True)


def markdown(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def number(value: float, digits: int = 3) -> str:
    """A number with a real minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def short(ms: float) -> str:
    """Milliseconds with three digits."""
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
