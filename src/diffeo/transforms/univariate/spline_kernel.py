"""The rational-quadratic spline where every scalar has parameters of its own: few temporaries, gradients by hand.

Parameters arrive as planes, one tensor of the shape of x for each of the 3K − 1 numbers of a spline, and every bin is
a term of an unrolled sum: nothing but elementwise operations on equal shapes, which a compiler turns into one loop over
the scalars, in registers, and which also run well one by one. The backward pass recomputes the bins from the parameters
instead of keeping them, so that training stores nothing beyond what came in.

With ξ, s, q as in `spline` and m = ξ(1−ξ), t = (s ξ² + d₀ m)/q, A = d₁ ξ² + 2 s m + d₀ (1−ξ)²:

    z = y₀ + h t,     log dz/dx = 2 log s + log A − 2 log q

Everything that follows is the chain rule through (ξ, s, d₀, d₁), then through knots and softmax. The inverse shares it:
where x solves z = f(x; θ), dx/dz = 1/f' and dx/dθ = −(∂f/∂θ)/f'.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


class Limits(NamedTuple):
    """What bounds a spline: its interval and the least sizes and slopes of a bin."""

    bins: int
    bound: float
    min_width: float
    min_height: float
    min_slope: float

    @property
    def slope_offset(self) -> float:
        """Added to the raw slopes, so that zero stands for slope one."""
        return math.log(math.expm1(1 - self.min_slope))


class _Bin(NamedTuple):
    """The bin that holds each scalar, and what led there."""

    x: Tensor  # left knot
    y: Tensor
    width: Tensor
    height: Tensor
    raw: tuple[Tensor, Tensor]  # slopes at both ends, before softplus
    beyond: list[Tensor]  # beyond[k]: the scalar lies at or right of inner knot k
    widths: list[Tensor]  # shares of all bins (softmax)
    heights: list[Tensor]


def map_scalars(x: Tensor, params: Tensor, inverse: bool, limits: Limits) -> tuple[Tensor, Tensor]:
    """The spline or its inverse, and the log-slope of that direction; params has shape (3K − 1, *x.shape)."""
    function = _Spline if torch.compiler.is_compiling() else _ForwardModeToo  # which compilers cannot follow
    return function.apply(x, params, inverse, limits)  # pyright: ignore[reportReturnType]


class _Spline(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, params: Tensor, inverse: bool, limits: Limits) -> tuple[Tensor, Tensor]:
        return (_inverse if inverse else _forward)(x, params, limits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, params, ctx.inverse, ctx.limits = inputs
        found = output[0] if ctx.inverse else x  # the scalar on the x axis
        ctx.save_for_backward(found, params)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, params = ctx.saved_tensors
        gradients = _backward(x, params, grad, grad_log, ctx.inverse, ctx.limits)
        return (*gradients, None, None)


class _ForwardModeToo(_Spline):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _Spline.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output[0] if ctx.inverse else inputs[0], inputs[1])

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dparams: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:  # pyright: ignore
        x, params = ctx.saved_tensors
        dx = torch.zeros_like(x) if dx is None else dx
        dparams = torch.zeros_like(params) if dparams is None else dparams
        return _tangents(x, params, dx, dparams, ctx.inverse, ctx.limits)


def _forward(x: Tensor, params: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    inside = x.clamp(-limits.bound, limits.bound)
    bin = _find(inside, params, 0, limits)
    d0, d1 = _slopes(bin, limits)
    s, xi = bin.height / bin.width, (inside - bin.x) / bin.width
    m = xi * (1 - xi)
    q = s + (d0 + d1 - 2 * s) * m
    z = bin.y + bin.height * (s * xi * xi + d0 * m) / q
    outside = x.abs() >= limits.bound
    slope = torch.where(outside, 1.0, _slope(s, d0, d1, xi, m, q))
    return torch.where(outside | x.isnan(), x, z), slope.log()


def _inverse(z: Tensor, params: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    inside = z.clamp(-limits.bound, limits.bound)
    bin = _find(inside, params, 1, limits)
    d0, d1 = _slopes(bin, limits)
    s, t = bin.height / bin.width, (inside - bin.y) / bin.height
    r = d0 + d1 - 2 * s
    tr = t * r
    a, b, c = s - d0 + tr, d0 - tr, -s * t
    root = (b * b - 4 * a * c).clamp_min(torch.finfo(z.dtype).tiny).sqrt()
    xi = (2 * c / (-b - root)).clamp(0, 1)
    m = xi * (1 - xi)
    outside = z.abs() >= limits.bound
    slope = torch.where(outside, 1.0, _slope(s, d0, d1, xi, m, s + r * m))
    return torch.where(outside | z.isnan(), z, bin.x + xi * bin.width), -slope.log()


def _slope(s: Tensor, d0: Tensor, d1: Tensor, xi: Tensor, m: Tensor, q: Tensor) -> Tensor:
    root = s / q
    return root * root * (d1 * xi * xi + 2 * s * m + d0 * (1 - xi) * (1 - xi))


def _find(v: Tensor, params: Tensor, axis: int, limits: Limits) -> _Bin:
    """The bin that holds v on the x (0) or the z axis (1): every inner knot at or left of v moves it one further."""
    k, bound = limits.bins, limits.bound
    planes = params.unbind(0)
    widths, heights, slopes = _softmax(planes[:k]), _softmax(planes[k : 2 * k]), planes[2 * k :]
    edge = torch.zeros_like(v)  # at both ends the slope is one: a raw slope of zero
    width, height = _size(widths[0], 0, limits), _size(heights[0], 1, limits)
    x = y = torch.full_like(v, -bound)
    knot_x, knot_y = width - bound, height - bound
    left, right = edge, slopes[0]
    beyond: list[Tensor] = []
    for i in range(1, k):
        moved = v >= (knot_y if axis else knot_x)
        beyond.append(moved)
        wide, high = _size(widths[i], 0, limits), _size(heights[i], 1, limits)
        x, y = torch.where(moved, knot_x, x), torch.where(moved, knot_y, y)
        width, height = torch.where(moved, wide, width), torch.where(moved, high, height)
        left = torch.where(moved, slopes[i - 1], left)
        right = torch.where(moved, slopes[i] if i < k - 1 else edge, right)
        knot_x, knot_y = knot_x + wide, knot_y + high
    return _Bin(x, y, width, height, (left, right), beyond, widths, heights)


def _softmax(planes: tuple[Tensor, ...]) -> list[Tensor]:
    top = planes[0]
    for plane in planes[1:]:
        top = torch.maximum(top, plane)
    powers = [(plane - top).exp() for plane in planes]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    scale = 1 / total
    return [power * scale for power in powers]


def _size(share: Tensor, axis: int, limits: Limits) -> Tensor:
    return share * _span(axis, limits) + 2 * limits.bound * (limits.min_height if axis else limits.min_width)


def _span(axis: int, limits: Limits) -> float:
    """What the shares of the bins divide among themselves."""
    return 2 * limits.bound * (1 - limits.bins * (limits.min_height if axis else limits.min_width))


def _slopes(bin: _Bin, limits: Limits) -> tuple[Tensor, Tensor]:
    d0, d1 = (limits.min_slope + F.softplus(raw + limits.slope_offset) for raw in bin.raw)
    return d0, d1


def _backward(
    x: Tensor, params: Tensor, grad: Tensor, grad_log: Tensor, inverse: bool, limits: Limits
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the input and the parameters, from those of the output and its log-slope."""
    inside = x.clamp(-limits.bound, limits.bound)
    bin = _find(inside, params, 0, limits)
    d0, d1 = _slopes(bin, limits)
    s, xi = bin.height / bin.width, (inside - bin.x) / bin.width
    co = 1 - xi
    m, bend = xi * co, co - xi
    r = d0 + d1 - 2 * s
    q = s + r * m
    t = (s * xi * xi + d0 * m) / q
    a = d1 * xi * xi + 2 * s * m + d0 * co * co
    a_xi = 2 * (d1 * xi + s * bend - d0 * co)
    outside = x.abs() >= limits.bound
    grad_in = torch.where(outside, 0.0, grad)
    grad_log_in = torch.where(outside, 0.0, grad_log)
    if inverse:  # dx = (dz − ∂f/∂θ dθ) / f', and the log-slope is minus that of f at x
        slope = s * s * a / (q * q)
        through = grad_in - grad_log_in * (a_xi / a - 2 * r * bend / q) / bin.width
        grad_log_in = -grad_log_in
        entering = through / slope
        grad_in = -entering
    g_t = grad_in * bin.height / q
    g_a = grad_log_in / a
    g_q = -(g_t * t + 2 * grad_log_in / q)
    g_xi = g_t * (2 * s * xi + d0 * bend) + g_a * a_xi + g_q * r * bend
    g_s = g_t * xi * xi + 2 * grad_log_in / s + 2 * g_a * m + g_q * (1 - 2 * m)
    g_left = (g_t * m + g_a * co * co + g_q * m) * torch.sigmoid(bin.raw[0] + limits.slope_offset)
    g_right = (g_a * xi * xi + g_q * m) * torch.sigmoid(bin.raw[1] + limits.slope_offset)
    g_x = g_xi / bin.width
    g_width = -(g_s * s + g_xi * xi) / bin.width
    g_height = grad_in * t + g_s / bin.width

    zero = torch.zeros_like(x)
    beyond = bin.beyond

    def by_bin(left_of: Tensor, at: Tensor) -> list[Tensor]:
        """What falls to each bin's size: `left_of` where it lies left of the scalar's bin, `at` in it, else nothing."""
        here = [at, *(torch.where(moved, at, zero) for moved in beyond)]
        return [*(torch.where(moved, left_of, g) for moved, g in zip(beyond, here[:-1], strict=True)), here[-1]]

    planes = _through_softmax(by_bin(-g_x, g_width), bin.widths, _span(0, limits))
    planes += _through_softmax(by_bin(grad_in, g_height), bin.heights, _span(1, limits))
    for i, moved in enumerate(beyond):  # inner knot i ends bin i and begins bin i + 1
        g = torch.where(moved, g_left, g_right)
        g = g if i == 0 else torch.where(beyond[i - 1], g, zero)
        planes.append(g if i == len(beyond) - 1 else torch.where(beyond[i + 1], zero, g))
    return torch.where(outside, grad, entering if inverse else g_x), torch.stack(planes)


def _through_softmax(gradients: list[Tensor], shares: list[Tensor], span: float) -> list[Tensor]:
    mean = gradients[0] * shares[0]
    for g, share in zip(gradients[1:], shares[1:], strict=True):
        mean = mean + g * share
    return [span * share * (g - mean) for g, share in zip(gradients, shares, strict=True)]


def _tangents(
    x: Tensor, params: Tensor, dx: Tensor, dparams: Tensor, inverse: bool, limits: Limits
) -> tuple[Tensor, Tensor]:
    """Forward mode: the backward pass is linear in the gradients, and this is its transpose."""

    def pull(grad: Tensor, grad_log: Tensor) -> tuple[Tensor, Tensor]:
        return _backward(x, params, grad, grad_log, inverse, limits)

    zero = torch.zeros_like(x)
    return torch.func.vjp(pull, zero, zero)[1]((dx, dparams))
