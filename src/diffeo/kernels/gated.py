"""WaveNets over frames on CPUs as one operation, in C (`gated.c`), with their own gradient.

Frames lie one after the other, each with all its channels: what a convolution sees is one run of memory, which products
read where it is, and gates, masks and sums are done while it is in the cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.kernels import native, process
from diffeo.kernels.convolution import pull_plainly
from diffeo.kernels.dispatch import can_read, can_run
from diffeo.kernels.native import c_file, prelude, tiles
from diffeo.kernels.perceptron import WIDEST, WORK, split_like


class Gated(NamedTuple):
    """h₀ = E x; hᵢ₊₁ = hᵢ + Aᵢ gᵢ; Σ Bᵢ gᵢ through ReLU and a last layer; gᵢ = tanh(a) σ(b), (a, b) = Nᵢ ∗ hᵢ + given.

    Frames that do not count are zero in every layer.
    """

    x: Tensor  # (n, T, channels)
    weights: Sequence[Tensor]  # of convolutions: E, N₀ … , (A₀, B₀) … of which the last has no A, and the last layer
    biases: Sequence[Tensor]
    apart: tuple[int, ...]  # frames between what each Nᵢ sees
    given: Tensor | None  # (n, 2 · hidden · layers), or none
    counts: Tensor | None  # (n, T), 0 where frames do not count and 1 where they do, or none
    dropped: Tensor | None  # (layers, n, T, hidden), factors of gᵢ, or none

    @property
    def optional(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.given, self.counts, self.dropped) if t is not None)


def fits(whole: Gated) -> bool:
    """Whether this one runs as one operation, if x `may_run` so; wrong shapes are left to layers, which name them."""
    x, weights, biases, apart, given, _, dropped = whole
    # compilers have operations of their own for it
    if torch.compiler.is_dynamo_compiling() or not can_run(x, *weights, *biases, *whole.optional):
        return False
    layers, (hidden, channels, one), taps = len(apart), weights[0].shape, weights[1].shape[2]
    near = [(2 * hidden, hidden, taps)] * layers
    mix = [(2 * hidden, hidden, 1)] * (layers - 1) + [(hidden, hidden, 1)]
    shapes = [(hidden, channels, one), *near, *mix, (weights[-1].shape[0], hidden, 1)]
    if [tuple(w.shape) for w in weights] != shapes or [len(b) for b in biases] != [w[0] for w in shapes]:
        return False
    if one != 1 or taps % 2 == 0 or channels != x.shape[2] or x.numel() == 0 or max(hidden, channels) > WIDEST:
        return False
    if given is not None and given.shape != (len(x), 2 * hidden * layers):
        return False
    return (dropped is None or dropped.shape == (layers, *x.shape[:2], hidden)) and _library(x.dtype) is not None


def run(whole: Gated, planes: int) -> Tensor:
    """Its value, (n, T, out / planes, planes), laid out (planes, n, T, out / planes); for what `fits`."""
    inputs = [whole.x, *whole.weights, *whole.biases, *whole.optional]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        x, weights, biases, apart, given, counts, dropped = whole
        found: Any = Differentiable.apply(planes, apart, counts, dropped, x, given, *weights, *biases)
        return found
    return _run(whole, planes, False)[0]


def _run(whole: Gated, planes: int, keep: bool) -> tuple[Tensor, Tensor]:
    """The output, and what a backward pass needs."""
    x = whole.x
    stack, held = _stack(whole, planes)
    library, threads = _require(x.dtype), _threads(whole)
    at = ctypes.byref(stack)
    kept, room = x.new_empty(library.kept_size(at, keep)), x.new_empty(library.forward_size(at, threads))
    out = x.new_empty(planes, *x.shape[:2], stack.outputs // planes)
    library.gated_forward(at, keep, kept.data_ptr(), room.data_ptr(), out.data_ptr(), threads)
    del held
    return out.movedim(0, -1), kept


class Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        planes: int,
        apart: tuple[int, ...],
        counts: Tensor | None,
        dropped: Tensor | None,
        x: Tensor,
        given: Tensor | None,
        *layers: Tensor,
    ) -> Tensor:
        half = len(layers) // 2
        out, kept = _run(Gated(x, layers[:half], layers[half:], apart, given, counts, dropped), planes, True)
        ctx.apart = apart
        ctx.save_for_backward(kept, counts, dropped, x, given, *layers)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        kept, counts, dropped, x, given, *layers = ctx.saved_tensors
        half, planes = len(layers) // 2, grad.shape[-1]

        def whole(x: Tensor, given: Tensor | None, *layers: Tensor) -> Gated:
            return Gated(x, layers[:half], layers[half:], ctx.apart, given, counts, dropped)

        none = (None, None, None, None)
        # it is to be differentiated again, or many at once: of operations that can be
        if torch.is_grad_enabled() or not can_read(grad):
            pulled = pull_plainly(lambda *inputs: _run_plainly(whole(*inputs), planes), x, given, layers, grad)
            return *none, *pulled
        stack, held = _stack(whole(x, given, *layers), planes)
        library, threads = _require(x.dtype), _threads(whole(x, given, *layers))
        at, (of_sequence, of_frame, of_channel, of_plane) = ctypes.byref(stack), grad.stride()
        room = x.new_empty(library.backward_size(at, threads))
        g_x, g_layers = x.new_empty(x.shape), x.new_empty(sum(t.numel() for t in layers))
        g_given = None if given is None else x.new_empty(given.shape)
        library.gated_backward(
            *(at, kept.data_ptr(), room.data_ptr(), grad.data_ptr(), of_plane, of_sequence, of_frame, of_channel),
            *(g_x.data_ptr(), g_layers.data_ptr(), None if g_given is None else g_given.data_ptr(), threads),
        )
        del held
        return *none, g_x, g_given, *split_like(g_layers, layers)


def _run_plainly(whole: Gated, planes: int) -> Tensor:
    """What `run` gives, by operations with gradients of their own."""
    x, weights, biases, apart, given, counts, dropped = whole
    layers, hidden = len(apart), weights[0].shape[0]
    there = 1 if counts is None else counts.unsqueeze(1)
    h = F.conv1d(x.mT, weights[0], biases[0])
    h = h if counts is None else torch.where(counts.unsqueeze(1) != 0, h, 0.0)
    shares = None if given is None else given.unsqueeze(-1).chunk(layers, 1)
    total: Any = 0
    for i, step in enumerate(apart):
        near, mix = 1 + i, 1 + layers + i
        reach = step * (weights[near].shape[2] // 2)
        both = F.conv1d(h, weights[near], biases[near], padding=reach, dilation=step)
        value, gate = (both if shares is None else both + shares[i]).chunk(2, 1)
        units = value.tanh() * gate.sigmoid()
        units = units if dropped is None else units * dropped[i].mT
        found = F.conv1d(units, weights[mix], biases[mix])
        total = total + found[:, -hidden:]
        if i < layers - 1:
            h = (h + found[:, :hidden]) * there
    return F.conv1d(total.relu(), weights[-1], biases[-1]).mT.unflatten(-1, (-1, planes))


class Stack(ctypes.Structure):
    """As in the C."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("sequences", "frames", "inputs", "hidden", "layers", "taps")),
        *((name, ctypes.c_long) for name in ("outputs", "planes")),
        *((name, ctypes.c_void_p) for name in ("apart", "weights", "biases", "x")),
        *((name, ctypes.c_long) for name in ("x_sequence", "x_frame", "x_channel")),
        *((name, ctypes.c_void_p) for name in ("given", "counts", "dropped")),
    ]


def _stack(whole: Gated, planes: int) -> tuple[Any, tuple]:
    """`Stack` of the C; and what has to live as long."""
    x, weights, biases, apart, *optional = whole
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    optional = [None if t is None else t.contiguous() for t in optional]
    pointers = [(ctypes.c_void_p * len(some))(*(t.data_ptr() for t in some)) for some in (weights, biases)]
    steps = (ctypes.c_long * len(apart))(*apart)
    sizes = *x.shape, weights[0].shape[0], len(apart), weights[1].shape[2], weights[-1].shape[0], planes
    arrays = (ctypes.addressof(array) for array in (steps, *pointers))
    addresses = (None if t is None else t.data_ptr() for t in optional)
    stack = Stack(*sizes, *arrays, x.data_ptr(), *x.stride(), *addresses)
    return stack, (weights, biases, optional, pointers, steps, x)


def _threads(whole: Gated) -> int:
    products = whole.x.shape[0] * whole.x.shape[1] * sum(w.numel() for w in whole.weights)
    return process.threads(products // WORK)


def _require(dtype: torch.dtype) -> Any:
    library = _library(dtype)
    if library is None:
        raise RuntimeError("gated: there is no library for this dtype")
    return library


@cache
def _library(dtype: torch.dtype) -> Any:
    """The library for numbers of a dtype, or None where it cannot be made."""
    library: Any = native.load(prelude(dtype) + tiles() + c_file("gated.c"), "WaveNets")
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    for size in (library.kept_size, library.forward_size, library.backward_size):
        size.argtypes, size.restype = [pointer, flag], long
    library.gated_forward.argtypes = [pointer, flag, *[pointer] * 3, flag]
    library.gated_backward.argtypes = [*[pointer] * 4, *[long] * 4, *[pointer] * 3, flag]
    return library
