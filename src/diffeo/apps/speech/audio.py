"""Sound as mel spectrograms and back, and sound files.

A mel spectrogram is log(max(M |STFT|, 1e−5)): a Hann window of `window` samples every `hop`, frames centred, mirrored
ends, and M the triangles of Slaney's mel scale, each of unit area.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.nets.frames import mel_matrix
from diffeo.storage import replacing

FLOOR = 1e-5  # of magnitudes, before the logarithm
LOUDEST = 10.0  # sample of a recording; whole numbers kept as such are far beyond
ENDLESS = 0x7FFF0000  # bytes; headers of sound that was written to a pipe say so much or more
SCALINGS = 3  # of magnitudes in a round, towards the sums of their bands


class Mel(NamedTuple):
    """How sound becomes a mel spectrogram.

    Attributes:
        rate: samples in a second.
        window: samples of a window.
        hop: samples from frame to frame.
        mels: features of a frame.
        low, high: edges of the bands, in Hz.
    """

    rate: int = 16000
    window: int = 1024
    hop: int = 256
    mels: int = 80
    low: float = 0.0
    high: float = 8000.0

    @property
    def bands(self) -> tuple[int, int, int, float, float]:
        """What their matrix depends on."""
        return self.rate, self.window, self.mels, self.low, self.high

    @classmethod
    def of(cls, rate: int) -> Mel:
        """For sound of that rate: windows of 64 ms every 12.5 ms, 64 mels below 11 kHz and 80 from there on.

        Fewer, and bands are wider than the harmonics of low voices lie apart, whose pitch is then lost.
        """
        window = 2 ** round(math.log2(0.064 * rate))
        return cls(rate, window, round(0.0125 * rate), 64 if rate < 11_000 else 80, 0.0, rate / 2)

    def ends(self, frames: Tensor, total: int) -> Tensor:
        """When letters that last so many frames each, (L,), end in sound of so many frames; in seconds.

        Frames are centred at multiples of the hop, so that f of them last (f − ½) hops.
        """
        return (frames.cumsum(-1).clamp_max(total).double() - 0.5).clamp_min(0) * self.hop / self.rate


def to_mel(audio: Tensor, settings: Mel) -> Tensor:
    """Mel spectrogram (*batch, T, mels) of sound (*batch, N) in [−1, 1], T = 1 + N // hop.

    Raises:
        ValueError: sound shorter than half a window.

    >>> import torch
    >>> to_mel(torch.zeros(16000), Mel()).shape
    torch.Size([63, 80])
    """
    if audio.shape[-1] <= settings.window // 2:
        raise ValueError(f"to_mel: {audio.shape[-1]} samples are too few for windows of {settings.window}")
    magnitude = _stft(audio.reshape(-1, audio.shape[-1]), settings).abs()  # (rows, bins, T)
    mel = (mel_matrix(*settings.bands).to(magnitude) @ magnitude).clamp_min(FLOOR).log().mT
    return mel.reshape(*audio.shape[:-1], *mel.shape[1:])


def from_mel(
    mel: Tensor,
    settings: Mel,
    *,
    rounds: int = 60,
    momentum: float = 0.99,
    fixed: bool = False,
    seed: int = 0,
    start: Tensor | None = None,
) -> Tensor:
    """Sound (*batch, N) whose mel spectrogram is close to this one, N = max(1, T − 1) · hop.

    Each round makes sound of a spectrum and takes the spectrum of that sound, as Griffin and Lim do, and keeps its
    phases. Its magnitudes are kept too, scaled towards the band sums asked for: within a band they settle by
    themselves, where an inverse of the bands would smear harmonics over it. Outside all bands there is silence.

    Args:
        mel: (*batch, T, mels).
        settings: those of the spectrogram.
        rounds: at least 0.
        momentum: of the fast Griffin-Lim algorithm, at least 0; with 0 it is the one of 1984.
        fixed: whether magnitudes are held at those of nonnegative least squares, as usual for Griffin-Lim.
        seed: of the first phases.
        start: (*batch, N), sound whose spectrum comes first, such as a vocoder's, in place of phases of chance.

    Cost: two Fourier transforms of the sound in each round, and six products with the matrix of the bands.

    "Signal Estimation from Modified Short-Time Fourier Transform" (Griffin and Lim, 1984),
    https://doi.org/10.1109/TASSP.1984.1164317; "A Fast Griffin-Lim Algorithm" (Perraudin et al., 2013),
    https://doi.org/10.1109/WASPAA.2013.6701851; on magnitudes that are found with the phases, "Signal Reconstruction
    from Mel-spectrogram Based on Bi-level Consistency of Full-band Magnitude and Phase" (Masuyama et al., 2023),
    https://arxiv.org/abs/2307.12232
    """
    frames, enough = mel.shape[-2], settings.window // (2 * settings.hop) + 2  # or windows are longer than the sound
    bands = mel.reshape(-1, *mel.shape[-2:]).mT.exp()
    if frames < enough:
        bands = F.pad(bands, (0, enough - frames), mode="replicate")
    matrix = mel_matrix(*settings.bands).to(bands)
    # louder than this no sound in [−1, 1] is, but what a voice says that has hardly learned
    bands = torch.minimum(bands, settings.window / 2 * matrix.sum(1)[:, None])
    share = matrix / matrix.sum(0).clamp_min(1e-8)  # of each band in each bin

    def bound(magnitude: Tensor) -> Tensor:
        """Magnitudes whose sums over the bands are closer to those asked for."""
        for _ in range(SCALINGS):
            magnitude = magnitude * (share.mT @ (bands / (matrix @ magnitude).clamp_min(FLOOR / 10)))
        return magnitude

    count = bands.shape[-1]
    if start is None:
        shape, generator = (len(bands), matrix.shape[1], count), torch.Generator().manual_seed(seed)
        phase = 2 * math.pi * torch.rand(shape, generator=generator).to(bands)
        magnitude = _least_squares(matrix, bands)
    else:
        sound = start.reshape(-1, start.shape[-1]).to(bands)
        needed = (count - 1) * settings.hop
        first = _stft(F.pad(sound, (0, max(0, needed - sound.shape[-1]))), settings)[..., :count]
        phase = first.angle()
        magnitude = _least_squares(matrix, bands) if fixed else bound(first.abs() + FLOOR)
    guess = torch.polar(magnitude, phase)
    last = torch.zeros_like(guess)
    for _ in range(rounds):
        again = _stft(_istft(guess, settings), settings)[..., :count]
        ahead = again + momentum * (again - last)
        last, size = again, ahead.abs()
        guess = (magnitude if fixed else bound(size)) * ahead / size.clamp_min(1e-9)
    audio = _istft(guess, settings)[..., : max(1, frames - 1) * settings.hop]
    return audio.reshape(*mel.shape[:-2], -1)


def _least_squares(matrix: Tensor, bands: Tensor) -> Tensor:
    """Nonnegative magnitudes whose sums over the bands are close to these, smooth within a band."""
    magnitude = (torch.linalg.pinv(matrix) @ bands).clamp_min(0)
    for _ in range(30):  # multiplicative steps
        magnitude = (magnitude + 1e-8) * (matrix.mT @ bands) / (matrix.mT @ (matrix @ magnitude) + 1e-8)
    return magnitude


def _stft(audio: Tensor, settings: Mel) -> Tensor:
    window = torch.hann_window(settings.window, dtype=audio.dtype, device=audio.device)
    return torch.stft(audio, settings.window, settings.hop, window=window, pad_mode="reflect", return_complex=True)


def _istft(spectrum: Tensor, settings: Mel) -> Tensor:
    window = torch.hann_window(settings.window, dtype=spectrum.real.dtype, device=spectrum.device)
    return torch.istft(spectrum, settings.window, settings.hop, window=window)


def read_audio(path: str | os.PathLike[str], rate: int | None = None) -> tuple[Tensor, int, list[str]]:
    """Sound of a file as (N,) in [−1, 1], its rate, and remarks: channels mixed, another rate, a file cut short.

    Raises:
        ValueError: a file that is missing, damaged or no sound; samples that are NaN, or far beyond 1.
    """
    soundfile = _soundfile()
    path, notes = Path(path), []
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, expected a recording' if path.is_dir() else 'no such file'}")
    try:
        with soundfile.SoundFile(path) as file:
            own, promised, header = file.samplerate, file.frames, file.extra_info
            found = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"{path}: no sound that can be read ({str(error) or 'damaged'})") from None
    if not np.isfinite(found).all():
        raise ValueError(f"{path}: it holds samples that are not finite")
    if found.size and np.abs(found).max() > LOUDEST:
        raise ValueError(f"{path}: it holds samples up to {np.abs(found).max():.0f}, expected −1 … 1; scale them")
    sizes = [tuple(map(int, pair)) for pair in _SIZES.findall(header)]
    if len(found) < promised or any(there < said < ENDLESS for said, there in sizes):
        notes.append("cut short: it holds less sound than it says")
    if found.shape[1] > 1:
        notes.append(f"{found.shape[1]} channels were mixed to one")
    audio = found.mean(1)
    if rate is not None and own != rate:
        import soxr

        audio = soxr.resample(audio, own, rate)
        notes.append(f"resampled from {own} to {rate} Hz")
    return torch.from_numpy(np.ascontiguousarray(audio)), rate or own, notes


def write_audio(audio: Tensor, path: str | os.PathLike[str], rate: int) -> None:
    """Write (N,) in [−1, 1] as 16-bit sound; louder sound is scaled down. The file appears whole or not at all.

    Raises:
        ValueError: an ending that names no format of sound; samples that are not finite.
    """
    soundfile, path = _soundfile(), Path(path)
    known = path.suffix[1:].upper()
    if known not in soundfile.available_formats():
        raise ValueError(f"{path}: expected .wav, .flac or .ogg, got {path.suffix or 'no ending'!r}")
    if not bool(audio.isfinite().all()):
        raise ValueError(f"{path}: the sound holds samples that are not finite")
    if not audio.numel():
        raise ValueError(f"{path}: there is no sound to write")
    audio = audio.detach().cpu() / audio.detach().abs().max().clamp_min(1.0).cpu()
    with replacing(path) as temporary:
        soundfile.write(temporary, audio.numpy(), rate, format=known)


def pad_frames(mel: Tensor, multiple: int) -> Tensor:
    """The spectrogram (T, mels) with its last frame repeated up to a multiple."""
    missing = -len(mel) % multiple
    return F.pad(mel.mT.unsqueeze(0), (0, missing), mode="replicate")[0].mT if missing else mel


_SIZES = re.compile(r": (\d+) \(should be (\d+)\)")  # what libsndfile remarks about a header


def _soundfile():
    try:
        import soundfile
    except ImportError:
        raise ImportError("sound needs soundfile and soxr: pip install 'diffeo[speech]'") from None
    return soundfile
