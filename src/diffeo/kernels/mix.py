"""Linear maps of the channels of pictures as one operation on CPUs, in C (`mix.c`), with their own gradient."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffeo.kernels import native, process
from diffeo.kernels.dispatch import can_read
from diffeo.kernels.native import c_file, prelude
from diffeo.kernels.perceptron import WORK, may_run, share_out

FEW = 64  # channels, beyond which a 1×1 convolution is for libraries of matrix products


def may_mix(x: Tensor) -> bool:
    """Whether `mix` runs here, as far as x and the moment say; of the weights `can_run` is to be asked too."""
    # compilers make a product of it themselves
    if torch.compiler.is_dynamo_compiling() or x.ndim < 3 or x.numel() == 0 or not may_run(x):
        return False
    return x.shape[-3] <= FEW and _library(x.dtype) is not None


def mix(x: Tensor, weight: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
    """z = W (x + c) + b for the channels of every place: x is (*batch, C, H, W), W (C, C), c and b (C,)."""
    pictures = _as_pictures(x)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, shift, bias)):
        z: Any = Differentiable.apply(pictures, weight, shift, bias, None)
    else:
        z = _mix(pictures, weight, shift, bias)
    return z.view(x.shape)


def unmix(z: Tensor, weight: Tensor, shift: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x of which `mix` makes z, (n, C, H · W), and z with a graph from x, without a second computation."""
    with torch.no_grad():
        pictures = _as_pictures(z)
        back = torch.linalg.inv_ex(weight.double())[0].to(z.dtype)  # not finite where there is none, which is checked
        x = _mix(pictures, back, -bias, -shift).requires_grad_()
    return x, Differentiable.apply(x, weight, shift, bias, pictures)  # pyright: ignore[reportReturnType]


def _as_pictures(x: Tensor) -> Tensor:
    pictures = x.reshape(-1, *x.shape[-3:]).flatten(2)
    return pictures if pictures.stride(2) == 1 else pictures.contiguous()


class Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor, bias: Tensor, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, shift)
        return _mix(x, weight, shift, bias) if known is None else known.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight, shift = ctx.saved_tensors
        if torch.is_grad_enabled() or not can_read(grad):
            of_bias = grad.sum((0, 2))
            g_weight = (grad @ (x + shift.unsqueeze(1)).mT).sum(0)
            return weight.T @ grad, g_weight, weight.T @ of_bias, of_bias, None
        n, channels, places = x.shape
        x, grad, weight, shift = x.resolve_neg(), grad.resolve_neg(), weight.contiguous(), shift.contiguous()
        grad = grad if grad.stride(2) == 1 else grad.contiguous()
        worth = x.numel() * channels // WORK
        shares = share_out(n, worth)
        g_x, g_layers = x.new_empty(x.shape), x.new_empty(shares, channels * (channels + 1))
        _require(x.dtype).mix_backward(
            *(n, channels, places, x.data_ptr(), *x.stride()[:2], weight.data_ptr(), shift.data_ptr()),
            *(grad.data_ptr(), *grad.stride()[:2], g_x.data_ptr(), g_layers.data_ptr()),
            *(shares, min(n, process.threads(worth))),
        )
        square = channels * channels
        of_bias = g_layers[0, square:]
        return g_x, g_layers[0, :square].view(channels, channels), weight.T @ of_bias, of_bias, None


def _mix(x: Tensor, weight: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
    x, weight, shift, bias = x.resolve_neg(), weight.contiguous(), shift.contiguous(), bias.contiguous()
    n, channels, places = x.shape
    z = x.new_empty(x.shape)
    threads = min(n, process.threads(x.numel() * channels // WORK))
    layer = weight.data_ptr(), shift.data_ptr(), bias.data_ptr()
    _require(x.dtype).mix(n, channels, places, x.data_ptr(), *x.stride()[:2], *layer, z.data_ptr(), threads)
    return z


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
