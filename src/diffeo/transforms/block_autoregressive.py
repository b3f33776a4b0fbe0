"""Block neural autoregressive layers: one monotone network for all coordinates at once.

Hidden layers hold `width` units for each coordinate i. Weights from units of coordinate j to units of i are free for
j < i, positive for j = i and zero beyond, so that the units of i depend on x₁ … xᵢ and grow with xᵢ. With φ the
activation, the logarithms of ∂hᵢ/∂xᵢ follow from layer to layer through the positive blocks alone:

    log ∂hₘ⁺/∂xᵢ = log Σₖ exp(vₘₖ + log φ'(hₖ) + log ∂hₖ/∂xᵢ),     W's diagonal block = exp(v)
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    as_fixed_event,
    check_event,
    context_mask,
    full_precision,
    joined,
    soft_clip,
    sum_event,
    visible,
)
from diffeo.nets.mlp import require_context
from diffeo.solvers import invert_increasing

LEAST_SLOPE = 0.1  # of the activation; with tanh alone a layer would not reach the whole line


class BlockAutoregressive(Transform):
    """z = (1 − γ) x + γ f(x), with f a network that is autoregressive and monotone by the blocks of its weights.

    log|det ∂z/∂x| = Σᵢ log((1 − γ) + γ ∂fᵢ/∂xᵢ), γ = sigmoid(a learned number), one for each coordinate. The activation
    is φ(h) = 0.1 h + tanh h, which reaches every number; off-diagonal blocks start at zero, where z is close to x.

    Args:
        features: D.
        width: units of each hidden layer for each coordinate, at least 1.
        layers: hidden layers, at least 1.
        context: width of a context that shifts the units; 0 for none.
        reverse: whether the last coordinate comes first.

    Raises:
        ValueError: sizes below these.
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: one pass of a network with D · width units; the inverse is D searches in turn, a pass for each step.

    "Block Neural Autoregressive Flow" (De Cao et al., 2019), https://arxiv.org/abs/1904.04676

    >>> import torch, diffeo
    >>> diffeo.BlockAutoregressive(3)(torch.zeros(5, 3))[1].shape
    torch.Size([5])
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    exact_inverse = False

    def __init__(self, features: int, width: int = 8, layers: int = 2, context: int = 0, reverse: bool = False):
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(f"BlockAutoregressive: expected width >= 1 and layers >= 1, got {width} and {layers}")
        self.event = as_fixed_event(features, self)
        self.context, self.reverse = context, reverse
        widths = [1, *[width] * layers, 1]
        self.layers = nn.ModuleList(_BlockLinear(features, a, b) for a, b in pairwise(widths))
        self.gate = nn.Parameter(torch.zeros(features))
        self.from_context = nn.Linear(context, features * width, bias=False) if context else None

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "BlockAutoregressive")
        z, log_slope = self._map(self._flip(visible(x, context)), context)
        return self._keep(x, self._flip(z), self._flip(log_slope), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "BlockAutoregressive")
        if self.context:  # one row of z for each row of the context
            batch = require_context(context, self.context, "BlockAutoregressive").shape[:-1]
            z = z.expand(*joined(z.shape[:-1], batch), -1)
        mask = context_mask(context)
        masks = None if mask is None else self._flip(mask.expand(z.shape)).unbind(-1)
        found: list[Tensor] = []
        seen: list[Tensor] = []  # padding counts as zero
        changes: list[Tensor] = []
        for i, z_i in enumerate(self._flip(z).unbind(-1)):

            def coordinate(t: Tensor, params: Tensor, i: int = i) -> tuple[Tensor, Tensor]:
                x = torch.stack([*seen, *[t] * (len(params) - i)], -1)  # those after i do not matter
                values, log_slopes = self._map(x, context)
                return values[..., i], log_slopes[..., i]

            x_i, change = invert_increasing(coordinate, z_i, self.gate, "BlockAutoregressive")
            found.append(x_i if masks is None else torch.where(masks[i], x_i, z_i))
            seen.append(x_i if masks is None else torch.where(masks[i], x_i, 0.0))
            changes.append(change if masks is None else torch.where(masks[i], change, 0.0))
        return self._flip(torch.stack(found, -1)), sum_event(torch.stack(changes, -1), 1)

    def _map(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """z and log ∂zᵢ/∂xᵢ, coordinates in the layer's own order."""
        with full_precision(x):
            return self._layers(x, context)

    def _layers(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        h, log_slope = x.unsqueeze(-1), torch.zeros_like(x).unsqueeze(-1)
        for k, layer in enumerate(self.layers):
            if k:
                bend = h.tanh()
                log_slope = log_slope + (LEAST_SLOPE + 1 - bend * bend).log()
                h = LEAST_SLOPE * h + bend
            h, log_slope = layer(h, log_slope)
            if k == 0 and self.from_context is not None:
                c = require_context(context, self.context, "BlockAutoregressive")
                h = h + self.from_context(c).to(h.dtype).unflatten(-1, h.shape[-2:])
        f, log_slope = h.squeeze(-1), log_slope.squeeze(-1)
        gate = soft_clip(self.gate.to(x.dtype), 8.0)
        log_gate, log_rest = nn.functional.logsigmoid(gate), nn.functional.logsigmoid(-gate)
        z = log_rest.exp() * x + log_gate.exp() * f
        return z, torch.logaddexp(log_rest.expand_as(f), log_gate + log_slope)

    def _keep(self, x: Tensor, z: Tensor, log_slope: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        mask = context_mask(context)
        if mask is None:
            return z, sum_event(log_slope, 1)
        return torch.where(mask, z, x), sum_event(torch.where(mask, log_slope, 0.0), 1)

    def _flip(self, x: Tensor) -> Tensor:
        return x.flip(-1) if self.reverse else x


class _BlockLinear(nn.Module):
    """From `into` to `out` units for each coordinate, through lower triangular blocks."""

    below: Tensor
    diagonal: Tensor

    def __init__(self, features: int, into: int, out: int):
        super().__init__()
        shape = (features, out, features, into)
        # a coordinate's own weights: log-weights that make an average
        self.own = nn.Parameter(0.1 * torch.randn(features, out, into) - math.log(into))
        self.bias = nn.Parameter(
            torch.linspace(-1, 1, out).repeat(features, 1) if out > 1 else torch.zeros(features, 1)
        )
        self.others = nn.Parameter(torch.zeros(shape)) if features > 1 else None
        below = torch.ones(features, features).tril(-1).view(features, 1, features, 1)
        self.register_buffer("below", below, persistent=False)
        self.register_buffer("diagonal", torch.eye(features).view(features, 1, features, 1), persistent=False)

    def forward(self, h: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        """Units (*batch, D, into) and the logarithms of their slopes in their own coordinate."""
        own = soft_clip(self.own.to(h.dtype), 8.0)
        weight = own.exp().unsqueeze(2) * self.diagonal.to(h.dtype)
        if self.others is not None:
            weight = weight + self.others.to(h.dtype) * self.below.to(h.dtype)
        features, out = own.shape[:2]
        pushed = nn.functional.linear(h.flatten(-2), weight.reshape(features * out, -1)).unflatten(-1, (features, out))
        return pushed + self.bias.to(h.dtype), (own + log_slope.unsqueeze(-2)).logsumexp(-1)
