"""Vocoders: training flows of sound on recordings, and sound from spectrograms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.data import Dataset

from diffeo.apps.speech.audio import Mel, from_mel, to_mel
from diffeo.core import Flow, Objective
from diffeo.functional import Context
from diffeo.kernels import compiled_kernels
from diffeo.transforms import Fold

NOISE = 2.0**-12  # half of its range, added to sound: digital silence has no density of its own
SEGMENT = 0.4  # seconds
ORDER = 16  # of linear predictions


class Sounds(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Segments of recordings beside their spectrograms, as `diffeo.fit` takes them for a vocoder.

    A clip is cut into segments that follow each other, the last one from its end; spectrograms are those of the whole
    clip. Noise of 12 bits is added, the same at each visit.

    Args:
        clips: sound (N,) in [−1, 1] each, at the rate of the settings.
        settings: of the spectrograms.
        seconds: of a segment; clips that are shorter are filled up with silence.
        multiple: of which segments have samples, beside that of the hop.
        seed: of the noise.

    Raises:
        ValueError: no clip.

    >>> import torch
    >>> data = Sounds([torch.zeros(16000)], Mel(), multiple=16)
    >>> len(data), data[0][0].shape, data[0][1]["mel"].shape
    (3, torch.Size([6400, 1]), torch.Size([26, 80]))
    """

    def __init__(
        self,
        clips: Sequence[Tensor],
        settings: Mel,
        *,
        seconds: float = SEGMENT,
        multiple: int = 1,
        seed: int = 0,
    ):
        if not len(clips):
            raise ValueError("Sounds: expected at least one clip")
        step = math.lcm(settings.hop, multiple)
        self.settings, self.size = settings, step * max(1, round(seconds * settings.rate / step))
        generator = torch.Generator().manual_seed(seed)
        self.clips: list[Tensor] = []
        self.mels: list[Tensor] = []
        self.places: list[tuple[int, int]] = []
        for i, clip in enumerate(clips):
            least = max(len(clip), self.size, settings.window // 2 + 1)
            whole = -(-least // settings.hop) * settings.hop  # a number of hops
            clip = F.pad(clip, (0, whole - len(clip)))
            clip = clip + NOISE * (2 * torch.rand(whole, generator=generator) - 1)
            self.clips.append(clip)
            self.mels.append(to_mel(clip, settings))
            last = whole - self.size
            self.places += [(i, min(a, last)) for a in range(0, last + self.size, self.size) if a < last + self.size]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        i, begin = self.places[n]
        hop = self.settings.hop
        mel = self.mels[i][begin // hop : (begin + self.size) // hop + 1]
        return self.clips[i][begin : begin + self.size].unsqueeze(-1), {"mel": mel}


class Vocoder(Objective):
    """−log p of sound given its spectrogram, in nats a sample.

    Args:
        flow: of `diffeo.waveglow`, `waveflow` or `wavenet`.
    """

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        return -self.flow(x, context) / x.shape[-2]

    def initialize(self, x: Tensor, context: Context = None) -> None:
        self.flow.initialize(x, context)


@torch.no_grad()
@compiled_kernels()
def vocode(
    flow: Flow,
    mel: Tensor,
    settings: Mel,
    *,
    temperature: float = 0.8,
    rounds: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sound (N,) with this spectrogram, as a vocoder makes it; N = (T − 1) · hop.

    Args:
        flow: of `diffeo.waveglow`, `waveflow`, `wavenet` or `parallel_wavenet`.
        mel: (T, mels).
        settings: those of the spectrogram.
        temperature: of the noise, at least 0.
        rounds: of `from_mel`, which begin with the flow's sound and pull its spectrogram towards the one asked for; 0
            for the flow's sound alone.
        generator: of the noise.

    Raises:
        ValueError: a spectrogram of fewer than two frames, or with other mels.

    Cost: a sample of the flow, and the rounds.
    """
    if mel.ndim != 2 or len(mel) < 2:
        raise ValueError(f"vocode: expected a spectrogram (T, mels) of at least 2 frames, got {tuple(mel.shape)}")
    wanted = (len(mel) - 1) * settings.hop
    padded = -(-wanted // multiple_of(flow)) * multiple_of(flow)
    device = next(flow.parameters()).device
    context = {"mel": mel.to(device), "mask": torch.ones(padded, 1, dtype=torch.bool, device=device)}
    sound = flow.sample((), context, temperature=temperature, generator=generator)[:wanted, 0]
    return from_mel(context["mel"], settings, rounds=rounds, start=sound) if rounds else sound


def prediction(settings: Mel, order: int = ORDER) -> dict[str, int]:
    """The arguments by which `waveglow` and `waveflow` begin with a linear prediction from such spectrograms.

    Raises:
        ValueError: bands that do not reach from 0 to half the rate.
    """
    if settings.low != 0 or settings.high != settings.rate / 2:
        raise ValueError(f"prediction: expected bands from 0 to half the rate, got {settings.low} to {settings.high}")
    return {"order": order, "rate": settings.rate, "window": settings.window}


def multiple_of(flow: Flow) -> int:
    """Of what a flow of sound needs a multiple of samples."""
    return next((part.factor for part in flow.transform.modules() if isinstance(part, Fold)), 1)
