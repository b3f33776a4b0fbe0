"""Fixed scalar maps between the line, the half-line and the unit interval, and shape maps with a few parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F  # noqa: N812

from diffeo.core import Univariate
from diffeo.functional import Context, MappedScalars, Scalars, positive, soft_clip


class Exp(Univariate):
    """z = exp(x), from the line to the positive numbers.

    >>> import torch, diffeo
    >>> diffeo.Exp()(torch.tensor(0.0))
    (tensor(1.), tensor(0.))
    """

    codomain = constraints.positive

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return x.exp(), x

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        x = z.log()
        return x, -x


class Softplus(Univariate):
    """z = log(1 + exp(x)), from the line to the positive numbers; close to the identity for large x.

    >>> import torch, diffeo
    >>> diffeo.Softplus()(torch.tensor(0.0))[0]
    tensor(0.6931)
    """

    codomain = constraints.positive

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return -F.logsigmoid(-x), F.logsigmoid(x)  # `F.softplus` is exact to float32 only, or overflows

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        log_slope = (-torch.expm1(-z)).log()  # log(1 - exp(-z))
        return z + log_slope, -log_slope


class Sigmoid(Univariate):
    """z = 1 / (1 + exp(-x)), from the line to (0, 1).

    >>> import torch, diffeo
    >>> diffeo.Sigmoid()(torch.tensor(0.0))[0]
    tensor(0.5000)
    """

    codomain = constraints.unit_interval

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return x.sigmoid(), F.logsigmoid(x) + F.logsigmoid(-x)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        log_z, log_rest = z.log(), torch.log1p(-z)
        return log_z - log_rest, -log_z - log_rest


class Logit(Univariate):
    """z = log(x / (1 - x)), from (0, 1) to the line: the inverse of `Sigmoid`.

    >>> import torch, diffeo
    >>> diffeo.Logit()(torch.tensor(0.5))[0]
    tensor(0.)
    """

    domain = constraints.unit_interval

    def __init__(self):
        super().__init__()
        self._sigmoid = Sigmoid()

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return self._sigmoid.inverse(x)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return self._sigmoid(z)


class Tanh(Univariate):
    """z = tanh(x), from the line to (-1, 1).

    >>> import torch, diffeo
    >>> diffeo.Tanh()(torch.tensor(0.0))
    (tensor(0.), tensor(0.))
    """

    codomain = constraints.interval(-1.0, 1.0)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        # log(1 - tanh²x) without cancellation
        return x.tanh(), 2 * (math.log(2) - x.abs() - F.softplus(-2 * x.abs()))

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return z.atanh(), -torch.log1p(-z) - torch.log1p(z)


class Asinh(Univariate):
    """z = asinh(δ x) / δ: close to x near zero, logarithmic far out; a Gaussian z gives x tails heavier than Gaussian.

    Beyond |δ x| = sinh(40) ≈ 10¹⁷ it goes on as its tangent, so that no inverse overflows.

    Args:
        delta: where the tails begin, at |x| ≈ 1 / δ; > 0.

    >>> import torch, diffeo
    >>> diffeo.Asinh()(torch.tensor(0.0))
    (tensor(0.), tensor(-0.))
    """

    _end = 40.0

    def __init__(self, delta: float = 0.5):
        super().__init__()
        if not delta > 0:
            raise ValueError(f"Asinh: expected delta > 0, got {delta}")
        self.delta = delta

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        x = self.delta * x
        near = x.clamp(-math.sinh(self._end), math.sinh(self._end))
        z = near.asinh()
        beyond = x.sign() * self._end + (x - near) / math.cosh(self._end)
        return torch.where(x == near, z, beyond) / self.delta, -_log_cosh(z)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        z = self.delta * z
        near = z.clamp(-self._end, self._end)
        beyond = z.sign() * math.sinh(self._end) + (z - near) * math.cosh(self._end)
        return torch.where(z == near, near.sinh(), beyond) / self.delta, _log_cosh(near)


class SinhArcsinh(Univariate):
    """z = sinh(δ asinh(x) + ε): ε skews, δ = exp(s) > 0 makes tails lighter or heavier; parameters (ε, s₀).

    s = bound · tanh(s₀ / bound), and ε is bounded the same way. Far out z grows as |x|^δ.

    Args:
        bound: largest |s| and |ε|, > 0.

    "Sinh-arcsinh distributions" (Jones and Pewsey, 2009), https://doi.org/10.1093/biomet/asp053

    >>> import torch, diffeo
    >>> diffeo.SinhArcsinh()(torch.tensor(2.0), torch.zeros(2))[0]
    tensor(2.)
    """

    n_params = 2

    def __init__(self, bound: float = 1.0):
        super().__init__()
        self.bound = positive(bound, "bound", self)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        skew, log_tail = self._unpack(context)
        inner = x.asinh()
        outer = inner * log_tail.exp() + skew
        return outer.sinh(), log_tail + _log_cosh(outer) - _log_cosh(inner)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        skew, log_tail = self._unpack(context)
        outer = z.asinh()
        inner = (outer - skew) * (-log_tail).exp()
        return inner.sinh(), _log_cosh(inner) - _log_cosh(outer) - log_tail

    def _unpack(self, context: Context) -> tuple[Tensor, Tensor]:
        skew, log_tail = self.params(context).unbind(-1)
        return soft_clip(skew, self.bound), soft_clip(log_tail, self.bound)


def _log_cosh(x: Tensor) -> Tensor:
    return x.abs() + F.softplus(-2 * x.abs()) - math.log(2)


class LeakyReLU(Univariate):
    """z = x for x ≥ 0 and slope · x below.

    Args:
        slope: of the negative side, > 0.

    >>> import torch, diffeo
    >>> diffeo.LeakyReLU(0.5)(torch.tensor(-2.0))[0]
    tensor(-1.)
    """

    def __init__(self, slope: float = 0.1):
        super().__init__()
        if not slope > 0:
            raise ValueError(f"LeakyReLU: expected a slope > 0, got {slope}")
        self.slope = slope

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        return torch.where(x < 0, self.slope * x, x), torch.where(x < 0, math.log(self.slope), torch.zeros_like(x))

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        return torch.where(z < 0, z / self.slope, z), torch.where(z < 0, -math.log(self.slope), torch.zeros_like(z))


class Power(Univariate):
    """z = x^p on the positive numbers, p = exp(s), s = bound · tanh(s₀ / bound); parameter (s₀,).

    Args:
        bound: largest |s|, > 0.

    >>> import torch, diffeo
    >>> diffeo.Power()(torch.tensor(2.0), torch.zeros(1))[0]
    tensor(2.)
    """

    n_params = 1
    domain = constraints.positive
    codomain = constraints.positive

    def __init__(self, bound: float = 1.0):
        super().__init__()
        self.bound = positive(bound, "bound", self)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        s = soft_clip(self.params(context).squeeze(-1), self.bound)
        log_x = x.log()
        log_z = log_x * s.exp()
        return log_z.exp(), s + log_z - log_x

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        s = soft_clip(self.params(context).squeeze(-1), self.bound)
        log_z = z.log()
        log_x = log_z * (-s).exp()
        return log_x.exp(), log_x - log_z - s
