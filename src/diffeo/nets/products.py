"""Matrix products of conditioners in the form that runs fastest, with the layout that what follows reads best.

Biases are added after the product, where a compiler joins them to the activation; the fused form copies the bias into
the result first. Products with a narrow side run up to three times faster with that side outermost, which the layouts
of the operands decide, in the backward pass too (`benchmarks/products.py` measures both).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffeo.functional import batch_inner

NARROW = 16  # columns below which a product is laid out for its long sides


class Linear(nn.Linear):
    """x Wᵀ + b."""

    def forward(self, input: Tensor) -> Tensor:
        return affine(input, self.weight, self.bias)


class ParameterLayer(nn.Linear):
    """x Wᵀ + b; given `n_params`, as parameters of scalars, laid out for the maps that read them."""

    def forward(self, input: Tensor, n_params: int | None = None) -> Tensor:
        if n_params is None:
            return affine(input, self.weight, self.bias)
        return scalar_params(input, self.weight, self.bias, n_params)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b for rows of any batch shape."""
    rows = x.reshape(-1, x.shape[-1])
    # autograd derives its products from these layouts
    out = batch_inner(rows) @ weight.T.contiguous() if x.shape[-1] < NARROW else rows @ weight.T
    return (out if bias is None else _plus(out, bias)).reshape(*x.shape[:-1], len(weight))


def scalar_params(x: Tensor, weight: Tensor, bias: Tensor, n_params: int) -> Tensor:
    """x Wᵀ + b of shape (*batch, n, n_params), laid out plane by plane: (n_params, n, *batch) is contiguous.

    One parameter of all scalars lies together, so that the maps that read them are plain loops. The small weight is
    rearranged instead of the large result.
    """
    rows = x.reshape(-1, x.shape[-1])
    by_plane = weight.unflatten(0, (-1, n_params)).transpose(0, 1)
    bias = bias.unflatten(0, (-1, n_params)).T.reshape(-1, 1)
    out = _plus(by_plane.reshape(-1, weight.shape[1]) @ rows.T, bias)
    params = out.unflatten(0, (n_params, -1)).permute(2, 1, 0)
    return params.unflatten(0, x.shape[:-1]) if x.ndim > 1 else params.squeeze(0)


def _plus(out: Tensor, bias: Tensor) -> Tensor:
    """A sum that Inductor joins to what follows: it takes a plain one, with the product, for `addmm`."""
    return (out.unsqueeze(0) + bias).squeeze(0) if torch.compiler.is_compiling() else out + bias
