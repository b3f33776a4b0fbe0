"""Autoregressive layers: each coordinate's scalar map depends on those before it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from copy import deepcopy
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from diffeo.core import SHORT, Incremental, Transform, Univariate
from diffeo.core.compiling import Kernel, compiled, signature
from diffeo.core.native import kernels_in_use
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    batch_inner,
    check_event,
    context_batch,
    context_mask,
    is_traced,
    permute_last,
    sum_event,
    visible,
)
from diffeo.transforms import autoregressive_kernel, conditioned_kernel


class Autoregressive(Transform):
    """zᵢ = u(xᵢ; net(x_before, context)): a scalar map whose parameters depend on the coordinates before it.

    log|det ∂z/∂x| = Σᵢ log|u'(xᵢ)|; the Jacobian is triangular in the order of the net.

    Args:
        net: an `Incremental` conditioner such as `diffeo.nets.MADE`, which also fixes the order.
        univariate: the scalar map.
        features: number of coordinates; default that of the net.
        sweeps: largest number of Jacobi sweeps that the inverse tries first, all coordinates at once; 0 for none. An
            attribute that may be set later.
        tolerance: residual |f(x) − z| ≤ tolerance · (1 + |z|) at which sweeps end, > 0; an attribute too.

    Cost: a density is one pass of the net. The inverse runs through the coordinates one by one and computes each hidden
    unit once, so its arithmetic is that of about one pass. A sweep is a pass; D of them always suffice, few do where
    coordinates hardly depend on each other. Where `sweeps` have not brought all rows to the tolerance, the inverse goes
    through the coordinates after all.

    "Masked Autoregressive Flow for Density Estimation" (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057;
    "Accelerating Feedforward Computation via Parallel Nonlinear Equation Solving" (Song et al., 2021),
    https://arxiv.org/abs/2002.03629

    >>> import torch, diffeo
    >>> layer = diffeo.Autoregressive(diffeo.nets.MADE(3, 2), diffeo.Affine())
    >>> layer.inverse(torch.ones(3))[0].shape
    torch.Size([3])
    """

    event_ndim = event_ndim_out = 1
    stepwise_inverse = True
    _compiled_block: Callable[..., Any] | None = None
    _compiled_run: Callable[..., Any] | None = None
    _compiled_sweep: Callable[..., Any] | None = None

    def __init__(
        self,
        net: Incremental,
        univariate: Univariate,
        features: int | None = None,
        *,
        sweeps: int = 0,
        tolerance: float = 1e-5,
    ):
        super().__init__()
        if sweeps < 0 or not tolerance > 0:
            raise ValueError(f"Autoregressive: expected sweeps >= 0 and tolerance > 0, got {sweeps} and {tolerance}")
        self.sweeps, self.tolerance = sweeps, tolerance
        self.event = Size((features or len(net.order),))
        self.net = net
        self.univariate = univariate
        self.domain = constraints.independent(univariate.domain, 1)
        self.codomain = constraints.independent(univariate.codomain, 1)
        self.exact_inverse = univariate.exact_inverse
        self.traceable = univariate.traceable

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Autoregressive")
        seen, order = visible(x, context), self.net.order
        found = conditioned_kernel.map_vector(self.net, self.univariate, x, seen, context, order, order)
        if found is not None:
            return found
        params = self.net(seen, context).to(x.dtype)
        placed, mask = self._place(x, params, context)
        z, logdet = self._scalars(self.univariate, placed, params, mask)
        return self._take_back(z), sum_event(logdet, 1)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Autoregressive")
        if is_traced() or (torch.is_grad_enabled() and not self.net.has_adjoint):
            return self._run(z, context)
        if not torch.is_grad_enabled():
            return self._find(z, context)
        with torch.no_grad():
            x, _ = self._find(*tree_map_only(Tensor, Tensor.detach, (z, context)))
        return self._attach_gradient(x, z, context)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if not k.startswith("_compiled_")}

    def compile_inverse(self) -> None:
        if not self.traceable or not self.exact_inverse or self.net.block > LONGEST:
            return
        self._compiled_sweep = compiled(self._sweep)
        key = (type(self), self.net.signature(), signature(self.univariate))
        if len(self.net.order) <= SHORT:
            self._compiled_run = compiled(self._run)
        else:
            shared = type(self) is Autoregressive and None not in key
            self._compiled_block = _block_of_all(self, key) if shared else compiled(self._block)

    def _attach_gradient(self, x: Tensor, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The solution x and its log-det again, as functions of z, weights and context that autograd can follow.

        One step of the run, taken for all coordinates at once from the solution, gives the values. Its gradient lacks
        what flows from coordinate to coordinate, which `Adjoint` adds on the way back.
        """
        params, trace = self.net.trace(visible(x, context), context)
        params = params.to(z.dtype)
        placed, mask = self._place(z, params, context)
        found, logdet = self._scalars(self.univariate.inverse, placed, params, mask)
        leaves, structure = tree_flatten(trace)
        found, logdet = Adjoint.apply(found, logdet, placed, params, mask, self, structure, *leaves)
        return self._take_back(found), sum_event(logdet, 1)

    def _place(self, x: Tensor, params: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """Coordinates and mask by position, in the batch of the parameters."""
        mask = context_mask(context)
        if mask is not None:
            mask = mask.expand(params.shape[:-1]).index_select(-1, self.net.order)
        return batch_inner(permute_last(x, self.net.order, self.net.rank)).expand(params.shape[:-1]), mask

    def _take_back(self, x: Tensor) -> Tensor:
        """From positions to coordinates."""
        return permute_last(x, self.net.rank, self.net.order)

    @staticmethod
    def _scalars(
        map: Callable[..., tuple[Tensor, Tensor]], x: Tensor, params: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One direction of the scalar map, which leaves padding as it is."""
        z, logdet = map(x, params)
        return (z, logdet) if mask is None else (torch.where(mask, z, x), torch.where(mask, logdet, 0.0))

    def _find(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The inverse without gradient: by sweeps if they suffice, else coordinate by coordinate."""
        sweep, x = self._compiled_sweep or self._sweep, z.clone()
        for _ in range(self.sweeps + 1 if self.sweeps else 0):
            following, back, logdet = sweep(x, z, context)
            if ((back - z).abs() <= self.tolerance * (1 + z.abs())).all():
                return x.expand_as(back), -logdet
            x = following
        if kernels_in_use() or self._compiled_sweep is not None:
            found = autoregressive_kernel.invert(self.net, self.univariate, z, context)
            if found is not None:
                return found
        return (self._compiled_run or self._run)(z, context)

    def _sweep(self, x: Tensor, z: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """x ← u⁻¹(z; net(x)) for all coordinates at once; and f(x) with its log-det, for the residual of x itself."""
        params = self.net(visible(x, context), context).to(z.dtype)
        at_x, mask = self._place(x, params, context)
        at_z, _ = self._place(z, params, context)
        back, logdet = self._scalars(self.univariate, at_x, params, mask)
        following, _ = self._scalars(self.univariate.inverse, at_z, params, mask)
        return self._take_back(following), self._take_back(back), sum_event(logdet, 1)

    def _run(self, z: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Coordinate after coordinate, block by block; rows are innermost."""
        order, size = self.net.order, self.net.block
        batch = z.shape[:-1]
        if self.net.context:
            batch = torch.broadcast_shapes(batch, context_batch(context))
        mask, z = context_mask(context), z.expand(*batch, -1)
        steps = _by_step(z, order)
        masks = None if mask is None else _by_step(mask.expand_as(z), order)
        run = self._compiled_block
        if run is None or torch.is_grad_enabled() or is_traced():
            run = self._block
        state, seen, found, xs, logdets = self.net.start(z, context), None, None, [], []
        for d in range(0, len(steps), size):
            state, weights, block = self.net.look_ahead(d, seen, found, state)
            here = None if masks is None else masks[d : d + size]
            x, logdet, seen, found = run(steps[d : d + size], here, block, weights)
            xs.append(x)
            logdets.append(logdet)
        x, logdet = torch.cat(xs).index_select(0, self.net.rank), sum_event(torch.cat(logdets).T, 1)
        return x.T.reshape(z.shape), logdet.reshape(batch)

    def _block(self, z: Tensor, mask: Tensor | None, block: Any, weights: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """A block of steps: coordinates, log-slopes, the coordinates as later ones see them, and what was found."""
        seen, xs, logdets, all_seen = None, [], [], []
        for i, z_d in enumerate(z.unbind()):
            params, _, block = self.net.step(seen, weights, block)
            x_d, logdet = self._scalars(
                self.univariate.inverse, z_d, params.to(z_d.dtype), None if mask is None else mask[i]
            )
            seen = x_d if mask is None else torch.where(mask[i], x_d, 0.0)
            xs.append(x_d)
            logdets.append(logdet)
            all_seen.append(seen)
        x = torch.stack(xs)
        return x, torch.stack(logdets), x if mask is None else torch.stack(all_seen), self.net.finish(block)


LONGEST = 64  # steps of a block beyond which it is not compiled: it would take minutes
ROWS = 1024  # of a typical call


class BlockKernel:
    """A block of steps of all layers that do the same with tensors of the same shapes, compiled once for them."""

    def __init__(self, layer: Autoregressive):
        twin = deepcopy(layer).to("meta")  # the structure without the weights, which are arguments
        twin.net.writes_out = True
        self.steps = twin.net.block

        def plain(z: Tensor, block: Any, weights: Any) -> Any:
            return twin._block(z, None, block, weights)

        def masked(z: Tensor, mask: Tensor, block: Any, weights: Any) -> Any:
            return twin._block(z, mask != 0, block, weights)

        self.plain, self.masked = Kernel(plain, 2, typical=ROWS), Kernel(masked, 3, typical=ROWS)

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


_block_kernels: WeakValueDictionary[Hashable, BlockKernel] = WeakValueDictionary()


def _block_of_all(layer: Autoregressive, key: Hashable) -> BlockKernel:
    kernel = _block_kernels.get(key)
    if kernel is None:
        kernel = _block_kernels[key] = BlockKernel(layer)
    return kernel


def _by_step(x: Tensor, order: Tensor) -> Tensor:
    """Coordinates of all rows by step, (steps, rows)."""
    return x.reshape(-1, x.shape[-1]).T.index_select(0, order)


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
            return ctx.layer._scalars(ctx.layer.univariate.inverse, z.detach(), params, mask)

        pull = torch.func.vjp(scalars, params.detach())[1]
        a, b = pull((torch.ones_like(g), torch.zeros_like(g)))[0], pull((torch.zeros_like(g), g_logdet))[0]
        solved = ctx.layer.net.solve_adjoint(tree_unflatten(trace, ctx.structure), g, a, b)
        if mask is not None:  # padding is seen by no other coordinate
            solved = torch.where(mask, solved, g)
        return solved, g_logdet, *(None for _ in ctx.needs_input_grad[2:])
