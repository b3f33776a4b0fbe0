"""Flows of speech: mel spectrograms given text."""

from __future__ import annotations

import torch

from diffeo.core import Chain, Flow, Transform
from diffeo.densities import Aligned
from diffeo.nets import TextEncoder, WaveNet
from diffeo.recipes.parts import preset_sizes
from diffeo.recipes.registry import recipe
from diffeo.transforms import ActNorm, Affine, Along, Coupling, Fold, LULinear, Standardize

GLOW_TTS = {
    "tiny": {"blocks": 4, "hidden": 48, "layers": 2, "width": 64, "attention": 2},
    "small": {"blocks": 8, "hidden": 96, "layers": 3, "width": 128, "attention": 3},
    "paper": {"blocks": 12, "hidden": 192, "layers": 4, "width": 192, "attention": 6},
}
TOGETHER = 2  # frames that become one


@recipe(events="sequences")
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
    dropout: float = 0.05,
) -> Flow:
    """Glow-TTS: the density of a mel spectrogram given its text, with the likeliest alignment of letters and frames.

    Events are frames (T, features). The context is a dict: `"text"`, (L,) symbols 1, 2, … with 0 for padding;
    `"mask"`, (T, 1), where a frame is real; `"speaker"`, a number, where there are several; and, for samples,
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
        dropout: in [0, 1).

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
        symbols, folded, width=sizes["width"], layers=sizes["attention"], speakers=speakers, dropout=2 * dropout
    )
    for i in range(sizes["blocks"]):
        net = WaveNet(
            folded // 2,
            folded - folded // 2,
            Affine.n_params,
            hidden=sizes["hidden"],
            layers=sizes["layers"],
            context=sizes["width"] if speakers else 0,
            dropout=dropout,
        )
        parts += [
            Along(ActNorm(folded), -1, 2),
            Along(LULinear(folded), -1, 2),
            Coupling(mask if i % 2 == 0 else ~mask, net, Affine(bound=2.0), dim=-1, event_ndim=2),
        ]
    return Flow(Chain(*parts), Aligned(folded), encoder)
