"""Affine scalar maps."""

from __future__ import annotations

from torch import Tensor

from diffeo.core import Univariate
from diffeo.functional import Context, MappedScalars, Scalars, positive, soft_clip
from diffeo.kernels.layout import unbind_last


class Affine(Univariate):
    """z = exp(s) x + t, with the log-scale s softly bounded: one layer scales by at most e^bound.

    s = bound · tanh(s₀ / bound); parameters (t, s₀).

    Args:
        bound: largest absolute log-scale, > 0.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> diffeo.Affine()(torch.tensor(2.0), torch.tensor([1.0, 0.0]))
    (tensor(3.), tensor(0.))
    """

    n_params = 2

    def __init__(self, bound: float = 4.0):
        super().__init__()
        self.bound = positive(bound, "bound", self)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        shift, log_scale = self._unpack(context)
        z = x * log_scale.exp() + shift
        return z, log_scale.expand_as(z)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        shift, log_scale = self._unpack(context)
        x = (z - shift) * (-log_scale).exp()
        return x, -log_scale.expand_as(x)

    def _unpack(self, context: Context) -> tuple[Tensor, Tensor]:
        shift, s = unbind_last(self.params(context))
        return shift, soft_clip(s, self.bound)


class LocationScale(Univariate):
    """z = (x − m) exp(−s), with the log-scale s softly bounded: x standardised by its own location and scale.

    s = bound · tanh(s₀ / bound); parameters (m, s₀). The same maps as `Affine`, in the parameters of a regression:
    small scales do not make the location move.

    Args:
        bound: largest absolute log-scale, > 0.

    >>> import torch, diffeo
    >>> diffeo.LocationScale()(torch.tensor(2.0), torch.tensor([1.0, 0.0]))
    (tensor(1.), tensor(-0.))
    """

    n_params = 2

    def __init__(self, bound: float = 10.0):
        super().__init__()
        self.bound = positive(bound, "bound", self)

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        location, log_scale = self._unpack(context)
        z = (x - location) * (-log_scale).exp()
        return z, -log_scale.expand_as(z)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        location, log_scale = self._unpack(context)
        x = z * log_scale.exp() + location
        return x, log_scale.expand_as(x)

    def _unpack(self, context: Context) -> tuple[Tensor, Tensor]:
        location, s = unbind_last(self.params(context))
        return location, soft_clip(s, self.bound)


class Shift(Univariate):
    """z = x + t, which preserves volume; parameter (t,).

    "NICE: Non-linear Independent Components Estimation" (Dinh et al., 2014), https://arxiv.org/abs/1410.8516

    >>> import torch, diffeo
    >>> diffeo.Shift()(torch.tensor(2.0), torch.tensor([1.0]))
    (tensor(3.), tensor(0.))
    """

    n_params = 1

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        z = x + self.params(context).squeeze(-1)
        return z, x.new_zeros(()).expand_as(z)

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        x = z - self.params(context).squeeze(-1)
        return x, z.new_zeros(()).expand_as(x)
