"""Convolutional conditioners: parameters for every place of an image from its other channels and a context."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diffeo.functional import Context, context_features, joined
from diffeo.nets.mlp import require_context


class ConvNet(nn.Module):
    """A convolutional net whose output is zero at the start, as a conditioner of channels.

    A 3×3 convolution enters, then either a 1×1 convolution follows, as in Glow, or `blocks` gated residual blocks, as
    in Flow++; a 3×3 convolution gives the parameters. A context is added, through a linear map, to every place of the
    hidden layers.

    Args:
        channels: of x_a, at least 1.
        out: channels of x_b.
        n_params: of each element of x_b.
        hidden: channels of the hidden layers, at least 1.
        blocks: gated residual blocks; 0 for one 1×1 convolution.
        context: width of the context; 0 for none.

    Returns:
        Parameters of shape `(*batch, out, H, W, n_params)`.

    Cost: O(hidden · (9 · channels + hidden + 9 · out · n_params)) for each place.

    "Glow: Generative Flow with Invertible 1x1 Convolutions" (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039

    >>> import torch, diffeo
    >>> net = diffeo.nets.ConvNet(2, 2, n_params=2, hidden=8)
    >>> net(torch.zeros(5, 2, 4, 4)).shape
    torch.Size([5, 2, 4, 4, 2])
    """

    def __init__(self, channels: int, out: int, n_params: int, *, hidden: int = 64, blocks: int = 0, context: int = 0):
        super().__init__()
        if min(channels, out, n_params, hidden) < 1 or blocks < 0 or context < 0:
            raise ValueError(
                "ConvNet: expected at least 1 channel, output, parameter and hidden channel, and no negative size, got "
                f"channels={channels}, out={out}, n_params={n_params}, hidden={hidden}, blocks={blocks}, "
                f"context={context}"
            )
        self.out, self.n_params, self.context = out, n_params, context
        self.enter = nn.Conv2d(channels, hidden, 3, padding=1)
        self.inner = nn.ModuleList(
            [GatedBlock(hidden, context) for _ in range(blocks)] if blocks else [Pointwise(hidden, context)]
        )
        self.leave = nn.Conv2d(hidden, out * n_params, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # pyright: ignore[reportArgumentType] (it has one)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        batch, given = x.shape[:-3], None
        if self.context:
            given = require_context(context, self.context, "ConvNet").to(x.dtype)
            batch = joined(batch, given.shape[:-1])
            given = given.expand(*batch, -1).reshape(-1, self.context)
        h = self.enter(x.expand(*batch, *x.shape[-3:]).reshape(-1, *x.shape[-3:]))
        for layer in self.inner:
            h = layer(h, given)
        params = self.leave(F.silu(h)).unflatten(1, (self.out, self.n_params)).movedim(2, -1)
        return params.reshape(*batch, *params.shape[1:])


class Pointwise(nn.Module):
    """h ↦ W silu(h + V c), at every place."""

    def __init__(self, hidden: int, context: int):
        super().__init__()
        self.mix = nn.Conv2d(hidden, hidden, 1)
        self.given = nn.Linear(context, hidden, bias=False) if context else None

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        return self.mix(F.silu(_shifted(h, self.given, context)))


class GatedBlock(nn.Module):
    """h ↦ h + a · σ(b), (a, b) from a 3×3 and a 1×1 convolution of silu(h), the context in between; then normalised.

    "Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design" (Ho et
    al., 2019), https://arxiv.org/abs/1902.00275
    """

    def __init__(self, hidden: int, context: int):
        super().__init__()
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.mix = nn.Conv2d(hidden, 2 * hidden, 1)
        self.given = nn.Linear(context, hidden, bias=False) if context else None
        self.norm = nn.GroupNorm(1, hidden)

    def forward(self, h: Tensor, context: Tensor | None) -> Tensor:
        inner = F.silu(_shifted(self.near(F.silu(h)), self.given, context))
        value, gate = self.mix(inner).chunk(2, 1)  # F.glu has no second derivative under vmap
        return self.norm(h + value * gate.sigmoid())


def _shifted(h: Tensor, given: nn.Linear | None, context: Tensor | None) -> Tensor:
    """h with what the context adds at every place."""
    return h if given is None or context is None else h + given(context)[..., None, None]


class OneHot(nn.Module):
    """Class labels as one-hot vectors: the encoder of a class-conditional flow.

    Args:
        classes: their number, at least 1; labels are 0 … classes − 1.

    >>> import torch, diffeo
    >>> diffeo.nets.OneHot(3)(torch.tensor([0, 2]))
    tensor([[1., 0., 0.],
            [0., 0., 1.]])
    """

    def __init__(self, classes: int):
        super().__init__()
        if classes < 1:
            raise ValueError(f"OneHot: expected at least 1 class, got {classes}")
        self.classes = classes
        self.reads = {"features": 0}  # a label is a scalar
        self.register_buffer("labels", torch.arange(classes), persistent=False)

    labels: Tensor

    def forward(self, context: Context) -> Context:
        label = context_features(context)
        if label is None:
            raise ValueError(f"OneHot: expected class labels 0 … {self.classes - 1} as context, got none")
        found = (label.unsqueeze(-1) == self.labels).to(torch.get_default_dtype())
        return found if context is None or isinstance(context, Tensor) else {**context, "features": found}
