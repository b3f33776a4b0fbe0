"""Roots of increasing scalar functions: Newton steps inside a bracket that grows until it holds the root.

For f(x) = z every scalar keeps (low, high), at first unbounded. An evaluation at x moves one end to x. The next x is

    x − (f(x) − z) / f'(x)      where that lies inside the bracket and the step is at most half of the last one;
    (low + high) / 2            otherwise;

and, as long as one end is missing, a Newton step twice as long, and no shorter than a floor that grows by the factor 4:
a root at any distance is enclosed after a logarithmic number of evaluations, and found to the last bits after that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffeo.kernels.dispatch import is_traced

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
    eps = torch.finfo(z.dtype).eps
    x = z if start is None else start
    low, high = torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf)
    last = torch.full_like(x, torch.inf)  # length of the last step
    done = closed = z.isnan()
    residual = torch.zeros_like(x)
    traced = is_traced()
    for k in range(TRACED if traced else EAGER):
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
        if not traced and bool(done.all()):
            break
        step = _step(x, newton, low, high, last, k)
        step = torch.where(done, 0.0, step)
        x, last = x + step, step.abs()
    unsolved = ~closed & ~(residual.abs() <= tol * (1 + z.abs()))
    if traced:
        return torch.where(unsolved, torch.nan, x)
    if bool(unsolved.any()):
        worst = (residual.abs() / (1 + z.abs()))[unsolved].max()
        raise UnsolvedError(
            f"{who}: the inverse of {int(unsolved.sum())} of {unsolved.numel()} scalars has a residual "
            f"|f(x) - z| of up to {float(worst):.1e} (1 + |z|), beyond {tol:.1e}, after {EAGER} evaluations"
        )
    return torch.where(z.isnan(), z, x)


def _step(x: Tensor, newton: Tensor, low: Tensor, high: Tensor, last: Tensor, k: int) -> Tensor:
    """From x to the next place to evaluate."""
    middle = low + (high - low) / 2 - x
    inside = (x + newton > low) & (x + newton < high) & (newton.abs() <= last / 2)
    enclosed = torch.where(inside, newton, middle)
    if k < PATIENT:
        open_ = newton
    else:
        floor = (1 + x.abs()) * 4.0 ** min(k - UNIT, 20)
        open_ = newton.sign() * torch.maximum(2 * newton.abs(), floor)
    open_ = open_.nan_to_num(0.0).clamp(-(1e3 + x.abs()) * 8, (1e3 + x.abs()) * 8)
    return torch.where(low.isfinite() & high.isfinite(), enclosed, open_)


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
