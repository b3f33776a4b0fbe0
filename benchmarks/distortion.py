"""How far clips are from recordings of the same words: mel cepstra, pitch, voicing and energy on the best path in time.

Cepstra are the discrete cosine transform of log mels; pitch is Praat's (praat-parselmouth).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.fft import dct
from torch import Tensor

from diffeo.apps import speech as tools

CEPSTRA = 13
FAINTEST = -60.0  # dB, below which nothing is told apart
DECIBELS = 10 * math.sqrt(2) / math.log(10)


def distortion(made: list[Tensor], recorded: list[Tensor], settings: tools.Mel) -> dict[str, float]:
    """Mean over pairs of sounds: mel-cepstral distortion in dB, log-F0 error in cents, share of frames voiced wrongly,
    and the error of the energy of frames in dB.

    Both are stretched onto each other by dynamic time warping of their cepstra; the error of log-F0 is the root mean
    square over frames that are voiced in both, that of energy over all frames.
    """
    cepstral, pitch, voicing, energy = [], [], [], []
    for a, b in zip(made, recorded, strict=True):
        x, y = (cepstra(sound, settings) for sound in (a, b))
        i, j = warped(x, y)
        cepstral.append(DECIBELS * np.linalg.norm(x[i] - y[j], axis=1).mean())
        f, g = (log_pitch(sound, settings, n) for sound, n in ((a, len(x)), (b, len(y))))
        f, g = f[i], g[j]
        voicing.append(np.mean(np.isnan(f) != np.isnan(g)))
        d, e = loudness(a, settings)[i], loudness(b, settings)[j]
        energy.append(np.sqrt(np.square(d - e).mean()))
        both = ~np.isnan(f) & ~np.isnan(g)
        if both.any():
            pitch.append(1200 / math.log(2) * np.sqrt(np.square(f - g)[both].mean()))
    return {
        "mcd": float(np.mean(cepstral)),
        "cents": float(np.mean(pitch)) if pitch else math.nan,
        "voicing": float(np.mean(voicing)),
        "energy": float(np.mean(energy)),
    }


def cepstra(sound: Tensor, settings: tools.Mel) -> np.ndarray:
    """Mel cepstra of each frame, loudness left out, (T, CEPSTRA − 1)."""
    return dct(tools.to_mel(sound, settings).double().numpy(), norm="ortho")[:, 1:CEPSTRA]


def loudness(sound: Tensor, settings: tools.Mel) -> np.ndarray:
    """Energy of each frame in dB of full scale, at least FAINTEST."""
    half = settings.window // 2
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound.double().numpy(), half), settings.window)
    power = np.square(frames[:: settings.hop]).mean(1)
    return 10 * np.log10(np.maximum(power, 10 ** (FAINTEST / 10)))


def log_pitch(sound: Tensor, settings: tools.Mel, frames: int) -> np.ndarray:
    """Natural logarithm of the pitch in Hz at each frame, NaN where there is none."""
    import parselmouth

    found = parselmouth.Sound(np.pad(sound.double().numpy(), 400), settings.rate).to_pitch(pitch_floor=60)
    times = np.arange(frames) * settings.hop / settings.rate + 400 / settings.rate
    hertz = np.array([found.get_value_at_time(t) for t in times])
    return np.log(hertz)


def mean_hertz(sounds: list[Tensor], settings: tools.Mel) -> float:
    """Geometric mean of the pitch over all voiced frames."""
    logs = [log_pitch(sound, settings, len(sound) // settings.hop) for sound in sounds]
    return float(np.exp(np.nanmean(np.concatenate(logs))))


def warped(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The path of least total distance through both, by dynamic time warping: frames of x and of y."""
    away = np.linalg.norm(x[:, None] - y[None], axis=-1)
    n, m = away.shape
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0
    for i in range(n):
        for j in range(m):
            total[i + 1, j + 1] = away[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    i, j, path = n, m, []
    while i and j:
        path.append((i - 1, j - 1))
        back = int(np.argmin([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]]))
        i, j = i - (back != 2), j - (back != 1)
    rows = np.array(path[::-1])
    return rows[:, 0], rows[:, 1]
