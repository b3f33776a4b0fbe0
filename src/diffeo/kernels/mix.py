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
    """Whether `mix` runs here, as far as x and the moment say; compilers make a product of it themselves."""
    if torch.compiler.is_dynamo_compiling() or x.ndim < 3 or x.numel() == 0 or not may_run(x):
        return False
    return x.shape[-3] <= FEW and _library(x.dtype) is not None


def mix(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """z = W x + b for the channels of every place, a 1×1 convolution: x is (*batch, C, H, W), W (C, C), b (C,)."""
    pictures = _as_pictures(x)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias)):
        z: Any = Mixed.apply(pictures, weight, bias, None)
    else:
        z = _mix(pictures, weight, bias)
    return z.view(x.shape)


def unmix(z: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """x of which `mix` makes z, (n, C, H · W), and z with a graph from x, without a second computation."""
    with torch.no_grad():
        pictures = _as_pictures(z)
        back = torch.linalg.inv(weight.double())
        x = _mix(pictures, back.to(z.dtype), -(back @ bias.double()).to(z.dtype)).requires_grad_()
    return x, Mixed.apply(x, weight, bias, pictures)  # pyright: ignore[reportReturnType]


def _as_pictures(x: Tensor) -> Tensor:
    pictures = x.reshape(-1, *x.shape[-3:]).flatten(2)
    return pictures if pictures.stride(2) == 1 else pictures.contiguous()


class Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _mix(x, weight, bias) if known is None else known.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or not can_read(grad):
            return weight.T @ grad, (grad @ x.mT).sum(0), grad.sum((0, 2)), None
        n, channels, places = x.shape
        x, grad, weight = x.resolve_neg(), grad.resolve_neg(), weight.contiguous()
        grad = grad if grad.stride(2) == 1 else grad.contiguous()
        worth = x.numel() * channels // WORK
        shares = share_out(n, worth)
        g_x, g_layers = x.new_empty(x.shape), x.new_empty(shares, channels * (channels + 1))
        _require(x.dtype).mix_backward(
            *(
                n,
                channels,
                places,
                x.data_ptr(),
                *x.stride()[:2],
                weight.data_ptr(),
                grad.data_ptr(),
                *grad.stride()[:2],
            ),
            *(g_x.data_ptr(), g_layers.data_ptr(), shares, min(n, process.threads(worth))),
        )
        square = channels * channels
        return g_x, g_layers[0, :square].view(channels, channels), g_layers[0, square:], None


def _mix(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, weight, bias = x.resolve_neg(), weight.contiguous(), bias.contiguous()
    n, channels, places = x.shape
    z = x.new_empty(x.shape)
    threads = min(n, process.threads(x.numel() * channels // WORK))
    _require(x.dtype).mix(
        n, channels, places, x.data_ptr(), *x.stride()[:2], weight.data_ptr(), bias.data_ptr(), z.data_ptr(), threads
    )
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
    library.mix.argtypes = [*sizes, *strided, pointer, pointer, pointer, flag]
    library.mix_backward.argtypes = [*sizes, *strided, pointer, *strided, pointer, pointer, long, flag]
    return library
