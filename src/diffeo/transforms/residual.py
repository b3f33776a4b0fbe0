"""Residual layers, invertible because their network is a contraction."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import Context, check_event, full_precision, precise
from diffeo.nets.lipschitz import Contraction
from diffeo.solvers import solve_residual
from diffeo.transforms.masks import keep_rows

EXACT_TRAINING, EXACT = 16, 256  # numbers of an event up to which determinants are computed, in training and in eval()
SURE_TERMS = 8  # of the power series, computed always
CONTINUE = 0.5  # chance of each further term


class Residual(Transform):
    """z = x + g(x), with a network g of Lipschitz constant below one.

    log|det ∂z/∂x| = log det(I + J), J the Jacobian of g. For events of up to 16 numbers, and of up to `exact` in
    `eval()`, it is the determinant itself; beyond that, an estimate without bias of Σₖ (−1)^{k+1} tr(Jᵏ) / k, with a
    random vector for the trace (Hutchinson) and a random number of terms, weighted by the inverse of their
    chance (Russian roulette): two calls then differ. Its gradient is estimated by a series of its own, whose memory
    does not grow with the number of terms. It starts as the identity.

    Args:
        net: g, a `nets.LipschitzMLP` of vectors or `nets.LipschitzConvNet` of images: its Lipschitz constant is below
            one by a bound on every layer, in training too.
        exact: numbers of an event up to which log-dets are exact in `eval()`, at least 0.

    Raises:
        ValueError: a negative `exact`.
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: for D numbers, D + 1 passes of g for each row and O(D³); an estimate takes some 10 passes. The inverse is a
    fixed-point iteration: log(precision) / log(lipschitz) passes in the worst case, mostly far fewer; its gradient
    takes D passes and O(D³).

    "Invertible Residual Networks" (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995; "Residual Flows for
    Invertible Generative Modeling" (Chen et al., 2019), https://arxiv.org/abs/1906.02735

    >>> import torch, diffeo
    >>> z, logdet = diffeo.Residual(diffeo.nets.LipschitzMLP(3))(torch.ones(5, 3))
    >>> z.shape, logdet.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    exact_inverse = False

    def __init__(self, net: Contraction, *, exact: int = EXACT):
        super().__init__()
        if exact < 0:
            raise ValueError(f"Residual: expected exact >= 0, got {exact}")
        self.event, self.net, self.exact = net.event, net, exact
        self.event_ndim = self.event_ndim_out = len(net.event)
        self.domain = self.codomain = constraints.independent(constraints.real, self.event_ndim)
        features = None if None in net.event else math.prod(net.event)  # pyright: ignore
        self.exact_logdet = self.traceable = features is not None and features <= EXACT_TRAINING

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Residual")
        with full_precision(x):
            g, push = self.net.linearize(x, context)
            return keep_rows(x, x + g, self._logdet(g, push), context, self.event_ndim)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, self.event, "Residual")
        with full_precision(z):
            with torch.no_grad():
                weights = self.net.weights(z.dtype)
                start = z.expand_as(self.net(z, context, weights))  # the context may bring more rows
                x = solve_residual(lambda x: self.net(x, context, weights), start, "Residual")
            for _ in range(2 if torch.is_grad_enabled() else 0):
                # Newton steps that autograd sees, dx = (I + J)⁻¹ (dz − ∂g/∂θ dθ): two are right to third order
                g, push = self.net.linearize(x, context)
                missed = precise(x + g - z).flatten(-self.event_ndim).unsqueeze(-1)
                x = x - torch.linalg.solve(self._jacobian(g, push), missed).to(x.dtype).reshape(x.shape)
            g, push = self.net.linearize(x, context)
            return keep_rows(z, x, -self._logdet(g, push), context, self.event_ndim)

    def _logdet(self, g: Tensor, push: Callable[[Tensor], Tensor]) -> Tensor:
        """log det(I + J), exact or estimated."""
        features = g.shape[g.ndim - self.event_ndim :].numel()
        if features <= (EXACT_TRAINING if self.training else max(self.exact, EXACT_TRAINING)):
            return _log_determinant(self._jacobian(g, push))
        return _estimated_logdet(g, push, self.event_ndim)

    def _jacobian(self, g: Tensor, push: Callable[[Tensor], Tensor]) -> Tensor:
        """I + J, of shape (*batch, D, D)."""
        batch, event = g.shape[: g.ndim - self.event_ndim], g.shape[g.ndim - self.event_ndim :]
        eye = torch.eye(event.numel(), dtype=g.dtype, device=g.device)
        tangents = eye.reshape(-1, *(1 for _ in batch), *event).expand(-1, *g.shape)
        return precise(eye + push(tangents).flatten(-self.event_ndim).movedim(0, -1))


def _log_determinant(matrix: Tensor) -> Tensor:
    """log |det|; by its factors, since second derivatives of PyTorch's `slogdet` are wrong under vmap."""
    return torch.linalg.lu_factor(matrix)[0].diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def _estimated_logdet(g: Tensor, push: Callable[[Tensor], Tensor], ndim: int) -> Tensor:
    """An unbiased estimate of log det(I + J), and of its gradient tr((I + J)⁻¹ ∂J) = Σₖ (−1)ᵏ tr(Jᵏ ∂J)."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return precise(a * b).flatten(-ndim).sum(-1).squeeze(0)

    noise = torch.randn_like(g).unsqueeze(0)
    terms = SURE_TERMS + int(torch.empty(()).geometric_(1 - CONTINUE)) - 1
    with torch.no_grad():
        pushed, series = noise, noise.clone()
        total = torch.zeros_like(product(noise, noise))
        for k in range(1, terms + 1):
            pushed = push(pushed)
            chance = CONTINUE ** max(0, k - SURE_TERMS)  # of reaching this term
            sign = 1.0 if k % 2 else -1.0
            total = total + sign / (k * chance) * product(noise, pushed)
            series = series - sign / chance * pushed
    surrogate = product(noise, push(series))  # with the right gradient
    return total + (surrogate - surrogate.detach())
