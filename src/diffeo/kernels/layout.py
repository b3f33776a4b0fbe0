"""Layouts of tensors in memory: how scalar maps, conditioners and compilers want them.

Scalar maps run along the batch: one parameter of neighbouring rows is contiguous. Products of conditioners give their
parameters so; permutations, splits and joins keep it under a compiler. Biases are added after the product, where a
compiler joins them to the activation; the fused form copies the bias into the result first. Products with a narrow
side run up to three times faster with that side outermost, which the layouts of the operands decide, in the backward
pass too (`benchmarks/products.py` measures both).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.functional import precise
from diffeo.kernels.private import apply_directly

NARROW = 16  # columns below which a product is laid out for its long sides
TINY = 4  # columns up to which a compiler writes out products of matrices and solves, which saves calls


def batch_inner(x: Tensor) -> Tensor:
    """The same values, laid out in memory with all batch dims innermost: the layout in which scalar maps run.

    Conditioners give their parameters like this too, so that one parameter of neighbouring rows is contiguous and the
    arithmetic vectorises over rows.
    """
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def permute(x: Tensor, order: Tensor, back: Tensor, dim: int = -1) -> Tensor:
    """x with one dim (counted from the end) in this order, where `back` is the inverse permutation.

    `index_select`, but with the gradient permuted back instead of scattered and added, which compilers do slowly.
    """
    if torch.compiler.is_compiling():
        return _TracedPermutation.apply(x, order, back, dim)  # pyright: ignore
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _select(x, order, dim)
    return apply_directly(Permutation, x, order, back, dim)


def _select(x: Tensor, order: Tensor, dim: int) -> Tensor:
    if dim != -1:
        return x.index_select(dim, order)
    return x.movedim(-1, 0).index_select(0, order).movedim(0, -1)  # laid out as scalar maps run


def split(x: Tensor, sizes: Sequence[int], dim: int = -1) -> Sequence[Tensor]:
    """The parts of x of these sizes along a dim, counted from the end."""
    if dim != -1 or not torch.compiler.is_compiling():
        return torch.split_with_sizes(x, list(sizes), dim)
    parts = torch.split_with_sizes(x.movedim(-1, 0), list(sizes))
    return [part.movedim(0, -1) for part in parts]  # gradients laid out as scalar maps run


def join(parts: Sequence[Tensor], dim: int = -1) -> Tensor:
    """The parts one after the other along a dim, counted from the end."""
    if dim != -1 or not torch.compiler.is_compiling():
        return torch.cat(tuple(parts), dim)
    return torch.cat([part.movedim(-1, 0) for part in parts]).movedim(0, -1)  # laid out as scalar maps run


def unbind_last(x: Tensor) -> Sequence[Tensor]:
    """x[..., 0], x[..., 1], …"""
    if not torch.compiler.is_compiling():
        return x.unbind(-1)
    planes = _turned(x).unbind()  # gradients laid out as scalar maps run
    return [_turned(plane) for plane in planes]


def _turned(x: Tensor) -> Tensor:
    """x with its dims in the opposite order."""
    return x.permute(tuple(reversed(range(x.ndim))))


class _TracedPermutation(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, back: Tensor, dim: int) -> Tensor:
        return _select(x, order, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, order, back, ctx.dim = inputs
        ctx.save_for_backward(order, back)
        ctx.save_for_forward(order, back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        order, back = ctx.saved_tensors
        return permute(grad, back, order, ctx.dim), None, None, None


class Permutation(_TracedPermutation):  # which compilers cannot follow
    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:  # pyright: ignore
        order, back = ctx.saved_tensors
        return permute(dx, order, back, ctx.dim)


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


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Wᵀ + b, under a compiler laid out as scalar maps run."""
    if not torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    return scalar_params(x, weight, bias, 1).squeeze(-1)


def solve_rows(triangle: Tensor, rows: Tensor, upper: bool, unitriangular: bool = False) -> Tensor:
    """T⁻¹ r for rows r of any batch shape, in at least float32.

    Solved from the right, r T⁻ᵀ: rows whose batch is innermost in memory, as scalar maps want them, are then taken and
    given without a copy, in a third to two thirds of the time.
    """
    flat = precise(rows).reshape(-1, rows.shape[-1])
    if torch.compiler.is_compiling() and rows.shape[-1] <= TINY:
        return _solve_tiny(precise(triangle), flat, upper, unitriangular).reshape(rows.shape)
    found: Tensor = torch.linalg.solve_triangular(
        precise(triangle).mT, flat, upper=not upper, left=False, unitriangular=unitriangular
    )
    return found.reshape(rows.shape)


def _solve_tiny(triangle: Tensor, rows: Tensor, upper: bool, unitriangular: bool) -> Tensor:
    found: dict[int, Tensor] = {}
    for i in reversed(range(len(triangle))) if upper else range(len(triangle)):
        left = rows[:, i]
        for j, x in found.items():
            left = left - triangle[i, j] * x
        found[i] = left if unitriangular else left / triangle[i, i]
    return torch.stack([found[i] for i in range(len(triangle))]).T  # laid out as scalar maps run


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices."""
    if torch.compiler.is_compiling() and len(a) <= TINY:
        return (a.unsqueeze(-1) * b).sum(1)
    return a @ b


def _plus(out: Tensor, bias: Tensor) -> Tensor:
    """A sum that Inductor joins to what follows: it takes a plain one, with the product, for `addmm`."""
    return (out.unsqueeze(0) + bias).squeeze(0) if torch.compiler.is_compiling() else out + bias
