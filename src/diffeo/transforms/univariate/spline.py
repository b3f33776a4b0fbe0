"""The monotone rational-quadratic spline with linear tails.

On [-bound, bound] K bins carry rational-quadratic pieces that meet with equal slopes; outside the map is the identity.
In a bin with left knot (xₖ, yₖ), width w, height h, end slopes d₀, d₁, mean slope s = h/w and ξ = (x − xₖ)/w:

    z       = yₖ + h (s ξ² + d₀ ξ(1−ξ)) / q,     q = s + (d₀ + d₁ − 2s) ξ(1−ξ)
    dz/dx   = s² (d₁ ξ² + 2 s ξ(1−ξ) + d₀ (1−ξ)²) / q²

and with t = (z − yₖ)/h the inverse is ξ = 2c / (−b − √(b² − 4ac)), where a = s − d₀ + t r, b = d₀ − t r, c = −s t and
r = d₀ + d₁ − 2s. The root is real for every valid spline; rounding may make it slightly negative, so it is clamped.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Univariate
from diffeo.functional import Context, MappedScalars, Scalars, search_bins
from diffeo.transforms.univariate.spline_kernel import Limits, map_scalars


class RationalQuadraticSpline(Univariate):
    """z = a monotone rational-quadratic spline of x on [-bound, bound], the identity outside.

    Parameters, 3·bins − 1 for each scalar: unnormalised widths (softmax), heights (softmax) and inner slopes
    (softplus). Zero parameters give the identity. Any finite x is valid: knots, the bound and far outside included.

    Args:
        bins: number of pieces K, at least 2.
        bound: half-width of the interval, > 0, in the units of x.
        min_width, min_height: least share of the interval for one bin, in (0, 1/bins).
        min_slope: least slope at a knot, in (0, 1).

    Cost: one pass in either direction, closed form.

    "Neural Spline Flows" (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    >>> import torch, diffeo
    >>> spline = diffeo.RationalQuadraticSpline(bins=4)
    >>> z, logdet = spline(torch.tensor([0.5, 100.0]), torch.zeros(2, 11))
    >>> z
    tensor([  0.5000, 100.0000])
    """

    least: Tensor

    def __init__(
        self,
        bins: int = 8,
        bound: float = 8.0,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_slope: float = 1e-3,
    ):
        super().__init__()
        if bins < 2:
            raise ValueError(f"RationalQuadraticSpline: expected at least 2 bins, got {bins}")
        if not (0 < min_width < 1 / bins and 0 < min_height < 1 / bins and 0 < min_slope < 1):
            raise ValueError(
                f"RationalQuadraticSpline: expected min_width and min_height in (0, 1/{bins}) and min_slope in (0, 1), "
                f"got {min_width}, {min_height}, {min_slope}"
            )
        self.bins, self.bound = bins, bound
        self.limits = Limits(bins, bound, min_width, min_height, min_slope)
        self.n_params = 3 * bins - 1
        self.register_buffer("least", torch.tensor([[min_width], [min_height]]), persistent=False)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        params = self.params(context)
        if params.shape[:-1] == x.shape:
            return self._map_each(x, params, inverse=False)
        inside = x.clamp(-self.bound, self.bound)
        x0, y0, w, h, d0, d1 = self._look_up(inside, params, axis=0)
        s = h / w
        xi = (inside - x0) / w
        mix = xi * (1 - xi)
        q = s + (d0 + d1 - 2 * s) * mix
        z = y0 + h * (s * xi * xi + d0 * mix) / q
        logdet = self._log_slope(s, d0, d1, xi, mix, q)
        outside = x.abs() >= self.bound
        return torch.where(outside | x.isnan(), x, z), torch.where(outside, 0.0, logdet)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        params = self.params(context)
        if params.shape[:-1] == z.shape:
            return self._map_each(z, params, inverse=True)
        inside = z.clamp(-self.bound, self.bound)
        x0, y0, w, h, d0, d1 = self._look_up(inside, params, axis=1)
        s = h / w
        r = d0 + d1 - 2 * s
        t = (inside - y0) / h
        tr = t * r
        a, b, c = s - d0 + tr, d0 - tr, -s * t
        root = (b * b - 4 * a * c).clamp_min(torch.finfo(z.dtype).tiny).sqrt()
        xi = (2 * c / (-b - root)).clamp(0, 1)
        mix = xi * (1 - xi)
        logdet = -self._log_slope(s, d0, d1, xi, mix, s + r * mix)
        outside = z.abs() >= self.bound
        return torch.where(outside | z.isnan(), z, x0 + xi * w), torch.where(outside, 0.0, logdet)

    def params_for(self, widths: Tensor, heights: Tensor, slopes: Tensor) -> Tensor:
        """Parameters of the spline with these bin widths and heights (sums 2·bound) and slopes at its inner knots."""

        def logits(sizes: Tensor, least: float) -> Tensor:
            share = (sizes / (2 * self.bound) - least) / (1 - least * self.bins)
            raw = share.clamp_min(1e-3 * least).log()
            return raw - raw.mean(-1, keepdim=True)

        limits = self.limits
        excess = (slopes - limits.min_slope).clamp_min(1e-6)
        bend = excess + torch.log(-torch.expm1(-excess)) - limits.slope_offset  # inverse softplus, also of large slopes
        return torch.cat([logits(widths, limits.min_width), logits(heights, limits.min_height), bend], -1)

    def _map_each(self, v: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Every scalar by its own spline, walking along the batch where that lies innermost in memory."""
        planes = params.movedim(-1, 0)
        if v.ndim > 1 and params.stride(-3) == 1:
            out, logdet = map_scalars(v.mT.contiguous(), planes.mT, inverse, self.limits)
            return out.mT, logdet.mT
        return map_scalars(v, planes, inverse, self.limits)

    def _look_up(self, v: Tensor, params: Tensor, axis: int) -> tuple[Tensor, ...]:
        """Left knot, bottom, width, height and end slopes of the bin that holds v on the x (0) or the z axis (1).

        For splines that many scalars share: their knots are computed once, and looked up for each.
        """
        k = self.bins
        sizes, slopes = params.split([2 * k, k - 1], -1)
        least = self.least.to(sizes.dtype)
        share = least + (1 - k * least) * sizes.unflatten(-1, (2, k)).softmax(-1)
        sizes = share * (2 * self.bound)
        ends = sizes.cumsum(-1) - self.bound
        starts = F.pad(ends[..., :-1], (1, 0), value=-self.bound)
        at = search_bins(v, starts[..., axis, 1:]).unsqueeze(-1)
        table = torch.cat([starts, sizes], -2).expand(*v.shape, 4, k)
        corner = table.gather(-1, at.unsqueeze(-2).expand(*v.shape, 4, 1))
        table = F.pad(slopes, (1, 1)).expand(*v.shape, k + 1)  # at both ends the slope is one
        slope = table.gather(-1, torch.cat([at, at + 1], -1))
        slope = self.limits.min_slope + F.softplus(slope + self.limits.slope_offset)
        return (*corner.squeeze(-1).unbind(-1), *slope.unbind(-1))

    @staticmethod
    def _log_slope(s: Tensor, d0: Tensor, d1: Tensor, xi: Tensor, mix: Tensor, q: Tensor) -> Tensor:
        slope = s * s * (d1 * xi * xi + 2 * s * mix + d0 * (1 - xi) * (1 - xi))
        return slope.log() - 2 * q.log()
