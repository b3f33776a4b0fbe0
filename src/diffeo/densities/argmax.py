"""Categories as the places of the largest of real numbers: argmax flows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Density, Flow
from diffeo.densities.dequantized import Integer, joined_context
from diffeo.densities.logistic import Logistic
from diffeo.functional import Context, check_event, context_batch, joined, visible, without_mask
from diffeo.nets import MLP
from diffeo.noise import Seeds
from diffeo.transforms import Affine, Coupling
from diffeo.transforms.masks import of_events


class Argmax(Density):
    """log P(x) ≥ E_q[log p(v) − log q(v | x)], with xᵢ the place of the largest of the numbers v of column i.

    q draws u from `posterior` given x as zeros and ones, keeps the chosen number T = u_x, and brings the others below
    it: v_k = T − softplus(T − u_k). The value is a lower bound, tighter with more samples (the importance-weighted
    bound in expectation), and random unless a seeded generator is given. A code out of range has log-probability −∞.

    Args:
        density: p, over vectors of Σ levels real numbers.
        levels: number of categories of each column, at least 1; an event is a vector of codes.
        posterior: q before its numbers are put in order, over as many numbers, with a context of Σ levels zeros and
            ones and then the context; its samples must be reparameterised. Default: logistic, with location and scale
            linear in that context (a normal's tails are too light for the numbers close to the chosen one).
        context: width of the context.

    Raises:
        ValueError: no column; a density or posterior over other events, or without reparameterised samples.

    Cost: `samples` passes of density and posterior.

    "Argmax Flows and Multinomial Diffusion: Learning Categorical Distributions" (Hoogeboom et al., 2021),
    https://arxiv.org/abs/2102.05379

    >>> import torch, diffeo
    >>> die = diffeo.Argmax(diffeo.Normal(6), [6])
    >>> die(torch.tensor([[0], [5]]), samples=4).shape
    torch.Size([2])
    """

    exact = False
    has_rsample = False
    codes: Tensor
    owner: Tensor

    def __init__(self, density: Density, levels: Sequence[int], posterior: Density | None = None, *, context: int = 0):
        super().__init__()
        if not levels or min(levels) < 1:
            raise ValueError(f"Argmax: expected at least one category in each column, got levels={tuple(levels)}")
        self.levels, total = tuple(levels), sum(levels)
        self.density = density
        self.posterior = _logistic(total, total + context) if posterior is None else posterior
        for part in (self.density, self.posterior):
            if part.event_shape() != (total,):
                raise ValueError(
                    f"Argmax: expected densities over {total} numbers, got {type(part).__name__} over "
                    f"{tuple(part.event_shape())}"
                )
        self.posterior._require_rsample()
        counts = torch.tensor(self.levels)
        self.register_buffer("owner", torch.arange(len(counts)).repeat_interleave(counts), persistent=False)
        self.register_buffer("codes", torch.cat([torch.arange(n) for n in self.levels]), persistent=False)
        self.event = (len(self.levels),)
        self._context_dims = {**density.context_dims(), "mask": 1}

    def context_dims(self) -> dict[str, int]:
        return self._context_dims

    @property
    def support(self) -> Constraint:
        return constraints.independent(Integer(), 1)

    def forward(
        self, x: Tensor, context: Context = None, samples: int = 1, generator: Generator | None = None
    ) -> Tensor:
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        check_event(x, self.event, "Argmax")
        x = visible(x, context)
        batch = joined(x.shape[:-1], context_batch(context, self._context_dims))
        chosen = x.expand(*batch, -1).index_select(-1, self.owner) == self.codes
        given = without_mask(context)
        v, log_q = self._place(chosen, given, samples, generator)
        bound = torch.logsumexp(self.density(v, given) - log_q, 0) - math.log(samples)
        inside = ((x >= 0) & (x < x.new_tensor(self.levels)) & (x == x.floor())).all(-1)
        found = torch.where(x.isnan().any(-1), math.nan, torch.where(inside, bound, -math.inf))
        return of_events(found, context)

    def log_prob(
        self, x: Tensor, context: Context = None, samples: int = 1, generator: Generator | None = None
    ) -> Tensor:
        """A lower bound on the log-probability in nats; more samples tighten it."""
        return self(x, context, samples, generator)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        v = self.density.draw(shape, without_mask(context), temperature, generator)
        return visible(torch.stack([part.argmax(-1) for part in v.split(self.levels, -1)], -1), context)

    def initialize(self, x: Tensor, context: Context = None) -> None:
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        chosen = x.index_select(-1, self.owner) == self.codes
        generator = torch.Generator(x.device).manual_seed(0)
        with torch.no_grad():
            v, _ = self._place(chosen, context, 1, generator)
            self.density.initialize(v[0], context)

    def _place(
        self, chosen: Tensor, context: Context, samples: int, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Numbers whose largest are where they were chosen, shape (samples, *batch, Σ levels), and log q of them."""
        ones = joined_context(chosen.to(torch.get_default_dtype()), context)
        u, log_q = self.posterior.sample_and_log_prob((samples, *chosen.shape[:-1]), ones, generator=generator)
        kept = [
            torch.where(own, part, 0.0).sum(-1, keepdim=True).expand_as(part)
            for own, part in zip(chosen.split(self.levels, -1), u.split(self.levels, -1), strict=True)
        ]
        gap = torch.cat(kept, -1) - u  # of each number to the chosen one of its column
        v = torch.where(chosen, u, u + gap - F.softplus(gap))
        return v, log_q - torch.where(chosen, 0.0, F.logsigmoid(gap)).sum(-1)


def _logistic(features: int, context: int) -> Flow:
    """Independent logistic numbers, whose locations and log-scales are linear in the context."""
    net = MLP(0, features, n_params=2, context=context, hidden=())
    return Flow(Coupling(torch.zeros(features, dtype=torch.bool), net, Affine()), Logistic(features))
