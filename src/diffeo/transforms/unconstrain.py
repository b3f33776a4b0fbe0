"""From columns with bounds to the whole line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from diffeo.core import Transform
from diffeo.functional import Context, MappedVector, Vector, check_event, keep_masked, sum_event
from diffeo.transforms.norm import training_rows
from diffeo.transforms.univariate import Sigmoid, Softplus

# How close to a bound a value may come, in units of the scale: the same in every precision, so that what was trained in
# float32 is scored alike in float64. Below an upper bound float32 itself is coarser.
EDGE, HIGH_EDGE = 1e-12, 1e-6


class Unconstrain(Transform):
    """Columns with bounds onto the line: softplus⁻¹ for one bound, logit for two, the identity for none.

    low only:  z = s·softplus⁻¹((x − low) / s), close to x − low far above the bound
    high only: z = −s·softplus⁻¹((high − x) / s)
    both:      z = logit((x − low) / (high − low))

    s is 1 until `initialize` sets it to the median distance of the training rows from the bound. Outside the bounds z
    is NaN; a value on a bound, or closer to it than float32 can tell, counts as just inside.

    Args:
        low, high: a number for each column, or None (±inf) where there is no bound.

    Raises:
        ValueError: bounds of different lengths, or low ≥ high.

    Cost: elementwise.

    >>> import torch, diffeo
    >>> layer = diffeo.Unconstrain([0.0, None, 0.0], [None, None, 1.0])
    >>> layer(torch.tensor([1.0, 1.0, 0.5]))[0]
    tensor([0.5413, 1.0000, 0.0000])
    """

    event_ndim = event_ndim_out = 1
    codomain = constraints.real_vector
    low: Tensor
    high: Tensor
    scale: Tensor
    initialized: Tensor
    two_bounds: bool

    def __init__(self, low: Sequence[float | None], high: Sequence[float | None]):
        super().__init__()
        if len(low) != len(high):
            raise ValueError(f"Unconstrain: {len(low)} lower bounds, but {len(high)} upper ones")
        self.register_buffer("low", torch.tensor([-torch.inf if v is None else v for v in low]))
        self.register_buffer("high", torch.tensor([torch.inf if v is None else v for v in high]))
        if not (self.low < self.high).all():
            raise ValueError(f"Unconstrain: expected low < high, got {list(low)} and {list(high)}")
        self.register_buffer("scale", torch.ones(len(low)))
        self.register_buffer("initialized", torch.tensor(False))
        self.event = Size((len(low),))
        self.domain = constraints.independent(constraints.interval(self.low, self.high), 1)
        self._softplus, self._sigmoid = Softplus(), Sigmoid()
        self.register_load_state_dict_post_hook(_note_bounds)
        _note_bounds(self)

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Unconstrain")
        kind, anchor, sign, span = self._parts(x.dtype)
        t = sign * (x - anchor) / span
        inside = (t >= 0) & ((t <= 1) | (kind != 2))
        z, logdet = self._sigmoid.inverse(t.clamp(EDGE, 1 - HIGH_EDGE))
        logdet = logdet - span.log()
        if not self.two_bounds:
            above, above_logdet = self._softplus.inverse(t.clamp(min=EDGE))
            z = torch.where(kind == 2, z, sign * span * above)
            logdet = torch.where(kind == 2, logdet, above_logdet)
        nan = torch.full_like(z, torch.nan)
        z, logdet = torch.where(inside, z, nan), torch.where(inside, logdet, nan)
        if not self.two_bounds:
            z, logdet = torch.where(kind == 0, x, z), torch.where(kind == 0, torch.zeros_like(x), logdet)
        z, logdet = keep_masked(x, z, logdet, context)
        return z, sum_event(logdet, 1)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Unconstrain")
        kind, anchor, sign, span = self._parts(z.dtype)
        share, logdet = self._sigmoid(z)
        logdet = logdet + span.log()
        if not self.two_bounds:
            above, above_logdet = self._softplus(sign * z / span)
            share, logdet = torch.where(kind == 2, share, above), torch.where(kind == 2, logdet, above_logdet)
        x = anchor + sign * span * share
        x = torch.maximum(torch.minimum(x, self.high.to(x.dtype)), self.low.to(x.dtype))  # not beyond by a rounding
        if not self.two_bounds:
            x, logdet = torch.where(kind == 0, z, x), torch.where(kind == 0, torch.zeros_like(z), logdet)
        x, logdet = keep_masked(z, x, logdet, context)
        return x, sum_event(logdet, 1)

    def _parts(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Number of bounds of each column, the bound it is measured from, in which direction, and in which unit."""
        low, high = self.low.to(dtype), self.high.to(dtype)
        below, above = low.isfinite(), high.isfinite()
        kind = below.long() + above.long()
        anchor = torch.where(below, low, torch.where(above, high, 0.0))
        sign = torch.where(above & ~below, -1.0, 1.0).to(dtype)
        span = torch.where(kind == 2, high - low, self.scale.to(dtype))
        return kind, anchor, sign, torch.where(kind == 0, torch.ones_like(span), span)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        if self.initialized:
            return
        rows = training_rows(x, context, self.event, "Unconstrain")
        _, anchor, sign, _ = self._parts(rows.dtype)
        distance = (sign * (rows - anchor)).median(0).values
        self.scale.copy_(torch.where(distance > 0, distance, torch.ones_like(distance)))
        self.initialized.fill_(True)


def _note_bounds(layer: Unconstrain, *_: Any) -> None:
    """Whether all columns have two bounds, as pictures do: then the other maps need not be worked out."""
    layer.two_bounds = bool((layer.low.isfinite() & layer.high.isfinite()).all())
