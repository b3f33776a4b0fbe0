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
        block: how many steps follow each call of `look_ahead`.
        has_adjoint: whether `trace` and `solve_adjoint` are there, so that gradients of a run cost about one more run;
            otherwise they are taken through every step.
    """

    order: Tensor
    rank: Tensor
    block: int = 1
    has_adjoint: bool = False

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Parameters of every position in one pass, shape `(*batch, D, n_params)`: entry d is that of step d."""

    @abstractmethod
    def start(self, z: Tensor, context: Context = None) -> Any:
        """The state before the first step: a pytree of tensors. `z` gives batch shape, dtype and device."""

    def look_ahead(self, d: int, x_block: Tensor | None, state: Any) -> Any:
        """The state with what can be done at once for the steps d, d + 1, … of a block; called before each block.

        `x_block` holds the coordinates found in the block before, shape `(*batch, block)`; None at first. Steps must
        not depend on d otherwise, so that one compiled block serves all.
        """
        return state

    @abstractmethod
    def step(self, x_prev: Tensor | None, state: Any) -> tuple[Tensor, Any, Any]:
        """One step: from the coordinate found last (None at first) to `(params, aux, state)` of the next.

        `params` has shape `(*batch, n_params)`; `aux` is whatever else the step emits, such as a stop gate.
        """

    def trace(self, x: Tensor, context: Context = None) -> tuple[Tensor, Any]:
        """Parameters of every position at x, as a run finds them (without dropout), with their gradient.

        And what `solve_adjoint` needs to know of them: a pytree of tensors, without gradient.
        """
        raise NotImplementedError(f"{type(self).__name__} has no adjoint")

    def solve_adjoint(self, trace: Any, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """w = g + Nᵀ(a w + b), where N is the derivative of the parameters with respect to x, at the traced x.

        By position: g and w have shape `(*batch, D)`, a and b `(*batch, D, n_params)`. Solved backwards from the last
        position, in one sweep.
        """
        raise NotImplementedError(f"{type(self).__name__} has no adjoint")
