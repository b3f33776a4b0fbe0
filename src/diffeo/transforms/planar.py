"""Residual maps of low rank, whose Jacobian determinant is that of a small matrix: planar, radial, Sylvester.

All are written as in the literature, from noise to data: their `inverse` is the closed form, and `forward` finds the
few scalars that the closed form needs from its result. What must stay above −1 for a map to be invertible is
g(t) = softplus(t + log(e − 1)) − 1, zero at t = 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    as_fixed_event,
    check_event,
    full_precision,
    joined,
    precise,
    sum_event,
)
from diffeo.kernels.private import is_transformed
from diffeo.nets import MLP
from diffeo.solvers import invert_increasing, solve_increasing
from diffeo.transforms.masks import keep_rows

ORTHOGONAL = ("orthogonal", "householder", "triangular")


def above_minus_one(t: Tensor) -> Tensor:
    """softplus(t + log(e − 1)) − 1: from the line to (−1, ∞), zero at zero."""
    return F.softplus(t + math.log(math.expm1(1.0))) - 1


class LowRank(Transform):
    """What planar, radial and Sylvester maps share: numbers that the context may set, and rows as events."""

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector

    def __init__(self, features: int, start: Tensor, context: int):
        super().__init__()
        self.event = as_fixed_event(features, self)
        self.theta = nn.Parameter(start)
        self.net = MLP(0, len(start), context=context, hidden=()) if context else None

    def _numbers(self, v: Tensor, context: Context) -> Tensor:
        """The parameters, of shape (*batch, n) where the context sets them, else (n,)."""
        check_event(v, self.event, type(self).__name__)
        theta = self.theta.to(v.dtype)
        return theta if self.net is None else theta + self.net(v, context).to(v.dtype)


class Planar(LowRank):
    """x = z + u tanh(wᵀz + b): space is pushed along u, by how much depends on the distance to a plane.

    log|det ∂x/∂z| = log(1 + c tanh'(wᵀz + b)), where c = wᵀu > −1 keeps the map invertible: u is moved along w until
    c = g(wᵀu₀). It starts as the identity, with w a random direction.

    Args:
        features: D.
        context: width of a context that u, w and b may depend on (linearly); 0 for none.

    Raises:
        diffeo.solvers.UnsolvedError: the forward direction does not reach its tolerance.

    Cost: O(D) for each row; the forward direction also solves c tanh(a + b) + a = wᵀx for the scalar a.

    "Variational Inference with Normalizing Flows" (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770

    >>> import torch, diffeo
    >>> diffeo.Planar(2).inverse(torch.ones(5, 2))[0].shape
    torch.Size([5, 2])
    """

    exact_inverse = False

    def __init__(self, features: int, context: int = 0):
        w = F.normalize(torch.randn(as_fixed_event(features, self)), dim=0)
        super().__init__(features, torch.cat([torch.zeros(features), w, torch.zeros(1)]), context)

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        u, w, b, c = self._unpack(x, context)
        with full_precision(x):
            a, log_slope = invert_increasing(_ridge, (w * x).sum(-1), torch.stack([c, b], -1), "Planar")
            return keep_rows(x, x - u * (a + b).tanh().unsqueeze(-1), log_slope, context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        u, w, b, c = self._unpack(z, context)
        with full_precision(z):
            a = (w * z).sum(-1)
            return keep_rows(z, z + u * (a + b).tanh().unsqueeze(-1), _ridge(a, torch.stack([c, b], -1))[1], context)

    def _unpack(self, v: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, w, b = self._numbers(v, context).split([v.shape[-1], v.shape[-1], 1], -1)
        along = (w * u).sum(-1)
        c = above_minus_one(along)
        u = u + ((c - along) / (w * w).sum(-1)).unsqueeze(-1) * w
        return u, w, b.squeeze(-1), c


class Radial(LowRank):
    """x = z + β (z − m) / (α + r), r = |z − m|: space is drawn towards a point m, or pushed away from it.

    log|det ∂x/∂z| = (D − 1) log(1 + β/(α + r)) + log(1 + αβ/(α + r)²), with α = e^{a} and β = α g(β₀) > −α. It starts
    as the identity, with m a random point.

    Args:
        features: D.
        context: width of a context that m, a and β₀ may depend on (linearly); 0 for none.

    Cost: O(D) for each row in either direction: r is the positive root of r² + (α + β − R) r = αR, R = |x − m|.

    "Variational Inference with Normalizing Flows" (Rezende and Mohamed, 2015), https://arxiv.org/abs/1505.05770

    >>> import torch, diffeo
    >>> diffeo.Radial(2).inverse(torch.ones(5, 2))[0].shape
    torch.Size([5, 2])
    """

    def __init__(self, features: int, context: int = 0):
        super().__init__(features, torch.cat([torch.randn(as_fixed_event(features, self)), torch.zeros(2)]), context)

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        middle, alpha, beta = self._unpack(x, context)
        offset = x - middle
        radius = _length(offset)
        half = (alpha + beta - radius) / 2
        root = (half * half + alpha * radius).sqrt()
        # the positive root, by the form that does not cancel
        r = torch.where(half > 0, alpha * radius / (half.abs() + root), half.abs() + root)
        stretch, logdet = self._stretch(r, alpha, beta)
        return keep_rows(x, middle + offset / stretch.unsqueeze(-1), -logdet, context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        middle, alpha, beta = self._unpack(z, context)
        offset = z - middle
        stretch, logdet = self._stretch(_length(offset), alpha, beta)
        return keep_rows(z, middle + offset * stretch.unsqueeze(-1), logdet, context)

    def _stretch(self, r: Tensor, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        h = 1 / (alpha + r)
        across, along = beta * h, alpha * beta * h * h
        return 1 + across, (self.theta.shape[0] - 3) * torch.log1p(across) + torch.log1p(along)

    def _unpack(self, v: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        middle, a, raw = self._numbers(v, context).split([v.shape[-1], 1, 1], -1)
        alpha = a.squeeze(-1).exp()
        return middle, alpha, alpha * above_minus_one(raw.squeeze(-1))


class Sylvester(LowRank):
    """x = z + Q R tanh(R̃ Qᵀz + b), with M orthonormal columns Q and upper triangular R and R̃: M planar maps at once.

    log|det ∂x/∂z| = Σᵢ log(1 + Rᵢᵢ R̃ᵢᵢ tanh'(·)ᵢ), with R̃ᵢᵢ = e^{sᵢ} and Rᵢᵢ R̃ᵢᵢ = g(·) > −1, which keeps the map
    invertible. It starts as the identity.

    Args:
        features: D.
        rank: M, 1 … D; default D.
        kind: where Q comes from: "orthogonal" (the QR decomposition of a free matrix), "householder" (a product of M
            reflections), or "triangular" (fixed unit vectors, in a random order).
        context: width of a context that R, R̃ and b may depend on (linearly); 0 for none.

    Raises:
        ValueError: an unknown kind, or a rank outside 1 … D.
        diffeo.solvers.UnsolvedError: the forward direction does not reach its tolerance.

    Cost: O(D·M + M²) for each row, for "orthogonal" and "householder" O(D·M²) for each batch; the forward direction
    solves M scalar equations, one after the other, and with gradients M equations at once, in O(M³).

    "Sylvester Normalizing Flows for Variational Inference" (van den Berg et al., 2018), https://arxiv.org/abs/1803.05649

    >>> import torch, diffeo
    >>> diffeo.Sylvester(3, rank=2).inverse(torch.ones(5, 3))[0].shape
    torch.Size([5, 3])
    """

    exact_inverse = False
    place: Tensor

    def __init__(self, features: int, rank: int | None = None, kind: str = "orthogonal", context: int = 0):
        m = features if rank is None else rank
        if kind not in ORTHOGONAL:
            raise ValueError(f"Sylvester: kind must be one of {', '.join(ORTHOGONAL)}, got {kind!r}")
        as_fixed_event(features, self)
        if not 1 <= m <= features:
            raise ValueError(f"Sylvester: expected a rank from 1 to {features}, got {m}")
        inner = m * (m - 1) // 2  # entries above a diagonal
        super().__init__(features, torch.zeros(3 * m + 2 * inner), context)
        self.rank, self.kind, self._inner = m, kind, inner
        self.register_buffer("place", torch.stack(tuple(torch.triu_indices(m, m, 1))), persistent=False)
        start = torch.randn(features, m)
        self.columns: Any
        if kind == "triangular":
            self.register_buffer("columns", torch.eye(features)[:, torch.randperm(features)[:m]])
        else:
            self.columns = nn.Parameter(start)

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        with full_precision(x):
            q, r, r_tilde, b = self._unpack(x, context)
            y = x @ q
            y = y.expand(joined(y.shape, b.shape))  # the context may bring more rows
            with torch.no_grad():
                v = (solve_ridges if is_transformed() else opaque_ridges)(y, r, r_tilde, b)
            h = _ridges(v, r_tilde, b)
            if torch.is_grad_enabled():
                # Newton steps that autograd sees: one is right to first order, two are to third
                for _ in range(2):
                    slopes = torch.eye(self.rank, dtype=v.dtype, device=v.device)
                    slopes = slopes + (r * (1 - h * h).unsqueeze(-2)) @ r_tilde
                    excess = (v - y).unsqueeze(-1) + r @ h.unsqueeze(-1)
                    step = torch.linalg.solve_triangular(precise(slopes), precise(excess), upper=True)
                    v = v - step.squeeze(-1).to(v.dtype)
                    h = _ridges(v, r_tilde, b)
            z = x - (r @ h.unsqueeze(-1)).squeeze(-1) @ q.mT
            return keep_rows(x, z, -self._log_slope(h, r, r_tilde), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        with full_precision(z):
            q, r, r_tilde, b = self._unpack(z, context)
            h = _ridges(z @ q, r_tilde, b)
            x = z + (r @ h.unsqueeze(-1)).squeeze(-1) @ q.mT
            return keep_rows(z, x, self._log_slope(h, r, r_tilde), context)

    @staticmethod
    def _log_slope(h: Tensor, r: Tensor, r_tilde: Tensor) -> Tensor:
        """Σᵢ log(1 + Rᵢᵢ R̃ᵢᵢ (1 − hᵢ²))."""
        c = (r.diagonal(dim1=-2, dim2=-1) * r_tilde.diagonal(dim1=-2, dim2=-1)).expand_as(h)
        return sum_event(torch.log1p(c * (1 - h * h)), 1)

    def _unpack(self, v: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        m, inner = self.rank, self._inner
        raw, log_steep, b, above, above_tilde = self._numbers(v, context).split([m, m, m, inner, inner], -1)
        steep = (4 * torch.tanh(log_steep / 4)).exp()
        r = self._triangle(above_minus_one(raw) / steep, above)
        return self._orthonormal(v.dtype), r, self._triangle(steep, above_tilde), b

    def _triangle(self, diagonal: Tensor, above: Tensor) -> Tensor:
        matrix = diagonal.diag_embed()
        if not self._inner:
            return matrix
        flat = self.place[0] * self.rank + self.place[1]
        return matrix.flatten(-2).index_add(-1, flat, above).unflatten(-1, (self.rank, self.rank))

    def _orthonormal(self, dtype: torch.dtype) -> Tensor:
        columns = self.columns.to(dtype)
        if self.kind == "orthogonal":
            return torch.linalg.qr(precise(columns))[0].to(dtype)
        if self.kind == "householder":
            q = torch.eye(len(columns), self.rank, dtype=dtype, device=columns.device)
            for v in columns.unbind(-1):
                q = q - torch.outer(v, v @ q) * (2 / (v @ v))
            return q
        return columns


def solve_ridges(y: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> Tensor:
    """v with v + R tanh(R̃ v + b) = y, without gradient: R and R̃ are upper triangular, so the last entry comes first.

    Raises:
        UnsolvedError: as for `diffeo.solvers.solve_increasing`.
    """
    v, h = torch.zeros_like(y), torch.zeros_like(y)
    for i in range(y.shape[-1] - 1, -1, -1):
        shift = b[..., i] + (r_tilde[..., i, :] * v).sum(-1)
        rest = y[..., i] - (r[..., i, :] * h).sum(-1)
        steep = r_tilde[..., i, i].expand_as(rest)
        params = torch.stack([r[..., i, i].expand_as(rest), steep, shift.expand_as(rest)], -1)
        v_i = solve_increasing(lambda x, params=params: _scaled_ridge(x, params), rest, "Sylvester")
        here = torch.arange(y.shape[-1], device=y.device) == i
        v = torch.where(here, v_i.unsqueeze(-1), v)
        h = torch.where(here, (steep * v_i + shift).tanh().unsqueeze(-1), h)
    return v


@torch.library.custom_op(
    "diffeo::ridges", mutates_args=(), schema="(Tensor y, Tensor r, Tensor r_tilde, Tensor b) -> Tensor"
)
def opaque_ridges(y: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> Tensor:
    """`solve_ridges` as one operation: a compiler that saw every evaluation of every search would take many minutes."""
    return solve_ridges(y, r, r_tilde, b).contiguous()


@opaque_ridges.register_fake
def _(y: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _ridges(v: Tensor, r_tilde: Tensor, b: Tensor) -> Tensor:
    """tanh(R̃ v + b)."""
    return ((r_tilde @ v.unsqueeze(-1)).squeeze(-1) + b).tanh()


def _ridge(a: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """a + c tanh(a + b), and its log-slope."""
    c, b = params.unbind(-1)
    h = (a + b).tanh()
    return a + c * h, torch.log1p(c * (1 - h * h))


def _scaled_ridge(v: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """v + r tanh(s v + b), and its log-slope."""
    r, s, b = params.unbind(-1)
    h = (s * v + b).tanh()
    return v + r * h, torch.log1p(r * s * (1 - h * h))


def _length(v: Tensor) -> Tensor:
    """Euclidean length, with a gradient of zero at the origin."""
    return v.square().sum(-1).clamp_min(torch.finfo(v.dtype).tiny).sqrt()
