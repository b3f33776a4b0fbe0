"""Deep chains in little memory: activations recomputed, or rebuilt by inverting, in the backward pass.

A chain runs in `SEGMENTS` segments, of at least `SHORTEST` parts. Of each segment only the input is kept, its anchor;
the output is the next one's anchor. The backward pass walks a segment from its end: each part is inverted, run again
from what came out, and differentiated, so that one part's activations are alive at a time. The first runs again from
the anchor, and what comes out is compared with what was rebuilt; if they differ by more than rounding allows, a part is
ill-conditioned there, and the segment is done again from the anchor, in pieces of `PIECE` parts. While PyTorch
compiles, segments are run again in place of that, and are pieces.

"The Reversible Residual Network: Backpropagation Without Storing Activations" (Gomez et al., 2017),
https://arxiv.org/abs/1707.04585; "Training Deep Nets with Sublinear Memory Cost" (Chen et al., 2016),
https://arxiv.org/abs/1604.06174
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from diffeo.functional import Context, once, random_state, replayed
from diffeo.kernels.dispatch import kernels_in_use, using
from diffeo.kernels.private import Dropout, all_modules, pull_back, tree_flatten, tree_unflatten, version, weights_of

SEGMENTS, SHORTEST = 4, 4  # how many, so that what is kept does not grow with a chain; parts of one at least
PIECE = 8  # parts that are run again at once, where inverting does not do
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # of rebuilt inputs, relative to 1 + |x|

Pair = tuple[Tensor, Tensor]
Run = Callable[[int, Tensor, Context], Pair]  # one part of the chain by number, its log-det folded to the batch


class Rebuilt(NamedTuple):
    """An input recovered from its output, and the forward pass once more, for autograd."""

    x: Tensor  # its numbers may be there only once gradients were computed
    leaves: tuple[Tensor, ...]  # what the graph starts from
    z: Tensor
    logdet: Tensor  # only its graph counts, its numbers may be anything
    join: Callable[[tuple[Tensor, ...]], Tensor]  # the gradient of x from those of the leaves


class Back(NamedTuple):
    """The way back through the parts of a chain."""

    invert: Callable[[int, Tensor, Context], Rebuilt | Tensor]  # the input of a part, by number, from its output
    exact: Sequence[bool]  # for which parts that is an exact inverse at the cost of a forward pass


def run_parts(
    parts: Sequence[nn.Module], run: Run, back: Back, x: Tensor, contexts: Sequence[Context], memory: str
) -> list[Pair]:
    """The parts in a row, recomputed or rebuilt; (z, logdet) of each part, or of each segment."""
    if memory == "recompute":
        size = 1
    else:
        size = PIECE if torch.compiler.is_compiling() else max(SHORTEST, -(-len(parts) // SEGMENTS))
    out: list[Pair] = []
    for start in range(0, len(parts), size):
        some, here = dict(enumerate(parts[start : start + size], start)), contexts[start : start + size]
        if torch.compiler.is_compiling():
            pair = cast(Pair, checkpoint(_run_all, some, run, x, here, use_reentrant=False))
        elif memory == "recompute":
            kernels, before = kernels_in_use(), list[_Owned]()  # also when it runs again, wherever that is
            pair = cast(Pair, checkpoint(_run_with, kernels, before, some, run, x, here, use_reentrant=False))
        else:
            leaves, structure = tree_flatten(list(here))
            owned = _own(some)
            weights = [p for one in owned for p in one.weights]
            apply = cast(Callable[..., Pair], _Segment.apply)  # pyright: ignore[reportUnknownMemberType]
            pair = apply(some, [one.drops for one in owned], run, back, structure, len(leaves), x, *leaves, *weights)
        out.append(pair)
        x = pair[0]
    return out


class _Owned(NamedTuple):
    """What a part has, found in one walk through its modules."""

    weights: list[Tensor]
    versions: list[int]
    drops: bool  # whether it drops units at random


def _own(parts: dict[int, nn.Module]) -> list[_Owned]:
    owned: list[_Owned] = []
    for part in parts.values():
        modules = all_modules(part)
        weights = weights_of(modules)
        drops = any(isinstance(m, Dropout) and m.training and m.p > 0 for m in modules)
        owned.append(_Owned(weights, [version(w) for w in weights], drops))
    return owned


def _own_still(before: list[_Owned], parts: dict[int, nn.Module], policy: str) -> list[_Owned]:
    """What the parts own now. Weights that have changed are refused: gradients would be wrong, silently."""
    now = _own(parts)
    for old, new in zip(before, now, strict=True):
        same = len(old.weights) == len(new.weights)
        if not same or not all(map(_is_same, old.weights, old.versions, new.weights, new.versions)):
            raise RuntimeError(
                f"Chain(memory={policy!r}): the weights have changed since the forward pass: by a step of an optimizer "
                "before the backward pass, or with the end of a functional_call; set memory = 'store'"
            )
    return now


def _is_same(old: Tensor, before: int, new: Tensor, now: int) -> bool:
    if old is new:
        return before == now
    # weights sharded over processes come and go as other tensors, of other precision too
    if not {type(old), type(new)} <= {Tensor, Parameter} or not old.untyped_storage().size():
        return True
    if old.requires_grad != new.requires_grad or (old.dtype, old.device) != (new.dtype, new.device):
        return False
    return old.shape == new.shape and torch.equal(old, new)


def _run_with(
    kernels: bool, before: list[_Owned], parts: dict[int, nn.Module], run: Run, x: Tensor, contexts: Sequence[Context]
) -> Pair:
    if before:  # for the second time
        _own_still(before, parts, "recompute")
    with using(kernels):
        pair = _run_all(parts, run, x, contexts)
    if not before:  # some parts find their first weights when they run
        before.extend(_own(parts))
    return pair


def _run_all(
    parts: dict[int, nn.Module], run: Run, x: Tensor, contexts: Sequence[Context], states: list[Any] | None = None
) -> Pair:
    """The parts in a row; `states`: None for parts that drop nothing, or what gets the state of random numbers."""
    total = None
    for i, (number, context) in enumerate(zip(parts, contexts, strict=True)):
        if states is not None and states[i] is not None:
            states[i] = random_state(x)
        x, logdet = run(number, x, context)
        total = logdet if total is None else total + logdet
    return x, total  # pyright: ignore[reportReturnType] (a segment has parts)


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        parts: dict[int, nn.Module],
        drops: list[bool],
        run: Run,
        back: Back,
        structure: Any,
        n_leaves: int,
        x: Tensor,
        *rest: Any,
    ) -> Pair:
        contexts = tree_unflatten(rest[:n_leaves], structure)
        ctx.numbers, ctx.parts = list(parts), list(parts.values())
        ctx.run, ctx.back, ctx.structure, ctx.n_leaves = run, back, structure, n_leaves
        states: list[Any] = [() if some else None for some in drops]
        z, total = _run_all(parts, run, x, contexts, states)
        ctx.random, ctx.owned, ctx.kernels = states, _own(parts), kernels_in_use()
        ctx.save_for_backward(x, z, *(t for t in rest[:n_leaves] if isinstance(t, Tensor)))
        ctx.others = [... if isinstance(t, Tensor) else t for t in rest[:n_leaves]]
        return z.view_as(z), total

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_logdet: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        ctx.owned = _own_still(ctx.owned, dict(zip(ctx.numbers, ctx.parts, strict=True)), "invert")
        with torch.no_grad(), using(ctx.kernels):
            grads = _Segment.pull(ctx, g, g_logdet)
        x, z, *tensors = ctx.saved_tensors
        sources = (x, z, g, g_logdet, *tensors, *(p for one in ctx.owned for p in one.weights))
        rest = once(grads, sources, "Chain(memory='invert')", "set memory = 'store'")
        return None, None, None, None, None, None, *rest

    @staticmethod
    def pull(ctx: Any, g: Tensor, g_logdet: Tensor) -> list[Any]:
        """Gradients of the segment's input, contexts and weights."""
        x, z, *tensors = ctx.saved_tensors
        found = iter(tensors)
        leaves = [next(found) if other is ... else other for other in ctx.others]
        exact = all(ctx.back.exact[number] for number in ctx.numbers[1:])  # the first is not inverted
        grads = _rebuild(ctx, x, z, leaves, g, g_logdet) if exact else None
        if grads is None:
            grads = _replay(ctx, x, leaves, g, g_logdet)
        return grads


def _rebuild(ctx: Any, x: Tensor, z: Tensor, leaves: list[Any], g: Tensor, g_logdet: Tensor) -> list[Any] | None:
    """Gradients of a segment from its output backwards; None where that does not lead to the anchor."""
    walk = _Walk(ctx, leaves)
    for i in reversed(range(1, len(ctx.parts))):
        z, g = walk.rebuild(i, z, g, g_logdet)
    again, g = walk.differentiate(0, x, g, g_logdet)
    if not again.numel():
        return walk.gradients(g)
    error = ((z - again).abs() / (1 + again.abs())).amax()
    if bool(error <= TOLERANCE.get(x.dtype, 1e-2)):
        return walk.gradients(g)
    names = ", ".join(type(part).__name__ for part in ctx.parts[1:])
    logging.getLogger("diffeo").debug("memory='invert': rebuilt input off by %.1e in %s; recomputed", error, names)
    return None


def _replay(ctx: Any, x: Tensor, leaves: list[Any], g: Tensor, g_logdet: Tensor) -> list[Any]:
    """Gradients of a segment by running it again from its anchor; every `PIECE` parts an input is kept meanwhile."""
    walk, count = _Walk(ctx, leaves), len(ctx.parts)

    @torch.no_grad()
    def following(z: Tensor, start: int, stop: int) -> Iterator[Tensor]:
        for i in range(start, stop):
            with replayed(ctx.random[i], x):
                z = ctx.run(ctx.numbers[i], z, walk.contexts[i])[0]
            yield z

    firsts = [x]
    for start in range(0, count - PIECE, PIECE):
        *_, z = following(firsts[-1], start, start + PIECE)
        firsts.append(z)
    for start in reversed(range(0, count, PIECE)):
        stop, first = min(start + PIECE, count), firsts.pop()
        inputs = [first, *following(first, start, stop - 1)]
        for i in reversed(range(start, stop)):
            _, g = walk.differentiate(i, inputs.pop(), g, g_logdet)
    return walk.gradients(g)


class _Walk:
    """One way back through a segment: gradients of contexts and weights as they add up."""

    def __init__(self, ctx: Any, leaves: list[Any]):
        self.ctx = ctx
        self.leaves = [
            t.detach().requires_grad_(needed) if isinstance(t, Tensor) and t.is_floating_point() else t
            for t, needed in zip(leaves, ctx.needs_input_grad[7 : 7 + ctx.n_leaves], strict=True)
        ]
        self.contexts: list[Context] = tree_unflatten(self.leaves, ctx.structure)
        self.weights = [one.weights for one in ctx.owned]
        self.sums: dict[int, Tensor] = {}

    def rebuild(self, i: int, z: Tensor, g: Tensor, g_logdet: Tensor) -> tuple[Tensor, Tensor]:
        """The input of part i from its output, and the gradient of the input."""
        with replayed(self.ctx.random[i], z):
            found = self.ctx.back.invert(self.ctx.numbers[i], z, self.contexts[i])
        if isinstance(found, Tensor):
            return found, self.differentiate(i, found, g, g_logdet)[1]
        x, leaves, z, logdet, join = found
        # a log-det that the chain sums over more dims hands its gradient to all of them
        of_all = g_logdet.reshape((*g_logdet.shape, *(1,) * (logdet.ndim - g_logdet.ndim))).expand_as(logdet)
        return x, join(self._pull(i, leaves, z, logdet, g, of_all))

    def differentiate(self, i: int, x: Tensor, g: Tensor, g_logdet: Tensor) -> tuple[Tensor, Tensor]:
        """Run part i again at x and pull the gradients of its results back: its output, and the gradient of x.

        The gradient of the segment's own x is zeros where nobody asks for it, as for data.
        """
        x = x.detach().requires_grad_(i > 0 or self.ctx.needs_input_grad[6])
        with torch.enable_grad(), replayed(self.ctx.random[i], x):
            z, logdet = self.ctx.run(self.ctx.numbers[i], x, self.contexts[i])
        return z.detach(), self._pull(i, (x,), z, logdet, g, g_logdet)[0]

    def _pull(
        self, i: int, inputs: tuple[Tensor, ...], z: Tensor, logdet: Tensor, g: Tensor, g_logdet: Tensor
    ) -> tuple[Tensor, ...]:
        own = (*tree_flatten(self.contexts[i])[0], *self.weights[i])
        wanted = [t for t in own if isinstance(t, Tensor) and t.requires_grad]
        outputs = [(t, grad) for t, grad in ((z, g), (logdet, g_logdet)) if t.requires_grad]
        ends, starts = [t for t, _ in outputs], [*(t for t in inputs if t.requires_grad), *wanted]
        pulled: Any = ()
        if ends and starts:
            pulled = pull_back(ends, [grad for _, grad in outputs], starts)
        found = {id(t): grad for t, grad in zip(starts, pulled, strict=bool(pulled))}
        for t in wanted:
            grad = found.get(id(t))
            if grad is not None:
                self.sums[id(t)] = grad if id(t) not in self.sums else self.sums[id(t)] + grad
        gradients = [found.get(id(t)) for t in inputs]
        return tuple(torch.zeros_like(t) if g is None else g for t, g in zip(inputs, gradients, strict=True))

    def gradients(self, g: Tensor) -> list[Any]:
        """Gradients of the segment's input, contexts and weights."""
        weights = (p for some in self.weights for p in some)
        return [g, *(self.sums.pop(id(t), None) for t in (*self.leaves, *weights))]
