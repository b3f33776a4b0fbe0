"""Coupling layers: part of the vector sets the parameters of a scalar map on the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints

from diffeo.core import Transform, Univariate
from diffeo.core.transform import Rebuilt
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    batch_inner,
    cat_last,
    check_event,
    context_mask,
    permute_last,
    split_last,
    sum_event,
)
from diffeo.nets import MLP
from diffeo.transforms import conditioned_kernel


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
    tensor([1., 1.], grad_fn=<PermutationBackward>)
    """

    event_ndim = event_ndim_out = 1
    apart: Tensor
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
        self.kept = int(mask.sum())
        self.register_buffer("apart", torch.cat([mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]]))
        self.register_buffer("merge", self.apart.argsort())
        self.domain = constraints.independent(univariate.domain, 1)
        self.codomain = constraints.independent(univariate.codomain, 1)
        self.exact_inverse = univariate.exact_inverse
        self.traceable = univariate.traceable

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        return self._map(x, context, inverse=False)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        return self._map(z, context, inverse=True)

    def rebuild(self, z: Tensor, context: Context = None) -> Rebuilt:
        with torch.no_grad():
            z_a, z_b = self._split(z)
        with torch.enable_grad():
            a = z_a.detach().requires_grad_()
            params = self._params(a, z_b, context)  # one pass of the net for the inverse and for the gradient
            with torch.no_grad():
                z_b = _broadcast(z_b, params)
                x_b, back = self.univariate.inverse(z_b, params)
                x_b, _ = self._spare(z_b, x_b, back, context)
                x = self._merge(z_a, x_b)
            x_b.requires_grad_()
            z_b, logdet = self.univariate.recall(x_b, z_b, -back, params)
            again, logdet = self._join(a, x_b, z_b, logdet, context)

        def join(gradients: tuple[Tensor, ...]) -> Tensor:
            return self._merge(*gradients)

        return Rebuilt(x, (a, x_b), again, logdet, join)

    def _map(self, x: Tensor, context: Context, inverse: bool) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Coupling")
        a, b = self._split(x)
        kept, changed = self.apart[: self.kept], self.apart[self.kept :]
        found = conditioned_kernel.map_vector(self.net, self.univariate, x, a, context, kept, changed, inverse)
        if found is not None:
            return found
        params = self._params(a, b, context)
        mapped, logdet = (self.univariate.inverse if inverse else self.univariate)(_broadcast(b, params), params)
        return self._join(a, b, mapped, logdet, context)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # files written before the two index buffers were joined
        old = [state_dict.pop(prefix + name, None) for name in ("keeps", "changes")]
        if old[0] is not None and old[1] is not None:
            state_dict[prefix + "apart"] = torch.cat([old[0], old[1]])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = split_last(permute_last(x, self.apart, self.merge), [self.kept, len(self.apart) - self.kept])
        return a, batch_inner(b)

    def _params(self, a: Tensor, b: Tensor, context: Context) -> Tensor:
        mask = context_mask(context)
        if mask is not None:  # padding, whatever it holds, counts as zero
            a = torch.where(self._split_mask(mask)[0], a, 0.0)
        n_params = self.univariate.n_params
        if isinstance(self.net, MLP):  # gives them in the layout in which scalar maps run
            params = self.net(a, context, n_params)
        else:
            params = self.net(a, context).unflatten(-1, (b.shape[-1], n_params))
        return params.to(b.dtype)

    def _spare(self, b: Tensor, mapped: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """What the scalar map made of b, with padding as it was."""
        mask = context_mask(context)
        if mask is None:
            return mapped, logdet
        mask = self._split_mask(mask)[1]
        return torch.where(mask, mapped, b), torch.where(mask, logdet, 0.0)

    def _join(self, a: Tensor, b: Tensor, mapped: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        mapped, logdet = self._spare(b, mapped, logdet, context)
        return self._merge(a, mapped), sum_event(logdet, 1)

    def _merge(self, a: Tensor, b: Tensor) -> Tensor:
        a = a.expand(*b.shape[:-1], a.shape[-1])
        return permute_last(cat_last(a, b), self.merge, self.apart)

    def _split_mask(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        whole = mask.expand(*mask.shape[:-1], len(self.apart)).index_select(-1, self.apart)
        return whole[..., : self.kept], whole[..., self.kept :]


def _broadcast(x: Tensor, params: Tensor) -> Tensor:
    """x over the batch of its parameters too; these may stay smaller, as where one context serves many x."""
    return x.expand(torch.broadcast_shapes(x.shape, params.shape[:-1]))
