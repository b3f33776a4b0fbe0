"""Attention, by PyTorch's fused kernels where they can be used."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.kernels.dispatch import is_traced


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √d) V of (rows, heads, positions, d).

    Args:
        causal: no position sees later ones.
        mask: (rows, positions), which positions can be seen.
    """
    if mask is None and not is_traced():
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    # written out, since the fused kernels know neither vmap nor forward derivatives
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if mask is not None:  # where nothing can be seen, all count alike
        scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ value
