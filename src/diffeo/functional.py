"""Small tensor functions that every layer of the house shares: sums, soft clipping, layouts, context and masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Size, Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

Context: TypeAlias = Tensor | Mapping[str, Tensor] | None

# Shapes, checked in the tests: x may have fewer batch dims than the result, where the context brings more.
Scalars: TypeAlias = Float[Tensor, "*shape"]
MappedScalars: TypeAlias = tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]  # values and log-dets
Vector: TypeAlias = Float[Tensor, "*batch features"]
MappedVector: TypeAlias = tuple[Float[Tensor, "*out features"], Float[Tensor, "*out"]]
LogProb: TypeAlias = Float[Tensor, "*out"]


def as_size(shape: int | tuple[int, ...] | list[int]) -> Size:
    """A shape given as an int or a sequence, as a `torch.Size`."""
    return Size((shape,)) if isinstance(shape, int) else Size(shape)


def sum_event(t: Tensor, ndim: int) -> Tensor:
    """Sum over the last `ndim` dims, in at least float32; with `ndim = 0` only the dtype may change."""
    if t.dtype in (torch.float16, torch.bfloat16):
        t = t.float()
    return t.flatten(-ndim).sum(-1) if ndim else t


def is_traced() -> bool:
    """Whether a compiler or a transform such as vmap looks on, to whom values are unknown."""
    return torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None  # pyright: ignore


def soft_clip(x: Scalars, bound: float) -> Scalars:
    """Smooth clipping to (-bound, bound): `bound * tanh(x / bound)`, the identity near zero."""
    return bound * torch.tanh(x / bound)


def quartiles(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First quartile, median and third quartile of each column of (n, D): values that occur in it."""
    first, median, third = (rows.kthvalue(1 + round(q * (len(rows) - 1)), 0).values for q in (0.25, 0.5, 0.75))
    return first, median, third


def wrap_angle(angle: Tensor) -> Tensor:
    """The same angle in [−π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def batch_inner(x: Tensor) -> Tensor:
    """The same values, laid out in memory with all batch dims innermost: the layout in which scalar maps run.

    Conditioners give their parameters like this too, so that one parameter of neighbouring rows is contiguous and the
    arithmetic vectorises over rows.
    """
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def permute_last(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """x with its last dim in this order, where `back` is the inverse permutation.

    `index_select`, but with the gradient permuted back instead of scattered and added, which compilers do slowly.
    """
    if torch.compiler.is_compiling():
        return _TracedPermutation.apply(x, order, back)  # pyright: ignore
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _select_last(x, order)
    return apply_directly(Permutation, x, order, back)


def _select_last(x: Tensor, order: Tensor) -> Tensor:
    return x.movedim(-1, 0).index_select(0, order).movedim(0, -1)  # laid out as scalar maps run


def apply_directly(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`, outside compilers, for functions that have `setup_context`.

    PyTorch inspects the signature of `forward` for defaults at every call, which takes as long as ten operations.
    """
    wrapped = torch._C._are_functorch_transforms_active()  # pyright: ignore
    owner: Any = function if wrapped else super(torch.autograd.Function, function)
    return owner.apply(*(args if wrapped else unwrap_dead_wrappers(args)))


def split_last(x: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """The parts of x of these sizes along its last dim."""
    if not torch.compiler.is_compiling():
        return torch.split_with_sizes(x, list(sizes), -1)
    parts = torch.split_with_sizes(x.movedim(-1, 0), list(sizes))
    return [part.movedim(0, -1) for part in parts]  # gradients laid out as scalar maps run


def cat_last(*parts: Tensor) -> Tensor:
    """The parts one after the other along the last dim."""
    if not torch.compiler.is_compiling():
        return torch.cat(parts, -1)
    return torch.cat([part.movedim(-1, 0) for part in parts]).movedim(0, -1)  # laid out as scalar maps run


def unbind_last(x: Tensor) -> Sequence[Tensor]:
    """x[..., 0], x[..., 1], …"""
    if not torch.compiler.is_compiling():
        return x.unbind(-1)
    planes = _turned(x).unbind()  # gradients laid out as scalar maps run
    return [_turned(plane) for plane in planes]


def _turned(x: Tensor) -> Tensor:
    """x with its dims in the opposite order."""
    return x.permute(tuple(reversed(range(x.ndim))))


class _TracedPermutation(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        return _select_last(x, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        order, back = ctx.saved_tensors
        return permute_last(grad, back, order), None, None


class Permutation(_TracedPermutation):  # which compilers cannot follow
    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> Tensor:  # pyright: ignore
        return permute_last(dx, *ctx.saved_tensors)


def constant_logdet(value: Tensor, x: Tensor, event_ndim: int) -> Tensor:
    """A log-det that does not depend on x, with the batch shape of x."""
    return value.expand(x.shape[: x.ndim - event_ndim])


def context_features(context: Context) -> Tensor | None:
    """The tensor that vector conditioners read: the context itself, or the entry `"features"` of a dict."""
    if context is None or isinstance(context, Tensor):
        return context
    return context.get("features")


def context_mask(context: Context) -> Tensor | None:
    """The boolean mask of a dict context (True = real, False = padding); it broadcasts against x."""
    return None if context is None or isinstance(context, Tensor) else context.get("mask")


def context_batch(context: Context) -> Size:
    """The batch shape of a context tensor (all dims but the last); `()` when there is nothing to tell it by."""
    features = context_features(context)
    return Size() if features is None else features.shape[:-1]


def keep_masked(x: Tensor, z: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Leave masked positions as they were and give them no log-det (`logdet` has the shape of x)."""
    mask = context_mask(context)
    if mask is None:
        return z, logdet
    return torch.where(mask, z, x), torch.where(mask, logdet, 0.0)


def keep_rows(x: Tensor, z: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """As `keep_masked`, for a map that mixes the features of a vector: its mask covers whole rows, `(*batch, 1)`."""
    mask = context_mask(context)
    if mask is None:
        return z, logdet
    if mask.shape[-1] != 1:
        raise ValueError(f"a map that mixes the features needs a mask with last dim 1, got {tuple(mask.shape)}")
    return torch.where(mask, z, x), torch.where(mask.squeeze(-1), logdet, 0.0)


def visible(x: Tensor, context: Context) -> Tensor:
    """What a conditioner may see of x: padding, whatever it holds, counts as zero."""
    mask = context_mask(context)
    return x if mask is None else torch.where(mask, x, 0.0)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Inside, autocast is off: maps and densities run in the precision of x, only conditioners in a lower one."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def masked_sum(per_position: Tensor, ndim: int, context: Context) -> Tensor:
    """Sum of a per-position log-density over the event, masked positions left out."""
    mask = context_mask(context)
    return sum_event(per_position if mask is None else torch.where(mask, per_position, 0.0), ndim)


def in_blocks(transform: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Context, event_ndim: int) -> Tensor:
    """z of a large batch of rows (one leading dim), a block of them at a time to bound memory."""
    size = 8192
    if x.ndim == event_ndim or len(x) <= size:
        return transform(x, context)[0]

    def part(c: Context, i: int) -> Context:
        if isinstance(c, Mapping):
            return {k: v[i : i + size] if len(v) == len(x) else v for k, v in c.items()}
        return None if c is None else c[i : i + size] if c.ndim > 1 and len(c) == len(x) else c

    return torch.cat([transform(x[i : i + size], part(context, i))[0] for i in range(0, len(x), size)])


def is_real(constraint: Constraint) -> bool:
    """Whether a constraint allows every real number (by type: copies of modules carry copies of constraints)."""
    return isinstance(getattr(constraint, "base_constraint", constraint), type(constraints.real))


def check_event(x: Tensor, event: Size | None, who: str) -> None:
    """Refuse an x whose trailing dims are not `event`; None stands for any."""
    if event is None:
        return
    if x.shape[x.ndim - len(event) :] != event or x.ndim < len(event):
        expected = f"{event[0]} features" if len(event) == 1 else f"event shape {tuple(event)}"
        raise ValueError(f"{who}: expected {expected}, got x with shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{who}: expected a floating-point x, got {x.dtype}; convert it with x.float()")
