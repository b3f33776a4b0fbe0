"""Masks for maps that mix all numbers of an event."""

from __future__ import annotations

import torch
from torch import Tensor

from diffeo.functional import Context, context_mask, precise
from diffeo.kernels.dispatch import is_traced


def keep_rows(x: Tensor, z: Tensor, logdet: Tensor, context: Context, ndim: int = 1) -> tuple[Tensor, Tensor]:
    """Leave masked events, of `ndim` dims, as they were and give them no log-det.

    A mask that leaves out a part of an event is refused, and gives NaN where that cannot be seen, in traced code.
    """
    mask, logdet = context_mask(context), precise(logdet)
    if mask is None:
        return z, logdet
    if mask.ndim < ndim:
        raise ValueError(f"a map that mixes events of {ndim} dims needs a mask of as many, got {tuple(mask.shape)}")
    flat = mask.flatten(mask.ndim - ndim)
    there = flat.any(-1)
    of_events = there.shape + (1,) * ndim
    if flat.shape[-1] > 1:
        cut = there & ~flat.all(-1)
        if is_traced():
            z, logdet = torch.where(cut.reshape(of_events), torch.nan, z), torch.where(cut, torch.nan, logdet)
        elif bool(cut.any()):
            raise ValueError(
                "a map that mixes all numbers of an event needs a mask of whole ones; that of shape "
                f"{tuple(mask.shape)} leaves out a part of one"
            )
    return torch.where(there.reshape(of_events), z, x), torch.where(there, logdet, 0.0)
