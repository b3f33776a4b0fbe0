"""Flows of speech: mel spectrograms given text."""

from __future__ import annotations

import torch

from diffeo.core import Chain, Flow, Transform
from diffeo.densities import Aligned, Normal
from diffeo.nets import AttentiveLSTM, Beside, FrameMap, Letters, PositionalAttention, TextEncoder, WaveNet
from diffeo.recipes.parts import preset_sizes
from diffeo.recipes.registry import recipe
from diffeo.transforms import (
    ActNorm,
    Affine,
    Along,
    Autoregressive,
    Coupling,
    Fold,
    Grouped,
    LULinear,
    Partial,
    Reverse,
    Standardize,
)

GLOW_TTS = {
    "tiny": {"blocks": 4, "hidden": 48, "layers": 2, "width": 64, "attention": 2},
    "small": {"blocks": 8, "hidden": 96, "layers": 3, "width": 128, "attention": 3},
    "paper": {"blocks": 12, "hidden": 192, "layers": 4, "width": 192, "attention": 6},
}
FLOW_TTS = {
    "tiny": {"blocks": 4, "hidden": 48, "layers": 2, "width": 64, "attention": 2},
    "small": {"blocks": 9, "hidden": 96, "layers": 3, "width": 128, "attention": 3},
    "paper": {"blocks": 10, "hidden": 256, "layers": 4, "width": 512, "attention": 3},
}
FLOWTRON = {
    "tiny": {"flows": 2, "hidden": 128, "width": 64, "attention": 64, "depth": 1, "dense": 1},
    "small": {"flows": 2, "hidden": 256, "width": 128, "attention": 128, "depth": 1, "dense": 1},
    "paper": {"flows": 2, "hidden": 1024, "width": 512, "attention": 640, "depth": 2, "dense": 2},
}
TOGETHER = 2  # frames that become one


@recipe(events="spectrograms")
def glow_tts(
    features: int,
    symbols: int,
    *,
    preset: str = "small",
    blocks: int | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    width: int | None = None,
    attention: int | None = None,
    speakers: int = 0,
    prosody: int = 0,
    dropout: float = 0.05,
    grouped: int = 0,
) -> Flow:
    """Glow-TTS: the density of a mel spectrogram given its text, with the likeliest alignment of letters and frames.

    Events are frames (T, features). The context is a dict: `"text"`, (L,) symbols 1, 2, … with 0 for padding;
    `"mask"`, (T, 1), where a frame is real; `"speaker"`, a number, where there are several; `"prosody"`, numbers that
    say how the clip is said, which are those usual for the speaker where they are NaN or missing; and, for samples,
    `"durations"`, (L,), how many pairs of frames each letter lasts. T is even, and no less than 2 L.

    Two frames become one; then `blocks` of activation norm, linear map and affine coupling by a WaveNet. The base has
    the mean of the letter that a frame belongs to and unit variance: text is read nowhere else, so that temperature and
    the flow are about how it is said. `diffeo.apps.speech` trains it and speaks.

    Args:
        features: of a frame, such as 80 mels.
        symbols: how many there are.
        preset: "tiny", "small" or "paper", which set the next five where these are None.
        blocks: of the flow.
        hidden: channels of each WaveNet.
        layers: of each WaveNet.
        width: of the letters' vectors.
        attention: layers of the text encoder.
        speakers: how many there are; 0 for one voice.
        prosody: how many numbers say how a clip is said, such as its pitch; 0 for none.
        dropout: in [0, 1).
        grouped: channels of each group that linear maps mix, 4 as published; 0 for maps of all channels at once.

    Returns:
        A `Flow`; without `"durations"` its log-density is that of the likeliest alignment.

    Raises:
        ValueError: an unknown preset; sizes outside these.

    Cost: one pass for a density and one for a sample, both in parallel over frames; the alignment, O(L · T).

    "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
    https://arxiv.org/abs/2005.11129

    >>> import torch, diffeo
    >>> flow = diffeo.glow_tts(8, 30, preset="tiny")
    >>> context = {"text": torch.tensor([3, 1, 4]), "mask": torch.ones(12, 1, dtype=torch.bool)}
    >>> flow(torch.zeros(12, 8), context).shape
    torch.Size([])
    """
    asked = {"blocks": blocks, "hidden": hidden, "layers": layers, "width": width, "attention": attention}
    sizes = preset_sizes("glow_tts", GLOW_TTS, preset, **asked)
    folded = TOGETHER * features
    parts: list[Transform] = [Along(Standardize(features), -1, 2), Fold(TOGETHER, features)]
    mask = torch.arange(folded) < folded // 2
    encoder = TextEncoder(
        symbols,
        folded,
        width=sizes["width"],
        layers=sizes["attention"],
        speakers=speakers,
        prosody=prosody,
        dropout=2 * dropout,
    )
    for i in range(sizes["blocks"]):
        net = WaveNet(
            folded // 2,
            folded - folded // 2,
            Affine.n_params,
            hidden=sizes["hidden"],
            layers=sizes["layers"],
            context=sizes["width"] if speakers or prosody else 0,
            dropout=dropout,
        )
        parts += [
            Along(ActNorm(folded), -1, 2),
            Along(Grouped(LULinear(grouped), folded) if grouped else LULinear(folded), -1, 2),
            Coupling(mask if i % 2 == 0 else ~mask, net, Affine(bound=2.0), dim=-1, event_ndim=2),
        ]
    return Flow(Chain(*parts), Aligned(folded), encoder)


@recipe(events="spectrograms")
def flow_tts(
    features: int,
    symbols: int,
    *,
    preset: str = "small",
    blocks: int | None = None,
    hidden: int | None = None,
    layers: int | None = None,
    width: int | None = None,
    attention: int | None = None,
    speakers: int = 0,
    prosody: int = 0,
    dropout: float = 0.05,
    strength: float = 1.0,
    stages: int = 3,
    listens: bool = True,
) -> Flow:
    """Flow-TTS: the density of a mel spectrogram given its text, by attention from the places of frames to letters.

    Events and context are those of `glow_tts`; letters lie where the context's durations put them, or, without any, the
    predicted ones, stretched to the length of the sound; their sum predicts that length, of which the paper has one
    number for each text. Two frames become one; then `blocks` of activation norm, linear map and affine coupling by a
    WaveNet of gated tanh units, beside what each frame hears of the text, which both of their factors read, in the
    paper the gate alone; after each of the `stages` but the last, a quarter of the channels leaves. The last layer
    shifts and scales all channels by what is heard alone, so that the noise has the mean of its letter, which the
    paper leaves to the couplings; the base is a standard normal. `diffeo.apps.speech` trains it and speaks.

    Args:
        features: of a frame, such as 80 mels.
        symbols: how many there are.
        preset: "tiny", "small" or "paper", which set the next five where these are None.
        blocks: of the flow.
        hidden: channels of each WaveNet.
        layers: of each WaveNet.
        width: of the letters' vectors.
        attention: layers of the text encoder.
        speakers: how many there are; 0 for one voice.
        prosody: how many numbers say how a clip is said, such as its pitch; 0 for none.
        dropout: in [0, 1).
        strength: of the prior that keeps attention near the letters' places, in 1 / pairs of frames; 0 for none.
        stages: 1 to 4, equal shares of the blocks; with 1, no channel leaves early.
        listens: whether couplings read what is heard; otherwise the last layer alone does.

    Raises:
        ValueError: an unknown preset; sizes outside these.

    Cost: one pass for a density and one for a sample, both in parallel over frames.

    "Flow-TTS: A Non-Autoregressive Network for Text to Speech Based on Flow" (Miao et al., 2020),
    https://doi.org/10.1109/ICASSP40776.2020.9054484

    >>> import torch, diffeo
    >>> flow = diffeo.flow_tts(8, 30, preset="tiny")
    >>> context = {"text": torch.tensor([3, 1, 4]), "mask": torch.ones(12, 1, dtype=torch.bool)}
    >>> flow.sample((), context).shape
    torch.Size([12, 8])
    """
    asked = {"blocks": blocks, "hidden": hidden, "layers": layers, "width": width, "attention": attention}
    sizes = preset_sizes("flow_tts", FLOW_TTS, preset, **asked)
    folded, count = TOGETHER * features, sizes["blocks"]
    if not 1 <= stages <= 4:
        raise ValueError(f"flow_tts: expected 1 to 4 stages, got {stages}")
    parts: list[Transform] = [Along(Standardize(features), -1, 2), Fold(TOGETHER, features)]
    for i in range(count):
        left = folded // 4 * (stages * i // count)
        kept = folded - left
        mask = torch.arange(kept) < kept // 2
        mask = mask if i % 2 == 0 else ~mask
        net = WaveNet(
            int(mask.sum()),
            kept - int(mask.sum()),
            Affine.n_params,
            hidden=sizes["hidden"],
            layers=sizes["layers"],
            beside=Beside("features", sizes["width"], 1.0) if listens else None,
            dropout=dropout,
        )
        step = Chain(
            Along(ActNorm(kept), -1, 2),
            Along(LULinear(kept), -1, 2),
            Coupling(mask, net, Affine(bound=2.0), dim=-1, event_ndim=2),
        )
        parts.append(Partial(step, torch.arange(folded) >= left) if left else step)
    heard = FrameMap(folded, Affine.n_params, beside=Beside("features", sizes["width"], 1.0))
    none = torch.zeros(folded, dtype=torch.bool)
    parts.append(Coupling(none, heard, Affine(bound=2.0), dim=-1, event_ndim=2))
    encoder = PositionalAttention(
        symbols,
        sizes["width"],
        layers=sizes["attention"],
        together=TOGETHER,
        speakers=speakers,
        prosody=prosody,
        dropout=2 * dropout,
        strength=strength,
    )
    return Flow(Chain(*parts), Normal((None, folded)), encoder)


@recipe(events="spectrograms")
def flowtron(
    features: int,
    symbols: int,
    *,
    preset: str = "small",
    flows: int | None = None,
    hidden: int | None = None,
    width: int | None = None,
    attention: int | None = None,
    depth: int | None = None,
    dense: int | None = None,
    speakers: int = 0,
    prosody: int = 0,
    dropout: float = 0.1,
    strength: float = 1.0,
    gate: bool = True,
) -> Flow:
    """Flowtron: the density of a mel spectrogram given its text, from frame to frame, by LSTMs that attend to letters.

    Events and context are those of `glow_tts`, without durations, and a sound may be shorter than its text. Two frames
    become one; each of the `flows` scales and shifts a frame by what an `AttentiveLSTM` makes of those before it and of
    the text, every other one from the last frame to the first. The base is a standard normal, whose mean over clips is
    their style. `diffeo.apps.speech` trains it and speaks; the length of speech comes from predicted durations, or from
    the gate of the last flow, whose steps come first in speech.

    Args:
        features: of a frame, such as 80 mels.
        symbols: how many there are.
        preset: "tiny", "small" or "paper", which set the next six where these are None.
        flows: at least 1.
        hidden: of the LSTMs.
        width: of the letters' vectors.
        attention: width of the attention.
        depth: layers of the LSTM that reads frames and text.
        dense: layers after it.
        speakers: how many there are; 0 for one voice.
        prosody: how many numbers say how a clip is said, such as its pitch; 0 for none.
        dropout: of the text encoder, in [0, 1).
        strength: of the prior that keeps attention near the diagonal; 0 for none.
        gate: whether the last flow learns which frame is the last.

    Raises:
        ValueError: an unknown preset; sizes outside these.

    Cost: both directions run from frame to frame, at a cost of O(hidden² + L · attention) each.

    "Flowtron: an Autoregressive Flow-based Generative Network for Text-to-Speech Synthesis" (Valle et al., 2020),
    https://arxiv.org/abs/2005.05957

    >>> import torch, diffeo
    >>> flow = diffeo.flowtron(8, 30, preset="tiny")
    >>> context = {"text": torch.tensor([3, 1, 4]), "mask": torch.ones(12, 1, dtype=torch.bool)}
    >>> flow.sample((), context).shape
    torch.Size([12, 8])
    """
    asked = {"flows": flows, "hidden": hidden, "width": width, "attention": attention, "depth": depth, "dense": dense}
    sizes = preset_sizes("flowtron", FLOWTRON, preset, **asked)
    folded = TOGETHER * features
    parts: list[Transform] = [Along(Standardize(features), -1, 2), Fold(TOGETHER, features)]
    for i in range(sizes["flows"]):
        net = AttentiveLSTM(
            folded,
            Affine.n_params,
            width=sizes["width"],
            hidden=sizes["hidden"],
            attention=sizes["attention"],
            depth=sizes["depth"],
            dense=sizes["dense"],
            strength=strength,
            backward=i % 2 == 1,
            gate=gate and i == sizes["flows"] - 1,
        )
        parts += [*([Reverse(folded)] if i else []), Autoregressive(net, Affine(), dim=-2, event_ndim=2)]
    encoder = Letters(symbols, sizes["width"], speakers=speakers, prosody=prosody, dropout=dropout)
    return Flow(Chain(*parts), Normal((None, folded)), encoder)
