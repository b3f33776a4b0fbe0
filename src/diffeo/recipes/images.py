"""Flows of images: multiscale stacks of couplings over channels and checkerboards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from diffeo.core import Chain, Flow, Inverse, Transform
from diffeo.densities import Dequantized, Normal
from diffeo.nets import ConvNet, OneHot
from diffeo.recipes.registry import recipe
from diffeo.transforms import ActNorm, Affine, Along, Conv1x1, Coupling, Multiscale, Squeeze, Unconstrain

GLOW = {
    "tiny": {"scales": 2, "layers": 4, "hidden": 32},
    "small": {"scales": 2, "layers": 8, "hidden": 64},
    "paper": {"scales": 3, "layers": 32, "hidden": 512},
}
REALNVP = {
    "tiny": {"scales": 2, "blocks": 1, "hidden": 24},
    "small": {"scales": 2, "blocks": 2, "hidden": 48},
    "paper": {"scales": 3, "blocks": 8, "hidden": 64},
}
MARGIN = 0.05  # of the range of values on either side, so that the logit stays tame at its ends


@recipe(events="images")
def glow(
    shape: Sequence[int],
    *,
    preset: str = "small",
    scales: int | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    classes: int = 0,
    levels: int = 256,
) -> Dequantized:
    """Glow: steps of activation norm, invertible 1×1 convolution and affine coupling, at several scales.

    Whole numbers x get uniform noise, and the logit of (x + u − low) / (high − low), with bounds a twentieth of the
    range beyond 0 and `levels`. At each scale pixels are squeezed into channels and go through `layers` steps; half of
    the channels leave, standardised by a conditional prior that reads the rest. Labels, if there are classes, are read
    by every coupling.

    Args:
        shape: (C, H, W) of the images.
        preset: "tiny", "small" or "paper" (CIFAR-10, 44 M parameters), which set the next three where these are None.
        scales: how often the sides are halved, at least 1.
        layers: steps at each scale, at least 1.
        hidden: channels of the conditioners.
        classes: number of classes, whose labels 0 … classes − 1 are the context; 0 for none.
        levels: of the values 0 … levels − 1; 8×8 digits have 17.

    Returns:
        A `Dequantized` flow; it takes and gives images of whole numbers.

    Raises:
        ValueError: an unknown preset; sides that cannot be halved so often.

    Cost: one pass for a bound on the log-probability, one for a sample.

    "Glow: Generative Flow with Invertible 1x1 Convolutions" (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039

    >>> import torch, diffeo
    >>> flow = diffeo.glow((1, 8, 8), preset="tiny", levels=17)
    >>> flow.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """
    sizes = _sizes("glow", GLOW, preset, scales=scales, layers=layers, hidden=hidden)

    def stage(channels: int) -> list[Transform]:
        parts: list[Transform] = [Squeeze(channels=channels)]
        for i in range(sizes["layers"]):
            parts += [
                Along(ActNorm(4 * channels), -3),
                Conv1x1(4 * channels),
                _coupling(4 * channels, i % 2 == 0, sizes["hidden"], 0, classes),
            ]
        return parts

    return _multiscale("glow", shape, stage, sizes["scales"], sizes["hidden"], classes, levels)


@recipe(events="images")
def realnvp_image(
    shape: Sequence[int],
    *,
    preset: str = "small",
    scales: int | None = None,
    blocks: int | None = None,
    hidden: int | None = None,
    classes: int = 0,
    levels: int = 256,
) -> Dequantized:
    """RealNVP for images: at each scale couplings over a checkerboard, then over channels, with residual conditioners.

    Three couplings of pixels in a checkerboard, a squeeze, three couplings of channels, activation norm before each;
    half of the channels then leave, standardised by a conditional prior that reads the rest. Whole numbers get uniform
    noise and the logit, as in `glow`.

    Args:
        shape: (C, H, W) of the images.
        preset: "tiny", "small" or "paper", which set the next three where these are None.
        scales: how often the sides are halved, at least 1.
        blocks: residual blocks of each conditioner, at least 1.
        hidden: channels of the conditioners.
        classes: number of classes, whose labels 0 … classes − 1 are the context; 0 for none.
        levels: of the values 0 … levels − 1.

    Returns:
        A `Dequantized` flow; it takes and gives images of whole numbers.

    Raises:
        ValueError: an unknown preset; sides that cannot be halved so often.

    Cost: one pass for a bound on the log-probability, one for a sample.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> flow = diffeo.realnvp_image((1, 8, 8), preset="tiny", levels=17)
    >>> flow(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).shape
    torch.Size([5])
    """
    sizes = _sizes("realnvp_image", REALNVP, preset, scales=scales, blocks=blocks, hidden=hidden)

    def stage(channels: int) -> list[Transform]:
        board = Squeeze(channels=channels, order="checkerboard")
        pixels: list[Transform] = []
        folded: list[Transform] = []
        for i in range(3):
            for parts in (pixels, folded):
                parts += [
                    Along(ActNorm(4 * channels), -3),
                    _coupling(4 * channels, i % 2 == 0, sizes["hidden"], sizes["blocks"], classes),
                ]
        return [board, *pixels, Inverse(board), Squeeze(channels=channels), *folded]

    return _multiscale("realnvp_image", shape, stage, sizes["scales"], sizes["hidden"], classes, levels)


def _multiscale(
    name: str,
    shape: Sequence[int],
    stage: Callable[[int], list[Transform]],
    scales: int,
    hidden: int,
    classes: int,
    levels: int,
) -> Dequantized:
    """Stages of channels that grow, each but the last with a conditional prior for the half that leaves."""
    event = _image_shape(name, shape, scales)
    margin = MARGIN * levels
    low, high = [-margin] * event[0], [levels + margin] * event[0]
    first: list[Transform] = [Along(Unconstrain(low, high), -3)]
    stages: list[Transform] = []
    channels = event[0]
    for i in range(scales):
        last = i == scales - 1
        prior = Along(ActNorm(4 * channels), -3) if last else _coupling(4 * channels, True, hidden, 0, classes)
        stages.append(Chain(*first, *stage(channels), prior))
        first, channels = [], 2 * channels
    flow = Flow(
        Multiscale(*stages, event=event),
        Normal(event[0] * event[1] * event[2]),
        OneHot(classes) if classes else None,
    )
    return Dequantized(flow, levels=levels)


def _coupling(channels: int, first: bool, hidden: int, blocks: int, classes: int) -> Coupling:
    """An affine coupling in which one half of the channels sets the other."""
    mask = (torch.arange(channels) < channels // 2) == first
    net = ConvNet(channels // 2, channels // 2, Affine.n_params, hidden=hidden, blocks=blocks, context=classes)
    return Coupling(mask, net, Affine(bound=2.0), dim=-3)


def _sizes(name: str, presets: dict[str, dict[str, int]], preset: str, **asked: int | None) -> dict[str, int]:
    """The sizes of a preset, but for those asked for."""
    if preset not in presets:
        raise ValueError(f"{name}: preset must be one of {', '.join(presets)}, got {preset!r}")
    wrong = {k: v for k, v in asked.items() if v is not None and not (isinstance(v, int) and v >= 1)}
    if wrong:
        raise ValueError(f"{name}: expected whole numbers of at least 1, got {wrong}")
    return {**presets[preset], **{k: v for k, v in asked.items() if v is not None}}


def _image_shape(name: str, shape: Sequence[int], scales: int) -> tuple[int, int, int]:
    """(C, H, W), whose sides can be halved at every scale."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{name}: expected the shape (C, H, W) of an image, got {tuple(shape)}")
    channels, height, width = (int(n) for n in shape)
    for side, size in (("height", height), ("width", width)):
        if size % 2**scales:
            raise ValueError(
                f"{name}: a {side} of {size} cannot be halved {scales} times; pad or crop the images to a multiple of "
                f"{2**scales}, or ask for fewer scales"
            )
    return channels, height, width
