"""What a process is set to while it trains: how threads wait for each other, and memory that is kept."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

if sys.platform == "linux":
    import resource

# environment variables by which users choose how threads wait
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
LARGE = 1 << 20  # numbers that PyTorch shares out among its threads
WINDOW = 0.25  # seconds of work after which to look again whether others want the cores
LONGEST = 4 * WINDOW  # more work than this between two looks was compiling, not steps, and is not counted
# Switches to other programs in a second of work. On a quiet machine 1 to 20; beside others at least 120, however
# threads wait. A program that sends small requests here and wakes for each answer takes a core hundreds of times in a
# window now and then, but not in two.
PREEMPTED = 100
ALONE = 0.25  # cores that all others use together; below it the machine is quiet again
WANTED = 2  # windows in a row after which others are taken to stay
QUIET = 2  # quiet windows in a row after which the cores are ours again
crowded = ctypes.c_int(0)  # whether others want the cores now, for C


def prepare() -> None:
    """Set the process up for training and sampling; it is to be called before every step, and costs a microsecond."""
    keep_freed_memory()
    if waiting.may_change:
        waiting.look()


class ThreadLimit(threading.local):
    """Lets what this thread of Python asks of PyTorch run on it alone, for a while.

    `torch.set_num_threads` is for the whole process, and a thread that first uses PyTorch meanwhile would keep the
    number for good; this is for one thread. Nothing happens where OpenMP is not that of GNU.
    """

    def __init__(self) -> None:
        self._full: int | None = None  # threads outside of all blocks, while inside one
        self._blocks = 0
        self._own: int | None = None

    @property
    def threads(self) -> int:
        """How many threads there are for kernels of diffeo, which choose by themselves how many of them to use."""
        return self._own or self.all

    @property
    def all(self) -> int:
        """The same outside of all blocks."""
        return self._full or torch.get_num_threads()

    def __enter__(self) -> None:
        """A block inside of which PyTorch runs on one thread."""
        self.begin()
        self._blocks += 1

    def __exit__(self, *_: object) -> None:
        self._blocks -= 1
        self.end()

    @contextmanager
    def of(self, threads: int) -> Iterator[None]:
        """A block inside of which PyTorch runs on at most so many threads."""
        self.begin(threads=threads)
        self._blocks += 1
        try:
            yield
        finally:
            self.__exit__()

    @contextmanager
    def kernels_too(self) -> Iterator[None]:
        """A block inside of which kernels of diffeo run on one thread, too, or on helpers beside others."""
        before, self._own = self._own, 1
        try:
            with self:
                yield
        finally:
            self._own = before

    def begin(self, *_: object, threads: int = 1) -> None:
        """Start without a block, as a hook; if its end never comes, as after a failed backward, the next one does."""
        if self._full is None and _setters():
            self._full = torch.get_num_threads()
            for setter in _setters():
                setter(min(threads, self._full))

    def end(self, *_: object) -> None:
        """Back to as many threads as before, unless inside a block; as a hook."""
        if self._full is not None and self._blocks == 0:
            omp, *local = _setters()
            omp(self._full)
            for setter in local:
                setter(0)  # what the process is set to
            self._full = None


thread_limit = ThreadLimit()


@contextmanager
def one_thread(use: bool = True) -> Iterator[None]:
    """Inside, PyTorch and all kernels run on the calling thread alone, but for the kernels' helpers beside others."""
    before = torch.get_num_threads()
    if not use or thread_limit.threads == 1:
        yield
    elif _setters():
        with thread_limit.kernels_too():
            yield
    else:  # other libraries of threads, for the whole process
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@cache
def keep_freed_memory() -> None:
    """Let the process keep up to 62 MiB that it frees, for the next call, which would get it back page by page.

    A training step frees its activations at its end, and the next one would write to new pages, each of which the
    system first clears. The C library of GNU keeps twice the largest block that it has freed, up to about this one's
    size; other libraries do as they do.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")  # nothing is written to it, so it costs nothing


class Waiting:
    """How PyTorch's threads on CPUs wait for each other: awake, but asleep while other programs want their cores.

    They are those of the OpenMP library of GNU, and wait by turning in a loop for up to milliseconds. On a quiet
    machine that is right: to wake a thread takes longer than a small product. Where another program wants the same
    core, the loop keeps the very thread from running that it waits for, and a training step takes ten to seventy times
    as long. The library lets its threads sleep almost at once when it manages more of them than the machine has cores.
    So one more team of threads is made here when the system often takes the cores away, and ended when others leave
    them. Meanwhile kernels have helpers that sleep between calls (`team.c`), and what else a compiled flow does
    has as many threads as there are cores that nobody else uses. The environment decides how to wait when a
    program starts (`OMP_WAIT_POLICY=passive`), which is too late for a library; where it says anything, waiting is
    left at that.
    """

    def __init__(self) -> None:
        self._team: _Team | None = None
        self._lock = threading.Lock()
        self._switches, self._worked = 0, 0.0
        self._quiet, self._wanted = 0, 0  # windows in a row
        self._seen = 0.0, 0.0  # when the last window ended, and what all processes had worked until then
        self.free = 1  # cores that no other program uses, while it is crowded
        crowded.value = 0

    @property
    def crowded(self) -> bool:
        """Whether other programs want the cores now."""
        return self._team is not None

    @property
    def may_change(self) -> bool:
        """Whether there are threads that wait for each other."""
        return torch.get_num_threads() > 1 and region() is not None

    def look(self) -> None:
        """See whether others want the cores, once after each `WINDOW` of work, and wait accordingly."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        worked = usage.ru_utime + usage.ru_stime - self._worked
        if worked < WINDOW or not self._lock.acquire(blocking=False):
            return
        try:
            switches = usage.ru_nivcsw - self._switches
            self._switches, self._worked = usage.ru_nivcsw, self._worked + worked
            since, before = self._seen
            self._seen = time.monotonic(), work_of_all()
            if worked > LONGEST:
                return
            others = (self._seen[1] - before - worked) / max(self._seen[0] - since, 1e-3)
            self.free = max(1, int(len(os.sched_getaffinity(0)) - others + 0.5))
            # helpers take the cores from the thread that calls them, which says nothing about others
            wanted = others > ALONE if self.crowded else switches > PREEMPTED * worked
            self._quiet, self._wanted = (0, self._wanted + 1) if wanted else (self._quiet + 1, 0)
            if self._wanted >= WANTED and self._team is None:
                self._team = _Team()
                crowded.value = 1
            elif self._team is not None and self._quiet >= QUIET:
                crowded.value = 0
                self._team.end()
                self._team = None
        finally:
            self._lock.release()

    def forget(self) -> None:
        """In a process that was forked, which has no team of threads."""
        self.__init__()


class _Team:
    """As many threads as PyTorch uses, asleep until the `end`; none where the environment says how threads wait.

    Meanwhile optimisers step on one thread: threads of fused ones meet after every parameter, however small.
    """

    def __init__(self) -> None:
        self._hooks = [
            register_optimizer_step_pre_hook(thread_limit.begin),
            register_optimizer_step_post_hook(thread_limit.end),
        ]
        made, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._sleep, args=(made,), name="diffeo-asleep", daemon=True)
        if _is_left_to_us():
            self._thread.start()
            made.wait(10)

    def _sleep(self, made: threading.Event) -> None:
        torch.ones(LARGE, device="cpu").add_(1.0)  # on as many threads as there are
        made.set()
        self._ended.wait()

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()


waiting = Waiting()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=waiting.forget)


def work_of_all() -> float:
    """Seconds that all processes have worked on the cores that this one may use; 0 where the system does not say."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
    except OSError:
        return 0.0
    # user, nice, system, idle, waiting for disks, interrupts of two kinds
    ticks = [int(n) for core, *numbers in lines if core in cores for n in (*numbers[:3], *numbers[5:7])]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def threads(worth: int, meets: bool = False) -> int:
    """How many threads to run on, where work is worth that of so many.

    Args:
        worth: threads that the work is worth.
        meets: whether they wait for each other while they work, so that all of them need cores of their own.
    """
    if not waiting.crowded:
        return max(1, min(thread_limit.threads, worth))
    return max(1, min(thread_limit.threads, waiting.free, worth) if meets else min(thread_limit.all, worth))


def openmp() -> str | None:
    """The OpenMP library of GNU that PyTorch uses, so that C shares its threads; None for none, or another.

    Other packages bring one of their own, as scikit-learn does, whose threads would want the same cores as PyTorch's.
    """
    maps, pytorch = _maps(), _pytorch()
    if pytorch is None:
        return None
    try:
        there = ctypes.cast(pytorch.omp_get_max_threads, ctypes.c_void_p).value or 0
    except AttributeError:
        return None
    return next((path for path, begin, end in maps if begin <= there < end and "/libgomp" in path), None)


@cache
def region() -> int | None:
    """Where GNU's function that runs a parallel region is; None where PyTorch has another library of threads."""
    pytorch = _pytorch()
    if sys.platform != "linux" or pytorch is None or openmp() is None:
        return None
    return ctypes.cast(pytorch.GOMP_parallel, ctypes.c_void_p).value


@cache
def _pytorch() -> ctypes.CDLL | None:
    """PyTorch's own library, and what it depends on."""
    path = next((path for path, _, _ in _maps() if "/libtorch_cpu" in path), None)
    return None if path is None else ctypes.CDLL(path)


def _maps() -> list[tuple[str, int, int]]:
    """The files that this process has in memory, and from where to where."""
    if sys.platform != "linux":
        return []
    try:
        lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        return []
    ranges = [(line[5], *line[0].split("-")) for line in lines if len(line) > 5]
    return [(path, int(begin, 16), int(end, 16)) for path, begin, end in ranges]


@cache
def _setters() -> list[Callable[[int], Any]]:
    """What sets the number of threads of the thread that calls it: of OpenMP, and of MKL, which may have its own."""
    pytorch = _pytorch()
    if pytorch is None or openmp() is None:
        return []
    functions: list[Any] = [pytorch.omp_set_num_threads]
    if hasattr(pytorch, "MKL_Set_Num_Threads_Local"):  # not in builds for other processors
        functions.append(pytorch.MKL_Set_Num_Threads_Local)
    for function in functions:
        function.argtypes = [ctypes.c_int]
    return functions


def _is_left_to_us() -> bool:
    return not any(name in os.environ for name in WAITING)
