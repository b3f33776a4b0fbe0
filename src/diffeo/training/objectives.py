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


class Blurred(Objective):
    """Maximum likelihood of rows with Gaussian noise added, fresh at every step: −log p(x + L ε | c).

    The density then is smooth on the scale of the noise, wherever the rows repeat or lie close together.

    Args:
        density: what is trained.
        factor: L, shape (features, features); the noise has covariance LLᵀ.

    "Noise Regularization for Conditional Density Estimation" (Rothfuss et al., 2019), https://arxiv.org/abs/1907.08982

    >>> import torch, diffeo
    >>> objective = diffeo.training.Blurred(diffeo.maf(2), 0.1 * torch.eye(2))
    >>> objective(torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    factor: Tensor

    def __init__(self, density: Density, factor: Tensor):
        super().__init__()
        self.density = density
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        # held-out rows always meet the same noise, so that evaluations can be compared
        generator = None if self.training else torch.Generator(x.device).manual_seed(1)
        return -self.density(self._blur(x, generator), context)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set data-dependent layers from blurred rows, each once: copies would pass for more rows than there are, and
        a mixture would find a cluster around every one."""
        self.density.initialize(self._blur(x, torch.Generator(x.device).manual_seed(0)), context)

    def _blur(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return x + noise @ self.factor.to(x.dtype).T


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
