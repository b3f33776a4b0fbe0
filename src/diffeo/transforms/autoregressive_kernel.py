"""The inverse of an autoregressive layer on CPUs, in C (`autoregressive.c`): all steps of a block of rows in one call.

The scalar map is recorded (`core.loops`) and the masked perceptron is run a step at a time, with rows side by side. So
a run takes about the time of a density, where steps made of operations of their own take twice that or more.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Hashable
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from diffeo.core import Univariate
from diffeo.core.compiling import signature
from diffeo.core.loops import build_around
from diffeo.core.native import TYPES, can_read
from diffeo.functional import Context, context_batch, context_mask
from diffeo.nets.made import MADE
from diffeo.nets.perceptron import activation_source

SHARE = 32  # rows for which another thread pays
_libraries: dict[tuple[Hashable, ...], Any] = {}


def invert(net: Any, univariate: Univariate, z: Tensor, context: Context) -> tuple[Tensor, Tensor] | None:
    """x and the log-det of the inverse, without gradient; None where this layer cannot run so."""
    if type(net) is not MADE or z.dtype not in TYPES or context_mask(context) is not None:
        return None
    name = net.plain_activation()
    if name is None or univariate.n_params != net.n_params or torch.is_autocast_enabled("cpu"):
        return None
    weights, biases = zip(*((layer.masked, layer.bias) for layer in net.layers), strict=True)  # pyright: ignore
    if not can_read(z, *weights, *biases):
        return None
    library = _library(name, univariate, z.dtype)
    if library is None:
        return None
    batch = z.shape[:-1] if not net.context else torch.broadcast_shapes(z.shape[:-1], context_batch(context))
    added = net.from_context_by_unit(batch, context)
    added = None if added is None else added.contiguous()
    flat = z.expand(*batch, -1).reshape(-1, z.shape[-1]).resolve_neg()
    rows, features = flat.shape
    x, logdet = z.new_empty(features, rows), z.new_empty(rows)
    widths = [features, *(len(w) for w in weights)]
    weights, biases = [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    failed = library.invert(
        rows,
        features,
        len(weights),
        struct.pack(f"{len(widths)}l", *widths),
        net.ready.data_ptr(),
        struct.pack(f"{len(weights)}P", *[w.data_ptr() for w in weights]),
        struct.pack(f"{len(biases)}P", *[b.data_ptr() for b in biases]),
        None if added is None else added.data_ptr(),
        flat.data_ptr(),
        *flat.stride(),
        net.order.data_ptr(),
        x.data_ptr(),
        logdet.data_ptr(),
        max(1, min(torch.get_num_threads(), rows // SHARE)),
    )
    if failed:
        raise MemoryError("Autoregressive: not enough memory for a block of rows")
    return x.T.reshape(*batch, features), logdet.reshape(batch)


def _library(name: str, univariate: Univariate, dtype: torch.dtype) -> Any:
    """The library for an activation and a scalar map, or None where it cannot be made."""
    of_map = signature(univariate)
    # it has weights or hooks, or searches for its inverse
    if of_map is None or not univariate.exact_inverse or not univariate.traceable:
        return None
    key = name, of_map, dtype
    if key not in _libraries:
        _libraries[key] = _build(name, univariate, dtype)
    return _libraries[key]


def _build(name: str, univariate: Univariate, dtype: torch.dtype) -> Any:
    source = activation_source(name) + resources.files("diffeo.transforms").joinpath("autoregressive.c").read_text()
    library = build_around(univariate, True, dtype, source)
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    layers = [pointer, pointer, pointer, pointer, pointer]
    library.invert.argtypes = [long, long, flag, *layers, pointer, long, long, pointer, pointer, pointer, flag]
    return library
