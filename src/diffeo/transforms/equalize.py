"""Values among known levels onto the line, by a histogram of the training rows."""

from __future__ import annotations

from numbers import Real

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
from diffeo.kernels.dispatch import is_traced

MARGIN = 0.05  # of the range, how wide the margin on either side is, so that the logit is tame at its ends
ORDINARY = 0.01  # of all probability at least, for the levels that are no peaks: none is without density
SEEN = 30  # numbers of the training rows that a peak holds at least
FEW = 24  # runs of one density, up to which comparing with each is faster than a search
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

    Cost: elementwise; the inverse looks for the run of levels of equal density that it is in.

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
        if peak is not None and not (isinstance(peak, Real) and peak >= 0):
            raise ValueError(f"Equalize: expected peak >= 0, or None, got {peak!r}")
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
        value = self._columns(x)
        rate, below, above = self._tables(value)
        inside = (value >= -self.margin) & (value <= self.levels + self.margin)
        value = torch.where(inside, value, 0.0)
        level = value.detach().floor().clamp(-1, self.levels)
        start = torch.where(level < 0, -self.margin, level)
        end = torch.where(level >= self.levels, self.levels + self.margin, level + 1)
        at = self._places(level.long() + 1, rate.shape[1])
        slope, least = _looked_up(rate, at), torch.finfo(value.dtype).tiny
        log_left = torch.addcmul(_looked_up(below, at), value - start, slope).clamp_min(least).log()
        log_right = torch.addcmul(_looked_up(above, at), end - value, slope).clamp_min(least).log()
        z = torch.where(inside, log_left - log_right, torch.nan)
        logdet = torch.where(inside, slope.log() - log_left - log_right, torch.nan)
        return self._rows(x, z, logdet, context)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Equalize")
        value = self._columns(z)
        anchor, base, slope, begins = self._runs(value)
        low, odds = value < 0, (-value.abs()).exp()
        share = odds / (1 + odds)  # of F, or of 1 − F where that is smaller, and so precise
        run = torch.where(low, 0, len(anchor) // 2) + self._find(value.detach(), begins)
        at = self._places(run, len(anchor))
        steep = _looked_up(slope, at)
        x = _looked_up(anchor, run) + (share - _looked_up(base, at)) / steep
        x = x.clamp(-self.margin, self.levels + self.margin)  # not beyond by a rounding
        logdet = -value.abs() - 2 * odds.log1p() - steep.abs().log()
        return self._rows(z, x, logdet, context)

    def _columns(self, x: Vector) -> Tensor:
        """(D, n): each column in one run of memory, whatever the strides of x."""
        return precise(x).movedim(-1, 0).reshape(self.features, -1).contiguous()

    def _rows(self, x: Vector, z: Tensor, logdet: Tensor, context: Context) -> MappedVector:
        """What becomes of x, from its columns."""
        z, logdet = (t.view(self.features, *x.shape[:-1]).movedim(0, -1) for t in (z, logdet))
        z, logdet = keep_masked(x, z.to(x.dtype), logdet, context)
        return z, sum_event(logdet, 1)

    def _places(self, entry: Tensor, count: int) -> Tensor:
        """Where these entries of each column stand in a table of so many for each."""
        if self.features == 1:
            return entry
        return entry + count * torch.arange(self.features, device=entry.device).unsqueeze(1)

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Density of each cell, and probabilities of all cells below it and above it, (D, cells) in the dtype of x."""
        share = self.share.to(widest(self.share.device))
        share = share / share.sum(-1, keepdim=True)
        below, above = share.cumsum(-1) - share, share.flip(-1).cumsum(-1).flip(-1) - share
        rate = torch.cat([share[:, :1] / self.margin, share[:, 1:-1], share[:, -1:] / self.margin], 1)
        return rate.to(x.dtype), below.to(x.dtype), above.to(x.dtype)

    def _runs(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The runs of cells of one density, where F is a line, each seen from its left end and then from its right end.

        x at that end, (2 n,); F or 1 − F there, and its slope, (D, 2 n); and where all runs but the first begin on the
        line of z, (D, n − 1). Graphs, whose shapes must not depend on data, take each cell for a run.
        """
        rate, below, above = self._tables(z)
        first = torch.arange(1, rate.shape[1], device=z.device)
        if not is_traced():
            first = first[(rate[:, 1:] != rate[:, :-1]).any(0)]
        first = functional.pad(first, (1, 0))
        last = functional.pad(first[1:], (0, 1), value=rate.shape[1]) - 1
        inner = torch.arange(self.levels + 1, device=z.device).to(z.dtype)
        edges = torch.cat([inner[:1] - self.margin, inner, inner[-1:] + self.margin])
        below, above, rate = below[:, first], above[:, last], rate[:, first]
        ends = torch.cat([edges[first], edges[last + 1]])
        begins = below[:, 1:].log() - above[:, :-1].log()
        return ends, torch.cat([below, above], 1), torch.cat([rate, -rate], 1), begins

    def _find(self, z: Tensor, begins: Tensor) -> Tensor:
        """How many of these entries of its column are at most z."""
        count, found = begins.shape[1], torch.zeros_like(z, dtype=torch.long)
        if not is_traced():
            if count > FEW:
                return torch.searchsorted(begins, z, right=True)
            passed = torch.zeros_like(z, dtype=torch.uint8)
            for entry in begins.unsqueeze(-1).unbind(1):
                passed += z >= entry
            return passed.long()
        for step in reversed(range(count.bit_length())):  # a search that graphs and vmap can follow
            higher = found + 2**step
            entry = _looked_up(begins, self._places(higher.clamp_max(count) - 1, count))
            found = torch.where((higher <= count) & (entry <= z), higher, found)
        return found

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
        counts = counts.to(widest(counts.device))
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


def _looked_up(table: Tensor, at: Tensor) -> Tensor:
    """The numbers that stand at these places of a table, all of it as one row; indexing takes several times as long."""
    return table.flatten().index_select(0, at.flatten()).view(at.shape)
