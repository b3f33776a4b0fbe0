"""Importance weights of a flow's samples against a target known up to a constant, and whether to trust them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffeo.core import Density

WIDE, WIDE_FREEDOM = 2.0, 3  # times the flow's spread, and degrees of freedom, where what it misses is looked for


@dataclass(frozen=True)
class Importance:
    """Samples of a flow, weighted so that they stand for the target.

    Attributes:
        x: samples, shape (n, *event).
        log_weights: log p̃(x) − log q(x), shape (n,), in nats.
        log_normalizer: estimate of log Z = log ∫ p̃, from the mean weight.
        effective_sample_size: (Σ w)² / Σ w², between 1 and n.
        pareto_k: shape of a generalised Pareto distribution fitted to the largest weights: below 0.5 the weights have
            finite variance, above 0.7 means over them are not to be trusted.
        missed: share of the target's mass where the flow's density is less than a hundredth of the target's, which the
            flow's own samples never show; None for other events than vectors, for fewer than two samples for each
            feature, and where the target is not a density. Looked for by as many samples of a wide
            Student t around the flow's, which in more than about ten dimensions seldom meet it: a low share there
            proves nothing.
    """

    x: Tensor
    log_weights: Tensor
    log_normalizer: float
    effective_sample_size: float
    pareto_k: float
    missed: float | None = None

    def __str__(self) -> str:
        n = len(self.log_weights)
        missed = "" if self.missed is None else f", misses {self.missed:.1%}"
        effective = f"{self.effective_sample_size / n:.1%} effective"
        return f"log Z {self.log_normalizer:.3f}, {effective}, k {self.pareto_k:.2f}{missed}"


@torch.no_grad()
def importance(flow: Density, target: Callable[[Tensor], Tensor], samples: int = 4096, seed: int = 0) -> Importance:
    """Weigh samples of a flow against log p̃, and say how far to trust the result.

    Args:
        flow: q, where the samples come from.
        target: x ↦ log p̃(x), one number for each row.
        samples: n, at least 100.
        seed: of the samples.

    Raises:
        ValueError: fewer than 100 samples.

    Cost: a pass of sampling, and for vectors one of the flow's density and two of the target; else one.

    "Pareto Smoothed Importance Sampling" (Vehtari et al., 2015), https://arxiv.org/abs/1507.02646

    >>> import diffeo
    >>> diffeo.importance(diffeo.Normal(2), diffeo.Normal(2), 1000).effective_sample_size
    999.99...
    """
    if samples < 100:
        raise ValueError(f"importance: expected at least 100 samples, got {samples}")
    device = next((t.device for t in (*flow.parameters(), *flow.buffers())), torch.device("cpu"))
    generator = torch.Generator(device).manual_seed(seed)
    x, log_q = flow.sample_and_log_prob((samples,), generator=generator)
    log_weights = (target(x) - log_q).double()
    total, squares = log_weights.logsumexp(0), (2 * log_weights).logsumexp(0)
    return Importance(
        x,
        log_weights,
        log_normalizer=float(total) - math.log(samples),
        effective_sample_size=float((2 * total - squares).exp()),
        pareto_k=_pareto_k(log_weights.cpu().numpy()),
        missed=_missed(flow, target, x, log_q, log_weights, generator),
    )


def _missed(
    flow: Density,
    target: Callable[[Tensor], Tensor],
    x: Tensor,
    log_q: Tensor,
    log_weights: Tensor,
    generator: torch.Generator,
) -> float | None:
    """Share of the target's mass that the flow leaves out, by samples of the flow and of a wide Student t together.

    The weights are against the mixture of both, so that they are bounded wherever either of them is.
    """
    n, *event = x.shape
    if len(event) != 1 or n < 2 * event[0] or not x.is_floating_point() or not bool(x.isfinite().all()):
        return None
    covariance = x.double().T.cov().reshape(*event, *event)
    scale, failed = torch.linalg.cholesky_ex(covariance + 1e-6 * covariance.diagonal().diag())
    if int(failed):
        return None
    wide = torch.distributions.StudentT(WIDE_FREEDOM, validate_args=False)
    center, factor = x.double().mean(0), WIDE * scale

    def log_wide(rows: Tensor) -> Tensor:
        z = torch.linalg.solve_triangular(factor, (rows.double() - center).T, upper=False)
        return wide.log_prob(z).sum(0) - factor.diagonal().log().sum()

    shape = (n, *event)
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device=x.device)
    chi = torch.randn((WIDE_FREEDOM, *shape), generator=generator, dtype=torch.float64, device=x.device)
    y = (normal / chi.square().mean(0).sqrt() @ factor.T + center).to(x)
    inside = flow.support.check(y)  # a target need not answer elsewhere
    y = torch.where(inside[:, None], y, x)
    both = torch.stack([x, y])
    log_flow = torch.stack([log_q, flow(y)]).double().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    log_p = torch.stack([log_weights + log_q, target(y)]).double()
    mixed = torch.logaddexp(log_flow, torch.stack([log_wide(rows) for rows in both])) - math.log(2)
    weights = (log_p - mixed).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    weights[1, ~inside] = -torch.inf
    log_z = weights.flatten().logsumexp(0) - math.log(2 * n)
    odd = log_p.isnan() | log_p.isposinf()
    odd[1] &= inside
    if bool(odd.any()) or not bool(log_z.isfinite()):
        return None
    out = log_flow < log_p - log_z - math.log(100)
    return float(torch.where(out, weights, -torch.inf).flatten().logsumexp(0).sub(log_z).exp() / (2 * n))


def _pareto_k(log_weights: np.ndarray) -> float:
    """Shape of the tail of the weights; −∞ where the largest of them are all equal, ∞ where it cannot be told.

    The tail is the largest 3 √n weights (at most a fifth of all). Its shape is the profile posterior mean of Zhang and
    Stephens, "A New and Efficient Estimation Method for the Generalized Pareto Distribution" (2009),
    https://doi.org/10.1198/tech.2009.08017, drawn towards ½ as if ten more values said so.
    """
    n = len(log_weights)
    if np.isnan(log_weights).any() or np.isposinf(log_weights).any():
        return math.inf
    size = int(min(0.2 * n, 3 * math.sqrt(n)))
    ordered = np.sort(log_weights)
    tail, cutoff = ordered[-size:], ordered[-size - 1]
    if np.isneginf(cutoff):  # most samples lie where the target is zero
        return math.inf
    if tail[-1] - cutoff < 1e-9:
        return -math.inf
    excess = np.expm1(np.minimum(tail - cutoff, 600.0))  # in units of the weight at the cutoff
    excess = excess[excess > 0]
    if len(excess) < 5:
        return math.inf
    m = 30 + int(math.sqrt(len(excess)))
    quartile = excess[int(len(excess) / 4 + 0.5) - 1]
    b = 1 / excess[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile)
    k = np.log1p(-b[:, None] * excess).mean(1)
    likelihood = len(excess) * (np.log(-b / k) - k - 1)
    weight = np.exp(likelihood - likelihood.max())
    best = float((weight * b).sum() / weight.sum())
    shape = float(np.log1p(-best * excess).mean())
    return (len(excess) * shape + 10 * 0.5) / (len(excess) + 10)
