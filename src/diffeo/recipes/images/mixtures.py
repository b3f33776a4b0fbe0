"""Flow++: couplings by mixtures of logistics, attention, and learned dequantization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffeo.core import Chain, Flow, Inverse, Transform, Univariate
from diffeo.densities import Dequantized, Normal
from diffeo.nets import ImageFeatures
from diffeo.recipes.images.parts import coupling, image_shape, labels, normed_mix, real_line, with_places
from diffeo.recipes.parts import preset_sizes
from diffeo.recipes.registry import recipe
from diffeo.transforms import ActNorm, Affine, Along, Checkerboard, Logit, MixtureCDF, Reshape, Squeeze

FLOWPP = {
    "tiny": {"hidden": 24, "blocks": 1, "components": 4, "heads": 2, "noise_layers": 4, "noise_blocks": 1},
    "small": {"hidden": 48, "blocks": 2, "components": 8, "heads": 4, "noise_layers": 4, "noise_blocks": 2},
    "paper": {"hidden": 96, "blocks": 10, "components": 32, "heads": 4, "noise_layers": 4, "noise_blocks": 2},
}


@recipe(events="images")
def flowpp(
    shape: Sequence[int],
    *,
    preset: str = "small",
    hidden: int | None = None,
    blocks: int | None = None,
    components: int | None = None,
    heads: int | None = None,
    noise_layers: int | None = None,
    noise_blocks: int | None = None,
    couplings: Sequence[int] = (4, 2, 3),
    mixture: bool = True,
    attention: bool = True,
    variational: bool = True,
    concat: bool | None = None,
    concat_last: bool = False,
    dropout: float = 0.0,
    classes: int = 0,
    levels: int = 256,
    peak: float | None = 5.0,
) -> Dequantized:
    """Flow++: couplings by distribution functions of mixtures, whose conditioners have attention, and learned noise.

    Couplings of pixels in a checkerboard, of channels at half the size, and over a checkerboard there, each
    behind activation norm and a 1×1 convolution. The noise of whole numbers is drawn from a conditional flow of
    images, trained with the rest; `mixture`, `attention` and `variational` switch the three novelties of the paper off.

    Args:
        shape: (C, H, W) of the images; sides that 4 divides.
        preset: "tiny", "small" or "paper" (CIFAR-10, with `dropout=0.2`), which set the next six where these are None.
            The paper's model of ImageNet 32×32 is `preset="paper", hidden=128, blocks=20, couplings=(7, 3, 3),
            noise_layers=8, noise_blocks=8, concat_last=True`.
        hidden: channels of the conditioners; `heads` divide it.
        blocks: gated residual blocks of each conditioner.
        components: of each mixture of logistics.
        heads: of attention.
        noise_layers: couplings of the learned noise.
        noise_blocks: gated residual blocks of each of their conditioners.
        couplings: how many there are of pixels, of channels at half the size, and of pixels there.
        mixture: couplings by mixtures of logistics, or affine ones.
        attention: self-attention after each block.
        variational: learned noise, or uniform noise.
        concat: whether blocks use elu of (h, −h), instead of silu; None for the paper's preset alone.
        concat_last: whether the last convolution of each conditioner reads elu of (h, −h), instead of relu of h.
        dropout: in conditioners, in [0, 1).
        classes: number of classes, whose labels 0 … classes − 1 are the context; 0 for none.
        levels: of the values 0 … levels − 1.
        peak: as in `glow`.

    Returns:
        A `Dequantized` flow; it takes and gives images of whole numbers.

    Raises:
        ValueError: an unknown preset; sides that cannot be halved twice; other than three numbers of couplings.

    Cost: one pass of the flow, and one of the noise, for a bound on the log-probability; a sample inverts each mixture
    by a search, some tens of evaluations of it.

    "Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design" (Ho et al.,
    2019), https://arxiv.org/abs/1902.00275

    >>> import torch, diffeo
    >>> flow = diffeo.flowpp((1, 8, 8), preset="tiny", levels=17)
    >>> flow(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).shape
    torch.Size([5])
    """
    asked = {"hidden": hidden, "blocks": blocks, "components": components, "heads": heads}
    asked |= {"noise_layers": noise_layers, "noise_blocks": noise_blocks}
    sizes = preset_sizes("flowpp", FLOWPP, preset, **asked)
    if len(couplings) != 3 or min(couplings) < 1:
        raise ValueError(f"flowpp: expected three numbers of couplings, each at least 1, got {tuple(couplings)}")
    channels, height, width = image_shape("flowpp", shape, 2)
    conditioner: dict[str, Any] = {
        "hidden": sizes["hidden"],
        "heads": sizes["heads"] if attention else 0,
        "concat": preset == "paper" if concat is None else concat,
        "concat_last": concat_last,
        "dropout": dropout,
    }

    def scalars() -> Univariate:
        return MixtureCDF(sizes["components"]) if mixture else Affine(bound=2.0)

    def steps(channels: int, height: int, width: int, number: int) -> list[Transform]:
        def layer(first: bool) -> Transform:
            reads = {"size": (height, width), "blocks": sizes["blocks"], "context": classes}
            return coupling(channels, first, scalars(), **conditioner, **reads)

        return _steps(channels, number, layer)

    def noise_layer(first: bool) -> Transform:
        reads = {"size": (height, width // 2), "map": ("map", sizes["hidden"]), "blocks": sizes["noise_blocks"]}
        return Inverse(coupling(2 * channels, first, scalars(), **conditioner, **reads))

    small, numbers = (4 * channels, height // 2, width // 2), channels * height * width
    transform = Chain(
        real_line(channels, levels, peak),
        Checkerboard(channels),
        *steps(2 * channels, height, width // 2, couplings[0]),
        Inverse(Checkerboard(channels)),
        Squeeze(channels=channels),
        *steps(*small, couplings[1]),
        Checkerboard(small[0]),
        *steps(2 * small[0], small[1], small[2] // 2, couplings[2]),
        Inverse(Checkerboard(small[0])),
        Along(ActNorm(small[0]), -3),
        Reshape(small, (numbers,)),
    )
    flow = Flow(with_places(transform, numbers, classes), Normal(numbers), labels(classes))
    # the direction of the noise's samples is the cheap one
    noise = Flow(
        Chain(Logit(), Checkerboard(channels), *_steps(2 * channels, sizes["noise_layers"], noise_layer)),
        Normal((2 * channels, height, width // 2)),
        ImageFeatures(channels, sizes["hidden"], levels=levels),
    )
    return Dequantized(flow, levels=levels, dequantizer=noise if variational else None)


def _steps(channels: int, number: int, layer: Callable[[bool], Transform]) -> list[Transform]:
    """Couplings that take turns, each behind activation norm and a linear map of the channels."""
    parts: list[Transform] = []
    for i in range(number):
        parts += [normed_mix(channels, mixed=0.0), layer(i % 2 == 0)]  # the identity, as in the paper
    return parts
