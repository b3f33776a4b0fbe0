"""Speaking: what a voice says, in which style, and what lies between two recordings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.apps.speech.audio import pad_frames
from diffeo.apps.speech.clips import Spoken
from diffeo.apps.speech.prosody import within_reach
from diffeo.apps.speech.voice import align_clip, aligned, context_of, device_of, said_in, timed, together_of
from diffeo.core import Flow
from diffeo.densities import Aligned
from diffeo.functional import entries
from diffeo.kernels import compiled_kernels
from diffeo.nets import AttentiveLSTM
from diffeo.transforms import Autoregressive

LONGEST = 1.5  # times the predicted length, after which speech ends without a gate's word


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
    mask = torch.ones(together * text.shape[-1], 1, dtype=torch.bool, device=device_of(flow))
    encoded = entries(flow.encode({**context_of(flow, text, speaker, prosody), "mask": mask}))
    return (encoded["log_durations"].exp() / tempo).round().clamp_min(1).long()


@torch.no_grad()
@compiled_kernels()
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
    context = timed(flow, text, speaker, durations, prosody)
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
    predicted = durations.sum().to(device_of(flow))
    encoded = flow.encode(timed(flow, text, speaker, (LONGEST * predicted).ceil().long(), prosody))
    inner = entries(chain.map_context(encoded))
    z = flow.base.draw(torch.Size(()), inner, temperature, generator)
    z, _, emitted = last.run(z if style is None else z + style, {**inner, "length": predicted})
    # the median of the length: where it is as likely as not to have stopped
    stopped = (-F.softplus(emitted["stop"]).cumsum(0) <= math.log(0.5)).nonzero()
    z = z[: int(stopped[0]) + 1] if len(stopped) else z
    encoded = flow.encode(timed(flow, text, speaker, torch.tensor(len(z)), prosody))
    for part, context in reversed([*zip(others, chain.contexts(encoded), strict=False)]):
        z = part.inverse(z, context)[0]
    return z


@torch.no_grad()
def style_of(flow: Flow, data: Spoken, prior: float = 1.0) -> Tensor:
    """The style of clips, (C,): the posterior mean of their latents, less the means of their letters.

    n / (n + λ) times the mean over the frames of n clips. Noise of a voice has mean zero, which the prior says as λ
    clips would; that of clips in one manner has another. `say` adds it to the noise. A voice that reads prosody
    explains most of a manner by that: see `usual_prosody`.

    Args:
        flow: of `diffeo.flowtron`, `glow_tts` or `flow_tts`.
        data: the clips.
        prior: λ, at least 0; the more, the less do few clips say.

    Raises:
        ValueError: a negative λ.

    "Flowtron: an Autoregressive Flow-based Generative Network for Text-to-Speech Synthesis" (Valle et al., 2020),
    https://arxiv.org/abs/2005.05957
    """
    if not prior >= 0:
        raise ValueError(f"style_of: expected prior >= 0, got {prior}")
    total, count = torch.zeros((), device=device_of(flow)), 0
    for i in range(len(data)):
        mel, context = data[i]
        z = torch.cat(unlettered(flow, mel, **said_in(context)))
        total, count = total + z.sum(0), count + len(z)
    return total / count * (len(data) / (len(data) + prior))


@torch.no_grad()
@compiled_kernels()
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
    ends = [unlettered(flow, mel, text, speaker, p) for mel, p in zip((a, b), manners, strict=True)]
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
        encoded = flow.encode(timed(flow, text, speaker, durations, manner))
        z = torch.cat(parts)
        if isinstance(flow.base, Aligned):
            z = z + entries(encoded)["means"].repeat_interleave(durations, 0)
        made.append(flow.transform.inverse(z, encoded)[0])
    return made


def unlettered(
    flow: Flow, mel: Tensor, text: Tensor, speaker: int | None, prosody: Tensor | None = None
) -> list[Tensor]:
    """The noise of each letter of a recording, less the letters' means."""
    durations = align_clip(flow, mel, text, speaker, prosody).durations
    # again, with the letters where they will be when the noise is decoded
    padded = pad_frames(mel, together_of(flow)).to(device_of(flow))
    found = aligned(flow, padded, timed(flow, text, speaker, durations, prosody))
    z = found.latent
    if isinstance(flow.base, Aligned):
        z = z - found.context["means"].repeat_interleave(found.durations, 0)
    return list(z.split(durations.tolist()))
