"""What recipes of images share: their arguments, the way in and out of a flow, and couplings of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffeo.core import Chain, Flow, Transform, Univariate
from diffeo.densities import Dequantized, Noisy, Normal
from diffeo.nets import MLP, ConvNet, OneHot
from diffeo.recipes.parts import scalar_map
from diffeo.transforms import (
    ActNorm,
    Affine,
    Along,
    Conv1x1,
    Coupling,
    Elementwise,
    Equalize,
    LULinear,
    Standardize,
)

MIXED = 0.5  # how far channels are mixed at the start; affine couplings learn slower without it, or with much more


def image_shape(name: str, shape: Sequence[int], scales: int) -> tuple[int, int, int]:
    """(C, H, W), whose sides can be halved so often."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{name}: expected the shape (C, H, W) of an image, got {tuple(shape)}")
    channels, height, width = (int(n) for n in shape)
    for side, size in (("height", height), ("width", width)):
        if size % 2**scales:
            raise ValueError(
                f"{name}: a {side} of {size} cannot be halved {scales} times; pad or crop the images to a multiple of "
                f"{2**scales}, or ask for fewer scales"
            )
    return channels, height, width


def real_line(channels: int, levels: int, peak: float | None, noise: float = 0.0) -> Along:
    """The way to the line, by channel, for values in [0, levels]; those with Gaussian noise are on it."""
    line = Equalize(channels, levels, peak)
    return Along(Standardize(channels) if noise else line, -3)


def labels(classes: int, drop: float = 0.0) -> OneHot | None:
    """The encoder of class labels, where there are classes."""
    return OneHot(classes, drop) if classes else None


def images(
    name: str,
    transform: Transform,
    numbers: int,
    *,
    classes: int = 0,
    levels: int = 256,
    noise: float = 0.0,
    drop: float = 0.0,
) -> Dequantized | Noisy:
    """The density of images of whole numbers by a map of images with noise to a vector of so many numbers.

    Args:
        noise: standard deviation of Gaussian noise, as a share of half the range of values; 0 for uniform noise.
        drop: chance that a label is left out in training.
    """
    if not noise >= 0 or not 0 <= drop < 1:
        raise ValueError(f"{name}: expected noise >= 0 and 0 <= drop < 1, got {noise} and {drop}")
    flow = Flow(transform, Normal(numbers), labels(classes, drop))
    if noise:
        return Noisy(flow, noise * (levels - 1) / 2, levels=levels)
    return Dequantized(flow, levels=levels)


def with_places(transform: Transform, numbers: int, classes: int) -> Transform:
    """A map to a vector each of whose numbers is shifted and scaled once more, for each class in its own way.

    Convolutions know no places: without it they alone have to tell the middle from the edges, and classes apart.
    """
    if not classes:
        return Chain(transform, Elementwise(Affine(bound=2.0), numbers))
    net = MLP(0, numbers, n_params=Affine.n_params, context=classes, hidden=())
    return Chain(transform, Coupling(torch.zeros(numbers, dtype=torch.bool), net, Affine(bound=2.0)))


def image_scalar(name: str, options: Mapping[str, Any] | None) -> Univariate:
    """The scalar map of this name; an affine one scales less than for vectors, unless its options say otherwise."""
    return scalar_map(name, {"bound": 2.0} if name == "Affine" and options is None else options)


def normed_mix(channels: int, mixed: float = MIXED) -> Conv1x1:
    """Activation norm and a linear map of the channels, which run as one.

    It starts as a random mixture of channels, of so much of each of the others, or for 0 as the identity.
    """
    linear = LULinear(channels)
    with torch.no_grad():
        linear.weight.normal_(std=mixed / channels**0.5).fill_diagonal_(0.0)
    return Conv1x1(channels, Chain(ActNorm(channels), linear))


def coupling(channels: int, first: bool, univariate: Univariate, **conditioner: Any) -> Coupling:
    """A coupling in which one half of the channels sets the other, by a `ConvNet`."""
    mask = (torch.arange(channels) < channels // 2) == first
    net = ConvNet(channels // 2, channels // 2, univariate.n_params, **conditioner)
    return Coupling(mask, net, univariate, dim=-3)
