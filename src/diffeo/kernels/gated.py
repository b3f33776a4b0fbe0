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
from diffeo.kernels.dispatch import can_pull, can_run, entry
from diffeo.kernels.native import c_file, prelude, tiles
from diffeo.kernels.perceptron import WIDEST, WORK, split_like
from diffeo.kernels.private import mark_constant, version

LARGEST = 1 << 31  # numbers of a weight, which the C counts by `int`
BORDER = 64  # frames of zeros at either end that cost little, however short a sequence


class Panels(NamedTuple):
    """Weights as products read them, valid while these tensors stay in their place and unchanged."""

    values: Tensor
    key: Tensor  # their addresses and version counters; of a list, a compiler would make constants
    kept: list[Tensor]  # the tensors themselves, so that their memory is not given to others


class Gated(NamedTuple):
    """h₀ = E x; hᵢ₊₁ = hᵢ + Aᵢ gᵢ; Σ Bᵢ gᵢ through ReLU and a last layer; gᵢ = tanh(a) σ(b), (a, b) = Nᵢ ∗ hᵢ + given.

    Frames that do not count are zero in every layer.
    """

    x: Tensor  # (n, T, channels)
    weights: Sequence[Tensor]  # of convolutions: E, N₀ … , (A₀, B₀) … of which the last has no A, and the last layer
    biases: Sequence[Tensor]
    dilations: tuple[int, ...]  # frames between what each Nᵢ sees
    given: Tensor | None  # (n, F, 2 · hidden · layers), of slower frames, or none
    counts: Tensor | None  # (n, T), 0 where frames do not count and 1 where they do, or none
    # frames of T from one slower frame to the next, and the place of the first; none: F is 1
    slower: tuple[float, float] | None = None
    dropped: Tensor | None = None  # (layers, n, T, hidden), factors of gᵢ, or none
    panels: Panels | None = None

    @property
    def optional(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.given, self.counts, self.dropped) if t is not None)


def fits(job: Gated, planes: int, out: int) -> bool:
    """Whether this one runs as one operation. Not where shapes do not match, which PyTorch's layers say clearly."""
    x, weights, biases, dilations, given, _, slower, dropped, _ = job
    if not can_run(x, *weights, *biases, *job.optional) or any(w.ndim != 3 or w.numel() >= LARGEST for w in weights):
        return False
    layers, (hidden, channels, one), taps = len(dilations), weights[0].shape, weights[1].shape[2]
    near = [(2 * hidden, hidden, taps)] * layers
    mix = [(2 * hidden, hidden, 1)] * (layers - 1) + [(hidden, hidden, 1)]
    shapes = [(hidden, channels, one), *near, *mix, (planes * out, hidden, 1)]
    if [tuple(w.shape) for w in weights] != shapes or [tuple(b.shape) for b in biases] != [w[:1] for w in shapes]:
        return False
    reach = max(dilations) * (taps // 2)
    if reach > BORDER and reach > 2 * x.shape[1]:  # frames of zeros at both ends would be most of the work
        return False
    if one != 1 or taps % 2 == 0 or channels != x.shape[2] or x.numel() == 0 or max(hidden, channels) > WIDEST:
        return False
    if given is None:
        reads = slower is None
    else:
        reads = given.ndim == 3 and given.shape[::2] == (len(x), 2 * hidden * layers) and given.shape[1] > 0
        reads = reads and (slower is not None or given.shape[1] == 1)
    if not reads:
        return False
    return (dropped is None or dropped.shape == (layers, *x.shape[:2], hidden)) and is_available(x.dtype)


def run(job: Gated, planes: int) -> Tensor:
    """Its value, (n, T, out / planes, planes), laid out (planes, n, T, out / planes); for what `fits`."""
    x, weights, biases, dilations, given, counts, slower, dropped, panels = job
    inputs = [x, *weights, *biases, *job.optional]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        found: Any = DifferentiableGated.apply(planes, dilations, slower, counts, dropped, x, given, *weights, *biases)
        return found.movedim(0, -1)
    call = entry(_run, _forward)
    net, there = (list(weights), list(biases), list(dilations)), (given, counts, dropped, list(slower or ()))
    values, key = (None, None) if panels is None else panels[:2]
    return call(x, *net, *there, values, key, planes, False)[0].movedim(0, -1)


def pack(job: Gated, planes: int) -> Panels | None:
    """The weights of what `fits` as products read them, for many calls; None for inference tensors,
    whose changes are not counted."""
    if any(w.is_inference() for w in job.weights):
        return None
    stack, held = _stack(job, planes)
    library, at = _require(job.x.dtype), ctypes.byref(stack)
    values = job.x.new_empty(library.panels_size(at))
    library.gated_pack(at, values.data_ptr())
    del held
    return Panels(values, torch.tensor(_key(job.weights), device="cpu"), [w.detach() for w in job.weights])


def _key(weights: Sequence[Tensor]) -> list[int]:
    """A key that changes when a weight is replaced or changed in place."""
    return [n for w in weights for n in (w.data_ptr(), version(w))]


# not `torch.library.custom_op`, which checks every call for aliases
_LIBRARY = torch.library.Library("diffeo", "FRAGMENT")
_INPUTS = (
    "Tensor x, Tensor[] weights, Tensor[] biases, int[] dilations, Tensor? given, Tensor? counts, Tensor? dropped, "
    "float[] slower"
)
_LIBRARY.define(f"gated({_INPUTS}, Tensor? panels, Tensor? key, int planes, bool keep) -> (Tensor, Tensor)")
_LIBRARY.define(f"gated_backward({_INPUTS}, Tensor kept, Tensor grad) -> (Tensor, Tensor, Tensor)")
_forward, _backward = torch.ops.diffeo.gated.default, torch.ops.diffeo.gated_backward.default


def _run(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    dilations: list[int],
    given: Tensor | None,
    counts: Tensor | None,
    dropped: Tensor | None,
    slower: list[float],
    panels: Tensor | None,
    key: Tensor | None,
    planes: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The output, (planes, n, T, out / planes), and what a backward pass needs."""
    if key is not None and panels is not None and (panels.dtype != x.dtype or key.tolist() != _key(weights)):
        panels = None  # those of other weights
    job = Gated(x, weights, biases, tuple(dilations), given, counts, _pair(slower), dropped)
    stack, held = _stack(job, planes, panels)
    library, threads, at = _require(x.dtype), _threads(job), ctypes.byref(stack)
    kept, room = x.new_empty(library.kept_size(at, keep)), x.new_empty(library.forward_size(at, threads))
    out = x.new_empty(planes, *x.shape[:2], stack.outputs // planes)
    library.gated_forward(at, keep, kept.data_ptr(), room.data_ptr(), out.data_ptr(), threads)
    del held
    return out, kept if keep else x.new_empty(0)


def _run_backward(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    dilations: list[int],
    given: Tensor | None,
    counts: Tensor | None,
    dropped: Tensor | None,
    slower: list[float],
    kept: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of what was given, and, one after the other, of all weights and all biases."""
    job = Gated(x, weights, biases, tuple(dilations), given, counts, _pair(slower), dropped)
    stack, held = _stack(job, grad.shape[0])
    library, threads, at = _require(x.dtype), _threads(job), ctypes.byref(stack)
    room, g_x = x.new_empty(library.backward_size(at, threads)), x.new_empty(x.shape)
    g_layers = x.new_empty(sum(t.numel() for t in (*weights, *biases)))
    g_given = x.new_empty(0 if given is None else given.shape)
    library.gated_backward(
        *(at, kept.data_ptr(), room.data_ptr(), grad.data_ptr(), *grad.stride()),
        *(g_x.data_ptr(), g_layers.data_ptr(), None if given is None else g_given.data_ptr(), threads),
    )
    del held
    return g_x, g_given, g_layers


def _pair(slower: list[float]) -> tuple[float, float] | None:
    return (slower[0], slower[1]) if slower else None


_LIBRARY.impl("gated", _run, "CPU")
_LIBRARY.impl("gated_backward", _run_backward, "CPU")


@torch.library.register_fake("diffeo::gated", lib=_LIBRARY)
def _(x: Tensor, weights: list[Tensor], biases: Any, dilations: list[int], *rest: Any) -> tuple[Tensor, Tensor]:
    (n, frames, _), (*_, planes, keep), (hidden, *_) = x.shape, rest, weights[0].shape
    out = x.new_empty(planes, n, frames, weights[-1].shape[0] // planes)
    unit, border = _require(x.dtype).vector_size(), max(dilations) * (weights[1].shape[2] // 2)
    wide = (hidden + unit - 1) // unit * unit
    size = n * wide * (len(dilations) * (frames + 2 * border + 2 * frames) + frames)
    return out, x.new_empty(size if keep else 0)


@torch.library.register_fake("diffeo::gated_backward", lib=_LIBRARY)
def _(x: Tensor, weights: list[Tensor], biases: list[Tensor], dilations: Any, given: Tensor | None, *_: Any) -> Any:
    g_layers = x.new_empty(sum(t.numel() for t in (*weights, *biases)))
    return x.new_empty(x.shape), x.new_empty(0 if given is None else given.shape), g_layers


class DifferentiableGated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        planes: int,
        dilations: tuple[int, ...],
        slower: tuple[float, float] | None,
        counts: Tensor | None,
        dropped: Tensor | None,
        x: Tensor,
        given: Tensor | None,
        *layers: Tensor,
    ) -> Tensor:
        half = len(layers) // 2
        net = list(layers[:half]), list(layers[half:]), list(dilations)
        there = given, counts, dropped, list(slower or ())
        out, kept = entry(_run, _forward)(x, *net, *there, None, None, planes, True)
        ctx.dilations, ctx.slower, ctx.there = dilations, slower, [t is not None for t in (given, counts, dropped)]
        ctx.save_for_backward(kept, x, *(t for t in (given, counts, dropped) if t is not None), *layers)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        kept, x, *saved = ctx.saved_tensors
        given, counts, dropped = (saved.pop(0) if there else None for there in ctx.there)
        half = len(saved) // 2

        def plainly(x: Tensor, given: Tensor | None, *layers: Tensor) -> Tensor:
            job = Gated(x, layers[:half], layers[half:], ctx.dilations, given, counts, ctx.slower, dropped)
            return _run_plainly(job, grad.shape[0])

        none = (None, None, None, None, None)
        if not can_pull(grad):
            return *none, *pull_plainly(plainly, x, given, saved, grad)
        run, net = entry(_run_backward, _backward), (saved[:half], saved[half:], list(ctx.dilations))
        slower: list[float] = list(ctx.slower or ())
        g_x, g_given, g_layers = run(x, *net, given, counts, dropped, slower, kept, grad.to(x.dtype))
        return *none, g_x, None if given is None else g_given, *split_like(g_layers, saved)


def _run_plainly(job: Gated, planes: int) -> Tensor:
    """What `_run` gives, by operations with gradients of their own."""
    x, weights, biases, dilations, given, counts, slower, dropped, _ = job
    layers, hidden = len(dilations), weights[0].shape[0]
    there = 1 if counts is None else counts.unsqueeze(1)
    h = F.conv1d(x.mT, weights[0], biases[0])
    h = h if counts is None else torch.where(counts.unsqueeze(1) != 0, h, 0.0)
    if given is not None:
        given = (given if slower is None else interpolated(given, x.shape[1], *slower)).mT
        given = given if counts is None or slower is None else torch.where(counts.unsqueeze(1) != 0, given, 0.0)
    shares = None if given is None else given.chunk(layers, 1)
    total: Any = 0
    for i, step in enumerate(dilations):
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
    return F.conv1d(total.relu(), weights[-1], biases[-1]).mT.unflatten(-1, (-1, planes)).movedim(-1, 0)


def interpolated(frames: Tensor, count: int, positions: float, first: float) -> Tensor:
    """Frames (…, F, width), `positions` dilations, the first at `first`, at places 0 … count − 1; the ends go on."""
    time = (torch.arange(count, device=frames.device, dtype=torch.float64) - first) / positions
    time = time.clamp(0, frames.shape[-2] - 1)
    before = time.long()
    after = (before + 1).clamp_max(frames.shape[-2] - 1)
    share = (time - before).to(frames.dtype).unsqueeze(-1)
    low, high = frames.index_select(-2, before), frames.index_select(-2, after)
    return torch.lerp(low, high, share)  # one pass over what is large


class Stack(ctypes.Structure):
    """As in the C."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("sequences", "frames", "inputs", "hidden", "layers", "taps")),
        *((name, ctypes.c_long) for name in ("outputs", "planes")),
        *((name, ctypes.c_void_p) for name in ("dilations", "weights", "biases", "x")),
        *((name, ctypes.c_long) for name in ("x_sequence", "x_frame", "x_channel")),
        *((name, ctypes.c_void_p) for name in ("given", "counts", "dropped", "panels")),
        ("slower", ctypes.c_long),
        *((name, ctypes.c_double) for name in ("positions", "first")),
    ]


def _stack(job: Gated, planes: int, panels: Tensor | None = None) -> tuple[Any, tuple]:
    """`Stack` of the C; and what has to live as long."""
    x, weights, biases, dilations, given, counts, slower, dropped, _ = job
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    optional = [None if t is None else t.contiguous() for t in (given, counts, dropped, panels)]
    pointers = [(ctypes.c_void_p * len(some))(*(t.data_ptr() for t in some)) for some in (weights, biases)]
    steps = (ctypes.c_long * len(dilations))(*dilations)
    sizes = *x.shape, weights[0].shape[0], len(dilations), weights[1].shape[2], weights[-1].shape[0], planes
    arrays = (ctypes.addressof(array) for array in (steps, *pointers))
    addresses = (None if t is None else t.data_ptr() for t in optional)
    frames = 1 if given is None else given.shape[1]
    stack = Stack(*sizes, *arrays, x.data_ptr(), *x.stride(), *addresses, frames, *(slower or (0.0, 0.0)))
    return stack, (weights, biases, optional, pointers, steps, x)


def _threads(job: Gated) -> int:
    products = job.x.shape[0] * job.x.shape[1] * sum(w.numel() for w in job.weights)
    return process.threads(products // WORK, meets=True)


@mark_constant
def is_available(dtype: torch.dtype) -> bool:
    """Whether there is a library for numbers of a dtype."""
    return _library(dtype) is not None


def _require(dtype: torch.dtype) -> Any:
    library = _library(dtype)
    if library is None:
        raise RuntimeError("gated: there is no library for this dtype")
    return library


@cache
def _library(dtype: torch.dtype) -> Any:
    """The library for numbers of a dtype, or None where it cannot be made."""
    library: Any = native.load(prelude(dtype, meets=True) + tiles() + c_file("gated.c"), "WaveNets")
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    library.vector_size.restype = library.panels_size.restype = long
    library.panels_size.argtypes, library.gated_pack.argtypes = [pointer], [pointer, pointer]
    for size in (library.kept_size, library.forward_size, library.backward_size):
        size.argtypes, size.restype = [pointer, flag], long
    library.gated_forward.argtypes = [pointer, flag, *[pointer] * 3, flag]
    library.gated_backward.argtypes = [*[pointer] * 4, *[long] * 4, *[pointer] * 3, flag]
    return library
