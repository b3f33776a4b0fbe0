"""Permutations of the coordinates."""

from __future__ import annotations

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import Context, MappedVector, Vector, check_event, constant_logdet, context_mask, map_mask
from diffeo.kernels.layout import permute


class Permute(Transform):
    """zᵢ = x_{order[i]}; volume is preserved.

    Args:
        order: a permutation of 0 … features-1. It is a buffer, so members of a vmapped ensemble may differ.

    Raises:
        ValueError: `order` is no permutation.

    >>> import torch, diffeo
    >>> diffeo.Permute(torch.tensor([2, 0, 1]))(torch.tensor([1.0, 2.0, 3.0]))[0]
    tensor([3., 1., 2.])
    """

    event_ndim = event_ndim_out = 1
    domain = codomain = constraints.real_vector
    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor):
        super().__init__()
        counted = order.ndim == 1 and not order.is_floating_point()
        if not counted or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(f"Permute: expected a permutation of 0 … {order.numel() - 1}, got {order.tolist()}")
        self.event = Size(order.shape)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Permute")
        return self._placed(x, self.order, self.back, context), constant_logdet(x.new_zeros(()), x, 1)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Permute")
        return self._placed(z, self.back, self.order, context), constant_logdet(z.new_zeros(()), z, 1)

    def map_context(self, context: Context) -> Context:
        return map_mask(context, lambda mask: self._of_features(mask, self.order, self.back))

    def unmap_context(self, context: Context) -> Context:
        return map_mask(context, lambda mask: self._of_features(mask, self.back, self.order))

    @staticmethod
    def _of_features(mask: Tensor, order: Tensor, back: Tensor) -> Tensor:
        return mask if mask.shape[-1] == 1 else permute(mask, order, back)  # coordinates take their padding along

    @staticmethod
    def _placed(x: Tensor, order: Tensor, back: Tensor, context: Context) -> Tensor:
        placed, mask = permute(x, order, back), context_mask(context)
        return placed if mask is None or mask.shape[-1] > 1 else torch.where(mask, placed, x)
