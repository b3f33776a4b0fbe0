"""The shape annotations, checked at run time by jaxtyping and beartype in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
from jaxtyping import install_import_hook
with install_import_hook("diffeo", "beartype.beartype"):
    import diffeo, diffeo.testing
import torch
from cases import DENSITIES, TRANSFORMS
for case in TRANSFORMS.values():
    t, x, c = case.build(0), case.x(), case.context and case.context()
    z, logdet = t(x, c)
    t.inverse(z.detach(), c)
for case in DENSITIES.values():
    d = case.build()
    d(d.sample((3,), case.context).float(), case.context)
print("checked", len(TRANSFORMS) + len(DENSITIES))
try:
    diffeo.functional.soft_clip(torch.zeros(3, dtype=torch.long), 1.0)
except Exception as error:
    print("caught", "soft_clip" in str(error))
"""


def test_annotations_hold():
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.split("\n")
    assert lines[0].startswith("checked")
    assert lines[1] == "caught True"
