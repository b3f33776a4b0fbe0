"""Transforms of parts of larger events: along one dim, or of some places of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import constraints

from diffeo.core import Rebuildable, Transform
from diffeo.functional import (
    Context,
    Event,
    at_positions,
    check_event,
    constant_logdet,
    context_mask,
    declared_reads,
    entries,
    map_mask,
    sum_event,
)
from diffeo.kernels import mix
from diffeo.kernels.dispatch import can_run
from diffeo.kernels.private import defined_together, has_hooks
from diffeo.kernels.segments import Rebuilt
from diffeo.transforms.linear import LULinear, Mixing, mixing


class Along(Transform, Rebuildable):
    """A transform of vectors along one dim of larger events, the same at every position: z_p = f(x_p).

    log|det ∂z/∂x| = Σ_p log|det ∂z_p/∂x_p|, over all positions p that the mask leaves. Channels of images, features of
    sequences: `Along(ActNorm(3), -3)`, `Along(LULinear(8), -1, 2)`.

    Args:
        transform: of vectors (`event_ndim` 1), such as a norm, a linear map, a coupling of its coordinates.
        dim: the dim that it runs along, counted from the end; −3 for the channels of an image.
        event_ndim: dims of the whole event, at least −dim, which is the default; the other dims may have any size.

    Raises:
        ValueError: another kind of transform; a dim that the event does not have.

    Cost: that of the transform, at every position.

    >>> import torch, diffeo
    >>> diffeo.Along(diffeo.LULinear(3), -3)(torch.ones(5, 3, 4, 4))[1].shape
    torch.Size([5])
    """

    def __init__(self, transform: Transform, dim: int, event_ndim: int | None = None):
        super().__init__()
        ndim = -dim if event_ndim is None else event_ndim
        if not -ndim <= dim < 0:
            raise ValueError(f"Along: expected a dim from −{ndim} to −1, got {dim}")
        if transform.event_ndim != 1 or transform.event_ndim_out != 1:
            raise ValueError(f"Along: expected a transform of vectors, got {type(transform).__name__}")
        self.transform, self.dim = transform, dim
        self.event_ndim = self.event_ndim_out = ndim
        self._reads = declared_reads(transform)
        self.event = self._whole(transform.event)
        self.domain = constraints.independent(transform.domain, ndim - transform.domain.event_dim)
        self.codomain = constraints.independent(transform.codomain, ndim - transform.codomain.event_dim)
        self.exact_inverse, self.exact_logdet = transform.exact_inverse, transform.exact_logdet
        self.traceable, self.stepwise = transform.traceable, transform.stepwise

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        found = self._mixed(x, context, inverse=False)
        return self._everywhere(self.transform, x, context) if found is None else found

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        found = self._mixed(z, context, inverse=True)
        return self._everywhere(self.transform.inverse, z, context) if found is None else found

    def rebuild(self, z: Tensor, context: Context = None) -> Rebuilt | None:
        with torch.enable_grad():
            one = self._mixing(z, context)
            if one is None:
                return None
            x, again = mix.unmix(z.detach(), *one[:4])
            whole, logdet = again.view(z.shape), constant_logdet(one.logdet, z, 3)
        return Rebuilt(x.detach().view(z.shape), (x,), whole, logdet, lambda g: g[0].view(z.shape))

    def _mixed(self, x: Tensor, context: Context, inverse: bool) -> tuple[Tensor, Tensor] | None:
        """Channels of images through a linear map in one operation, where it can run so."""
        one = self._mixing(x, context, inverse)
        if one is None:
            return None
        return mix.mix(x, *one[:4]), constant_logdet(one.logdet, x, 3)

    def _mixing(self, x: Tensor, context: Context, inverse: bool = False) -> Mixing | None:
        """The map of channels of images, where it is linear and can run so; its log-det is that of all places."""
        if self.dim != -3 or self.event_ndim != 3 or context_mask(context) is not None or not mix.may_mix(x):
            return None
        if has_hooks(self) or not defined_together(type(self), "forward", "inverse", "rebuild"):
            return None
        if self.transform.event not in (None, (x.shape[-3],)):
            return None
        one = mixing(self.transform, x.dtype, inverse)
        of_channels = [t for t in one or () if t is not None and t.ndim]
        if one is None or not can_run(x, *of_channels) or any(x.shape[-3] != len(t) for t in of_channels):
            return None
        return one._replace(logdet=one.logdet * (x.shape[-2] * x.shape[-1]))

    @property
    def wants_rows(self) -> bool:
        return self.transform.wants_rows

    def initialize(self, x: Tensor, context: Context = None) -> None:
        self.transform.initialize(x.movedim(self.dim, -1), self._context(context))

    def output_shape(self, event: Event) -> Event:
        return self._replaced(event, self.transform.output_shape((event[self.dim],)))

    def input_shape(self, event: Event) -> Event:
        return self._replaced(event, self.transform.input_shape((event[self.dim],)))

    def map_context(self, context: Context) -> Context:
        return self._with_mask(self.transform.map_context, context)

    def unmap_context(self, context: Context) -> Context:
        return self._with_mask(self.transform.unmap_context, context)

    def compile_direction(self, direction: str) -> None:
        self.transform.compile_direction(direction)

    def _everywhere(
        self, direction: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        check_event(x, (None,) * self.event_ndim if self.event is None else self.event, type(self).__name__)
        z, logdet = direction(x.movedim(self.dim, -1), self._context(context))
        return z.movedim(-1, self.dim), sum_event(logdet, self.event_ndim - 1)

    def _with_mask(self, direction: Callable[[Context], Context], context: Context) -> Context:
        """The context with the mask that the transform makes of it."""

        def mapped(mask: Tensor) -> Tensor:
            return entries(direction({"mask": mask.movedim(self.dim, -1)}))["mask"].movedim(-1, self.dim)

        return map_mask(context, mapped)

    def _context(self, context: Context) -> Context:
        """The context at each position, its mask with `dim` last."""
        wide, mask = at_positions(context, self._reads, self.event_ndim - 1), context_mask(context)
        if mask is None or isinstance(wide, Tensor) or wide is None:
            return wide
        return {**wide, "mask": mask.movedim(self.dim, -1)}

    def _whole(self, vector: Event | None) -> Event | None:
        return None if vector is None else self._replaced((None,) * self.event_ndim, vector)

    def _replaced(self, event: Event, vector: Event) -> Event:
        place = len(event) + self.dim
        return (*event[:place], *vector, *event[place + 1 :])


class Conv1x1(Along):
    """A linear map of the channels, the same at every place of an image: the invertible 1×1 convolution.

    log|det| = H · W · log|det W|, for events of shape (C, H, W) with any H and W; `Along` with an `LULinear`.

    Args:
        channels: C.
        linear: the map; default `LULinear(channels)`.

    Cost: O(C²) for each place in either direction.

    "Glow: Generative Flow with Invertible 1x1 Convolutions" (Kingma and Dhariwal, 2018),
    https://arxiv.org/abs/1807.03039

    >>> import torch, diffeo
    >>> diffeo.Conv1x1(3)(torch.ones(5, 3, 4, 4))[1].shape
    torch.Size([5])
    """

    def __init__(self, channels: int, linear: Transform | None = None):
        super().__init__(LULinear(channels) if linear is None else linear, -3)


class Grouped(Transform):
    """The same map of each group of the features: with `LULinear`, the grouped 1×1 convolution.

    Of D features in groups of k, group g holds the features g, g + D/k, g + 2 D/k, …: some of each part of the event,
    so that what couplings keep apart meets. log|det ∂z/∂x| = Σ_g log|det ∂z_g/∂x_g|.

    Args:
        transform: of vectors of k features, such as `LULinear(4)`.
        features: D, a multiple of k.

    Raises:
        ValueError: another kind of transform; features that are no multiple.

    Cost: that of the transform for each group; of a linear map O(D · k) in place of O(D²).

    "Glow-TTS: A Generative Flow for Text-to-Speech via Monotonic Alignment Search" (Kim et al., 2020),
    https://arxiv.org/abs/2005.11129

    >>> import torch, diffeo
    >>> diffeo.Grouped(diffeo.LULinear(2), 6)(torch.ones(5, 6))[1].shape
    torch.Size([5])
    """

    event_ndim = event_ndim_out = 1

    def __init__(self, transform: Transform, features: int):
        super().__init__()
        self.transform = Along(transform, -2, 2)
        size = None if transform.event is None else transform.event[0]
        if not size or features % size:
            raise ValueError(
                f"Grouped: expected a multiple of the features of {type(transform).__name__}, {size}; got {features}"
            )
        self.event, self.size, self.groups = (features,), size, features // size
        self.domain, self.codomain = transform.domain, transform.codomain
        self.exact_inverse, self.exact_logdet = transform.exact_inverse, transform.exact_logdet
        self.traceable, self.stepwise = transform.traceable, transform.stepwise

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._each(self.transform, x, context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._each(self.transform.inverse, z, context)

    @property
    def wants_rows(self) -> bool:
        return self.transform.wants_rows

    def initialize(self, x: Tensor, context: Context = None) -> None:
        self.transform.initialize(x.unflatten(-1, (self.size, self.groups)), self._context(context))

    def map_context(self, context: Context) -> Context:
        return map_mask(self.transform.map_context(self._context(context)), lambda mask: mask.flatten(-2))

    def unmap_context(self, context: Context) -> Context:
        return map_mask(self.transform.unmap_context(self._context(context)), lambda mask: mask.flatten(-2))

    def compile_direction(self, direction: str) -> None:
        self.transform.compile_direction(direction)

    def _each(
        self, direction: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Grouped")
        z, logdet = direction(x.unflatten(-1, (self.size, self.groups)), self._context(context))
        return z.flatten(-2), logdet

    def _context(self, context: Context) -> Context:
        mask = context_mask(context)
        if mask is None:
            return context
        whole = mask.shape[-1] == 1
        return {**entries(context), "mask": mask.unflatten(-1, (1, 1) if whole else (self.size, self.groups))}


class Partial(Transform):
    """A transform of some places along a dim of the event; the others stay: parts that leave a flow early.

    log|det ∂z/∂x| is that of the transform.

    Args:
        transform: of events with as many places along `dim` as the mask has True; it keeps their shape.
        mask: (n,) booleans, True for the places that it maps.
        dim: counted from the end of its event.

    Raises:
        ValueError: a mask that is no boolean vector or False everywhere; a transform that changes the shape of events.

    Cost: that of the transform.

    "WaveGlow: A Flow-based Generative Network for Speech Synthesis" (Prenger et al., 2018),
    https://arxiv.org/abs/1811.00002

    >>> import torch, diffeo
    >>> diffeo.Partial(diffeo.Exp(), torch.tensor([True, False]))(torch.zeros(2))[0]
    tensor([1., 0.])
    """

    apart: Tensor
    together: Tensor

    def __init__(self, transform: Transform, mask: Tensor, dim: int = -1):
        super().__init__()
        if mask.ndim != 1 or mask.dtype != torch.bool or not mask.any():
            raise ValueError(f"Partial: expected a boolean vector with a True, got {mask.dtype} {tuple(mask.shape)}")
        ndim = max(transform.event_ndim, -dim)
        if transform.event_ndim != transform.event_ndim_out or dim >= 0:
            raise ValueError("Partial: expected a transform that keeps the shape of events, and a dim from their end")
        self.transform, self.dim, self.size, self.moved = transform, dim, len(mask), int(mask.sum())
        self.event_ndim = self.event_ndim_out = ndim
        self.event = tuple(len(mask) if i == ndim + dim else None for i in range(ndim))
        inner = transform.event
        if inner is not None and inner[dim] not in (None, self.moved):
            raise ValueError(f"Partial: the transform takes {inner[dim]} places, the mask has {self.moved}")
        self.domain = constraints.independent(transform.domain, ndim - transform.domain.event_dim)
        self.codomain = constraints.independent(transform.codomain, ndim - transform.codomain.event_dim)
        self.exact_inverse, self.exact_logdet = transform.exact_inverse, transform.exact_logdet
        self.traceable, self.stepwise = transform.traceable, transform.stepwise
        self.register_buffer("apart", torch.cat([mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]]))
        self.register_buffer("together", self.apart.argsort())

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._there(self.transform, x, context)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._there(self.transform.inverse, z, context)

    @property
    def wants_rows(self) -> bool:
        return self.transform.wants_rows

    def initialize(self, x: Tensor, context: Context = None) -> None:
        self.transform.initialize(self._parts(x)[0], self._context(context))

    def map_context(self, context: Context) -> Context:
        return self._with_mask(self.transform.map_context, context)

    def unmap_context(self, context: Context) -> Context:
        return self._with_mask(self.transform.unmap_context, context)

    def compile_direction(self, direction: str) -> None:
        self.transform.compile_direction(direction)

    def _there(
        self, direction: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Partial")
        moved, stays = self._parts(x)
        z, logdet = direction(moved, self._context(context))
        logdet = sum_event(logdet, self.event_ndim - self.transform.event_ndim)
        stays = stays.expand(*z.shape[: z.ndim - self.event_ndim], *stays.shape[stays.ndim - self.event_ndim :])
        return torch.cat([z, stays], self.dim).index_select(self.dim, self.together), logdet

    def _with_mask(self, direction: Callable[[Context], Context], context: Context) -> Context:
        """The context with the mask of which the transform maps its places."""

        def mapped(mask: Tensor) -> Tensor:
            if mask.shape[self.dim] == 1:
                return mask
            moved, stays = self._parts(mask)
            return torch.cat([entries(direction({"mask": moved}))["mask"], stays], self.dim).index_select(
                self.dim, self.together
            )

        return map_mask(context, mapped)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        apart = x.index_select(self.dim, self.apart)
        return apart.narrow(self.dim, 0, self.moved), apart.narrow(self.dim, self.moved, self.size - self.moved)

    def _context(self, context: Context) -> Context:
        mask = context_mask(context)
        if mask is None or mask.shape[self.dim] == 1:
            return context
        return {**entries(context), "mask": self._parts(mask)[0]}
