"""How a clip is said, in numbers: pitch, range, loudness, pace; and what a voice knows of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.apps.speech.clips import Spoken
from diffeo.core import Flow
from diffeo.nets import Prosody

PROSODY = ("pitch", "range", "loudness", "pace")
LOWEST, HIGHEST = 60.0, 500.0  # Hz
STEP = 0.01  # seconds from frame to frame
VOICED = 0.45  # of a correlation, above which a frame is voiced
OCTAVE = 0.01  # what an octave further down costs: twice the period correlates as well
QUIET = 0.03  # of the loudest frame, below which nothing is said
FEWEST = 3  # voiced frames of a clip whose pitch is known


def pitch_of(audio: Tensor, rate: int) -> Tensor:
    """Pitch in Hz of sound (N,), every 10 ms, NaN where it is not voiced: the strongest peak of the autocorrelation.

    It is looked for between 60 and 500 Hz; a tone above is heard an octave or more below. Frames are windows of three
    periods of 60 Hz; their autocorrelation is divided by that of the window. Sound of less than a window has no frame.

    "Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise ratio of a sampled sound"
    (Boersma, 1993), https://www.fon.hum.uva.nl/paul/papers/Proceedings_1993.pdf

    >>> import torch
    >>> tone = torch.sin(2 * torch.pi * 220 * torch.arange(8000) / 8000)
    >>> round(float(pitch_of(tone, 8000).median()))
    220
    """
    frames = _frames(audio, rate)
    if not len(frames):
        return frames.new_zeros(0)
    width = frames.shape[1]
    window = torch.hann_window(width, dtype=frames.dtype, device=frames.device)
    centred = (frames - frames.mean(1, keepdim=True)) * window
    correlation = _autocorrelation(centred) / _autocorrelation(window)
    correlation = correlation / correlation[:, :1].clamp_min(1e-12)
    least, most = math.floor(rate / HIGHEST), min(math.ceil(rate / LOWEST), width // 2)
    lags = torch.arange(least, most + 1, device=frames.device)
    before, at, after = (correlation[:, lags + shift] for shift in (-1, 0, 1))
    curve = (2 * at - before - after).clamp_min(1e-12)
    # a parabola through the neighbours of the peak
    height, place = at + (after - before).square() / (8 * curve), lags + 0.5 * (after - before) / curve
    is_peak = (at >= before) & (at > after)
    score = torch.where(is_peak, height - OCTAVE * (place * LOWEST / rate).clamp_min(1e-6).log2(), -torch.inf)
    best = score.argmax(1, keepdim=True)
    loud = frames.square().mean(1).sqrt()
    heard = (height.gather(1, best)[:, 0] > VOICED) & is_peak.any(1) & (loud > QUIET * loud.max())
    return torch.where(heard, rate / place.gather(1, best)[:, 0], torch.nan)


def prosody_of(audio: Tensor, rate: int, letters: int) -> Tensor:
    """How sound (N,) is said, (4,): mean log pitch in Hz, its standard deviation, log loudness, log letters a second.

    Loudness is the root mean square of the hundredths of a second in which something is said, the pace counts from the
    first of these to the last. What cannot be heard is NaN: the pitch of a whisper, everything of silence.

    Args:
        audio: in [−1, 1].
        rate: samples in a second.
        letters: of its text.
    """
    step = max(1, round(STEP * rate))
    short = (
        F.pad(audio.double(), (0, -len(audio) % step)).unflatten(0, (-1, step)) if len(audio) else audio.new_zeros(1, 1)
    )
    loud = short.square().mean(1).sqrt()
    if not float(loud.max()) > 0:
        return torch.full((len(PROSODY),), torch.nan)
    said = loud > QUIET * loud.max()
    at = said.nonzero()[:, 0]
    seconds = min(float(at[-1] - at[0] + 1) * step, len(audio)) / rate
    pitch = pitch_of(audio, rate).log()
    pitch = pitch[pitch.isfinite()]
    enough = len(pitch) >= FEWEST
    found = [
        float(pitch.mean()) if enough else math.nan,
        float(pitch.std(correction=0)) if enough else math.nan,
        float(loud[said].square().mean().sqrt().log()),
        math.log(max(1, letters) / seconds),
    ]
    return torch.tensor(found)


def _frames(audio: Tensor, rate: int) -> Tensor:
    """Overlapping frames (count, width) of three of the longest periods, every 10 ms."""
    width, step = round(3 * rate / LOWEST), max(1, round(STEP * rate))
    audio = audio.double()
    return audio.unfold(0, width, step) if len(audio) >= width else audio.new_zeros(0, width)


def _autocorrelation(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(F.pad(x, (0, x.shape[-1]))).abs().square()
    return torch.fft.irfft(spectrum)[..., : x.shape[-1]]


def usual_prosody(flow: Flow, speaker: int | None = None) -> Tensor | None:
    """The mean prosody of a speaker's training clips, (4,); None of a voice that reads none."""
    found = prosody_part(flow)
    return None if found is None else found.usual(speaker)


def learn_prosody(flow: Flow, data: Spoken) -> None:
    """Learn from all training clips what prosody is usual for each speaker, once; to be called before `diffeo.fit`.

    `fit` by itself shows layers some tens of clips, of which many speakers may have none.

    Raises:
        ValueError: a voice that reads no prosody; clips without it.
    """
    found = reads_prosody(flow)
    if data.prosody is None:
        raise ValueError("learn_prosody: the clips come without prosody; see `prosody_of`")
    speakers = {} if data.speakers is None else {"speaker": torch.stack(data.speakers)}
    found.initialize({"prosody": torch.stack(list(data.prosody)).to(found.mean.device), **speakers})


def within_reach(flow: Flow, prosody: Tensor, speaker: int | None = None) -> Tensor:
    """The prosody nearest to this one, (4,), that a voice can say something with: clips of the speaker came near it.

    Raises:
        ValueError: a voice that reads no prosody.
    """
    return reads_prosody(flow).within(prosody, speaker)


def reads_prosody(flow: Flow) -> Prosody:
    """The part that does, or an error."""
    found = prosody_part(flow)
    if found is None:
        raise ValueError("this voice reads no prosody; make one by a recipe with prosody=4")
    return found


def prosody_part(flow: Flow) -> Prosody | None:
    return next((part for part in flow.modules() if isinstance(part, Prosody)), None)
