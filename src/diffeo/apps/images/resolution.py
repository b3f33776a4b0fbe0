"""Small pictures from large ones, and large ones from small ones by a flow."""

from __future__ import annotations

import torch
from torch import Tensor

from diffeo.apps.images.sampling import sample
from diffeo.densities import Dequantized
from diffeo.nets import LowResolution
from diffeo.nets.features import enlarged, shrunk

ROUNDS = 50  # corrections of the small picture, at most


def shrink(images: Tensor, scale: int, levels: int = 256) -> Tensor:
    """Pictures (n, C, H, W) of whole numbers, `scale` times smaller, by bicubic interpolation with antialiasing.

    >>> import torch
    >>> shrink(torch.full((1, 1, 8, 8), 7), 4).flatten().tolist()
    [7, 7, 7, 7]
    """
    return shrunk(images.float(), scale).round().clamp(0, levels - 1).to(images.dtype)


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
    labels: Tensor | None = None,
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
        labels: (…), the classes of the pictures, of a model that reads them.
        temperature: of the noise; 0 for its mode, the plainest picture.
        consistent: whether each is `corrected`.
        generator: of the noise.

    Raises:
        ValueError: another model, or one that has not seen data yet; small pictures of another size or number of
            channels; labels of another number, or where the model reads none.
    """
    encoder, levels = encoder_of(model), model.levels or 256
    channels, height, width = model.event_shape()
    if tuple(small.shape[-3:]) != (channels, height // encoder.scale, width // encoder.scale):
        raise ValueError(
            f"upscale: expected small pictures of {channels}×{height // encoder.scale}×{width // encoder.scale} "
            f"(channels, height, width), got {tuple(small.shape[-3:])}"
        )
    if (labels is not None) != bool(encoder.classes):
        raise ValueError(
            f"upscale: this model reads {'the' if encoder.classes else 'no'} labels of classes, as labels="
        )
    if labels is not None and torch.as_tensor(labels).shape != small.shape[:-3]:
        raise ValueError(f"upscale: expected a label for each small picture, {tuple(small.shape[:-3])}, got {labels}")
    given = small if labels is None else {"features": small, "label": torch.as_tensor(labels)}
    large = sample(model, (n, *small.shape[:-3]), given, temperature=temperature, generator=generator)
    if not consistent:
        return large
    wanted = small.expand(n, *small.shape).reshape(-1, *small.shape[-3:])
    return corrected(large.reshape(-1, *large.shape[-3:]), wanted, encoder.scale, levels).reshape(large.shape)


def corrected(large: Tensor, small: Tensor, scale: int, levels: int = 256) -> Tensor:
    """Large pictures (n, C, H, W) changed until they shrink to the small ones, as far as their range of values allows.

    What is missing of the small picture is enlarged and added, until no number is off by half a level or 50 times.
    """
    x = large.float()
    for _ in range(ROUNDS):
        missing = small.float() - shrunk(x, scale)
        if float(missing.abs().max()) < 0.5:
            break
        x = (x + enlarged(missing, scale)).clamp(0, levels - 1)
    return x.round().long()
