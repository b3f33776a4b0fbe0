"""Exponential weight averaging."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from diffeo.kernels.private import move_towards


class Average:
    """A running average a ← d a + (1 − d) p of parameters, d rising from 0.1 to `decay` over the first steps.

    "Acceleration of Stochastic Approximation by Averaging" (Polyak and Juditsky, 1992),
    https://doi.org/10.1137/0330046
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float):
        self.parameters = parameters
        self.decay = decay
        self.values = [p.detach().clone() for p in parameters]

    def update(self, step: int) -> None:
        """Take in the parameters after step `step` (counted from 1)."""
        decay = min(self.decay, step / (9 + step))
        move_towards(self.values, [p.detach() for p in self.parameters], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the average."""
        kept = [p.detach().clone() for p in self.parameters]
        self.copy(self.values)
        try:
            yield
        finally:
            self.copy(kept)

    @torch.no_grad()
    def copy(self, values: list[Tensor]) -> None:
        """Set the parameters."""
        for p, value in zip(self.parameters, values, strict=True):
            p.detach().copy_(value)
