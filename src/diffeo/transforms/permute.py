"""Permutations of the coordinates."""

from __future__ import annotations

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import Context, MappedVector, Vector, check_event, constant_logdet
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
        if order.ndim != 1 or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(f"Permute: expected a permutation of 0 … {order.numel() - 1}, got {order.tolist()}")
        self.event = Size(order.shape)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Permute")
        return permute(x, self.order, self.back), constant_logdet(x.new_zeros(()), x, 1)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Permute")
        return permute(z, self.back, self.order), constant_logdet(z.new_zeros(()), z, 1)
