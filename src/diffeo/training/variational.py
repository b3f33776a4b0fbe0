"""Objectives for the other direction: a flow q made close to a density p known up to a constant.

`target` gives log p̃(x) = log p(x) + log Z for rows x. Instead of rows, `fit` takes the number of samples of a step:

    diffeo.fit(diffeo.ReverseKL(flow, target), 256, steps=5000)

Losses are in nats and include −log Z, so their minimum is −log Z where the flow can reach p.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from diffeo.core import Density, Objective
from diffeo.functional import is_real
from diffeo.training.importance_weights import Importance, importance

Target = Callable[[Tensor], Tensor]
LOCATING_ROUNDS, LOCATING_DRAWS = 12, 4096
TAIL = 5  # degrees of freedom of the proposals


class Variational(Objective):
    """What the objectives of this file share: a flow, a target that is not trained, and no rows to start from."""

    def __init__(self, flow: Density, target: Target):
        super().__init__()
        self.flow = flow
        # a target with weights of its own keeps them
        self.target = copy.deepcopy(target).requires_grad_(False).eval() if isinstance(target, nn.Module) else target

    @torch.no_grad()
    def initialize(self, rows: Tensor) -> None:
        """Set data-dependent layers from rough draws of the target, which `located` finds: there are no rows.

        Otherwise a spline would end where its unit scale ends, and what the target has beyond stay out of its reach.
        Flows of other events than vectors of the whole space, and targets that cannot be located, leave these layers
        the identity.
        """
        flags = [b for name, b in self.flow.named_buffers() if name.rpartition(".")[2] == "initialized"]
        if flags and not all(flags) and self.flow.event_ndim == 1 and is_real(self.flow.support):
            drawn = located(self.target, self.flow.event_shape()[0], rows)
            if drawn is not None:
                self.flow.initialize(drawn)
        for flag in flags:
            flag.fill_(True)

    def train(self, mode: bool = True) -> Variational:
        """As for any module, but what is not trained stays in evaluation."""
        super().train(mode)
        for name, part in self.named_children():
            if name != "flow":
                part.eval()
        return self

    def importance(self, samples: int = 4096, seed: int = 0) -> Importance:
        """How well samples of the flow stand for the target; `fit` leaves this in its `FitResult`."""
        return importance(self.flow, self.target, samples, seed)

    def _generator(self, rows: Tensor) -> Generator | None:
        """Held-out losses always meet the same noise, so that evaluations can be compared."""
        return None if self.training else torch.Generator(rows.device).manual_seed(1)

    def _log_target(self, x: Tensor) -> Tensor:
        log_p = self.target(x)
        if log_p.shape != x.shape[: x.ndim - len(self.flow.event_shape())]:
            raise ValueError(
                f"{type(self).__name__}: the target must give one log-density for each row; got shape "
                f"{tuple(log_p.shape)} for x with shape {tuple(x.shape)}"
            )
        return log_p


def located(target: Target, features: int, like: Tensor, seed: int = 0) -> Tensor | None:
    """Rough draws of a target, shape (4096, features): by adaptive importance sampling from Student distributions.

    Each of 12 rounds weights draws by p̃ / r to a power that keeps a tenth of them effective, and moves the proposal r
    to their mean and covariance. None where the target is not finite at any draw.

    "Adaptive Importance Sampling in General Mixture Classes" (Cappé et al., 2008), https://arxiv.org/abs/0710.4242
    """
    generator = torch.Generator(like.device).manual_seed(seed)
    mean, factor = like.new_zeros(features), torch.eye(features, dtype=like.dtype, device=like.device)
    for _ in range(LOCATING_ROUNDS):
        noise = torch.randn(LOCATING_DRAWS, features, generator=generator, dtype=like.dtype, device=like.device)
        chi = (
            torch.randn(LOCATING_DRAWS, TAIL, generator=generator, dtype=like.dtype, device=like.device)
            .square()
            .mean(1)
        )
        x = mean + (noise / chi.sqrt()[:, None]) @ factor.T
        log_r = -0.5 * (TAIL + features) * torch.log1p((noise / chi.sqrt()[:, None]).square().sum(1) / TAIL)
        log_ratio = (target(x) - log_r).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        if not log_ratio.isfinite().any():
            return None
        low, high = 0.0, 1.0
        for _ in range(20):  # the largest power that leaves enough of them effective
            power = (low + high) / 2 if low else high
            weight = (power * log_ratio).nan_to_num(-torch.inf).softmax(0)
            enough = 1 / weight.square().sum() >= LOCATING_DRAWS / 10
            if enough and power == 1.0:
                break
            low, high = (power, high) if enough else (low, power)
            low = low or 1e-6
        mean = weight @ x
        centered = x - mean
        covariance = (weight[:, None] * centered).T @ centered
        covariance += 1e-6 * covariance.diagonal().mean() * torch.eye(features, dtype=like.dtype, device=like.device)
        factor = torch.linalg.cholesky(covariance)
    chosen = torch.multinomial(weight, LOCATING_DRAWS, replacement=True, generator=generator)
    blur = 0.2  # of the draws that were chosen several times
    noise = torch.randn(LOCATING_DRAWS, features, generator=generator, dtype=like.dtype, device=like.device)
    return mean + (1 - blur**2) ** 0.5 * (x[chosen] - mean) + blur * noise @ factor.T


class ReverseKL(Variational):
    """KL(q ‖ p) − log Z = E_q[log q(x) − log p̃(x)], over reparameterised samples of the flow: it seeks modes.

    With `path_gradient` the term through the parameters of log q, which is zero on average, is left out: an estimator
    ("sticking the landing") whose variance vanishes as q approaches p. It takes a forward pass besides the inverse one.

    Args:
        flow: q, with reparameterised samples.
        target: x ↦ log p̃(x), differentiable; one number for each row.
        path_gradient: the lower-variance estimator.

    Raises:
        ValueError: a flow without reparameterised samples; a target of the wrong shape.

    "Variational Inference with Normalizing Flows" (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770;
    "Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference" (Roeder et al., 2017),
    https://arxiv.org/abs/1703.09194

    >>> import torch, diffeo
    >>> flow = diffeo.realnvp(2)
    >>> result = diffeo.fit(diffeo.ReverseKL(flow, diffeo.Normal(2)), 64, steps=20)
    >>> result.steps
    20
    """

    def __init__(self, flow: Density, target: Target, path_gradient: bool = False):
        super().__init__(flow, target)
        flow._require_rsample()
        self.path_gradient = path_gradient

    def forward(self, rows: Tensor) -> Tensor:
        generator = self._generator(rows)
        if self.path_gradient:
            x = self.flow.rsample(len(rows), generator=generator)
            fixed = {name: p.detach() for name, p in self.flow.named_parameters()}
            log_q = functional_call(self.flow, fixed, (x,))
        else:
            x, log_q = self.flow.sample_and_log_prob(len(rows), generator=generator)
        return log_q - self._log_target(x)


class ForwardKL(Variational):
    """KL(p ‖ q) up to a constant, −E_p[log q(x)], by self-normalised importance sampling: it covers modes.

    loss_i = −n wᵢ log q(xᵢ), with wᵢ ∝ p̃(xᵢ) / r(xᵢ) summing to one over the n samples xᵢ of the proposal r, and
    without gradient. With samples of p at hand, weighted or not, `fit(flow, x, weights=w)` does the same.

    Args:
        flow: q.
        target: x ↦ log p̃(x); one number for each row. It needs no gradient.
        proposal: r, a density that is not trained, with heavier tails than p: only what it covers is learned.

    Raises:
        ValueError: a target of the wrong shape.

    "Markovian Score Climbing: Variational Inference with KL(p||q)" (Naesseth et al., 2020),
    https://arxiv.org/abs/2003.10374

    >>> import torch, diffeo
    >>> objective = diffeo.ForwardKL(diffeo.maf(2), diffeo.Normal(2), diffeo.StudentT(2, df=4.0))
    >>> objective(torch.empty(64, 0)).shape
    torch.Size([64])
    """

    def __init__(self, flow: Density, target: Target, proposal: Density):
        super().__init__(flow, target)
        self.proposal = copy.deepcopy(proposal).requires_grad_(False).eval()

    def forward(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.proposal.sample(len(rows), generator=self._generator(rows))
            weight = (self._log_target(x) - self.proposal(x)).softmax(0)
        return -len(rows) * weight * self.flow(x)


class RenyiBound(Variational):
    """The variational Rényi bound: −1/(1−α) log 1/K Σₖ (p̃(xₖ) / q(xₖ))^{1−α}, K samples for each of n losses.

    α = 0 is the importance-weighted bound, α → 1 the reverse KL; between and below, ever more of the mass is covered.

    Args:
        flow: q, with reparameterised samples.
        target: x ↦ log p̃(x), differentiable; one number for each row.
        alpha: α, any number; at 1 the reverse KL.
        samples: K, at least 1.

    Raises:
        ValueError: a flow without reparameterised samples; a target of the wrong shape; no samples.

    Cost: K times that of `ReverseKL`.

    "Rényi Divergence Variational Inference" (Li and Turner, 2016), https://arxiv.org/abs/1602.02311

    >>> import torch, diffeo
    >>> objective = diffeo.RenyiBound(diffeo.iaf(2), diffeo.Normal(2), alpha=0.5)
    >>> objective(torch.empty(5, 0)).shape
    torch.Size([5])
    """

    def __init__(self, flow: Density, target: Target, alpha: float, samples: int = 8):
        super().__init__(flow, target)
        flow._require_rsample()
        if samples < 1:
            raise ValueError(f"{type(self).__name__}: expected at least one sample, got {samples}")
        self.alpha, self.samples = alpha, samples

    def forward(self, rows: Tensor) -> Tensor:
        x, log_q = self.flow.sample_and_log_prob((self.samples, len(rows)), generator=self._generator(rows))
        log_ratio = self._log_target(x) - log_q
        power = 1 - self.alpha
        if power == 0:
            return -log_ratio.mean(0)
        return -((power * log_ratio).logsumexp(0) - math.log(self.samples)) / power


def importance_weighted_bound(flow: Density, target: Target, samples: int = 8) -> RenyiBound:
    """The importance-weighted bound −log 1/K Σₖ p̃(xₖ) / q(xₖ): `RenyiBound` with α = 0.

    Args:
        flow: q, with reparameterised samples.
        target: x ↦ log p̃(x), differentiable; one number for each row.
        samples: K, at least 1.

    "Importance Weighted Autoencoders" (Burda et al., 2016), https://arxiv.org/abs/1509.00519

    >>> import torch, diffeo
    >>> diffeo.importance_weighted_bound(diffeo.iaf(2), diffeo.Normal(2))(torch.empty(5, 0)).shape
    torch.Size([5])
    """
    return RenyiBound(flow, target, 0.0, samples)
