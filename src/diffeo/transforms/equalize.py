"""Values among known levels onto the line, by a histogram of the training rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional

from diffeo.core import Transform
from diffeo.functional import (
    Context,
    MappedVector,
    Vector,
    as_fixed_event,
    check_event,
    keep_masked,
    precise,
    real_rows,
    sum_event,
    widest,
)

MARGIN = (
    0.05  # width of the margin on either side of the range, as a share of it, so that the logit is tame at its ends
)
ORDINARY = 0.01  # of all probability at least, for the levels that are no peaks: none is without density
SEEN = 30  # numbers of the training rows that a peak holds at least
REACH = 16  # the neighbours of a level, on either side, are this part of all levels


class Equalize(Transform):
    """zᵢ = logit Fᵢ(xᵢ), Fᵢ a distribution function of column i that is even, except for levels that are very frequent.

    x = k + u is a level k of 0 … levels − 1 with noise u in [0, 1). With the probability pᵢₖ of level k,
    Fᵢ(x) = Fᵢ(k) + u pᵢₖ and log|∂zᵢ/∂xᵢ| = log pᵢₖ − log Fᵢ − log(1 − Fᵢ), which jumps from level to level.
    `initialize` finds the peaks in the histogram of the training rows: levels of more than `peak` times the median of
    their neighbours on either side, within a sixteenth of all levels. They get the probability that they have there;
    all other levels have equal ones. So black, which most pixels of a drawing are, gets as much of the line. Without
    peaks, as before `initialize`, z is the logit of x in the range and a margin of a twentieth of it on either side;
    beyond them z is NaN.

    Args:
        features: D; for pictures the number of channels, in `Along(Equalize(channels), -3)`.
        levels: how many there are, at least 2.
        peak: how many times as frequent as its neighbours a level must be, at least 0, where every level gets its own
            probability (the whole histogram is equalised); None for no peaks.

    Raises:
        ValueError: fewer than 2 levels; a negative `peak`; from `initialize`, no rows, or values outside [0, levels].

    Cost: elementwise; the inverse searches log₂ levels times.

    >>> import torch, diffeo
    >>> layer = diffeo.Equalize(1, levels=10)
    >>> layer.initialize(torch.cat([torch.full((50, 1), 0.5), torch.arange(1.0, 10).repeat(5).unsqueeze(1)]))
    >>> layer(torch.tensor([[1.0]]))[0].sigmoid()  # 50 of 95 values lie below 1, and the margins have a little
    tensor([[0.5366]])
    """

    event_ndim = event_ndim_out = 1
    codomain = constraints.real_vector
    share: Tensor
    initialized: Tensor

    def __init__(self, features: int, levels: int = 256, peak: float | None = 5.0):
        super().__init__()
        if levels < 2:
            raise ValueError(f"Equalize: expected at least 2 levels, got {levels}")
        if peak is not None and not peak >= 0:
            raise ValueError(f"Equalize: expected peak >= 0, or None, got {peak}")
        self.event = as_fixed_event(features, self)
        self.features, self.levels, self.peak, self.margin = features, levels, peak, MARGIN * levels
        interval = constraints.interval(-self.margin, levels + self.margin)
        self.domain = constraints.independent(interval, 1)
        even = self._shares(torch.zeros(levels)).to(torch.get_default_dtype())
        self.register_buffer("share", even.repeat(features, 1))  # of the margin below, each level, the margin above
        self.register_buffer("initialized", torch.tensor(False))

    def extra_repr(self) -> str:
        return f"features={self.features}, levels={self.levels}, peak={self.peak}"

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Equalize")
        value = precise(x)
        share, below, above = self._tables(value)
        inside = (value >= -self.margin) & (value <= self.levels + self.margin)
        value = torch.where(inside, value, 0.0)
        level = value.detach().floor().clamp(-1, self.levels)
        start, width = self._cell(level)
        within, at = (value - start) / width, self._places(level)
        mass = share[at]
        least = torch.finfo(value.dtype).tiny
        log_left = torch.addcmul(below[at], within, mass).clamp_min(least).log()
        log_right = torch.addcmul(above[at], 1 - within, mass).clamp_min(least).log()
        nan = torch.full_like(value, torch.nan)
        z = torch.where(inside, log_left - log_right, nan)
        logdet = torch.where(inside, mass.log() - width.log() - log_left - log_right, nan)
        z, logdet = keep_masked(x, z.to(x.dtype), logdet, context)
        return z, sum_event(logdet, 1)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Equalize")
        value = precise(z)
        share, below, above = self._tables(value)
        ends = below.log() - (above + share).log()  # where each cell begins on the line
        level = torch.full_like(value, -1.0)
        for step in reversed(range((self.levels + 1).bit_length())):
            higher = level + 2**step
            reached = (higher <= self.levels) & (ends[self._places(higher.clamp_max(self.levels))] <= value)
            level = torch.where(reached, higher, level)
        (start, width), at = self._cell(level), self._places(level)
        mass = share[at]
        from_left, from_right = (value.sigmoid() - below[at]) / mass, 1 - ((-value).sigmoid() - above[at]) / mass
        within = torch.where(value < 0, from_left, from_right)  # each is precise where it is small
        logdet = functional.logsigmoid(value) + functional.logsigmoid(-value) - mass.log() + width.log()
        x = (start + width * within.clamp(0, 1)).to(z.dtype)
        x, logdet = keep_masked(z, x, logdet, context)
        return x, sum_event(logdet, 1)

    def _cell(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Where the cells of these levels begin, and how wide they are; −1 and `levels` are the margins."""
        outer = (level < 0) | (level >= self.levels)
        return torch.where(level < 0, -self.margin, level), torch.where(outer, self.margin, torch.ones_like(level))

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probability of each cell, and of all cells below it and above it, (D · cells,) in the dtype of x."""
        share = self.share.to(widest(self.share.device))
        share = share / share.sum(-1, keepdim=True)
        below, above = share.cumsum(-1) - share, share.flip(-1).cumsum(-1).flip(-1) - share
        return share.flatten().to(x.dtype), below.flatten().to(x.dtype), above.flatten().to(x.dtype)

    def _places(self, level: Tensor) -> Tensor:
        """Where these levels (…, D) stand in a table of all columns."""
        return level.long() + 1 + self.share.shape[-1] * torch.arange(level.shape[-1], device=level.device)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        if self.initialized:
            return
        check_event(x, self.event, "Equalize")
        rows = real_rows(x, context)
        if not len(rows):
            raise ValueError("Equalize: there are no rows to take a histogram of")
        if not ((rows >= 0) & (rows <= self.levels)).all():
            raise ValueError(
                f"Equalize: expected values in [0, {self.levels}], got {float(rows.min())} … {float(rows.max())}"
            )
        for column, share in zip(rows.unbind(1), self.share, strict=True):
            level = column.floor().long().clamp_max(self.levels - 1)
            share.copy_(self._shares(torch.bincount(level, minlength=self.levels)))
        self.initialized.fill_(True)

    def _shares(self, counts: Tensor) -> Tensor:
        """Probabilities, but for a factor, of the cells of a column with so many numbers at each level."""
        counts = counts.double()
        peaks = self._peaks(counts)
        found = counts / counts.sum().clamp_min(1)
        ordinary = (1 - found[peaks].sum()).clamp_min(ORDINARY) / (~peaks).sum().clamp_min(1)
        levels = torch.where(peaks, found, 0.0).clamp_min(ordinary)
        # a peak at an end ends by itself: the margin beside it gets as little as a level
        low, high = (ordinary if peaks[end] else self.margin * ordinary for end in (0, -1))
        return torch.cat([low.view(1), levels, high.view(1)])

    def _peaks(self, counts: Tensor) -> Tensor:
        """Which levels are much more frequent than their neighbours on either side; beyond the ends there are none."""
        if self.peak is None:
            return torch.zeros_like(counts, dtype=torch.bool)
        reach = max(2, self.levels // REACH)
        windows = functional.pad(counts, (reach, reach)).unfold(0, 2 * reach + 1, 1)
        sides = windows[:, :reach].median(1).values, windows[:, reach + 1 :].median(1).values
        return (counts > self.peak * torch.maximum(*sides)) & (counts >= (SEEN if self.peak else 1))
