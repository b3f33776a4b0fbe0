"""The encoder of the tabular recipes: context columns on a common scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffeo.functional import Context
from diffeo.nets.mlp import require_context


class ContextScaler(nn.Module):
    """Standardises context columns by the mean and spread of the training rows; constant columns become zero.

    Args:
        features: width of the context.
    """

    mean: Tensor
    scale: Tensor
    initialized: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, context: Context) -> Context:
        features = (require_context(context, self.features, "ContextScaler") - self.mean) / self.scale
        return features if context is None or isinstance(context, Tensor) else {**context, "features": features}

    @torch.no_grad()
    def initialize(self, context: Context) -> None:
        """Learn mean and spread; once."""
        if self.initialized:
            return
        rows = require_context(context, self.features, "ContextScaler").reshape(-1, self.features)
        spread = rows.double().std(0, correction=0)
        self.mean.copy_(rows.double().mean(0))
        self.scale.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))
        self.initialized.fill_(True)
