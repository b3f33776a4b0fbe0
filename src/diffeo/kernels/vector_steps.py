"""Linear maps of vectors and scalar maps that perceptrons condition, in turn, as one operation on CPUs, in C.

It has a gradient of its own (`vector_steps.c`). Of small layers one by one, calls and threads that wait for one another
take as long as what is computed.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Hashable, Sequence
from copy import deepcopy
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from diffeo.kernels import perceptron
from diffeo.kernels.convolution import pull_plainly
from diffeo.kernels.dispatch import can_pull, entry
from diffeo.kernels.factors import multiply_plainly
from diffeo.kernels.native import c_file
from diffeo.kernels.perceptron import SHARE, WORK, activate, share_out, split_like
from diffeo.kernels.private import mark_constant
from diffeo.kernels.scalars import ScalarMap, build_around, identify, is_one_operation, pulls_by_hand

LARGEST = 1 << 18  # weights of all steps; beyond it they leave the cache of a core between blocks of rows
_names: dict[tuple[Hashable, str, torch.dtype], str | None] = {}
_libraries: dict[str, tuple[Any, ScalarMap, str]] = {}  # with its activation; by name, which compiled models hold


class Step(NamedTuple):
    """A linear map z = L U x + b, or a scalar map of some coordinates whose parameters a net finds from others."""

    weights: Sequence[Tensor]  # of the net; or L and U in one matrix, see `factors.py`
    biases: Sequence[Tensor]
    bound: float = 0.0  # of a linear map
    library: str | None = None  # of the scalar map, by `find_library`
    bounds: Sequence[Tensor] = ()  # see `perceptron.run`
    sees: Tensor | None = None
    changes: Tensor | None = None


class Kind(NamedTuple):
    """What steps are, but for the numbers."""

    layers: tuple[int, ...]  # of each net; 0 for a linear map
    scale_bounds: tuple[float, ...]  # the bound of each linear map; 0 for a net
    library: str


def group(steps: Sequence[Step | None]) -> dict[int, list[Step]]:
    """Which neighbours may be one operation, by the place of the first; None stands for what is no step."""
    found: dict[int, list[Step]] = {}
    some: list[Step] = []
    size, library = 0, None
    for i, step in enumerate([*steps, None]):
        own = 0 if step is None else sum(w.numel() for w in step.weights)
        one_kind = step is not None and (library is None or step.library in (None, library))
        if step is not None and one_kind and size + own <= LARGEST:
            some.append(step)
            size, library = size + own, library or step.library
            continue
        if len(some) > 1 and library is not None:
            found[i - len(some)] = some
        some, size, library = ([], 0, None) if step is None else ([step], own, step.library)
    return found


def run(steps: Sequence[Step], x: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors x, (*batch, D), through a group of steps, and the log-det."""
    weights = [w for step in steps for w in step.weights]
    biases = [b for step in steps for b in step.biases]
    bounds = [b for step in steps for b in (step.bounds or [None] * len(step.weights))]
    places = [place for step in steps for place in (step.sees, step.changes)]
    layers = [0 if step.library is None else len(step.weights) for step in steps]
    scale_bounds = [step.bound for step in steps]
    library = next(step.library for step in steps if step.library is not None)
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights, *biases)):
        kind = Kind(tuple(layers), tuple(scale_bounds), library)
        found: Any = DifferentiableSteps.apply(kind, bounds, places, len(weights), rows, *weights, *biases)
    else:
        found = entry(_run, _forward)(rows, weights, biases, bounds, places, layers, scale_bounds, library, False)
    return found[0].T.reshape(x.shape), found[1].reshape(x.shape[:-1])


# not `torch.library.custom_op`, which checks every call for aliases
_LIBRARY = torch.library.Library("diffeo", "FRAGMENT")
_STEPS_OF = (
    "Tensor[] weights, Tensor[] biases, Tensor?[] bounds, Tensor?[] places, "
    "int[] layers, float[] scale_bounds, str library"
)
_LIBRARY.define(f"vector_steps(Tensor x, {_STEPS_OF}, bool keep) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(f"vector_steps_backward(Tensor kept, Tensor grad, Tensor grad_log, {_STEPS_OF}) -> (Tensor, Tensor)")
_forward, _backward = torch.ops.diffeo.vector_steps.default, torch.ops.diffeo.vector_steps_backward.default


def _run(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bounds: list[Tensor | None],
    places: list[Tensor | None],
    layers: list[int],
    scale_bounds: list[float],
    library: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """z, (D, rows), the log-det, and what the gradient needs, where it is to be kept."""
    rows, columns = x.shape
    sizes = _sizes(library, layers, weights, columns)
    z, logdet, kept = x.new_empty(columns, rows), x.new_empty(rows), x.new_empty(rows * sizes.kept if keep else 0)
    products = x.new_empty(sizes.products)
    x, weights, biases = x.resolve_neg(), [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    packed = _pack(sizes, weights, biases, bounds, places, layers, scale_bounds)
    failed = sizes.library.run_steps(
        *(rows, columns, len(layers), packed, sizes.widths),
        *(x.data_ptr(), *x.stride(), products.data_ptr(), kept.data_ptr() if keep else None),
        *(z.data_ptr(), logdet.data_ptr(), perceptron.threads(rows, sizes.total)),
    )
    if failed:
        raise MemoryError("vector_steps: not enough memory for a block of rows")
    return z, logdet, kept


def _run_backward(
    kept: Tensor,
    grad: Tensor,
    grad_log: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bounds: list[Tensor | None],
    places: list[Tensor | None],
    layers: list[int],
    scale_bounds: list[float],
    library: str,
) -> tuple[Tensor, Tensor]:
    """The gradients of x, (D, rows), and, one after the other, of all weights and all biases."""
    columns, rows = grad.shape
    sizes = _sizes(library, layers, weights, columns)
    shares = share_out(rows // SHARE, rows * sizes.total // WORK)
    g_x, g_layers = kept.new_empty(columns, rows), kept.new_empty(sizes.total)
    sums = kept.new_empty((shares - 1) * sizes.total)  # of the other shares
    products = kept.new_empty(sizes.products)
    grad, grad_log = grad.resolve_neg(), grad_log.resolve_neg()
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    packed = _pack(sizes, weights, biases, bounds, places, layers, scale_bounds)
    failed = sizes.library.run_steps_backward(
        *(rows, columns, len(layers), packed, sizes.widths),
        *(products.data_ptr(), kept.data_ptr(), grad.data_ptr(), grad.stride(1), grad.stride(0)),
        *(grad_log.data_ptr(), grad_log.stride(0), g_x.data_ptr(), g_layers.data_ptr(), sums.data_ptr()),
        *(sizes.total, shares, perceptron.threads(rows, sizes.total)),
    )
    if failed:
        raise MemoryError("vector_steps: not enough memory for a block of rows")
    return g_x, g_layers


_LIBRARY.impl("vector_steps", _run, "CPU")
_LIBRARY.impl("vector_steps_backward", _run_backward, "CPU")


@torch.library.register_fake("diffeo::vector_steps", lib=_LIBRARY)
def _(
    x: Tensor,
    weights: list[Tensor],
    biases: Any,
    bounds: Any,
    places: Any,
    layers: list[int],
    scale_bounds: Any,
    library: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    kept = rows * _sizes(library, layers, weights, columns).kept if keep else 0
    return x.new_empty(columns, rows), x.new_empty(rows), x.new_empty(kept)


@torch.library.register_fake("diffeo::vector_steps_backward", lib=_LIBRARY)
def _(kept: Tensor, grad: Tensor, grad_log: Tensor, weights: Any, biases: Any, *_: Any) -> tuple[Tensor, Tensor]:
    return kept.new_empty(grad.shape), kept.new_empty(sum(t.numel() for t in (*weights, *biases)))


class DifferentiableSteps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kind: Kind,
        bounds: list[Tensor | None],
        places: list[Tensor | None],
        count: int,
        x: Tensor,
        *layers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        weights, biases = list(layers[:count]), list(layers[count:])
        call = entry(_run, _forward)
        constants = bounds, places, list(kind.layers), list(kind.scale_bounds), kind.library
        z, logdet, kept = call(x, weights, biases, *constants, True)
        ctx.kind, ctx.count, ctx.bounds, ctx.places = kind, count, bounds, places
        ctx.save_for_backward(x, kept, *layers)
        return z, logdet

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, kept, *layers = ctx.saved_tensors
        if not can_pull(grad, grad_log):
            run = partial(_run_plainly, ctx.kind, ctx.places, ctx.count)
            g_x, _, *gradients = pull_plainly(run, x, None, layers, grad, grad_log)
            return None, None, None, None, g_x, *gradients
        weights, biases = layers[: ctx.count], layers[ctx.count :]
        kind = ctx.kind
        constants = ctx.bounds, ctx.places, list(kind.layers), list(kind.scale_bounds), kind.library
        g_x, flat = entry(_run_backward, _backward)(kept, grad, grad_log, weights, biases, *constants)
        return None, None, None, None, g_x.T, *split_like(flat, layers)


def _run_plainly(
    kind: Kind, places: list[Tensor | None], count: int, x: Tensor, _: None, *layers: Tensor
) -> tuple[Tensor, Tensor]:
    """What `run_steps` finds, of operations with gradients of their own."""
    _, scalar_map, activation = _libraries[kind.library]
    weights, biases = layers[:count], layers[count:]
    logdet, at = x.new_zeros(len(x)), 0
    for size, bound, sees, changes in zip(kind.layers, kind.scale_bounds, places[::2], places[1::2], strict=True):
        if changes is None:
            product, constant = multiply_plainly(weights[at], bound)
            x, logdet = F.linear(x, product, biases[at]), logdet + constant
            at += 1
            continue
        h, first = x if sees is None else x.index_select(1, sees), at
        for at in range(first, first + size):
            h = F.linear(h if at == first else activate(activation, h), weights[at], biases[at])
        at += 1
        mapped, slopes = scalar_map(x.index_select(1, changes), h.unflatten(-1, (len(changes), -1)))
        x, logdet = x.index_copy(1, changes, mapped), logdet + slopes.sum(-1)
    return x.T, logdet


class StepSizes(NamedTuple):
    """What follows from the shapes of the weights."""

    library: Any
    widths: bytes
    kept: int  # numbers that are kept for each row
    total: int  # weights and biases
    products: int  # numbers of all matrices that are given by factors
    packing: struct.Struct


def _sizes(library: str, layers: Sequence[int], weights: Sequence[Tensor], columns: int) -> StepSizes:
    return _sizes_of(_libraries[library][0], columns, tuple(layers), *[tuple(w.shape) for w in weights])


@cache
def _sizes_of(library: Any, columns: int, layers: tuple[int, ...], *shapes: tuple[int, int]) -> StepSizes:
    widths: list[int] = []
    kept, products, at = 0, 0, 0
    for count in layers:
        net = shapes[at : at + max(1, count)]
        widths += [net[0][1], *(out for out, _ in net)]
        kept += columns + sum(library.distance(out) for out, _ in net[:-1]) + (net[-1][0] if count else 0)
        products += 0 if count else columns * columns
        at += len(net)
    total = sum((a + 1) * b for b, a in shapes)
    packing = struct.Struct("2l2Pd" * len(layers) + f"{3 * len(shapes)}P")
    return StepSizes(library, struct.pack(f"{len(widths)}l", *widths), kept, total, products, packing)


def _pack(
    sizes: StepSizes,
    weights: list[Tensor],
    biases: list[Tensor],
    bounds: list[Tensor | None],
    places: list[Tensor | None],
    layers: list[int],
    scale_bounds: list[float],
) -> bytes:
    """`Step` of the C for each step, and where weights, biases and bounds of all layers are."""
    steps: list[float] = []
    for count, bound, sees, changes in zip(layers, scale_bounds, places[::2], places[1::2], strict=True):
        if sees is None or changes is None:
            steps += (1, 0, 0, 0, bound)
        else:
            steps += (count, len(changes), sees.data_ptr(), changes.data_ptr(), bound)
    pointers = [t.data_ptr() for t in (*weights, *biases)]
    return sizes.packing.pack(*steps, *pointers, *[0 if t is None else t.data_ptr() for t in bounds])


@mark_constant
def find_library(scalar_map: ScalarMap, activation: str, dtype: torch.dtype) -> str | None:
    """The name of the library for a scalar map and an activation, or None where it cannot be made."""
    name = identify(scalar_map)
    if name is None or not scalar_map.n_params or (is_one_operation(scalar_map) and not pulls_by_hand(scalar_map)):
        return None
    key = name, activation, dtype
    if key not in _names:
        _names[key] = _build(scalar_map, activation, dtype)
    return _names[key]


def _build(scalar_map: ScalarMap, activation: str, dtype: torch.dtype) -> str | None:
    own = c_file("factors.c") + c_file("vector_steps.c")
    source = perceptron.source(activation) + f"#ifndef NO_PULL\n{own}#endif\n"
    library: Any = build_around(scalar_map, False, dtype, source, False)
    if library is None or not hasattr(library, "run_steps"):
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    library.distance.argtypes, library.distance.restype = [long], long
    steps, results = [long, long, long, pointer, pointer], [pointer, pointer, pointer]
    library.run_steps.argtypes = [*steps, pointer, long, long, pointer, *results, flag]
    gradients = [pointer, pointer, pointer, long, long, pointer, long]
    library.run_steps_backward.argtypes = [*steps, *gradients, *results, long, long, flag]
    _libraries[library._name] = library, deepcopy(scalar_map), activation  # whose settings may change
    return library._name
