"""Whether a fit is long enough, and the machine able, to compile its training step."""

from __future__ import annotations

from diffeo.core.compiling import has_compiler
from diffeo.training.plan import Plan


def wants_compile(compile: bool | str, plan: Plan) -> bool:
    """Whether to compile the training step; "auto" does so where even a slow compiler pays for itself several times."""
    if compile not in (True, False, "auto"):
        raise ValueError(f"fit: compile must be True, False or 'auto', got {compile!r}")
    if not compile or (compile == "auto" and not _is_long(plan)):
        return False
    return has_compiler()


def _is_long(plan: Plan) -> bool:
    return plan.steps >= 30_000 and (plan.time_limit is None or plan.time_limit >= 900)
