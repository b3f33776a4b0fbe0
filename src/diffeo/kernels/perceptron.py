"""Multilayer perceptrons on CPUs as one operation, in C (`perceptron.c`), with its own gradient.

A block of rows goes through all layers while it is in the cache of a core, which has no work to hand to the others in
between. At the sizes of conditioners, this takes half the time of one product after the other. Products with weights
that a mask makes zero are left out by blocks. Compiled models run it, and uncompiled ones within `compiled_kernels`.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from diffeo.kernels import native, process
from diffeo.kernels.dispatch import can_pull, can_run, entry
from diffeo.kernels.layout import batch_inner
from diffeo.kernels.native import c_file, prelude, tiles
from diffeo.kernels.private import has_hooks, mark_constant

WIDEST = 512  # inputs of a layer; far wider ones are for libraries of matrix products
SHARE = 64  # rows for which another thread pays, and
WORK = 1 << 20  # products, since tiny ones are done before it has woken
SHARES = 3  # of the rows of a backward pass, for each thread: one that is held up does fewer
# value and slope at x, and whether the slope at x is that at its value; a NaN stays one
ACTIVATIONS = {
    "relu": ("x < 0 ? 0 : x", "x > 0", "1"),
    "leaky": ("x < 0 ? x * (real){0} : x", "x > 0 ? 1 : (real){0}", "((real){0} >= 0)"),
    # both of one sigmoid, which the compiler sees
    "silu": ("x * (1 / (1 + FN(exp)(-x)))", "(1 / (1 + FN(exp)(-x))) * (1 + x * (1 - 1 / (1 + FN(exp)(-x))))", "0"),
}
_POINTER = ctypes.c_void_p
# of a perceptron in C
LAYERS = [
    *(ctypes.c_long, ctypes.c_int, _POINTER),
    *(_POINTER, ctypes.c_long, ctypes.c_long, _POINTER, ctypes.c_int),
    *(_POINTER, _POINTER, _POINTER),
]
FUNCTIONS = """
static inline real value(real x) {{ return {}; }}
static inline real slope(real x) {{ return {}; }}
#define SAME_SLOPE {}
"""


class Perceptron(NamedTuple):
    """bₙ + Wₙ a(… a(b₁ + W₁ x)), to be run as one operation; a net that can be seen so gives it (`as_perceptron`)."""

    activation: str  # by the name that `describe` gives it
    x: Tensor
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    bounds: Sequence[Tensor] = ()  # of weights that a mask makes zero, one for each layer: see `run`
    enter: bool = False  # whether x goes through the activation first


def describe(activation: nn.Module) -> str | None:
    """The name of an activation that is known here."""
    if has_hooks(activation):
        return None
    if type(activation) is nn.LeakyReLU:
        return f"leaky {float(activation.negative_slope)!r}"
    return {nn.ReLU: "relu", nn.SiLU: "silu"}.get(type(activation))


def activation_source(name: str) -> str:
    """`value` and `slope` of the activation and SAME_SLOPE, in C."""
    kind, *options = name.split()
    return FUNCTIONS.format(*(form.format(*options) for form in ACTIVATIONS[kind]))


def source(name: str) -> str:
    """Perceptrons with this activation, in C, to be written after the tiles."""
    return activation_source(name) + c_file("perceptron.c")


def take_apart(modules: Iterable[nn.Module], kinds: tuple[type, ...]) -> tuple[str, list[nn.Linear]] | None:
    """The activation and the layers of (activation, layer of one of these kinds) pairs, if these are what they are."""
    parts = [m for m in modules if not (type(m) is nn.Dropout and not has_hooks(m) and not (m.training and m.p > 0))]
    names, layers = {describe(m) for m in parts[::2]}, parts[1::2]
    name = next(iter(names), None)
    if name is None or len(names) > 1 or len(parts) % 2 or not all(is_unmodified(layer, kinds) for layer in layers):
        return None
    return name, layers  # pyright: ignore[reportReturnType] (they are of these kinds)


def is_unmodified(layer: nn.Module, kinds: tuple[type, ...]) -> bool:
    """Whether the layer does what its kind does, and nothing else."""
    return type(layer) in kinds and layer.bias is not None and not has_hooks(layer)


def fits(job: Perceptron) -> bool:
    """Whether this one runs as one operation. Not where shapes do not match, which PyTorch's layers say clearly."""
    activation, x, weights, biases, _, _ = job
    widths = [x.shape[-1], *(w.shape[0] for w in weights)]
    if [tuple(w.shape) for w in weights] != list(zip(widths[1:], widths, strict=False)):
        return False
    if [b.shape[0] for b in biases] != widths[1:] or max(widths[:-1]) > WIDEST or min(widths) == 0:
        return False
    return can_run(x, *weights, *biases) and is_available(activation, x.dtype)


def run(job: Perceptron, planes: int = 1) -> Tensor:
    """Its value, of shape (*batch, out / planes, planes); in memory (planes, out / planes, *batch).

    `job.bounds`, if any, are (2, out) int32 tensors, one for each layer: from which input to which (not included) the
    weights of an output may differ from zero. Gradients of other weights have any value.
    """
    activation, x, weights, biases, bounds, enter = job
    rows = x.reshape(-1, x.shape[-1])
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases))
    if torch.compiler.is_compiling():
        rows = batch_inner(rows)  # the layout in which scalar maps run
    if keep:
        options = activation, enter, planes
        out: Any = DifferentiablePerceptron.apply(options, len(weights), rows, *weights, *biases, *bounds)
    else:
        layers = list(weights), list(biases), list(bounds)
        out, _ = entry(_run, _forward)(rows, *layers, activation, enter, planes, False)
    params = out.unflatten(0, (planes, -1)).permute(2, 1, 0)
    return params.unflatten(0, x.shape[:-1]) if x.ndim > 1 else params.squeeze(0)


# not `torch.library.custom_op`, which checks every call for aliases
_LIBRARY = torch.library.Library("diffeo", "FRAGMENT")
_LAYERS = "Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] bounds"
_OPTIONS = "str name, bool enter, int planes"
_LIBRARY.define(f"perceptron({_LAYERS}, {_OPTIONS}, bool keep) -> (Tensor, Tensor)")
_LIBRARY.define(f"perceptron_backward({_LAYERS}, Tensor inner, Tensor grad, {_OPTIONS}) -> (Tensor, Tensor)")
_forward, _backward = torch.ops.diffeo.perceptron.default, torch.ops.diffeo.perceptron_backward.default


def _run(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bounds: list[Tensor],
    name: str,
    enter: bool,
    planes: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The output, (out, rows), and the pre-activations of hidden layers, as `forward` of the C keeps them."""
    sizes = find_sizes(name, x.dtype, weights)
    rows = x.shape[0]
    out = x.new_empty(sizes.outputs, rows)
    inner = x.new_empty(rows * sizes.inner if keep else 0)
    x, weights, biases = x.resolve_neg(), [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    failed = sizes.library.forward(
        *arguments(sizes, x, weights, biases, bounds, enter),
        inner.data_ptr() if keep else None,
        out.data_ptr(),
        planes,
        threads(rows, sizes.total),
    )
    if failed:
        raise MemoryError("perceptron: not enough memory for a block of rows")
    return out, inner


def _run_backward(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bounds: list[Tensor],
    inner: Tensor,
    grad: Tensor,
    name: str,
    enter: bool,
    planes: int,
) -> tuple[Tensor, Tensor]:
    """The gradients of x and, one after the other, of all weights and all biases."""
    sizes = find_sizes(name, x.dtype, weights)
    rows, count = x.shape[0], threads(x.shape[0], sizes.total)
    shares = share_out(rows // SHARE, rows * sizes.total // WORK)
    g_x, g_layers = x.new_empty(x.shape[1], x.shape[0]).T, x.new_empty(sizes.total)
    sums = x.new_empty((shares - 1) * sizes.total)  # of the other shares
    x, weights, biases = x.resolve_neg(), [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    grad = grad.contiguous().resolve_neg()
    layers = arguments(sizes, x, weights, biases, bounds, enter)
    results = grad.data_ptr(), planes, g_x.data_ptr(), g_layers.data_ptr(), sums.data_ptr(), sizes.total, shares, count
    if sizes.library.backward(*layers, inner.data_ptr(), *results):
        raise MemoryError("perceptron: not enough memory for a block of rows")
    return g_x, g_layers


_LIBRARY.impl("perceptron", _run, "CPU")
_LIBRARY.impl("perceptron_backward", _run_backward, "CPU")


@torch.library.register_fake("diffeo::perceptron", lib=_LIBRARY)
def _(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bounds: list[Tensor],
    name: str,
    enter: bool,
    planes: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    sizes = find_sizes(name, x.dtype, weights)
    return x.new_empty(sizes.outputs, x.shape[0]), x.new_empty(x.shape[0] * sizes.inner if keep else 0)


@torch.library.register_fake("diffeo::perceptron_backward", lib=_LIBRARY)
def _(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bounds: list[Tensor],
    inner: Tensor,
    grad: Tensor,
    name: str,
    enter: bool,
    planes: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1], x.shape[0]).T, x.new_empty(find_sizes(name, x.dtype, weights).total)


class DifferentiablePerceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: tuple[str, bool, int], count: int, x: Tensor, *layers: Tensor) -> Tensor:
        out, inner = entry(_run, _forward)(x, *_sort(layers, count), *options, True)
        ctx.options, ctx.count = options, count
        ctx.save_for_backward(x, *layers, inner)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, *layers, inner = ctx.saved_tensors
        weights, biases, bounds = _sort(layers, ctx.count)
        if can_pull(grad):
            call = entry(_run_backward, _backward)
            g_x, flat = call(x, weights, biases, bounds, inner, grad.to(x.dtype), *ctx.options)
            gradients = split_like(flat, [*weights, *biases])
        else:
            g_x, *gradients = _pull_plainly(x, weights, biases, grad, *ctx.options)
        return None, None, g_x, *gradients, *[None] * len(bounds)


def _sort(layers: Sequence[Tensor], count: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, biases and bounds."""
    return list(layers[:count]), list(layers[count : 2 * count]), list(layers[2 * count :])


def split_like(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Numbers one after the other as tensors of these shapes."""
    return [part.view(t.shape) for part, t in zip(flat.split([t.numel() for t in like]), like, strict=True)]


def _pull_plainly(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], grad: Tensor, name: str, enter: bool, planes: int
) -> tuple[Tensor, ...]:
    """What `_run_backward` finds, of operations with gradients of their own."""
    inputs = [x, *weights, *biases]
    with torch.enable_grad():
        # x may depend on the same weights; that path is not differentiated here
        inputs = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs]
        h, count = inputs[0], len(weights)
        for i in range(count):
            h = F.linear(activate(name, h) if i or enter else h, inputs[1 + i], inputs[1 + count + i])
        out = h.T.unflatten(0, (-1, planes)).transpose(0, 1).flatten(0, 1)
    return torch.autograd.grad(out, inputs, grad, create_graph=True)


def activate(name: str, x: Tensor) -> Tensor:
    kind, *options = name.split()
    return F.leaky_relu(x, float(options[0])) if kind == "leaky" else F.relu(x) if kind == "relu" else F.silu(x)


class Sizes(NamedTuple):
    """What follows from the shapes of the weights."""

    library: Any
    layers: int
    widths: bytes
    outputs: int
    inner: int  # numbers that are kept for each row
    total: int  # weights and biases
    addresses: struct.Struct


def find_sizes(name: str, dtype: torch.dtype, weights: list[Tensor]) -> Sizes:
    """Those of the library of an activation."""
    return sizes_of(require(name, dtype), weights[0].shape[1], *[w.shape[0] for w in weights])


@cache
def sizes_of(library: Any, *widths: int) -> Sizes:
    """Those of a library that holds perceptrons."""
    count = len(widths) - 1
    total = sum((a + 1) * b for a, b in pairwise(widths))
    inner = sum(library.distance(width) for width in widths[1:-1])
    packed, addresses = struct.pack(f"{count + 1}l", *widths), struct.Struct(f"{count}P")
    return Sizes(library, count, packed, widths[-1], inner, total, addresses)


def arguments(
    sizes: Sizes,
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bounds: list[Tensor],
    enter: bool,
    which: Tensor | None = None,
) -> tuple:
    """What functions in C take of a perceptron, as `LAYERS`; pointers stay valid as long as the tensors."""
    pack = sizes.addresses.pack
    return (
        x.shape[0],
        len(weights),
        sizes.widths,
        x.data_ptr(),
        *x.stride(),
        None if which is None else which.data_ptr(),
        enter,
        pack(*[w.data_ptr() for w in weights]),
        pack(*[b.data_ptr() for b in biases]),
        pack(*[b.data_ptr() for b in bounds]) if bounds else None,
    )


def share_out(units: int, worth: int) -> int:
    """How many shares a backward pass makes of so many units of work, worth so many threads."""
    # as many as if no thread slept, so that a busy machine changes no rounding
    awake = min(process.thread_limit.threads, units, worth)
    return 1 if awake <= 1 else min(SHARES * awake, units)


def threads(rows: int, weights: int) -> int:
    """How many threads pay for a perceptron of so many weights."""
    return min(max(1, rows // SHARE), process.threads(rows * weights // WORK))


@mark_constant
def is_available(name: str, dtype: torch.dtype) -> bool:
    return _library(name, dtype) is not None


def require(name: str, dtype: torch.dtype) -> Any:
    library = _library(name, dtype)
    if library is None:
        raise RuntimeError("perceptron: this model was compiled where there is a C compiler, and here is none")
    return library


@cache
def _library(name: str, dtype: torch.dtype) -> Any:
    """The library of an activation, or None where it cannot be made."""
    library: Any = native.load(prelude(dtype) + tiles() + source(name) + c_file("convolution.c"), "perceptrons")
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    library.forward.argtypes = [*LAYERS, pointer, pointer, long, flag]
    library.backward.argtypes = [*LAYERS, pointer, pointer, long, pointer, pointer, pointer, long, long, flag]
    library.distance.argtypes, library.distance.restype = [long], long
    pictures, layers = [long, long, long, flag, pointer, pointer, pointer], [pointer, pointer]
    library.convolve.argtypes = [*pictures, pointer, *layers, *[pointer] * 4, long, flag]
    results = [pointer, pointer, pointer, long, long, flag]
    library.convolve_backward.argtypes = [*pictures, pointer, *layers, *[pointer] * 4, long, *results]
    return library
