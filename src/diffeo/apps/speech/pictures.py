"""Pictures of speech."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

LINE = (255, 80, 0)  # its colour
TALL, WIDE = 6, 10  # pixels of a band and of a frame
SIZE = 14  # of letters, in pixels
ROWS = 2  # of letters, so that short ones do not cover each other


def spectrogram_png(mel: Tensor, frames: Tensor | None = None, letters: Sequence[str] = ()) -> bytes:
    """A spectrogram as a PNG, low bands below, with a line where each letter begins, and below it the letter.

    Args:
        mel: (T, mels).
        frames: (L,), how many frames each letter lasts, as `align` gives it; None for no lines.
        letters: L of them, or phonemes, written in DejaVu Sans; none for lines alone.

    Raises:
        ImportError: without Pillow.
        ValueError: another number of letters than of `frames`.
    """
    if letters and (frames is None or len(letters) != len(frames)):
        raise ValueError(f"{len(letters)} letters, {0 if frames is None else len(frames)} durations")
    try:
        from PIL import Image, ImageDraw, ImageFont, ImageOps
    except ImportError as error:
        raise ImportError('pictures of speech need Pillow: pip install "diffeo[speech]"') from error

    mel, frames = mel.cpu(), None if frames is None else frames.cpu()
    low, high = mel.min(), mel.max()
    shades = ((mel - low) / (high - low).clamp_min(1e-6) * 255).to(torch.uint8).T.flip(0)
    pixels = shades.unsqueeze(-1).repeat_interleave(TALL, 0).repeat_interleave(WIDE, 1).repeat(1, 1, 3)
    begins = [0] if frames is None else [0, *(WIDE * frames.cumsum(0)[:-1]).clamp_max(pixels.shape[1] - 1).tolist()]
    pixels[:, begins[1:]] = torch.tensor(LINE, dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    if letters:
        import matplotlib

        font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), SIZE)
        height = picture.height
        picture = ImageOps.expand(picture, (0, 0, 0, ROWS * (SIZE + 4)), "white")
        draw, ends = ImageDraw.Draw(picture), [0.0] * ROWS
        for begin, letter in zip(begins, letters, strict=True):
            row = min(range(ROWS), key=lambda row: max(ends[row] - begin, 0))  # the first that is free here
            draw.text((begin + 2, height + row * (SIZE + 4)), letter, "black", font)
            ends[row] = begin + 4 + font.getlength(letter)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
