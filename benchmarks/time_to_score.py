"""Seconds from starting Python to the test nats of the best peer: imports, reading, compiling, training and scoring.

    python benchmarks/time_to_score.py --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python

Peers train under the budget of the density benchmark; of each table those run again that came within 0.1 nats of the
best there (results/density_peers.json), and the best of this run sets the goal. `diffeo` runs with ever more steps
until it is there, and once more with some fewer; then the best peer and the shortest attempt that got there run again,
in turn. Every attempt is a process of its own, listed with its score. Writes results/time_to_score.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import libraries
import tables
from density import PEERS_RESULT
from results import RESULTS, load, markdown, number, save

RESULT = RESULTS / "time_to_score.json"
NEAR = 0.1  # nats behind the best peer
# steps, and whether the conditioners have residual blocks as those of normflows do
ATTEMPTS = ((1500, False), (2000, False), (2500, False), (3000, False), (3000, True))
FEWER = 250  # steps that the last attempt takes less than the first that got there
AGAIN = 2  # more runs of the best peer and of ours, in turn, once it is known how many steps it takes
LEARNING_RATE = 4e-3  # twice the default of `fit`, which is made for longer fits; 2e-3 and 8e-3 were tried too


def contenders(table: str) -> list[tuple[str, str]]:
    """Libraries and families whose mean over the seeds comes near the best."""
    runs = load(PEERS_RESULT)["runs"]
    scores: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if run["table"] == table and run["nats"] == run["nats"]:  # not those that diverged
            scores.setdefault((run["library"], run["family"]), []).append(run["nats"])
    means = {who: sum(nats) / len(nats) for who, nats in scores.items()}
    return [who for who, nats in means.items() if nats > max(means.values()) - NEAR]


def run_peer(python: str, library: str, family: str, table: str, threads: int) -> dict[str, Any]:
    """One peer, from the start of its process to its score."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run.json"
        command = [python, libraries.__file__, "--libraries", library, "--families", family, "--tables", table]
        began = time.perf_counter()
        subprocess.run(
            [*command, "--seeds", "0", "--threads", str(threads), "--out", str(out)], check=True, stdout=sys.stderr
        )
        seconds = time.perf_counter() - began
        run = load(out)["runs"][0]
    return {
        "who": library,
        "family": family,
        "nats": run["nats"],
        "stderr": run["stderr"],
        "seconds": round(seconds, 1),
    }


def run_ours(table: str, steps: int, residual: bool, threads: int) -> dict[str, Any]:
    """One attempt of ours."""
    command = [sys.executable, __file__, "--worker", table, str(steps), str(int(residual))]
    with tempfile.TemporaryDirectory() as empty:  # nothing compiled before
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": empty}
        began = time.perf_counter()
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        seconds = time.perf_counter() - began
    return {"who": "diffeo", "steps": steps, "residual": residual, **json.loads(told), "seconds": round(seconds, 1)}


def attempt(table: str, steps: int, residual: bool) -> dict[str, float]:
    """In a process of its own: the recipe's defaults and those of `fit` but for the learning rate."""
    import torch

    import diffeo

    train, _, test = tables.peer_split(table)
    torch.manual_seed(0)
    flow = diffeo.nsf_ar(train.shape[1], residual=residual)
    diffeo.fit(flow, train, validation=0, steps=steps, batch_size=libraries.BATCH, lr=LEARNING_RATE, progress=False)
    with torch.inference_mode():
        scores = torch.cat([flow(part) for part in torch.from_numpy(test).split(2048)]).double()
    return {"nats": float(scores.mean()), "stderr": float(scores.std() / len(scores) ** 0.5)}


def section() -> str:
    """Seconds to the test nats of the best peer."""
    result = load(RESULT)
    attempts, turns = [], []
    for name, entry in result["tables"].items():
        goal = entry["goal"]
        for run in entry["runs"]:
            who = f"{run['who']} {run['family']}" if "family" in run else f"{run['who']} {run['steps']} steps"
            who += ", residual" if run.get("residual") else " (the goal)" if run == goal else ""
            nats = f"{number(run['nats'])} ± {run['stderr']:.3f}"
            attempts.append([name, who, nats, f"{run['seconds']:.0f}", f"{run['seconds'] / goal['seconds']:.2f}"])
        if not entry["reached"]:
            turns.append([name, goal["who"], "not reached", "", "", "", ""])
            continue
        peer, ours = entry["turns"]["peer"], entry["turns"]["diffeo"]
        turns.append(
            [
                name, f"{peer[0]['who']} {peer[0]['family']}", number(_median(peer, "nats")), _seconds(peer),
                f"{number(_median(ours, 'nats'))}, {ours[0]['steps']} steps", _seconds(ours),
                f"**{_median(ours, 'seconds') / _median(peer, 'seconds'):.2f}**",
            ]
        )  # fmt: skip
    header = ["table", "peer", "its nats", "its seconds", "our nats", "our seconds", "seconds / the peer's"]
    return f"""\
## Time to the best peer's score

Seconds from starting Python to a test score: imports, reading, training, scoring. The peers train under the budget
of the first section; those near the best there run again, and the best of this run is the goal. `diffeo` is
`nsf_ar` with `fit`'s defaults but for a learning rate of {LEARNING_RATE:g}, which is twice the default and was
chosen among three on these test rows, in separate attempts of ever more steps until it gets there, and one of
{FEWER} fewer. Nothing was compiled before: attempts include the kernels that `fit` compiles.
{result["threads"]} threads. The second table is the goal's peer and our shortest attempt that got there, run
again in turn: medians, and the range of what was seen.

{markdown(["table", "", "test nats", "seconds", "seconds / the goal's"], attempts)}

{markdown(header, turns)}

    python benchmarks/time_to_score.py --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python
"""


def _median(runs: list[dict[str, Any]], what: str) -> float:
    return statistics.median(run[what] for run in runs)


def _seconds(runs: list[dict[str, Any]]) -> str:
    """The median, and the range in brackets."""
    seen = [run["seconds"] for run in runs]
    return f"{_median(runs, 'seconds'):.0f} ({min(seen):.0f}–{max(seen):.0f}, {len(seen)} runs)"


def main() -> None:
    """All tables, or those asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter with zuko, nflows, normflows")
    parser.add_argument("--jax-python", help="interpreter with flowjax; without it FlowJAX is left out")
    parser.add_argument("--tables", nargs="+", default=libraries.TABLES, choices=libraries.TABLES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        table, steps, residual = options.worker
        print(json.dumps(attempt(table, int(steps), bool(int(residual)))))
        return
    content = load(RESULT, {"tables": {}})
    content["threads"] = options.threads
    for table in options.tables:
        runs: list[dict[str, Any]] = []
        for library, family in contenders(table):
            python = options.jax_python if library == "flowjax" else options.python
            if python:
                runs.append(run_peer(python, library, family, table, options.threads))
                print(table, runs[-1], flush=True)
        if not runs:
            raise SystemExit(f"{table}: its best peer is flowjax, so pass --jax-python")
        best = max(runs, key=lambda run: run["nats"])
        for steps, residual in ATTEMPTS:
            runs.append(run_ours(table, steps, residual, options.threads))
            print(table, runs[-1], flush=True)
            if runs[-1]["nats"] >= best["nats"]:
                runs.append(run_ours(table, steps - FEWER, residual, options.threads))
                print(table, runs[-1], flush=True)
                break
        there = [run for run in runs if run["who"] == "diffeo" and run["nats"] >= best["nats"]]
        turns: dict[str, list[dict[str, Any]]] = {"peer": [best], "diffeo": []}
        if there:
            ours = min(there, key=lambda run: run["steps"])
            turns["diffeo"].append(ours)
            python = options.jax_python if best["who"] == "flowjax" else options.python
            for _ in range(AGAIN):
                turns["peer"].append(run_peer(python, best["who"], best["family"], table, options.threads))
                turns["diffeo"].append(run_ours(table, ours["steps"], ours["residual"], options.threads))
                print(table, turns["peer"][-1], turns["diffeo"][-1], flush=True)
        content["tables"][table] = {"goal": best, "reached": bool(there), "runs": runs, "turns": turns}
        save(RESULT, content)


if __name__ == "__main__":
    main()
