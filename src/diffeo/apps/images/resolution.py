"""Small pictures from large ones, and large ones from small ones by a flow."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.densities import Dequantized
from diffeo.nets import LowResolution
from diffeo.nets.features import enlarged

ROUNDS = 8  # corrections of the small picture


def shrink(images: Tensor, scale: int, levels: int = 256) -> Tensor:
    """Pictures (n, C, H, W) of whole numbers, `scale` times smaller, by bicubic interpolation with antialiasing.

    >>> import torch
    >>> shrink(torch.full((1, 1, 8, 8), 7), 4).flatten().tolist()
    [7, 7, 7, 7]
    """
    return _shrunk(images.float(), scale).round().clamp(0, levels - 1).to(images.dtype)


def encoder_of(model: Dequantized) -> LowResolution:
    """What reads the small pictures of a model, or an error where it knows none."""
    encoder = model.flow.encoder
    if not isinstance(encoder, LowResolution):
        raise ValueError("upscale: this model does not enlarge pictures; make one by diffeo.srflow")
    return encoder


@torch.no_grad()
def upscale(
    model: Dequantized,
    small: Tensor,
    n: int = 5,
    *,
    temperature: float = 0.8,
    consistent: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """n large pictures for each small one, shape (n, …, C, H, W): what the small one may have been.

    Args:
        model: of `diffeo.srflow`.
        small: (…, C, h, w), whole numbers.
        n: how many of each.
        temperature: of the noise; 0 for the likeliest picture.
        consistent: whether each is corrected until, shrunk again, it is the small picture but for rounding.
        generator: of the noise.

    Raises:
        ValueError: another model.
    """
    encoder, levels = encoder_of(model), model.levels or 256
    large = model.sample((n, *small.shape[:-3]), small, temperature=temperature, generator=generator)
    if not consistent:
        return large
    x = large.float().reshape(-1, *large.shape[-3:])
    wanted = small.float().expand(n, *small.shape).reshape(-1, *small.shape[-3:])
    for _ in range(ROUNDS):
        x = (x + enlarged(wanted - _shrunk(x, encoder.scale), encoder.scale)).clamp(0, levels - 1)
    return x.round().long().reshape(large.shape)


def _shrunk(x: Tensor, scale: int) -> Tensor:
    size = (x.shape[-2] // scale, x.shape[-1] // scale)
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)
