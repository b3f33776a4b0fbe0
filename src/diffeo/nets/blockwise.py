"""The sub-role of `Incremental` that masked networks have: steps in blocks, and a gradient without steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffeo.core import Incremental
from diffeo.functional import Context

SHORT = 8  # coordinates up to which a run is one block, and compiled as a whole


class Stepping(NamedTuple):
    """The state of a run that is made a step at a time."""

    d: int  # steps made so far
    run: Any
    weights: Any
    block: Any
    found: tuple[Tensor, ...]  # coordinates of the block


class Blockwise(Incremental):
    """A conditioner of the scalars of a vector whose steps come in blocks; before a block, one product does the rest.

    After `begin`, the last dim of every tensor that depends on the batch is its rows, here and in what follows.

    Attributes:
        block: how many steps follow each call of `look_ahead`, in the last block too.
        writes_out: whether steps write out small products, as compiled blocks want it.
    """

    order: Tensor
    rank: Tensor
    block: int = 1
    writes_out: bool = False

    @abstractmethod
    def begin(self, z: Tensor, context: Context = None) -> Any:
        """The state before the first block: a pytree of tensors. `z`, with its whole batch, gives the rows."""

    @abstractmethod
    def look_ahead(self, d: int, x_block: Tensor | None, found: Any, run: Any) -> tuple[Any, Any, Any]:
        """Before the block of steps d, d + 1, …: `(run, weights, block)`, with what can be done for them at once.

        `x_block` holds the coordinates found in the block before, shape `(block, rows)`, and `found` what `finish` made
        of it; both are None at first. `weights` does not depend on the batch, and `block` is the state before the first
        step of the block. Both have the same shapes in every block, and steps depend on d by them alone, so that one
        compiled block serves all; steps beyond the last coordinate may give any finite parameters.
        """

    @abstractmethod
    def step_in_block(self, x_prev: Tensor | None, weights: Any, block: Any) -> tuple[Tensor, Any]:
        """One step: from the coordinate found last in the block, if any, to `(params, block)`, params (rows, n)."""

    @abstractmethod
    def finish(self, block: Any) -> Any:
        """What the next block needs to know of a finished one."""

    @abstractmethod
    def signature(self) -> Hashable:
        """Equal for nets whose steps do the same with tensors of the same shapes, so that they can share a compiled
        block; None where that cannot be told."""

    @abstractmethod
    def trace(self, x: Tensor, context: Context = None) -> tuple[Tensor, Any]:
        """Parameters of every position at x, as a run finds them (without dropout), with their gradient.

        And what `solve_adjoint` needs to know of them: a pytree of tensors, without gradient.
        """

    @abstractmethod
    def solve_adjoint(self, trace: Any, g: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """w = g + Nᵀ(a w + b), where N is the derivative of the parameters with respect to x, at the traced x.

        By position: g and w have shape `(*batch, D)`, a and b `(*batch, D, n_params)`. Solved backwards from the last
        position, in one sweep.
        """

    def start(self, z: Tensor, context: Context = None) -> Stepping:
        return Stepping(0, self.begin(z, context), None, None, ())

    def step(self, x_prev: Tensor | None, state: Stepping) -> tuple[Tensor, None, Stepping]:
        d, run, weights, block, found = state
        found = found if x_prev is None else (*found, x_prev)
        if d % self.block == 0:
            x_block, finished = (torch.stack(found), self.finish(block)) if d else (None, None)
            run, weights, block = self.look_ahead(d, x_block, finished, run)
            x_prev, found = None, ()
        params, block = self.step_in_block(x_prev, weights, block)
        return params, None, Stepping(d + 1, run, weights, block, found)
