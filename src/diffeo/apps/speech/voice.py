"""A voice: training it on spectrograms and texts, and aligning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.apps.speech.audio import pad_frames
from diffeo.apps.speech.clips import Spoken, join
from diffeo.apps.speech.prosody import reads_prosody
from diffeo.core import Flow, Objective
from diffeo.densities import Aligned
from diffeo.functional import Context, backwards, entries
from diffeo.kernels import compiled_kernels
from diffeo.nets import AttentiveLSTM, Letters, PositionalAttention, TextEncoder
from diffeo.solvers import ctc_alignment_loss, letters_of, monotonic_alignment
from diffeo.transforms import Autoregressive, Fold

TOGETHER = 16  # clips that are measured at once


class Voice(Objective):
    """What a voice is trained by: −log p of the spectrogram in nats a number, errors of durations and of attention.

    loss = −log p(mel | text) / numbers + mean (log d̂ − log d)² + attention · miss − log p(stop at T) / T

    Of T steps, pairs of frames. The durations d are those of the context, as `forced_alignment` finds them, or those of
    the likeliest alignment. A flow that attends to letters, a_t at frame t, misses them by −mean log a_t(l(t)), where
    l(t) is the letter that the durations give to frame t; or, without durations in the context, by
    `ctc_alignment_loss`. Where several layers attend, it is the mean of theirs. A gate that says q_t of frame t stops
    at the last one with the chance p(stop at T) = q_T Π_{t<T} (1 − q_t).

    Args:
        flow: of `diffeo.glow_tts`, `flow_tts` or `flowtron`.
        attention: the weight of what attention misses, at least 0.

    Raises:
        ValueError: another flow; a negative weight.

    "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
    https://arxiv.org/abs/2005.11129; "One TTS Alignment To Rule Them All" (Badlani et al., 2021),
    https://arxiv.org/abs/2108.10447
    """

    in_nats = False

    def __init__(self, flow: Flow, *, attention: float = 1.0):
        super().__init__()
        together_of(flow)
        if not attention >= 0:
            raise ValueError(f"Voice: expected attention >= 0, got {attention}")
        self.flow, self.attention = flow, attention

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        found = aligned(self.flow, x, context)
        loss = -found.log_prob / (entries(context)["mask"].sum((-1, -2)) * x.shape[-1])
        text, durations = found.context["text"] > 0, found.durations
        wrong = (found.context["log_durations"] - durations.clamp_min(1).log()).square()
        loss = loss + torch.where(text, wrong, 0.0).sum(-1) / text.sum(-1)
        for attention in found.attention if self.attention else ():
            miss = self._miss(attention, text.sum(-1), durations, "durations" in entries(context))
            loss = loss + self.attention / len(found.attention) * miss
        return loss if found.stop is None else loss + self._stop(found.stop, entries(context)["mask"])

    def initialize(self, x: Tensor, context: Context = None) -> None:
        self.flow.initialize(x, context)

    def _stop(self, stop: Tensor, mask: Tensor) -> Tensor:
        """−log of the chance of a gate to stop where sound ends, for each step."""
        steps = mask.any(-1).sum(-1).unsqueeze(-1) // together_of(self.flow)
        at = torch.arange(stop.shape[-1], device=stop.device)
        each = torch.where(at == steps - 1, F.softplus(-stop), F.softplus(stop))
        return torch.where(at < steps, each, 0.0).sum(-1) / steps.squeeze(-1)

    @staticmethod
    def _miss(attention: Tensor, letters: Tensor, durations: Tensor, known: bool) -> Tensor:
        steps, frames = durations.sum(-1), attention.shape[-2]
        if not known:
            return ctc_alignment_loss(attention, letters, steps)
        each = attention.gather(-1, letters_of(durations, frames).unsqueeze(-1)).squeeze(-1)
        real = torch.arange(frames, device=steps.device) < steps.unsqueeze(-1)
        return -torch.where(real, each, 0.0).sum(-1) / steps


class Alignment(NamedTuple):
    """A batch of spectrograms as a voice sees them.

    Attributes:
        log_prob: of each.
        latent: (*batch, T, C), noise where the flow is right.
        context: as the base reads it.
        durations: (*batch, L), steps of each letter: those given, or the likeliest.
        attention: its logarithm in each layer that attends, (*batch, T, L).
        stop: (*batch, T), the logit of a gate in the order of its steps; None where there is none.
    """

    log_prob: Tensor
    latent: Tensor
    context: Mapping[str, Tensor]
    durations: Tensor
    attention: list[Tensor]
    stop: Tensor | None = None


def aligned(flow: Flow, x: Tensor, context: Context) -> Alignment:
    """log p of spectrograms, and the durations given, or likeliest by the base or by attention."""
    base: Any = flow.base
    inner: Context = flow.encode(context)
    z, logdet, attention, stop = x, torch.zeros((), device=x.device), [], None
    parts: list[Any] = list(flow.transform.parts)  # pyright: ignore
    for part in parts:
        if isinstance(part, Autoregressive) and isinstance(part.net, AttentiveLSTM):
            params, heard, ends = part.net.listen(part.visible(z, inner), inner)
            stop = stop if ends is None else ends
            z, slopes = part.map_scalars(z, params.to(z.dtype), inner, "forward")
            logdet = logdet + slopes.sum((-1, -2))
            frames = entries(inner)["mask"].any(-1).sum(-1)
            attention.append(backwards(heard, frames) if part.net.backward else heard)
        else:
            z, change = part(z, inner)
            logdet = logdet + change
        inner = part.map_context(inner)
    found = entries(inner)
    attention += [found["attention"]] if "attention" in found else []
    if isinstance(base, Aligned):
        durations = base.durations(z, inner)
        return Alignment(base(z, {**found, "durations": durations}) + logdet, z, found, durations, attention)
    if "durations" in found:
        durations = found["durations"]
    else:
        scores = torch.stack(attention).mean(0).detach().mT
        batch, letters, frames = scores.shape[:-2], (found["text"] > 0).sum(-1), found["mask"].any(-1).sum(-1)
        rows = scores.reshape(-1, *scores.shape[-2:])
        durations = monotonic_alignment(rows, letters.expand(batch).reshape(-1), frames.expand(batch).reshape(-1))
        durations = durations.reshape(*batch, scores.shape[-2])
    return Alignment(base(z, inner) + logdet, z, found, durations, attention, stop)


@torch.no_grad()
@compiled_kernels()
def nats(flow: Flow, data: Spoken) -> float:
    """−log p of spectrograms given their texts, in nats a number of theirs: the mean over clips, at least one.

    Where the durations of letters are not known, `glow_tts` gives the density of the likeliest alignment.
    """
    if not len(data):
        raise ValueError("nats: expected at least one clip")
    total = 0.0
    for i in range(0, len(data), TOGETHER):
        x, context = join([data[j] for j in range(i, min(i + TOGETHER, len(data)))])
        device = device_of(flow)
        x, context = x.to(device), {name: t.to(device) for name, t in context.items()}
        found = aligned(flow, x, context)
        total -= float((found.log_prob / (context["mask"].sum((-1, -2)) * x.shape[-1])).sum())
    return total / len(data)


@torch.no_grad()
def sharpness(flow: Flow, data: Spoken) -> float:
    """How sure a voice is which letter a frame is of, in (0, 1]: mean share of the likeliest one over frames.

    The shares are those of attention, of the layer that is least sure; or, of `glow_tts`, the letters' by their
    densities at the frame. `flow_tts` attends without looking at sound, so that its share says how long letters are.
    """
    total, count = 0.0, 0
    for i in range(len(data)):
        mel, context = data[i]
        found = align_clip(flow, mel, **said_in(context))
        if isinstance(flow.base, Aligned):
            away = torch.cdist(found.latent, found.context["means"])
            layers = [(-0.5 * away.square()).log_softmax(-1)]
        else:
            layers = found.attention
        shares = torch.stack([layer.exp().amax(-1) for layer in layers])
        total, count = total + float(shares.mean(-1).min()) * len(mel), count + len(mel)
    return total / count


@torch.no_grad()
def align(flow: Flow, mel: Tensor, text: Tensor, speaker: int | None = None, prosody: Tensor | None = None) -> Tensor:
    """How many frames of a recording's spectrogram (T, mels) each letter of its text lasts, (L,).

    `flow_tts` does not look at sound: its letters last as predicted, stretched to the length of the recording.
    """
    return align_clip(flow, mel, text, speaker, prosody).durations * together_of(flow)


def said_in(context: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is said in a clip, by whom and how."""
    speaker = context.get("speaker")
    return {
        "text": context["text"],
        "speaker": None if speaker is None else int(speaker),
        "prosody": context.get("prosody"),
    }


def align_clip(flow: Flow, mel: Tensor, text: Tensor, speaker: int | None, prosody: Tensor | None = None) -> Alignment:
    padded = pad_frames(mel, together_of(flow)).to(device_of(flow))
    mask = torch.ones(len(padded), 1, dtype=torch.bool, device=padded.device)
    return aligned(flow, padded, {**context_of(flow, text, speaker, prosody), "mask": mask})


def context_of(flow: Flow, text: Tensor, speaker: int | None, prosody: Tensor | None = None) -> dict[str, Tensor]:
    found = {"text": text}
    if speaker is not None:
        found["speaker"] = torch.tensor(speaker)
    if prosody is not None:
        reads_prosody(flow)
        found["prosody"] = prosody
    return {name: t.to(device_of(flow)) for name, t in found.items()}


def timed(
    flow: Flow, text: Tensor, speaker: int | None, durations: Tensor, prosody: Tensor | None = None
) -> dict[str, Tensor]:
    """The context of sound whose letters last so long; a flow that finds their places itself gets their sum alone."""
    mask = torch.ones(int(durations.sum()) * together_of(flow), 1, dtype=torch.bool, device=device_of(flow))
    known = {} if isinstance(flow.encoder, Letters) else {"durations": durations.to(mask.device)}
    return {**context_of(flow, text, speaker, prosody), "mask": mask, **known}


def device_of(flow: Flow) -> torch.device:
    return next(flow.parameters()).device


def together_of(flow: Flow) -> int:
    """Frames that make a step of the base."""
    if not isinstance(flow.encoder, TextEncoder | PositionalAttention | Letters):
        raise ValueError("this flow is no voice; make one by diffeo.glow_tts, flow_tts or flowtron")
    return next(part.factor for part in flow.transform.modules() if isinstance(part, Fold))
