"""A voice: training it on spectrograms and texts, speaking, and aligning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffeo.apps.speech.audio import pad_frames
from diffeo.core import Flow, Objective
from diffeo.densities import Aligned
from diffeo.functional import Context, entries
from diffeo.transforms import Fold

Example = tuple[Tensor, dict[str, Tensor]]


class Spoken(Dataset[Example]):
    """Spectrograms with their texts and speakers, as `diffeo.fit` takes them with `collate=join`.

    Args:
        mels: (T, mels) each.
        texts: (L,) symbols 1, 2, … each.
        speakers: numbers, or None for one voice.
        together: frames of which lengths are made a multiple, by repeating the last one.
        durations: (L,) steps of each letter, as `forced_alignment` finds them; None to search for them in training.

    Raises:
        ValueError: a text with more letters than steps of its spectrogram, by number.
    """

    def __init__(
        self,
        mels: Sequence[Tensor],
        texts: Sequence[Tensor],
        speakers: Sequence[int] | None = None,
        together: int = 2,
        durations: Sequence[Tensor] | None = None,
    ):
        self.durations = durations
        self.mels = [pad_frames(mel, together) for mel in mels]
        self.texts = list(texts)
        self.speakers = None if speakers is None else [torch.tensor(n) for n in speakers]
        for i, (mel, text) in enumerate(zip(self.mels, self.texts, strict=True)):
            if len(text) > len(mel) // together:
                raise ValueError(
                    f"clip {i}: {len(text)} letters in {len(mel) // together} steps of sound; every letter needs one"
                )

    def __len__(self) -> int:
        return len(self.mels)

    def __getitem__(self, i: int) -> Example:
        speaker = {} if self.speakers is None else {"speaker": self.speakers[i]}
        durations = {} if self.durations is None else {"durations": self.durations[i]}
        return self.mels[i], {"text": self.texts[i], **speaker, **durations}


def join(examples: Sequence[Example]) -> Example:
    """Examples of different lengths as a batch: spectrograms and texts padded, and the mask of the frames."""
    pad = torch.nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(mel) for mel, _ in examples])
    mel = pad([mel for mel, _ in examples], batch_first=True)
    mask = (torch.arange(mel.shape[1]) < lengths[:, None]).unsqueeze(-1)
    context = {"text": pad([c["text"] for _, c in examples], batch_first=True), "mask": mask}
    if "durations" in examples[0][1]:
        context["durations"] = pad([c["durations"] for _, c in examples], batch_first=True)
    if "speaker" in examples[0][1]:
        context["speaker"] = torch.stack([c["speaker"] for _, c in examples])
    return mel, context


class Voice(Objective):
    """What a voice is trained by: −log p of the spectrogram in nats a number, and the error of the durations.

    loss = −log p(mel | text) / (T · mels) + mean (log d̂ − log d)², with d the durations of the likeliest alignment.

    Args:
        flow: of `diffeo.glow_tts`.

    "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
    https://arxiv.org/abs/2005.11129
    """

    in_nats = False

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        log_p, inner, durations = aligned(self.flow, x, context)
        numbers = entries(context)["mask"].sum((-1, -2)) * x.shape[-1]
        text, guess = entries(inner)["text"] > 0, entries(inner)["log_durations"]
        wrong = (guess - durations.clamp_min(1).log()).square()
        return -log_p / numbers + torch.where(text, wrong, 0.0).sum(-1) / text.sum(-1)

    def initialize(self, x: Tensor, context: Context = None) -> None:
        self.flow.initialize(x, context)


def aligned(flow: Flow, x: Tensor, context: Context) -> tuple[Tensor, Context, Tensor]:
    """log p of spectrograms, the context as the base reads it, and the durations of the likeliest alignment."""
    base: Any = flow.base
    encoded = flow.encode(context)
    z, logdet = flow.transform(x, encoded)
    inner = flow.transform.map_context(encoded)
    durations = base.durations(z, inner)
    return base(z, {**entries(inner), "durations": durations}) + logdet, inner, durations


@torch.no_grad()
def durations_of(flow: Flow, text: Tensor, speaker: int | None = None, tempo: float = 1.0) -> Tensor:
    """How many steps each letter of a text lasts, at least one; a tempo of 2 halves them.

    Raises:
        ValueError: a tempo that is not positive.
    """
    if not 0 < tempo < float("inf"):
        raise ValueError(f"expected a tempo > 0, got {tempo}")
    encoded = entries(flow.encode(_context(text, speaker)))
    return (encoded["log_durations"].exp() / tempo).round().clamp_min(1).long()


@torch.no_grad()
def say(
    flow: Flow,
    text: Tensor,
    *,
    speaker: int | None = None,
    tempo: float = 1.0,
    temperature: float = 0.667,
    durations: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The spectrogram (T, mels) of a text.

    Args:
        flow: of `diffeo.glow_tts`.
        text: (L,) symbols.
        speaker: where there are several.
        tempo: > 0; above one for faster speech.
        temperature: of the noise; 0 for the plainest way to say it.
        durations: steps of each letter, in place of the predicted ones.
        generator: of the noise.
    """
    durations = durations_of(flow, text, speaker, tempo) if durations is None else durations
    together = _together(flow)
    mask = torch.ones(int(durations.sum()) * together, 1, dtype=torch.bool)
    context = {**_context(text, speaker), "mask": mask, "durations": durations}
    return flow.sample((), context, temperature=temperature, generator=generator)


@torch.no_grad()
def align(flow: Flow, mel: Tensor, text: Tensor, speaker: int | None = None) -> Tensor:
    """How many frames of a recording's spectrogram (T, mels) each letter of its text lasts, (L,)."""
    together = _together(flow)
    padded = pad_frames(mel, together)
    context = {**_context(text, speaker), "mask": torch.ones(len(padded), 1, dtype=torch.bool)}
    return aligned(flow, padded, context)[2] * together


def _context(text: Tensor, speaker: int | None) -> dict[str, Tensor]:
    return {"text": text, **({} if speaker is None else {"speaker": torch.tensor(speaker)})}


def _together(flow: Flow) -> int:
    """Frames that make a step of the base."""
    if not isinstance(flow.base, Aligned):
        raise ValueError("this flow is no voice; make one by diffeo.glow_tts")
    return next(part.factor for part in flow.transform.modules() if isinstance(part, Fold))
