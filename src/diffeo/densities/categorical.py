"""Joint distributions of categories."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core import Density
from diffeo.densities.dequantized import Integer
from diffeo.functional import Context, LogProb, check_event, visible
from diffeo.nets import MADE
from diffeo.noise import Seeds, uniform
from diffeo.transforms.masks import of_events


class Categorical(Density):
    """Autoregressive categories: log P(x) = Σᵢ log softmax(aᵢ + Σⱼ Bᵢⱼ[xⱼ] + net(x₁ … xᵢ₋₁, c))[xᵢ], j < i, exact.

    An event is a vector of codes, column i from 0 … levels[i] − 1 (integers, or floats that hold them). `initialize`
    sets a and B to the log-frequencies of the training rows, given the earlier column that tells most about the one at
    hand: it starts as a tree of columns. A code out of range has log-probability −∞.

    Args:
        levels: number of categories of each column, at least 1.
        context: width of the context; 0 for none.
        hidden: widths of the hidden layers of the conditioner.
        dropout: probability of dropping a hidden unit while training.

    Raises:
        ValueError: no column, or a column without a category.

    Cost: one pass for a probability, one pass for each column of a sample.

    "MADE: Masked Autoencoder for Distribution Estimation" (Germain et al., 2015), https://arxiv.org/abs/1502.03509

    >>> import torch, diffeo
    >>> die = diffeo.Categorical([6])
    >>> die(torch.tensor([3])).exp().item()
    0.1666...
    """

    has_rsample = False
    codes: Tensor
    owner: Tensor
    earlier: Tensor
    initialized: Tensor

    def __init__(
        self, levels: Sequence[int], *, context: int = 0, hidden: Sequence[int] = (64, 64), dropout: float = 0.0
    ):
        super().__init__()
        if not levels or min(levels) < 1:
            raise ValueError(f"Categorical: expected at least one category in each column, got levels={tuple(levels)}")
        self.levels = tuple(levels)
        counts = torch.tensor(self.levels)
        self.register_buffer("owner", torch.arange(len(counts)).repeat_interleave(counts), persistent=False)
        self.register_buffer("codes", torch.cat([torch.arange(n) for n in self.levels]), persistent=False)
        # the unit of category c of column i sees the units of all categories of the columns before i
        adjacency = self.owner[:, None] > self.owner[None, :]
        hidden = [max(width, len(levels)) for width in hidden]  # a unit for each set of columns seen
        self.net = MADE(len(self.codes), 1, context=context, hidden=hidden, adjacency=adjacency, dropout=dropout)
        self.logits = nn.Parameter(torch.zeros(len(self.codes)))
        self.pairs = nn.Parameter(torch.zeros(len(self.codes), len(self.codes)))
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("earlier", adjacency.to(self.pairs.dtype), persistent=False)
        self.event = (len(self.levels),)

    @property
    def support(self) -> Constraint:
        return constraints.independent(Integer(), 1)

    def one_hot(self, x: Tensor) -> Tensor:
        """Codes `(*batch, columns)` as zeros and ones `(*batch, Σ levels)`, in the dtype of the parameters."""
        return (x.index_select(-1, self.owner) == self.codes).to(self.logits.dtype)

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x.to(self.logits.dtype), self.event, "Categorical")
        x = visible(x, context)
        ones = self.one_hot(x)
        logits = self._logits(ones, context)
        total = logits.new_zeros(())
        for i, (own, chosen) in enumerate(zip(logits.split(self.levels, -1), ones.split(self.levels, -1), strict=True)):
            log_p = torch.where(chosen.any(-1), (own.log_softmax(-1) * chosen).sum(-1), -math.inf)
            total = total + torch.where(x[..., i].isnan(), math.nan, log_p)
        return of_events(total, context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        x = torch.zeros((*shape, len(self.levels)), dtype=torch.long, device=self.logits.device)
        for i, n in enumerate(self.levels):
            logits = self._logits(self.one_hot(x), context)
            own = logits.split(self.levels, -1)[i].expand(*shape, n).reshape(-1, n)
            if temperature == 0:
                code = own.argmax(-1)
            else:
                p = (own / temperature).softmax(-1)
                u = uniform(Size((len(p), 1)), p, generator)
                code = (p.cumsum(-1) < u).sum(-1).clamp_max(n - 1)
            x[..., i] = code.reshape(shape)
        return visible(x, context)

    def _logits(self, ones: Tensor, context: Context) -> Tensor:
        return self.logits + ones @ (self.pairs * self.earlier).T + self.net(ones, context).squeeze(-1)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set the tree: each column given the earlier one with the largest mutual information (Chow and Liu, 1968)."""
        if self.initialized:
            return
        self.initialized.fill_(True)
        ones = self.one_hot(x).reshape(-1, len(self.codes)).double()
        counts = ones.T @ ones  # how often two categories meet
        starts = [0, *torch.tensor(self.levels).cumsum(0).tolist()]
        for i, n in enumerate(self.levels):
            own = slice(starts[i], starts[i + 1])
            alone = counts[own, own].diagonal() + 0.5 / n  # pseudo-counts: half a row for each column
            self.logits[own] = (alone / alone.sum()).log().to(self.logits)
            best = 0.0
            for j in range(i):
                parent = slice(starts[j], starts[j + 1])
                joint = counts[own, parent] + 0.5 / (n * self.levels[j])
                joint = joint / joint.sum()
                log_ratio = joint.log() - joint.sum(0).log() - joint.sum(1, keepdim=True).log()
                information = float((joint * log_ratio).sum())
                if information > best:
                    best = information
                    self.pairs[own, : starts[i]] = 0.0
                    self.pairs[own, parent] = log_ratio.to(self.pairs)
