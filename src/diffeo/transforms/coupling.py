"""Coupling layers: part of the vector sets the parameters of a scalar map on the rest."""

from __future__ import annotations

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints

from diffeo.core import Transform, Univariate
from diffeo.functional import Context, MappedVector, Vector, batch_inner, check_event, context_mask, sum_event, visible


class Coupling(Transform):
    """z_a = x_a, z_b = u(x_b; net(x_a, context)), where the mask is True on a.

    log|det ∂z/∂x| = Σ_b log|u'(x_b)|; the Jacobian is triangular.

    Args:
        mask: (features,) booleans, True where a coordinate conditions and stays unchanged; any mix, all False included.
        net: conditioner `(x_a, context) -> (*batch, n_b * n_params)`.
        univariate: the scalar map on x_b.

    Raises:
        ValueError: the mask is no vector, or leaves nothing to transform.

    Cost: one pass of the conditioner in either direction.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> mask = torch.tensor([True, False])
    >>> layer = diffeo.Coupling(mask, diffeo.nets.MLP(1, 2), diffeo.Affine())
    >>> layer(torch.ones(2))[0]
    tensor([1., 1.], grad_fn=<IndexSelectBackward0>)
    """

    event_ndim = event_ndim_out = 1
    keeps: Tensor
    changes: Tensor
    merge: Tensor

    def __init__(self, mask: Tensor, net: nn.Module, univariate: Univariate):
        super().__init__()
        if mask.ndim != 1 or mask.dtype != torch.bool:
            raise ValueError(f"Coupling: expected a boolean vector as mask, got {mask.dtype} {tuple(mask.shape)}")
        if mask.all():
            raise ValueError("Coupling: the mask is True everywhere, so nothing is transformed")
        self.event = Size(mask.shape)
        self.net = net
        self.univariate = univariate
        self.register_buffer("keeps", mask.nonzero()[:, 0])
        self.register_buffer("changes", (~mask).nonzero()[:, 0])
        self.register_buffer("merge", torch.cat([self.keeps, self.changes]).argsort())
        self.domain = constraints.independent(univariate.domain, 1)
        self.codomain = constraints.independent(univariate.codomain, 1)
        self.exact_inverse = univariate.exact_inverse
        self.traceable = univariate.traceable

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Coupling")
        seen = visible(x, context)
        x_a, x_b = x.index_select(-1, self.keeps), batch_inner(x.index_select(-1, self.changes))
        params = self._params(seen.index_select(-1, self.keeps), x_b, context)
        z_b, logdet = self.univariate(_broadcast(x_b, params), params)
        return self._join(x_a, x_b, z_b, logdet, context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Coupling")
        seen = visible(z, context)
        z_a, z_b = z.index_select(-1, self.keeps), batch_inner(z.index_select(-1, self.changes))
        params = self._params(seen.index_select(-1, self.keeps), z_b, context)
        x_b, logdet = self.univariate.inverse(_broadcast(z_b, params), params)
        return self._join(z_a, z_b, x_b, logdet, context)

    def _params(self, a: Tensor, b: Tensor, context: Context) -> Tensor:
        params = self.net(a, context).unflatten(-1, (b.shape[-1], self.univariate.n_params))
        return params.to(b.dtype)

    def _join(self, a: Tensor, b: Tensor, mapped: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        mask = context_mask(context)
        if mask is not None:
            mask = mask.expand(*mask.shape[:-1], len(self.merge)).index_select(-1, self.changes)
            mapped, logdet = torch.where(mask, mapped, b), torch.where(mask, logdet, 0.0)
        a = a.expand(*mapped.shape[:-1], a.shape[-1])
        return torch.cat([a, mapped], -1).index_select(-1, self.merge), sum_event(logdet, 1)


def _broadcast(x: Tensor, params: Tensor) -> Tensor:
    """x over the batch of its parameters too; these may stay smaller, as where one context serves many x."""
    return x.expand(torch.broadcast_shapes(x.shape, params.shape[:-1]))
