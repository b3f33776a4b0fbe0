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
from diffeo.nets import PositionalAttention, TextEncoder
from diffeo.solvers import alignment_total, monotonic_alignment
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
    """What a voice is trained by: −log p of the spectrogram in nats a number, errors of durations and of attention.

    loss = −log p(mel | text) / (T · mels) + mean (log d̂ − log d)² + attention

    The durations d are those of the context, as `forced_alignment` finds them, or those of the likeliest alignment. A
    flow with attention has the further term −mean log a_t(l(t)), where l(t) is the letter that the durations give to
    frame t; or, without durations in the context, −log of the sum over all monotonic alignments of Π a_t(l(t)), over T.

    Args:
        flow: of `diffeo.glow_tts` or `diffeo.flow_tts`.

    "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
    https://arxiv.org/abs/2005.11129; "One TTS Alignment To Rule Them All" (Badlani et al., 2021),
    https://arxiv.org/abs/2108.10447
    """

    in_nats = False

    def __init__(self, flow: Flow):
        super().__init__()
        _together(flow)
        self.flow = flow

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        log_p, inner, durations = aligned(self.flow, x, context)
        found = entries(inner)
        loss = -log_p / (entries(context)["mask"].sum((-1, -2)) * x.shape[-1])
        text = found["text"] > 0
        wrong = (found["log_durations"] - durations.clamp_min(1).log()).square()
        loss = loss + torch.where(text, wrong, 0.0).sum(-1) / text.sum(-1)
        if "attention" not in found:
            return loss
        letters, steps = text.sum(-1), durations.sum(-1)
        if "durations" not in entries(context):
            return loss - alignment_total(found["attention"].mT, letters, steps) / steps
        attention = found["attention"]
        letter = _letters_of(durations, attention.shape[-2])
        each = attention.gather(-1, letter.unsqueeze(-1)).squeeze(-1)
        real = torch.arange(attention.shape[-2], device=x.device) < steps.unsqueeze(-1)
        return loss - torch.where(real, each, 0.0).sum(-1) / steps

    def initialize(self, x: Tensor, context: Context = None) -> None:
        self.flow.initialize(x, context)


def aligned(flow: Flow, x: Tensor, context: Context) -> tuple[Tensor, Context, Tensor]:
    """log p of spectrograms, the context as the base reads it, and the durations given or likeliest."""
    base: Any = flow.base
    encoded = flow.encode(context)
    z, logdet = flow.transform(x, encoded)
    inner = flow.transform.map_context(encoded)
    if isinstance(base, Aligned):
        durations = base.durations(z, inner)
        return base(z, {**entries(inner), "durations": durations}) + logdet, inner, durations
    found = entries(inner)
    if "durations" in found:
        durations = found["durations"]
    else:
        attention, batch = found["attention"].detach(), found["attention"].shape[:-2]
        letters, frames = (found["text"] > 0).sum(-1), found["mask"].any(-1).sum(-1)
        rows = attention.reshape(-1, *attention.shape[-2:]).mT
        durations = monotonic_alignment(rows, letters.expand(batch).reshape(-1), frames.expand(batch).reshape(-1))
        durations = durations.reshape(*batch, -1)
    return base(z, inner) + logdet, inner, durations


def _letters_of(durations: Tensor, frames: int) -> Tensor:
    """The letter of each frame, (*batch, T); the last one goes on."""
    ends = durations.cumsum(-1)
    letter = (torch.arange(frames, device=durations.device) >= ends.unsqueeze(-1)).sum(-2)
    return letter.clamp_max(durations.shape[-1] - 1)


@torch.no_grad()
def durations_of(flow: Flow, text: Tensor, speaker: int | None = None, tempo: float = 1.0) -> Tensor:
    """How many steps each letter of a text lasts, at least one; a tempo of 2 halves them.

    Raises:
        ValueError: a tempo that is not positive.
    """
    if not 0 < tempo < float("inf"):
        raise ValueError(f"expected a tempo > 0, got {tempo}")
    together = _together(flow)
    # attention wants to know how long the sound is, which changes nothing here
    mask = torch.ones(together * text.shape[-1], 1, dtype=torch.bool)
    encoded = entries(flow.encode({**_context(text, speaker), "mask": mask}))
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
        flow: of `diffeo.glow_tts` or `diffeo.flow_tts`.
        text: (L,) symbols.
        speaker: where there are several.
        tempo: > 0; above one for faster speech.
        temperature: of the noise; 0 for the plainest way to say it.
        durations: steps of each letter, in place of the predicted ones; of Flow-TTS only their sum counts.
        generator: of the noise.
    """
    durations = durations_of(flow, text, speaker, tempo) if durations is None else durations
    together = _together(flow)
    mask = torch.ones(int(durations.sum()) * together, 1, dtype=torch.bool)
    context = {**_context(text, speaker), "mask": mask}
    if isinstance(flow.base, Aligned):
        context["durations"] = durations
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
    if not isinstance(flow.encoder, TextEncoder | PositionalAttention):
        raise ValueError("this flow is no voice; make one by diffeo.glow_tts or diffeo.flow_tts")
    return next(part.factor for part in flow.transform.modules() if isinstance(part, Fold))
