"""Events of other shapes: pixels folded into channels, in several ways, and plain reshapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    Event,
    as_fixed_event,
    check_event,
    constant_logdet,
    context_mask,
    map_mask,
)
from diffeo.kernels.dispatch import is_traced


class Squeeze(Transform):
    """Blocks of pixels become channels: (C, H, W) to (C k², H / k, W / k); volume is preserved.

    Channel c k² + i k + j of z holds channel c of x at rows i, i + k, … and columns j, j + k, …. In checkerboard order
    the dark fields of a board, those with i + j even, come first, so that a coupling of the first half of the channels
    with the second is one over a checkerboard. A mask is folded in the same way for the layers that follow.

    Args:
        factor: k, at least 2.
        channels: C; None for any, where no mask tells pixels apart.
        order: "channel", or "checkerboard", with a factor of 2.

    Raises:
        ValueError: a smaller factor; sides that it does not divide; a mask of pixels without `channels`; another order.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> diffeo.Squeeze()(torch.zeros(5, 3, 8, 8))[0].shape
    torch.Size([5, 12, 4, 4])
    """

    event_ndim = event_ndim_out = 3
    domain = codomain = constraints.independent(constraints.real, 3)

    called = "Squeeze"  # what errors name

    def __init__(self, factor: int = 2, channels: int | None = None, order: str = "channel"):
        super().__init__()
        if factor < 2:
            raise ValueError(f"Squeeze: expected a factor of at least 2, got {factor}")
        if order not in ("channel", "checkerboard") or (order == "checkerboard" and factor != 2):
            raise ValueError(
                f"Squeeze: order must be 'channel', or 'checkerboard' with a factor of 2, got {order!r} and {factor}"
            )
        self.factor, self.channels, self.order = factor, channels, order
        self.event = (channels, None, None)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Squeeze")
        self.output_shape(x.shape[-3:])
        return self._fold(x), constant_logdet(x.new_zeros(()), x, 3)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, (self._grown(self.channels), None, None), "Squeeze")
        self.input_shape(z.shape[-3:])
        return self._unfold(z), constant_logdet(z.new_zeros(()), z, 3)

    def output_shape(self, event: Event) -> Event:
        c, h, w = event
        return self._grown(c), self._shrunk(h, "height"), self._shrunk(w, "width")

    def input_shape(self, event: Event) -> Event:
        c, h, w = event
        if c is not None and c % self.factor**2:
            raise ValueError(f"Squeeze: {c} channels cannot become blocks of {self.factor} × {self.factor} pixels")
        grow = self.factor
        return None if c is None else c // grow**2, None if h is None else h * grow, None if w is None else w * grow

    def map_context(self, context: Context) -> Context:
        return map_mask(context, self._fold_mask)

    def unmap_context(self, context: Context) -> Context:
        return map_mask(context, self._unfold_mask)

    def _fold_mask(self, mask: Tensor) -> Tensor:
        k, (c, h, w) = self.factor, mask.shape[-3:]
        if (c, h, w) == (1, 1, 1):  # of whole images
            return mask
        if c == 1 and self.channels is None:
            raise ValueError("Squeeze: a mask of pixels needs Squeeze(channels=…), to know which channels they become")
        sides = k if h == 1 else h, k if w == 1 else w
        return self._fold(mask.expand(*mask.shape[:-3], self.channels or c, *sides))

    def _unfold_mask(self, mask: Tensor) -> Tensor:
        if mask.shape[-3] == 1:
            return _repeated(mask, (self.factor, self.factor))
        return _once(self._unfold(mask), mask)

    def _fold(self, x: Tensor) -> Tensor:
        k = self.factor
        x = x.unflatten(-1, (-1, k)).unflatten(-3, (-1, k))  # (…, C, H / k, k, W / k, k)
        x = x.movedim((-3, -1), (-4, -3)).flatten(-4, -3)  # (…, C, k², H / k, W / k)
        if self.order == "channel":
            return x.flatten(-4, -3)
        fields = x.unbind(-3)
        return torch.cat([fields[0], fields[3], fields[1], fields[2]], -3)

    def _unfold(self, z: Tensor) -> Tensor:
        if self.order == "checkerboard":
            first, last, second, third = z.chunk(4, -3)
            z = torch.stack([first, second, third, last], -3).flatten(-4, -3)
        x = z.unflatten(-3, (-1, self.factor, self.factor)).movedim((-4, -3), (-3, -1))
        return x.flatten(-4, -3).flatten(-2, -1)

    def _grown(self, channels: int | None) -> int | None:
        return None if channels is None else channels * self.factor**2

    def _shrunk(self, size: int | None, side: str) -> int | None:
        if size is not None and size % self.factor:
            raise ValueError(f"{self.called}: a {side} of {size} cannot be divided into blocks of {self.factor} pixels")
        return None if size is None else size // self.factor


class Checkerboard(Transform):
    """The dark fields of a board as one half of the channels, the light ones as the other: (C, H, W) to (2C, H, W / 2).

    Dark are pixels with i + j even. A coupling of one half of the channels with the other is then one over a
    checkerboard, whose conditioner sees rows at full height. Volume is preserved; a mask is folded in the same way.

    Args:
        channels: C; None for any, where no mask tells pixels apart.

    Raises:
        ValueError: an odd width; a mask of pixels without `channels`.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> diffeo.Checkerboard()(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))[0].flatten()
    tensor([1., 4., 2., 3.])
    """

    event_ndim = event_ndim_out = 3
    domain = codomain = constraints.independent(constraints.real, 3)

    def __init__(self, channels: int | None = None):
        super().__init__()
        self.channels = channels
        self.event = (channels, None, None)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Checkerboard")
        self.output_shape(x.shape[-3:])
        return self._fold(x), constant_logdet(x.new_zeros(()), x, 3)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, (None if self.channels is None else 2 * self.channels, None, None), "Checkerboard")
        self.input_shape(z.shape[-3:])
        return self._unfold(z), constant_logdet(z.new_zeros(()), z, 3)

    def output_shape(self, event: Event) -> Event:
        c, h, w = event
        if w is not None and w % 2:
            raise ValueError(f"Checkerboard: a width of {w} cannot be halved")
        return None if c is None else 2 * c, h, None if w is None else w // 2

    def input_shape(self, event: Event) -> Event:
        c, h, w = event
        if c is not None and c % 2:
            raise ValueError(f"Checkerboard: {c} channels are not two halves")
        return None if c is None else c // 2, h, None if w is None else 2 * w

    def map_context(self, context: Context) -> Context:
        return map_mask(context, self._fold_mask)

    def unmap_context(self, context: Context) -> Context:
        return map_mask(context, self._unfold_mask)

    def _fold_mask(self, mask: Tensor) -> Tensor:
        c, h, w = mask.shape[-3:]
        if (c, h, w) == (1, 1, 1):
            return mask
        if c == 1 and self.channels is None:
            raise ValueError("Checkerboard: a mask of pixels needs Checkerboard(channels=…)")
        if h == 1 and w > 1:
            raise ValueError("Checkerboard: a mask of columns must have all rows, as they alternate")
        return self._fold(mask.expand(*mask.shape[:-3], self.channels or c, h, 2 if w == 1 else w))

    def _unfold_mask(self, mask: Tensor) -> Tensor:
        c, h, _ = mask.shape[-3:]
        if c == 1:
            return _repeated(mask, (1, 2))
        found = self._unfold(mask)
        if h == 1 and (is_traced() or not torch.equal(found[..., ::2], found[..., 1::2])):
            raise ValueError("Checkerboard: a mask of fields must have all rows, as they alternate")
        return _once(found, mask)

    def _fold(self, x: Tensor) -> Tensor:
        return torch.cat(self._turned(x.unflatten(-1, (-1, 2))).unbind(-1), -3)

    def _unfold(self, z: Tensor) -> Tensor:
        return self._turned(torch.stack(z.chunk(2, -3), -1)).flatten(-2)

    def _turned(self, pairs: Tensor) -> Tensor:
        """Pairs of neighbours (…, H, W / 2, 2), those of odd rows the other way round."""
        odd = torch.arange(pairs.shape[-3], device=pairs.device) % 2 == 1
        return torch.where(odd[:, None, None], pairs.flip(-1), pairs)


class Haar(Transform):
    """Blocks of 2×2 pixels as their mean and three differences, orthonormally: (C, H, W) to (4 C, H / 2, W / 2).

    z = ½ (a + b + c + d, a − b + c − d, a + b − c − d, a − b − c + d) of each block (a b; c d): the means of all
    channels first, then the differences between columns, between rows, and across. Volume is preserved. A block that
    a mask leaves out in part is only taken apart.

    Args:
        channels: C; None for any, where no mask tells pixels apart.

    Raises:
        ValueError: odd sides; a mask of pixels without `channels`.

    Cost: sixteen products for each block and channel.

    "Wavelet Flow: Fast Training of High Resolution Normalizing Flows" (Yu et al., 2020),
    https://arxiv.org/abs/2010.13821

    >>> import torch, diffeo
    >>> diffeo.Haar()(torch.ones(5, 1, 4, 4))[0][0, :, 0, 0]
    tensor([2., 0., 0., 0.])
    """

    event_ndim = event_ndim_out = 3
    domain = codomain = constraints.independent(constraints.real, 3)
    mix: Tensor

    def __init__(self, channels: int | None = None):
        super().__init__()
        self.squeeze = Squeeze(channels=channels)
        self.squeeze.called = "Haar"
        self.event = self.squeeze.event
        signs = [[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
        self.register_buffer("mix", torch.tensor(signs) / 2, persistent=False)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        blocks = self.squeeze(x)[0].unflatten(-3, (-1, 4))
        z = self._mixed(blocks, context).transpose(-4, -3).flatten(-4, -3)
        return z, constant_logdet(x.new_zeros(()), x, 3)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        self.input_shape(z.shape[-3:])
        blocks = self._mixed(z.unflatten(-3, (4, -1)).transpose(-4, -3), context)  # its own inverse
        return self.squeeze.inverse(blocks.flatten(-4, -3))[0], constant_logdet(z.new_zeros(()), z, 3)

    def output_shape(self, event: Event) -> Event:
        return self.squeeze.output_shape(event)

    def input_shape(self, event: Event) -> Event:
        return self.squeeze.input_shape(event)

    def map_context(self, context: Context) -> Context:
        return map_mask(self.squeeze.map_context(context), lambda mask: self._sorted(mask, (-1, 4)))

    def unmap_context(self, context: Context) -> Context:
        return self.squeeze.unmap_context(map_mask(context, lambda mask: self._sorted(mask, (4, -1))))

    @staticmethod
    def _sorted(mask: Tensor, order: tuple[int, int]) -> Tensor:
        """By channels and then by the numbers of a block, or the other way round."""
        return mask if mask.shape[-3] == 1 else mask.unflatten(-3, order).transpose(-4, -3).flatten(-4, -3)

    def _mixed(self, blocks: Tensor, context: Context) -> Tensor:
        mixed = torch.einsum("ij,...jhw->...ihw", self.mix.to(blocks.dtype), blocks)
        mask = context_mask(self.squeeze.map_context(context))
        if mask is None:
            return mixed
        if mask.shape[-3] > 1:
            mask = mask.unflatten(-3, (-1, 4)).all(-3, keepdim=True)
        else:
            mask = mask.unsqueeze(-3)
        return torch.where(mask, mixed, blocks)


class Reshape(Transform):
    """The same numbers as an event of another shape; volume is preserved.

    Args:
        source: the event shape of x.
        target: that of z, with as many numbers.

    Raises:
        ValueError: shapes with different numbers of elements.

    >>> import torch, diffeo
    >>> diffeo.Reshape((2, 3), (6,))(torch.zeros(5, 2, 3))[0].shape
    torch.Size([5, 6])
    """

    def __init__(self, source: Sequence[int], target: Sequence[int]):
        super().__init__()
        if math.prod(source) != math.prod(target):
            raise ValueError(f"Reshape: {tuple(source)} and {tuple(target)} hold different numbers of elements")
        self.source, self.target = as_fixed_event(source, self), as_fixed_event(target, self)
        self.event = self.source
        self.event_ndim, self.event_ndim_out = len(self.event), len(self.target)
        self.domain = constraints.independent(constraints.real, self.event_ndim)
        self.codomain = constraints.independent(constraints.real, self.event_ndim_out)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Reshape")
        z = x.reshape(*x.shape[: x.ndim - self.event_ndim], *self.target)
        return z, constant_logdet(x.new_zeros(()), x, self.event_ndim)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, self.target, "Reshape")
        x = z.reshape(*z.shape[: z.ndim - self.event_ndim_out], *self.source)
        return x, constant_logdet(z.new_zeros(()), z, self.event_ndim_out)

    def output_shape(self, event: Event) -> Event:
        return self.target

    def input_shape(self, event: Event) -> Event:
        return self.source

    def map_context(self, context: Context) -> Context:
        return map_mask(context, lambda mask: self._shaped(mask, self.source, self.target))

    def unmap_context(self, context: Context) -> Context:
        return map_mask(context, lambda mask: self._shaped(mask, self.target, self.source))

    @staticmethod
    def _shaped(mask: Tensor, source: Size, target: Size) -> Tensor:
        batch = mask.shape[: mask.ndim - len(source)]
        return mask.expand(*batch, *source).reshape(*batch, *target)


class Patches(Transform):
    """Square patches of an image as a sequence of vectors: (C, H, W) to (H W / k², C k²), row by row.

    Args:
        size: k, the side of a patch, at least 1.
        event: (C, H, W).

    Raises:
        ValueError: sides that k does not divide.

    "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale" (Dosovitskiy et al., 2020),
    https://arxiv.org/abs/2010.11929

    >>> import torch, diffeo
    >>> diffeo.Patches(2, (1, 8, 8))(torch.zeros(5, 1, 8, 8))[0].shape
    torch.Size([5, 16, 4])
    """

    event_ndim, event_ndim_out = 3, 2
    domain, codomain = constraints.independent(constraints.real, 3), constraints.independent(constraints.real, 2)

    def __init__(self, size: int, event: tuple[int, int, int]):
        super().__init__()
        self.event = self.source = as_fixed_event(event, self)
        channels, height, width = self.source
        if size < 1 or height % size or width % size:
            raise ValueError(f"Patches: {height}×{width} images do not divide into patches of {size}×{size}")
        self.size, self.grid = size, (height // size, width // size)
        self.target = Size((self.grid[0] * self.grid[1], channels * size * size))

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Patches")
        return self._cut(x), constant_logdet(x.new_zeros(()), x, 3)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, self.target, "Patches")
        return self._joined(z), constant_logdet(z.new_zeros(()), z, 2)

    def output_shape(self, event: Event) -> Event:
        return self.target

    def input_shape(self, event: Event) -> Event:
        return self.source

    def map_context(self, context: Context) -> Context:
        return map_mask(context, lambda mask: self._cut(mask.expand(*mask.shape[:-3], *self.source)))

    def unmap_context(self, context: Context) -> Context:
        return map_mask(context, lambda mask: self._joined(mask.expand(*mask.shape[:-2], *self.target)))

    def _cut(self, x: Tensor) -> Tensor:
        x = x.unflatten(-2, (self.grid[0], -1)).unflatten(-1, (self.grid[1], -1))  # (C, rows, k, columns, k)
        x = x.movedim((-4, -2, -5, -3, -1), (-5, -4, -3, -2, -1))
        return x.flatten(-3, -1).flatten(-3, -2)

    def _joined(self, z: Tensor) -> Tensor:
        x = z.unflatten(-1, (-1, self.size, self.size)).unflatten(-4, self.grid)  # (rows, columns, C, k, k)
        x = x.movedim((-3, -5, -2, -4, -1), (-5, -4, -3, -2, -1))
        return x.flatten(-2, -1).flatten(-3, -2)


def _repeated(mask: Tensor, times: tuple[int, int]) -> Tensor:
    """A mask of pixels, so many times as high and as wide; a side of 1 stands for all."""
    for dim, n in zip((-2, -1), times, strict=True):
        mask = mask if mask.shape[dim] == 1 else mask.repeat_interleave(n, dim)
    return mask


def _once(mask: Tensor, folded: Tensor) -> Tensor:
    """The mask with sides of 1 where the folded one has them, which stand for all, if all along them are alike."""
    for dim in (-2, -1):
        first = mask.narrow(dim, 0, 1)
        if folded.shape[dim] == 1 and not is_traced() and torch.equal(first.expand_as(mask), mask):
            mask = first
    return mask
