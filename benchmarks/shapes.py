"""Eight densities in two dimensions that can be evaluated and drawn from exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Size, Tensor

import diffeo


def two_moons() -> diffeo.Density:
    """Two half circles, one inside the reach of the other."""
    angle = torch.linspace(0, math.pi, 120)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    return diffeo.targets.Mixture(2 * torch.cat([upper, -upper]), 0.18)


def rings() -> diffeo.Density:
    """Four rings around one centre, of equal mass per length."""
    radii = (1.0, 2.0, 3.0, 4.0)
    circles = [torch.linspace(0, 2 * math.pi, int(40 * r) + 1)[:-1] for r in radii]
    points = [r * torch.stack([a.cos(), a.sin()], 1) for r, a in zip(radii, circles, strict=True)]
    return diffeo.targets.Mixture(torch.cat(points), 0.12)


def pinwheel() -> diffeo.Density:
    """Five arms that turn as they go outwards."""
    radius = torch.linspace(0.8, 4.0, 60)
    arms = [2 * math.pi * k / 5 + 0.45 * radius for k in range(5)]
    return diffeo.targets.Mixture(torch.cat([_polar(radius, angle) for angle in arms]), 0.22)


def checkerboard() -> diffeo.Density:
    """Uniform on the dark squares of a board of four by four."""
    return Board()


def spirals() -> diffeo.Density:
    """Two spirals, half a turn apart."""
    turn = torch.linspace(0.1, 1.0, 240).sqrt() * 3 * math.pi
    arms = [_polar(0.42 * turn, turn + offset) for offset in (0.0, math.pi)]
    return diffeo.targets.Mixture(torch.cat(arms), 0.14)


def eight_gaussians() -> diffeo.Density:
    """Eight narrow Gaussians on a circle."""
    angle = torch.arange(8) * math.pi / 4
    return diffeo.targets.Mixture(_polar(torch.full((8,), 3.0), angle), 0.3)


def heavy_tails() -> diffeo.Density:
    """Two Student t coordinates with two degrees of freedom, sheared."""
    return HeavyTails()


def bounded() -> diffeo.Density:
    """A density on the unit box that does not vanish at its edges."""
    return Box()


SHAPES: dict[str, Callable[[], diffeo.Density]] = {
    "two moons": two_moons,
    "rings": rings,
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
    "spirals": spirals,
    "eight Gaussians": eight_gaussians,
    "heavy tails": heavy_tails,
    "bounded": bounded,
}
WINDOWS = {"two moons": (-3.8, 3.8), "heavy tails": (-9.0, 9.0), "bounded": (-0.15, 1.15)}  # else (−4.8, 4.8)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)


class Plane(diffeo.Density):
    """What the densities below share."""

    has_rsample = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("origin", torch.zeros(2), persistent=False)

    def event_shape(self, context: diffeo.Context = None) -> Size:
        return Size((2,))


class Board(Plane):
    """Uniform on eight squares of side 2 in [−4, 4]²."""

    def forward(self, x: Tensor, context: diffeo.Context = None) -> Tensor:
        cell = ((x + 4) / 2).floor()
        inside = (x.abs() < 4).all(-1) & (cell.sum(-1) % 2 == 0)
        return torch.where(inside, -math.log(32.0), -math.inf)

    def draw(self, shape: Size, context: diffeo.Context, temperature: float, generator: Generator | None) -> Tensor:
        column = torch.randint(4, shape, generator=generator)
        row = 2 * torch.randint(2, shape, generator=generator) + column % 2
        return 2 * (torch.stack([column, row], -1) + torch.rand(*shape, 2, generator=generator)) - 4


class HeavyTails(Plane):
    """x = A t, with t two independent Student t of two degrees of freedom, whose CDF has a closed form."""

    shear = torch.tensor([[1.0, 0.0], [0.8, 0.6]])

    def forward(self, x: Tensor, context: diffeo.Context = None) -> Tensor:
        t = x @ torch.linalg.inv(self.shear).T
        return (-1.5 * torch.log(2 + t.square())).sum(-1) - math.log(0.6)

    def draw(self, shape: Size, context: diffeo.Context, temperature: float, generator: Generator | None) -> Tensor:
        u = torch.rand(*shape, 2, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        t = (2 * u - 1) / (2 * u * (1 - u)).sqrt()
        return t.float() @ self.shear.T


class Box(Plane):
    """x₁ has density 3 (1 − x)², and x₂ given it the density 1 + (2 x₁ − 1)(2 x₂ − 1), both on [0, 1]."""

    def forward(self, x: Tensor, context: diffeo.Context = None) -> Tensor:
        first, second = x.unbind(-1)
        inside = ((x >= 0) & (x <= 1)).all(-1)
        log_p = math.log(3) + 2 * torch.log1p(-first) + torch.log1p((2 * first - 1) * (2 * second - 1))
        return torch.where(inside, log_p, -math.inf)

    def draw(self, shape: Size, context: diffeo.Context, temperature: float, generator: Generator | None) -> Tensor:
        u, v = torch.rand(2, *shape, generator=generator)
        first = 1 - (1 - u) ** (1 / 3)
        slope = 2 * first - 1
        second = 2 * v / (1 - slope + ((1 - slope) ** 2 + 4 * slope * v).sqrt())  # the root of a quadratic in [0, 1]
        return torch.stack([first, second], -1)
