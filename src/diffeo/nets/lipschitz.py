"""Networks with a Lipschitz constant below a bound that holds, and their Jacobians without autograd.

Every weight is divided by a bound on its largest singular value where that exceeds its share of the constant. The bound
is that of Gram iteration: with G₀ = W and G ← GᵀG, σ ≤ ‖Gₙ‖^{2⁻ⁿ} in the Frobenius norm for every n, and closely so
after a few steps. Unlike power iteration it is never below σ, and it keeps no state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffeo.functional import Context, Event, as_fixed_event, precise
from diffeo.nets.mlp import require_context

BEND = 0.7  # β at the start, over √width
OFFSET = 0.5  # of β in its softplus
GRAM_STEPS = 6  # the bound is then at most rank^(1/128) times σ, 4 % for rank 128
FREQUENCIES = 24  # of each side, at which a convolution is looked at


class Contraction(nn.Module, ABC):
    """g(x, context) with |g(x) − g(y)| ≤ lipschitz · |x − y|, zero at the start: linear maps and LipSwish between them.

    LipSwish is φ(h) = h sigmoid(β h) / 1.1, with slopes up to one and a learned β > 0 for each layer. In the context g
    is free.

    Attributes:
        event: shape of x and of g(x); None where a dim is free.
    """

    def __init__(
        self, event: Event, layers: Sequence[nn.Module], widths: Sequence[int], context: int, lipschitz: float
    ):
        super().__init__()
        if not widths or not 0 < lipschitz < 1:
            raise ValueError(
                f"{type(self).__name__}: expected hidden layers and 0 < lipschitz < 1, got {tuple(widths)}, {lipschitz}"
            )
        self.event, self.context, self.lipschitz = event, context, lipschitz
        self.share = lipschitz ** (1 / len(layers))  # of each layer
        self.layers = nn.ModuleList(layers)
        self.from_context = nn.Linear(context, widths[0], bias=False) if context else None
        # a unit sees about 1/√width of x, which must reach the bend of its activation, or the net stays linear for long
        start = torch.tensor([BEND * width**0.5 for width in widths])
        self.sharpness = nn.Parameter(start + torch.log(-torch.expm1(-start)) - OFFSET)
        last = self.layers[-1]
        nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def bound(self, weight: Tensor) -> Tensor:
        """Of the largest singular value of the linear map with that weight."""

    @abstractmethod
    def apply_weight(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The linear map of h, (*batch, *event of the layer)."""

    def forward(self, x: Tensor, context: Context = None, weights: list[Tensor] | None = None) -> Tensor:
        return self.linearize(x, context, weights)[0]

    def linearize(
        self, x: Tensor, context: Context = None, weights: list[Tensor] | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """g(x), and the map of tangents (k, *batch, *event) by its Jacobian at x; by `weights()` computed before."""
        weights = self.weights(x.dtype) if weights is None else weights
        slopes: list[Tensor] = []
        h = x
        for i, (layer, weight) in enumerate(zip(self.layers, weights, strict=True)):
            if i:
                h, slope = self._bend(h, i - 1)
                slopes.append(slope)
            h = self.apply_weight(h, weight, layer.bias.to(x.dtype))  # pyright: ignore
            if i == 0 and self.from_context is not None:
                given = self.from_context(require_context(context, self.context, type(self).__name__)).to(x.dtype)
                h = h + given[(..., *[None] * (len(self.event) - 1))]  # at every place

        def push(tangents: Tensor) -> Tensor:
            pushed = self.apply_weight(tangents, weights[0], None)
            for weight, slope in zip(weights[1:], slopes, strict=True):
                pushed = self.apply_weight(slope * pushed, weight, None)
            return pushed

        return h, push

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        """The weights of all layers, each with singular values up to its share of the Lipschitz constant."""
        scaled: list[Tensor] = []
        for layer in self.layers:
            weight: Tensor = layer.weight.to(dtype)  # pyright: ignore
            fraction = self.share / self.bound(precise(weight)).clamp_min(self.share)
            scaled.append(weight * fraction.to(dtype))
        return scaled

    def _bend(self, h: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """LipSwish and its slope."""
        beta = F.softplus(self.sharpness[i].to(h.dtype) + OFFSET)
        s = torch.sigmoid(beta * h)
        return h * s / 1.1, s * (1 + beta * h * (1 - s)) / 1.1


class LipschitzMLP(Contraction):
    """A contraction of vectors: g(x, context) with |g(x) − g(y)| ≤ lipschitz · |x − y|, zero at the start.

    Activations are LipSwish, φ(h) = h sigmoid(β h) / 1.1 with slopes up to one and a learned β > 0 for each layer. In
    the context g is free.

    Args:
        features: width of x and of the output.
        context: width of the context; 0 ignores it.
        hidden: widths of the hidden layers, at least one.
        lipschitz: the constant, in (0, 1).

    Raises:
        ValueError: no hidden layer; a constant outside (0, 1).

    "Residual Flows for Invertible Generative Modeling" (Chen et al., 2019), https://arxiv.org/abs/1906.02735;
    "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration" (Delattre et al., 2023),
    https://arxiv.org/abs/2305.16173

    >>> import torch, diffeo
    >>> diffeo.nets.LipschitzMLP(3)(torch.ones(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(self, features: int, *, context: int = 0, hidden: Sequence[int] = (128, 128), lipschitz: float = 0.97):
        layers = [nn.Linear(a, b) for a, b in pairwise([*as_fixed_event(features, self), *hidden, features])]
        for layer in layers:  # with all singular values alike, bounding the largest takes nothing from the others
            nn.init.orthogonal_(layer.weight)
        super().__init__((features,), layers, tuple(hidden), context, lipschitz)

    def bound(self, weight: Tensor) -> Tensor:
        return singular_bound(weight)

    def apply_weight(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(h, weight, bias)


class LipschitzConvNet(Contraction):
    """A contraction of images: convolutions of 3×3, 1×1 and 3×3, zero at the start.

    |g(x) − g(y)| ≤ lipschitz · |x − y| over all numbers of an image, whatever its size. A convolution with zeros around
    the image is a part of one on a torus, whose singular values are those of the matrices K̂(ω) of its kernel's Fourier
    transform. These are bounded at N×N frequencies, and between them by the factor N / (N − 2).

    Args:
        channels: of x and of the output.
        context: width of a context vector, seen by every place; 0 ignores it.
        hidden: channels of the two hidden layers.
        lipschitz: the constant, in (0, 1).

    Raises:
        ValueError: sizes below 1; a constant outside (0, 1).

    Cost: a bound takes O(N² · channels² · hidden), once a pass; then as a convolutional net.

    "Residual Flows for Invertible Generative Modeling" (Chen et al., 2019), https://arxiv.org/abs/1906.02735;
    "Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration" (Delattre et al., 2023),
    https://arxiv.org/abs/2305.16173; "Bounding Multivariate Trigonometric Polynomials" (Pfister and Bresler, 2018),
    https://arxiv.org/abs/1802.09588

    >>> import torch, diffeo
    >>> diffeo.nets.LipschitzConvNet(2, hidden=8)(torch.ones(5, 2, 4, 4)).shape
    torch.Size([5, 2, 4, 4])
    """

    def __init__(self, channels: int, *, context: int = 0, hidden: int = 64, lipschitz: float = 0.97):
        as_fixed_event((channels, hidden), self)
        layers = [
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.Conv2d(hidden, hidden, 1),
            nn.Conv2d(hidden, channels, 3, padding=1),
        ]
        for layer in layers:
            nn.init.dirac_(layer.weight)
            middle = layer.kernel_size[0] // 2
            with torch.no_grad():  # all singular values alike, as in a linear map
                nn.init.orthogonal_(layer.weight[:, :, middle, middle])
        super().__init__((channels, None, None), layers, (hidden, hidden), context, lipschitz)

    def bound(self, weight: Tensor) -> Tensor:
        if weight.shape[-1] == 1:
            return singular_bound(weight[..., 0, 0])
        matrices = torch.fft.rfft2(weight, s=(FREQUENCIES, FREQUENCIES)).movedim((0, 1), (-2, -1))
        a, b = matrices.real, matrices.imag
        # as real matrices, of the same norm: products of small complex ones run one by one on a CPU
        both = torch.cat([torch.cat([a, -b], -1), torch.cat([b, a], -1)], -2)
        return singular_bound(both).amax() * (FREQUENCIES / (FREQUENCIES - 2 * (weight.shape[-1] // 2)))

    def apply_weight(self, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found = F.conv2d(h.reshape(-1, *h.shape[-3:]), weight, bias, padding=weight.shape[-1] // 2)
        return found.reshape(*h.shape[:-3], *found.shape[-3:])


def singular_bound(weight: Tensor) -> Tensor:
    """An upper bound on the largest singular value of matrices (*batch, m, n), by Gram iteration."""
    g = weight if weight.shape[-2] >= weight.shape[-1] else weight.mT
    log_scale = torch.zeros_like(_frobenius(g))
    for _ in range(GRAM_STEPS):
        norm = _frobenius(g)
        log_scale = 2 * (log_scale + norm.log())
        g = g / norm[..., None, None]
        g = g.mT @ g
    return ((log_scale + _frobenius(g).log()) / 2**GRAM_STEPS).exp()


def _frobenius(g: Tensor) -> Tensor:
    return g.square().sum((-2, -1)).clamp_min(1e-30).sqrt()
