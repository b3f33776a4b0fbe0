"""The arithmetic of the rational-quadratic spline, with its gradient by hand.

Parameters arrive as planes: 3K − 1 tensors of the shape of x (3K + 1 where the slopes at both ends are among them), one
for each number of a spline, so that all arithmetic is elementwise on neighbours in memory. The bin of each scalar is
found in one of two ways that agree up to rounding: eagerly with few operations over all bins at once, and, under a
compiler, as an unrolled sum over the bins, which becomes one loop over the scalars that lives in registers. The
backward pass recomputes the bins from the parameters, so that training keeps nothing beyond what came in.
With ξ, s, q as in `spline` and m = ξ(1−ξ), t = (s ξ² + d₀ m)/q, a = d₁ ξ² + 2 s m + d₀ (1−ξ)²:

    z = y₀ + h t,     log dz/dx = 2 log s + log a − 2 log q

The gradient is the chain rule through (ξ, s, d₀, d₁), then through knots and softmax. The inverse shares it: where x
solves z = f(x; θ), dx/dz = 1/f' and dx/dθ = −(∂f/∂θ)/f'.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from diffeo.kernels.recording import is_recording


class Limits(NamedTuple):
    """What bounds a spline: its interval and the least sizes and slopes of a bin.

    With `ends`, the slopes at the ends of the interval are parameters too, and there is nothing outside.
    """

    bins: int
    bound: float
    min_width: float
    min_height: float
    min_slope: float
    ends: bool = False

    @property
    def slope_offset(self) -> float:
        """Added to the raw slopes, so that zero stands for slope one."""
        return math.log(math.expm1(1 - self.min_slope))

    @property
    def n_params(self) -> int:
        return 3 * self.bins + (1 if self.ends else -1)

    def least(self, axis: int) -> float:
        """Size of the smallest bin on the x (0) or the z axis (1)."""
        return 2 * self.bound * (self.min_height if axis else self.min_width)

    def span(self, axis: int) -> float:
        """What is left for the bins to divide among themselves."""
        return 2 * self.bound - self.bins * self.least(axis)


class _Bin(NamedTuple):
    """The bin that holds each scalar."""

    x: Tensor  # left knot
    y: Tensor
    width: Tensor
    height: Tensor
    raw: tuple[Tensor, Tensor]  # slopes at both ends, before softplus
    place: _Place | _UnrolledPlace | None  # None where scalars share splines, whose gradients autograd finds


def owned(v: Tensor, params: Tensor) -> bool:
    """Whether every scalar has a spline of its own (sizes are compared last: a comparison ties them under export)."""
    return params.ndim == v.ndim + 1 and params.shape[1:] == v.shape


def forward(x: Tensor, params: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    inside = x.clamp(-limits.bound, limits.bound)
    bin = _find(inside, params, 0, limits)
    d0, d1 = _slopes(bin, limits)
    s, xi = bin.height / bin.width, (inside - bin.x) / bin.width
    m = xi * (1 - xi)
    q = s + (d0 + d1 - 2 * s) * m
    z = bin.y + bin.height * (s * xi * xi + d0 * m) / q
    outside = _outside(x, limits)
    slope = torch.where(outside, 1.0, _slope(s, d0, d1, xi, m, q))
    return torch.where(outside | x.isnan(), x, z), slope.log()


def inverse(z: Tensor, params: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
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
    outside = _outside(z, limits)
    slope = torch.where(outside, 1.0, _slope(s, d0, d1, xi, m, s + r * m))
    return torch.where(outside | z.isnan(), z, bin.x + xi * bin.width), -slope.log()


def _outside(v: Tensor, limits: Limits) -> Tensor:
    return torch.zeros_like(v, dtype=torch.bool) if limits.ends else v.abs() >= limits.bound


def _slope(s: Tensor, d0: Tensor, d1: Tensor, xi: Tensor, m: Tensor, q: Tensor) -> Tensor:
    root = s / q
    return root * root * (d1 * xi * xi + 2 * s * m + d0 * (1 - xi) * (1 - xi))


def _slopes(bin: _Bin, limits: Limits) -> tuple[Tensor, Tensor]:
    d0, d1 = (limits.min_slope + F.softplus(raw + limits.slope_offset) for raw in bin.raw)
    return d0, d1


def backward(
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
    outside = _outside(x, limits)
    g = torch.where(outside, 0.0, grad)
    g_log = torch.where(outside, 0.0, grad_log)
    entering = grad
    if inverse:  # dx = (dz − ∂f/∂θ dθ) / f', and the log-slope is minus that of f at x
        entering = (g - g_log * (a_xi / a - 2 * r * bend / q) / bin.width) * q * q / (s * s * a)
        g, g_log = -entering, -g_log
    g_t = g * bin.height / q
    g_a = g_log / a
    g_q = -(g_t * t + 2 * g_log / q)
    g_xi = g_t * (2 * s * xi + d0 * bend) + g_a * a_xi + g_q * r * bend
    g_s = g_t * xi * xi + 2 * g_log / s + 2 * g_a * m + g_q * (1 - 2 * m)
    g_left = (g_t * m + g_a * co * co + g_q * m) * torch.sigmoid(bin.raw[0] + limits.slope_offset)
    g_right = (g_a * xi * xi + g_q * m) * torch.sigmoid(bin.raw[1] + limits.slope_offset)
    g_x = g_xi / bin.width
    g_width, g_height = -(g_s * s + g_xi * xi) / bin.width, g * t + g_s / bin.width
    if bin.place is None:
        raise ValueError("spline: the gradient by hand is for scalars with splines of their own")
    g_params = bin.place.gather_gradients((-g_x, g), (g_width, g_height), (g_left, g_right), limits)
    return torch.where(outside, grad, entering if inverse else g_x), g_params


def _find(v: Tensor, params: Tensor, axis: int, limits: Limits) -> _Bin:
    """The bin that holds v on the x (0) or the z axis (1)."""
    traced = torch.compiler.is_compiling() and not torch.compiler.is_exporting()  # exported graphs are to stay small
    if (traced or is_recording()) and owned(v, params):
        return _find_unrolled(v, params, axis, limits)
    if not owned(v, params):
        return _find_shared(v, params, axis, limits)
    k = limits.bins
    shares = params[: 2 * k].unflatten(0, (2, k)).softmax(1)
    if limits.min_width == limits.min_height:
        sizes = shares * limits.span(0) + limits.least(0)
    else:
        sizes = torch.stack([shares[i] * limits.span(i) + limits.least(i) for i in (0, 1)])
    starts = F.pad(sizes[:, :-1].cumsum(1).movedim(1, -1), (1, 0)).movedim(-1, 1) - limits.bound
    at = (v >= starts[axis, 1:]).sum(0)
    index = at.expand(2, 1, *at.shape)
    size, start = (t.expand(2, k, *v.shape).gather(1, index).squeeze(1) for t in (sizes, starts))
    (width, height), (x, y) = size.unbind(0), start.unbind(0)
    knots = params[2 * k :]
    if not limits.ends:
        knots = F.pad(knots.movedim(0, -1), (1, 1)).movedim(-1, 0)  # a raw slope of zero, slope one, at both ends
    raw = knots.expand(k + 1, *v.shape).gather(0, torch.stack([at, at + 1]))
    return _Bin(x, y, width, height, (raw[0], raw[1]), _Place(at, shares))


def _find_shared(v: Tensor, params: Tensor, axis: int, limits: Limits) -> _Bin:
    """The same where scalars share splines: one table of all bins of all splines, of which each scalar takes a row."""
    k, shape = limits.bins, torch.broadcast_shapes(v.shape, params.shape[1:])
    n = params[0].numel()  # splines
    flat = params.reshape(len(params), n)
    shares = flat[: 2 * k].unflatten(0, (2, k)).softmax(1)
    sizes = torch.stack([shares[i] * limits.span(i) + limits.least(i) for i in (0, 1)])
    starts = F.pad(sizes[:, :-1].cumsum(1), (0, 0, 1, 0)) - limits.bound
    knots = flat[2 * k :] if limits.ends else F.pad(flat[2 * k :], (0, 0, 1, 1))
    table = torch.stack([*starts, *sizes, knots[:-1], knots[1:]], -1).transpose(0, 1).reshape(n * k, 6)
    first = k * torch.arange(n, device=v.device).reshape(params.shape[1:])  # row of each spline in the table
    at = first.expand(shape)
    for bit in reversed(range((k - 1).bit_length())):  # a binary search, which compilers join to what follows
        further = at + 2**bit
        inside = further - first < k
        knot = table.detach()[:, axis].index_select(0, torch.where(inside, further, 0).reshape(-1)).reshape(shape)
        at = torch.where(inside & (v >= knot), further, at)
    rows = table.index_select(0, at.reshape(-1))
    x, y, width, height, left, right = (t.reshape(shape) for t in rows.unbind(-1))
    return _Bin(x, y, width, height, (left, right), None)


class _Place(NamedTuple):
    """Where the scalars lie among all bins."""

    at: Tensor  # number of the bin
    shares: Tensor  # (2, K, *shape): widths and heights of all bins, before limits

    def gather_gradients(
        self,
        before: tuple[Tensor, Tensor],
        within: tuple[Tensor, Tensor],
        slopes: tuple[Tensor, Tensor],
        limits: Limits,
    ) -> Tensor:
        """Gradients of all parameters, from those of sizes of the bins before and at the scalar, and of its slopes."""
        bins = torch.arange(limits.bins, device=self.at.device).view(-1, *(1,) * self.at.ndim)
        here, earlier = bins == self.at, bins < self.at
        sizes = torch.where(here, torch.stack(within).unsqueeze(1), 0.0)
        sizes = torch.where(earlier, torch.stack(before).unsqueeze(1), sizes)
        shared = self.shares * sizes
        logits = shared - self.shares * shared.sum(1, keepdim=True)
        if limits.min_width == limits.min_height:
            logits = logits * limits.span(0)
        else:
            logits = torch.stack([logits[i] * limits.span(i) for i in (0, 1)])
        # inner knot i ends bin i and begins bin i + 1
        knots = torch.where(here[:-1], slopes[1], torch.where(here[1:], slopes[0], 0.0))
        if limits.ends:
            first, last = torch.where(here[:1], slopes[0], 0.0), torch.where(here[-1:], slopes[1], 0.0)
            knots = torch.cat([first, knots, last])
        return torch.cat([*logits.unbind(), knots])


def _find_unrolled(v: Tensor, params: Tensor, axis: int, limits: Limits) -> _Bin:
    """Every inner knot at or left of v moves it one bin further."""
    k = limits.bins
    planes = params.unbind(0)
    shares = _softmax(planes[:k]), _softmax(planes[k : 2 * k])
    knots = planes[2 * k :]
    if not limits.ends:
        edge = torch.zeros_like(v)
        knots = (edge, *knots, edge)
    x = y = torch.full_like(v, -limits.bound)
    width, height = (share[0] * limits.span(i) + limits.least(i) for i, share in enumerate(shares))
    reach_x, reach_y = width, height
    left, right = knots[0], knots[1]
    beyond: list[Tensor] = []
    for i in range(1, k):
        knot_x, knot_y = reach_x - limits.bound, reach_y - limits.bound
        moved = v >= (knot_y if axis else knot_x)
        beyond.append(moved)
        wide, high = (share[i] * limits.span(j) + limits.least(j) for j, share in enumerate(shares))
        x, y = torch.where(moved, knot_x, x), torch.where(moved, knot_y, y)
        width, height = torch.where(moved, wide, width), torch.where(moved, high, height)
        left, right = torch.where(moved, knots[i], left), torch.where(moved, knots[i + 1], right)
        reach_x, reach_y = reach_x + wide, reach_y + high
    return _Bin(x, y, width, height, (left, right), _UnrolledPlace(beyond, *shares))


class _UnrolledPlace(NamedTuple):
    """The same as `_Place`, bin by bin."""

    beyond: list[Tensor]  # beyond[i]: the scalar lies at or right of inner knot i
    widths: list[Tensor]
    heights: list[Tensor]

    def gather_gradients(
        self,
        before: tuple[Tensor, Tensor],
        within: tuple[Tensor, Tensor],
        slopes: tuple[Tensor, Tensor],
        limits: Limits,
    ) -> Tensor:
        """As `_Place.gather_gradients`."""
        zero = torch.zeros_like(slopes[0])
        planes: list[Tensor] = []
        for axis, shares in enumerate((self.widths, self.heights)):
            at_least = [within[axis], *(torch.where(moved, within[axis], zero) for moved in self.beyond)]
            earlier = zip(self.beyond, at_least[:-1], strict=True)
            sizes = [*(torch.where(moved, before[axis], g) for moved, g in earlier), at_least[-1]]
            planes += _through_softmax(sizes, shares, limits.span(axis))
        if limits.ends:
            planes.append(torch.where(self.beyond[0], zero, slopes[0]))
        for i, moved in enumerate(self.beyond):  # inner knot i ends bin i and begins bin i + 1
            g = torch.where(moved, *slopes)
            g = g if i == 0 else torch.where(self.beyond[i - 1], g, zero)
            planes.append(g if i == limits.bins - 2 else torch.where(self.beyond[i + 1], zero, g))
        if limits.ends:
            planes.append(torch.where(self.beyond[-1], slopes[1], zero))
        return torch.stack(planes)


def _softmax(planes: tuple[Tensor, ...]) -> list[Tensor]:
    top = planes[0]
    for plane in planes[1:]:
        top = torch.maximum(top, plane)
    powers = [(plane - top).exp() for plane in planes]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    return [power / total for power in powers]


def _through_softmax(gradients: list[Tensor], shares: list[Tensor], span: float) -> list[Tensor]:
    mean = gradients[0] * shares[0]
    for g, share in zip(gradients[1:], shares[1:], strict=True):
        mean = mean + g * share
    return [span * share * (g - mean) for g, share in zip(gradients, shares, strict=True)]
