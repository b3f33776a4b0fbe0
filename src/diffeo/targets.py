"""Densities to approximate: four energies known up to a constant, and densities with the shapes that are hard to learn.

The energies of Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015),
https://arxiv.org/abs/1505.05770, table 1, are functions of rows (*batch, 2) that give log p̃ = −U(x). U2 to U4 go on for
ever along x₁ as printed; here ½ (max(0, |x₁| − 4) / 0.2)² ends them.
"""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Density
from diffeo.functional import Context, LogProb, check_event, visible
from diffeo.noise import Seeds, only, standard_normal
from diffeo.transforms.masks import of_events


def u1(x: Tensor) -> Tensor:
    """A ring of radius 2 with two bright sides: log p̃(x), shape (*batch,), for x of shape (*batch, 2).

    >>> import torch, diffeo
    >>> diffeo.targets.u1(torch.tensor([2.0, 0.0]))
    tensor(0.)
    """
    radius = x.norm(dim=-1)
    sides = torch.stack([-0.5 * ((x[..., 0] - 2) / 0.6) ** 2, -0.5 * ((x[..., 0] + 2) / 0.6) ** 2])
    return sides.logsumexp(0) - 0.5 * ((radius - 2) / 0.4) ** 2


def u2(x: Tensor) -> Tensor:
    """A sine wave, x₂ ≈ sin(π x₁ / 2): log p̃(x), shape (*batch,), for x of shape (*batch, 2)."""
    return -0.5 * ((x[..., 1] - _wave(x)) / 0.4) ** 2 - _ends(x)


def u3(x: Tensor) -> Tensor:
    """A sine wave that splits in two near x₁ = 1: log p̃(x), shape (*batch,), for x of shape (*batch, 2)."""
    offset = x[..., 1] - _wave(x)
    apart = 3 * torch.exp(-0.5 * ((x[..., 0] - 1) / 0.6) ** 2)
    return torch.stack([-0.5 * (offset / 0.35) ** 2, -0.5 * ((offset + apart) / 0.35) ** 2]).logsumexp(0) - _ends(x)


def u4(x: Tensor) -> Tensor:
    """A sine wave that forks at x₁ = 1: log p̃(x), shape (*batch,), for x of shape (*batch, 2)."""
    offset = x[..., 1] - _wave(x)
    apart = 3 * torch.sigmoid((x[..., 0] - 1) / 0.3)
    return torch.stack([-0.5 * (offset / 0.4) ** 2, -0.5 * ((offset + apart) / 0.35) ** 2]).logsumexp(0) - _ends(x)


def _wave(x: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * x[..., 0] / 4)


def _ends(x: Tensor) -> Tensor:
    return 0.5 * (F.relu(x[..., 0].abs() - 4) / 0.2) ** 2


class Banana(Density):
    """x₁ = 2 z₁, x₂ = z₂ + c (x₁² − 4), z standard normal: a Gaussian bent into a parabola; volume is preserved.

    Args:
        curvature: c.

    "An Adaptive Metropolis Algorithm" (Haario et al., 2001), https://doi.org/10.2307/3318737

    >>> import torch, diffeo
    >>> diffeo.targets.Banana(0.0)(torch.zeros(2)).exp()
    tensor(0.0796)
    """

    curvature: Tensor

    def __init__(self, curvature: float = 0.5):
        super().__init__()
        self.register_buffer("curvature", torch.tensor(float(curvature)))
        self.event = (2,)

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Banana")
        x = visible(x, context)
        first, second = x.unbind(-1)
        rest = second - self.curvature * (first**2 - 4)
        return of_events(-0.5 * (first**2 / 4 + rest**2) - math.log(2 * 2 * math.pi), context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        z = standard_normal(shape + self.event_shape(), self.curvature, generator) * temperature
        first = 2 * z[..., 0]
        return visible(torch.stack([first, z[..., 1] + self.curvature * (first**2 - 4)], -1), context)


class Funnel(Density):
    """v ~ N(0, scale²), and given it xᵢ ~ N(0, eᵛ): neighbourhoods whose widths differ by orders of magnitude.

    Args:
        features: D, at least 2; the first is v.
        scale: standard deviation of v, > 0.

    Raises:
        ValueError: values outside these.

    "Slice Sampling" (Neal, 2003), https://doi.org/10.1214/aos/1056562461

    >>> import torch, diffeo
    >>> diffeo.targets.Funnel(10).sample(5).shape
    torch.Size([5, 10])
    """

    origin: Tensor

    def __init__(self, features: int = 2, scale: float = 3.0):
        super().__init__()
        if features < 2 or not scale > 0:
            raise ValueError(f"Funnel: expected at least 2 features and scale > 0, got {features} and {scale}")
        self.scale = scale
        self.register_buffer("origin", torch.zeros(features), persistent=False)
        self.event = self.origin.shape

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Funnel")
        x = visible(x, context)
        v, rest = x[..., 0], x[..., 1:]
        n = rest.shape[-1]
        mouth = -0.5 * (v / self.scale) ** 2 - math.log(self.scale)
        across = -0.5 * ((rest * (-v / 2).exp().unsqueeze(-1)).square().sum(-1) + n * v)
        return of_events(mouth + across - 0.5 * (n + 1) * math.log(2 * math.pi), context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        z = standard_normal(shape + self.event_shape(), self.origin, generator) * temperature
        v = self.scale * z[..., :1]
        return visible(torch.cat([v, z[..., 1:] * (v / 2).exp()], -1), context)


class Mixture(Density):
    """Equal Gaussians with standard deviation `scale` around given centres.

    log p(x) = log 1/K Σₖ N(x; mₖ, scale²). Temperature 0 gives the first centre.

    Args:
        centers: shape (K, D).
        scale: > 0.

    Raises:
        ValueError: centres that are no matrix; a scale that is not positive.

    >>> import torch, diffeo
    >>> diffeo.targets.Mixture(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 0.5).sample(5).shape
    torch.Size([5, 2])
    """

    has_rsample = False
    centers: Tensor

    def __init__(self, centers: Tensor, scale: float):
        super().__init__()
        if centers.ndim != 2 or not scale > 0:
            raise ValueError(
                f"Mixture: expected centres of shape (K, D) and scale > 0, got {tuple(centers.shape)} and {scale}"
            )
        self.scale = scale
        self.register_buffer("centers", centers if centers.is_floating_point() else centers.float())
        self.event = self.centers.shape[1:]

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Mixture")
        x = visible(x, context)
        k, d = self.centers.shape
        squares = ((x.unsqueeze(-2) - self.centers) / self.scale).square().sum(-1)
        scale = self.scale * math.sqrt(2 * math.pi)
        return of_events((-0.5 * squares).logsumexp(-1) - math.log(k) - d * math.log(scale), context)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        noise = standard_normal(shape + self.event_shape(), self.centers, generator)
        which = torch.randint(len(self.centers), shape, device=self.centers.device, generator=only(generator))
        if temperature == 0:
            which = torch.zeros_like(which)
        return visible(self.centers[which] + temperature * self.scale * noise, context)
