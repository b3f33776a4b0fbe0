"""One scalar map for each coordinate, with parameters of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from diffeo.core import Transform, Univariate
from diffeo.functional import Context, as_fixed_event, check_event, context_mask, keep_masked, real_rows, sum_event


class Elementwise(Transform):
    """zᵢ = u(xᵢ; θᵢ): a scalar map with learned parameters of its own at each position of the event.

    `initialize` sets what the scalar map can read off training rows (`TailTransform` its tails), where nothing was
    learned yet.

    Args:
        univariate: the scalar map.
        event: event shape; an int stands for a vector.

    Cost: that of the scalar map, in either direction.

    >>> import torch, diffeo
    >>> layer = diffeo.Elementwise(diffeo.Affine(), 3)
    >>> layer(torch.ones(2, 3))[1]
    tensor([0., 0.], grad_fn=<SumBackward1>)
    """

    def __init__(self, univariate: Univariate, event: int | tuple[int, ...]):
        super().__init__()
        self.event = shape = as_fixed_event(event, self)
        self.event_ndim = self.event_ndim_out = len(shape)
        self.univariate = univariate
        self.theta = nn.Parameter(torch.zeros(*shape, univariate.n_params))
        self.domain = constraints.independent(univariate.domain, self.event_ndim)
        self.codomain = constraints.independent(univariate.codomain, self.event_ndim)
        self.exact_inverse = univariate.exact_inverse
        self.traceable = univariate.traceable

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Elementwise")
        z, logdet = self.univariate(x, self.theta.to(x.dtype))
        z, logdet = keep_masked(x, z, logdet, context)
        return z, sum_event(logdet, self.event_ndim)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, self.event, "Elementwise")
        x, logdet = self.univariate.inverse(z, self.theta.to(z.dtype))
        x, logdet = keep_masked(z, x, logdet, context)
        return x, sum_event(logdet, self.event_ndim)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        if self.theta.any() or type(self.univariate).initial_params is Univariate.initial_params:
            return
        check_event(x, self.event, "Elementwise")
        mask, flat = context_mask(context), x.flatten(-self.event_ndim) if self.event_ndim > 1 else x
        whole = None if mask is None else {"mask": mask.expand(x.shape).flatten(x.ndim - self.event_ndim)}
        start = self.univariate.initial_params(real_rows(flat, whole).double())
        if start is not None:
            self.theta.copy_(start.reshape(self.theta.shape))
