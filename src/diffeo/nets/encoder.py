"""Columns of a context as a network likes to read them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffeo.functional import Context
from diffeo.nets.mlp import require_context


class PiecewiseLinear(nn.Module):
    """Piecewise-linear encoding of context columns: how far each value has come through each of its quantile bins.

    c ↦ ((c − mean) / std, clamp((c − q_{t−1}) / (q_t − q_{t−1}), 0, 1) − its mean for t = 1 … bins), with q the
    quantiles of the training rows, moved to between values. Bins without width become steps. Networks learn sharp and
    long-tailed dependences on such columns far faster than on the plain ones.

    Args:
        features: width of the context.
        bins: of each column, at least 1; the encoding has width `features * (bins + 1)`.

    Raises:
        ValueError: fewer than 1 bin.

    "On Embeddings for Numerical Features in Tabular Deep Learning" (Gorishniy et al., 2022),
    https://arxiv.org/abs/2203.05556

    >>> import torch, diffeo
    >>> encoder = diffeo.nets.PiecewiseLinear(2, bins=4)
    >>> encoder.initialize(torch.randn(100, 2))
    >>> encoder(torch.zeros(5, 2)).shape
    torch.Size([5, 10])
    """

    mean: Tensor
    scale: Tensor
    knots: Tensor
    center: Tensor
    initialized: Tensor

    def __init__(self, features: int, bins: int = 32):
        super().__init__()
        if bins < 1:
            raise ValueError(f"PiecewiseLinear: expected at least 1 bin, got {bins}")
        self.features, self.bins = features, bins
        self.width = features * (bins + 1)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("knots", torch.linspace(-2, 2, bins + 1).expand(features, -1).clone())
        self.register_buffer("center", torch.zeros(features, bins))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, context: Context) -> Context:
        c = (require_context(context, self.features, "PiecewiseLinear") - self.mean) / self.scale
        features = torch.cat([c, (self._passed(c) - self.center).flatten(-2)], -1)
        return features if context is None or isinstance(context, Tensor) else {**context, "features": features}

    def _passed(self, c: Tensor) -> Tensor:
        """Share of each bin that lies below c, shape `(*batch, features, bins)`."""
        low, high = self.knots[:, :-1], self.knots[:, 1:]
        width = high - low
        c = c.unsqueeze(-1)
        share = ((c - low) / torch.where(width > 0, width, 1.0)).clamp(0, 1)
        return torch.where(width > 0, share, (c > low).to(c.dtype))

    @torch.no_grad()
    def initialize(self, context: Context) -> None:
        """Learn scale and quantiles; once."""
        if self.initialized:
            return
        rows = require_context(context, self.features, "PiecewiseLinear").reshape(-1, self.features).double()
        spread = rows.std(0, correction=0)
        self.mean.copy_(rows.mean(0))
        self.scale.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))
        scaled = (rows - rows.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
        ranked = scaled.sort(0).values.T.contiguous()
        at = torch.linspace(0, len(rows) - 1, self.bins + 1).round().long()
        knots = ranked[:, at]
        # inner knots lie between values that occur, never on one, where rounding would decide on which side it falls
        following = torch.searchsorted(ranked, knots.contiguous(), right=True)
        previous = torch.searchsorted(ranked, knots.contiguous()) - 1
        other = torch.where(following < len(rows), following, previous).clamp(0, len(rows) - 1)
        knots[:, 1:-1] = ((knots + ranked.gather(1, other)) / 2)[:, 1:-1]
        self.knots.copy_(torch.where(spread[:, None] > 0, knots, self.knots.double()))
        self.center.copy_(self._passed(scaled.to(self.knots.dtype)).mean(0))
        self.initialized.fill_(True)
