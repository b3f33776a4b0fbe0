"""Objectives: losses per example that `fit` minimises."""

from __future__ import annotations

import torch
from torch import Tensor

from diffeo.core import Density, Objective
from diffeo.functional import Context


class MaximumLikelihood(Objective):
    """loss(x, context) = −log p(x | context), in nats.

    >>> import torch, diffeo
    >>> diffeo.MaximumLikelihood(diffeo.Normal(2))(torch.zeros(3, 2))
    tensor([1.8379, 1.8379, 1.8379])
    """

    def __init__(self, density: Density):
        super().__init__()
        self.density = density

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        return -self.density(x, context)


@torch.no_grad()
def kl_monte_carlo(p: Density, q: Density, n: int, context: Context = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) = E_p[log p(x) − log q(x)] from n samples of p: the estimate and its standard error.

    Args:
        p, q: densities over the same events; q may be any module `(x, context) -> log-density`.
        n: number of samples, at least 2.
        context: one context for both, without batch dims.
        seed: of the samples.

    Raises:
        ValueError: n below 2.

    >>> import diffeo
    >>> estimate, error = diffeo.kl_monte_carlo(diffeo.Normal(2), diffeo.Normal(2), 100)
    >>> estimate.item(), error.item()
    (0.0, 0.0)
    """
    if n < 2:
        raise ValueError(f"kl_monte_carlo: expected n of at least 2, got {n}")
    device = next((t.device for t in (*p.parameters(), *p.buffers())), torch.device("cpu"))
    generator = torch.Generator(device).manual_seed(seed)
    x, log_p = p.sample_and_log_prob((n,), context, generator=generator)
    ratio = log_p - q(x, context)
    return ratio.mean(), ratio.std() / n**0.5
