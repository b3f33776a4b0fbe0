"""Frames that follow letters in order: the base of Glow-TTS."""

from __future__ import annotations

import math

import torch
from torch import Size, Tensor

from diffeo.core import Density
from diffeo.functional import Context, LogProb, check_event, context_mask, entries, masked_event
from diffeo.noise import Seeds, standard_normal
from diffeo.solvers import letters_of, monotonic_alignment


class Aligned(Density):
    """Frames z of letters in order: z_t ~ N(mean of the letter of frame t, 1).

    log p(z) = Σ_t log N(z_t; m_{l(t)}, 1), where l(t) is the letter of frame t. Which frames belong to a letter is
    given, by durations, or is the likeliest of all alignments, by `monotonic_alignment`: then the value is the greatest
    of many densities, which is what voices are trained by, and no density itself.

    The context holds `"means"`, (*batch, L, C), and `"text"`, (*batch, L), 0 where a letter is padding; `"mask"`,
    (*batch, T, 1), where a frame is; and perhaps `"durations"`, (*batch, L) whole numbers of frames: samples need them.

    Args:
        features: C.

    Raises:
        ValueError: entries that are missing; more letters than frames; durations that do not add up to the frames.

    Cost: O(L · T · C) for each row.

    "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
    https://arxiv.org/abs/2005.11129

    >>> import torch, diffeo
    >>> context = {"means": torch.zeros(2, 3), "text": torch.tensor([1, 2]), "mask": torch.ones(4, 1).bool()}
    >>> diffeo.Aligned(3)(torch.zeros(4, 3), context)
    tensor(-11.0273)
    """

    has_rsample = False

    def __init__(self, features: int):
        super().__init__()
        self.features = features
        self.event_ndim, self.event = 2, (None, features)
        self.reads = {"means": 2, "text": 1, "durations": 1, "log_durations": 1}

    def event_shape(self, context: Context = None) -> Size:
        return masked_event((None, self.features), context, "Aligned")

    def forward(self, x: Tensor, context: Context = None) -> LogProb:
        check_event(x, self.event, "Aligned")
        means, durations = self._means(context), self.durations(x, context)
        z = x - _at_frames(means, durations, x.shape[-2])
        each = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        return torch.where(self._real(x, context), each, 0.0).sum((-1, -2))

    def durations(self, z: Tensor, context: Context) -> Tensor:
        """Frames of each letter, (*batch, L): those given, or those of the likeliest alignment."""
        given = entries(context).get("durations")
        means, text, mask = self._means(context), self._text(context), self._real(z, context)
        frames = mask.any(-1).sum(-1)
        if given is not None:
            if not torch.equal(given.sum(-1).expand(frames.shape), frames):
                raise ValueError("Aligned: the durations of the letters do not add up to the frames of the mask")
            return given
        batch = torch.broadcast_shapes(z.shape[:-2], means.shape[:-2])
        flat, wide = z.detach().expand(*batch, *z.shape[-2:]).reshape(-1, *z.shape[-2:]), means.detach()
        wide = wide.expand(*batch, *wide.shape[-2:]).reshape(-1, *wide.shape[-2:])
        scores = wide @ flat.mT - 0.5 * wide.square().sum(-1, keepdim=True)  # but for what no letter changes
        letters = (text > 0).sum(-1).expand(batch).reshape(-1)
        return monotonic_alignment(scores, letters, frames.expand(batch).reshape(-1)).reshape(*batch, means.shape[-2])

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        if "durations" not in entries(context):
            raise ValueError('Aligned: samples need the entry "durations", frames of each letter')
        means = self._means(context)
        event = self.event_shape(context)
        noise = standard_normal(Size((*shape, *event)), means, generator)
        durations = self.durations(noise, context)
        z = _at_frames(means, durations, event[0]) + temperature * noise
        return torch.where(self._real(z, context), z, 0.0)

    def _means(self, context: Context) -> Tensor:
        return self._entry(context, "means")

    def _text(self, context: Context) -> Tensor:
        return self._entry(context, "text")

    @staticmethod
    def _entry(context: Context, name: str) -> Tensor:
        found = entries(context).get(name)
        if found is None:
            raise ValueError(f'Aligned: expected the entry "{name}" in the context, got none')
        return found

    @staticmethod
    def _real(z: Tensor, context: Context) -> Tensor:
        mask = context_mask(context)
        if mask is None:
            return torch.ones(z.shape[-2], 1, dtype=torch.bool, device=z.device).expand(*z.shape[:-1], 1)
        return mask.all(-1, keepdim=True).expand(*z.shape[:-2], -1, -1).expand(*z.shape[:-1], 1)


def _at_frames(means: Tensor, durations: Tensor, frames: int) -> Tensor:
    """The mean of each frame, (*batch, T, C), from those of the letters and their durations; the last goes on."""
    letter = letters_of(durations, frames)
    wide = means.expand(*letter.shape[:-1], *means.shape[-2:])
    return wide.gather(-2, letter.unsqueeze(-1).expand(*letter.shape, means.shape[-1]))
