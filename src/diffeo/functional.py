"""Small tensor functions that every layer of the house shares: sums, soft clipping, contexts and masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

Context: TypeAlias = Tensor | Mapping[str, Tensor] | None
Event: TypeAlias = tuple[int | None, ...]  # an event shape; None for dims of any size

RandomState: TypeAlias = tuple[Tensor, Tensor | None]  # of the CPU, and of a GPU

# Shapes, checked in the tests: x may have fewer batch dims than the result, where the context brings more.
Scalars: TypeAlias = Float[Tensor, "*shape"]
MappedScalars: TypeAlias = tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]  # values and log-dets
Vector: TypeAlias = Float[Tensor, "*batch features"]
MappedVector: TypeAlias = tuple[Float[Tensor, "*out features"], Float[Tensor, "*out"]]
LogProb: TypeAlias = Float[Tensor, "*out"]


def once(gradients: Sequence[Tensor | None], inputs: Sequence[Any], who: str, hint: str) -> tuple[Tensor | None, ...]:
    """Gradients of a custom function that cannot be differentiated again, as functions of its inputs that raise.

    PyTorch's `once_differentiable` looks at the incoming gradients alone: where these do not depend on the inputs, as
    those of a sum, a second derivative would be silently zero.
    """
    if not torch.is_grad_enabled():
        return tuple(gradients)
    sources = [t for t in inputs if isinstance(t, Tensor) and t.requires_grad]
    message = f"{who} has first derivatives only: it cannot be differentiated a second time, as here; {hint}"
    return tuple(None if g is None else _Once.apply(message, g, *sources) for g in gradients)  # pyright: ignore


class _Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, ...]:  # pyright: ignore
        raise RuntimeError(ctx.message)


def as_size(shape: int | tuple[int, ...] | list[int]) -> Size:
    """A shape given as an int or a sequence, as a `torch.Size`."""
    try:
        return Size((shape,)) if isinstance(shape, int) else Size(shape)
    except TypeError:
        raise ValueError(f"expected a whole number or a tuple of them as a shape, got {shape!r}") from None


def joined(*shapes: Sequence[int]) -> Size:
    """The shape to which these broadcast: `torch.broadcast_shapes`, which takes as long as a small layer.

    Raises:
        ValueError: shapes that do not broadcast.
    """
    some = [shape for shape in shapes if len(shape)]
    if all(shape == some[0] for shape in some):
        return Size(some[0] if some else ())
    try:
        return Size(torch.broadcast_shapes(*shapes))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    except RuntimeError as error:
        told = " and ".join(str(tuple(shape)) for shape in some)
        raise ValueError(f"batches do not fit together, of x and its context or of parts of that: {told}") from error


def positive(value: float, what: str, owner: object) -> float:
    """The value, refused where it is not above 0 and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{type(owner).__name__}: expected {what} > 0 and finite, got {value!r}")
    return value


def as_event(event: int | Sequence[int | None], owner: object) -> Event:
    """An event shape given as an int, or as a sequence in which None stands for any size; refused where it is empty."""
    shape = tuple(event) if isinstance(event, Sequence) else (event,)
    if not all(size is None or (size == round(size) and size >= 1) for size in shape):
        raise ValueError(f"{type(owner).__name__}: expected whole numbers of at least 1 as event shape, got {event!r}")
    return tuple(None if size is None else int(size) for size in shape)


def as_fixed_event(event: int | Sequence[int], owner: object) -> Size:
    """An event shape without free dims; an int stands for a vector."""
    return Size(as_event(event, owner))  # pyright: ignore[reportArgumentType]


def masked_event(event: Event, context: Context, who: str) -> Size:
    """An event shape with its free dims filled in from the mask of the context."""
    if None not in event:
        return Size(event)  # pyright: ignore[reportArgumentType]
    mask = context_mask(context)
    if mask is None or mask.ndim < len(event):
        raise ValueError(
            f"{who}: the size of an event {show_event(event)} comes from the mask of the context, "
            'which has none; pass {"mask": …}, True where an event is real'
        )
    sizes = mask.shape[mask.ndim - len(event) :]
    return Size([at if size is None else size for size, at in zip(event, sizes, strict=True)])


def precise(t: Tensor) -> Tensor:
    """t in at least float32, as log-dets and solvers need it."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def sum_event(t: Tensor, ndim: int) -> Tensor:
    """Sum over the last `ndim` dims, in at least float32; with `ndim = 0` only the dtype may change."""
    t = precise(t)
    return t.flatten(-ndim).sum(-1) if ndim else t


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


def constant_logdet(value: Tensor, x: Tensor, event_ndim: int) -> Tensor:
    """A log-det that does not depend on x, with the batch shape of x, in at least float32."""
    return precise(value).expand(x.shape[: x.ndim - event_ndim])


def context_features(context: Context) -> Tensor | None:
    """The tensor that vector conditioners read: the context itself, or the entry `"features"` of a dict."""
    if context is None or isinstance(context, Tensor):
        return context
    return context.get("features")


def context_mask(context: Context) -> Tensor | None:
    """The boolean mask of a dict context (True = real, False = padding); it broadcasts against x."""
    return None if context is None or isinstance(context, Tensor) else context.get("mask")


def without_mask(context: Context) -> Context:
    """The context without its mask; None if that is all of it."""
    if context_mask(context) is None:
        return context
    return {name: t for name, t in entries(context).items() if name != "mask"} or None


def map_mask(context: Context, function: Callable[[Tensor], Tensor]) -> Context:
    """The context with what a function makes of its mask, if it has one."""
    mask = context_mask(context)
    return context if mask is None else {**entries(context), "mask": function(mask)}


def entries(context: Context) -> Mapping[str, Tensor]:
    """The entries of a context; a tensor is the entry `"features"`."""
    return {} if context is None else {"features": context} if isinstance(context, Tensor) else context


def context_batch(context: Context, reads: Mapping[str, int]) -> Size:
    """The batch shape of a context, all entries broadcast.

    `reads` says how many trailing dims of each entry are its event: a vector has 1, a sequence of vectors 2, an image
    3. A tensor is the entry `"features"`.
    """
    given = entries(context)
    unknown = sorted(set(given) - set(reads))
    if unknown:
        raise ValueError(
            f"context: nothing here says what an event of {', '.join(map(repr, unknown))} is, so the batch is unknown; "
            f"give the module that reads it an attribute such as reads = {{{unknown[0]!r}: 1}} "
            "(1 for a vector, 2 for a sequence of vectors, 3 for an image)"
        )
    shapes = [t.shape[: max(0, t.ndim - reads[name])] for name, t in given.items()]
    return joined(*shapes)


def check_batch(shape: Size, batch: Size) -> None:
    """Refuse a batch of contexts that does not broadcast against the whole batch shape of samples."""
    pairs = zip(reversed(batch), reversed(shape), strict=False)
    if len(batch) > len(shape) or not all(c in (1, s) for c, s in pairs):
        raise ValueError(
            f"sample: shape {tuple(shape)} is the whole batch, but the context has batch shape {tuple(batch)}: "
            f"use {tuple(shape) + tuple(batch)}, or given(c)"
        )


def refuse_context(context: Context, recipe: str, argument: str) -> None:
    """Refuse what a model would read of a context, if the recipe had built it to, by `context` or `classes`."""
    if any(name != "mask" for name in entries(context)):
        without, number = ("classes", "classes") if argument == "classes" else ("a context", "features")
        raise ValueError(
            f"{recipe}: it was built without {without}, so it would ignore this context; "
            f"build it by {recipe}(…, {argument}=number of {number})"
        )


def check_precision(context: Context, dtype: torch.dtype, who: str) -> None:
    """Refuse a context in float32 for weights in float64, and the other way round."""
    for name, t in entries(context).items():
        if name != "mask" and {t.dtype, dtype} == {torch.float32, torch.float64}:
            raise ValueError(
                f"{who}: the context is {t.dtype}, the weights are {dtype}; "
                "use context.to(weights' dtype), or flow.double()"
            )


def declared_reads(module: nn.Module) -> dict[str, int]:
    """How many trailing dims of each entry of a context are its event, as the modules inside declare by `reads`.

    Raises:
        ValueError: two modules declare the same entry differently.
    """
    found: dict[str, int] = {}
    for name, part in module.named_modules():  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        for entry, ndim in cast("dict[str, int]", getattr(part, "reads", {})).items():  # pyright: ignore[reportUnknownArgumentType]
            if found.setdefault(entry, ndim) != ndim:
                raise ValueError(
                    f"{type(module).__name__}: {name} reads {entry!r} with {ndim} trailing dims as its event, "
                    f"another module with {found[entry]}"
                )
    return found


def at_positions(context: Context, reads: Mapping[str, int], ndim: int) -> Context:
    """The context for each of the positions that `ndim` further batch dims count: entries are the same at all of them.

    The mask, which has these dims already, stays as it is.
    """

    def widen(name: str, t: Tensor) -> Tensor:
        before = t.ndim - reads.get(name, 1)
        return t if name == "mask" else t[(slice(None),) * before + (None,) * ndim]

    if isinstance(context, Mapping):
        return {name: widen(name, t) for name, t in context.items()}
    return None if context is None else widen("features", context)


def keep_masked(x: Tensor, z: Tensor, logdet: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Leave masked positions as they were and give them no log-det (`logdet` has the shape of x)."""
    mask = context_mask(context)
    if mask is None:
        return z, logdet
    return torch.where(mask, z, x), torch.where(mask, logdet, 0.0)


def keep_scaled(x: Tensor, z: Tensor, log_scale: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """As `keep_masked`, for a map whose log-slope at each feature is the same for all x: log-dets of whole vectors."""
    mask, total = context_mask(context), sum_event(log_scale, 1)
    if mask is None:
        return z, constant_logdet(total, x, 1)
    if mask.shape[-1] == 1:
        logdet = torch.where(mask[..., 0], total, 0.0)
        return torch.where(mask, z, x), logdet.expand(joined(logdet.shape, x.shape[:-1]))
    kept, logdet = keep_masked(x, z, log_scale.expand_as(x), context)
    return kept, sum_event(logdet, 1)


def visible(x: Tensor, context: Context) -> Tensor:
    """What a conditioner may see of x: padding, whatever it holds, counts as zero."""
    mask = context_mask(context)
    return x if mask is None else x.where(mask, x.new_zeros(()))


def real_rows(x: Tensor, context: Context, of: Tensor | None = None) -> Tensor:
    """The vectors of a batch that hold no padding, (n, D); or the rows beside them of another tensor, `of`.

    For statistics of training rows, which are taken where nothing is traced.
    """
    mask, of = context_mask(context), x if of is None else of
    rows = of.expand(*x.shape[:-1], of.shape[-1]).reshape(-1, of.shape[-1])
    if mask is None:
        return rows
    rows = rows[mask.expand(x.shape).reshape(-1, x.shape[-1]).all(-1)]
    if len(rows) == 0:
        raise ValueError("every row of the batch holds padding, so there is nothing to take statistics of")
    return rows


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Inside, autocast is off: maps and densities run in the precision of x, only conditioners in a lower one."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def widest(device: torch.device) -> torch.dtype:
    """float64; float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def narrowed(x: Tensor, net: nn.Module) -> Tensor:
    """x as a net may read it: events in float64 are rounded for nets whose weights are narrower.

    So a flow of float32 carries float64 from layer to layer, and its inverse finds the very parameters that the forward
    pass used: the round trip of the whole is that of float64, at the cost of nets in float32.
    """
    if x.dtype != torch.float64 or not isinstance(net, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        return x
    weights = (t for t in chain(net.parameters(), net.buffers()) if t.is_floating_point())
    return x.to(next(weights, x).dtype)


def masked_sum(per_position: Tensor, ndim: int, context: Context) -> Tensor:
    """Sum of a per-position log-density over the event, masked positions left out."""
    mask = context_mask(context)
    return sum_event(per_position if mask is None else torch.where(mask, per_position, 0.0), ndim)


NARROWEST = 64  # numbers that a small event counts for: the layers that work on it are wider than it is


def random_state(x: Tensor) -> RandomState:
    """Where the random numbers of x's device stand."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if x.is_cuda else None


@contextmanager
def replayed(state: RandomState | None, x: Tensor) -> Generator[None]:
    """Inside, the random numbers of that moment come again; None: they go on."""
    if state is None:
        yield
        return
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], x.device)
        yield


def rows_of_block(numbers: int, event: Sequence[int]) -> int:
    """How many events of this shape make up a block of so many numbers, at least one."""
    return max(1, numbers // max(NARROWEST, math.prod(event)))


def in_blocks(transform: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Context, event_ndim: int) -> Tensor:
    """z of a large batch of rows (one leading dim), a block of them at a time to bound memory.

    The context has a row for each row of x, or entries that all rows share.
    """
    size = rows_of_block(2**19, x.shape[x.ndim - event_ndim :])
    if x.ndim == event_ndim or len(x) <= size:
        return transform(x, context)[0]

    def part(t: Tensor, i: int) -> Tensor:
        return t[i : i + size] if t.ndim and len(t) == len(x) else t

    def some(c: Context, i: int) -> Context:
        return {k: part(v, i) for k, v in c.items()} if isinstance(c, Mapping) else None if c is None else part(c, i)

    return torch.cat([transform(x[i : i + size], some(context, i))[0] for i in range(0, len(x), size)])


def real_frames(context: Context, frames: int) -> Tensor | None:
    """How many frames of each sequence (T, C) of so many are real, (*batch,), by the mask; None without one."""
    mask = context_mask(context)
    if mask is None:
        return None
    real = mask.any(-1)
    return real.expand(*real.shape[:-1], frames).sum(-1)  # a mask may cover whole events


def backwards(x: Tensor, frames: Tensor | None = None) -> Tensor:
    """Sequences (*batch, T, C) with their first `frames`, (*batch,), in reverse order; all of them for None."""
    if frames is None:
        return x.flip(-2)
    t, n = torch.arange(x.shape[-2], device=x.device), frames.unsqueeze(-1)
    at = torch.where(t < n, n - 1 - t, t).unsqueeze(-1)
    batch = joined(x.shape[:-2], frames.shape)
    return x.expand(*batch, *x.shape[-2:]).gather(-2, at.expand(*batch, *x.shape[-2:]))


def is_real(constraint: Constraint) -> bool:
    """Whether a constraint allows every real number (by type: copies of modules carry copies of constraints)."""
    return isinstance(on_scalars(constraint), type(constraints.real))


def on_scalars(constraint: Constraint) -> Constraint:
    """What a constraint on events demands of single coordinates; itself where it is no such thing."""
    while isinstance(inner := getattr(constraint, "base_constraint", None), Constraint):
        constraint = inner
    return constraint


def check_event(x: Tensor, event: Event | None, who: str) -> None:
    """Refuse an x whose trailing dims are not `event`; None stands for any."""
    if event is None:
        return
    shape = x.shape[max(0, x.ndim - len(event)) :]
    if shape != event and not fits(shape, event):
        expected = f"{event[0]} features" if len(event) == 1 else f"event shape {show_event(event)}"
        raise ValueError(f"{who}: expected {expected}, got x with shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{who}: expected a floating-point x, got {x.dtype}; convert it with x.float()")


def fits(shape: Event, event: Event) -> bool:
    """Whether an event shape agrees with another, where both are known."""
    return len(shape) == len(event) and all(a == b or a is None or b is None for a, b in zip(shape, event, strict=True))


def meet(shape: Event, event: Event) -> Event | None:
    """What is known of an event that has both shapes, the shorter one of its last dims; None where it cannot."""
    longer, shorter = (shape, event) if len(shape) >= len(event) else (event, shape)
    free = len(longer) - len(shorter)
    if not fits(longer[free:], shorter):
        return None
    return longer[:free] + tuple(b if a is None else a for a, b in zip(longer[free:], shorter, strict=True))


def show_event(event: Event) -> str:
    """An event shape for people: `(3, any, any)`."""
    return f"({', '.join('any' if d is None else str(d) for d in event)}{',' if len(event) == 1 else ''})"
