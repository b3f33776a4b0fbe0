"""Matrices as products of triangular ones, on CPUs in C (`factors.c`), with their own gradient."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffeo.kernels import native
from diffeo.kernels.convolution import pull_plainly
from diffeo.kernels.dispatch import can_pull
from diffeo.kernels.native import c_file, prelude


def multiply_factors(weight: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """L U and log|det|: weight, (C, C), has L below the diagonal, and U above it; C `can_run` on it.

    The diagonal of L is one, that of U is exp(bound · tanh(w / bound)).
    """
    library = _library(weight.dtype)
    if library is None:
        return multiply_plainly(weight, bound)
    return Factors.apply(library, weight, bound)  # pyright: ignore[reportReturnType]


def multiply_plainly(weight: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """The same, of operations that have gradients of any order."""
    log_scale = bound * torch.tanh(weight.diagonal() / bound)
    lower = weight.tril(-1) + torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    return lower @ (weight.triu(1) + log_scale.exp().diag()), log_scale.sum()


class Factors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Any, weight: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        ctx.library, ctx.bound = library, bound
        ctx.save_for_backward(weight)
        weight = weight.contiguous()
        product, logdet = weight.new_empty(weight.shape), weight.new_empty(())
        addresses = weight.data_ptr(), bound, product.data_ptr(), logdet.data_ptr()
        library.multiply_factors(len(weight), *addresses)
        return product, logdet

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (weight,) = ctx.saved_tensors
        if not can_pull(grad, grad_log):
            found, _ = pull_plainly(lambda w, _: multiply_plainly(w, ctx.bound), weight, None, (), grad, grad_log)
            return None, found, None
        weight, grad = weight.contiguous(), grad.contiguous()
        found = weight.new_empty(weight.shape)
        given = grad.data_ptr(), grad_log.data_ptr()
        ctx.library.factors_backward(len(weight), weight.data_ptr(), ctx.bound, *given, found.data_ptr())
        return None, found, None


@cache
def _library(dtype: torch.dtype) -> Any:
    """The library for numbers of a dtype, or None where it cannot be made."""
    library: Any = native.load(prelude(dtype) + c_file("factors.c"), "products of factors")
    if library is None:
        return None
    long, pointer, real = ctypes.c_long, ctypes.c_void_p, ctypes.c_float if dtype == torch.float32 else ctypes.c_double
    library.multiply_factors.argtypes = [long, pointer, real, pointer, pointer]
    library.factors_backward.argtypes = [long, pointer, real, *[pointer] * 3]
    return library
