"""The objective role: what a trainer minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from diffeo.core.density import Density


class Objective(nn.Module, ABC):
    """A loss per example, computed inside `forward`, so that DDP, FSDP, autocast and compile act on all of it.

    Attributes:
        in_nats: whether losses are negative log-densities, or bounds of them, so that reports show them as nats.
    """

    in_nats: bool = True

    @abstractmethod
    def forward(self, *batch: Any) -> Tensor:
        """Loss of each example, shape `(*batch,)`."""

    def initialize(self, *batch: Any) -> None:
        """Set what depends on data from a batch of training rows, once, before training: here, the only density."""
        densities = [child for child in self.children() if isinstance(child, Density)]
        if len(densities) == 1:
            densities[0].initialize(*batch)
