"""A linear regression on the context, taken out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    as_fixed_event,
    check_event,
    keep_masked,
    real_rows,
    sum_event,
)
from diffeo.nets.mlp import require_context
from diffeo.transforms.norm import training_rows


class Regress(Transform):
    """z = x − B c: what a linear regression on the context leaves of x. The log-det is 0.

    `initialize` sets B by ridge regression of the (centred) training rows on their context, so that groups and trends
    are gone from the start; afterwards B goes on learning. Before, B = 0: the identity.

    Args:
        features: D.
        context: width of the context, at least 1.

    Cost: O(D · context).

    >>> import torch, diffeo
    >>> layer = diffeo.Regress(1, context=1)
    >>> c = torch.randn(100, 1)
    >>> layer.initialize(3 * c, c)
    >>> bool(layer(3 * c, c)[0].abs().mean() < 0.1)
    True
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    initialized: Tensor

    ridge = 1.0  # pseudo-rows of standardised context

    def __init__(self, features: int, context: int):
        super().__init__()
        self.event = as_fixed_event(features, self)
        self.context = context
        self.weight = nn.Parameter(torch.zeros(features, context))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Regress")
        return self._shifted(x, -self._fitted(x, context), context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Regress")
        return self._shifted(z, self._fitted(z, context), context)

    def _fitted(self, x: Tensor, context: Context) -> Tensor:
        return require_context(context, self.context, "Regress").to(x.dtype) @ self.weight.to(x.dtype).T

    def _shifted(self, x: Tensor, by: Tensor, context: Context) -> MappedVector:
        moved = x + by
        moved, logdet = keep_masked(x, moved, torch.zeros_like(moved), context)
        return moved, sum_event(logdet, 1)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        if self.initialized:
            return
        rows = training_rows(x, context, self.event, "Regress")
        c = real_rows(x, context, require_context(context, self.context, "Regress")).double()
        rows, c = rows - rows.mean(0), c - c.mean(0)
        penalty = self.ridge * torch.diag(c.var(0, correction=0) + 1e-12)
        self.weight.copy_(torch.linalg.solve(c.T @ c + penalty, c.T @ rows).T)
        self.initialized.fill_(True)
