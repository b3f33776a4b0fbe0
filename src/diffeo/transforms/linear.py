"""Linear maps whose determinant and inverse are cheap."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Chain, Joinable, Transform
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    as_fixed_event,
    check_event,
    constant_logdet,
    context_mask,
    full_precision,
    positive,
    soft_clip,
    sum_event,
)
from diffeo.kernels import factors
from diffeo.kernels.dispatch import can_run
from diffeo.kernels.layout import linear, multiply, solve_rows
from diffeo.kernels.private import defined_together, has_hooks
from diffeo.kernels.vector_steps import Step
from diffeo.transforms.elementwise import Elementwise
from diffeo.transforms.masks import keep_rows
from diffeo.transforms.univariate import Affine


class Mixing(NamedTuple):
    """What a linear map z = W diag(exp(s)) (x + c) + b is made of; transforms that can say so have a method `mixing`.

    None stands for the identity, or for zero.
    """

    weight: Tensor | None  # W, (D, D)
    log_scale: Tensor | None  # s, (D,)
    shift: Tensor | None  # c, (D,)
    bias: Tensor | None  # b, (D,)
    logdet: Tensor

    def then(self, after: Mixing) -> Mixing:
        """Both, this one first."""
        between = _sum(self.bias, after.shift)
        bias = after.bias if between is None else _sum(after._scaled(between), after.bias)
        if self.weight is None:
            weight, log_scale = after.weight, _sum(self.log_scale, after.log_scale)
        else:
            weight, log_scale = after._scaled(self.weight), self.log_scale
        return Mixing(weight, log_scale, self.shift, bias, self.logdet + after.logdet)

    def _scaled(self, x: Tensor) -> Tensor:
        """W diag(exp(s)) x for a vector, or for each column of a matrix."""
        if self.log_scale is not None:
            x = self.log_scale.exp().view(-1, *[1] * (x.ndim - 1)) * x
        return x if self.weight is None else self.weight @ x


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def mixing(transform: Transform, dtype: torch.dtype, inverse: bool = False) -> Mixing | None:
    """One direction of a linear map of vectors; None where it is none, or has a method or a hook of its own."""
    if has_hooks(transform):
        return None
    if type(transform) is not Chain:
        if not defined_together(type(transform), "forward", "inverse", "mixing"):
            return None
        return transform.mixing(dtype, inverse)  # pyright: ignore
    whole: Mixing | None = None
    parts: list[Transform] = list(transform.parts)  # pyright: ignore[reportAssignmentType] (a ModuleList forgets)
    for part in reversed(parts) if inverse else parts:
        one = mixing(part, dtype, inverse)
        if one is None:
            return None
        whole = one if whole is None else whole.then(one)
    return whole


class LULinear(Transform, Joinable):
    """z = L U x + b, with L unit lower triangular and U upper triangular with positive diagonal exp(s).

    log|det| = Σ s, s = bound · tanh(s₀ / bound). It starts as the identity.

    Args:
        features: D.
        bound: largest absolute log-scale on the diagonal, > 0.

    Cost: O(D²) for each row in either direction (the inverse solves two triangular systems), and O(D³) for a batch
    forward, whose factors are multiplied first.

    "Glow: Generative Flow with Invertible 1x1 Convolutions" (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039

    >>> import torch, diffeo
    >>> diffeo.LULinear(2)(torch.tensor([1.0, 2.0]))[0]
    tensor([1., 2.], grad_fn=<ViewBackward0>)
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    eye: Tensor
    below: Tensor

    def __init__(self, features: int, bound: float = 4.0):
        super().__init__()
        self.event = as_fixed_event(features, self)
        self.bound = positive(bound, "bound", self)
        self.weight = nn.Parameter(torch.zeros(features, features))  # L below the diagonal, U on and above it
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("eye", torch.eye(features), persistent=False)
        self.register_buffer("below", torch.ones(features, features).tril(-1), persistent=False)

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "LULinear")
        with full_precision(x):
            lower, upper, log_scale = self._factors(x.dtype)
            z = linear(x, multiply(lower, upper), self.bias.to(x.dtype))
        return _rows_kept(x, z, sum_event(log_scale, 1), context)

    def as_step(self, like: Tensor, context: Context) -> Step | None:
        plain = type(self) is LULinear and not has_hooks(self) and context_mask(context) is None
        fits = plain and like.shape[-1] == len(self.bias) and can_run(like, self.weight, self.bias)
        return Step([self.weight], [self.bias], self.bound) if fits else None

    def mixing(self, dtype: torch.dtype, inverse: bool) -> Mixing | None:
        if inverse:
            lower, upper, log_scale = self._factors(torch.float64)
            half = torch.linalg.solve_triangular(lower, self.eye.to(lower.dtype), upper=False, unitriangular=True)
            back = torch.linalg.solve_triangular(upper, half, upper=True)
            return Mixing(back.to(dtype), None, -self.bias.to(dtype), None, -log_scale.sum().to(dtype))
        weight = self.weight.to(dtype)
        if not can_run(weight):
            return None
        product, logdet = factors.multiply_factors(weight, self.bound)
        return Mixing(product, None, None, self.bias.to(dtype), logdet)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "LULinear")
        lower, upper, log_scale = self._factors(z.dtype)
        with full_precision(z):
            y = solve_rows(lower, z - self.bias.to(z.dtype), upper=False, unitriangular=True)
            x = solve_rows(upper, y, upper=True).to(z.dtype)
        return _rows_kept(z, x, -sum_event(log_scale, 1), context)

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        weight, eye, below = (t.to(dtype) for t in (self.weight, self.eye, self.below))
        log_scale = soft_clip(weight.diagonal(), self.bound)
        # not `tril` and `triu`, which wake all threads for the smallest matrix
        return weight * below + eye, weight * below.T + eye * log_scale.exp(), log_scale


class TriangularLinear(Transform):
    """z = T x + b, with T triangular, its diagonal exp(s).

    log|det| = Σ s, s = bound · tanh(s₀ / bound). It starts as the identity.

    Args:
        features: D.
        upper: whether T is upper triangular, or lower.
        bound: largest absolute log-scale on the diagonal, > 0.

    Cost: O(D²) for each row in either direction.

    >>> import torch, diffeo
    >>> diffeo.TriangularLinear(2)(torch.tensor([1.0, 2.0]))[0]
    tensor([1., 2.], grad_fn=<ViewBackward0>)
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    beside: Tensor

    def __init__(self, features: int, upper: bool = True, bound: float = 4.0):
        super().__init__()
        self.event = as_fixed_event(features, self)
        self.upper, self.bound = upper, positive(bound, "bound", self)
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(features))
        beside = torch.ones(features, features).triu(1) if upper else torch.ones(features, features).tril(-1)
        self.register_buffer("beside", beside, persistent=False)
        # in one dimension there is nothing beside the diagonal
        self.weight = nn.Parameter(torch.zeros(features, features)) if features > 1 else None

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "TriangularLinear")
        matrix, log_scale = self._matrix(x.dtype)
        with full_precision(x):
            z = linear(x, matrix, self.bias.to(x.dtype))
        return _rows_kept(x, z, sum_event(log_scale, 1), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "TriangularLinear")
        matrix, log_scale = self._matrix(z.dtype)
        with full_precision(z):
            x = solve_rows(matrix, z - self.bias.to(z.dtype), upper=self.upper).to(z.dtype)
        return _rows_kept(z, x, -sum_event(log_scale, 1), context)

    def _matrix(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        log_scale = soft_clip(self.log_scale.to(dtype), self.bound)
        diagonal = log_scale.exp().diag_embed()
        return diagonal if self.weight is None else self.weight.to(dtype) * self.beside.to(dtype) + diagonal, log_scale


class ExpLinear(Transform):
    """z = exp(M) x + b, with the matrix exponential: invertible for every M, by exp(−M).

    log|det| = tr M. Entries are softly bounded, M = bound · tanh(M₀ / bound). It starts as the identity.

    Args:
        features: D.
        bound: largest absolute entry of M, > 0.

    Cost: O(D³) for a batch and O(D²) for each row, in either direction.

    "Generative Flows with Matrix Exponential" (Xiao and Liu, 2020), https://arxiv.org/abs/2007.09651

    >>> import torch, diffeo
    >>> diffeo.ExpLinear(2)(torch.tensor([1.0, 2.0]))[0]
    tensor([1., 2.], grad_fn=<ViewBackward0>)
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector

    def __init__(self, features: int, bound: float = 2.0):
        super().__init__()
        self.event = as_fixed_event(features, self)
        self.bound = positive(bound, "bound", self)
        self.weight = nn.Parameter(torch.zeros(features, features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "ExpLinear")
        generator = soft_clip(self.weight.to(x.dtype), self.bound)
        with full_precision(x):
            z = linear(x, torch.linalg.matrix_exp(generator), self.bias.to(x.dtype))
        return _rows_kept(x, z, sum_event(generator.diagonal(), 1), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "ExpLinear")
        generator = soft_clip(self.weight.to(z.dtype), self.bound)
        with full_precision(z):
            x = F.linear(z - self.bias.to(z.dtype), torch.linalg.matrix_exp(-generator))
        return _rows_kept(z, x, -sum_event(generator.diagonal(), 1), context)


class Householder(Transform):
    """z = H_n … H_1 x, a product of reflections H = I − 2 v vᵀ / |v|²: an orthogonal map.

    Reflections come in pairs that start equal, so that the map starts as the identity.

    Args:
        features: D.
        reflections: number of reflections, even and positive; D of them reach every rotation. Default: D, rounded up
            to an even number.

    Cost: O(D · reflections) for each row in either direction.

    "Improving Variational Auto-Encoders using Householder Flow" (Tomczak and Welling, 2016),
    https://arxiv.org/abs/1611.09630

    >>> import torch, diffeo
    >>> z, logdet = diffeo.Householder(3)(torch.ones(3))
    >>> torch.allclose(z, torch.ones(3)), logdet
    (True, tensor(0.))
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector

    def __init__(self, features: int, reflections: int | None = None):
        super().__init__()
        self.event = as_fixed_event(features, self)
        n = features + features % 2 if reflections is None else reflections
        if n < 2 or n % 2:
            raise ValueError(f"Householder: expected an even, positive number of reflections, got {n}")
        self.vectors = nn.Parameter(torch.randn(n // 2, features).repeat_interleave(2, 0))

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Householder")
        return _rows_kept(x, self._reflect(x, self.vectors.unbind()), x.new_zeros(()), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Householder")
        return _rows_kept(z, self._reflect(z, self.vectors.unbind()[::-1]), z.new_zeros(()), context)

    @staticmethod
    def _reflect(x: Tensor, vectors: tuple[Tensor, ...]) -> Tensor:
        with full_precision(x):
            for v in vectors:
                v = v.to(x.dtype)
                x = x - (x @ v).unsqueeze(-1) * (2 / (v @ v)) * v
        return x


class FixedLinear(Transform):
    """z = W (x + c) with a given matrix, which does not learn; its inverse is worked out once, in float64.

    log|det| is that of W. The shift comes first, so that nothing cancels where x lies far from zero.

    Args:
        weight: W, (D, D).
        shift: c, (D,); default zero.

    Raises:
        ValueError: a matrix that is not square, not finite, or singular; a shift of another length.

    Cost: O(D²) for each row in either direction; and O(D³) for a batch of z in float64 where W has fewer digits.

    >>> import torch, diffeo
    >>> diffeo.FixedLinear(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))(torch.ones(2))
    (tensor([2., 1.]), tensor(0.6931))
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    weight: Tensor
    back: Tensor
    shift: Tensor
    log_scale: Tensor
    zero: Tensor

    def __init__(self, weight: Tensor, shift: Tensor | None = None):
        super().__init__()
        if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
            raise ValueError(f"FixedLinear: expected a square matrix, got shape {tuple(weight.shape)}")
        self.event = as_fixed_event(len(weight), self)
        if shift is not None and shift.shape != weight.shape[:1]:
            raise ValueError(f"FixedLinear: expected a shift of shape ({len(weight)},), got {tuple(shift.shape)}")
        log_scale = torch.linalg.slogdet(weight.detach().double())[1]
        if not log_scale.isfinite():
            raise ValueError("FixedLinear: the matrix is singular, or not finite")
        self.register_buffer("weight", weight.detach().clone(memory_format=torch.contiguous_format))
        self.register_buffer("back", torch.linalg.inv(weight.detach().double()).to(weight.dtype).contiguous())
        self.register_buffer("shift", torch.zeros_like(self.weight[0]) if shift is None else shift.detach().clone())
        self.register_buffer("zero", torch.zeros_like(self.shift), persistent=False)
        self.register_buffer("log_scale", log_scale.to(weight.dtype))

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "FixedLinear")
        with full_precision(x):
            z = linear(x + self.shift.to(x.dtype), self.weight.to(x.dtype), self.zero.to(x.dtype))
        return _rows_kept(x, z, self._logdet(x), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "FixedLinear")
        with full_precision(z):
            if z.dtype == torch.float64 and self.back.dtype != torch.float64:  # the inverse at hand has too few digits
                x = torch.linalg.solve(self.weight.to(z.dtype).mT, z, left=False)
            else:
                x = F.linear(z, self.back.to(z.dtype))
            x = x - self.shift.to(z.dtype)
        return _rows_kept(z, x, -self._logdet(z), context)

    def mixing(self, dtype: torch.dtype, inverse: bool) -> Mixing | None:
        if self.weight.dtype != dtype:
            return None
        if inverse:
            return Mixing(self.back, None, None, -self.shift, -self.log_scale)
        return Mixing(self.weight, None, self.shift, None, self.log_scale)

    def _logdet(self, x: Tensor) -> Tensor:
        """log|det W| in the wider dtype of the two."""
        return self.log_scale.to(torch.promote_types(x.dtype, self.log_scale.dtype))


def qr_linear(features: int, reflections: int | None = None) -> Chain:
    """z = Q (R x + b), with R upper triangular and Q orthogonal, a product of reflections: any linear map.

    A `Chain` of `TriangularLinear` and `Householder`. It starts as the identity.

    Args:
        features: D.
        reflections: as for `Householder`.

    Cost: O(D²) for each row in either direction.

    "Emerging Convolutions for Generative Normalizing Flows" (Hoogeboom et al., 2019), https://arxiv.org/abs/1901.11137

    >>> import torch, diffeo
    >>> diffeo.qr_linear(3)(torch.ones(5, 3))[1].shape
    torch.Size([5])
    """
    return Chain(TriangularLinear(features), Householder(features, reflections))


def svd_linear(features: int, reflections: int | None = None) -> Chain:
    """z = U (S Vᵀ x + b), with U and V orthogonal, products of reflections, and S diagonal and positive.

    A `Chain` of `Householder`, `Elementwise(Affine())` and `Householder`. It starts as the identity.

    Args:
        features: D.
        reflections: of U and of V each, as for `Householder`.

    Cost: O(D²) for each row in either direction.

    "Sylvester Normalizing Flows for Variational Inference" (van den Berg et al., 2018), https://arxiv.org/abs/1803.05649,
    for orthogonal factors by reflections

    >>> import torch, diffeo
    >>> diffeo.svd_linear(3)(torch.ones(5, 3))[1].shape
    torch.Size([5])
    """
    u, v = Householder(features, reflections), Householder(features, reflections)
    return Chain(v, Elementwise(Affine(), features), u)


def _rows_kept(x: Tensor, z: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    return keep_rows(x, z, constant_logdet(logdet, x, 1), context)
