"""Threads that sleep while they wait, where other programs want their cores."""

import os
import re
import subprocess
import sys
from importlib import resources

import pytest

from diffeo.kernels import process
from diffeo.kernels.process import QUIET, WANTED

CODE = """
import os, threading, torch, diffeo
from types import SimpleNamespace
from diffeo.kernels import process

torch.set_num_threads(max(2, torch.get_num_threads()))
used = SimpleNamespace(ru_utime=0.0, ru_stime=0.0, ru_nivcsw=0)
process.resource = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: used)
process.work_of_all = lambda: all_of_them
all_of_them = 0.0

def work(seconds, switches, others=0.0):
    "As if this process had worked so long, and lost its cores so often, while others worked so long."
    global all_of_them
    used.ru_utime += seconds
    used.ru_nivcsw += switches
    all_of_them += seconds + others
    process.prepare()
    return process.waiting.crowded, threading.active_count()

process.waiting.forget()
said = [work(0.1, 20), work(1, 5), work(1, 300)]  # too short to tell; quiet; one window says nothing yet
said += [work(1, 5)] + [work(1, 5000) for _ in range(process.WANTED)]
said += [work(1, 5, others=10)]  # helpers lose none
said += [work(1, 5000) for _ in range(process.QUIET)]  # to each other
print([int(crowded) for crowded, _ in said], [threads for _, threads in said])
[work(1, 300) for _ in range(process.WANTED)]
x = torch.randn(512, 64)
print(bool(torch.isfinite(diffeo.realnvp(64, layers=1)(x)).all()))
child = os.fork()
if not child:
    print(process.waiting.crowded, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


# scikit-learn brings an OpenMP library of its own, here before PyTorch's
LOWERED = """
from sklearn.cluster import KMeans
import threading, torch, diffeo
from sklearn.utils._openmp_helpers import _openmp_effective_n_threads
from diffeo.kernels.process import thread_limit, one_thread, openmp, waiting, _Team

_openmp_effective_n_threads()
a, seen = torch.randn(64, 64), []
there = lambda: (torch.get_num_threads(), thread_limit.threads)
def elsewhere():
    "What another thread of Python meets, which first uses PyTorch now."
    thread = threading.Thread(target=lambda: seen.append(there()))
    thread.start()
    thread.join()

torch.set_num_threads(3)
print(openmp().startswith(torch.__path__[0]))
with thread_limit:
    elsewhere()
    with one_thread():
        print(there())
    print(there(), seen)
print(there())
thread_limit.begin()  # as before a backward pass that fails
with thread_limit:
    print(there())
print(there())

flow = diffeo.realnvp(2, layers=1, hidden=[8])
optimizer = torch.optim.Adam(flow.parameters())
optimizer.register_step_pre_hook(lambda *_: seen.append(there()))
def step():
    flow(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    return seen.pop(), there()

team = _Team()
print(step())
team.end()
print(step())
"""

REGIONS = """
import os, threading, torch, diffeo
from diffeo.kernels import process

torch.set_num_threads(3)
torch.manual_seed(0)
flow, x = diffeo.nsf(6, hidden=[64, 64], layers=2), torch.randn(20000, 6)
def ask():
    "Densities and gradients by kernels, on three threads."
    flow.zero_grad()
    with diffeo.compiled_kernels():
        found = flow(x)
    with process.thread_limit:
        found.mean().backward()
    return [found.detach(), *(p.grad for p in flow.parameters())]

same = lambda a, b: all(map(torch.equal, a, b))
usual = ask()
before = len(os.listdir("/proc/self/task"))
process.crowded.value = 1
print(all(same(ask(), usual) for _ in range(20)), len(os.listdir("/proc/self/task")) - before >= 2)
cores = len(os.sched_getaffinity(0))
def allowed():
    "On how many cores each thread may run."
    return sorted(len(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task"))
print(set(allowed()) == {cores} or cores == 3)
flows = []  # whoever finds the helpers busy goes on alone
def use():
    with diffeo.compiled_kernels(), torch.no_grad():
        flows.append([float(flow(x[:5000]).sum()) for _ in range(10)])
several = [threading.Thread(target=use) for _ in range(4)]
[thread.start() for thread in several]
[thread.join() for thread in several]
print(len(flows), len(set(sum(flows, []))))
with diffeo.compiled_kernels(), torch.no_grad():
    calm = flow(x)
child = os.fork()
if not child:
    process.crowded.value = 1  # a new process begins as if alone
    torch.set_num_threads(cores)
    with process.thread_limit, diffeo.compiled_kernels(), torch.no_grad():  # PyTorch's own threads are gone
        print(torch.equal(flow(x), calm), cores == 1 or allowed().count(1) == 2 * cores, flush=True)
    os._exit(0)
os.waitpid(child, 0)
process.crowded.value = 0
print(same(ask(), usual))
"""


def run(code, **environment):
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-u", "-c", code], capture_output=True, text=True, env={**plain, **environment}, check=True
    )
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(sys.platform != "linux", reason="the threads of GNU's OpenMP library")
def test_one_thread_of_python_is_lowered_for_a_while_and_no_other():
    full, alone = "(3, 3)", "(1, 1)"
    assert run(LOWERED) == [
        "True", alone, f"(1, 3) [{full}]", full, "(1, 3)", full, f"((1, 3), {full})", f"({full}, {full})",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the threads of GNU's OpenMP library")
def test_beside_others_helpers_run_the_kernels_on_cores_of_their_own():
    assert run(REGIONS) == ["True True", "True", "4 1", "True True", "True"]


def test_what_runs_before_each_step_asks_the_system_for_little(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    process.prepare()
    read, maps = [], process._maps
    monkeypatch.setattr(process, "_maps", lambda: read.append("which takes milliseconds") or maps())
    for _ in range(3):
        process.prepare()
    assert not read


def test_regions_that_helpers_run_share_out_work_by_counters_alone():
    folder = resources.files("diffeo.kernels")
    for file in (file for file in folder.iterdir() if file.name.endswith((".c", ".py"))):
        meets = re.findall(r"#pragma omp (?:parallel )?(?:for|barrier|single|critical|sections)", file.read_text())
        assert bool(meets) == (file.name == "gated.c"), (file.name, meets)
    assert "meets=True" in folder.joinpath("gated.py").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the threads of GNU's OpenMP library")
def test_threads_sleep_beside_others_and_what_the_user_says_counts():
    crowded = [0, 0, 0, 0, *[0] * (WANTED - 1), 1, 1, *[1] * (QUIET - 1), 0]
    assert run(CODE) == [f"{crowded} {[1 + c for c in crowded]}", "True", "False"]
    assert run(CODE, OMP_WAIT_POLICY="active") == [f"{crowded} {[1] * len(crowded)}", "True", "False"]
