"""Discrete values as continuous ones: uniform and variational dequantization."""

from __future__ import annotations

import math

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn import functional

from diffeo.core import Density
from diffeo.densities.around import AroundFlow
from diffeo.functional import (
    Context,
    check_event,
    context_batch,
    context_features,
    context_mask,
    entries,
    joined,
    masked_sum,
    sum_event,
    visible,
)
from diffeo.noise import Seeds

EDGE = 1e-6  # how close noise comes to 0 or 1 where a normal number is made of it


class Integer(Constraint):
    """Whole numbers."""

    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        return value % 1 == 0


class Dequantized(AroundFlow):
    """A probability for values on a grid: log P(x) ≥ E_u[log p(x + u·spacing) − log q(u | x)] + Σ log spacingᵢ.

    p is a density on the line. u is uniform on [0, 1)^D, where q = 1, or has a learned density q. The value is a lower
    bound, tighter with more samples (the importance-weighted bound log (1/S) Σₛ p(x + uₛ·spacing) / q(uₛ | x) in
    expectation), and random unless a seeded generator, or the noise itself, is given.
    Samples are rounded down to the grid; they are integers where spacing is 1.

    Args:
        density: a density over x + u·spacing.
        spacing: distance between neighbouring values, > 0; or one for each position of the event, where 0 marks
            continuous ones: they get no noise and keep their density.
        absent: for each position of the event, a vector, which position says that it holds nothing, by a value above
            0: noise then takes its place, within the bounds `low` and `high`; −1 where it always holds something.
        low, high: bounds of the positions, ±inf for none; they matter where something may be absent.
        levels: how many values there are, 0 … levels − 1, at spacing 1: samples are kept among them, training values
            must be, and others have no probability; None for no bounds.
        dequantizer: q, a density of events in the unit box with reparameterised samples; for vectors its context is x
            and then the context, as in `diffeo.unit_box(D, context=D)`, for images `{"image": x}`, with a mask as
            `"mask"`; None for uniform noise.

    Raises:
        ValueError: no positive spacing; a dequantizer beside continuous positions, or without reparameterised samples.

    Cost: `samples` passes of the density.

    "A note on the evaluation of generative models" (Theis et al., 2015), https://arxiv.org/abs/1511.01844; "Flow++:
    Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design" (Ho et al., 2019),
    https://arxiv.org/abs/1902.00275

    >>> import torch, diffeo
    >>> coin = diffeo.Dequantized(diffeo.Uniform(torch.zeros(1), torch.full((1,), 2.0)))
    >>> coin(torch.tensor([1])).exp()
    tensor(0.5000)
    """

    exact = False
    has_rsample = False
    spacing: Tensor

    absent: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        density: Density,
        spacing: float | Tensor = 1.0,
        dequantizer: Density | None = None,
        *,
        absent: Tensor | None = None,
        low: Tensor | None = None,
        high: Tensor | None = None,
        levels: int | None = None,
    ):
        super().__init__()
        steps = torch.as_tensor(spacing, dtype=torch.get_default_dtype())
        self.has_absent = absent is not None and bool((absent >= 0).any())
        if not ((steps >= 0).all() and ((steps > 0).any() or self.has_absent)):
            raise ValueError(f"Dequantized: expected spacing > 0, got {spacing}")
        self.density = density
        if dequantizer is not None:
            dequantizer._require_rsample()
            if not (steps > 0).all():
                raise ValueError("Dequantized: a dequantizer needs spacing > 0 at every position of the event")
        self.dequantizer = dequantizer
        self.register_buffer("spacing", steps.clone(), persistent=False)
        if self.has_absent:
            none = torch.full(absent.shape, torch.inf)  # pyright: ignore[reportOptionalMemberAccess]
            self.register_buffer("absent", absent, persistent=False)
            self.register_buffer("low", -none if low is None else low, persistent=False)
            self.register_buffer("high", none if high is None else high, persistent=False)
        if levels is not None and (levels < 2 or not (steps == 1).all()):
            raise ValueError(f"Dequantized: expected at least 2 levels at spacing 1, got {levels}")
        self.levels = levels
        self._on_grid = bool((steps == 1).all())  # samples are integers
        self.event, self.event_ndim = density.event, density.event_ndim
        self._context_dims = density.context_dims()

    @property
    def support(self) -> Constraint:
        integer = Integer() if self._on_grid else constraints.real
        return constraints.independent(integer, self.event_ndim)

    def event_shape(self, context: Context = None) -> Size:
        return self.density.event_shape(context)

    def context_dims(self) -> dict[str, int]:
        return self._context_dims

    def forward(
        self,
        x: Tensor,
        context: Context = None,
        samples: int = 1,
        generator: Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        self.check_context(context)
        event = self.event_shape(context)
        x = visible(x if x.is_floating_point() else x.to(self.spacing.dtype), context)
        check_event(x, tuple(event), type(self).__name__)
        apart = None
        if self.levels is not None:  # what is no level has no probability, whatever p makes of it
            here = ((x >= 0) & (x < self.levels) & (x % 1 == 0)) | x.isnan()
            x, apart = torch.where(here, x, 0.0), sum_event((~here).to(x.dtype), len(event)) > 0
        batch = joined(x.shape[: x.ndim - len(event)], context_batch(context, self._context_dims))
        log_q: Tensor | float = 0.0
        if noise is None and self.dequantizer is not None:
            rows = self._beside(x.expand(*batch, *event), context)
            noise, log_q = self.dequantizer.sample_and_log_prob((samples, *batch), rows, generator=generator)
        elif noise is None:
            noise = torch.rand((samples, *batch, *event), dtype=x.dtype, device=x.device, generator=generator)
        else:  # (samples, *event): the same for every row
            samples = len(noise)
            noise = noise.to(x).reshape(samples, *(1 for _ in batch), *event)
        placed, log_volume = self.place(x, noise, context)
        found = torch.logsumexp(self.density(placed, context) + log_volume - log_q, 0) - math.log(samples)
        return found if apart is None else torch.where(apart, -torch.inf, found)

    def place(self, x: Tensor, noise: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Where noise in [0, 1) puts x: into its cell, and within the bounds where it is absent; and log |∂/∂ noise|.

        Absent positions are a normal number z, exp(z) beyond one bound, or σ(z) between two.
        """
        spacing = self.spacing.to(x.dtype).expand(self.event_shape()) if self.has_absent else self.spacing.to(x.dtype)
        placed = x + noise * spacing
        volume = torch.where(spacing > 0, spacing, 1.0).log()
        if not self.has_absent:
            shape = placed.shape if context_mask(context) is not None else placed.shape[placed.ndim - self.event_ndim :]
            return placed, masked_sum(volume.expand(shape), self.event_ndim, context)
        nothing = (x.index_select(-1, self.absent.clamp_min(0)) > 0) & (self.absent >= 0)
        z = torch.special.ndtri(noise.clamp(EDGE, 1 - EDGE))
        log_slope = 0.5 * (z.square() + math.log(2 * math.pi))  # ∂z/∂noise
        low, high = self.low.to(x.dtype), self.high.to(x.dtype)
        below, above = low.isfinite(), high.isfinite()
        width = torch.where(below & above, high - low, 1.0)
        between = low + width * z.sigmoid()
        beyond = torch.where(below, low + z.exp(), high - z.exp())
        value = torch.where(below & above, between, torch.where(below | above, beyond, z))
        inner = torch.where(
            below & above,
            width.log() + functional.logsigmoid(z) + functional.logsigmoid(-z),
            torch.where(below | above, z, 0.0),
        )
        placed = torch.where(nothing, value, placed)
        return placed, masked_sum(torch.where(nothing, log_slope + inner, volume), 1, context)

    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        samples: int = 1,
        generator: Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """A lower bound on the log-probability in nats; more samples tighten it.

        `noise`, of shape (samples, *event) in [0, 1), replaces random draws by the same points for every row, taken
        as uniform.
        """
        return self(x, context, samples, generator, noise)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Seeds) -> Tensor:
        x = self.density.draw(shape, context, temperature, generator)
        if self._on_grid:
            x = x.floor()  # a sample on the very edge may have been rounded to the next level
            return (x if self.levels is None else x.clamp(0, self.levels - 1)).long()
        spacing = self.spacing.to(x.dtype)
        return torch.where(spacing > 0, (x / torch.where(spacing > 0, spacing, 1.0)).floor() * spacing, x)

    def initialize(self, x: Tensor, context: Context = None) -> None:
        x = visible(x, context)
        check_levels(x, self.levels, "Dequantized")
        x = x if x.is_floating_point() else x.to(self.spacing.dtype)
        u = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
        if self.dequantizer is not None:
            self.dequantizer.initialize(u.clamp(EDGE, 1 - EDGE), self._beside(x, context))
        self.density.initialize(self.place(x, u)[0], context)

    def _beside(self, x: Tensor, context: Context) -> Context:
        """x as the context of the density of its noise: a vector with the context beside it, or an image."""
        mask = context_mask(context)
        beside: Context = {"image": x} if self.event_ndim > 1 else joined_context(x, context)
        return beside if mask is None else {**entries(beside), "mask": mask}


def check_levels(x: Tensor, levels: int | None, who: str) -> None:
    """Refuse training values that are no whole numbers 0 … levels − 1."""
    if levels is None or not x.numel():
        return
    low, high = x.min().item(), x.max().item()  # as Python's numbers: 256 is 0 among bytes
    if not (low >= 0 and high < levels) or (x.is_floating_point() and bool((x != x.round()).any())):
        raise ValueError(
            f"{who}: expected whole numbers 0 … {levels - 1}, got {low} … {high}; is levels= right for these images?"
        )


def joined_context(x: Tensor, context: Context) -> Tensor:
    """x with the context beside it, as the context of a density of noise."""
    features = context_features(context)
    return x if features is None else torch.cat([x, features.to(x.dtype).expand(*x.shape[:-1], -1)], -1)
