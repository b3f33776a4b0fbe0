"""How surprising each value of a row is, given the rest of the row.

sⱼ = E[log p(Xⱼ | x₋ⱼ)] − log p(xⱼ | x₋ⱼ), with p(xⱼ | x₋ⱼ) = p(x) / ∫ p(t, x₋ⱼ) dt. The integral is a sum over the
categories, or over the cells of a grid, or a quadrature whose points are refined around the value and the mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

EVEN, FINE = 17, 24  # quadrature points evenly over the range of a column, and around the mode and the value each
CELLS = 128  # a grid of at most so many cells is summed cell by cell
ROWS = 8192  # points evaluated at once

Score = Callable[[Tensor, Tensor | None], Tensor]


def surprise(
    score: Score,
    x: Tensor,
    context: Tensor | None,
    levels: Sequence[int],
    quantiles: Sequence[Tensor],
    bounds: Sequence[tuple[float | None, float | None]],
    whole: Sequence[bool],
    atoms: Mapping[int, int],
) -> Tensor:
    """Nats of surprise of every value, a column for each category and each number.

    Args:
        score: log-density of rows `(n, columns)` and their context.
        x: rows: codes of categories first, then numbers.
        context: of the rows, or None.
        levels: number of categories of each categorical column.
        quantiles: of the training values of each number, ascending from the smallest to the largest.
        bounds: between which a number must stay; None for an open side.
        whole: whether a number takes whole values only.
        atoms: of numbers that have some, the place of the category that says which one it is, 0 for none; these
            categories have no column of their own.
    """
    base = score(x, context)
    columns = []
    for j, n in enumerate(levels):
        if j in atoms.values():
            continue
        points = torch.arange(n, dtype=x.dtype).expand(len(x), n)
        columns.append(_surprise(base, _along(score, x, context, j, points), torch.ones_like(points)))
    for i, known in enumerate(quantiles):
        j = len(levels) + i
        if i in atoms:
            code = atoms[i]
            codes = torch.arange(1, levels[code], dtype=x.dtype).expand(len(x), -1)
            there, free = _along(score, x, context, code, codes), x.clone()
            free[:, code] = 0.0
        else:
            there, free = None, x
        if whole[i] and known[-1] - known[0] < CELLS:
            points = torch.arange(round(float(known[0])), round(float(known[-1])) + 1, dtype=x.dtype).expand(len(x), -1)
            log_p = _along(score, free, context, j, points)
            columns.append(_surprise(base, *_with(there, log_p, torch.ones_like(points))))
            continue
        points = _points(x[:, j], known, bounds[i], whole[i])
        log_p = _along(score, free, context, j, points)
        for _ in range(2):  # a narrow conditional density may hide between the points: look closer around the mode
            at = log_p.nan_to_num(-torch.inf).argmax(1, keepdim=True)
            near = points.gather(1, (at - 1).clamp_min(0)), points.gather(1, (at + 1).clamp_max(points.shape[1] - 1))
            more = _around(
                points.gather(1, at), torch.maximum(2 * (near[1] - near[0]), _least(whole[i])), bounds[i], whole[i]
            )
            points, order = torch.cat([points, more], 1).sort(1)
            log_p = torch.cat([log_p, _along(score, free, context, j, more)], 1).gather(1, order)
        columns.append(_surprise(base, *_with(there, log_p, _trapezoid(points, alone=1.0 if whole[i] else 0.0))))
    return torch.stack(columns, 1) if columns else x.new_zeros(len(x), 0)


def _with(atoms: Tensor | None, log_p: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The atoms of a column beside the points along it, each of which stands for itself."""
    if atoms is None:
        return log_p, width
    return torch.cat([atoms, log_p], 1), torch.cat([torch.ones_like(atoms), width], 1)


def _surprise(base: Tensor, log_p: Tensor, width: Tensor) -> Tensor:
    """E[log p(X)] − log p(x) from the log-densities along the column, and how much of the column each stands for."""
    mass = log_p.nan_to_num(-torch.inf) + width.log()
    share = mass.softmax(1)
    expected = (share * torch.where(share > 0, log_p, 0.0)).sum(1)
    return expected - base  # the integral, common to both conditional densities, cancels


def _points(value: Tensor, known: Tensor, bounds: tuple[float | None, float | None], whole: bool) -> Tensor:
    """Where to evaluate along a column, each row its own: among the training rows, evenly, and around the value."""
    low, high = float(known[0]), float(known[-1])
    margin = 0.0 if whole else 0.1 * (high - low)
    low = low - margin if bounds[0] is None else bounds[0] + 1e-3 * (low - bounds[0])
    high = high + margin if bounds[1] is None else bounds[1] - 1e-3 * (bounds[1] - high)
    fixed = torch.cat([known, torch.linspace(low, high, EVEN, dtype=known.dtype)]).sort().values
    after = fixed[torch.searchsorted(fixed, value.contiguous()).clamp(1, len(fixed) - 1)]
    gap = (after - value).abs().clamp_min(1e-3 * (high - low))
    near = _around(value[:, None], torch.maximum(gap[:, None], _least(whole)), bounds, whole)
    points = torch.cat([fixed.expand(len(value), -1), near], 1).sort(1).values
    return points.round() if whole else points


def _least(whole: bool) -> Tensor:
    """The least reach around a point: on a grid, far enough to meet its neighbours."""
    return torch.tensor(FINE / 2 if whole else 0.0, dtype=torch.float64)


def _around(center: Tensor, reach: Tensor, bounds: tuple[float | None, float | None], whole: bool) -> Tensor:
    """Points around a center: denser towards it, or, on a grid, the cells next to it."""
    u = torch.linspace(-1, 1, FINE, dtype=center.dtype)
    points = center + reach * (u if whole else u.sign() * u.square())
    low, high = bounds
    points = points.round() if whole else points
    edge = 0.0 if whole else 1e-9
    return points.clamp(-torch.inf if low is None else low + edge, torch.inf if high is None else high - edge)


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
