"""Whether a fit is long enough, and the machine able, to compile its training step."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from diffeo.core.compiling import has_compiler
from diffeo.training.plan import Plan

# floating-point operations a second of an uncompiled step: two cores do so many, a GPU some fifty times more
RATE = {"cpu": 2e10}
ELSEWHERE = 1e12
LONG = 240.0  # seconds: a cold compiler takes up to a minute or two, and compiled steps less than half the time


def wants_compile(compile: bool | str, plan: Plan, parameters: Iterable[Tensor], device: str, world: int) -> bool:
    """Whether to compile the training step; "auto" does so where even a slow compiler pays for itself.

    It goes by the length of the fit as predicted from its size, not by a clock, so that equal fits take equal steps.
    """
    if compile not in (True, False, "auto"):
        raise ValueError(f"fit: compile must be True, False or 'auto', got {compile!r}")
    if not compile or (compile == "auto" and predicted_seconds(plan, parameters, device, world) < LONG):
        return False
    return has_compiler()


def predicted_seconds(plan: Plan, parameters: Iterable[Tensor], device: str, world: int) -> float:
    """About how long the fit takes without compiling: six operations for each row and weight (Kaplan et al., 2020)."""
    operations = 6.0 * plan.steps * plan.batch_size / world * sum(p.numel() for p in parameters)
    seconds = operations / RATE.get(device, ELSEWHERE)
    return seconds if plan.time_limit is None else min(seconds, plan.time_limit)
