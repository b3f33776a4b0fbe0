"""Linear maps whose determinant and inverse are cheap."""

from __future__ import annotations

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    check_event,
    constant_logdet,
    context_mask,
    full_precision,
    soft_clip,
)


class LULinear(Transform):
    """z = L U x + b, with L unit lower triangular and U upper triangular with positive diagonal exp(s).

    log|det| = Σ s, s = bound · tanh(s₀ / bound). It starts as the identity.

    Args:
        features: D.
        bound: largest absolute log-scale on the diagonal, > 0.

    Cost: O(D²) for each row in either direction (the inverse solves two triangular systems).

    "Glow: Generative Flow with Invertible 1x1 Convolutions" (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039

    >>> import torch, diffeo
    >>> diffeo.LULinear(2)(torch.tensor([1.0, 2.0]))[0]
    tensor([1., 2.], grad_fn=<ViewBackward0>)
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    eye: Tensor

    def __init__(self, features: int, bound: float = 4.0):
        super().__init__()
        self.event = Size((features,))
        self.bound = bound
        self.weight = nn.Parameter(torch.zeros(features, features))  # L below the diagonal, U on and above it
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("eye", torch.eye(features), persistent=False)

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "LULinear")
        lower, upper, log_scale = self._factors(x.dtype)
        with full_precision(x):
            z = F.linear(F.linear(x, upper), lower, self.bias.to(x.dtype))
        return _rows_kept(x, z, log_scale.sum(), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "LULinear")
        lower, upper, log_scale = self._factors(z.dtype)
        rows = (z - self.bias.to(z.dtype)).reshape(-1, z.shape[-1]).T
        with full_precision(z):
            y = torch.linalg.solve_triangular(lower, rows, upper=False, unitriangular=True)
            x = torch.linalg.solve_triangular(upper, y, upper=True).T.reshape(z.shape)
        return _rows_kept(z, x, -log_scale.sum(), context)

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        weight, eye = self.weight.to(dtype), self.eye.to(dtype)
        log_scale = soft_clip(weight.diagonal(), self.bound)
        return weight.tril(-1) + eye, weight.triu(1) + eye * log_scale.exp(), log_scale


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
        n = features + features % 2 if reflections is None else reflections
        if n < 2 or n % 2:
            raise ValueError(f"Householder: expected an even, positive number of reflections, got {n}")
        self.event = Size((features,))
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


def _rows_kept(x: Tensor, z: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """A mask must cover whole rows here, since the map mixes them: shape `(*batch, 1)`."""
    logdet = constant_logdet(logdet, x, 1)
    mask = context_mask(context)
    if mask is None:
        return z, logdet
    if mask.shape[-1] != 1:
        raise ValueError(f"a linear map mixes the features, so its mask must have last dim 1, got {tuple(mask.shape)}")
    return torch.where(mask, z, x), torch.where(mask.squeeze(-1), logdet, 0.0)
