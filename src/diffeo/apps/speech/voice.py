"""A voice: training it on spectrograms and texts, speaking, and aligning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.data import Dataset

from diffeo.apps.speech.audio import pad_frames
from diffeo.core import Flow, Objective
from diffeo.densities import Aligned
from diffeo.functional import Context, backwards, entries
from diffeo.nets import AttentiveLSTM, Letters, PositionalAttention, Prosody, TextEncoder
from diffeo.solvers import alignment_total, letters_of, monotonic_alignment
from diffeo.transforms import Autoregressive, Fold

Example = tuple[Tensor, dict[str, Tensor]]
LONGEST = 1.5  # times the predicted length, after which speech ends without a gate's word


class Spoken(Dataset[Example]):
    """Spectrograms with their texts and speakers, as `diffeo.fit` takes them with `collate=join`.

    Args:
        mels: (T, mels) each.
        texts: (L,) symbols 1, 2, … each.
        speakers: numbers, or None for one voice.
        together: frames of which lengths are made a multiple, by repeating the last one.
        durations: (L,) steps of each letter, as `forced_alignment` finds them; None to search for them in training.
        prosody: (4,) numbers each, as `prosody_of` finds them, for voices that read them.

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
        prosody: Sequence[Tensor] | None = None,
    ):
        self.durations, self.prosody = durations, prosody
        self.mels = [pad_frames(mel, together) for mel in mels]
        self.texts = list(texts)
        self.speakers = None if speakers is None else [torch.tensor(n) for n in speakers]
        for i, (mel, text) in enumerate(zip(self.mels, self.texts, strict=True)):
            if len(text) > len(mel) // together:
                raise ValueError(
                    f"clip {i}: {len(text)} letters in {len(mel) // together} steps of sound; every letter needs one"
                )

    @property
    def lengths(self) -> list[int]:
        """Frames of each clip, by which `fit` makes batches of similar ones."""
        return [len(mel) for mel in self.mels]

    def __len__(self) -> int:
        return len(self.mels)

    def __getitem__(self, i: int) -> Example:
        speaker = {} if self.speakers is None else {"speaker": self.speakers[i]}
        durations = {} if self.durations is None else {"durations": self.durations[i]}
        prosody = {} if self.prosody is None else {"prosody": self.prosody[i]}
        return self.mels[i], {"text": self.texts[i], **speaker, **durations, **prosody}


def join(examples: Sequence[Example]) -> Example:
    """Examples of different lengths as a batch: spectrograms and texts padded, and the mask of the frames."""
    pad = torch.nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(mel) for mel, _ in examples])
    mel = pad([mel for mel, _ in examples], batch_first=True)
    mask = (torch.arange(mel.shape[1]) < lengths[:, None]).unsqueeze(-1)
    context = {"text": pad([c["text"] for _, c in examples], batch_first=True), "mask": mask}
    if "durations" in examples[0][1]:
        context["durations"] = pad([c["durations"] for _, c in examples], batch_first=True)
    for name in {"speaker", "prosody"} & set(examples[0][1]):
        context[name] = torch.stack([c[name] for _, c in examples])
    return mel, context


class Voice(Objective):
    """What a voice is trained by: −log p of the spectrogram in nats a number, errors of durations and of attention.

    loss = −log p(mel | text) / numbers + mean (log d̂ − log d)² + attention · miss − log p(stop at T) / T

    Of T steps, pairs of frames. The durations d are those of the context, as `forced_alignment` finds them, or those of
    the likeliest alignment. A flow that attends to letters, a_t at frame t, misses them by −mean log a_t(l(t)), where
    l(t) is the letter that the durations give to frame t; or, without durations in the context, by −log Σ Π a_t(l(t)) /
    T, the sum over all monotonic alignments. Where several layers attend, it is the mean of theirs. A gate that says
    q_t of frame t stops at the last one with the chance p(stop at T) = q_T Π_{t<T} (1 − q_t).

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
            return -alignment_total(attention.mT, letters, steps) / steps
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
def style_of(flow: Flow, data: Spoken) -> Tensor:
    """The style of clips, (C,): the mean of their latents over frames and clips, less the means of their letters.

    Noise of a voice has mean zero; that of clips in one manner does not. `say` adds it to the noise. A voice that reads
    prosody explains most of a manner by that: see `usual_prosody`.

    Args:
        flow: of `diffeo.flowtron`, `glow_tts` or `flow_tts`.
        data: the clips.

    "Flowtron: an Autoregressive Flow-based Generative Network for Text-to-Speech Synthesis" (Valle et al., 2020),
    https://arxiv.org/abs/2005.05957
    """
    total, count = torch.zeros((), device=_device(flow)), 0
    for i in range(len(data)):
        mel, context = data[i]
        z = torch.cat(_unlettered(flow, mel, **_said(context)))
        total, count = total + z.sum(0), count + len(z)
    return total / count


def usual_prosody(flow: Flow, speaker: int | None = None) -> Tensor | None:
    """The mean prosody of a speaker's training clips, (4,); None of a voice that reads none."""
    found = _prosody_part(flow)
    return None if found is None else found.usual(speaker)


def learn_prosody(flow: Flow, data: Spoken) -> None:
    """Learn from all training clips what prosody is usual for each speaker, once; to be called before `diffeo.fit`.

    `fit` by itself shows layers some tens of clips, of which many speakers may have none.

    Raises:
        ValueError: a voice that reads no prosody; clips without it.
    """
    found = _reads_prosody(flow)
    if data.prosody is None:
        raise ValueError("learn_prosody: the clips come without prosody; see `prosody_of`")
    speakers = {} if data.speakers is None else {"speaker": torch.stack(data.speakers)}
    found.initialize({"prosody": torch.stack(list(data.prosody)).to(found.mean.device), **speakers})


def within_reach(flow: Flow, prosody: Tensor, speaker: int | None = None) -> Tensor:
    """The prosody nearest to this one, (4,), that a voice can say something with: clips of the speaker came near it.

    Raises:
        ValueError: a voice that reads no prosody.
    """
    return _reads_prosody(flow).within(prosody, speaker)


def _reads_prosody(flow: Flow) -> Prosody:
    """The part that does, or an error."""
    found = _prosody_part(flow)
    if found is None:
        raise ValueError("this voice reads no prosody; make one by a recipe with prosody=4")
    return found


def _prosody_part(flow: Flow) -> Prosody | None:
    return next((part for part in flow.modules() if isinstance(part, Prosody)), None)


@torch.no_grad()
def durations_of(
    flow: Flow, text: Tensor, speaker: int | None = None, tempo: float = 1.0, prosody: Tensor | None = None
) -> Tensor:
    """How many steps each letter of a text lasts, at least one; a tempo of 2 halves them.

    Raises:
        ValueError: a tempo that is not positive.
    """
    if not 0 < tempo < float("inf"):
        raise ValueError(f"expected a tempo > 0, got {tempo}")
    together = together_of(flow)
    # attention wants to know how long the sound is, which changes nothing here
    mask = torch.ones(together * text.shape[-1], 1, dtype=torch.bool, device=_device(flow))
    encoded = entries(flow.encode({**_context(flow, text, speaker, prosody), "mask": mask}))
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
    style: Tensor | None = None,
    prosody: Tensor | None = None,
    gate: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The spectrogram (T, mels) of a text.

    Args:
        flow: of `diffeo.glow_tts`, `flow_tts` or `flowtron`.
        text: (L,) symbols.
        speaker: where there are several.
        tempo: > 0; above one for faster speech.
        temperature: of the noise; 0 for the plainest way to say it.
        durations: steps of each letter, in place of the predicted ones; of `flowtron`, only their sum counts.
        style: (C,), as `style_of` gives it, or a part of it: the mean of the noise.
        prosody: (4,), in the units of `prosody_of`, of a voice that reads it; None for what is usual for the speaker.
            What is further from that than four standard deviations of the training clips counts as these.
        gate: whether a `flowtron` ends where its gate says, at the median of the length, and after half as long again
            as predicted at the latest.
        generator: of the noise.

    Raises:
        ValueError: a gate of a voice that has none.
    """
    durations = durations_of(flow, text, speaker, tempo, prosody) if durations is None else durations
    if gate:
        return _until_stopped(flow, text, speaker, durations, prosody, temperature, style, generator)
    context = _timed(flow, text, speaker, durations, prosody)
    if style is None:
        return flow.sample((), context, temperature=temperature, generator=generator)
    encoded = flow.encode(context)
    z = flow.base.draw(torch.Size(()), flow.transform.map_context(encoded), temperature, generator)
    return flow.transform.inverse(z + style, encoded)[0]


def _until_stopped(
    flow: Flow,
    text: Tensor,
    speaker: int | None,
    durations: Tensor,
    prosody: Tensor | None,
    temperature: float,
    style: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Speech cut where the gate of its first layer, the last of the flow, stops it."""
    chain: Any = flow.transform
    *others, last = chain.parts
    if not (isinstance(last, Autoregressive) and isinstance(last.net, AttentiveLSTM) and last.net.gate is not None):
        raise ValueError("say: this voice has no gate; make one by diffeo.flowtron, or leave gate out")
    predicted = durations.sum().to(_device(flow))
    encoded = flow.encode(_timed(flow, text, speaker, (LONGEST * predicted).ceil().long(), prosody))
    inner = entries(chain.map_context(encoded))
    z = flow.base.draw(torch.Size(()), inner, temperature, generator)
    z, _, emitted = last.run(z if style is None else z + style, {**inner, "length": predicted})
    # the median of the length: where it is as likely as not to have stopped
    stopped = (-F.softplus(emitted["stop"]).cumsum(0) <= math.log(0.5)).nonzero()
    z = z[: int(stopped[0]) + 1] if len(stopped) else z
    encoded = flow.encode(_timed(flow, text, speaker, torch.tensor(len(z)), prosody))
    for part, context in reversed([*zip(others, chain.contexts(encoded), strict=False)]):
        z = part.inverse(z, context)[0]
    return z


@torch.no_grad()
def interpolate(
    flow: Flow,
    a: Tensor,
    b: Tensor,
    text: Tensor,
    weights: Sequence[float],
    *,
    speaker: int | None = None,
    prosody: tuple[Tensor, Tensor] | None = None,
) -> list[Tensor]:
    """Spectrograms (T, mels) on the way from one recording of a text to another, one for each weight.

    Letters last (1 − w) d_a + w d_b steps, and prosody is (1 − w) p_a + w p_b; the noise of a letter is that of both
    recordings' steps at the same place in it, √(1 − w) z_a + √w z_b, which has the variance of noise for every w, and
    is that of a recording at an end.

    Args:
        flow: of `diffeo.glow_tts`, `flow_tts` or `flowtron`.
        a, b: spectrograms (T, mels) of both recordings.
        text: (L,) symbols of what both say.
        weights: w of each, in [0, 1]; 0 is the first recording, 1 the second.
        speaker: where there are several; that of both.
        prosody: (4,) of each recording, of a voice that reads it; None for what is usual for the speaker.

    Raises:
        ValueError: weights outside [0, 1].
    """
    if not all(0 <= w <= 1 for w in weights):
        raise ValueError(f"interpolate: expected weights in [0, 1], got {list(weights)}")
    manners = [None, None] if prosody is None else [within_reach(flow, p, speaker) for p in prosody]
    ends = [_unlettered(flow, mel, text, speaker, p) for mel, p in zip((a, b), manners, strict=True)]
    made = []
    for w in weights:
        parts = []
        for letter in range(len(text)):
            pieces = [z[letter] for z in ends]
            lasting = round(sum(s * len(p) for s, p in zip((1 - w, w), pieces, strict=True)))
            place = (torch.arange(lasting) + 0.5) / max(lasting, 1)
            at = [piece[(place * len(piece)).long().to(piece.device)] for piece in pieces]
            parts.append((1 - w) ** 0.5 * at[0] + w**0.5 * at[1])
        durations = torch.tensor([len(part) for part in parts], device=parts[0].device)
        manner = None if prosody is None else torch.lerp(*manners, w)  # pyright: ignore (then both are tensors)
        encoded = flow.encode(_timed(flow, text, speaker, durations, manner))
        z = torch.cat(parts)
        if isinstance(flow.base, Aligned):
            z = z + entries(encoded)["means"].repeat_interleave(durations, 0)
        made.append(flow.transform.inverse(z, encoded)[0])
    return made


def _unlettered(
    flow: Flow, mel: Tensor, text: Tensor, speaker: int | None, prosody: Tensor | None = None
) -> list[Tensor]:
    """The noise of each letter of a recording, less the letters' means."""
    durations = _aligned_clip(flow, mel, text, speaker, prosody).durations
    # again, with the letters where they will be when the noise is decoded
    padded = pad_frames(mel, together_of(flow)).to(_device(flow))
    found = aligned(flow, padded, _timed(flow, text, speaker, durations, prosody))
    z = found.latent
    if isinstance(flow.base, Aligned):
        z = z - found.context["means"].repeat_interleave(found.durations, 0)
    return list(z.split(durations.tolist()))


@torch.no_grad()
def sharpness(flow: Flow, data: Spoken) -> float:
    """How sure a voice is which letter a frame is of, in (0, 1]: mean share of the likeliest one over frames.

    The shares are those of attention, of the layer that is least sure; or, of `glow_tts`, the letters' by their
    densities at the frame. `flow_tts` attends without looking at sound, so that its share says how long letters are.
    """
    total, count = 0.0, 0
    for i in range(len(data)):
        mel, context = data[i]
        found = _aligned_clip(flow, mel, **_said(context))
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
    return _aligned_clip(flow, mel, text, speaker, prosody).durations * together_of(flow)


def _said(context: Mapping[str, Tensor]) -> dict[str, Any]:
    """What is said in a clip, by whom and how."""
    speaker = context.get("speaker")
    return {
        "text": context["text"],
        "speaker": None if speaker is None else int(speaker),
        "prosody": context.get("prosody"),
    }


def _aligned_clip(
    flow: Flow, mel: Tensor, text: Tensor, speaker: int | None, prosody: Tensor | None = None
) -> Alignment:
    padded = pad_frames(mel, together_of(flow)).to(_device(flow))
    mask = torch.ones(len(padded), 1, dtype=torch.bool, device=padded.device)
    return aligned(flow, padded, {**_context(flow, text, speaker, prosody), "mask": mask})


def _context(flow: Flow, text: Tensor, speaker: int | None, prosody: Tensor | None = None) -> dict[str, Tensor]:
    found = {"text": text}
    if speaker is not None:
        found["speaker"] = torch.tensor(speaker)
    if prosody is not None:
        _reads_prosody(flow)
        found["prosody"] = prosody
    return {name: t.to(_device(flow)) for name, t in found.items()}


def _timed(
    flow: Flow, text: Tensor, speaker: int | None, durations: Tensor, prosody: Tensor | None = None
) -> dict[str, Tensor]:
    """The context of sound whose letters last so long; a flow that finds their places itself gets their sum alone."""
    mask = torch.ones(int(durations.sum()) * together_of(flow), 1, dtype=torch.bool, device=_device(flow))
    known = {} if isinstance(flow.encoder, Letters) else {"durations": durations.to(mask.device)}
    return {**_context(flow, text, speaker, prosody), "mask": mask, **known}


def _device(flow: Flow) -> torch.device:
    return next(flow.parameters()).device


def together_of(flow: Flow) -> int:
    """Frames that make a step of the base."""
    if not isinstance(flow.encoder, TextEncoder | PositionalAttention | Letters):
        raise ValueError("this flow is no voice; make one by diffeo.glow_tts, flow_tts or flowtron")
    return next(part.factor for part in flow.transform.modules() if isinstance(part, Fold))
