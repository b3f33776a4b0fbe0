"""The standard logistic density."""

from __future__ import annotations

import torch
from torch import Size, Tensor
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Density
from diffeo.functional import Context, LogProb, as_fixed_event, check_event, context_mask, masked_sum
from diffeo.noise import Seeds, uniform


class Logistic(Density):
    """Independent standard logistic coordinates: log p(x) = Σ log σ(xᵢ) + log σ(−xᵢ), with tails like e^{−|x|}.

    Args:
        event: event shape; an int stands for a vector.

    "NICE: Non-linear Independent Components Estimation" (Dinh et al., 2014), https://arxiv.org/abs/1410.8516

    >>> import torch, diffeo
    >>> diffeo.Logistic(2)(torch.zeros(2)).exp().item()
    0.0625
    """

    origin: Tensor

    def __init__(self, event: int | tuple[int, ...]):
        super().__init__()
        self.register_buffer("origin", torch.zeros(as_fixed_event(event, self)), persistent=False)
        self.event = self.origin.shape

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Logistic")
        return masked_sum(F.logsigmoid(x) + F.logsigmoid(-x), self.origin.ndim, context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        event = shape + self.origin.shape
        u = uniform(event, self.origin, generator)
        tiny = torch.finfo(u.dtype).eps / 4  # where zero was drawn
        x = temperature * (u.clamp_min(tiny).log() - torch.log1p(-u))
        mask = context_mask(context)
        return x if mask is None else torch.where(mask, x, 0.0)
