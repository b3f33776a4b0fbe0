"""What a process is set to before it trains: threads that sleep while they wait, and memory that is kept."""

from __future__ import annotations

import os
import sys
import threading
from functools import cache
from pathlib import Path

import torch

# by which users say themselves how threads are to wait
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
LARGE = 1 << 20  # numbers that PyTorch shares out among its threads


def prepare() -> None:
    """Set the process up for training and sampling; it costs next to nothing to say so again."""
    sleep_while_waiting()
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the process keep up to 62 MiB that it frees, for the next call, which would get it back page by page.

    A training step frees its activations at its end, and the next one would write to new pages, each of which the
    system first clears. The C library of GNU keeps twice the largest block that it has freed, up to about this one's
    size; other libraries do as they do.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")  # nothing is written to it, so it costs nothing


@cache
def sleep_while_waiting() -> bool:
    """Let the threads of PyTorch on CPUs sleep soon when they wait for each other; whether there was anything to do.

    PyTorch's threads are those of the OpenMP library of GNU, and wait by turning in a loop for about a millisecond. If
    some other program wants the same core, that loop keeps the very thread from running that it waits for: a training
    step beside two busy programs took seventy times as long as with threads that sleep. The library decides so by
    itself, and turns a three-hundredth of that, once it manages more threads than the machine has cores, so one more
    team of threads is made here, which sleeps for good. The environment decides the same when a program starts
    (`OMP_WAIT_POLICY=passive`), which is too late for a library, and where it says anything, it is left at that.
    """
    if any(name in os.environ for name in WAITING) or torch.get_num_threads() == 1 or not _is_gnu():
        return False
    made, never = threading.Event(), threading.Event()

    def team() -> None:
        torch.ones(LARGE, device="cpu").add_(1.0)  # on as many threads as there are
        made.set()
        never.wait()

    threading.Thread(target=team, name="diffeo-asleep", daemon=True).start()
    return made.wait(10)


def openmp() -> str | None:
    """The OpenMP library of GNU that PyTorch has loaded, so that C shares its threads; None for none, or another."""
    if sys.platform != "linux":
        return None
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    return next((line.split()[-1] for line in lines if "/libgomp" in line), None)


def _is_gnu() -> bool:
    return openmp() is not None
