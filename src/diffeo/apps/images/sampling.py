"""Drawing pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from diffeo.densities import Dequantized, Noisy
from diffeo.functional import Context
from diffeo.kernels import compiled_kernels
from diffeo.transforms import prepare_inference


def sample(
    model: Dequantized | Noisy,
    n: int | tuple[int, ...],
    context: Context = None,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pictures (*n, C, H, W) of whole numbers, drawn by a prepared copy of the model and compiled kernels.

    Args:
        model: of pictures.
        n: how many; several numbers for as many batch dims.
        context: labels (n,), or what else the model reads.
        temperature: scales the noise; 0 for the plainest picture.
        generator: of the noise.

    Raises:
        ValueError: a model that has not seen data yet; what `model.sample` refuses.

    Cost: that of `model.sample` after `prepare_inference`, and of preparing; worth it for more than a few pictures.
    """
    with compiled_kernels():
        return prepare_inference(model).sample(n, context, temperature=temperature, generator=generator)
