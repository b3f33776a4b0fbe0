"""Autoregressive layers: each position's scalar map depends on those before it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from copy import deepcopy
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional

from diffeo.core import Incremental, Univariate
from diffeo.functional import (
    Context,
    check_event,
    context_batch,
    context_mask,
    entries,
    joined,
    narrowed,
    once,
    sum_event,
)
from diffeo.kernels import inverse
from diffeo.kernels.compiling import Region, compiled, signature
from diffeo.kernels.dispatch import is_traced, kernels_in_use, using
from diffeo.kernels.layout import batch_inner, permute
from diffeo.kernels.private import tree_flatten, tree_map, tree_map_only, tree_unflatten
from diffeo.nets.blockwise import SHORT, Blockwise
from diffeo.transforms.conditioned import Conditioned

LONGEST = 64  # steps of a block beyond which it is not compiled: it would take minutes
TYPICAL_ROWS = 1024  # of a call


class Autoregressive(Conditioned):
    """zᵢ = u(xᵢ; net(x_before, context)): scalar maps whose parameters depend on the positions before.

    log|det ∂z/∂x| = Σᵢ log|u'(xᵢ)|; the Jacobian is triangular in the order of the net. A position is a coordinate of a
    vector, or, with another `dim`, a frame of a sequence or a row of an image, whose elements are mapped at once.

    Args:
        net: an `Incremental` conditioner such as `diffeo.nets.MADE`, which also fixes the order.
        univariate: the scalar map.
        features: number of positions; default that of the net's order.
        dim: the dim of the event that positions follow each other along, counted from the end.
        event_ndim: dims of the event. Default: from `dim` on.
        sweeps: largest number of Jacobi sweeps that the inverse tries first, all positions at once; 0 for none. An
            attribute that may be set later.
        tolerance: residual |f(x) − z| ≤ tolerance · (1 + |z|) at which sweeps end, > 0; an attribute too.

    Cost: a density is one pass of the net. The inverse runs through the positions one by one; with a `MADE` it computes
    each hidden unit once, so its arithmetic is that of about one pass. A sweep is a pass; D of them always suffice, few
    do where positions hardly depend on each other. Where `sweeps` have not brought all rows to the tolerance, the
    inverse goes through the positions after all. Events in float64 go through the positions in both directions, without
    sweeps, where the net is of float32.

    "Masked Autoregressive Flow for Density Estimation" (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057;
    "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving" (Song et al., 2021),
    https://arxiv.org/abs/2002.03629

    >>> import torch, diffeo
    >>> layer = diffeo.Autoregressive(diffeo.nets.MADE(3, 2), diffeo.Affine())
    >>> layer.inverse(torch.ones(3))[0].shape
    torch.Size([3])
    """

    net: Incremental
    stepwise = frozenset({"inverse"})
    _compiled: Compiled | None = None

    def __init__(
        self,
        net: Incremental,
        univariate: Univariate,
        features: int | None = None,
        *,
        dim: int = -1,
        event_ndim: int | None = None,
        sweeps: int = 0,
        tolerance: float = 1e-5,
    ):
        if sweeps < 0 or not tolerance > 0:
            raise ValueError(f"Autoregressive: expected sweeps >= 0 and tolerance > 0, got {sweeps} and {tolerance}")
        size = features or (None if net.order is None else len(net.order))
        super().__init__(net, univariate, size, dim, event_ndim)
        self.sweeps, self.tolerance = sweeps, tolerance

    def take(self, x: Tensor) -> tuple[Tensor, Tensor]:
        order, rank = self.net.order, self.net.rank
        b = x if order is None or rank is None else permute(x, order, rank, self.dim)
        return x, batch_inner(b) if self.dim == -1 else b

    def put(self, a: Tensor, b: Tensor) -> Tensor:
        order, rank = self.net.order, self.net.rank
        return b if order is None or rank is None else permute(b, rank, order, self.dim)

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        order = self.net.order
        if order is None:
            raise ValueError("Autoregressive: positions of a net without an order have no fixed places")
        return order, order

    def map(self, x: Tensor, context: Context, direction: str) -> tuple[Tensor, Tensor]:
        if self._is_wide(x):
            return self.run(x, context, direction)[:2]
        return super().map(x, context, direction)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, self.event, "Autoregressive")
        followed = torch.is_grad_enabled()
        if self._is_wide(z):
            return self.run(z, context)[:2]
        if is_traced() or (followed and not isinstance(self.net, Blockwise)):
            return self._run(z, context)
        if not followed:
            return self._find(z, context)
        with torch.no_grad():
            x, _ = self._find(*tree_map_only(Tensor, Tensor.detach, (z, context)))
        return self._attach_gradient(x, z, context)

    def _is_wide(self, x: Tensor) -> bool:
        """Whether the net is narrower than x: both directions then take the same steps, which round alike."""
        return narrowed(x, self.net).dtype != x.dtype

    def run(self, event: Tensor, context: Context = None, direction: str = "inverse") -> tuple[Tensor, Tensor, Any]:
        """One direction a step at a time: the result, its log-det, and what the net's steps emitted besides.

        That is a pytree as `Incremental.step` gives it, its tensors with a dim of steps after the batch; None where the
        net emits nothing.
        """
        check_event(event, self.event, "Autoregressive")
        back = direction == "inverse"
        scalar_map = self.univariate.inverse if back else self.univariate
        event = event.expand(*self._batch(event, context), *event.shape[event.ndim - self.event_ndim :])
        batch, order = event.shape[: event.ndim - self.event_ndim], self.net.order
        mask = context_mask(context)

        def by_step(t: Tensor) -> Tensor:
            """(steps, rows, *position)."""
            t = t.movedim(self.dim, 0)
            t = t if order is None else t.index_select(0, order)
            return t.reshape(len(t), -1, *t.shape[1 + len(batch) :])

        steps, masks = by_step(event), None if mask is None else by_step(mask.expand_as(event))
        state, seen = self.net.start(narrowed(event, self.net), context), None
        found: list[Tensor] = []
        logdets: list[Tensor] = []
        emitted: list[Any] = []
        for d, given in enumerate(steps):
            params, aux, state = self.net.step(None if seen is None else narrowed(seen, self.net), state)
            here = None if masks is None else masks[d]
            mapped, logdet = _scalars(scalar_map, given, params.to(event.dtype), here)
            x_d = mapped if back else given
            seen = x_d if here is None else torch.where(here, x_d, 0.0)
            found.append(mapped)
            logdets.append(sum_event(logdet, self.event_ndim - 1))
            emitted.append(aux)
        if not found:
            return event, event.new_zeros(batch), None
        whole = torch.stack(found).unflatten(1, batch) if batch else torch.stack(found).squeeze(1)
        whole = whole if self.net.rank is None else whole.index_select(0, self.net.rank)
        logdet = torch.stack(logdets).sum(0).reshape(batch)
        if emitted[0] is None:
            return whole.movedim(0, self.dim), logdet, None
        aux = tree_map(lambda *of_steps: torch.stack(of_steps, 1).unflatten(0, batch or (1,)), *emitted)
        return whole.movedim(0, self.dim), logdet, aux if batch else tree_map(lambda t: t.squeeze(0), aux)

    def compile_direction(self, direction: str) -> None:
        net = self.net
        if direction == "forward":
            super().compile_direction(direction)
            return
        if not (self.traceable and self.exact_inverse and isinstance(net, Blockwise) and net.block <= LONGEST):
            return
        run = block = None
        if len(net.order) <= SHORT:
            run = compiled(self._run)
        else:
            key = (type(self), net.signature(), signature(self.univariate))
            shared = type(self) is Autoregressive and None not in key
            block = _block_of_all(self, key) if shared else compiled(self._run_block)
        self._compiled = Compiled(compiled(self._sweep), run, block)

    def _batch(self, z: Tensor, context: Context) -> tuple[int, ...]:
        """The batch of z, of its mask, and of what the net reads."""
        reads, mask = self.net.reads, context_mask(context)
        seen = {name: t for name, t in entries(context).items() if name in reads}
        batch = joined(z.shape[: z.ndim - self.event_ndim], context_batch(seen, reads))
        return tuple(batch if mask is None else joined(batch, mask.shape[: mask.ndim - self.event_ndim]))

    def _find(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The inverse without gradient: by sweeps if they suffice, else position by position."""
        made = self._compiled
        sweep, x = self._sweep if made is None else made.sweep, z.clone()
        for _ in range(self.sweeps + 1 if self.sweeps else 0):
            following, back, logdet = sweep(x, z, context)
            if ((back - z).abs() <= self.tolerance * (1 + z.abs())).all():
                return x.expand_as(back), -logdet
            x = following
        if isinstance(self.net, Blockwise) and context_mask(context) is None:
            with using(made is not None or kernels_in_use()):
                whole = z.expand(*self._batch(z, context), z.shape[-1])
                found = inverse.invert(self.net, self.univariate, whole, context)
            if found is not None:
                return found
        return (self._run if made is None or made.run is None else made.run)(z, context)

    def _sweep(self, x: Tensor, z: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """x ← u⁻¹(z; net(x)) for all positions at once; and f(x) with its log-det, for the residual of x itself."""
        a, b = self.take(x)
        params = self.params(a, b, context)
        back, logdet = self.map_scalars(b, params, context, "forward")
        following, _ = self.map_scalars(self.take(z)[1], params, context, "inverse")
        return self.put(x, following), self.put(x, back), sum_event(logdet, self.event_ndim)

    def _run(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Position after position; in blocks where the net can, with rows innermost."""
        net = self.net
        if not isinstance(net, Blockwise):
            return self.run(z, context)[:2]
        batch, mask, size = self._batch(z, context), context_mask(context), net.block
        z = z.expand(*batch, z.shape[-1])

        def by_step(t: Tensor) -> Tensor:
            return t.reshape(-1, t.shape[-1]).T.index_select(0, net.order)

        steps, masks = by_step(z), None if mask is None else by_step(mask.expand_as(z))
        run_block = None if self._compiled is None else self._compiled.block
        if run_block is None or torch.is_grad_enabled() or is_traced():
            run_block = self._run_block
        run, seen, found = net.begin(z, context), None, None
        xs: list[Tensor] = []
        logdets: list[Tensor] = []
        for d in range(0, len(steps), size):
            run, weights, block = net.look_ahead(d, seen, found, run)
            here = None if masks is None else masks[d : d + size]
            x, logdet, seen, found = run_block(steps[d : d + size], here, block, weights)
            xs.append(x)
            logdets.append(logdet)
        x, logdet = torch.cat(xs).index_select(0, net.rank), sum_event(torch.cat(logdets).T, 1)
        return x.T.reshape(z.shape), logdet.reshape(batch)

    def _run_block(
        self, z: Tensor, mask: Tensor | None, block: Any, weights: Any
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """A block of steps: coordinates, log-slopes, the coordinates as later ones see them, and what was found."""
        net: Any = self.net
        seen, xs, logdets, all_seen = None, [], [], []
        for i, z_d in enumerate(z.unbind()):
            params, block = net.step_in_block(seen, weights, block)
            here = None if mask is None else mask[i]
            x_d, logdet = _scalars(self.univariate.inverse, z_d, params.to(z_d.dtype), here)
            seen = x_d if here is None else torch.where(here, x_d, 0.0)
            xs.append(x_d)
            logdets.append(logdet)
            all_seen.append(seen)
        x = torch.stack(xs)
        return x, torch.stack(logdets), x if mask is None else torch.stack(all_seen), net.finish(block)

    def _attach_gradient(self, x: Tensor, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The solution x and its log-det again, as functions of z, weights and context that autograd can follow.

        One step of the run, taken for all coordinates at once from the solution, gives the values. Its gradient lacks
        what flows from coordinate to coordinate, which `Adjoint` adds on the way back.
        """
        net: Any = self.net
        params, trace = net.trace(self.visible(x, context), context)
        params, placed, mask = params.to(z.dtype), self.take(z)[1], context_mask(context)
        placed = placed.expand(params.shape[:-1])
        if mask is not None:
            mask = self.take(mask.expand(params.shape[:-1]))[1]
        found, logdet = _scalars(self.univariate.inverse, placed, params, mask)
        leaves, structure = tree_flatten(trace)
        found, logdet = Adjoint.apply(found, logdet, placed, params, mask, self, structure, *leaves)  # pyright: ignore
        return self.put(x, found), sum_event(logdet, 1)


class Compiled(NamedTuple):
    """What an inverse runs where it was compiled."""

    sweep: Callable[..., Any]
    run: Callable[..., Any] | None  # the whole run, where it is short
    block: Callable[..., Any] | None  # a block of steps, where it is not


def _scalars(
    map: Callable[..., tuple[Tensor, Tensor]], x: Tensor, params: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One direction of the scalar map, which leaves padding as it is."""
    z, logdet = map(x, params)
    return (z, logdet) if mask is None else (torch.where(mask, z, x), torch.where(mask, logdet, 0.0))


class BlockRegion:
    """A block of steps of all layers that do the same with tensors of the same shapes, compiled once for them."""

    def __init__(self, layer: Autoregressive):
        twin: Any = deepcopy(layer).to("meta")  # the structure without the weights, which are arguments
        twin.net.writes_out = True
        self.steps = twin.net.block

        def plain(z: Tensor, block: Any, weights: Any) -> Any:
            return twin._run_block(z, None, block, weights)

        def masked(z: Tensor, mask: Tensor, block: Any, weights: Any) -> Any:
            return twin._run_block(z, mask != 0, block, weights)

        self.plain, self.masked = Region(plain, 2, typical=TYPICAL_ROWS), Region(masked, 3, typical=TYPICAL_ROWS)

    def __call__(self, z: Tensor, mask: Tensor | None, block: Any, weights: Any) -> Any:
        if torch.is_autocast_enabled(z.device.type):  # it has cast what came from products
            block, weights = tree_map_only(Tensor, lambda t: t.to(z.dtype), (block, weights))
        n, missing = len(z), self.steps - len(z)
        if missing:  # the last block may have fewer steps
            z = functional.pad(z, (0, 0, 0, missing))
            mask = None if mask is None else functional.pad(mask, (0, 0, 0, missing))
        kernel, masks = (self.plain, ()) if mask is None else (self.masked, (mask.to(z.dtype),))
        x, logdet, seen, found = kernel(z, *masks, block, weights)
        return (x[:n], logdet[:n], seen[:n], found) if missing else (x, logdet, seen, found)


_block_regions: WeakValueDictionary[Hashable, BlockRegion] = WeakValueDictionary()


def _block_of_all(layer: Autoregressive, key: Hashable) -> BlockRegion:
    kernel = _block_regions.get(key)
    if kernel is None:
        kernel = _block_regions[key] = BlockRegion(layer)
    return kernel


class Adjoint(torch.autograd.Function):
    """The identity of (x, logdet); its gradient adds to each coordinate's what reaches it through later ones."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        logdet: Tensor,
        z: Tensor,
        params: Tensor,
        mask: Tensor | None,
        layer: Autoregressive,
        structure: Any,
        *trace: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return x.clone(), logdet.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, _, z, params, mask, ctx.layer, ctx.structure, *trace = inputs
        ctx.save_for_backward(z, params, mask, *trace)

    @staticmethod
    def backward(ctx: Any, g: Tensor, g_logdet: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        z, params, _, *trace = ctx.saved_tensors
        with torch.no_grad():
            solved = _solve(ctx, g, g_logdet)
        sources = (z, params, g, g_logdet, *trace)
        gradients = once((solved, g_logdet), sources, "The inverse of Autoregressive", "take them of its forward pass")
        return *gradients, *(None for _ in ctx.needs_input_grad[2:])


def _solve(ctx: Any, g: Tensor, g_logdet: Tensor) -> Tensor:
    """The gradient of each coordinate with what later ones owe to it."""
    z, params, mask, *trace = ctx.saved_tensors

    def scalars(params: Tensor) -> tuple[Tensor, Tensor]:
        return _scalars(ctx.layer.univariate.inverse, z.detach(), params, mask)

    pull = torch.func.vjp(scalars, params.detach())[1]
    a, b = pull((torch.ones_like(g), torch.zeros_like(g)))[0], pull((torch.zeros_like(g), g_logdet))[0]
    solved = ctx.layer.net.solve_adjoint(tree_unflatten(trace, ctx.structure), g, a, b)
    if mask is not None:  # padding is seen by no other coordinate
        solved = torch.where(mask, solved, g)
    return solved
