"""Speed against the peers: nine flows; density, training step and samples; all libraries in turn within one run.

    python benchmarks/speed.py --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python
    python benchmarks/speed.py --device cuda ...     # on a GPU; a sentence where there is none
    python benchmarks/speed.py --before CHECKOUT ...   # beside an earlier version of diffeo, which has been checked out
    python benchmarks/speed.py --users ...   # recipes in plain loops, also beside a busy process on each core
    python benchmarks/speed.py --fits ...    # whole fits, in the same two conditions
    python benchmarks/speed.py --check ...   # run every operation once and print the sizes instead

Each library runs in a process of its own that sleeps while others are timed; diffeo has one for each configuration, and
compiles them all first, one on each core. Then, configuration by configuration, all build (the seconds of first calls
are kept apart) and take turns, a burst of repetitions each, for several rounds; medians and quartiles are over all
repetitions. Writes benchmarks/results/speed.json after every configuration (speed_users.json for `--users`), and
`benchmarks/report.py` puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import NullLocator

from libraries import PEERS
from results import IMAGES, RESULTS, load, markdown, save, short
from speed_worker import FIT_STEPS, FITTED, FLOORS, IDIOMS, LIBRARIES, THREADS, USED, Configuration, Worker

RESULT, USERS = RESULTS / "speed.json", RESULTS / "speed_users.json"
CONFIGURATIONS = [
    Configuration("realnvp-8", "realnvp", 8, 128, 5, 512),
    Configuration("nsf-8", "nsf", 8, 128, 5, 512),
    Configuration("maf-8", "maf", 8, 128, 5, 512),
    Configuration("nsf_ar-8", "nsf_ar", 8, 128, 5, 512),
    Configuration("realnvp-64", "realnvp", 64, 256, 8, 1024),
    Configuration("nsf-64", "nsf", 64, 256, 8, 1024),
    Configuration("maf-64", "maf", 64, 256, 5, 1024),
    Configuration("nsf_ar-64", "nsf_ar", 64, 256, 5, 1024),
    Configuration("nsf_ar-2", "nsf_ar", 2, 64, 3, 256),
]
OPERATIONS = {"density": "Log-density", "step": "Training step", "sample": "Samples"}
ROUNDS = 7  # a neighbour on the machine may slow a whole turn down
BURST = 0.13  # seconds of one library's turn
LONG = 0.5  # the same of recipes in plain loops: after a pause the system takes a while to find a freer core
SETTLING = 1.0  # seconds of work of either kind before a condition is measured
PAUSE = 0.1  # seconds between turns
MOST, LEAST = 60, 1  # repetitions of a short turn
FITS = ("nsf_ar-2", "realnvp-8", "nsf-8")
TURNS = 2  # of whole fits
BEFORE = "diffeo-before"
COMPILING = ("diffeo", "flowjax")  # whose first call says nothing about the next
CONDITIONS = {"quiet": "nothing else runs", "beside": "beside one busy process on each core"}


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


def measure(
    workers: dict[str, Worker], first: dict[str, dict[str, float]], rounds: int = ROUNDS, turn: float = BURST
) -> dict[str, Any]:
    """Milliseconds of every library and operation: quartiles, beside the seconds of the first calls."""
    burst: dict[tuple[str, str], int] = {}
    for library, worker in workers.items():
        for operation in OPERATIONS:
            seconds = first[library][operation]
            compiles = library in (*COMPILING, BEFORE, USED) and seconds < 60
            warm = min(worker.time(operation, 2)) if seconds < 1 or compiles else 1e3 * seconds
            burst[library, operation] = max(LEAST, min(round(MOST * turn / BURST), round(1e3 * turn / warm)))
    times: dict[tuple[str, str], list[float]] = {key: [] for key in burst}
    libraries = list(workers)
    for round_ in range(rounds):
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


def run(
    asked: list[Configuration], pythons: dict[str, str], threads: int, out: Path, before: Path | None = None
) -> None:
    """Measure configurations, one after another, and rewrite the result file after each."""
    content: dict[str, Any] = {"idioms": IDIOMS, "runs": load(out, {"runs": {}})["runs"]}
    others = {k: Worker(python, k, threads) for k, python in pythons.items() if k != "diffeo"}
    if before is not None:
        place, script = str(before / "src"), before / "benchmarks" / "speed_worker.py"
        others[BEFORE] = Worker(pythons["diffeo"], "diffeo", threads, script, PYTHONPATH=place)
    ours = {c.name: Worker(pythons["diffeo"], "diffeo", threads) for c in asked}
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        compiled = dict(zip(ours, pool.map(first_calls, ours.values(), asked), strict=True))
    print(f"diffeo compiled {len(asked)} configurations in {time.perf_counter() - began:.0f} s", flush=True)
    for configuration in asked:
        workers = {"diffeo": ours[configuration.name], **others}
        began = time.perf_counter()
        first = {"diffeo": compiled[configuration.name]}
        first |= {library: first_calls(worker, configuration) for library, worker in others.items()}
        found = {
            **configuration._asdict(),
            "threads": threads,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "processor": _processor(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "load_before": round(os.getloadavg()[0], 2),
            "versions": {library: worker.versions() for library, worker in workers.items()},
            "results": measure(workers, first),
        }
        ours[configuration.name].close()
        found["seconds"] = round(time.perf_counter() - began, 1)
        content["runs"][configuration.name] = found
        save(out, content)
        _show(configuration.name, found)
    for worker in others.values():
        worker.close()


def run_users(asked: list[Configuration], pythons: dict[str, str], threads: int, out: Path) -> None:
    """The recipes in plain loops and the peers, quiet and beside busy processes; rewrites the file after each."""
    content: dict[str, Any] = {"runs": {}, **load(out, {}), "idioms": IDIOMS}
    for configuration in asked:
        began = time.perf_counter()
        workers = {k: Worker(python, k, threads) for k, python in pythons.items()}
        with ThreadPoolExecutor(threads) as pool:
            made = pool.map(first_calls, workers.values(), [configuration] * len(workers))
            first = dict(zip(workers, made, strict=True))
        found = {**configuration._asdict(), "threads": threads, "cores": os.cpu_count(), "processor": _processor()}
        found["versions"] = {library: worker.versions() for library, worker in workers.items()}
        found["turns"] = ROUNDS
        for condition in CONDITIONS:
            with busy(0 if condition == "quiet" else os.cpu_count() or 1):
                for worker in workers.values():
                    _settle(worker)
                found[condition] = {"results": measure(workers, first, turn=LONG)}
        for worker in workers.values():
            worker.close()
        found["seconds"] = round(time.perf_counter() - began, 1)
        content["runs"][configuration.name] = found
        save(out, content)
        for condition in CONDITIONS:
            print(condition, end=" ")
            _show(configuration.name, {**found, **found[condition]}, USED)


def run_fits(asked: list[Configuration], pythons: dict[str, str], threads: int, out: Path) -> None:
    """Seconds of whole fits, from the start of the process, with nothing compiled before; added to the file."""
    content: dict[str, Any] = {"runs": {}, **load(out, {})}
    for configuration in asked:
        found: dict[str, dict[str, list[float]]] = {}
        for condition in CONDITIONS:
            seconds: dict[str, list[float]] = {library: [] for library in FITTED if library in pythons}
            with busy(0 if condition == "quiet" else os.cpu_count() or 1):
                for library in [*seconds] * TURNS:
                    with tempfile.TemporaryDirectory() as empty:
                        began = time.perf_counter()
                        worker = Worker(pythons[library], library, threads, TORCHINDUCTOR_CACHE_DIR=empty)
                        worker.build(configuration)
                        worker.fit()
                        seconds[library].append(round(time.perf_counter() - began, 1))
                        worker.close()
            found[condition] = seconds
            print(configuration.name, condition, seconds, flush=True)
        content.setdefault("fits", {})[configuration.name] = found
        save(out, content)


def _settle(worker: Worker) -> None:
    """Lets it work until what it has learnt of the machine, if anything, is of this condition."""
    for operation in ("density", "step"):
        once = worker.time(operation, 1)[0] / 1e3
        worker.time(operation, max(1, round(SETTLING / once)))


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Inside, so many processes work without end, or until this one is killed."""
    work = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(100000))"
    others = [subprocess.Popen([sys.executable, "-c", work]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def check(asked: list[Configuration], pythons: dict[str, str], threads: int) -> bool:
    """Prints the parameters of every library and configuration; whether all operations gave what they should."""
    workers = {k: Worker(python, k, threads) for k, python in pythons.items() if k not in FLOORS}
    fine = True
    for library, worker in workers.items():
        print(f"{library}: {worker.versions()}; {IDIOMS[library]}")
    print(f"{'parameters':12}" + "".join(f"{library:>14}" for library in workers))
    for configuration in asked:
        print(f"{configuration.name:12}", end="", flush=True)
        faults: list[str] = []
        for library, worker in workers.items():
            try:
                worker.build(configuration)
                result = worker.check()
            except RuntimeError as error:
                result = {"parameters": "-", "faults": [str(error)]}
            faults += [f"{library}: {fault}" for fault in result["faults"]]
            print(f"{result['parameters']:>14}", end="", flush=True)
        print("".join(f"\n  {fault}" for fault in faults))
        fine = fine and not faults
    for worker in workers.values():
        worker.close()
    return fine


def _show(name: str, run: dict[str, Any], ours: str = "diffeo") -> None:
    print(f"{name} ({run['seconds']:.0f} s)", flush=True)
    for operation in OPERATIONS:
        medians = _medians(run, operation)
        shown = "  ".join(f"{library} {ms:.2f}" for library, ms in medians.items())
        ratio = medians[ours] / _fastest(medians)
        print(f"  {operation:8} {ratio:.2f}x the fastest peer   {shown}", flush=True)


def _medians(run: dict[str, Any], operation: str) -> dict[str, float]:
    return {library: r[operation]["ms"][1] for library, r in run["results"].items()}


def _fastest(medians: dict[str, float]) -> float:
    """Of the peers."""
    return min((ms for library, ms in medians.items() if library in PEERS), default=math.nan)


def _processor() -> str:
    """What the operating system calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _runs() -> dict[str, Any]:
    """What is stored, in the order of the configurations."""
    runs = load(RESULT)["runs"]
    return {c.name: runs[c.name] for c in CONFIGURATIONS if c.name in runs}


def section() -> str:
    """Every configuration, library and operation."""
    runs = _runs()
    some = next(iter(runs.values()))
    machine = f"{some['threads']} threads on {some['cores']} cores ({some['processor']})"
    versions = {name: v for run in runs.values() for who in run["versions"].values() for name, v in who.items()}
    libraries = list(some["results"])
    times = ""
    for operation, title in OPERATIONS.items():
        rows = [_row(run, operation, libraries) for run in runs.values()]
        times += f"### {title}\n\n{markdown(['flow', *libraries, 'diffeo / fastest peer'], rows)}\n\n"
    compiling = []
    for name, run in runs.items():
        first = {library: r["first_call_s"] for library, r in run["results"].items()}
        compiling.append([name, *(" / ".join(f"{first[k][o]:.1f}" for o in OPERATIONS) for k in COMPILING)])
    idioms = "\n".join(f"- {library}: {idiom}." for library, idiom in load(RESULT)["idioms"].items())
    return f"""\
## Speed beside the peers

The same flows in every library: L layers, conditioners of two hidden layers of width H, splines of 8 bins,
batches of B rows; standard normal base, no learned linear maps. Milliseconds, medians (quartiles) over
interleaved bursts, {machine}, a shared machine.
The last column is `diffeo` as a multiple of the fastest peer's median. `floor` and `floor-onednn` are the dense
matrix products alone, by PyTorch's default and by oneDNN; `diffeo` is compiled by `flow.compile()`, `diffeo-eager`
is not.
Versions: {", ".join(f"{name} {v}" for name, v in sorted(versions.items()))}.

{times}![Speed as a multiple of the fastest peer's](images/speed.png)

### Seconds of the first call (compilation)

Density / training step / samples. PyTorch's compiler had kernels on disk from earlier runs where it had seen the
same flow before.

{markdown(["flow", *COMPILING], compiling)}

What each library runs:

{idioms}

    python benchmarks/speed.py --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python
"""


def users_section() -> str:
    """Recipes in plain loops as multiples of the fastest peer, quiet and beside busy processes."""
    content = load(USERS, {"runs": {}})
    runs = content["runs"]
    runs = {c.name: runs[c.name] for c in CONFIGURATIONS if c.name in runs}
    if not runs:
        return ""
    some = next(iter(runs.values()))
    tables = ""
    for condition, title in CONDITIONS.items():
        rows = []
        for name, run in runs.items():
            cells = [name]
            for operation in OPERATIONS:
                medians = _medians(run[condition], operation)
                fastest = min((ms, library) for library, ms in medians.items() if library in PEERS)
                quiet = (
                    "" if condition == "quiet" else f", {medians[USED] / _medians(run['quiet'], operation)[USED]:.1f}×"
                )
                cells.append(
                    f"{short(medians[USED])} : {short(fastest[0])} {fastest[1]} = "
                    f"{medians[USED] / fastest[0]:.2f}{quiet}"
                )
            rows.append(cells)
        tables += f"### {title[0].upper()}{title[1:]}\n\n{markdown(['flow', *OPERATIONS.values()], rows)}\n\n"
    turns = " or ".join(str(n) for n in sorted({run["turns"] for run in runs.values()}))
    rows = []
    for name, conditions in content.get("fits", {}).items():
        medians = {c: {k: statistics.median(v) for k, v in s.items()} for c, s in conditions.items()}
        rows.append([name, *(" : ".join(f"{m[k]:.0f}" for k in FITTED) for m in medians.values())])
    fits = f"""\
### A whole fit

Seconds of {FIT_STEPS:,} steps, from the start of Python: imports, compiling (nothing was compiled before), training,
a held-out tenth. diffeo is `fit` of the recipe, FlowJAX its `fit_to_data`, zuko a plain loop of PyTorch.
{" : ".join(FITTED)}, medians of {TURNS} turns.

{markdown(["flow", *CONDITIONS.values()], rows)}

"""
    return f"""\
## Speed as users run it

{USED} is {IDIOMS[USED]}. It does more than the peers' flows, which have neither start layers nor linear maps nor a
mixture, and SiLU for ReLU. Milliseconds, ours : the fastest peer's = the ratio; beside busy processes also how many
times our own quiet time. Peers here are {_peers(runs)}. Medians over interleaved turns of {LONG} seconds,
{turns} of each, {some["threads"]} threads on {some["cores"]} cores ({some["processor"]}).

{tables}{fits if rows else ""}\
    python benchmarks/speed.py --users --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python
    python benchmarks/speed.py --fits --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python
"""


def readme() -> str:
    """The users' figures as the README quotes them: a recipe in a plain loop beside the fastest peer."""
    runs = load(USERS)["runs"]
    rows = []
    for c in CONFIGURATIONS:
        if c.name not in runs:
            continue
        cells = [f"`{c.family}({c.features})`, {c.batch} rows"]
        for condition in CONDITIONS:
            for operation in OPERATIONS:
                medians = _medians(runs[c.name][condition], operation)
                cells.append(f"{medians[USED] / _fastest(medians):.2f}")
        rows.append(cells)
    some = next(iter(runs.values()))
    header = ["flow", *OPERATIONS.values(), *(f"{title}, busy" for title in OPERATIONS.values())]
    return f"""\
A recipe with all its layers, `flow.compile()` and a plain loop of `loss.backward()` and Adam, beside the faster of
{_peers(runs)} with plainer flows of the same size: our time as a multiple of theirs (below 1 is
faster), on {some["cores"]} cores of a shared machine; "busy" is beside one busy process on each core
([all times](docs/benchmarks.md#speed-as-users-run-it)).

{markdown(header, rows)}
"""


def _peers(runs: dict[str, Any]) -> str:
    """Those that were measured in all runs."""
    names = {"flowjax": "FlowJAX"}
    return " and ".join(names.get(p, p) for p in PEERS if all(p in run["quiet"]["results"] for run in runs.values()))


def _row(run: dict[str, Any], operation: str, libraries: list[str]) -> list[str]:
    cells = []
    for library in libraries:
        low, middle, high = run["results"][library][operation]["ms"]
        cells.append(f"{short(middle)} ({short(low)} … {short(high)})")
    label = f"{run['family']} D{run['features']} H{run['hidden']} L{run['layers']} B{run['batch']}"
    medians = _medians(run, operation)
    return [label, *cells, f"{medians['diffeo'] / _fastest(medians):.2f}"]


def draw() -> None:
    """Ratios to the fastest peer: below one is faster."""
    runs = _runs()
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained", sharey=True)
    for ax, (operation, title) in zip(axes, OPERATIONS.items(), strict=True):
        medians = [_medians(run, operation) for run in runs.values()]
        for library, color in (("diffeo", "#ee6c4d"), ("diffeo-eager", "#e0b1a3"), ("floor", "#98a2ad")):
            ax.plot([m[library] / _fastest(m) for m in medians], range(len(runs)), "o", color=color, label=library)
        ax.axvline(1, color="#1b1f24", lw=0.8)
        ax.set(xscale="log", title=title, xlabel="times the fastest peer's")
        low, high = ax.get_xlim()
        ticks = [t for t in (0.01, 0.03, 0.1, 0.3, 0.5, 1, 2, 5) if low < t < high]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(axis="y", color="#e6e8eb")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(runs)), list(runs))
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    fig.savefig(IMAGES / "speed.png", dpi=130)
    plt.close(fig)


def main() -> None:
    """Measure the configurations asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter with zuko, nflows, normflows")
    parser.add_argument("--jax-python", help="interpreter with flowjax; without it FlowJAX is left out")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--configurations", nargs="+", default=[c.name for c in CONFIGURATIONS])
    parser.add_argument("--libraries", nargs="+", default=LIBRARIES, choices=LIBRARIES, help="all, if left out")
    parser.add_argument("--out", type=Path, help="default: as named above")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version, measured beside this one")
    parser.add_argument("--fits", action="store_true", help="whole fits, quiet and beside busy processes")
    parser.add_argument("--users", action="store_true", help="recipes in plain loops, also beside busy processes")
    parser.add_argument("--check", action="store_true", help="run every operation once and print the sizes instead")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda: on a GPU, where there is one")
    args = parser.parse_args()
    if args.device == "cuda":
        if not torch.cuda.is_available():
            print("speed.py: PyTorch sees no GPU here, so nothing was measured on one")
            return
        os.environ["BENCHMARK_DEVICE"] = "cuda"
        args.libraries = [library for library in args.libraries if library not in FLOORS]
        card = torch.cuda.get_device_name().lower().replace(" ", "-")
        args.out = args.out or RESULTS / f"speed_{card}.json"
    asked = [c for c in CONFIGURATIONS if c.name in args.configurations]
    pythons = dict.fromkeys(LIBRARIES, sys.executable)
    pythons |= dict.fromkeys(PEERS, args.python) | {"flowjax": args.jax_python}
    pythons = {library: python for library, python in pythons.items() if python and library in args.libraries}
    if args.check:
        sys.exit(not check(asked, pythons, args.threads))
    if args.fits:
        run_fits([c for c in asked if c.name in FITS], pythons, args.threads, args.out or USERS)
    elif args.users:
        asked_of = {k: v for k, v in pythons.items() if k in (USED, *PEERS)}
        run_users(asked, asked_of, args.threads, args.out or USERS)
    else:
        run(asked, {k: v for k, v in pythons.items() if k != USED}, args.threads, args.out or RESULT, args.before)


if __name__ == "__main__":
    main()
