"""Whether a fit is long enough, and the machine able, to compile its training step."""

from __future__ import annotations

import logging
import os
import shutil

import torch

from diffeo.training.plan import Plan


def wants_compile(compile: bool | str, plan: Plan) -> bool:
    """Whether to compile the training step; "auto" does so where even a slow compiler pays for itself several times."""
    if compile not in (True, False, "auto"):
        raise ValueError(f"fit: compile must be True, False or 'auto', got {compile!r}")
    if not compile or (compile == "auto" and not _is_long(plan)):
        return False
    if torch.cuda.is_available() or any(shutil.which(c) for c in (os.environ.get("CXX", "g++"), "clang++")):
        return True
    logging.getLogger("diffeo").info("no C++ compiler found, so the training step runs eagerly")
    return False


def _is_long(plan: Plan) -> bool:
    return plan.steps >= 30_000 and (plan.time_limit is None or plan.time_limit >= 900)
