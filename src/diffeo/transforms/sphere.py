"""The sphere as a cylinder: coordinates in which its surface measure is flat."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core import Transform
from diffeo.functional import Context, check_event, constant_logdet, context_mask, visible
from diffeo.transforms.masks import of_events


class Sphere(Constraint):
    """Unit vectors."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value.norm(dim=-1) - 1).abs() < 1e-3


class SphereToCylinder(Transform):
    """z = (φ, π h) of a unit vector x = (√(1−h²) cos φ, √(1−h²) sin φ, h): longitude, and height times π.

    Both lie in [−π, π]. By Archimedes' theorem areas on the sphere are those on the cylinder, so log|det| = log π
    against the surface measure, everywhere. x is normalised first.

    "Normalizing Flows on Tori and Spheres" (Rezende et al., 2020), https://arxiv.org/abs/2002.02428

    >>> import torch, diffeo
    >>> diffeo.SphereToCylinder()(torch.tensor([0.0, 1.0, 0.0]))[0]
    tensor([1.5708, 0.0000])
    """

    event_ndim = event_ndim_out = 1
    event = Size((3,))
    domain = Sphere()
    codomain = constraints.independent(constraints.interval(-math.pi, math.pi), 1)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "SphereToCylinder")
        mask = context_mask(context)
        x = x if mask is None else torch.where(mask, x, x.new_tensor([0.0, 0.0, 1.0]))  # any point: padding may be none
        height = x[..., 2] / x.square().sum(-1).sqrt()
        z = torch.stack([torch.atan2(x[..., 1], x[..., 0]), math.pi * height], -1)
        return visible(z, context), of_events(constant_logdet(x.new_tensor(math.log(math.pi)), x, 1), context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, Size((2,)), "SphereToCylinder")
        longitude, height = z[..., 0], (z[..., 1] / math.pi).clamp(-1, 1)
        radius = (1 - height * height).clamp_min(torch.finfo(z.dtype).eps ** 2).sqrt()
        x = torch.stack([radius * longitude.cos(), radius * longitude.sin(), height], -1)
        return visible(x, context), of_events(constant_logdet(z.new_tensor(-math.log(math.pi)), z, 1), context)

    def output_shape(self, event: Size) -> Size:
        return Size((2,))

    def input_shape(self, event: Size) -> Size:
        return Size((3,))
