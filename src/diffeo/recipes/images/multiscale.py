"""Flows of images: multiscale stacks of couplings over channels and checkerboards, or of residual layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffeo.core import Chain, Flow, Inverse, Transform, Univariate
from diffeo.densities import Dequantized, Noisy, Normal
from diffeo.nets import LipschitzConvNet
from diffeo.recipes.images.parts import (
    coupling,
    image_scalar,
    image_shape,
    images,
    labels,
    normed_mix,
    real_line,
    with_places,
)
from diffeo.recipes.parts import preset_sizes
from diffeo.recipes.registry import recipe
from diffeo.transforms import ActNorm, Affine, Along, Multiscale, Residual, Shift, Squeeze

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
NICE = {
    "tiny": {"scales": 1, "layers": 4, "hidden": 24},
    "small": {"scales": 2, "layers": 6, "hidden": 64},
    "paper": {"scales": 2, "layers": 8, "hidden": 256},
}
RESIDUAL = {
    "tiny": {"scales": 2, "layers": 4, "hidden": 32},
    "small": {"scales": 2, "layers": 8, "hidden": 64},
    "paper": {"scales": 3, "layers": 16, "hidden": 512},
}


@recipe(events="images")
def glow(
    shape: Sequence[int],
    *,
    preset: str = "small",
    scales: int | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    univariate: str = "Affine",
    univariate_options: Mapping[str, Any] | None = None,
    noise: float = 0.0,
    classes: int = 0,
    levels: int = 256,
    peak: float | None = 5.0,
) -> Dequantized | Noisy:
    """Glow: steps of activation norm, invertible 1×1 convolution and affine coupling, at several scales.

    Whole numbers get uniform noise and are mapped to the line by a logit that gives frequent levels more room
    (`Equalize`). At each scale pixels are squeezed into channels and go through `layers` steps; half of the channels
    leave, standardised by a conditional prior that reads the rest. In the end each number is shifted and scaled by
    weights of its own. Labels, if there are classes, are read by every coupling, and choose among these weights. With
    `noise` there is no logit, and samples are freed of theirs: better pictures, but no probability of whole numbers.

    Args:
        shape: (C, H, W) of the images.
        preset: "tiny", "small" or "paper" (CIFAR-10, 44 M parameters), which set the next three where these are None.
        scales: how often the sides are halved, at least 1.
        layers: steps at each scale, at least 1.
        hidden: channels of the conditioners.
        univariate: name of the couplings' scalar map; "RationalQuadraticSpline" makes it a neural spline flow.
        univariate_options: its arguments, such as `{"bins": 4}`; `{"bound": 2.0}` of "Affine" where it is None.
        noise: standard deviation of Gaussian noise to train with, as in `tarflow`; 0 for uniform noise.
        classes: number of classes, whose labels 0 … classes − 1 are the context, each with 2 · C · H · W
            weights of its own; 0 for none.
        levels: of the values 0 … levels − 1; 8×8 digits have 17.
        peak: how many times as frequent as its neighbours a level must be to get more room, as of `Equalize`; None for
            a plain logit, as in the paper. Without effect with `noise`.

    Returns:
        A `Dequantized` flow, or a `Noisy` one; it takes and gives images of whole numbers.

    Raises:
        ValueError: an unknown preset or scalar map; sides that cannot be halved so often; negative noise.

    Cost: one pass for a bound on the log-probability, one for a sample.

    "Glow: Generative Flow with Invertible 1x1 Convolutions" (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039; "Neural Spline Flows" (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    >>> import torch, diffeo
    >>> flow = diffeo.glow((1, 8, 8), preset="tiny", levels=17)
    >>> flow.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """
    sizes = preset_sizes("glow", GLOW, preset, scales=scales, layers=layers, hidden=hidden)

    def scalars() -> Univariate:
        return image_scalar(univariate, univariate_options)

    def stage(channels: int) -> list[Transform]:
        parts: list[Transform] = [Squeeze(channels=channels)]
        for i in range(sizes["layers"]):
            parts += [
                normed_mix(4 * channels),
                coupling(4 * channels, i % 2 == 0, scalars(), hidden=sizes["hidden"], context=classes),
            ]
        return parts

    parts = _stages("glow", shape, stage, sizes["scales"], sizes["hidden"], classes, levels, peak, noise)
    return images("glow", *parts, classes=classes, levels=levels, noise=noise)


@recipe(events="images")
def realnvp_image(
    shape: Sequence[int],
    *,
    preset: str = "small",
    scales: int | None = None,
    blocks: int | None = None,
    hidden: int | None = None,
    univariate: str = "Affine",
    univariate_options: Mapping[str, Any] | None = None,
    noise: float = 0.0,
    classes: int = 0,
    levels: int = 256,
    peak: float | None = 5.0,
) -> Dequantized | Noisy:
    """RealNVP for images: at each scale couplings over a checkerboard, then over channels, with residual conditioners.

    Three couplings of pixels in a checkerboard, a squeeze, three couplings of channels, activation norm before each;
    half of the channels then leave, standardised by a conditional prior that reads the rest. Whole numbers get noise,
    and classes have normals of their own, as in `glow`.

    Args:
        shape: (C, H, W) of the images.
        preset: "tiny", "small" or "paper", which set the next three where these are None.
        scales: how often the sides are halved, at least 1.
        blocks: residual blocks of each conditioner, at least 1.
        hidden: channels of the conditioners.
        univariate, univariate_options: the couplings' scalar map, as in `glow`.
        noise: standard deviation of Gaussian noise to train with, as in `tarflow`; 0 for uniform noise.
        classes: number of classes, whose labels 0 … classes − 1 are the context, each with 2 · C · H · W
            weights of its own; 0 for none.
        levels: of the values 0 … levels − 1.
        peak: as in `glow`.

    Returns:
        A `Dequantized` flow, or a `Noisy` one; it takes and gives images of whole numbers.

    Raises:
        ValueError: an unknown preset or scalar map; sides that cannot be halved so often; negative noise.

    Cost: one pass for a bound on the log-probability, one for a sample.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> flow = diffeo.realnvp_image((1, 8, 8), preset="tiny", levels=17)
    >>> flow(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).shape
    torch.Size([5])
    """
    sizes = preset_sizes("realnvp_image", REALNVP, preset, scales=scales, blocks=blocks, hidden=hidden)

    conditioner = {"hidden": sizes["hidden"], "blocks": sizes["blocks"]}

    def scalars() -> Univariate:
        return image_scalar(univariate, univariate_options)

    def stage(channels: int) -> list[Transform]:
        board = Squeeze(channels=channels, order="checkerboard")
        pixels: list[Transform] = []
        folded: list[Transform] = []
        for i in range(3):
            for parts in (pixels, folded):
                parts += [
                    Along(ActNorm(4 * channels), -3),
                    coupling(4 * channels, i % 2 == 0, scalars(), context=classes, **conditioner),
                ]
        return [board, *pixels, Inverse(board), Squeeze(channels=channels), *folded]

    parts = _stages("realnvp_image", shape, stage, sizes["scales"], sizes["hidden"], classes, levels, peak, noise)
    return images("realnvp_image", *parts, classes=classes, levels=levels, noise=noise)


@recipe(events="images")
def nice_image(
    shape: Sequence[int],
    *,
    preset: str = "small",
    scales: int | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    noise: float = 0.0,
    classes: int = 0,
    levels: int = 256,
    peak: float | None = 5.0,
) -> Dequantized | Noisy:
    """NICE for images: additive couplings over a checkerboard, with convolutions, at one scale or several.

    Only an activation norm in front of each coupling, the conditional prior and the normals of classes change volumes.
    Whole numbers get noise, and classes have normals of their own, as in `glow`.

    Args:
        shape: (C, H, W) of the images.
        preset: "tiny", "small" or "paper" (of that size; the paper has dense nets), which set the next three where
            these are None.
        scales: how often the sides are halved, at least 1.
        layers: couplings at each scale.
        hidden: channels of the conditioners.
        noise: standard deviation of Gaussian noise to train with, as in `tarflow`; 0 for uniform noise.
        classes: number of classes, whose labels 0 … classes − 1 are the context, each with 2 · C · H · W
            weights of its own; 0 for none.
        levels: of the values 0 … levels − 1.
        peak: as in `glow`.

    Returns:
        A `Dequantized` flow, or a `Noisy` one; it takes and gives images of whole numbers.

    Raises:
        ValueError: an unknown preset; sides that cannot be halved so often; negative noise.

    Cost: one pass for a bound on the log-probability, one for a sample.

    "NICE: Non-linear Independent Components Estimation" (Dinh et al., 2014), https://arxiv.org/abs/1410.8516

    >>> import torch, diffeo
    >>> flow = diffeo.nice_image((1, 8, 8), preset="tiny", levels=17)
    >>> flow.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """
    sizes = preset_sizes("nice_image", NICE, preset, scales=scales, layers=layers, hidden=hidden)

    def stage(channels: int) -> list[Transform]:
        parts: list[Transform] = [Squeeze(channels=channels, order="checkerboard")]
        for i in range(sizes["layers"]):
            parts += [
                Along(ActNorm(4 * channels), -3),
                coupling(4 * channels, i % 2 == 0, Shift(), hidden=sizes["hidden"], context=classes),
            ]
        return parts

    parts = _stages("nice_image", shape, stage, sizes["scales"], sizes["hidden"], classes, levels, peak, noise)
    return images("nice_image", *parts, classes=classes, levels=levels, noise=noise)


@recipe(events="images")
def residual_image(
    shape: Sequence[int],
    *,
    preset: str = "small",
    scales: int | None = None,
    layers: int | None = None,
    hidden: int | None = None,
    lipschitz: float = 0.97,
    classes: int = 0,
    levels: int = 256,
    peak: float | None = 5.0,
) -> Dequantized:
    """Residual flow of images: layers x + g(x), g a contraction by convolutions that sees and moves every channel.

    Whole numbers get uniform noise and a logit, and classes have normals of their own, as in `glow`. At each scale
    pixels are squeezed into channels and go through `layers` steps of residual layer and activation norm; half of the
    channels leave, standardised by a conditional prior that reads the rest.

    Args:
        shape: (C, H, W) of the images.
        preset: "tiny", "small" or "paper", which set the next three where these are None.
        scales: how often the sides are halved, at least 1.
        layers: residual layers at each scale, at least 1.
        hidden: channels of the contractions.
        lipschitz: constant of each contraction, in (0, 1).
        classes: number of classes, whose labels 0 … classes − 1 are the context, each with 2 · C · H · W
            weights of its own; 0 for none.
        levels: of the values 0 … levels − 1.
        peak: as in `glow`.

    Returns:
        A `Dequantized` flow; it takes and gives images of whole numbers. Where a scale has more than 256 numbers,
        log-probabilities are estimates without bias, and two calls differ.

    Raises:
        ValueError: an unknown preset; sides that cannot be halved so often.

    Cost: an estimate takes some 10 passes of each contraction, an exact value one for each number of the image; a
    sample, a fixed-point iteration for each layer.

    "Residual Flows for Invertible Generative Modeling" (Chen et al., 2019), https://arxiv.org/abs/1906.02735;
    "Invertible Residual Networks" (Behrmann et al., 2019), https://arxiv.org/abs/1811.00995

    >>> import torch, diffeo
    >>> flow = diffeo.residual_image((1, 8, 8), preset="tiny", levels=17)
    >>> flow.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """
    sizes = preset_sizes("residual_image", RESIDUAL, preset, scales=scales, layers=layers, hidden=hidden)

    def stage(channels: int) -> list[Transform]:
        parts: list[Transform] = [Squeeze(channels=channels), Along(ActNorm(4 * channels), -3)]
        for _ in range(sizes["layers"]):
            net = LipschitzConvNet(4 * channels, context=classes, hidden=sizes["hidden"], lipschitz=lipschitz)
            parts += [Residual(net), Along(ActNorm(4 * channels), -3)]
        return parts

    # log-probabilities may be estimates, whose gradients would not free samples of noise
    parts = _stages("residual_image", shape, stage, sizes["scales"], sizes["hidden"], classes, levels, peak)
    transform, numbers = parts
    return Dequantized(Flow(transform, Normal(numbers), labels(classes)), levels=levels)


def _stages(
    name: str,
    shape: Sequence[int],
    stage: Callable[[int], list[Transform]],
    scales: int,
    hidden: int,
    classes: int,
    levels: int,
    peak: float | None,
    noise: float = 0.0,
) -> tuple[Transform, int]:
    """Stages of channels that grow, each but the last with a conditional prior for the half that leaves; numbers."""
    event = image_shape(name, shape, scales)
    first: list[Transform] = [real_line(event[0], levels, peak, noise)]
    stages: list[Transform] = []
    channels = event[0]
    for i in range(scales):
        last = i == scales - 1
        prior = (
            Along(ActNorm(4 * channels), -3)
            if last
            else coupling(4 * channels, True, Affine(bound=2.0), hidden=hidden, context=classes)
        )
        stages.append(Chain(*first, *stage(channels), prior))
        first, channels = [], 2 * channels
    numbers = event[0] * event[1] * event[2]
    return with_places(Multiscale(*stages, event=event), numbers, classes), numbers
