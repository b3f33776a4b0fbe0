"""Masks for maps that mix all numbers of an event."""

from __future__ import annotations

import torch
from torch import Tensor

from diffeo.functional import Context, context_mask, precise
from diffeo.kernels.dispatch import is_traced


def keep_rows(x: Tensor, z: Tensor, logdet: Tensor, context: Context, ndim: int = 1) -> tuple[Tensor, Tensor]:
    """Leave masked events, of `ndim` dims, as they were and give them no log-det; a mask that cuts one is refused."""
    mask, logdet = context_mask(context), precise(logdet)
    if mask is None:
        return z, logdet
    if mask.ndim < ndim:
        raise ValueError(f"a map that mixes events of {ndim} dims needs a mask of as many, got {tuple(mask.shape)}")
    flat = mask.flatten(mask.ndim - ndim)
    whole = flat.all(-1)
    if flat.shape[-1] > 1 and not is_traced() and not torch.equal(whole, flat.any(-1)):
        raise ValueError(
            f"a map that mixes the features needs a mask of whole events; that of shape {tuple(mask.shape)} leaves out "
            "a part of one"
        )
    return torch.where(whole.reshape(*whole.shape, *(1 for _ in range(ndim))), z, x), torch.where(whole, logdet, 0.0)
