"""A heavy-tailed base."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Density
from diffeo.functional import Context, LogProb, as_fixed_event, check_event, context_mask, masked_sum, visible
from diffeo.kernels.private import standard_gamma
from diffeo.noise import Seeds, only, standard_normal


class StudentT(Density):
    """Independent Student-t coordinates with learned degrees of freedom: log p(x) = Σ log t(xᵢ; νᵢ).

    ν = 1 + softplus(a) stays above 1. Samples are x = n / √(g / ν), n normal and g chi-squared; they carry no gradient
    with respect to ν through g, so `has_rsample` is False.

    Args:
        event: event shape; an int stands for a vector.
        df: degrees of freedom at the start, > 1.

    "Tails of Lipschitz Triangular Flows" (Jaini et al., 2020), https://arxiv.org/abs/1907.04481

    >>> import torch, diffeo
    >>> diffeo.StudentT(1, df=5.0)(torch.zeros(1)).item()
    -0.968...
    """

    has_rsample = False

    def __init__(self, event: int | tuple[int, ...], df: float = 5.0):
        super().__init__()
        if not df > 1:
            raise ValueError(f"StudentT: expected df > 1, got {df}")
        self.raw_df = nn.Parameter(torch.full(as_fixed_event(event, self), (df - 1) + math.log(-math.expm1(1 - df))))
        self.event = self.raw_df.shape

    @property
    def df(self) -> Tensor:
        """Degrees of freedom, by coordinate."""
        return 1 + F.softplus(self.raw_df)

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "StudentT")
        x = visible(x, context)
        df = self.df
        norm = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (df * math.pi).log()
        # log1p(x²/ν) as a logaddexp, so that x² does not overflow
        growth = 2 * torch.logaddexp(torch.zeros_like(x), 2 * x.abs().clamp_min(1e-30).log() - df.log())
        return masked_sum(norm - (df + 1) / 4 * growth, self.raw_df.ndim, context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        df = self.df.detach().expand(shape + self.raw_df.shape)
        noise = standard_normal(df.shape, df, generator)
        chi2 = 2 * standard_gamma(df / 2, only(generator))
        x = temperature * noise * (df / chi2).sqrt()
        mask = context_mask(context)
        return x if mask is None else torch.where(mask, x, 0.0)
