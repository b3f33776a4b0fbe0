"""Networks with a Lipschitz constant below a bound that holds, and their Jacobians without autograd.

Every weight is divided by a bound on its largest singular value where that exceeds its share of the constant. The bound
is that of Gram iteration: with G₀ = W and G ← GᵀG, σ ≤ ‖Gₙ‖^{2⁻ⁿ} in the Frobenius norm for every n, and closely so
after a few steps. Unlike power iteration it is never below σ, and it keeps no state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffeo.functional import Context
from diffeo.nets.mlp import require_context

BEND = 0.7  # β at the start, over √width
OFFSET = 0.5  # of β in its softplus
GRAM_STEPS = 6  # the bound is then at most rank^(1/128) times σ, 4 % for rank 128


class LipschitzMLP(nn.Module):
    """g(x, context) with |g(x) − g(y)| ≤ lipschitz · |x − y|, zero at the start.

    Activations are LipSwish, φ(h) = h sigmoid(β h) / 1.1 with slopes up to one and a learned β > 0 for each layer. In
    the context g is free.

    Args:
        features: width of x and of the output.
        context: width of the context; 0 ignores it.
        hidden: widths of the hidden layers, at least one.
        lipschitz: the constant, in (0, 1).

    Raises:
        ValueError: no hidden layer; a constant outside (0, 1).

    "Residual Flows for Invertible Generative Modeling" (Chen et al., 2019), https://arxiv.org/abs/1906.02735;
    "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration" (Delattre et al., 2023),
    https://arxiv.org/abs/2305.16173

    >>> import torch, diffeo
    >>> diffeo.nets.LipschitzMLP(3)(torch.ones(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(self, features: int, *, context: int = 0, hidden: Sequence[int] = (128, 128), lipschitz: float = 0.97):
        super().__init__()
        if not hidden or not 0 < lipschitz < 1:
            raise ValueError(f"LipschitzMLP: expected hidden layers and 0 < lipschitz < 1, got {hidden}, {lipschitz}")
        widths = [features, *hidden, features]
        self.context, self.lipschitz = context, lipschitz
        self.share = lipschitz ** (1 / (len(widths) - 1))  # of each layer
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.from_context = nn.Linear(context, widths[1], bias=False) if context else None
        # a unit sees about 1/√width of x, which must reach the bend of its activation, or the net stays linear for long
        start = torch.tensor([BEND * width**0.5 for width in hidden])
        self.sharpness = nn.Parameter(start + torch.log(-torch.expm1(-start)) - OFFSET)
        for layer in self.layers:  # with all singular values alike, bounding the largest takes nothing from the others
            nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
        last: nn.Linear = self.layers[-1]  # type: ignore[assignment]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        return self.linearize(x, context)[0]

    def linearize(self, x: Tensor, context: Context = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """g(x), and the map of tangents (*batch, D, k) by its Jacobian at x."""
        weights = self.weights(x.dtype)
        slopes: list[Tensor] = []
        h = x
        for i, (layer, weight) in enumerate(zip(self.layers, weights, strict=True)):
            if i:
                h, slope = self._bend(h, i - 1)
                slopes.append(slope)
            h = F.linear(h, weight, layer.bias.to(x.dtype))  # type: ignore[union-attr]
            if i == 0 and self.from_context is not None:
                h = h + self.from_context(require_context(context, self.context, "LipschitzMLP")).to(x.dtype)

        def push(tangents: Tensor) -> Tensor:
            pushed = weights[0] @ tangents
            for weight, slope in zip(weights[1:], slopes, strict=True):
                pushed = weight @ (slope.unsqueeze(-1) * pushed)
            return pushed

        return h, push

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        """The matrices of all layers, each with singular values up to its share of the Lipschitz constant."""
        scaled: list[Tensor] = []
        for layer in self.layers:
            weight: Tensor = layer.weight.to(dtype)  # type: ignore[assignment, operator]
            scaled.append(weight * (self.share / singular_bound(weight).clamp_min(self.share)))
        return scaled

    def _bend(self, h: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """LipSwish and its slope."""
        beta = F.softplus(self.sharpness[i].to(h.dtype) + OFFSET)
        s = torch.sigmoid(beta * h)
        return h * s / 1.1, s * (1 + beta * h * (1 - s)) / 1.1


def singular_bound(weight: Tensor) -> Tensor:
    """An upper bound on the largest singular value, by Gram iteration."""
    g = weight if weight.shape[0] >= weight.shape[1] else weight.mT
    log_scale = torch.zeros_like(g[0, 0])
    for _ in range(GRAM_STEPS):
        norm = _frobenius(g)
        log_scale = 2 * (log_scale + norm.log())
        g = g / norm
        g = g.mT @ g
    return ((log_scale + _frobenius(g).log()) / 2**GRAM_STEPS).exp()


def _frobenius(g: Tensor) -> Tensor:
    return g.square().sum().clamp_min(1e-30).sqrt()
