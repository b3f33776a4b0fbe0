"""What parts of a chain tell the backward pass that rebuilds their inputs (`kernels/segments.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from diffeo.core.transform import Transform
from diffeo.functional import Context
from diffeo.kernels.private import has_hooks
from diffeo.kernels.segments import Rebuilt

POLICIES = ("store", "recompute", "invert")


class Rebuildable(ABC):
    """The optional role of a transform whose two directions share work, which `memory="invert"` then does once."""

    @abstractmethod
    def rebuild(self, z: Tensor, context: Context = None) -> Rebuilt | None:
        """x from z, and the forward pass again; None where the directions share nothing after all."""


class Recallable(ABC):
    """The optional role of a scalar map whose gradient needs no second computation of its values."""

    @abstractmethod
    def recall(self, x: Tensor, z: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """`self(x, context)` with its gradient, where z and logdet, found before, are what it gives."""


def turn_back(part: Transform, z: Tensor, context: Context) -> Rebuilt | Tensor:
    """The input of a part from its output, with the way there once more where both directions share work."""
    role: Any = part
    found = role.rebuild(z, context) if isinstance(role, Rebuildable) and not has_hooks(part) else None
    if found is not None:
        return found
    with torch.no_grad():
        return part.inverse(z, context)[0]


def turns_back(part: Transform) -> bool:
    """Whether the inverse is exact, and costs about as much as the forward direction."""
    return part.exact_inverse and "inverse" not in part.stepwise
