"""Conditioners that can run one position at a time, which makes the slow direction of autoregressive maps cheap."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from diffeo.functional import Context

SHORT = 8  # coordinates up to which a run is one block, and compiled as a whole


class Incremental(nn.Module, ABC):
    """A conditioner `(x, context) -> params` that can also be run a position at a time, state passed in and out.

    A run goes over rows, the batch flattened: after `start`, the last dim of every tensor that depends on the batch is
    its rows. Steps come in blocks; inside a block, a state of the block is passed from step to step.

    Attributes:
        order: `order[d]` is the coordinate whose parameters step d gives (a buffer).
        rank: the inverse permutation, `rank[i]` is the step of coordinate i (a buffer).
        block: how many steps follow each call of `look_ahead`, in the last block too.
        context: width of the context that it reads; 0 for none.
        writes_out: whether steps write out small products, as compiled blocks want it.
        has_adjoint: whether `trace` and `solve_adjoint` are there, so that gradients of a run cost about one more run;
            otherwise they are taken through every step.
    """

    order: Tensor
    rank: Tensor
    block: int = 1
    context: int = 0
    writes_out: bool = False
    has_adjoint: bool = False

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Parameters of every position in one pass, shape `(*batch, D, n_params)`: entry d is that of step d."""

    @abstractmethod
    def start(self, z: Tensor, context: Context = None) -> Any:
        """The state before the first step: a pytree of tensors. `z`, with its whole batch, gives the rows."""

    @abstractmethod
    def look_ahead(self, d: int, x_block: Tensor | None, found: Any, state: Any) -> tuple[Any, Any, Any]:
        """Before the block of steps d, d + 1, …: `(state, weights, block)`, with what can be done for them at once.

        `x_block` holds the coordinates found in the block before, shape `(block, rows)`, and `found` what `finish` made
        of it; both are None at first. `weights` does not depend on the batch, and `block` is the state before the first
        step of the block. Both have the same shapes in every block, and steps depend on d by them alone, so that one
        compiled block serves all; steps beyond the last coordinate may give any finite parameters.
        """

    @abstractmethod
    def step(self, x_prev: Tensor | None, weights: Any, block: Any) -> tuple[Tensor, Any, Any]:
        """One step: from the coordinate found last in the block, if any, to `(params, aux, block)` of the next.

        `params` has shape `(rows, n_params)`; `aux` is whatever else the step emits, such as a stop gate.
        """

    def finish(self, block: Any) -> Any:
        """What the next block needs to know of a finished one."""
        return block

    def signature(self) -> Hashable:
        """Equal for nets whose steps do the same with tensors of the same shapes, so that they can share a compiled
        block; None where that cannot be told."""
        return None

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
