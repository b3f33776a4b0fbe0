"""A normal from which a learned network rejects samples (LARS)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Density
from diffeo.densities.normal import Normal
from diffeo.functional import Context, LogProb, check_event, visible
from diffeo.nets import MLP
from diffeo.noise import Seeds, standard_normal, uniform
from diffeo.transforms.masks import of_events

POINTS = 4096  # of the quadrature for the chance of acceptance


class Resampled(Density):
    """p(x) = π(x) (a(x) (1 − r^{T−1}) / Z + r^{T−1}): a standard normal π, some of whose samples a network a rejects.

    Z = E_π[a] and r = 1 − Z. Samples of π are accepted with chance a, and the T-th in any case. Z is a mean over 4,096
    fixed quasi-random points (Sobol), so that densities are deterministic; their error is that of this mean. It starts
    as π.

    Samples carry no gradient. Temperature scales the proposals.

    Args:
        features: D, at most 21,201.
        hidden: widths of the hidden layers of the network.
        attempts: T, at least 2.

    Raises:
        ValueError: fewer than two attempts.

    Cost: one evaluation of the network for each row, and 4,096 for each call; a sample some 1 / Z proposals.

    "Resampled Priors for Variational Autoencoders" (Bauer and Mnih, 2019), https://arxiv.org/abs/1810.11428;
    "Resampling Base Distributions of Normalizing Flows" (Stimper et al., 2022), https://arxiv.org/abs/2110.15828

    >>> import torch, diffeo
    >>> diffeo.Resampled(2).sample(5).shape
    torch.Size([5, 2])
    """

    has_rsample = False
    points: Tensor

    def __init__(self, features: int, hidden: Sequence[int] = (64, 64), attempts: int = 100):
        super().__init__()
        if attempts < 2:
            raise ValueError(f"Resampled: expected at least 2 attempts, got {attempts}")
        self.attempts = attempts
        self.proposal = Normal(features)
        self.net = MLP(features, 1, hidden=hidden)
        uniform = torch.quasirandom.SobolEngine(features, scramble=True, seed=0).draw(POINTS)
        points = torch.special.ndtri(uniform.double().clamp(1e-6, 1 - 1e-6)).to(torch.get_default_dtype())
        self.register_buffer("points", points, persistent=False)
        self.event = self.proposal.event_shape()

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Resampled")
        x = visible(x, context)
        raw = self.net(self.points.to(x.dtype)).squeeze(-1)
        log_chance = F.logsigmoid(raw).logsumexp(0) - math.log(POINTS)
        # all attempts but the last rejected
        log_last = (self.attempts - 1) * (F.logsigmoid(-raw).logsumexp(0) - math.log(POINTS))
        log_accept = F.logsigmoid(self.net(x).squeeze(-1))
        accepted = log_accept - log_chance + torch.log(-torch.expm1(log_last))
        proposed = self.proposal(x)
        found = proposed + torch.logaddexp(accepted, log_last.expand_as(accepted))
        return of_events(torch.where(proposed.isneginf(), proposed, found), context)  # where the net overflows, too

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        event = self.event_shape()
        x = temperature * standard_normal(shape + event, self.points, generator)
        done = torch.zeros(shape, dtype=torch.bool, device=x.device)
        for _ in range(self.attempts - 1):
            chance = torch.sigmoid(self.net(x).squeeze(-1))
            done = done | (uniform(shape, x, generator) < chance)
            if bool(done.all()) or temperature == 0:
                break
            again = temperature * standard_normal(shape + event, self.points, generator)
            x = torch.where(done.unsqueeze(-1), x, again)
        return visible(x, context)
