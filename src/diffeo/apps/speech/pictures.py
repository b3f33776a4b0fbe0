"""Pictures of speech."""

from __future__ import annotations

import io

import torch
from torch import Tensor

LINE = (255, 80, 0)  # its colour
TALL, WIDE = 6, 10  # pixels of a band and of a frame


def spectrogram_png(mel: Tensor, frames: Tensor | None = None) -> bytes:
    """A spectrogram as a PNG, low bands below, with a line where each letter begins.

    Args:
        mel: (T, mels).
        frames: (L,), how many frames each letter lasts, as `align` gives it; None for no lines.

    Raises:
        ImportError: without Pillow.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('pictures of speech need Pillow: pip install "diffeo[speech]"') from error

    mel, frames = mel.cpu(), None if frames is None else frames.cpu()
    low, high = mel.min(), mel.max()
    shades = ((mel - low) / (high - low).clamp_min(1e-6) * 255).to(torch.uint8).T.flip(0)
    pixels = shades.unsqueeze(-1).repeat_interleave(TALL, 0).repeat_interleave(WIDE, 1).repeat(1, 1, 3)
    if frames is not None:
        begins = (WIDE * frames.cumsum(0)[:-1]).clamp_max(pixels.shape[1] - 1)
        pixels[:, begins] = torch.tensor(LINE, dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().numpy()).save(buffer, "PNG")
    return buffer.getvalue()
