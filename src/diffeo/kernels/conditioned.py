"""Scalar maps and the perceptron that conditions them as one operation on CPUs, in C (`conditioned.c`).

The scalar map is recorded, and its parameters never leave the cache of the core that found them. For a layer by itself,
without gradients; those of several in a row are in `vector_steps.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from diffeo.kernels import perceptron
from diffeo.kernels.dispatch import can_run, entry
from diffeo.kernels.native import c_file
from diffeo.kernels.perceptron import Perceptron
from diffeo.kernels.private import has_hooks, mark_constant
from diffeo.kernels.scalars import ScalarMap, build_around, identify, show_settings

_names: dict[tuple[Hashable, ...], str | None] = {}
_libraries: dict[str, Any] = {}  # by name, which compiled models hold


def map_vector(
    net: Any,
    scalar_map: ScalarMap,
    x: Tensor,
    seen: Tensor,
    context: Any,
    sees: Tensor,
    changes: Tensor,
    inverse: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """x with the scalar map (or its inverse) applied to coordinates `changes`, in their order, and the log-det.

    The parameters are net(seen, context), whose first layer reads coordinates `sees` of x. None where a gradient is
    wanted, or this net or scalar map cannot run so.
    """
    if torch.is_grad_enabled() or not can_run(x) or has_hooks(net):
        return None
    job: Perceptron | None = net.as_perceptron(seen, context)
    if job is None or job.x.shape[:-1] != x.shape[:-1] or job.x.dtype != x.dtype:
        return None
    if job.weights[-1].shape[0] != scalar_map.n_params * len(changes):
        return None
    if not job.enter and job.x.shape[-1] != len(sees):
        return None
    library = _find_library(scalar_map, inverse, job.activation, x.dtype)
    if library is None:
        return None
    show_settings(scalar_map, x, inverse)
    rows, h = x.reshape(-1, x.shape[-1]), job.x.reshape(-1, job.x.shape[-1]) if job.enter else None
    layers = list(job.weights), list(job.biases), list(job.bounds)
    out, logdet = entry(_run, _operator)(rows, h, sees, changes, *layers, job.activation, library)
    return out.T.reshape(x.shape), logdet.reshape(x.shape[:-1])


# not `torch.library.custom_op`, which checks every call for aliases
_LIBRARY = torch.library.Library("diffeo", "FRAGMENT")
_LAYERS = "Tensor[] weights, Tensor[] biases, Tensor[] bounds"
_INPUTS = "Tensor x, Tensor? h, Tensor sees, Tensor changes"
_LIBRARY.define(f"conditioned({_INPUTS}, {_LAYERS}, str name, str library) -> (Tensor, Tensor)")
_operator = torch.ops.diffeo.conditioned.default


def _run(
    x: Tensor,
    h: Tensor | None,
    sees: Tensor,
    changes: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    bounds: list[Tensor],
    name: str,
    library: str,
) -> tuple[Tensor, Tensor]:
    """The result, (features, rows), and the log-det."""
    sizes = perceptron.find_sizes(name, x.dtype, weights)
    rows, features = x.shape
    out, logdet = x.new_empty(features, rows), x.new_empty(rows)
    x, weights, biases = x.resolve_neg(), [w.contiguous() for w in weights], [b.contiguous() for b in biases]
    if h is None:
        layers = perceptron.arguments(sizes, x, weights, biases, bounds, False, sees)
    else:
        h = h.resolve_neg()
        layers = perceptron.arguments(sizes, h, weights, biases, bounds, True)
    vector = features, x.data_ptr(), *x.stride(), len(changes), changes.data_ptr()
    if _libraries[library].map(
        *layers, *vector, out.data_ptr(), logdet.data_ptr(), perceptron.threads(rows, sizes.total)
    ):
        raise MemoryError("conditioned: not enough memory for a block of rows")
    return out, logdet


_LIBRARY.impl("conditioned", _run, "CPU")


@torch.library.register_fake("diffeo::conditioned", lib=_LIBRARY)
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1], x.shape[0]), x.new_empty(x.shape[0])


@mark_constant
def _find_library(scalar_map: ScalarMap, inverse: bool, activation: str, dtype: torch.dtype) -> str | None:
    """The name of the library for an activation and a direction of a scalar map, or None where it cannot be made."""
    name = identify(scalar_map)
    if name is None:
        return None
    key = name, inverse, activation, dtype
    if key not in _names:
        _names[key] = _build(scalar_map, inverse, activation, dtype)
    return _names[key]


def _build(scalar_map: ScalarMap, inverse: bool, activation: str, dtype: torch.dtype) -> str | None:
    library: Any = build_around(scalar_map, inverse, dtype, perceptron.source(activation) + c_file("conditioned.c"))
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    vector = [long, pointer, long, long, long, pointer]
    library.map.argtypes = [*perceptron.LAYERS, *vector, pointer, pointer, flag]
    _libraries[library._name] = library
    return library._name
