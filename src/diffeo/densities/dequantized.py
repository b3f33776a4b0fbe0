"""Discrete values as continuous ones: uniform dequantization."""

from __future__ import annotations

import math

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from diffeo.core import Density, Flow
from diffeo.functional import Context, context_batch


class _Integer(Constraint):
    is_discrete = True

    def check(self, value: Tensor) -> Tensor:
        return value % 1 == 0


class Dequantized(Density):
    """A probability for values on a grid: log P(x) ≥ E_u log p(x + u·spacing) + D log spacing, with p on the line.

    u is uniform on [0, 1)^D. The value is a lower bound, tighter with more samples (the importance-weighted bound
    log (1/S) Σₛ p(x + uₛ·spacing) in expectation), and random unless a seeded generator is given. Samples are rounded
    down to the grid; they are integers where spacing is 1.

    Args:
        density: a density over x + u·spacing.
        spacing: distance between neighbouring values, > 0.

    Cost: `samples` passes of the density.

    "A note on the evaluation of generative models" (Theis et al., 2015), https://arxiv.org/abs/1511.01844

    >>> import torch, diffeo
    >>> coin = diffeo.Dequantized(diffeo.Uniform(torch.zeros(1), torch.full((1,), 2.0)))
    >>> coin(torch.tensor([1])).exp()
    tensor(0.5000)
    """

    exact = False
    has_rsample = False

    def __init__(self, density: Density, spacing: float = 1.0):
        super().__init__()
        if not spacing > 0:
            raise ValueError(f"Dequantized: expected spacing > 0, got {spacing}")
        self.density = density
        self.spacing = spacing

    @property
    def flow(self) -> Flow:
        """The continuous flow inside."""
        if not isinstance(self.density, Flow):
            raise ValueError(f"Dequantized: {type(self.density).__name__} is no Flow, so it has no transform or base")
        return self.density

    @property
    def transform(self):
        """The transform of the flow inside."""
        return self.flow.transform

    @property
    def base(self) -> Density:
        """The base of the flow inside."""
        return self.flow.base

    @property
    def encoder(self):
        """The encoder of the flow inside."""
        return self.flow.encoder

    @property
    def support(self) -> Constraint:
        integer = _Integer() if self.spacing == 1 else constraints.real
        return constraints.independent(integer, len(self.event_shape()))

    def event_shape(self, context: Context = None) -> Size:
        return self.density.event_shape(context)

    def forward(
        self, x: Tensor, context: Context = None, samples: int = 1, generator: Generator | None = None
    ) -> Tensor:
        event = self.event_shape(context)
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        batch = torch.broadcast_shapes(x.shape[: x.ndim - len(event)], context_batch(context))
        u = torch.rand((samples, *batch, *event), dtype=x.dtype, device=x.device, generator=generator)
        log_p = self.density(x + u * self.spacing, context)
        volume = math.prod(event) * math.log(self.spacing)
        return torch.logsumexp(log_p, 0) - math.log(samples) + volume

    def log_prob(
        self, x: Tensor, context: Context = None, samples: int = 1, generator: Generator | None = None
    ) -> Tensor:
        """A lower bound on the log-probability in nats; more samples tighten it."""
        return self(x, context, samples, generator)

    def draw(self, shape: Size, context: Context, temperature: float, generator: Generator | None) -> Tensor:
        steps = (self.density.draw(shape, context, temperature, generator) / self.spacing).floor()
        return steps.long() if self.spacing == 1 else steps * self.spacing

    def initialize(self, x: Tensor, context: Context = None) -> None:
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        self.density.initialize(x + 0.5 * self.spacing, context)
