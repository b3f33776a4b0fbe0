"""Splines with other pieces than rational-quadratic ones: linear, quadratic, cubic, rational-linear.

All map [-bound, bound] onto itself, bin by bin, and are the identity outside. They are written for the unit interval,
where K bins have widths w and heights h that each sum to one, and with φ = (u − uₖ) / wₖ inside bin k.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Univariate
from diffeo.functional import Context, MappedScalars, Scalars, positive, soft_clip
from diffeo.solvers import invert_increasing

LEAST = 1e-3  # share of the interval of the smallest bin


class Piecewise(Univariate):
    """A map of [-bound, bound] onto itself, given on the unit interval; the identity outside."""

    def __init__(self, bins: int, bound: float, n_params: int):
        super().__init__()
        if not 2 <= bins <= 500 or not bound > 0:
            raise ValueError(f"{type(self).__name__}: expected 2 to 500 bins and bound > 0, got {bins} and {bound}")
        self.bins, self.bound, self.n_params = bins, positive(bound, "bound", self), n_params

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._apply_inside(x, self.params(context), inverse=False)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return self._apply_inside(z, self.params(context), inverse=True)

    def _apply_inside(self, v: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        unit = (v.clamp(-self.bound, self.bound) + self.bound) / (2 * self.bound)
        out, log_slope = (self._unit_inverse if inverse else self._unit)(unit, params)
        outside = v.abs() >= self.bound
        return torch.where(outside, v, (2 * out - 1) * self.bound), torch.where(outside, 0.0, log_slope)

    @abstractmethod
    def _unit(self, u: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The map of the unit interval, and its log-slope."""

    def _unit_inverse(self, v: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Its inverse, and the log-slope of that; numerical, where a spline has no better."""
        return invert_increasing(self._unit, v, params, type(self).__name__)


class LinearSpline(Piecewise):
    """z = a piecewise linear map of [-bound, bound] with bins of equal width, the identity outside.

    v = vₖ + hₖ φ. Parameters, bins: unnormalised heights (softmax). Zero parameters give the identity.

    Args:
        bins: number of pieces K, 2 to 500.
        bound: half-width of the interval, > 0, in the units of x.

    Raises:
        ValueError: values outside these.

    Cost: one pass in either direction, closed form. Densities jump at the knots.

    "Neural Importance Sampling" (Müller et al., 2019), https://arxiv.org/abs/1808.03856

    >>> import torch, diffeo
    >>> diffeo.LinearSpline(4)(torch.tensor([0.5, 100.0]), torch.zeros(4))[0]
    tensor([  0.5000, 100.0000])
    """

    def __init__(self, bins: int = 16, bound: float = 8.0):
        super().__init__(bins, bound, bins)

    def _unit(self, u: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        height, above = self._heights(params)
        k = (u * self.bins).long().clamp(0, self.bins - 1)
        h, y = _take(height, k), _take(above, k)
        return y + h * (u * self.bins - k), (h * self.bins).log()

    def _unit_inverse(self, v: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        height, above = self._heights(params)
        k = _bin(v, above)
        h, y = _take(height, k), _take(above, k)
        return (k + (v - y) / h) / self.bins, -(h * self.bins).log()

    def _heights(self, params: Tensor) -> tuple[Tensor, Tensor]:
        height = _shares(params)
        return height, _starts(height)


class QuadraticSpline(Piecewise):
    """z = a map of [-bound, bound] whose slope is continuous and piecewise linear; the identity outside.

    With slopes a and b at the ends of bin k, v = vₖ + wₖ (a φ + (b − a) φ² / 2). Parameters, 2·bins − 1: unnormalised
    widths (softmax) and log-slopes at the inner knots, scaled so that the pieces reach the end; the slope at both ends
    is one. Zero parameters give the identity.

    Args:
        bins: number of pieces K, 2 to 500.
        bound: half-width of the interval, > 0, in the units of x.

    Raises:
        ValueError: values outside these.

    Cost: one pass in either direction, closed form.

    "Neural Importance Sampling" (Müller et al., 2019), https://arxiv.org/abs/1808.03856

    >>> import torch, diffeo
    >>> diffeo.QuadraticSpline(4)(torch.tensor([0.5, 100.0]), torch.zeros(7))[0]
    tensor([  0.5000, 100.0000])
    """

    def __init__(self, bins: int = 8, bound: float = 8.0):
        super().__init__(bins, bound, 2 * bins - 1)

    def _unit(self, u: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        width, slope, left, below = self._pieces(params)
        k = _bin(u, left)
        w, a, rise, start = _take(width, k), _take(slope, k), _take(slope.diff(dim=-1), k), _take(below, k)
        phi = ((u - _take(left, k)) / w).clamp(0, 1)
        return start + w * phi * (a + rise * phi / 2), (a + rise * phi).log()

    def _unit_inverse(self, v: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        width, slope, left, below = self._pieces(params)
        k = _bin(v, below)
        w, a, rise, start = _take(width, k), _take(slope, k), _take(slope.diff(dim=-1), k), _take(below, k)
        c = (v - start) / w
        phi = (2 * c / (a + (a * a + 2 * rise * c).clamp_min(1e-12).sqrt())).clamp(0, 1)
        return _take(left, k) + w * phi, -(a + rise * phi).log()

    def _pieces(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Widths, slopes at all knots, and where the bins start on either axis."""
        width = _shares(params[..., : self.bins])
        inner = soft_clip(params[..., self.bins :], 7.0).exp()
        reach = (width[..., 1:] + width[..., :-1]) / 2  # of an inner knot's slope
        rest = 1 - (width[..., :1] + width[..., -1:]) / 2  # what the ends leave to them
        inner = inner * rest / (inner * reach).sum(-1, keepdim=True)
        slope = F.pad(inner, (1, 1), value=1.0)
        area = width * (slope[..., 1:] + slope[..., :-1]) / 2
        return width, slope, _starts(width), _starts(area)


class CubicSpline(Piecewise):
    """z = a monotone cubic spline of x on [-bound, bound], the identity outside.

    Cubic Hermite pieces; the slopes at inner knots are Steffen's, from the mean slopes s = h / w of the bins beside
    them. Parameters, 2·bins + 2: unnormalised widths and heights (softmax), and the slopes at both ends, between 0 and
    three times the mean slope of their bin. Zero parameters give the identity.

    Args:
        bins: number of pieces K, 2 to 500.
        bound: half-width of the interval, > 0, in the units of x.

    Raises:
        ValueError: values outside these.
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: one pass; the inverse is a Newton search inside a bracket (the roots of cubics in closed form lose digits).

    "Cubic-Spline Flows" (Durkan et al., 2019), https://arxiv.org/abs/1906.02145

    >>> import torch, diffeo
    >>> diffeo.CubicSpline(4)(torch.tensor([0.5, 100.0]), torch.zeros(10))[0]
    tensor([  0.5000, 100.0000])
    """

    exact_inverse = False

    def __init__(self, bins: int = 8, bound: float = 8.0):
        super().__init__(bins, bound, 2 * bins + 2)

    def _unit(self, u: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        raw_width, raw_height, ends = params.split([self.bins, self.bins, 2], -1)
        width, height = _shares(raw_width), _shares(raw_height)
        mean = height / width
        low, high, w_low, w_high = mean[..., :-1], mean[..., 1:], width[..., :-1], width[..., 1:]
        parabola = (low * w_high + high * w_low) / (w_low + w_high)
        inner = 2 * torch.minimum(torch.minimum(low, high), parabola / 2)
        share = 3 * torch.sigmoid(ends - math.log(2))  # one at zero
        first, last = share[..., :1] * mean[..., :1], share[..., 1:] * mean[..., -1:]
        slope = torch.cat([first, inner, last], -1)
        left = _starts(width)
        k = _bin(u, left)
        w, s, a, b = _take(width, k), _take(mean, k), _take(slope, k), _take(slope, k + 1)
        phi = ((u - _take(left, k)) / w).clamp(0, 1)
        # Hermite's cubic as φ (a + φ (3s − 2a − b + φ (a + b − 2s))), in units of w
        square, cube = 3 * s - 2 * a - b, a + b - 2 * s
        v = _take(_starts(height), k) + w * phi * (a + phi * (square + phi * cube))
        # a (1−φ)² + b φ² + 2 (3s − a − b) φ(1−φ) has no cancellation near the ends
        rate = a * (1 - phi) ** 2 + b * phi**2 + 2 * (3 * s - a - b) * phi * (1 - phi)
        return v, rate.clamp_min(torch.finfo(u.dtype).tiny).log()


class RationalLinearSpline(Piecewise):
    """z = a monotone spline of two linear fractions in each bin on [-bound, bound], the identity outside.

    In bin k, with λ the place of a middle knot, ends y₀ and y₁ and weights w₀ = 1, w₁ = √(d₀/d₁):
    v = (w₀ y₀ (λ−φ) + wₘ yₘ φ) / (w₀ (λ−φ) + wₘ φ) for φ ≤ λ and (wₘ yₘ (1−φ) + w₁ y₁ (φ−λ)) / (wₘ (1−φ) + w₁ (φ−λ))
    beyond, with wₘ and yₘ such that the slope is continuous. Parameters, 4·bins − 1: unnormalised widths and heights
    (softmax), log-slopes d at the inner knots (one at the ends) and logits of λ. Zero parameters give the identity.

    Args:
        bins: number of pieces K, 2 to 500.
        bound: half-width of the interval, > 0, in the units of x.

    Raises:
        ValueError: values outside these.

    Cost: one pass in either direction, closed form.

    "Invertible Generative Modeling using Linear Rational Splines" (Dolatabadi et al., 2020),
    https://arxiv.org/abs/2001.05168

    >>> import torch, diffeo
    >>> diffeo.RationalLinearSpline(4)(torch.tensor([0.5, 100.0]), torch.zeros(15))[0]
    tensor([  0.5000, 100.0000])
    """

    def __init__(self, bins: int = 8, bound: float = 8.0):
        super().__init__(bins, bound, 4 * bins - 1)

    def _unit(self, u: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(u, params, inverse=False)

    def _unit_inverse(self, v: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(v, params, inverse=True)

    def _map(self, t: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        n = self.bins
        raw_width, raw_height, raw_slope, raw_middle = params.split([n, n, n - 1, n], -1)
        width, height = _shares(raw_width), _shares(raw_height)
        left, below = _starts(width), _starts(height)
        log_slope = F.pad(soft_clip(raw_slope, 7.0), (1, 1))
        k = _bin(t, below if inverse else left)
        w, h = _take(width, k), _take(height, k)
        d0, d1 = _take(log_slope, k).exp(), _take(log_slope, k + 1).exp()
        middle = 0.025 + 0.95 * torch.sigmoid(_take(raw_middle, k))
        w1 = (d0 / d1).sqrt()
        wm = (middle * d0 + (1 - middle) * w1 * d1) * w / h
        ym = middle * w1 * h / ((1 - middle) + middle * w1)  # heights are counted from the bin's lower end
        if inverse:
            y = t - _take(below, k)
            early = y <= ym
            early_phi = middle * y / torch.where(early, y + wm * (ym - y), 1.0)
            late_phi = (wm * (ym - y) + middle * w1 * (y - h)) / torch.where(early, 1.0, wm * (ym - y) + w1 * (y - h))
            phi = torch.where(early, early_phi, late_phi).clamp(0, 1)
        else:
            phi = ((t - _take(left, k)) / w).clamp(0, 1)
            early = phi <= middle
        low = (middle - phi) + wm * phi  # denominators
        high = wm * (1 - phi) + w1 * (phi - middle)
        below_mid = middle * wm * ym / torch.where(early, low, 1.0).square()
        beyond_mid = (1 - middle) * wm * w1 * (h - ym) / torch.where(early, 1.0, high).square()
        log_rate = (torch.where(early, below_mid, beyond_mid) / w).log()
        if inverse:
            return _take(left, k) + w * phi, -log_rate
        early_y = wm * ym * phi / torch.where(early, low, 1.0)
        late_y = (wm * ym * (1 - phi) + w1 * h * (phi - middle)) / torch.where(early, 1.0, high)
        return _take(below, k) + torch.where(early, early_y, late_y), log_rate


def _shares(logits: Tensor) -> Tensor:
    """Parts of one, none smaller than `LEAST`."""
    return LEAST + (1 - LEAST * logits.shape[-1]) * logits.softmax(-1)


def _starts(sizes: Tensor) -> Tensor:
    """Where each of these bins begins."""
    return F.pad(sizes[..., :-1].cumsum(-1), (1, 0))


def _bin(v: Tensor, starts: Tensor) -> Tensor:
    """Number of the bin that holds v."""
    return (v.unsqueeze(-1) >= starts[..., 1:]).sum(-1)


def _take(values: Tensor, k: Tensor) -> Tensor:
    """The k-th of the values of each scalar."""
    values, k = torch.broadcast_tensors(values, k.unsqueeze(-1))
    return values.gather(-1, k[..., :1]).squeeze(-1)
