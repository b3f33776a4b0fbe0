"""Fully connected conditioners, plain and residual, with the context merged inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from diffeo.functional import Context, context_features
from diffeo.kernels import perceptron
from diffeo.kernels.dispatch import can_run
from diffeo.kernels.layout import affine, scalar_params

Activation = Callable[[], nn.Module]


class Linear(nn.Linear):
    """x Wᵀ + b."""

    def forward(self, input: Tensor) -> Tensor:
        return affine(input, self.weight, self.bias)


class ParameterLayer(nn.Linear):
    """x Wᵀ + b as `n_params` parameters of each scalar, laid out for the maps that read them."""

    def __init__(self, features: int, scalars: int, n_params: int):
        super().__init__(features, scalars * n_params)
        self.n_params = n_params

    def forward(self, input: Tensor) -> Tensor:
        return scalar_params(input, self.weight, self.bias, self.n_params)


LINEAR_LAYERS = (nn.Linear, Linear, ParameterLayer)


class MLP(nn.Module):
    """A multilayer perceptron `(x, context) -> params`, zero at the start.

    The context enters the first layer by its own matrix, so that one context row may serve many rows of x. The last
    layer starts at zero, so that a flow starts as the identity.

    Args:
        features: width of x; 0 is allowed (a net of the context alone, or of nothing: learned constants).
        out: width of the output; with `n_params`, the number of scalars whose parameters it gives.
        n_params: parameters of each scalar, as a coupling wants them: the result has shape (*batch, out, n_params),
            laid out in memory as scalar maps read it. None for a plain network, whose result is (*batch, out).
        context: width of the context; 0 ignores it.
        hidden: widths of the hidden layers.
        activation: class of the activation, such as `torch.nn.SiLU`.
        dropout: probability in [0, 1) of dropping a hidden unit while training.
        layer_norm: normalise each hidden layer.
        residual: hidden layers in pairs as residual blocks (all widths equal); the width of the blocks is `hidden[0]`
            and their number `len(hidden)`.

    Raises:
        ValueError: a context is expected and none comes; residual blocks of different widths.

    >>> import torch, diffeo
    >>> net = diffeo.nets.MLP(3, 4, n_params=2, context=2)
    >>> params = net(torch.randn(5, 3), torch.randn(2))
    >>> params.shape, bool((params == 0).all())
    (torch.Size([5, 4, 2]), True)
    """

    def __init__(
        self,
        features: int,
        out: int,
        *,
        n_params: int | None = None,
        context: int = 0,
        hidden: Sequence[int] = (128, 128),
        activation: Activation = nn.SiLU,
        dropout: float = 0.0,
        layer_norm: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        self.features, self.context, self.residual, self.n_params = features, context, residual, n_params
        self.reads = {"features": 1} if context else {}
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"MLP: residual blocks need equal widths, got hidden={tuple(hidden)}")
        if features + context == 0:
            hidden = ()
        width = out * (n_params or 1)

        def enter(width: int) -> list[nn.Module]:
            norm: list[nn.Module] = [nn.LayerNorm(width)] if layer_norm else []
            return [*norm, activation(), *([nn.Dropout(dropout)] if dropout else [])]

        first = hidden[0] if hidden else width
        self.from_x = Linear(features, first, bias=not context) if features else None
        self.from_context = Linear(context, first) if context else None
        self.constant = nn.Parameter(torch.zeros(width)) if features + context == 0 else None
        blocks: list[nn.Module] = []
        if residual:
            for inner in hidden:
                blocks.append(_Residual(*enter(inner), Linear(inner, inner), *enter(inner), Linear(inner, inner)))
        else:
            for a, b in pairwise(hidden):
                blocks.extend([*enter(a), Linear(a, b)])
        if hidden:
            last = Linear(hidden[-1], out) if n_params is None else ParameterLayer(hidden[-1], out, n_params)
            blocks.extend([*enter(hidden[-1]), last])
        self.body = nn.Sequential(*blocks)
        for layer in [self.body[-1]] if hidden else [self.from_x, self.from_context]:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        if not len(self.body):
            h = self._enter(x, context)
            return h if self.n_params is None else h.unflatten(-1, (-1, self.n_params))
        job = self.as_perceptron(x, context)
        if job is not None:
            params = perceptron.run(job, self.n_params or 1)
            return params.squeeze(-1) if self.n_params is None else params
        return self.body(self._enter(x, context))

    def as_perceptron(self, x: Tensor, context: Context, enter: bool = True) -> perceptron.Perceptron | None:
        """What to run as one operation, where that can be; without `enter`, all of the net or nothing."""
        if type(self) is not MLP or self.constant is not None or not can_run(x, products=True):
            return None
        found = perceptron.take_apart(self.body, LINEAR_LAYERS)
        if found is None:
            return None
        activation, layers = found
        # with a context the first layer is a sum
        enters = (
            self.from_x is None
            or self.from_context is not None
            or not perceptron.is_unmodified(self.from_x, LINEAR_LAYERS)
        )
        if enters and not enter:
            return None
        if not enters:
            layers = [self.from_x, *layers]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        job = perceptron.Perceptron(activation, self._enter(x, context) if enters else x, weights, biases, enter=enters)
        return job if perceptron.fits(job) else None

    def _enter(self, x: Tensor, context: Context) -> Tensor:
        if self.constant is not None:
            return self.constant.expand(*x.shape[:-1], -1)
        h = None if self.from_x is None else self.from_x(x)
        if self.from_context is not None:
            c = self.from_context(require_context(context, self.context, "MLP"))
            return c if h is None else h + c  # without an x the batch is that of the context: one pass serves many x
        return h  # pyright: ignore[reportReturnType] (a net without x and context is a constant)


class PeriodicMLP(nn.Module):
    """An `MLP` of angles: the same at x and at x + period.

    It sees cos(2πkx / period) and sin(2πkx / period) for k = 1, …, harmonics.

    Many harmonics make functions that change fast within a turn easy to learn (Fourier features), and need a lower
    learning rate. With twice the range of a bounded number as its period, the net sees that number so, and is not
    periodic within the range.

    Args:
        features: number of angles.
        out: width of the output, or number of scalars, as for `MLP`.
        harmonics: number of cosines, and of sines, of each angle, at least 1.
        period: length of a turn, > 0.
        options: keywords of `MLP`.

    Raises:
        ValueError: no harmonics, or a period that is not positive.

    "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains" (Tancik et al., 2020),
    https://arxiv.org/abs/2006.10739

    >>> import torch, diffeo
    >>> diffeo.nets.PeriodicMLP(2, 4, context=1)(torch.zeros(5, 2), torch.zeros(1)).shape
    torch.Size([5, 4])
    """

    rates: Tensor

    def __init__(self, features: int, out: int, *, harmonics: int = 1, period: float = 2 * math.pi, **options: Any):
        super().__init__()
        if harmonics < 1 or not period > 0:
            raise ValueError(f"PeriodicMLP: expected a harmonic and a period > 0, got {harmonics} and {period}")
        self.register_buffer("rates", torch.arange(1, harmonics + 1) * (2 * math.pi / period), persistent=False)
        self.mlp = MLP(2 * features * harmonics, out, **options)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        angles = (x.unsqueeze(-2) * self.rates.unsqueeze(-1)).flatten(-2)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1), context)


class _Residual(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def require_context(context: Context, width: int, who: str) -> Tensor:
    """The feature tensor of a context that must have this width."""
    features = context_features(context)
    if features is None:
        raise ValueError(f"{who}: expected a context with {width} features, got none; pass context=")
    if features.shape[-1] != width:
        raise ValueError(f"{who}: expected a context with {width} features, got shape {tuple(features.shape)}")
    return features
