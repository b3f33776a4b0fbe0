"""What recipes of images share: their arguments, the way to the line, and couplings of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from diffeo.core import Univariate
from diffeo.nets import ConvNet, OneHot
from diffeo.transforms import Along, Coupling, Unconstrain

MARGIN = 0.05  # of the range of values on either side, so that the logit stays tame at its ends


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


def real_line(channels: int, levels: int) -> Along:
    """The logit of values with noise, 0 … levels, by channel."""
    margin = MARGIN * levels
    return Along(Unconstrain([-margin] * channels, [levels + margin] * channels), -3)


def labels(classes: int, drop: float = 0.0) -> OneHot | None:
    """The encoder of class labels, where there are classes."""
    return OneHot(classes, drop) if classes else None


def coupling(channels: int, first: bool, univariate: Univariate, **conditioner: Any) -> Coupling:
    """A coupling in which one half of the channels sets the other, by a `ConvNet`."""
    mask = (torch.arange(channels) < channels // 2) == first
    net = ConvNet(channels // 2, channels // 2, univariate.n_params, **conditioner)
    return Coupling(mask, net, univariate, dim=-3)
