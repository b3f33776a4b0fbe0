"""Autoregressive layers: each coordinate's scalar map depends on those before it."""

from __future__ import annotations

import torch
from torch import Size
from torch.distributions import constraints

from diffeo.core import Incremental, Transform, Univariate
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    batch_inner,
    check_event,
    context_mask,
    permute_last,
    sum_event,
    visible,
)


class Autoregressive(Transform):
    """zᵢ = u(xᵢ; net(x_before, context)): a scalar map whose parameters depend on the coordinates before it.

    log|det ∂z/∂x| = Σᵢ log|u'(xᵢ)|; the Jacobian is triangular in the order of the net.

    Args:
        net: an `Incremental` conditioner such as `diffeo.nets.MADE`, which also fixes the order.
        univariate: the scalar map.
        features: number of coordinates; default that of the net.

    Cost: a density is one pass of the net. The inverse runs through the coordinates one by one and computes each hidden
    unit once, so its arithmetic is that of about one pass.

    "Masked Autoregressive Flow for Density Estimation" (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057

    >>> import torch, diffeo
    >>> layer = diffeo.Autoregressive(diffeo.nets.MADE(3, 2), diffeo.Affine())
    >>> layer.inverse(torch.ones(3))[0].shape
    torch.Size([3])
    """

    event_ndim = event_ndim_out = 1

    def __init__(self, net: Incremental, univariate: Univariate, features: int | None = None):
        super().__init__()
        self.event = Size((features or len(net.order),))
        self.net = net
        self.univariate = univariate
        self.domain = constraints.independent(univariate.domain, 1)
        self.codomain = constraints.independent(univariate.codomain, 1)
        self.exact_inverse = univariate.exact_inverse
        self.traceable = univariate.traceable

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Autoregressive")
        order, rank = self.net.order, self.net.rank
        params = self.net(visible(x, context), context).unflatten(-1, (x.shape[-1], self.univariate.n_params))
        placed = batch_inner(permute_last(x, order, rank)).expand(params.shape[:-1])
        z, logdet = self.univariate(placed, params.to(x.dtype))
        mask = context_mask(context)
        if mask is not None:
            mask = mask.expand_as(x).index_select(-1, order)
            z, logdet = torch.where(mask, z, placed), torch.where(mask, logdet, 0.0)
        return permute_last(z, rank, order), sum_event(logdet, 1)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Autoregressive")
        order = self.net.order
        mask = context_mask(context)
        masks = None if mask is None else mask.expand_as(z).index_select(-1, order).unbind(-1)
        state, x_d, xs, logdets = self.net.start(z, context), None, [], []
        for d, z_d in enumerate(z.index_select(-1, order).unbind(-1)):
            seen = x_d if masks is None or x_d is None else torch.where(masks[d - 1], x_d, 0.0)
            params, _, state = self.net.step(seen, state)
            z_d = z_d.expand(params.shape[:-1])
            x_d, logdet = self.univariate.inverse(z_d, params.to(z.dtype))
            if masks is not None:
                x_d, logdet = torch.where(masks[d], x_d, z_d), torch.where(masks[d], logdet, 0.0)
            xs.append(x_d)
            logdets.append(logdet)
        return torch.stack(xs, -1).index_select(-1, self.net.rank), sum_event(torch.stack(logdets, -1), 1)
