"""Scalar maps with their gradient as one operation on CPUs, in C recorded from them.

A scalar map is a dozen operations on numbers, and twice as many backward, each of which goes through memory; here it is
one loop each way, and keeps nothing but its arguments.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffeo.kernels import native
from diffeo.kernels.compiling import signature
from diffeo.kernels.dispatch import can_pull, can_run
from diffeo.kernels.native import tiles
from diffeo.kernels.private import defined_together
from diffeo.kernels.recording import RecordedLoop, write

Loops = tuple[RecordedLoop, RecordedLoop]  # a scalar map, and its gradient
_loops: dict[tuple[Hashable, bool], Loops] = {}


@runtime_checkable
class ScalarMap(Protocol):
    """What kernels need to know of a scalar map: both directions, given numbers and `(*shape, n_params)` parameters."""

    n_params: int
    exact_inverse: bool
    traceable: bool

    def __call__(self, x: Tensor, params: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def inverse(self, z: Tensor, params: Tensor, /) -> tuple[Tensor, Tensor]: ...


def is_one_operation(scalar_map: ScalarMap) -> bool:
    """Whether it runs as one already, with a gradient of its own."""
    return getattr(scalar_map, "one_operation", False)


def pulls_by_hand(scalar_map: ScalarMap) -> bool:
    """Whether it gives its gradient by hand (`pull`), which rounds less than that of its operations one by one.

    pull(v, planes, grad, grad_log, inverse) gives the gradients of v and of the parameters, (n_params, *v.shape), from
    those of a direction's results.
    """
    return defined_together(type(scalar_map), "forward", "inverse", "pull")


def records(scalar_map: Any, inverse: bool = False, dtype: torch.dtype = torch.float32) -> bool:
    """Whether this direction of a scalar map can be written down as C: by plain arithmetic, without weights."""
    return identify(scalar_map) is not None and write(record(scalar_map, inverse)[0].source, dtype) is not None


def identify(scalar_map: Any) -> Hashable:
    """Equal for scalar maps that compute the same; None where C cannot: they have weights or hooks, or search."""
    plain = scalar_map.exact_inverse and scalar_map.traceable
    return signature(scalar_map) if plain else None


def show_settings(scalar_map: ScalarMap, like: Tensor, inverse: bool = False) -> None:
    """Evaluate the map, unused, while tracing, so that compiled models check the settings its library was made for."""
    if torch.compiler.is_dynamo_compiling():
        (scalar_map.inverse if inverse else scalar_map)(like.new_zeros(1), like.new_zeros(1, scalar_map.n_params))


def build_around(
    scalar_map: ScalarMap, inverse: bool, dtype: torch.dtype, source: str, pulled: bool | None = None
) -> ctypes.CDLL | None:
    """The library of C that takes scalars through this map (or its inverse) by `part`; None where it cannot be made.

    Before the source stand `part` and `tiles.c`; if asked for also `pull`, the gradient of the map (pulled=False) or of
    its inverse (pulled=True), where it can be written, or else a definition of NO_PULL.
    """
    loop = record(scalar_map, inverse)[0]
    part = None if native.find_compiler() is None else write(loop.source, dtype)
    if part is None:
        return None
    back = None if pulled is None else record(scalar_map, pulled)[1]
    pull = None if back is None else write(lambda dtype: back.part(dtype, "pull"), dtype)
    return native.load(part + (pull or "#define NO_PULL\n") + tiles() + source, f"a layer around {scalar_map}")


def map_scalars(scalar_map: ScalarMap, x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """The scalar map (or its inverse) at x, and the log-slope of that direction; None where it cannot run so.

    `params` has shape (*x.shape, n_params). Results are laid out as the parameters are, plane by plane.
    """
    # compilers join the operations themselves
    if params.shape[:-1] != x.shape or not x.ndim or not can_run(x, params, traced=False):
        return None
    loops = _find_loops(scalar_map, inverse)
    if loops is None or not loops[0].is_compiled(x.dtype):
        return None
    planes = params.movedim(-1, 0)
    order = sorted(range(x.ndim), key=lambda dim: planes.stride(dim + 1), reverse=True)
    v, planes = x.permute(order), planes.permute(0, *(dim + 1 for dim in order))
    if torch.is_grad_enabled() and (x.requires_grad or params.requires_grad):
        if not loops[1].is_compiled(x.dtype):
            return None
        found: Any = DifferentiableScalars.apply(loops, v, planes)
    else:
        found = loops[0](_laid_out(v), _laid_out(planes))
    back = sorted(range(x.ndim), key=order.__getitem__)
    return found[0].permute(back), found[1].permute(back)


class DifferentiableScalars(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loops: Loops, x: Tensor, planes: Tensor) -> tuple[Tensor, ...]:
        x, planes = _laid_out(x), _laid_out(planes)
        ctx.loops = loops
        ctx.save_for_backward(x, planes)
        return loops[0](x, planes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, planes = ctx.saved_tensors
        if not can_pull(grad, grad_log):
            again = torch.is_grad_enabled()
            return None, *_pull(ctx.loops[0].function, x, planes, grad, grad_log, again=again)
        g_x, g_planes = ctx.loops[1](x, planes, _laid_out(grad), _laid_out(grad_log))
        return None, g_x, g_planes.view(planes.shape)


def _find_loops(scalar_map: ScalarMap, inverse: bool) -> Loops | None:
    """Both loops of a direction, or None for scalar maps that cannot be recorded, or are one operation as they are."""
    name = None if is_one_operation(scalar_map) or not scalar_map.n_params else identify(scalar_map)
    if name is None:
        return None
    loops = _loops.get((name, inverse))
    if loops is None:
        loops = _loops[name, inverse] = record(scalar_map, inverse)
    return loops


def record(scalar_map: ScalarMap, inverse: bool) -> Loops:
    """A direction of a scalar map as loops: of numbers and `n_params` planes of parameters; and its gradient."""
    count = scalar_map.n_params

    def run(x: Tensor, planes: Tensor) -> tuple[Tensor, ...]:
        return (scalar_map.inverse if inverse else scalar_map)(x, planes.movedim(0, -1))

    def pull(x: Tensor, planes: Tensor, grad: Tensor, grad_log: Tensor) -> tuple[Tensor, ...]:
        if pulls_by_hand(scalar_map):
            g_x, g_planes = scalar_map.pull(x, planes, grad, grad_log, inverse)  # pyright: ignore
        else:
            g_x, g_planes = _pull(run, x, planes, grad, grad_log)
        # as many as there are parameters, each written down; a single one may be no plane
        return g_x, torch.stack(list(g_planes.unbind())) if count > 1 else g_planes

    return RecordedLoop(run, (None, count)), RecordedLoop(pull, (None, count, None, None))


def _pull(
    run: Callable[..., tuple[Tensor, ...]], x: Tensor, planes: Tensor, *grads: Tensor, again: bool = False
) -> tuple[Tensor, ...]:
    """The gradients of x and the parameters from those of both results; `again`: to be differentiated in turn."""
    with torch.enable_grad():
        # x may depend on the same parameters; that path is not differentiated here
        inputs = [t.view_as(t) if again and t.requires_grad else t.detach().requires_grad_() for t in (x, planes)]
        outputs = run(*inputs)
        given = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        return torch.autograd.grad(
            [out for out, _ in given],
            inputs,
            [grad for _, grad in given],
            create_graph=again,
            allow_unused=True,
            materialize_grads=True,
        )


def _laid_out(t: Tensor) -> Tensor:
    return t.contiguous().resolve_neg()
