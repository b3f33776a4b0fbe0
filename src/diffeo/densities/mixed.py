"""Rows of categories and numbers."""

from __future__ import annotations

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core import Density
from diffeo.densities.categorical import Categorical
from diffeo.functional import Context, LogProb, check_event, context_features, joined, visible, without_mask
from diffeo.noise import Seeds
from diffeo.transforms.masks import of_events


class Mixed(Density):
    """Categories times numbers given the categories: log p(k, y | c) = log P(k | c) + log p(y | one-hot(k), c), exact.

    An event is a vector: the codes of the categories first, then the numbers. The density of the numbers reads the
    one-hot categories, followed by the context, as its own context.

    Args:
        categories: of the first columns.
        numbers: a density of vectors, conditional on `Σ levels + context` features.

    Cost: one pass of each; samples draw the categories column by column.

    >>> import torch, diffeo
    >>> joint = diffeo.Mixed(diffeo.Categorical([2, 3]), diffeo.maf(2, context=5))
    >>> joint(torch.tensor([1.0, 2.0, 0.3, -0.4])).shape
    torch.Size([])
    """

    def __init__(self, categories: Categorical, numbers: Density):
        super().__init__()
        self.categories, self.numbers = categories, numbers
        self.exact, self.has_rsample = numbers.exact, False
        self._split = len(categories.levels)
        self.event = (self._split + self.numbers.event_shape()[0],)

    @property
    def support(self) -> Constraint:
        return constraints.cat(
            [self.categories.support.base_constraint, constraints.real],  # type: ignore[attr-defined]
            -1,
            [self._split, self.event_shape()[0] - self._split],
        )

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Mixed")
        x = visible(x, context)
        codes, y = x[..., : self._split], x[..., self._split :]
        found = self.categories(codes, without_mask(context)) + self.numbers(y, self.condition(codes, context))
        return of_events(found, context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        codes = self.categories.draw(shape, without_mask(context), temperature, generator)
        y = self.numbers.draw(shape, self.condition(codes, context), temperature, generator)
        return visible(torch.cat([codes.to(y.dtype), y], -1), context)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        codes, y = x[..., : self._split], x[..., self._split :]
        self.categories.initialize(codes, context)
        self.numbers.initialize(y, self.condition(codes, context))

    def condition(self, codes: Tensor, context: Context) -> Tensor:
        """What the numbers depend on: one-hot categories, and the context behind them."""
        ones = self.categories.one_hot(codes)
        features = context_features(context)
        if features is None:
            return ones
        batch = joined(ones.shape[:-1], features.shape[:-1])
        return torch.cat([ones.expand(*batch, -1), features.to(ones.dtype).expand(*batch, -1)], -1)
