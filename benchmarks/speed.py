"""Speed against the peers: nine flows; density, training step and samples; all libraries in turn within one run.

    python benchmarks/speed.py --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python

Each library runs in a process of its own that sleeps while others are timed; diffeo has one for each configuration, and
compiles them all first, one on each core. Then, configuration by configuration, all build (the seconds of first calls
are kept apart) and take turns, a burst of repetitions each, for several rounds; medians and quartiles are over all
repetitions. Writes benchmarks/results/speed.json after every configuration, and `benchmarks/report.py` puts it into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import peers
import speed_peers
from speed_peers import CONFIGURATIONS, IDIOMS, OPERATIONS, Configuration
from speed_worker import Worker

ROUNDS = 7  # a neighbour on the machine may slow a whole turn down
BURST = 0.13  # seconds of one library's turn
PAUSE = 0.1  # seconds between turns
MOST, LEAST = 60, 1  # repetitions of one turn
COMPILING = ("diffeo", "flowjax")  # whose first call says nothing about the next


def first_calls(worker: Worker, configuration: Configuration) -> dict[str, float]:
    """Seconds of building a flow and of the first call of every operation."""
    began = time.perf_counter()
    worker.build(configuration)
    seconds = {"build": round(time.perf_counter() - began, 2)}
    for operation in OPERATIONS:
        began = time.perf_counter()
        worker.time(operation, 1)
        seconds[operation] = round(time.perf_counter() - began, 2)
    return seconds


def measure(workers: dict[str, Worker], first: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Milliseconds of every library and operation: quartiles, beside the seconds of the first calls."""
    burst: dict[tuple[str, str], int] = {}
    for library, worker in workers.items():
        for operation in OPERATIONS:
            seconds = first[library][operation]
            compiles = library in COMPILING and seconds < 60
            warm = min(worker.time(operation, 2)) if seconds < 1 or compiles else 1e3 * seconds
            burst[library, operation] = max(LEAST, min(MOST, round(1e3 * BURST / warm)))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in burst}
    libraries = list(workers)
    for round_ in range(ROUNDS):
        for operation in OPERATIONS:
            for library in libraries:
                # a call of seconds is repeated in the first rounds only
                if times[library, operation] and statistics.median(times[library, operation]) > 1500 and round_ > 1:
                    continue
                time.sleep(PAUSE)  # until the threads of the one before have stopped waiting for work
                if burst[library, operation] > 1:
                    workers[library].time(operation, 2)  # threads and caches wake up
                times[library, operation] += workers[library].time(operation, burst[library, operation])
        libraries.append(libraries.pop(0))  # so that none always follows the same one
    results: dict[str, Any] = {library: {"first_call_s": first[library]} for library in workers}
    for (library, operation), ms in times.items():
        quartiles = statistics.quantiles(ms, n=4) if len(ms) > 1 else ms * 3
        results[library][operation] = {"ms": [round(q, 4) for q in quartiles], "n": len(ms)}
    return results


def main() -> None:
    """Measure the configurations asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter with zuko, nflows, normflows")
    parser.add_argument("--jax-python", help="interpreter with flowjax; without it FlowJAX is left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--configurations", nargs="+", default=[c.name for c in CONFIGURATIONS])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed.json")
    args = parser.parse_args()

    content: dict[str, Any] = {"idioms": IDIOMS, "runs": {}}
    if args.out.exists():
        content["runs"] = json.loads(args.out.read_text())["runs"]
    asked = [c for c in CONFIGURATIONS if c.name in args.configurations]
    pythons = dict.fromkeys(speed_peers.LIBRARIES, sys.executable)
    pythons |= dict.fromkeys(speed_peers.PEERS, args.python) | {"flowjax": args.jax_python}
    others = {
        library: Worker(python, library, args.threads)
        for library, python in pythons.items()
        if library != "diffeo" and python is not None
    }
    ours = {c.name: Worker(sys.executable, "diffeo", args.threads) for c in asked}
    began = time.perf_counter()
    with ThreadPoolExecutor(args.threads) as pool:
        compiled = dict(zip(ours, pool.map(first_calls, ours.values(), asked), strict=True))
    print(f"diffeo compiled {len(asked)} configurations in {time.perf_counter() - began:.0f} s", flush=True)
    for configuration in asked:
        workers = {"diffeo": ours[configuration.name], **others}
        began = time.perf_counter()
        first = {"diffeo": compiled[configuration.name]}
        first |= {library: first_calls(worker, configuration) for library, worker in others.items()}
        run = {
            **configuration._asdict(),
            "threads": args.threads,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "processor": _processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "load_before": round(os.getloadavg()[0], 2),
            "versions": {library: worker.versions() for library, worker in workers.items()},
            "results": measure(workers, first),
        }
        ours[configuration.name].close()
        run["seconds"] = round(time.perf_counter() - began, 1)
        content["runs"][configuration.name] = run
        peers._write(args.out, content)
        _show(configuration.name, run)
    for worker in others.values():
        worker.close()


def _show(name: str, run: dict[str, Any]) -> None:
    print(f"{name} ({run['seconds']:.0f} s)", flush=True)
    for operation in OPERATIONS:
        medians = {library: r[operation]["ms"][1] for library, r in run["results"].items()}
        fastest = min(ms for library, ms in medians.items() if library in speed_peers.PEERS)
        shown = "  ".join(f"{library} {ms:.2f}" for library, ms in medians.items())
        print(f"  {operation:8} {medians['diffeo'] / fastest:.2f}x the fastest peer   {shown}", flush=True)


def _processor() -> str:
    """What the operating system calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
