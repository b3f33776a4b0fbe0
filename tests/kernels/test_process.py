"""Threads that sleep while they wait, where other programs want their cores."""

import os
import subprocess
import sys

import pytest

from diffeo.kernels.process import QUIET, WANTED

CODE = """
import os, threading, torch, diffeo
from types import SimpleNamespace
from diffeo.kernels import process

torch.set_num_threads(max(2, torch.get_num_threads()))
used = SimpleNamespace(ru_utime=0.0, ru_stime=0.0, ru_nivcsw=0)
process.resource = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: used)

def work(seconds, switches):
    "As if this process had worked so long, and lost its cores so often."
    used.ru_utime += seconds
    used.ru_nivcsw += switches
    process.prepare()
    return process.waiting.asleep, threading.active_count()

process.waiting.forget()
said = [work(0.1, 20), work(1, 5), work(1, 300)]  # too short to tell; quiet; one window says nothing yet
said += [work(1, 5)] + [work(1, 5000) for _ in range(process.WANTED)]
said += [work(1, 5) for _ in range(process.QUIET)]
print([int(asleep) for asleep, _ in said], [threads for _, threads in said])
[work(1, 300) for _ in range(process.WANTED)]
x = torch.randn(512, 64)
print(bool(torch.isfinite(diffeo.realnvp(64, layers=1)(x)).all()))
child = os.fork()
if not child:
    print(process.waiting.asleep, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def run(**environment):
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-u", "-c", CODE], capture_output=True, text=True, env={**plain, **environment}, check=True
    )
    return done.stdout.split("\n")[:-1]


@pytest.mark.skipif(sys.platform != "linux", reason="the threads of GNU's OpenMP library")
def test_threads_sleep_beside_others_and_what_the_user_says_counts():
    asleep = [0, 0, 0, 0, *[0] * (WANTED - 1), 1, *[1] * (QUIET - 1), 0]
    assert run() == [f"{asleep} {[1 + a for a in asleep]}", "True", "False"]
    assert run(OMP_WAIT_POLICY="active") == [f"{[0] * len(asleep)} {[1] * len(asleep)}", "True", "False"]
