"""Writes librosa_mels.npz: log mels of a made-up sound by librosa, which tests compare ours with.

pip install librosa; python tests/librosa_mels.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SETTINGS = {"speech": (16000, 1024, 256, 80, 0.0, 8000.0), "digits": (8000, 512, 100, 40, 0.0, 4000.0)}


def sound(rate: int) -> np.ndarray:
    """A quarter of a second: a rising tone with noise and a silent end."""
    t = np.arange(rate // 4) / rate
    noise = np.random.default_rng(0).normal(size=len(t))
    tone = np.sin(2 * np.pi * (200 * t + 4000 * t**2)) * 0.5 + 0.01 * noise
    return np.where(t < 0.2, tone, 1e-4 * noise).astype(np.float32)


def main() -> None:
    import librosa  # pyright: ignore[reportMissingImports] (no dependency: its figures are stored)

    mels = {}
    for name, (rate, window, hop, n, low, high) in SETTINGS.items():
        magnitudes = np.abs(librosa.stft(sound(rate), n_fft=window, hop_length=hop, pad_mode="reflect"))
        bands = librosa.filters.mel(sr=rate, n_fft=window, n_mels=n, fmin=low, fmax=high)
        mels[name] = np.log(np.maximum(bands @ magnitudes, 1e-5)).T
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **mels)


if __name__ == "__main__":
    main()
