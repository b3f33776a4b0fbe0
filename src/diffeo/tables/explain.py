"""How surprising each value of a row is, given the rest of the row.

sⱼ = E[log p(Xⱼ | x₋ⱼ)] − log p(xⱼ | x₋ⱼ), with p(xⱼ | x₋ⱼ) = p(x) / ∫ p(t, x₋ⱼ) dt. The integral is a sum over the
categories, or over the cells of a grid, or a quadrature whose points are refined around the value and the mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

COARSE, FINE = 48, 24  # quadrature points along the range of a column, and around the mode and the value
CELLS = 128  # at most so many cells of a grid, around the value and over the range
ROWS = 8192  # points evaluated at once

Score = Callable[[Tensor, Tensor | None], Tensor]


def surprise(
    score: Score,
    x: Tensor,
    context: Tensor | None,
    levels: Sequence[int],
    reach: Sequence[tuple[float, float]],
    bounds: Sequence[tuple[float | None, float | None]],
    whole: Sequence[bool],
) -> Tensor:
    """Nats of surprise of every value, shape of x.

    Args:
        score: log-density of rows `(n, columns)` and their context.
        x: rows: codes of categories first, then numbers.
        context: of the rows, or None.
        levels: number of categories of each categorical column.
        reach: smallest and largest training value of each number.
        bounds: between which a number must stay; None for an open side.
        whole: whether a number takes whole values only.
    """
    base = score(x, context)
    columns = []
    for j, n in enumerate(levels):
        points = torch.arange(n, dtype=x.dtype).expand(len(x), n)
        columns.append(_surprise(base, _along(score, x, context, j, points), torch.ones_like(points)))
    for i, (low, high) in enumerate(reach):
        j = len(levels) + i
        points, width = _points(x[:, j], low, high, bounds[i], whole[i])
        log_p = _along(score, x, context, j, points)
        if not whole[i]:  # a narrow conditional density may hide between the points: look closer around the mode
            mode = points.gather(1, log_p.nan_to_num(-torch.inf).argmax(1, keepdim=True))
            more = _around(mode, points[:, 1:].sub(points[:, :-1]).amax(1, keepdim=True), bounds[i])
            points, order = torch.cat([points, more], 1).sort(1)
            log_p = torch.cat([log_p, _along(score, x, context, j, more)], 1).gather(1, order)
            width = _trapezoid(points)
        columns.append(_surprise(base, log_p, width))
    return torch.stack(columns, 1) if columns else x.new_zeros(len(x), 0)


def _surprise(base: Tensor, log_p: Tensor, width: Tensor) -> Tensor:
    """E[log p(X)] − log p(x) from the log-densities along the column, and how much of the column each stands for."""
    mass = log_p.nan_to_num(-torch.inf) + width.log()
    share = mass.softmax(1)
    expected = (share * torch.where(share > 0, log_p, 0.0)).sum(1)
    return expected - base  # the integral, common to both conditional densities, cancels


def _points(
    value: Tensor, low: float, high: float, bounds: tuple[float | None, float | None], whole: bool
) -> tuple[Tensor, Tensor]:
    """Where to evaluate along a column, each row its own, and the width that each point stands for."""
    n = len(value)
    if whole:
        if high - low < CELLS:
            points = torch.arange(round(low), round(high) + 1, dtype=value.dtype).expand(n, -1)
        else:
            points = torch.linspace(low, high, CELLS, dtype=value.dtype).round().expand(n, -1)
        return points, _trapezoid(points, alone=1.0)
    margin = 0.1 * (high - low)
    low = low - margin if bounds[0] is None else bounds[0] + 1e-3 * (low - bounds[0])
    high = high + margin if bounds[1] is None else bounds[1] - 1e-3 * (bounds[1] - high)
    coarse = torch.linspace(low, high, COARSE, dtype=value.dtype).expand(n, -1)
    near = _around(value[:, None], coarse[:, 1:2] - coarse[:, :1], bounds)
    points = torch.cat([coarse, near], 1).sort(1).values
    return points, _trapezoid(points)


def _around(center: Tensor, reach: Tensor, bounds: tuple[float | None, float | None]) -> Tensor:
    """Points around a center, denser towards it."""
    u = torch.linspace(-1, 1, FINE, dtype=center.dtype)
    points = center + reach * u.sign() * u.square()
    low, high = bounds
    return points.clamp(-torch.inf if low is None else low + 1e-9, torch.inf if high is None else high - 1e-9)


def _trapezoid(points: Tensor, alone: float = 0.0) -> Tensor:
    """Width that each of the ascending points stands for."""
    gaps = points[:, 1:] - points[:, :-1]
    edge = torch.full_like(points[:, :1], alone)
    return (torch.cat([edge, gaps], 1) + torch.cat([gaps, edge], 1)) / 2


def _along(score: Score, x: Tensor, context: Tensor | None, j: int, points: Tensor) -> Tensor:
    """Log-density of every row with column j replaced by each of its points, shape of `points`."""
    m = points.shape[1]
    out = []
    size = max(1, ROWS // m)
    for start in range(0, len(x), size):
        at = points[start : start + size]
        rows = x[start : start + size, None, :].expand(-1, m, -1).clone()
        rows[..., j] = at
        c = None if context is None else context[start : start + size, None].expand(-1, m, -1).flatten(0, 1)
        out.append(score(rows.flatten(0, 1), c).reshape(-1, m))
    return torch.cat(out)
