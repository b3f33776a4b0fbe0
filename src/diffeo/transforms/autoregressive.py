"""Autoregressive layers: each coordinate's scalar map depends on those before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from diffeo.core import Incremental, Transform, Univariate
from diffeo.core.compiling import compiled
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    batch_inner,
    check_event,
    context_mask,
    permute_last,
    sum_event,
    visible,
)

SHORT = 8  # features up to which a whole run is compiled, not one block of steps


class Autoregressive(Transform):
    """zᵢ = u(xᵢ; net(x_before, context)): a scalar map whose parameters depend on the coordinates before it.

    log|det ∂z/∂x| = Σᵢ log|u'(xᵢ)|; the Jacobian is triangular in the order of the net.

    Args:
        net: an `Incremental` conditioner such as `diffeo.nets.MADE`, which also fixes the order.
        univariate: the scalar map.
        features: number of coordinates; default that of the net.

    Cost: a density is one pass of the net. The inverse runs through the coordinates one by one and computes each hidden
    unit once, so its arithmetic is that of about one pass.

    "Masked Autoregressive Flow for Density Estimation" (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057

    >>> import torch, diffeo
    >>> layer = diffeo.Autoregressive(diffeo.nets.MADE(3, 2), diffeo.Affine())
    >>> layer.inverse(torch.ones(3))[0].shape
    torch.Size([3])
    """

    event_ndim = event_ndim_out = 1
    stepwise_inverse = True
    _compiled_block: Callable[..., Any] | None = None
    _compiled_run: Callable[..., Any] | None = None

    def __init__(self, net: Incremental, univariate: Univariate, features: int | None = None):
        super().__init__()
        self.event = Size((features or len(net.order),))
        self.net = net
        self.univariate = univariate
        self.domain = constraints.independent(univariate.domain, 1)
        self.codomain = constraints.independent(univariate.codomain, 1)
        self.exact_inverse = univariate.exact_inverse
        self.traceable = univariate.traceable

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Autoregressive")
        order, rank = self.net.order, self.net.rank
        params = self.net(visible(x, context), context)
        placed = batch_inner(permute_last(x, order, rank)).expand(params.shape[:-1])
        z, logdet = self.univariate(placed, params.to(x.dtype))
        mask = context_mask(context)
        if mask is not None:
            mask = mask.expand_as(x).index_select(-1, order)
            z, logdet = torch.where(mask, z, placed), torch.where(mask, logdet, 0.0)
        return permute_last(z, rank, order), sum_event(logdet, 1)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Autoregressive")
        if not (torch.is_grad_enabled() and self.net.has_adjoint) or torch.compiler.is_compiling():
            return self._run(z, context)
        with torch.no_grad():
            detached = tree_map_only(Tensor, Tensor.detach, (z, context))
            x, _ = (self._compiled_run or self._run)(*detached)
        return self._attach_gradient(x, z, context)

    def invert(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        if self._compiled_run is None or torch.is_grad_enabled():
            return self.inverse(z, context)
        check_event(z, self.event, "Autoregressive")
        return self._compiled_run(z, context)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k not in ("_compiled_block", "_compiled_run")}

    def compile_inverse(self) -> None:
        if len(self.net.order) <= SHORT:
            self._compiled_run = compiled(self._run)
        else:
            self._compiled_block = compiled(self._block)

    def _attach_gradient(self, x: Tensor, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The solution x and its log-det again, as functions of z, weights and context that autograd can follow.

        One step of the run, taken for all coordinates at once from the solution, gives the values. Its gradient lacks
        what flows from coordinate to coordinate, which `Adjoint` adds on the way back.
        """
        order, rank = self.net.order, self.net.rank
        seen = visible(x, context)
        params, trace = self.net.trace(seen, context)
        params = params.to(z.dtype)
        placed = batch_inner(permute_last(z.expand(x.shape), order, rank))
        mask = context_mask(context)
        if mask is not None:
            mask = mask.expand_as(x).index_select(-1, order)
        found, logdet = self._scalars(placed, params, mask)
        leaves, structure = tree_flatten(trace)
        found, logdet = Adjoint.apply(found, logdet, placed, params, mask, self, structure, *leaves)
        return permute_last(found, rank, order), sum_event(logdet, 1)

    def _scalars(self, z: Tensor, params: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x, logdet = self.univariate.inverse(z, params)
        return (x, logdet) if mask is None else (torch.where(mask, x, z), torch.where(mask, logdet, 0.0))

    def _run(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        order, block = self.net.order, self.net.block
        mask = context_mask(context)
        masks = None if mask is None else mask.expand_as(z).index_select(-1, order).unbind(-1)
        steps = z.index_select(-1, order).unbind(-1)
        state, seen, xs, logdets = self.net.start(z, context), None, [], []
        for d in range(0, len(steps), block):
            state = self.net.look_ahead(d, seen, state)
            here = None if masks is None else masks[d : d + block]
            x, logdet, seen, state = (self._compiled_block or self._block)(steps[d : d + block], here, state)
            xs.append(x)
            logdets.append(logdet)
        return torch.cat(xs, -1).index_select(-1, self.net.rank), sum_event(torch.cat(logdets, -1), 1)

    def _block(
        self, steps: tuple[Tensor, ...], masks: tuple[Tensor, ...] | None, state: Any
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """A block of steps: coordinates, log-slopes, the coordinates as later ones see them, and the state after."""
        seen, xs, logdets, all_seen = None, [], [], []
        for i, z_d in enumerate(steps):
            params, _, state = self.net.step(seen, state)
            z_d = z_d.expand(params.shape[:-1])
            x_d, logdet = self._scalars(z_d, params.to(z_d.dtype), None if masks is None else masks[i])
            seen = x_d if masks is None else torch.where(masks[i], x_d, 0.0)
            xs.append(x_d)
            logdets.append(logdet)
            all_seen.append(seen)
        return torch.stack(xs, -1), torch.stack(logdets, -1), torch.stack(all_seen, -1), state


class Adjoint(torch.autograd.Function):
    """The identity of (x, logdet); its gradient adds, to that of each coordinate, what later ones owe to it."""

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
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor, g_logdet: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        z, params, mask, *trace = ctx.saved_tensors

        def scalars(params: Tensor) -> tuple[Tensor, Tensor]:
            return ctx.layer._scalars(z.detach(), params, mask)

        pull = torch.func.vjp(scalars, params.detach())[1]
        a, b = pull((torch.ones_like(g), torch.zeros_like(g)))[0], pull((torch.zeros_like(g), g_logdet))[0]
        solved = ctx.layer.net.solve_adjoint(tree_unflatten(trace, ctx.structure), g, a, b)
        if mask is not None:  # padding is seen by no other coordinate
            solved = torch.where(mask, solved, g)
        return solved, g_logdet, *(None for _ in ctx.needs_input_grad[2:])
