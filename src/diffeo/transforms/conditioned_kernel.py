"""Scalar maps and the perceptron that conditions them as one operation on CPUs, in C (`conditioned.c`).

The scalar map is recorded (`core.loops`), and its parameters never leave the cache of the core that found them. Without
gradients only: training goes through conditioner and scalar map one after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Hashable
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from diffeo.core import Univariate
from diffeo.core.compiling import constant, has_hooks, signature
from diffeo.core.loops import build_around
from diffeo.core.native import can_read, kernels_in_use
from diffeo.functional import Context, context_mask
from diffeo.nets import MADE, MLP, perceptron

_names: dict[tuple[Hashable, ...], str | None] = {}
_libraries: dict[str, Any] = {}  # by name, which compiled models hold


def map_vector(
    net: Any,
    univariate: Univariate,
    x: Tensor,
    seen: Tensor,
    context: Context,
    sees: Tensor,
    changes: Tensor,
    inverse: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """x with the scalar map (or its inverse) applied to coordinates `changes`, in their order, and the log-det.

    The parameters are net(seen, context), whose first layer reads coordinates `sees` of x. None where a gradient is
    wanted, or this net or scalar map cannot run so.
    """
    compiling = torch.compiler.is_dynamo_compiling()
    if torch.is_grad_enabled() or not (compiling or kernels_in_use()) or context_mask(context) is not None:
        return None
    if type(net) not in (MLP, MADE) or has_hooks(net) or not (compiling or can_read(x)):
        return None
    parts = net.as_perceptron(seen, context)
    if parts is None or parts.x.shape[:-1] != x.shape[:-1] or parts.x.dtype != x.dtype:
        return None
    if parts.weights[-1].shape[0] != univariate.n_params * len(changes):
        return None
    if not parts.enter and parts.x.shape[-1] != len(sees):
        return None
    library = _find_library(univariate, inverse, parts.name, x.dtype)
    if library is None:
        return None
    if compiling:  # dead code, by which the compiler sees the settings that the library was made for, and checks them
        (univariate.inverse if inverse else univariate)(x.new_zeros(1), x.new_zeros(1, univariate.n_params))
    rows, h = x.reshape(-1, x.shape[-1]), parts.x.reshape(-1, parts.x.shape[-1]) if parts.enter else None
    layers = list(parts.weights), list(parts.biases), list(parts.bounds)
    out, logdet = (_operator if compiling else _run)(rows, h, sees, changes, *layers, parts.name, library)
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
    if _libraries[library].map(*layers, *vector, out.data_ptr(), logdet.data_ptr(), perceptron.threads(rows)):
        raise MemoryError("perceptron: not enough memory for a block of rows")
    return out, logdet


_LIBRARY.impl("conditioned", _run, "CPU")


@torch.library.register_fake("diffeo::conditioned", lib=_LIBRARY)
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[1], x.shape[0]), x.new_empty(x.shape[0])


@constant
def _find_library(univariate: Univariate, inverse: bool, name: str, dtype: torch.dtype) -> str | None:
    """The name of the library for an activation and a direction of a scalar map, or None where it cannot be made."""
    of_map = signature(univariate)
    # it has weights or hooks, or searches for its inverse
    if of_map is None or not univariate.exact_inverse or not univariate.traceable:
        return None
    key = of_map, inverse, name, dtype
    if key not in _names:
        _names[key] = _build(univariate, inverse, name, dtype)
    return _names[key]


def _build(univariate: Univariate, inverse: bool, name: str, dtype: torch.dtype) -> str | None:
    source = perceptron.source(name) + resources.files("diffeo.transforms").joinpath("conditioned.c").read_text()
    library = build_around(univariate, inverse, dtype, source)
    if library is None:
        return None
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    vector = [long, pointer, long, long, long, pointer]
    library.map.argtypes = [*perceptron.LAYERS, *vector, pointer, pointer, flag]
    _libraries[library._name] = library
    return library._name
