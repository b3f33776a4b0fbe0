"""The inverse of an autoregressive layer on CPUs, in C (`inverse.c`): all steps of a block of rows in one call.

The scalar map is recorded and the masked perceptron is run a step at a time, with rows side by side. So a run takes
about the time of a density, where steps made of operations of their own take twice that or more.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffeo.kernels import process
from diffeo.kernels.dispatch import can_run
from diffeo.kernels.native import c_file
from diffeo.kernels.perceptron import WORK, activation_source
from diffeo.kernels.scalars import ScalarMap, build_around, identify

SHARE = 32  # rows for which another thread pays
_libraries: dict[tuple[Hashable, ...], Any] = {}


class MaskedRun(NamedTuple):
    """A masked perceptron to be run a step at a time; a net that can be seen so gives it (`as_run`)."""

    activation: str  # by the name that `perceptron.describe` gives it
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    order: Tensor  # order[d] is the coordinate of step d
    ready: Tensor  # how many units of each layer can be computed before step 0, 1, … and after the last
    context: Tensor | None  # what it adds to the units of the first layer, (units, rows)


def invert(net: Any, scalar_map: ScalarMap, z: Tensor, context: Any) -> tuple[Tensor, Tensor] | None:
    """x and the log-det of the inverse at z, which has the whole batch; None where it cannot run so.

    Without gradient: the caller sees to that.
    """
    if not can_run(z, traced=False, products=True):
        return None
    run: MaskedRun | None = net.as_run(z, context) if hasattr(net, "as_run") else None
    if run is None or len(run.biases[-1]) != scalar_map.n_params * z.shape[-1]:
        return None
    if not can_run(z, *run.weights, *run.biases):
        return None
    library = _library(run.activation, scalar_map, z.dtype)
    if library is None:
        return None
    context = None if run.context is None else run.context.contiguous()
    flat = z.reshape(-1, z.shape[-1]).resolve_neg()
    weights, biases = run.weights, run.biases
    rows, features = flat.shape
    x, logdet = z.new_empty(features, rows), z.new_empty(rows)
    widths = [features, *(len(w) for w in weights)]
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    failed = library.invert(
        rows,
        features,
        len(weights),
        struct.pack(f"{len(widths)}l", *widths),
        run.ready.data_ptr(),
        struct.pack(f"{len(weights)}P", *[w.data_ptr() for w in weights]),
        struct.pack(f"{len(biases)}P", *[b.data_ptr() for b in biases]),
        None if context is None else context.data_ptr(),
        flat.data_ptr(),
        *flat.stride(),
        run.order.data_ptr(),
        x.data_ptr(),
        logdet.data_ptr(),
        min(max(1, rows // SHARE), process.threads(rows * sum(w.numel() for w in weights) // WORK)),
    )
    if failed:
        raise MemoryError("inverse: not enough memory for a block of rows")
    return x.T.reshape(z.shape), logdet.reshape(z.shape[:-1])


def _library(activation: str, scalar_map: ScalarMap, dtype: torch.dtype) -> Any:
    """The library for an activation and a scalar map, or None where it cannot be made."""
    name = identify(scalar_map)
    if name is None:
        return None
    key = activation, name, dtype
    if key not in _libraries:
        _libraries[key] = _build(activation, scalar_map, dtype)
    return _libraries[key]


def _build(activation: str, scalar_map: ScalarMap, dtype: torch.dtype) -> Any:
    source = activation_source(activation) + c_file("inverse.c")
    library: Any = build_around(scalar_map, True, dtype, source)
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    layers = [pointer, pointer, pointer, pointer, pointer]
    library.invert.argtypes = [long, long, flag, *layers, pointer, long, long, pointer, pointer, pointer, flag]
    return library
