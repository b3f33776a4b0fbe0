"""Scalar maps and the perceptron that conditions them as one operation on CPUs, in C (`conditioned.c`).

The scalar map is recorded (`core.loops`), and its parameters never leave the cache of the core that found them. Without
gradients only: training goes through conditioner and scalar map one after the other.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from diffeo.core import Univariate
from diffeo.core.compiling import find_compiler
from diffeo.core.loops import Loop
from diffeo.core.native import FAILURES, build, tiles
from diffeo.functional import Context, context_mask
from diffeo.nets import MADE, MLP, perceptron

_libraries: dict[str, Any] = {}


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

    The parameters are net(seen, context), whose first layer reads coordinates `sees` of x. In models that are being
    compiled, of nets and scalar maps that can run so; otherwise None.
    """
    if not torch.compiler.is_dynamo_compiling() or torch.is_grad_enabled() or context_mask(context) is not None:
        return None
    if type(net) not in (MLP, MADE) or not (univariate.traceable and univariate.exact_inverse):
        return None
    parts = net.as_perceptron(seen, context)
    if parts is None or parts.x.shape[:-1] != x.shape[:-1] or parts.x.dtype != x.dtype:
        return None
    if parts.weights[-1].shape[0] != univariate.n_params * len(changes):
        return None
    library = _find_library(univariate, inverse, parts.name, x.dtype)
    if library is None:
        return None
    rows, h = x.reshape(-1, x.shape[-1]), parts.x.reshape(-1, parts.x.shape[-1]) if parts.enter else None
    layers = list(parts.weights), list(parts.biases), list(parts.bounds)
    out, logdet = _operator(rows, h, sees, changes, *layers, parts.name, library)
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


@torch.compiler.assume_constant_result
def _find_library(univariate: Univariate, inverse: bool, name: str, dtype: torch.dtype) -> str | None:
    """The key of the library for an activation and a direction of a scalar map, or None where it cannot be made."""
    compiler = find_compiler()
    if compiler is None or any(True for _ in univariate.parameters()):
        return None

    def scalars(v: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return (univariate.inverse if inverse else univariate)(v, params.movedim(0, -1))

    try:
        loop = Loop(scalars, (None, univariate.n_params)).source(dtype)
        ours = resources.files("diffeo.transforms").joinpath("conditioned.c").read_text()
        source = loop + tiles() + perceptron.source(name) + ours
        key = hashlib.sha256(source.encode()).hexdigest()
        if key not in _libraries:
            _libraries[key] = _load(build(source, compiler))
    except (*FAILURES, KeyError, ValueError, AttributeError):
        # scalar maps that are no plain arithmetic, too; they run after the conditioner
        logging.getLogger("diffeo").info("a conditioned scalar map could not be compiled as a whole", exc_info=True)
        return None
    return key


def _load(library: ctypes.CDLL) -> Any:
    long, pointer, flag = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    vector = [long, pointer, long, long, long, pointer]
    library.map.argtypes = [*perceptron.LAYERS, *vector, pointer, pointer, flag]
    return library
