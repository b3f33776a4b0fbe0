"""SRFlow: large images given small ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.core import Chain, Flow, Transform
from diffeo.densities import Dequantized, Normal
from diffeo.functional import Context
from diffeo.nets import ConvNet, LowResolution
from diffeo.nets.conv import require_map
from diffeo.recipes.images.parts import coupling, image_shape, normed_mix
from diffeo.recipes.parts import preset_sizes
from diffeo.recipes.registry import recipe
from diffeo.transforms import Affine, Along, Coupling, Multiscale, Shift, Squeeze, Standardize

SRFLOW = {
    "tiny": {"scales": 2, "layers": 2, "hidden": 16, "features": 16, "blocks": 1},
    "small": {"scales": 2, "layers": 4, "hidden": 32, "features": 32, "blocks": 2},
    "paper": {"scales": 3, "layers": 16, "hidden": 64, "features": 64, "blocks": 23},
}
TRANSITION = 2  # steps without a coupling after each squeeze


@recipe(events="images")
def srflow(
    shape: Sequence[int],
    *,
    scale: int = 4,
    preset: str = "small",
    scales: int | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    features: int | None = None,
    blocks: int | None = None,
    classes: int = 0,
    levels: int = 256,
) -> Dequantized:
    """SRFlow: the density of a large image given a small one, by a multiscale flow that reads its features everywhere.

    An encoder of residual-in-residual dense blocks runs once; it gives a guess of the large image, of which the flow
    models what is missing, and feature maps that every step reads: an affine injection sets shift and scale of all
    channels from them, an affine coupling reads them beside half of the channels. The guess starts as the bicubic
    enlargement that shrinks to the small image again (`nets.LowResolution`).

    Args:
        shape: (C, H, W) of the large images.
        scale: by how much larger they are than the small ones, a power of two; the context is those, (C, H / scale,
            W / scale), of whole numbers too.
        preset: "tiny", "small" or "paper" (4×, as for DIV2K), which set the next five where these are None.
        scales: how often the sides are halved, at least 1.
        layers: conditional steps at each scale.
        hidden: channels of the conditioners.
        features: of the maps.
        blocks: of the encoder.
        classes: number of classes; the context is then `{"features": small images, "label": 0 … classes − 1}`; 0 for
            none.
        levels: of the values 0 … levels − 1.

    Returns:
        A `Dequantized` flow; `sample(context=small, temperature=0.8)` are large images, `temperature=0` that of
        the mode of the noise.

    Raises:
        ValueError: an unknown preset; sides that cannot be halved so often or divided by `scale`.

    Cost: one pass of the encoder, and one of the flow, for a bound on the log-probability or a sample.

    "SRFlow: Learning the Super-Resolution Space with Normalizing Flow" (Lugmayr et al., 2020),
    https://arxiv.org/abs/2006.14200

    >>> import torch, diffeo
    >>> flow = diffeo.srflow((1, 8, 8), scale=2, preset="tiny")
    >>> flow.sample(5, torch.zeros(1, 4, 4), temperature=0.8).shape
    torch.Size([5, 1, 8, 8])
    """
    asked = {"scales": scales, "layers": layers, "hidden": hidden, "features": features, "blocks": blocks}
    sizes = preset_sizes("srflow", SRFLOW, preset, **asked)
    event = image_shape("srflow", shape, sizes["scales"])
    if scale < 2 or scale & (scale - 1):
        raise ValueError(f"srflow: expected a scale of 2, 4, 8, …, got {scale}")
    if event[1] % scale or event[2] % scale:
        raise ValueError(f"srflow: {event[1]}×{event[2]} images cannot be {scale} times as large as others")
    encoder = LowResolution(
        event[0],
        (event[1] // scale, event[2] // scale),
        scale=scale,
        scales=sizes["scales"],
        features=sizes["features"],
        blocks=sizes["blocks"],
        classes=classes,
        levels=levels,
    )
    everything = torch.zeros(event[0], dtype=torch.bool)
    first: list[Transform] = [
        Coupling(everything, Guess(event[0], levels), Shift(), dim=-3),
        Along(Standardize(event[0]), -3),
    ]
    stages: list[Transform] = []
    channels = event[0]
    for i in range(1, sizes["scales"] + 1):
        channels, map = 4 * channels, (f"scale{i}", sizes["features"])
        reads: dict[str, Any] = {"hidden": sizes["hidden"], "map": map, "context": classes}
        parts: list[Transform] = [Squeeze(channels=channels // 4)]
        for j in range(TRANSITION + sizes["layers"]):
            parts.append(normed_mix(channels))
            if j >= TRANSITION:
                parts += [
                    _injection(channels, **reads),
                    coupling(channels, j % 2 == 0, Affine(bound=2.0), **reads),
                ]
        last = i == sizes["scales"]
        parts.append(_injection(channels, **reads) if last else coupling(channels, True, Affine(bound=2.0), **reads))
        stages.append(Chain(*first, *parts))
        first, channels = [], channels // 2
    flow = Flow(Multiscale(*stages, event=event), Normal(event[0] * event[1] * event[2]), encoder)
    return Dequantized(flow, levels=levels)


class Guess(nn.Module):
    """The encoder's guess of an image, as what is taken from each of its numbers."""

    def __init__(self, channels: int, levels: int):
        super().__init__()
        self.channels, self.levels = channels, levels
        self.reads = {"guess": 3}

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        guess = require_map(context, "guess", self.channels, "srflow")
        return -((guess + 1) * ((self.levels - 1) / 2)).unsqueeze(-1)


def _injection(channels: int, **reads: Any) -> Coupling:
    """Shift and scale of all channels, set by the features alone."""
    net = ConvNet(0, channels, Affine.n_params, **reads)
    return Coupling(torch.zeros(channels, dtype=torch.bool), net, Affine(bound=2.0), dim=-3)
