"""Coupling layers: part of the event sets the parameters of a scalar map on the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffeo.core import Rebuildable, Univariate
from diffeo.core.memory import Recallable
from diffeo.functional import Context, sum_event
from diffeo.kernels.layout import batch_inner, join, permute, split
from diffeo.kernels.private import is_transformed
from diffeo.kernels.segments import Rebuilt
from diffeo.transforms.picture_coupling import PictureCoupling


class Coupling(PictureCoupling, Rebuildable):
    """z_a = x_a, z_b = u(x_b; net(x_a, context)), where the mask is True on a.

    log|det ∂z/∂x| = Σ_b log|u'(x_b)|; the Jacobian is triangular.

    Args:
        mask: (n,) booleans, True where a coordinate conditions and stays unchanged; any mix, all False included.
        net: conditioner `(x_a, context) -> (*x_b.shape, n_params)`.
        univariate: the scalar map on x_b.
        dim: which dim of the event the mask divides, counted from the end: −1 for features, −3 for the channels of an
            image.
        event_ndim: dims of the event: 2 for a sequence of vectors. Default: from `dim` on.

    Raises:
        ValueError: the mask is no vector, or leaves nothing to transform; a dim that the event does not have.

    Cost: one pass of the conditioner in either direction.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> mask = torch.tensor([True, False])
    >>> layer = diffeo.Coupling(mask, diffeo.nets.MLP(1, 1, n_params=2), diffeo.Affine())
    >>> layer(torch.ones(2))[0]
    tensor([1., 1.], grad_fn=<PermutationBackward>)
    """

    apart: Tensor
    together: Tensor
    slices: bool
    seen: dict[str, Tensor]  # the order that the slices are of; in a dict, where it is no buffer

    def __init__(
        self, mask: Tensor, net: nn.Module, univariate: Univariate, *, dim: int = -1, event_ndim: int | None = None
    ):
        if mask.ndim != 1 or mask.dtype != torch.bool:
            raise ValueError(f"Coupling: expected a boolean vector as mask, got {mask.dtype} {tuple(mask.shape)}")
        if mask.all():
            raise ValueError("Coupling: the mask is True everywhere, so nothing is transformed")
        super().__init__(net, univariate, len(mask), dim, event_ndim)
        self.kept = int(mask.sum())
        self.register_buffer("apart", torch.cat([mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]]))
        self.register_buffer("together", self.apart.argsort())
        self.register_load_state_dict_post_hook(_find_slices)
        _find_slices(self)

    @property
    def sliced(self) -> bool:
        """Whether slices will do: not for the masks of others, under vmap of an ensemble or by `functional_call`."""
        own = torch.compiler.is_compiling() or self.apart is self.seen.get("apart")
        return self.slices and own and not is_transformed()

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self.map(z, context, "inverse")

    def take(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sizes = [self.kept, len(self.apart) - self.kept]
        if self.sliced:
            a, b = split(x, sizes, self.dim) if self.first else reversed(split(x, sizes[::-1], self.dim))
            return a, b
        a, b = split(permute(x, self.apart, self.together, self.dim), sizes, self.dim)
        return a, batch_inner(b) if self.dim == -1 else b

    def put(self, a: Tensor, b: Tensor) -> Tensor:
        a = a.expand(*b.shape[: b.ndim - self.event_ndim], *a.shape[a.ndim - self.event_ndim :])
        if self.sliced:
            return join((a, b) if self.first else (b, a), self.dim)
        return permute(join((a, b), self.dim), self.together, self.apart, self.dim)

    def _apply(self, *args: Any, **kwargs: Any):
        moved = super()._apply(*args, **kwargs)  # to another device, where buffers are other tensors
        self.seen = {"apart": self.apart}
        return moved

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        return self.apart[: self.kept], self.apart[self.kept :]

    def rebuild(self, z: Tensor, context: Context = None) -> Rebuilt:
        found = self.rebuild_pictures(z, context)
        if found is not None:
            return found
        with torch.no_grad():
            a, z_b = self.take(z)
        a = a.detach().requires_grad_()
        with torch.enable_grad():
            params = self.params(a, z_b, context)  # one pass of the net for the inverse and for the gradient
        with torch.no_grad():
            x_b, back = self.map_scalars(z_b, params, context, "inverse")
            x = self.put(a, x_b)
        x_b.requires_grad_()
        with torch.enable_grad():
            if isinstance(self.univariate, Recallable):
                z_b, logdet = self.univariate.recall(x_b, z_b.expand_as(x_b), -back, params)
            else:
                z_b, logdet = self.univariate(x_b, params)
            z_b, logdet = self.spare(x_b, z_b, logdet, context)
            return Rebuilt(x, (a, x_b), self.put(a, z_b), sum_event(logdet, self.event_ndim), lambda g: self.put(*g))


def _find_slices(layer: Coupling, *_: Any) -> None:
    """Which part comes first, where both are slices, which need no copy; vectors are laid out anew anyway."""
    layer.seen = {"apart": layer.apart}
    order, n = layer.apart.tolist(), len(layer.apart)
    layer.first = order == list(range(n))
    turned = order == [*range(n - layer.kept, n), *range(n - layer.kept)]
    layer.slices = layer.event_ndim > 1 and (layer.first or turned)
