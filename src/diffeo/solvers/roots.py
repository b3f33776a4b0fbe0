"""Roots of increasing scalar functions: Newton steps inside a bracket that grows until it holds the root.

For f(x) = z every scalar keeps (low, high), at first unbounded. An evaluation at x moves one end to x. The next x is

    x − (f(x) − z) / f'(x)      where that lies inside the bracket and the step is at most half of the last one;
    (low + high) / 2            otherwise;

and, as long as one end is missing, a Newton step twice as long, and no shorter than a floor that grows by the factor 4:
a root at any distance is enclosed after a logarithmic number of evaluations, and found to the last bits after that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffeo.kernels.dispatch import is_traced
from diffeo.kernels.private import in_scan, scan

Increasing = Callable[[Tensor], tuple[Tensor, Tensor]]  # x -> values and log-slopes

EAGER, TRACED = 200, 32  # evaluations at most; a traced run makes all of them
PATIENT = 3  # pure Newton steps before the search for a missing end of the bracket sets in
UNIT = 12  # evaluations after which the floor of that search is 1 + |x|


class UnsolvedError(RuntimeError):
    """A numerical inverse did not reach its tolerance; the message says by how much."""


def solve_increasing(f: Increasing, z: Tensor, who: str, start: Tensor | None = None, tol: float = 1e-5) -> Tensor:
    """x with f(x) = z, elementwise and without gradient.

    Args:
        f: an increasing function of every scalar by itself, which gives values and log-slopes.
        z: values to reach, of the shape of x.
        who: for messages.
        start: where to begin; default z, right for maps close to the identity.
        tol: largest residual |f(x) − z| / (1 + |z|), > 0; where the bracket has shrunk to neighbouring numbers, any.

    Raises:
        UnsolvedError: the residual stays above it. Traced runs (compiled, or under vmap) give NaN there instead.

    Cost: as many evaluations of f as the slowest scalar takes, at most 200; traced always 32.
    """
    x = z if start is None else start
    nowhere = torch.full_like(x, torch.inf)
    state = _Search(x, -nowhere, nowhere, nowhere, torch.zeros_like(x), z.isnan(), z.isnan())
    if torch.compiler.is_exporting() and not in_scan():  # a loop keeps graphs small
        paces = torch.tensor([_pace(k) for k in range(TRACED)], dtype=z.dtype, device=z.device)

        def step(search: tuple[Tensor, ...], pace: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
            return tuple(t.contiguous() for t in _advance(f, z, tol, _Search(*search), pace[0], pace[1])), pace.sum()

        plain = torch.contiguous_format
        state = _Search(*scan(step, tuple(t.clone(memory_format=plain) for t in state), paces)[0])
    else:
        for k in range(TRACED if is_traced() else EAGER):
            state = _advance(f, z, tol, state, *_pace(k))
            if not is_traced() and bool(state.done.all()):
                break
    x, residual = state.x, state.residual
    unsolved = ~state.closed & ~(residual.abs() <= tol * (1 + z.abs()))
    if is_traced():
        return torch.where(unsolved, torch.nan, x)
    if bool(unsolved.any()):
        worst = (residual.abs() / (1 + z.abs()))[unsolved].max()
        raise UnsolvedError(
            f"{who}: the inverse of {int(unsolved.sum())} of {unsolved.numel()} scalars has a residual "
            f"|f(x) - z| of up to {float(worst):.1e} (1 + |z|), beyond {tol:.1e}, after {EAGER} evaluations"
        )
    return torch.where(z.isnan(), z, x)


class _Search(NamedTuple):
    """Where the search of every scalar stands."""

    x: Tensor  # the next place to evaluate
    low: Tensor
    high: Tensor
    last: Tensor  # length of the last step
    residual: Tensor  # f − z at the last place, and where it was done, there
    done: Tensor
    closed: Tensor  # neighbouring numbers enclose the root


def _advance(
    f: Increasing, z: Tensor, tol: float, search: _Search, stretch: float | Tensor, floor: float | Tensor
) -> _Search:
    """Evaluate, narrow the bracket, and step."""
    x, low, high, last, residual, done, _ = search
    eps = torch.finfo(z.dtype).eps
    value, log_slope = f(x)
    residual = torch.where(done, residual, value - z)
    below = residual < 0
    low, high = torch.where(below, x, low), torch.where(below, high, x)
    closed = done | (high - low <= 4 * eps * (1 + x.abs()))
    newton = -residual * (-log_slope).exp()
    within = residual.abs() <= tol * (1 + z.abs())
    # a step that x cannot resolve ends it too, or rounding in f would keep it halving the bracket
    done = closed | (residual.abs() <= 2 * eps * (1 + z.abs()))
    done = done | (within & (newton.abs() <= 4 * eps * (1 + x.abs())))
    middle = low + (high - low) / 2 - x
    inside = (x + newton > low) & (x + newton < high) & (newton.abs() <= last / 2)
    enclosed = torch.where(inside, newton, middle)
    open_ = newton.sign() * torch.maximum(stretch * newton.abs(), floor * (1 + x.abs()))
    open_ = open_.nan_to_num(0.0).clamp(-(1e3 + x.abs()) * 8, (1e3 + x.abs()) * 8)
    step = torch.where(low.isfinite() & high.isfinite(), enclosed, open_)
    step = torch.where(done, 0.0, step)
    return _Search(x + step, low, high, step.abs(), residual, done, closed)


def _pace(k: int) -> tuple[float, float]:
    """Of step k, while an end of the bracket is missing: how often Newton's, and the least as a share of 1 + |x|."""
    return (1.0, 0.0) if k < PATIENT else (2.0, 4.0 ** min(k - UNIT, 20))


def invert_increasing(
    f: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], z: Tensor, params: Tensor, who: str, tol: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The inverse of a scalar map x ↦ f(x; params), and its log-det, differentiable in z and in the parameters.

    dx = (dz − ∂f/∂θ dθ) / f', whatever the search took, from Newton steps that autograd sees: one is right to first
    order, two are to third.

    Raises:
        UnsolvedError: as for `solve_increasing`.
    """
    with torch.no_grad():
        x = solve_increasing(lambda x: f(x, params), z, who, tol=tol)
    value, log_slope = f(x, params)
    if not torch.is_grad_enabled():
        return x, -log_slope
    for _ in range(2):
        x = x - (value - z) * (-log_slope).exp()
        value, log_slope = f(x, params)
    return x, -log_slope
