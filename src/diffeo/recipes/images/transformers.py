"""TarFlow: autoregressive transformers over patches, in alternating directions."""

from __future__ import annotations

from collections.abc import Sequence

from diffeo.core import Chain, Transform
from diffeo.densities import Dequantized, Noisy
from diffeo.nets import CausalTransformer
from diffeo.recipes.images.parts import image_shape, images, real_line
from diffeo.recipes.parts import preset_sizes
from diffeo.recipes.registry import recipe
from diffeo.transforms import Affine, Along, Autoregressive, MixtureCDF, Patches, Reshape, Standardize

TARFLOW = {
    "tiny": {"patch": 2, "width": 32, "blocks": 2, "layers": 1, "heads": 2},
    "small": {"patch": 4, "width": 96, "blocks": 4, "layers": 2, "heads": 4},
    "paper": {"patch": 2, "width": 768, "blocks": 8, "layers": 8, "heads": 12},
}


@recipe(events="images")
def tarflow(
    shape: Sequence[int],
    *,
    preset: str = "small",
    patch: int | None = None,
    width: int | None = None,
    blocks: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
    components: int = 0,
    noise: float = 0.0,
    drop: float = 0.1,
    dropout: float = 0.0,
    classes: int = 0,
    levels: int = 256,
    peak: float | None = 5.0,
) -> Dequantized | Noisy:
    """TarFlow: a stack of autoregressive layers over patches, each a causal transformer, in alternating directions.

    Without `noise`, whole numbers get uniform noise and a logit, for bits per dimension. With it the flow is trained
    on images with Gaussian noise, and samples are freed of theirs: better pictures, but no probability of whole
    numbers. `diffeo.apps.images.guided` pushes samples of classes away from those of none.

    Args:
        shape: (C, H, W) of the images.
        preset: "tiny", "small" or "paper" (ImageNet 64×64), which set the next five where these are None.
        patch: side of a patch, which divides those of the image.
        width: of the tokens; `heads` divide it.
        blocks: autoregressive layers.
        layers: of each transformer.
        heads: of attention.
        components: of a mixture of logistics in place of the affine map of each number; 0 for the affine map.
        noise: standard deviation, as a share of half the range of values; 0 for none. The paper's are 0.05 to 0.15.
        drop: chance that a label is left out in training, in [0, 1), for `guided`.
        dropout: in the transformers, in [0, 1).
        classes: number of classes, whose labels 0 … classes − 1 are the context; 0 for none.
        levels: of the values 0 … levels − 1.
        peak: as in `glow`.

    Returns:
        A `Dequantized` flow, or a `Noisy` one; it takes and gives images of whole numbers.

    Raises:
        ValueError: an unknown preset; sides that `patch` does not divide; negative noise, or a chance outside [0, 1).

    Cost: one pass for a density. A sample runs through the patches of each layer one by one, with a cache, each a
    token's cost; or in sweeps over all of them where the layers' `sweeps` is set.

    "Normalizing Flows are Capable Generative Models" (Zhai et al., 2024), https://arxiv.org/abs/2412.06329

    >>> import torch, diffeo
    >>> flow = diffeo.tarflow((1, 8, 8), preset="tiny", levels=17)
    >>> flow.sample(5).shape
    torch.Size([5, 1, 8, 8])
    """
    asked = {"patch": patch, "width": width, "blocks": blocks, "layers": layers, "heads": heads}
    sizes = preset_sizes("tarflow", TARFLOW, preset, **asked)
    event = image_shape("tarflow", shape, 0)
    patches = Patches(sizes["patch"], event)
    positions, features = patches.target
    univariate = MixtureCDF(components) if components else Affine()
    parts: list[Transform] = [] if noise else [real_line(event[0], levels, peak)]
    parts += [patches, Along(Standardize(features), -1, 2)]
    for i in range(sizes["blocks"]):
        net = CausalTransformer(
            features,
            univariate.n_params,
            positions,
            width=sizes["width"],
            layers=sizes["layers"],
            heads=sizes["heads"],
            context=classes,
            reverse=i % 2 == 1,
            dropout=dropout,
        )
        parts.append(Autoregressive(net, univariate, dim=-2, event_ndim=2))
    parts.append(Reshape((positions, features), (positions * features,)))
    transform, numbers = Chain(*parts), positions * features
    return images("tarflow", transform, numbers, classes=classes, levels=levels, noise=noise, drop=drop)
