"""The rational-quadratic spline as one operation with its own gradient.

Eagerly it is an autograd function. A compiler that traces a model sees a single operator instead of a thousand small
operations. That operator runs a kernel which is compiled apart from all models, once for all sizes, so that compiling a
model stays quick, one kernel serves every layer and every model, and a second process finds it on disk: on CPUs a loop
in C, which a fit runs in uncompiled models too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffeo.kernels import spline_arithmetic
from diffeo.kernels.compiling import Region
from diffeo.kernels.dispatch import TYPES, can_run
from diffeo.kernels.private import apply_directly
from diffeo.kernels.recording import RecordedLoop
from diffeo.kernels.spline_arithmetic import Limits

SCALARS = 16384  # of a typical call


def map_by_spline(
    v: Tensor, params: Tensor, inverse: bool, limits: Limits, known: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The spline (or its inverse) at v, and the log-slope of that direction.

    `params` has shape (3K − 1, *v.shape), 3K + 1 with the slopes at both ends, or fewer trailing dims where scalars
    share a spline. What is `known`, the results, needs no second computation where the gradient is by hand.
    """
    if not spline_arithmetic.owned(v, params):
        params = params.reshape(len(params), *(1,) * (v.ndim + 1 - params.ndim), *params.shape[1:])
        return _direction(inverse)(v, params, limits)
    if torch.compiler.is_exporting() or (torch.compiler.is_dynamo_compiling() and v.dtype != params.dtype):
        return _direction(inverse)(v, params, limits)
    if torch.compiler.is_dynamo_compiling():
        return TracedSpline.apply(v, params, inverse, *_constants(limits))  # pyright: ignore[reportReturnType]
    return apply_directly(Spline, v, params, inverse, limits, *(known or ()))


def _direction(inverse: bool) -> Callable[[Tensor, Tensor, Limits], tuple[Tensor, Tensor]]:
    return spline_arithmetic.inverse if inverse else spline_arithmetic.forward


class Spline(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, params: Tensor, inverse: bool, limits: Limits, *known: Tensor) -> tuple[Tensor, ...]:
        if known:
            return tuple(t.clone() for t in known)
        if can_run(v, params) and _loop(inverse, *limits).is_compiled(v.dtype):
            return _run(v, params, inverse, *_constants(limits))
        return _direction(inverse)(v, params, limits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        v, params, ctx.inverse, ctx.limits, *known = inputs
        ctx.rest = (None, None, *(None for _ in known))
        scalar = output[0] if ctx.inverse else v  # on the x axis
        ctx.save_for_backward(scalar, params)
        ctx.save_for_forward(scalar, params)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, params = ctx.saved_tensors
        # for second derivatives, plain operations, which autograd can follow
        simple = not torch.is_grad_enabled() and can_run(x, params, grad, grad_log)
        if simple and _backward_loop(ctx.inverse, *ctx.limits).is_compiled(x.dtype):
            return *_run_backward(x, params, grad, grad_log, ctx.inverse, *_constants(ctx.limits)), *ctx.rest
        return *spline_arithmetic.backward(x, params, grad, grad_log, ctx.inverse, ctx.limits), *ctx.rest

    @staticmethod
    def jvp(ctx: Any, dv: Tensor | None, dparams: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:  # pyright: ignore
        x, params = ctx.saved_tensors
        dv = torch.zeros_like(x) if dv is None else dv
        dparams = torch.zeros_like(params) if dparams is None else dparams

        def pull(grad: Tensor, grad_log: Tensor) -> tuple[Tensor, Tensor]:
            return spline_arithmetic.backward(x, params, grad, grad_log, ctx.inverse, ctx.limits)

        zero = torch.zeros_like(x)  # the backward pass is linear in the gradients, and forward mode its transpose
        return torch.func.vjp(pull, zero, zero)[1]((dv, dparams))


class TracedSpline(torch.autograd.Function):
    """What a compiler sees: two operators, without a gradient of their own that would cost each call of them."""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, params: Tensor, inverse: bool, bins: int, limits: list[float]
    ) -> tuple[Tensor, Tensor]:
        out, log = _operator(v, params, inverse, bins, limits)
        ctx.constants = inverse, bins, limits
        ctx.save_for_backward(out if inverse else v, params)
        return out, log

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, params = ctx.saved_tensors
        grads = grad.to(x.dtype), grad_log.to(x.dtype)
        return *_backward_operator(x, params, *grads, *ctx.constants), None, None, None


# not `torch.library.custom_op`, which checks every call for aliases
_LIBRARY = torch.library.Library("diffeo", "FRAGMENT")
_CONSTANTS = "bool inverse, int bins, float[] limits) -> (Tensor, Tensor)"
_LIBRARY.define(f"spline(Tensor v, Tensor params, {_CONSTANTS}")
_LIBRARY.define(f"spline_backward(Tensor x, Tensor params, Tensor grad, Tensor grad_log, {_CONSTANTS}")
_operator, _backward_operator = torch.ops.diffeo.spline.default, torch.ops.diffeo.spline_backward.default


def _run(v: Tensor, params: Tensor, inverse: bool, bins: int, limits: list[float]) -> tuple[Tensor, ...]:
    make = _loop if v.is_cpu and params.is_cpu and v.dtype == params.dtype and v.dtype in TYPES else _kernel
    return make(inverse, bins, *limits)(_laid_out(v), _laid_out(params))


def _run_backward(
    x: Tensor, params: Tensor, grad: Tensor, grad_log: Tensor, inverse: bool, bins: int, limits: list[float]
) -> tuple[Tensor, ...]:
    same = all(t.is_cpu and t.dtype == x.dtype for t in (x, params, grad, grad_log))
    make = _backward_loop if same and x.dtype in TYPES else _backward_kernel
    return make(inverse, bins, *limits)(_laid_out(x), _laid_out(params), _laid_out(grad), _laid_out(grad_log))


_LIBRARY.impl("spline", _run, "CompositeExplicitAutograd")
_LIBRARY.impl("spline_backward", _run_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("diffeo::spline", lib=_LIBRARY)
def _(v: Tensor, params: Tensor, inverse: bool, bins: int, limits: list[float]) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape)


@torch.library.register_fake("diffeo::spline_backward", lib=_LIBRARY)
def _(
    x: Tensor, params: Tensor, grad: Tensor, grad_log: Tensor, inverse: bool, bins: int, limits: list[float]
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), params.new_empty(params.shape)


def _laid_out(t: Tensor) -> Tensor:
    return t.contiguous().resolve_neg()


def _flattened(kernel: Region) -> Callable[..., tuple[Tensor, Tensor]]:
    """The kernel for scalars of any shape."""

    def run(v: Tensor, params: Tensor, *grads: Tensor) -> tuple[Tensor, Tensor]:
        rows = (t.reshape(-1).contiguous() for t in (v, *grads))  # what is flat already may still have gaps
        first, second = kernel(next(rows), params.reshape(len(params), -1).contiguous(), *rows)
        return first.view(v.shape), second.view(params.shape if grads else v.shape)

    return run


def _constants(limits: Limits) -> tuple[int, list[float]]:
    return limits.bins, [float(value) for value in limits[1:]]


def _limits(bins: int, *rest: float) -> Limits:
    *sizes, ends = rest
    return Limits(bins, *sizes, ends=bool(ends))


def _function(inverse: bool, limits: Limits) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(v: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return _direction(inverse)(v, params, limits)

    return run


def _backward_function(inverse: bool, limits: Limits) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, params: Tensor, grad: Tensor, grad_log: Tensor) -> tuple[Tensor, Tensor]:
        return spline_arithmetic.backward(x, params, grad, grad_log, inverse, limits)

    return run


@cache
def _kernel(inverse: bool, bins: int, *rest: float) -> Callable[..., tuple[Tensor, Tensor]]:
    return _flattened(Region(_function(inverse, _limits(bins, *rest)), free=2, typical=SCALARS))


@cache
def _backward_kernel(inverse: bool, bins: int, *rest: float) -> Callable[..., tuple[Tensor, Tensor]]:
    return _flattened(Region(_backward_function(inverse, _limits(bins, *rest)), free=4, typical=SCALARS))


@cache
def _loop(inverse: bool, bins: int, *rest: float) -> RecordedLoop:
    limits = _limits(bins, *rest)
    return RecordedLoop(_function(inverse, limits), (None, limits.n_params), _kernel(inverse, bins, *rest))


@cache
def _backward_loop(inverse: bool, bins: int, *rest: float) -> RecordedLoop:
    limits = _limits(bins, *rest)
    planes = (None, limits.n_params, None, None)
    return RecordedLoop(_backward_function(inverse, limits), planes, _backward_kernel(inverse, bins, *rest))
