"""Conditioners that can run one position at a time, which makes the slow direction of autoregressive maps cheap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from diffeo.functional import Context


class Incremental(nn.Module, ABC):
    """A conditioner `(x, context) -> params` that can also be run a position at a time, state passed in and out.

    A position is a scalar of a vector, a frame of a sequence, a row of an image: a slice of the event along the dim
    that the layer runs along. A run goes over rows, the batch flattened to one dim, which comes first.

    Attributes:
        order: `order[d]` is the position that step d gives (a buffer); None where it is their own order, so that events
            may have any length.
        rank: the inverse permutation, `rank[i]` is the step of position i (a buffer); None too.
        reads: how many trailing dims of each entry of the context that it reads are that entry's event.
    """

    order: Tensor | None
    rank: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", None)
        self.register_buffer("rank", None)
        self.reads: dict[str, int] = {}

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Parameters of every position in one pass, shape `(*x.shape, n_params)`, by position: entry d is step d's."""

    @abstractmethod
    def start(self, z: Tensor, context: Context = None) -> Any:
        """The state before the first step: a pytree. `z`, with its whole batch, gives the rows."""

    @abstractmethod
    def step(self, x_prev: Tensor | None, state: Any) -> tuple[Tensor, Any, Any]:
        """One step: from what the step before found, `(rows, *position)`, None at first, to `(params, aux, state)`.

        `params` has shape `(rows, *position, n_params)`; `aux` is whatever else the step emits, such as a stop gate: a
        pytree of tensors with the rows first, or None.
        """
