"""Gaussian densities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn

from diffeo.core import Density
from diffeo.functional import (
    Context,
    Event,
    LogProb,
    as_event,
    as_fixed_event,
    check_event,
    context_mask,
    masked_event,
    masked_sum,
    positive,
    soft_clip,
    visible,
)
from diffeo.noise import Seeds, standard_normal


class Normal(Density):
    """The standard normal: log p(x) = −½ Σ (xᵢ² + log 2π).

    Args:
        event: event shape; an int stands for a vector, None for a dim of any size, such as the length of a sequence,
            which samples take from the mask of the context.

    >>> import torch, diffeo
    >>> diffeo.Normal(2)(torch.zeros(2))
    tensor(-1.8379)
    """

    event: Event
    origin: Tensor

    def __init__(self, event: int | Sequence[int | None]):
        super().__init__()
        self.event = as_event(event, self)
        self.register_buffer("origin", torch.zeros(()), persistent=False)

    def event_shape(self, context: Context = None) -> Size:
        return masked_event(self.event, context, "Normal")

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Normal")
        return masked_sum(-0.5 * x * x - 0.5 * math.log(2 * math.pi), self.event_ndim, context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        noise = standard_normal(shape + self.event_shape(context), self.origin, generator) * temperature
        mask = context_mask(context)
        return noise if mask is None else torch.where(mask, noise, 0.0)


class DiagonalNormal(Density):
    """A normal with learned mean and scale for each coordinate: log p(x) = Σ log N(xᵢ; mᵢ, e^{2sᵢ}).

    The log-scale is bounded: s = bound · tanh(s₀ / bound). It starts as the standard normal.

    Args:
        event: event shape; an int stands for a vector.
        bound: largest |log-scale|, > 0.

    >>> import torch, diffeo
    >>> diffeo.DiagonalNormal(2)(torch.zeros(2)).item()
    -1.837877...
    """

    def __init__(self, event: int | tuple[int, ...], bound: float = 8.0):
        super().__init__()
        self.bound = positive(bound, "bound", self)
        self.loc = nn.Parameter(torch.zeros(as_fixed_event(event, self)))
        self.log_scale = nn.Parameter(torch.zeros(as_fixed_event(event, self)))
        self.event = self.loc.shape

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "DiagonalNormal")
        x = visible(x, context)
        s = soft_clip(self.log_scale, self.bound)
        z = (x - self.loc) * (-s).exp()
        return masked_sum(-0.5 * z * z - s - 0.5 * math.log(2 * math.pi), self.loc.ndim, context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        scale = soft_clip(self.log_scale, self.bound).exp() * temperature
        x = self.loc + scale * standard_normal(shape + self.loc.shape, self.loc, generator)
        mask = context_mask(context)
        return x if mask is None else torch.where(mask, x, 0.0)
