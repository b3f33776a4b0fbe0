"""The monotone rational-quadratic spline with linear tails.

On [-bound, bound] K bins carry rational-quadratic pieces that meet with equal slopes; outside the map is the identity.
In a bin with left knot (xₖ, yₖ), width w, height h, end slopes d₀, d₁, mean slope s = h/w and ξ = (x − xₖ)/w:

    z       = yₖ + h (s ξ² + d₀ ξ(1−ξ)) / q,     q = s + (d₀ + d₁ − 2s) ξ(1−ξ)
    dz/dx   = s² (d₁ ξ² + 2 s ξ(1−ξ) + d₀ (1−ξ)²) / q²

and with t = (z − yₖ)/h the inverse is ξ = 2c / (−b − √(b² − 4ac)), where a = s − d₀ + t r, b = d₀ − t r, c = −s t and
r = d₀ + d₁ − 2s. The root is real for every valid spline; rounding may make it slightly negative, so it is clamped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from diffeo.core import Univariate
from diffeo.core.memory import Recallable
from diffeo.functional import Context, MappedScalars, Scalars, positive, wrap_angle
from diffeo.kernels import spline_arithmetic
from diffeo.kernels.spline import map_by_spline
from diffeo.kernels.spline_arithmetic import Limits


class RationalQuadraticSpline(Univariate, Recallable):
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

    one_operation = True  # with a gradient of its own

    def __init__(
        self,
        bins: int = 8,
        bound: float = 8.0,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_slope: float = 1e-3,
    ):
        super().__init__()
        _check_limits("RationalQuadraticSpline", bins, min_width, min_height, min_slope)
        self.bins, self.bound = bins, positive(bound, "bound", self)
        self.limits = Limits(bins, bound, min_width, min_height, min_slope)
        self.n_params = self.limits.n_params

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._map(x, context, inverse=False)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return self._map(z, context, inverse=True)

    def recall(self, x: Tensor, z: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return _along_batch(x, self.params(context), False, self.limits, (z, logdet))

    def pull(self, v: Tensor, planes: Tensor, grad: Tensor, grad_log: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """The gradients of v and of the parameters, (n_params, *v.shape), from those of a direction's results."""
        x = spline_arithmetic.inverse(v, planes, self.limits)[0] if inverse else v
        return spline_arithmetic.backward(x, planes, grad, grad_log, inverse, self.limits)

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

    def _map(self, v: Tensor, context: Context, inverse: bool) -> tuple[Tensor, Tensor]:
        return _along_batch(v, self.params(context), inverse, self.limits)


class BoundedSpline(Univariate):
    """z = a monotone rational-quadratic spline from [low, high] onto itself, its slopes at both ends free.

    Parameters, 3·bins + 1 for each scalar: unnormalised widths and heights (softmax) and slopes at all knots
    (softplus). Zero parameters give the identity. Values outside are left as they are.

    Args:
        bins: number of pieces K, at least 2.
        low, high: the interval, low < high.
        min_width, min_height: least share of the interval for one bin, in (0, 1/bins).
        min_slope: least slope at a knot, in (0, 1).

    Raises:
        ValueError: values outside these.

    Cost: one pass in either direction, closed form.

    "Neural Spline Flows" (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    >>> import torch, diffeo
    >>> spline = diffeo.BoundedSpline(bins=4)
    >>> spline(torch.tensor([0.0, 0.25, 1.0]), torch.zeros(13))[0]
    tensor([0.0000, 0.2500, 1.0000])
    """

    one_operation = True  # with a gradient of its own

    def __init__(
        self,
        bins: int = 8,
        low: float = 0.0,
        high: float = 1.0,
        min_width: float = 1e-3,
        min_height: float = 1e-3,
        min_slope: float = 1e-3,
    ):
        super().__init__()
        if not low < high:
            raise ValueError(f"BoundedSpline: expected low < high, got {low} and {high}")
        _check_limits("BoundedSpline", bins, min_width, min_height, min_slope)
        self.bins, self.low, self.high = bins, low, high
        self.limits = Limits(bins, (high - low) / 2, min_width, min_height, min_slope, ends=True)
        self.n_params = 3 * bins + 1
        self.domain = self.codomain = constraints.interval(low, high)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._map(x, context, inverse=False)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return self._map(z, context, inverse=True)

    def _map(self, v: Tensor, context: Context, inverse: bool) -> tuple[Tensor, Tensor]:
        middle = (self.low + self.high) / 2
        out, logdet = _along_batch(v - middle, self.params(context), inverse, self.limits)
        outside = (v < self.low) | (v > self.high)  # stays there, where a base on the interval gives it nothing
        out = (out + middle).clamp(self.low, self.high)  # rounding may lead out
        return torch.where(outside, v, out), torch.where(outside, 0.0, logdet)


class CircularSpline(Univariate):
    """z = a monotone rational-quadratic spline of an angle x in [−π, π), smooth at the ends too, then a rotation.

    Parameters, 3·bins + 1 for each angle: unnormalised widths and heights (softmax), slopes at the knots (softplus; the
    ends share one) and the angle of the rotation. Zero parameters give the identity. Angles are taken modulo 2π.

    Args:
        bins: number of pieces K, at least 2.
        min_width, min_height: least share of the circle for one bin, in (0, 1/bins).
        min_slope: least slope at a knot, in (0, 1).

    Raises:
        ValueError: values outside these.

    Cost: one pass in either direction, closed form.

    "Normalizing Flows on Tori and Spheres" (Rezende et al., 2020), https://arxiv.org/abs/2002.02428

    >>> import torch, diffeo
    >>> spline = diffeo.CircularSpline(bins=4)
    >>> spline(torch.tensor([-3.0, 0.0, 2.0]), torch.zeros(13))[0]
    tensor([-3.0000,  0.0000,  2.0000])
    """

    one_operation = True  # with a gradient of its own
    domain = codomain = constraints.interval(-math.pi, math.pi)

    def __init__(self, bins: int = 8, min_width: float = 1e-3, min_height: float = 1e-3, min_slope: float = 1e-3):
        super().__init__()
        _check_limits("CircularSpline", bins, min_width, min_height, min_slope)
        self.bins = bins
        self.limits = Limits(bins, math.pi, min_width, min_height, min_slope, ends=True)
        self.n_params = 3 * bins + 1

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        params, angle = self._unpack(context)
        z, logdet = _along_batch(wrap_angle(x), params, False, self.limits)
        return wrap_angle(z + angle), logdet

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        params, angle = self._unpack(context)
        x, logdet = _along_batch(wrap_angle(z - angle), params, True, self.limits)
        return wrap_angle(x), logdet

    def _unpack(self, context: Context) -> tuple[Tensor, Tensor]:
        """Parameters with the shared slope at both ends, and the rotation."""
        params = self.params(context)
        shared = 2 * self.bins
        return torch.cat([params[..., :-1], params[..., shared : shared + 1]], -1), params[..., -1]


def _check_limits(who: str, bins: int, min_width: float, min_height: float, min_slope: float) -> None:
    if bins < 2:
        raise ValueError(f"{who}: expected at least 2 bins, got {bins}")
    if not (0 < min_width < 1 / bins and 0 < min_height < 1 / bins and 0 < min_slope < 1):
        raise ValueError(
            f"{who}: expected min_width and min_height in (0, 1/{bins}) and min_slope in (0, 1), "
            f"got {min_width}, {min_height}, {min_slope}"
        )


def _along_batch(
    v: Tensor, params: Tensor, inverse: bool, limits: Limits, known: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    planes = params.movedim(-1, 0)
    if v.ndim > 1 and params.ndim > v.ndim and params.stride(-3) == 1:  # the batch lies innermost: walk along it
        along = v.movedim(-1, 0).contiguous(), planes.movedim(-1, 1)
        turned = None if known is None else (known[0].movedim(-1, 0), known[1].movedim(-1, 0))
        out, logdet = map_by_spline(*along, inverse, limits, turned)
        return out.movedim(0, -1), logdet.movedim(0, -1)
    return map_by_spline(v, planes, inverse, limits, known)
