"""Encoders that turn an image into the feature maps that a conditional flow reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diffeo.functional import Context, as_fixed_event, context_features, entries, full_precision
from diffeo.nets.conv import GatedBlock, one_hot, only_real, places


class ImageFeatures(nn.Module):
    """An image of whole numbers as one map of features at half its width, where a `Checkerboard` goes on.

    Args:
        channels: of the image.
        features: of the map.
        blocks: gated residual blocks.
        levels: of the values 0 … levels − 1, which are scaled to [−1, 1].

    Returns:
        A dict with the entry `"map"`, `(*batch, features, H, W / 2)`.

    "Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design" (Ho et al.,
    2019), https://arxiv.org/abs/1902.00275

    >>> import torch, diffeo
    >>> encoder = diffeo.nets.ImageFeatures(1, 8)
    >>> encoder({"image": torch.zeros(5, 1, 8, 8)})["map"].shape
    torch.Size([5, 8, 8, 4])
    """

    def __init__(self, channels: int, features: int, *, blocks: int = 1, levels: int = 256):
        super().__init__()
        as_fixed_event((channels, features, levels), self)
        self.reads = {"image": 3}
        self.levels = levels
        self.enter = nn.Conv2d(2 * channels, features, 3, padding=1)
        self.blocks = nn.ModuleList(GatedBlock(features, 0) for _ in range(blocks))

    def forward(self, context: Context) -> Context:
        image = entries(context).get("image")
        if image is None:
            raise ValueError('ImageFeatures: expected a context {"image": …}')
        x = image.to(self.enter.weight.dtype) * (2 / (self.levels - 1)) - 1
        mask = places(context)
        x = x if mask is None else only_real(x, mask)
        x = x.unflatten(-1, (-1, 2)).movedim(-1, -4).flatten(-4, -3)  # neighbours in a row become channels
        if mask is not None:
            mask = mask.expand(*x.shape[:-3], 1, x.shape[-2], 2 * x.shape[-1])
            mask = mask.unflatten(-1, (-1, 2)).any(-1).reshape(-1, 1, *x.shape[-2:])
        h = self.enter(x.reshape(-1, *x.shape[-3:]))
        for block in self.blocks:
            h = block(h, None, mask)
        return {"map": h.reshape(*x.shape[:-3], *h.shape[-3:])}


class LowResolution(nn.Module):
    """A small image as a guess of the large one, and as maps of features at each scale of a flow.

    Residual-in-residual dense blocks at the small size; their features are resized to every scale. The guess is the
    bicubic enlargement that shrinks to the small image again (`faithful`), plus what the features add, nothing at the
    start.

    Args:
        channels: of the image.
        size: h and w of the small image.
        scale: by how much it is enlarged, a power of two.
        scales: of the flow: maps have 1/2, 1/4, … of the large sides.
        features: of each map.
        blocks: dense blocks.
        classes: number of classes, whose labels 0 … classes − 1 are the entry `"label"` of the context; 0 for none.
        levels: of the values 0 … levels − 1, which are scaled to [−1, 1].

    Returns:
        A dict: `"guess"`, `(*batch, C, scale · h, scale · w)`, in [−1, 1] or near it, and `"scale1"`, `"scale2"`, …;
        with classes also `"features"`, their labels as one-hot vectors.

    Raises:
        ValueError: sizes outside these; a mask of pixels.

    "SRFlow: Learning the Super-Resolution Space with Normalizing Flow" (Lugmayr et al., 2020),
    https://arxiv.org/abs/2006.14200; "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks" (Wang et al.,
    2018), https://arxiv.org/abs/1809.00219

    >>> import torch, diffeo
    >>> encoder = diffeo.nets.LowResolution(1, (4, 4), scale=4, features=8, blocks=1)
    >>> {name: tuple(t.shape) for name, t in encoder(torch.zeros(5, 1, 4, 4)).items()}
    {'guess': (5, 1, 16, 16), 'scale1': (5, 8, 8, 8), 'scale2': (5, 8, 4, 4)}
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        *,
        scale: int = 4,
        scales: int = 2,
        features: int = 32,
        blocks: int = 2,
        classes: int = 0,
        levels: int = 256,
    ):
        super().__init__()
        as_fixed_event((channels, *size, scale, scales, features, levels), self)
        if scale < 2 or scale & (scale - 1):
            raise ValueError(f"LowResolution: expected a scale of 2, 4, 8, …, got {scale}")
        self.classes = classes
        self.reads = {"features": 3, **({"label": 0} if classes else {})}
        self.size, self.scale, self.scales, self.levels = size, scale, scales, levels
        self.register_buffer("rows", faithful(size[0], scale).float(), persistent=False)
        self.register_buffer("columns", faithful(size[1], scale).float(), persistent=False)
        self.enter = nn.Conv2d(channels, features, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualDense(features) for _ in range(blocks))
        self.trunk = nn.Conv2d(features, features, 3, padding=1)
        self.at_scale = nn.ModuleList(nn.Conv2d(2 * features, features, 3, padding=1) for _ in range(scales))
        self.grow = nn.ModuleList(nn.Conv2d(features, features, 3, padding=1) for _ in range(scale.bit_length() - 1))
        self.leave = nn.Conv2d(features, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # pyright: ignore[reportArgumentType] (it has one)

    rows: Tensor
    columns: Tensor

    def forward(self, context: Context) -> dict[str, Tensor]:
        image = context_features(context)
        expected = (self.enter.in_channels, *self.size)
        if image is None or tuple(image.shape[-3:]) != expected:
            got = "none" if image is None else f"shape {tuple(image.shape)}"
            sizes = ", ".join(map(str, expected))
            raise ValueError(f"LowResolution: expected small images (…, {sizes}) as context, got {got}")
        if places(context) is not None:
            raise ValueError("LowResolution: it knows no masks of pixels; crop the pictures to one size")
        batch = image.shape[:-3]
        x = image.to(self.enter.weight.dtype).reshape(-1, *image.shape[-3:]) * (2 / (self.levels - 1)) - 1
        first = h = self.enter(x)
        middle = first
        for i, block in enumerate(self.blocks):
            h = block(h)
            middle = h if i == len(self.blocks) // 2 else middle
        h = first + self.trunk(h)
        with full_precision(x):  # so that it shrinks to the small image under autocast, too
            plain = self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype).mT
        found = {"guess": plain + self._added(h)}
        both, size = torch.cat([h, middle], 1), (x.shape[-2] * self.scale, x.shape[-1] * self.scale)
        for i, layer in enumerate(self.at_scale, 1):
            resized = F.interpolate(both, size=(size[0] >> i, size[1] >> i), mode="nearest")
            found[f"scale{i}"] = F.leaky_relu(layer(resized), 0.2)
        found = {name: t.reshape(*batch, *t.shape[1:]) for name, t in found.items()}
        if not self.classes:
            return found
        label = entries(context).get("label")
        if label is None:
            raise ValueError('LowResolution: expected a context {"features": small images, "label": …}')
        return {**found, "features": one_hot(label, self.classes, "LowResolution").to(x.dtype)}

    def _added(self, h: Tensor) -> Tensor:
        for layer in self.grow:
            h = F.leaky_relu(layer(F.interpolate(h, scale_factor=2.0, mode="nearest")), 0.2)
        return self.leave(h)


def enlarged(x: Tensor, scale: int) -> Tensor:
    """Images (n, C, H, W) enlarged by bicubic interpolation."""
    return F.interpolate(x, scale_factor=float(scale), mode="bicubic", align_corners=False)


def shrunk(x: Tensor, scale: int) -> Tensor:
    """Images (n, C, H, W) with sides that `scale` divides, shrunk by bicubic interpolation with antialiasing."""
    size = (x.shape[-2] // scale, x.shape[-1] // scale)
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)


def faithful(n: int, scale: int) -> Tensor:
    """E (S E)⁻¹, (scale · n, n), in float64: enlarges a line by interpolation so that it shrinks to itself again.

    E and S are what `enlarged` and `shrunk` do along one side; images are enlarged along one side, then the other.
    """
    line = torch.eye(n, dtype=torch.float64).reshape(1, 1, n, n)  # a line in each column
    wide = F.interpolate(line, size=(scale * n, n), mode="bicubic", align_corners=False)
    again = F.interpolate(wide, size=(n, n), mode="bicubic", align_corners=False, antialias=True)
    return wide[0, 0] @ torch.linalg.inv(again[0, 0])


class ResidualDense(nn.Module):
    """h + 0.2 · (three dense blocks of h), each h + 0.2 · (five convolutions, each of which sees all before it)."""

    def __init__(self, features: int):
        super().__init__()
        grown = max(4, features // 2)
        self.convs = nn.ModuleList(
            nn.Conv2d(features + j * grown, grown if j < 4 else features, 3, padding=1)
            for _ in range(3)
            for j in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i in range(0, 15, 5):
            seen = [h]
            for conv in self.convs[i : i + 4]:
                seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
            h = h + 0.2 * self.convs[i + 4](torch.cat(seen, 1))
        return x + 0.2 * h
