"""Views of sequences of frames."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    Event,
    as_fixed_event,
    backwards,
    check_event,
    constant_logdet,
    map_mask,
    real_frames,
)
from diffeo.kernels.dispatch import is_traced


class Fold(Transform):
    """Frames that follow each other become one, with all their features: (T, C) to (T / k, k C); volume is preserved.

    Feature i C + c of frame t of z is feature c of frame k t + i of x. A mask is folded along, so lengths must be
    multiples of k: a frame of z is either real or padding.

    Args:
        factor: k, at least 2.
        features: C.

    Raises:
        ValueError: another factor; a number of frames, of the event or of a mask, that k does not divide.

    "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
    https://arxiv.org/abs/2005.11129

    >>> import torch, diffeo
    >>> diffeo.Fold(2, 3)(torch.zeros(5, 8, 3))[0].shape
    torch.Size([5, 4, 6])
    """

    event_ndim = event_ndim_out = 2
    domain = codomain = constraints.independent(constraints.real, 2)

    def __init__(self, factor: int, features: int):
        super().__init__()
        as_fixed_event((factor, features), self)
        if factor < 2:
            raise ValueError(f"Fold: expected a factor of at least 2, got {factor}")
        self.factor, self.features = factor, features
        self.event = (None, features)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Fold")
        self.output_shape(x.shape[-2:])
        return x.unflatten(-2, (-1, self.factor)).flatten(-2), constant_logdet(x.new_zeros(()), x, 2)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, (None, self.factor * self.features), "Fold")
        return z.unflatten(-1, (self.factor, -1)).flatten(-3, -2), constant_logdet(z.new_zeros(()), z, 2)

    def output_shape(self, event: Event) -> Event:
        frames = event[0]
        if frames is not None and frames % self.factor:
            raise ValueError(f"Fold: {frames} frames cannot be folded by {self.factor}; pad them to a multiple of it")
        return None if frames is None else frames // self.factor, self.factor * self.features

    def input_shape(self, event: Event) -> Event:
        return None if event[0] is None else event[0] * self.factor, self.features

    def map_context(self, context: Context) -> Context:
        return map_mask(context, self._fold_mask)

    def unmap_context(self, context: Context) -> Context:
        return map_mask(context, self._unfold_mask)

    def _fold_mask(self, mask: Tensor) -> Tensor:
        if mask.shape[-2] == 1:
            return mask if mask.shape[-1] == 1 else mask.repeat(*(1 for _ in mask.shape[1:]), self.factor)
        self.output_shape(mask.shape[-2:])
        folded = mask.unflatten(-2, (-1, self.factor))  # (frames, k, features)
        whole = folded.all(-2)
        if not is_traced() and not torch.equal(whole, folded.any(-2)):
            raise ValueError(f"Fold: the mask ends in the middle of {self.factor} frames; pad lengths to a multiple")
        return folded.flatten(-2) if mask.shape[-1] > 1 else whole

    def _unfold_mask(self, mask: Tensor) -> Tensor:
        if mask.shape[-1] > 1:
            frames = mask.unflatten(-1, (self.factor, -1)).flatten(-3, -2)
            alike = not is_traced() and torch.equal(frames[..., :1, :].expand_as(frames), frames)
            return frames[..., :1, :] if mask.shape[-2] == 1 and alike else frames
        return mask if mask.shape[-2] == 1 else mask.repeat_interleave(self.factor, -2)


class Reverse(Transform):
    """The frames of a sequence in reverse order, padding left where it is; its own inverse, log-det 0.

    Args:
        features: C.

    "Flowtron: an Autoregressive Flow-based Generative Network for Text-to-Speech Synthesis" (Valle et al., 2020),
    https://arxiv.org/abs/2005.05957

    >>> import torch, diffeo
    >>> x = torch.tensor([[1.0], [2.0], [0.0]])
    >>> diffeo.Reverse(1)(x, {"mask": torch.tensor([[True], [True], [False]])})[0].flatten()
    tensor([2., 1., 0.])
    """

    event_ndim = event_ndim_out = 2
    domain = codomain = constraints.independent(constraints.real, 2)

    def __init__(self, features: int):
        super().__init__()
        self.event = (None, *as_fixed_event(features, self))

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Reverse")
        z = backwards(x, real_frames(context, x.shape[-2]))
        return z, constant_logdet(z.new_zeros(()), z, 2)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.forward(z, context)
