"""The normal distribution function and its inverse, from logarithms, so that they hold far out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffeo.functional import precise


def _erfcx(x: Tensor) -> Tensor:
    return torch.special.erfcx(precise(x)).to(x.dtype)  # PyTorch has none in half precision


def normal_log_cdf(x: Tensor) -> Tensor:
    """log Φ(x), at any x."""
    # not `torch.special.log_ndtr`, which vmap does not know
    left, right = x.clamp_max(0), x.clamp_min(0)
    on_left = (_erfcx(left * -math.sqrt(0.5)) / 2).log() - 0.5 * left * left
    return torch.where(x < 0, on_left, torch.log1p(-0.5 * torch.erfc(right * math.sqrt(0.5))))


def normal_log_hazard(x: Tensor) -> Tensor:
    """log φ(x) − log Φ(x), at any x."""
    left = x.clamp_max(0)  # where φ/Φ = 1 / (√(π/2) erfcx(−x/√2)), without cancellation
    on_left = -(_erfcx(left * -math.sqrt(0.5)) * math.sqrt(math.pi / 2)).log()
    on_right = -0.5 * x * x - 0.5 * math.log(2 * math.pi) - normal_log_cdf(x)
    return torch.where(x < 0, on_left, on_right)


def normal_quantile(log_cdf: Tensor) -> Tensor:
    """Φ⁻¹ of a probability of at most one half, given by its logarithm, by Newton's method on log Φ."""
    with torch.no_grad():
        x = -(-2 * log_cdf).sqrt()  # left of the root, as Φ(x) ≤ exp(−x²/2); log Φ is concave, so Newton rises to it
        for _ in range(6):
            x = x + (log_cdf - normal_log_cdf(x)) * (-normal_log_hazard(x)).exp()
    for _ in range(2):  # for autograd to see: one step is right to first order, two are to third
        x = x + (log_cdf - normal_log_cdf(x)) * (-normal_log_hazard(x)).exp()
    return x
