"""Residual layers, invertible because their network is a contraction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    as_fixed_event,
    check_event,
    full_precision,
    keep_rows,
    precise,
)
from diffeo.nets import LipschitzMLP
from diffeo.solvers import solve_residual

EXACT = 16  # features up to which training computes determinants, too
SURE_TERMS = 8  # of the power series, computed always
CONTINUE = 0.5  # chance of each further term


class Residual(Transform):
    """z = x + g(x), with a network g of Lipschitz constant below one.

    log|det ∂z/∂x| = log det(I + J), J the Jacobian of g. Up to 16 features and in `eval()` it is the determinant
    itself; beyond that, training estimates the series Σₖ (−1)^{k+1} tr(Jᵏ) / k without bias, with a random vector for
    the trace (Hutchinson) and a random number of terms, weighted by the inverse of their chance (Russian roulette). Its
    gradient is estimated by a series of its own, whose memory does not grow with the number of terms. It starts as the
    identity.

    Args:
        features: D.
        context: width of the context that g depends on; 0 for none.
        hidden: widths of the hidden layers of g.
        lipschitz: constant of g, in (0, 1): it holds by a bound on every layer, in training too.

    Raises:
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: D + 1 passes of g for each row; an estimate takes some 10 passes. The inverse is a fixed-point iteration:
    log(precision) / log(lipschitz) passes in the worst case, mostly far fewer.

    "Invertible Residual Networks" (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995; "Residual Flows for
    Invertible Generative Modeling" (Chen et al., 2019), https://arxiv.org/abs/1906.02735

    >>> import torch, diffeo
    >>> z, logdet = diffeo.Residual(3)(torch.ones(5, 3))
    >>> z.shape, logdet.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    exact_inverse = False

    def __init__(self, features: int, *, context: int = 0, hidden: Sequence[int] = (128, 128), lipschitz: float = 0.97):
        super().__init__()
        self.event = as_fixed_event(features, self)
        self.net = LipschitzMLP(features, context=context, hidden=hidden, lipschitz=lipschitz)
        self.exact_logdet = self.traceable = features <= EXACT

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Residual")
        with full_precision(x):
            g, push = self.net.linearize(x, context)
            if self.training and not self.exact_logdet:
                logdet = _estimated_logdet(push, g)
            else:
                logdet = _logdet(self._jacobian(push, g))
            return keep_rows(x, x + g, logdet, context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Residual")
        with full_precision(z):
            with torch.no_grad():
                start = z.expand_as(self.net(z, context))  # the context may bring more rows
                x = solve_residual(lambda x: self.net(x, context), start, "Residual")
            for _ in range(2 if torch.is_grad_enabled() else 0):
                # Newton steps that autograd sees, dx = (I + J)⁻¹ (dz − ∂g/∂θ dθ): two are right to third order
                g, push = self.net.linearize(x, context)
                x = x - torch.linalg.solve(self._jacobian(push, g), precise(x + g - z).unsqueeze(-1)).squeeze(-1).to(
                    x.dtype
                )
            g, push = self.net.linearize(x, context)
            return keep_rows(z, x, -_logdet(self._jacobian(push, g)), context)

    @staticmethod
    def _jacobian(push: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
        """I + J, of shape (*batch, D, D)."""
        eye = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
        return precise(eye + push(eye.expand(*g.shape[:-1], -1, -1)))


def _logdet(matrix: Tensor) -> Tensor:
    """log |det|; by its factors, since second derivatives of PyTorch's `slogdet` are wrong under vmap."""
    return torch.linalg.lu_factor(matrix)[0].diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def _estimated_logdet(push: Callable[[Tensor], Tensor], g: Tensor) -> Tensor:
    """An unbiased estimate of log det(I + J), and of its gradient tr((I + J)⁻¹ ∂J) = Σₖ (−1)ᵏ tr(Jᵏ ∂J)."""
    noise = torch.randn_like(g).unsqueeze(-1)
    terms = SURE_TERMS + int(torch.empty(()).geometric_(1 - CONTINUE)) - 1
    with torch.no_grad():
        pushed, total, series = noise, torch.zeros_like(g[..., 0]), noise.clone()
        for k in range(1, terms + 1):
            pushed = push(pushed)
            chance = CONTINUE ** max(0, k - SURE_TERMS)  # of reaching this term
            sign = 1.0 if k % 2 else -1.0
            total = total + sign / (k * chance) * (noise * pushed).sum((-2, -1))
            series = series - sign / chance * pushed
    surrogate = (noise * push(series)).sum((-2, -1))  # with the right gradient
    return total + (surrogate - surrogate.detach())
