"""Convolutional nets of three layers on CPUs as one operation, in C (`convolution.c`), with its own gradient.

A 3×3 convolution, a layer at every place, and a 3×3 convolution are a perceptron of the numbers around each place,
whose results are added up around each place. Libraries of convolutions are made for more channels than those of
couplings (`benchmarks/image_cost.py` measures both). Compiled models run it, and uncompiled ones within
`compiled_kernels`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.kernels import process
from diffeo.kernels.dispatch import can_pull, can_run, entry
from diffeo.kernels.perceptron import WIDEST, WORK, Sizes, is_available, require, share_out, sizes_of, split_like

TAPS = 9
LARGEST = 1 << 22  # numbers for the places around, which a thread keeps for a whole picture


class Convolution(NamedTuple):
    """b₃ + W₃ ∗ relu(b₂ + W₂ relu(b₁ + s + W₁ ∗ x)), to be run as one operation; ∗ is a 3×3 convolution."""

    x: Tensor  # (n, channels, H, W)
    shift: Tensor | None  # s, (n, hidden), or none
    weights: tuple[Tensor, Tensor, Tensor]  # of 3×3, 1×1 and 3×3 convolutions
    biases: tuple[Tensor, Tensor, Tensor]


def fits(job: Convolution) -> bool:
    """Whether this one runs as one operation. Not where shapes do not match, which PyTorch's layers say clearly."""
    x, shift, weights, biases = job
    if not can_run(x, *weights, *biases, *(() if shift is None else (shift,))):
        return False
    enter, mix, leave = (tuple(w.shape) for w in weights)
    hidden, out = enter[0], leave[0]
    sized = enter[1:] == (x.shape[1], 3, 3) and mix == (hidden, hidden, 1, 1) and leave == (out, hidden, 3, 3)
    sized = sized and [tuple(b.shape) for b in biases] == [(hidden,), (hidden,), (out,)]
    if not sized or max(TAPS * x.shape[1], hidden) > WIDEST or x.shape[0] == 0:
        return False
    return TAPS * out * x.shape[2] * x.shape[3] <= LARGEST and is_available("relu", x.dtype)


def run(job: Convolution, planes: int = 1) -> Tensor:
    """Its value, (n, out / planes, H, W, planes), laid out (planes, n, out / planes, H, W); of a job that `fits`."""
    x, shift = job.x, job.shift
    inputs = [x, *job.weights, *job.biases, *(() if shift is None else (shift,))]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return DifferentiableConvolution.apply(planes, x, shift, *job.weights, *job.biases)  # pyright: ignore[reportReturnType]
    return entry(_run, _forward)(x, shift, list(job.weights), list(job.biases), planes, False)[0]


# not `torch.library.custom_op`, which checks every call for aliases
_LIBRARY = torch.library.Library("diffeo", "FRAGMENT")
_INPUTS = "Tensor x, Tensor? shift, Tensor[] weights, Tensor[] biases"
_LIBRARY.define(f"convolution({_INPUTS}, int planes, bool keep) -> (Tensor, Tensor)")
_LIBRARY.define(f"convolution_backward({_INPUTS}, Tensor inner, Tensor grad) -> (Tensor, Tensor, Tensor)")
_forward, _backward = torch.ops.diffeo.convolution.default, torch.ops.diffeo.convolution_backward.default


def _run(
    x: Tensor, shift: Tensor | None, weights: list[Tensor], biases: list[Tensor], planes: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """The output, and what goes into the last activation, as `convolve` of the C keeps it."""
    sizes = sizes_in(_library(x.dtype), weights)
    out = _new_params(x, sizes, planes)
    inner, room = x.new_empty(count_kept(x, sizes) if keep else 0), x.new_empty(sizes.total)
    x, shift = x.resolve_neg(), None if shift is None else shift.contiguous().resolve_neg()
    layers = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    failed = sizes.library.convolve(
        *_arguments(sizes, x),
        None if shift is None else shift.data_ptr(),
        *addresses(sizes, *layers),
        room.data_ptr(),
        inner.data_ptr() if keep else None,
        out.data_ptr(),
        _strides(out),
        planes,
        count_threads(x, sizes),
    )
    if failed:
        raise MemoryError("convolution: not enough memory for a picture")
    return out, inner


def _run_backward(
    x: Tensor, shift: Tensor | None, weights: list[Tensor], biases: list[Tensor], inner: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the shift, and, one after the other, of all weights and all biases."""
    sizes = sizes_in(_library(x.dtype), weights)
    shares = share_out(x.shape[0], worth(x, sizes))
    g_x, g_layers = x.new_empty(x.shape), x.new_empty(sum(t.numel() for t in (*weights, *biases)))
    g_shift = x.new_zeros(0 if shift is None else x.shape[0], biases[0].shape[0])
    room = x.new_empty((1 + shares) * sizes.total)
    x, grad = x.resolve_neg(), grad.resolve_neg()
    shift = None if shift is None else shift.contiguous().resolve_neg()
    layers = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    failed = sizes.library.convolve_backward(
        *_arguments(sizes, x),
        None if shift is None else shift.data_ptr(),
        *addresses(sizes, *layers),
        room.data_ptr(),
        inner.data_ptr(),
        grad.data_ptr(),
        _strides(grad),
        grad.shape[-1],
        g_x.data_ptr(),
        None if shift is None else g_shift.data_ptr(),
        g_layers.data_ptr(),
        sizes.total,
        shares,
        count_threads(x, sizes),
    )
    if failed:
        raise MemoryError("convolution: not enough memory for a picture")
    return g_x, g_shift, g_layers


_LIBRARY.impl("convolution", _run, "CPU")
_LIBRARY.impl("convolution_backward", _run_backward, "CPU")


@torch.library.register_fake("diffeo::convolution", lib=_LIBRARY)
def _(x: Tensor, shift: Tensor | None, weights: list[Tensor], biases: list[Tensor], planes: int, keep: bool) -> Any:
    sizes = sizes_in(_library(x.dtype), weights)
    return _new_params(x, sizes, planes), x.new_empty(count_kept(x, sizes) if keep else 0)


@torch.library.register_fake("diffeo::convolution_backward", lib=_LIBRARY)
def _(x: Tensor, shift: Tensor | None, weights: list[Tensor], biases: list[Tensor], *_: Tensor) -> Any:
    g_shift = x.new_empty(0 if shift is None else x.shape[0], biases[0].shape[0])
    return x.new_empty(x.shape), g_shift, x.new_empty(sum(t.numel() for t in (*weights, *biases)))


class DifferentiableConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, planes: int, x: Tensor, shift: Tensor | None, *layers: Tensor) -> Tensor:
        out, inner = entry(_run, _forward)(x, shift, list(layers[:3]), list(layers[3:]), planes, True)
        ctx.shifted = shift is not None
        ctx.save_for_backward(x, inner, *layers, *(() if shift is None else (shift,)))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, inner, *layers = ctx.saved_tensors
        shift = layers.pop() if ctx.shifted else None
        if not can_pull(grad):
            return None, *pull_plainly(
                lambda x, shift, *layers: run_plainly(x, shift, layers, grad.shape[-1]), x, shift, layers, grad
            )
        call = entry(_run_backward, _backward)
        g_x, g_shift, flat = call(x, shift, layers[:3], layers[3:], inner, grad.to(x.dtype))
        return None, g_x, g_shift if ctx.shifted else None, *split_like(flat, layers)


def run_plainly(x: Tensor, shift: Tensor | None, layers: Sequence[Tensor], planes: int) -> Tensor:
    """What `run` gives, by operations with gradients of their own."""
    enter, mix, leave, first, second, last = layers
    h = F.conv2d(x, enter, first, padding=1)
    h = h if shift is None else h + shift[..., None, None]
    h = F.conv2d(h.relu(), mix, second).relu()
    return F.conv2d(h, leave, last, padding=1).unflatten(1, (-1, planes)).movedim(2, -1)


def pull_plainly(
    run: Callable[..., Tensor | tuple[Tensor, ...]],
    x: Tensor,
    shift: Tensor | None,
    layers: Sequence[Tensor],
    *grads: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, the shift and all layers from those of what `run` gives, by operations that have some too."""
    with torch.enable_grad():
        # x may depend on the same weights; that path is not differentiated here
        inputs = [
            None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
            for t in (x, shift, *layers)
        ]
        outputs = run(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    given = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
    ends, starts = [out for out, _ in given], [grad for _, grad in given]
    wanted = [t for t in inputs if t is not None]
    options: Any = {"create_graph": torch.is_grad_enabled(), "allow_unused": True, "materialize_grads": True}
    found = iter(torch.autograd.grad(ends, wanted, starts, **options))
    return tuple(None if t is None else next(found) for t in inputs)


def sizes_in(library: Any, weights: Sequence[Tensor]) -> Sizes:
    """Those of the perceptron in between, of a library that holds such."""
    enter, _, leave = (w.shape for w in weights)
    return sizes_of(library, TAPS * enter[1], enter[0], leave[1], TAPS * leave[0])


def _library(dtype: torch.dtype) -> Any:
    return require("relu", dtype)


def _new_params(x: Tensor, sizes: Sizes, planes: int) -> Tensor:
    n, _, height, width = x.shape
    return x.new_empty(planes, n, sizes.outputs // TAPS // planes, height, width).movedim(0, -1)


def count_kept(x: Tensor, sizes: Sizes) -> int:
    """How many numbers are kept for the backward pass: of the last hidden layer, the first being computed again."""
    return x.shape[0] * x.shape[2] * x.shape[3] * sizes.inner // 2  # both are as wide


def _arguments(sizes: Sizes, x: Tensor) -> tuple:
    """Pictures, layers and the numbers that go in, as functions in C take them."""
    n, _, height, width = x.shape
    return n, height, width, sizes.layers, sizes.widths, x.data_ptr(), _strides(x.unsqueeze(-1))


def _strides(t: Tensor) -> bytes:
    """Those of pictures, channels, planes of them, lines and places, for a tensor (n, channels, H, W, planes)."""
    picture, channel, line, place, plane = t.stride()
    return struct.pack("5l", picture, channel, plane, line, place)


def addresses(sizes: Sizes, weights: list[Tensor], biases: list[Tensor]) -> tuple[bytes, bytes]:
    pack = sizes.addresses.pack
    return pack(*[w.data_ptr() for w in weights]), pack(*[b.data_ptr() for b in biases])


def count_threads(x: Tensor, sizes: Sizes) -> int:
    """How many threads pay for these pictures, of which each is one thread's."""
    return min(x.shape[0], process.threads(worth(x, sizes)))


def worth(x: Tensor, sizes: Sizes) -> int:
    """How many threads the net is worth at these pictures."""
    return x.shape[0] * x.shape[2] * x.shape[3] * sizes.total // WORK
