"""Matrix products of conditioners in the form that runs fastest, with the layout that what follows reads best.

Biases are added after the product, where a compiler joins them to the activation; the fused form copies the bias into
the result first. Products with a narrow side run up to five times faster with that side outermost, which the layouts
of the operands decide, in the backward pass too (`benchmarks/products.py` measures both).
"""

from __future__ import annotations

from torch import Tensor, nn

from diffeo.functional import batch_inner

NARROW = 16  # columns below which a product is laid out for its long sides


class Linear(nn.Linear):
    """x Wᵀ + b."""

    def forward(self, input: Tensor) -> Tensor:
        return affine(input, self.weight, self.bias)


class ParameterLayer(nn.Linear):
    """x Wᵀ + b with the batch innermost in memory, where the scalar maps that read the parameters run."""

    def forward(self, input: Tensor) -> Tensor:
        return affine_batch_inner(input, self.weight, self.bias)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b for rows of any batch shape."""
    rows = x.reshape(-1, x.shape[-1])
    # autograd derives its products from these layouts
    out = batch_inner(rows) @ weight.T.contiguous() if x.shape[-1] < NARROW else rows @ weight.T
    out = out.reshape(*x.shape[:-1], -1)
    return out if bias is None else out + bias


def affine_batch_inner(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b with the last batch dim innermost in memory."""
    rows = x.reshape(-1, x.shape[-1])
    out = (weight @ rows.T + bias.unsqueeze(1)).T
    return out.unflatten(0, x.shape[:-1]) if x.ndim > 1 else out.squeeze(0)
