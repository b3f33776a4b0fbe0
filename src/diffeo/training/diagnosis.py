"""Which layer made a loss non-finite, found by running the batch once more with every module watched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteError(FloatingPointError):
    """A fit met a loss or gradient that is not finite; the update was not made.

    Attributes:
        step: the step that failed, counted from 1.
        layer: name and class of the first module (or parameter gradient) that was not finite.
        rows: indices of the batch's rows in the caller's data.
        checkpoint: the folder of the last good checkpoint, or None.
    """

    def __init__(self, message: str, step: int, layer: str, rows: Sequence[int], checkpoint: str | None):
        super().__init__(message)
        self.step, self.layer, self.rows, self.checkpoint = step, layer, list(rows), checkpoint


def first_non_finite(objective: nn.Module, batch: tuple[Tensor, ...]) -> str:
    """Name the first module whose output is not finite though its input is; else the first such gradient."""
    culprits: list[str] = []
    names = {module: name or "objective" for name, module in objective.named_modules()}

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        if not culprits and _finite(inputs) and not _finite(output):
            culprits.append(f"{names[module]} ({type(module).__name__})")

    hooks = [module.register_forward_hook(watch) for module in objective.modules()]
    try:
        with torch.enable_grad():
            loss = objective.forward(*batch).mean()
            if not culprits and loss.isfinite():
                parameters = [(n, p) for n, p in objective.named_parameters() if p.requires_grad]
                grads = torch.autograd.grad(loss, [p for _, p in parameters], allow_unused=True)
                bad = [n for (n, _), g in zip(parameters, grads, strict=True) if g is not None and not _finite(g)]
                culprits += [f"the gradient of {bad[0]}"] if bad else []
    finally:
        for hook in hooks:
            hook.remove()
    return culprits[0] if culprits else "objective (its loss)"


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, list | tuple):
        return all(_finite(v) for v in value)
    if isinstance(value, dict):
        return all(_finite(v) for v in value.values())
    return True
