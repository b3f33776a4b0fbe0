"""Multiscale flows of images as one bijection to a flat vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from diffeo.core import Chain, Transform
from diffeo.functional import Context, Event, check_event, entries, in_blocks, map_mask


class Multiscale(Transform):
    """Stages in a row, after each but the last of which half of the channels leave for the flat result.

    (C, H, W) → (D,): h₀ = x, (h_l, b_l) = split(stage_l(h_{l−1})), z = (b₁, …, b_{L−1}, stage_L(h_{L−1})), each
    flattened. log|det| = Σ_l log|det stage_l|. What leaves is no longer changed, so the rest costs a fraction. A stage
    that ends in a `Coupling` of b_l given h_l standardises b_l by its conditional prior; all of z is then compared
    with one standard normal, and temperature, interpolation and arithmetic act on one vector.

    Args:
        *stages: transforms of images, each of the shape that the kept channels have there.
        event: (C, H, W) of x.
        memory: as in `Chain`, for all stages that are chains; an attribute that may be set later.

    Raises:
        ValueError: no stage; a stage that is no transform of images, or does not take the shape that comes to it; an
            odd number of channels to split.

    Cost: that of the stages.

    "Density estimation using Real NVP" (Dinh et al., 2016), https://arxiv.org/abs/1605.08803

    >>> import torch, diffeo
    >>> flow = diffeo.Multiscale(diffeo.Squeeze(), diffeo.Squeeze(), event=(1, 8, 8))
    >>> flow(torch.zeros(5, 1, 8, 8))[0].shape
    torch.Size([5, 64])
    """

    event_ndim, event_ndim_out = 3, 1
    codomain = constraints.real_vector

    def __init__(self, *stages: Transform, event: tuple[int, int, int], memory: str = "store"):
        super().__init__()
        if not stages:
            raise ValueError("Multiscale: expected at least one stage, got none")
        self.size = (int(event[0]), int(event[1]), int(event[2]))
        self.event = self.size
        shape: tuple[int, ...] = self.size
        self.shapes: list[tuple[int, ...]] = []  # of each stage's result
        for i, stage in enumerate(stages):
            if stage.event_ndim != 3 or stage.event_ndim_out != 3:
                raise ValueError(f"Multiscale: stage {i + 1}, a {type(stage).__name__}, is no transform of images")
            if stage.event is not None:
                check_event(torch.empty(shape, device="meta"), stage.event, f"Multiscale: stage {i + 1}")
            out = tuple(int(n) for n in stage.output_shape(shape) if n is not None)
            self.shapes.append(out)
            if i < len(stages) - 1 and out[0] % 2:
                raise ValueError(f"Multiscale: stage {i + 1} gives {out[0]} channels, which cannot be halved")
            shape = (out[0] // 2, *out[1:])
        self.stages = nn.ModuleList(stages)
        self.domain = stages[0].domain
        self.exact_inverse = all(stage.exact_inverse for stage in stages)
        self.exact_logdet = all(stage.exact_logdet for stage in stages)
        self.traceable = all(stage.traceable for stage in stages)
        self.memory = memory

    @property
    def memory(self) -> str:
        """What training keeps for the backward pass, in every stage that is a chain."""
        return self._memory

    @memory.setter
    def memory(self, policy: str) -> None:
        for stage in self.stages:
            if isinstance(stage, Chain):
                stage.memory = policy
        self._memory = policy

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(x, self.event, "Multiscale")
        parts: list[Tensor] = []
        total: Tensor | None = None
        for i, stage in enumerate(self._transforms()):
            y, logdet = stage(x, context)
            total = logdet if total is None else total + logdet
            x, leaving = self._split(y, i)
            parts.append(leaving.flatten(-3))
            context = stage.map_context(context)
            context = self._kept(context, i)
        return torch.cat(parts, -1), total  # pyright: ignore[reportReturnType] (there is a stage)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        check_event(z, (math.prod(self.size),), "Multiscale")
        contexts: list[Context] = []
        for i, stage in enumerate(self._transforms()):
            contexts.append(context)
            context = self._kept(stage.map_context(context), i)
        leaving = z.split([math.prod(shape) for shape in self._leaving()], -1)
        x: Tensor | None = None
        total: Tensor | None = None
        for stage, flat, shape, c in reversed(
            list(zip(self._transforms(), leaving, self._leaving(), contexts, strict=True))
        ):
            b = flat.unflatten(-1, shape)
            x, logdet = stage.inverse(b if x is None else torch.cat([x, b], -3), c)
            total = logdet if total is None else total + logdet
        return x, total  # pyright: ignore[reportReturnType] (there is a stage)

    @property
    def wants_rows(self) -> bool:
        return any(stage.wants_rows for stage in self._transforms())

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        for i, stage in enumerate(self._transforms()):
            stage.initialize(x, context)
            if i < len(self.stages) - 1:
                x = self._split(in_blocks(stage, x, context, 3), i)[0]
                context = self._kept(stage.map_context(context), i)

    def output_shape(self, event: Event) -> Event:
        return (math.prod(self.size),)

    def input_shape(self, event: Event) -> Event:
        return self.size

    def map_context(self, context: Context) -> Context:
        return map_mask(context, self._fold_mask)

    def unmap_context(self, context: Context) -> Context:
        return map_mask(context, self._unfold_mask)

    def _fold_mask(self, mask: Tensor) -> Tensor:
        if mask.shape[-3:] == (1, 1, 1):
            return mask.flatten(-3)
        parts: list[Tensor] = []
        mask = mask.expand(*mask.shape[:-3], *self.size)
        for i, stage in enumerate(self._transforms()):
            mask = entries(stage.map_context({"mask": mask}))["mask"]
            mask, leaving = self._split(mask.expand(*mask.shape[:-3], *self.shapes[i]), i)
            parts.append(leaving.flatten(-3))
        return torch.cat(parts, -1)

    def _unfold_mask(self, mask: Tensor) -> Tensor:
        if mask.shape[-1] == 1:
            return mask[..., None, None]
        leaving = mask.split([math.prod(shape) for shape in self._leaving()], -1)
        inner: list[Tensor] = []  # of the stages that come after
        sizes = zip(self._transforms(), leaving, self._leaving(), self.shapes, strict=True)
        for stage, flat, left, whole in reversed(list(sizes)):
            folded = torch.cat([*inner, flat.unflatten(-1, left)], -3)
            kept = entries(stage.unmap_context({"mask": folded}))["mask"]
            inner = [kept.expand(*kept.shape[:-3], *stage.input_shape(whole))]  # pyright: ignore[reportCallIssue, reportArgumentType]
        return inner[0]

    def _split(self, y: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """What goes on after stage i, and what leaves: half of the channels each, and all at the end."""
        if i == len(self.stages) - 1:
            return y, y
        half = self.shapes[i][0] // 2
        kept, leaving = y.split([half, half], -3)
        return kept, leaving

    def _leaving(self) -> list[tuple[int, ...]]:
        return [*((shape[0] // 2, *shape[1:]) for shape in self.shapes[:-1]), self.shapes[-1]]

    def _kept(self, context: Context, i: int) -> Context:
        """The context with the mask of the channels that go on after stage i."""
        return map_mask(context, lambda mask: mask if mask.shape[-3] == 1 else self._split(mask, i)[0])

    def _transforms(self) -> list[Transform]:
        return list(self.stages)  # pyright: ignore[reportReturnType] (a ModuleList forgets its element type)
