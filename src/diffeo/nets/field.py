"""Vector fields for continuous flows, and their Jacobians without autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from diffeo.functional import Context
from diffeo.nets.mlp import require_context


class VectorField(nn.Module):
    """v(t, x, context), a smooth network, zero at the start.

    The time enters the first layer as (t, sin πt, cos πt); activations are SiLU.

    Args:
        features: width of x and of the output.
        context: width of the context; 0 ignores it.
        hidden: widths of the hidden layers, at least one.

    Raises:
        ValueError: no hidden layer.

    >>> import torch, diffeo
    >>> diffeo.nets.VectorField(3)(torch.tensor(0.5), torch.ones(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(self, features: int, *, context: int = 0, hidden: Sequence[int] = (64, 64, 64)):
        super().__init__()
        if not hidden:
            raise ValueError("VectorField: expected at least one hidden layer")
        self.features, self.context = features, context
        widths = [features, *hidden, features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.from_time = nn.Linear(3, widths[1], bias=False)
        self.from_context = nn.Linear(context, widths[1], bias=False) if context else None
        last: nn.Linear = self.layers[-1]  # type: ignore[assignment]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, t: Tensor, x: Tensor, context: Context = None) -> Tensor:
        return self.linearize(t, x, context)[0]

    def linearize(self, t: Tensor, x: Tensor, context: Context = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """v at t (one for all rows, or one for each) and x, and the map of tangents (*batch, D, k) by ∂v/∂x."""
        slopes: list[Tensor] = []
        h = x
        for i, layer in enumerate(self.layers):
            if i:
                s = torch.sigmoid(h)
                slopes.append(s * (1 + h * (1 - s)))
                h = h * s
            h = layer(h)
            if i == 0:
                angle = torch.pi * t
                h = h + self.from_time(torch.stack([t, angle.sin(), angle.cos()], -1).to(h.dtype))
                if self.from_context is not None:
                    h = h + self.from_context(require_context(context, self.context, "VectorField")).to(h.dtype)

        def push(tangents: Tensor) -> Tensor:
            first, *rest = self.layers
            pushed = first.weight @ tangents  # type: ignore[operator]
            for layer, slope in zip(rest, slopes, strict=True):
                pushed = layer.weight @ (slope.unsqueeze(-1) * pushed)  # type: ignore[operator]
            return pushed

        return h, push
