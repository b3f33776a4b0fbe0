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
    check_event,
    keep_masked,
    precise,
    real_rows,
    sum_event,
    widest,
)

MARGIN = 0.05  # of the range on either side, so that the logit stays tame at its ends
LEAST = 0.01  # shared by the levels that are no peaks, so that none is without density and rounding stays far below one
EDGE = 1e-9  # the least probability to either side of a value, so that the ends of the range have a place on the line


class Equalize(Transform):
    """zᵢ = logit Fᵢ(xᵢ), Fᵢ a distribution function of column i that is even but for the levels that many numbers hold.

    x = k + u holds a level k of 0 … levels − 1 and noise u in [0, 1). With pᵢₖ the share of level k,
    Fᵢ(x) = Σ_{j<k} pᵢⱼ + u pᵢₖ and log|∂zᵢ/∂xᵢ| = log pᵢₖ − log Fᵢ − log(1 − Fᵢ). `initialize` finds the peaks of the
    histogram of the training rows, levels that hold more than `peak` times the median of all levels: they keep their
    shares, and the others have equal ones. So a level that holds most of the numbers, as the black of drawings does,
    gets as much of the line. Without peaks, as before `initialize`, z is the logit of x within the range and a margin
    of a twentieth of it on either side; beyond them z is NaN.

    Args:
        features: D; of pictures that of the channels, in `Along(Equalize(channels), -3)`.
        levels: how many there are, at least 2.
        peak: how much more than the median makes a peak, at least 0, where every level keeps its share (the whole
            histogram is equalised); None for no peaks.

    Raises:
        ValueError: fewer than 2 levels; a negative `peak`; from `initialize`, where values are outside of [0, levels].

    Cost: elementwise; the inverse searches log₂ levels times.

    >>> import torch, diffeo
    >>> layer = diffeo.Equalize(1, levels=6)
    >>> layer.initialize(torch.tensor([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.3, 2.3, 3.6, 4.3, 5.1]).unsqueeze(1))
    >>> layer(torch.tensor([1.0, 6.0]).unsqueeze(1))[0].sigmoid()  # 8 of 13 values lie below 1; margins are as a level
    tensor([[0.6000],
            [0.9333]])
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
        self.features, self.levels, self.peak, self.event = features, levels, peak, (features,)
        self.margin = max(1, round(MARGIN * levels))
        self.cells = levels + 2 * self.margin
        low, high = float(-self.margin), float(levels + self.margin)
        self.domain = constraints.independent(constraints.interval(low, high), 1)
        self.register_buffer("share", torch.full((features, self.cells), 1 / self.cells))
        self.register_buffer("initialized", torch.tensor(False))

    def extra_repr(self) -> str:
        return f"features={self.features}, levels={self.levels}, peak={self.peak}"

    def forward(self, x: Vector, context: Context = None) -> MappedVector:
        check_event(x, self.event, "Equalize")
        value = precise(x) + self.margin
        share, below, above = self._tables(value)
        inside = (value >= 0) & (value <= self.cells)
        value = torch.where(inside, value, 0.0)
        cell = value.detach().floor().clamp_max(self.cells - 1)
        within, at = value - cell, self._places(cell)
        mass = share[at]
        log_left = torch.addcmul(below[at], within, mass).clamp_min(EDGE).log()
        log_right = torch.addcmul(above[at], 1 - within, mass).clamp_min(EDGE).log()
        nan = torch.full_like(value, torch.nan)
        z = torch.where(inside, log_left - log_right, nan)
        logdet = torch.where(inside, mass.log() - log_left - log_right, nan)
        z, logdet = keep_masked(x, z.to(x.dtype), logdet, context)
        return z, sum_event(logdet, 1)

    def inverse(self, z: Vector, context: Context = None) -> MappedVector:
        check_event(z, self.event, "Equalize")
        value = precise(z)
        share, below, above = self._tables(value)
        left, right, low = value.sigmoid(), (-value).sigmoid(), value < 0  # each is precise where it is small
        cell = torch.zeros_like(value)
        for step in reversed(range((self.cells - 1).bit_length())):
            higher = cell + 2**step
            at = self._places(higher.clamp_max(self.cells - 1))
            # not `where` of truth values, which ONNX Runtime does not know
            reached = (low & (below[at] <= left)) | (~low & (above[at] + share[at] >= right))
            cell = torch.where(reached & (higher < self.cells), higher, cell)
        at = self._places(cell)
        mass = share[at]
        within = torch.where(low, (left - below[at]) / mass, 1 - (right - above[at]) / mass)
        logdet = functional.logsigmoid(value) + functional.logsigmoid(-value) - mass.log()
        x = (cell + within.clamp(0, 1) - self.margin).to(z.dtype)
        x, logdet = keep_masked(z, x, logdet, context)
        return x, sum_event(logdet, 1)

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Share of each cell, and those of all cells below it and above it, (D · cells,) in the dtype of x."""
        share = self.share.to(widest(self.share.device))
        share = share / share.sum(-1, keepdim=True)
        below, above = share.cumsum(-1) - share, share.flip(-1).cumsum(-1).flip(-1) - share
        return share.flatten().to(x.dtype), below.flatten().to(x.dtype), above.flatten().to(x.dtype)

    def _places(self, cell: Tensor) -> Tensor:
        """Where these cells (…, D) stand in a table of all columns."""
        return cell.long() + self.cells * torch.arange(cell.shape[-1], device=cell.device)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        if self.initialized:
            return
        check_event(x, self.event, "Equalize")
        rows = real_rows(x, context)
        if not ((rows >= 0) & (rows <= self.levels)).all():
            raise ValueError(
                f"Equalize: expected values in [0, {self.levels}], got {float(rows.min())} … {float(rows.max())}"
            )
        for column, share in zip(rows.unbind(1), self.share, strict=True):
            counts = torch.bincount(column.floor().long().clamp_max(self.levels - 1), minlength=self.levels)
            share.copy_(self._shares(counts / len(column)))
        self.initialized.fill_(True)

    def _shares(self, found: Tensor) -> Tensor:
        """Shares of all cells where levels hold these: a margin beside a peak is no wider on the line than a level."""
        peaks = torch.zeros_like(found, dtype=torch.bool) if self.peak is None else found > self.peak * found.median()
        rest = (1 - found[peaks].sum()).clamp_min(LEAST) / (~peaks).sum().clamp_min(1)
        low, high = (rest / self.margin if peaks[end] else rest for end in (0, -1))
        inner = torch.where(peaks, found, rest)
        return torch.cat([low.expand(self.margin), inner, high.expand(self.margin)])
