"""Encoders of the frames of a spectrogram."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffeo.functional import Context, as_fixed_event, context_mask, entries

CENTRE, SPREAD = -5.0, 3.0  # of log mels, roughly, whatever the recording


class MelEncoder(nn.Module):
    """A spectrogram as features of its frames, for nets that run over the sound: two convolutions over frames.

    Args:
        mels: of a frame.
        features: of a frame of the result.
        hop: samples from frame to frame; frames beyond a mask of the sound count as padding.

    Returns:
        The context with `"features"`, (*batch, F, features), from its entry `"mel"`, (*batch, F, mels).

    Raises:
        ValueError: sizes below 1; no spectrogram, or one with other mels.

    >>> import torch, diffeo
    >>> diffeo.nets.MelEncoder(8, 4, hop=100)({"mel": torch.zeros(2, 5, 8)})["features"].shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, mels: int, features: int, hop: int):
        super().__init__()
        as_fixed_event((mels, features, hop), self)
        self.mels, self.hop, self.reads = mels, hop, {"mel": 2}
        self.near = nn.Conv1d(mels, features, 5, padding=2)
        self.far = nn.Conv1d(features, features, 5, padding=2)

    def forward(self, context: Context) -> Context:
        given, mask = entries(context), context_mask(context)
        mel = given.get("mel")
        if mel is None or mel.shape[-1] != self.mels:
            got = "none" if mel is None else f"shape {tuple(mel.shape)}"
            raise ValueError(
                f"MelEncoder: expected a spectrogram as the entry 'mel', {self.mels} mels a frame; got {got}"
            )
        batch, frames = mel.shape[:-2], mel.shape[-2]
        h = ((mel - CENTRE) / SPREAD).to(self.near.weight.dtype).reshape(-1, *mel.shape[-2:]).mT
        real = None
        if (
            mask is not None and mask.shape[-2] > 1
        ):  # frames, of which the first and the last are centred on the ends of the sound
            samples = mask.any(-1).sum(-1)
            batch = torch.broadcast_shapes(batch, samples.shape)
            h = h.reshape(*mel.shape[:-2], *h.shape[1:]).expand(*batch, *h.shape[1:]).reshape(-1, *h.shape[1:])
            last = (samples // self.hop).expand(batch).reshape(-1, 1, 1)
            real = torch.arange(frames, device=h.device) <= last

        def shown(h: Tensor) -> Tensor:
            return h if real is None else torch.where(real, h, 0.0)

        h = self.near(shown(h)).relu()
        h = self.far(shown(h)).mT
        if real is not None:  # the last one goes on, as it does where there is no padding
            at = torch.minimum(torch.arange(frames, device=h.device), real.sum(-1) - 1)
            h = h.gather(1, at.unsqueeze(-1).expand(h.shape))
        return {**given, "features": h.reshape(*batch, *h.shape[1:])}
