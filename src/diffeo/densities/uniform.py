"""The uniform density on a box."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core import Density
from diffeo.functional import Context, LogProb, check_event, masked_sum, visible
from diffeo.noise import Seeds, uniform


class Uniform(Density):
    """Uniform on the box [low, high]: log p(x) = −Σ log(highᵢ − lowᵢ) inside, −∞ outside, NaN for NaN.

    Args:
        low, high: corners, numbers or tensors of the event shape, low < high.

    Raises:
        ValueError: an empty box; sampling at a temperature above 1, which would leave the box.

    >>> import torch, diffeo
    >>> diffeo.Uniform(torch.zeros(2), torch.full((2,), 2.0))(torch.ones(2))
    tensor(-1.3863)
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor | float, high: Tensor | float):
        super().__init__()
        corners = torch.broadcast_tensors(*(torch.as_tensor(c, dtype=_float_type(c)) for c in (low, high)))
        if not (corners[0] < corners[1]).all():
            raise ValueError(f"Uniform: expected low < high, got {corners[0].tolist()} and {corners[1].tolist()}")
        self.register_buffer("low", corners[0].clone())
        self.register_buffer("high", corners[1].clone())
        self.event = self.low.shape

    @property
    def support(self) -> Constraint:
        return constraints.independent(constraints.interval(self.low, self.high), self.low.ndim)

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Uniform")
        log_p = (-(self.high - self.low).log()).expand_as(x)
        log_p = torch.where((x < self.low) | (x > self.high), -math.inf, log_p)
        return masked_sum(torch.where(x.isnan(), x, log_p), self.low.ndim, context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        if temperature > 1:
            raise ValueError(f"Uniform: a temperature above 1 would leave the box, got {temperature}")
        event = shape + self.low.shape
        u = uniform(event, self.low, generator)
        return visible(self.low + (self.high - self.low) * (0.5 + temperature * (u - 0.5)), context)


def _float_type(corner: Tensor | float) -> torch.dtype:
    return corner.dtype if isinstance(corner, Tensor) and corner.is_floating_point() else torch.get_default_dtype()
