"""Conditioners that can run one position at a time, which makes the slow direction of autoregressive maps cheap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from diffeo.functional import Context


class Incremental(nn.Module, ABC):
    """A conditioner `(x, context) -> params` that can also be run a position at a time, state passed in and out.

    Attributes:
        order: `order[d]` is the coordinate whose parameters step d gives (a buffer).
        rank: the inverse permutation, `rank[i]` is the step of coordinate i (a buffer).
    """

    order: Tensor
    rank: Tensor

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Parameters of every position in one pass, shape `(*batch, D * n_params)`: block d is that of step d."""

    @abstractmethod
    def start(self, z: Tensor, context: Context = None) -> Any:
        """The state before the first step: a pytree of tensors. `z` gives batch shape, dtype and device."""

    @abstractmethod
    def step(self, x_prev: Tensor | None, state: Any) -> tuple[Tensor, Any, Any]:
        """One step: from the coordinate found last (None at first) to `(params, aux, state)` of the next.

        `params` has shape `(*batch, n_params)`; `aux` is whatever else the step emits, such as a stop gate.
        """
