"""Bits per dimension: the unit in which models of images are compared."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from diffeo.core import Density
from diffeo.densities.dequantized import Dequantized, check_levels
from diffeo.densities.noisy import Noisy
from diffeo.functional import Context, context_mask, entries, rows_of_block, visible
from diffeo.kernels.private import tree_map

NUMBERS = 1 << 20  # of images scored at once


@torch.no_grad()
def bits_per_dim(
    density: Density,
    images: Tensor | np.ndarray,
    context: Context = None,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """−log₂ P(x) / D for each image: how many bits a code by this model spends on one number of the image.

    D = C · H · W, or as many numbers as a mask leaves. The densities of preprocessing (noise, logit) are counted, since
    they are part of the model. For a `Dequantized` model it is an upper bound, tighter with more samples.

    Args:
        density: of images.
        images: (n, *event), such as whole numbers (n, C, H, W); a tensor or an array.
        context: of each image; leading dim n.
        samples: of the noise, where the density is `Dequantized`.
        generator: of that noise.

    Returns:
        Shape (n,).

    Raises:
        ValueError: images or contexts of another shape; other than whole numbers of the levels of a `Dequantized`
            density; a `Noisy` density; more than one sample where there is no noise.

    Cost: `samples` passes of the density.

    >>> import torch, diffeo
    >>> coin = diffeo.Dequantized(diffeo.Uniform(torch.zeros(1), torch.full((1,), 2.0)))
    >>> diffeo.bits_per_dim(coin, torch.tensor([[0], [1]]))
    tensor([1., 1.])
    """
    ndim, images = density.event_ndim, torch.as_tensor(images)
    if images.ndim != ndim + 1:
        raise ValueError(f"bits_per_dim: expected a batch of events of {ndim} dims, got {tuple(images.shape)}")
    if isinstance(density, Noisy):
        raise ValueError(
            "bits_per_dim: a Noisy density is of pictures with Gaussian noise, which has no bits; noise=0 has"
        )
    noisy = isinstance(density, Dequantized)
    if samples != 1 and not noisy:
        raise ValueError("bits_per_dim: only Dequantized densities take several samples of their noise")
    for name, entry in entries(context).items():
        if entry.ndim == 0 or len(entry) != len(images):
            raise ValueError(
                f"bits_per_dim: expected {name} of each of the {len(images)} images, got shape {tuple(entry.shape)}"
            )
    if isinstance(density, Dequantized):
        check_levels(visible(images, context), density.levels, "bits_per_dim")
    size = rows_of_block(max(1, NUMBERS // samples), images.shape[1:])
    found = []
    for start in range(0, len(images), size):
        x = images[start : start + size]
        c = None if context is None else tree_map(lambda t, start=start: t[start : start + size], context)
        bits = density.log_prob(x, c, samples, generator) if noisy else density(x, c)
        if bits.shape != (len(x),):
            raise ValueError(
                f"bits_per_dim: the context gives log-probabilities of shape {tuple(bits.shape)} for {len(x)} images; "
                "labels have shape (n,)"
            )
        found.append(bits)
    mask = context_mask(context)
    dims = math.prod(images.shape[1:]) if mask is None else mask.expand(images.shape).flatten(1).sum(1).clamp_min(1)
    return torch.cat(found) / (-math.log(2) * dims)
