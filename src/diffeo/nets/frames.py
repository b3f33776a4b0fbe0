"""Encoders of the frames of a spectrogram, and what its bands are."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from diffeo.functional import Context, as_fixed_event, context_mask, entries

QUIET, SMOOTH = 1e-8, 1e-4  # variance of noise in every frame, in itself and as a share of the frame's
CENTRE, SPREAD = -5.0, 3.0  # of log mels, roughly, whatever the recording


class MelEncoder(nn.Module):
    """A spectrogram as features of its frames, for nets that run over the sound: two convolutions over frames.

    With an order it also gives the linear prediction of sound with such a spectrum, for `LinearPrediction`.

    Args:
        mels: of a frame.
        features: of a frame of the result.
        hop: samples from frame to frame; frames beyond a mask of the sound count as padding.
        order: of the linear prediction; 0 for none.
        rate: samples in a second, which the prediction wants to know, and
        window: samples of a window of the spectrogram.

    Returns:
        The context with `"features"`, (*batch, F, features), and perhaps `"prediction"`, (*batch, F, order + 1), from
        its entry `"mel"`, (*batch, F, mels).

    Raises:
        ValueError: sizes below 1; no spectrogram, or one with other mels.

    >>> import torch, diffeo
    >>> diffeo.nets.MelEncoder(8, 4, hop=100)({"mel": torch.zeros(2, 5, 8)})["features"].shape
    torch.Size([2, 5, 4])
    """

    envelope: Tensor
    cosines: Tensor

    def __init__(self, mels: int, features: int, hop: int, *, order: int = 0, rate: int = 0, window: int = 0):
        super().__init__()
        as_fixed_event((mels, features, hop), self)
        self.order = order
        if order:
            as_fixed_event((order, rate, window), self)
            envelope, cosines = _envelope(mels, rate, window), _autocorrelation(window, order)
            self.register_buffer("envelope", envelope, persistent=False)
            self.register_buffer("cosines", cosines, persistent=False)
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
        if mask is not None and mask.shape[-2] > 1:  # one for whole events leaves all frames real
            samples = mask.any(-1).sum(-1)
            batch = torch.broadcast_shapes(batch, samples.shape)
            h = h.reshape(*mel.shape[:-2], *h.shape[1:]).expand(*batch, *h.shape[1:]).reshape(-1, *h.shape[1:])
            # the first frame and the last are centred on the ends of the sound
            last = (samples // self.hop).expand(batch).reshape(-1, 1, 1)
            real = torch.arange(frames, device=h.device) <= last

        def shown(h: Tensor) -> Tensor:
            return h if real is None else torch.where(real, h, 0.0)

        h = self.near(shown(h)).relu()
        h, at = self.far(shown(h)).mT, None
        if real is not None:  # the last one goes on, as it does where there is no padding
            at = torch.minimum(torch.arange(frames, device=h.device), real.sum(-1) - 1)
            h = h.gather(1, at.unsqueeze(-1).expand(h.shape))
        found = {**given, "features": h.reshape(*batch, *h.shape[1:])}
        if self.order:
            taps = self._prediction(mel).expand(*batch, frames, -1)
            if at is not None:
                taps = taps.gather(-2, at.reshape(*batch, frames, 1).expand(taps.shape))
            found["prediction"] = taps.to(torch.promote_types(mel.dtype, torch.float32))  # no conditioner's rounding
        return found

    def _prediction(self, mel: Tensor) -> Tensor:
        """Coefficients and log gain of each frame, (*, F, order + 1), by the normal equations of its spectrum."""
        magnitude = mel.double().exp() @ self.envelope.double().mT
        correlation = magnitude.square() @ self.cosines.double().mT
        floor = QUIET + correlation[..., :1] * (1 + SMOOTH)  # a little noise, or the equations are near singular
        correlation = torch.cat([floor, correlation[..., 1:]], -1)
        lags = torch.arange(self.order, device=mel.device)
        matrix = correlation[..., (lags - lags[:, None]).abs()]
        taps = torch.linalg.solve(matrix, correlation[..., 1:])
        left = correlation[..., 0] - (taps * correlation[..., 1:]).sum(-1)
        return torch.cat([taps, 0.5 * left.clamp_min(QUIET).log().unsqueeze(-1)], -1)


@lru_cache(maxsize=8)
def mel_matrix(rate: int, window: int, mels: int, low: float, high: float) -> Tensor:
    """(mels, window / 2 + 1): triangles of unit area between neighbouring centres on Slaney's mel scale."""
    corners = _corners(mels, low, high)
    bins = np.linspace(0, rate / 2, window // 2 + 1)
    rising = (bins - corners[:-2, None]) / np.diff(corners)[:-1, None]
    falling = (corners[2:, None] - bins) / np.diff(corners)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling)) * (2 / (corners[2:] - corners[:-2]))[:, None]
    return torch.from_numpy(triangles).float()


def _corners(mels: int, low: float, high: float) -> np.ndarray:
    """Edges and centres of the bands in Hz, mels + 2 of them."""
    return np.array([_mel_to_hz(m) for m in np.linspace(_hz_to_mel(low), _hz_to_mel(high), mels + 2)])


def _hz_to_mel(hz: float) -> float:
    """Linear below 1,000 Hz, logarithmic above."""
    return hz / (200 / 3) if hz < 1000 else 15 + math.log(hz / 1000) * 27 / math.log(6.4)


def _mel_to_hz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def _envelope(mels: int, rate: int, window: int) -> Tensor:
    """(window / 2 + 1, mels): from mels to magnitudes of a Fourier transform, between the bands' centres."""
    bins, centres = np.linspace(0, rate / 2, window // 2 + 1), _corners(mels, 0.0, rate / 2)[1:-1]
    between = np.stack([np.interp(bins, centres, unit) for unit in np.eye(mels)], 1)
    return torch.from_numpy(between * rate / window).float()  # a band of unit area sums to window / rate


def _autocorrelation(window: int, order: int) -> Tensor:
    """(order + 1, window / 2 + 1): from squared magnitudes, of a Hann window, to the correlation at each lag."""
    bins = window // 2 + 1
    weights = np.full(bins, 2.0)
    weights[[0, -1]] = 1.0  # the others stand for two frequencies
    power = np.square(np.hanning(window + 1)[:-1]).sum()  # of the window
    angles = np.outer(np.arange(order + 1), np.arange(bins)) * 2 * np.pi / window
    return torch.from_numpy(np.cos(angles) * weights / window / power).float()
