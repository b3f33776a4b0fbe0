"""How far the spectra of two sounds are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WINDOWS = (256, 512, 1024)
LEAST = 1e-4  # magnitudes below it are as good as silence


def spectral_error(x: Tensor, y: Tensor, windows: Sequence[int] = WINDOWS) -> Tensor:
    """The multi-resolution STFT error of sounds y beside x: the mean over windows of

    |X − Y| / |X| + mean |log X − log Y|, with X and Y the magnitudes of their spectra, at least 1e-4.

    It has gradients, so that a student's samples can be pulled towards recordings:
    `Distillation(student, teacher, extra=lambda x, y: spectral_error(x[..., 0], y[..., 0]))`.

    Args:
        x, y: (*batch, N), sound in [−1, 1].
        windows: samples in a window; each moves by a quarter of its length.

    Returns:
        (*batch,).

    Raises:
        ValueError: sounds of different shapes, or not longer than half of a window.

    "Parallel WaveGAN: A Fast Waveform Generation Model Based on Generative Adversarial Networks with Multi-Resolution
    Spectrogram" (Yamamoto et al., 2019), https://arxiv.org/abs/1910.11480

    >>> import torch
    >>> spectral_error(torch.zeros(5, 2000), torch.zeros(5, 2000))
    tensor([0., 0., 0., 0., 0.])
    """
    if x.shape != y.shape:
        raise ValueError(f"spectral_error: expected sounds of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.shape[-1] <= max(windows) // 2:
        raise ValueError(f"spectral_error: {x.shape[-1]} samples are too few for windows of {max(windows)}")
    errors = []
    for size in windows:
        a, b = (_magnitudes(sound, size) for sound in (x, y))
        apart = torch.linalg.vector_norm(a - b, dim=(-2, -1)) / torch.linalg.vector_norm(a, dim=(-2, -1))
        errors.append(apart + (a.log() - b.log()).abs().mean((-2, -1)))
    return torch.stack(errors).mean(0).reshape(x.shape[:-1])


def _magnitudes(sound: Tensor, size: int) -> Tensor:
    """(rows, bins, T); the gradient of a magnitude ends where it is as good as silence."""
    window = torch.hann_window(size, dtype=sound.dtype, device=sound.device)
    found = torch.stft(sound.reshape(-1, sound.shape[-1]), size, size // 4, window=window, return_complex=True)
    return (found.real.square() + found.imag.square()).clamp_min(LEAST**2).sqrt()
