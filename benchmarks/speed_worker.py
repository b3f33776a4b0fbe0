"""Flow libraries in processes of their own, asked to take turns; as a program, a check of what they were built as.

python benchmarks/speed_worker.py --check --python TORCH_ENV/bin/python --jax-python JAX_ENV/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from speed_peers import CONFIGURATIONS, FLOORS, IDIOMS, LIBRARIES, PACKAGES, THREADS, Configuration, Peer, build


class Worker:
    """A library in a process of its own, which sleeps on its input while others are timed.

    It speaks JSON lines: a request names a method of `_Server` and its arguments, the reply holds its result or an
    error, which is raised here.
    """

    def __init__(self, python: str | os.PathLike[str], library: str, threads: int = THREADS) -> None:
        self.library = library
        command = [os.fspath(python), __file__, "--serve", library, "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def build(self, configuration: Configuration, seed: int = 0) -> list[str]:
        """Builds a flow in place of the last one and returns the names of its operations."""
        return self._ask("build", configuration=list(configuration), seed=seed)

    def time(self, operation: str, repeats: int) -> list[float]:
        """Milliseconds of each repetition, by the worker's own clock; the first after `build` is a warm-up."""
        return self._ask("time", operation=operation, repeats=repeats)

    def check(self) -> dict[str, Any]:
        """Runs each operation once; the flow's parameters, and what is wrong with the results."""
        return self._ask("check")

    def versions(self) -> dict[str, str]:
        """Versions of Python, the library and what it runs on."""
        return self._ask("versions")

    def close(self) -> None:
        """Ends the process: it leaves when its input does."""
        self._process.communicate()

    def _ask(self, method: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.library}: the worker ended with exit status {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"{self.library}: {reply['error']}")
        return reply["result"]


class _Server:
    """The worker's side: one library, one flow at a time."""

    def __init__(self, library: str) -> None:
        self.library = library
        self.configuration = CONFIGURATIONS[0]
        self.peer = Peer({}, 0)

    def build(self, configuration: Sequence[Any], seed: int) -> list[str]:
        self.peer = Peer({}, 0)  # frees the last one first
        self.configuration = Configuration(*configuration)
        self.peer = build(self.library, self.configuration, seed)
        return list(self.peer.operations)

    def time(self, operation: str, repeats: int) -> list[float]:
        run = self.peer.operations[operation]
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
        return times

    def check(self) -> dict[str, Any]:
        results = {name: np.asarray(run()) for name, run in self.peer.operations.items()}
        batch, features = self.configuration.batch, self.configuration.features
        shapes = {"density": (batch,), "step": (), "sample": (batch, features)}
        faults = [
            f"{name}: shape {result.shape}, {np.isfinite(result).mean():.0%} finite"
            for name, result in results.items()
            if result.shape != shapes[name] or not np.isfinite(result).all()
        ]
        return {"parameters": self.peer.parameters, "faults": faults}

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES[self.library]}


def serve(library: str, threads: int) -> None:
    """Answers requests until the input ends; whatever the library prints goes to the standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _limit_threads(library, threads)
    server = _Server(library)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": getattr(server, request["method"])(**request["arguments"])}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


def _limit_threads(library: str, threads: int) -> None:
    """Must come before torch or jax is imported; XLA has a switch for one thread, else it takes the cores it sees."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if library != "flowjax":
        import torch

        torch.set_num_threads(threads)
    elif threads == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    elif hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def check(libraries: Sequence[str], names: Sequence[str], pythons: dict[str, str], threads: int) -> bool:
    """Prints the parameters of every library and configuration; whether all operations gave what they should."""
    workers = {library: Worker(pythons[library], library, threads) for library in libraries}
    fine = True
    for library, worker in workers.items():
        print(f"{library}: {worker.versions()}; {IDIOMS[library]}")
    print(f"{'parameters':12}" + "".join(f"{library:>12}" for library in libraries))
    for configuration in CONFIGURATIONS:
        if configuration.name not in names:
            continue
        print(f"{configuration.name:12}", end="", flush=True)
        faults: list[str] = []
        for library, worker in workers.items():
            try:
                worker.build(configuration)
                result = worker.check()
            except RuntimeError as error:
                result = {"parameters": "-", "faults": [str(error)]}
            faults += [f"{library}: {fault}" for fault in result["faults"]]
            print(f"{result['parameters']:>12}", end="", flush=True)
        print("".join(f"\n  {fault}" for fault in faults))
        fine = fine and not faults
    for worker in workers.values():
        worker.close()
    return fine


def main() -> None:
    """A worker's process, or the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="run every operation once and print the sizes")
    mode.add_argument("--serve", choices=LIBRARIES, help="be a worker (what `Worker` starts)")
    names = [configuration.name for configuration in CONFIGURATIONS]
    flows = [library for library in LIBRARIES if library not in FLOORS]
    parser.add_argument("--libraries", nargs="+", default=flows, choices=flows)
    parser.add_argument("--configurations", nargs="+", default=names, choices=names)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the PyTorch libraries")
    parser.add_argument("--jax-python", default=sys.executable, help="interpreter of FlowJAX")
    parser.add_argument("--threads", type=int, default=THREADS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.threads)
    else:
        pythons = dict.fromkeys(LIBRARIES, args.python) | {"flowjax": args.jax_python}
        sys.exit(not check(args.libraries, args.configurations, pythons, args.threads))


if __name__ == "__main__":
    main()
