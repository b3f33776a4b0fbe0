"""Flows on other domains than the line: the unit box, circles and tori, the sphere (against its surface)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from diffeo.core import Chain, Flow, Inverse, Transform
from diffeo.densities import Uniform, UniformSphere, VonMisesFisherMixture
from diffeo.nets import ContextScaler, PeriodicMLP
from diffeo.recipes.parts import alternate, coupling
from diffeo.recipes.registry import recipe
from diffeo.transforms import BoundedSpline, CircularSpline, Coupling, Householder, SphereToCylinder


@recipe(events="a box")
def unit_box(
    features: int, *, context: int = 0, layers: int = 4, hidden: Sequence[int] = (64, 64), bins: int = 8
) -> Flow:
    """A flow of vectors in the unit box [0, 1]ᴰ: couplings with bounded splines, and a uniform base.

    It starts as the uniform density. As the dequantizer of `diffeo.Dequantized` it is variational dequantization.

    Args:
        features: D, at least 1.
        context: width of the context; 0 for none.
        layers: number of couplings.
        hidden: widths of the hidden layers of each conditioner.
        bins: pieces of each spline.

    Cost: one pass for a density, one for a sample.

    "Neural Importance Sampling" (Müller et al., 2019), https://arxiv.org/abs/1808.03856

    >>> import torch, diffeo
    >>> abs(diffeo.unit_box(2)(torch.full((2,), 0.5)).item()) < 1e-5
    True
    """
    parts = [coupling(alternate(features, i), BoundedSpline(bins), context, hidden, {}) for i in range(layers)]
    base = Uniform(torch.zeros(features), torch.ones(features))
    return Flow(Chain(*parts), base, ContextScaler(context) if context else None)


@recipe(events="angles")
def torus(
    features: int,
    *,
    context: int = 0,
    layers: int = 6,
    hidden: Sequence[int] = (64, 64),
    bins: int = 16,
    harmonics: int = 1,
) -> Flow:
    """A flow of angles in [−π, π): couplings with circular splines, and a uniform base; one angle is the circle.

    Args:
        features: number of angles, at least 1.
        context: width of the context; 0 for none.
        layers: number of couplings.
        hidden: widths of the hidden layers of each conditioner, which sees cosines and sines.
        bins: pieces of each spline.
        harmonics: cosines and sines that a conditioner sees of each angle; more for finer detail.

    Cost: one pass for a density, one for a sample.

    "Normalizing Flows on Tori and Spheres" (Rezende et al., 2020), https://arxiv.org/abs/2002.02428

    >>> import torch, diffeo
    >>> diffeo.torus(2)(torch.zeros(5, 2))
    tensor([-3.6758, -3.6758, -3.6758, -3.6758, -3.6758], grad_fn=<...>)
    """
    parts: list[Transform] = []
    for i in range(layers):
        mask, spline = alternate(features, i), CircularSpline(bins)
        keeps = int(mask.sum())
        options = {"n_params": spline.n_params, "context": context, "hidden": hidden}
        net = PeriodicMLP(keeps, features - keeps, harmonics=harmonics, **options)
        parts.append(Coupling(mask, net, spline))
    base = Uniform(torch.full((features,), -math.pi), torch.full((features,), math.pi))
    return Flow(Chain(*parts), base, ContextScaler(context) if context else None)


@recipe(events="unit vectors")
def sphere(
    features: int = 3,
    *,
    context: int = 0,
    layers: int = 4,
    hidden: Sequence[int] = (64, 64),
    bins: int = 16,
    harmonics: int = 4,
    components: int = 0,
) -> Flow:
    """A flow of unit vectors in three dimensions: splines of height and longitude, with rotations between.

    Args:
        features: 3.
        context: width of the context; 0 for none.
        layers: number of layers, each a spline of the height, one of the longitude, and a rotation.
        hidden: widths of the hidden layers of each conditioner.
        bins: pieces of each spline.
        harmonics: cosines and sines that a conditioner sees of height and longitude; more for finer detail.
        components: 0 for a uniform base, whose samples carry gradients; or the largest number of von Mises–Fisher
            densities in a base that is a mixture of them, which `initialize` fits first.

    Raises:
        ValueError: other features than 3.

    Cost: one pass for a density, one for a sample.

    "Normalizing Flows on Tori and Spheres" (Rezende et al., 2020), https://arxiv.org/abs/2002.02428

    >>> import torch, diffeo
    >>> diffeo.sphere()(torch.tensor([[0.0, 0.6, 0.8]])).shape
    torch.Size([1])
    """
    if features != 3:
        raise ValueError(f"sphere: expected unit vectors of 3 features, got {features}")
    options: dict[str, Any] = {"harmonics": harmonics, "context": context, "hidden": hidden}
    parts: list[Transform] = []
    for _ in range(layers):
        height, longitude = BoundedSpline(bins, -math.pi, math.pi), CircularSpline(bins)
        rotation = Householder(3)
        nn.init.normal_(rotation.vectors)  # a random rotation, where pairs of equal vectors would be none
        parts += [
            SphereToCylinder(),
            Coupling(torch.tensor([True, False]), PeriodicMLP(1, 1, n_params=height.n_params, **options), height),
            Coupling(
                torch.tensor([False, True]),
                # of the height, from −π to π
                PeriodicMLP(1, 1, n_params=longitude.n_params, period=4 * math.pi, **options),
                longitude,
            ),
            Inverse(SphereToCylinder()),
            rotation,
        ]
    base = VonMisesFisherMixture(components) if components else UniformSphere()
    return Flow(Chain(*parts), base, ContextScaler(context) if context else None)
