"""Monotone maps as integrals of positive functions: a network, a sum of squared polynomials, a Bernstein polynomial.

Each is defined on [-bound, bound] and goes on as its tangents, so that far values keep finite slopes. Integrals are
Gauss–Legendre sums, z = x Σᵢ wᵢ g(x tᵢ) with tᵢ in (0, 1): exact for polynomials of degree up to twice the nodes − 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Univariate
from diffeo.functional import Context, MappedScalars, Scalars, full_precision, narrowed, positive
from diffeo.nets import MLP
from diffeo.solvers import invert_increasing
from diffeo.transforms.univariate.mixture import offsets_of
from diffeo.transforms.univariate.tangent import tangent_beyond

ONE = math.log(math.expm1(1.0))  # where softplus is one
MIN_SLOPE = 1e-3


class UnconstrainedMonotonic(Univariate):
    """z = ∫₀ˣ g(t; h) dt + b, with g > 0 a network of t and of an embedding h: the map of UMNN.

    g = ε + (1 − ε) softplus(net(t / bound, h) + log(e − 1)) with ε = 0.001, one network for all scalars that share this
    object. Parameters, embedding + 1: h and b. The log-slope is log g(x); it is that of the computed z up to the error
    of the quadrature. Before training the map is a shift by b, whatever h.

    Args:
        embedding: numbers that describe a scalar's map to the network, at least 1.
        hidden: widths of the hidden layers of the integrand.
        nodes: points of the quadrature, at least 2.
        bound: half-width of the interval, > 0, in the units of x; a tangent beyond.

    Raises:
        ValueError: sizes below these.
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: `nodes` evaluations of the integrand for each scalar; the inverse as often as its Newton search takes steps.

    "Unconstrained Monotonic Neural Networks" (Wehenkel and Louppe, 2019), https://arxiv.org/abs/1908.05164

    >>> import torch, diffeo
    >>> u = diffeo.UnconstrainedMonotonic()
    >>> round(u(torch.tensor(2.0), torch.zeros(u.n_params))[0].item(), 4)
    2.0
    """

    exact_inverse = False

    def __init__(self, embedding: int = 8, hidden: Sequence[int] = (64, 64), nodes: int = 32, bound: float = 8.0):
        super().__init__()
        if embedding < 1 or nodes < 2:
            raise ValueError(
                f"UnconstrainedMonotonic: expected embedding >= 1 and nodes >= 2, got {embedding} and {nodes}"
            )
        self.bound = positive(bound, "bound", self)
        self.n_params = embedding + 1
        self.net = MLP(1, 1, context=embedding, hidden=hidden)
        self.integral = Integral(nodes)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._map(x, self.params(context))

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return invert_increasing(self._map, z, self.params(context), "UnconstrainedMonotonic")

    def _map(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        embedding, shift = params[..., :-1], params[..., -1]

        def slope(t: Tensor) -> Tensor:
            at, h = (narrowed(v, self.net) for v in (t.unsqueeze(-1) / self.bound, embedding.unsqueeze(-2)))
            raw = self.net(at, h).squeeze(-1)
            return MIN_SLOPE + (1 - MIN_SLOPE) * F.softplus(raw.to(t.dtype) + ONE)

        with full_precision(x):
            z, log_slope = tangent_beyond(self.bound, x, lambda x: self.integral(slope, x))
        return z + shift, log_slope


class SumOfSquares(Univariate):
    """z = ∫₀ˣ (ε + Σₖ pₖ(t)²) dt + b, with pₖ polynomials: the map of sum-of-squares polynomial flows.

    pₖ(t) = Σₗ aₖₗ Pₗ(t / bound), with Legendre's polynomials Pₗ. Parameters, polynomials · (degree + 1) + 1: a and b.
    With zero parameters the squares are close to constant, and z is close to x.

    Args:
        polynomials: K, at least 1; two reach every positive polynomial.
        degree: of each p, at least 1; z then has degree 2·degree + 1.
        bound: half-width of the interval, > 0, in the units of x; a tangent beyond.
        min_slope: ε, in (0, 1).

    Raises:
        ValueError: sizes outside these.
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: one pass; the inverse is a Newton search inside a bracket, a pass for each step.

    "Sum-of-Squares Polynomial Flow" (Jaini et al., 2019), https://arxiv.org/abs/1905.02325

    >>> import torch, diffeo
    >>> u = diffeo.SumOfSquares()
    >>> u(torch.tensor(0.0), torch.zeros(u.n_params))[0]
    tensor(0.)
    """

    exact_inverse = False
    start: Tensor

    def __init__(self, polynomials: int = 3, degree: int = 4, bound: float = 8.0, min_slope: float = MIN_SLOPE):
        super().__init__()
        if polynomials < 1 or degree < 1 or not 0 < min_slope < 1:
            raise ValueError(
                "SumOfSquares: expected polynomials >= 1, degree >= 1 and 0 < min_slope < 1, "
                f"got {polynomials}, {degree} and {min_slope}"
            )
        self.polynomials, self.degree, self.min_slope = polynomials, degree, min_slope
        self.bound = positive(bound, "bound", self)
        self.n_params = polynomials * (degree + 1) + 1
        self.integral = Integral(degree + 1)
        start = torch.zeros(polynomials, degree + 1)
        start[:, 0] = math.sqrt((1 - min_slope) / polynomials)
        start[:, 1] = 0.3 * offsets_of(polynomials) / math.sqrt(polynomials)
        self.register_buffer("start", start, persistent=False)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._map(x, self.params(context))

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return invert_increasing(self._map, z, self.params(context), "SumOfSquares")

    def _map(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        a = params[..., :-1].unflatten(-1, self.start.shape) + self.start.to(x.dtype)

        def slope(t: Tensor) -> Tensor:
            basis = _legendre(t / self.bound, self.degree)
            return self.min_slope + (basis @ a.mT).square().sum(-1)

        with full_precision(x):
            z, log_slope = tangent_beyond(self.bound, x, lambda x: self.integral(slope, x))
        return z + params[..., -1], log_slope


class Bernstein(Univariate):
    """z = Σᵢ θᵢ bᵢ(u) + c, a Bernstein polynomial of u = (x + bound) / (2·bound) with increasing coefficients.

    bᵢ(u) = C(n, i) uⁱ (1 − u)ⁿ⁻ⁱ; θ₀ = −bound, θᵢ − θᵢ₋₁ = (2·bound / n)(ε + (1 − ε) softplus(rᵢ) / log 2). Parameters,
    degree + 1: r and c. Zero parameters give the identity.

    Args:
        degree: n, at least 1.
        bound: half-width of the interval, > 0, in the units of x; a tangent beyond.
        min_slope: ε, in (0, 1).

    Raises:
        ValueError: values outside these.
        diffeo.solvers.UnsolvedError: the inverse does not reach its tolerance.

    Cost: one pass, O(degree²) for each scalar; the inverse is a Newton search inside a bracket, a pass for each step.

    "Short-Term Density Forecasting of Low-Voltage Load using Bernstein-Polynomial Normalizing Flows" (Arpogaus et al.,
    2022), https://arxiv.org/abs/2204.13939

    >>> import torch, diffeo
    >>> u = diffeo.Bernstein()
    >>> u(torch.tensor([-20.0, 0.0, 3.0]), torch.zeros(u.n_params))[0]
    tensor([-20.,   0.,   3.])
    """

    exact_inverse = False

    def __init__(self, degree: int = 16, bound: float = 8.0, min_slope: float = MIN_SLOPE):
        super().__init__()
        if degree < 1 or not 0 < min_slope < 1:
            raise ValueError(f"Bernstein: expected degree >= 1 and 0 < min_slope < 1, got {degree} and {min_slope}")
        self.degree, self.bound, self.min_slope = degree, positive(bound, "bound", self), min_slope
        self.n_params = degree + 1

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._map(x, self.params(context))

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return invert_increasing(self._map, z, self.params(context), "Bernstein")

    def _map(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = params[..., :-1], params[..., -1]
        slopes = self.min_slope + (1 - self.min_slope) / math.log(2) * F.softplus(raw)
        theta = F.pad(slopes.cumsum(-1), (1, 0)) * (2 * self.bound / self.degree) - self.bound

        def inside(x: Tensor) -> tuple[Tensor, Tensor]:
            u = ((x + self.bound) / (2 * self.bound)).unsqueeze(-1)
            points = theta
            for _ in range(self.degree - 1):  # de Casteljau, down to the last two points
                points = torch.lerp(points[..., :-1], points[..., 1:], u)
            low, high = points.unbind(-1)
            slope = (high - low) * (self.degree / (2 * self.bound))
            return torch.lerp(low, high, u.squeeze(-1)), slope.log()

        z, log_slope = tangent_beyond(self.bound, x, inside)
        return z + shift, log_slope


class Integral(nn.Module):
    """∫₀ˣ g(t) dt for each scalar x, and log g(x), by Gauss and Legendre's quadrature.

    Args:
        nodes: points of the quadrature, at least 1.
    """

    def __init__(self, nodes: int):
        super().__init__()
        at, weights = np.polynomial.legendre.leggauss(nodes)
        # numbers, not buffers, so that they keep their digits in every dtype
        self.at, self.weights = ((at + 1) / 2).tolist(), (weights / 2).tolist()

    def forward(self, g: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        """g takes points with one more dim, the last, and gives positive values of that shape."""
        at, weights = x.new_tensor(self.at), x.new_tensor(self.weights)
        end = x.unsqueeze(-1)
        slopes = g(torch.cat([end * at, end], -1))
        return x * (slopes[..., :-1] * weights).sum(-1), slopes[..., -1].log()


def _legendre(u: Tensor, degree: int) -> Tensor:
    """P₀(u) … P_degree(u), along a new last dim."""
    values = [torch.ones_like(u), u]
    for n in range(1, degree):
        values.append(((2 * n + 1) * u * values[n] - n * values[n - 1]) / (n + 1))
    return torch.stack(values, -1)
