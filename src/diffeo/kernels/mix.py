"""Linear maps of the channels of pictures as one operation on CPUs, in C (`mix.c`), with their own gradient."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffeo.kernels import native, process
from diffeo.kernels.dispatch import can_pull, can_run
from diffeo.kernels.native import c_file, prelude
from diffeo.kernels.perceptron import share_out

FEW = 64  # channels, beyond which a 1×1 convolution is for libraries of matrix products
WORK = 1 << 16  # products for which another thread pays: they wait for memory more than others


def may_mix(x: Tensor) -> bool:
    """Whether `mix` can run on x, here and now; check the weights with `can_run` as well."""
    # compilers make a product of it themselves
    if x.ndim < 3 or x.numel() == 0 or not can_run(x, traced=False, products=True):
        return False
    return x.shape[-3] <= FEW and _library(x.dtype) is not None


def mix(
    x: Tensor, weight: Tensor | None, log_scale: Tensor | None, shift: Tensor | None, bias: Tensor | None
) -> Tensor:
    """z = W diag(exp(s)) (x + c) + b for the channels of every place.

    x is (*batch, C, H, W), W (C, C) or the identity, and s, c and b are (C,) or zero, but W or s is given.
    """
    pictures, layer = _as_pictures(x), (weight, log_scale, shift, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *layer)):
        z: Any = DifferentiableMix.apply(pictures, *layer, None)
    else:
        z = _mix(pictures, _matrix(weight, log_scale), shift, bias)
    return z.view(x.shape)


def unmix(
    z: Tensor, weight: Tensor | None, log_scale: Tensor | None, shift: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The x that `mix` takes to z, (n, C, H · W), and z with a graph from x, without a second computation."""
    with torch.no_grad():
        pictures = _as_pictures(z)
        matrix = _matrix(weight, log_scale)
        back = torch.linalg.inv_ex(matrix.double())[0].to(z.dtype)  # not finite where there is none, which is checked
        x = _mix(pictures, back, None if bias is None else -bias, None if shift is None else -shift).requires_grad_()
    return x, DifferentiableMix.apply(x, weight, log_scale, shift, bias, pictures)  # pyright: ignore[reportReturnType]


def _as_pictures(x: Tensor) -> Tensor:
    pictures = x.reshape(-1, *x.shape[-3:]).flatten(2)
    return pictures if pictures.stride(2) == 1 else pictures.contiguous()


def _matrix(weight: Tensor | None, log_scale: Tensor | None) -> Tensor:
    """W diag(exp(s)), of which there is one at least."""
    if log_scale is None:
        return weight  # pyright: ignore[reportReturnType]
    return log_scale.exp().diag() if weight is None else weight * log_scale.exp()


class DifferentiableMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Tensor | None) -> Tensor:
        *layer, known = rest
        ctx.save_for_backward(x, *layer)
        weight, log_scale, shift, bias = layer
        return _mix(x, _matrix(weight, log_scale), shift, bias) if known is None else known.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight, log_scale, shift, bias = ctx.saved_tensors
        matrix = _matrix(weight, log_scale)
        if can_pull(grad):
            g_x, g_matrix, g_bias = _mix_backward(x, matrix, shift, grad)
        else:
            shifted = x if shift is None else x + shift.unsqueeze(1)
            g_x, g_matrix, g_bias = matrix.T @ grad, (grad @ shifted.mT).sum(0), grad.sum((0, 2))
        return (
            g_x,
            None if weight is None else g_matrix if log_scale is None else g_matrix * log_scale.exp(),
            None if log_scale is None else (g_matrix * matrix).sum(0),
            None if shift is None else matrix.T @ g_bias,
            None if bias is None else g_bias,
            None,
        )


def _mix(x: Tensor, matrix: Tensor, shift: Tensor | None, bias: Tensor | None) -> Tensor:
    x, matrix = x.resolve_neg(), matrix.contiguous()
    shift, bias = (None if t is None else t.contiguous() for t in (shift, bias))
    n, channels, places = x.shape
    z = x.new_empty(x.shape)
    threads = min(n, process.threads(x.numel() * channels // WORK))
    layer = matrix.data_ptr(), _address(shift), _address(bias)
    _require(x.dtype).mix(n, channels, places, x.data_ptr(), *x.stride()[:2], *layer, z.data_ptr(), threads)
    return z


def _mix_backward(x: Tensor, matrix: Tensor, shift: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the matrix and of what is added after it."""
    n, channels, places = x.shape
    x, matrix = x.resolve_neg(), matrix.contiguous()
    shift = None if shift is None else shift.contiguous()
    grad = grad if grad.stride(2) == 1 else grad.contiguous()
    worth = x.numel() * channels // WORK
    shares = share_out(n, worth)
    g_x, g_layers = x.new_empty(x.shape), x.new_empty(shares, channels * (channels + 1))
    _require(x.dtype).mix_backward(
        *(n, channels, places, x.data_ptr(), *x.stride()[:2], matrix.data_ptr(), _address(shift)),
        *(grad.data_ptr(), *grad.stride()[:2], g_x.data_ptr(), g_layers.data_ptr()),
        *(shares, min(n, process.threads(worth))),
    )
    g_matrix, g_bias = g_layers[0].split((channels * channels, channels))
    return g_x, g_matrix.view(channels, channels), g_bias


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _require(dtype: torch.dtype) -> Any:
    library = _library(dtype)
    if library is None:
        raise RuntimeError("mix: there is no library for this dtype")
    return library


@cache
def _library(dtype: torch.dtype) -> Any:
    """The library for numbers of a dtype, or None where it cannot be made."""
    library: Any = native.load(prelude(dtype) + c_file("mix.c"), "linear maps of channels")
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    strided, sizes = [pointer, long, long], [long, long, long]
    library.mix.argtypes = [*sizes, *strided, *[pointer] * 4, flag]
    library.mix_backward.argtypes = [*sizes, *strided, pointer, pointer, *strided, pointer, pointer, long, flag]
    return library
