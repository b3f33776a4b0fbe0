"""Couplings of pictures with a convolutional net as one operation on CPUs, in C (`coupling.c`), with its own gradient.

The scalar map is recorded, and stands between the net's two convolutions and the result: what is split, joined and
added up around it stays in the cache of the core that found the parameters.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Hashable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from diffeo.kernels import perceptron
from diffeo.kernels.convolution import (
    TAPS,
    Convolution,
    addresses,
    count_kept,
    count_threads,
    pull_plainly,
    run_plainly,
    sizes_in,
    worth,
)
from diffeo.kernels.dispatch import can_pull
from diffeo.kernels.native import c_file
from diffeo.kernels.perceptron import Sizes, share_out, split_like
from diffeo.kernels.scalars import ScalarMap, build_around, identify, is_one_operation, pulls_by_hand

ACTIVATION = "relu"
Direction = Literal["forward", "inverse", "back"]  # the last: the inverse, and the gradient of the forward direction
_libraries: dict[tuple[Hashable, Direction, torch.dtype], Any] = {}


class Coupled(NamedTuple):
    """What a coupling does, but for the numbers."""

    scalar_map: ScalarMap
    direction: Direction
    seen: int  # the first channel that the net sees
    changed: int  # and that the scalar map changes
    library: Any


def map_pictures(
    scalar_map: ScalarMap, net: Convolution, x: Tensor, seen: int, changed: int, inverse: bool
) -> tuple[Tensor, Tensor] | None:
    """Pictures x, (n, C, H, W), with the scalar map (or its inverse) applied to some channels, and the log-det.

    The net sees the channels from `seen` on, as many as it has inputs; its outputs are parameters of those from
    `changed` on, which are the rest. None where this scalar map or net cannot run so; x has been checked (`can_run`).
    """
    kind = _find_kind(scalar_map, net, x, seen, changed, "inverse" if inverse else "forward")
    if kind is None:
        return None
    inputs = [x, *net.weights, *net.biases, *(() if net.shift is None else (net.shift,))]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return DifferentiableCoupling.apply(kind, x, net.shift, *net.weights, *net.biases)  # pyright: ignore
    z, logdet, *_ = _run(kind, x, net.shift, net.weights, net.biases, False)
    return z, logdet


def rebuild_pictures(
    scalar_map: ScalarMap, net: Convolution, z: Tensor, seen: int, changed: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The x that `map_pictures` takes to z; and z and the log-det, with a graph from x.

    The net runs once for both, in the backward pass: until then, x and the log-det hold no numbers.
    """
    kind = _find_kind(scalar_map, net, z, seen, changed, "back")
    if kind is None:
        return None
    x = z.new_empty(z.shape).requires_grad_()
    return x, *Rebuilding.apply(kind, x, z.detach(), net.shift, *net.weights, *net.biases)  # pyright: ignore


def _find_kind(
    scalar_map: ScalarMap, net: Convolution, x: Tensor, seen: int, changed: int, direction: Direction
) -> Coupled | None:
    outputs = net.weights[2].shape[0]
    if not scalar_map.n_params or outputs % scalar_map.n_params:
        return None
    if net.x.shape[1] + outputs // scalar_map.n_params != x.shape[1] or net.x.shape[0] != x.shape[0]:
        return None
    library = _find_library(scalar_map, direction, x.dtype)
    if library is None or (torch.is_grad_enabled() and not library.has_gradient):
        return None
    return Coupled(scalar_map, direction, seen, changed, library)


def _run(
    kind: Coupled, x: Tensor, shift: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor], keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Result, log-det, and, where they are to be kept, what goes into the net's last activation, and the parameters."""
    sizes = sizes_in(kind.library, weights)
    n, _, height, width = x.shape
    z, logdet = x.new_empty(x.shape), x.new_empty(n)
    inner, room = x.new_empty(count_kept(x, sizes) if keep else 0), x.new_empty(sizes.total)
    params = x.new_empty(n * height * width * sizes.outputs // TAPS if keep else 0)
    held, arguments = _arguments(kind, sizes, x, shift, weights, biases)
    kept = (inner.data_ptr(), params.data_ptr()) if keep else (None, None)
    if kind.library.couple(
        *arguments, room.data_ptr(), *kept, z.data_ptr(), logdet.data_ptr(), count_threads(x, sizes)
    ):
        raise MemoryError("coupling: not enough memory for a picture")
    del held
    return z, logdet, inner, params


class DifferentiableCoupling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: Coupled, x: Tensor, shift: Tensor | None, *layers: Tensor) -> tuple[Tensor, Tensor]:
        z, logdet, inner, params = _run(kind, x, shift, layers[:3], layers[3:], True)
        ctx.kind, ctx.shifted = kind, shift is not None
        ctx.save_for_backward(x, inner, params, *layers, *(() if shift is None else (shift,)))
        return z, logdet

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        kind: Coupled = ctx.kind
        x, inner, params, *layers = ctx.saved_tensors
        shift = layers.pop() if ctx.shifted else None
        if not can_pull(grad, grad_log):
            return None, *_pull_plainly(kind, x, shift, layers, grad, grad_log)
        kept = inner.data_ptr(), params.data_ptr()
        return None, *_run_backward(kind, kind.library.couple_backward, x, shift, layers, grad, grad_log, kept, ())


class Rebuilding(torch.autograd.Function):
    """The backward pass of `DifferentiableCoupling`, which recovers x as well."""

    @staticmethod
    def forward(
        ctx: Any, kind: Coupled, x: Tensor, z: Tensor, shift: Tensor | None, *layers: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.kind, ctx.shifted, ctx.x = kind, shift is not None, x.detach()
        ctx.save_for_backward(z, *layers, *(() if shift is None else (shift,)))
        return z.view_as(z), z.new_empty(z.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        kind: Coupled = ctx.kind
        z, *layers = ctx.saved_tensors
        shift = layers.pop() if ctx.shifted else None
        if not can_pull(grad, grad_log):
            with torch.no_grad():
                ctx.x.copy_(_map_plainly(kind._replace(direction="inverse"), z, shift, layers)[0])
            g_x, *gradients = _pull_plainly(kind, ctx.x, shift, layers, grad, grad_log)
        else:
            back, found = kind.library.uncouple_backward, (ctx.x.data_ptr(),)
            g_x, *gradients = _run_backward(kind, back, z, shift, layers, grad, grad_log, (), found)
        return None, g_x, None, *gradients


def _run_backward(
    kind: Coupled,
    function: Any,
    event: Tensor,
    shift: Tensor | None,
    layers: list[Tensor],
    grad: Tensor,
    grad_log: Tensor,
    kept: tuple[int, ...],
    found: tuple[int, ...],
) -> tuple[Tensor | None, ...]:
    """The gradients of the event, of the shift, and of all weights and biases."""
    sizes = sizes_in(kind.library, layers[:3])
    shares = share_out(event.shape[0], worth(event, sizes))
    g_x, g_layers = event.new_empty(event.shape), event.new_empty(sum(t.numel() for t in layers))
    g_shift = None if shift is None else event.new_zeros(event.shape[0], layers[3].shape[0])
    room = event.new_empty((1 + shares) * sizes.total)
    held, arguments = _arguments(kind, sizes, event, shift, layers[:3], layers[3:])
    results = *found, g_x.data_ptr(), None if g_shift is None else g_shift.data_ptr(), g_layers.data_ptr()
    failed = function(
        *(*arguments, room.data_ptr(), *kept, _event(kind, grad), grad_log.data_ptr(), *grad_log.stride()),
        *(*results, sizes.total, shares, count_threads(event, sizes)),
    )
    if failed:
        raise MemoryError("coupling: not enough memory for a picture")
    del held
    return g_x, g_shift, *split_like(g_layers, layers)


def _pull_plainly(
    kind: Coupled, x: Tensor, shift: Tensor | None, layers: list[Tensor], *grads: Tensor
) -> tuple[Tensor | None, ...]:
    """What `backward` finds in C, of operations with gradients of their own."""
    return pull_plainly(lambda x, shift, *layers: _map_plainly(kind, x, shift, layers), x, shift, layers, *grads)


def _map_plainly(kind: Coupled, x: Tensor, shift: Tensor | None, layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    a = x.narrow(1, kind.seen, layers[0].shape[1])
    b = x.narrow(1, kind.changed, x.shape[1] - a.shape[1])
    params = run_plainly(a, shift, layers, kind.scalar_map.n_params)
    z, slopes = (kind.scalar_map.inverse if kind.direction == "inverse" else kind.scalar_map)(b, params)
    return torch.cat((a, z) if kind.seen < kind.changed else (z, a), 1), slopes.sum((1, 2, 3))


def _arguments(
    kind: Coupled,
    sizes: Sizes,
    x: Tensor,
    shift: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[tuple, tuple]:
    """Event, net and shift, as functions in C take them; and first what has to live as long."""
    x, shift = x.resolve_neg(), None if shift is None else shift.contiguous().resolve_neg()
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    net = sizes.layers, sizes.widths, None if shift is None else shift.data_ptr(), *addresses(sizes, weights, biases)
    return (x, shift, weights, biases), (x.shape[0], _event(kind, x), *net)


def _event(kind: Coupled, x: Tensor) -> bytes:
    return pack_event(x, kind.seen, kind.changed, kind.scalar_map.n_params)


def pack_event(x: Tensor, seen: int, changed: int, planes: int) -> bytes:
    """`Event` of the C."""
    _, channels, height, width = x.shape
    picture, channel, line, place = x.stride()
    strides, sizes = (picture, channel, 0, line, place), (height, width, channels)
    return struct.pack("P11l", x.data_ptr(), *strides, *sizes, seen, changed, planes)


def _find_library(scalar_map: ScalarMap, direction: Direction, dtype: torch.dtype) -> Any:
    """The library for a direction of a scalar map, or None where it cannot be made."""
    name = identify(scalar_map)
    if name is None:
        return None
    key = name, direction, dtype
    if key not in _libraries:
        _libraries[key] = _build(scalar_map, direction, dtype)
    return _libraries[key]


def _build(scalar_map: ScalarMap, direction: Direction, dtype: torch.dtype) -> Any:
    source = perceptron.source(ACTIVATION) + c_file("convolution.c") + c_file("coupling.c")
    library: Any = build_around(scalar_map, direction != "forward", dtype, source, direction == "inverse")
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    net = [long, pointer, flag, *[pointer] * 7]
    library.distance.argtypes, library.distance.restype = [long], long
    library.couple.argtypes = [*net, pointer, pointer, flag]
    # a map with a gradient of its own, such as a spline, uses that one, unless it is the recorded one (`pull`)
    apart = is_one_operation(scalar_map) and not pulls_by_hand(scalar_map)
    library.has_gradient = hasattr(library, "couple_backward") and not apart
    if not library.has_gradient:
        return library
    results = [*[pointer] * 3, long, long, flag]
    library.couple_backward.argtypes = [*net, pointer, pointer, long, *results]
    library.uncouple_backward.argtypes = [*net[:-2], pointer, pointer, long, pointer, *results]
    return library
