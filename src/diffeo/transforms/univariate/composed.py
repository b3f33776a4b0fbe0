"""Scalar maps one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from diffeo.core import Univariate
from diffeo.functional import Context, MappedScalars, Scalars


class Composed(Univariate):
    """z = uₙ(… u₂(u₁(x; θ₁); θ₂) …; θₙ): one scalar map, its parameters those of its parts side by side.

    log|dz/dx| = Σ log|uᵢ'|. Put into a coupling, one conditioner sets the parameters of all parts.

    Args:
        *parts: scalar maps, the one next to the data first.

    Raises:
        ValueError: no part.

    Cost: that of its parts.

    >>> import torch, diffeo
    >>> u = diffeo.Composed(diffeo.Shift(), diffeo.Exp())
    >>> u(torch.tensor(1.0), torch.tensor([-1.0]))
    (tensor(1.), tensor(0.))
    """

    def __init__(self, *parts: Univariate):
        super().__init__()
        if not parts:
            raise ValueError("Composed: expected at least one scalar map, got none")
        self.parts = nn.ModuleList(parts)
        self._sizes = tuple(part.n_params for part in parts)
        self.n_params = sum(self._sizes)
        self.exact_inverse = all(part.exact_inverse for part in parts)
        self.traceable = all(part.traceable for part in parts)
        self.domain: Constraint = parts[0].domain
        self.codomain: Constraint = parts[-1].codomain

    def forward(self, x: Scalars, context: Context = None) -> MappedScalars:
        logdet = torch.zeros_like(x)
        for part, params in zip(self.parts, self._split(x, context), strict=True):
            x, change = part(x, params)
            logdet = logdet + change
        return x, logdet

    def inverse(self, z: Scalars, context: Context = None) -> MappedScalars:
        logdet = torch.zeros_like(z)
        split = self._split(z, context)
        for i in reversed(range(len(self.parts))):
            part: Univariate = self.parts[i]  # type: ignore[assignment]
            z, change = part.inverse(z, split[i])
            logdet = logdet + change
        return z, logdet

    def _split(self, x: Tensor, context: Context) -> list[Tensor]:
        params = self.params(context) if self.n_params else x.new_zeros(0)
        return list(params.split(list(self._sizes), -1))
