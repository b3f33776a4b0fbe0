"""Threads that sleep while they wait."""

import os
import subprocess
import sys

import pytest

CODE = """
import threading, torch, diffeo
from diffeo.kernels import process
before = threading.active_count()
torch.set_num_threads(max(2, torch.get_num_threads()))
print(before, process.sleep_while_waiting(), process.sleep_while_waiting(), threading.active_count())
x = torch.randn(512, 64)
print(bool(torch.isfinite(diffeo.realnvp(64, layers=1)(x)).all()))
"""


def run(**environment):
    plain = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env={**plain, **environment}, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="the threads of GNU's OpenMP library")
def test_one_team_of_threads_sleeps_for_good_and_what_the_user_says_counts():
    assert run() == ["1", "True", "True", "2", "True"]
    assert run(OMP_WAIT_POLICY="active") == ["1", "False", "False", "1", "True"]
