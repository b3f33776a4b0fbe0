"""Pictures as vectors of noise: interpolation and arithmetic of attributes.

A multiscale flow maps a picture to one vector z whose numbers are independent standard normals. Straight lines in z
are smooth changes of pictures, and the difference of two means of z is a direction that turns one kind into the other
("Glow: Generative Flow with Invertible 1x1 Convolutions" (Kingma and Dhariwal, 2018), section 6).

A deep flow magnifies what each layer rounds. So pictures are carried from layer to layer in float64, also where the
weights are of float32: only conditioners compute in these (`diffeo.functional.narrowed`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffeo.densities import Dequantized, Noisy
from diffeo.functional import Context, widest


@torch.no_grad()
def encode(model: Dequantized | Noisy, images: Tensor, context: Context = None) -> Tensor:
    """z of pictures of whole numbers, at the centres of their cells where they have some, shape (n, D); in float64."""
    flow = model.flow
    x = images.to(widest(images.device))
    x = x + 0.5 if isinstance(model, Dequantized) else x
    return flow.transform(x, flow.encode(context))[0]


@torch.no_grad()
def decode(model: Dequantized | Noisy, z: Tensor, context: Context = None) -> Tensor:
    """Pictures of whole numbers from z, shape (n, C, H, W)."""
    flow = model.flow
    x = flow.transform.inverse(z.to(widest(z.device)), flow.encode(context))[0]
    x = x.floor() if isinstance(model, Dequantized) else x.round()
    return (x if model.levels is None else x.clamp(0, model.levels - 1)).long()


def reconstruct(model: Dequantized | Noisy, images: Tensor, context: Context = None) -> Tensor:
    """Pictures of whole numbers, turned into z and back: (n, C, H, W), the same ones where nothing is lost."""
    return decode(model, encode(model, images, context), context)


def interpolate(model: Dequantized | Noisy, a: Tensor, b: Tensor, steps: int = 8, context: Context = None) -> Tensor:
    """Pictures between two, along an arc of z, the two themselves included; shape (steps, C, H, W).

    z_t = (sin((1 − t) ω) z_a + sin(t ω) z_b) / sin ω, with ω the angle between the two: unlike a straight line, it
    does not pass through the unlikely vectors near the origin.

    Args:
        model: of pictures.
        a, b: (C, H, W).
        steps: how many pictures, at least 2.
        context: of all of them, such as a label, without a batch.
    """
    if steps < 2:
        raise ValueError(f"interpolate: expected at least 2 steps, got {steps}")
    many = None if context is None else torch.as_tensor(context).expand(steps, *torch.as_tensor(context).shape)
    ends = encode(model, torch.stack([a, b]), None if many is None else many[:2])
    return decode(model, arc(ends, steps), many)


def arc(ends: Tensor, steps: int) -> Tensor:
    """Vectors (steps, D) from the first to the second of (2, D), turned by equal angles."""
    cosine = torch.nn.functional.cosine_similarity(ends[0], ends[1], 0).clamp(-1 + 1e-6, 1 - 1e-6)
    angle, t = cosine.acos(), torch.linspace(0, 1, steps, dtype=ends.dtype, device=ends.device)[:, None]
    return (((1 - t) * angle).sin() * ends[0] + (t * angle).sin() * ends[1]) / angle.sin()


def attribute_direction(model: Dequantized | Noisy, images: Tensor, labels: Tensor, context: Context = None) -> Tensor:
    """The direction in z from pictures without an attribute to those with it: the difference of their means, (D,).

    Args:
        model: of pictures.
        images: (n, C, H, W).
        labels: (n,) booleans, True where a picture has the attribute; or numbers, whose slope on z is taken: the
            direction in which the attribute grows by one.
        context: of the pictures.

    Raises:
        ValueError: labels that do not vary, or are not one a picture.
    """
    if labels.shape != (len(images),) or bool((labels == labels[0]).all()):
        raise ValueError(f"attribute_direction: expected labels of {len(images)} pictures, of both kinds")
    z = encode(model, images, context)
    weight = labels.to(z.dtype) - labels.to(z.dtype).mean()
    return (weight[:, None] * (z - z.mean(0))).sum(0) / weight.square().sum()


def edit(
    model: Dequantized | Noisy, images: Tensor, direction: Tensor, amount: float | Tensor, context: Context = None
) -> Tensor:
    """Pictures moved along a direction of z: decode(encode(x) + amount · direction), shape (n, C, H, W).

    `amount`: one for all, or (n,), one for each; any number for one picture. ValueError: another number of them.
    """
    amount = torch.as_tensor(amount)
    if amount.ndim == 1 and len(images) > 1 and len(amount) not in (1, len(images)):
        raise ValueError(f"edit: expected one amount, or one for each of the {len(images)} pictures, got {len(amount)}")
    moved = (amount.unsqueeze(-1) if amount.ndim == 1 else amount) * direction
    return decode(model, encode(model, images, context) + moved, context)
