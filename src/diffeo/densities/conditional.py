"""Gaussians whose mean and scale follow from the context: one for each class, where the context is one-hot."""

from __future__ import annotations

import math

from torch import Size, Tensor

from diffeo.core import Density
from diffeo.functional import (
    Context,
    LogProb,
    check_event,
    masked_sum,
    positive,
    soft_clip,
    visible,
)
from diffeo.nets import MLP
from diffeo.noise import Seeds, standard_normal


class ConditionalNormal(Density):
    """log p(x | c) = Σ log N(xᵢ; mᵢ(c), e^{2sᵢ(c)}), m and s linear in the context c.

    With one-hot classes as the context each class has a mean and scales of its own: the class-conditional base. It
    starts as the standard normal, for every context.

    Args:
        features: D.
        context: width of the context; the number of classes, where it is one-hot.
        bound: largest |log-scale|, > 0.

    Raises:
        ValueError: a context that is missing or of another width.

    Cost: O(D · context) for each row.

    >>> import torch, diffeo
    >>> classes = torch.nn.functional.one_hot(torch.tensor([0, 2]), 3).float()
    >>> diffeo.ConditionalNormal(2, context=3)(torch.zeros(2, 2), classes).shape
    torch.Size([2])
    """

    def __init__(self, features: int, context: int, bound: float = 8.0):
        super().__init__()
        self.features, self.bound = features, positive(bound, "bound", self)
        self.net = MLP(0, 2 * features, context=context, hidden=())
        self.event = (features,)

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "ConditionalNormal")
        mean, log_scale = self._unpack(x, context)
        z = (visible(x, context) - mean) * (-log_scale).exp()
        return masked_sum(-0.5 * z * z - log_scale - 0.5 * math.log(2 * math.pi), 1, context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        like = next(self.parameters())
        noise = standard_normal(shape + self.event_shape(), like, generator)
        mean, log_scale = self._unpack(noise, context)
        return visible(mean + temperature * log_scale.exp() * noise, context)

    def _unpack(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        mean, raw = self.net(x, context).to(x.dtype).chunk(2, -1)
        return mean, soft_clip(raw, self.bound)
