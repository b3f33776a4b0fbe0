"""Masks for maps and densities that mix all numbers of an event."""

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
    there, cut = _whole(mask, ndim)
    of_events = there.shape + (1,) * ndim
    if cut is not None:
        z, logdet = torch.where(cut.reshape(of_events), torch.nan, z), torch.where(cut, torch.nan, logdet)
    return torch.where(there.reshape(of_events), z, x), torch.where(there, logdet, 0.0)


def of_events(values: Tensor, context: Context, ndim: int = 1) -> Tensor:
    """Log-densities or log-dets of whole events, of `ndim` dims: zero where a mask leaves one out.

    A mask that leaves out a part of an event is refused, or gives NaN, as by `keep_rows`.
    """
    mask = context_mask(context)
    if mask is None:
        return values
    there, cut = _whole(mask, ndim)
    return torch.where(there, values if cut is None else torch.where(cut, torch.nan, values), 0.0)


def _whole(mask: Tensor, ndim: int) -> tuple[Tensor, Tensor | None]:
    """Which events are there; and which of these lack a part, where that can be neither seen nor ruled out."""
    if mask.ndim < ndim:
        raise ValueError(f"what mixes events of {ndim} dims needs a mask of as many, got {tuple(mask.shape)}")
    flat = mask.flatten(mask.ndim - ndim)
    there = flat.any(-1)
    if flat.shape[-1] == 1:
        return there, None
    cut = there & ~flat.all(-1)
    if is_traced():
        return there, cut
    if bool(cut.any()):
        raise ValueError(
            "what mixes all numbers of an event needs a mask of whole ones; that of shape "
            f"{tuple(mask.shape)} leaves out a part of one"
        )
    return there, None
